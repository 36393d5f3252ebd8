"""How sessions end: cancel, aclose, leaving the block, being dropped (client 5.6, 10.4, 10.5)."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from durable_streams import (
    AlreadyClosedError,
    BackoffOptions,
    BytesBatch,
    Checkpoint,
    DurableStream,
    DurableStreamError,
    StreamNotFoundError,
    StreamResponse,
    Transport,
    stream,
)
from tests.client.answers import (
    JSON,
    collect,
    connections,
    control,
    data,
    end,
    error,
    events,
    flags,
    page,
    tail,
    take,
)
from tests.client.memory import Answer, MemoryTransport
from tests.scripted import Reply, ScriptedServer

pytestmark = pytest.mark.anyio


def hanging(body: bytes = b"", **headers: str) -> Reply:
    """An answer whose body never ends."""
    return Reply(headers={"stream-next-offset": "9", **headers}, chunks=[body, anyio.Event()])


# -- wait_closed -----------------------------------------------------------------------------------------------------


async def test_wait_closed_returns_when_the_session_has_been_consumed() -> None:
    async with ScriptedServer() as server:
        hold = anyio.Event()
        server.replies(page(b"a", "1"), Reply(headers={"stream-next-offset": "2", "stream-closed": "true"}, hold=hold))
        async with stream(server.url + "/s", live=False) as response, anyio.create_task_group() as tasks:
            done: list[str] = []

            async def wait() -> None:
                await response.wait_closed()
                done.append("closed")

            tasks.start_soon(wait)
            tasks.start_soon(wait)
            items = response.iter_bytes()
            assert await anext(items) == b"a"
            await anyio.wait_all_tasks_blocked()
            assert done == []
            hold.set()
            assert await collect(items) == []
            await anyio.wait_all_tasks_blocked()
            assert done == ["closed", "closed"]
            await response.wait_closed()


async def test_wait_closed_does_not_drive_the_session() -> None:
    async with ScriptedServer() as server:
        server.replies(page(b"a", "1"))
        async with stream(server.url + "/s", live=False) as response:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(response.wait_closed)
                await anyio.wait_all_tasks_blocked()
                assert len(server.requests) == 1
                response.cancel()
            await response.wait_closed()


async def test_wait_closed_raises_what_ended_the_session() -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"a", "1"), error(410, earliest="x"))
        async with stream(server.url + "/s", live="long-poll") as response:
            caught: list[Exception] = []

            async def wait() -> None:
                with pytest.raises(DurableStreamError) as raised:
                    await response.wait_closed()
                caught.append(raised.value)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(DurableStreamError) as raised:
                    await collect(response.iter_bytes())
            assert caught == [raised.value]
            assert raised.value.status == 410
            response.cancel()
            await response.aclose()
            with pytest.raises(DurableStreamError):
                await response.wait_closed()


async def test_an_error_that_nobody_waits_for_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"a", "1"), error(404))
        async with stream(server.url + "/s", live="long-poll") as response:
            with pytest.raises(StreamNotFoundError):
                await collect(response.iter_bytes())
        del response
        gc.collect()
        await anyio.lowlevel.checkpoint()

    assert capsys.readouterr() == ("", "")


async def test_a_cancelled_wait_closed_changes_nothing() -> None:
    async with ScriptedServer() as server:
        server.replies(end(b"a", "1"))
        async with stream(server.url + "/s") as response:
            with anyio.move_on_after(0):
                await response.wait_closed()
            assert await response.read() == b"a"


# -- cancel ----------------------------------------------------------------------------------------------------------

PENDING: dict[str, tuple[list[Reply], Any]] = {
    "reading the first body": ([hanging(b"x")], True),
    "waiting for a page": ([page(b"a", "1"), Reply(hold=anyio.Event())], False),
    "reading a long-poll": ([tail(b"a", "1"), hanging(b"part")], "long-poll"),
    "waiting for a long-poll": ([tail(b"a", "1"), Reply(hold=anyio.Event())], "long-poll"),
    "waiting for an event": ([tail(b"a", "1"), events(b": hello\n\n", anyio.Event())], "sse"),
    "waiting to retry": ([tail(b"a", "1"), error(503, retry_after="3600")], "long-poll"),
}


def blocked(server: ScriptedServer, name: str) -> Any:
    """Queue the answers of a case; events are new for each test, as they belong to one event loop."""
    replies, live = PENDING[name]
    for reply in replies:
        chunks = reply.chunks
        if isinstance(chunks, (list, tuple)):
            chunks = [anyio.Event() if isinstance(chunk, anyio.Event) else chunk for chunk in chunks]
        hold = anyio.Event() if reply.hold is not None else None
        server.replies(Reply(reply.status, reply.headers, reply.body, chunks, hold=hold))
    return live


@pytest.mark.parametrize("name", PENDING)
@pytest.mark.parametrize("how", ["cancel", "aclose", "aclose twice at once"])
async def test_ending_a_session_from_another_task_ends_its_iterator_normally(
    name: str, how: str, transport: Transport
) -> None:
    async with ScriptedServer() as server:
        live = blocked(server, name)
        response = await stream(server.url + "/s", live=live, transport=transport)
        got: list[list[bytes]] = []

        async def iterate() -> None:
            got.append(await collect(response.iter_bytes()))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(iterate)
            await server.wait_requests(len(PENDING[name][0]))
            await anyio.wait_all_tasks_blocked()
            assert got == []
            if how == "cancel":
                response.cancel()
                response.cancel()
            else:
                async with anyio.create_task_group() as closing:
                    for _ in range(1 if how == "aclose" else 2):
                        closing.start_soon(response.aclose)
                assert connections(transport).startswith("0 open")

        assert got == [[b"a"] if live is not True else []]
        await response.wait_closed()
        assert connections(transport).startswith("0 open")
        assert response.statistics().phase == "cancelled"
        response.cancel()
        await response.aclose()


@pytest.mark.parametrize("method", ["read", "json", "subscribe_json"])
async def test_a_collector_that_is_cancelled_by_another_task_returns_what_it_has(method: str) -> None:
    async with ScriptedServer() as server:
        server.replies(page(b"[1]", "1", content_type=JSON), Reply(hold=anyio.Event()))
        async with stream(server.url + "/s") as response:
            got: list[Any] = []
            seen: list[Any] = []

            async def run() -> None:
                call = getattr(response, method)
                got.append(await (call(seen.append) if method == "subscribe_json" else call()))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await server.wait_requests(2)
                await anyio.wait_all_tasks_blocked()
                response.cancel()

    assert got == [{"read": b"[1]", "json": [1], "subscribe_json": None}[method]]


async def test_cancel_is_legal_before_during_and_after_consumption() -> None:
    async with ScriptedServer(lambda request: end(b"[1,2]", "1", content_type=JSON)) as server:
        async with stream(server.url + "/s") as response:
            response.cancel()
            response.cancel()
            await response.wait_closed()
        async with stream(server.url + "/s") as response:
            items = response.iter_json()
            assert await anext(items) == 1
            response.cancel()
            assert await collect(items) == [2]  # the batch is in the caller's hands already
            assert await collect(items) == []
        async with stream(server.url + "/s") as response:
            assert await response.json() == [1, 2]
            response.cancel()
            assert response.statistics().phase == "done"
            assert response.checkpoint == Checkpoint("1", up_to_date=True, stream_closed=True)


async def test_the_position_stays_readable_after_cancelling() -> None:
    async with ScriptedServer() as server:
        server.replies(page(b"a", "1"), page(b"b", "2"))
        async with stream(server.url + "/s", live=False) as response:
            assert await take(response.iter_bytes(), 2) == [b"a", b"b"]
            response.cancel()
            assert response.checkpoint == Checkpoint("1")


async def test_an_idle_connection_is_closed_by_the_next_call(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"[]", "1", content_type=JSON), events(data("[1]"), control("2"), anyio.Event()))
        response = await stream(server.url + "/s", transport=transport)
        items = response.iter_json()
        assert await anext(items) == 1
        assert connections(transport).startswith("1 open")

        response.cancel()
        with pytest.raises(StopAsyncIteration):
            await anext(items)

        assert connections(transport).startswith("0 open")
        await response.aclose()


@pytest.mark.parametrize("where", ["header", "on_error", "async on_error", "hook", "callback"])
async def test_the_users_own_functions_may_cancel_the_session(where: str) -> None:
    response: StreamResponse | None = None

    def stop(here: str) -> None:
        if here == where and response is not None:
            response.cancel()

    def header() -> str:
        stop("header")
        return "x"

    async def later() -> dict[str, Any]:
        stop("async on_error")
        await anyio.lowlevel.checkpoint()
        return {}

    def on_error(caught: Exception) -> Any:
        stop("on_error")
        return later() if where == "async on_error" else {}

    async with ScriptedServer() as server:
        server.replies(tail(b"a", "1"), error(500), error(403), end(b"b", "2"))
        backoff = BackoffOptions(1e-6, 1e-6, on_failed_attempt=lambda details: stop("hook"))
        async with stream(
            server.url + "/s", headers={"x": header}, on_error=on_error, backoff_options=backoff
        ) as response:
            got: list[bytes] = []

            def callback(batch: BytesBatch) -> None:
                got.append(batch.data)
                stop("callback")

            await response.subscribe_bytes(callback)
            await response.wait_closed()

    assert got == [b"a"]
    assert len(server.requests) < 4


@pytest.mark.usefixtures("fake_clock")
async def test_closing_from_several_tasks_at_once_takes_no_time() -> None:
    transport = MemoryTransport(Answer(200, flags("1"), [anyio.Event()]))
    response = await stream("http://host/s", transport=transport)
    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(response.read)
        await anyio.lowlevel.checkpoint()
        for _ in range(3):
            tasks.start_soon(response.aclose)

    assert anyio.current_time() == start
    assert transport.open_exchanges == 0


@pytest.mark.usefixtures("fake_clock")
async def test_closing_the_session_from_within_its_own_call_is_bounded() -> None:
    async def on_error(caught: Exception) -> dict[str, Any]:
        await response.aclose()
        return {}

    transport = MemoryTransport(Answer(200, flags("1", up_to_date=True)), Answer(403))
    start = anyio.current_time()
    async with stream("http://host/s", live="long-poll", on_error=on_error, transport=transport) as response:
        assert await collect(response.iter_bytes()) == []

    assert anyio.current_time() - start <= 1
    assert transport.open_exchanges == 0


async def test_nothing_is_fetched_before_the_consumer_asks_for_it() -> None:
    async with ScriptedServer() as server:
        server.replies(page(b"[1,2]", "1", content_type=JSON), tail(b"[3]", "2", content_type=JSON))
        server.replies(events(control("2", streamClosed=True)))
        async with stream(server.url + "/s") as response:
            seen: list[tuple[int, int]] = []
            async for item in response:
                await anyio.wait_all_tasks_blocked()
                seen.append((item, len(server.requests)))

    assert seen == [(1, 1), (2, 1), (3, 2)]


# -- Cancelling a caller ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in PENDING if name not in ("reading the first body", "waiting to retry")]
)
async def test_a_timeout_around_one_step_loses_nothing(name: str, transport: Transport) -> None:
    async with ScriptedServer() as server:
        live = blocked(server, name)
        response = await stream(server.url + "/s", live=live, transport=transport)
        items = response.iter_bytes()
        assert await anext(items) == b"a"
        before = len(PENDING[name][0])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(items.__anext__)
            await server.wait_requests(before)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()

        assert connections(transport).startswith("0 open")
        with anyio.move_on_after(0):
            await response.wait_closed()
            raise AssertionError("the session goes on")
        server.replies(
            events(data("YmM="), control("2", streamClosed=True), stream_sse_data_encoding="base64")
            if live == "sse"
            else end(b"bc", "2")
        )
        assert await collect(items) == [b"bc"]
        assert server.requests[before].query["offset"] == "1"
        await response.aclose()


async def test_batches_that_had_come_are_delivered_after_a_cancellation(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(
            tail(b"[]", "1", content_type=JSON),
            events(data("[1]") + control("2") + data("[2]") + control("3") + data("[3]"), anyio.Event()),
            events(data("[3]"), control("4", streamClosed=True)),
        )
        async with stream(server.url + "/s", transport=transport) as response:
            items = response.iter_json()
            assert await anext(items) == 1
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anext(items)
            assert connections(transport).startswith("0 open")
            assert await collect(items) == [2, 3]

    assert [request.query["offset"] for request in server.requests] == ["-1", "1", "3"]


async def test_cancelling_while_stream_is_pending_leaves_nothing_open(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(hold=anyio.Event()), error(503, retry_after="30"))
        for requests in (1, 2):
            async with anyio.create_task_group() as tasks:

                async def opening() -> None:
                    async with stream(server.url + "/s", transport=transport):
                        raise AssertionError("it must not open")

                tasks.start_soon(opening)
                await server.wait_requests(requests)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
            assert connections(transport).startswith("0 open")


# -- Blocks and breaks -----------------------------------------------------------------------------------------------


async def test_leaving_the_block_closes_the_socket_on_every_path() -> None:
    class BodyError(Exception):
        pass

    async with ScriptedServer(lambda request: hanging(b"x")) as server:
        async with stream(server.url + "/s"):
            pass
        await server.wait_connections(0)
        with pytest.raises(BodyError):
            async with stream(server.url + "/s"):
                raise BodyError
        await server.wait_connections(0)
        with anyio.CancelScope() as scope:
            async with stream(server.url + "/s"):
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        await server.wait_connections(0)
        response = await stream(server.url + "/s")
        async with response:
            pass
        await server.wait_connections(0)


async def test_stopping_early_and_closing_the_iterator_ends_the_session() -> None:
    async with ScriptedServer() as server:
        for method in ("iter_json", "iter_batches"):
            server.replies(tail(b"[]", "1", content_type=JSON), events(data("[1]"), control("2"), anyio.Event()))
            response = await stream(server.url + "/s")
            iterator = getattr(response, method)()
            async for _ in iterator:
                break
            await iterator.aclose()
            await iterator.aclose()
            await server.wait_connections(0)
            await response.wait_closed()
            assert await collect(iterator) == []


async def test_an_iterator_may_be_left_and_taken_up_again() -> None:
    async with ScriptedServer() as server:
        server.replies(page(b"[1,2,3]", "1", content_type=JSON), end(b"[4]", "2", content_type=JSON))
        async with stream(server.url + "/s", live=False) as response:
            items = response.iter_json()
            async for item in items:
                if item == 2:
                    break
            assert await collect(items) == [3, 4]


async def test_a_session_may_be_opened_consumed_and_closed_in_different_tasks(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(page(b"a", "1"), end(b"b", "2"))
        made: list[StreamResponse] = []
        got: list[bytes] = []

        async def make() -> None:
            made.append(await stream(server.url + "/s", live=False, transport=transport))

        async def consume() -> None:
            got.append(await made[0].read())

        async def close() -> None:
            await made[0].aclose()

        for step in (make, consume, close):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(step)

    assert got == [b"ab"]


# -- Transports ------------------------------------------------------------------------------------------------------


async def test_a_transport_passed_in_is_shared_and_never_closed(transport: Transport) -> None:
    async with ScriptedServer(lambda request: end(b"x", "1")) as server:
        for _ in range(2):
            async with stream(server.url + "/s", transport=transport) as response:
                await response.read()
            async with DurableStream(server.url + "/s", transport=transport) as handle, handle.stream() as response:
                await response.read()
        assert connections(transport) == "0 open, 1 idle"

    assert server.accepted == 1


async def test_a_session_of_its_own_opens_one_transport_and_closes_it() -> None:
    async with ScriptedServer() as server:
        server.replies(page(b"a", "1"), page(b"b", "2"), end(b"c", "3"))
        async with stream(server.url + "/s", live=False) as response:
            assert await response.read() == b"abc"
            await server.wait_connections(0)

    assert server.accepted == 1


async def test_a_handle_keeps_one_transport_for_sessions_forks_and_operations() -> None:
    async with ScriptedServer(lambda request: end(b"", "1") if request.method == "GET" else Reply(204)) as server:
        async with DurableStream(server.url + "/s") as handle:
            await handle.delete()
            fork = await handle.fork("other")
            await fork.append(b"x")
            async with fork.stream() as response:
                await response.read()
            async with fork:
                await fork.append(b"y")
            await handle.append(b"z")  # the fork's end is not the handle's
        await server.wait_connections(0)

    assert server.accepted == 1


async def test_a_session_that_failed_to_open_leaves_no_connection() -> None:
    async with ScriptedServer() as server:
        server.replies(error(404))
        with pytest.raises(StreamNotFoundError):
            await stream(server.url + "/s")
        await server.wait_connections(0)


async def test_a_session_is_opened_once() -> None:
    async with ScriptedServer() as server:
        server.replies(end(b"", "1"))
        session = stream(server.url + "/s")
        async with session as response:
            with pytest.raises(RuntimeError, match="opened once"):
                await session
            await response.read()


# -- Dropped things --------------------------------------------------------------------------------------------------


def warned(act: Callable[[], object]) -> list[str]:
    """Do something, and collect what that leaves behind. Returns what `ResourceWarning`s say of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
        gc.collect()
        assert {warning.category for warning in caught} <= {ResourceWarning}
        messages = [str(warning.message) for warning in caught]
        caught.clear()  # A warning holds what it warns of.
        gc.collect()
    return messages


