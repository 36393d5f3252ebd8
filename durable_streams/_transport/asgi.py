"""Exchanges with an ASGI application in the same process: no sockets, no ports.

Each request runs the application in a task of its own. These tasks stand outside every task group ("system tasks" on
trio), because a transport is opened in one place, used in a second and closed in a third, and must not hold a cancel
scope from one to the next; the transport's `aclose` waits until all of them have ended. Driving the application inside
the calls of `receive` instead would need no task, but would leave its cancel scopes and task groups half-entered in
whatever task happens to call.

Between application and exchange there is one place for one piece of the body: `send` waits while it is taken, and that
is all the backpressure there is. Closing an exchange early, or cancelling a call, looks to the application like a
client that went away: `receive` gives `http.disconnect`, `send` raises `OSError`, and what it is doing goes on, as in a
server. An application that has not ended `GRACE` seconds later is cancelled.
"""

from __future__ import annotations

import logging
import math
import warnings
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import anyio
import anyio.lowlevel

from .._core import wire
from ..errors import AlreadyClosedError, BusyResourceError, DurableStreamError, IncompleteBodyError
from .base import Timeouts
from .deadline import Deadline
from .failures import check_url
from .loops import current_run, spawn
from .uploads import close_iterator, next_piece
from .version import user_agent

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
#: An ASGI 3 application.
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: How long an application may go on after its client went away, or its lifespan is to end, in seconds.
GRACE = 1.0
_ASGI = {"version": "3.0", "spec_version": "2.4"}
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})

logger = logging.getLogger("durable_streams.transport.asgi")


class ASGITransport:
    """Sends requests to an ASGI application in the same process. Belongs to the event loop that first uses it.

    Usable at once; entered with `async with` (or after `start`) it also runs the application's lifespan.

        async with ASGITransport(app) as transport:
            await DurableStream.create("http://test/chat", transport=transport)

    Of `Timeouts`, `read` limits the application's silence; there is no connection to wait for, and nobody to write to.

    Args:
        app: An ASGI 3 application.
        root_path: Where it is mounted: URLs contain this prefix, as ASGI says.
        client: Address and port of the client that the application sees.
        raise_app_exceptions: Raises what the application raises from `open` or `receive`, unchanged, which is what a
            test wants. False does as servers do: status 500, or a body that ends too early.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        root_path: str = "",
        client: tuple[str, int] = ("127.0.0.1", 50000),
        raise_app_exceptions: bool = True,
    ) -> None:
        self._app = app
        self._root_path = root_path
        self._client = client
        self._raise_app_exceptions = raise_app_exceptions
        self._run: object = None
        self._closed = False
        self._lifespan: _Lifespan | None = None
        self._deadlines: set[Deadline] = set()
        self._exchanges: set[ASGIExchange] = set()
        self._calls: set[_Call] = set()
        finalizer = weakref.finalize(self, _abandon, self._calls)
        finalizer.atexit = False

    def __repr__(self) -> str:
        if self._closed:
            return "<ASGITransport closed>"
        return f"<ASGITransport {len(self._exchanges) + len(self._deadlines)} open, {len(self._calls)} running>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Run the start of the application's lifespan; `aclose` runs its end.

        An application that raises on a lifespan scope has none, and is used without.

        Raises:
            RuntimeError: the application reports that it failed to start.
        """
        self._check_usable()
        if self._lifespan is None:
            self._lifespan = _Lifespan(self._app)
            await self._lifespan.startup()

    async def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes],
        timeouts: Timeouts,
    ) -> ASGIExchange:
        """Start the application on one request and wait for the head of its answer: see `Transport.open`."""
        check_url(url)
        self._check_usable()
        state = None if self._lifespan is None else self._lifespan.state
        scope = _http_scope(method, url, headers, body, self._root_path, self._client, state)
        deadline = Deadline(timeouts, "read")
        call = _Call(self._app, scope, body, deadline, self._calls)
        opened = False
        self._deadlines.add(deadline)
        try:
            spawn(call.run, f"{method} {scope['path']}")
            with deadline:
                while not (call.started or call.ended.is_set() or call.upload_error is not None):
                    await call.changed()
                opened = call.started and not deadline.stopped
        finally:
            self._deadlines.discard(deadline)
            if not opened:
                call.disconnect()
        if not opened and call.upload_error is not None:
            raise call.upload_error
        if not opened and (deadline.stopped or not call.ended_by_itself):
            raise deadline.error(url)
        if not opened:
            error = call.error or RuntimeError("the application returned without an answer")
            if self._raise_app_exceptions:
                raise error
            logger.error("%s %s failed", method, scope["path"], exc_info=error)
            call.answer_for_it(500, b"Internal Server Error")
        exchange = ASGIExchange(self, call, url, timeouts)
        self._exchanges.add(exchange)
        return exchange

    async def aclose(self) -> None:
        """Close all exchanges, fail pending calls, and wait until the application has ended in all its tasks."""
        if self._closed:
            return
        if self._run is not None:
            self._check_run()
        self._closed = True
        with anyio.CancelScope(shield=True):
            for deadline in list(self._deadlines):
                deadline.stop()
            for exchange in list(self._exchanges):
                await exchange.aclose()
            calls = list(self._calls)
            for call in calls:
                call.disconnect()
            for call in calls:
                await call.ended.wait()
            if self._lifespan is not None:
                await self._lifespan.shutdown()

    def _check_usable(self) -> None:
        if self._closed:
            raise AlreadyClosedError("the transport was closed")
        self._check_run()

    def _check_run(self) -> None:
        run = current_run()
        if self._run is None:
            self._run = run
        elif run is not self._run:
            raise RuntimeError(f"{self!r} belongs to another event loop: make one transport for each loop")


