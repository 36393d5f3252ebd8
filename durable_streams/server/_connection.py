"""HTTP/1.1 connections of our own runner, in the place of uvicorn's.

uvicorn's own class serves any application by messages, in a task for each request. On the way of an append that takes
as long as everything the application does. This one is made for ours:

- An `Exchange` is a request that has come over a connection and is itself the `Call` that the application handles:
  answers go to the socket without messages in between, head and body in one piece.
- A request starts when it is there as a whole, if it is small. One that needs not wait for anything, or only for the
  store (`DurableStreamsApp.serve_now`), needs no task.
- Who waits for news is told when the client goes; nobody has to listen for that.

Any other application is served by the messages of ASGI, as uvicorn does it. What is parsed, and how strictly, is the
business of httptools (llhttp) in either case.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

import httptools

from .connections import HEAD_BYTES, Refused, Seen, last_words
from .requests import Call, Disconnected, Message, Scope, too_large
from .responses import CONTENT_LENGTH, Headers, Rejection, add_vary

if TYPE_CHECKING:
    from .http import DurableStreamsApp

logger: logging.Logger = logging.getLogger("durable_streams.server")

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
# So many requests may wait for their turn before no more are read. Reading on is how a client that leaves is noticed.
_AHEAD = 8
_NO_HEADERS: Headers = []
_METHODS = {method.encode(): method for method in ("POST", "GET", "PUT", "HEAD", "DELETE", "OPTIONS")}

_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


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
        lines = [_STATUS[status], prefix]
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
            self._prepare(message["status"], self._connection.prefix(_NO_HEADERS), headers)
        elif message["type"] == "http.response.body":
            if not self.started or self.response_complete:
                raise RuntimeError("a body came before its head, or after the end of the answer")
            await self.send_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"ASGI messages of type {message['type']!r} are not supported")


class Settings(Protocol):
    """What a connection takes from uvicorn's settings and ours: see `_uvicorn.Config`."""

    max_connections: int | None
    refused: set[asyncio.Transport]
    direct: DurableStreamsApp | None
    loaded_app: Any
    timeout_keep_alive: int

    def prefix(self, default: Headers, common: Headers) -> bytes:
        """These headers as lines."""
        ...


