"""The read session without I/O: what is asked for, what is handed over, and where a new connection goes on.

Theory of operation
-------------------

A session is one read, over as many connections as it takes. What makes it so is one number, `next_seq`: the record that
has to come next. Records set it, and so does a heartbeat before the first record, as it says where the tail is. Every
request after that begins there, and nowhere else: no timestamp, no offset from the tail, and no clamping, which would
silently enter a stream that was deleted and made again (S2 5.5).

Limits count what has come, command records that are hidden included. A limit that is used up ends the session: no
request with `count=0` is made.

`wait` is a budget of silence. The server counts it from the last live batch, or from the moment at which the reader
went live; heartbeats do not renew it. `_quiet_since` is that moment. A new connection gets what is left, rounded down
to seconds. If records come on it, the whole budget is due again, but the server only knows the rest: where it ends the
session for that reason, the session is continued.

A bounded read that was cut just when it reached the tail asks for a record that does not exist, and gets 416. If the
tail stands exactly there, everything was delivered, and that is the regular end. If the tail stands before, the stream
has lost records: that is an error.

Numbers are checked: what comes twice is dropped, and a hole - records were trimmed - is reported as a `Gap`.

The reader has *caught up* when a heartbeat says so, or a batch that ends at the tail it carries; but only once that
batch was handed over. A new connection has not caught up until it hears so again.

    state    next                                          left by
    -------  --------------------------------------------  ---------------------------------------
    IDLE     `Connect`                                     `on_open`, `on_failure`
    OPEN     `Deliver` if a batch is ready, else `Receive`  `on_batch`... `on_end`, `on_failure`
    PAUSED   `Sleep`                                       its time
    ENDED    `Deliver` what is ready, then `End`
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from ._append_core import ADVICE_INTERVAL, End, Sleep
from ._patience import Patience
from ._reading import ReadOptions
from ._retry import Attempts, S2Retry
from ._values import ReadBatch, SeqNum, SequencedRecord, StreamPosition
from .errors import RangeNotSatisfiableError, S2Error, S2ProtocolError

State = Enum("State", "IDLE OPEN PAUSED ENDED")


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that will not come: they were trimmed before they were read.

    Attributes:
        expected: Sequence number that was next.
        found: Sequence number that came instead.
    """

    expected: int
    found: int


@dataclass(frozen=True, slots=True)
class Connect:
    """Make a connection with this request.

    Attributes:
        options: What to ask for: start, limits and budget as they are now.
        resume: Last record, records and metered bytes so far, for servers that subtract them from the limits of the
            first request (`Last-Event-ID`); None if no record has come.
    """

    options: ReadOptions
    resume: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Receive:
    """Take the next batch from the connection."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand this over, and report `on_taken`."""

    batch: ReadBatch


Command = Connect | Receive | Deliver | Sleep | End


