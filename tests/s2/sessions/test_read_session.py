"""The read session against a server in memory: resumption, ends, catching up, gaps, and waiting."""

import anyio
import pytest

from durable_streams.errors import BusyResourceError
from durable_streams.s2 import (
    RangeNotSatisfiableError,
    S2ConnectionError,
    S2ProtocolError,
    S2Retry,
    S2ServerError,
    S2SessionClosedError,
    S2TimeoutError,
    SeqNum,
    TailOffset,
    Timestamp,
)
from durable_streams.s2._frames import encode_frame
from durable_streams.s2._proto import encode_read_batch
from durable_streams.s2._read_core import Gap
from durable_streams.s2._read_session import ReadSession
from durable_streams.s2._reading import ReadOptions
from durable_streams.s2._values import ReadBatch, ReadStart, SequencedRecord, StreamPosition

from .world import Plan, World, broken

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fake_clock")]

START = SeqNum(0)


def reading(world: World, start: ReadStart = START, *, session: dict[str, object] | None = None, **options: object):
    retry = S2Retry(max_attempts=3)
    return ReadSession(world.context(retry=retry), ReadOptions(start, **options), **(session or {}))  # type: ignore[arg-type]


async def numbers(session: ReadSession) -> list[int]:
    return [record.seq_num async for batch in session for record in batch.records]


async def test_a_bounded_read_yields_batches_and_ends() -> None:
    world = World()
    world.fill(7)

    async with reading(world, count=7) as session:
        batches = [batch async for batch in session]

    assert [len(batch.records) for batch in batches] == [3, 3, 1]
    assert [record.body for batch in batches for record in batch.records] == [b"r%d" % n for n in range(7)]
    assert session.next_read_position == StreamPosition(7, 1003)


async def test_a_bounded_read_ends_at_the_tail() -> None:
    world = World()
    world.fill(4)

    async with reading(world, count=100) as session:
        found = await numbers(session)

    assert found == [0, 1, 2, 3]


async def test_a_follower_gets_what_is_appended_later() -> None:
    world = World()
    world.fill(2)
    found = []

    async with reading(world) as session, anyio.create_task_group() as group:

        async def consume() -> None:
            async for record in session.iter_records():
                found.append(record.seq_num)
                if record.seq_num == 4:
                    return

        group.start_soon(consume)
        await session.wait_caught_up()
        seen = list(found)
        world.fill(3)

    assert seen == [0, 1]
    assert found == [0, 1, 2, 3, 4]


async def test_without_progress_the_first_error_is_raised() -> None:
    world = World()
    world.fill(2)

    with pytest.raises(RangeNotSatisfiableError) as caught:
        async with reading(world, SeqNum(5), count=3) as session:
            await numbers(session)

    assert caught.value.tail == StreamPosition(2, 1000)
    assert session.failure_cause is not None


async def test_limits_of_zero_read_nothing_and_ask_nobody() -> None:
    world = World()

    async with reading(world, SeqNum(9), count=0) as session:
        found = await numbers(session)

    assert (found, world.connections) == ([], [])


# -- Resumption ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [SeqNum(1), Timestamp(1001), TailOffset(8)], ids=["seq", "time", "tail"])
@pytest.mark.parametrize("fault", ["cut_after", "cut_inside"])
async def test_a_cut_read_goes_on_behind_the_last_record(start: ReadStart, fault: str) -> None:
    world = World(Plan(**{fault: 1}), Plan(**{fault: 1}))
    world.fill(10)
    uncut = World()
    uncut.fill(10)

    async with reading(world, start, count=8) as session:
        found = await numbers(session)
    async with reading(uncut, start, count=8) as session:
        wanted = await numbers(session)

    assert found == wanted
    later = world.connections[1].query
    assert set(later) == {"seq_num", "count"}
    assert int(later["count"]) == 5


async def test_a_heartbeat_before_the_first_record_sets_where_to_go_on() -> None:
    world = World(Plan(cut_after=1))
    world.fill(5)

    async with reading(world, TailOffset(0), clamp=True) as session, anyio.create_task_group() as group:

        async def extend() -> None:
            await anyio.sleep(0.05)
            world.fill(2)

        group.start_soon(extend)
        first = await anext(session)

    assert [record.seq_num for record in first.records] == [5, 6]
    assert world.connections[1].query == {"seq_num": "5"}
    assert world.connections[0].query == {"tail_offset": "0", "clamp": "true"}


