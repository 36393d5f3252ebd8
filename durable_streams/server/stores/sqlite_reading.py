"""Reading the database: connections of its own for each thread, and pages that do not change.

Blocks are never changed, and those of a deleted stream stay until nobody reads them, so a page is just a range of
offsets: it needs no transaction that is open as long as a slow client reads, which would keep the write-ahead log from
being reused. A worker thread reads a part at a time, in transactions as short as that, and the next part while this one
is being sent.

Large blocks are read straight into the object that goes to the socket (`Blob`). Small ones are put together by SQLite
(`group_concat`), in one step of one statement: row by row it would take twice the time, and each row would hand the
interpreter's lock back and forth with the event loop's thread.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar, TypeVarTuple

import anyio

from ...errors import AlreadyClosedError
from ..offsets import Offset
from ..protocol import Payload
from .errors import StoreError
from .handover import waker
from .sqlite_blocks import Cuts, Lineage, Mode, is_boundary, page_end, unpack
from .sqlite_schema import connect_reader

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# The first part of a page is to come soon. Going to a worker thread and back takes as long as reading as much as this.
_FIRST_BYTES = 128 * 1024
# The following ones, and how much of them may wait to be sent while the next is read. Either can be more by a block.
_PART_BYTES = 512 * 1024
# Blocks of more than this are read one by one, smaller ones together, up to so many bytes.
_LARGE_BLOCK = 256 * 1024
_TOGETHER = 512 * 1024
# See `_keep_memory`.
_KEPT_MEMORY = 8 << 20

_COVERING = """
SELECT end_offset, length(data), appends, messages FROM blocks
WHERE stream = ? AND end_offset >= ? ORDER BY end_offset LIMIT 1
"""
_NEXT = """
SELECT rowid, end_offset, length(data) FROM blocks WHERE stream = ? AND end_offset > ? ORDER BY end_offset LIMIT 1
"""
_TOGETHER_UP_TO = """
SELECT max(end_offset), CAST(group_concat(data, '') AS BLOB) FROM (
    SELECT end_offset, data FROM blocks WHERE stream = ? AND end_offset > ? AND end_offset <= ? ORDER BY end_offset
)
"""


class Readers:
    """Connections for reading, and the worker threads that use them. Made on the event loop.

    Args:
        path: The database.
        count: How many may read at a time; others wait.
    """

    def __init__(self, path: str, count: int) -> None:
        self._path = path
        self._wake = waker()
        self._threads = ThreadPoolExecutor(count, f"durable-streams reader {path}")
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        _keep_memory()

    def begin(
        self, function: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts, finish: Callable[[T | BaseException], None]
    ) -> None:
        """Call `function(connection, *args)` in a worker thread.

        Args:
            function: What to call.
            *args: With what.
            finish: Called on the event loop with what came of it: `StoreError` if reading fails, `AlreadyClosedError`
                if the store was closed.
        """
        try:
            self._threads.submit(self._work, function, args, finish)
        except RuntimeError:
            finish(self._gone())

    async def run(self, function: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        """The same, and wait for it: also if that is cancelled.

        Raises:
            StoreError: if reading fails.
            AlreadyClosedError: if the store was closed.
        """
        done = anyio.Event()
        outcomes: list[T | BaseException] = []

        def finish(outcome: T | BaseException) -> None:
            outcomes.append(outcome)
            done.set()

        self.begin(function, *args, finish=finish)
        with anyio.CancelScope(shield=True):
            await done.wait()
        (outcome,) = outcomes
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def run_here(self, function: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        """The same in this thread, which has to wait for the disk."""
        return self._call(function, *args)

    def close(self) -> None:
        """Close all connections, those in use as soon as they are free; waits for that."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self._threads.shutdown()

    def _work(
        self,
        function: Callable[[sqlite3.Connection, *Ts], T],
        args: tuple[*Ts],
        finish: Callable[[T | BaseException], None],
    ) -> None:
        outcome: T | BaseException
        try:
            outcome = self._call(function, *args)
        except BaseException as error:
            outcome = error
        with suppress(RuntimeError):  # the event loop has ended, and with it whoever wanted to know
            self._wake(partial(finish, outcome))

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
                raise self._gone()
            return self._idle.pop() if self._idle else None

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _gone(self) -> AlreadyClosedError:
        return AlreadyClosedError(f"{self._path}: the store was closed")


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
        return read_part(self._connection, self._lineage, offset, offset + 1, 1)[0][0]

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
        return Payload(b"".join(read_part(self._connection, self._lineage, offset, place, place - offset)), ends)


