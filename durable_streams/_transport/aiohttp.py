"""HTTP on asyncio, by aiohttp.

aiohttp is made to do one exchange and nothing else: no redirects, cookies, netrc, decompression, default headers, limit
on connections or time limits of its own. Where its public surface has no switch, three small pieces hook in:

* `_Request` is aiohttp's request class with one more line: `send` tells the `_Attempt` which connection was chosen.
  Everything before that is phase "connect", everything after it may have reached the server. It is also the last
  moment to refuse a connection that the server is about to close, see `_ExpiredError`.
* `_Attempt` is given as a middleware. It hides the errors on which aiohttp would send the request again by itself.
* `_Body` writes the request's body, tells the attempt when it is written, and keeps the exception of a user's iterable.

An answer's connection goes back to aiohttp's pool when its last byte has come. In every other case (cancelled, failed,
half-read, answered before the request was sent completely) the socket is aborted: `close()` of an asyncio transport
would first flush what the peer does not read, perhaps forever.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import warnings
import weakref
from collections.abc import AsyncIterable, Mapping
from typing import Any

import aiohttp
import aiohttp.abc
import aiohttp.payload
import anyio
import anyio.lowlevel
import yarl
from aiohttp.client_reqrep import ClientRequest
from aiohttp.http_exceptions import HttpProcessingError

from ..errors import (
    AlreadyClosedError,
    BusyResourceError,
    DurableStreamError,
    IncompleteBodyError,
    InvalidArgumentError,
    NetworkError,
    Phase,
)
from .base import Timeouts
from .deadline import Deadline
from .failures import Row, check_url, translate
from .headers import idle_seconds
from .proxies import Proxies
from .uploads import close_iterator, next_piece
from .version import user_agent

#: Foreign error -> ours, and what to say of it. The first row that fits decides; the phase is the attempt's own.
ERRORS: tuple[Row, ...] = (
    (aiohttp.InvalidURL, InvalidArgumentError, "aiohttp does not accept the URL"),
    (aiohttp.ClientConnectorCertificateError, NetworkError, "the server's certificate is not accepted"),
    (aiohttp.ClientConnectorSSLError, NetworkError, "TLS failed, perhaps it is not a TLS port"),
    (aiohttp.ClientConnectorDNSError, NetworkError, "the host name is not known"),
    (aiohttp.ClientProxyConnectionError, NetworkError, "cannot connect to the proxy"),
    (aiohttp.ClientHttpProxyError, NetworkError, "the proxy refused to connect"),
    (aiohttp.ClientConnectorError, NetworkError, "cannot connect"),
    (aiohttp.ServerDisconnectedError, NetworkError, "the server closed the connection without an answer"),
    (aiohttp.ClientPayloadError, IncompleteBodyError, "the body ended too early"),
    (aiohttp.ClientResponseError, NetworkError, "the answer is not HTTP"),
    (HttpProcessingError, NetworkError, "the answer is not HTTP"),
    (aiohttp.ClientError, NetworkError, "the connection broke"),
    (OSError, NetworkError, "the connection broke"),
    (ValueError, InvalidArgumentError, "aiohttp does not accept the request"),
)

_SKIPPED_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
#: How long a cancelled upload may take to end, in seconds: it is the user's iterable that has to stop.
_UPLOAD_END = 1.0
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
#: Bytes that aiohttp buffers before it stops reading the socket, twice this at most.
_READ_BUFFER = 256 * 1024


class AiohttpTransport:
    """Sends requests with aiohttp. Belongs to the event loop that first uses it.

    Args:
        ssl_context: For https; None trusts the system's certificate authorities.
        proxies: See `Proxies`; None reads the environment now, {} uses none.
        keepalive_expiry: Seconds after which an idle connection is not used again. The default lies below the 5
            seconds after which uvicorn and Node close theirs; a server that says `Keep-Alive: timeout=...` is believed
            if it allows less.

    Raises:
        RuntimeError: from `open`, outside asyncio or in another event loop than before.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        proxies: Mapping[str, str] | None = None,
        keepalive_expiry: float = 4.0,
    ) -> None:
        self._ssl_context = ssl_context
        self._proxies = Proxies(proxies)
        self._keepalive_expiry = keepalive_expiry
        self._closed = False
        self._pool: _Pool | None = None
        self._exchanges: set[AiohttpExchange] = set()

    def __repr__(self) -> str:
        if self._closed:
            return "<AiohttpTransport closed>"
        if self._pool is None:
            return "<AiohttpTransport 0 open, 0 idle>"
        return f"<AiohttpTransport {self._pool.describe()}>"

    async def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes],
        timeouts: Timeouts,
    ) -> AiohttpExchange:
        """Send one request and wait for the head of its answer: see `Transport.open`."""
        check_url(url)
        pool = self._get_pool()
        while True:
            attempt = _Attempt(pool, url, timeouts)
            try:
                return await self._attempt(attempt, method, headers, body)
            except _ExpiredError:
                continue  # nothing was sent; each such connection is gone from the pool now

    async def _attempt(
        self,
        attempt: _Attempt,
        method: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes],
    ) -> AiohttpExchange:
        target = yarl.URL(attempt.url, encoded=True)
        sent_headers = dict(headers)
        sent_headers.setdefault("user-agent", user_agent())
        proxy = self._proxies.find(target.scheme, target.host or "", target.port)
        proxy_headers = None
        if proxy is not None and proxy.authorization is not None:
            if target.scheme == "https":
                proxy_headers = {"Proxy-Authorization": proxy.authorization}
            else:
                sent_headers["proxy-authorization"] = proxy.authorization
        if body != b"":
            attempt.body = _Body(body, attempt)

        error: BaseException | None = None
        exchange: AiohttpExchange | None = None
        attempt.pool.attempts.add(attempt)
        try:
            with attempt.deadline:
                response = await attempt.pool.session.request(
                    method,
                    target,
                    headers=sent_headers,
                    skip_auto_headers=_SKIPPED_HEADERS,
                    data=attempt.body,
                    chunked=None if isinstance(body, bytes) else True,
                    allow_redirects=False,
                    proxy=None if proxy is None else proxy.url,
                    proxy_headers=proxy_headers,
                    middlewares=(attempt,),
                )
                exchange = AiohttpExchange(self, attempt, response)
        except _ForeignError as hidden:
            error = hidden.error
        except _ExpiredError:
            raise
        except Exception as caught:
            error = caught
        finally:
            if exchange is None:
                await attempt.abort()
        if exchange is not None:
            self._exchanges.add(exchange)
            if attempt.deadline.stopped:  # the head came just before the transport was closed
                await exchange.aclose()
                raise attempt.deadline.error(attempt.url)
            return exchange
        if attempt.upload_error is not None:
            raise attempt.upload_error
        if error is None or attempt.deadline.stopped:
            raise attempt.deadline.error(attempt.url) from error
        raise attempt.translate(error, attempt.deadline.phase) from error

    async def aclose(self) -> None:
        """Close all connections, also those of open exchanges, and fail pending calls. Idempotent.

        Raises:
            RuntimeError: in another event loop than the one that used the transport, while that one is alive.
        """
        pool = self._pool
        if pool is not None and not pool.loop.is_closed():
            self._check_loop()
        self._closed = True
        self._pool = None
        if pool is None:
            return
        pool.finalizer.detach()
        if pool.loop.is_closed():
            pool.abandon()
            return
        with anyio.CancelScope(shield=True):
            for exchange in list(self._exchanges):
                await exchange.aclose()
            for attempt in list(pool.attempts):
                attempt.deadline.stop()
            for protocol in list(pool.served):
                protocol.abort()  # TLS connections would wait for the peer's farewell
            await pool.session.close()

    def _get_pool(self) -> _Pool:
        if self._closed:
            raise AlreadyClosedError("the transport was closed")
        loop = self._check_loop()
        if self._pool is None:
            connector = _Connector(
                limit=0,
                keepalive_timeout=self._keepalive_expiry,
                ssl=True if self._ssl_context is None else self._ssl_context,
            )
            session = aiohttp.ClientSession(
                connector=connector,
                timeout=_NO_TIMEOUT,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                request_class=_Request,
                response_class=_Response,
                read_bufsize=_READ_BUFFER,
            )
            self._pool = _Pool(self, loop, session)
        return self._pool

    def _check_loop(self) -> asyncio.AbstractEventLoop:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("AiohttpTransport works on asyncio only") from None
        if self._pool is not None and running is not self._pool.loop:
            raise RuntimeError(f"{self!r} belongs to another event loop: make one transport for each loop")
        return running


