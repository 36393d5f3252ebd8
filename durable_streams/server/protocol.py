"""What an append does to a stream: one pure decision, which every store makes inside its critical section.

`decide` has no clock, no I/O and no memory of its own, and may be asked again with a newer state: a store that loses a
race reads the state anew and asks once more. The rules stand in the order in which they apply; the first that fits
wins (server 6.1):

====  =================================================================  ===========================================
rule  condition                                                          decision
====  =================================================================  ===========================================
1     malformed producer headers                                         `parse_stamp`: 400
2     empty body, no close                                               `EMPTY_BODY`
3     body without a content type                                        `NO_CONTENT_TYPE`
4     no stream; soft-deleted stream                                     `NOT_FOUND`; `GONE`
5     closed, by exactly this stamp                                      `Duplicate`
6     closed, close-only without producer                                `Duplicate`
7     closed, anything else                                              `CLOSED`
8     body of another media type                                         `TYPE_MISMATCH`
9     producer unknown, sequence not 0                                   `SEQUENCE_GAP`, expected 0
10    epoch lower than known                                             `STALE_EPOCH`
11    epoch higher, sequence not 0                                       `NEW_EPOCH_NOT_AT_ZERO`
12    same epoch, sequence seen                                          `Duplicate` with the highest accepted one
13    same epoch, sequence beyond the next                               `SEQUENCE_GAP`
14    `Stream-Seq` not greater than the last, compared as bytes          `SEQ_NOT_INCREASING`
15    invalid JSON; `[]`                                                 `INVALID_JSON`; `EMPTY_ARRAY`
16    otherwise                                                          `Commit`
====  =================================================================  ===========================================

The producer comes before `Stream-Seq`, since a retry carries both and must be recognised; a refusal after rule 13
leaves the producer's state as it was, because only `Commit` changes anything.

All values here but `StreamState` are never changed. Those that are made for each append are not frozen nevertheless:
four frozen ones take a tenth of the time that the whole append takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .._core.wire import parse_integer
from .offsets import ZERO, Offset


class Reason(Enum):
    """Why a store refuses. The HTTP status and the words are in `responses.REFUSALS`."""

    MALFORMED_PRODUCER = "malformed producer"
    EMPTY_BODY = "empty body"
    NO_CONTENT_TYPE = "no content type"
    NOT_FOUND = "not found"
    GONE = "gone"
    CLOSED = "closed"
    TYPE_MISMATCH = "type mismatch"
    SEQUENCE_GAP = "sequence gap"
    STALE_EPOCH = "stale epoch"
    NEW_EPOCH_NOT_AT_ZERO = "new epoch not at zero"
    SEQ_NOT_INCREASING = "seq not increasing"
    INVALID_JSON = "invalid JSON"
    EMPTY_ARRAY = "empty array"
    OTHER_CONFIG = "other config"
    SOFT_DELETED = "soft-deleted"
    SOURCE_NOT_FOUND = "source not found"
    SOURCE_DELETED = "source deleted"
    FORK_TYPE_MISMATCH = "fork type mismatch"
    FORK_TOO_DEEP = "fork too deep"
    BAD_FORK_OFFSET = "bad fork offset"
    BAD_SUB_OFFSET = "bad sub-offset"


@dataclass(frozen=True, slots=True)
class ProducerStamp:
    """The three producer headers of one request."""

    id: str
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class ProducerState:
    """What a stream knows of one producer: its epoch and the highest sequence number accepted in it."""

    epoch: int
    seq: int


@dataclass(slots=True, unsafe_hash=True)
class Payload:
    """A body in the form in which it is stored.

    Attributes:
        data: The bytes. In JSON mode each message's text followed by a comma; empty for the array `[]`.
        ends: In JSON mode the position after each message, relative to `data`; empty for byte streams.
    """

    data: bytes
    ends: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class InvalidJson:
    """A body that was to be JSON and is not. `problem` is a sentence without any of the body's text."""

    problem: str


@dataclass(slots=True, unsafe_hash=True)
class AppendRequest:
    """A POST, read and validated as far as that is possible without the stream.

    Attributes:
        path: The stream.
        media_type: Of the body, in lower case and without parameters; "" if the request has none.
        payload: The body, split into messages if `media_type` is JSON; None if the body is empty.
        close: Whether the stream is to be closed, after the payload if there is one.
        producer: Stamp of an idempotent producer.
        seq: `Stream-Seq`.
    """

    path: str
    media_type: str = ""
    payload: Payload | InvalidJson | None = None
    close: bool = False
    producer: ProducerStamp | None = None
    seq: bytes | None = None


@dataclass(slots=True)
class StreamState:
    """What `decide` needs to know of a stream.

    Attributes:
        media_type: Of the stream, in lower case and without parameters.
        tail: Offset after the last byte.
        closed: Whether it is closed.
        closed_by: Stamp of the request that closed it, if that had one.
        last_seq: Greatest `Stream-Seq` so far.
        deleted: Whether it is soft-deleted: forks need its data, nobody else may see it.
    """

    media_type: str
    tail: Offset = ZERO
    closed: bool = False
    closed_by: ProducerStamp | None = None
    last_seq: bytes | None = None
    deleted: bool = False

    def apply(self, commit: Commit) -> None:
        """Become what a commit says. The store calls it in the same step that stores the data."""
        self.tail = commit.tail
        if commit.seq is not None:
            self.last_seq = commit.seq
        if commit.closes:
            self.closed = True
            self.closed_by = commit.closed_by


