"""The idempotent producer without I/O: what is sent when, and what the answers mean.

Theory of operation
-------------------

A batch is *open* while messages are added, *sealed* when it is full or its time has come, *dispatched* when it gets its
stamp (epoch, seq) and is sent. From then on the stamp and the bytes stay together: every further try sends the same.
Numbers are given at dispatch, in order, so that a batch that waits reserves none.

Up to `max_in_flight` batches are dispatched and unresolved at a time. Their answers come in any order, and a later
batch may overtake an earlier one on its way. The server then refuses it (a *gap*), and it is sent again as soon as the
ones before it are resolved: an ordinary event, no failure.

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

    answer                          the batch                                   the session
    ------------------------------  ------------------------------------------  ------------------------------
    200, 204                        acknowledged                                opens the gate
    403 + Producer-Epoch            parked, if claiming is allowed; else fails  claims / fails
    409 + Stream-Closed             fails                                       fails
    409 + expected < ours           waits for ours between, then is sent again  fails if none was, twice
    409 + expected >= ours          fails                                       fails
    429, 5xx, no answer             sent again after a pause                    fails at `delivery_timeout`
    anything else                   the user is asked (401, 404, ...) or fails  fails unless the user recovers

The rules are those of the client specification, section 12.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from ..errors import (
    AlreadyClosedError,
    ConflictError,
    DurableStreamError,
    NetworkError,
    SequenceGapError,
    StaleEpochError,
    StreamClosedError,
)
from . import wire
from .backoff import BackoffOptions, may_repeat
from .batcher import Ack, Batch, Batcher, Promise
from .exchange import Failure, Head, Kind, Request
from .status_errors import Subject, status_error

#: Claims in a row, without an acknowledgement between them, before two live writers are assumed to be duelling.
MAX_CLAIMS = 5
#: Ceiling of the pause before a repeated claim, in seconds.
CLAIM_PAUSE = 0.25


class State(Enum):
    """What the producer accepts."""

    OPEN = "open"
    DETACHING = "detaching"  # nothing new; what is there is still sent
    CLOSING = "closing"  # likewise, and then the stream is closed
    CLOSED = "closed"  # the stream is closed, by us
    FAILED = "failed"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class ProducerOptions:
    """What a producer is asked to do; checked by the caller.

    Attributes:
        url: The stream's URL, fit to be shown in errors.
        producer_id: Name of the logical writer.
        content_type: The stream's content type.
        epoch: First epoch.
        next_seq: First sequence number.
        auto_claim: Take over from a newer epoch instead of failing.
        max_batch_bytes: Largest body, in bytes.
        max_batch_items: Most messages in a batch, or None.
        linger: Seconds that an open batch waits for more messages.
        max_in_flight: Batches dispatched and unresolved at a time.
        max_buffered_bytes: Most payload kept, in flight included.
        max_buffered_messages: Most messages kept, or None.
        retry: Pauses between tries; its `max_elapsed` is not used.
        delivery_timeout: Seconds from a batch's first dispatch after which it fails.
    """

    url: str
    producer_id: str
    content_type: str
    epoch: int = 0
    next_seq: int = 0
    auto_claim: bool = False
    max_batch_bytes: int = 1 << 20
    max_batch_items: int | None = None
    linger: float = 0.005
    max_in_flight: int = 5
    max_buffered_bytes: int = 64 << 20
    max_buffered_messages: int | None = None
    retry: BackoffOptions = field(
        default_factory=lambda: BackoffOptions(initial_delay=0.1, max_delay=30.0, multiplier=2.0, max_elapsed=None)
    )
    delivery_timeout: float = 120.0


@dataclass(frozen=True, slots=True)
class Send:
    """Send this request for this batch, and report."""

    batch: Batch
    request: Request
    stamp: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before this time; None: before something is reported or added."""

    until: float | None


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing will ever be to do again, unless the session is restarted."""


@dataclass(frozen=True, slots=True)
class Acked:
    """A batch is stored."""

    batch: Batch
    ack: Ack


@dataclass(frozen=True, slots=True)
class Failed:
    """A batch failed for good."""

    batch: Batch
    error: Exception


@dataclass(frozen=True, slots=True)
class Claimed:
    """The producer was taken over under a new epoch; so many batches are sent again in it."""

    old: int
    new: int
    resent: int


@dataclass(frozen=True, slots=True)
class Asked:
    """The user may know a way: report with `on_recover`."""

    send: Send
    error: Exception


@dataclass(frozen=True, slots=True)
class Retried:
    """A batch will be sent again."""

    batch: Batch
    attempt: int
    delay: float
    error: Exception


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The stream is closed by our own request."""

    head: Head
    ack: Ack


