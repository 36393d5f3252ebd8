"""A small HTTP/1.1 server on a real loopback socket, whose every answer is written down by the test.

    async def answer(request: Request) -> Reply:
        return Reply(headers={"stream-next-offset": "0_5"}, body=b"hello")

    async with ScriptedServer(answer) as server:
        exchange = await transport.open("GET", server.url + "/s?offset=-1", {}, b"", Timeouts())
    assert server.requests[0].query == {"offset": "-1"}

Without a handler, answers are queued: `server.replies(Reply(status=503), Reply(body=b"x"), DROP)`. A request for which
nothing was written down, and a handler that raises, fail the test when the block is left.

Order is forced with events, never with sleeping: `Reply.hold` waits before the head, an `anyio.Event` among
`Reply.chunks` waits in the middle of a body, and `wait_requests(n)` and `wait_connections(n)` wait for the server's
own view. A client that goes away ends a held answer at once, so `wait_connections(0)` proves that a socket was closed.

The server keeps connections alive as HTTP/1.1 says, reads bodies with `Content-Length` or chunked, sends none for HEAD,
204 and 304, and plays an HTTP proxy with `Reply.tunnel`.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import anyio
import anyio.abc
from anyio.streams.tls import TLSStream

#: Statuses whose answers never have a body.
BODILESS = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came.

    Attributes:
        method: As on the request line.
        target: The request line's target, byte for byte (absolute when the client speaks to a proxy).
        path: The target's path, still percent-encoded.
        query: The decoded query; of a repeated key the last value.
        headers: Names in lower case, repeated ones joined with ", ".
        body: The whole body, decoded from chunks; what had come of it in `on_head` and in `incomplete`.
        connection: Number of the connection, from 1.
        index: Number of the request on its connection, from 1.
    """

    method: str
    target: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    connection: int
    index: int


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Attributes:
        status: HTTP status.
        headers: Sent as given; as pairs to repeat a name. A `content-length` here replaces the true one.
        body: Sent with `Content-Length`, unless `chunks` is given.
        chunks: Pieces, each sent as one HTTP chunk; an `anyio.Event` among them waits until it is set.
        framing: "length", "chunked" or "close" (the body ends with the connection); "" picks by `chunks`.
        hold: Waits for this event before the first byte.
        before: Raw bytes before the head, such as an informational answer.
        raw: Raw bytes instead of head and body; b"" sends nothing.
        cut_after: Sends this many bytes of the body, then ends the connection.
        close: Ends the connection after the answer.
        reset: Ends it with a reset (RST), not an orderly end.
        tunnel: (host, port): answers 200, then passes bytes to and fro, as a proxy does on CONNECT.
    """

    status: int = 200
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    body: bytes = b""
    chunks: Iterable[bytes | anyio.Event] | AsyncIterable[bytes] | None = None
    framing: str = ""
    hold: anyio.Event | None = None
    before: bytes = b""
    raw: bytes | None = None
    cut_after: int | None = None
    close: bool = False
    reset: bool = False
    tunnel: tuple[str, int] | None = None


#: Ends the connection without an answer.
DROP = Reply(raw=b"", close=True)
#: Resets the connection without an answer.
RESET = Reply(raw=b"", reset=True)

Handler = Callable[[Request], "Reply | Awaitable[Reply]"]
HeadHandler = Callable[[Request], "Reply | None"]


class ScriptedServer:
    """Serves on 127.0.0.1 while its block runs.

    Args:
        handler: Gives the answer to a request, at once or awaited; used when no reply is queued.
        on_head: Asked when a request's head has come, before its body is read. A `Reply` is sent at once and the body
            is read only afterwards (with `Reply.hold`: not before that event); None goes on as usual.
        ssl_context: Serves TLS with it; `url` is then https.

    Attributes:
        requests: Every complete request, in the order in which they were answered.
        incomplete: Requests whose body stopped coming.
        connections: How many connections are open now.
        accepted: How many connections there ever were.
    """

    def __init__(
        self,
        handler: Handler | None = None,
        *,
        on_head: HeadHandler | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.incomplete: list[Request] = []
        self.connections = 0
        self.accepted = 0
        self.port = 0
        self._handler = handler
        self._on_head = on_head
        self._ssl_context = ssl_context
        self._queue: deque[Reply] = deque()
        self._open: set[_Connection] = set()
        self._errors: list[Exception] = []

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, without a slash at the end."""
        return f"{'https' if self._ssl_context else 'http'}://127.0.0.1:{self.port}"

    def replies(self, *replies: Reply) -> None:
        """Queue answers, one a request, in the order in which the requests are complete."""
        self._queue.extend(replies)

    async def wait_requests(self, count: int) -> None:
        """Wait until at least `count` complete requests have come since the start."""
        while len(self.requests) < count:
            await self._changed.wait()

    async def wait_incomplete(self, count: int) -> None:
        """Wait until at least `count` requests have broken off."""
        while len(self.incomplete) < count:
            await self._changed.wait()

    async def wait_connections(self, count: int) -> None:
        """Wait until exactly `count` connections are open."""
        while self.connections != count:
            await self._changed.wait()

    async def wait_idle(self) -> None:
        """Wait until no request is being read or answered on any connection."""
        while not all(connection.idle for connection in self._open):
            await self._changed.wait()

    async def close_idle(self) -> None:
        """End every connection on which no request is being answered, as a server does after its keep-alive time."""
        for connection in list(self._open):
            if connection.idle:
                connection.scope.cancel()
        while any(connection.scope.cancel_called for connection in self._open):
            await self._changed.wait()

    async def __aenter__(self) -> Self:
        self._changed = anyio.Event()
        self._listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = self._listener.extra(anyio.abc.SocketAttribute.local_port)
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
        if self._errors and error is None:
            raise self._errors[0]
        if self._errors and error is not None:
            error.add_note(f"the scripted server failed, too: {self._errors!r}")

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        self.accepted += 1
        self.connections += 1
        connection = _Connection(self, stream, self.accepted)
        self._open.add(connection)
        self._notify()
        try:
            with connection.scope:
                await connection.run(self._ssl_context)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError):
            pass  # the client went away: its test asserts what should have come
        except Exception as error:
            self._errors.append(error)
        finally:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
            self._open.discard(connection)
            self.connections -= 1
            self._notify()

    async def _answer(self, request: Request) -> Reply:
        if self._queue:
            return self._queue.popleft()
        if self._handler is None:
            raise AssertionError(f"no reply was queued for {request.method} {request.target}")
        reply = self._handler(request)
        return reply if isinstance(reply, Reply) else await reply


