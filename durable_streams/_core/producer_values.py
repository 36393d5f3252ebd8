"""What goes into a producer session and comes out of it, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..errors import InvalidArgumentError
from . import validate, wire
from .backoff import BackoffOptions
from .batcher import Ack, Batch
from .exchange import Head, Kind, Request

#: Pauses between tries of a batch.
RETRY = BackoffOptions(initial_delay=0.1, max_delay=30.0, multiplier=2.0, max_elapsed=None)


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
    """What a producer is asked to do.

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
        max_in_flight: Most batches dispatched and unresolved at a time.
        max_buffered_bytes: Most payload kept, in flight included.
        max_buffered_messages: Most messages kept, or None.
        retry: Pauses between tries; its `max_elapsed` is not used.
        delivery_timeout: Seconds from a batch's first dispatch after which it fails.

    Raises:
        TypeError: an option has a wrong type.
        InvalidArgumentError: an option has a wrong value.
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
    retry: BackoffOptions = RETRY
    delivery_timeout: float = 120.0

    def __post_init__(self) -> None:
        if not isinstance(self.producer_id, str):
            raise TypeError(f"producer_id must be a str, got {type(self.producer_id).__name__}")
        if not self.producer_id or self.producer_id != self.producer_id.strip():
            raise InvalidArgumentError(
                f"producer_id must be a non-empty str without surrounding white space, got {self.producer_id!r}"
            )
        wire.check_header(wire.PRODUCER_ID, self.producer_id)
        if not isinstance(self.auto_claim, bool):
            raise TypeError(f"auto_claim must be a bool, got {type(self.auto_claim).__name__}")
        if not isinstance(self.retry, BackoffOptions):
            raise TypeError(f"retry must be BackoffOptions, got {type(self.retry).__name__}")
        for name in ("epoch", "next_seq"):
            validate.integer(name, getattr(self, name))
        for name in ("max_batch_bytes", "max_in_flight", "max_buffered_bytes"):
            validate.integer(name, getattr(self, name), minimum=1)
        for name in ("max_batch_items", "max_buffered_messages"):
            if getattr(self, name) is not None:
                validate.integer(name, getattr(self, name), minimum=1)
        validate.number("linger", self.linger)
        validate.number("delivery_timeout", self.delivery_timeout, exclusive=True)

    def request(self, body: bytes, stamp: tuple[int, int], *, closes: bool = False) -> Request:
        """The request for a batch, or the one that closes the stream."""
        headers = {
            wire.PRODUCER_ID: self.producer_id,
            wire.PRODUCER_EPOCH: str(stamp[0]),
            wire.PRODUCER_SEQ: str(stamp[1]),
        }
        if body:
            headers[wire.CONTENT_TYPE] = self.content_type
        if closes:
            headers[wire.CLOSED] = "true"
        return Request("POST", Kind.PRODUCER, headers=headers, body=body)


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
    """A batch will be sent again. Attempt 0 is the one that is not counted."""

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
