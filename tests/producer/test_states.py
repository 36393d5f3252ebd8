"""Every operation in every state ends: what it waits for is bounded, whether the network recovers or stays silent.

Time is faked, so that a hang is found by a deadline that no wait of the producer can reach: it gives a batch two
minutes, and the silent network answers nothing, ever.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup

from durable_streams import DurableStreamError, IdempotentProducer
from tests.core.model_server import Server

from .desk import Desk

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fake_clock")]

#: Far beyond everything that may take its time: delivery_timeout, read timeouts, graces, the user's callback.
HANGS = 1000.0


class Stage:
    """A producer in some state, and what was accepted before.

    Attributes:
        outside: Tasks of other callers; they are cancelled at the end if they still wait.
        failures: What they met.
    """

    def __init__(self, outside: TaskGroup) -> None:
        self.desk = Desk()
        self.server = Server()
        self.outside = outside
        self.accepted: list[int] = []
        self.acknowledged: list[int] = []
        self.failures: list[Exception] = []
        self.options: dict[str, Any] = {"linger": 0.0, "max_batch_items": 1}
        self.producer: IdempotentProducer

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            number = len(self.accepted)
            self.watch(number, self.producer.append_nowait(str(number)))
            self.accepted.append(number)

    def watch(self, number: int, receipt: Any) -> None:
        async def wait() -> None:
            try:
                await receipt.wait()
            except DurableStreamError as error:
                self.failures.append(error)
            else:
                self.acknowledged.append(number)

        self.outside.start_soon(wait)

    def meanwhile(self, call: Callable[[], Awaitable[object]]) -> None:
        """Another caller makes this call."""

        async def run() -> None:
            try:
                await call()
            except DurableStreamError as error:
                self.failures.append(error)

        self.outside.start_soon(run)


# -- The states --------------------------------------------------------------------------------------------


async def idle(stage: Stage) -> None:
    """Nothing was ever appended."""


async def settled(stage: Stage) -> None:
    """Everything is stored."""
    stage.add()
    (posted,) = await stage.desk.wait(1)
    posted.apply(stage.server)
    await stage.producer.flush()


async def lingering(stage: Stage) -> None:
    """A batch is open and waits for more."""
    stage.add()
    await anyio.lowlevel.checkpoint()


lingering.options = {"linger": 500.0, "max_batch_items": None}  # type: ignore[attr-defined]


async def in_flight(stage: Stage) -> None:
    """All lanes are busy, and more is queued."""
    stage.add(8)
    await stage.desk.wait(5)


async def gated(stage: Stage) -> None:
    """The first batch of an epoch is under way, and others wait for it."""
    stage.add(3)
    await stage.desk.wait(1)


gated.options = {"auto_claim": True}  # type: ignore[attr-defined]


async def waiting_to_retry(stage: Stage) -> None:
    """Nothing is under way; a batch waits for its time."""
    stage.add(2)
    for posted in await stage.desk.wait(2):
        posted.reply(503, retry_after=60)
    await anyio.sleep(1)
    assert stage.producer.in_flight_count == 0


async def gap_waiting(stage: Stage) -> None:
    """A batch has overtaken another, which is under way."""
    stage.add(2)
    (_, second) = await stage.desk.wait(2)
    second.apply(stage.server)
    await anyio.sleep(1)
    assert stage.producer.statistics().gap_retries == 1


async def claiming(stage: Stage) -> None:
    """One batch was fenced; another one's answer is still to come."""
    stage.add()
    (first,) = await stage.desk.wait(1)
    first.apply(stage.server)
    stage.add(2)
    second, _ = await stage.desk.wait(3)
    stage.server.epoch = 4
    second.apply(stage.server)
    await anyio.sleep(1)


claiming.options = {"auto_claim": True}  # type: ignore[attr-defined]


async def asked(stage: Stage) -> None:
    """The handle's on_error takes its time over an answer."""
    stage.add(2)
    for posted in await stage.desk.wait(2):
        posted.reply(401)
    await anyio.sleep(1)


asked.slow = True  # type: ignore[attr-defined]


async def buffer_full(stage: Stage) -> None:
    """Two callers wait for room."""
    stage.add(2)

    async def append(number: int) -> None:
        receipt = await stage.producer.append(str(number))
        stage.accepted.append(number)
        stage.watch(number, receipt)

    for number in (2, 3):
        stage.meanwhile(partial(append, number))
        await anyio.sleep(1)


buffer_full.options = {"max_buffered_messages": 2}  # type: ignore[attr-defined]


async def closing(stage: Stage) -> None:
    """A closing request is under way."""
    stage.add()
    (posted,) = await stage.desk.wait(1)
    posted.apply(stage.server)
    stage.meanwhile(stage.producer.close_stream)
    await stage.desk.wait(2)


async def close_failed(stage: Stage) -> None:
    """Closing has failed, and may be tried again."""
    stage.meanwhile(stage.producer.close_stream)
    (posted,) = await stage.desk.wait(1)
    posted.reply(413)
    await anyio.sleep(1)
    assert len(stage.failures) == 1


async def closed(stage: Stage) -> None:
    """The stream is closed."""
    stage.meanwhile(stage.producer.close_stream)
    (posted,) = await stage.desk.wait(1)
    posted.apply(stage.server)
    await anyio.sleep(1)


async def restarting(stage: Stage) -> None:
    """A restart waits for what is under way."""
    stage.add(2)
    await stage.desk.wait(2)
    stage.meanwhile(stage.producer.restart)
    await anyio.sleep(1)
    stage.add()


