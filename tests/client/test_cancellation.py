"""Every public coroutine is cancelled at each of its awaits: nothing is lost, left open, or changed for others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from durable_streams import AlreadyClosedError, Checkpoint, DurableStream, Transport, stream
from tests.client.answers import JSON, connections
from tests.client.log import Log
from tests.client.stepping import CANCELLED, Mode, Steps
from tests.scripted import ScriptedServer

pytestmark = pytest.mark.anyio

ITEMS = list(range(6))


@pytest.fixture(params=["asyncio-scope", "asyncio-native", "asyncio-late", "trio-scope"])
def way(request: pytest.FixtureRequest) -> str:
    """The loop, and how it cancels."""
    return str(request.param)


@pytest.fixture
def anyio_backend(way: str) -> object:
    return ("asyncio", {"debug": True}) if way.startswith("asyncio") else ("trio", {"strict_exception_groups": True})


@pytest.fixture
def mode(way: str) -> str:
    return way.partition("-")[2]


async def settled(server: ScriptedServer, transport: Transport) -> None:
    """No exchange is open, and the transport works."""
    assert connections(transport).startswith("0 open")
    before = len(server.requests)
    assert (await DurableStream(server.url + "/probe", transport=transport).head()).exists
    assert len(server.requests) > before


# -- Reading ---------------------------------------------------------------------------------------------------------


async def test_opening_a_session(mode: Mode, transport: Transport) -> None:
    log = Log(ITEMS, closed=True)
    steps = Steps(mode)
    async with ScriptedServer(log) as server:
        async for run in steps.rounds():
            response = await run(lambda: stream(server.url + "/s", transport=transport))
            if response is not CANCELLED:
                assert await response.json() == ITEMS
            await settled(server, transport)

    assert steps.cancelled


@pytest.mark.parametrize("live", [False, "long-poll", "sse"])
@pytest.mark.parametrize("unit", ["items", "batches"])
async def test_an_iterator_goes_on_where_it_was(mode: Mode, live: Any, unit: str, transport: Transport) -> None:
    log = Log(ITEMS, closed=True, behind=0 if live is False else 3)
    steps = Steps(mode)
    async with ScriptedServer(log) as server:
        async for run in steps.rounds():
            async with stream(server.url + "/s", live=live, transport=transport) as response:
                got: list[int] = []
                iterator: Any = response.iter_json() if unit == "items" else response.iter_batches("json")
                handed: list[Checkpoint] = []

                async def consume(iterator: Any = iterator, got: list[int] = got, handed: Any = handed) -> None:
                    async for item in iterator:
                        got.extend([item] if unit == "items" else item.items)
                        if unit == "batches":
                            handed.append(item.checkpoint)

                if await run(consume) is CANCELLED:
                    assert connections(transport).startswith("0 open")
                    safe = response.checkpoint
                    assert max(int(safe.offset), 0) <= len(got)
                    if unit == "batches" and handed:
                        assert safe in (handed[-1], *handed[-2:-1], Checkpoint("-1"))
                    await consume()
                assert got == ITEMS
                assert response.stream_closed
            await settled(server, transport)

    assert steps.cancelled


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("method", ["read", "text", "json"])
async def test_a_collector_that_is_cancelled_leaves_the_position_where_it_was(
    mode: Mode, live: bool, method: str, transport: Transport
) -> None:
    log = Log(ITEMS, closed=True)
    steps = Steps(mode)
    async with ScriptedServer(log) as server:
        async for run in steps.rounds():
            async with stream(server.url + "/s", live=live, offset="002", transport=transport) as response:
                if await run(getattr(response, method)) is CANCELLED:
                    assert connections(transport).startswith("0 open")
                    assert response.checkpoint == Checkpoint("002")
                else:
                    assert response.checkpoint == Checkpoint("006", up_to_date=True, stream_closed=True)
            await settled(server, transport)

    assert steps.cancelled


async def test_a_subscription_that_is_cancelled_has_a_safe_position(mode: Mode, transport: Transport) -> None:
    log = Log(ITEMS, closed=True, behind=3)
    steps = Steps(mode)
    async with ScriptedServer(log) as server:
        async for run in steps.rounds():
            done: list[int] = []

            async def process(batch: Any, done: list[int] = done) -> None:
                await anyio.lowlevel.checkpoint()
                done.extend(batch.items)

            async with stream(server.url + "/s", transport=transport) as response:
                await run(lambda response=response, process=process: response.subscribe_json(process))
                position = response.checkpoint
            assert ITEMS[: max(int(position.offset), 0)] == done
            async with stream(server.url + "/s", offset=position, transport=transport) as again:
                assert done + [item async for item in again] == ITEMS
            await settled(server, transport)

    assert steps.cancelled


async def test_waiting_for_the_end(mode: Mode, transport: Transport) -> None:
    steps = Steps(mode)
    async with ScriptedServer(Log(ITEMS, closed=True)) as server:
        async for run in steps.rounds():
            async with stream(server.url + "/s", transport=transport) as response, anyio.create_task_group() as tasks:
                ended: list[bool] = []

                async def wait(response: Any = response, ended: list[bool] = ended) -> None:
                    await response.wait_closed()
                    ended.append(True)

                async def end(response: Any = response) -> None:
                    await anyio.wait_all_tasks_blocked()
                    response.cancel()

                tasks.start_soon(wait)
                tasks.start_soon(end)
                await run(response.wait_closed)
            assert ended == [True]

    assert steps.cancelled


@pytest.mark.parametrize("how", ["aclose", "iterator", "block"])
async def test_ending_a_session_leaves_nothing_open(mode: Mode, how: str, transport: Transport) -> None:
    log = Log(ITEMS, behind=3)
    steps = Steps(mode)
    async with ScriptedServer(log) as server:
        async for run in steps.rounds():
            response = await stream(server.url + "/s", live="sse", transport=transport)
            items = response.iter_json()
            assert [await anext(items) for _ in range(4)] == ITEMS[:4]

            async def leave(response: Any = response) -> None:
                async with response:
                    await anyio.lowlevel.checkpoint()

            await run({"aclose": response.aclose, "iterator": items.aclose, "block": leave}[how])
            assert connections(transport).startswith("0 open")
            await response.wait_closed()

    assert steps.cancelled


# -- Operations ------------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[DurableStream], Any]] = {
    "create": lambda handle: handle.create(content_type=JSON),
    "create_or_connect": lambda handle: handle.create_or_connect(),
    "connect": lambda handle: handle.connect(),
    "head": lambda handle: handle.head(),
    "delete": lambda handle: handle.delete(),
    "fork": lambda handle: handle.fork("/fork"),
    "append": lambda handle: handle.append("7"),
    "append_json": lambda handle: handle.append_json(7),
    "append_stream": lambda handle: handle.append_stream(["[", "7]"]),
    "close_stream": lambda handle: handle.close_stream("7"),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
async def test_an_operation_leaves_its_handle_usable_and_others_alone(
    mode: Mode, name: str, inside: bool, transport: Transport
) -> None:
    steps = Steps(mode)
    log = Log([])
    async with ScriptedServer(log) as server:
        async for run in steps.rounds():
            log.items, log.closed, log.batches = [], False, []
            handle = DurableStream(server.url + "/s", transport=transport)
            async with anyio.create_task_group() as tasks:
                if inside:
                    await handle.start(tasks)
                results: list[Any] = []

                async def another(body: str, handle: Any = handle, results: list[Any] = results) -> None:
                    results.append((await handle.append(body, content_type=JSON)).status)

                async with anyio.create_task_group() as others:
                    others.start_soon(another, "1")
                    others.start_soon(another, "2")
                    await run(lambda handle=handle: OPERATIONS[name](handle))
                await another("3")
                assert results == [204, 204, 204]
                await handle.aclose()
            assert sorted(item for item in log.items if item != 7) == [1, 2, 3]
            assert log.items.count(7) <= 1
            await settled(server, transport)

    assert steps.cancelled


# -- Lives -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", [False, True])
async def test_a_handle_s_block(mode: Mode, batching: bool) -> None:
    steps = Steps(mode)
    log = Log([])
    async with ScriptedServer(log) as server:
        async for run in steps.rounds():
            log.items = []
            stored: list[int] = []

            async def block(stored: list[int] = stored) -> None:
                async with DurableStream(server.url + "/s", content_type=JSON, batching=batching) as handle:
                    for item in (1, 2):
                        await handle.append_json(item)
                        stored.append(item)

            await run(block)
            await server.wait_connections(0)
            assert log.items[: len(stored)] == stored
            assert len(log.items) <= len(stored) + 1

    assert steps.cancelled


async def test_a_handle_started_in_a_group_that_is_cancelled_with_it(mode: Mode, transport: Transport) -> None:
    steps = Steps(mode)
    log = Log([])
    async with ScriptedServer(log) as server:
        async for run in steps.rounds():
            log.items = []
            handle = DurableStream(server.url + "/s", content_type=JSON, transport=transport)
            stored: list[int] = []

            async def life(handle: Any = handle, stored: list[int] = stored) -> None:
                async with anyio.create_task_group() as tasks:
                    await handle.start(tasks)
                    for item in (1, 2):
                        await handle.append_json(item)
                        stored.append(item)
                    await handle.close_stream()
                    await handle.aclose()

            await run(life)
            assert log.items[: len(stored)] == stored
            await handle.aclose()
            await settled(server, transport)

    assert steps.cancelled


async def test_starting_and_closing_a_handle(mode: Mode, transport: Transport) -> None:
    steps = Steps(mode)
    log = Log([])
    async with ScriptedServer(log) as server:
        async for run in steps.rounds():
            log.items = []
            handle = DurableStream(server.url + "/s", content_type=JSON, transport=transport)
            async with anyio.create_task_group() as tasks:

                async def life(handle: Any = handle, tasks: Any = tasks) -> None:
                    await handle.start(tasks)
                    await handle.aclose()

                await run(life)
                tasks.start_soon(expect_closed_or_stored, handle)
                await anyio.wait_all_tasks_blocked()
                await handle.aclose()
            await settled(server, transport)

    assert steps.cancelled


async def expect_closed_or_stored(handle: DurableStream) -> None:
    with contextlib.suppress(AlreadyClosedError):
        await handle.append_json(1)
