"""A transport in memory, whose every answer is written down by the test: for fake clocks, which sockets would defeat.

    transport = MemoryTransport(Answer(503, {"retry-after": "5"}), NetworkError("reset", phase="sent"), Answer())
    response = await stream("http://host/s", transport=transport)
    assert [sent.time for sent in transport.sent] == [0, 5, 5.1]

An answer's body is a sequence of steps: bytes come as they stand, a number is a pause in seconds, an event is waited
for, an exception breaks the body. A pause longer than the client's read limit ends in the error that a network
transport raises then.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import anyio
import anyio.lowlevel

from durable_streams import AlreadyClosedError, IncompleteBodyError, NetworkError, RequestTimeoutError, Timeouts
from durable_streams.errors import Phase

Step = bytes | float | anyio.Event | Exception


@dataclass
class Sent:
    """One request as it was sent, and when."""

    time: float
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    timeouts: Timeouts

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.url).query, keep_blank_values=True))


@dataclass
class Answer:
    """One answer: what comes before its head, its head, and its body step by step."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[Step] = ()
    before: Sequence[float | anyio.Event] = ()


Script = Answer | Exception
Handler = Callable[[Sent], Script]


class MemoryTransport:
    """Answers from a script, then from the handler.

    Attributes:
        sent: Every request, oldest first.
        open_exchanges: How many answers are open now.
        closed: Whether it was closed.
    """

    def __init__(self, *script: Script, handler: Handler | None = None) -> None:
        self.sent: list[Sent] = []
        self.open_exchanges = 0
        self.closed = False
        self._script = deque(script)
        self._handler = handler

    def replies(self, *script: Script) -> None:
        """Add answers."""
        self._script.extend(script)

    async def open(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | AsyncIterable[bytes], timeouts: Timeouts
    ) -> MemoryExchange:
        await anyio.lowlevel.checkpoint()
        if self.closed:
            raise AlreadyClosedError("the transport was closed")
        content = body if isinstance(body, bytes) else b"".join([piece async for piece in body])
        sent = Sent(anyio.current_time(), method, url, dict(headers), content, timeouts)
        self.sent.append(sent)
        if self._script:
            answer = self._script.popleft()
        else:
            assert self._handler is not None, f"no answer was written down for {method} {url}"
            answer = self._handler(sent)
        if isinstance(answer, Exception):
            raise answer
        with limit(timeouts, "sent"):
            for step in answer.before:
                await carry_out(step)
        self.open_exchanges += 1
        return MemoryExchange(self, answer, timeouts)

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = True


class MemoryExchange:
    """An open answer."""

    def __init__(self, transport: MemoryTransport, answer: Answer, timeouts: Timeouts) -> None:
        self.status = answer.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in answer.headers.items()}
        self._transport = transport
        self._steps = deque(answer.body)
        self._timeouts = timeouts
        self._closed = False

    async def receive(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        if self._closed:
            raise AlreadyClosedError("the exchange was closed")
        with limit(self._timeouts, "body"):
            while self._steps:
                step = self._steps.popleft()
                if isinstance(step, bytes):
                    return step
                await carry_out(step)
        return b""

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        if not self._closed:
            self._closed = True
            self._transport.open_exchanges -= 1


async def carry_out(step: Any) -> None:
    """A step that is no data."""
    if isinstance(step, Exception):
        raise step
    if isinstance(step, anyio.Event):
        await step.wait()
    else:
        await anyio.sleep(step)


@contextmanager
def limit(timeouts: Timeouts, phase: Phase) -> Iterator[None]:
    """The client's limit on silence."""
    with anyio.move_on_after(math.inf if timeouts.read is None else timeouts.read) as scope:
        yield
    if scope.cancelled_caught:
        raise RequestTimeoutError(f"the server was silent for {timeouts.read:g} s", phase=phase)


def reset(phase: Phase = "sent") -> NetworkError:
    """A connection that broke."""
    return NetworkError("the connection broke", phase=phase)


def cut() -> IncompleteBodyError:
    """A body that ended too early."""
    return IncompleteBodyError("the body ended too early", phase="body")
