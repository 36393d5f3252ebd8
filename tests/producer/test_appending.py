"""What goes in: append and its relatives against our server, receipts, the bounded buffer (client 12.2, 12.3)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import anyio
import pytest

from durable_streams import (
    Ack,
    AlreadyClosedError,
    BackoffOptions,
    Batching,
    BufferFullError,
    ConflictError,
    DurableStream,
    IdempotentProducer,
    InvalidArgumentError,
    Receipt,
)
from durable_streams.server import Server
from tests.scripted import Reply, Request, ScriptedServer

pytestmark = pytest.mark.anyio


async def items(handle: DurableStream) -> list[Any]:
    async with handle.stream(live=False) as response:
        return await response.json()


async def test_every_way_of_appending_stores_once_and_in_order(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p") as producer:
        producer.append_nowait("0")
        await producer.append(b"1")
        producer.append_json_nowait([2])
        await producer.append_json({"n": 3})
        await producer.append_many(["4", b"5", bytearray(b"6")])
        ack = await producer.send("[7]")

    assert await items(handle) == [0, 1, [2], {"n": 3}, 4, 5, 6, [7]]
    assert ack.offset == (await handle.head()).offset
    assert (ack.epoch, ack.duplicate) == (0, False)


async def test_many_small_batches_on_several_connections_keep_their_order(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p", max_batch_items=3, linger=0, max_in_flight=8) as producer:
        await producer.append_many(map(str, range(1000)))
        result = await producer.flush()
        statistics = producer.statistics()

    assert await items(handle) == list(range(1000))
    assert result.offset == (await handle.head()).offset == producer.last_successful_offset
    assert statistics.next_seq == 334
    assert statistics.requests == 334 + statistics.gap_retries
    assert (statistics.pending, statistics.pending_bytes, statistics.in_flight) == (0, 0, 0)
    assert (statistics.retries, statistics.duplicates, statistics.claims, statistics.epoch) == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", [list, tuple, iter])
async def test_many_messages_come_in_order_from_lists_and_iterators(
    handle: DurableStream, kind: Callable[[list[Any]], Iterable[Any]]
) -> None:
    bodies = [f" {number}" if number % 5000 == 0 else b"%d" % number for number in range(20_000)]
    async with IdempotentProducer(handle, "p", max_batch_bytes=30_000, max_buffered_bytes=70_000) as producer:
        receipt = await producer.append_many(kind(bodies))
        assert receipt is not None
        ack = await receipt.wait()

    assert await items(handle) == list(range(20_000))
    assert ack.offset == (await handle.head()).offset


@pytest.mark.parametrize("batching", [Batching.DEFAULT, Batching.LOW_LATENCY, Batching.HIGH_THROUGHPUT])
async def test_presets_differ_in_speed_and_not_in_what_is_stored(handle: DurableStream, batching: Batching) -> None:
    async with IdempotentProducer(handle, "p", batching=batching) as producer:
        await producer.append_many(map(str, range(20_000)))

    assert await items(handle) == list(range(20_000))


async def test_a_batch_never_exceeds_its_size_unless_a_message_does() -> None:
    bodies = []

    def answer(request: Request) -> Reply:
        bodies.append(request.body)
        return Reply()

    async with ScriptedServer(answer) as server:
        handle = DurableStream(server.url + "/s", content_type="application/json")
        async with IdempotentProducer(handle, "p", max_batch_bytes=20, max_in_flight=1, linger=1) as producer:
            await producer.append_many([b"%d" % number for number in range(30)] + [b'"%b"' % (b"x" * 30), b"31"])
        await handle.aclose()

    assert [len(body) <= 20 for body in bodies].count(False) == 1
    assert b"".join(body[1:-1] + b"," for body in bodies) == b"".join(
        [*(b"%d," % number for number in range(30)), b'"%b",' % (b"x" * 30), b"31,"]
    )


async def test_appends_of_one_tick_go_together_even_without_lingering(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p", linger=0) as producer:
        receipts = [producer.append_nowait(str(number)) for number in range(5)]
        await producer.flush()

    assert len(set(receipts)) == 1
    assert producer.statistics().requests == 1


async def test_send_does_not_linger_when_nothing_is_under_way(handle: DurableStream) -> None:
    with anyio.fail_after(30):
        async with IdempotentProducer(handle, "p", linger=3600) as producer:
            acks = [await producer.send(str(number)) for number in range(3)]

    assert [ack.seq for ack in acks] == [0, 1, 2]


# -- Receipts ----------------------------------------------------------------------------------------------


async def test_messages_of_one_batch_share_a_receipt(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p") as producer:
        first, second = producer.append_nowait("1"), producer.append_nowait("2")
        assert first is second
        assert not first.done
        assert repr(first) == "<Receipt waiting>"
        ack = await first.wait()

        assert first.done
        assert repr(first) == f"<Receipt {ack!r}>"
        assert await first.wait() is ack
        assert ack == Ack((await handle.head()).offset, False, 0, 0)


async def test_a_receipt_cannot_be_awaited_by_accident(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p") as producer:
        receipt: Any = producer.append_nowait("1")
        with pytest.raises(TypeError):
            await receipt


async def test_several_can_wait_for_a_receipt_and_each_gets_an_error_of_its_own() -> None:
    async with ScriptedServer(lambda request: Reply(409, body=b"other content type")) as server:
        handle = DurableStream(server.url + "/s", content_type="text/plain")
        producer = IdempotentProducer(handle, "p")
        errors: list[Exception] = []

        async def wait(receipt: Receipt) -> None:
            try:
                await receipt.wait()
            except Exception as error:
                errors.append(error)

        async with producer:
            receipt = producer.append_nowait("x")
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(wait, receipt)
            await wait(receipt)
            await producer.abort()
        await handle.aclose()

    assert len({id(error) for error in errors}) == 4
    assert {str(error) for error in errors} == {str(errors[0])}
    assert "other content type" in str(errors[0])
    assert repr(receipt).startswith("<Receipt failed: ConflictError")


async def test_append_many_returns_the_receipt_of_the_last_message(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p", max_batch_items=2) as producer:
        assert await producer.append_many([]) is None
        receipt = await producer.append_many(["1", "2", "3"])
        assert receipt is not None
        assert (await receipt.wait()).seq == 1
        assert await producer.append_many([]) is None


# -- What is refused ---------------------------------------------------------------------------------------


async def test_before_entering_nothing_is_accepted(handle: DurableStream) -> None:
    producer = IdempotentProducer(handle, "p")
    with pytest.raises(RuntimeError, match="async with"):
        producer.append_nowait("1")
    for call in (
        producer.append("1"),
        producer.append_many(["1"]),
        producer.append_json(1),
        producer.send("1"),
        producer.flush(),
        producer.close_stream(),
        producer.restart(),
    ):
        with pytest.raises(RuntimeError, match="async with"):
            await call


@pytest.mark.parametrize("end", ["detach", "aclose", "abort", "close_stream", "block"])
async def test_after_the_end_nothing_is_accepted(handle: DurableStream, end: str) -> None:
    producer = IdempotentProducer(handle, "p")
    async with producer:
        if end != "block":
            await getattr(producer, end)()
            with pytest.raises(AlreadyClosedError):
                producer.append_nowait("1")
    with pytest.raises(AlreadyClosedError):
        producer.append_nowait("1")
    for call in (producer.append("1"), producer.append_many(["1"]), producer.append_json(1), producer.send("1")):
        with pytest.raises(AlreadyClosedError):
            await call
    for call in (producer.flush(), producer.restart()):
        with pytest.raises(AlreadyClosedError):
            await call


async def test_a_json_stream_wants_json_text_and_a_byte_stream_no_values(server: Server) -> None:
    handle = DurableStream(f"{server.url}/text", content_type="text/plain")
    await handle.create()
    async with IdempotentProducer(handle, "p") as producer:
        with pytest.raises(InvalidArgumentError, match="JSON stream"):
            producer.append_json_nowait(1)
        with pytest.raises(InvalidArgumentError, match="JSON stream"):
            await producer.append_json(1)
        with pytest.raises(InvalidArgumentError, match="empty"):
            await producer.append("")
        value: Any = {"a": 1}
        with pytest.raises(TypeError, match="append_json"):
            await producer.append(value)
        with pytest.raises(TypeError, match="append_json"):
            await producer.append_many(["fine", value, "never"])

    async with handle.stream(live=False) as response:
        assert await response.text() == "fine"
    await handle.aclose()


@pytest.mark.parametrize("value", [float("nan"), {"a": {1, 2}}, object()])
async def test_what_cannot_be_json_is_refused_at_the_call(handle: DurableStream, value: object) -> None:
    async with IdempotentProducer(handle, "p") as producer:
        with pytest.raises((InvalidArgumentError, TypeError)):
            producer.append_json_nowait(value)
        producer.append_json_nowait(None)

    assert await items(handle) == [None]


async def test_an_exception_of_the_iterable_leaves_what_came_before(handle: DurableStream) -> None:
    def broken() -> Iterator[str]:
        yield "1"
        yield "2"
        raise LookupError("no more")

    async with IdempotentProducer(handle, "p") as producer:
        with pytest.raises(LookupError, match="no more"):
            await producer.append_many(broken())

    assert await items(handle) == [1, 2]


# -- The bounded buffer ------------------------------------------------------------------------------------


async def test_append_nowait_says_when_the_buffer_is_full(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p", max_buffered_messages=2, linger=60) as producer:
        producer.append_nowait("1")
        producer.append_nowait("2")
        with pytest.raises(BufferFullError, match="2 messages"):
            producer.append_nowait("3")
        await producer.flush()
        producer.append_nowait("3")
        assert producer.pending_count == 1

    assert await items(handle) == [1, 2, 3]


async def test_those_who_wait_for_room_are_served_in_order_and_before_newcomers() -> None:
    release = anyio.Event()
    bodies = []

    async def answer(request: Request) -> Reply:
        await release.wait()
        bodies.append(request.body)
        return Reply()

    async with ScriptedServer(answer) as server:
        handle = DurableStream(server.url + "/s", content_type="text/plain")
        async with (
            IdempotentProducer(
                handle, "p", max_buffered_bytes=4, max_batch_items=1, max_in_flight=1, linger=60
            ) as producer,
            anyio.create_task_group() as group,
        ):
            await producer.append("aaaa")
            await server.wait_connections(1)
            for body in ("bbbb", "c", "d"):
                group.start_soon(producer.append, body)
                await anyio.wait_all_tasks_blocked()
            with pytest.raises(BufferFullError):
                producer.append_nowait("e")
            assert producer.pending_count == 1
            release.set()
        await handle.aclose()

    assert bodies == [b"aaaa", b"bbbb", b"c", b"d"]


async def test_a_message_larger_than_the_buffer_goes_through_alone(server: Server) -> None:
    handle = DurableStream(f"{server.url}/bytes")
    await handle.create()
    async with IdempotentProducer(handle, "p", max_buffered_bytes=10) as producer:
        for body in (b"a", b"b" * 100, b"c"):
            await producer.append(body)
    async with handle.stream(live=False) as response:
        assert await response.read() == b"a" + b"b" * 100 + b"c"
    await handle.aclose()


async def test_memory_stays_bounded_while_the_server_is_slow() -> None:
    most = 0

    async def answer(request: Request) -> Reply:
        nonlocal most
        most = max(most, producer.statistics().pending_bytes)
        return Reply()

    async with ScriptedServer(answer) as server:
        handle = DurableStream(server.url + "/s", content_type="application/octet-stream")
        producer = IdempotentProducer(handle, "p", max_buffered_bytes=100_000, max_batch_bytes=10_000)
        async with producer:
            await producer.append_many(b"x" * 1000 for _ in range(3000))
        await handle.aclose()

    assert 50_000 < most <= 100_000


async def test_waiting_for_room_ends_when_the_producer_fails() -> None:
    async with ScriptedServer(lambda request: Reply(409)) as server:
        handle = DurableStream(server.url + "/s", content_type="text/plain")
        async with IdempotentProducer(handle, "p", max_buffered_messages=1, linger=60) as producer:
            await producer.append("a")
            with pytest.raises(ConflictError):
                await producer.append("b")
            assert producer.unacknowledged() == [b"a"]
            await producer.abort()
        await handle.aclose()


# -- Fairness ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["append", "append_many"])
async def test_a_loop_of_appends_starves_no_other_task(handle: DurableStream, how: str) -> None:
    ticks = 0
    done = False

    async def tick() -> None:
        nonlocal ticks
        while not done:
            ticks += 1
            await anyio.lowlevel.checkpoint()

    async with (
        anyio.create_task_group() as group,
        IdempotentProducer(handle, "p", max_batch_items=10, max_buffered_bytes=1 << 30) as producer,
    ):
        group.start_soon(tick)
        if how == "append":
            for number in range(1000):
                await producer.append(str(number))
        else:
            await producer.append_many(map(str, range(1000)))
        seen = ticks
        done = True

    assert seen >= 90, "about once for each batch"


async def test_a_producer_that_is_dropped_leaves_nothing_behind(handle: DurableStream) -> None:
    gc.collect()  # what other tests have left
    async with IdempotentProducer(handle, "p") as producer:
        receipt = producer.append_nowait("1")
        await receipt.wait()
        assert [batch for batch in gc.get_objects() if type(batch).__name__ == "Batch"] == []


async def test_a_retry_option_is_used_for_batches() -> None:
    details = []
    async with ScriptedServer() as server:
        server.replies(Reply(503), Reply(500), Reply(200))
        handle = DurableStream(server.url + "/s", content_type="text/plain")
        retry = BackoffOptions(initial_delay=1e-6, max_delay=1e-6, on_failed_attempt=details.append)
        async with IdempotentProducer(handle, "p", retry=retry) as producer:
            await producer.send("x")
            assert producer.statistics().retries == 2
        await handle.aclose()

    assert [(detail.attempt, getattr(detail.error, "status", None)) for detail in details] == [(1, 503), (2, 500)]
    assert len({request.body for request in server.requests}) == 1
    assert len({request.headers["producer-seq"] for request in server.requests}) == 1