async def test_limits_count_command_records_that_are_hidden() -> None:
    world = World(Plan(cut_after=1))
    world.fill(10, command_every=2)

    async with reading(world, count=7, ignore_command_records=True) as session:
        found = await numbers(session)

    assert found == [1, 3, 5]
    assert world.connections[1].query["count"] == "4"
    assert session.next_read_position == StreamPosition(7, 1003)


async def test_a_batch_of_nothing_but_hidden_records_is_not_handed_over_but_moves_on() -> None:
    world = World(Plan(cut_after=2), batch=1)
    world.fill(4, command_every=1)

    async with reading(world, count=4, ignore_command_records=True) as session:
        found = await numbers(session)

    assert found == []
    assert world.connections[1].query == {"seq_num": "2", "count": "2"}


async def test_a_used_up_limit_ends_the_session_without_another_request() -> None:
    world = World(Plan(cut_after=1))
    world.fill(10)

    async with reading(world, count=3) as session:
        found = await numbers(session)

    assert found == [0, 1, 2]
    assert len(world.connections) == 1


async def test_limits_of_bytes_are_reduced_by_metered_bytes() -> None:
    world = World(Plan(cut_after=1))
    world.fill(9)

    async with reading(world, bytes=70) as session:
        found = await numbers(session)

    assert found == [0, 1, 2, 3, 4, 5, 6]
    assert world.connections[1].query["bytes"] == "40"


async def test_a_bounded_read_cut_exactly_at_the_tail_ends_cleanly() -> None:
    world = World(Plan(cut_after=2))
    world.fill(6)

    async with reading(world, count=100) as session:
        found = await numbers(session)

    assert found == [0, 1, 2, 3, 4, 5]
    assert len(world.connections) == 2


async def test_every_connection_carries_the_headers_of_the_first() -> None:
    world = World(Plan(cut_after=1))
    world.fill(6)
    context = world.context(encryption_key="S2V5S2V5S2V5S2V5S2V5S2V5S2V5S2V5S2V5S2V5S2U=")

    async with ReadSession(context, ReadOptions(START, count=6), stream_config="{}") as session:
        await numbers(session)

    first, second = (connection.headers for connection in world.connections)
    assert first == second
    assert {"s2-encryption-key", "s2-stream-config", "s2-basin", "authorization", "content-type"} <= set(first)


async def test_a_stream_without_any_record_left_is_followed_from_its_tail() -> None:
    world = World(Plan(cut_after=1))
    world.fill(6)
    world.first = 6

    async with reading(world) as session:
        await session.wait_caught_up()
        position = session.next_read_position
        with anyio.move_on_after(30):
            await anext(session)

    assert position == StreamPosition(6, 1002)
    assert [connection.query["seq_num"] for connection in world.connections] == ["0", "6"]


async def test_a_stream_that_lost_records_is_an_error() -> None:
    world = World(Plan(cut_after=2))
    world.fill(6)

    with pytest.raises(RangeNotSatisfiableError):
        async with reading(world, count=100) as session:
            await anext(session)
            await anext(session)
            del world.records[3:]
            await anext(session)


async def test_clamping_does_not_enter_a_stream_that_was_made_again() -> None:
    world = World(Plan(cut_after=2))
    world.fill(6)

    with pytest.raises(RangeNotSatisfiableError):
        async with reading(world, clamp=True) as session:
            await anext(session)
            await anext(session)
            del world.records[2:]
            await anext(session)


async def test_the_rest_of_the_wait_is_asked_for_and_heartbeats_do_not_renew_it() -> None:
    world = World(Plan(cut_after=4))
    world.fill(3)

    async with reading(world, count=100, wait=60) as session:
        found = await numbers(session)

    assert found == [0, 1, 2]
    assert world.connections[1].query["wait"] == "39"  # 20 s of silence and a pause of 0.1 to 0.2 s, rounded up


async def test_records_after_a_resumption_renew_the_whole_wait() -> None:
    """Cut after 20 s of silence, resumed with 40 s, a record at 30 s: uncut, the read would end 60 s after that."""
    world = World(Plan(cut_after=4))
    world.fill(3)
    began = anyio.current_time()

    async with reading(world, count=100, wait=60) as session, anyio.create_task_group() as group:

        async def extend() -> None:
            await anyio.sleep(30)
            world.fill(1)

        group.start_soon(extend)
        found = await numbers(session)

    assert found == [0, 1, 2, 3]
    assert 88 <= anyio.current_time() - began <= 92


async def test_until_stays_and_ends_the_read_once() -> None:
    world = World(Plan(cut_after=1))
    world.fill(9)

    async with reading(world, until=1003, wait=5) as session:
        found = await numbers(session)

    assert found == [0, 1, 2, 3, 4, 5]
    assert world.connections[1].query["until"] == "1003"


