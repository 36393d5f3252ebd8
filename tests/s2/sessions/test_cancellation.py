"""Cancelled at any point, a session leaves no task, no open connection, and no ticket that never ends."""

from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from durable_streams.s2 import S2SessionClosedError, SeqNum
from durable_streams.s2._append_session import AppendSession
from durable_streams.s2._batching import RecordBatches
from durable_streams.s2._producer import Producer
from durable_streams.s2._read_session import ReadSession
from durable_streams.s2._reading import ReadOptions

from .world import Plan, World

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fake_clock")]

#: More steps than any of these has.
STEPS = 60


async def cut_after(steps: int, work: Callable[[], Awaitable[None]]) -> bool:
    """Run this, and cancel it after so many steps of the loop; whether it was cancelled."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def cut() -> None:
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()

            group.start_soon(cut)
            await work()
            group.cancel_scope.cancel()
    return scope.cancelled_caught


async def test_an_append_session_may_be_cancelled_at_any_step() -> None:
    cancelled = 0
    for steps in range(STEPS):
        world = World(Plan(drop_before=1))
        tickets = []

        async def work(world: World = world, tickets: list[object] = tickets) -> None:
            async with AppendSession(world.context(), max_in_flight_batches=2) as session:
                tickets += [await session.submit(str(number)) for number in range(4)]
                await tickets[-1]  # type: ignore[misc]

        cancelled += await cut_after(steps, work)

        assert all(connection.closed for connection in world.connections)
        assert all(ticket.done for ticket in tickets)  # type: ignore[attr-defined]
        assert world.bodies() == [b"%d" % number for number in range(len(world.records))]
    assert cancelled > 10


async def test_a_producer_may_be_cancelled_at_any_step() -> None:
    cancelled = 0
    for steps in range(STEPS):
        world = World(Plan(drop_before=1))
        tickets = []

        async def work(world: World = world, tickets: list[object] = tickets) -> None:
            session = AppendSession(world.context(), max_in_flight_batches=1)
            async with Producer(session, max_batch_records=2) as producer:
                tickets += [await producer.submit(str(number)) for number in range(9)]
                await producer.flush()

        cancelled += await cut_after(steps, work)

        assert all(connection.closed for connection in world.connections)
        assert all(ticket.done for ticket in tickets)  # type: ignore[attr-defined]
    assert cancelled > 10


async def test_a_read_session_may_be_cancelled_at_any_step() -> None:
    cancelled = 0
    for steps in range(STEPS):
        world = World(Plan(cut_after=1))
        world.fill(12)

        async def work(world: World = world) -> None:
            async with ReadSession(world.context(), ReadOptions(SeqNum(0), count=12)) as session:
                async for _ in session:
                    pass

        cancelled += await cut_after(steps, work)

        assert all(connection.closed for connection in world.connections)
    assert cancelled > 10


async def test_batches_of_a_source_may_be_cancelled_at_any_step() -> None:
    async def source():  # type: ignore[no-untyped-def]
        for number in range(20):
            await anyio.lowlevel.checkpoint()
            yield str(number)

    for steps in range(STEPS):

        async def work() -> None:
            async with RecordBatches(source(), max_batch_records=3) as batches:
                async for _ in batches:
                    pass

        await cut_after(steps, work)


async def test_a_cancelled_close_does_not_stop_the_session_from_finishing() -> None:
    world = World()
    world.gate = anyio.Event()

    async with AppendSession(world.context()) as session:
        ticket = await session.submit("a")
        with anyio.move_on_after(1) as scope:
            await session.close()
        world.gate.set()
        world.gate = None
        await session.close()

    assert scope.cancelled_caught
    assert ticket.done
    assert world.bodies() == [b"a"]


async def test_closing_leaves_no_task_in_the_callers_group() -> None:
    world = World()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            session = AppendSession(world.context())
            await session.start(group)
            await session.submit("a")
            await session.close()
        async with anyio.create_task_group() as group:
            producer = Producer(AppendSession(world.context()))
            await producer.start(group)
            await producer.submit("b")
            await producer.close()

    assert world.bodies() == [b"a", b"b"]


async def test_a_cancelled_group_fails_whoever_waits_for_room() -> None:
    world = World()
    world.gate = anyio.Event()
    refused = []

    async with anyio.create_task_group() as outer, anyio.create_task_group() as group:
        session = AppendSession(world.context(), max_in_flight_batches=1)
        await session.start(group)
        await session.submit("a")

        async def wait() -> None:
            with pytest.raises(S2SessionClosedError):
                await session.submit("b")
            refused.append(True)

        outer.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()

    assert refused == [True]
