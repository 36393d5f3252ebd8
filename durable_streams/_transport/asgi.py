"""Exchanges with an ASGI application in the same process: no sockets, no ports.

Each request runs the application in a task of its own. These tasks stand outside every task group ("system tasks" on
trio), because a transport is opened in one place, used in a second and closed in a third, and must not hold a cancel
scope from one to the next; the transport's `aclose` waits until all of them have ended. Driving the application inside
the calls of `receive` instead would need no task, but would leave its cancel scopes and task groups half-entered in
whatever task happens to call.

Between application and exchange there is one place for one piece of the body: `send` waits while it is taken, and that
is all the backpressure there is. Closing an exchange early, or cancelling a call, looks to the application like a
client that went away: `receive` gives `http.disconnect`, `send` raises `OSError`, and what it is doing goes on, as in a
server. An application that has not ended `asgi_call.GRACE` seconds later is cancelled.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import AsyncIterable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import anyio
import anyio.lowlevel

from .._core import wire
from ..errors import AlreadyClosedError, BusyResourceError, DurableStreamError, IncompleteBodyError
from .asgi_call import ASGI_VERSION, ASGIApp, Call, logger
from .asgi_lifespan import Lifespan
from .base import Timeouts
from .deadline import Deadline
from .failures import check_url
from .loops import current_run, spawn
from .version import user_agent

_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})


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
        self._lifespan: Lifespan | None = None
        self._deadlines: set[Deadline] = set()
        self._exchanges: set[ASGIExchange] = set()
        self._calls: set[Call] = set()
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
            self._lifespan = Lifespan(self._app)
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
        call = Call(self._app, scope, body, deadline, self._calls)
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

    def __init__(self, transport: ASGITransport, call: Call, url: str, timeouts: Timeouts) -> None:
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
        "asgi": ASGI_VERSION,
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


def _abandon(calls: set[Call]) -> None:
    if calls:
        warnings.warn(
            f"<ASGITransport {len(calls)} running> was not closed: use its aclose()", ResourceWarning, stacklevel=2
        )
