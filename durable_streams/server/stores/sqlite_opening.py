"""A store from its opening until it is closed: the parts, and what they do together."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice

import anyio
import anyio.to_thread

from ..offsets import Offset
from .errors import StoreError
from .sqlite_access import Accesses
from .sqlite_blocks import Lineage, Mode
from .sqlite_ledger import Ledger
from .sqlite_live import Live, LiveStreams
from .sqlite_lock import ExclusiveLock
from .sqlite_reading import Readers, StoredPage, find_page
from .sqlite_records import Change
from .sqlite_schema import Check, Durability, connect_writer, note_opening
from .sqlite_upkeep import leftovers, note_clean_end, purge, vacuum
from .sqlite_writer import Writer

# How many streams one job of a sweep looks at.
_SLICE = 256


@dataclass(frozen=True, slots=True)
class Options:
    """Arguments of `SQLiteStore`, checked."""

    durability: Durability
    check: Check
    readers: int
    streams_in_memory: int
    recent_bytes: int
    incarnations: Callable[[], str]
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Files:
    """What is open on the disk, and what was read at once.

    Attributes:
        path: The database, with all links followed.
        lock: The right to it.
        connection: For writing.
        accesses: With what is known of former runs.
        ledger: The writer's view.
        leftovers: Removed streams whose rows are still there.
    """

    path: str
    lock: ExclusiveLock
    connection: sqlite3.Connection
    accesses: Accesses
    ledger: Ledger
    leftovers: list[int]


def open_files(path: str, options: Options) -> Files:
    """Lock and open a database, see `SQLiteStore`. Waits for the disk."""
    path = os.path.realpath(path)
    lock = ExclusiveLock(path)
    try:
        connection = connect_writer(path, options.durability, options.check)
        try:
            accesses = Accesses(note_opening(connection, options.clock()))
            ledger = Ledger(connection, accesses, options.incarnations, options.streams_in_memory)
            return Files(path, lock, connection, accesses, ledger, leftovers(ledger))
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{path}: cannot be opened: {error}") from error
            raise
    except BaseException:
        lock.release()
        raise


class Opening:
    """The parts of an open store.

    Args:
        files: What `open_files` opened.
        options: Arguments of `SQLiteStore`.

    Attributes:
        accesses: When streams were last used.
        readers: Connections for reading.
        live: Streams in memory.
        writer: Who writes.
        failed: Set when the writer has stopped by itself.
        open_pages: How many pages are being read from the database.
    """

    def __init__(self, files: Files, options: Options) -> None:
        self._lock = files.lock
        self._pinned: Counter[int] = Counter()  # streams whose rows are being read, and by how many pages
        self._garbage: dict[int, None] = dict.fromkeys(files.leftovers)  # removed streams, in order
        self.open_pages: int = 0
        self.failed: anyio.Event = anyio.Event()
        self.accesses: Accesses = files.accesses
        self.readers: Readers = Readers(files.path, options.readers)
        self.live: LiveStreams = LiveStreams(self.readers, options.streams_in_memory, options.recent_bytes)
        self.writer: Writer = Writer(files.path, files.connection, files.ledger, self._publish, self._on_failure)

    def _publish(self, changes: list[Change]) -> None:
        for change in changes:
            self.live.publish(change)
            if change.removed:
                self._garbage[change.id] = None

    def _on_failure(self) -> None:
        self.live.leave()
        self.failed.set()

    async def open_page(self, stream: Live, offset: Offset, max_bytes: int) -> StoredPage | None:
        """A page that begins before the tail and not in memory; None if no page can begin there."""
        lineage, tail, closed = stream.lineage, stream.tail, stream.closed
        self._pin(lineage, 1)
        end: Offset | None = None
        try:
            if offset + max_bytes >= tail and (not offset or stream.mode is not Mode.JSON):
                end = tail
            else:
                end = await self.readers.run(find_page, lineage, stream.mode, offset, max_bytes, tail)
        finally:
            if end is None:
                self._pin(lineage, -1)
        if end is None:
            return None
        return StoredPage(self.readers, lineage, offset, end, tail, closed, lambda: self._pin(lineage, -1))

    def _pin(self, lineage: Lineage, count: int) -> None:
        """Keep the rows of these streams, or let them go."""
        self.open_pages += count
        for segment in lineage:
            self._pinned[segment.stream] += count
            if not self._pinned[segment.stream]:
                del self._pinned[segment.stream]

    async def sweep(self, now: float) -> None:
        """See `SQLiteStore.sweep`."""
        submit = self.writer.submit
        await self._store_accesses(all_of_them=False)
        while await submit(lambda ledger: ledger.sweep(now, _SLICE)):
            pass
        while unread := list(islice((each for each in self._garbage if each not in self._pinned), _SLICE)):
            done = await submit(partial(purge, streams=unread))
            for stream in unread[:done]:
                self._garbage.pop(stream, None)
        while await submit(vacuum):
            pass

    async def _store_accesses(self, *, all_of_them: bool) -> None:
        pending = self.accesses.pending()
        for start in range(0, len(pending), _SLICE):
            entries = pending[start : start + _SLICE]
            done = await self.writer.submit(partial(Ledger.store_accesses, entries=entries, all_of_them=all_of_them))
            self.accesses.stored(done)

    async def finish(self) -> None:
        """Close everything.

        Raises:
            StoreFailedError: if the store has failed, now or before.
        """
        self.live.leave()
        try:
            await self._store_accesses(all_of_them=True)
            await self.writer.submit(note_clean_end)
        finally:
            await anyio.to_thread.run_sync(self._close)
        if (failure := self.writer.failure) is not None:
            raise failure

    def _close(self) -> None:
        self.readers.close()
        self.writer.stop()
        self._lock.release()
