"""A connection that lives: `Connection` and `Wire` together, and its streams as something to await.

Two tasks belong to each connection, both in the pool's task group. One reads, and hands what comes to the streams. One
finishes writes that the socket did not take at once; otherwise whoever has something to send writes it, there and then.
So nothing is written by a task that a user can cancel half-way: a write either happens or does not.

A stream's methods wait for events and decide in plain code after waking up, so that cancelling one of them loses
nothing: bytes are taken from the queue and counted in the same step in which they are returned. Only a `send` that is
cancelled has sent an unknown part.

What goes wrong is told to each stream as a `Fault` and becomes an exception where somebody asks. A fault comes after
the bytes that were received before it: a server's last words are heard even if it hangs up right behind them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import anyio

from ..._transport.base import Timeouts
from ...errors import BusyResourceError, Phase
from ..errors import S2ConnectionError, S2SessionClosedError, S2TimeoutError
from .connection import Connection, Event, Failed, Farewell, Head, Ready, Room, Stream
from .frames import Data, FrameError, code_name
from .wire import Wire

#: Small pieces of a body are handed out together, up to so many bytes.
JOINED: Final = 64 << 10
#: An abandoned stream makes its connection suspect if nothing was heard for so many seconds...
QUIET: Final = 1.0
#: ...and it is dropped if a PING is not answered within so many.
PROBE: Final = 5.0
#: When nothing can be written any more, what the server said before is waited for so many seconds.
LAST_WORDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a stream or connection is over.

    Attributes:
        reason: In words.
        refused: Whether the peer certainly did not act.
        closed: Whether it was closed from this side, on purpose.
        cause: The exception behind it.
    """

    reason: str
    refused: bool = False
    closed: bool = False
    cause: BaseException | None = None


