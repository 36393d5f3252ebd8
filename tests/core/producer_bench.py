"""A producer session with a clock of its own, whose every request is answered by the test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from durable_streams._core.batcher import Ack
from durable_streams._core.exchange import Failure, Head
from durable_streams._core.producer import ProducerSession
from durable_streams._core.producer_values import Asked, Done, Outcome, ProducerOptions, Send, Wait
from durable_streams.errors import NetworkError

URL = "http://s/x"


class Promise:
    """Remembers how its batch ended, and that it ended once."""

    def __init__(self) -> None:
        self.ack: Ack | None = None
        self.error: Exception | None = None

    def resolve(self, ack: Ack) -> None:
        assert self.ack is None
        assert self.error is None
        self.ack = ack

    def reject(self, error: Exception) -> None:
        assert self.ack is None
        assert self.error is None
        self.error = error


@dataclass
class Bench:
    """A session and its clock. One message makes one batch unless options say otherwise."""

    session: ProducerSession
    now: float = 100.0

    def add(self, *bodies: bytes) -> list[Promise]:
        return [self.session.batcher.add(body) for body in bodies]

    def poll(self) -> Send | Wait | Done:
        return self.session.poll(self.now)

    def send(self) -> Send:
        command = self.poll()
        assert isinstance(command, Send), command
        return command

    def sends(self) -> list[Send]:
        """Everything that free lanes would send now."""
        found = []
        while isinstance(command := self.poll(), Send):
            found.append(command)
        return found

    def reply(self, send: Send, status: int = 200, *, draw: float = 0.5, **headers: object) -> list[Outcome]:
        named = {name.replace("_", "-"): str(value) for name, value in headers.items()}
        return self.session.on_reply(send, Head(status, named), b"", self.now, draw)

    def break_off(self, send: Send, error: Exception | None = None, *, draw: float = 0.5) -> list[Outcome]:
        error = error or NetworkError("reset", phase="sent")
        phase = error.phase if isinstance(error, NetworkError) else "connect"
        return self.session.on_failure(send, Failure(error, phase), self.now, draw)

    def gap(self, send: Send, expected: int) -> list[Outcome]:
        return self.reply(send, 409, producer_expected_seq=expected, producer_received_seq=send.stamp[1])

    def fence(self, send: Send, epoch: int, *, draw: float = 0.5) -> list[Outcome]:
        return self.reply(send, 403, producer_epoch=epoch, draw=draw)

    def recover(self, outcomes: list[Outcome], *, retry: bool) -> list[Outcome]:
        (asked,) = outcomes
        assert isinstance(asked, Asked)
        return self.session.on_recover(asked.send, asked.error, retry)

    def open_gate(self) -> None:
        """Let one batch of the epoch be acknowledged."""
        self.add(b"first")
        self.reply(self.send())


def bench(**options: Any) -> Bench:
    defaults: dict[str, Any] = {"max_batch_items": 1, "linger": 0.0, "content_type": "application/octet-stream"}
    return Bench(ProducerSession(ProducerOptions(URL, "p", **(defaults | options)), Promise))


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


def seqs(sends: list[Send]) -> list[int]:
    return [send.stamp[1] for send in sends]
