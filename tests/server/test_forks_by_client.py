"""The client forks on the server, over sockets: both sides of the protocol in one story, on both event loops."""

from collections.abc import AsyncIterator

import anyio
import pytest

from durable_streams import (
    ConflictError,
    DurableStream,
    IdempotentProducer,
    RetentionGoneError,
    StreamNotFoundError,
    stream,
)
from durable_streams.server import Server

pytestmark = pytest.mark.anyio
JSON = "application/json"
BEGINNING = "0000000000000000_0000000000000000"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server(long_poll_timeout=0.2) as running:
        yield running


@pytest.fixture
async def source(server: Server) -> AsyncIterator[DurableStream]:
    with anyio.fail_after(30):
        async with DurableStream(server.url + "/source") as handle:
            await handle.create(content_type=JSON, ttl_seconds=600)
            yield handle


async def read_json(url: str, offset: str | None = None) -> list[object]:
    async with stream(url, offset=offset, live=False) as response:
        return await response.json()


async def test_offsets_of_the_common_prefix_can_be_read_from_on_both_sides(source: DurableStream) -> None:
    offsets = [(await source.append_json({"n": number})).next_offset for number in range(5)]
    fork = await source.fork("fork", offset=offsets[2])
    await fork.append_json({"own": 1})
    await source.append_json({"n": 5})

    assert fork.url == source.url.removesuffix("source") + "fork"
    assert await read_json(source.url) == [{"n": number} for number in range(6)]
    assert await read_json(fork.url) == [{"n": 0}, {"n": 1}, {"n": 2}, {"own": 1}]
    for count, offset in enumerate(offsets[:3], 1):
        assert await read_json(source.url, offset) == [{"n": number} for number in range(count, 6)]
        assert await read_json(fork.url, offset) == [*({"n": number} for number in range(count, 3)), {"own": 1}]


@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_a_reader_follows_a_fork_across_its_beginning(source: DurableStream, live: str) -> None:
    for value in (1, [2], "three"):
        await source.append_json(value)
    fork = await source.fork("fork", offset=(await source.head()).offset, body=b'"first"')
    received: list[object] = []
    async with fork.stream(live=live) as response:  # type: ignore[arg-type]  # parametrized
        async for item in response.iter_json():
            received.append(item)
            if item == "first":
                await source.append_json("not for the fork")
                await fork.append_json("second")
                await fork.close_stream()
    assert received == [1, [2], "three", "first", "second"]


async def test_a_sub_offset_takes_a_part_of_what_a_producer_sent_as_one(source: DurableStream) -> None:
    async with IdempotentProducer(source, "writer") as producer:
        for number in range(10):
            producer.append_nowait(b"%d" % number)
    part = await source.fork("part", offset=BEGINNING, sub_offset=4)
    assert await read_json(part.url) == [0, 1, 2, 3]
    with pytest.raises(ConflictError):
        await source.fork("part", offset=BEGINNING, sub_offset=5)
    again = await source.fork("part", offset=BEGINNING, sub_offset=4)
    async with IdempotentProducer(again, "writer") as producer:  # begins anew: the source's writer is unknown here
        producer.append_nowait(b'"four"')
    assert await read_json(part.url) == [0, 1, 2, 3, "four"]
    assert await read_json((await source.fork("empty", offset=BEGINNING)).url) == []


async def test_a_fork_outlives_its_source(source: DurableStream) -> None:
    await source.append_json(1)
    fork = await source.fork("fork")
    assert (await fork.head()).ttl_seconds == 600
    await source.delete()
    with pytest.raises(RetentionGoneError):
        await read_json(source.url)
    with pytest.raises(ConflictError):
        await source.fork("other")
    assert await read_json(fork.url) == [1]
    await fork.delete()
    with pytest.raises(StreamNotFoundError):
        await read_json(source.url)
    with pytest.raises(StreamNotFoundError):
        await source.fork("other")
