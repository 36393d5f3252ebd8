"""Our client against the Node reference server: every operation, every live mode, every way to resume."""

from collections.abc import AsyncIterator
from typing import Any, Literal

import anyio
import pytest

from durable_streams import (
    Checkpoint,
    ConflictError,
    DurableStream,
    ProducerStamp,
    SeqConflictError,
    StreamClosedError,
    StreamExistsError,
    StreamNotFoundError,
    stream,
)

pytestmark = pytest.mark.anyio

Live = Literal["long-poll", "sse"] | bool
FOLLOWING: list[Live] = [True, "long-poll", "sse"]
EVENTS = [{"number": number, "text": "größer 🚀\n\r\u2028"} for number in range(5)]
TEXTS = ["one ", "größer\n", "🚀"]
CHUNKS = [b"\x00\xff", b"\r\n\r\n", bytes(range(256))]


@pytest.fixture
async def handle(node_server: str, path: str) -> AsyncIterator[DurableStream]:
    async with DurableStream(node_server + path) as handle:
        yield handle


async def test_create_head_delete(handle: DurableStream) -> None:
    created = await handle.create(content_type="text/plain")
    again = await handle.create(content_type="text/plain")
    head = await handle.head()
    deleted = await handle.delete()

    assert (created.status, created.created, created.content_type) == (201, True, "text/plain")
    assert (again.status, again.created) == (200, False)
    assert (head.exists, head.content_type, head.offset, head.stream_closed) == (
        True,
        "text/plain",
        created.offset,
        False,
    )
    assert deleted.status == 204
    assert not (await handle.head()).exists


async def test_create_with_another_configuration_conflicts(handle: DurableStream) -> None:
    await handle.create(content_type="text/plain")

    with pytest.raises(StreamExistsError):
        await handle.create(content_type="application/json")


async def test_create_with_time_to_live_is_seen_by_head(handle: DurableStream) -> None:
    await handle.create(content_type="text/plain", ttl_seconds=3600)

    assert (await handle.head()).ttl_seconds == 3600


async def test_create_or_connect_finds_what_is_there(handle: DurableStream) -> None:
    first = await handle.create_or_connect(content_type="application/json")
    second = await handle.create_or_connect(content_type="application/json")

    assert (first.created, second.created) == (True, False)


async def test_a_missing_stream_is_reported_by_every_operation(handle: DurableStream) -> None:
    for operation in (
        handle.connect,
        lambda: handle.append(b"x", content_type="text/plain"),
        handle.delete,
        handle.close_stream,
    ):
        with pytest.raises(StreamNotFoundError):
            await operation()
    with pytest.raises(StreamNotFoundError):
        await handle.stream()


async def test_bytes_come_back_as_they_were_appended(handle: DurableStream) -> None:
    await handle.create(content_type="application/octet-stream")
    for chunk in CHUNKS:
        await handle.append(chunk)

    async with handle.stream(live=False) as response:
        assert await response.read() == b"".join(CHUNKS)
    async with handle.stream() as response:
        assert await response.read() == b"".join(CHUNKS)


async def test_text_comes_back_as_it_was_appended(handle: DurableStream) -> None:
    await handle.create(content_type="text/plain")
    for text in TEXTS:
        await handle.append(text)

    async with handle.stream(live=False) as response:
        assert await response.text() == "".join(TEXTS)


async def test_values_come_back_as_they_were_appended(handle: DurableStream) -> None:
    await handle.create(content_type="application/json")
    values: list[Any] = [*EVENTS, [1, [2]], "text", None, 0, 2**53 - 1, 0.1]
    for value in values:
        await handle.append_json(value)

    async with handle.stream(live=False) as response:
        assert await response.json() == values


async def test_concurrent_appends_are_gathered_and_none_is_lost(handle: DurableStream) -> None:
    await handle.create(content_type="application/json")
    offsets: list[str | None] = []

    async def append(number: int) -> None:
        offsets.append((await handle.append_json(number)).next_offset)

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(append, number)

    async with handle.stream(live=False) as response:
        assert sorted(await response.json()) == list(range(100))
    assert len(set(offsets)) < 100


async def test_an_append_stream_is_one_message(handle: DurableStream) -> None:
    await handle.create(content_type="application/octet-stream")

    async def pieces() -> AsyncIterator[bytes]:
        for chunk in CHUNKS:
            yield chunk

    result = await handle.append_stream(pieces())

    assert result.next_offset == (await handle.head()).offset
    async with handle.stream(live=False) as response:
        assert await response.read() == b"".join(CHUNKS)