def find_page(
    connection: sqlite3.Connection, lineage: Lineage, mode: Mode, offset: Offset, max_bytes: int, tail: Offset
) -> Offset | None:
    """Where a page ends that begins at `offset`, somewhere before the tail; None if no page can begin there."""
    source = StoredBlocks(connection, lineage)
    if mode is Mode.JSON and offset and not is_boundary(source, offset):
        return None
    limit = offset + max_bytes
    return tail if limit >= tail else page_end(source, mode, offset, limit)


def read_part(connection: sqlite3.Connection, lineage: Lineage, offset: Offset, end: Offset, least: int) -> list[bytes]:
    """The bytes from `offset` on in pieces of at most 1 MiB: up to `end`, or `least` of them and the rest of a block.

    A block is read to its end if possible, since to get to the middle of it SQLite goes through all pages before.
    """
    pieces: list[bytes] = []
    stop = min(offset + least, end)
    while offset < stop:
        segment = next(each for each in lineage if each.end > offset)
        limit = min(end, segment.end)
        pieces.append(_read_piece(connection, segment.stream, offset, limit, stop))
        offset += len(pieces[-1])
    return pieces


def _read_piece(connection: sqlite3.Connection, stream: int, offset: Offset, limit: Offset, stop: Offset) -> bytes:
    """The rest of a block, or several small blocks; not beyond `limit`, and no block that begins behind `stop`."""
    row, block_end, length = connection.execute(_NEXT, (stream, offset)).fetchone() or (0, offset, 0)
    start = block_end - length
    if start > offset or not length:
        raise _hole(stream, offset)
    if start < offset or block_end > limit or length > _LARGE_BLOCK:
        with connection.blobopen("blocks", "data", row, readonly=True) as blob:
            blob.seek(offset - start)
            return blob.read(min(block_end, limit) - offset)
    together = max(block_end, min(limit, stop, offset + _TOGETHER))
    last_end, data = connection.execute(_TOGETHER_UP_TO, (stream, offset, together)).fetchone()
    if len(data) != last_end - offset:
        raise _hole(stream, offset)
    return bytes(data)


def _hole(stream: int, offset: Offset) -> StoreError:
    return StoreError(f"the database is damaged: stream {stream} lacks data after offset {offset}")


def _keep_memory() -> None:
    """Let the C library keep the memory of the pieces that were sent, for the next ones.

    glibc gives memory back to the system at once, and each page of it costs a fault when it is used anew: with pieces
    of a MiB as much as reading them. It learns from the largest piece of memory that was freed what is worth keeping
    (mallopt(3), "dynamic mmap threshold"). This one is never touched, so it costs nothing.
    """
    bytearray(_KEPT_MEMORY)


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
        self._at = start  # up to where it was read, or until where it will be
        self._pieces: deque[bytes] = deque()
        self._waiting = 0  # how many bytes these are
        self._reading: anyio.Event | None = None
        self._error: BaseException | None = None
        self._release: Callable[[], None] | None = release

    async def next_piece(self) -> bytes | None:
        """The next bytes, see `StorePage`."""
        self._read_ahead()
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._reading is None:
                return None
            await self._reading.wait()
        piece = self._pieces.popleft()
        self._waiting -= len(piece)
        self._read_ahead()
        return piece

    def _read_ahead(self) -> None:
        """Have the next part read, unless there is enough."""
        if self._reading is None and self._error is None and self._at < self.end and self._waiting < _PART_BYTES:
            self._reading = anyio.Event()
            end = self.end if self._at > self.start else min(self.end, self._at + _FIRST_BYTES)
            self._readers.begin(read_part, self._lineage, self._at, end, _PART_BYTES, finish=self._finish)

    def _finish(self, outcome: list[bytes] | BaseException) -> None:
        reading, self._reading = self._reading, None
        assert reading is not None
        reading.set()
        if isinstance(outcome, BaseException):
            self._error = outcome
        elif self._release is not None:
            self._pieces.extend(outcome)
            size = sum(map(len, outcome))
            self._at += size
            self._waiting += size

    async def aclose(self) -> None:
        """Let the store remove the data if its stream is gone, once nobody reads it. Idempotent."""
        release, self._release = self._release, None
        self._at = self.end
        self._pieces.clear()
        if self._reading is not None:
            with anyio.CancelScope(shield=True):
                await self._reading.wait()
        if release is not None:
            release()
