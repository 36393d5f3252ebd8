"""Our producer against the Node reference server, and two producers of different make in one stream."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from durable_streams import DurableStream, IdempotentProducer, StaleEpochError
from durable_streams.server import Server

from .conftest import TypeScriptClient

pytestmark = pytest.mark.anyio


@pytest.fixture
async def handle(node_server: str, path: str) -> AsyncIterator[DurableStream]:
    async with DurableStream(node_server + path) as handle:
        yield handle


async def items(handle: DurableStream) -> list[Any]:
    async with handle.stream(live=False) as response:
        return await response.json()


async def test_many_batches_in_flight_arrive_once_and_in_order(handle: DurableStream) -> None:
    await handle.create(content_type="application/json")

    with anyio.fail_after(60):
        async with IdempotentProducer(handle, "writer", max_batch_items=7, linger=0) as producer:
            for number in range(1000):
                await producer.append_json(number)

    assert await items(handle) == list(range(1000))


async def test_bytes_arrive_as_they_were_appended(handle: DurableStream) -> None:
    await handle.create(content_type="application/octet-stream")
    messages = [bytes([number]) * number for number in range(1, 256)]

    with anyio.fail_after(60):
        async with IdempotentProducer(handle, "writer", max_batch_bytes=1000) as producer:
            await producer.append_many(messages)
            flushed = await producer.flush()

    assert flushed.offset == (await handle.head()).offset
    async with handle.stream(live=False) as response:
        assert await response.read() == b"".join(messages)


async def test_the_last_message_closes_the_stream(handle: DurableStream) -> None:
    await handle.create(content_type="application/json")

    with anyio.fail_after(60):
        async with IdempotentProducer(handle, "writer") as producer:
            await producer.append_json("first")
            closed = await producer.close_stream('"last"')

    assert closed.final_offset == (await handle.head()).offset
    assert (await handle.head()).stream_closed
    assert await items(handle) == ["first", "last"]


async def test_a_restarted_producer_repeats_nothing(handle: DurableStream) -> None:
    """The same messages under the same numbers, as after a crash before the position was saved."""
    await handle.create(content_type="application/json")

    with anyio.fail_after(60):
        for _ in range(2):
            async with IdempotentProducer(handle, "writer", max_batch_items=1) as producer:
                for number in range(5):
                    await producer.append_json(number)

    assert await items(handle) == [0, 1, 2, 3, 4]


async def test_a_newer_epoch_fences_off_an_older_one(handle: DurableStream) -> None:
    await handle.create(content_type="application/json")

    with anyio.fail_after(60):
        async with IdempotentProducer(handle, "writer", epoch=1) as newer:
            await newer.send('"newer"')
        with pytest.raises(StaleEpochError) as caught:
            async with IdempotentProducer(handle, "writer", epoch=0) as older:
                await older.send('"older"')
        async with IdempotentProducer(handle, "writer", epoch=0, auto_claim=True) as claiming:
            await claiming.send('"claimed"')

    assert caught.value.current_epoch == 1
    assert claiming.epoch == 2
    assert await items(handle) == ["newer", "claimed"]


async def test_the_typescript_producer_takes_over_from_ours_and_back(path: str, ts_client: TypeScriptClient) -> None:
    with anyio.fail_after(60):
        async with Server() as server, DurableStream(server.base_url + path) as handle:
            await handle.create(content_type="application/json")
            target = {"url": handle.url, "contentType": "application/json", "producer": "writer"}

            async with IdempotentProducer(handle, "writer") as ours:
                await ours.send('"ours"')
            await ts_client.call("producer_open", **target, options={"autoClaim": True, "epoch": 1})
            await ts_client.call("producer_append", producer="writer", bodies=[{"json": "theirs"}])
            theirs = await ts_client.call("producer_flush", producer="writer")
            await ts_client.call("producer_detach", producer="writer")
            async with IdempotentProducer(handle, "writer", auto_claim=True) as again:
                await again.send('"ours again"')

            assert theirs["epoch"] == 1
            assert again.epoch == 2
            assert await items(handle) == ["ours", "theirs", "ours again"]