class Connection(asyncio.Protocol):
    """A connection: parses requests, and has them served one after the other.

    Attributes:
        cycle: The request whose turn it is, or that was served last.
        received: How many bytes have come.
        seen: For `Watchman`.
        write_paused: Whether the client is slow to take what was sent.
        read_paused: Whether nothing is taken from the socket for now.
        said_all: Whether the client has shut down its side: it sends nothing more, but may take answers.
    """

    __slots__ = (
        "_app_state",
        "_config",
        "_drained",
        "_headers",
        "_idle_since",
        "_incoming",
        "_large",
        "_parser",
        "_state",
        "_timer",
        "_url",
        "_useful",
        "_waiting",
        "cycle",
        "loop",
        "read_paused",
        "received",
        "said_all",
        "seen",
        "transport",
        "write_paused",
    )

    def __init__(
        self,
        config: Settings,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = _loop or asyncio.get_running_loop()
        self.transport: Any = None
        self.cycle: Exchange | None = None
        self.received: int = 0
        self.seen: Seen | None = None
        self.write_paused: bool = False
        self.read_paused: bool = False
        self.said_all: bool = False
        self._config = config
        self._state = server_state
        self._app_state = app_state
        self._parser: Any = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: Headers = []
        self._useful = 0  # of `received`: up to the last headers or body
        self._incoming: Exchange | None = None  # the request that is being received
        self._waiting: list[Exchange] = []  # those whose turn has not come
        self._drained: asyncio.Future[None] | None = None
        self._large = False
        self._idle_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- the transport

    def connection_made(self, transport: Any) -> None:
        """A connection; one too many is refused."""
        config, connections = self._config, self._state.connections
        self.transport = transport
        if config.max_connections is not None and len(connections) >= config.max_connections:
            transport.set_protocol(Refused(transport, self._last_words(503), config.refused))
        else:
            connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or we have left."""
        self._state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        self._waiting.clear()
        self._parser = self._incoming = None
        cycle, self.cycle = self.cycle, None  # they know each other: no circle is to be left
        if cycle is not None and not cycle.response_complete:
            cycle.disconnect()

    def data_received(self, data: bytes) -> None:
        """Something of a request, or of several."""
        if self._parser is None:
            return  # what came before made no sense
        self.received += len(data)
        self._idle_since = None
        self._parse(data)
        if self.received - self._useful > HEAD_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(self._last_words(431))
                self.transport.close()
            else:
                self.transport.abort()
        else:
            self._serve()

    def eof_received(self) -> bool:
        """The client has said all. What it has asked for as a whole is answered, unless that waits for news."""
        cycle, incoming = self.cycle, self._incoming
        if cycle is None or cycle.response_complete or cycle.more_body or cycle.waits_for_news:
            return False  # the transport closes
        if incoming is not None:
            self._waiting.remove(incoming)
            self._incoming = None
        self.said_all = True
        return True

    def pause_writing(self) -> None:
        """The client is slow."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self.write_paused = False
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
        if self.cycle is not None and not self.cycle.begun:
            self.loop.call_soon(self._serve)

    def buffer(self, size: int) -> None:
        """Let so many bytes lie ready for the socket; 0 for the usual number."""
        self._large = size > 0
        self.transport.set_write_buffer_limits(size or None)

    async def drain(self) -> None:
        """Wait until the client has caught up, or is gone."""
        while self.write_paused:
            self._drained = self.loop.create_future()
            await self._drained

    def pause_reading(self) -> None:
        """Take nothing from the socket for now."""
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take what comes."""
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()

    # --- the runner

    def shutdown(self) -> None:
        """Close the connection, after the answer if one is under way."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False
            self.cycle.admitted = True

    @property
    def idle(self) -> bool:
        """Whether it waits for the next request."""
        return self._idle_since is not None

    # --- the parser

    def _parse(self, data: bytes) -> None:
        """Have a piece parsed.

        A request that asks for another protocol is served with this one. But the parser takes its body for something
        in the other protocol: it gets the request once more, without that wish, and then what follows.
        """
        pieces = [data]
        while pieces and self._parser is not None:
            piece = pieces.pop()
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                method, version = self._parser.get_method(), self._parser.get_http_version().encode()
                if method == b"CONNECT":
                    self._refuse()
                    return
                logger.debug("a client asks for another protocol, and is served with this one")
                lines = [b"%b %b HTTP/%b\r\n" % (method, self._url, version)]
                lines += [b"%b: %b\r\n" % header for header in self._headers if header[0] != b"upgrade"]
                pieces += (piece[upgrade.args[0] :], b"".join(lines) + b"\r\n")
                self._parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError:
                self._refuse()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The headers are complete: from now on it is an exchange."""
        parser, url, direct = self._parser, self._url, self._config.direct
        if parser.should_upgrade():
            return  # it comes once more, see `_parse`
        headers, self._headers = self._headers, []  # what comes behind the body is none of the request's headers
        version, method = parser.get_http_version(), parser.get_method()
        self._useful = self.received
        if url[:1] == b"/" and b"#" not in url:
            raw_path, _, query = url.partition(b"?")
        else:
            parsed = httptools.parse_url(url)
            raw_path, query = parsed.path or b"", parsed.query or b""
            if parsed.host:  # which counts instead of the header (RFC 9112 3.2.2)
                host = b"[%b]" % parsed.host if b":" in parsed.host else parsed.host
                host += b":%d" % parsed.port if parsed.port else b""
                headers = [*(header for header in headers if header[0] != b"host"), (b"host", host)]
        scope = {
            "type": "http",
            "http_version": version,
            "method": _METHODS.get(method) or method.decode("ascii"),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
        }
        common = _NO_HEADERS if direct is None else direct.common
        keep_alive = version != "1.0" and parser.should_keep_alive()
        exchange = self._incoming = Exchange(self, scope, dict(headers), common, keep_alive=keep_alive)
        if self.cycle is None or self.cycle.response_complete:
            self.cycle = exchange
        else:
            self._waiting.append(exchange)
            if len(self._waiting) >= _AHEAD:
                self.pause_reading()

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._useful = self.received
        if self._incoming is not None and not self._incoming.response_complete:
            self._incoming.feed(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None and not incoming.response_complete:
            incoming.end_body()

    # --- serving

    def _serve(self) -> None:
        """Begin with the request whose turn it is, unless it is still to come."""
        exchange, direct = self.cycle, self._config.direct
        if exchange is None or exchange.begun or exchange.disconnected:
            return
        if self.write_paused:
            self.pause_reading()  # who takes no answers gets no more of them, until `resume_writing`
            return
        if exchange.more_body and not exchange.is_long:
            self.resume_reading()  # it may have come behind another one, and reading have paused for that
            return
        exchange.begun = True
        if direct is None:
            self.complete_scope(exchange.scope)
            self.spawn(exchange, self._config.loaded_app(exchange.scope, exchange.receive, exchange.send))
        elif exchange.more_body or not direct.serve_now(exchange):
            if direct.gate is not None:
                self.complete_scope(exchange.scope)  # for whoever decides about access
            self.spawn(exchange, direct.serve(exchange))

    def spawn(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        """Serve a request in a task."""
        task = self.loop.create_task(self._run(exchange, work))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    async def _run(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            self.transport.abort()
            raise
        except Exception:
            logger.exception("the application failed")
        if exchange.response_complete or exchange.disconnected:
            return
        if exchange.started:
            self.transport.close()  # so the client sees that the answer is not complete
        else:
            exchange.keep_alive = False
            exchange.answer_now(500, [(b"content-type", b"text/plain; charset=utf-8")], b"internal error\n")

    def complete_scope(self, scope: Scope) -> None:
        """Add what other applications expect of ASGI."""
        transport = self.transport
        scope["asgi"] = {"version": "3.0", "spec_version": "2.3"}
        scope["path"] = unquote(scope["raw_path"].decode("ascii"))
        scope["scheme"] = "https" if transport.get_extra_info("sslcontext") else "http"
        scope["server"] = transport.get_extra_info("sockname")[:2]
        scope["client"] = transport.get_extra_info("peername")[:2]
        scope["state"] = self._app_state.copy()

    def answered(self, exchange: Exchange) -> None:
        """An answer is complete: on to the next request."""
        self._state.total_requests += 1
        if self._large:
            self.buffer(0)
        if not exchange.keep_alive or (self.said_all and not self._waiting):
            self.transport.close()
        elif self._waiting:
            self.cycle = self._waiting.pop(0)
            self.loop.call_soon(self._serve)
        else:
            self.resume_reading()
            self._idle_since = self.loop.time()
            if self._timer is None:
                self._timer = self.loop.call_later(self._config.timeout_keep_alive, self._look)

    def _look(self) -> None:
        """Close the connection if it was idle for too long."""
        self._timer = None
        if self._idle_since is None:
            return  # with the next answer there is a new timer
        left = self._idle_since + self._config.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._look)
        else:
            self.transport.close()

    def _refuse(self) -> None:
        """What came is no HTTP. Say so, unless an answer to what came before is still to be given."""
        self._parser = None
        incoming, self._incoming = self._incoming, None
        if incoming in self._waiting:
            self._waiting.remove(incoming)
        last = self._waiting[-1] if self._waiting else self.cycle
        if last is None or last.response_complete or (last.more_body and not last.started):
            self.transport.write(self._last_words(400))
            self.transport.close()
        elif last.more_body:
            self.transport.close()
        else:
            last.keep_alive = False

    def _last_words(self, status: int) -> bytes:
        direct = self._config.direct
        return last_words(_STATUS[status], self.prefix(_NO_HEADERS if direct is None else direct.common), status)

    def prefix(self, common: Headers) -> bytes:
        """The lines at the beginning of every answer."""
        return self._config.prefix(self._state.default_headers, common)