class _Pool:
    """What a transport holds of aiohttp.

    It knows nothing of the transport, and so can clean up when that is garbage-collected: aiohttp's own objects would
    each complain by themselves then, some of them on the loop's exception handler.

    Attributes:
        loop: The event loop that all this belongs to.
        session: aiohttp's session.
        attempts: Those that wait for a head or whose exchange is open.
        served: aiohttp's protocol object of each connection that has served -> when it is too old to be used again.
        finalizer: Runs `abandon` when the transport is collected.
    """

    def __init__(
        self, transport: AiohttpTransport, loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession
    ) -> None:
        self.loop = loop
        self.session = session
        self.attempts: set[_Attempt] = set()
        self.served: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        self.finalizer = weakref.finalize(transport, self.abandon)

    def describe(self) -> str:
        """`2 open, 1 idle`."""
        busy = {attempt.protocol for attempt in self.attempts}
        idle = sum(protocol.is_connected() and protocol not in busy for protocol in self.served)
        return f"{len(self.attempts)} open, {idle} idle"

    def abandon(self) -> None:
        """Close everything without waiting, and say that this was the caller's duty. Any thread may run this."""
        if self.attempts or any(protocol.is_connected() for protocol in self.served):
            message = f"<AiohttpTransport {self.describe()}> was not closed: use its aclose()"
            warnings.warn(message, ResourceWarning, stacklevel=2)
        self.session.detach()
        if self.loop.is_closed():
            self._drop()
        else:
            self.loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        for attempt in list(self.attempts):
            attempt.drop()
        for protocol in list(self.served):
            # A loop that is closed cannot close sockets; asyncio's own objects do so when they are collected.
            if not self.loop.is_closed():
                protocol.abort()


