"""HTTP on trio, by httpcore2.

httpcore2 gives two hooks, and both are used. Its `trace` extension tells when a request's head is about to be sent:
before that lies phase "connect", after it the server may have acted. And its network backend can be replaced: ours
wraps each of trio's streams in a `_Stream`, which

* knows whether the answer has begun, and whether the connection had served before: what `NetworkError.reused` says;
* sends a request's head together with its body, in one write where httpcore2 makes two;
* reads ahead while a body is sent: httpcore2 sends everything first, and so would miss an early answer, such as 413,
  for as long as the server does not read or the user's iterable does not yield;
* says when the connection has been idle for too long, so that the pool drops it.

httpcore2's own time limits are not used: one `Deadline` bounds the call, stage by stage.
"""

from __future__ import annotations

import math
import os
import re
import ssl
import time
import warnings
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import httpcore2

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
from .failures import Row, check_url, tls_error, translate
from .headers import idle_seconds
from .loops import current_run, running_loop
from .proxies import Proxies, Proxy
from .uploads import close_iterator, next_piece
from .version import user_agent

T = TypeVar("T")


class _UnheardError(httpcore2.ReadError):
    """The connection ended before the first byte of an answer. `reused`: it had served an earlier request."""

    def __init__(self, text: str, reused: bool) -> None:
        super().__init__(text)
        self.reused = reused


class _CertificateError(Exception):
    """A `ConnectError` whose cause is a certificate."""


class _TLSError(Exception):
    """A `ConnectError` whose cause is TLS, but not the certificate."""


#: Foreign error -> ours, and what to say of it. The first row that fits decides.
ERRORS: tuple[Row, ...] = (
    (httpcore2.UnsupportedProtocol, InvalidArgumentError, "httpcore2 does not accept the URL"),
    (httpcore2.LocalProtocolError, InvalidArgumentError, "httpcore2 does not accept the request"),
    (_CertificateError, NetworkError, "the server's certificate is not accepted"),
    (_TLSError, NetworkError, "TLS failed, perhaps it is not a TLS port"),
    (httpcore2.ProxyError, NetworkError, "the proxy refused to connect"),
    (httpcore2.ConnectError, NetworkError, "cannot connect"),
    (_UnheardError, NetworkError, "the server closed the connection without an answer"),
    (httpcore2.NetworkError, NetworkError, "the connection broke"),
    (httpcore2.TimeoutException, NetworkError, "httpcore2 gave up"),
    (httpcore2.RemoteProtocolError, NetworkError, "the answer is not HTTP"),
    (OSError, NetworkError, "the connection broke"),
)
#: The same while a body is received: where the framing is broken, the body is not complete.
BODY_ERRORS: tuple[Row, ...] = (
    (httpcore2.RemoteProtocolError, IncompleteBodyError, "the body ended too early"),
    *ERRORS,
)

#: Up to this size a body is joined with its head into one write; above, the copy would cost more than the write.
_JOINED = 64 * 1024
#: Bytes asked from a socket at once.
_READ_SIZE = 256 * 1024
#: The start of an answer that is not merely informational, perhaps after some that are.
_FINAL_STATUS = re.compile(rb"(?:HTTP/1\.\d 1.*?\r\n\r\n)*HTTP/1\.\d [^1]", re.DOTALL)
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})


