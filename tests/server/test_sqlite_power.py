"""The SQLite store on a disk that loses power or fails at any moment.

`SIMULATION_SEEDS` says how many simulations to run. Each goes through several generations: a workload runs, the power
goes out at a moment chosen by chance, and the next generation starts with what the disk had.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from durable_streams.server import (
    Appended,
    AppendRequest,
    Created,
    CreateRequest,
    Duplicate,
    Fork,
    Missing,
    Payload,
    ProducerStamp,
    StreamConfig,
    StreamInfo,
)
from durable_streams.server.stores import sqlite_schema, sqlite_writer
from durable_streams.server.stores.errors import StoreFailedError
from durable_streams.server.stores.sqlite import SQLiteStore
from durable_streams.server.stores.sqlite_schema import Durability
from durable_streams.testing.store_steps import PATH, append_to, create_stream, expect, look_at, read_page

from .sqlite_power import SUFFIXES, Disk, Event, available

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not available(), reason="SQLite's C interface cannot be reached from here"),
]

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "15"))
GENERATIONS = 3
TYPE = "application/octet-stream"
PRODUCERS = ["p0", "p1", "p2"]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The disk under every store of the test. Its log is carried over early, so that this is met often."""
    monkeypatch.setattr(sqlite_writer, "_IDLE_PAGES", 10)
    monkeypatch.setattr(sqlite_writer, "_MOST_PAGES", 30)
    with Disk() as disk:
        original = sqlite3.connect

        def connect(path: str, **options: object) -> sqlite3.Connection:
            return original(f"file:{path}?vfs={disk.name}", uri=True, **options)  # type: ignore[call-overload,no-any-return]

        monkeypatch.setattr(sqlite_schema.sqlite3, "connect", connect)
        yield disk


def body(name: str, seq: int) -> bytes:
    return b"%b:%d:%b;" % (name.encode(), seq, b"." * ((seq * 7919) % 4000 if seq % 5 == 0 else seq % 40))


class Known:
    """What was acknowledged."""

    def __init__(self) -> None:
        self.produced = dict.fromkeys(PRODUCERS, -1)
        self.closed: set[str] = set()
        self.created: set[str] = set()
        self.deleted: set[str] = set()

    def learn(self, notes: list[tuple[str, str, int]]) -> None:
        for word, name, number in notes:
            if word == "appended":
                self.produced[name] = number
            else:
                getattr(self, word).add(name)


async def work(store: SQLiteStore, disk: Disk, known: Known, generation: int, rng: random.Random) -> None:
    """Use the store from several tasks, and note what it acknowledges."""

    async def produce(name: str) -> None:
        first = known.produced[name] + 1
        for seq in range(first, first + rng.randrange(3, 12)):
            stamp = ProducerStamp(name, 0, seq)
            result = await store.append(AppendRequest(PATH, TYPE, Payload(body(name, seq)), False, stamp), 0.0)
            assert isinstance(result, Appended | Duplicate), f"{name} was refused: {result}"
            disk.note(("appended", name, seq))

    async def come_and_go() -> None:
        for number in range(3):
            path = f"/v1/stream/{generation}/{number}"
            expect(Created, await create_stream(store, path=path, body=b"first;"))
            disk.note(("created", path, 0))
            stamp = ProducerStamp("closer", 0, 0)
            expect(Appended, await append_to(store, b"last;", path=path, close=True, producer=stamp))
            disk.note(("closed", path, 0))
            config = StreamConfig(None, fork=Fork(path, 6, 2))
            expect(Created, await store.create(CreateRequest(f"{path}/fork", config), 0.0))
            disk.note(("created", f"{path}/fork", 0))
            if rng.random() < 0.5:
                await store.delete(path, 0.0)
                await store.delete(f"{path}/fork", 0.0)
                disk.note(("deleted", path, 0))
                await store.sweep(0.0)

    await create_stream(store)
    async with anyio.create_task_group() as group:
        for name in PRODUCERS:
            group.start_soon(produce, name)
        group.start_soon(come_and_go)


async def audit(store: SQLiteStore, known: Known) -> None:
    """Everything that was acknowledged is there, once and in order."""
    info = await store.head(PATH, 0.0)
    stored: dict[str, int] = dict.fromkeys(PRODUCERS, 0)
    if isinstance(info, StreamInfo):
        content = (await read_page(store, info.ref))[0]
        while content:
            name = content.partition(b":")[0].decode()
            whole = body(name, stored[name])
            assert content.startswith(whole), f"{name}: torn, doubled or out of order at {stored[name]}"
            stored[name] += 1
            content = content[len(whole) :]
    for name, acknowledged in known.produced.items():
        assert acknowledged < stored[name] <= acknowledged + 2, f"{name}: {acknowledged} were acknowledged"
    for path in known.created - known.deleted:
        info = await store.head(path, 0.0)
        if isinstance(info, StreamInfo):
            data = (await read_page(store, info.ref))[0]
            assert data == (b"first;la" if path.endswith("/fork") else b"first;last;" if info.closed else b"first;")
            assert info.closed or path not in known.closed
        else:  # the deletion was on its way
            assert path.removesuffix("/fork") in known.closed
    for path in known.deleted:
        assert await store.head(path, 0.0) == Missing()


