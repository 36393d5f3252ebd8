"""HTTP/2 connections by origin: reuse, limits, retirement.

`open` takes the connection with the fewest free places that has one, so that connections empty and can go. Where none
has, it dials: in the caller's own task, within the caller's own limit of time. Callers who come while somebody dials
wait for that connection, as long as it may be expected to have a place for them; if it fails, they fail with it, and if
its caller is cancelled, one of them dials instead.

A connection takes no new streams any more once the server says GOAWAY, its identifiers are used up, it was retired
(reconnect advice, S2 4.6), or it has stopped giving signs of life. It is closed when its last stream is released; an
idle one after `idle_timeout`. One task, the caretaker, waits for both.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

import anyio
import anyio.abc
from anyio.lowlevel import RunVar

from ..._transport.base import Timeouts
from ...errors import InvalidArgumentError
from ..errors import S2ConnectionError, S2SessionClosedError, S2TimeoutError
from .connection import WINDOW, Connection
from .driver import H2Connection
from .duplex import Duplex
from .frames import FrameError
from .wire import Wire, connect_tcp, default_context

__all__ = ["DEFAULT_TIMEOUTS", "Duplex", "H2Pool"]

#: Limits of a stream: a session has its own for silence and acknowledgements.
DEFAULT_TIMEOUTS: Final = Timeouts(connect=3.0, write=None, read=None)
#: How many places a connection is expected to have, before its server has told (S2 1.3).
_EXPECTED_STREAMS = 100
_run: RunVar[object] = RunVar("durable_streams_s2_run")
_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """What a connection is good for."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host, and port unless it is the scheme's own, as a request names them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


@dataclass(eq=False)
class _Dial:
    """A connection that somebody is making.

    Attributes:
        places: How many more may wait for it.
        scope: Ends it when the pool is closed.
        error: Why it failed; None if it did not, or its caller was cancelled.
    """

    places: int
    over: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    error: S2ConnectionError | None = None


@dataclass(eq=False)
class _Site:
    """Connections to one origin."""

    connections: list[H2Connection] = field(default_factory=list)
    dials: list[_Dial] = field(default_factory=list)


