"""What operators are told of a store in SQLite, read by one connection."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress

from .reports import ProducerReport, StoreReport, StreamReport
from .sqlite_schema import LIVE, REMOVED, SOFT_DELETED

# '0' is the character behind '/': what lies between is all that is below a path.
_STREAMS = """
SELECT path, effective_type, state, base, closed, effective_ttl, effective_expires_at, last_access, fork_path,
       (SELECT max(end_offset) FROM blocks WHERE stream = streams.id),
       (SELECT count(*) FROM fork_edges WHERE source = streams.id),
       (SELECT count(*) FROM producers WHERE stream = streams.id)
FROM streams
WHERE state < 2 AND path > :after AND path >= :prefix
      AND (:prefix = '' OR path = :prefix OR (path > :prefix || '/' AND path < :prefix || '0'))
ORDER BY path LIMIT :limit
"""
_PRODUCERS = """
SELECT path, producer, epoch, seq, tail, updated
FROM producers JOIN streams ON streams.id = producers.stream
WHERE path = ? AND state < 2 ORDER BY updated DESC, producer LIMIT ?
"""


def report_store(connection: sqlite3.Connection, path: str) -> StoreReport:
    """The store as a whole."""

    def value(query: str) -> int:
        (found,) = connection.execute(query).fetchone()
        return int(found)

    states = dict(connection.execute("SELECT state, count(*) FROM streams GROUP BY state").fetchall())
    size = log = 0
    with suppress(FileNotFoundError):
        size = os.path.getsize(path)
        log = os.path.getsize(f"{path}-wal")
    return StoreReport(
        path,
        states.get(LIVE, 0),
        states.get(SOFT_DELETED, 0),
        states.get(REMOVED, 0),
        value("SELECT count(*) FROM subscriptions"),
        size,
        log,
        value("PRAGMA freelist_count") * value("PRAGMA page_size"),
        value("SELECT value FROM meta WHERE key = 'schema_version'"),
        bool(value("SELECT coalesce((SELECT value FROM meta WHERE key = 'closed_cleanly'), 1)")),
    )


def report_streams(connection: sqlite3.Connection, prefix: str, after: str, limit: int) -> list[StreamReport]:
    """Streams in the order of their paths, see `InspectableStore`."""
    found = connection.execute(_STREAMS, {"prefix": prefix, "after": after, "limit": limit})
    reports = []
    for path, kind, state, base, closed, ttl, expires_at, used, fork_of, end, forks, producers in found.fetchall():
        tail = base if end is None else end
        deleted = state == SOFT_DELETED
        reports.append(
            StreamReport(
                *(path, kind, tail, tail - base, bool(closed), deleted, ttl, expires_at, used, fork_of),
                *(forks, producers),
            )
        )
    return reports


def report_producers(connection: sqlite3.Connection, path: str, limit: int) -> list[ProducerReport]:
    """The producers of a stream, see `InspectableStore`."""
    return [ProducerReport(*row) for row in connection.execute(_PRODUCERS, (path, limit)).fetchall()]