class AiohttpExchange:
    """An answer whose head has come: see `Exchange`."""

    def __init__(self, transport: AiohttpTransport, attempt: _Attempt, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        headers: dict[str, str] = {}
        for name, value in response.headers.items():
            name = name.lower()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        self.headers: Mapping[str, str] = headers
        self._transport = transport
        self._attempt = attempt
        self._response = response
        self._content = response.content
        # No length and no chunks: the body ends with its connection.
        self._until_close = not (
            "content-length" in headers
            or "transfer-encoding" in headers
            or response.method == "HEAD"
            or response.status in (204, 304)
        )
        self._deadline: Deadline | None = None
        self._closed = False
        self._complete = False
        attempt.response = response
        idle = idle_seconds(headers, transport._keepalive_expiry)
        response.content.on_eof(lambda: attempt.rest(idle))

    def __repr__(self) -> str:
        return f"<AiohttpExchange {self.status}{' closed' if self._closed else ''}>"

    async def receive(self) -> bytes:
        """The next piece of the body, b"" when it is complete: see `Exchange.receive`."""
        if self._complete:
            return b""
        if self._closed:
            raise AlreadyClosedError("the exchange was closed")
        if self._deadline is not None:
            raise BusyResourceError("another task is already receiving from this exchange")
        attempt = self._attempt
        error: BaseException | None = None
        data: bytes | None = None
        try:
            data = self._content.read_nowait()
            if data:
                return data
            if not self._content.at_eof():
                data = None
                self._deadline = Deadline(attempt.timeouts, "read")
                with self._deadline:
                    data = await self._content.readany()
        except Exception as caught:
            error = caught
        finally:
            deadline, self._deadline = self._deadline, None
            if data is None:
                await self.aclose()
        if data:
            return data
        if data is None:
            if attempt.upload_error is not None:
                raise attempt.upload_error
            if error is None or (deadline is not None and deadline.stopped):
                assert deadline is not None, "only a deadline ends the wait without an error"
                raise deadline.error(attempt.url, "body") from error
            raise attempt.translate(error, "body") from error
        lost = attempt.lost() if self._until_close else None
        await self.aclose()
        if lost is not None:
            raise attempt.translate(lost, "body") from lost
        self._complete = True
        return b""

    async def aclose(self) -> None:
        """Release the connection: to the pool after a complete body, else by closing it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._transport._exchanges.discard(self)
        if self._deadline is not None:
            self._deadline.stop()
        await self._attempt.abort()


class _Attempt:
    """One request on its way: given to aiohttp as a middleware, and told by `_Request` and `_Body` how it goes."""

    def __init__(self, pool: _Pool, url: str, timeouts: Timeouts) -> None:
        self.pool = pool
        self.url = url
        self.timeouts = timeouts
        self.deadline = Deadline(timeouts)
        self.body: _Body | None = None
        self.upload_error: Exception | None = None
        self.protocol: Any = None
        self.response: aiohttp.ClientResponse | None = None
        self._connection: Any = None
        self._socket: asyncio.Transport | None = None
        self._reused = False
        self._resting = False

    async def __call__(self, request: ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        assert isinstance(request, _Request)
        request.attempt = self
        try:
            return await handler(request)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            raise _ForeignError(error) from error

    def on_connection(self, connection: Any) -> None:
        """A connection was chosen and nothing is sent yet."""
        served = self.pool.served
        self._connection = connection
        self.protocol = connection.protocol
        self._socket = connection.transport
        self._reused = self.protocol in served
        if self._reused and time.monotonic() >= served[self.protocol]:
            raise _ExpiredError
        served[self.protocol] = 0.0  # not to be used again, unless `rest` allows it
        self.deadline.move("write")

    def rest(self, idle: float) -> None:
        """The answer is complete: its connection may be used again for so many seconds."""
        self._resting = self.body is None or self.body.written
        if self._resting:
            self.pool.served[self.protocol] = time.monotonic() + idle

    def lost(self) -> BaseException | None:
        """Why the connection was lost, if that was no orderly end: aiohttp takes a reset for the end of a body."""
        lost = self.protocol.exception()
        return lost if isinstance(lost, OSError) else None

    async def abort(self) -> None:
        """Close the socket unless it is back in the pool, and see a running upload end."""
        self.pool.attempts.discard(self)
        if not self._resting and self._socket is not None:
            self._socket.abort()
        if self.response is not None:
            self.response.close()
        if self._resting and (self.body is None or self.body.ended.is_set()):
            return  # The usual end: there is nothing to wait for.
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()  # the loop closes the socket in its next round
            if self.body is not None and self.body.started:
                with anyio.move_on_after(_UPLOAD_END):
                    await self.body.ended.wait()

    def drop(self) -> None:
        """Abort without waiting, because the transport was forgotten."""
        if self.pool.loop.is_closed():
            if self.protocol is not None:
                self.protocol.connection_lost(None)  # `close` would call on the loop
        elif self._socket is not None:
            self._socket.abort()
        if self._connection is not None:
            self._connection.close()

    def translate(self, error: BaseException, phase: Phase) -> DurableStreamError:
        """Our error for one of aiohttp's."""
        reused = phase == "sent" and self._reused and _unheard(error)
        return translate(ERRORS, error, self.url, phase=phase, reused=reused)


class _Request(ClientRequest):
    """aiohttp's request, which tells its attempt when it is about to be sent."""

    attempt: _Attempt

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        self.attempt.on_connection(conn)
        response = await super().send(conn)
        if self.attempt.body is None:
            self.attempt.deadline.move("read")
        return response


class _Body(aiohttp.payload.Payload):
    """The request's body: bytes in one write together with the head, or an iterable piece by piece.

    aiohttp's own payload for bytes warns above 1 MiB, and its errors do not show whose they are.

    Attributes:
        started: Whether aiohttp has begun to write.
        written: Whether all of it is written.
        ended: Set when aiohttp has stopped writing, for whatever reason.
    """

    def __init__(self, value: bytes | AsyncIterable[bytes], attempt: _Attempt) -> None:
        super().__init__(value)
        self._size = len(value) if isinstance(value, bytes) else None
        self._attempt = attempt
        self.started = False
        self.written = False
        self.ended = anyio.Event()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a request's body is not read back")

    async def write(self, writer: aiohttp.abc.AbstractStreamWriter) -> None:
        self.started = True
        try:
            if isinstance(self._value, bytes):
                await writer.write(self._value)
            else:
                await self._write_pieces(writer, self._value)
            self.written = True
            self._attempt.deadline.move("read")
        finally:
            self.ended.set()

    async def _write_pieces(self, writer: aiohttp.abc.AbstractStreamWriter, pieces: AsyncIterable[bytes]) -> None:
        attempt = self._attempt
        writer.send_headers()  # the server may answer before the first piece
        iterator = aiter(pieces)
        try:
            while True:
                attempt.deadline.pause()
                try:
                    piece = await next_piece(iterator)
                except Exception as error:
                    attempt.upload_error = error
                    raise
                if piece is None:
                    return
                attempt.deadline.move("write")
                if piece:
                    await writer.write(piece)
                    await writer.drain()
        except Exception:
            # Without the last chunk the server sees that the body is not complete.
            if writer.transport is not None:
                writer.transport.abort()
            raise
        finally:
            await close_iterator(iterator)


class _Response(aiohttp.ClientResponse):
    """aiohttp's answer without its own complaint when it is collected: `_Pool` has one for all."""

    def __del__(self, _warnings: Any = warnings) -> None:
        pass


class _Connector(aiohttp.TCPConnector):
    """aiohttp's pool without its own complaint when it is collected: `_Pool` has one for all."""

    def __del__(self, _warnings: Any = warnings) -> None:
        pass


class _ForeignError(Exception):
    """Carries an error past aiohttp, which would send idempotent requests again on it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class _ExpiredError(Exception):
    """The chosen connection has been idle for too long. Nothing was sent."""


def _unheard(error: BaseException) -> bool:
    """Whether the connection ended before the first byte of an answer, not counting informational ones."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return error.message == "Server disconnected"  # else it holds the begun answer
    return isinstance(error, OSError)