async def test_the_first_connection_is_repeated_as_well() -> None:
    world = World(Plan(refuse=broken("connect", refused=True)), Plan(status=(500, {"code": "storage"})))
    world.fill(1)

    async with reading(world, count=1) as session:
        found = await numbers(session)

    assert found == [0]
    assert session.statistics().retries == 2


async def test_attempts_run_out_without_progress_and_start_afresh_with_it() -> None:
    world = World(*(Plan(cut_after=1) for _ in range(8)), *(Plan(cut_after=0) for _ in range(3)))
    world.fill(100)

    found = []
    with pytest.raises(S2ConnectionError) as caught:
        async with reading(world) as session:
            async for batch in session:
                found += [record.seq_num for record in batch.records]

    assert found == list(range(24))
    assert caught.value.attempts == 3


async def test_unlimited_retries_outlast_any_outage() -> None:
    world = World(*(Plan(refuse=broken("connect")) for _ in range(40)))
    world.fill(1)

    async with reading(world, session={"unlimited_retries": True}, count=1) as session:
        assert await numbers(session) == [0]


async def test_a_terminal_error_of_the_server_is_raised_after_what_came_before() -> None:
    world = World(Plan(terminal_at=(1, 400, {"code": "decryption_failed", "message": "wrong key"})))
    world.fill(9)
    found = []

    with pytest.raises(S2ServerError, match="wrong key"):
        async with reading(world) as session:
            async for batch in session:
                found += [record.seq_num for record in batch.records]

    assert found == [0, 1, 2]
    with pytest.raises(S2ServerError, match="wrong key"):
        await anext(session)


async def test_a_success_that_is_no_session_is_an_error() -> None:
    world = World(Plan(headers={"content-type": "text/html"}))

    with pytest.raises(S2ProtocolError, match="the answer is 'text/html' instead of s2s/proto"):
        async with reading(world) as session:
            await anext(session)

    assert len(world.connections) == 1


@pytest.mark.parametrize(
    "raw", [b"\x00\x00\x00", b"\xff\xff\xff\x00", b"\x00\x00\x04\x00\x0a\x7f\x01", b"\x00\x00\x02\x60\x00"]
)
async def test_bytes_that_mean_nothing_end_the_session(raw: bytes) -> None:
    world = World(Plan(raw_after=(1, raw)))
    world.fill(9)

    with pytest.raises(S2ProtocolError):
        async with reading(world) as session:
            await anext(session)
            await anext(session)


async def test_a_batch_with_a_hole_inside_is_refused() -> None:
    torn = ReadBatch((SequencedRecord(3, 1), SequencedRecord(5, 1)))
    world = World(Plan(raw_after=(1, encode_frame(encode_read_batch(torn)))))
    world.fill(9)

    with pytest.raises(S2ProtocolError, match="from 3 to 5"):
        async with reading(world) as session:
            await anext(session)
            await anext(session)


async def test_what_comes_twice_is_dropped() -> None:
    again = ReadBatch(tuple(SequencedRecord(n, 1, b"x") for n in range(1, 5)))
    world = World(Plan(raw_after=(1, encode_frame(encode_read_batch(again)))))
    world.fill(5)

    async with reading(world, count=5) as session:
        found = await numbers(session)

    assert found == [0, 1, 2, 3, 4]


async def test_more_than_was_asked_for_is_not_handed_over() -> None:
    many = ReadBatch(tuple(SequencedRecord(n, 1, b"xx") for n in range(9)))
    frame = encode_frame(encode_read_batch(many))

    world = World(Plan(raw_after=(0, frame)), Plan(raw_after=(0, frame)))
    world.fill(9)

    async with reading(world, count=4) as session:
        by_count = await numbers(session)
    async with reading(world, bytes=25) as session:
        by_bytes = await numbers(session)

    assert (by_count, by_bytes) == ([0, 1, 2, 3], [0, 1])


async def test_an_empty_batch_without_a_tail_is_ignored() -> None:
    world = World(Plan(raw_after=(0, b"\x00\x00\x01\x00")))
    world.fill(1)

    async with reading(world, count=1) as session:
        found = await numbers(session)

    assert found == []
    assert session.last_observed_tail is None


