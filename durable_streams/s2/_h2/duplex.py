"""One request and its answer, as something to await.

Its methods wait for events and decide in plain code after waking up, so that cancelling one of them loses nothing:
bytes are taken from the queue and counted in the same step in which they are returned. Only a `send` that is cancelled
has sent an unknown part.

What goes wrong is told to each stream as a `Fault` and becomes an exception where somebody asks. A fault comes after
the bytes that were received before it: a server's last words are heard even if it hangs up right behind them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import anyio

from ..._transport.base import Timeouts
from ...errors import BusyResourceError, Phase
from ..errors import S2ConnectionError, S2SessionClosedError, S2TimeoutError
from .connection import Stream
from .events import Head
from .rope import Rope

if TYPE_CHECKING:
    from .driver import H2Connection

#: Small pieces of a body are handed out together, up to so many bytes.
JOINED: Final = 64 << 10


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
        self._pieces: deque[bytes | memoryview] = deque()
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

    async def receive(self) -> bytes | memoryview:
        """The next piece of the body, of any size; b"" when it is complete. A large one is a view, made for joining.

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

    async def send(self, *pieces: bytes) -> None:
        """Send a part of the body; returns when all of it is on its way, as far as windows and socket allow.

        Cancelled while it waits, it has sent an unknown part: the request cannot be continued then.

        Args:
            pieces: What to send, in order. Kept, not copied, until it is written.

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
            rest = Rope(pieces)
            self._check_sendable()
            while rest:
                if not self._connection.send(self._stream, rest):
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

    def on_data(self, data: bytes | memoryview, *, end: bool) -> None:
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
