"""HTTP/1.1 connections of our own runner, in the place of uvicorn's.

uvicorn's own class serves any application by messages, in a task for each request. On the way of an append that takes
as long as everything the application does. This one is made for ours:

- An `Exchange` (`_exchange`) is a request that has come over a connection and is itself the `Call` that the application
  handles: answers go to the socket without messages in between, head and body in one piece.
- A request starts when it is there as a whole, if it is small. One that needs not wait for anything, or only for the
  store (`DurableStreamsApp.serve_now`), needs no task.
- Who waits for news is told when the client goes; nobody has to listen for that.

Any other application is served by the messages of ASGI, as uvicorn does it. What is parsed, and how strictly, is the
business of httptools (llhttp) in either case.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

import httptools

from ._exchange import NO_HEADERS, STATUS_LINES, Exchange
from .connections import HEAD_BYTES, LINGER_SECONDS, Refused, Seen, last_words
from .requests import Scope
from .responses import Headers

if TYPE_CHECKING:
    from .http import DurableStreamsApp

logger: logging.Logger = logging.getLogger("durable_streams.server")

# So many requests may wait for their turn before no more are read. Reading on is how a client that leaves is noticed.
_AHEAD = 8
_METHODS = {method.encode(): method for method in ("POST", "GET", "PUT", "HEAD", "DELETE", "OPTIONS")}


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
        if self._parser is not None and self.received - self._useful > HEAD_BYTES:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(self._last_words(431))
                self._part()
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
        common = NO_HEADERS if direct is None else direct.common
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
        if exchange.more_body and not exchange.keep_alive:
            self._part()
        elif not exchange.keep_alive or (self.said_all and not self._waiting):
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

    def _part(self) -> None:
        """Send no more, but hear the client out before closing, for a while.

        It may still be sending. If we closed now, its system would tell it of a broken connection, and many clients
        do not look for an answer then, or find none.
        """
        self._parser = None
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnect()  # it was part of what made no sense
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.resume_reading()

    def _refuse(self) -> None:
        """What came is no HTTP. Say so, unless an answer to what came before is still to be given."""
        self._parser = None
        incoming, self._incoming = self._incoming, None
        if incoming in self._waiting:
            self._waiting.remove(incoming)
        last = self._waiting[-1] if self._waiting else self.cycle
        if last is None or last.response_complete or (last.more_body and not last.started):
            self.transport.write(self._last_words(400))
            self._part()
        elif last.more_body:
            self.transport.close()
        else:
            last.keep_alive = False

    def _last_words(self, status: int) -> bytes:
        direct = self._config.direct
        return last_words(STATUS_LINES[status], self.prefix(NO_HEADERS if direct is None else direct.common), status)

    def prefix(self, common: Headers) -> bytes:
        """The lines at the beginning of every answer."""
        return self._config.prefix(self._state.default_headers, common)
