"""A request that has come over a connection of our own runner, and its answer: see `_connection`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from .requests import Call, Disconnected, Message, Scope, too_large
from .responses import CONTENT_LENGTH, Headers, Rejection, add_vary

if TYPE_CHECKING:
    from ._connection import Connection

# More of a body than this is not taken from the socket before somebody reads it.
_HIGH_WATER = 64 * 1024
# Pieces of the body that are not longer are put together.
_TINY = 1024
# A longer body is not copied to stand in one piece with what surrounds it.
_COPIED = 16 * 1024
# While an answer longer than this is sent, so much may lie ready for the socket.
_LARGE = 512 * 1024
# A request whose length has more digits starts before its body is there.
_SMALL_DIGITS = 4

NO_HEADERS: Headers = []
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


async def _receive_nothing() -> Message:
    raise NotImplementedError


async def _send_nothing(message: Message) -> None:
    raise NotImplementedError


class Exchange(Call):
    """A request on a connection, and its answer.

    Attributes:
        begun: Whether it is being served.
        is_long: Whether it begins before its body is there.
        more_body: Whether there is more of the body to come.
        keep_alive: Whether the connection stays open afterwards.
        response_complete: Whether the answer is complete.
        disconnected: Whether the client is gone.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_expects_continue",
        "_head",
        "_left",
        "_news",
        "_on_disconnect",
        "_pieces",
        "_size",
        "_waiter",
        "begun",
        "disconnected",
        "is_long",
        "keep_alive",
        "more_body",
        "response_complete",
    )

    def __init__(
        self,
        connection: Connection,
        scope: Scope,
        headers: dict[bytes, bytes],
        common: Headers,
        *,
        keep_alive: bool,
    ) -> None:
        # Its own methods would be a circle, which only the garbage collector could take away.
        super().__init__(scope, _receive_nothing, _send_nothing, common)
        self.headers = headers
        self._connection = connection
        self._expects_continue = b"expect" in headers and headers[b"expect"].lower() == b"100-continue"
        self._pieces: list[bytes | bytearray] = []  # the first one is bytes
        self._size = 0
        self._news = False
        self._waiter: asyncio.Future[None] | None = None
        self._on_disconnect: Callable[[], None] | None = None
        self._head = b""
        self._chunked = False
        self._left: int | None = None  # of the announced length of the answer
        self.begun: bool = False
        self.is_long: bool = (
            len(headers.get(CONTENT_LENGTH, b"")) > _SMALL_DIGITS
            or b"transfer-encoding" in headers
            or self._expects_continue
        )
        self.more_body: bool = True
        self.keep_alive: bool = keep_alive
        self.response_complete: bool = False
        self.disconnected: bool = False

    # --- what the connection tells

    def feed(self, data: bytes) -> None:
        """A piece of the body has come."""
        pieces = self._pieces
        if not pieces or len(data) > _TINY:
            pieces.append(data)
        elif isinstance(last := pieces[-1], bytearray):
            last += data  # else a body of tiny chunks would cost many times its size
        else:
            pieces.append(bytearray(data))
        self._size += len(data)
        if self._size > _HIGH_WATER:
            self._connection.pause_reading()
        self._news = True
        if self._waiter is not None:
            self._wake(self._waiter)

    def end_body(self) -> None:
        """The body is complete."""
        self.more_body = False
        self._news = True
        if self._waiter is not None:
            self._wake(self._waiter)

    def disconnect(self) -> None:
        """The client is gone."""
        self.disconnected = True
        self._news = True
        if self._waiter is not None:
            self._wake(self._waiter)
        on_disconnect, self._on_disconnect = self._on_disconnect, None
        if on_disconnect is not None:
            on_disconnect()

    def _wake(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = None
        if not waiter.done():
            waiter.set_result(None)

    async def _listen(self) -> None:
        """Wait for one of these."""
        if self._expects_continue:
            self._expects_continue = False
            if not self.started and not self.disconnected:
                self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._connection.resume_reading()
        while not self._news:
            self._waiter = self._connection.loop.create_future()
            await self._waiter
        self._news = False

    # --- as the application's call

    def read_headers(self) -> None:
        """Collect the headers, see `Call`. HTTP/1.1 demands that one of them is `Host` (RFC 9112 3.2)."""
        super().read_headers()
        if b"host" not in self.headers and self.scope["http_version"] == "1.1":
            raise Rejection(400, "a request needs a Host header")

    def origin(self, public_url: str | None) -> str:
        """Scheme, host and port by which the client reaches us, see `Call`."""
        if not self.headers.get(b"host"):
            self._connection.complete_scope(self.scope)
        return super().origin(public_url)

    async def receive_message(self) -> Message:
        """The next message of ASGI."""
        return await self.receive()

    def on_disconnect(self, call: Callable[[], None]) -> bool:
        """Have something called when the client goes away, see `Call`."""
        if self._connection.said_all:
            self._connection.transport.close()  # nobody can tell who has said all from who is gone
            self.disconnected = True
        if self.disconnected:
            call()
        else:
            self._on_disconnect = call
        return True

    @property
    def waits_for_news(self) -> bool:
        """Whether it is to be told when the client goes away."""
        return self._on_disconnect is not None

    async def read_body(self, limit: int) -> bytes:
        """Read the whole body, see `Call`."""
        self.check_body(limit)
        while self.more_body and self._size <= limit:
            await self._listen()
            if self.disconnected:
                raise Disconnected
        return self.whole_body(limit)

    def whole_body(self, limit: int) -> bytes:
        """The body, which is there.

        Raises:
            Rejection: if it is longer than `limit` bytes.
        """
        if self._size > limit:
            raise too_large(limit)
        pieces, self._pieces = self._pieces, []
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers, with the first piece of the body."""
        self._begin(status, headers)

    async def send_body(self, body: bytes, *, more: bool = False) -> None:
        """Send a piece of the body, and wait while the client is slow."""
        if self.disconnected:
            raise Disconnected
        self._write(body, more)
        if more and self._connection.write_paused:
            await self._connection.drain()

    @property
    def can_push(self) -> bool:
        """Whether `push` can be used: it can."""
        return True

    def push(self, body: bytes) -> bool:
        """Send a piece of the body without waiting, see `Call`. What is sent to nobody is no error."""
        if not self.disconnected:
            self._write(body, True)
        return not self._connection.write_paused

    async def keep_up(self) -> None:
        """Wait until the client has taken what was pushed."""
        await self._connection.drain()

    async def answer(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Send a whole answer, see `Call`."""
        self.answer_now(status, headers, body)

    def answer_now(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """The same, for those who cannot wait."""
        if self.disconnected:
            raise Disconnected
        if status not in (204, 304) and self.method != "HEAD":
            headers = [*headers, (CONTENT_LENGTH, b"%d" % len(body))]
        self._begin(status, headers)
        self._write(body, False)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Serve it in a task after all."""
        self._connection.spawn(self, work)

    def _begin(self, status: int, headers: Headers) -> None:
        if self.varies:
            headers = add_vary(headers, self.varies)
        self._prepare(status, self._connection.prefix(self.common), headers)

    def _prepare(self, status: int, prefix: bytes, headers: Headers) -> None:
        """Write the head, to be sent with the first piece of the body."""
        if self._expects_continue:
            self.keep_alive = False  # it was never told to send the body: what comes next may be that, or a request
        lines = [STATUS_LINES[status], prefix]
        says_close = False
        for name, value in headers:
            if b"\n" in value or b"\r" in value or b"\0" in value:
                raise RuntimeError("a header of the answer has a line break in it")
            lines += (name, b": ", value, b"\r\n")
            if name == CONTENT_LENGTH:
                self._left = int(value)
            elif name == b"connection" and b"close" in value.lower():
                says_close, self.keep_alive = True, False
            elif name == b"transfer-encoding":
                self._chunked = True
        if not self.keep_alive and not says_close:
            lines.append(b"connection: close\r\n")
        if self._left is None and not self._chunked and self.method != "HEAD" and status not in (204, 304):
            if self.scope["http_version"] == "1.1":
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False
        lines.append(b"\r\n")
        self._head = b"".join(lines)
        self.status = status
        if self._left is not None and self._left > _LARGE:
            self._connection.buffer(_LARGE)

    def _write(self, body: bytes, more: bool) -> None:
        """Send a piece of the body, and what stands before it."""
        head, self._head = self._head, b""
        end = b""
        if self.method == "HEAD":
            body = b""
        elif self._chunked:
            if body:
                head += b"%x\r\n" % len(body)
                end = b"\r\n" if more else b"\r\n0\r\n\r\n"
            elif not more:
                end = b"0\r\n\r\n"
        elif self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the body of the answer has not the announced length")
        transport = self._connection.transport
        if len(body) > _COPIED:
            transport.writelines([piece for piece in (head, body, end) if piece])
        elif head or body or end:
            transport.write(head + body + end)
        if not more:
            self.response_complete = True
            self._news = True
            if self._waiter is not None:
                self._wake(self._waiter)
            self._connection.answered(self)

    # --- as ASGI, for other applications

    async def receive(self) -> Message:
        """The next message of ASGI."""
        if not self.disconnected and not self.response_complete:
            await self._listen()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        pieces, self._pieces, self._size = self._pieces, [], 0
        return {"type": "http.request", "body": b"".join(pieces), "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        """Take a message of ASGI."""
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            if self.started:
                raise RuntimeError("the answer was begun twice")
            headers = [(name.lower(), value) for name, value in message.get("headers", ())]
            self._prepare(message["status"], self._connection.prefix(NO_HEADERS), headers)
        elif message["type"] == "http.response.body":
            if not self.started or self.response_complete:
                raise RuntimeError("a body came before its head, or after the end of the answer")
            await self.send_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"ASGI messages of type {message['type']!r} are not supported")
