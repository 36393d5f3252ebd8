"""A connection that lives: `Connection` and `Wire` together, on anyio.

Two tasks belong to each connection, both in the pool's task group. One reads, and hands what comes to the streams. One
finishes writes that the socket did not take at once; otherwise whoever has something to send writes it, there and then.
So nothing is written by a task that a user can cancel half-way: a write either happens or does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import anyio

from ..._transport.base import Timeouts
from .connection import Connection, Stream
from .duplex import Duplex, Fault
from .events import Event, Failed, Farewell, Head, Ready, Room
from .frames import Data, FrameError, code_name
from .rope import Rope
from .wire import Wire

#: An abandoned stream makes its connection suspect if nothing was heard for so many seconds...
QUIET: Final = 1.0
#: ...and it is dropped if a PING is not answered within so many.
PROBE: Final = 5.0
#: When nothing can be written any more, what the server said before is waited for so many seconds.
LAST_WORDS: Final = 1.0


class H2Connection:
    """One connection and its streams.

    Args:
        wire: Connected.
        core: Fresh.
        name: Of the peer, for messages.
        changed: Called when there is room again, or the connection is over or idle.

    Attributes:
        retired: Whether no new streams are wanted here.
        farewell: What the server said with GOAWAY, in words to append to others; "" before.
        idle_since: When the last stream was released; infinite while there are streams.
        probe_until: When the connection is dropped unless something is heard; infinite if it is not suspect.
    """

    def __init__(self, wire: Wire, core: Connection, name: str, changed: Callable[[], None]) -> None:
        self._wire = wire
        self._core = core
        self._name = name
        self._changed = changed
        self._streams: dict[int, Duplex] = {}
        self._waiting: set[Duplex] = set()
        self._write = anyio.Event()
        self._scope = anyio.CancelScope()
        self._fault: Fault | None = None
        self._mute: OSError | None = None  # why nothing can be written any more
        self.farewell = ""
        self._heard = anyio.current_time()
        self.retired = False
        self.idle_since = self._heard
        self.probe_until = math.inf

    def __repr__(self) -> str:
        state = "closed" if self._fault else "retired" if self.retired else "open"
        return f"<H2Connection {self._name}: {state}, {len(self._streams)} streams>"

    # -- Streams -------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether new streams may ever be opened here."""
        return self._fault is None and self._mute is None and not self.retired and self._core.usable

    @property
    def room(self) -> int:
        """How many streams may be opened now."""
        return self._core.room if self.alive and self.probe_until == math.inf else 0

    @property
    def max_streams(self) -> int:
        """How many streams the server allows at a time."""
        return self._core.max_streams

    @property
    def streams(self) -> int:
        """How many streams are in use."""
        return len(self._streams)

    def open(
        self,
        method: str,
        scheme: str,
        authority: str,
        path: str,
        headers: Mapping[str, str],
        *,
        body: bool,
        timeouts: Timeouts,
    ) -> Duplex:
        """Begin a request; there must be room.

        Raises:
            ValueError: HTTP/2 cannot carry these headers.
        """
        stream = self._core.open(method, scheme, authority, path, headers, body=body)
        name = f"{method} {scheme}://{authority}{path.partition('?')[0]}"
        duplex = self._streams[stream.id] = Duplex(self, stream, name, timeouts)
        self.idle_since = math.inf
        self._flush()
        return duplex

    def send(self, stream: Stream, data: bytes | memoryview | Rope) -> int:
        """Send what the windows allow, nothing while the socket takes no more; see `Connection.send`."""
        if self._wire.blocked or self._fault is not None or self._mute is not None:
            return 0
        sent = self._core.send(stream, data)
        if sent:
            self._flush()
        return sent

    def finish(self, stream: Stream) -> None:
        """End a request's body."""
        if self._fault is None:
            self._core.finish(stream)
            self._flush()

    def consumed(self, stream: Stream, length: int) -> None:
        """Bytes of an answer were taken."""
        if self._fault is None:
            self._core.consumed(stream, length)
            if self._core.unsent:
                self._flush()

    def wants_room(self, duplex: Duplex) -> None:
        """Tell a stream once when it is worth trying to send again."""
        self._waiting.add(duplex)

    def release(self, stream: Stream) -> None:
        """A stream is not needed any more: reset it unless it is over."""
        duplex = self._streams.pop(stream.id, None)
        if duplex is None:
            return
        self._waiting.discard(duplex)
        if self._fault is None:
            abandoned = stream.remote_open
            self._core.reset(stream)
            if abandoned:
                self._probe()
            self._flush()
        if not self._streams:
            self.idle_since = anyio.current_time()
            if not self.alive:
                self.shut("it is not needed any more")
        self._changed()

    def _probe(self) -> None:
        """Ask for a sign of life where a stream was given up in silence: the peer may have gone without a word."""
        now = anyio.current_time()
        if now - self._heard > QUIET and self.probe_until == math.inf:
            self._core.ping(b"are you?")
            self.probe_until = now + PROBE

    def retire(self) -> None:
        """Open no new streams here; close when the last is released."""
        self.retired = True
        if not self._streams:
            self.shut("it was retired")
        self._changed()

    # -- Running -------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Say hello and wait for the peer's first SETTINGS: the end of connecting.

        Raises:
            OSError: the connection broke.
            FrameError: the peer does not speak HTTP/2.
        """
        self._flush()
        while self._fault is None and not self._core.ready:
            if self._mute is not None:
                raise self._mute
            if self._wire.blocked:
                await self._wire.wait_writable()
                self._wire.flush()
            await self._read_once()
        if self._fault is not None:
            raise OSError(self._fault.reason) from self._fault.cause

    async def run(self) -> None:
        """Read and write until the connection is over. Never raises, apart from cancellation."""
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._write_loop)
                    await self._read_loop()
                    group.cancel_scope.cancel()
        finally:
            self._fail(Fault("the client was closed", closed=True))
            self._wire.close()

    async def _read_loop(self) -> None:
        try:
            while self._fault is None:
                await self._read_once()
        except FrameError as error:
            self._flush()  # GOAWAY
            self._fail(Fault(f"the server broke HTTP/2: {error}", cause=error))
        except OSError as error:
            self._fail(Fault(f"the connection broke ({error})", cause=error))

    async def _read_once(self) -> None:
        await self._wire.wait_readable()
        data = self._wire.read()
        if data:
            self._heard = now = anyio.current_time()
            if self.probe_until != math.inf and self._mute is None:
                self.probe_until = math.inf
                self._changed()
            self._dispatch(self._core.receive(data, now))
            if self._core.unsent:
                self._flush()
        elif data is not None:
            self._fail(Fault(f"the server closed the connection{self.farewell}"))

    async def _write_loop(self) -> None:
        while True:
            await self._write.wait()
            self._write = anyio.Event()
            while self._wire.blocked:
                await self._wire.wait_writable()
                try:
                    self._wire.flush()
                except OSError as error:
                    self._fall_mute(error)
                    return
                self._flush()

    def _flush(self) -> None:
        """Write what is to be written, as far as the socket takes it; the write loop does the rest."""
        wire, core = self._wire, self._core
        if self._mute is not None:
            return
        try:
            while core.unsent and not wire.blocked:
                wire.write(core.take())
        except OSError as error:
            self._fall_mute(error)
            return
        if wire.blocked:
            self._write.set()
        elif self._waiting:
            self._tell_room()

    def _fall_mute(self, error: OSError) -> None:
        """Nothing can be written any more. What the server said before is still to be read, and soon ends."""
        self._mute = error
        self.probe_until = anyio.current_time() + LAST_WORDS
        self._changed()

    def _tell_room(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for duplex in waiting:
            duplex.on_room()

    def _dispatch(self, events: list[Event]) -> None:
        streams = self._streams
        for event in events:
            match event:
                case Data():
                    duplex = streams.get(event.stream_id)
                    if duplex is not None:
                        duplex.on_data(event.data, end=event.end_stream)
                case Head():
                    duplex = streams.get(event.stream_id)
                    if duplex is not None:
                        duplex.on_head(event)
                case Room():
                    if event.stream_id:
                        duplex = streams.get(event.stream_id)
                        if duplex is not None:
                            duplex.on_room()
                    else:
                        self._tell_room()
                case Failed():
                    duplex = streams.get(event.stream_id)
                    if duplex is not None:
                        duplex.on_fault(Fault(event.reason, event.refused))
                case Farewell():
                    self._on_farewell(event)
                case Ready():
                    self._changed()

    def _on_farewell(self, event: Farewell) -> None:
        words = event.debug.decode("utf-8", "replace")[:200]
        self.farewell = f" after GOAWAY ({code_name(event.code)}{': ' if words else ''}{words})"
        if not self._streams:
            self.shut("the server is leaving")
        self._changed()

    # -- The end -------------------------------------------------------------------------------------------

    def shut(self, reason: str) -> None:
        """Close the connection now; what is still open fails."""
        if self._fault is None:
            self._core.close()
            self._flush()
            self._fail(Fault(reason, closed=True))

    def give_up(self) -> None:
        """Close the connection now because its time for a sign of life is over; what is still open fails."""
        error = self._mute
        reason = "the server gives no sign of life" if error is None else f"the connection broke ({error})"
        self._fail(Fault(reason, cause=error))

    def _fail(self, fault: Fault) -> None:
        if self._fault is not None:
            return
        self._fault = fault
        self._scope.cancel()
        for duplex in list(self._streams.values()):
            duplex.on_fault(fault)
        self._changed()
