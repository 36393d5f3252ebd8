"""Cancelling one caller changes nothing for the others: at each of its awaits, one after the other (client 12.10).

Time is faked; the network takes 0.1 s for each request, so that every call has to wait for room or for answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from durable_streams import AlreadyClosedError, DurableStreamError, IdempotentProducer, Receipt
from durable_streams._core.exchange import Head
from tests.core.model_server import Server

from .desk import Desk, Posted

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fake_clock")]


class Trip:
    """Awaits something, and cancels a scope when that suspends for the n-th time."""

    def __init__(self, awaitable: Awaitable[Any], scope: anyio.CancelScope, n: int) -> None:
        self._awaitable = awaitable
        self._scope = scope
        self._left = n

    def __await__(self) -> Generator[Any, Any, Any]:
        inner: Any = self._awaitable.__await__()
        result: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = inner.send(result) if error is None else inner.throw(error)
            except StopIteration as stop:
                return stop.value
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()
            result = error = None
            try:
                result = yield waits_for
            except BaseException as raised:
                error = raised


class Scene:
    """A producer that others use at the same time.

    Attributes:
        others: Numbers that others have appended, in order.
        receipts: Theirs.
    """

    def __init__(self, tasks: TaskGroup, **options: Any) -> None:
        self.server = Server()
        self.desk = Desk(self._answer)
        self.others: list[int] = []
        self.receipts: list[Receipt] = []
        self.failures: list[Exception] = []
        self.tasks = tasks
        self.flushed = 0
        defaults: dict[str, Any] = {"max_batch_items": 2, "max_in_flight": 2, "max_buffered_messages": 3}
        self.producer = IdempotentProducer(self.desk.handle(), "p", **(defaults | options))

    def _answer(self, posted: Posted) -> None:
        async def later(delay: float) -> None:
            await anyio.sleep(delay)
            if not posted.cut_off:
                posted.apply(self.server)

        self.tasks.start_soon(later, 0.1 + 0.001 * len(self.desk.posted))  # in order

    def go(self, call: Callable[[], Awaitable[object]]) -> None:
        async def run() -> None:
            try:
                await call()
            except DurableStreamError as error:
                self.failures.append(error)

        self.tasks.start_soon(run)

    async def append_others(self) -> None:
        for number in range(100, 110):
            self.receipts.append(await self.producer.append(str(number)))
            self.others.append(number)
            await anyio.sleep(0.03)

    async def flush_others(self) -> None:
        for _ in range(3):
            await self.producer.flush()
            self.flushed += 1
            await anyio.sleep(0.05)


@asynccontextmanager
async def scene(**options: Any) -> AsyncIterator[Scene]:
    async with anyio.create_task_group() as tasks:
        yield Scene(tasks, **options)


@dataclass
class Trial:
    """What became of a call that was to be cancelled.

    Attributes:
        cancelled: Whether it waited so often; the cancellation may still have come too late.
        ended: Whether it came to its end all the same.
    """

    cancelled: bool
    ended: bool


async def cancel_at(n: int, call: Awaitable[Any]) -> Trial:
    """Cancel a call when it suspends for the n-th time."""
    trial = Trial(cancelled=False, ended=False)
    with anyio.CancelScope() as scope:
        await Trip(call, scope, n)
        trial.ended = True
    trial.cancelled = scope.cancel_called
    return trial


async def at_each_await(play: Callable[[int], Awaitable[Trial]]) -> None:
    """Play the same scene until the call ends before it is cancelled."""
    n = 0
    with anyio.fail_after(10_000):
        while (await play(n + 1)).cancelled:
            n += 1
            assert n < 500
    assert n, "the call never waited"


CALLS: dict[str, Callable[[IdempotentProducer], Awaitable[Any]]] = {
    "append": lambda producer: producer.append("1"),
    "append_many": lambda producer: producer.append_many(map(str, range(1, 9))),
    "send": lambda producer: producer.send("1"),
    "flush": lambda producer: producer.flush(),
    "restart": lambda producer: producer.restart(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_others_do_not_notice_that_a_caller_is_cancelled(name: str) -> None:
    async def play(n: int) -> Trial:
        async with scene() as s:
            async with s.producer:
                s.go(s.append_others)
                s.go(s.flush_others)
                await anyio.sleep(0.07)
                trial = await cancel_at(n, CALLS[name](s.producer))
                while len(s.others) < 10 or s.flushed < 3:
                    await anyio.sleep(0.1)
            assert s.failures == []
            assert [(await receipt.wait()).offset is not None for receipt in s.receipts] == [True] * 10
        ours = [number for number in s.server.log if isinstance(number, int) and number < 100]
        assert [number for number in s.server.log if number not in ours] == s.others
        assert ours == list(range(1, len(ours) + 1)), "what was queued is a beginning, in order, once"
        if trial.ended:
            assert len(ours) == {"append": 1, "send": 1, "append_many": 8}.get(name, 0)
        return trial

    await at_each_await(play)


async def test_a_message_whose_sender_was_cancelled_is_stored_once_it_was_queued() -> None:
    async def play(n: int) -> Trial:
        async with scene() as s, s.producer:
            trial = await cancel_at(n, s.producer.send("1"))
            queued = s.producer.pending_count
        assert s.server.log == ([1] if queued or trial.ended else [])
        return trial

    await at_each_await(play)


async def test_closing_goes_on_when_its_caller_is_cancelled() -> None:
    async def play(n: int) -> Trial:
        results = []

        async def join() -> None:
            results.append(await s.producer.close_stream())

        async with scene(max_buffered_messages=None) as s, s.producer:
            for number in range(100, 104):
                s.receipts.append(s.producer.append_nowait(str(number)))
            s.go(s.flush_others)
            trial = await cancel_at(n, s.producer.close_stream("-1"))
            s.go(join)
            assert (await s.producer.close_stream()).final_offset == "00000005"
            assert (await s.producer.close_stream("-1")).final_offset == "00000005"
        assert [result.final_offset for result in results] == ["00000005"]
        assert s.server.log == [100, 101, 102, 103, -1]
        assert s.failures == []
        return trial

    await at_each_await(play)


async def test_detaching_goes_on_when_its_caller_is_cancelled() -> None:
    async def play(n: int) -> Trial:
        async with scene(max_buffered_messages=None) as s:
            async with anyio.create_task_group() as group:
                await s.producer.start(group)
                for number in range(100, 104):
                    s.receipts.append(s.producer.append_nowait(str(number)))
                s.go(s.producer.flush)
                s.go(s.producer.detach)
                trial = await cancel_at(n, s.producer.detach())
                with pytest.raises(AlreadyClosedError):
                    s.producer.append_nowait("1")
                if n % 2:  # and otherwise it ends by itself: the group is left
                    await s.producer.detach()
            assert [(await receipt.wait()).seq for receipt in s.receipts] == [0, 0, 1, 1]
            await s.producer.detach()
        assert s.failures == []
        assert s.server.log == [100, 101, 102, 103]
        return trial

    await at_each_await(play)


async def test_a_cancelled_aclose_ends_the_producer_after_its_grace() -> None:
    async def play(n: int) -> Trial:
        async with scene(exit_grace=0.15, max_buffered_messages=None) as s:
            async with anyio.create_task_group() as group:
                await s.producer.start(group)
                for number in range(100, 104):
                    s.receipts.append(s.producer.append_nowait(str(number)))
                await anyio.sleep(0.01)
                trial = await cancel_at(n, s.producer.aclose())
            assert s.desk.open_requests == []
            await s.producer.aclose()
        assert s.server.log == [100, 101, 102, 103], "both batches were under way"
        return trial

    await at_each_await(play)


@pytest.mark.parametrize("grace", [0.15, 0.0])
async def test_a_cancelled_block_lets_finish_what_is_under_way_and_drops_the_rest(grace: float) -> None:
    async with scene(exit_grace=grace, max_buffered_messages=None) as s:
        with anyio.CancelScope() as scope:
            async with s.producer:
                s.receipts += [s.producer.append_nowait(str(number)) for number in range(100, 108)]
                await anyio.sleep(0.01)
                scope.cancel()
                await anyio.sleep(1)
        assert scope.cancelled_caught
    stored = [100, 101, 102, 103] if grace else []
    assert s.server.log == stored
    assert s.producer.unacknowledged() == [b"%d" % number for number in range(100 + len(stored), 108)]
    for receipt, number in zip(s.receipts, range(100, 108), strict=True):
        if number in stored:
            assert (await receipt.wait()).epoch == 0
        else:
            with pytest.raises(AlreadyClosedError) as caught:
                await receipt.wait()
            assert caught.value.maybe_applied is (number < 104)


async def test_a_block_that_is_cancelled_while_it_is_left_gives_the_same_grace() -> None:
    async with scene(exit_grace=0.15, max_buffered_messages=None) as s:
        with anyio.move_on_after(0.05) as scope:
            async with s.producer:
                for number in range(100, 104):
                    s.producer.append_nowait(str(number))
        assert scope.cancelled_caught
    assert s.server.log == [100, 101, 102, 103]


async def test_entering_can_be_cancelled_at_each_await() -> None:
    async def play(n: int) -> Trial:
        async with scene() as s:
            s.desk.rule = lambda posted: (
                posted.reply(200, content_type="application/json")
                if posted.method == "HEAD"
                else posted.apply(s.server)
            )
            producer = IdempotentProducer(s.desk.handle(None), "p")

            async def enter_and_leave() -> None:
                async with producer:
                    producer.append_nowait("1")

            trial = await cancel_at(n, enter_and_leave())
            assert producer._lanes is None or not producer._lanes._lanes
        assert s.server.log == ([1] if trial.ended else s.server.log)
        return trial

    await at_each_await(play)


async def test_starting_can_be_cancelled_at_each_await() -> None:
    async def play(n: int) -> Trial:
        async with scene() as s, anyio.create_task_group() as group:
            trial = await cancel_at(n, s.producer.start(group))
            if trial.ended:
                await s.producer.aclose()
            else:
                with pytest.raises((AlreadyClosedError, RuntimeError)):
                    s.producer.append_nowait("1")
        return trial

    await at_each_await(play)


async def test_a_cancelled_group_ends_its_producers_as_abort_does() -> None:
    told = []
    async with scene(
        max_buffered_messages=None, on_error=lambda error, info: told.append((type(error), info.seq))
    ) as s:
        async with anyio.create_task_group() as group:
            await s.producer.start(group)
            receipts = [s.producer.append_nowait(str(number)) for number in range(4)]
            await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        for receipt in receipts:
            with pytest.raises(AlreadyClosedError):
                await receipt.wait()
    assert told == [(AlreadyClosedError, 0), (AlreadyClosedError, 1)]
    assert s.producer.unacknowledged() == [b"0", b"1", b"2", b"3"]
    await s.producer.aclose()


async def test_a_message_is_not_queued_if_its_append_was_cancelled_while_it_waited_for_room() -> None:
    async with scene(max_buffered_messages=2) as s:
        async with s.producer:
            await s.producer.append("0")
            await s.producer.append("1")
            with anyio.move_on_after(0.05) as scope:
                await s.producer.append("2")
            assert scope.cancelled_caught
            await s.producer.append("3")
        assert s.server.log == [0, 1, 3]


async def test_a_lost_place_in_the_line_goes_to_the_next() -> None:
    async with scene(max_buffered_messages=2) as s, s.producer:
        s.producer.append_nowait("0")
        s.producer.append_nowait("1")
        first = anyio.CancelScope()

        async def give_up() -> None:
            with first:
                await s.producer.append("2")

        async def stay() -> None:
            await s.producer.append("3")
            s.others.append(3)

        s.go(give_up)
        await anyio.sleep(0.01)
        s.go(stay)
        await anyio.sleep(0.01)
        first.cancel()
        while not s.others:
            await anyio.sleep(0.1)
        await s.producer.flush()
        assert s.server.log == [0, 1, 3]


def test_the_model_answers_like_a_server() -> None:
    """What the scenes above rely on."""
    server = Server()
    posted = Posted("POST", "", {"producer-epoch": "0", "producer-seq": "0"}, b"[1,2]")
    posted.apply(server)

    assert server.log == [1, 2]
    assert isinstance(posted.answer, Head)
    assert posted.answer.status == 200