class _Connection:
    """One accepted connection: reads requests one after the other, and answers each."""

    def __init__(self, server: ScriptedServer, stream: anyio.abc.SocketStream, number: int) -> None:
        self.scope = anyio.CancelScope()
        self.idle = True
        self._server = server
        self._socket = stream
        self._stream: anyio.abc.ByteStream = stream
        self._number = number
        self._buffer = bytearray()
        self._arrived = anyio.Event()

    async def run(self, ssl_context: ssl.SSLContext | None) -> None:
        if ssl_context is not None:
            self._stream = await TLSStream.wrap(
                self._socket, server_side=True, ssl_context=ssl_context, standard_compatible=False
            )
        index = 0
        while True:
            self.idle = True
            self._server._notify()
            head = await self._read_until(b"\r\n\r\n")
            self.idle = False
            index += 1
            request = self._parse_head(bytes(head), index)
            early = self._server._on_head(request) if self._server._on_head else None
            ends = await self._send(early, request) if early is not None else False
            if not ends:
                request = await self._read_body(request)
                self._server.requests.append(request)
                self._server._notify()
            if early is None:
                ends = await self._while_connected(request)
            if ends or request.headers.get("connection", "").lower() == "close":
                await self._end()
                return

    async def _reply(self, request: Request) -> bool:
        try:
            reply = await self._server._answer(request)
        except Exception as error:
            self._server._errors.append(error)
            reply = Reply(501, body=f"the handler failed: {error!r}".encode())  # 501: no client tries that again
        return await self._send(reply, request)

    async def _while_connected(self, request: Request) -> bool:
        """Answer, but stop as soon as the client goes away. Returns whether the connection ends."""
        results: list[bool] = []
        errors: list[Exception] = []

        async def watch() -> None:
            try:
                while True:
                    await self._fill()
            except Exception as error:  # whatever it is: nobody is left to answer
                errors.append(error)
                group.cancel_scope.cancel()

        self._arrived = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            try:
                results.append(await self._reply(request))
            except Exception as error:
                errors.append(error)
            group.cancel_scope.cancel()
        if not results:
            raise errors[0]
        return results[0]

    # ------------------------------------------------------------------ reading

    async def _fill(self) -> None:
        self._buffer += await self._stream.receive()
        self._arrived.set()

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._fill()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def _read_until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            await self._fill()
        return await self._take(end + len(mark))

    def _parse_head(self, head: bytes, index: int) -> Request:
        request_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _version = request_line.split(" ")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
        parts = urlsplit(target) if method != "CONNECT" else urlsplit("//" + target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return Request(method, target, parts.path, query, headers, b"", self._number, index)

    async def _read_body(self, request: Request) -> Request:
        body = bytearray()
        try:
            if request.headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int((await self._read_until(b"\r\n")).split(b";")[0], 16):
                    body += await self._take(size)
                    await self._take(2)
                await self._take(2)
            else:
                left = int(request.headers.get("content-length", "0"))
                while left:
                    if not self._buffer:
                        await self._fill()
                    piece = await self._take(min(left, len(self._buffer)))
                    body += piece
                    left -= len(piece)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            self._server.incomplete.append(replace(request, body=bytes(body)))
            self._server._notify()
            raise
        return replace(request, body=bytes(body))

    # ------------------------------------------------------------------ writing

    async def _send(self, reply: Reply, request: Request) -> bool:
        """Send the answer. Returns whether the connection ends with it."""
        ends = reply.close or reply.cut_after is not None or reply.framing == "close"
        if reply.hold is not None:
            await reply.hold.wait()
        if reply.raw is not None:
            await self._send_all(reply.before + reply.raw)
        elif reply.tunnel is not None:
            await self._pass_through(reply.tunnel)
        else:
            await self._send_reply(reply, request)
        if reply.reset:
            self._reset()
        return ends

    async def _send_reply(self, reply: Reply, request: Request) -> None:
        framing = reply.framing or ("length" if reply.chunks is None else "chunked")
        headers = list(reply.headers.items() if isinstance(reply.headers, Mapping) else reply.headers)
        names = {name.lower() for name, _ in headers}
        bodiless = request.method == "HEAD" or reply.status in BODILESS
        if framing == "chunked" and not bodiless:
            headers.append(("transfer-encoding", "chunked"))
        elif framing == "length" and "content-length" not in names and reply.status not in BODILESS:
            headers.append(("content-length", str(len(reply.body))))
        if (reply.close or framing == "close") and "connection" not in names:
            headers.append(("connection", "close"))
        head = f"HTTP/1.1 {reply.status} Scripted\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers)
        first = reply.before + (head + "\r\n").encode("latin-1")

        if bodiless:
            await self._send_all(first)
        elif reply.chunks is None:
            await self._send_all(first + reply.body[: reply.cut_after])
        else:
            await self._send_all(first)
            await self._send_chunks(reply, framing)

    async def _send_chunks(self, reply: Reply, framing: str) -> None:
        left = reply.cut_after
        async with aclosing(_pieces(reply.chunks)) as pieces:
            async for piece in pieces:
                if left is not None:
                    piece = piece[:left]
                    left -= len(piece)
                if framing == "chunked" and piece:
                    piece = b"%x\r\n%b\r\n" % (len(piece), piece)
                await self._send_all(piece)
                if left == 0:
                    return
        if framing == "chunked" and reply.cut_after is None:
            await self._send_all(b"0\r\n\r\n")

    async def _send_all(self, data: bytes) -> None:
        if data:
            await self._stream.send(data)

    async def _end(self) -> None:
        """End in order: say that no more comes, then wait until the client has closed as well."""
        try:
            await self._socket.send_eof()
        except OSError as error:  # the client was faster
            raise anyio.BrokenResourceError from error
        while True:  # until EndOfStream
            await self._socket.receive()

    def _reset(self) -> None:
        """Let the kernel send RST; the peer loses what it has not read yet."""
        raw = self._socket.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise anyio.ClosedResourceError

    async def _pass_through(self, address: tuple[str, int]) -> None:
        async with await anyio.connect_tcp(*address) as far, anyio.create_task_group() as group:
            await self._send_all(b"HTTP/1.1 200 Connected\r\n\r\n")

            async def pump() -> None:
                async for data in far:
                    await self._stream.send(data)
                group.cancel_scope.cancel()

            group.start_soon(pump)
            while True:  # what the client sends is collected by `_while_connected`
                if self._buffer:
                    await far.send(await self._take(len(self._buffer)))
                else:
                    self._arrived = anyio.Event()
                    await self._arrived.wait()
        raise anyio.ClosedResourceError


async def _pieces(chunks: Any) -> AsyncGenerator[bytes, None]:
    if isinstance(chunks, AsyncIterable):
        async for piece in chunks:
            yield piece
        return
    for piece in chunks:
        if isinstance(piece, bytes):
            yield piece
        else:
            await piece.wait()