class ReadCore:
    """Protocol state of one read session.

    Args:
        options: What is read.
        retry: How failures are repeated.
        unlimited: Whether to repeat without end.

    Attributes:
        next_seq: Number of the record that has to come next; None as long as it is not known.
        position: Where the consumer stands: after the last record that was handed over, or hidden. None at first.
        tail: The tail as the server last told it, or None.
        caught_up: Whether the consumer has everything there was when the server last told the tail.
        state: See the table of this module.
        failure: What ended the session, or None.
        records: Records so far, hidden ones included.
        bytes: Their metered bytes, if there is a limit of bytes; else 0.
        gaps: Holes that are not reported yet.
        leaving: The server advised to leave the connection that was open last.
    """

    def __init__(self, options: ReadOptions, retry: S2Retry, *, unlimited: bool = False) -> None:
        self._options = options
        self._attempts = Attempts(retry, unlimited=unlimited)
        self._patience = Patience(retry)
        self.next_seq: int | None = None
        self.position: StreamPosition | None = None
        self.tail: StreamPosition | None = None
        self.caught_up = False
        self.state = State.IDLE
        self.failure: S2Error | None = None
        self.records = 0
        self.bytes = 0
        self.gaps: list[Gap] = []
        self.leaving = False
        self._ready: ReadBatch | None = None
        self._ready_position: StreamPosition | None = None
        self._ready_catches_up = False
        self._quiet_since: float | None = None
        self._asked_wait: int | None = None
        self._may_follow = False
        self._heard = False  # anything on the present connection
        self._advised: float | None = None
        self._sleep: Sleep | None = None

    # -- Facts ---------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a batch waits for the consumer."""
        return self._ready is not None

    @property
    def used_up(self) -> bool:
        """Whether a limit is reached."""
        options = self._options
        return (options.count is not None and self.records >= options.count) or (
            options.bytes is not None and self.bytes >= options.bytes
        )

    @property
    def _bounded(self) -> bool:
        options = self._options
        return options.count is not None or options.bytes is not None or options.until is not None

    def _wait_left(self, now: float) -> int | None:
        """What is left of the budget of silence, in whole seconds."""
        wait = self._options.wait
        if wait is None or self._quiet_since is None:
            return wait
        return max(wait - math.ceil(now - self._quiet_since), 0)

    # -- What to do ----------------------------------------------------------------------------------------

    def next(self, now: float) -> Command:
        """What to do now; the same answer until something is reported."""
        if self._ready is not None:
            return Deliver(self._ready)
        if self.state is State.ENDED:
            return End(self.failure)
        if self.state is State.OPEN:
            return Receive()
        if self.state is State.PAUSED:
            assert self._sleep is not None, "set with the state"
            if now < self._sleep.until:
                return self._sleep
            self.state = State.IDLE
        if self.used_up:
            self.state = State.ENDED
            return End()
        return self._connect(now)

    def _connect(self, now: float) -> Connect:
        options = self._options
        wait = self._asked_wait = self._wait_left(now)
        self._may_follow = not self._bounded if wait is None else wait > 0 or not self._bounded
        resume = None
        if self.next_seq is not None:
            options = replace(
                options,
                start=SeqNum(self.next_seq),
                clamp=False,
                wait=wait,
                count=None if options.count is None else options.count - self.records,
                bytes=None if options.bytes is None else options.bytes - self.bytes,
            )
            if self.records:
                resume = (self.next_seq - 1, self.records, self.bytes)
        return Connect(options, resume)

    # -- What happened -------------------------------------------------------------------------------------

    def on_open(self) -> None:
        """The server has accepted the request of a `Connect`."""
        if self.state is not State.ENDED:
            self.state = State.OPEN
            self._heard = False

    def on_batch(self, batch: ReadBatch, now: float, *, advised: bool = False) -> None:
        """A batch or a heartbeat has come.

        Raises:
            S2ProtocolError: if its numbers cannot be right. Report it with `on_failure`.
        """
        records, tail = batch.records, batch.tail
        if self.state is not State.OPEN or (not records and tail is None):
            return
        if records:
            if records[-1].seq_num - records[0].seq_num + 1 != len(records):
                raise S2ProtocolError(
                    f"a batch of {len(records)} records goes from {records[0].seq_num} to {records[-1].seq_num}"
                )
            records = self._fit(batch)
        self._attempts.progress()
        self._patience.progress()
        self._heard = True
        if tail is not None:
            self.tail = tail
        if records:
            self._quiet_since = None if tail is None else now
            self._queue(batch if len(records) == len(batch.records) else ReadBatch(records, tail))
        elif tail is not None and (not batch.records or tail.seq_num == self.next_seq):
            self._on_tail(tail, now)
        if self.used_up:
            self.state = State.ENDED
        elif advised and (self._advised is None or now - self._advised >= ADVICE_INTERVAL):
            self._advised = now
            self.leaving = True
            self._lose_connection()

    def _fit(self, batch: ReadBatch) -> tuple[SequencedRecord, ...]:
        """The records without those that had come before, and without what goes beyond a limit."""
        records, options = batch.records, self._options
        first = records[0].seq_num
        if self.next_seq is not None and first < self.next_seq:
            records = records[self.next_seq - first :]
        if options.count is not None and self.records + len(records) > options.count:
            records = records[: options.count - self.records]
        if options.bytes is not None:
            size = self.bytes
            for index, record in enumerate(records):
                size += record.metered_bytes
                if size > options.bytes:
                    self.state = State.ENDED
                    return records[:index]
        return records

    def _queue(self, batch: ReadBatch) -> None:
        """Count records, and keep what the consumer gets of them."""
        records, options = batch.records, self._options
        first, last = records[0], records[-1]
        expected = self.next_seq
        if expected is None and isinstance(options.start, SeqNum):
            expected = options.start.value
        if expected is not None and first.seq_num > expected:
            self.gaps.append(Gap(expected, first.seq_num))
        self.next_seq = last.seq_num + 1
        self.records += len(records)
        if options.bytes is not None:
            self.bytes += batch.metered_bytes
        position = StreamPosition(self.next_seq, last.timestamp)
        catches_up = batch.tail is not None and self.next_seq == batch.tail.seq_num
        if options.ignore_command_records and any(record.is_command for record in records):
            batch = ReadBatch(tuple(record for record in records if not record.is_command), batch.tail)
        if batch.records:
            self._ready, self._ready_position, self._ready_catches_up = batch, position, catches_up
        else:
            self.position, self.caught_up = position, catches_up

    def _on_tail(self, tail: StreamPosition, now: float) -> None:
        """A heartbeat: the server has sent everything there is."""
        if self.next_seq is None:
            self.next_seq = tail.seq_num
            self.position = tail
        if self._quiet_since is None:
            self._quiet_since = now
        self.caught_up = True

    def on_taken(self) -> None:
        """The ready batch is with the consumer."""
        if self._ready is not None:
            self._ready = None
            self.position, self.caught_up = self._ready_position, self._ready_catches_up

    def on_abandoned(self) -> None:
        """The connection was dropped on our side, in the middle of something: it is made again."""
        if self.state is State.OPEN:
            self._lose_connection()

    def _lose_connection(self) -> None:
        self.state = State.IDLE
        self.caught_up = self._ready_catches_up = False

    def on_end(self, now: float) -> None:
        """The server has ended the session, without an error."""
        if self.state is not State.OPEN:
            return
        wait, left = self._options.wait, self._wait_left(now)
        shortened = wait is not None and self._asked_wait is not None and self._asked_wait < wait
        if shortened and self._heard and self._quiet_since is not None and left and not self.used_up:
            self._lose_connection()
            return
        self.state = State.ENDED

    def on_failure(self, error: S2Error, now: float, draw: float, *, leaving: bool = False) -> None:
        """The connection could not be made, broke, or was ended by the server with an error.

        Args:
            error: What happened.
            now: The time.
            draw: Uniform number in [0, 1).
            leaving: Whether the server had said farewell before, see `_patience`.
        """
        if self.state is State.ENDED:
            return
        error.definite = True  # Reading has no effect.
        self._lose_connection()
        at_tail = (
            isinstance(error, RangeNotSatisfiableError)
            and error.tail is not None
            and error.tail.seq_num == self.next_seq
            and not self._may_follow
        )
        if self.used_up or at_tail:
            self.state = State.ENDED
            return
        if leaving:
            self._patience.farewell(now)
        if (spared := self._patience.delay(error, now, draw)) is not None:
            self._sleep = Sleep(now + spared, error, 0)
            self.state = State.PAUSED
            return
        delay = self._attempts.fail(error, draw, effect_possible=False)
        error.attempts = max(self._attempts.failures, 1)
        if delay is None:
            self.failure = error
            self.state = State.ENDED
            return
        self._sleep = Sleep(now + delay, error, self._attempts.failures)
        self.state = State.PAUSED

    def close(self) -> None:
        """End the session now; a batch that is ready is dropped."""
        self.state = State.ENDED
        self._ready = None
