"""Streams, their data and their producers as rows: the one place that knows how these are written."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from ..._core.wire import media_type
from ..creation import Fork, StreamConfig
from ..offsets import Offset
from ..protocol import ProducerStamp, ProducerState, StreamState
from ..timestamps import Instant
from .base import StreamInfo, StreamRef
from .sqlite_access import expiry
from .sqlite_blocks import Block, Lineage, branch, pack
from .sqlite_checksums import block_checksum, fixed_checksum, producer_checksum, stream_checksum
from .sqlite_schema import LIVE, REMOVED, SOFT_DELETED

_LOAD = """
SELECT *, (SELECT max(end_offset) FROM blocks WHERE stream = streams.id) AS last_end
FROM streams WHERE path = ? AND state < 2
"""
_LIST = """
SELECT *, (SELECT max(end_offset) FROM blocks WHERE stream = streams.id) AS last_end
FROM streams WHERE path >= ? AND state < 2 AND state = 0 ORDER BY path LIMIT ?
"""

# From a stream up to the first of its ancestors.
_ANCESTORS = """
WITH RECURSIVE ancestors (id, source, base, generation) AS (
    SELECT id, source, base, 0 FROM streams WHERE id = ?
    UNION ALL
    SELECT streams.id, streams.source, streams.base, generation + 1
    FROM streams JOIN ancestors ON streams.id = ancestors.source
)
SELECT id, base FROM ancestors ORDER BY generation DESC
"""

_INSERT = """
INSERT INTO streams (id, path, incarnation, state,
                     content_type, ttl, expires_at, fork_path, fork_offset, fork_sub_offset,
                     effective_type, effective_ttl, effective_expires_at, source, base, depth,
                     closed, closed_by, closed_epoch, closed_seq, last_seq, created, last_access, expires,
                     checksum)
VALUES (:id, :path, :incarnation, :state,
        :content_type, :ttl, :expires_at, :fork_path, :fork_offset, :fork_sub_offset,
        :effective_type, :effective_ttl, :effective_expires_at, :source, :base, :depth,
        :closed, :closed_by, :closed_epoch, :closed_seq, :last_seq, :created, :last_access, :expires,
        :checksum)
"""

_UPDATE = """
UPDATE streams SET state = :state, closed = :closed, closed_by = :closed_by, closed_epoch = :closed_epoch,
                   closed_seq = :closed_seq, last_seq = :last_seq, last_access = :last_access, expires = :expires,
                   checksum = :checksum
