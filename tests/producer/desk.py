"""A transport in memory whose requests lie on a desk until the test answers them, by hand or by a rule.

desk = Desk()
async with IdempotentProducer(desk.handle(), "p") as producer:
    producer.append_nowait("1")
    (posted,) = await desk.wait(1)
    posted.reply(200, stream_next_offset="0_1")
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Mapping
from typing import Any

import anyio
import anyio.lowlevel

from durable_streams import AlreadyClosedError, DurableStream, NetworkError, RequestTimeoutError, Timeouts
from durable_streams._core.exchange import Head, Kind, Request
from tests.core.model_server import Server

URL = "http://host/s"


class Posted:
    """A request that lies on the desk.

    Attributes:
        cut_off: Whether the client has given it up.
    """

    def __init__(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> None:
        self.method = method
        self.url = url
        self.headers = dict(headers)
        self.body = body
        self.cut_off = False
        self.answer: Head | Exception | None = None
        self.text = b""
        self.answered = anyio.Event()

    @property
    def stamp(self) -> tuple[int, int]:
        return int(self.headers["producer-epoch"]), int(self.headers["producer-seq"])

    def reply(self, status: int = 200, body: bytes = b"", **headers: object) -> None:
        """Answer it; `_` in names stands for `-`."""
        self.text = body
        self._answer(Head(status, {name.replace("_", "-"): str(value) for name, value in headers.items()}))

    def fail(self, error: Exception | None = None) -> None:
        """Break its connection."""
        self._answer(error or NetworkError("reset", phase="sent"))

    def apply(self, server: Server) -> None:
        """Let a server answer it."""
        self._answer(server.apply(Request(self.method, Kind.PRODUCER, headers=self.headers, body=self.body)))

    def _answer(self, answer: Head | Exception) -> None:
        assert self.answer is None, "answered before"
        self.answer = answer
        self.answered.set()


class Desk:
    """The transport.

    Args:
        rule: Called with each request as it comes; it may answer it.

    Attributes:
        posted: Every request so far.
        rule: See above.
        closed: Whether it was closed.
    """

    def __init__(self, rule: Callable[[Posted], object] | None = None) -> None:
        self.posted: list[Posted] = []
        self.rule = rule
        self.closed = False
        self._changed = anyio.Event()

    def handle(self, content_type: str | None = "application/json", **options: Any) -> DurableStream:
        return DurableStream(URL, content_type=content_type, transport=self, **options)

    @property
    def open_requests(self) -> list[Posted]:
        """Requests that nobody has answered, and for whose answer somebody waits."""
        return [posted for posted in self.posted if posted.answer is None and not posted.cut_off]

    async def wait(self, count: int) -> list[Posted]:
        """Wait until so many requests have come altogether, and return the ones without an answer."""
        with anyio.fail_after(1000):
            while len(self.posted) < count:
                await self._changed.wait()
        return self.open_requests

    def serve(self, server: Server) -> None:
        """Let a server answer everything from now on, what lies on the desk first."""
        self.rule = lambda posted: posted.apply(server)
        for posted in self.open_requests:
            posted.apply(server)

    async def open(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | AsyncIterable[bytes], timeouts: Timeouts
    ) -> Reply:
        assert isinstance(body, bytes)
        await anyio.lowlevel.checkpoint()
        if self.closed:
            raise AlreadyClosedError("the transport was closed")
        posted = Posted(method, url, headers, body)
        self.posted.append(posted)
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
        if self.rule is not None:
            self.rule(posted)
        try:
            assert timeouts.read is not None
            with anyio.move_on_after(timeouts.read):
                await posted.answered.wait()
        finally:
            posted.cut_off = posted.answer is None
        if posted.answer is None:
            raise RequestTimeoutError("silence", phase="sent")
        if isinstance(posted.answer, Exception):
            raise posted.answer
        return Reply(posted.answer, posted.text)

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = True


class Reply:
    """An open answer."""

    def __init__(self, head: Head, body: bytes) -> None:
        self.status = head.status
        self.headers = head.headers
        self._body = body

    async def receive(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        body, self._body = self._body, b""
        return body

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
