"""What a producer is told and what it tells, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .._core import validate


@dataclass(frozen=True, slots=True)
class Batching:
    """How messages are gathered and how many requests are under way; three presets stand ready.

    `Batching.DEFAULT` suits most. `Batching.LOW_LATENCY` sends at once, in small batches and on more lanes.
    `Batching.HIGH_THROUGHPUT` waits longer for larger batches.

    Attributes:
        max_batch_bytes: Largest body, framing included, in bytes. A larger message goes alone.
        max_batch_items: Most messages in a batch; None for no limit.
        linger: Seconds that a batch waits for more messages; 0 sends as soon as the event loop is free.
        max_in_flight: Most requests under way at a time. With 1 they arrive in the order they were sent. With more they
            may overtake each other; then fewer are under way for a while.
    """

    max_batch_bytes: int = 1 << 20
    max_batch_items: int | None = None
    linger: float = 0.005
    max_in_flight: int = 5

    DEFAULT: ClassVar[Batching]
    LOW_LATENCY: ClassVar[Batching]
    HIGH_THROUGHPUT: ClassVar[Batching]

    def __post_init__(self) -> None:
        validate.integer("max_batch_bytes", self.max_batch_bytes, minimum=1)
        if self.max_batch_items is not None:
            validate.integer("max_batch_items", self.max_batch_items, minimum=1)
        validate.number("linger", self.linger)
        validate.integer("max_in_flight", self.max_in_flight, minimum=1)


Batching.DEFAULT = Batching()
Batching.LOW_LATENCY = Batching(max_batch_bytes=64 << 10, linger=0.0, max_in_flight=8)
Batching.HIGH_THROUGHPUT = Batching(max_batch_bytes=4 << 20, linger=0.05)


@dataclass(frozen=True, slots=True)
class FlushResult:
    """Everything that was accepted before a flush is stored.

    Attributes:
        offset: Offset after the last acknowledged batch, if the server has sent one.
        duplicates: Batches since the last flush that an earlier try had stored.
    """

    offset: str | None
    duplicates: int


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """Facts about a batch that failed.

    Attributes:
        epoch: The producer's epoch.
        seq: Its sequence number; -1 if it was never sent.
        messages: How many messages it has.
        retryable: Whether sending it again later may succeed without storing it twice.
    """

    epoch: int
    seq: int
    messages: int
    retryable: bool


@dataclass(frozen=True, slots=True)
class ProducerStatistics:
    """What a producer has done so far.

    Attributes:
        epoch: Current epoch.
        next_seq: Number of the next batch.
        pending: Messages that are accepted and not acknowledged.
        pending_bytes: Payload of those of them that wait for the server; what has failed is not counted.
        in_flight: Requests under way.
        requests: Requests made.
        retries: Requests repeated after a failure.
        gap_retries: Requests repeated because they had overtaken others.
        duplicates: Batches that an earlier try had stored.
        claims: Times that the producer was taken over from a newer epoch.
    """

    epoch: int
    next_seq: int
    pending: int
    pending_bytes: int
    in_flight: int
    requests: int
    retries: int
    gap_retries: int
    duplicates: int
    claims: int