class H2Pool:
    """HTTP/2 connections to any number of origins.

    Tasks read the connections: use `async with`, or `start` in a task group of your own.

    Args:
        ssl_context: For https; None trusts the system's certificate authorities. Its ALPN list is replaced.
        window: Receive window of each stream and each connection, in bytes: the most that one slow reader makes the
            process hold.
        idle_timeout: Seconds after which a connection without streams is closed.
    """

    def __init__(
        self, *, ssl_context: ssl.SSLContext | None = None, window: int = WINDOW, idle_timeout: float = 90.0
    ) -> None:
        self._ssl_context = ssl_context
        self._window = window
        self._idle_timeout = idle_timeout
        self._sites: dict[Origin, _Site] = {}
        self._task_group: Any = None
        self._own_group: anyio.abc.TaskGroup | None = None
        self._closed = False
        self._run: object = None
        self._care: anyio.CancelScope | None = None
        self._changed: anyio.Event | None = None

    def __repr__(self) -> str:
        if self._closed:
            return "<H2Pool closed>"
        connections = [connection for site in self._sites.values() for connection in site.connections]
        streams = sum(connection.streams for connection in connections)
        return f"<H2Pool {len(connections)} connections, {streams} streams>"

    # -- Life ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        group = anyio.create_task_group()
        await group.__aenter__()
        self._own_group = group
        try:
            await self.start(group)
        except BaseException:
            await self._leave_group()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.aclose()
        finally:
            await self._leave_group()

    async def _leave_group(self) -> None:
        group, self._own_group = self._own_group, None
        if group is not None:
            group.cancel_scope.cancel()
            # Not with the body's exception: it goes on bare, not wrapped in an ExceptionGroup.
            await group.__aexit__(None, None, None)

    async def start(self, task_group: Any) -> None:
        """Use the caller's task group or nursery, instead of `async with`; end with `aclose`.

        Args:
            task_group: Anything with `start_soon`: an anyio task group, a trio nursery.

        Raises:
            RuntimeError: it was started before.
        """
        if self._task_group is not None:
            raise RuntimeError("the pool has been started already")
        self._task_group = task_group
        self._run = _current_run()
        self._care = anyio.CancelScope()
        self._changed = anyio.Event()
        task_group.start_soon(self._caretake)

    async def aclose(self) -> None:
        """Close all connections; open streams fail with `S2SessionClosedError`. Quick and idempotent."""
        self._closed = True
        for site in self._sites.values():
            for connection in site.connections:
                connection.shut("the client was closed")
            for dial in site.dials:
                dial.scope.cancel()
        if self._care is not None:
            self._care.cancel()
        self._tell()

    # -- Streams -------------------------------------------------------------------------------------------

    async def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        body: bool = False,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> Duplex:
        """Begin a request on a connection that has room for it, or on a new one.

        Args:
            method: HTTP method in capitals.
            url: Absolute http or https URL, already encoded. http means HTTP/2 with prior knowledge.
            headers: Names in lower case.
            body: Whether a body follows, by `Duplex.send`.
            timeouts: `connect` is for getting a connection with room: TCP, TLS and the server's SETTINGS. `read` and
                `write` are for each wait in the stream.

        Raises:
            S2ConnectionError: there is no connection to be had; certainly nothing was sent. `S2TimeoutError` if it
                took too long.
            S2SessionClosedError: the pool was closed.
            InvalidArgumentError: HTTP/2 cannot carry this URL or these headers.
            RuntimeError: the pool was not started, or in another run of an event loop.
        """
        origin, path = _parse(url)
        if self._task_group is None:
            raise RuntimeError("the pool was not started: use `async with`")
        if self._run is not _current_run():
            raise RuntimeError("the connections belong to another run of an event loop")
        connection: H2Connection | None = None
        with anyio.move_on_after(timeouts.connect):
            connection = await self._connection(origin)
        if connection is None:
            raise S2TimeoutError(f"{origin}: no connection within {timeouts.connect:g} s", phase="connect")
        try:
            return connection.open(method, origin.scheme, origin.authority, path, headers, body=body, timeouts=timeouts)
        except ValueError as error:
            raise InvalidArgumentError(f"{origin}: {error}") from error

    def retire(self, duplex: Duplex) -> None:
        """Open no new streams on the connection of this one; those that are open go on."""
        duplex.retire()

    async def _connection(self, origin: Origin) -> H2Connection:
        """A connection with room."""
        while True:
            if self._closed:
                raise S2SessionClosedError(f"{origin}: the client was closed")
            site = self._sites.setdefault(origin, _Site())
            free = [connection for connection in site.connections if connection.room]
            if free:
                return min(free, key=lambda connection: connection.room)
            dial = next((dial for dial in site.dials if dial.places), None)
            if dial is not None:
                dial.places -= 1
                await dial.over.wait()
                if dial.error is not None:
                    raise S2ConnectionError(dial.error.message, phase="connect", refused=dial.error.refused) from (
                        dial.error
                    )
            elif any(connection.alive and not connection.max_streams for connection in site.connections):
                await self._wait_changed()  # it takes no streams for now, and another one would not either
            else:
                await self._dial(origin, site)

    async def _dial(self, origin: Origin, site: _Site) -> None:
        """Add a connection to a site."""
        dial = _Dial(_EXPECTED_STREAMS - 1)
        site.dials.append(dial)
        try:
            with dial.scope:
                site.connections.append(await self._connect(origin))
        except S2ConnectionError as error:
            dial.error = error
            raise
        finally:
            site.dials.remove(dial)
            dial.over.set()

    async def _connect(self, origin: Origin) -> H2Connection:
        wire: Wire | None = None
        try:
            wire = await connect_tcp(origin.host, origin.port)
            if origin.scheme == "https":
                await self._start_tls(wire, origin)
            connection = H2Connection(wire, Connection(window=self._window), str(origin), self._tell)
            await connection.settle()
            if self._closed:
                raise S2SessionClosedError(f"{origin}: the client was closed")
            try:
                self._task_group.start_soon(connection.run)
            except RuntimeError as error:
                raise S2SessionClosedError(f"{origin}: the pool's task group has ended") from error
        except BaseException as error:
            if wire is not None:
                wire.close()
            if isinstance(error, OSError | FrameError):
                raise _failure(origin, error) from error
            raise
        return connection

    async def _start_tls(self, wire: Wire, origin: Origin) -> None:
        if self._ssl_context is None:
            self._ssl_context = await default_context()
        protocol = await wire.wrap(self._ssl_context, origin.host)
        if protocol != "h2":
            raise S2ConnectionError(
                f"{origin}: the server does not offer HTTP/2 (ALPN chose {protocol or 'nothing'}): "
                'use transport="http"',
                phase="connect",
                retryable=False,
            )

    # -- Care ----------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Something changed that somebody may wait for."""
        if self._changed is not None:
            self._changed.set()

    async def _wait_changed(self) -> None:
        if self._changed is None or self._changed.is_set():
            self._changed = anyio.Event()
        await self._changed.wait()

    async def _caretake(self) -> None:
        """Close what is idle or silent for too long, and forget what is over."""
        assert self._care is not None, "set by start"
        try:
            with self._care:
                while True:
                    due = self._sweep(anyio.current_time())
                    with anyio.CancelScope(deadline=due):
                        await self._wait_changed()
        finally:
            await self.aclose()

    def _sweep(self, now: float) -> float:
        """Do what is due.

        Returns:
            When something will be due, if nothing changes.
        """
        due = math.inf
        for origin, site in list(self._sites.items()):
            for connection in list(site.connections):
                if connection.probe_until <= now:
                    connection.give_up()
                elif connection.idle_since + self._idle_timeout <= now:
                    connection.shut("it was idle")
                if not connection.alive and not connection.streams:
                    site.connections.remove(connection)
                else:
                    due = min(due, connection.probe_until, connection.idle_since + self._idle_timeout)
            if not site.connections and not site.dials:
                del self._sites[origin]
        return due


