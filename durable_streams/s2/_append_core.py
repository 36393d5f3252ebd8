"""The append session without I/O: what is written when, what acknowledgements mean, and what a failure leads to.

Theory of operation
-------------------

Batches stand in one line, `pending`, in the order in which they were accepted. The first `in_flight` of them have been
handed to the present connection; the rest waits. An acknowledgement takes the first one off. A new connection begins
with nothing in flight, so that everything that was not acknowledged is written again, in its old order and before
anything new. That is all there is to recovery: a batch can be stored twice, but never before one that was accepted
earlier (S2 5.4).

Only the first batch in flight has a deadline that counts, and it has one only from the moment its bytes were gone:
neither a wait for room nor a closed window makes a batch late.

What is known about a batch whose acknowledgement never came is kept with it: `uncertain` says that some connection may
have stored it. It decides about `definite` of the error that the batch gets in the end, whatever the last try said.
Under the policy "no_side_effects" nothing that is uncertain is written again (S2 5.3).

A batch with `match_seq_num` cannot be stored twice, but its repetition fails for its own success. With `read_back` the
session looks, before it gives up, at what stands at that place: the batch itself is as good as acknowledged; another
one proves that it was not stored, and never will be.

Connections are made when there is something to write. A loss while nothing is pending is no failure, only the end of a
connection. Advice to move (S2 4.6) is followed once a minute: finish what is in flight, then continue elsewhere. A
farewell (HTTP/2's GOAWAY) is followed in the same way, at any time, once the connection has been of use: whoever stays
until it is cut has batches in doubt. See `_patience` for what comes then.

    state      next                                       left by
    ---------  -----------------------------------------  ----------------------------------------------
    IDLE       `Open` if something is pending; `Wait`     `on_open`, `on_failure`
    OPEN       `Write`; `HalfClose` when closing/moving   `on_ack`... `on_end`, `on_failure`, `on_late`
    FINISHING  `Wait` for the rest and for the end        the same
    PAUSED     `Sleep`                                    its time
    CHECKING   `ReadBack`                                 `on_read_back`
    ENDED      `End`

A driver carries the commands out and reports. `now` is a monotonic time, `draw` a uniform number in [0, 1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from .._core.fresh import fresh
from ._outgoing import Outgoing
from ._patience import Patience
from ._retry import AppendRetryPolicy, Attempts, S2Retry, may_retry
from ._values import AppendAck, AppendInput
from .errors import (
    S2ConnectionError,
    S2Error,
    S2ProtocolError,
    S2SessionClosedError,
    S2TimeoutError,
)

T = TypeVar("T")

#: Seconds in which advice to reconnect is followed at most once (S2 4.6).
ADVICE_INTERVAL = 60.0
#: Bytes that one `Write` gathers: small frames go out together (S2 4.8).
WRITE_BYTES = 256 * 1024

State = Enum("State", "IDLE OPEN FINISHING PAUSED CHECKING ENDED")


class Entry(Generic[T]):
    """A batch on its way.

    Args:
        batch: What is appended.
        frame: The same, encoded for the wire, in pieces.
        promise: The driver's; told how it ended.
        keep: Whether to keep the batch. A session with large batches of small records has tens of thousands of them in
            flight, which cost memory and work of the garbage collector; the frame has all their bytes.

    Attributes:
        count: Records of the batch.
        size: Their metered bytes.
        match_seq_num: Its condition, or None.
        due: When its acknowledgement is late; None until it is written.
        written: When it was handed to the present connection.
        uncertain: A connection may have stored it without saying so.
    """

    __slots__ = ("_batch", "count", "due", "frame", "match_seq_num", "promise", "size", "uncertain", "written")

    def __init__(self, batch: Outgoing, frame: tuple[bytes, ...], promise: T, *, keep: bool = True) -> None:
        self._batch = batch if keep else None
        self.count = batch.count
        self.size = batch.metered_bytes
        self.match_seq_num = batch.match_seq_num
        self.frame = frame
        self.promise = promise
        self.due: float | None = None
        self.written = 0.0
        self.uncertain = False

    @property
    def frame_size(self) -> int:
        """Bytes of the frame."""
        return sum(map(len, self.frame))

    @property
    def batch(self) -> AppendInput:
        """What is appended, if it was kept."""
        assert self._batch is not None, "not kept"
        return self._batch.batch


@dataclass(frozen=True, slots=True)
class Open:
    """Make a connection."""


@dataclass(frozen=True, slots=True)
class Write(Generic[T]):
    """Write these, in order. They count as begun; report `on_written`."""

    entries: tuple[Entry[T], ...]


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Say that nothing more will be written. Counts as begun; report `on_half_closed`."""


