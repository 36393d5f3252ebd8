"""The memory store keeps the promises of every store."""

import pytest

from durable_streams.server import MemoryStore
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


async def test_repr_tells_how_many_streams_there_are() -> None:
    store = MemoryStore()
    await store.create(CreateRequest(PATH, StreamConfig()), 0.0)
    assert repr(store) == "<MemoryStore with 1 streams>"
