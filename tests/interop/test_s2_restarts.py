"""Sessions on `s2 lite` while it is killed, and while it is restarted as planned, with its data on disk."""

from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from durable_streams.s2 import S2, AppendAck, S2Retry

from . import s2lite

pytestmark = pytest.mark.anyio

#: Outlasts a restart that nobody announced: about half a minute of tries.
PATIENT = S2Retry(max_attempts=150, min_base_delay=0.05, max_base_delay=0.1)
STRICT = S2Retry(append_retry_policy="no_side_effects")


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[s2lite.Lite]:
    """A server of the test's own, with its data on disk."""
    missing = s2lite.why_not()
    if missing is not None:
        (pytest.fail if s2lite.required() else pytest.skip)(missing)
    (tmp_path / "data").mkdir()
    with s2lite.Lite(tmp_path / "data") as server:
        yield server


async def stored(s2: S2, basin: str) -> list[bytes]:
    tail = await s2.basin(basin).stream("s").check_tail()
    if not tail.seq_num:
        return []
    async with s2.basin(basin).stream("s").read_session(seq_num=0, count=tail.seq_num) as reader:
        return [record.body async for record in reader.iter_records()]


async def test_sessions_go_on_by_themselves_after_the_server_was_killed(durable: s2lite.Lite) -> None:
    """What was acknowledged is there; what is there is in order; the follower has seen exactly that."""
    basin = s2lite.make_basin(durable.url)
    acked: dict[int, AppendAck] = {}
    followed: list[bytes] = []

    async with S2(s2lite.token(), endpoints=durable.url, retry=PATIENT) as s2:
        await s2.basin(basin).streams.create("s")
        stream = s2.basin(basin).stream("s")
        with anyio.fail_after(120):
            async with anyio.create_task_group() as group:

                async def follow() -> None:
                    async with stream.read_session(seq_num=0) as reader:
                        async for record in reader.iter_records():
                            followed.append(record.body)
                            if record.body == b"end":
                                return

                async def crash() -> None:
                    for _ in range(3):
                        await anyio.sleep(0.7)
                        await anyio.to_thread.run_sync(durable.kill)
                        await anyio.to_thread.run_sync(durable.start)

                group.start_soon(follow)
                async with stream.append_session(max_in_flight_batches=20) as session:
                    crashing = anyio.Event()

                    async def crash_and_tell() -> None:
                        await crash()
                        crashing.set()

                    group.start_soon(crash_and_tell)
                    tickets = []
                    while not crashing.is_set() or len(tickets) < 200:
                        tickets.append(await session.submit(b"%d" % len(tickets)))
                        await anyio.sleep(0.002)
                    for number, ticket in enumerate(tickets):
                        acked[number] = await ticket
                    await session.submit("end")
            there = await stored(s2, basin)

    assert session.statistics().connections >= 4
    for number, ack in acked.items():
        assert there[ack.start.seq_num] == b"%d" % number
    firsts = list(dict.fromkeys(there))
    assert firsts == [b"%d" % number for number in range(len(acked))] + [b"end"]
    assert followed == there


async def test_a_planned_restart_loses_nothing_and_doubles_nothing(durable: s2lite.Lite) -> None:
    """Under `no_side_effects` and three attempts: the session leaves in time, and waits for the next server."""
    basin = s2lite.make_basin(durable.url)

    async with S2(s2lite.token(), endpoints=durable.url, retry=STRICT) as s2:
        await s2.basin(basin).streams.create("s")
        stream = s2.basin(basin).stream("s")
        with anyio.fail_after(120):
            async with stream.append_session() as session, anyio.create_task_group() as group:
                restarted = anyio.Event()

                async def restart() -> None:
                    for _ in range(2):
                        await anyio.sleep(0.5)
                        await anyio.to_thread.run_sync(durable.stop)
                        await anyio.to_thread.run_sync(durable.start)
                    restarted.set()

                group.start_soon(restart)
                tickets = []
                while not restarted.is_set() or len(tickets) < 200:
                    tickets.append(await session.submit(b"%d" % len(tickets)))
                    await anyio.sleep(0.002)
                acks = [await ticket for ticket in tickets]
            there = await stored(s2, basin)

    assert there == [b"%d" % number for number in range(len(tickets))]
    assert [ack.start.seq_num for ack in acks] == list(range(len(tickets)))
    assert session.statistics().connections >= 3
    assert session.failure_cause is None


async def test_a_follower_outlives_a_planned_restart(durable: s2lite.Lite) -> None:
    """Its connection is cut ten seconds after the farewell."""
    basin = s2lite.make_basin(durable.url)

    async with S2(s2lite.token(), endpoints=durable.url) as s2:
        await s2.basin(basin).streams.create("s")
        stream = s2.basin(basin).stream("s")
        with anyio.fail_after(60):
            async with stream.read_session(seq_num=0) as reader:
                await stream.append("before")
                first = await anext(reader)
                async with anyio.create_task_group() as group:

                    async def restart() -> None:
                        await anyio.to_thread.run_sync(durable.stop)
                        await anyio.to_thread.run_sync(durable.start)
                        await stream.append("after")

                    group.start_soon(restart)
                    second = await anext(reader)

    assert [record.body for batch in (first, second) for record in batch.records] == [b"before", b"after"]
    assert reader.statistics().connections == 2


async def test_a_killed_server_leaves_doubt_that_reading_back_resolves(durable: s2lite.Lite) -> None:
    """Every batch has its place: nothing is doubled although everything is repeated."""
    basin = s2lite.make_basin(durable.url)

    async with S2(s2lite.token(), endpoints=durable.url, retry=PATIENT) as s2:
        await s2.basin(basin).streams.create("s")
        with anyio.fail_after(60):
            async with s2.basin(basin).stream("s").append_session(read_back=True) as session:
                tickets = []
                for number in range(60):
                    tickets.append(await session.submit(b"%d" % number, match_seq_num=number))
                    await anyio.sleep(0.005)
                    if number in (20, 40):
                        await anyio.to_thread.run_sync(durable.kill)
                        await anyio.to_thread.run_sync(durable.start)
                acks = [await ticket for ticket in tickets]
            there = await stored(s2, basin)

    assert there == [b"%d" % number for number in range(60)]
    assert [ack.start.seq_num for ack in acks] == list(range(60))
