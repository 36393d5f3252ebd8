"""What the demo does: write, follow in another process, kill that process, let it resume, fence a writer, verify.

The first writer sends its part of the events and then waits until the reader has been killed, so that the kill always
comes in mid-stream: neither reader ever finds a stream that is complete. Then a second writer takes over with the same
producer id, and the first, which knows nothing of it, tries to go on: its event must not appear. All of them talk to
the server over a bad network.

The proof compares what the reader's database holds, row by row, with what was to be written. A lost, doubled, moved or
changed event shows.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from .. import DurableStream, IdempotentProducer, StaleEpochError
from ..server import Server
from .demo_network import RETRY, bad_network
from .failures import CommandError

#: Bytes in one request of a writer: few, so that there are many requests for faults to hit.
BATCH_BYTES = 1 << 16
#: Bytes that a writer keeps until they are acknowledged; it waits for room.
BUFFER_BYTES = 20 * BATCH_BYTES
#: Events that are appended between two looks at the progress.
STEP = 5_000
#: Part of the events after which the writer waits for the kill; the kill comes in this part.
BEFORE_KILL = 0.6
#: Seconds without a sign of life after which the demo gives up.
PATIENCE = 60.0


class Progress(Protocol):
    """Shows how far the demo is."""

    def say(self, words: str) -> None:
        """Say what happens now."""
        ...

    def written(self, count: int) -> None:
        """So many events are stored by the server."""
        ...

    def read(self, count: int) -> None:
        """So many events are kept by the reader."""
        ...


@dataclass
class Report:
    """What happened.

    Attributes:
        events: Events written.
        faults: Faults that writer and readers met.
        kills: Readers killed.
        requests: Requests of the writers.
        refused: Events of the first writer that were refused, because the second had taken over.
        duplicates: Batches that the server recognised, because an earlier try had stored them.
        write_seconds: From the first event to the last acknowledgement, the wait for the kill left out.
        read_seconds: Time that the readers ran, the start of two processes included.
        problem: What the verification found, or None.
    """

    events: int
    faults: int = 0
    kills: int = 0
    requests: int = 0
    refused: int = 0
    duplicates: int = 0
    write_seconds: float = 0.0
    read_seconds: float = 0.0
    problem: str | None = None


def event(seed: int, n: int) -> dict[str, object]:
    """The n-th event; its word can be told from that of any other."""
    return {"n": n, "word": blake2b(b"%d %d" % (seed, n), digest_size=32).hexdigest()}


def bodies(seed: int, numbers: range) -> Iterator[bytes]:
    """The same events as JSON."""
    for n in numbers:
        yield b'{"n":%d,"word":"%b"}' % (n, str(event(seed, n)["word"]).encode())


class Demo:
    """One run.

    Args:
        events: How many events to write, at least 2.
        seed: Determines the events, the faults and the moment of the kill.
        progress: Is told how far it is.
    """

    def __init__(self, events: int, seed: int, progress: Progress) -> None:
        self._seed = seed
        self._progress = progress
        self._report = Report(events)
        self._before_kill = max(1, int(events * BEFORE_KILL))
        # The kill comes when so many events have been kept. The reader cannot get beyond `_before_kill` before.
        self._kill_at = random.Random(seed).randint(max(1, self._before_kill // 3), self._before_kill)
        self._killed = anyio.Event()

    async def run(self) -> Report:
        """Do it all, and report.

        Raises:
            CommandError: a reader ended badly, or nothing moved for a minute.
        """
        with tempfile.TemporaryDirectory(prefix="durable-streams-demo-") as folder:
            database = Path(folder, "reader.sqlite")
            async with Server() as server:
                url = f"{server.url}/demo"
                self._progress.say(f"a server is running, the stream is {url}")
                async with DurableStream(url, content_type="application/json") as handle:
                    await handle.create()
                try:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._write, url)
                        tasks.start_soon(self._read, url, database)
                except ExceptionGroup as group:
                    raise group.exceptions[0] from None
            self._progress.say("verifying what the reader's database holds")
            problem = verify(database, self._report.events, self._seed)
            if problem is None and self._report.refused != 1:
                problem = "the first writer was not refused, although the second had taken over"
            self._report.problem = problem
        return self._report

    async def _write(self, url: str) -> None:
        report = self._report
        async with bad_network(self._seed) as network:
            handle = DurableStream(url, content_type="application/json", transport=network.transport)
            async with _producer(handle) as zombie:
                await self._append(zombie, range(self._before_kill))
                await self._killed.wait()
                async with _producer(handle, epoch=1) as producer:
                    await self._append(producer, range(self._before_kill, report.events))
                self._progress.say("a second writer has taken over with epoch 1; the first one tries to go on")
                try:
                    await zombie.append(b'{"n":-1,"word":"from a zombie"}')
                    await zombie.flush()
                except StaleEpochError:
                    report.refused = len(zombie.unacknowledged())
                    self._progress.say("the first writer was refused")
                await zombie.abort()
            await handle.close_stream()  # the readers end with it
            report.faults += network.faults

    async def _append(self, producer: IdempotentProducer, numbers: range) -> None:
        """Write some of the events, and wait until they are stored."""
        began = time.perf_counter()
        for start in range(numbers.start, numbers.stop, STEP):
            some = range(start, min(start + STEP, numbers.stop))
            await producer.append_many(bodies(self._seed, some))
            self._progress.written(some.stop - producer.pending_count)
        await producer.flush()
        self._progress.written(numbers.stop)
        self._report.write_seconds += time.perf_counter() - began
        statistics = producer.statistics()
        self._report.requests += statistics.requests
        self._report.duplicates += statistics.duplicates

    async def _read(self, url: str, database: Path) -> None:
        began = time.perf_counter()
        kept = await self._run_reader(url, database, self._seed + 1, kill_at=self._kill_at)
        self._report.kills += 1
        self._progress.say(f"the reader was killed (SIGKILL) after {kept:,} events; another one goes on from there")
        self._killed.set()
        await self._run_reader(url, database, self._seed + 2, kill_at=None)
        self._report.read_seconds = time.perf_counter() - began

    async def _run_reader(self, url: str, database: Path, seed: int, *, kill_at: int | None) -> int:
        """Run a reader until it ends, or kill it when it has kept so many events; how many it has reported."""
        command = [sys.executable, "-m", f"{__package__}.demo_reader", url, str(database), str(seed)]
        kept = faults = 0
        async with await anyio.open_process(command, stderr=None) as process:
            try:
                assert process.stdout is not None
                reports = BufferedByteReceiveStream(process.stdout)
                while (report := await _next_line(reports)) is not None:
                    kept, faults = map(int, report.split())
                    self._progress.read(kept)
                    if kill_at is not None and kept >= kill_at:
                        process.kill()
                        break
                code = await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
        self._report.faults += faults
        if kill_at is None and code != 0:
            raise CommandError(f"the reader ended with exit code {code}")
        if kill_at is not None and kept < kill_at:
            raise CommandError(f"the reader ended with exit code {code} before it was killed")
        return kept


def _producer(handle: DurableStream, *, epoch: int = 0) -> IdempotentProducer:
    """A writer of the demo; both have the same id."""
    return IdempotentProducer(
        handle,
        "demo",
        epoch=epoch,
        max_batch_bytes=BATCH_BYTES,
        max_buffered_bytes=BUFFER_BYTES,
        retry=RETRY,
    )


async def _next_line(stream: BufferedByteReceiveStream) -> bytes | None:
    """The next line of a reader's output, or None at its end."""
    with anyio.move_on_after(PATIENCE):
        try:
            return await stream.receive_until(b"\n", 100)
        except (anyio.EndOfStream, anyio.IncompleteRead):
            return None
    raise CommandError(f"nothing has moved for {PATIENCE:.0f} seconds")


def verify(database: Path, events: int, seed: int) -> str | None:
    """What is wrong with the events in the reader's database, or None if each is there once and in order."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT n, word FROM events ORDER BY place")
        place = -1
        for place, (n, word) in enumerate(rows):
            if place >= events:
                return f"there are more than {events} events: event {n} comes once more at the end"
            expected = event(seed, place)
            if n != place:
                return f"event {place} is missing at its place: event {n} is there"
            if word != expected["word"]:
                return f"event {n} has another content than it was written with"
    if place + 1 != events:
        return f"{events - place - 1} events are missing at the end"
    return None
