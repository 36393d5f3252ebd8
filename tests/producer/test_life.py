"""How a producer begins and ends: blocks, task groups, exceptions, cancellation, forks, the end of the interpreter."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from durable_streams import AlreadyClosedError, ConflictError, DurableStream, IdempotentProducer, StreamClosedError
from durable_streams.server import Server
from tests.scripted import Reply, Request, ScriptedServer

from .desk import Desk

pytestmark = pytest.mark.anyio


async def items(handle: DurableStream) -> list[Any]:
    async with handle.stream(live=False) as response:
        return await response.json()


# -- Leaving a block ---------------------------------------------------------------------------------------


async def test_leaving_the_block_sends_everything_and_leaves_the_stream_open(handle: DurableStream) -> None:
    async with IdempotentProducer(handle, "p", linger=3600) as producer:
        receipt = producer.append_nowait("1")

    assert receipt.done
    assert await items(handle) == [1]
    assert not (await handle.head()).stream_closed
    await producer.aclose()
    await producer.detach()


async def test_the_bodys_exception_goes_on_bare_with_its_own_traceback(handle: DurableStream) -> None:
    class BodyError(Exception):
        pass

    raised = BodyError("mine")
    with pytest.raises(BodyError) as caught:
        async with IdempotentProducer(handle, "p"):
            raise raised

    assert caught.value is raised
    assert raised.__context__ is None


async def test_a_failure_that_nobody_has_met_is_raised_at_the_end_of_the_block(handle: DurableStream) -> None:
    await handle.close_stream()
    with pytest.raises(StreamClosedError):
        async with IdempotentProducer(handle, "p") as producer:
            producer.append_nowait("1")

    assert producer.unacknowledged() == [b"1"]
    await producer.aclose()  # told once


async def test_after_a_failure_the_messages_are_still_there_outside_the_block(handle: DurableStream) -> None:
    await handle.close_stream()
    with pytest.raises(StreamClosedError):
        async with IdempotentProducer(handle, "p") as producer:
            await producer.send("1")

    assert isinstance(producer.failed, StreamClosedError)
    assert producer.unacknowledged() == [b"1"]


@pytest.mark.parametrize("mend", ["abort", "restart"])
async def test_a_failure_that_was_dealt_with_is_not_raised_at_the_end(handle: DurableStream, mend: str) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(409))
        async with IdempotentProducer(server.url + "/s", "p", content_type="text/plain") as producer:
            with pytest.raises(ConflictError):
                await producer.send("1")
            await getattr(producer, mend)()


async def test_left_by_an_exception_what_is_under_way_gets_its_grace_and_the_rest_is_dropped() -> None:
    stored = []
    arrived = anyio.Event()

    async def answer(request: Request) -> Reply:
        arrived.set()
        await anyio.wait_all_tasks_blocked()
        stored.append(request.body)
        return Reply()

    async with ScriptedServer(answer) as server:
        producer = IdempotentProducer(
            server.url + "/s", "p", content_type="text/plain", max_in_flight=1, max_batch_items=1, exit_grace=30
        )
        with pytest.raises(LookupError):
            async with producer:
                receipts = [producer.append_nowait(letter) for letter in "abc"]
                await arrived.wait()
                raise LookupError
        assert (await receipts[0].wait()).seq == 0
        with pytest.raises(AlreadyClosedError):
            await receipts[1].wait()

    assert stored == [b"a"]
    assert producer.unacknowledged() == [b"b", b"c"]


async def test_native_cancellation_of_an_asyncio_task_is_handled(
    handle: DurableStream, anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("trio has no task.cancel()")
    entered = asyncio.Event()
    producer = IdempotentProducer(handle, "p")

    async def body() -> None:
        async with producer:
            producer.append_nowait("1")
            await producer.flush()
            entered.set()
            await asyncio.sleep(3600)

    task = asyncio.ensure_future(body())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert producer._lanes is not None
    assert not producer._lanes._lanes


async def test_native_nurseries_and_timeouts_work(handle: DurableStream, anyio_backend_name: str) -> None:
    producer = IdempotentProducer(handle, "p")
    if anyio_backend_name == "trio":
        async with trio.open_nursery() as nursery:
            await producer.start(nursery)
            with trio.fail_after(30):
                await producer.send("1")
            await producer.aclose()
    else:
        async with asyncio.timeout(30), producer:
            await producer.send("1")

    assert await items(handle) == [1]


# -- Task groups of others ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_several_producers_in_one_group_can_be_closed_in_any_order(
    server: Server, order: tuple[int, ...]
) -> None:
    handles = [DurableStream(f"{server.url}/{number}", content_type="application/json") for number in range(3)]
    async with anyio.create_task_group() as group:
        producers = []
        for handle in handles:
            await handle.create()
            producer = IdempotentProducer(handle, "p", linger=60)
            await producer.start(group)
            producer.append_nowait("1")
            producers.append(producer)
        for index in order:
            await producers[index].aclose()
    for handle in handles:
        assert await items(handle) == [1]
        await handle.aclose()


async def test_blocks_and_groups_can_be_mixed(server: Server) -> None:
    outer, inner = (DurableStream(f"{server.url}/{name}", content_type="application/json") for name in "ab")
    await outer.create()
    await inner.create()
    async with anyio.create_task_group() as group:
        first = IdempotentProducer(outer, "p")
        await first.start(group)
        async with IdempotentProducer(inner, "p") as second:
            first.append_nowait("1")
            second.append_nowait("2")
            await first.aclose()
    assert (await items(outer), await items(inner)) == ([1], [2])
    await outer.aclose()
    await inner.aclose()


async def test_a_producer_starts_once(handle: DurableStream) -> None:
    async with anyio.create_task_group() as group:
        producer = IdempotentProducer(handle, "p")
        await producer.start(group)
        with pytest.raises(RuntimeError, match="once"):
            await producer.start(group)
        with pytest.raises(RuntimeError, match="once"):
            await producer.__aenter__()
        await producer.aclose()
        with pytest.raises(RuntimeError, match="once"):
            await producer.start(group)


async def test_a_group_that_takes_no_tasks_is_an_error_that_leaves_nothing(handle: DurableStream) -> None:
    class Full:
        def __init__(self, group: Any) -> None:
            self.group, self.left = group, 2

        def start_soon(self, *args: Any) -> None:
            if not self.left:
                raise RuntimeError("no more tasks")
            self.left -= 1
            self.group.start_soon(*args)

    async with anyio.create_task_group() as group:
        producer = IdempotentProducer(handle, "p")
        with pytest.raises(RuntimeError, match="no more tasks"):
            await producer.start(Full(group))
        with pytest.raises(AlreadyClosedError):
            producer.append_nowait("1")


async def test_closing_before_entering_is_allowed_and_final(handle: DurableStream) -> None:
    for end in ("aclose", "detach", "abort"):
        producer = IdempotentProducer(handle, "p")
        await getattr(producer, end)()
        with pytest.raises(RuntimeError, match="once"):
            await producer.__aenter__()
        with pytest.raises(AlreadyClosedError):
            producer.append_nowait("1")


# -- Garbage, forks, the end of the interpreter ------------------------------------------------------------


async def test_a_producer_that_is_forgotten_with_messages_warns() -> None:
    desk = Desk()
    producer = IdempotentProducer(desk.handle(), "p")
    async with anyio.create_task_group() as group:
        await producer.start(group)
        producer.append_nowait("1")
        await producer.abort()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        producer.__del__()  # ended properly: silent
    producer._running = True
    with pytest.warns(ResourceWarning, match="1 pending"):
        producer.__del__()
    producer._running = False
    del producer
    gc.collect()


@pytest.fixture
async def forking(handle: DurableStream) -> AsyncIterator[IdempotentProducer]:
    async with IdempotentProducer(handle, "p", linger=0.2) as producer:
        yield producer


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
async def test_a_forked_process_may_not_go_on_counting(handle: DurableStream, forking: IdempotentProducer) -> None:
    forking.append_nowait("1")
    calls = {
        "append_nowait": lambda: forking.append_nowait("2"),
        "append": lambda: run(forking.append("2")),
        "send": lambda: run(forking.send("2")),
        "flush": lambda: run(forking.flush()),
        "close_stream": lambda: run(forking.close_stream()),
        "detach": lambda: run(forking.detach()),
        "aclose": lambda: run(forking.aclose()),
        "abort": lambda: run(forking.abort()),
        "restart": lambda: run(forking.restart()),
    }

    def run(coroutine: Any) -> None:
        try:
            coroutine.send(None)
        except StopIteration:
            return
        finally:
            coroutine.close()

    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the test's own server has threads
        child = os.fork()
    if child == 0:
        told = []
        try:
            for name, call in calls.items():
                try:
                    call()
                    told.append(f"{name}: no error")
                except RuntimeError as error:
                    if "forked" not in str(error):
                        told.append(f"{name}: {error}")
                except BaseException as error:
                    told.append(f"{name}: {error!r}")
            run(forking.__aexit__(None, None, None))
        finally:
            os.write(write, "; ".join(told).encode()[:4000])
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)  # noqa: ASYNC222  # it ends at once
    told_by_child = os.read(read, 4000)
    os.close(read)

    assert told_by_child == b""
    await forking.flush()
    assert await items(handle) == [1]
    forking.append_nowait("2")


SCRIPT = """
import asyncio
from durable_streams import IdempotentProducer
from tests.producer.desk import Desk

producer = IdempotentProducer(Desk().handle(), "writer", linger=60)

async def main():
    await producer.__aenter__()
    for number in range(3):
        producer.append_nowait(str(number))
    {end}

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""


@pytest.mark.parametrize(("end", "warned"), [("", True), ("await producer.abort()", False)], ids=["unsent", "aborted"])
def test_the_interpreter_does_not_end_with_unsent_messages_in_silence(end: str, warned: bool) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "default::ResourceWarning", "-c", SCRIPT.format(end=end)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    warning = (
        "ResourceWarning: <IdempotentProducer 'writer' of http://host/s, open, epoch 0, next seq 0, 3 pending>: "
        "the interpreter exits with 3 messages unsent"
    )
    assert (warning in ran.stderr) is warned, ran.stderr