async def test_a_session_that_was_never_awaited_warns() -> None:
    [message] = warned(lambda: stream("http://host/s?secret=1"))

    assert message == "<StreamSession http://host/s?secret=..., not opened> was never awaited"


async def test_using_a_session_that_is_not_open_says_how_to_open_it() -> None:
    session: Any = stream("http://host.invalid/s")
    with pytest.raises(AttributeError, match=r"no attribute 'json': open it first, `async with stream\(\.\.\.\) as"):
        session.json()
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        _ = session.nonsense
    with pytest.warns(ResourceWarning, match="never awaited"):
        del session


@pytest.mark.parametrize("half_read", [False, True])
async def test_a_response_that_is_dropped_warns_and_its_socket_is_closed(half_read: bool) -> None:
    async with ScriptedServer() as server:
        server.replies(hanging(b"x") if not half_read else page(b"x", "1"))
        held: list[Any] = [await stream(server.url + "/s", live=False)]
        if half_read:
            assert await anext(held[0].iter_bytes()) == b"x"

        messages = warned(held.clear)

        assert messages[0].startswith(f"<StreamResponse {server.url}/s")
        assert messages[0].endswith("was dropped without being closed")
        await server.wait_connections(0)


@pytest.mark.parametrize("finish", [lambda response: response.read(), lambda response: response.aclose()])
async def test_a_response_that_has_ended_may_be_dropped(finish: Callable[[StreamResponse], Awaitable[Any]]) -> None:
    async with ScriptedServer(lambda request: end(b"x", "1")) as server:
        await finish(await stream(server.url + "/s"))

        assert warned(lambda: None) == []


def test_constructing_needs_no_event_loop_and_does_no_io() -> None:
    handle = DurableStream("http://host.invalid/s", headers={"x": "y"}, content_type=JSON)

    assert repr(handle) == "<DurableStream http://host.invalid/s, application/json>"
    assert warned(handle.stream) == ["<StreamSession http://host.invalid/s, not opened> was never awaited"]


async def test_a_handle_s_closed_transport_is_named() -> None:
    async with ScriptedServer(lambda request: Reply(204)) as server:
        handle = DurableStream(server.url + "/s")
        await handle.delete()
        await handle.aclose()
        await handle.aclose()
        calls: list[Callable[[], Awaitable[Any]]] = [
            handle.head,
            handle.delete,
            handle.close_stream,
            lambda: handle.append(b"x"),
            lambda: handle.append_stream([b"x"]),
        ]
        for call in calls:
            with pytest.raises(AlreadyClosedError):
                await call()