class HTTPCoreTransport:
    """Sends requests with httpcore2 on trio. Belongs to the run of trio that first uses it.

    Args:
        ssl_context: For https; None trusts the system's certificate authorities.
        proxies: See `Proxies`; None reads the environment now, {} uses none.
        keepalive_expiry: Seconds after which an idle connection is not used again. The default lies below the 5
            seconds after which uvicorn and Node close theirs; a server that says `Keep-Alive: timeout=...` is believed
            if it allows less.

    Raises:
        RuntimeError: from `open`, outside trio or in another run than before.
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
        self._run: object = None
        self._backend = _Backend()
        self._finalizer = weakref.finalize(self, _abandon, self._backend.streams)
        # Per scheme and proxy: each pool has one proxy, and no TLS context is loaded before https is used.
        self._pools: dict[tuple[str, Proxy | None], httpcore2.AsyncConnectionPool] = {}
        self._deadlines: set[Deadline] = set()
        self._exchanges: set[HTTPCoreExchange] = set()

    def __repr__(self) -> str:
        if self._closed:
            return "<HTTPCoreTransport closed>"
        idle = sum(stream.idle for stream in self._backend.streams)
        return f"<HTTPCoreTransport {len(self._exchanges) + len(self._deadlines)} open, {idle} idle>"

    async def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes],
        timeouts: Timeouts,
    ) -> HTTPCoreExchange:
        """Send one request and wait for the head of its answer: see `Transport.open`."""
        check_url(url)
        if self._closed:
            raise AlreadyClosedError("the transport was closed")
        self._check_run()
        request, pool = self._prepare(method, url, headers, body)
        deadline = Deadline(timeouts)
        upload = _Upload(body, deadline)
        request.stream = upload
        request.extensions["trace"] = _Stages(deadline).trace
        error: BaseException | None = None
        exchange: HTTPCoreExchange | None = None
        self._deadlines.add(deadline)
        current = _current_upload.set(upload)
        try:
            with deadline:
                response = await pool.handle_async_request(request)
                exchange = HTTPCoreExchange(self, url, timeouts, response, complete_request=upload.complete)
        except Exception as caught:
            error = caught
        finally:
            _current_upload.reset(current)
            self._deadlines.discard(deadline)
        if exchange is not None:
            self._exchanges.add(exchange)
            if deadline.stopped:  # the head came just before the transport was closed
                await exchange.aclose()
                raise deadline.error(url)
            if not exchange.genuine:
                await exchange.aclose()
                error = httpcore2.RemoteProtocolError("it came before the request")
                raise _translate(ERRORS, error, url, "sent") from error
            return exchange
        if upload.error is not None:
            raise upload.error
        if error is None or deadline.stopped:
            raise deadline.error(url) from error
        raise _translate(ERRORS, error, url, deadline.phase) from error

    def _prepare(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | AsyncIterable[bytes]
    ) -> tuple[httpcore2.Request, httpcore2.AsyncConnectionPool]:
        parts = urlsplit(url)
        host = parts.hostname or ""
        authority = parts.netloc.rpartition("@")[2]
        target = url.partition("#")[0].partition("://")[2].removeprefix(parts.netloc)
        if not target.startswith("/"):
            target = f"/{target}"
        lines = [(b"host", authority.encode())]
        lines.extend((name.encode(), value.encode()) for name, value in headers.items())
        if "user-agent" not in headers:
            lines.append((b"user-agent", user_agent().encode()))
        if not isinstance(body, bytes):
            lines.append((b"transfer-encoding", b"chunked"))
        elif (body or method in _BODY_METHODS) and "content-length" not in headers:
            lines.append((b"content-length", b"%d" % len(body)))
        address = httpcore2.URL(scheme=parts.scheme, host=host, port=parts.port, target=target)
        proxy = self._proxies.find(parts.scheme, host, parts.port)
        return httpcore2.Request(method, address, headers=lines, extensions={}), self._pool(parts.scheme, proxy)

    def _pool(self, scheme: str, proxy: Proxy | None) -> httpcore2.AsyncConnectionPool:
        pool = self._pools.get((scheme, proxy))
        if pool is None:
            if scheme == "https" and self._ssl_context is None:
                self._ssl_context = ssl.create_default_context()
            authorization = [] if proxy is None or proxy.authorization is None else [proxy.authorization]
            pool = self._pools[scheme, proxy] = httpcore2.AsyncConnectionPool(
                ssl_context=self._ssl_context,
                proxy=None
                if proxy is None
                else httpcore2.Proxy(proxy.url, headers=[("proxy-authorization", value) for value in authorization]),
                max_connections=None,
                max_keepalive_connections=None,
                keepalive_expiry=self._keepalive_expiry,
                network_backend=self._backend,
            )
        return pool

    async def aclose(self) -> None:
        """Close all connections, also those of open exchanges, and fail pending calls. Idempotent.

        Raises:
            RuntimeError: in another run of trio than the one that used the transport.
        """
        if self._run is not None:
            self._check_run()
        self._closed = True
        self._finalizer.detach()
        pools, self._pools = self._pools, {}
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
            for deadline in list(self._deadlines):
                deadline.stop()
            for exchange in list(self._exchanges):
                await exchange.aclose()
            for pool in pools.values():
                await pool.aclose()
            for stream in list(self._backend.streams):
                await stream.aclose()

    def _check_run(self) -> None:
        if running_loop() != "trio":
            raise RuntimeError("HTTPCoreTransport works on trio only")
        run = current_run()
        if self._run is None:
            self._run = run
        elif self._run is not run:
            raise RuntimeError(f"{self!r} belongs to another run of trio: make one transport for each")


def _abandon(streams: set[_Stream]) -> None:
    """Close what a garbage-collected transport has left open, and say so."""
    if streams:
        idle = sum(stream.idle for stream in streams)
        message = f"<HTTPCoreTransport {len(streams) - idle} open, {idle} idle> was not closed: use its aclose()"
        warnings.warn(message, ResourceWarning, stacklevel=2)
    for stream in list(streams):
        stream.discard()


class HTTPCoreExchange:
    """An answer whose head has come: see `Exchange`."""

    def __init__(
        self,
        transport: HTTPCoreTransport,
        url: str,
        timeouts: Timeouts,
        response: httpcore2.Response,
        *,
        complete_request: bool,
    ) -> None:
        self.status = response.status
        headers: dict[str, str] = {}
        for raw_name, raw_value in response.headers:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("utf-8", "surrogateescape")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        self.headers: Mapping[str, str] = headers
        self._transport = transport
        self._url = url
        self._timeouts = timeouts
        self._response = response
        self._complete_request = complete_request
        self._stream: Any = response.extensions["network_stream"]
        self._pieces = cast("AsyncIterable[bytes]", response.stream).__aiter__()
        self._deadline: Deadline | None = None
        self._closed = False
        self._complete = False

    @property
    def genuine(self) -> bool:
        """Whether the head came after the request, and was not left over from the answer before it."""
        return not isinstance(self._stream, _Stream) or self._stream.heard

    def __repr__(self) -> str:
        return f"<HTTPCoreExchange {self.status}{' closed' if self._closed else ''}>"

    async def receive(self) -> bytes:
        """The next piece of the body, b"" when it is complete: see `Exchange.receive`."""
        if self._complete:
            return b""
        if self._closed:
            raise AlreadyClosedError("the exchange was closed")
        if self._deadline is not None:
            raise BusyResourceError("another task is already receiving from this exchange")
        error: BaseException | None = None
        data: bytes | None = None
        deadline = self._deadline = Deadline(self._timeouts, "read")
        try:
            with deadline:
                while not data:
                    data = await anext(self._pieces)
        except StopAsyncIteration:
            data = b""
        except Exception as caught:
            data, error = None, caught
        finally:
            self._deadline = None
            if not data:
                await self._release(complete=data is not None)
        if data is not None:
            return data
        if error is None or deadline.stopped:
            raise deadline.error(self._url, "body") from error
        raise _translate(BODY_ERRORS, error, self._url, "body") from error

    async def aclose(self) -> None:
        """Release the connection: to the pool after a complete body, else by closing it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._deadline is not None:
            self._deadline.stop()  # `receive` runs in another task, which closes the socket
        elif not self._complete:
            await self._release(complete=False)

    async def _release(self, *, complete: bool) -> None:
        self._transport._exchanges.discard(self)
        self._complete = complete
        self._closed = self._closed or not complete
        if complete and self._complete_request and isinstance(self._stream, _Stream):
            self._stream.rest(idle_seconds(self.headers, self._transport._keepalive_expiry))
        with anyio.CancelScope(shield=True):
            if not complete:
                await self._stream.aclose()
            await cast("AsyncGenerator[bytes, None]", self._pieces).aclose()
            await self._response.aclose()


