"""The tables of a store, and opening the file they are in.

What is where:

- `streams` has a row for each incarnation of a stream: what was asked for at its creation, what holds in effect (a fork
  inherits), and what changes rarely. A plain append does not touch this row: a stream's tail is where its last block
  ends, or `base` while it has none. So nothing can disagree about it, and an append writes one table.
- `blocks` has the data: what one transaction added to one stream, as one row of at most 1 MiB (`sqlite_blocks`). Rows
  lie in the order in which they were written; the index finds them by stream and offset. `data` comes after all that
  requests read, for SQLite reads a row from its beginning: the others are read without it.
- `producers` has the state of each producer, for as long as its stream lives, and what the stream's tail was when the
  producer's last request was accepted.
- `fork_edges` has a row for each fork whose source must not go. A row, and no counter: adding and removing it can be
  repeated. A fork reads the blocks of its source up to `base`, and its own from there on.
- `subscriptions` and `subscription_links` have what `SubscriptionStore` is given, `secrets` what it keeps secret.
- `meta` has the schema's version and what else there is one of.
- The `checksum` of a row is there for `verify_store` (`sqlite_checksums`).

A stream that is deleted keeps its row in the state `REMOVED` until its blocks have been removed, a few at a time.

A schema of an older version is brought up to date step by step when it is opened (`MIGRATIONS`), one of a newer version
is refused. The file carries `APPLICATION_ID`, so that another program's database is not taken for a store.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, TypeAlias

from .errors import StoreError, StoreFormatError
from .sqlite_checksums import add_checksums, values_checksum

Durability: TypeAlias = Literal["full", "relaxed"]
Check: TypeAlias = Literal["auto", "quick", "full", "none"]

#: Oldest SQLite with all that is used here: partial indexes, upsert, `PRAGMA quick_check`.
MIN_SQLITE = (3, 31, 0)
#: "DStr", in the header of every store.
APPLICATION_ID = 0x44537472
SCHEMA_VERSION = 2

# Values of `streams.state`.
LIVE = 0
SOFT_DELETED = 1  # nobody sees it, but forks need its data
REMOVED = 2  # gone; its rows are still to be purged

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value, checksum INTEGER) WITHOUT ROWID;

CREATE TABLE streams (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    state INTEGER NOT NULL,
    content_type TEXT, ttl INTEGER, expires_at TEXT,
    fork_path TEXT, fork_offset INTEGER, fork_sub_offset INTEGER,
    effective_type TEXT NOT NULL, effective_ttl INTEGER, effective_expires_at TEXT,
    source INTEGER, base INTEGER NOT NULL, depth INTEGER NOT NULL,
    closed INTEGER NOT NULL, closed_by TEXT, closed_epoch INTEGER, closed_seq INTEGER,
    last_seq BLOB,
    created REAL NOT NULL, last_access REAL NOT NULL, expires REAL,
    checksum INTEGER
);
CREATE UNIQUE INDEX streams_by_path ON streams (path) WHERE state < 2;
CREATE INDEX streams_by_expiry ON streams (expires) WHERE expires IS NOT NULL;
CREATE INDEX streams_removed ON streams (id) WHERE state = 2;

CREATE TABLE blocks (
    stream INTEGER NOT NULL, end_offset INTEGER NOT NULL, written REAL NOT NULL,
    appends BLOB, messages BLOB, data BLOB NOT NULL, checksum INTEGER
);
CREATE UNIQUE INDEX blocks_by_offset ON blocks (stream, end_offset);

CREATE TABLE producers (
    stream INTEGER NOT NULL, producer TEXT NOT NULL,
    epoch INTEGER NOT NULL, seq INTEGER NOT NULL, tail INTEGER, updated REAL NOT NULL,
    checksum INTEGER,
    PRIMARY KEY (stream, producer)
) WITHOUT ROWID;

CREATE TABLE fork_edges (fork INTEGER PRIMARY KEY, source INTEGER NOT NULL);
CREATE INDEX fork_edges_by_source ON fork_edges (source);

CREATE TABLE subscriptions (
    path TEXT PRIMARY KEY, incarnation TEXT NOT NULL, record TEXT NOT NULL, checksum INTEGER
);
CREATE TABLE subscription_links (
    subscription TEXT NOT NULL, stream TEXT NOT NULL, acked INTEGER NOT NULL,
    explicit INTEGER NOT NULL, glob INTEGER NOT NULL, incarnation TEXT NOT NULL,
    checksum INTEGER,
    PRIMARY KEY (subscription, stream)
) WITHOUT ROWID;
CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER);
"""

#: Version -> what makes the next version of it, inside a transaction.
MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {1: add_checksums}