def _current_run() -> object:
    """An object that is the same for all that runs in one run of one event loop."""
    try:
        return _run.get()
    except LookupError:
        run = object()
        _run.set(run)
        return run


def _parse(url: str) -> tuple[Origin, str]:
    """The origin of a URL, and path and query."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidArgumentError(f"url is not a URL ({error}): {url[:100]!r}") from error
    if not url.isascii() or parts.scheme not in _PORTS or not parts.hostname:
        raise InvalidArgumentError(f"url must be an encoded http or https URL, got {url[:100]!r}")
    path = parts.path or "/"
    if parts.query:
        path = f"{path}?{parts.query}"
    return Origin(parts.scheme, parts.hostname, port or _PORTS[parts.scheme]), path


def _failure(origin: Origin, error: OSError | FrameError) -> S2ConnectionError:
    """What to say when there is no connection. Nothing was sent yet, whatever happened."""
    if isinstance(error, FrameError):
        return S2ConnectionError(f"{origin}: the server does not speak HTTP/2: {error}", phase="connect")
    if isinstance(error, ssl.SSLCertVerificationError):
        words = f"the server's certificate is not accepted ({error.verify_message})"
        return S2ConnectionError(f"{origin}: {words}", phase="connect", retryable=False)
    if isinstance(error, ssl.SSLError):
        return S2ConnectionError(f"{origin}: TLS failed, perhaps it is not a TLS port ({error})", phase="connect")
    refused = isinstance(error, ConnectionRefusedError)
    return S2ConnectionError(f"{origin}: cannot connect ({error})", phase="connect", refused=refused)