class _Stages:
    """Moves a deadline on as httpcore2 reports progress."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """A CONNECT request is a part of getting a connection."""
        if event == "http11.send_request_headers.started":
            if info["request"].method != b"CONNECT":
                self._deadline.move("write")
        elif event == "http11.receive_response_headers.started" and info["request"].method != b"CONNECT":
            self._deadline.move("read")


class _Upload:
    """The request's body, as httpcore2 asks for it.

    Attributes:
        complete: Whether all of it was taken.
        error: What the user's iterable raised.
        stream: The connection it is sent on, once that is known.
    """

    def __init__(self, body: bytes | AsyncIterable[bytes], deadline: Deadline) -> None:
        self._body = body
        self._deadline = deadline
        self.complete = False
        self.error: Exception | None = None
        self.stream: _Stream | None = None

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        if isinstance(self._body, bytes):
            self.complete = True
            if self._body:
                yield self._body
            return
        yield b""  # sends the head: the server may answer before the first piece
        assert self.stream is not None, "httpcore2 has chosen a connection"
        iterator = aiter(self._body)
        try:
            while True:
                self._deadline.pause()
                piece = await self.stream.unless_answered(partial(self._next, iterator))
                self._deadline.move("write")
                if piece is None:
                    self.complete = True
                    return
                if piece:
                    yield piece
        finally:
            with anyio.CancelScope(shield=True):
                await close_iterator(iterator)

    async def _next(self, iterator: AsyncIterator[bytes]) -> bytes | None:
        try:
            return await next_piece(iterator)
        except Exception as error:
            self.error = error
            raise


_current_upload: ContextVar[_Upload] = ContextVar("_current_upload")


class _Backend(httpcore2.AsyncNetworkBackend):
    """trio's sockets, each wrapped in a `_Stream`.

    Attributes:
        streams: Those that are open.
    """

    def __init__(self) -> None:
        self._inner: Any = httpcore2.TrioBackend()  # httpcore2 has a placeholder of that name for lack of trio
        self.streams: set[_Stream] = set()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        stream = await self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(stream, self.streams)


class _Stream(httpcore2.AsyncNetworkStream):
    """One connection.

    It waits for a request ("fresh"), is sent the head, which it holds back until the body or the end of the body comes,
    then reads; `rest` makes it fresh again. What is held is sent before anything is read.
    """

    def __init__(self, inner: httpcore2.AsyncNetworkStream, streams: set[_Stream]) -> None:
        self._inner = inner
        self._streams = streams
        self._requests = 0
        self._fresh = True
        self._heard = False
        self._held: bytes | None = None
        self._ahead = bytearray()
        self._ahead_end: bytes | httpcore2.ReadError | None = None
        self._expires = math.inf
        streams.add(self)

    @property
    def heard(self) -> bool:
        """Whether any byte has come since the last request was begun."""
        return self._heard

    @property
    def idle(self) -> bool:
        """Whether it has served and may serve again."""
        return self._fresh and self._requests > 0

    def rest(self, idle: float) -> None:
        """The answer is complete; the next request may come within so many seconds."""
        self._fresh = True
        self._expires = time.monotonic() + idle

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._fresh:
            self._fresh = False
            self._heard = False
            self._requests += 1
            self._held = buffer
            _current_upload.get().stream = self
            return
        held, self._held = self._held, None
        if len(buffer) <= _JOINED:
            await self._inner.write(buffer if held is None else held + buffer, timeout)
            return
        if held is not None:
            await self._inner.write(held, timeout)
        await self.unless_answered(partial(self._inner.write, buffer, timeout))

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._held is not None:
            await self.write(b"", timeout)
        data: bytes | httpcore2.ReadError
        if self._ahead:
            data = bytes(self._ahead)
            self._ahead.clear()
        else:
            data = await self._receive() if self._ahead_end is None else self._ahead_end
        if isinstance(data, httpcore2.ReadError):
            if self._heard:
                raise data
            raise _UnheardError(str(data.__cause__ or data), self._requests > 1) from data
        if data:
            self._heard = True
        elif not self._heard:
            raise _UnheardError("end of stream", self._requests > 1)
        return data

    async def unless_answered(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do a part of sending the request; stop it when the server answers or hangs up.

        Raises:
            httpcore2.WriteError: it was stopped. To httpcore2 this means: go on to read the answer.
        """
        results: list[T] = []
        errors: list[Exception] = []

        async def read_ahead() -> None:
            while self._ahead_end is None and not _FINAL_STATUS.match(self._ahead):
                if len(self._ahead) >= _READ_SIZE:
                    break
                data = await self._receive()
                if data and isinstance(data, bytes):
                    self._ahead += data
                else:
                    self._ahead_end = data
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_ahead)
            try:
                results.append(await work())
            except Exception as error:
                errors.append(error)
            tasks.cancel_scope.cancel()
        if errors:
            raise errors[0]
        if not results:
            raise httpcore2.WriteError("the server answered before it had the whole request")
        return results[0]

    async def _receive(self) -> bytes | httpcore2.ReadError:
        try:
            return await self._inner.read(_READ_SIZE)
        except httpcore2.ReadError as error:
            return error

    async def aclose(self) -> None:
        self._streams.discard(self)
        await self._inner.aclose()

    def discard(self) -> None:
        """Close the socket from outside trio."""
        self._streams.discard(self)
        number = self._inner.get_extra_info("socket").detach()
        if number >= 0:
            os.close(number)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        try:
            inner = await self._inner.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:  # httpcore2 forgets the socket when the handshake is cancelled
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise
        self._streams.discard(self)
        return _Stream(inner, self._streams)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and time.monotonic() >= self._expires:
            return True  # to httpcore2's pool this means: closed by the server, drop it
        return self._inner.get_extra_info(info)


def _translate(table: tuple[Row, ...], error: BaseException, url: str, phase: Phase) -> DurableStreamError:
    reused = isinstance(error, _UnheardError) and error.reused
    if isinstance(error, httpcore2.ConnectError) and (tls := tls_error(error)) is not None:
        wrapped = _CertificateError(str(tls)) if isinstance(tls, ssl.SSLCertVerificationError) else _TLSError(str(tls))
        wrapped.__cause__ = tls
        error = wrapped
    return translate(table, error, url, phase=phase, reused=reused)
