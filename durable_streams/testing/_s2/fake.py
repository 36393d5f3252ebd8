"""The server: listener, connections, and what tests see of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

import anyio
import anyio.abc
import anyio.lowlevel

from ...s2._values import SequencedRecord, StreamPosition
from .call import S2Behaviour
from .configs import read_basin_config, read_stream_config
from .exchange import GONE, Exchange, S2Request, Wiring
from .faults import S2FaultKind, S2Faults
from .http1 import Http1Connection
from .http2 import Http2Connection
from .routes import serve
from .store import Basin, Store, check_basin_name, check_stream_name

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class S2Fake:
    """An S2 server in memory that fails when it is told to.

    It speaks HTTP/1.1 and cleartext HTTP/2 on one port, and behaves as `s2 lite` does: unary calls in JSON and
    protobuf, SSE, s2s sessions, basins, streams and their configurations, conditions, commands, encryption by key.
    What it does not have, as `s2 lite` has not: access tokens, locations and metrics (501), and checks of the token.

        async with S2Fake() as fake:
            fake.add_basin("my-basin-01")
            fake.faults.script([S2Fault("cut_after", "append_session")])
            s2 = S2("token", endpoints=fake.url)

    Its data live as long as the object: `stop` and `listen` again restart it on the same port.

    Args:
        seed: Of everything that is random.
        rates: Chance of random faults, by kind; see `S2Fault`.
        clock: Milliseconds since the epoch; arrival times come from it.
        max_streams: Streams that a client may have open on one HTTP/2 connection.
        window: Flow-control window of a stream and of a connection, in bytes; at least 65,535 for the latter.
        max_frame_size: Largest HTTP/2 frame that it takes.

    Attributes:
        faults: What goes wrong: `script`, `log`, `pending`, `clear`.
        behaviour: Delays of acknowledgements, heartbeats, compression, splitting: change it at any time.
        requests: All requests, in order.
        url: `http://127.0.0.1:port`; "" before it listens.
        accepted: Connections accepted so far.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        rates: Mapping[S2FaultKind, float] | None = None,
        clock: Callable[[], int] | None = None,
        max_streams: int = 200,
        window: int = 1 << 20,
        max_frame_size: int = 16_384,
    ) -> None:
        self.faults: S2Faults = S2Faults(rates, seed)
        self.behaviour: S2Behaviour = S2Behaviour()
        self.requests: list[S2Request] = []
        self.url: str = ""
        self.accepted: int = 0
        self._store = Store(clock or _milliseconds)
        self._wiring = Wiring(self._handle, self._next_number, self.requests, max_streams, window, max_frame_size)
        self._connections: set[Http1Connection | Http2Connection] = set()
        self._changed = anyio.Event()
        self._port = 0
        self._listening: anyio.CancelScope | None = None

    def __repr__(self) -> str:
        return f"<S2Fake at {self.url or 'no port'}: {len(self.requests)} requests, {self.open} connections>"

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        await self.listen()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    # Listening

    async def listen(self) -> None:
        """Accept connections: on a free port the first time, on the same one ever after."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self._port, reuse_port=False)
        self._port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - anyio's, not Django's
        self.url = f"http://127.0.0.1:{self._port}"
        self.behaviour.draining = False
        self.behaviour.drained = anyio.Event()
        await self._tasks.start(self._accept, listener)

    async def _accept(
        self, listener: anyio.abc.Listener[anyio.abc.SocketStream], *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        with anyio.CancelScope() as self._listening:
            try:
                task_status.started()
                await listener.serve(self._serve, self._tasks)
            finally:
                with anyio.CancelScope(shield=True):
                    await listener.aclose()
                self._notify()

    async def stop(self, *, graceful: bool = False) -> None:
        """Refuse new connections, and end those that are open.

        Args:
            graceful: As `s2 lite` does on SIGTERM: each connection is told GOAWAY, and its sessions go on. `cut` ends
                them.
        """
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
            await anyio.lowlevel.checkpoint()
        if not graceful:
            await self.cut()
            return
        for connection in list(self._connections):
            if isinstance(connection, Http2Connection):
                await connection.retire()
            else:
                connection.drain()

    async def cut(self) -> None:
        """End all connections at once."""
        for connection in list(self._connections):
            connection.scope.cancel()
        while self._connections:
            await self._changed.wait()

    def drain(self) -> None:
        """Refuse everything with 503 `server_draining`; sessions end with it after what they have taken."""
        self.behaviour.draining = True
        self.behaviour.drained.set()

    async def change_settings(self, values: Mapping[int, int]) -> None:
        """Send HTTP/2 SETTINGS on all connections, for instance a smaller initial window (name 4)."""
        for connection in list(self._connections):
            if isinstance(connection, Http2Connection):
                await connection.change_settings(values)

    # Looking in

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    async def wait_open(self, count: int) -> None:
        """Wait until exactly so many connections are open."""
        while self.open != count:
            await self._changed.wait()

    async def wait_requests(self, count: int, operation: str = "") -> None:
        """Wait until there were so many requests of an operation; "" counts all."""
        while sum(operation in ("", request.operation) for request in self.requests) < count:
            await self._changed.wait()

    def add_basin(self, name: str, config: Mapping[str, object] | None = None, *, streams: Iterable[str] = ()) -> None:
        """Create a basin, with streams, without any request."""
        check_basin_name(name, "bad_path")
        basin = Basin(name, read_basin_config(dict(config or {})), self._store.now())
        self._store.basins[name] = basin
        for stream in streams:
            self.add_stream(name, stream)

    def add_stream(self, basin: str, name: str, config: Mapping[str, object] | None = None) -> None:
        """Create a stream without any request."""
        check_stream_name(name, "bad_path")
        self._store.basin(basin).add(name, read_stream_config(dict(config or {})), self._store.now())

    def records(self, basin: str, stream: str) -> Sequence[SequencedRecord]:
        """All records that a stream has."""
        return tuple(self._store.stream(basin, stream).records)

    def tail(self, basin: str, stream: str) -> StreamPosition:
        """A stream's tail."""
        return self._store.stream(basin, stream).tail

    def fencing_token(self, basin: str, stream: str) -> str:
        """A stream's fencing token."""
        return self._store.stream(basin, stream).fencing_token

    def sweep(self) -> None:
        """Remove basins and streams that were deleted; until then they answer "deletion pending"."""
        self._store.sweep()

    # Serving

    def _next_number(self) -> int:
        return len(self.requests) + 1

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def _handle(self, exchange: Exchange) -> None:
        await serve(exchange, self._store, self.behaviour, self.faults, self._notify)

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        self.accepted += 1
        number = self.accepted
        connection: Http1Connection | Http2Connection | None = None
        try:
            first = b""
            while len(first) < len(_PREFACE) and _PREFACE.startswith(first):
                first += await stream.receive()
            kind = Http2Connection if first.startswith(_PREFACE) else Http1Connection
            connection = kind(stream, first, number, self._wiring)
            self._connections.add(connection)
            self._notify()
            await connection.run()
        except GONE:
            return
        finally:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
            if connection is not None:
                self._connections.discard(connection)
            self._notify()


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
