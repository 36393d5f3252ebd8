"""What the server's answers mean to a producer (client specification 12.5, 12.6).

    answer                            meaning
    --------------------------------  ------------------------------------------------------
    200, 201, 204                     `STORED`; 204 says: when it came before
    204, but not for ours             `STALE` where claiming is allowed, else `REFUSED`
    403 + Producer-Epoch              `STALE`: the server knows this newer epoch
    409 + Stream-Closed               `REFUSED`
    409 + Producer-Expected-Seq       `GAP` if it is below ours, else `REFUSED`: a confusion
    409, neither                      `REFUSED`
    429, 5xx without 501 and 505      `AGAIN`
    anything else                     `ASK`: the user may mend it (401, 404, ...)

They are told apart in this order: a closed stream may answer with the other headers as well.

A 204 cannot be for an earlier try of ours, so that taking it for one would lose the batch, in two cases. The answer to
a closing request does not say that the stream is closed. Or the batch is the first of an epoch that we may claim, but
no earlier try of it can have been stored, or the server has accepted numbers that we have not sent yet; then another
writer - or we ourselves, before a restart - used the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..errors import ConflictError, DurableStreamError, SequenceGapError, StaleEpochError, StreamClosedError
from . import wire
from .backoff import may_repeat
from .batcher import Batch
from .exchange import Head, Kind
from .producer_values import ProducerOptions, Send
from .status_errors import Subject, status_error

STORED_STATUSES = (200, 201, 204)


class Meaning(Enum):
    """What an answer says about a batch."""

    STORED = "stored"
    STALE = "stale"
    GAP = "gap"
    REFUSED = "refused"
    AGAIN = "again"
    ASK = "ask"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was read.

    Attributes:
        meaning: What it says.
        error: The error it stands for: a `StaleEpochError` for `STALE`, a `SequenceGapError` for `GAP`, None for
            `STORED`.
    """

    meaning: Meaning
    error: DurableStreamError | None = None


def read_answer(options: ProducerOptions, send: Send, head: Head, body: bytes, *, first_of_epoch: bool) -> Answer:
    """Read the answer to a request.

    Args:
        options: The producer's.
        send: The request.
        head: Status and headers of the answer.
        body: What was read of its body.
        first_of_epoch: No batch of the epoch has been acknowledged.
    """
    if head.status in STORED_STATUSES:
        if head.status != 204 or _is_ours(options, send, head, first_of_epoch):
            return Answer(Meaning.STORED)
        error: DurableStreamError = _taken(options, send, head)
        if options.auto_claim:
            return Answer(Meaning.STALE, _stale(options, send, error, send.stamp[0]))
        return Answer(Meaning.REFUSED, error)
    error = status_error(Subject("append", options.url, size=len(send.request.body)), head, body)
    error.maybe_applied = send.batch.maybe_stored
    current = wire.parse_integer(head.headers.get(wire.PRODUCER_EPOCH))
    expected = wire.parse_integer(head.headers.get(wire.PRODUCER_EXPECTED_SEQ))
    if head.status == 403 and current is not None:
        return Answer(Meaning.STALE, _stale(options, send, error, current))
    if head.status == 409:
        if isinstance(error, StreamClosedError) or expected is None:
            return Answer(Meaning.REFUSED, error)
        meaning = Meaning.GAP if send.stamp[1] > expected else Meaning.REFUSED
        return Answer(meaning, _gap(options, send, error, expected))
    return Answer(Meaning.AGAIN if may_repeat(error, Kind.PRODUCER) else Meaning.ASK, error)


def _is_ours(options: ProducerOptions, send: Send, head: Head, first_of_epoch: bool) -> bool:
    highest = wire.parse_integer(head.headers.get(wire.PRODUCER_SEQ))
    beyond = highest is not None and highest > send.stamp[1]
    if wire.CLOSED in send.request.headers:
        return not beyond and wire.is_true(head.headers.get(wire.CLOSED))
    return not (options.auto_claim and first_of_epoch) or (send.batch.ambiguous and not beyond)


def pause_before_retry(
    options: ProducerOptions, batch: Batch, error: DurableStreamError, now: float, draw: float
) -> float | None:
    """Seconds until the next try after the batch's n-th failure in a row; None if it is out of time or of tries.

    A last try is made when `delivery_timeout` is over. A `Retry-After` beyond it ends the waiting at once.
    """
    assert batch.first_sent is not None
    left = batch.first_sent + options.delivery_timeout - now
    floor = error.retry_after or 0.0
    retries = options.retry.max_retries
    if left <= 0 or floor > left or (retries is not None and batch.failures > retries):
        return None
    return max(floor, min(left, draw * options.retry.ceiling(batch.failures)))


def _stale(options: ProducerOptions, send: Send, cause: DurableStreamError, current: int) -> StaleEpochError:
    """The server knows a newer epoch."""
    return StaleEpochError(
        f"append {options.url}: producer {options.producer_id!r} is at epoch {send.stamp[0]}, but the server knows "
        f"epoch {current}: another writer took over",
        current_epoch=current,
        status=cause.status,
        url=options.url,
        headers=cause.headers,
        details=cause.details,
        maybe_applied=cause.maybe_applied,
    )


def _gap(options: ProducerOptions, send: Send, cause: DurableStreamError, expected: int) -> SequenceGapError:
    """The server expects another number."""
    epoch, seq = send.stamp
    return SequenceGapError(
        f"append {options.url}: the server expects sequence number {expected} of producer {options.producer_id!r}, "
        f"epoch {epoch}, and got {seq}; it has lost state, or another writer uses the same id and epoch",
        expected_seq=expected,
        received_seq=seq,
        status=cause.status,
        url=options.url,
        headers=cause.headers,
        details=cause.details,
        maybe_applied=cause.maybe_applied,
    )


def _taken(options: ProducerOptions, send: Send, head: Head) -> ConflictError:
    """The server took a new batch for a repetition."""
    epoch, seq = send.stamp
    return ConflictError(
        f"append {options.url}: the server took number {seq} of epoch {epoch} for a repetition, but it was new: "
        f"another writer has used the id {options.producer_id!r} in it",
        status=head.status,
        url=options.url,
        headers=dict(head.headers),
    )