WHERE id = :id
"""

#: Takes a `producer_row`.
SET_PRODUCER = """
INSERT INTO producers (stream, producer, epoch, seq, tail, updated, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (stream, producer) DO UPDATE SET
    epoch = excluded.epoch, seq = excluded.seq, tail = excluded.tail, updated = excluded.updated,
    checksum = excluded.checksum
"""
#: Takes a `block_row`.
ADD_BLOCK = """
INSERT INTO blocks (stream, end_offset, written, appends, messages, data, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)
"""


@dataclass(slots=True)
class Record:
    """A stream as the database has it, or is about to have it.

    Attributes:
        id: Number of the incarnation, never used again while the store is open.
        ref: Path and incarnation.
        asked: What was asked for at its creation.
        config: What it became.
        state: What decides about appends.
        created: When it was created.
        last_access: When it was last used, as far as that is stored. Moves only if there is a TTL.
        lineage: Where its data lies.
        source: Number of the incarnation that it is a fork of, or None.
        base: Where its own data begins: its fork offset, or 0.
        depth: How many ancestors it has.
        removed: Whether it is gone.
        fixed_checksum: Of what never changes; None until it is needed.
    """

    id: int
    ref: StreamRef
    asked: StreamConfig
    config: StreamConfig
    state: StreamState
    created: float
    last_access: float
    lineage: Lineage
    source: int | None = None
    base: Offset = 0
    depth: int = 0
    removed: bool = False
    fixed_checksum: int | None = None

    def info(self) -> StreamInfo:
        """The stream in the words of the seam."""
        config, state = self.config, self.state
        return StreamInfo(self.ref, config.effective_type, state.tail, state.closed, config.ttl, config.expires_at)


@dataclass(slots=True)
class Change:
    """A stream after a commit, or as it was read, for those who must see nothing but committed data.

    Nobody changes it. That it is not frozen makes it cheaper: there is one for each stream of each commit.

    Attributes:
        id: Number of the incarnation.
        ref: Path and incarnation.
        config: What it became.
        lineage: Where its data lies.
        tail: Offset after the last byte.
        closed: Whether it is closed.
        deleted: Whether it is soft-deleted.
        removed: Whether it is gone.
        last_access: See `Record`.
        blocks: What the commit added.
    """

    id: int
    ref: StreamRef
    config: StreamConfig
    lineage: Lineage
    tail: Offset
    closed: bool
    deleted: bool
    removed: bool
    last_access: float
    blocks: Sequence[Block] = ()

    @classmethod
    def of(cls, record: Record, blocks: Sequence[Block] = ()) -> Change:
        """What there is to say about a record now."""
        state = record.state
        return cls(
            record.id,
            record.ref,
            record.config,
            record.lineage,
            state.tail,
            state.closed,
            state.deleted,
            record.removed,
            record.last_access,
            blocks,
        )


def load(connection: sqlite3.Connection, path: str) -> Record | None:
    """The stream at a path, which may be soft-deleted or past its expiry; None if there is none."""
    rows = _rows(connection, _LOAD, (path,))
    return _record(rows[0], connection) if rows else None


def list_records(connection: sqlite3.Connection, prefix: str, after: str, limit: int) -> list[Record]:
    """Streams whose path begins with `prefix` and is greater than `after`, in order; without soft-deleted ones.

    Their lineage is left out.
    """
    rows = _rows(connection, _LIST, (max(prefix, after + "\0"), limit))  # no path lies between `after` and that
    return [_record(row) for row in rows if row["path"].startswith(prefix)]


def _rows(connection: sqlite3.Connection, statement: str, parameters: tuple[object, ...]) -> list[sqlite3.Row]:
    cursor = connection.execute(statement, parameters)
    cursor.row_factory = sqlite3.Row
    return cursor.fetchall()


def _record(row: sqlite3.Row, connection: sqlite3.Connection | None = None) -> Record:
    """The record of a row. Without a connection its lineage is left out."""
    fork = became_fork = None
    if row["fork_path"] is not None:
        fork = Fork(row["fork_path"], row["fork_offset"], row["fork_sub_offset"])
        became_fork = Fork(row["fork_path"], row["base"], row["fork_sub_offset"])
    asked = StreamConfig(row["content_type"], row["ttl"], _instant(row["expires_at"]), fork)
    became = StreamConfig(
        row["effective_type"], row["effective_ttl"], _instant(row["effective_expires_at"]), became_fork
    )
    state = StreamState(
        media_type(became.effective_type),
        row["base"] if row["last_end"] is None else row["last_end"],
        bool(row["closed"]),
        None if row["closed_by"] is None else ProducerStamp(row["closed_by"], row["closed_epoch"], row["closed_seq"]),
        row["last_seq"],
        row["state"] == SOFT_DELETED,
    )
    number = row["id"]
    return Record(
        number,
        StreamRef(row["path"], row["incarnation"]),
        asked,
        became,
        state,
        row["created"],
        row["last_access"],
        () if connection is None else _lineage(connection, number, row["source"]),
        row["source"],
        row["base"],
        row["depth"],
    )


def _lineage(connection: sqlite3.Connection, stream: int, source: int | None) -> Lineage:
    if source is None:
        return branch((), stream, 0)
    lineage: Lineage = ()
    for number, base in connection.execute(_ANCESTORS, (stream,)).fetchall():
        lineage = branch(lineage, number, base)
    return lineage


def _instant(text: str | None) -> Instant | None:
    return None if text is None else Instant.parse(text)


def path_of(connection: sqlite3.Connection, stream: int) -> str:
    """The path of the stream with a number."""
    (path,) = connection.execute("SELECT path FROM streams WHERE id = ?", (stream,)).fetchone()
    return str(path)


def insert(connection: sqlite3.Connection, records: Sequence[Record]) -> None:
    """Add streams."""
    connection.executemany(_INSERT, [stream_row(record) for record in records])


def update(connection: sqlite3.Connection, records: Sequence[Record]) -> None:
    """Store what has changed since they were added."""
    connection.executemany(_UPDATE, [_changing(record) for record in records])


def stream_row(record: Record) -> dict[str, object]:
    """A stream as a row of `streams`, by column."""
    return {**_fixed(record), **_changing(record)}


def producer_row(
    stream: int, producer: str, state: ProducerState, tail: Offset | None, updated: float
) -> tuple[object, ...]:
    """A producer as a row, in the order of `SET_PRODUCER`."""
    epoch, seq = state.epoch, state.seq
    return stream, producer, epoch, seq, tail, updated, producer_checksum(stream, producer, epoch, seq, tail, updated)


def block_row(stream: int, block: Block, written: float) -> tuple[object, ...]:
    """A block as a row, in the order of `ADD_BLOCK`."""
    appends, messages, data, end = pack(block.appends), pack(block.messages), block.data, block.end
    checksum = block_checksum(stream, end, written, appends, messages, data)
    return stream, end, written, appends, messages, data, checksum


def _fixed(record: Record) -> dict[str, object]:
    asked, became = record.asked, record.config
    fork = asked.fork
    return {
        "id": record.id,
        "path": record.ref.path,
        "incarnation": record.ref.incarnation,
        "content_type": asked.content_type,
        "ttl": asked.ttl,
        "expires_at": None if asked.expires_at is None else asked.expires_at.text,
        "fork_path": None if fork is None else fork.source,
        "fork_offset": None if fork is None else fork.offset,
        "fork_sub_offset": None if fork is None else fork.sub_offset,
        "effective_type": became.effective_type,
        "effective_ttl": became.ttl,
        "effective_expires_at": None if became.expires_at is None else became.expires_at.text,
        "source": record.source,
        "base": record.base,
        "depth": record.depth,
        "created": record.created,
    }


def _changing(record: Record) -> dict[str, object]:
    state, by = record.state, record.state.closed_by
    row: dict[str, object] = {
        "id": record.id,
        "state": REMOVED if record.removed else SOFT_DELETED if state.deleted else LIVE,
        "closed": state.closed,
        "closed_by": None if by is None else by.id,
        "closed_epoch": None if by is None else by.epoch,
        "closed_seq": None if by is None else by.seq,
        "last_seq": state.last_seq,
        "last_access": record.last_access,
        "expires": None if record.removed or state.deleted else expiry(record.config, record.last_access),
    }
    if record.fixed_checksum is None:
        record.fixed_checksum = fixed_checksum(_fixed(record))
    row["checksum"] = stream_checksum(row, record.fixed_checksum)
    return row
