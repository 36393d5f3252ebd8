"""The demo's reader: a process of its own, which may be killed at any moment.

    python -m durable_streams.cli.demo_reader URL DATABASE SEED

It begins where its database says it was. The effects of a batch (here: its events, kept) and the position after it are
saved in one transaction, so a kill undoes both or neither. That is all there is to exactly-once effects.

After each batch it reports on standard output: events kept so far, faults met so far.
"""

from __future__ import annotations

import sqlite3
import sys

import anyio

from .. import Checkpoint, JsonBatch, stream
from .demo_network import RETRY, bad_network

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (place INTEGER PRIMARY KEY AUTOINCREMENT, n INTEGER, word TEXT);
CREATE TABLE IF NOT EXISTS position (one INTEGER PRIMARY KEY CHECK (one = 1), checkpoint TEXT);
"""
#: Bytes of one answer: small, so that there are many, and that each kill and fault hits another one.
PAGE = 1 << 16


class Database:
    """What the reader has done so far, and its position."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path)
        self._connection.executescript("PRAGMA journal_mode = WAL;" + SCHEMA)

    @property
    def count(self) -> int:
        """Events kept so far."""
        return int(self._connection.execute("SELECT count(*) FROM events").fetchone()[0])

    def checkpoint(self) -> Checkpoint | None:
        """The position after the last event kept, or None at the beginning."""
        row = self._connection.execute("SELECT checkpoint FROM position").fetchone()
        return None if row is None else Checkpoint.loads(row[0])

    def keep(self, batch: JsonBatch[dict[str, object]]) -> None:
        """Keep a batch's events and the position after it, both or neither."""
        with self._connection:
            self._connection.executemany("INSERT INTO events (n, word) VALUES (:n, :word)", batch.items)
            self._connection.execute("INSERT OR REPLACE INTO position VALUES (1, ?)", (batch.checkpoint.dumps(),))

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


async def follow(url: str, path: str, seed: int) -> None:
    """Keep all events of a stream until it is closed."""
    async with bad_network(seed) as network:
        database = Database(path)
        count = database.count
        print(count, network.faults, flush=True)
        async with stream(
            url,
            offset=database.checkpoint(),
            backoff_options=RETRY,
            max_page_bytes=PAGE,
            transport=network.transport,
        ) as events:
            async for batch in events.iter_batches(as_="json"):
                database.keep(batch)
                count += len(batch.items)
                print(count, network.faults, flush=True)


if __name__ == "__main__":
    anyio.run(follow, sys.argv[1], sys.argv[2], int(sys.argv[3]))
