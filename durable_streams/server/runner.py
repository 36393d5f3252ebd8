"""Runs the server: uvicorn in a thread of its own, with an event loop of its own.

That makes one object serve programs on asyncio, on trio and without an event loop. What uvicorn does as the master of a
process is taken from it: it binds no socket, touches no signal handler unless `serve_forever` asks for it, and its
failures come out as exceptions instead of `SystemExit`.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias, Unpack

import anyio
import anyio.to_thread

from .connections import Watchman
from .http import AppOptions, DurableStreamsApp
from .requests import Receive, Scope, Send
from .stores.base import Store

if TYPE_CHECKING:
    from ._uvicorn import Runner

ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_BACKLOG = 2048
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # what a client on this machine connects to


class Server:
    """A running server, for the length of a `with` or `async with` block.

        with Server() as server:
            print(server.url)  # http://127.0.0.1:49152/v1/stream

    Args:
        app_or_store: A store to serve, a finished `DurableStreamsApp`, or another ASGI application (one that mounts
            it, say; if it has a function `begin_shutdown`, that is called first when the server is to end). None serves
            a new `MemoryStore`.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        max_connections: How many connections there may be; more are told 503 and closed. None for any number.
        request_timeout: Seconds after which the headers of a request have to be there. A body may take as long, and
            another second for each 500 bytes of it.
        stall_timeout: Seconds after which a client that takes nothing of its answer is cut off.
        **options: Arguments of the `DurableStreamsApp` to be made, see there. For another application `root` is
            allowed: where in it streams live, for `url`.

    Attributes:
        app: The application.

    Raises:
        TypeError: if options are given for an application that is finished.
        ValueError: if an argument has a value that cannot work.
        OSError: on entering, if the address cannot be listened on; the message names it.
        ModuleNotFoundError: if uvicorn or msgspec is missing (extra `server`).
    """

    def __init__(
        self,
        app_or_store: ASGIApp | Store | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        max_connections: int | None = None,
        request_timeout: float = 20.0,
        stall_timeout: float = 60.0,
        **options: Unpack[AppOptions],
    ) -> None:
        if max_connections is not None and max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, or None for no limit, got {max_connections!r}")
        for name, value in (("request_timeout", request_timeout), ("stall_timeout", stall_timeout)):
            if not value > 0:
                raise ValueError(f"{name} must be greater than 0, got {value!r}")
        self.app: ASGIApp
        if app_or_store is not None and callable(app_or_store):
            allowed = set() if isinstance(app_or_store, DurableStreamsApp) else {"root"}
            if surplus := options.keys() - allowed:
                raise TypeError(f"{', '.join(sorted(surplus))}: options belong to the application, which is finished")
            self.app = app_or_store
        else:
            self.app = DurableStreamsApp(app_or_store, **options)
        self._root = options.get("root", "").rstrip("/")
        if isinstance(self.app, DurableStreamsApp):
            self._root = self.app.root
        self._host = host
        self._port = port
        self._max_connections = max_connections
        self._watchman = Watchman(request_timeout, stall_timeout)
        self._address: tuple[str, int] | None = None
        self._thread: threading.Thread | None = None
        self._ended: Future[None] = Future()
        self._runner: Runner | None = None

    @property
    def base_url(self) -> str:
        """Scheme, host and port: `http://127.0.0.1:4437`.

        Raises:
            RuntimeError: before the server has started.
        """
        if self._address is None:
            raise RuntimeError("the server has no address before it has started")
        host, port = self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def url(self) -> str:
        """`base_url` and the path below which streams live; a stream's URL is this, a slash and its name."""
        return self.base_url + self._root

    def __repr__(self) -> str:
        where = f"at {self.url}" if self._address else f"for {self._host}:{self._port}"
        state = "new" if self._runner is None else "stopped" if self._ended.done() else "running"
        return f"<Server {where}, {state}>"

    def __enter__(self) -> Self:
        started: Future[None] = Future()
        runner = self._prepare(started, own_signals=False)
        name = f"durable-streams server {self.base_url}"
        self._thread = threading.Thread(target=self._run, args=(runner,), name=name, daemon=True)
        self._thread.start()
        try:
            started.result()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()
        if error is None:
            self._ended.result()

    async def __aenter__(self) -> Self:
        return await anyio.to_thread.run_sync(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.__exit__, kind, error, traceback)

    def serve_forever(self, on_start: Callable[[], None] | None = None) -> None:
        """Serve in this thread until SIGINT or SIGTERM, or until `stop` is called from elsewhere.

        Signals are handled if this is the main thread: the first ends the server properly (see
        `DurableStreamsApp.begin_shutdown`), a second one at once. Former handlers are put back.

        Args:
            on_start: Called once the server accepts connections; what it raises ends the server and comes out here.

        Raises:
            OSError: if the address cannot be listened on; the message names it.
        """
        started: Future[None] = Future()
        failures: list[BaseException] = []

        def tell(future: Future[None]) -> None:
            if on_start is not None and future.exception() is None:
                try:
                    on_start()
                except BaseException as error:  # raised below, where the caller is
                    failures.append(error)
                    self.stop()

        started.add_done_callback(tell)
        self._run(self._prepare(started, own_signals=threading.current_thread() is threading.main_thread()))
        for failure in failures:
            raise failure
        self._ended.result()

    def stop(self) -> None:
        """Ask the server to end, from any thread, without waiting for it. Idempotent."""
        if self._runner is not None:
            self._runner.stop_soon()

    def _prepare(self, started: Future[None], *, own_signals: bool) -> Runner:
        """Listen, and make the runner that will serve."""
        if self._runner is not None:
            raise RuntimeError("a Server runs once; make a new one")
        try:
            from ._uvicorn import Runner
        except ModuleNotFoundError as error:
            if error.name != "uvicorn":
                raise
            raise ModuleNotFoundError(
                "Server needs uvicorn: pip install 'durable-streams-anyio[server]'", name="uvicorn"
            ) from None
        listener = _listen(self._host, self._port)
        host, port = listener.getsockname()[:2]
        self._address = (_ANY_ADDRESS.get(host, host), port)
        self._runner = Runner(
            self.app,
            listener,
            started,
            watchman=self._watchman,
            max_connections=self._max_connections,
            own_signals=own_signals,
        )
        return self._runner

    def _run(self, runner: Runner) -> None:
        try:
            runner.run_here()
        except BaseException as error:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    def _stop(self) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: if there can be none; the message names the address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {reason}") from error
    listener.setblocking(False)
    return listener