async def test_trimmed_records_are_reported_as_a_gap_before_the_batch_behind_them() -> None:
    world = World(Plan(cut_after=1))
    world.fill(10)
    events: list[object] = []

    async with reading(world, count=7, session={"on_gap": events.append}) as session:
        events.append((await anext(session)).records[0].seq_num)
        world.first = 6
        async for batch in session:
            events.append(batch.records[0].seq_num)  # noqa: PERF401  # gaps come in between

    assert events == [0, Gap(3, 6), 6, 9]
    assert session.statistics().gaps == 1


async def test_a_start_inside_the_trimmed_range_is_a_gap() -> None:
    world = World()
    world.fill(10)
    world.first = 4
    gaps: list[Gap] = []

    async with reading(world, SeqNum(2), count=2, session={"on_gap": gaps.append}) as session:
        found = await numbers(session)

    assert (found, gaps) == ([4, 5], [Gap(2, 4)])


async def test_what_the_gap_hook_raises_reaches_the_consumer_and_the_batch_stays() -> None:
    world = World()
    world.fill(10)
    world.first = 4

    def refuse(gap: Gap) -> None:
        raise LookupError(gap)

    async with reading(world, SeqNum(2), count=2, session={"on_gap": refuse}) as session:
        with pytest.raises(LookupError):
            await anext(session)
        batch = await anext(session)

    assert batch.records[0].seq_num == 4


# -- Advice and draining ---------------------------------------------------------------------------------------


async def test_advice_to_reconnect_is_followed_after_the_batch_and_costs_nothing() -> None:
    world = World(Plan(advise_at=1), Plan(advise_at=0))
    world.fill(12)

    async with reading(world, count=12) as session:
        found = await numbers(session)

    assert found == list(range(12))
    assert world.retired == [world.connections[0]]
    assert world.connections[1].query == {"seq_num": "6", "count": "6"}
    assert len(world.connections) == 2
    assert session.statistics().retries == 0


async def test_advice_at_the_end_of_a_limit_makes_no_connection() -> None:
    world = World(Plan(advise_at=0))
    world.fill(12)

    async with reading(world, count=3) as session:
        await numbers(session)

    assert len(world.connections) == 1


async def test_a_planned_restart_costs_one_attempt() -> None:
    refused = [Plan(refuse=broken("connect", refused=True)) for _ in range(12)]
    world = World(Plan(leave_at=1, cut_after=2), *refused)
    world.fill(12)

    async with reading(world, count=12, session={"retry": S2Retry(max_attempts=2)}) as session:
        found = await numbers(session)

    assert found == list(range(12))


async def test_a_draining_server_is_left_for_a_fresh_connection() -> None:
    world = World(Plan(terminal_at=(1, 503, {"code": "server_draining", "message": "bye"})))
    world.fill(6)

    async with reading(world, count=6) as session:
        found = await numbers(session)

    assert found == list(range(6))
    assert world.retired == [world.connections[0]]


# -- Silence ---------------------------------------------------------------------------------------------------


async def test_a_silent_server_is_left_after_the_heartbeats_limit() -> None:
    world = World(Plan(stall_after=1))
    world.fill(6)
    began = anyio.current_time()

    async with reading(world, count=6) as session:
        found = await numbers(session)

    assert found == list(range(6))
    assert anyio.current_time() - began >= 20
    assert isinstance(session.failure_cause, type(None))


async def test_a_slow_consumer_is_no_silence() -> None:
    world = World()
    world.fill(6)

    async with reading(world, count=6) as session:
        async for _ in session:
            await anyio.sleep(300)

    assert len(world.connections) == 1


async def test_a_long_quiet_stream_is_held_by_its_heartbeats() -> None:
    world = World()

    async with reading(world, wait=600) as session:
        found = await numbers(session)

    assert found == []
    assert len(world.connections) == 1


async def test_a_server_that_never_answers_is_a_timeout() -> None:
    world = World()

    async def never(self: object) -> object:
        return await anyio.sleep_forever()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.s2.sessions.world.FakeDuplex.head", never)
        with pytest.raises(S2TimeoutError):
            async with reading(world) as session:
                await anext(session)
    assert all(duplex.closed for duplex in world.connections)


# -- Catching up -----------------------------------------------------------------------------------------------


async def test_an_empty_stream_is_caught_up_at_once_although_nobody_reads() -> None:
    world = World()

    async with reading(world) as session:
        before = session.is_caught_up
        tail = await session.wait_caught_up()

    assert before is False
    assert tail == session.last_observed_tail == StreamPosition(0, 0)


async def test_waiting_to_catch_up_reads_ahead_one_batch_at_the_most() -> None:
    world = World()
    world.fill(9)

    async with reading(world) as session:
        with anyio.move_on_after(5) as scope:
            await session.wait_caught_up()
        ahead = session.statistics().records
        found = [(await anext(session)).records[0].seq_num for _ in range(3)]
        early = session.is_caught_up
        await session.wait_caught_up()

    assert scope.cancelled_caught
    assert ahead == 3
    assert found == [0, 3, 6]
    assert early is False


