"""The thread that writes: group commit, checkpoints, and the end after a failure.

Jobs wait in a queue (`handover`). The thread takes all that are there, does them one after the other, commits once, and
reports the results of all with one call of the event loop. While it waits for the disk the next jobs gather; so the
more is asked of it, the less each commit costs, and nobody waits for a timer.

A job is a function that is given the ledger. One that raises something that is no failure of the database spoils the
batch: the batch is rolled back and each job done again alone, so that only the bad one fails.

A failed write is final (server 17.3): the batch is answered with `StoreFailedError`, and so is everything after it.
That goes for every error of the database, also for one that is no error of the disk: if another process holds the
write lock or has damaged a constraint, somebody else writes to this store, and the states in memory may be wrong.

The write-ahead log is carried over into the database (a "checkpoint") between two batches, when it has become long, or
earlier when nothing waits. This thread does it and no other: versions of SQLite before 3.51.3 can damage a database if
one connection starts a checkpoint at the instant in which another one writes (sqlite.org/wal.html, "WAL-reset bug").
The log is not truncated but written over and over, which saves the file system the work of growing it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import anyio

from .abilities import Histogram
from .errors import StoreFailedError
from .handover import Handover, deferrer, waker
from .sqlite_ledger import Ledger
from .sqlite_records import Change

logger: logging.Logger = logging.getLogger("durable_streams.server.store")

T = TypeVar("T")

# Largest batch.
_BATCH_JOBS = 1024
_BATCH_BYTES = 8 << 20
# Ranges in which commits are counted: by their duration in seconds, and by their jobs.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_REQUESTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
# Length of the log, in pages, at which it is carried over when nothing waits, and at which it is in any case. The first
# are a thousand small appends: carrying over takes as long as ten, and writes a page once that they all have changed.
_IDLE_PAGES = 2000
_MOST_PAGES = 4000
# After so many idle seconds it is carried over however short it is, for backups and a quick start.
_IDLE_SECONDS = 2.0


class Job(Generic[T]):
    """Something for the writer to do, and what came of it.

    Attributes:
        call: What to do.
        size: How many bytes it is about to write.
        finish: Called with the job on the event loop when it is durable, or has failed.
        result: What `call` returned.
        error: Or what it raised.
    """

    __slots__ = ("call", "error", "finish", "result", "size")

    def __init__(self, call: Callable[[Ledger], T], size: int, finish: Callable[[Job[T]], None]) -> None:
        self.call: Callable[[Ledger], T] = call
        self.size: int = size
        self.finish: Callable[[Job[T]], None] = finish
        self.result: T | None = None
        self.error: Exception | None = None

    def outcome(self) -> T | Exception:
        """What came of it."""
        return cast("T", self.result) if self.error is None else self.error


@dataclass(frozen=True, slots=True)
class WriterStatistics:
    """What a writer has done since the store was opened.

    Attributes:
        jobs: How many requests and pieces of upkeep were done.
        commits: In how many transactions.
        commit_seconds: How long these took, the disk included, in seconds.
        appended_bytes: How many bytes they added to streams.
        checkpoints: How often the write-ahead log was carried over.
        checkpoint_seconds: How long that took, in seconds.
        streams: How many streams there are, with those that are only kept for their forks.
    """

    jobs: int
    commits: int
    commit_seconds: float
    appended_bytes: int
    checkpoints: int
    checkpoint_seconds: float
    streams: int


class Writer:
    """The thread that owns the connection for writing. Made on the event loop, whose thread it reports to.

    Args:
        path: The database, for messages.
        connection: To the database. It is closed when the thread ends.
        ledger: What jobs work with.
        publish: Called on the event loop with what a commit changed.
        on_failure: Called on the event loop when the store has failed.

    Attributes:
        seconds: How long batches took, the disk included.
        requests: How many jobs were in each.
    """

    def __init__(
        self,
        path: str,
        connection: sqlite3.Connection,
        ledger: Ledger,
        publish: Callable[[list[Change]], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._path = path
        self._connection = connection
        self._ledger = ledger
        self._publish = publish
        self._on_failure = on_failure
        self._wake = waker()
        self._queue: Handover[Job[Any] | None] = Handover(deferrer())  # None is the end
        self._ended = False
        self._failure: BaseException | None = None
        self._jobs = 0
        self.seconds: Histogram = Histogram(_SECONDS)
        self.requests: Histogram = Histogram(_REQUESTS)
        self._checkpoints = 0
        self._checkpoint_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name=f"durable-streams writer {path}", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> StoreFailedError | None:
        """Why the writer has stopped by itself, in an object of your own; None if it has not."""
        if self._failure is None:
            return None
        error = StoreFailedError(f"{self._path}: the store has stopped because writing failed: {self._failure}")
        error.__cause__ = self._failure
        return error

    @property
    def streams(self) -> int:
        """How many streams there are, with those that are only kept for their forks."""
        return self._ledger.streams

    def statistics(self) -> WriterStatistics:
        """What was done so far."""
        return WriterStatistics(
            self._jobs,
            self._ledger.commits,
            self.seconds.total,
            self._ledger.appended_bytes,
            self._checkpoints,
            self._checkpoint_seconds,
            self.streams,
        )

    async def submit(self, call: Callable[[Ledger], T], size: int = 0) -> T:
        """Have something done, and return its result when it is durable.

        Cancelling the wait does not cancel what was asked for.

        Raises:
            StoreFailedError: if it could not be made durable; nobody knows whether it is.
        """
        done = anyio.Event()
        job = self.submit_soon(call, size, lambda job: done.set())
        await done.wait()
        if job.error is not None:
            raise job.error
        return cast("T", job.result)

    def submit_soon(self, call: Callable[[Ledger], T], size: int, finish: Callable[[Job[T]], None]) -> Job[T]:
        """The same without waiting: `finish` is called in the end, see `Job`."""
        failure = self.failure
        if failure is not None:
            raise failure
        job = Job(call, size, finish)
        self._queue.put(job)
        return job

    def stop(self) -> None:
        """Do what is in the queue and end. Waits for that; call it from a worker thread."""
        self._queue.put_from_elsewhere(None)
        self._thread.join()

    # --- in the thread

    def _run(self) -> None:
        while (jobs := self._take()) is not None:
            try:
                if self._failure is not None:
                    self._report(jobs, [])
                    continue
                if jobs:
                    self._do(jobs)
                self._carry_over(idle=not jobs)
            except Exception as error:  # a mistake of ours, and nobody may wait for ever because of it
                self._fail(error, jobs)
        if self._failure is None:
            self._checkpoint("TRUNCATE")
        try:
            self._connection.close()
        except sqlite3.Error as error:
            logger.warning("closing failed path=%s: %s", self._path, error)

    def _take(self) -> list[Job[Any]] | None:
        """The next batch; empty if nothing came for a while, None at the end."""
        while not self._queue and not self._ended:
            if not self._queue.wait(_IDLE_SECONDS if self._ledger.pages else None):
                return []
        jobs: list[Job[Any]] = []
        size = 0
        while len(jobs) < _BATCH_JOBS and size < _BATCH_BYTES and self._queue:
            job = self._queue.take()
            if job is None:
                self._ended = True
            else:
                jobs.append(job)
                size += job.size
        return None if self._ended and not jobs else jobs

    def _do(self, jobs: list[Job[Any]]) -> None:
        started = time.perf_counter()
        try:
            for job in jobs:
                job.result = job.call(self._ledger)
            changes = self._ledger.commit()
        except Exception as error:
            if _is_failure(error):
                self._fail(error, jobs)
                return
            try:
                self._ledger.rollback()
            except sqlite3.Error as worse:
                self._fail(worse, jobs)
                return
            if len(jobs) > 1:
                for job in jobs:
                    if self._failure is None:
                        self._do([job])
                    else:
                        self._report([job], [])
                return
            jobs[0].error = error
            changes = []
        seconds = time.perf_counter() - started
        self._jobs += len(jobs)
        self.seconds.add(seconds)
        self.requests.add(len(jobs))
        self._report(jobs, changes)

    def _report(self, jobs: list[Job[Any]], changes: list[Change]) -> None:
        if self._failure is not None:
            for job in jobs:
                job.error = self.failure

        def report() -> None:
            if changes:
                self._publish(changes)
            for job in jobs:
                job.finish(job)

        self._call_loop(report)

    def _fail(self, error: BaseException, jobs: list[Job[Any]]) -> None:
        logger.critical("store stopped path=%s", self._path, exc_info=error)
        self._failure = error
        self._ledger.pages = 0
        self._call_loop(self._on_failure)
        self._report(jobs, [])

    def _call_loop(self, call: Callable[[], None]) -> None:
        try:
            self._wake(call)
        except RuntimeError as error:  # trio's RunFinishedError is one, too
            logger.warning("nobody hears of a commit, the event loop has ended path=%s: %s", self._path, error)

    def _carry_over(self, *, idle: bool) -> None:
        if self._failure is not None:
            return
        pages = self._ledger.pages
        if pages >= _MOST_PAGES or (pages and idle) or (pages >= _IDLE_PAGES and not self._queue):
            self._checkpoint("PASSIVE")

    def _checkpoint(self, mode: str) -> None:
        self._ledger.pages = 0
        started = time.perf_counter()
        try:
            self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        except sqlite3.Error as error:
            self._fail(error, [])
            return
        self._checkpoints += 1
        self._checkpoint_seconds += time.perf_counter() - started


def _is_failure(error: Exception) -> bool:
    """Whether an error concerns the database, and not only the job that met it."""
    if isinstance(error, sqlite3.DataError | sqlite3.ProgrammingError):
        return False
    return isinstance(error, sqlite3.DatabaseError | MemoryError | OSError)
