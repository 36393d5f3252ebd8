"""The official TypeScript client and ours on our server: each writes, the other reads, in every live mode."""

import base64
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import anyio
import pytest

from durable_streams import DurableStream
from durable_streams.server import MemoryStore, Server, SQLiteStore

from .conftest import TypeScriptClient, TypeScriptError

pytestmark = pytest.mark.anyio

As = Literal["json", "text", "bytes"]
Live = Literal["long-poll", "sse"] | bool
CONTENT_TYPES: dict[As, str] = {"json": "application/json", "text": "text/plain", "bytes": "application/octet-stream"}
# No text begins with a space or has CR: the TypeScript client's SSE parser would lose them from any server.
VALUES: dict[As, list[Any]] = {
    "json": [{"n": 1, "s": "größer 🚀\r\n\u2028"}, [1, [2]], "x", None, 0, [], 1.5],
    "text": ["one ", "größer\ntwo\n\n", "🚀", "end"],
    "bytes": [b"\x00\xff", b"\r\n\r\n", bytes(range(256)), b"."],
}
EVERY_AS = pytest.mark.parametrize("as_", ["json", "text", "bytes"])
EVERY_LIVE = pytest.mark.parametrize("live", [False, True, "long-poll", "sse"])
FOLLOWING = pytest.mark.parametrize("live", [True, "long-poll", "sse"])


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("store") / "streams.db"
    with Server(MemoryStore() if request.param == "memory" else SQLiteStore(path)) as server:
        yield server.base_url


@pytest.fixture
def url(server: str, path: str) -> str:
    return server + path


@pytest.fixture
async def handle(url: str) -> AsyncIterator[DurableStream]:
    async with DurableStream(url) as handle:
        yield handle


def body(as_: As, value: Any) -> dict[str, Any]:
    """A value as a command of the TypeScript program carries it."""
    return {"base64": base64.b64encode(value).decode()} if as_ == "bytes" else {as_: value}


def decoded(as_: As, batches: list[Any]) -> Any:
    """What the TypeScript program read, put together."""
    if as_ == "json":
        return [item for batch in batches for item in batch]
    if as_ == "text":
        return "".join(batches)
    return b"".join(base64.b64decode(batch) for batch in batches)


def joined(as_: As, values: list[Any]) -> Any:
    return values if as_ == "json" else ("" if as_ == "text" else b"").join(values)


def content(as_: As, batch: Any) -> list[Any]:
    """What a batch of ours brings: its items, or its text or data if there is any."""
    if as_ == "json":
        return list(batch.items)
    value = batch.text if as_ == "text" else batch.data
    return [value] if value else []


async def append(handle: DurableStream, as_: As, value: Any) -> None:
    await (handle.append_json(value) if as_ == "json" else handle.append(value))


async def read(handle: DurableStream, as_: As, live: Live) -> Any:
    """Everything up to the end of a closed stream, with our client."""
    values: list[Any] = []
    async with handle.stream(live=live) as response:
        async for batch in response.iter_batches(as_=as_):
            values.extend(content(as_, batch))
    return joined(as_, values)


@EVERY_AS
@EVERY_LIVE
async def test_we_write_and_typescript_reads(
    handle: DurableStream, ts_client: TypeScriptClient, as_: As, live: Live
) -> None:
    await handle.create(content_type=CONTENT_TYPES[as_])
    for value in VALUES[as_]:
        await append(handle, as_, value)
    await handle.close_stream()

    answer = await ts_client.call("read", url=handle.url, **{"as": as_}, live=live)

    assert decoded(as_, answer["batches"]) == joined(as_, VALUES[as_])
    assert answer["offset"] == (await handle.head()).offset
    assert answer["streamClosed"]


@EVERY_AS
@FOLLOWING
async def test_typescript_follows_while_we_write(
    handle: DurableStream, ts_client: TypeScriptClient, as_: As, live: Live
) -> None:
    await handle.create(content_type=CONTENT_TYPES[as_])
    reading = ts_client.start("read", url=handle.url, **{"as": as_}, live=live)
    seen: list[Any] = []

    with anyio.fail_after(60):
        assert (await reading.event())["upToDate"]  # it has caught up and follows
        for number, value in enumerate(VALUES[as_]):
            await append(handle, as_, value)
            while decoded(as_, seen) != joined(as_, VALUES[as_][: number + 1]):
                seen.append((await reading.event())["value"])
        await handle.close_stream()
        answer = await reading.result()

    assert answer["streamClosed"]


@EVERY_AS
@EVERY_LIVE
async def test_typescript_writes_and_we_read(
    handle: DurableStream, ts_client: TypeScriptClient, as_: As, live: Live
) -> None:
    target = {"url": handle.url, "contentType": CONTENT_TYPES[as_]}
    await ts_client.call("create", **target)
    for value in VALUES[as_]:
        await ts_client.call("append", **target, **body(as_, value))
    closed = await ts_client.call("close", **target)

    with anyio.fail_after(60):
        values = await read(handle, as_, live)

    assert values == joined(as_, VALUES[as_])
    assert closed["finalOffset"] == (await handle.head()).offset


