"""The producer: tickets per record, batches on the wire, lingering, room, and ends."""

import anyio
import pytest

from durable_streams.errors import BufferFullError, InvalidArgumentError
from durable_streams.s2 import AppendRecord, S2Retry, S2ServerError, S2SessionClosedError, SeqNumMismatchError
from durable_streams.s2._append_session import AppendSession
from durable_streams.s2._producer import IndexedAppendAck, Producer

from .world import Plan, World

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fake_clock")]

INVALID = (422, {"code": "invalid", "message": "bad"})


def producing(world: World, *, session: dict[str, object] | None = None, **options: object) -> Producer:
    return Producer(AppendSession(world.context(), **(session or {})), **options)  # type: ignore[arg-type]


def sent(world: World) -> list[int]:
    """Records of each batch, as they came over the wire."""
    return [len(batch.records) for connection in world.connections for batch in connection.inputs]


async def test_every_record_learns_its_number() -> None:
    world = World()

    async with producing(world, max_batch_records=4) as producer:
        tickets = [await producer.submit(str(n)) for n in range(10)]
        acks = [await ticket for ticket in tickets]

    assert [ack.seq_num for ack in acks] == list(range(10))
    assert all(isinstance(ack, IndexedAppendAck) for ack in acks)
    assert world.bodies() == [b"%d" % n for n in range(10)]
    assert max(sent(world)) == 4


async def test_a_lone_record_does_not_linger() -> None:
    world = World()

    async with producing(world, linger=3600) as producer:
        began = anyio.current_time()
        await (await producer.submit("alone"))
        took = anyio.current_time() - began

    assert took < 1


async def test_records_linger_while_others_are_in_flight_and_from_the_first_one_on() -> None:
    world = World()
    world.gate = anyio.Event()

    async with producing(world, linger=1.0) as producer:
        await producer.submit("first")
        await anyio.sleep(0.01)
        for number in range(5):
            await producer.submit(str(number))
            await anyio.sleep(0.4)
        batches = sent(world)
        world.gate.set()
        world.gate = None

    assert batches == [1, 3]
    assert sum(sent(world)) == 6


async def test_the_open_batch_goes_out_as_soon_as_nothing_is_in_flight() -> None:
    world = World()
    world.gate = anyio.Event()

    async with producing(world, linger=3600) as producer:
        await producer.submit("first")
        await anyio.sleep(0.01)
        ticket = await producer.submit("second")
        await anyio.sleep(1)
        world.gate.set()
        world.gate = None
        with anyio.fail_after(1):
            await ticket

    assert sent(world) == [1, 1]


async def test_flush_makes_everything_durable_and_leaves_the_producer_open() -> None:
    world = World()

    async with producing(world, linger=3600) as producer:
        await producer.flush()
        tickets = [await producer.submit(str(n)) for n in range(3)]
        await producer.flush()
        done = [ticket.done for ticket in tickets]
        await producer.submit("more")

    assert done == [True, True, True]
    assert len(world.records) == 4


async def test_closing_sends_what_is_left_and_is_idempotent() -> None:
    world = World()

    async with producing(world, linger=3600) as producer:
        ticket = await producer.submit("last")
        await producer.close()
        await producer.close()
        with pytest.raises(S2SessionClosedError):
            await producer.submit("late")

    assert ticket.done
    assert world.connections[0].finished


async def test_a_record_over_the_limit_is_refused_and_the_producer_goes_on() -> None:
    world = World()

    async with producing(world) as producer:
        first = await producer.submit("a")
        with pytest.raises(InvalidArgumentError):
            await producer.submit(b"x" * (1 << 20))
        with pytest.raises(TypeError):
            await producer.submit(7)  # type: ignore[arg-type]
        second = await producer.submit("b")
        assert (await first).seq_num == 0
        assert (await second).seq_num == 1


async def test_a_batch_too_large_when_encoded_fails_alone() -> None:
    world = World()
    widest = AppendRecord(b"", ((b"a", b"b"),) * 262_142)

    async with producing(world, fencing_token="t" * 36) as producer:
        world.token = "t" * 36
        doomed = await producer.submit(widest)
        fine = await producer.submit("fine")
        with pytest.raises(InvalidArgumentError, match="encoded"):
            await doomed
        assert (await fine).seq_num == 0


async def test_conditions_count_on_over_batches_handed_over() -> None:
    world = World()
    world.fill(5)

    async with producing(world, max_batch_records=2, match_seq_num=5) as producer:
        for number in range(5):
            await producer.submit(str(number))

    assert [batch.match_seq_num for batch in world.connections[0].inputs] == [5, 7, 9]


async def test_the_first_error_is_that_of_all_later_records() -> None:
    world = World(Plan(terminal_at=(1, *INVALID)))

    with pytest.raises(S2ServerError, match="bad"):
        async with producing(world, max_batch_records=1) as producer:
            tickets = [await producer.submit(str(n)) for n in range(4)]
            assert (await tickets[0]).seq_num == 0
            for ticket in tickets[1:]:
                with pytest.raises(S2ServerError, match="bad"):
                    await ticket
            with pytest.raises(S2ServerError, match="bad"):
                await producer.flush()
            with pytest.raises(S2ServerError, match="bad"):
                await producer.submit("later")

    assert world.bodies() == [b"0"]


