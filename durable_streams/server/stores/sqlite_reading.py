"""Reading the database: connections of its own for each thread, and pages that do not change.

Blocks are never changed, and those of a deleted stream stay until nobody reads them, so a page is just a range of
offsets: it needs no transaction that is open as long as a slow client reads, which would keep the write-ahead log from
being reused. Each piece is read by a worker thread, in a transaction as short as that.

A piece of many small blocks is put together by SQLite (`group_concat`), in one step of one statement. Row by row it
would take twice the time, and each row would hand the interpreter's lock back and forth with the event loop's thread.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

from ...errors import AlreadyClosedError
from ..offsets import Offset
from ..protocol import Payload
from .errors import StoreError
from .sqlite_blocks import BLOCK_BYTES, Cuts, Lineage, Mode, is_boundary, page_end, unpack
from .sqlite_schema import connect_reader

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# How many pieces are read at a time: going to a worker thread and back takes as long as reading one.
_AHEAD = 4

_COVERING = """
SELECT end_offset, length(data), appends, messages FROM blocks
WHERE stream = ? AND end_offset >= ? ORDER BY end_offset LIMIT 1
"""
_FIRST = """
SELECT end_offset, data FROM blocks WHERE stream = ? AND end_offset > ? ORDER BY end_offset LIMIT 1
"""
_LAST = "SELECT max(end_offset) FROM blocks WHERE stream = ? AND end_offset > ? AND end_offset <= ?"
_REST = """
SELECT CAST(group_concat(data, '') AS BLOB) FROM (
    SELECT data FROM blocks WHERE stream = ? AND end_offset > ? AND end_offset <= ? ORDER BY end_offset
)
"""


class Readers:
    """Connections for reading, and the worker threads that use them.

    Args:
        path: The database.
        count: How many may read at a time; others wait.
    """

    def __init__(self, path: str, count: int) -> None:
        self._path = path
        self._limiter = anyio.CapacityLimiter(count)
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False

    async def run(self, function: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        """Call `function(connection, *args)` in a worker thread.

        Raises:
            StoreError: if reading fails.
            AlreadyClosedError: if the store was closed.
        """
        return await anyio.to_thread.run_sync(self._call, function, *args, limiter=self._limiter)

    def run_here(self, function: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        """The same in this thread, which has to wait for the disk."""
        return self._call(function, *args)

    def close(self) -> None:
        """Close all connections; those in use as soon as they are free."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _call(self, function: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        connection = self._take()
        try:
            if connection is None:
                connection = connect_reader(self._path)
            result = function(connection, *args)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{self._path}: reading failed: {error}") from error
            raise
        self._give_back(connection)
        return result

    def _take(self) -> sqlite3.Connection | None:
        with self._lock:
            if self._closed:
                raise AlreadyClosedError(f"{self._path}: the store was closed")
            return self._idle.pop() if self._idle else None

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()


class StoredBlocks:
    """The blocks of one stream in the database, those of its ancestors included (`BlockSource`)."""

    def __init__(self, connection: sqlite3.Connection, lineage: Lineage) -> None:
        self._connection = connection
        self._lineage = lineage

    def covering(self, offset: Offset) -> Cuts:
        """The first block that ends at `offset` or behind it."""
        segment = next(each for each in self._lineage if each.end >= offset)
        found = self._connection.execute(_COVERING, (segment.stream, offset)).fetchone()
        if found is None:
            raise _hole(segment.stream, offset)
        end, length, appends, messages = found
        return Cuts(end - length, end, unpack(appends), unpack(messages)).clip(segment.end)

    def byte_at(self, offset: Offset) -> int:
        """The byte that follows an offset."""
        return read_piece(self._connection, self._lineage, offset, offset + 1)[0]

    def rest_of_append(self, offset: Offset, json: bool) -> Payload:
        """What the append that holds the byte at `offset` has from there on."""
        ends: list[int] = []
        place = offset
        while True:
            cuts = self.covering(place + 1)
            end = cuts.next_append_end(place)
            stop = cuts.end if end is None else end
            if json:
                while (message := cuts.next_message_end(place)) is not None and message <= stop:
                    ends.append(message - offset)
                    place = message
            place = stop
            if end is not None:
                break
        pieces = []
        while offset < place:
            pieces.append(read_piece(self._connection, self._lineage, offset, place))
            offset += len(pieces[-1])
        return Payload(b"".join(pieces), ends)


