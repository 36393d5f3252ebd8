"""A very small HTTP/1.1 server on the loopback interface, for the kits: it runs an ASGI application and nothing else.

It tells the application of a client that goes away, keeps connections alive, and ends a connection when the
application fails, which is all that the promises of a transport are about. It is no server for the world: it trusts its
clients to speak HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

import anyio
import anyio.abc

Message = MutableMapping[str, Any]
ASGIApp = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class LoopbackServer:
    """Serves an application on a free port while its block runs.

    Args:
        app: An ASGI 3 application.

    Attributes:
        url: `http://127.0.0.1:port`.
        accepted: Connections accepted so far.
        open: Connections that are open now.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.url: str = ""
        self.accepted: int = 0
        self.open: int = 0

    async def __aenter__(self) -> Self:
        self._changed = anyio.Event()
        self._listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = self._listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - anyio's `extra`, not Django's
        self.url = f"http://127.0.0.1:{port}"
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._listener.serve, self._serve)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        with anyio.CancelScope(shield=True):
            await self._listener.aclose()

    async def wait_open(self, count: int) -> None:
        """Wait until exactly so many connections are open."""
        while self.open != count:
            await self._changed.wait()

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        self.accepted += 1
        self.open += 1
        connection = _Connection(stream)
        try:
            while await connection.serve_one(self._app):
                pass
        except _GONE:
            return
        finally:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
            self.open -= 1
            changed, self._changed = self._changed, anyio.Event()
            changed.set()


class _Connection:
    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def serve_one(self, app: ASGIApp) -> bool:
        """Serve one request. Returns whether the connection can serve another."""
        head = await self._take_until(b"\r\n\r\n")
        request_line, *lines = head[:-4].split(b"\r\n")
        method, target, _ = request_line.decode("ascii").split(" ")
        headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
        }
        return await _Cycle(self, method, dict(headers)).run(app, scope)

    async def fill(self) -> None:
        """Wait for more bytes."""
        self._buffer += await self._stream.receive()

    async def take(self, size: int) -> bytes:
        """Exactly so many bytes."""
        while len(self._buffer) < size:
            await self.fill()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def take_some(self, size: int) -> bytes:
        """At least one byte, at most so many."""
        if not self._buffer:
            await self.fill()
        return await self.take(min(size, len(self._buffer)))

    async def _take_until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            await self.fill()
        return await self.take(end + len(mark))

    async def take_line(self) -> bytes:
        """One line with its end."""
        return await self._take_until(b"\r\n")

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        if data:
            await self._stream.send(data)


class _Cycle:
    """One request and its answer, as ASGI's receive and send."""

    def __init__(self, connection: _Connection, method: str, headers: dict[bytes, bytes]) -> None:
        self._connection = connection
        self._method = method
        self._chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        self._left = int(headers.get(b"content-length", b"0"))
        self._requested = False
        self._started = False
        self._complete = False
        self._bodiless = False
        self._framed = False
        self._done = anyio.Event()

    async def run(self, app: ASGIApp, scope: MutableMapping[str, Any]) -> bool:
        try:
            await app(scope, self._receive, self._send)
        except Exception:
            return False  # what the application did wrong shows in the connection
        return self._complete and self._requested and not self._left and not self._chunked

    async def _receive(self) -> Message:
        if not self._requested:
            try:
                return await self._next_request()
            except _GONE:
                self._requested = True
                return {"type": "http.disconnect"}
        async with anyio.create_task_group() as tasks:  # the client goes away, or the answer is complete

            async def watch() -> None:
                try:
                    while True:
                        await self._connection.fill()
                except _GONE:
                    tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await self._done.wait()
            tasks.cancel_scope.cancel()
        return {"type": "http.disconnect"}

    async def _next_request(self) -> Message:
        body = b""
        if self._chunked:
            if size := int(await self._connection.take_line(), 16):
                body = await self._connection.take(size)
            await self._connection.take(2)
            self._chunked = size > 0
        elif self._left:
            body = await self._connection.take_some(self._left)
            self._left -= len(body)
        self._requested = not (self._chunked or self._left)
        return {"type": "http.request", "body": body, "more_body": not self._requested}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message["status"], list(message.get("headers", ())))
        else:
            await self._send_body(message.get("body", b""), message.get("more_body", False))

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        self._bodiless = self._method == "HEAD" or status in (204, 304)
        self._framed = any(re.fullmatch(rb"(?i)content-length", name) for name, _ in headers)
        if not self._framed and not self._bodiless:
            headers.append((b"transfer-encoding", b"chunked"))
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        await self._connection.send(b"HTTP/1.1 %d Status\r\n%b\r\n" % (status, lines))

    async def _send_body(self, body: bytes, more: bool) -> None:
        if not self._bodiless:
            if body and not self._framed:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more and not self._framed:
                body += b"0\r\n\r\n"
            await self._connection.send(body)
        if not more:
            self._complete = True
            self._done.set()