@EVERY_AS
@FOLLOWING
async def test_we_follow_while_typescript_writes(
    handle: DurableStream, ts_client: TypeScriptClient, as_: As, live: Live
) -> None:
    target = {"url": handle.url, "contentType": CONTENT_TYPES[as_]}
    await ts_client.call("create", **target)
    seen: list[Any] = []

    with anyio.fail_after(60):
        async with handle.stream(live=live) as response:
            batches = response.iter_batches(as_=as_)
            for number, value in enumerate(VALUES[as_]):
                await ts_client.call("append", **target, **body(as_, value))
                while joined(as_, seen) != joined(as_, VALUES[as_][: number + 1]):
                    seen.extend(content(as_, await anext(batches)))
            await ts_client.call("close", **target)
            async for batch in batches:
                assert content(as_, batch) == []

    assert response.stream_closed


async def test_typescript_batches_concurrent_appends(handle: DurableStream, ts_client: TypeScriptClient) -> None:
    target = {"url": handle.url, "contentType": "application/json"}
    await ts_client.call("create", **target)

    await ts_client.call("append_many", **target, bodies=[{"json": [number]} for number in range(50)])

    assert await read(handle, "json", False) == [[number] for number in range(50)]


async def test_typescript_streams_one_append(handle: DurableStream, ts_client: TypeScriptClient) -> None:
    target = {"url": handle.url, "contentType": "application/octet-stream"}
    await ts_client.call("create", **target)

    await ts_client.call("append_stream", **target, bodies=[body("bytes", value) for value in VALUES["bytes"]])

    assert await read(handle, "bytes", False) == b"".join(VALUES["bytes"])


@pytest.mark.parametrize("as_", ["json", "text"])
async def test_typescript_resumes_where_we_stopped(handle: DurableStream, ts_client: TypeScriptClient, as_: As) -> None:
    await handle.create(content_type=CONTENT_TYPES[as_])
    await append(handle, as_, VALUES[as_][0])
    async with handle.stream() as response:
        async for batch in response.iter_batches():
            if batch.up_to_date:
                saved = batch.checkpoint
                break
    for value in VALUES[as_][1:]:
        await append(handle, as_, value)

    answer = await ts_client.call("read_all", url=handle.url, **{"as": as_}, live=False, offset=saved.offset)

    assert answer["value"] == joined(as_, VALUES[as_][1:])


async def test_typescript_sees_the_metadata_we_see(handle: DurableStream, ts_client: TypeScriptClient) -> None:
    await handle.create(content_type="text/plain", body="x")

    theirs, ours = await ts_client.call("head", url=handle.url), await handle.head()

    assert theirs == {
        "exists": True,
        "contentType": ours.content_type,
        "offset": ours.offset,
        "streamClosed": False,
        **({"etag": ours.etag} if ours.etag else {}),
        **({"cacheControl": ours.cache_control} if ours.cache_control else {}),
    }


async def test_typescript_understands_our_refusals(handle: DurableStream, ts_client: TypeScriptClient) -> None:
    target = {"url": handle.url, "contentType": "text/plain"}

    async def refusal(do: str, **fields: Any) -> int | None:
        with pytest.raises(TypeScriptError) as caught:
            await ts_client.call(do, **{**target, **fields})
        return caught.value.status

    assert await refusal("append", text="x") == 404
    await ts_client.call("create", **target)
    assert await refusal("create", contentType="application/json") == 409
    await ts_client.call("append", **target, text="x", seq="b")
    assert await refusal("append", text="x", seq="a") == 409
    await ts_client.call("close", **target)
    assert await refusal("append", text="x") == 409
    await ts_client.call("delete", **target)
    assert not (await ts_client.call("head", url=handle.url))["exists"]


async def test_the_typescript_producer_writes_exactly_once_to_our_server(
    handle: DurableStream, ts_client: TypeScriptClient, path: str
) -> None:
    target = {"url": handle.url, "contentType": "application/json"}
    await ts_client.call("create", **target)
    producer = {"producer": path}

    await ts_client.call("producer_open", **target, **producer, options={"lingerMs": 0, "maxBatchBytes": 200})
    await ts_client.call("producer_append", **producer, bodies=[{"json": {"n": number}} for number in range(200)])
    flushed = await ts_client.call("producer_flush", **producer)
    closed = await ts_client.call("producer_close", **producer, json={"n": 200})

    assert flushed["epoch"] == 0
    assert flushed["nextSeq"] > 1
    assert await read(handle, "json", True) == [{"n": number} for number in range(201)]
    assert closed["finalOffset"] == (await handle.head()).offset


async def test_a_restarted_typescript_producer_is_fenced_off(
    handle: DurableStream, ts_client: TypeScriptClient, path: str
) -> None:
    target = {"url": handle.url, "contentType": "application/json"}
    await ts_client.call("create", **target)

    await ts_client.call("producer_open", **target, producer=path, options={"epoch": 1})
    await ts_client.call("producer_append", producer=path, bodies=[{"json": 1}])
    await ts_client.call("producer_flush", producer=path)
    await ts_client.call("producer_detach", producer=path)
    await ts_client.call("producer_open", **target, producer=path, options={"epoch": 0})
    await ts_client.call("producer_append", producer=path, bodies=[{"json": "stale"}])
    await ts_client.call("producer_flush", producer=path)

    assert await read(handle, "json", False) == [1]