class ASGIExchange:
    """An answer whose head has come: see `Exchange`."""

    def __init__(self, transport: ASGITransport, call: _Call, url: str, timeouts: Timeouts) -> None:
        self.status = call.status
        self.headers: Mapping[str, str] = call.headers
        self._transport = transport
        self._call = call
        self._url = url
        self._timeouts = timeouts
        self._deadline: Deadline | None = None
        self._closed = False
        self._complete = False

    def __repr__(self) -> str:
        return f"<ASGIExchange {self.status}{' closed' if self._closed else ''}>"

    async def receive(self) -> bytes:
        """The next piece of the body, b"" when it is complete: see `Exchange.receive`."""
        if self._complete:
            return b""
        if self._closed:
            raise AlreadyClosedError("the exchange was closed")
        if self._deadline is not None:
            raise BusyResourceError("another task is already receiving from this exchange")
        call = self._call
        piece: bytes | None = None
        await anyio.lowlevel.checkpoint_if_cancelled()
        deadline = self._deadline = Deadline(self._timeouts, "read")
        try:
            with deadline:
                while (piece := call.take()) is None and not call.is_over:
                    await call.changed()
        finally:
            self._deadline = None
            if piece is None:
                self._complete = call.complete and not call.missing
                self._release()
        if piece is not None:
            return piece
        if self._complete:
            return b""
        raise self._failure(deadline)

    def _failure(self, deadline: Deadline) -> Exception:
        call = self._call
        if call.upload_error is not None:
            return call.upload_error
        if deadline.stopped or not (call.complete or call.ended_by_itself):
            return deadline.error(self._url, "body")
        if call.error is not None and self._transport._raise_app_exceptions:
            return call.error
        shown = wire.parse_url(self._url).display
        reason = f"{call.missing} bytes are missing" if call.complete else "the application ended before its answer"
        error: DurableStreamError = IncompleteBodyError(
            f"{shown}: the body ended too early ({reason})", phase="body", url=shown
        )
        error.__cause__ = call.error
        return error

    async def aclose(self) -> None:
        """End the exchange; an application that is not done with its answer sees its client go away. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._deadline is not None:
            self._deadline.stop()
        else:
            self._release()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()

    def _release(self) -> None:
        self._closed = True
        self._transport._exchanges.discard(self)
        if not self._call.complete:
            self._call.disconnect()


class _Call:
    """One run of the application, and everything that passes between it and the exchange.

    Attributes:
        started: Whether the head has been sent; then `status` and `headers` are there.
        complete: Whether the last piece has been sent.
        missing: Bytes that `Content-Length` declared and the complete body does not have.
        ended: Set when the application has returned.
        error: What the application raised.
        upload_error: What the user's iterable raised.
    """

    def __init__(
        self,
        app: ASGIApp,
        scope: MutableMapping[str, Any],
        body: bytes | AsyncIterable[bytes],
        opening: Deadline,
        running: set[_Call],
    ) -> None:
        self._app = app
        self._scope = scope
        self._opening = opening
        self._running = running
        self.started = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self.missing = 0
        self.ended = anyio.Event()
        self.error: Exception | None = None
        self.upload_error: Exception | None = None
        self._body: bytes | AsyncIterator[bytes] | None = body if isinstance(body, bytes) else aiter(body)
        self._body_lock = anyio.Lock()
        self._piece: bytes | None = None
        self._length: int | None = None
        self._disconnected = False
        self._changed = anyio.Event()
        self._cancel = anyio.CancelScope()
        running.add(self)

    # ------------------------------------------------------------------ the exchange's side

    async def changed(self) -> None:
        """Wait until anything has happened."""
        await self._changed.wait()

    def take(self) -> bytes | None:
        """The waiting piece of the body, if there is one."""
        piece, self._piece = self._piece, None
        if piece is not None:
            self._notify()
        return piece

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come."""
        return self.complete or self.ended.is_set() or self.upload_error is not None

    @property
    def ended_by_itself(self) -> bool:
        """Whether the application returned or raised before it was told to stop."""
        return self.ended.is_set() and not self._disconnected

    def answer_for_it(self, status: int, body: bytes) -> None:
        """Answer in place of an application that has failed to."""
        self.status = status
        self.headers = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body))}
        self._piece = body
        self.complete = True

    def disconnect(self) -> None:
        """Say that the client has gone away; the application is cancelled if it goes on for too long."""
        if not self.ended.is_set() and self._cancel.deadline == math.inf:
            self._disconnected = True
            self._cancel.deadline = anyio.current_time() + GRACE
            self._notify()

    # ------------------------------------------------------------------ the application's side

    async def run(self) -> None:
        """Run the application to its end. Never raises."""
        try:
            with self._cancel:
                try:
                    await self._app(self._scope, self._receive, self._send)
                except Exception as error:
                    self._keep(error)
                finally:
                    await self._close_body()
        finally:
            self._running.discard(self)
            self.ended.set()
            self._notify()

    def _keep(self, error: Exception) -> None:
        if not (self._disconnected or self.complete):
            self.error = error
        elif not isinstance(error, OSError):  # a disconnected application may well end with our own OSError
            logger.error("%s %s failed after its answer", self._scope["method"], self._scope["path"], exc_info=error)

    async def _close_body(self) -> None:
        if self._body is not None and not isinstance(self._body, bytes):
            await close_iterator(self._body)

    async def _receive(self) -> Message:
        async with self._body_lock:
            if self._body is not None and not self._disconnected:
                message = await self._next_request()
                if message is not None:
                    return message
            while not (self._disconnected or self.complete):
                await self._changed.wait()
        return {"type": "http.disconnect"}

    async def _next_request(self) -> Message | None:
        if isinstance(self._body, bytes):
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        assert self._body is not None
        self._opening.pause()  # it is the iterable's turn, not the application's
        try:
            piece = await next_piece(self._body)
        except Exception as error:
            self.upload_error = error
            self.disconnect()
            return None
        finally:
            self._opening.move("read")
        if piece is None:
            self._body = None
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": piece, "more_body": True}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if self._disconnected:
            raise OSError("the client has gone away")
        if kind == "http.response.start" and not self.started:
            self._start(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.started and not self.complete:
            await self._send_body(bytes(message.get("body", b"")), bool(message.get("more_body", False)))
        else:
            raise RuntimeError(f"{kind!r} is not expected here")
        self._notify()

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        for raw_name, raw_value in headers:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("utf-8", "surrogateescape")
            self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value
        self.status = status
        self.started = True
        if self._scope["method"] == "HEAD" or status in (204, 304):
            self._length = -1  # whatever is sent: there is no body
        elif "content-length" in self.headers:
            self._length = self.missing = int(self.headers["content-length"])

    async def _send_body(self, body: bytes, more: bool) -> None:
        if self._length == -1:
            body = b""
        elif self._length is not None:
            if len(body) > self.missing:
                raise RuntimeError(f"the body is longer than its Content-Length of {self._length}")
            self.missing -= len(body)
        if body:
            while self._piece is not None and not self._disconnected:
                await self._changed.wait()
            if self._disconnected:
                raise OSError("the client has gone away")
            self._piece = body
        self.complete = not more
        await anyio.lowlevel.checkpoint()  # so that a fast application is as fair as a socket

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


class _Lifespan:
    """The application's lifespan: started once, shut down once.

    Attributes:
        state: What the application keeps for its requests, or None if it has no lifespan.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.state: dict[str, Any] | None = {}
        self._shutting_down = anyio.Event()
        self._asked = False
        self._answers: deque[Message] = deque()
        self._answered = anyio.Event()
        self._ended = anyio.Event()
        self._cancel = anyio.CancelScope()

    async def startup(self) -> None:
        """Start, or find that the application has no lifespan.

        Raises:
            RuntimeError: the application reports a failure.
        """
        spawn(self._run, "lifespan")
        try:
            await self._answered.wait()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.shutdown()
            raise
        if self._answers and self._answers[0]["type"] == "lifespan.startup.failed":
            self.state = None
            with anyio.CancelScope(shield=True):
                await self.shutdown()
            raise RuntimeError(f"the application failed to start: {self._answers[0].get('message', '')}")
        if not self._answers:
            self.state = None

    async def shutdown(self) -> None:
        """Let the application end; cancel it if it does not."""
        self._shutting_down.set()
        with anyio.move_on_after(GRACE):
            await self._ended.wait()
        self._cancel.cancel()
        await self._ended.wait()
        failed = [answer for answer in self._answers if answer["type"] == "lifespan.shutdown.failed"]
        if failed:
            logger.error("the application failed to shut down: %s", failed[0].get("message", ""))

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": _ASGI, "state": self.state}
        try:
            with self._cancel:
                try:
                    await self._app(scope, self._receive, self._send)
                except Exception as error:
                    if self._answers:
                        logger.error("the application's lifespan failed", exc_info=error)
        finally:
            self._ended.set()
            self._answered.set()

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._shutting_down.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        self._answers.append(message)
        self._answered.set()


def _http_scope(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | AsyncIterable[bytes],
    root_path: str,
    client: tuple[str, int],
    state: dict[str, Any] | None,
) -> MutableMapping[str, Any]:
    parts = urlsplit(url)
    lines = [(b"host", parts.netloc.rpartition("@")[2].encode())]
    lines.extend((name.lower().encode(), value.encode()) for name, value in headers.items())
    if "user-agent" not in headers:
        lines.append((b"user-agent", user_agent().encode()))
    if not isinstance(body, bytes):
        lines.append((b"transfer-encoding", b"chunked"))
    elif body or method in _BODY_METHODS:
        lines.append((b"content-length", b"%d" % len(body)))
    path = parts.path or "/"
    scope: MutableMapping[str, Any] = {
        "type": "http",
        "asgi": _ASGI,
        "http_version": "1.1",
        "method": method,
        "scheme": parts.scheme,
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": parts.query.encode(),
        "root_path": root_path,
        "headers": lines,
        "client": client,
        "server": (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)),
    }
    if state is not None:
        scope["state"] = dict(state)
    return scope


def _abandon(calls: set[_Call]) -> None:
    if calls:
        warnings.warn(
            f"<ASGITransport {len(calls)} running> was not closed: use its aclose()", ResourceWarning, stacklevel=2
        )
