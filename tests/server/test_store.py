"""The memory store keeps the promises of every store."""

import anyio
import anyio.lowlevel
import pytest

from durable_streams.server import Fork, Gone, MemoryStore, SoftDeleted
from durable_streams.server.protocol import AppendRequest, Payload, ProducerStamp
from durable_streams.server.stores.base import Appended, Created, CreateRequest, Missing, Reason, Refused, StreamConfig
from durable_streams.testing.store_kit import check_store

pytestmark = pytest.mark.anyio
PATH = "/v1/stream/x"


async def test_the_memory_store_keeps_its_promises() -> None:
    await check_store(MemoryStore)


async def test_streams_stay_when_the_store_is_closed_and_opened_again() -> None:
    store = MemoryStore()
    async with store:
        created = await store.create(CreateRequest(PATH, StreamConfig(), False, Payload(b"kept")), 0.0)
        assert isinstance(created, Created)
        watch = store.watch(created.info.ref)
    assert watch.gone

    async with store:
        page = await store.read(created.info.ref, 0, 100)
        assert not isinstance(page, Missing)
        assert bytes(await page.next_piece() or b"") == b"kept"
        assert not store.watch(created.info.ref).gone


async def test_a_producer_is_forgotten_after_seven_silent_days() -> None:
    store = MemoryStore()
    await store.create(CreateRequest(PATH, StreamConfig()), 0.0)
    week = 7 * 86400.0

    async def append(name: str, epoch: int, seq: int, now: float) -> object:
        stamp = ProducerStamp(name, epoch, seq)
        return await store.append(AppendRequest(PATH, "application/octet-stream", Payload(b"x"), producer=stamp), now)

    assert isinstance(await append("a", 5, 0, 0.0), Appended)
    assert isinstance(await append("a", 5, 1, week - 1), Appended)
    assert isinstance(await append("a", 5, 2, 2 * week - 2), Appended)
    refused = await append("a", 5, 3, 3 * week)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.SEQUENCE_GAP
    assert refused.expected == 0
    assert isinstance(await append("a", 0, 0, 3 * week), Appended)


async def test_a_page_hands_out_the_stored_bytes_without_copying_them() -> None:
    store = MemoryStore()
    body = bytes(5 << 20)
    created = await store.create(CreateRequest(PATH, StreamConfig(), False, Payload(body)), 0.0)
    assert isinstance(created, Created)

    page = await store.read(created.info.ref, 1, 1 << 30)
    assert not isinstance(page, Missing)
    pieces = []
    while (piece := await page.next_piece()) is not None:
        pieces.append(piece)

    assert all(isinstance(piece, memoryview) and piece.obj is body for piece in pieces)
    assert sum(map(len, pieces)) == (5 << 20) - 1


async def test_forks_that_have_expired_keep_no_source_though_nobody_noticed() -> None:
    store = MemoryStore()
    for ttl in (5, None):
        await store.create(CreateRequest(PATH, StreamConfig(ttl=ttl)), 0.0)
        asked = StreamConfig(ttl=5, fork=Fork(PATH))
        assert isinstance(await store.create(CreateRequest(PATH + "/fork", asked), 0.0), Created)
        if ttl is None:
            assert await store.delete(PATH, 4.0) == SoftDeleted()
        assert await store.head(PATH, 4.9) == (Gone() if ttl is None else await store.head(PATH, 0.0))
        assert await store.head(PATH, 5.0) == Missing()
    assert repr(store) == "<MemoryStore with 0 streams>"


async def test_a_fork_shares_the_bytes_of_its_source() -> None:
    store = MemoryStore()
    body = bytes(3 << 20)
    await store.create(CreateRequest(PATH, StreamConfig(), False, Payload(body)), 0.0)
    path = PATH
    for number in range(3):
        fork = StreamConfig(fork=Fork(path, (3 << 20) - number))
        path = f"{PATH}/{number}"
        created = await store.create(CreateRequest(path, fork), 0.0)
        assert isinstance(created, Created)

    page = await store.read(created.info.ref, 0, 1 << 30)
    assert not isinstance(page, Missing)
    pieces = []
    while (piece := await page.next_piece()) is not None:
        pieces.append(piece)

    assert all(isinstance(piece, memoryview) and piece.obj is body for piece in pieces)
    assert sum(map(len, pieces)) == (3 << 20) - 2


async def test_a_sweep_lets_others_run_in_between() -> None:
    store = MemoryStore()
    for number in range(2500):
        await store.create(CreateRequest(f"{PATH}{number}", StreamConfig(ttl=1)), 0.0)
    seen: list[str] = []

    async def watch() -> None:
        while repr(store) != "<MemoryStore with 0 streams>":
            seen.append(repr(store))
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        group.start_soon(store.sweep, 1.0)

    assert {"<MemoryStore with 1500 streams>", "<MemoryStore with 500 streams>"} & set(seen)


async def test_repr_tells_how_many_streams_there_are() -> None:
    store = MemoryStore()
    await store.create(CreateRequest(PATH, StreamConfig()), 0.0)
    assert repr(store) == "<MemoryStore with 1 streams>"