@dataclass(frozen=True, slots=True)
class ReadBack(Generic[T]):
    """Read what stands where this batch was to go, and report `on_read_back`."""

    entry: Entry[T]


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait until this time because of this failure, the n-th in a row (0: one that is not counted); ask again."""

    until: float
    error: S2Error
    failures: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something is accepted or reported."""


@dataclass(frozen=True, slots=True)
class End:
    """The session is over; with this error if there is one."""

    error: Exception | None = None


Command = Open | Write[T] | HalfClose | ReadBack[T] | Sleep | Wait | End


class AppendCore(Generic[T]):
    """Protocol state of one append session.

    Args:
        retry: How failures are repeated, and which.
        ack_timeout: Seconds that an acknowledgement may take.
        max_bytes: Most metered bytes that are accepted and not acknowledged.
        max_batches: Most batches of these, or None.
        pipelined: Whether a batch may be written before the one ahead of it is acknowledged.
        read_back: Whether to look for an uncertain batch with `match_seq_num` before giving up.
        reject: Called with each promise that will not be kept, and the error.

    Attributes:
        pending: Accepted and not acknowledged, oldest first.
        in_flight: How many of these were handed to the present connection.
        pending_bytes: Their metered bytes.
        state: See the table of this module.
        closing: Nothing more is accepted; the rest is finished.
        failure: What ended the session, or None.
        last_ack: The last acknowledgement.
    """

    def __init__(
        self,
        retry: S2Retry,
        *,
        ack_timeout: float,
        max_bytes: int,
        max_batches: int | None,
        reject: Callable[[T, Exception], None],
        pipelined: bool = True,
        read_back: bool = False,
    ) -> None:
        self.policy: AppendRetryPolicy = retry.append_retry_policy
        self.ack_timeout = ack_timeout
        self.max_bytes = max_bytes
        self.max_batches = max_batches
        self.pending: deque[Entry[T]] = deque()
        self.in_flight = 0
        self.pending_bytes = 0
        self.state = State.IDLE
        self.closing = False
        self.failure: Exception | None = None
        self.last_ack: AppendAck | None = None
        self._attempts = Attempts(retry, policy=self.policy)
        self._patience = Patience(retry)
        self._pipelined = pipelined
        self._read_back = read_back
        self._reject = reject
        self._moving = False
        self._advised: float | None = None
        self._half_closed: float | None = None
        self._last_end: int | None = None  # of the present connection
        self._sleep: Sleep | None = None
        self._doubt: S2Error | None = None  # what the session fails with unless reading back helps
        self._checked = 0  # batches that reading back has found in a row

    # -- Facts ---------------------------------------------------------------------------------------------

    def has_room(self, size: int) -> bool:
        """Whether a batch of so many metered bytes is accepted now. Into an empty session every batch fits."""
        if not self.pending:
            return True
        if self.max_batches is not None and len(self.pending) >= self.max_batches:
            return False
        return self.pending_bytes + size <= self.max_bytes

    @property
    def deadline(self) -> float | None:
        """When the present connection is late: with the first batch in flight, or with the end after `HalfClose`."""
        if self.in_flight:
            return self.pending[0].due
        return None if self._half_closed is None else self._half_closed + self.ack_timeout

    def refusal(self) -> Exception | None:
        """What a new batch is refused with, or None."""
        if self.failure is not None:
            return fresh(self.failure, maybe_applied=False)
        return S2SessionClosedError("the append session was closed") if self.closing else None

    # -- What to do ----------------------------------------------------------------------------------------

    def accept(self, entry: Entry[T]) -> None:
        """Put a batch at the end of the line. Ask `refusal` and `has_room` before."""
        self.pending.append(entry)
        self.pending_bytes += entry.size

    def close(self) -> None:
        """Accept nothing more, and end when everything is acknowledged."""
        self.closing = True

    def next(self, now: float) -> Command[T]:
        """What to do now."""
        match self.state:
            case State.ENDED:
                return End(self.failure)
            case State.OPEN:
                return self._next_open(now)
            case State.FINISHING:
                return Wait()
            case State.CHECKING:
                return ReadBack(self.pending[0])
            case State.PAUSED:
                assert self._sleep is not None
                if now < self._sleep.until:
                    return self._sleep
                self.state = State.IDLE
        if self.pending:
            return Open()
        if self.closing:
            self.state = State.ENDED
            return End()
        return Wait()

    def _next_open(self, now: float) -> Command[T]:
        if not self._moving and self.in_flight < len(self.pending):
            if self._pipelined or not self.in_flight:
                return Write(self._gather(now))
            return Wait()
        if self._moving or (self.closing and (self._pipelined or not self.pending)):
            self.state = State.FINISHING
            return HalfClose()
        return Wait()

    def _gather(self, now: float) -> tuple[Entry[T], ...]:
        entries: list[Entry[T]] = []
        size = 0
        for index in range(self.in_flight, len(self.pending)):
            entry = self.pending[index]
            size += entry.frame_size
            if entries and (size > WRITE_BYTES or not self._pipelined):
                break
            entry.written, entry.due = now, None
            entries.append(entry)
        self.in_flight += len(entries)
        return tuple(entries)

    # -- What happened -------------------------------------------------------------------------------------

    def on_open(self) -> None:
        """There is a connection. Its answer need not have begun."""
        if self.state is State.ENDED:
            return
        self.state = State.OPEN
        self.in_flight = 0
        self._moving = False
        self._half_closed = None
        self._last_end = None

    def on_written(self, entries: tuple[Entry[T], ...], now: float) -> None:
        """The bytes of a `Write` are on their way: from now on the acknowledgements may be waited for."""
        for entry in entries:
            entry.due = now + self.ack_timeout

    def on_half_closed(self, now: float) -> None:
        """The end of what we write is on its way."""
        self._half_closed = now

    def on_ack(self, ack: AppendAck) -> Entry[T]:
        """An acknowledgement has come; returns what it is for.

        Raises:
            S2ProtocolError: if it cannot be right (S2 4.4). Report it with `on_failure`.
        """
        if not self.in_flight:
            raise S2ProtocolError("an acknowledgement came while nothing was in flight", definite=False)
        entry = self.pending[0]
        count, end = entry.count, ack.end.seq_num
        if ack.count != count:
            raise S2ProtocolError(
                f"an acknowledgement is for {ack.count} records, the batch has {count}", definite=False
            )
        if self._last_end is not None and ack.start.seq_num < self._last_end:
            raise S2ProtocolError(
                f"an acknowledgement begins at {ack.start.seq_num}, the one before it ended at {self._last_end}",
                definite=False,
            )
        if ack.tail.seq_num < end:
            raise S2ProtocolError(
                f"an acknowledgement ends at {end}, beyond its tail {ack.tail.seq_num}", definite=False
            )
        self._last_end = end
        self.in_flight -= 1
        self._settle(ack)
        return entry

    def _settle(self, ack: AppendAck) -> Entry[T]:
        entry = self.pending.popleft()
        self.pending_bytes -= entry.size
        self.last_ack = ack
        self._attempts.progress()
        if not self._moving:
            self._patience.progress()
        return entry

    def on_advice(self, now: float) -> bool:
        """The server advises to reconnect. True: it is followed; open no new streams on this connection."""
        if self.state is not State.OPEN or self._moving:
            return False
        if self._advised is not None and now - self._advised < ADVICE_INTERVAL:
            return False
        self._advised = now
        self._moving = True
        return True

    def on_farewell(self, now: float) -> bool:
        """The server will close this connection. True: the session leaves it."""
        if self.state is not State.OPEN or self._moving or self._last_end is None:
            return False
        self._patience.farewell(now)
        self._moving = True
        return True

    def on_end(self, now: float, draw: float, *, sent: bool) -> None:
        """The answer has ended, without an error.

        Args:
            now: The time.
            draw: Uniform number in [0, 1).
            sent: Whether bytes of what is in flight may have left this machine.
        """
        if self.in_flight or (self.state is State.OPEN and not self._moving):
            error = S2ConnectionError(
                f"the server ended the session early, with {self.in_flight} batches in flight", phase="body"
            )
            self.on_failure(error, now, draw, sent=sent)
        elif self.state is not State.ENDED:
            self.state = State.IDLE
            self._moving = False

    def on_late(self, now: float, draw: float) -> None:
        """The `deadline` has passed."""
        if not self.in_flight:
            self.on_end(now, draw, sent=False)
            return
        error = S2TimeoutError(f"no acknowledgement came within {self.ack_timeout:g} s", phase="sent")
        self.on_failure(error, now, draw, sent=True)

    def on_failure(self, error: S2Error, now: float, draw: float, *, sent: bool) -> None:
        """The connection could not be made, broke, or was ended by the server with an error.

        Args:
            error: What happened.
            now: The time.
            draw: Uniform number in [0, 1).
            sent: Whether bytes of what is in flight may have left this machine.
        """
        if self.state is State.ENDED:
            return
        effect_possible = sent and self.in_flight > 0
        if effect_possible and (not error.definite or isinstance(error, S2ProtocolError)):
            for _, entry in zip(range(self.in_flight), self.pending, strict=False):
                entry.uncertain = True
        moving, self._moving = self._moving, False
        self.in_flight = 0
        if not self.pending and error.retryable:
            self.state = State.IDLE  # Nobody waits for anything: the next batch makes a new connection.
            return
        if moving and may_retry(error, self.policy, effect_possible=effect_possible):
            self.state = State.IDLE  # On our way to another server, which costs no attempt.
            return
        if not effect_possible and (spared := self._patience.delay(error, now, draw)) is not None:
            self._sleep = Sleep(now + spared, error, 0)
            self.state = State.PAUSED
            return
        delay = self._attempts.fail(error, draw, effect_possible=effect_possible)
        error.attempts = max(self._attempts.failures, 1)
        if delay is not None:
            self._sleep = Sleep(now + delay, error, self._attempts.failures)
            self.state = State.PAUSED
        elif self._can_check() and not isinstance(error, S2ProtocolError):
            self._doubt = error
            self._checked = 0
            self.state = State.CHECKING
        else:
            self.fail(error)

    def _can_check(self) -> bool:
        """Whether reading back can tell if the first batch is stored."""
        if not self._read_back or not self.pending:
            return False
        return self.pending[0].uncertain and self.pending[0].match_seq_num is not None

    def on_read_back(self, ack: AppendAck | None, *, stored: bool | None) -> Entry[T] | None:
        """What reading back has told about the batch of a `ReadBack`.

        Args:
            ack: Its acknowledgement as it would have been, if it is stored.
            stored: True: it is. False: another one stands there, so that it never will be. None: not known.

        Returns:
            The batch, if it is stored; then the session goes on.
        """
        if self.state is not State.CHECKING:
            return None
        entry, doubt = self.pending[0], self._doubt
        assert doubt is not None, "set with the state"
        if not stored or ack is None:
            entry.uncertain = stored is None
            if self._checked and self.policy == "all":
                self.state = State.IDLE  # The batch that was in doubt is there; this one is for the server to judge.
            else:
                self.fail(doubt)
            return None
        self._settle(ack)
        self._checked += 1
        if not self._can_check():
            if self.policy != "all" and self.pending and self.pending[0].uncertain:
                self.fail(doubt)
            else:
                self.state = State.IDLE
        return entry

    def fail(self, error: Exception) -> None:
        """End the session: everything pending fails with this error."""
        if self.state is State.ENDED:
            return
        self.state = State.ENDED
        entries = list(self.pending)
        self.pending.clear()
        self.pending_bytes = self.in_flight = 0
        if isinstance(error, S2Error):
            self.failure = fresh(error, maybe_applied=any(entry.uncertain for entry in entries))
        else:
            self.failure = error
        for entry in entries:
            wrapped = error
            if isinstance(error, S2Error):
                wrapped = fresh(error, maybe_applied=entry.uncertain)
            self._reject(entry.promise, wrapped)

    def abort(self, reason: str) -> None:
        """End the session now. What was handed to the connection may still be stored."""
        for _, entry in zip(range(self.in_flight), self.pending, strict=False):
            entry.uncertain = True
        self.fail(S2SessionClosedError(reason))
