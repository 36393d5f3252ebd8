"""A read across any cuts yields what an uncut one yields, for every kind of start and limit."""

from typing import Any

import anyio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.s2 import S2Error, S2Retry, SeqNum, TailOffset, Timestamp
from durable_streams.s2._read_session import ReadSession
from durable_streams.s2._reading import ReadOptions

from .world import Plan, World

STARTS = [SeqNum(0), SeqNum(4), SeqNum(12), SeqNum(99), Timestamp(0), Timestamp(1003), TailOffset(0), TailOffset(5)]


def run(options: ReadOptions, plans: list[Plan], *, grows: bool, batch: int) -> tuple[list[int], str]:
    """Read a stream of 12 records, every third a command; perhaps some more come while it is followed."""
    world = World(*plans, batch=batch)
    world.fill(12, command_every=3)
    found: list[int] = []
    ends: list[str] = []

    async def grow() -> None:
        for _ in range(3):
            await anyio.sleep(7)
            world.fill(2)

    async def read() -> None:
        retry = S2Retry(max_attempts=99, min_base_delay=0.01, max_base_delay=0.01)
        async with anyio.create_task_group() as group:
            if grows:
                group.start_soon(grow)
            ends.append("goes on")
            with anyio.move_on_after(300):
                async with ReadSession(world.context(retry=retry), options) as session:
                    try:
                        async for item in session:
                            found.extend(record.seq_num for record in item.records)
                        ends.append("ended")
                    except S2Error as error:
                        ends.append(f"failed {error.status}")
            group.cancel_scope.cancel()

    anyio.run(read, backend="trio", backend_options={"clock": trio.testing.MockClock(autojump_threshold=0)})
    return found, ends[-1]


@settings(max_examples=150, deadline=None)
@given(
    start=st.sampled_from(STARTS),
    count=st.sampled_from([None, 1, 5, 12, 14, 99]),
    size=st.sampled_from([None, 5, 60, 130, 9999]),
    until=st.sampled_from([None, 1004, 1007, 9999]),
    wait=st.sampled_from([None, 0, 20]),
    clamp=st.booleans(),
    hide=st.booleans(),
    batch=st.integers(1, 5),
    cuts=st.lists(st.tuples(st.sampled_from(["cut_after", "cut_inside", "advise_at"]), st.integers(0, 4)), max_size=6),
)
def test_a_read_across_cuts_equals_an_uncut_one(
    start: Any,
    count: int | None,
    size: int | None,
    until: int | None,
    wait: int | None,
    clamp: bool,
    hide: bool,
    batch: int,
    cuts: list[tuple[str, int]],
) -> None:
    options = ReadOptions(
        start, count=count, bytes=size, until=until, wait=wait, clamp=clamp, ignore_command_records=hide
    )
    plans = [Plan(**{kind: number}) for kind, number in cuts]  # type: ignore[arg-type]
    bounded = count is not None or size is not None or until is not None
    follows = wait != 0 and (wait is not None or not bounded)

    uncut = run(options, [], grows=follows, batch=batch)
    cut = run(options, plans, grows=follows, batch=batch)

    assert cut == uncut