async def detaching(stage: Stage) -> None:
    """Another caller detaches."""
    stage.add(8)
    await stage.desk.wait(5)
    stage.meanwhile(stage.producer.detach)
    await anyio.sleep(1)


async def failed(stage: Stage) -> None:
    """A batch was refused; another one's answer is still to come."""
    stage.add(3)
    first, *_ = await stage.desk.wait(3)
    first.reply(409)
    await anyio.sleep(1)
    assert stage.producer.failed is not None


async def aborted(stage: Stage) -> None:
    """Everything was dropped."""
    stage.add(2)
    await stage.desk.wait(2)
    await stage.producer.abort()


async def left(stage: Stage) -> None:
    """It was detached."""
    await stage.producer.detach()


STATES = [
    idle,
    settled,
    lingering,
    in_flight,
    gated,
    waiting_to_retry,
    gap_waiting,
    claiming,
    asked,
    buffer_full,
    closing,
    close_failed,
    closed,
    restarting,
    detaching,
    failed,
    aborted,
    left,
]

# -- The operations ----------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[IdempotentProducer], Any]] = {
    "append_nowait": lambda producer: producer.append_nowait("-1"),
    "append": lambda producer: producer.append("-1"),
    "append_many": lambda producer: producer.append_many(["-1"] * 20),
    "send": lambda producer: producer.send("-1"),
    "flush": lambda producer: producer.flush(),
    "close_stream": lambda producer: producer.close_stream(),
    "close_stream with a last message": lambda producer: producer.close_stream("-1"),
    "detach": lambda producer: producer.detach(),
    "aclose": lambda producer: producer.aclose(),
    "abort": lambda producer: producer.abort(),
    "restart": lambda producer: producer.restart(),
    "restart and resend": lambda producer: producer.restart(resend=True),
    "statistics": lambda producer: (producer.statistics(), producer.unacknowledged(), repr(producer)),
}

Ending = Callable[[Stage], Any]


class BodyError(Exception):
    """What the block is left by."""


@asynccontextmanager
async def entered(stage: Stage, owner: str) -> AsyncIterator[IdempotentProducer]:
    """The producer inside its block, or started in a task group of somebody else."""
    producer = stage.producer
    if owner == "block":
        async with producer:
            yield producer
        return
    errors = []
    async with anyio.create_task_group() as group:
        await producer.start(group)
        try:
            try:
                yield producer
            finally:
                if owner == "group, closed":
                    await producer.aclose()
                else:
                    group.cancel_scope.cancel()
        except Exception as error:
            errors.append(error)  # a task group of one's own wraps what passes through it
    if errors:
        raise errors[0]


@pytest.mark.parametrize("network", ["recovers", "stays silent"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
async def test_every_operation_ends_in_every_state(
    state: Callable[[Stage], Awaitable[None]], operation: str, network: str
) -> None:
    async with anyio.create_task_group() as outside:
        stage = Stage(outside)
        await run(stage, state, operation, network, "block")
        outside.cancel_scope.cancel()


@pytest.mark.parametrize("owner", ["block", "group, closed", "group, cancelled"])
@pytest.mark.parametrize("ending", ["normally", "by an exception", "by a cancellation"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
async def test_a_producer_can_be_left_in_every_state(
    state: Callable[[Stage], Awaitable[None]], ending: str, owner: str
) -> None:
    for network in ("recovers", "stays silent"):
        async with anyio.create_task_group() as outside:
            stage = Stage(outside)
            await run(stage, state, ending, network, owner)
            outside.cancel_scope.cancel()


async def run(
    stage: Stage, state: Callable[[Stage], Awaitable[None]], operation: str, network: str, owner: str
) -> None:
    async def take_time(error: Exception) -> None:
        await anyio.sleep(10)

    handle = stage.desk.handle(on_error=take_time if hasattr(state, "slow") else None)
    options = stage.options | getattr(state, "options", {})
    stage.producer = IdempotentProducer(handle, "p", exit_grace=1.0, **options)
    error: BaseException | None = None
    with anyio.fail_after(HANGS), anyio.CancelScope() as scope:
        try:
            async with entered(stage, owner):
                await state(stage)
                if network == "recovers":
                    stage.desk.serve(stage.server)
                if operation == "by an exception":
                    raise BodyError
                if operation == "by a cancellation":
                    scope.cancel()
                    await anyio.sleep(math.inf)
                elif operation != "normally":
                    result = OPERATIONS[operation](stage.producer)
                    if isinstance(result, Awaitable):
                        await result
        except (DurableStreamError, BodyError) as met:
            error = met
    await handle.aclose()
    if operation == "by an exception" and owner != "group, closed":
        assert type(error) is BodyError, "the body's exception goes on bare"
    check(stage, error if isinstance(error, DurableStreamError) else None, network)


def check(stage: Stage, error: DurableStreamError | None, network: str) -> None:
    """Nothing runs any more, nothing acknowledged is missing, and what is missing was told."""
    assert stage.producer._lanes is not None
    assert not stage.producer._lanes._lanes
    assert stage.desk.open_requests == []
    stored = stage.server.log
    assert set(stage.acknowledged) <= set(stored)
    ours = [number for number in stored if number != -1]
    if stage.producer.epoch == 0:
        assert ours == sorted(set(ours)), "lost order, or stored twice"
    missing = [number for number in stage.accepted if number not in stored]
    if missing:
        left_over = [int(item) for item in stage.producer.unacknowledged()]
        dropped = stage.producer.epoch > 0 and not left_over  # restart without resend
        assert set(missing) <= set(left_over) or dropped
    with pytest.raises(DurableStreamError):
        stage.producer.append_nowait("1")
