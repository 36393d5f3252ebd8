"""Uses of the public names that are only type-checked, never run: what a user's editor infers.

`make check` runs mypy --strict and pyright on it. An `assert_type` that no longer holds is a change users notice.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, assert_type

import anyio

from durable_streams import (
    AppendResult,
    BackoffOptions,
    BytesBatch,
    Checkpoint,
    CloseResult,
    CreateResult,
    DeleteResult,
    DurableStream,
    DurableStreamError,
    HeadResult,
    JsonBatch,
    NetworkError,
    ProducerStamp,
    Recovery,
    SSEResilience,
    StreamClosedError,
    StreamResponse,
    TextBatch,
    stream,
)
from durable_streams.server import Server

URL = "http://localhost:4437/v1/stream/typed"


@dataclass
class Event:
    id: int

    @classmethod
    def parse(cls, value: dict[str, Any]) -> "Event":
        return cls(value["id"])


async def both_ways_to_open() -> None:
    response = await stream(URL)
    assert_type(response, StreamResponse)
    await response.aclose()
    async with stream(URL, offset=Checkpoint.start(), live="long-poll") as entered:
        assert_type(entered, StreamResponse)


async def one_call_that_collects(response: StreamResponse) -> None:
    assert_type(await response.read(), bytes)
    assert_type(await response.text(), str)
    assert_type(await response.json(), list[Any])
    assert_type(await response.json(type=Event.parse), list[Event])


async def item_by_item(response: StreamResponse) -> None:
    async for item in response:
        assert_type(item, Any)
    async for event in response.iter_json(type=Event.parse):
        assert_type(event, Event)
    async for piece in response.iter_bytes():
        assert_type(piece, bytes)
    async for text in response.iter_text():
        assert_type(text, str)


async def batch_by_batch(response: StreamResponse) -> None:
    async for batch in response.iter_batches(as_="json", type=Event.parse):
        assert_type(batch, JsonBatch[Event])
        assert_type(batch.items, list[Event])
        assert_type(batch.checkpoint, Checkpoint)
        assert_type((batch.offset, batch.cursor), tuple[str, str | None])
    async for data in response.iter_batches(as_="bytes"):
        assert_type(data, BytesBatch)
    async for text in response.iter_batches(as_="text"):
        assert_type(text, TextBatch)
    async for anything in response.iter_batches():
        assert_type(anything, JsonBatch[Any] | TextBatch | BytesBatch)


async def callbacks(response: StreamResponse) -> None:
    async def slow(batch: JsonBatch[Any]) -> None:
        await anyio.sleep(len(batch.items))

    def quick(batch: BytesBatch) -> None:
        print(batch.data)

    assert_type(await response.subscribe_json(slow), None)
    assert_type(await response.subscribe_bytes(quick), None)
    response.cancel()
    await response.wait_closed()


async def writing() -> None:
    async with DurableStream(URL, content_type="application/json", batching=False) as handle:
        assert_type(await handle.create(ttl_seconds=60), CreateResult)
        assert_type(await handle.create_or_connect(), CreateResult)
        assert_type(await handle.head(), HeadResult)
        assert_type(await handle.append(b"{}"), AppendResult)
        assert_type(await handle.append("{}", producer=ProducerStamp("id", 0, 0)), AppendResult)
        assert_type(await handle.append_json({"id": 1}), AppendResult)
        assert_type(await handle.append_stream(pieces()), AppendResult)
        assert_type(await handle.fork("other"), DurableStream)
        assert_type(await handle.close_stream(), CloseResult)
        assert_type(await handle.delete(), DeleteResult)


async def pieces() -> AsyncIterator[bytes | str]:
    yield b"bytes"
    yield "text"


async def own_task_group() -> None:
    async with anyio.create_task_group() as tasks:
        handle = DurableStream(URL)
        await handle.start(tasks)
        await handle.aclose()


async def fresh_token() -> str:
    return "Bearer token"


def recover(error: Exception) -> Recovery | None:
    return {"headers": {"authorization": fresh_token}} if isinstance(error, DurableStreamError) else None


async def policies() -> None:
    async with stream(
        URL,
        headers={"authorization": fresh_token, "x-plain": "text", "x-called": lambda: "text"},
        params={"tenant": "a", "absent": None},
        on_error=recover,
        backoff_options=BackoffOptions(max_retries=3),
        sse_resilience=SSEResilience(max_short_connections=5),
    ) as response:
        await response.read()


async def errors(handle: DurableStream) -> None:
    try:
        await handle.append(b"x")
    except StreamClosedError as error:
        assert_type(error.final_offset, str | None)
    except NetworkError as error:
        assert_type((error.maybe_applied, error.retryable), tuple[bool, bool])
    except DurableStreamError as error:
        assert_type((error.code, error.status), tuple[str, int | None])


def checkpoints(saved: str) -> None:
    checkpoint = Checkpoint.loads(saved)
    assert_type(checkpoint.dumps(), str)
    assert_type(checkpoint.to_dict(), dict[str, Any])


def a_server_in_a_program() -> None:
    with Server(long_poll_timeout=1.0) as server:
        assert_type(server.url, str)


async def a_server_in_an_async_program() -> None:
    async with Server() as server:
        assert_type(server.base_url, str)
