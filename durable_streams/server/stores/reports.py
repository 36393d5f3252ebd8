"""What operators are told of a store: values, and their form as lines of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..offsets import Offset, format_offset
from ..subscriptions.model import BEFORE, Link
from ..subscriptions.records import Record


@dataclass(frozen=True, slots=True)
class StoreReport:
    """A store as a whole.

    Attributes:
        path: Its file, or "memory".
        streams: How many streams there are.
        soft_deleted: How many deleted ones are kept for their forks.
        removed: How many removed ones still have data that is to be purged.
        subscriptions: How many subscriptions.
        file_bytes: Size of the file; of all data, if there is none.
        log_bytes: Size of the write-ahead log beside it.
        free_bytes: How much of the file can be used again.
        schema_version: Of its tables; None if it has none.
        clean: Whether it was closed properly. False while a server has it open, and after a crash.
    """

    path: str
    streams: int
    soft_deleted: int
    removed: int
    subscriptions: int
    file_bytes: int
    log_bytes: int = 0
    free_bytes: int = 0
    schema_version: int | None = None
    clean: bool | None = None

    def line(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kind": "store",
            "store": self.path,
            "streams": self.streams,
            "soft_deleted": self.soft_deleted,
            "removed": self.removed,
            "subscriptions": self.subscriptions,
            "file_bytes": self.file_bytes,
            "log_bytes": self.log_bytes,
            "free_bytes": self.free_bytes,
            "schema_version": self.schema_version,
            "closed_cleanly": self.clean,
        }


@dataclass(frozen=True, slots=True)
class StreamReport:
    """A stream.

    Attributes:
        path: Full path.
        content_type: Its content type.
        tail: Offset after the last byte.
        size: Bytes of its own, without what a fork inherits.
        closed: Whether it is closed.
        soft_deleted: Whether it was deleted, and is kept for its forks.
        ttl: Idle window in seconds, or None.
        expires_at: Absolute expiry as it was given, or None.
        last_used: When it was used last, as far as that is stored; moves only if there is a TTL.
        fork_of: The stream that it is a fork of, or None.
        forks: How many forks it has.
        producers: How many producers it knows.
    """

    path: str
    content_type: str
    tail: Offset
    size: int
    closed: bool
    soft_deleted: bool
    ttl: int | None
    expires_at: str | None
    last_used: float
    fork_of: str | None
    forks: int
    producers: int

    def line(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kind": "stream",
            "path": self.path,
            "content_type": self.content_type,
            "offset": format_offset(self.tail),
            "bytes": self.size,
            "closed": self.closed,
            "soft_deleted": self.soft_deleted,
            "ttl": self.ttl,
            "expires_at": self.expires_at,
            "last_used": self.last_used,
            "fork_of": self.fork_of,
            "forks": self.forks,
            "producers": self.producers,
        }


@dataclass(frozen=True, slots=True)
class ProducerReport:
    """A producer of a stream.

    Attributes:
        stream: Full path.
        id: Its name.
        epoch: Its epoch.
        seq: Its last sequence number.
        tail: The stream's tail after its last request; None if that is not known.
        updated: When that was.
    """

    stream: str
    id: str
    epoch: int
    seq: int
    tail: Offset | None
    updated: float

    def line(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kind": "producer",
            "stream": self.stream,
            "id": self.id,
            "epoch": self.epoch,
            "seq": self.seq,
            "offset": None if self.tail is None else format_offset(self.tail),
            "updated": self.updated,
        }


@dataclass(frozen=True, slots=True)
class SubscriptionReport:
    """A subscription.

    Attributes:
        id: As the client chose it.
        root: Full path below which its streams live.
        kind: "webhook" or "pull-wake".
        pattern: Glob, or None.
        generation: How often it was woken.
        holder: The worker that has it, or None.
        lease_until: When its lease ends, or None.
        failures: Failed deliveries in a row.
        cursors: Full path of each stream -> offset after what was processed; None before the first.
    """

    id: str
    root: str
    kind: str
    pattern: str | None
    generation: int
    holder: str | None
    lease_until: float | None
    failures: int
    cursors: Mapping[str, Offset | None]

    @classmethod
    def of(cls, record: Record, links: Mapping[str, Link]) -> SubscriptionReport:
        """What there is to tell of a subscription."""
        state = record.state
        return cls(
            record.id,
            record.root,
            record.config.kind,
            record.config.pattern,
            state.generation,
            state.holder,
            state.lease_until,
            state.failures,
            {path: None if link.acked == BEFORE else link.acked for path, link in links.items()},
        )

    def line(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kind": "subscription",
            "id": self.id,
            "root": self.root,
            "type": self.kind,
            "pattern": self.pattern,
            "generation": self.generation,
            "holder": self.holder,
            "lease_until": self.lease_until,
            "failures": self.failures,
            "streams": {
                path: "-1" if offset is None else format_offset(offset) for path, offset in self.cursors.items()
            },
        }


@runtime_checkable
class InspectableStore(Protocol):
    """Tells operators of itself while it is open. Both stores of ours do; a server needs it for `inspection`.

    A prefix is that of a path by whole segments: `/v1/stream/a` stands for that stream and those below it.
    """

    async def report(self) -> StoreReport:
        """The store as a whole."""
        ...

    async def report_streams(self, prefix: str, after: str, limit: int) -> Sequence[StreamReport]:
        """Streams in the order of their paths, from the first behind `after` on; soft-deleted ones, too."""
        ...

    async def report_producers(self, path: str, limit: int) -> Sequence[ProducerReport]:
        """The producers of a stream, those first that were seen last."""
        ...
