"""The seam between the HTTP side of the server and its storage.

A store keeps streams; HTTP tells it what was asked in values that are valid as far as that shows without the stream,
and turns the answering values into responses. What every store owes is tested by `durable_streams.testing.check_store`:

- Appends, closes and deletes of one stream are linearizable. Each is decided (`protocol.decide`) and carried out in
  one critical section, together with the producer's state, `Stream-Seq` and closure: all of it or nothing.
- So are creations (`creation.decide_repetition`, `creation.decide_birth`). A fork and the edge that keeps its source's
  data appear in one step: no source is removed under a fork that is being made.
- A source that is deleted, or expires, while it has edges becomes soft-deleted: `Gone` for everyone, its watchers
  included, while its forks read on. It is removed when its last edge goes, and so on up the chain; a `sweep` later at
  the latest. Appends to a source after the fork neither show in the fork nor wake who waits there.
- A call returns when its effect is durable, in the store's sense, and readers see only durable data.
- Cancelling a waiting call neither tears nor undoes what it began: the effect happens wholly or not at all.
- A page is one snapshot: data, tail and closure belong together, whatever happens while it is sent.
- `now` is wall-clock time in seconds. A stream past its expiry is treated as absent by every call.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from ..creation import Birth, CreateRequest, Fork, ForkSource, StreamConfig
from ..offsets import Offset
from ..protocol import (
    Appended,
    AppendRequest,
    Commit,
    Duplicate,
    InvalidJson,
    Payload,
    ProducerStamp,
    ProducerState,
    Reason,
    Refused,
    StreamState,
)
from ..timestamps import Instant

__all__ = [
    "AppendRequest",
    "Appended",
    "BadOffset",
    "Birth",
    "Commit",
    "CreateRequest",
    "Created",
    "Deleted",
    "Duplicate",
    "Exists",
    "Fork",
    "ForkSource",
    "Gone",
    "InvalidJson",
    "Missing",
    "Payload",
    "ProducerStamp",
    "ProducerState",
    "Reason",
    "Refused",
    "SoftDeleted",
    "Store",
    "StorePage",
    "StreamConfig",
    "StreamInfo",
    "StreamRef",
    "StreamState",
    "Watch",
]


@dataclass(frozen=True, slots=True)
class StreamRef:
    """One life of a stream: a path that is deleted and created again has a new incarnation.

    Attributes:
        path: Normalised URL path.
        incarnation: Random text, unique per creation; part of entity tags.
    """

    path: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream as it is at one moment.

    Attributes:
        ref: Which stream.
        content_type: As given at creation.
        tail: Offset after the last byte.
        closed: Whether it is closed.
        ttl: Idle window in seconds, or None.
        expires_at: Absolute expiry, or None.
    """

    ref: StreamRef
    content_type: str
    tail: Offset
    closed: bool
    ttl: int | None = None
    expires_at: Instant | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """The stream is new; durable."""

    info: StreamInfo


@dataclass(frozen=True, slots=True)
class Exists:
    """A stream of the same configuration was there already; nothing was changed."""

    info: StreamInfo


@dataclass(frozen=True, slots=True)
class Deleted:
    """The stream and its data are gone; durable."""


@dataclass(frozen=True, slots=True)
class SoftDeleted:
    """The stream is gone for everyone but the forks that need its data."""


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no such stream, it was deleted, or it has expired."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The stream is soft-deleted."""


@dataclass(frozen=True, slots=True)
class BadOffset:
    """No position of this stream: beyond the tail, or in JSON mode inside a message. `problem` says which."""

    problem: str


class StorePage(Protocol):
    """A range of a stream, ready to be sent: one snapshot.

    Attributes:
        start: First offset.
        end: Offset after the last byte; `start` if there is nothing to read.
        tail: The stream's tail in this snapshot.
        closed: Whether the stream is closed in this snapshot.
        size: Stored bytes in the range. In JSON mode these are messages each followed by a comma.
    """

    @property
    def start(self) -> Offset:
        """First offset."""
        ...

    @property
    def end(self) -> Offset:
        """Offset after the last byte."""
        ...

    @property
    def tail(self) -> Offset:
        """The stream's tail in this snapshot."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the stream is closed in this snapshot."""
        ...

    @property
    def size(self) -> int:
        """Stored bytes in the range, known before the first piece."""
        ...

    async def next_piece(self) -> bytes | memoryview | None:
        """The next bytes, at most 1 MiB of them; None at the end."""
        ...

    async def aclose(self) -> None:
        """Release what the page holds. Idempotent."""
        ...


class Watch(Protocol):
    """One attached live reader. While there is one, a TTL does not run out.

    Attributes:
        tail: The newest tail.
        closed: Whether the stream is closed.
        gone: Whether this incarnation was deleted or has expired, or the store was closed.
    """

    @property
    def tail(self) -> Offset:
        """The newest tail."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the stream is closed."""
        ...

    @property
    def gone(self) -> bool:
        """Whether this incarnation no longer exists."""
        ...

    async def wait(self, seen: Offset) -> None:
        """Return as soon as the tail is beyond `seen`, or the stream is closed or gone; at once if it already is."""
        ...

    def close(self) -> None:
        """Detach. Idempotent."""
        ...


CreateResult: TypeAlias = Created | Exists | Refused
AppendResult: TypeAlias = Appended | Duplicate | Refused
DeleteResult: TypeAlias = Deleted | SoftDeleted | Refused


class Store(Protocol):
    """Keeps streams, see the contract at the top of this module. An async context manager around all use."""

    async def __aenter__(self) -> Self:
        """Open the store."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it: what was acknowledged is safe, all watches are gone."""
        ...

    async def create(self, r: CreateRequest, now: float) -> CreateResult:
        """Create a stream, or confirm that it exists as requested. Of several racing calls one gets `Created`.

        An existing stream is looked at first (`decide_repetition`), so its repetition succeeds whatever the body and
        whatever became of a fork's source. Else carries out `decide_birth`.
        """
        ...

    async def append(self, r: AppendRequest, now: float) -> AppendResult:
        """Carry out `protocol.decide`. Success and duplicates renew a TTL."""
        ...

    async def delete(self, path: str, now: float) -> DeleteResult:
        """Delete a stream and wake all who watch it; with `SoftDeleted` if forks need its data.

        Refuses with `NOT_FOUND` or `GONE`.
        """
        ...

    async def head(self, path: str, now: float) -> StreamInfo | Missing | Gone:
        """Look at a stream. Does not renew a TTL."""
        ...

    async def read(self, ref: StreamRef, offset: Offset, max_bytes: int) -> StorePage | BadOffset | Missing | Gone:
        """A page from `offset` on, of at most `max_bytes`, and in JSON mode at least one message.

        Pages end where an append ends. Only an append that alone exceeds `max_bytes` is divided: in JSON mode between
        messages, in `text/*` between characters if possible, else anywhere.
        """
        ...

    def watch(self, ref: StreamRef) -> Watch:
        """Attach a live reader. Call it before the last look at the tail, and `Watch.close` in the end."""
        ...

    def touch(self, ref: StreamRef, now: float) -> None:
        """Renew a TTL, in memory; nothing is written per read."""
        ...

    async def sweep(self, now: float) -> None:
        """Remove what has expired, and the sources that only expired forks kept."""
        ...
