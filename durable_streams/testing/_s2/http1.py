"""The server's side of one HTTP/1.1 connection, as much of HTTP as clients of S2 need.

One task reads all the time, so that a client that goes away is noticed while its answer waits for records; it stops
reading while nobody takes what it has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

import anyio
import anyio.abc

from .exchange import GONE, Exchange, S2Request, Wiring

_ROOM = 1 << 18
_LINGER = 1.0


class _MalformedError(Exception):
    """The client does not speak HTTP."""


class Http1Connection:
    """Serves the requests of a connection, one after the other.

    Args:
        stream: The connection.
        first: What was received already.
        number: Of this connection.
        wiring: Of the server.
    """

    def __init__(self, stream: anyio.abc.SocketStream, first: bytes, number: int, wiring: Wiring) -> None:
        self._stream = stream
        self._buffer = bytearray(first)
        self._number = number
        self._wiring = wiring
        self._ended = False
        self._room = _ROOM
        self._changed = anyio.Event()
        self.draining = False
        self.scope = anyio.CancelScope()

    async def run(self) -> None:
        """Serve until either side has enough."""
        with self.scope:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._read)
                    while await self._serve():
                        pass
                    await self._linger()
                    tasks.cancel_scope.cancel()
            except* GONE:
                pass  # the client's right
            except* _MalformedError:
                with anyio.move_on_after(_LINGER):
                    await self._refuse()

    async def _linger(self) -> None:
        """Let the client read the answer before the connection goes: bytes left unread here would make it a reset."""
        try:
            await self._stream.send_eof()
        except OSError:  # not connected any more; anyio's trio side does not translate this one
            return
        with anyio.move_on_after(_LINGER):
            while not self._ended:
                self._buffer.clear()
                self._wake()
                await self._changed.wait()

    def drain(self) -> None:
        """Serve no further request."""
        self.draining = True

    async def _read(self) -> None:
        try:
            while True:
                self._buffer += await self._stream.receive()
                self._wake()
                while len(self._buffer) > self._room:
                    await self._changed.wait()
        except GONE:
            self._ended = True
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def fill(self) -> None:
        """Wait for more bytes."""
        size = len(self._buffer)
        while len(self._buffer) <= size:
            if self._ended:
                raise anyio.EndOfStream
            await self._changed.wait()

    async def wait_gone(self) -> None:
        """Wait until the client has gone."""
        while not self._ended:
            await self._changed.wait()

    async def take(self, size: int) -> bytes:
        """Exactly so many bytes."""
        self._room = max(_ROOM, size)
        while len(self._buffer) < size:
            self._wake()
            await self.fill()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._wake()
        return taken

    async def take_some(self, most: int) -> bytes:
        """At least one byte."""
        if not self._buffer:
            await self.fill()
        return await self.take(min(most, len(self._buffer)))

    async def take_line(self, end: bytes = b"\r\n") -> bytes:
        """Bytes up to an end mark, which is not returned."""
        while (at := self._buffer.find(end)) < 0:
            await self.fill()
        return (await self.take(at + len(end)))[:at]

    async def _refuse(self) -> None:
        try:
            await self.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        except GONE:
            return  # the client's right

    async def write(self, data: bytes) -> None:
        """Send bytes."""
        await self._stream.send(data)

    async def _serve(self) -> bool:
        """Serve one request. Returns whether there may be another."""
        head = await self.take_line(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        if len(words := first.split(" ")) != 3:
            raise _MalformedError(first)
        method, target, _ = words
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if not headers.get("content-length", "0").isdigit():
            raise _MalformedError(headers["content-length"])
        exchange = _Exchange(self, self._wiring.request(self._number, "1.1", method, target, headers))
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await self.wait_gone()
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await self._wiring.handle(exchange)
            tasks.cancel_scope.cancel()
        return exchange.complete and not self._ended and not self.draining


class _Exchange(Exchange):
    def __init__(self, connection: Http1Connection, request: S2Request) -> None:
        super().__init__(request)
        self._connection = connection
        self._chunked = request.headers.get("transfer-encoding", "").lower() == "chunked"
        self._left = int(request.headers.get("content-length", "0"))
        self._length: int | None = None
        self._finished = False

    @property
    def complete(self) -> bool:
        """Whether request and answer have ended properly."""
        return self._finished and not self._chunked and not self._left

    async def receive(self) -> bytes:
        if self._chunked:
            line = (await self._connection.take_line()).split(b";")[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", line):
                raise _MalformedError(line)
            size = int(line, 16)
            data = await self._connection.take(size)
            await self._connection.take(2)
            self._chunked = size > 0
            return data
        if not self._left:
            return b""
        data = await self._connection.take_some(self._left)
        self._left -= len(data)
        return data

    async def start(self, status: int, headers: Mapping[str, str], *, length: int | None = None) -> None:
        self.request.status = status
        self._length = length
        framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        lines = [f"{name}: {value}" for name, value in headers.items()]
        if self._connection.draining:
            lines.append("connection: close")
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
        text = "\r\n".join([f"HTTP/1.1 {status} {phrase}", *lines, framing, "", ""])
        await self._connection.write(text.encode("latin-1"))

    async def send(self, data: bytes) -> None:
        if data:
            await self._connection.write(data if self._length is not None else b"%x\r\n%b\r\n" % (len(data), data))

    async def finish(self) -> None:
        if self._length is None:
            await self._connection.write(b"0\r\n\r\n")
        self._finished = True

    async def cut(self) -> None:
        self._connection.scope.cancel()
        await anyio.sleep_forever()

    async def reset(self, code: int) -> None:
        await self.cut()

    async def goaway(self, *, leave_out: bool = False) -> None:
        self._connection.drain()
