"""The queue from the event loop to the thread that writes."""

from collections.abc import Callable

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from durable_streams.server.stores.handover import Handover, waker

pytestmark = pytest.mark.anyio


class Loop:
    """Calls what it was given when it is told to."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def soon(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


def take_all(handover: Handover[int]) -> list[int]:
    items = []
    while (item := handover.take()) is not None:
        items.append(item)
    return items


def test_things_come_in_the_order_in_which_they_were_handed_over() -> None:
    handover = Handover[int](Loop().soon)

    for item in range(3):
        handover.put(item)

    assert handover
    assert take_all(handover) == [0, 1, 2]
    assert not handover


def test_a_thread_that_does_not_wait_is_not_woken() -> None:
    loop = Loop()
    handover = Handover[int](loop.soon)

    handover.put(1)

    assert not loop.calls
    assert handover.wait(60)  # it sees by itself that there is something


def test_a_wait_without_news_ends_with_its_time() -> None:
    assert not Handover[int](Loop().soon).wait(0.001)


@pytest.mark.parametrize("count", [1, 5])
async def test_a_thread_that_waits_is_woken_once_for_all_that_comes_in_one_go(count: int) -> None:
    soon = waker()
    rings = 0

    def counted(call: Callable[[], None]) -> None:
        nonlocal rings
        rings += 1
        soon(call)

    handover = Handover[int](counted)
    waits: list[bool] = []

    def work() -> list[int]:
        waits.append(True)
        assert handover.wait(60)
        return take_all(handover)

    taken: list[int] = []

    async def run() -> None:
        taken.extend(await anyio.to_thread.run_sync(work))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            while not (waits and handover.waiting):
                await anyio.sleep(0.001)
            for item in range(count):
                handover.put(item)

    assert taken == list(range(count))
    assert rings == 1


async def test_the_end_comes_from_any_thread_and_wakes() -> None:
    handover = Handover[int](Loop().soon)

    async def wait() -> None:
        assert await anyio.to_thread.run_sync(handover.wait, 60)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            while not handover.waiting:
                await anyio.sleep(0.001)
            await anyio.to_thread.run_sync(handover.put_from_elsewhere, 1)

    assert take_all(handover) == [1]


async def test_many_things_arrive_whoever_is_faster() -> None:
    soon = waker()
    handover = Handover[int](soon)
    count, taken = 2000, list[int]()

    def work() -> None:
        while len(taken) < count:
            if not handover:
                assert handover.wait(10)
            taken.extend(take_all(handover))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, work)
            for item in range(1, count + 1):
                handover.put(item)
                if item % 3 == 0:
                    await anyio.lowlevel.checkpoint()

    assert taken == list(range(1, count + 1))
