"""Flushing, closing, restarting and failing, over real sockets (client 12.7 to 12.9)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from durable_streams import (
    AlreadyClosedError,
    BackoffOptions,
    CloseResult,
    ConflictError,
    DurableStream,
    DurableStreamError,
    FetchError,
    IdempotentProducer,
    InvalidArgumentError,
    NetworkError,
    SequenceGapError,
    StaleEpochError,
    StreamClosedError,
)
from tests.scripted import DROP, RESET, Reply, Request, ScriptedServer

from .desk import Desk

pytestmark = pytest.mark.anyio

AT_ONCE = BackoffOptions(initial_delay=1e-6, max_delay=1e-6, max_elapsed=None)


async def items(handle: DurableStream) -> list[Any]:
    async with handle.stream(live=False) as response:
        return await response.json()


def plain(server: ScriptedServer, **options: Any) -> IdempotentProducer:
    return IdempotentProducer(server.url + "/s", "p", content_type="text/plain", retry=AT_ONCE, **options)


# -- flush -------------------------------------------------------------------------------------------------


async def test_flush_does_not_wait_for_the_linger_time(handle: DurableStream) -> None:
    with anyio.fail_after(30):
        async with IdempotentProducer(handle, "p", linger=3600) as producer:
            await producer.append("1")
            result = await producer.flush()
            await producer.append("2")

    assert result.offset is not None
    assert await items(handle) == [1, 2]


async def test_flush_does_not_wait_for_what_is_appended_meanwhile() -> None:
    async with ScriptedServer() as server, plain(server, max_batch_items=1) as producer:
        held = anyio.Event()
        server.replies(Reply(), Reply(hold=held))
        producer.append_nowait("a")
        results = []

        async def flush() -> None:
            results.append(await producer.flush())

        async with anyio.create_task_group() as group:
            group.start_soon(flush)
            await server.wait_requests(1)
            producer.append_nowait("b")
            with anyio.fail_after(10):
                while not results:
                    await anyio.lowlevel.checkpoint()
        assert producer.pending_count == 1
        held.set()


async def test_flush_counts_the_duplicates_since_the_last_one() -> None:
    async with ScriptedServer() as server, plain(server) as producer:
        server.replies(DROP, Reply(204, {"stream-next-offset": "0_1"}), Reply(200), RESET, Reply(204))
        await producer.append("a")
        first = await producer.flush()
        await producer.append("b")
        second = await producer.flush()
        await producer.append("c")
        third = await producer.flush()

        assert [first.duplicates, second.duplicates, third.duplicates] == [1, 0, 1]
        assert [first.offset, second.offset, third.offset] == ["0_1", "0_1", "0_1"]
        assert producer.statistics().duplicates == 2


async def test_an_idle_flush_returns_at_once(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p") as producer:
        assert (await producer.flush()).offset is None
        await producer.send("1")
        offset = (await producer.flush()).offset

        assert (await producer.flush()).offset == offset
        assert producer.statistics().requests == 1


async def test_flush_raises_the_failure_and_says_how_much_is_left() -> None:
    async with ScriptedServer(lambda request: Reply(413)) as server:
        producer = plain(server, max_batch_items=2, max_in_flight=1)
        with pytest.raises(FetchError, match="413") as at_exit:
            async with producer:
                await producer.append_many("abcde")
                for call in (producer.flush, producer.flush, producer.close_stream):
                    with pytest.raises(FetchError, match="413") as caught:
                        await call()
                    assert caught.value is not producer.failed, "each caller has a traceback of its own"
                    assert caught.value.__notes__ == [
                        "5 messages are not acknowledged; the producer's unacknowledged() has them"
                    ]
        assert at_exit.value.__notes__ == caught.value.__notes__
        assert producer.unacknowledged() == [b"a", b"b", b"c", b"d", b"e"]
        assert isinstance(producer.failed, FetchError)
        assert len(server.requests) == 1, "nothing is sent after a failure"


async def test_a_flush_that_a_restart_overtakes_is_told_of_the_failure() -> None:
    desk = Desk()
    async with IdempotentProducer(desk.handle(), "p") as producer:
        producer.append_nowait("1")
        errors = []

        async def flush() -> None:
            try:
                await producer.flush()
            except DurableStreamError as error:
                errors.append(type(error))

        async with anyio.create_task_group() as group:
            group.start_soon(flush)
            (posted,) = await desk.wait(1)
            posted.reply(409)
            while producer.failed is None:
                await anyio.lowlevel.checkpoint()
            await producer.restart(resend=True)
            (again,) = await desk.wait(2)
            await anyio.wait_all_tasks_blocked()
            assert errors == [ConflictError]
            again.reply()


# -- close_stream ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("final", "log"), [(None, [0, 1, 2]), ("[3]", [0, 1, 2, [3]]), (b"null", [0, 1, 2, None])])
async def test_closing_stores_everything_and_ends_the_stream(
    handle: DurableStream, final: str | bytes | None, log: list[Any]
) -> None:
    async with IdempotentProducer(handle, "p", max_batch_items=1, linger=60) as producer:
        await producer.append_many(["0", "1", "2"])
        result = await producer.close_stream(final)
        again = await producer.close_stream()
        with pytest.raises(AlreadyClosedError, match="closed the stream"):
            producer.append_nowait("4")
    after = await producer.close_stream()

    assert again is result
    assert after is result
    assert isinstance(result, CloseResult)
    head = await handle.head()
    assert head.stream_closed
    assert result.final_offset == head.offset == producer.last_successful_offset
    assert await items(handle) == log


async def test_closing_twice_at_a_time_sends_one_request(handle: DurableStream) -> None:
    results = []

    async def close() -> None:
        results.append(await producer.close_stream("1"))

    async with IdempotentProducer(handle, "p") as producer, anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(close)

    assert results[0] is results[1] is results[2]
    assert producer.statistics().requests == 1
    assert await items(handle) == [1]


async def test_another_last_message_is_not_dropped_without_a_word(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p") as producer:
        await producer.close_stream("1")
        assert (await producer.close_stream("1")).final_offset
        with pytest.raises(AlreadyClosedError, match="another last message"):
            await producer.close_stream("2")

    assert await items(handle) == [1]


@pytest.mark.parametrize("final", ["", " ", b""])
async def test_a_blank_last_message_is_refused_and_nothing_is_closed(handle: DurableStream, final: Any) -> None:
    async with IdempotentProducer(handle, "p") as producer:
        with pytest.raises(InvalidArgumentError):
            await producer.close_stream(final)
        with pytest.raises(TypeError, match="final_message"):
            await producer.close_stream(7)  # type: ignore[arg-type]
        await producer.append("1")

    assert not (await handle.head()).stream_closed


async def test_a_lost_answer_to_closing_is_a_success(handle: DurableStream) -> None:
    async with ScriptedServer() as server:
        server.replies(DROP, Reply(204, {"stream-closed": "true", "stream-next-offset": "9", "producer-seq": "0"}))
        async with plain(server) as producer:
            result = await producer.close_stream("end")

    first, second = server.requests
    assert result.final_offset == "9"
    assert first.headers["stream-closed"] == "true"
    assert (first.body, first.headers["producer-seq"]) == (second.body, second.headers["producer-seq"]) == (b"end", "0")


async def test_closing_can_be_tried_again_with_the_same_number() -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(), Reply(404), Reply(200, {"stream-closed": "true", "stream-next-offset": "9"}))
        async with plain(server) as producer:
            await producer.send("a")
            with pytest.raises(DurableStreamError, match="404"):
                await producer.close_stream("end")
            with pytest.raises(AlreadyClosedError, match="closing"):
                await producer.append("b")
            with pytest.raises(AlreadyClosedError, match="closing"):
                await producer.restart()
            assert (await producer.close_stream("end")).final_offset == "9"

    assert [request.headers["producer-seq"] for request in server.requests] == ["0", "1", "1"]


async def test_a_stream_that_another_has_closed_ends_the_producer_without_a_loop(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p") as producer:
        await producer.send("1")
        await handle.close_stream()
        offset = (await handle.head()).offset
        await producer.append("2")
        with pytest.raises(StreamClosedError) as caught:
            await producer.flush()
        assert caught.value.final_offset == offset
        assert producer.statistics().requests == 2
        with pytest.raises(StreamClosedError):
            await producer.close_stream()
        assert producer.unacknowledged() == [b"2"]
        await producer.abort()


async def test_nothing_is_closed_if_flushing_fails(handle: DurableStream) -> None:
    desk = Desk()
    async with IdempotentProducer(desk.handle(), "p") as producer:
        producer.append_nowait("1")
        async with anyio.create_task_group() as group:

            async def close() -> None:
                with pytest.raises(ConflictError):
                    await producer.close_stream("2")

            group.start_soon(close)
            (posted,) = await desk.wait(1)
            posted.reply(409)
        await producer.abort()

    assert len(desk.posted) == 1


# -- Fencing -----------------------------------------------------------------------------------------------


async def test_an_older_epoch_is_fenced_and_told_what_was_not_stored(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p", epoch=1) as newer:
        await newer.send("1")
    async with IdempotentProducer(handle, "p") as older:
        receipt = older.append_nowait("2")
        with pytest.raises(StaleEpochError) as caught:
            await receipt.wait()
        assert caught.value.current_epoch == 1
        assert not caught.value.maybe_applied
        assert older.unacknowledged() == [b"2"]
        await older.restart(resend=True)
        assert older.epoch == 2
        assert older.failed is None
        await older.flush()

    assert await items(handle) == [1, 2]


async def test_claims_take_over_in_mid_pipeline_and_lose_nothing(handle: DurableStream) -> None:
    claims = []
    async with (
        IdempotentProducer(
            handle, "p", auto_claim=True, max_batch_items=1, linger=0, on_claim=lambda *facts: claims.append(facts)
        ) as first,
        IdempotentProducer(handle, "p", auto_claim=True, max_batch_items=1, linger=0) as second,
    ):
        await first.append_many(map(str, range(50)))
        await first.flush()
        await second.send("-1")
        await first.append_many(map(str, range(50, 100)))
        await first.flush()
        assert (first.epoch, second.epoch) == (2, 1)
        assert first.statistics().claims == 1

    log = await items(handle)
    assert [number for number in log if number != -1] == list(range(100))
    assert len(claims) == 1
    old, new, resent = claims[0]
    assert (old, new) == (0, 2)
    assert 1 <= resent <= 5


async def test_a_restarted_process_with_claims_does_not_lose_its_first_batch(handle: DurableStream) -> None:
    for number in range(4):
        async with IdempotentProducer(handle, "p", auto_claim=True) as producer:
            await producer.append(str(number))
        assert producer.epoch == number

    assert await items(handle) == [0, 1, 2, 3]


# -- Restart -----------------------------------------------------------------------------------------------


async def test_a_restart_flushes_and_begins_a_new_epoch(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p", linger=60) as producer:
        await producer.append("1")
        await producer.restart()
        assert (producer.epoch, producer.next_seq) == (1, 0)
        ack = await producer.send("2")

    assert (ack.epoch, ack.seq) == (1, 0)
    assert await items(handle) == [1, 2]


async def test_restarts_at_the_same_time_come_one_after_the_other(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p", max_batch_items=1, linger=0) as producer:
        async with anyio.create_task_group() as group:
            for number in range(3):
                producer.append_nowait(str(number))
                group.start_soon(producer.restart)
                await producer.append(str(100 + number))
        await producer.flush()

    assert producer.epoch == 3
    assert sorted(await items(handle)) == [0, 1, 2, 100, 101, 102]


async def test_a_restart_drops_what_failed_unless_it_is_to_be_sent_again() -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(400), Reply(), Reply())
        async with plain(server) as producer:
            with pytest.raises(DurableStreamError):
                await producer.send("bad")
            await producer.restart()
            assert producer.unacknowledged() == []
            await producer.send("good")

    assert [(request.body, request.headers["producer-epoch"]) for request in server.requests] == [
        (b"bad", "0"),
        (b"good", "1"),
    ]


# -- Conflicts and retries ---------------------------------------------------------------------------------


async def test_batches_that_overtake_each_other_are_sorted_out() -> None:
    stored: list[bytes] = []

    async def answer(request: Request) -> Reply:
        seq = int(request.headers["producer-seq"])
        if seq > len(stored):
            return Reply(409, {"producer-expected-seq": str(len(stored)), "producer-received-seq": str(seq)})
        if seq == 0 and not slow.is_set():
            await server.wait_requests(4)
            await anyio.wait_all_tasks_blocked()
            slow.set()
        stored.append(request.body)
        return Reply()

    slow = anyio.Event()
    async with (
        ScriptedServer(answer) as server,
        plain(server, max_batch_items=1, linger=0, max_in_flight=5) as producer,
    ):
        await producer.append_many("abcde")
        await producer.flush()
        assert producer.statistics().gap_retries >= 3

    assert stored == [b"a", b"b", b"c", b"d", b"e"]


async def test_a_server_that_has_forgotten_the_producer_is_an_error() -> None:
    def answer(request: Request) -> Reply:
        if request.headers["producer-seq"] == "0":
            return Reply()
        return Reply(409, {"producer-expected-seq": "0", "producer-received-seq": request.headers["producer-seq"]})

    async with ScriptedServer(answer) as server, plain(server) as producer:
        await producer.send("a")
        with pytest.raises(SequenceGapError) as caught:
            await producer.send("b")
        assert (caught.value.expected_seq, caught.value.received_seq) == (0, 1)
        assert len(server.requests) == 3
        await producer.abort()


async def test_delivery_gives_up_and_says_that_the_batch_may_be_stored() -> None:
    async with ScriptedServer(lambda request: DROP) as server:
        retry = BackoffOptions(max_retries=2, initial_delay=1e-6, max_delay=1e-6)
        producer = IdempotentProducer(server.url + "/s", "p", content_type="text/plain", retry=retry)
        async with producer:
            with pytest.raises(NetworkError, match="may have been applied"):
                await producer.send("x")
            await producer.abort()

    assert len(server.requests) == 3


async def test_a_reused_connection_that_the_server_closes_costs_one_uncounted_try(handle: DurableStream) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(), DROP, Reply(204))
        retry = BackoffOptions(max_retries=0)
        async with IdempotentProducer(server.url + "/s", "p", content_type="text/plain", retry=retry) as producer:
            await producer.send("a")
            ack = await producer.send("b")

    assert ack.duplicate


# -- Abort -------------------------------------------------------------------------------------------------


async def test_aborting_drops_what_is_queued_and_tells_everybody() -> None:
    told = []
    desk = Desk()
    producer = IdempotentProducer(
        desk.handle(),
        "p",
        max_batch_items=1,
        max_in_flight=1,
        on_error=lambda error, info: told.append((type(error), info.seq, info.messages, info.retryable)),
    )
    async with producer:
        receipts = [producer.append_nowait(str(number)) for number in range(3)]
        await desk.wait(1)
        await producer.abort()
        await producer.abort()
        for receipt in receipts:
            with pytest.raises(AlreadyClosedError, match="aborted"):
                await receipt.wait()
        with pytest.raises(AlreadyClosedError, match="aborted"):
            await producer.flush()
        assert desk.open_requests == []
        assert producer.unacknowledged() == [b"0", b"1", b"2"]

    assert told == [
        (AlreadyClosedError, 0, 1, False),
        (AlreadyClosedError, -1, 1, False),
        (AlreadyClosedError, -1, 1, False),
    ]