def find_page(
    connection: sqlite3.Connection, lineage: Lineage, mode: Mode, offset: Offset, max_bytes: int, tail: Offset
) -> Offset | None:
    """Where a page ends that begins at `offset`, somewhere before the tail; None if no page can begin there."""
    source = StoredBlocks(connection, lineage)
    if mode is Mode.JSON and offset and not is_boundary(source, offset):
        return None
    limit = offset + max_bytes
    return tail if limit >= tail else page_end(source, mode, offset, limit)


def read_piece(connection: sqlite3.Connection, lineage: Lineage, offset: Offset, end: Offset) -> bytes | memoryview:
    """The bytes from `offset` on, as far as they come at once: at most 1 MiB, and not beyond `end`."""
    segment = next(each for each in lineage if each.end > offset)
    stream, limit = segment.stream, min(offset + BLOCK_BYTES, end, segment.end)
    first_end, data = connection.execute(_FIRST, (stream, offset)).fetchone() or (offset, b"")
    skip = offset - first_end + len(data)
    if skip < 0 or not data:
        raise _hole(stream, offset)
    if first_end >= limit:
        return data if not skip and first_end == limit else memoryview(data)[skip : skip + limit - offset]
    (last_end,) = connection.execute(_LAST, (stream, first_end, limit)).fetchone()
    if last_end is None:
        return memoryview(data)[skip:] if skip else data
    (rest,) = connection.execute(_REST, (stream, first_end, last_end)).fetchone()
    if len(rest) != last_end - first_end:
        raise _hole(stream, first_end)
    return b"".join((memoryview(data)[skip:], rest))


def read_pieces(
    connection: sqlite3.Connection, lineage: Lineage, offset: Offset, end: Offset, count: int
) -> list[bytes | memoryview]:
    """The same for `count` pieces in a row, or up to the end."""
    pieces: list[bytes | memoryview] = []
    while offset < end and len(pieces) < count:
        pieces.append(read_piece(connection, lineage, offset, end))
        offset += len(pieces[-1])
    return pieces


def _hole(stream: int, offset: Offset) -> StoreError:
    return StoreError(f"the database is damaged: stream {stream} lacks data after offset {offset}")


class StoredPage:
    """A range of a stream in the database.

    Args:
        readers: Who reads it.
        lineage: Where the stream's data lies.
        start: First offset.
        end: Offset after the last byte.
        tail: The stream's tail in this snapshot.
        closed: Whether the stream is closed in it.
        release: Called once when the page is closed.
    """

    def __init__(
        self,
        readers: Readers,
        lineage: Lineage,
        start: Offset,
        end: Offset,
        tail: Offset,
        closed: bool,
        release: Callable[[], None],
    ) -> None:
        self.start = start
        self.end = end
        self.tail = tail
        self.closed = closed
        self.size: int = end - start
        self._readers = readers
        self._lineage = lineage
        self._at = start
        self._pieces: deque[bytes | memoryview] = deque()
        self._ahead = 1
        self._release: Callable[[], None] | None = release

    async def next_piece(self) -> bytes | memoryview | None:
        """The next bytes, see `StorePage`."""
        if not self._pieces:
            if self._at >= self.end:
                return None
            pieces = await self._readers.run(read_pieces, self._lineage, self._at, self.end, self._ahead)
            self._pieces.extend(pieces)
            self._at += sum(map(len, pieces))
            self._ahead = _AHEAD  # the first one is to come soon
        return self._pieces.popleft()

    async def aclose(self) -> None:
        """Let the store remove the data if its stream is gone. Idempotent."""
        release, self._release = self._release, None
        self._at = self.end
        self._pieces.clear()
        if release is not None:
            release()