async def test_catching_up_is_told_only_after_the_records_were_handed_over() -> None:
    world = World()
    states = []

    async with reading(world) as session:
        await session.wait_caught_up()
        world.fill(2)
        states.append(session.is_caught_up)
        async for record in session.iter_records():
            states.append((record.seq_num, session.is_caught_up))
            if record.seq_num == 1:
                break

    assert states == [True, (0, False), (1, True)]


async def test_a_lost_connection_has_to_catch_up_again() -> None:
    world = World(Plan(cut_after=1), Plan(stall_after=0))

    async with reading(world) as session:
        await session.wait_caught_up()
        caught_up = session.is_caught_up
        with anyio.move_on_after(1):
            await anext(session)

    assert (caught_up, session.is_caught_up) == (True, False)


async def test_a_session_that_ends_before_catching_up_says_so() -> None:
    world = World()
    world.fill(2)

    async with reading(world, count=2) as session:
        await numbers(session)
        with pytest.raises(S2SessionClosedError, match="before it had caught up"):
            await session.wait_caught_up()


async def test_a_failure_reaches_those_who_wait_to_catch_up() -> None:
    world = World(Plan(status=(404, {"code": "stream_not_found", "message": "no"})))

    async with reading(world) as session:
        with pytest.raises(S2ServerError, match="stream_not_found"):
            await session.wait_caught_up()


# -- Cancellation and ends -------------------------------------------------------------------------------------


async def test_cancelling_any_step_loses_nothing() -> None:
    world = World(Plan(cut_after=2), Plan(cut_inside=1), batch=2)
    world.fill(12)
    found: list[int] = []
    turns = 0

    at_once = S2Retry(min_base_delay=0, max_base_delay=0)
    async with reading(world, count=12, session={"retry": at_once}) as session:
        while len(found) < 12:
            turns += 1
            with anyio.CancelScope() as scope:

                async def cut(count: int = turns, scope: anyio.CancelScope = scope) -> None:
                    for _ in range(count % 7):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()

                async with anyio.create_task_group() as group:
                    group.start_soon(cut)
                    batch = await anext(session)
                    found += [record.seq_num for record in batch.records]

    assert found == list(range(12))
    assert turns > 6


async def test_leaving_a_loop_over_records_leaves_the_rest() -> None:
    world = World()
    world.fill(6)

    async with reading(world, count=6) as session:
        async for record in session.iter_records():
            if record.seq_num == 1:
                break
        position = session.next_read_position
        rest = [batch.records[0].seq_num async for batch in session]

    assert position == StreamPosition(2, 1000)
    assert rest == [2, 3]


async def test_closing_wakes_the_consumer() -> None:
    world = World()
    closed = []

    async with reading(world) as session, anyio.create_task_group() as group:

        async def consume() -> None:
            with pytest.raises(S2SessionClosedError):
                await anext(session)
            closed.append(True)

        group.start_soon(consume)
        await anyio.sleep(1)
        await session.aclose()
        await session.aclose()

    assert closed == [True]
    assert world.connections[0].closed


async def test_two_consumers_at_a_time_are_refused() -> None:
    world = World()

    async with reading(world) as session, anyio.create_task_group() as group:
        group.start_soon(anext, session)
        await anyio.sleep(1)
        with pytest.raises(BusyResourceError):
            await anext(session)
        group.cancel_scope.cancel()


async def test_leaving_early_resets_the_stream() -> None:
    world = World()
    world.fill(100)

    async with reading(world) as session:
        await anext(session)

    assert world.connections[0].closed
    with pytest.raises(S2SessionClosedError):
        await anext(session)


async def test_nothing_is_read_ahead_of_the_consumer() -> None:
    world = World(batch=10)
    world.fill(10_000)

    async with reading(world) as session:
        await anext(session)
        await anyio.sleep(60)

    assert world.connections[0]._frames == 1


async def test_the_state_of_a_session_can_be_seen() -> None:
    world = World()
    world.fill(4)

    async with reading(world, count=4) as session:
        before = repr(session)
        await numbers(session)

    assert before == "<ReadSession basin-01/stream idle, next None>"
    assert repr(session) == "<ReadSession basin-01/stream closed, next 4>"
    statistics = session.statistics()
    assert (statistics.batches, statistics.records, statistics.connections) == (2, 4, 1)