@dataclass(frozen=True, slots=True)
class CloseFailed:
    """Closing failed; its number was not used, and it may be tried again."""

    error: Exception


Outcome = Acked | Failed | Claimed | Asked | Retried | StreamEnded | CloseFailed


class ProducerSession:
    """Protocol state of one producer.

    Attributes:
        batcher: Where messages go in; `add` is its hot path.
        state: What is accepted.
        failure: Why it failed, in `State.FAILED`.
        epoch: Current epoch.
        next_seq: Number of the next batch.
        settled: All batches up to this number are resolved.
        last_offset: Offset after the highest acknowledged batch.
        needs_poll: (of `batcher`) set when something changed that a poll has to see.
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
        self._last_acked: tuple[int, int] = (-1, -1)
        self._unresolved: OrderedDict[int, Batch] = OrderedDict()  # dispatched, by number
        self._gate = self._new_to_server()
        self._claiming: int | None = None
        self._claims_in_row = 0
        self._claim_due = 0.0
        self._in_flight = 0
        self._saturated = False
        self._flush_to = 0
        self._pause_after = math.inf
        self._closing: Batch | None = None
        self._undelivered: deque[Batch] = deque()

    # -- Facts ---------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._in_flight

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
        if self._closing is not None:
            batches.append(self._closing)
        return [item for batch in batches for item in batch.items]

    def _new_to_server(self) -> bool:
        return self.options.auto_claim or self.epoch > 0

    # -- What to do ----------------------------------------------------------------------------------------

    def poll(self, now: float) -> Send | Wait | Done:
        """What a free lane shall do. A `Send` counts as begun: it has to be reported."""
        self.batcher.needs_poll = False
        if self.state in (State.FAILED, State.ABORTED, State.CLOSED):
            return Wait(None) if self._in_flight else Done()
        limit = 1 if self._gate or self._claiming is not None else self.options.max_in_flight
        if self._in_flight >= limit or self._claiming is not None:
            return Wait(None)
        until = math.inf
        for batch in self._unresolved.values():
            if not batch.in_flight and batch.asked <= 0 and not self._must_wait(batch):
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
            if self._closing is not None:
                return self._send_close(now)
            if self.state is not State.OPEN:
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
        self.batcher.needs_poll = True  # Another lane may find something to do as well.
        return Send(batch, self._request(batch.framed(json=self.batcher.json), batch.stamp), batch.stamp)

    def _send_close(self, now: float) -> Send | Wait:
        batch = self._closing
        assert batch is not None
        if batch.in_flight or batch.asked > 0:
            return Wait(None)
        if batch.due > now:
            return Wait(batch.due)
        batch.stamp = (self.epoch, self.next_seq)
        self._begin(batch, now)
        body = batch.framed(json=self.batcher.json) if batch.items else b""
        return Send(batch, self._request(body, batch.stamp, closes=True), batch.stamp)

    def _begin(self, batch: Batch, now: float) -> None:
        if batch.first_sent is None:
            batch.first_sent = now
        batch.in_flight = True
        batch.first_in_line = batch is self._closing or next(iter(self._unresolved)) == batch.number
        self._in_flight += 1
        if self._in_flight >= self.options.max_in_flight:
            self._saturated = True

    def _request(self, body: bytes, stamp: tuple[int, int], *, closes: bool = False) -> Request:
        headers = {
            wire.PRODUCER_ID: self.options.producer_id,
            wire.PRODUCER_EPOCH: str(stamp[0]),
            wire.PRODUCER_SEQ: str(stamp[1]),
        }
        if body or not closes:
            headers[wire.CONTENT_TYPE] = self.options.content_type
        if closes:
            headers[wire.CLOSED] = "true"
        return Request("POST", Kind.PRODUCER, headers=headers, body=body)

    # -- What happened -------------------------------------------------------------------------------------

    def on_reply(self, send: Send, head: Head, body: bytes, now: float, draw: float) -> list[Outcome]:
        """The answer to a `Send` is there."""
        if not self._returned(send):
            if head.status in (200, 204) and send.batch in self._undelivered:
                # Too late for their promises; but this one and those before it must not be sent again.
                self._undelivered = deque(batch for batch in self._undelivered if batch.number > send.batch.number)
            return self._claimed(now)
        if self._belongs_to_another(send, head):
            error = ConflictError(
                f"append {self.options.url}: the server took number {send.stamp[1]} of epoch {send.stamp[0]} for a "
                f"repetition, but it was new: another writer has used the id {self.options.producer_id!r} in it",
                status=head.status,
                url=self.options.url,
                headers=dict(head.headers),
            )
            if self.options.auto_claim:
                outcomes = self._fenced(send, error, send.stamp[0], now, draw)
            else:
                outcomes = self._fail(send.batch, error)
        elif head.status in (200, 204):
            outcomes = self._acknowledged(send, head)
        elif self._confirmed(send.stamp):
            outcomes = [self._settle(send.batch)]
        else:
            subject = Subject("append", self.options.url, size=len(send.request.body))
            outcomes = self._refused(send, status_error(subject, head, body), now, draw)
        return outcomes + self._claimed(now)

    def _belongs_to_another(self, send: Send, head: Head) -> bool:
        """Whether a "duplicate" cannot be a repetition of ours, so that taking it for one would lose the batch.

        Two cases are told: a closing request that did not close; and the first batch of an epoch that we may claim,
        if no earlier try of it can have been stored, or the server has accepted numbers we have not sent yet. Then
        another writer - or we ourselves, before a restart - used the epoch.
        """
        if head.status != 204:
            return False
        highest = wire.parse_integer(head.headers.get(wire.PRODUCER_SEQ))
        beyond = highest is not None and highest > send.stamp[1]
        if send.batch is self._closing:
            return beyond or not wire.is_true(head.headers.get(wire.CLOSED))
        return self.options.auto_claim and self._gate and (beyond or not send.batch.ambiguous)

    def _refused(self, send: Send, error: DurableStreamError, now: float, draw: float) -> list[Outcome]:
        headers = error.headers or {}
        if error.status == 403 and (current := wire.parse_integer(headers.get(wire.PRODUCER_EPOCH))) is not None:
            return self._fenced(send, error, current, now, draw)
        if error.status == 409:
            return self._conflict(send, error, now)
        if may_repeat(error, Kind.PRODUCER):
            # A gateway's answer can hide that the server did store it, and a 500 can follow on storing.
            send.batch.ambiguous = True
            return self._try_again(send, error, now, draw)
        return [self._ask(send, error)]

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

    def on_recover(self, send: Send, error: Exception, retry: bool, now: float) -> list[Outcome]:
        """The user's `on_error` decided about the error of an `Asked`."""
        batch = send.batch
        batch.asked = -batch.asked  # Keeps the count for the next time; negative: not being asked about.
        self.batcher.needs_poll = True
        if self.state in (State.FAILED, State.ABORTED):
            return []
        if retry:
            batch.due, batch.failures, batch.first_sent = now, 0, None
            return []
        return self._fail(batch, error)

    def _returned(self, send: Send) -> bool:
        """Take note that a request is over; False if nobody waits for its batch any more."""
        self._in_flight -= 1
        self.batcher.needs_poll = True
        batch = send.batch
        if batch.stamp != send.stamp:
            return False
        batch.in_flight = False
        return batch is self._closing or batch.number in self._unresolved

    def _acknowledged(self, send: Send, head: Head) -> list[Outcome]:
        batch = send.batch
        offset = head.headers.get(wire.NEXT_OFFSET) or None
        epoch, seq = send.stamp
        ack = Ack(offset, head.status == 204 and batch is not self._closing, epoch, seq)
        if send.stamp > self._last_acked:
            self._last_acked = send.stamp
            self.last_offset = offset or self.last_offset
        self._claims_in_row = 0
        if epoch == self.epoch:
            self._gate = False
        if batch is self._closing:
            self._closing = None
            self.next_seq += 1
            self.state = State.CLOSED
            self.batcher.refuse(AlreadyClosedError("the producer has closed the stream", url=self.options.url))
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
            batch.due = now
            return [Retried(batch, batch.failures, 0.0, error)]
        batch.failures += 1
        retry = self.options.retry
        delay = draw * retry.ceiling(batch.failures)
        if error.retry_after is not None:
            delay = max(delay, error.retry_after)
        assert batch.first_sent is not None
        out_of_time = now + delay > batch.first_sent + self.options.delivery_timeout
        out_of_tries = retry.max_retries is not None and batch.failures > retry.max_retries
        if out_of_time or out_of_tries:
            error.maybe_applied = batch.ambiguous
            return self._fail(batch, error)
        batch.due = now + delay
        return [Retried(batch, batch.failures, delay, error)]

    def _ask(self, send: Send, error: Exception) -> Asked:
        batch = send.batch
        batch.asked = abs(batch.asked) + 1
        if isinstance(error, DurableStreamError):
            error.attempt = batch.asked
            error.maybe_applied = batch.ambiguous
        return Asked(send, error)

    # -- The meanings of 403 and 409 -----------------------------------------------------------------------

    def _fenced(self, send: Send, error: DurableStreamError, current: int, now: float, draw: float) -> list[Outcome]:
        stale = StaleEpochError(
            f"append {self.options.url}: producer {self.options.producer_id!r} is at epoch {send.stamp[0]}, but the "
            f"server knows epoch {current}: another writer took over",
            current_epoch=current,
            status=error.status,
            url=error.url,
            headers=error.headers,
            details=error.details,
            maybe_applied=send.batch.ambiguous,
        )
        if not self.options.auto_claim:
            return self._fail(send.batch, stale)
        if self._claiming is None:
            self._claims_in_row += 1
            if self._claims_in_row > MAX_CLAIMS:
                return self._fail(send.batch, stale)
            # The first claim is made at once; when it is fenced in turn, two writers are after the same id.
            self._claim_due = now if self._claims_in_row == 1 else now + draw * CLAIM_PAUSE * self._claims_in_row
        self._claiming = max(current, self._claiming or 0, self.epoch)
        return []

    def _claimed(self, now: float) -> list[Outcome]:
        """Renumber under a new epoch, once all answers that were under way are back."""
        if self._claiming is None or self._in_flight:
            return []
        old, self.epoch = self.epoch, self._claiming + 1
        self._claiming = None
        self.claims += 1
        self.next_seq = 0
        self._gate = True
        due = max(now, self._claim_due)
        parked = list(self._unresolved.values())
        for batch in parked:
            batch.stamp = (self.epoch, self.next_seq)
            self.next_seq += 1
            batch.due, batch.waits_for, batch.gaps, batch.ambiguous = due, None, 0, False
        if self._closing is not None:
            self._closing.due, self._closing.ambiguous = due, False
        return [Claimed(old, self.epoch, len(parked))]

    def _conflict(self, send: Send, error: DurableStreamError, now: float) -> list[Outcome]:
        batch = send.batch
        headers = error.headers or {}
        error.maybe_applied = batch.ambiguous
        if isinstance(error, StreamClosedError):
            return self._fail(batch, error)
        expected = wire.parse_integer(headers.get(wire.PRODUCER_EXPECTED_SEQ))
        if expected is None:
            return self._fail(batch, error)
        epoch, seq = send.stamp
        if seq > expected:
            # A batch that was not the first in line when it was sent has overtaken others: it waits for them. One that
            # was is missed by nobody of ours; it is tried once more, since the server may have been restarting.
            batch.gaps += batch.first_in_line
            if batch.gaps <= 1:
                self.gap_retries += 1
                batch.waits_for, batch.due = expected, now
                return []
        gap = SequenceGapError(
            f"append {self.options.url}: the server expects sequence number {expected} of producer "
            f"{self.options.producer_id!r}, epoch {epoch}, and got {seq}; it has lost state, or another writer uses "
            "the same id and epoch",
            expected_seq=expected,
            received_seq=seq,
            status=error.status,
            url=error.url,
            headers=error.headers,
            details=error.details,
            maybe_applied=batch.ambiguous,
        )
        return self._fail(batch, gap)

    # -- Failing -------------------------------------------------------------------------------------------

    def _fail(self, batch: Batch, error: Exception) -> list[Outcome]:
        """A batch failed for good: so do all after it. A failed closing request may be made again."""
        outcomes: list[Outcome] = []
        if batch is self._closing:
            self._closing = None
            batch.promise.reject(error)
            outcomes.append(CloseFailed(error))
            if not isinstance(error, StaleEpochError):
                return outcomes
        return outcomes + self._stop(State.FAILED, error)

    def _stop(self, state: State, error: Exception) -> list[Outcome]:
        self.state = state
        self.failure = error if state is State.FAILED else None
        self._claiming = None
        self.batcher.refuse(error)
        self.batcher.seal()
        self.batcher.needs_poll = True
        stored = [batch for batch in self._unresolved.values() if batch.stamp and self._confirmed(batch.stamp)]
        outcomes: list[Outcome] = [*map(self._settle, stored)]  # Only their own answers are missing.
        batches = [*self._unresolved.values(), *self.batcher.sealed]
        self._unresolved.clear()
        self.batcher.sealed.clear()
        if self._closing is not None:
            closing, self._closing = self._closing, None
            closing.promise.reject(error)
        for batch in batches:
            self.batcher.release(batch)
            batch.stamp = batch.stamp or (self.epoch, -1)
            batch.promise.reject(error)
            outcomes.append(Failed(batch, error))
        if state is State.FAILED:
            self._undelivered.extend(batches)
        return outcomes

    # -- What the caller wants -----------------------------------------------------------------------------

    def flush(self) -> int:
        """Send what is there without lingering; returns a watermark, reached when `settled` is at least it."""
        self._flush_to = self.batcher.last_number
        self.batcher.needs_poll = True
        return self._flush_to

    def detach(self) -> None:
        """Accept nothing more, and be done when everything is sent."""
        if self.state is State.OPEN:
            self.state = State.DETACHING
            self.batcher.refuse(AlreadyClosedError("the producer was detached", url=self.options.url))
            self.flush()

    def close(self, final: bytes | None, promise: Promise) -> None:
        """Close the stream after everything that was accepted, with a last message if given.

        From here on nothing else is accepted, even if closing fails: an append with the number of a closing request
        that was applied after all would be taken for its repetition. Closing may be tried again.
        """
        assert self._closing is None
        assert self.state in (State.OPEN, State.CLOSING)
        self.flush()
        self.state = State.CLOSING
        self.batcher.refuse(AlreadyClosedError("the producer is closing the stream", url=self.options.url))
        batch = Batch(self.batcher.last_number + 1, 0, promise)
        if final is not None:
            batch.items.append(final)
        self._closing = batch

    def pause(self) -> None:
        """Dispatch nothing that is added from now on, until `resume` or `restart`."""
        self._pause_after = self.flush()

    def resume(self) -> None:
        """Dispatch again."""
        self._pause_after = math.inf
        self.batcher.needs_poll = True

    def restart(self, *, resend: bool) -> int:
        """Begin a new epoch; returns how many messages are queued again.

        Nothing may be in flight or unresolved. After a failure `resend` queues what was not acknowledged; without it
        that is dropped.
        """
        assert not self._in_flight
        assert not self._unresolved
        undelivered, self._undelivered = self._undelivered, deque()
        known = self.failure.current_epoch if isinstance(self.failure, StaleEpochError) else 0
        self.state, self.failure = State.OPEN, None
        self.epoch = max(self.epoch, known) + 1
        self.next_seq = 0
        self._gate = True
        self._claims_in_row = 0
        self.batcher.refuse(None)
        self.resume()
        return self.batcher.requeue(item for batch in undelivered for item in batch.items) if resend else 0

    def abort(self) -> list[Outcome]:
        """Drop everything that is not stored; requests under way may still be applied."""
        if self.state in (State.CLOSED, State.ABORTED):
            return []
        self._undelivered.clear()
        return self._stop(State.ABORTED, AlreadyClosedError("the producer was aborted", url=self.options.url))