def contents(path: Path) -> list[bytes]:
    return [Path(f"{path}{suffix}").read_bytes() for suffix in SUFFIXES if Path(f"{path}{suffix}").exists()]


async def simulate(folder: Path, disk: Disk, seed: str, durability: Durability) -> int:
    """Run one simulation. Returns in how many generations the power loss changed anything."""
    rng = random.Random(seed)
    known = Known()
    path = folder / "first.db"
    losses = 0
    for generation in range(GENERATIONS):
        disk.begin_with(path)
        start = len(disk.events)
        async with SQLiteStore(path, durability=durability) as store:
            await audit(store, known)
            await work(store, disk, known, generation, rng)
        after = folder / f"after{generation}.db"
        known.learn(disk.lose_power(path, after, rng.randrange(start, len(disk.events) + 1), rng))
        losses += contents(after) != contents(path)
        path = after
    async with SQLiteStore(path, check="full") as store:
        await audit(store, known)
    for file in folder.iterdir():
        file.unlink()
    return losses


@pytest.mark.slow
@pytest.mark.timeout(120 + SEEDS)
async def test_no_power_loss_takes_what_was_acknowledged(tmp_path: Path, disk: Disk, anyio_backend_name: str) -> None:
    losses = 0
    for seed in range(SEEDS):
        losses += await simulate(tmp_path, disk, f"{seed} {anyio_backend_name}", "full")

    assert losses > SEEDS, "hardly any power loss changed anything"


async def test_the_simulation_notices_a_store_that_does_not_sync(tmp_path: Path, disk: Disk) -> None:
    with pytest.raises(AssertionError):
        for seed in range(100):
            await simulate(tmp_path, disk, str(seed), "relaxed")


async def test_relaxed_durability_loses_the_newest_requests_and_tears_none(tmp_path: Path, disk: Disk) -> None:
    rng = random.Random(1)
    tails = set()
    for number in range(20):
        path, after = tmp_path / f"{number}.db", tmp_path / f"{number}-after.db"
        disk.begin_with(path)
        async with SQLiteStore(path, durability="relaxed") as store:
            await create_stream(store)
            for seq in range(20):
                await append_to(store, body("p0", seq), producer=ProducerStamp("p0", 0, seq))
        disk.lose_power(path, after, rng.randrange(len(disk.events)), rng)

        async with SQLiteStore(after, check="full") as store:
            info = await store.head(PATH, 0.0)
            if isinstance(info, StreamInfo):
                content = (await read_page(store, info.ref))[0]
                count = content.count(b";")
                assert content == b"".join(body("p0", seq) for seq in range(count))
                expect(Appended, await append_to(store, b"on", producer=ProducerStamp("p0", 0, count)))
                tails.add(info.tail)
    assert len(tails) > 3


@pytest.mark.parametrize("kind", ["write", "sync", "truncate"])
async def test_whatever_fails_on_the_disk_the_store_stops_and_keeps_its_word(
    tmp_path: Path, disk: Disk, kind: str
) -> None:
    stopped = 0
    for number in range(1, 40, 3):
        path = tmp_path / f"{number}.db"
        async with SQLiteStore(path):
            pass
        disk.begin_with(path)
        left = number

        def fails(event: Event) -> bool:
            nonlocal left
            left -= event.kind == kind
            return event.kind == kind and left == 0  # once; the next one would claim to succeed

        known = 0
        try:
            async with SQLiteStore(path) as store:
                disk.fails = fails
                await create_stream(store)
                while known < 30:
                    expect(Appended, await append_to(store, b"%03d" % known * 500))
                    known += 1
        except StoreFailedError:
            stopped += 1
        else:
            assert left > 0
            break
        finally:
            disk.fails = lambda event: False
        after = tmp_path / f"{number}-after.db"
        disk.lose_power(path, after, len(disk.events), random.Random(number))
        async with SQLiteStore(after, check="full") as store:
            if known:
                info = await look_at(store)
                content = b"".join(b"%03d" % count * 500 for count in range(31))
                data = (await read_page(store, info.ref))[0]
                assert content.startswith(data)
                assert known * 1500 <= len(data) <= (known + 1) * 1500
    assert stopped >= (1 if kind == "truncate" else 5)