async def test_seq_must_increase(handle: DurableStream) -> None:
    await handle.create(content_type="text/plain")
    await handle.append("a", seq="0002")

    with pytest.raises(SeqConflictError):
        await handle.append("b", seq="0001")


async def test_another_content_type_conflicts(handle: DurableStream) -> None:
    await handle.create(content_type="text/plain")

    with pytest.raises(ConflictError):
        await handle.append(b"{}", content_type="application/json")


async def test_raw_producer_appends_are_deduplicated_and_fenced(handle: DurableStream) -> None:
    await handle.create(content_type="text/plain")

    stored = await handle.append("a", producer=ProducerStamp("p", 1, 0))
    repeated = await handle.append("a", producer=ProducerStamp("p", 1, 0))
    gap = await handle.append("c", producer=ProducerStamp("p", 1, 5))
    stale = await handle.append("b", producer=ProducerStamp("p", 0, 0))

    assert [result.outcome for result in (stored, repeated, gap, stale)] == [
        "stored",
        "duplicate",
        "gap",
        "stale-epoch",
    ]
    assert (gap.expected_seq, gap.received_seq) == (1, 5)
    assert stale.epoch == 1
    async with handle.stream(live=False) as response:
        assert await response.text() == "a"


async def test_close_is_final(handle: DurableStream) -> None:
    await handle.create(content_type="text/plain")
    await handle.append("first ")

    closed = await handle.close_stream("last")
    again = await handle.close_stream()

    assert closed.final_offset == again.final_offset == (await handle.head()).offset
    with pytest.raises(StreamClosedError) as caught:
        await handle.append("late")
    assert caught.value.final_offset == closed.final_offset
    async with handle.stream() as response:  # live: ends, as the stream is closed
        assert [piece async for piece in response.iter_text()] == ["first last"]
        assert response.stream_closed


async def test_a_stream_may_be_created_closed_with_its_content(handle: DurableStream) -> None:
    await handle.create(content_type="application/json", body="[1, 2]", closed=True)

    async with handle.stream() as response:
        assert [item async for item in response] == [1, 2]


async def test_a_fork_shares_the_beginning(handle: DurableStream, path: str) -> None:
    await handle.create(content_type="application/json")
    await handle.append_json("shared")
    fork = await handle.fork(f"{path}-fork")
    await handle.append_json("source")
    await fork.append_json("fork")

    async with handle.stream(live=False) as ours, fork.stream(live=False) as theirs:
        assert await ours.json() == ["shared", "source"]
        assert await theirs.json() == ["shared", "fork"]


@pytest.mark.parametrize("live", FOLLOWING)
async def test_a_follower_sees_json_as_it_is_appended(handle: DurableStream, live: Live) -> None:
    await handle.create(content_type="application/json")
    seen = []

    with anyio.fail_after(30):
        async with handle.stream(live=live) as response:
            await handle.append_json(EVENTS[0])
            async for item in response:
                seen.append(item)
                if len(seen) < len(EVENTS):
                    await handle.append_json(EVENTS[len(seen)])
                else:
                    await handle.close_stream()

    assert seen == EVENTS
    assert response.stream_closed


@pytest.mark.parametrize("live", FOLLOWING)
async def test_a_follower_sees_bytes_as_they_are_appended(handle: DurableStream, live: Live) -> None:
    await handle.create(content_type="application/octet-stream")
    seen = b""

    with anyio.fail_after(30):
        async with handle.stream(live=live) as response:
            for number, chunk in enumerate(CHUNKS):
                await handle.append(chunk)
                if number == 0:
                    pieces = response.iter_bytes()
                while len(seen) < sum(map(len, CHUNKS[: number + 1])):
                    seen += await anext(pieces)
            await handle.close_stream()
            assert [piece async for piece in pieces] == []

    assert seen == b"".join(CHUNKS)


@pytest.mark.parametrize("live", [True, "long-poll"])
async def test_a_follower_sees_text_as_it_is_appended(handle: DurableStream, live: Live) -> None:
    await handle.create(content_type="text/plain")
    seen = ""

    with anyio.fail_after(30):
        async with handle.stream(live=live) as response:
            pieces = response.iter_text()
            for number, text in enumerate(TEXTS):
                await handle.append(text)
                while len(seen) < len("".join(TEXTS[: number + 1])):
                    seen += await anext(pieces)
            await handle.close_stream()
            assert [piece async for piece in pieces] == []

    assert seen == "".join(TEXTS)


