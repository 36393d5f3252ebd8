"""Checking a store: the file, its pages, and whether what its rows say fits together.

Three things are looked at, each for what the one before cannot see:

1. The file: whether it is a database of ours, whole, with all its tables and indexes.
2. Every page, by SQLite's `integrity_check`: the structure of tables, and that each index has what its table has.
3. Every row: the checksums that each row carries, and the rules between rows, which are listed in `rows`.

Damage in one place does not hide another: what cannot be read is a finding, and the rest is checked. The one thing that
cannot be found is a file that is whole and merely older than it should be: one restored from a backup, or whose `-wal`
somebody has removed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from ..stores.errors import StoreFormatError
from ..stores.sqlite_schema import create_tables
from .rows import Counts, RowCheck
from .snapshot import check_kind, connect_to_read

_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a store.

    Attributes:
        where: The part: "file", "pages", "tables", a stream, a producer of one, a range of its data.
        problem: What is wrong there.
    """

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify_store` has seen and found.

    Attributes:
        path: The store.
        findings: What is wrong, in the order in which it was found; empty if all is well.
        complete: Whether everything was looked at: False if there were too many findings to go on.
        streams: How many streams were read, with those that wait for their removal.
        blocks: How many rows of data.
        data_bytes: How many bytes they hold.
        blocks_without_checksum: How many of them were written before there were checksums.
        producers: How many producers.
        subscriptions: How many subscriptions.
    """

    path: str
    findings: tuple[Finding, ...]
    complete: bool
    streams: int
    blocks: int
    data_bytes: int
    blocks_without_checksum: int
    producers: int
    subscriptions: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def verify_store(path: str | os.PathLike[str], *, max_findings: int = 1000) -> Verification:
    """Check every page of a store, and every stream, block, producer, fork and subscription in it.

    Reads the whole file, and changes nothing. It may be open in a server, which goes on; its write-ahead log then
    grows until this returns, so for a large store verify a backup instead.

    Args:
        path: The store, or a backup of one.
        max_findings: After how many findings to stop.

    Returns:
        What was found, damage of any kind included.

    Raises:
        ValueError: if `max_findings` is less than 1.
        StoreError: if the file is not there or cannot be opened.
        StoreFormatError: if it is whole, but a database of another program or of another release.
    """
    if max_findings < 1:
        raise ValueError(f"max_findings must be at least 1, got {max_findings!r}")
    name = os.fspath(path)
    report = _Report(max_findings)
    with connect_to_read(name) as connection:
        try:
            _check_all(connection, name, report)
        except _FullError:
            complete = False
        else:
            complete = True
    seen = report.counts
    return Verification(
        name,
        tuple(report.findings),
        complete,
        seen.streams,
        seen.blocks,
        seen.data_bytes,
        seen.blocks_without_checksum,
        seen.producers,
        seen.subscriptions,
    )


class _FullError(Exception):
    """There are as many findings as were asked for."""


@dataclass(slots=True)
class _Report:
    """Gathers findings."""

    most: int
    findings: list[Finding] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def add(self, where: str, problem: str) -> None:
        self.findings.append(Finding(where, problem))
        if len(self.findings) >= self.most:
            raise _FullError

    def guard(self, where: str, check: Callable[[], None]) -> bool:
        """Run a check; that something cannot be read is a finding. Returns whether it could."""
        try:
            check()
        except (sqlite3.Error, IndexError, UnicodeDecodeError) as error:  # a column is missing, or its name damaged
            self.add(where, f"cannot be read: {error}")
            return False
        return True


def _check_all(connection: sqlite3.Connection, name: str, report: _Report) -> None:
    if not _has_header(name, report):
        return
    _check_size(name, report)
    if not report.guard("file", lambda: _begin(connection, name)):
        return
    report.guard("pages", lambda: _check_pages(connection, report))
    report.guard("tables", lambda: _check_tables(connection, report))
    rows = RowCheck(connection, report.add, report.counts)
    for part, check in rows.parts():
        report.guard(part, check)


def _begin(connection: sqlite3.Connection, name: str) -> None:
    connection.execute("BEGIN")
    check_kind(connection, name)


def _has_header(name: str, report: _Report) -> bool:
    """Whether there is a database to look into.

    Raises:
        StoreFormatError: if the file never was one.
    """
    with open(name, "rb") as file:
        header = file.read(_HEADER_BYTES)
    if not header:
        raise StoreFormatError(f"{name}: the file is empty, not a store")
    if not header.startswith(_MAGIC[: len(header)]):
        raise StoreFormatError(f"{name}: not a store: the file does not begin like an SQLite database")
    if len(header) < _HEADER_BYTES:
        report.add("file", f"is torn: it ends after {len(header)} bytes, inside its header")
    return len(header) == _HEADER_BYTES


def _check_size(name: str, report: _Report) -> None:
    """Compare the file's size with what its header says: SQLite does not mind if there is more."""
    with open(name, "rb") as file:
        header = file.read(_HEADER_BYTES)
        size = os.fstat(file.fileno()).st_size
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    pages = int.from_bytes(header[28:32], "big")
    if page_size < 512 or page_size & (page_size - 1):
        report.add("file", f"has a damaged header: the size of its pages is {page_size}")
    elif not _has_log(name) and size != pages * page_size:  # with a log the newest pages are there
        report.add("file", f"is torn: it has {size} bytes, its header tells of {pages} pages of {page_size}")


def _has_log(name: str) -> bool:
    try:
        return os.path.getsize(f"{name}-wal") > 0
    except FileNotFoundError:
        return False


def _check_pages(connection: sqlite3.Connection, report: _Report) -> None:
    for (line,) in connection.execute(f"PRAGMA integrity_check({report.most})"):
        if line != "ok":
            report.add("pages", " ".join(str(line).split()))


def _check_tables(connection: sqlite3.Connection, report: _Report) -> None:
    """Compare tables and indexes with those of a new store."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        create_tables(fresh)
        expected, found = _columns(fresh), _columns(connection)
    for name in sorted(expected.keys() - found.keys()):
        report.add("tables", f"{name} is missing")
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            report.add("tables", f"{name} has other columns than it should have")


def _columns(connection: sqlite3.Connection) -> dict[str, object]:
    """Tables and indexes by name, with their columns. Those of tables may stand in any order."""
    names = connection.execute(
        "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'index') AND substr(name, 1, 7) <> 'sqlite_'"
    ).fetchall()
    described: dict[str, object] = {}
    for kind, name in names:
        columns = [tuple(row)[1:4] for row in connection.execute(f"PRAGMA {kind}_info('{name}')").fetchall()]
        described[f"{kind} {name}"] = frozenset(columns) if kind == "table" else tuple(row[1] for row in columns)
    return described
