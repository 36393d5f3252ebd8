"""Opening a store's file only to read it, whoever else has it open.

SQLite's write-ahead log lets one process write while others read: what is read inside the block is the store as it was
when the block began. Meanwhile the log cannot be reused and grows with what is appended. Nothing is changed in the
file; beside it SQLite may leave an empty `-wal` and a `-shm`, as it does for every reader.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..stores.errors import StoreError, StoreFormatError
from ..stores.sqlite_schema import APPLICATION_ID, SCHEMA_VERSION

_BUSY_SECONDS = 10.0
_OLDEST_VERSION = 2


@contextmanager
def open_snapshot(path: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    """A connection that sees one state of a store, for the length of the block.

    Raises:
        StoreFormatError: if the file is no store, was made by another release, or is damaged.
        StoreError: if it cannot be opened or read.
    """
    with connect_to_read(path) as connection:
        name = os.fspath(path)
        try:
            connection.execute("BEGIN")
            with making_sense(name):
                check_kind(connection, name)
            yield connection
        except sqlite3.OperationalError as error:
            raise StoreError(f"{name}: reading failed: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreFormatError(f"{name}: not a store, or damaged: {error}") from error


@contextmanager
def connect_to_read(path: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write, to a file that has to be there. Rows come as `sqlite3.Row`.

    Text that is no UTF-8 comes with surrogate escapes: it is for the caller to find it wrong.

    Raises:
        StoreError: if the file is not there or cannot be opened.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise StoreError(f"{name}: there is no such file")
    uri = f"{Path(name).absolute().as_uri()}?mode=ro"
    try:
        connection = sqlite3.connect(
            uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise StoreError(f"{name}: cannot be opened: {error}") from error
    try:
        connection.row_factory = sqlite3.Row
        connection.text_factory = _decode
        yield connection
    finally:
        connection.close()


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


@contextmanager
def making_sense(path: str | os.PathLike[str]) -> Iterator[None]:
    """What cannot be understood in the block is damage.

    Raises:
        StoreFormatError: for it.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise StoreFormatError(f"{os.fspath(path)}: damaged: {error}; `durable-streams verify` tells where") from error


def check_kind(connection: sqlite3.Connection, name: str) -> None:
    """Make sure that a database is a store that this release can read.

    Raises:
        StoreFormatError: if it is not.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise StoreFormatError(f"{name}: a database of another program, not a store")
    found = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    version = None if found is None else found[0]
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise StoreFormatError(
            f"{name}: made by a newer release (schema {version}, this release knows up to {SCHEMA_VERSION})"
        )
    if version < _OLDEST_VERSION:
        raise StoreFormatError(
            f"{name}: made by an older release (schema {version}); serve it once, which brings it up to date"
        )