async def test_text_by_sse_keeps_all_but_leading_spaces_and_line_ends(handle: DurableStream) -> None:
    """The server writes `data:` without a space and makes every line end a LF: see the documentation of `live`."""
    await handle.create(content_type="text/plain")
    await handle.append("one\r\n  two 🚀")
    await handle.close_stream()

    with anyio.fail_after(30):
        async with handle.stream(live="sse") as response:
            by_sse = [piece async for piece in response.iter_text()]
    async with handle.stream(live="long-poll") as response:
        by_long_poll = [piece async for piece in response.iter_text()]

    assert "".join(by_long_poll) == "one\r\n  two 🚀"
    assert "".join(by_sse) in {"one\n two 🚀", "one\r\n  two 🚀"}


async def test_a_long_poll_outlives_its_timeouts(handle: DurableStream) -> None:
    """The server answers 204 after half a second: the session asks again and is told each time where it stands."""
    await handle.create(content_type="application/json")

    with anyio.fail_after(30):
        async with handle.stream(live="long-poll") as response:
            batches = response.iter_batches(as_="json")
            empty = [await anext(batches), await anext(batches)]
            await handle.append_json("after a while")
            items: list[Any] = []
            while not items:
                items = (await anext(batches)).items

    assert all(batch.items == [] and batch.up_to_date for batch in empty)
    assert items == ["after a while"]


async def test_reading_from_now_skips_what_is_there(handle: DurableStream) -> None:
    await handle.create(content_type="application/json", body='["before"]')

    with anyio.fail_after(30):
        async with handle.stream(offset="now", live="long-poll") as response:
            tail = response.checkpoint
            await handle.append_json("after")
            assert await anext(response.iter_json()) == "after"

    assert tail.offset != "now"


@pytest.mark.parametrize("live", [False, "long-poll", "sse"])
async def test_every_checkpoint_resumes_exactly_there(handle: DurableStream, live: Live) -> None:
    await handle.create(content_type="application/json")
    checkpoints: list[Checkpoint] = [Checkpoint.start()]
    for value in EVENTS:
        result = await handle.append_json(value)
        assert result.next_offset is not None
        checkpoints.append(Checkpoint(result.next_offset))
    await handle.close_stream()

    for number, checkpoint in enumerate(checkpoints):
        saved = Checkpoint.loads(checkpoint.dumps())
        with anyio.fail_after(30):
            async with handle.stream(offset=saved, live=live) as response:
                items = [item async for item in response.iter_json()]
        assert items == EVENTS[number:]
        assert response.checkpoint.stream_closed


@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_a_reader_that_restarts_after_each_batch_misses_nothing(handle: DurableStream, live: Live) -> None:
    await handle.create(content_type="application/json")
    seen: list[Any] = []
    saved: str | None = None

    with anyio.fail_after(60):
        while len(seen) < len(EVENTS):
            await handle.append_json(EVENTS[len(seen)])
            position = Checkpoint.loads(saved) if saved else None
            async with handle.stream(offset=position, live=live) as response:
                async for batch in response.iter_batches(as_="json"):
                    seen.extend(batch.items)
                    saved = batch.checkpoint.dumps()
                    if batch.items:
                        break

    assert seen == EVENTS


async def test_a_free_session_follows_with_headers_and_params(node_server: str, path: str) -> None:
    async with DurableStream(node_server + path, content_type="application/json") as handle:
        await handle.create(body="[1]", closed=True)
    calls = 0

    async def token() -> str:
        nonlocal calls
        calls += 1
        return f"Bearer {calls}"

    async with stream(node_server + path, headers={"Authorization": token}, params={"tenant": "a b"}) as response:
        assert [item async for item in response] == [1]

    assert calls == response.statistics().requests


async def test_a_conditional_read_is_answered_without_data_until_something_changes(handle: DurableStream) -> None:
    await handle.create(content_type="application/json")
    await handle.append_json(1)
    async with handle.stream(live=False) as response:
        etag = response.etag
        assert await response.json() == [1]
    async with handle.stream(live=False, if_none_match=etag) as response:
        assert (response.status, await response.json()) == (304, [])
    await handle.close_stream()
    async with handle.stream(live=False, if_none_match=etag) as response:
        assert (response.status, await response.json()) == (200, [1])