# A file of up to this size is checked whenever it is opened: that takes a few hundredths of a second.
_CHECKED_BYTES = 16 << 20
_BUSY_SECONDS = 10.0
_WRITER_CACHE_KIB = 16 * 1024
# The WAL is written over and over, which needs no new blocks from the file system; after a burst it shrinks to this.
_KEPT_WAL_BYTES = 64 << 20


def connect_writer(path: str, durability: Durability, check: Check) -> sqlite3.Connection:
    """Open the store for writing; make it, bring it up to date and check it if need be.

    Whoever calls has the store's lock. The connection is in autocommit mode and may be handed to another thread.

    Raises:
        StoreFormatError: if the file is no store, one of a newer release, or damaged.
        StoreError: if it cannot be opened or made.
    """
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        needed = ".".join(map(str, MIN_SQLITE))
        raise StoreError(f"{path}: SQLite {needed} or later is needed, Python has {sqlite3.sqlite_version}")
    try:
        # There are secrets in it. SQLite gives the files that it makes beside the database the same permissions.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = _connect(path)
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreError(f"{path}: cannot be opened: {reason}") from error
    try:
        _prepare(connection, path)
        _check(connection, path, check)
        for pragma in (
            f"synchronous = {'FULL' if durability == 'full' else 'NORMAL'}",
            "fullfsync = ON",  # macOS: otherwise fsync stops at the disk's own cache
            "checkpoint_fullfsync = ON",
            "wal_autocheckpoint = 0",  # `Writer` does it, between two batches
            f"journal_size_limit = {_KEPT_WAL_BYTES}",
            f"cache_size = -{_WRITER_CACHE_KIB}",
            "secure_delete = OFF",  # some builds overwrite whatever is freed
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except sqlite3.DatabaseError as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError):
            raise StoreError(f"{path}: cannot be opened: {error}") from error
        raise StoreFormatError(f"{path}: not a store, or damaged: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables and indexes of a store, in the newest version."""
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)


def connect_reader(path: str) -> sqlite3.Connection:
    """Open the store for reading. The connection may be used by several threads, one after the other."""
    connection = _connect(path)
    connection.execute("PRAGMA query_only = ON")
    return connection


def note_opening(connection: sqlite3.Connection, now: float) -> float:
    """Enter that the store is open, so that the next opening knows whether it was closed.

    Returns:
        The time before which no TTL began: that of the last opening after a crash.
    """
    with _Transaction(connection):
        floor = float(_read_meta(connection, "access_floor", float("-inf")))
        if not _read_meta(connection, "closed_cleanly", 1):
            floor = now
            write_meta(connection, "access_floor", floor)
        write_meta(connection, "closed_cleanly", 0)
    return floor


def _connect(path: str, factory: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
    return sqlite3.connect(
        path,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        factory=factory,
    )


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    """Make the tables in a new file, or bring those of an old one up to date."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application_id == 0 and not tables:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has to come before anything is written
        _use_wal(connection, path)
        with _Transaction(connection):
            create_tables(connection)
            write_meta(connection, "schema_version", SCHEMA_VERSION)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        return
    if application_id != APPLICATION_ID:
        raise StoreFormatError(f"{path}: a database of another program, not a store")
    version = _read_meta(connection, "schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise StoreFormatError(
            f"{path}: made by a newer release (schema {version}, this release knows up to {SCHEMA_VERSION})"
        )
    _use_wal(connection, path)
    for step in range(version, SCHEMA_VERSION):
        with _Transaction(connection):
            MIGRATIONS[step](connection)
            write_meta(connection, "schema_version", step + 1)


def _use_wal(connection: sqlite3.Connection, path: str) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(f"{path}: SQLite cannot use a write-ahead log here (journal mode {mode!r})")


def _check(connection: sqlite3.Connection, path: str, check: Check) -> None:
    """Look for damage, see `SQLiteStore`."""
    if check == "none" or (check == "auto" and os.path.getsize(path) > _CHECKED_BYTES):
        return
    pragma = "integrity_check" if check == "full" else "quick_check"
    (first,) = connection.execute(f"PRAGMA {pragma}(1)").fetchone()
    if first != "ok":
        raise StoreFormatError(f"{path}: damaged: {first}")


def _read_meta(connection: sqlite3.Connection, key: str, default: Any = None) -> Any:
    found = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return default if found is None else found[0]


def write_meta(connection: sqlite3.Connection, key: str, value: object) -> None:
    """Set one of the values in `meta`, inside a transaction."""
    row = (key, value, values_checksum(key, value))
    connection.execute("INSERT OR REPLACE INTO meta (key, value, checksum) VALUES (?, ?, ?)", row)


class _Transaction:
    """Commits what is done inside the block, or nothing of it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._connection.execute("COMMIT" if kind is None else "ROLLBACK")
