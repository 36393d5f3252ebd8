"""What the operations of a handle return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Result:
    """An answer of the server.

    Attributes:
        status: HTTP status.
        headers: Its headers, names in lower case.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class CreateResult(Result):
    """A stream is there.

    Attributes:
        created: Whether this call made it. None if that cannot be known, because an earlier try of the same call
            went unanswered.
        offset: The stream's tail, if the server sent it.
        content_type: The stream's content type.
        stream_closed: Whether it is closed.
    """

    created: bool | None
    offset: str | None
    content_type: str | None
    stream_closed: bool


@dataclass(frozen=True, slots=True)
class HeadResult(Result):
    """What the server says of a stream.

    Attributes:
        exists: False if there is none; the other fields are then None or False.
        content_type: The stream's content type.
        offset: Its tail: a position to read from that skips everything there is.
        etag: Entity tag, if the server sent one.
        cache_control: `Cache-Control`, if the server sent it.
        stream_closed: Whether the stream is closed.
        ttl_seconds: Seconds without reads and writes after which it expires, or None.
        expires_at: When it expires, RFC 3339, or None.
    """

    exists: bool
    content_type: str | None = None
    offset: str | None = None
    etag: str | None = None
    cache_control: str | None = None
    stream_closed: bool = False
    ttl_seconds: int | None = None
    expires_at: str | None = None


@dataclass(frozen=True, slots=True)
class ProducerStamp:
    """Who sends a raw producer append, and its place in the sequence (protocol, section 5.2.1).

    Attributes:
        id: Name of the producer; not empty.
        epoch: At least 0; raised at each restart of the producer.
        seq: At least 0; counts the requests of the epoch.
    """

    id: str
    epoch: int
    seq: int


#: What became of an append. "stale-epoch" and "gap" occur for raw producer appends only.
Outcome = Literal["stored", "duplicate", "stale-epoch", "gap"]


@dataclass(frozen=True, slots=True)
class AppendResult(Result):
    """What became of an append.

    An append without a stamp was stored if it returns at all. A raw producer append reports the server's decision:
    look at `outcome`.

    Attributes:
        next_offset: Offset after the append; that of its batch if it was sent with others. None if the server did
            not send it.
        stream_closed: Whether the stream is closed now.
        outcome: "stored", "duplicate" (stored by an earlier try), or not stored: "stale-epoch" (a newer epoch of the
            producer exists: `epoch`) or "gap" (the server expects `expected_seq`).
        epoch: Epoch that the server knows of the producer.
        seq: Highest sequence number it has accepted.
        expected_seq: With "gap": the number it expects.
        received_seq: With "gap": the number it got.
    """

    next_offset: str | None
    stream_closed: bool
    outcome: Outcome = "stored"
    epoch: int | None = None
    seq: int | None = None
    expected_seq: int | None = None
    received_seq: int | None = None

    @property
    def duplicate(self) -> bool:
        """Whether the server had stored this append before."""
        return self.outcome == "duplicate"


@dataclass(frozen=True, slots=True)
class CloseResult(Result):
    """The stream is closed.

    Attributes:
        final_offset: Offset after its last byte, if the server sent it.
    """

    final_offset: str | None


@dataclass(frozen=True, slots=True)
class DeleteResult(Result):
    """The stream is deleted."""