class Duplex:
    """One request and its answer, both at once: made by `H2Pool.open`.

    One task may send while another receives. `aclose` ends it at any time; it is quick and never waits for the peer.

    Attributes:
        sent_any: Whether any byte of the body left this client. May be set to False by whoever knows that all those
            bytes are settled.
    """

    __slots__ = (
        "_closed",
        "_connection",
        "_ended",
        "_fault",
        "_head",
        "_name",
        "_pieces",
        "_readable",
        "_receiving",
        "_sending",
        "_size",
        "_stream",
        "_timeouts",
        "_writable",
    )

    def __init__(self, connection: H2Connection, stream: Stream, name: str, timeouts: Timeouts) -> None:
        self._connection = connection
        self._stream = stream
        self._name = name
        self._timeouts = timeouts
        self._head: Head | None = None
        self._pieces: deque[bytes] = deque()
        self._size = 0  # bytes in the pieces
        self._fault: Fault | None = None
        self._closed = self._ended = False
        self._sending = self._receiving = False
        # Exist while somebody waits.
        self._readable: anyio.Event | None = None
        self._writable: anyio.Event | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "failed" if self._fault else "open"
        return f"<Duplex {self._name}: {state}, {self._size} bytes unread>"

    @property
    def sent_any(self) -> bool:
        """Whether any byte of the body left this client."""
        return self._stream.body_left

    @sent_any.setter
    def sent_any(self, value: bool) -> None:
        self._stream.body_left = value

    @property
    def leaving(self) -> bool:
        """Whether the server has said GOAWAY: this stream goes on for now, but will be cut some time."""
        return bool(self._connection.farewell)

    # -- The answer ----------------------------------------------------------------------------------------

    async def head(self) -> tuple[int, Mapping[str, str]]:
        """Status and headers (names in lower case) of the answer, when they have come. May be called again.

        Raises:
            S2ConnectionError: the stream or connection broke before. `S2TimeoutError` after `Timeouts.read` seconds.
            S2SessionClosedError: it was closed from this side.
        """
        while self._head is None:
            self._raise_fault()
            await self._wait_readable()
        return self._head.status, self._head.headers

    async def receive(self) -> bytes:
        """The next piece of the body, of any size; b"" when it is complete.

        What has come is given at once, and may be received even after a fault. Taking it lets the server send more.

        Raises:
            S2ConnectionError: the stream or connection broke, and everything before that was received. `S2TimeoutError`
                after `Timeouts.read` seconds of silence.
            S2SessionClosedError: it was closed from this side.
            BusyResourceError: another task is receiving.
        """
        if self._receiving:
            raise BusyResourceError("two tasks receive from one HTTP/2 stream")
        self._receiving = True
        try:
            while not self._pieces:
                if self._ended and not self._closed:
                    return b""
                self._raise_fault()
                await self._wait_readable()
        finally:
            self._receiving = False
        pieces = self._pieces
        if len(pieces) == 1 or self._size > JOINED:
            piece = pieces.popleft()
        else:
            piece = b"".join(pieces)
            pieces.clear()
        self._size -= len(piece)
        self._connection.consumed(self._stream, len(piece))
        return piece

    # -- The request ---------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send a part of the body; returns when all of it is on its way, as far as windows and socket allow.

        Cancelled while it waits, it has sent an unknown part: the request cannot be continued then.

        Args:
            data: Kept, not copied, until it is written.

        Raises:
            S2ConnectionError: the stream or connection broke, or the server ended the exchange: what it said before
                can be received. `S2TimeoutError` if nothing of it could be sent for `Timeouts.write` seconds.
            S2SessionClosedError: it was closed, or finished, from this side.
            BusyResourceError: another task is sending.
        """
        if self._sending:
            raise BusyResourceError("two tasks send on one HTTP/2 stream")
        self._sending = True
        try:
            rest: bytes | memoryview = data
            self._check_sendable()
            while rest:
                sent = self._connection.send(self._stream, rest)
                if sent == len(rest):
                    return
                if sent:
                    rest = memoryview(rest)[sent:]
                else:
                    await self._wait_writable()
                    self._check_sendable()
        finally:
            self._sending = False

    async def finish(self) -> None:
        """End the request's body. Does nothing if it has ended.

        Raises:
            S2ConnectionError: the stream or connection broke before.
            S2SessionClosedError: it was closed from this side.
        """
        if self._closed or not self._ended:
            self._raise_fault()
        self._connection.finish(self._stream)

    def _check_sendable(self) -> None:
        self._raise_fault()
        if self._ended:
            # It could still read the rest of the request; but nothing would come of it any more.
            raise S2ConnectionError(f"{self._name}: the server ended the exchange", phase="body")
        if not self._stream.local_open:
            raise S2SessionClosedError(f"{self._name}: the request was finished")

    # -- Life ----------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Give up what is not complete, and release the stream. Idempotent; never waits."""
        self.close()

    def close(self) -> None:
        """The same, for those who cannot await."""
        if not self._closed:
            self._closed = True
            self._pieces.clear()
            self._size = 0
            self._connection.release(self._stream)
            self._wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def retire(self) -> None:
        """Open no new streams on this one's connection; those that are open go on."""
        self._connection.retire()

    # -- What the connection tells -------------------------------------------------------------------------

    def on_head(self, head: Head) -> None:
        """The head of the answer has come."""
        self._head = head
        self.on_data(b"", end=head.end_stream)

    def on_data(self, data: bytes, *, end: bool) -> None:
        """A piece of the body has come, perhaps the last."""
        if data:
            self._pieces.append(data)
            self._size += len(data)
        self._wake_reader()
        if end:
            self._ended = True
            self.on_room()

    def on_room(self) -> None:
        """It is worth trying to send again."""
        event, self._writable = self._writable, None
        if event is not None:
            event.set()

    def on_fault(self, fault: Fault) -> None:
        """The stream is over. If the answer was complete before, only the rest of the request is lost."""
        if self._fault is None:
            self._fault = fault
            self._wake()

    def _wake_reader(self) -> None:
        event, self._readable = self._readable, None
        if event is not None:
            event.set()

    def _wake(self) -> None:
        self._wake_reader()
        self.on_room()

    # -- Waiting and failing -------------------------------------------------------------------------------

    async def _wait_readable(self) -> None:
        if self._readable is None:
            self._readable = anyio.Event()
        await self._wait(self._readable, self._timeouts.read, "the server was silent")

    async def _wait_writable(self) -> None:
        if self._writable is None:
            self._writable = anyio.Event()
        self._connection.wants_room(self)
        await self._wait(self._writable, self._timeouts.write, "the server took nothing")

    async def _wait(self, event: anyio.Event, limit: float | None, what: str) -> None:
        if limit is None:
            await event.wait()
            return
        with anyio.move_on_after(limit):
            await event.wait()
        if not event.is_set():
            raise S2TimeoutError(f"{self._name}: {what} for {limit:g} s", phase=self._phase)

    @property
    def _phase(self) -> Phase:
        if self._head is not None:
            return "body"
        return "sent" if self._stream.head_left else "connect"

    def _raise_fault(self) -> None:
        """Raise what ended this, if anything did."""
        fault = self._fault
        if self._closed or (fault is not None and fault.closed):
            reason = "it was closed" if fault is None else fault.reason
            raise S2SessionClosedError(f"{self._name}: {reason}") from (fault.cause if fault else None)
        if fault is not None:
            refused = fault.refused or not self._stream.head_left
            raise S2ConnectionError(
                f"{self._name}: {fault.reason}", phase=self._phase, refused=refused
            ) from fault.cause


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

    def send(self, stream: Stream, data: bytes | memoryview) -> int:
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
