"""uvicorn, with the manners of a guest: see `runner`. Imported only when a server starts."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import uvicorn

from ._connection import Connection
from .connections import Watchman
from .http import DurableStreamsApp
from .requests import Receive, Scope, Send
from .responses import Headers

#: Seconds that an idle connection is kept: longer than clients keep theirs, so that they never meet a closing one.
KEEP_ALIVE = 75
#: Seconds that open answers get to end when the server stops.
GRACE = 5.0

_TICK = 0.5
_POLL = 0.005


class Config(uvicorn.Config):
    """uvicorn's settings, and ours.

    Attributes:
        max_connections: How many there may be; None for any number.
        refused: Those too many that are not gone yet.
        direct: The application if it is ours, which is not served by ASGI's messages then.
    """

    max_connections: int | None = None
    direct: DurableStreamsApp | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.refused: set[asyncio.Transport] = set()
        self._prefix: tuple[Headers, Headers, bytes] = ([], [], b"")

    def prefix(self, default: Headers, common: Headers) -> bytes:
        """These headers as lines. They are mostly the same lists, and so is the result."""
        known_default, known_common, lines = self._prefix
        if known_default is not default or known_common is not common:
            lines = b"".join([b"%b: %b\r\n" % header for header in (*default, *common)])
            self._prefix = (default, common, lines)
        return lines

    def configure_logging(self) -> None:
        """Leave the program's logging as it is."""


class Runner(uvicorn.Server):
    """One uvicorn server on one listening socket.

    Args:
        app: The ASGI application. If it has `begin_shutdown`, that is called before connections are closed.
        listener: A listening socket; closed in the end.
        started: Resolved when requests are accepted, or with the reason why that will not be.
        watchman: Ends connections that stand still.
        max_connections: How many there may be; None for any number.
        own_signals: Whether SIGINT and SIGTERM stop the server.
    """

    def __init__(
        self,
        app: Any,
        listener: socket.socket,
        started: Future[None],
        *,
        watchman: Watchman,
        max_connections: int | None,
        own_signals: bool,
    ) -> None:
        config = Config(
            self._serve_app,
            http=Connection,
            ws="none",
            interface="asgi3",
            lifespan="auto",
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
        )
        config.max_connections = max_connections
        config.direct = app if isinstance(app, DurableStreamsApp) else None
        super().__init__(config)
        self._refused = config.refused
        self._watchman = watchman
        self._look_at = 0.0
        self._app = app
        self._listener = listener
        self._started = started
        self._own_signals = own_signals
        self._start_error: Exception | None = None
        self._end_error: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exit = asyncio.Event()
        self._lock = threading.Lock()
        self._stop_requested = False

    def run_here(self) -> None:
        """Serve in this thread until `stop_soon`.

        Raises:
            Exception: what the application raised when it started, or what broke the event loop.
        """
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self.serve(sockets=[self._listener]))
            if self._end_error is not None:
                raise self._end_error
        except SystemExit as error:  # uvicorn's way to say that the application did not start
            failure = self._start_error or RuntimeError("the application did not start")
            self._fail(failure)
            raise failure from error
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._listener.close()

    def stop_soon(self) -> None:
        """Ask the server to end; callable from any thread."""
        with self._lock:
            self._stop_requested = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        begin_shutdown = getattr(self._app, "begin_shutdown", None)
        if begin_shutdown is not None:
            begin_shutdown()
        self.should_exit = True
        self._exit.set()

    def _fail(self, error: BaseException) -> None:
        if not self._started.done():
            self._started.set_exception(error)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve; called by `run_here`."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
            if self._stop_requested:
                self._stop()
        try:
            await super().serve(sockets)
        finally:
            with self._lock:
                self._loop = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and listen."""
        await super().startup(sockets)
        self._started.set_result(None)

    async def main_loop(self) -> None:
        """Keep uvicorn's clock ticking until the end, and notice the end at once."""
        counter = 0
        while not await self.on_tick(counter):
            counter += 10  # uvicorn renews the Date header every tenth tick
            try:
                await asyncio.wait_for(self._exit.wait(), _TICK)
            except TimeoutError:
                continue

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections. Returns whether the server is to end."""
        now = asyncio.get_running_loop().time()
        if now >= self._look_at:
            self._look_at = now + self._watchman.interval
            self._watchman.look(cast("Any", self.server_state.connections), now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close everything: idle connections now, busy ones after their answer, what is left after `GRACE` by force."""
        self._stop()
        for server in self.servers:
            server.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        await self._wait_for_answers()
        for task in list(state.tasks):
            task.cancel()
        for refused in list(self._refused):
            refused.abort()
        for connection in list(state.connections):
            cast("Any", connection).transport.abort()
        self.force_exit = False
        await self._wait_for_answers()
        await self.lifespan.shutdown()

    async def _wait_for_answers(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GRACE
        state = self.server_state
        while (state.connections or state.tasks or self._refused) and not self.force_exit:
            if loop.time() > deadline:
                return
            await asyncio.sleep(_POLL)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals if they are ours, and put the former handlers back."""
        if not self._own_signals:
            yield
            return
        former = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: end properly; a second one: end now."""
        self.force_exit = self._stop_requested
        loop = self._loop  # not `stop_soon`: a signal may come while this thread holds the lock
        self._stop_requested = True
        if loop is not None:
            loop.call_soon_threadsafe(self._stop)

    async def _serve_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application; errors of its start and end are kept, to be raised where the server is started and ended."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            if self._started.done():
                self._end_error = error
                self._stop()
            else:
                self._start_error = error
            raise


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop, if it is there."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop
