"""A process that uses a SQLite store as hard as it can until it is killed, and says what was acknowledged.

    python -m tests.server.sqlite_child PATH BACKEND SEED NEXT

NEXT is a JSON object: for each producer the sequence number of its first append, the one that follows the last that
was acknowledged in an earlier life. Each acknowledgement is one line on standard output, written in one piece when the
store has answered; so the lines that the parent reads are true, and at most the last one of each task is missing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from typing import Any

import anyio

from durable_streams.server import (
    Appended,
    AppendRequest,
    Created,
    CreateRequest,
    Deleted,
    Duplicate,
    Fork,
    Payload,
    ProducerStamp,
    SoftDeleted,
    StreamConfig,
)
from durable_streams.server.stores.sqlite import SQLiteStore

TYPE = "application/octet-stream"
STREAMS = [f"/v1/stream/shared{number}" for number in range(3)]
PRODUCERS = 8


def body(name: str, number: int) -> bytes:
    """What a producer sends with a sequence number: always the same, and now and then more than a row holds."""
    size = 1_500_000 if number % 97 == 60 else (number * 7919) % 300
    return b"%b:%d:%d:%b;" % (name.encode(), number, size, b"." * size)


def say(*words: object) -> None:
    os.write(1, (json.dumps(words) + "\n").encode())


async def produce(store: SQLiteStore, name: str, seq: int) -> None:
    """Append again and again as a producer."""
    path = STREAMS[int(name[1:]) % len(STREAMS)]
    while True:
        request = AppendRequest(path, TYPE, Payload(body(name, seq)), producer=ProducerStamp(name, 7, seq))
        result = await store.append(request, 0.0)
        if not isinstance(result, Appended | Duplicate):
            say("refused", name, seq, repr(result))
            return
        say("appended", name, seq)
        seq += 1


async def append_plainly(store: SQLiteStore, life: str) -> None:
    """Append without a producer."""
    number = 0
    while True:
        await store.append(AppendRequest(STREAMS[0], TYPE, Payload(body(life, number))), 0.0)
        say("plain", life, number)
        number += 1


async def come_and_go(store: SQLiteStore, life: str, rng: random.Random) -> None:
    """Create, fork, close and delete streams."""
    number = 0
    while True:
        path = f"/v1/stream/{life}/{number}"
        number += 1
        created = await store.create(CreateRequest(path, StreamConfig(TYPE), False, Payload(b"first;")), 0.0)
        assert isinstance(created, Created)
        say("created", path)
        stamp = ProducerStamp("closer", 0, 0)
        await store.append(AppendRequest(path, TYPE, Payload(b"last;"), True, stamp), 0.0)
        say("closed", path)
        if rng.random() < 0.5:
            fork = f"{path}/fork"
            config = StreamConfig(None, fork=Fork(path, 6, 2))
            assert isinstance(await store.create(CreateRequest(fork, config), 0.0), Created)
            say("forked", fork)
        if rng.random() < 0.5:
            result = await store.delete(path, 0.0)
            assert isinstance(result, Deleted | SoftDeleted)
            say("gone" if isinstance(result, SoftDeleted) else "deleted", path)


async def main(path: str, seed: str, following: dict[str, int]) -> None:
    rng = random.Random(seed)
    life = f"life{seed}"
    async with SQLiteStore(path) as store:
        for stream in STREAMS:
            await store.create(CreateRequest(stream, StreamConfig(TYPE)), 0.0)
        async with anyio.create_task_group() as group:
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                for number in range(PRODUCERS):
                    name = f"p{number}"
                    group.start_soon(produce, store, name, following.get(name, 0))
                group.start_soon(append_plainly, store, life)
                group.start_soon(come_and_go, store, life, rng)
                group.start_soon(sweep, store)
                async for _ in signals:
                    break
                group.cancel_scope.cancel()
    say("ended")


async def sweep(store: SQLiteStore) -> None:
    while True:
        await store.sweep(0.0)
        await anyio.sleep(0.01)


if __name__ == "__main__":
    arguments: list[Any] = sys.argv[1:]
    anyio.run(main, arguments[0], arguments[2], json.loads(arguments[3]), backend=arguments[1])
