"""Appends of one handle at the same time: gathering, order, failures, and the life of the worker (client 1, 11.3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trio

from durable_streams import (
    AlreadyClosedError,
    AppendResult,
    ConflictError,
    DurableStream,
    DurableStreamError,
    InvalidArgumentError,
    NetworkError,
    SeqConflictError,
)
from tests.client.answers import BYTES, JSON, TEXT, error, flags
from tests.client.memory import Answer, MemoryTransport
from tests.scripted import DROP, Reply, Request, ScriptedServer

pytestmark = pytest.mark.anyio


class Gate:
    """Holds the first request until it is opened, and answers all others at once with growing offsets."""

    def __init__(self, *answers: Reply | None) -> None:
        self.open = anyio.Event()
        self.count = 0
        self._answers = list(answers)

    async def __call__(self, request: Request) -> Reply:
        self.count += 1
        number = self.count
        if number == 1:
            await self.open.wait()
        answer = self._answers.pop(0) if self._answers else None
        return answer or Reply(204, headers=flags(f"{number}"))


class Calls:
    """Calls made in tasks of their own, in a fixed order, and what came of each."""

    def __init__(self, tasks: Any) -> None:
        self.results: dict[str, Any] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}
        self._tasks = tasks

    async def make(self, name: str, call: Callable[[], Any]) -> None:
        """Start a call; returns when it waits for something."""
        self.scopes[name] = anyio.CancelScope()

        async def run() -> None:
            with self.scopes[name]:
                try:
                    self.results[name] = await call()
                except Exception as caught:
                    self.results[name] = caught

        self._tasks.start_soon(run)
        await anyio.wait_all_tasks_blocked()

    async def append(self, handle: DurableStream, *bodies: Any, **options: Any) -> None:
        """Append these bodies, each in a task named after it."""
        for body in bodies:
            await self.make(str(body), lambda body=body: handle.append(body, **options))


@asynccontextmanager
async def queue(*answers: Reply | None, content_type: str = TEXT, **options: Any) -> AsyncIterator[Any]:
    """A handle with a worker whose first append, "0", is on the wire and held; the server; the gate; the calls."""
    gate = Gate(None, *answers)
    async with (
        ScriptedServer(gate) as server,
        DurableStream(server.url + "/s", content_type=content_type, **options) as handle,
        anyio.create_task_group() as tasks,
    ):
        calls = Calls(tasks)
        await calls.append(handle, "0")
        await server.wait_requests(1)
        yield handle, server, gate, calls


def bodies(server: ScriptedServer) -> list[bytes]:
    return [request.body for request in server.requests]


# -- Gathering -------------------------------------------------------------------------------------------------------


async def test_calls_made_while_one_is_under_way_go_together_in_order() -> None:
    async with queue() as (handle, server, gate, calls):
        await calls.append(handle, "1", "2", "3")
        assert len(server.requests) == 1
        gate.open.set()

    assert bodies(server) == [b"0", b"123"]
    assert [calls.results[name].next_offset for name in "0123"] == ["1", "2", "2", "2"]


async def test_json_messages_are_joined_in_one_array() -> None:
    async with queue(content_type=JSON) as (handle, server, gate, calls):
        await calls.append(handle, "[1]", '{"a": 2}')
        await calls.make("json", lambda: handle.append_json([None]))
        gate.open.set()

    assert bodies(server) == [b"[0]", b'[[1],{"a": 2},[null]]']


async def test_an_idle_handle_sends_at_once() -> None:
    async with (
        ScriptedServer(lambda request: Reply(204)) as server,
        DurableStream(server.url + "/s", content_type=TEXT) as handle,
    ):
        for body in "abc":
            await handle.append(body)

    assert bodies(server) == [b"a", b"b", b"c"]
    assert server.accepted == 1


@pytest.mark.parametrize(
    ("content_type", "cap", "sent"),
    [
        (TEXT, 6, [b"0", b"aabbcc", b"dd"]),
        (TEXT, 5, [b"0", b"aabb", b"ccdd"]),
        (TEXT, 1, [b"0", b"aa", b"bb", b"cc", b"dd"]),  # a message over the cap goes alone
        (JSON, 10, [b"[0]", b"[11,22,33]", b"[44]"]),
        (JSON, 9, [b"[0]", b"[11,22]", b"[33,44]"]),
    ],
)
async def test_a_batch_is_never_larger_than_the_byte_cap(content_type: str, cap: int, sent: list[bytes]) -> None:
    async with queue(content_type=content_type, max_batch_bytes=cap) as (handle, server, gate, calls):
        await calls.append(handle, *(["aa", "bb", "cc", "dd"] if content_type == TEXT else ["11", "22", "33", "44"]))
        gate.open.set()

    assert bodies(server) == sent


async def test_a_batch_has_at_most_so_many_items() -> None:
    async with queue(max_batch_items=2) as (handle, server, gate, calls):
        await calls.append(handle, "a", "b", "c", "d", "e")
        gate.open.set()

    assert bodies(server) == [b"0", b"ab", b"cd", b"e"]


async def test_the_default_byte_cap_is_one_mebibyte() -> None:
    async with queue() as (handle, server, gate, calls):
        half = b"x" * (1 << 19)
        await calls.append(handle, half)
        await calls.make("second", lambda: handle.append(half))
        await calls.make("third", lambda: handle.append(b"y"))
        gate.open.set()

    assert [len(body) for body in bodies(server)] == [1, 1 << 20, 1]


async def test_another_content_type_begins_another_batch() -> None:
    async with queue() as (handle, server, gate, calls):
        await calls.append(handle, "a", "b")
        await calls.append(handle, "1", "2", content_type=JSON)
        await calls.append(handle, "c")
        gate.open.set()

    assert bodies(server) == [b"0", b"ab", b"[1,2]", b"c"]
    assert [request.headers["content-type"] for request in server.requests] == [TEXT, TEXT, JSON, TEXT]


async def test_other_headers_or_params_begin_another_batch() -> None:
    async with queue() as (handle, server, gate, calls):
        await calls.append(handle, "a", "b", headers={"X": "1"})
        await calls.append(handle, "c", headers={"x": "1"})
        await calls.append(handle, "d", headers={"x": "2"})
        await calls.append(handle, "e", params={"p": "1"})
        await calls.append(handle, "f")
        gate.open.set()

    assert bodies(server) == [b"0", b"abc", b"d", b"e", b"f"]
    assert [request.headers.get("x") for request in server.requests] == [None, "1", "2", None, None]
    assert server.requests[3].query == {"p": "1"}


async def test_headers_are_taken_as_they_are_at_the_call() -> None:
    async with queue() as (handle, server, gate, calls):
        headers = {"x": "1"}
        await calls.append(handle, "a", headers=headers)
        headers["x"] = "2"
        gate.open.set()

    assert server.requests[1].headers["x"] == "1"


async def test_the_last_seq_of_a_batch_is_sent_and_calls_without_one_begin_another() -> None:
    async with queue() as (handle, server, gate, calls):
        for body, seq in (("a", "01"), ("b", "02"), ("c", None), ("d", "03")):
            await calls.append(handle, body, seq=seq)
        gate.open.set()

    assert bodies(server) == [b"0", b"ab", b"c", b"d"]
    assert [request.headers.get("stream-seq") for request in server.requests] == [None, "02", None, "03"]


async def test_a_batch_with_seq_is_refused_as_a_whole() -> None:
    async with queue(error(409)) as (handle, _, gate, calls):
        await calls.append(handle, "a", "b", seq="01")
        gate.open.set()

    assert [type(calls.results[name]) for name in "ab"] == [SeqConflictError, SeqConflictError]


async def test_without_batching_each_append_is_a_request_of_its_own() -> None:
    async with queue(batching=False) as (handle, server, gate, calls):
        await calls.append(handle, "a", "b")
        assert len(server.requests) == 1
        gate.open.set()

    assert bodies(server) == [b"0", b"a", b"b"]


async def test_outside_the_block_appends_are_single_requests_in_order() -> None:
    gate = Gate()
    async with ScriptedServer(gate) as server:
        handle = DurableStream(server.url + "/s", content_type=TEXT)
        async with anyio.create_task_group() as tasks:
            calls = Calls(tasks)
            await calls.append(handle, *"abcde")
            await server.wait_requests(1)
            await calls.make("close", handle.close_stream)
            calls.scopes["c"].cancel()
            assert len(server.requests) == 1
            gate.open.set()
        await handle.aclose()

    assert bodies(server) == [b"a", b"b", b"d", b"e", b""]
    assert "c" not in calls.results


# -- Failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [error(400), error(409), DROP, Reply(raw=b"nonsense\r\n\r\n", close=True)])
async def test_a_failed_batch_fails_its_callers_and_the_queue_goes_on(answer: Reply) -> None:
    async with queue(answer, max_batch_items=2) as (handle, server, gate, calls):
        await calls.append(handle, "a", "b", "c", "d")
        gate.open.set()

    assert bodies(server) == [b"0", b"ab", b"cd"]
    assert isinstance(calls.results["a"], DurableStreamError)
    assert isinstance(calls.results["b"], DurableStreamError)
    assert [calls.results[name].next_offset for name in "0cd"] == ["1", "3", "3"]


async def test_each_caller_of_a_failed_batch_gets_an_error_of_its_own() -> None:
    async with queue(error(409, b"mismatch")) as (handle, _, gate, calls):
        await calls.append(handle, "a", "b")
        gate.open.set()

    one, other = calls.results["a"], calls.results["b"]
    assert one is not other
    assert type(one) is type(other) is ConflictError
    assert vars(one) == vars(other)
    assert str(one) == str(other)


async def test_an_ambiguous_failure_is_ambiguous_for_all_of_the_batch_and_not_repeated() -> None:
    async with queue(DROP) as (handle, server, gate, calls):
        await calls.append(handle, "a", "b")
        gate.open.set()

    for name in "ab":
        assert isinstance(calls.results[name], NetworkError)
        assert calls.results[name].maybe_applied
    assert len(server.requests) == 2


async def test_an_exception_of_a_user_s_callable_reaches_every_caller_as_it_is() -> None:
    class TokenError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} {two}")  # cannot be copied

    fail = False

    def token() -> str:
        if fail:
            raise TokenError(1, 2)
        return "t"

    async with queue(headers={"x": token}) as (handle, _, gate, calls):
        await calls.append(handle, "a", "b")
        fail = True
        gate.open.set()
        while len(calls.results) < 3:
            await anyio.lowlevel.checkpoint()
        assert [type(calls.results[name]) for name in "ab"] == [TokenError, TokenError]
        fail = False
        assert isinstance(await handle.append("c"), AppendResult)


async def test_bad_arguments_fail_at_the_call_and_nobody_else() -> None:
    async with queue(content_type=JSON) as (handle, server, gate, calls):
        await calls.append(handle, "1")
        for bad, kind in (("", InvalidArgumentError), (" ", InvalidArgumentError), (3, TypeError)):
            with pytest.raises(kind):
                await handle.append(bad)
        with pytest.raises(InvalidArgumentError):
            await handle.append("2", headers={"x": "a\nb"})
        with pytest.raises(TypeError):
            await handle.append("2", params={"x": 1})
        gate.open.set()

    assert bodies(server) == [b"[0]", b"[1]"]


# -- Cancellation ----------------------------------------------------------------------------------------------------


async def test_a_cancelled_caller_takes_only_its_own_queued_message_along() -> None:
    async with queue() as (handle, server, gate, calls):
        await calls.append(handle, "a", "b", "c")
        calls.scopes["b"].cancel()
        await anyio.wait_all_tasks_blocked()
        gate.open.set()

    assert bodies(server) == [b"0", b"ac"]
    assert "b" not in calls.results
    assert calls.results["a"] == calls.results["c"]


async def test_a_cancelled_caller_whose_message_is_on_the_wire_lets_it_complete() -> None:
    async with queue() as (handle, server, gate, calls):
        await calls.append(handle, "a", "b")
        calls.scopes["0"].cancel()
        await anyio.wait_all_tasks_blocked()
        gate.open.set()

    assert bodies(server) == [b"0", b"ab"]
    assert sorted(calls.results) == ["a", "b"]
    assert server.incomplete == []


async def test_cancelling_one_of_a_batch_on_the_wire_changes_nothing_for_the_others() -> None:
    hold = anyio.Event()
    async with queue(Reply(204, headers=flags("9"), hold=hold)) as (handle, server, gate, calls):
        await calls.append(handle, "a", "b", "c")
        gate.open.set()
        await server.wait_requests(2)
        calls.scopes["a"].cancel()
        await anyio.wait_all_tasks_blocked()
        hold.set()

    assert bodies(server) == [b"0", b"abc"]
    assert [calls.results[name].next_offset for name in "bc"] == ["9", "9"]


# -- Taking turns ----------------------------------------------------------------------------------------------------


async def test_closing_the_stream_never_overtakes_accepted_appends() -> None:
    async with queue() as (handle, server, gate, calls):
        await calls.append(handle, "a", "b")
        await calls.make("close", handle.close_stream)
        await calls.append(handle, "late")
        gate.open.set()

    assert bodies(server) == [b"0", b"ab", b"", b"late"]
    assert ["stream-closed" in request.headers for request in server.requests] == [False, False, True, False]


async def test_a_streamed_append_keeps_its_place_in_the_queue() -> None:
    async with queue() as (handle, server, gate, calls):
        await calls.append(handle, "a")
        await calls.make("stream", lambda: handle.append_stream(["b1", "b2"]))
        await calls.append(handle, "c")
        gate.open.set()

    assert bodies(server) == [b"0", b"a", b"b1b2", b"c"]


@pytest.mark.parametrize("when", ["queued", "on the wire"])
async def test_cancelling_a_turn_lets_the_queue_go_on(when: str) -> None:
    async with queue(None, Reply(hold=anyio.Event()) if when == "on the wire" else None) as (
        handle,
        server,
        gate,
        calls,
    ):
        await calls.append(handle, "a")
        await calls.make("close", handle.close_stream)
        await calls.append(handle, "b")
        if when == "on the wire":
            gate.open.set()
            await server.wait_requests(3)
            await anyio.wait_all_tasks_blocked()
        calls.scopes["close"].cancel()
        await anyio.wait_all_tasks_blocked()
        gate.open.set()

    assert bodies(server) == ([b"0", b"a", b"", b"b"] if when == "on the wire" else [b"0", b"ab"])
    assert calls.results["b"].next_offset


async def test_a_failed_close_lets_the_queue_go_on() -> None:
    async with queue(error(404)) as (handle, _, gate, calls):
        await calls.make("close", handle.close_stream)
        await calls.append(handle, "b")
        gate.open.set()

    assert calls.results["close"].status == 404
    assert calls.results["b"].next_offset == "3"


# -- The worker's life -----------------------------------------------------------------------------------------------


async def test_leaving_the_block_sends_what_was_accepted() -> None:
    gate = Gate()
    async with ScriptedServer(gate) as server, anyio.create_task_group() as tasks:
        calls = Calls(tasks)
        async with DurableStream(server.url + "/s", content_type=TEXT) as handle:
            await calls.append(handle, "a", "b", "c")
            await server.wait_requests(1)
            tasks.start_soon(open_later, gate)
        await server.wait_connections(0)

    assert bodies(server) == [b"a", b"bc"]
    assert [calls.results[name].next_offset for name in "abc"] == ["1", "2", "2"]


async def open_later(gate: Gate) -> None:
    await anyio.wait_all_tasks_blocked()
    gate.open.set()


async def test_after_the_block_nothing_is_accepted() -> None:
    async with ScriptedServer(lambda request: Reply(204)) as server:
        async with DurableStream(server.url + "/s", content_type=TEXT) as handle:
            await handle.append("a")
        for call in (lambda: handle.append("b"), handle.close_stream, lambda: handle.append_stream(["c"])):
            with pytest.raises(AlreadyClosedError) as caught:
                await call()
            assert caught.value.code == "ALREADY_CLOSED"
        with pytest.raises(AlreadyClosedError):
            async with handle:
                raise AssertionError("it must not be entered again")
        async with anyio.create_task_group() as tasks:
            with pytest.raises(AlreadyClosedError):
                await handle.start(tasks)

    assert len(server.requests) == 1


async def test_a_handle_may_be_closed_inside_its_block() -> None:
    async with ScriptedServer(lambda request: Reply(204)) as server:
        async with DurableStream(server.url + "/s", content_type=TEXT) as handle:
            await handle.append("a")
            await handle.aclose()
            with pytest.raises(AlreadyClosedError):
                await handle.append("b")
        await server.wait_connections(0)

    assert bodies(server) == [b"a"]


@pytest.mark.parametrize("batching", [False, True])
async def test_a_block_is_entered_once(batching: bool) -> None:
    async with (
        ScriptedServer(lambda request: Reply(204)) as server,
        DurableStream(server.url + "/s", content_type=TEXT, batching=batching) as handle,
    ):
        with pytest.raises(RuntimeError, match="started already"):
            async with handle:
                raise AssertionError("it must not be entered twice")
        async with anyio.create_task_group() as tasks:
            with pytest.raises(RuntimeError, match="started already"):
                await handle.start(tasks)
        await handle.append("a")

    assert bodies(server) == [b"a"]


class BodyError(Exception):
    pass


@pytest.mark.parametrize("batching", [False, True])
async def test_the_body_s_exception_goes_on_bare(batching: bool) -> None:
    async with ScriptedServer(lambda request: Reply(204)) as server:
        with pytest.raises(BodyError) as caught:
            async with DurableStream(server.url + "/s", content_type=TEXT, batching=batching) as handle:
                await handle.append("a")
                raise BodyError
        await server.wait_connections(0)

    assert caught.value.__cause__ is None


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_an_interrupt_that_hits_the_worker_goes_on_bare(anyio_backend: object) -> None:
    def interrupted(sent: object) -> Answer:
        raise KeyboardInterrupt  # as trio does in whichever task is running

    handle = DurableStream("http://host/s", content_type=BYTES, transport=MemoryTransport(handler=interrupted))
    with pytest.raises(KeyboardInterrupt):
        async with handle:
            await handle.append(b"x")


@pytest.mark.parametrize("error_kind", [KeyboardInterrupt, SystemExit])
async def test_even_exceptions_that_end_the_program_go_on_bare(error_kind: type[BaseException]) -> None:
    with pytest.raises(error_kind):
        async with DurableStream("http://127.0.0.1:9/s"):
            raise error_kind


@pytest.mark.usefixtures("fake_clock")
async def test_a_block_left_by_an_exception_gives_requests_one_second() -> None:
    results: dict[str, Any] = {}
    transport = MemoryTransport(Answer(204, before=[0.6]), Answer(204, before=[0.6]))

    async def append(handle: DurableStream, body: str) -> None:
        try:
            results[body] = (await handle.append(body)).status
        except AlreadyClosedError as caught:
            results[body] = caught

    async with anyio.create_task_group() as tasks:
        with pytest.raises(BodyError):
            async with DurableStream(
                "http://host/s", content_type=TEXT, transport=transport, max_batch_items=1
            ) as handle:
                for body in "abc":
                    tasks.start_soon(append, handle, body)
                    await anyio.lowlevel.checkpoint()
                start = anyio.current_time()
                raise BodyError
        assert anyio.current_time() - start == pytest.approx(1.0, abs=0.01)

    assert results["a"] == 204
    assert results["b"].maybe_applied
    assert not results["c"].maybe_applied
    assert [sent.body for sent in transport.sent] == [b"a", b"b"]


@pytest.mark.usefixtures("fake_clock")
async def test_a_cancelled_block_lets_the_request_on_the_wire_complete_for_a_second() -> None:
    transport = MemoryTransport(Answer(204, before=[0.6]), Answer(204, before=[5.0]))

    for requests, seconds in ((1, 0.6), (2, 1.0)):
        with anyio.CancelScope() as scope:
            async with (
                DurableStream("http://host/s", content_type=TEXT, transport=transport) as handle,
                anyio.create_task_group() as tasks,
            ):
                start = anyio.current_time()
                tasks.start_soon(handle.append, "x")
                while len(transport.sent) < requests:
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        assert scope.cancelled_caught
        assert anyio.current_time() - start == pytest.approx(seconds, abs=0.01)

    assert transport.open_exchanges == 0


async def test_cancelling_the_block_ends_the_worker() -> None:
    async with ScriptedServer(lambda request: Reply(204)) as server:
        with anyio.CancelScope() as scope:
            async with DurableStream(server.url + "/s", content_type=TEXT) as handle:
                await handle.append("a")
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        await server.wait_connections(0)


@pytest.mark.usefixtures("fake_clock")
async def test_leaving_the_block_can_be_cancelled_and_fails_who_still_waits() -> None:
    caught: list[Exception] = []
    transport = MemoryTransport(handler=lambda sent: Answer(503, {"retry-after": "30"}))

    async def append(handle: DurableStream) -> None:
        try:
            await handle.append("x")
        except DurableStreamError as error:
            caught.append(error)

    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(5):
            async with DurableStream("http://host/s", content_type=TEXT, transport=transport) as handle:
                tasks.start_soon(append, handle)
                await anyio.sleep(1)

    assert [type(error) for error in caught] == [AlreadyClosedError]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_handles_started_in_one_group_are_closed_in_any_order(order: tuple[int, ...]) -> None:
    async with ScriptedServer(lambda request: Reply(204)) as server, anyio.create_task_group() as tasks:
        handles = [DurableStream(server.url + f"/{n}", content_type=TEXT) for n in range(3)]
        for handle in handles:
            await handle.start(tasks)
        async with anyio.create_task_group() as callers:
            for n in order:
                for _ in range(3):
                    callers.start_soon(handles[n].append, "x")
        for n in order:
            await handles[n].aclose()
            await handles[n].aclose()

    assert sum(len(body) for body in bodies(server)) == 9
    assert len(server.requests) < 9


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_trio_nursery_will_do() -> None:
    async with ScriptedServer(lambda request: Reply(204)) as server, trio.open_nursery() as nursery:
        one, other = (DurableStream(server.url + path, content_type=TEXT) for path in ("/1", "/2"))
        await one.start(nursery)
        await other.start(nursery)
        await one.append("x")
        await other.append("y")
        await one.aclose()
        await other.aclose()

    assert bodies(server) == [b"x", b"y"]


async def test_when_the_group_is_cancelled_those_who_wait_are_told() -> None:
    gate = Gate()
    async with ScriptedServer(gate) as server, anyio.create_task_group() as callers:
        calls = Calls(callers)
        async with anyio.create_task_group() as tasks:
            handle = DurableStream(server.url + "/s", content_type=TEXT)
            await handle.start(tasks)
            await calls.append(handle, "a", "b")
            await server.wait_requests(1)
            tasks.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert [type(calls.results[name]) for name in "ab"] == [AlreadyClosedError, AlreadyClosedError]
        assert [calls.results[name].maybe_applied for name in "ab"] == [True, False]
        await handle.append("c")  # in the caller's own task
        await handle.aclose()

    assert bodies(server) == [b"a", b"c"]


async def test_a_caller_that_is_cancelled_together_with_the_worker_sees_just_that() -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(hold=anyio.Event()))
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                handle = DurableStream(server.url + "/s", content_type=TEXT)
                await handle.start(tasks)

                async def cancel() -> None:
                    await server.wait_requests(1)
                    scope.cancel()

                tasks.start_soon(handle.append, "on the wire")
                tasks.start_soon(handle.append, "queued")
                tasks.start_soon(handle.close_stream)
                tasks.start_soon(cancel)
        assert scope.cancelled_caught
        await handle.aclose()


async def test_starting_twice_in_a_row_is_an_error() -> None:
    async with anyio.create_task_group() as tasks:
        handle = DurableStream("http://127.0.0.1:9/s")
        await handle.start(tasks)
        with pytest.raises(RuntimeError, match="started already"):
            await handle.start(tasks)
        with pytest.raises(RuntimeError, match="started already"):
            async with handle:
                raise AssertionError("it must not be entered")
        await handle.aclose()


async def test_a_worker_may_be_closed_from_another_task() -> None:
    async with ScriptedServer(lambda request: Reply(204)) as server, anyio.create_task_group() as tasks:
        handle = DurableStream(server.url + "/s", content_type=TEXT)
        await handle.start(tasks)
        await handle.append("x")
        async with anyio.create_task_group() as others:
            others.start_soon(handle.aclose)
            others.start_soon(handle.aclose)


@pytest.mark.parametrize(
    "options", [{"max_batch_bytes": 0}, {"max_batch_bytes": -1}, {"max_batch_items": 0}, {"max_batch_items": -5}]
)
def test_caps_are_positive(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        DurableStream("http://host/s", **options)


@pytest.mark.parametrize("options", [{"max_batch_bytes": True}, {"max_batch_bytes": 1.5}, {"max_batch_items": "9"}])
def test_caps_are_integers(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        DurableStream("http://host/s", **options)


async def test_a_chunk_of_bytes_is_joined_as_it_is() -> None:
    async with queue(content_type=BYTES) as (handle, server, gate, calls):
        await calls.append(handle, b"\x00", bytearray(b"\xff"), memoryview(b"\x01"))
        gate.open.set()

    assert bodies(server) == [b"0", b"\x00\xff\x01"]
