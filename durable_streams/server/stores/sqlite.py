"""The store that keeps: streams in one SQLite database, durable when an append returns.

The parts, and who runs where:

====================  =============================================================================  ===============
`SQLiteStore`         the seam: answers from memory what it can, asks the others for the rest         event loop
`LiveStreams`         the committed state of streams in use, their newest data, and who waits          event loop
`Readers`             everything else that is read                                                    worker threads
`Writer`, `Ledger`    decides and writes, many requests in one transaction                            its own thread
====================  =============================================================================  ===============

A request that changes something is a job for the writer. It is decided there, against what the jobs before it have
done, committed together with them, published to `LiveStreams`, and then its result returns: all in the same step of
the event loop, so that whoever learns of an append can read it.

A deleted stream is gone at once, but its rows stay until no page reads them, and go a few at a time (`sweep`). So a
page needs nothing but its offsets (`sqlite_reading`). A page of a fork needs its ancestors' rows, too, which are let
go when the fork is.

What a crash may take: with `durability="full"` nothing that was acknowledged; with "relaxed" the last moments before a
power cut, but nothing when only the process dies. In either case the streams are whole: data, producers, `Stream-Seq`,
closure and forks of each request are there together or not at all.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread

from ...errors import AlreadyClosedError
from ..creation import CreateRequest
from ..offsets import Offset
from ..protocol import AppendRequest, Payload
from .abilities import Appending, StoreFigures
from .base import AppendResult, BadOffset, CreateResult, DeleteResult, Gone, Missing, StreamInfo, StreamRef
from .errors import StoreFailedError
from .reports import ProducerReport, StoreReport, StreamReport
from .sqlite_live import Live, LiveWatch, RecentPage
from .sqlite_opening import Opening, Options, open_files
from .sqlite_reading import StoredPage
from .sqlite_reports import report_producers, report_store, report_streams
from .sqlite_schema import Check, Durability
from .sqlite_subscriptions import SubscriptionTables
from .sqlite_writer import WriterStatistics


@dataclass(frozen=True, slots=True)
class SQLiteStatistics:
    """A look inside a store.

    Attributes:
        streams_in_memory: How many streams' states are in memory.
        open_pages: How many pages are being sent from the database.
        writer: What the writer has done.
        file_bytes: Size of the database file.
        log_bytes: Size of its write-ahead log.
    """

    streams_in_memory: int
    open_pages: int
    writer: WriterStatistics
    file_bytes: int
    log_bytes: int


class SQLiteStore(SubscriptionTables):
    """Keeps streams, and subscriptions to them, in a file. One object, in one process, owns it while it is open.

    It is opened and closed as a context manager, and used on the event loop that opened it; after it was closed it may
    be opened again. Beside the file there are `<path>-wal`, `<path>-shm` and `<path>-lock`. Keep them together, on a
    local file system; to copy a store that is open use SQLite's own `.backup`.

    Args:
        path: The database; it is made if it does not exist, its folder is not.
        durability: "full": an append returns when it is on disk. "relaxed": when it is with the operating system, so
            that a power cut may take the last seconds; a crash of the process takes nothing.
        check: How to look for damage when opening. "auto": a quick check of files up to 16 MiB, so that the time to
            start does not depend on the size; "quick" and "full": SQLite's `quick_check` and `integrity_check`, which
            read the whole file; "none".
        readers: How many pieces may be read at a time.
        streams_in_memory: How many streams' states to keep in memory.
        recent_bytes: How much memory the newest data may take, which is kept for readers who wait for it.
        incarnations: Makes the name of each new incarnation.
        clock: Wall-clock time, for TTLs after a crash: they begin anew when the store is opened.

    Raises:
        ValueError: if an argument has a value that cannot work.
        StoreInUseError: on entering, if somebody else has the store open.
        StoreFormatError: on entering, if the file is no store, one of a newer release, or damaged.
        StoreError: on entering, if the file cannot be opened or made.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "full",
        check: Check = "auto",
        readers: int = 4,
        streams_in_memory: int = 10_000,
        recent_bytes: int = 16 * 1024 * 1024,
        incarnations: Callable[[], str] = lambda: secrets.token_urlsafe(9),
        clock: Callable[[], float] = time.time,
    ) -> None:
        name = os.fspath(path)
        if not name or name == ":memory:" or "\0" in name:
            raise ValueError(f"path must name a file, got {name!r}")
        if durability not in ("full", "relaxed"):
            raise ValueError(f"durability must be 'full' or 'relaxed', got {durability!r}")
        if check not in ("auto", "quick", "full", "none"):
            raise ValueError(f"check must be 'auto', 'quick', 'full' or 'none', got {check!r}")
        for argument, value, least in (
            ("readers", readers, 1),
            ("streams_in_memory", streams_in_memory, 1),
            ("recent_bytes", recent_bytes, 0),
        ):
            if value < least:
                raise ValueError(f"{argument} must be at least {least}, got {value!r}")
        self.path: str = os.path.abspath(name)
        self._options = Options(durability, check, readers, streams_in_memory, recent_bytes, incarnations, clock)
        self._opening: Opening | None = None

    async def __aenter__(self) -> Self:
        if self._opening is not None:
            raise RuntimeError(f"{self.path}: the store is open already")
        files = await anyio.to_thread.run_sync(open_files, self.path, self._options)
        self._opening = Opening(files, self._options)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        opening, self._opening = self._opening, None
        if opening is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                await opening.finish()
            except StoreFailedError:
                if error is None:
                    raise

    def __repr__(self) -> str:
        if self._opening is None:
            return f"<SQLiteStore {self.path}, not open>"
        state = "open" if self._opening.writer.failure is None else "failed"
        return f"<SQLiteStore {self.path}, {state}, {len(self._opening.live)} streams in memory>"

    @property
    def failure(self) -> StoreFailedError | None:
        """Why the store has stopped by itself; None while all is well."""
        return None if self._opening is None else self._opening.writer.failure

    async def wait_failed(self) -> StoreFailedError:
        """Wait until the store stops by itself, which it does when a write fails; a server should end then."""
        opening = self._current()
        await opening.failed.wait()
        failure = opening.writer.failure
        assert failure is not None
        return failure

    def statistics(self) -> SQLiteStatistics:
        """A look inside; costs two looks at the file system."""
        opening = self._current()
        return SQLiteStatistics(
            len(opening.live),
            opening.open_pages,
            opening.writer.statistics(),
            os.path.getsize(self.path),
            os.path.getsize(f"{self.path}-wal"),
        )

    def count_streams(self) -> int:
        """How many streams there are, see `CountingStore`."""
        return self._current().writer.streams

    def figures(self) -> StoreFigures:
        """The store in figures; costs two looks at the file system."""
        writer, told = self._current().writer, self.statistics()
        return StoreFigures(writer.streams, told.file_bytes + told.log_bytes, writer.seconds, writer.requests)

    async def create(self, r: CreateRequest, now: float) -> CreateResult:
        """Create a stream or confirm it, see `Store.create`."""
        size = len(r.payload.data) if isinstance(r.payload, Payload) else 0
        return await self._current().writer.submit(lambda ledger: ledger.create(r, now), size)

    async def append(self, r: AppendRequest, now: float) -> AppendResult:
        """Append and close, see `Store.append`."""
        size = len(r.payload.data) if isinstance(r.payload, Payload) else 0
        return await self._current().writer.submit(lambda ledger: ledger.append(r, now), size)

    def append_soon(self, r: AppendRequest, now: float, done: Appending) -> None:
        """Append and close, see `PromptStore`."""
        size = len(r.payload.data) if isinstance(r.payload, Payload) else 0
        self._current().writer.submit_soon(lambda ledger: ledger.append(r, now), size, lambda job: done(job.outcome()))

    async def delete(self, path: str, now: float) -> DeleteResult:
        """Delete a stream, see `Store.delete`."""
        return await self._current().writer.submit(lambda ledger: ledger.delete(path, now))

    async def head(self, path: str, now: float) -> StreamInfo | Missing | Gone:
        """Look at a stream."""
        opening = self._current()
        while True:
            stream = await opening.live.find(path)
            if stream is None:
                return Missing()
            if stream.deleted:
                kept = await opening.writer.submit(lambda ledger: ledger.keeps(path, now))
                return Gone() if kept else Missing()
            if not opening.accesses.expired(stream.ref, stream.config, stream.last_access, now):
                return stream.info()
            await opening.writer.submit(lambda ledger: ledger.keeps(path, now))

    async def read(
        self, ref: StreamRef, offset: Offset, max_bytes: int
    ) -> RecentPage | StoredPage | BadOffset | Missing | Gone:
        """A page, see `Store.read`. The newest data comes from memory, the rest from the database."""
        opening = self._current()
        stream = await opening.live.find(ref.path)
        if stream is None or stream.ref != ref:
            return Missing()
        if stream.deleted:
            return Gone()
        if offset > stream.tail:
            return BadOffset("the offset lies beyond the end of the stream")
        page = (
            stream.page(offset, max_bytes)
            if stream.in_memory(offset)
            else await opening.open_page(stream, offset, max_bytes)
        )
        return BadOffset("the offset lies inside a message") if page is None else page

    async def report(self) -> StoreReport:
        """The store as a whole, see `InspectableStore`."""
        return await self._current().readers.run(report_store, self.path)

    async def report_streams(self, prefix: str, after: str, limit: int) -> list[StreamReport]:
        """Streams by path, see `InspectableStore`."""
        return await self._current().readers.run(report_streams, prefix, after, limit)

    async def report_producers(self, path: str, limit: int) -> list[ProducerReport]:
        """The producers of a stream, see `InspectableStore`."""
        return await self._current().readers.run(report_producers, path, limit)

    def watch(self, ref: StreamRef) -> LiveWatch:
        """Attach a live reader."""
        opening = self._current()
        stream = opening.live.find_here(ref)
        opening.accesses.attach(ref)
        return LiveWatch(stream or Live.nothing(ref), lambda: opening.accesses.detach(ref))

    def touch(self, ref: StreamRef, now: float) -> None:
        """Renew a TTL, in memory; `sweep` and closing the store write it down. Does nothing when it is too late."""
        opening = self._opening
        if opening is not None:
            stream = opening.live.known(ref)
            if stream is None or stream.config.ttl is not None:
                opening.accesses.touch(ref, now)

    async def sweep(self, now: float) -> None:
        """Remove what has expired and the rows of what was deleted, in slices that let appends through."""
        await self._current().sweep(now)

    def _current(self) -> Opening:
        opening = self._opening
        if opening is None:
            raise AlreadyClosedError(f"{self.path}: the store is not open")
        failure = opening.writer.failure
        if failure is not None:
            raise failure
        return opening