async def test_a_mismatch_reaches_the_tickets() -> None:
    world = World()
    world.fill(3)

    with pytest.raises(SeqNumMismatchError):
        async with producing(world, match_seq_num=0) as producer:
            ticket = await producer.submit("a")
            with pytest.raises(SeqNumMismatchError) as caught:
                await ticket

    assert caught.value.expected_seq_num == 3


async def test_submit_waits_for_room_in_the_order_of_arrival() -> None:
    world = World()
    world.gate = anyio.Event()

    async with producing(world, max_batch_records=1, session={"max_in_flight_batches": 1}) as producer:
        await producer.submit("a")
        await producer.submit("b")
        async with anyio.create_task_group() as group:
            for text in "cdef":
                group.start_soon(producer.submit, text)
                await anyio.wait_all_tasks_blocked()
            with pytest.raises(BufferFullError):
                producer.submit_nowait("x")
            world.gate.set()
            world.gate = None

    assert world.bodies() == [b"a", b"b", b"c", b"d", b"e", b"f"]


async def test_a_cancelled_wait_for_room_hands_over_nothing_and_harms_nobody() -> None:
    world = World()
    world.gate = anyio.Event()

    async with producing(world, max_batch_records=1, session={"max_in_flight_batches": 1}) as producer:
        await producer.submit("a")
        await producer.submit("b")
        with anyio.move_on_after(1) as scope:
            await producer.submit("cancelled")
        world.gate.set()
        world.gate = None
        await producer.submit("c")

    assert scope.cancelled_caught
    assert world.bodies() == [b"a", b"b", b"c"]


async def test_closing_refuses_those_who_wait_for_room() -> None:
    world = World()
    world.gate = anyio.Event()
    refused = []

    async with producing(world, max_batch_records=1, session={"max_in_flight_batches": 1}) as producer:
        await producer.submit("a")
        await producer.submit("b")

        async def wait() -> None:
            with pytest.raises(S2SessionClosedError):
                await producer.submit("c")
            refused.append(True)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(producer.close)
            await anyio.wait_all_tasks_blocked()
            world.gate.set()
            world.gate = None

    assert refused == [True]
    assert world.bodies() == [b"a", b"b"]


async def test_many_tasks_at_once_never_overfill_a_batch() -> None:
    world = World()

    async with producing(world, max_batch_bytes=100) as producer, anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(producer.submit, b"x" * (number % 40))

    assert len(world.records) == 200
    assert max(batch.metered_bytes for batch in world.connections[0].inputs) <= 100


async def test_a_lost_connection_is_no_matter() -> None:
    world = World(Plan(drop_before=2), Plan(drop_before=1))

    async with producing(world, max_batch_records=3) as producer:
        tickets = [await producer.submit(str(n)) for n in range(20)]
        acks = [await ticket for ticket in tickets]

    assert [ack.seq_num for ack in acks] == list(range(20))


async def test_leaving_by_an_exception_raises_it_bare_and_fails_the_tickets() -> None:
    world = World()
    world.gate = anyio.Event()

    with pytest.raises(ValueError, match="mine"):
        async with producing(world, linger=3600) as producer:
            flying = await producer.submit("flying")
            await anyio.sleep(0.01)
            waiting = await producer.submit("waiting")
            raise ValueError("mine")

    with pytest.raises(S2SessionClosedError) as maybe:
        await flying
    with pytest.raises(S2SessionClosedError) as never:
        await waiting
    assert (maybe.value.definite, never.value.definite) == (False, True)


async def test_a_session_that_was_entered_before_stays_open() -> None:
    world = World()

    async with AppendSession(world.context()) as session:
        async with Producer(session) as producer:
            await producer.submit("a")
        await session.submit("b")
        async with Producer(session) as producer:
            await producer.submit("c")

    assert world.bodies() == [b"a", b"b", b"c"]
    assert len(world.connections) == 1


async def test_a_producer_in_the_callers_group_fails_its_tickets_when_the_group_is_cancelled() -> None:
    world = World()
    world.gate = anyio.Event()

    async with anyio.create_task_group() as group:
        producer = producing(world, linger=3600)
        await producer.start(group)
        first = await producer.submit("a")
        await anyio.sleep(0.01)
        second = await producer.submit("b")
        group.cancel_scope.cancel()

    for ticket in (first, second):
        with pytest.raises(S2SessionClosedError):
            await ticket
    with pytest.raises(S2SessionClosedError):
        await producer.submit("c")


async def test_aclose_does_not_wait() -> None:
    world = World()
    world.gate = anyio.Event()

    async with anyio.create_task_group() as group:
        producer = producing(world)
        await producer.start(group)
        ticket = await producer.submit("a")
        await producer.aclose()
        await producer.aclose()

    with pytest.raises(S2SessionClosedError):
        await ticket


async def test_a_producer_is_entered_before_it_is_used_and_only_once() -> None:
    producer = producing(World())

    with pytest.raises(RuntimeError, match="enter the producer"):
        await producer.submit("a")
    async with producer:
        with pytest.raises(RuntimeError, match="already"):
            await producer.__aenter__()


async def test_a_retry_budget_that_is_used_up_ends_the_producer() -> None:
    world = World(*(Plan(drop_before=0) for _ in range(2)))
    session = AppendSession(world.context(retry=S2Retry(max_attempts=2)))

    with pytest.raises(Exception, match="broke"):
        async with Producer(session) as producer:
            await producer.submit("a")
    assert world.bodies() == []
