"""Copying a store while it is in use.

SQLite's online backup reads the pages as of one moment, inside a transaction of its own: the server appends meanwhile,
and nothing of that is in the copy. What it needs is that the log is kept until it is done, so the log grows.

The copy appears under its name when it is whole and on disk, not before.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass

from ..stores.errors import StoreError
from .snapshot import open_snapshot

# How much is copied before Ctrl-C is heard.
_STEP_PAGES = 2048


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy of a store.

    Attributes:
        path: Where it is.
        size: Its size in bytes.
        streams: How many streams are in it.
    """

    path: str
    size: int
    streams: int


def backup_store(
    path: str | os.PathLike[str], destination: str | os.PathLike[str], *, overwrite: bool = False
) -> Backup:
    """Copy a store as it is at this moment, whether or not a server has it open.

    The copy is one file, readable by its owner alone, and itself a store: it can be verified, inspected and served.
    It has everything that was acknowledged before the call, and every request wholly or not at all.

    Args:
        path: The store.
        destination: Name of the copy. Its folder must exist.
        overwrite: Whether a file of this name may be replaced.

    Raises:
        StoreError: if the store cannot be read or the copy not be written; then there is no copy, and a file that was
            to be replaced is as it was.
        StoreFormatError: if the store is none, of another release, or so damaged that SQLite cannot read it.
    """
    source, target = os.fspath(path), os.fspath(destination)
    _check_target(source, target, overwrite=overwrite)
    part = f"{target}.part-{secrets.token_hex(4)}"
    try:
        try:
            os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # there are secrets in it
        except OSError as error:
            raise StoreError(f"{target}: cannot be written: {error.strerror}") from error
        with open_snapshot(source) as snapshot:
            (streams,) = snapshot.execute("SELECT count(*) FROM streams WHERE state = 0").fetchone()
            _copy(snapshot, part, target)
        _check_target(source, target, overwrite=overwrite)
        try:
            _sync(part)
            os.replace(part, target)
            _sync(os.path.dirname(os.path.abspath(target)))
        except OSError as error:
            raise StoreError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)
    return Backup(target, os.path.getsize(target), streams)


def _check_target(source: str, target: str, *, overwrite: bool) -> None:
    exists = os.path.exists(target)
    if exists and os.path.exists(source) and os.path.samefile(source, target):
        raise StoreError(f"{target}: a store cannot be its own backup")
    if exists and not overwrite:
        raise StoreError(f"{target}: there is a file of this name already")
    for suffix in ("-wal", "-journal"):
        # SQLite would take it for the copy's, and play it back into it.
        if os.path.exists(target + suffix):
            raise StoreError(f"{target}: beside it there is the log of another database, {target}{suffix}")


def _copy(snapshot: sqlite3.Connection, part: str, target: str) -> None:
    try:
        with closing(sqlite3.connect(part, isolation_level=None)) as copy:
            copy.execute("PRAGMA synchronous = OFF")  # it is synchronised as a whole
            snapshot.backup(copy, pages=_STEP_PAGES, sleep=0, progress=_hear)
            # One file, no log beside it: it can be read from a medium that cannot be written.
            copy.execute("PRAGMA journal_mode = DELETE").fetchall()
    except sqlite3.Error as error:
        raise StoreError(f"{target}: cannot be written: {error}") from error


def _hear(*_: int) -> None:
    """Between two steps, so that Python can act on a signal: while SQLite copies, it does not."""


def _sync(path: str) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if os.name == "nt" and os.path.isdir(path):
        return  # Windows has no such thing
    descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
