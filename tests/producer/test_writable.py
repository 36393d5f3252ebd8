"""`DurableStream.writable`: a sink for piping."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from durable_streams import AlreadyClosedError, DurableStream, StreamClosedError, stream
from durable_streams.server import Server

pytestmark = pytest.mark.anyio


@pytest.fixture
async def handle() -> AsyncIterator[DurableStream]:
    async with Server() as server:
        made = DurableStream(f"{server.url}/sink")
        await made.create(content_type="text/plain")
        yield made
        await made.aclose()


async def content(handle: DurableStream) -> tuple[str, bool]:
    async with stream(handle.url, live=False) as response:
        return await response.text(), response.stream_closed


async def test_what_is_written_is_stored_when_the_block_is_left(handle: DurableStream) -> None:
    async with handle.writable() as sink:
        for piece in ("a", "", "b", b"c"):
            await sink.write(piece)

    assert await content(handle) == ("abc", False)
    assert sink.producer.producer_id.startswith("writable-")
    assert len(sink.producer.producer_id) == len("writable-") + 8


async def test_the_stream_is_closed_only_if_asked_for(handle: DurableStream) -> None:
    async with handle.writable(close_stream=True) as sink:
        await sink.write("end")

    assert await content(handle) == ("end", True)
    assert sink.result is not None
    assert sink.result.final_offset == (await handle.head()).offset


async def test_an_exception_goes_on_bare_and_leaves_the_stream_open(handle: DurableStream) -> None:
    with pytest.raises(LookupError):
        async with handle.writable(close_stream=True) as sink:
            await sink.write("a")
            raise LookupError

    assert (await content(handle))[1] is False


async def test_a_failed_write_is_raised_at_the_end(handle: DurableStream) -> None:
    await handle.close_stream()

    with pytest.raises(StreamClosedError):
        async with handle.writable() as sink:
            await sink.write("late")


async def test_a_failed_write_is_raised_when_the_stream_is_to_be_closed(handle: DurableStream) -> None:
    await handle.close_stream()

    with pytest.raises(StreamClosedError):
        async with handle.writable(close_stream=True) as sink:
            await sink.write("late")


async def test_nothing_is_written_outside_the_block(handle: DurableStream) -> None:
    async with handle.writable() as sink:
        await sink.write("a")

    with pytest.raises(AlreadyClosedError):
        await sink.write("b")
