"""Checksums of rows: what SQLite does not have, and `verify_store` needs.

SQLite checks the structure of its pages, but a bit that flips inside a value goes unnoticed. So every row carries a
CRC-32 of all its values, which the writer computes and nothing but `verify_store` reads. It costs a few tenths of a
microsecond per row, and a millisecond per MiB of data at most. (The edges of forks have none: they say nothing that
`streams` does not say.)

A block that was written before there were checksums has none (`meta` tells up to which row that may be so); all others
got theirs when the store was brought up to date.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from struct import Struct
from zlib import crc32

_BLOCK = Struct("<qqdqq").pack

#: Columns of `streams` that never change, and those that do. Each row's checksum is of all of them, in this order.
FIXED = (
    *("id", "path", "incarnation", "content_type", "ttl", "expires_at", "fork_path", "fork_offset", "fork_sub_offset"),
    *("effective_type", "effective_ttl", "effective_expires_at", "source", "base", "depth", "created"),
)
CHANGING = ("state", "closed", "closed_by", "closed_epoch", "closed_seq", "last_seq", "last_access", "expires")
_REAL = frozenset(("created", "last_access", "expires"))
#: Small tables, and what the checksum of a row is of.
SMALL: dict[str, tuple[str, ...]] = {
    "meta": ("key", "value"),
    "subscriptions": ("path", "incarnation", "record"),
    "subscription_links": ("subscription", "stream", "acked", "explicit", "glob", "incarnation"),
    "secrets": ("name", "value"),
}


def block_checksum(
    stream: int, end: int, written: float, appends: bytes | None, messages: bytes | None, data: bytes
) -> int:
    """Checksum of a row of `blocks`."""
    seed = crc32(
        _BLOCK(stream, end, written, -1 if appends is None else len(appends), -1 if messages is None else len(messages))
    )
    if appends:
        seed = crc32(appends, seed)
    if messages:
        seed = crc32(messages, seed)
    return crc32(data, seed)


def producer_checksum(stream: int, producer: str, epoch: int, seq: int, tail: int | None, updated: float) -> int:
    """Checksum of a row of `producers`. In rows of older releases `tail` is None."""
    text = f"{stream} {epoch} {seq} {tail} {float(updated)!r} {producer}"
    return crc32(text.encode("utf-8", "surrogatepass"))  # what cannot be stored is refused by SQLite


def fixed_checksum(row: Mapping[str, object]) -> int:
    """Checksum of the values of a stream that never change."""
    return _of_values(row, FIXED, 0)


def stream_checksum(row: Mapping[str, object], fixed: int) -> int:
    """Checksum of a row of `streams`.

    Args:
        row: The values that change.
        fixed: `fixed_checksum` of the others.
    """
    return _of_values(row, CHANGING, fixed)


def values_checksum(*values: object) -> int:
    """Checksum of a row of one of the `SMALL` tables."""
    plain = [int(value) if isinstance(value, bool) else value for value in values]
    return crc32(repr(plain).encode("utf-8", "surrogatepass"))


def _of_values(row: Mapping[str, object], names: Iterable[str], seed: int) -> int:
    """The same for values that are to be stored and for those that were: SQLite has neither bool nor whole reals."""
    values: list[object] = []
    for name in names:
        value = row[name]
        if isinstance(value, bool):
            value = int(value)
        elif name in _REAL and isinstance(value, int):
            value = float(value)
        values.append(value)
    return crc32(repr(values).encode("utf-8", "surrogatepass"), seed)


def add_checksums(connection: sqlite3.Connection) -> None:
    """Bring a store of version 1 up to date: new columns, and values for all rows but those of data.

    Reading all data might take hours; `meta` remembers which of it has no checksum.
    """
    for statement in (
        "ALTER TABLE blocks ADD COLUMN checksum INTEGER",
        "ALTER TABLE producers ADD COLUMN tail INTEGER",
        "ALTER TABLE producers ADD COLUMN checksum INTEGER",
        "ALTER TABLE streams ADD COLUMN checksum INTEGER",
        *(f"ALTER TABLE {table} ADD COLUMN checksum INTEGER" for table in SMALL),
        "INSERT OR REPLACE INTO meta SELECT 'blocks_without_checksum', coalesce(max(rowid), 0), NULL FROM blocks",
    ):
        connection.execute(statement)
    names: Sequence[str] = (*FIXED, *CHANGING)

    def of_stream(*values: object) -> int:
        row = dict(zip(names, values, strict=True))
        return stream_checksum(row, fixed_checksum(row))

    producer = ("stream", "producer", "epoch", "seq", "tail", "updated")
    tables: list[tuple[str, Sequence[str], Callable[..., int]]] = [
        ("producers", producer, producer_checksum),
        ("streams", names, of_stream),
        *((table, columns, values_checksum) for table, columns in SMALL.items()),
    ]
    for table, columns, function in tables:
        connection.create_function("row_checksum", len(columns), function, deterministic=True)
        connection.execute(f"UPDATE {table} SET checksum = row_checksum({', '.join(columns)})")  # noqa: S608  # constants
        connection.create_function("row_checksum", len(columns), None)
