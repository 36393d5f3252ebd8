"""The idempotent producer without I/O: what is sent when, and what the answers mean.

Theory of operation
-------------------

A batch is *open* while messages are added, *sealed* when it is full or its time has come, *dispatched* when it gets its
stamp (epoch, seq) and is sent. From then on the stamp and the bytes stay together: every further try sends the same.
Numbers are given at dispatch, in order, so that a batch that waits reserves none.

Up to `max_in_flight` batches are dispatched and unresolved at a time. Their answers come in any order, and a later
batch may overtake an earlier one on its way. The server then refuses it (a *gap*), and it is sent again as soon as the
ones before it are resolved: an ordinary event, no failure. It narrows the window of batches under way for a while, see
`window`.

An acknowledgement confirms everything that was sent before it in the same epoch, since the server accepts no gap: a
batch whose own answer was lost needs no further try then.

The *gate*: while no batch of an epoch has been acknowledged, and the epoch is new to the server, only one is sent. A
second one that arrived first would be refused as malformed (a new epoch begins with 0), and several at once would race
for a claim.

A *claim* takes the producer over from a newer epoch. It is made once for all batches: dispatching stops, the answers
under way come back, and what is left unresolved is renumbered from 0 in its old order under the new epoch. Letting
each batch retry on its own would let two of them claim the same number, and lose one. A batch that was stored under the
old epoch, but whose answer was lost, is stored a second time by this: deduplication ends with the epoch. The server
answers "duplicate" to the first batch of an epoch that somebody else has used; where claiming is allowed this counts
as being fenced, because the batch would be lost otherwise.

Failure is final (*fail-stop*): after a batch that cannot be sent, any later one would be a gap. The session keeps what
was not acknowledged; `restart(resend=True)` puts it back into the queue under a new epoch.

    meaning of the answer     the batch                                       the session
    ------------------------  ----------------------------------------------  ------------------------------
    `STORED`                  acknowledged                                    opens the gate
    `STALE`                   parked, if claiming is allowed; else fails      claims / fails
    `GAP`                     waits for ours in the gap, then is sent again   fails if ours do not fill it
    `REFUSED`                 fails                                           fails
    `AGAIN`, no answer        sent again after a pause                        fails at `delivery_timeout`
    `ASK`                     the user is asked                               fails unless the user recovers

The rules are those of the client specification, section 12.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from ..errors import (
    AlreadyClosedError,
    DurableStreamError,
    InvalidArgumentError,
    NetworkError,
    SequenceGapError,
    StaleEpochError,
)
from . import wire
from .batcher import Ack, Batch, Batcher, Promise
from .exchange import Failure, Head
from .fresh import fresh
from .producer_answers import STORED_STATUSES, Meaning, pause_before_retry, read_answer
from .producer_values import (
    Acked,
    Asked,
    Claimed,
    CloseFailed,
    Done,
    Failed,
    Outcome,
    ProducerOptions,
    Retried,
    Send,
    State,
    StreamEnded,
    Wait,
)
from .window import Window

#: Claims in a row, without an acknowledgement between them, before two live writers are assumed to be duelling.
MAX_CLAIMS = 5
#: Ceiling of the pause before the second claim in a row, in seconds; the n-th waits up to n - 1 times as long.
CLAIM_PAUSE = 0.25


class ProducerSession:
    """Protocol state of one producer.

    Attributes:
        batcher: Where messages go in; `add` is its hot path.
        state: What is accepted.
        failure: Why it failed, in `State.FAILED`.
        epoch: Current epoch.
        next_seq: Number of the next batch.
        last_offset: Offset after the highest acknowledged batch whose answer had one.
        stops: How often it has failed or was aborted; those who wait for a batch see by it that it is over.
        stopped_by: With what error it did so last.

    `batcher.needs_poll` is set when a batch opens or is sealed, and by a `poll` after which another lane will find
    something to do as well. Who reports polls anyhow, and who calls `flush`, `close`, `detach`, `resume` or `restart`
    wakes a lane.
    """

    def __init__(self, options: ProducerOptions, make_promise: Callable[[], Promise]) -> None:
        self.options = options
        self.batcher = Batcher(
            json=wire.is_json(options.content_type),
            max_batch_bytes=options.max_batch_bytes,
            max_batch_items=options.max_batch_items,
            max_buffered_bytes=options.max_buffered_bytes,
            max_buffered_messages=options.max_buffered_messages,
            make_promise=make_promise,
        )
        self.state = State.OPEN
        self.failure: Exception | None = None
        self.epoch = options.epoch
        self.next_seq = options.next_seq
        self.last_offset: str | None = None
        self.duplicates = 0
        self.gap_retries = 0
        self.retries = 0
        self.claims = 0
        self.stops = 0
        self.stopped_by: Exception | None = None
        self._last_acked: tuple[int, int] = (-1, -1)
        self._offset_of: tuple[int, int] = (-1, -1)
        self._unresolved: dict[int, Batch] = {}  # dispatched, by number
        self._gate = options.auto_claim or options.epoch > 0
        self._claiming: int | None = None
        self._claims_in_row = 0
        self._claim_due = 0.0
        self._in_flight = 0
        self._window = Window(options.max_in_flight)
        self._saturated = False
        self._flush_to = 0
        self._pause_after = math.inf
        self._closing: Batch | None = None
        self._close_tried: list[bytes] | None = None  # the final message, if any, of a try that may have been applied
        self._undelivered: deque[Batch] = deque()

    # -- Facts ---------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._in_flight

    @property
    def dispatched(self) -> int:
        """Batches that have been sent and are not resolved, whether or not a request is under way."""
        return len(self._unresolved)

    @property
    def done(self) -> bool:
        """Whether nothing will ever be to do again, unless the session is restarted or closed."""
        if self.state in (State.FAILED, State.ABORTED, State.CLOSED):
            return True
        return self.state is not State.OPEN and self._closing is None and self.settled == self.batcher.last_number

    @property
    def settled(self) -> int:
        """All batches up to this number are resolved."""
        if self._unresolved:
            return next(iter(self._unresolved)) - 1
        if self.batcher.sealed:
            return self.batcher.sealed[0].number - 1
        return self.batcher.last_number - (1 if self.batcher.open else 0)

    @property
    def undelivered_messages(self) -> int:
        """Messages of batches that failed."""
        return sum(len(batch.items) for batch in self._undelivered)

    @property
    def gated(self) -> bool:
        """Whether only one batch may be in flight, because the epoch is new to the server."""
        return self._gate

    def unacknowledged(self) -> list[bytes]:
        """Messages that were accepted and are not known to be stored, oldest first."""
        batches = [*self._undelivered, *self._unresolved.values(), *self.batcher.sealed]
        if self.batcher.open is not None:
            batches.append(self.batcher.open)
        return [item for batch in batches for item in batch.items]

    # -- What to do ----------------------------------------------------------------------------------------

    def poll(self, now: float) -> Send | Wait | Done:
        """What a free lane shall do. A `Send` counts as begun: it has to be reported."""
        self.batcher.needs_poll = False
        if self.state in (State.FAILED, State.ABORTED, State.CLOSED):
            return Wait(None) if self._in_flight else Done()
        limit = 1 if self._gate or self._claiming is not None else self._window.size
        if self._in_flight >= limit or self._claiming is not None:
            return Wait(None)
        until = math.inf
        for batch in self._unresolved.values():
            if not batch.in_flight and not batch.asking and not self._must_wait(batch):
                if batch.due <= now:
                    return self._send(batch, now)
                until = min(until, batch.due)
            if self._gate:
                break  # The first of an epoch has to arrive first.
        if len(self._unresolved) < limit:
            due = self._dispatch(now)
            if isinstance(due, Batch):
                return self._send(due, now)
            until = min(until, due)
        if self.settled == self.batcher.last_number:
            if self._closing is not None and math.isinf(self._pause_after):
                return self._send_close(now)
            if self.done:
                return Done()
        self._saturated = False
        return Wait(None if math.isinf(until) else until)

    def _must_wait(self, batch: Batch) -> bool:
        """Whether a batch that met a gap still has to wait for the ones that fill it."""
        if batch.waits_for is None:
            return False
        assert batch.stamp is not None
        epoch, seq = batch.stamp
        for other in self._unresolved.values():
            if other.stamp is not None and other.stamp[0] == epoch and batch.waits_for <= other.stamp[1] < seq:
                return True
        batch.waits_for = None
        return False

    def _dispatch(self, now: float) -> Batch | float:
        """The batch to send next, stamped; or the time when there may be one."""
        batcher = self.batcher
        batch = batcher.open
        if not batcher.sealed and batch is not None:
            if batch.opened is None:  # While all lanes were busy it has waited long enough.
                batch.opened = -math.inf if self._saturated else now
            due = batch.opened + self.options.linger
            if batch.number > self._pause_after:
                return math.inf
            if now < due and batch.number > self._flush_to:
                return due
            batcher.seal()
            batcher.needs_poll = False
        if not batcher.sealed or batcher.sealed[0].number > self._pause_after:
            return math.inf
        batch = batcher.sealed.popleft()
        batch.stamp = (self.epoch, self.next_seq)
        self.next_seq += 1
        self._unresolved[batch.number] = batch
        return batch

    def _send(self, batch: Batch, now: float) -> Send:
        assert batch.stamp is not None
        self._begin(batch, now)
        batcher = self.batcher
        if batcher.sealed or batcher.open is not None or len(self._unresolved) > self._in_flight:
            batcher.needs_poll = True  # Another lane has something to do as well, or to wait for.
        return Send(batch, self.options.request(batch.framed(json=batcher.json), batch.stamp), batch.stamp)

    def _send_close(self, now: float) -> Send | Wait:
        batch = self._closing
        assert batch is not None
        if batch.in_flight or batch.asking:
            return Wait(None)
        if batch.due > now:
            return Wait(batch.due)
        batch.stamp = (self.epoch, self.next_seq)
        self._begin(batch, now)
        body = batch.framed(json=self.batcher.json) if batch.items else b""
        return Send(batch, self.options.request(body, batch.stamp, closes=True), batch.stamp)

    def _begin(self, batch: Batch, now: float) -> None:
        if batch.first_sent is None:
            batch.first_sent = now
        batch.in_flight = True
        self._in_flight += 1
        if self._in_flight >= self._window.size:
            self._saturated = True

    # -- What happened -------------------------------------------------------------------------------------

    def on_reply(self, send: Send, head: Head, body: bytes, now: float, draw: float) -> list[Outcome]:
        """The answer to a `Send` is there."""
        if not self._returned(send):
            stored = head.status in STORED_STATUSES and (head.status != 204 or send.batch.ambiguous)
            if stored and send.batch in self._undelivered:
                # Too late for their promises; but this one and those before it must not be sent again.
                self._undelivered = deque(batch for batch in self._undelivered if batch.number > send.batch.number)
            return self._claimed(now)
        answer = read_answer(self.options, send, head, body, first_of_epoch=self._gate)
        if answer.error is None:
            outcomes = self._acknowledged(send, head)
        elif self._confirmed(send.stamp):
            outcomes = [self._settle(send.batch)]
        else:
            outcomes = self._refused(send, answer.meaning, answer.error, now, draw)
        return outcomes + self._claimed(now)

    def _refused(
        self, send: Send, meaning: Meaning, error: DurableStreamError, now: float, draw: float
    ) -> list[Outcome]:
        match meaning, error:
            case Meaning.STALE, StaleEpochError():
                return self._fenced(send, error, now, draw)
            case Meaning.GAP, SequenceGapError():
                return self._overtaken(send, error)
            case Meaning.AGAIN, _:
                # A gateway's answer can hide that the server did store it, and a 500 can follow on storing.
                send.batch.ambiguous = send.batch.ambiguous or error.status != 429
                return self._try_again(send, error, now, draw)
            case Meaning.ASK, _:
                return [self._ask(send, error)]
        return self._fail(send.batch, error)

    def on_failure(self, send: Send, failure: Failure, now: float, draw: float) -> list[Outcome]:
        """The exchange of a `Send` broke, or a callable of the user raised."""
        if not self._returned(send):
            return self._claimed(now)
        outcomes: list[Outcome]
        if self._confirmed(send.stamp):
            outcomes = [self._settle(send.batch)]
        elif isinstance(failure.error, NetworkError):
            send.batch.ambiguous = send.batch.ambiguous or failure.phase != "connect"
            outcomes = self._try_again(send, failure.error, now, draw)
        else:
            outcomes = [self._ask(send, failure.error)]
        return outcomes + self._claimed(now)

    def on_recover(self, send: Send, error: Exception, retry: bool, *, asked: bool = True) -> list[Outcome]:
        """It is decided about the error of an `Asked`: by the user's `on_error`, unless `asked` is False."""
        batch = send.batch
        batch.asking = False
        batch.asked -= not asked
        if not self._awaited(batch):
            return []  # Everything failed meanwhile, or a later batch's acknowledgement has shown that it is stored.
        if retry:
            batch.failures, batch.first_sent = 0, None
            return []
        return self._fail(batch, error)

    def _returned(self, send: Send) -> bool:
        """Take note that a request is over; False if nobody waits for its batch any more."""
        self._in_flight -= 1
        batch = send.batch
        if batch.stamp != send.stamp:
            return False
        batch.in_flight = False
        return self._awaited(batch)

    def _awaited(self, batch: Batch) -> bool:
        return batch is self._closing or self._unresolved.get(batch.number) is batch

    def _acknowledged(self, send: Send, head: Head) -> list[Outcome]:
        batch = send.batch
        offset = head.headers.get(wire.NEXT_OFFSET) or None
        epoch, seq = send.stamp
        ack = Ack(offset, head.status == 204 and batch is not self._closing, epoch, seq)
        self._last_acked = max(self._last_acked, send.stamp)
        if offset is not None and send.stamp > self._offset_of:
            self._offset_of, self.last_offset = send.stamp, offset
        self._claims_in_row = 0
        self._window.on_acknowledged()
        if epoch == self.epoch:
            self._gate = False
        if batch is self._closing:
            self._closing = None
            self.next_seq += 1
            self.state = State.CLOSED
            self.batcher.refuse(self._closed_error("has closed the stream"))
            batch.promise.resolve(ack)
            return [StreamEnded(head, ack)]
        self.duplicates += ack.duplicate
        return self._confirm(batch, ack)

    def _confirm(self, batch: Batch, ack: Ack) -> list[Outcome]:
        """A batch is stored, and so is all that was sent before it in its epoch: the server accepts no gap.

        Those that are on their way learn their offset from their own answers; the others are done.
        """
        earlier = [
            other
            for other in self._unresolved.values()
            if other is not batch and not other.in_flight and other.stamp is not None and self._confirmed(other.stamp)
        ]
        return [*map(self._settle, earlier), self._settle(batch, ack)]

    def _settle(self, batch: Batch, ack: Ack | None = None) -> Outcome:
        """Resolve a stored batch; without an answer of its own its offset is not known."""
        assert batch.stamp is not None
        ack = ack or Ack(None, False, *batch.stamp)
        del self._unresolved[batch.number]
        self.batcher.release(batch)
        batch.promise.resolve(ack)
        return Acked(batch, ack)

    def _confirmed(self, stamp: tuple[int, int]) -> bool:
        """Whether a later batch of the same epoch has been acknowledged."""
        return stamp[0] == self._last_acked[0] and stamp[1] < self._last_acked[1]

    def _try_again(self, send: Send, error: DurableStreamError, now: float, draw: float) -> list[Outcome]:
        batch = send.batch
        self.retries += 1
        if isinstance(error, NetworkError) and error.reused and error.phase != "body" and not batch.spared:
            batch.spared = True  # The server closed an idle connection just then: at once, and not counted.
            return [Retried(batch, 0, 0.0, error)]
        batch.failures += 1
        delay = pause_before_retry(self.options, batch, error, now, draw)
        if delay is None:
            error.maybe_applied = batch.maybe_stored
            return self._fail(batch, error)
        batch.due = now + delay
        return [Retried(batch, batch.failures, delay, error)]

    def _ask(self, send: Send, error: Exception) -> Asked:
        batch = send.batch
        batch.asked += 1
        batch.asking = True
        if isinstance(error, DurableStreamError):
            error.attempt = batch.asked
            error.maybe_applied = batch.maybe_stored
        return Asked(send, error)

    # -- Fences and gaps -----------------------------------------------------------------------------------

    def _fenced(self, send: Send, error: StaleEpochError, now: float, draw: float) -> list[Outcome]:
        current = max(error.current_epoch, self.epoch)
        if not self.options.auto_claim or current >= wire.MAX_INTEGER:
            return self._fail(send.batch, error)
        if self._claiming is None:
            self._claims_in_row += 1
            if self._claims_in_row > MAX_CLAIMS:
                return self._fail(send.batch, error)
            # The first claim is made at once; when it is fenced in turn, two writers are after the same id.
            self._claim_due = now + draw * CLAIM_PAUSE * (self._claims_in_row - 1)
        self._claiming = max(current, self._claiming or 0)
        return []

    def _claimed(self, now: float) -> list[Outcome]:
        """Renumber under a new epoch, once all answers that were under way are back."""
        if self._claiming is None or self._in_flight:
            return []
        old = self.epoch
        self._begin_epoch(self._claiming + 1)
        self._claiming = None
        self.claims += 1
        due = max(now, self._claim_due)
        parked = list(self._unresolved.values())
        for batch in parked:
            batch.stamp = (self.epoch, self.next_seq)
            self.next_seq += 1
            batch.waits_for, batch.gaps = None, 0
        for batch in [*parked, *([self._closing] if self._closing is not None else [])]:
            batch.due = due
            batch.ambiguous_before = batch.ambiguous_before or batch.ambiguous
            batch.ambiguous = False  # Nothing of the new epoch has been sent yet.
        return [Claimed(old, self.epoch, len(parked))]

    def _begin_epoch(self, epoch: int) -> None:
        self.epoch, self.next_seq = epoch, 0
        self._gate = True
        self._window.reset()

    def _overtaken(self, send: Send, error: SequenceGapError) -> list[Outcome]:
        """A batch met a gap.

        It waits for ours that may fill it. If there are none, it is tried once more: the answer may be older than the
        acknowledgements that have come since, or the server may have been restarting.
        """
        batch = send.batch
        batch.waits_for = error.expected_seq
        if not self._must_wait(batch):
            batch.gaps += 1
            if batch.gaps > 1:
                return self._fail(batch, error)
        self.gap_retries += 1
        self._window.on_gap()
        return []

    # -- Failing -------------------------------------------------------------------------------------------

    def _fail(self, batch: Batch, error: Exception) -> list[Outcome]:
        """A batch failed for good: so do all after it. A failed closing request may be made again."""
        if batch is self._closing and not isinstance(error, StaleEpochError):
            return [self._close_failed(error)]
        return self._stop(State.FAILED, error)

    def _close_failed(self, error: Exception) -> CloseFailed:
        batch, self._closing = self._closing, None
        assert batch is not None
        if batch.maybe_stored:
            self._close_tried = batch.items
        batch.promise.reject(error)
        return CloseFailed(error)

    def _stop(self, state: State, error: Exception) -> list[Outcome]:
        self.state = state
        self.failure = error if state is State.FAILED else None
        self.stops += 1
        self.stopped_by = error
        self._claiming = None
        # What comes from now on is certainly not applied, whatever became of the batch that failed.
        self.batcher.refuse(fresh(error, maybe_applied=False) if isinstance(error, DurableStreamError) else error)
        self.batcher.seal()
        stored = [batch for batch in self._unresolved.values() if batch.stamp and self._confirmed(batch.stamp)]
        outcomes: list[Outcome] = [*map(self._settle, stored)]  # Only their own answers are missing.
        if self._closing is not None:
            outcomes.append(self._close_failed(error))
        batches = [*self._unresolved.values(), *self.batcher.sealed]
        self._unresolved.clear()
        self.batcher.sealed.clear()
        for batch in batches:
            self.batcher.release(batch)
            batch.stamp = batch.stamp or (self.epoch, -1)
            reason = error
            if isinstance(error, DurableStreamError) and error.maybe_applied != batch.maybe_stored:
                reason = fresh(error, maybe_applied=batch.maybe_stored)
            batch.promise.reject(reason)
            outcomes.append(Failed(batch, reason))
        self._undelivered.extend(batches)
        return outcomes

    def _closed_error(self, what: str) -> AlreadyClosedError:
        return AlreadyClosedError(f"the producer {what}", url=self.options.url)

    # -- What the caller wants -----------------------------------------------------------------------------

    def flush(self) -> int:
        """Send what is there without lingering; returns a watermark, reached when `settled` is at least it."""
        self._flush_to = self.batcher.last_number
        return self._flush_to

    def detach(self) -> None:
        """Accept nothing more, and be done when everything is sent."""
        if self.state is State.OPEN:
            self.state = State.DETACHING
            self.batcher.refuse(self._closed_error("was detached"))
            self.flush()

    def close(self, final: bytes | None, promise: Promise) -> None:
        """Close the stream after everything that was accepted, with a last message if given.

        From here on nothing else is accepted, even if closing fails: an append with the number of a closing request
        that was applied after all would be taken for its repetition. Closing may be tried again, for the same reason
        with the same last message.

        Raises:
            InvalidArgumentError: an earlier try, which may have been applied, had another last message.
        """
        assert self._closing is None
        assert self.state in (State.OPEN, State.CLOSING)
        batch = Batch(self.batcher.last_number + 1, 0, promise)
        if final is not None:
            batch.items.append(final)
        if self._close_tried is not None:
            if self._close_tried != batch.items:
                raise InvalidArgumentError(
                    "final_message must be the one of the failed call: that may have been carried out all the same"
                )
            batch.ambiguous = True
        self.flush()
        self.state = State.CLOSING
        self.batcher.refuse(self._closed_error("is closing the stream"))
        self._closing = batch

    def pause(self) -> None:
        """Dispatch nothing that is added from now on, until `resume` or `restart`."""
        self._pause_after = self.flush()

    def hold(self) -> None:
        """Dispatch nothing more at all, for good; what has been sent is still sent again if need be."""
        self._pause_after = -1

    def resume(self) -> None:
        """Dispatch again."""
        if self._pause_after >= 0:
            self._pause_after = math.inf

    def restart(self, *, resend: bool) -> int:
        """Begin a new epoch; returns how many messages are queued again.

        Nothing may be in flight or unresolved. After a failure `resend` queues what was not acknowledged; without it
        that is dropped.

        Raises:
            OverflowError: there is no higher epoch.
        """
        assert not self._in_flight
        assert not self._unresolved
        known = self.failure.current_epoch if isinstance(self.failure, StaleEpochError) else 0
        epoch = max(self.epoch, known) + 1
        if epoch > wire.MAX_INTEGER:
            raise OverflowError(f"epoch {epoch - 1} is the highest that the protocol knows")
        undelivered, self._undelivered = self._undelivered, deque()
        self.state, self.failure = State.OPEN, None
        self._begin_epoch(epoch)
        self._close_tried = None
        self._claims_in_row = 0
        self.batcher.refuse(None)
        self.resume()
        return self.batcher.requeue(item for batch in undelivered for item in batch.items) if resend else 0

    def abort(self) -> list[Outcome]:
        """Send nothing more. What is not stored is kept as undelivered; requests under way may still be applied."""
        if self.state in (State.CLOSED, State.ABORTED, State.FAILED):
            return []
        return self._stop(State.ABORTED, self._closed_error("was aborted"))