@dataclass(slots=True, unsafe_hash=True)
class Commit:
    """Store all of this, or nothing.

    Attributes:
        payload: Data to add, or None.
        tail: The tail afterwards, for stores whose offsets count bytes.
        closes: Whether the stream is closed by it.
        producer: New state of the request's producer, or None if it has none.
        closed_by: Stamp to remember as the closing one.
        seq: `Stream-Seq` to remember.
    """

    payload: Payload | None
    tail: Offset
    closes: bool
    producer: ProducerState | None
    closed_by: ProducerStamp | None
    seq: bytes | None


@dataclass(slots=True, unsafe_hash=True)
class Appended:
    """Stored and durable. `tail` and `closed` are the stream's afterwards, `producer` the request's producer."""

    tail: Offset
    closed: bool
    producer: ProducerState | None = None


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Nothing to do: this request was carried out before. Fields as in `Appended`."""

    tail: Offset
    closed: bool
    producer: ProducerState | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was changed.

    Attributes:
        reason: Why.
        tail: `CLOSED`: the final offset.
        epoch: `STALE_EPOCH`: the epoch in force.
        expected: `SEQUENCE_GAP`: the sequence number that comes next.
        received: `SEQUENCE_GAP`: the one that came.
        problem: `INVALID_JSON`, `BAD_FORK_OFFSET`: what is wrong, without any of the body's text.
    """

    reason: Reason
    tail: Offset | None = None
    epoch: int | None = None
    expected: int | None = None
    received: int | None = None
    problem: str | None = None


def parse_stamp(producer_id: str | None, epoch: str | None, seq: str | None) -> ProducerStamp | Refused | None:
    """Rule 1: read the three producer headers, all of them or none.

    Returns:
        The stamp, None if there are no such headers, or the refusal of an incomplete or malformed set.
    """
    if producer_id is None and epoch is None and seq is None:
        return None
    epoch_number, seq_number = parse_integer(epoch), parse_integer(seq)
    if not producer_id or epoch_number is None or seq_number is None:
        return Refused(Reason.MALFORMED_PRODUCER)
    return ProducerStamp(producer_id, epoch_number, seq_number)


def decide(
    stream: StreamState | None, producer: ProducerState | None, r: AppendRequest
) -> Commit | Duplicate | Refused:
    """Decide about one append, see the table of this module.

    Args:
        stream: The stream's state, or None if there is none, or an expired one.
        producer: What the stream knows of the request's producer, or None if nothing, or it was long ago.
        r: The request.
    """
    payload = r.payload
    if payload is None:
        if not r.close:
            return Refused(Reason.EMPTY_BODY)
    elif not r.media_type:
        return Refused(Reason.NO_CONTENT_TYPE)
    if stream is None:
        return Refused(Reason.NOT_FOUND)
    if stream.deleted:
        return Refused(Reason.GONE)
    if stream.closed:
        return _decide_closed(stream, producer, r)
    if payload is not None and r.media_type != stream.media_type:
        return Refused(Reason.TYPE_MISMATCH)
    stamp = r.producer
    if stamp is not None:
        repeated = _decide_producer(stream, producer, stamp)
        if repeated is not None:
            return repeated
    if r.seq is not None and stream.last_seq is not None and r.seq <= stream.last_seq:
        return Refused(Reason.SEQ_NOT_INCREASING)
    tail = stream.tail
    if payload is not None:
        if isinstance(payload, InvalidJson):
            return Refused(Reason.INVALID_JSON, problem=payload.problem)
        if not payload.data:
            return Refused(Reason.EMPTY_ARRAY)
        tail += len(payload.data)
    return Commit(
        payload,
        tail,
        r.close,
        None if stamp is None else ProducerState(stamp.epoch, stamp.seq),
        stamp if r.close else None,
        r.seq,
    )


def _decide_closed(stream: StreamState, producer: ProducerState | None, r: AppendRequest) -> Duplicate | Refused:
    """Rules 5 to 7: what a closed stream answers."""
    if r.producer is not None:
        if r.producer == stream.closed_by:
            known = producer or ProducerState(r.producer.epoch, r.producer.seq)
            return Duplicate(stream.tail, True, known)
    elif r.payload is None:
        return Duplicate(stream.tail, True)
    return Refused(Reason.CLOSED, tail=stream.tail)


def _decide_producer(
    stream: StreamState, known: ProducerState | None, stamp: ProducerStamp
) -> Duplicate | Refused | None:
    """Rules 9 to 13: None if the request is the producer's next one."""
    if known is None:
        if stamp.seq != 0:
            return Refused(Reason.SEQUENCE_GAP, expected=0, received=stamp.seq)
    elif stamp.epoch < known.epoch:
        return Refused(Reason.STALE_EPOCH, epoch=known.epoch)
    elif stamp.epoch > known.epoch:
        if stamp.seq != 0:
            return Refused(Reason.NEW_EPOCH_NOT_AT_ZERO)
    elif stamp.seq <= known.seq:
        return Duplicate(stream.tail, False, known)
    elif stamp.seq != known.seq + 1:
        return Refused(Reason.SEQUENCE_GAP, expected=known.seq + 1, received=stamp.seq)
    return None
