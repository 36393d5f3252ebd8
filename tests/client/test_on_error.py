"""`on_error`: asked around every request, after retries, and able to mend what is wrong (client 5.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from durable_streams import (
    AlreadyClosedError,
    DurableStream,
    DurableStreamError,
    InvalidArgumentError,
    NetworkError,
    ParseError,
    StreamConsumedError,
    StreamNotFoundError,
    Transport,
    stream,
)
from tests.client.answers import AT_ONCE, JSON, collect, control, data, end, error, events, page, tail
from tests.scripted import DROP, Reply, Request, ScriptedServer

pytestmark = pytest.mark.anyio

Answers = list[Any]


class OnError:
    """Returns the answers one after the other, and remembers what it was asked."""

    def __init__(self, *answers: Any, wait: bool = False) -> None:
        self.errors: list[Exception] = []
        self.attempts: list[int] = []
        self._answers = list(answers)
        self._wait = wait

    def __call__(self, error: Exception) -> Any:
        self.errors.append(error)
        self.attempts.append(getattr(error, "attempt", 0))
        answer = self._answers.pop(0)
        return self._later(answer) if self._wait else self._now(answer)

    def _now(self, answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _later(self, answer: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return self._now(answer)


def guarded(request: Request) -> Reply | None:
    """401 for everything without the fresh token."""
    return None if request.headers.get("authorization") == "fresh" else error(401)


@pytest.mark.parametrize("wait", [False, True], ids=["sync", "async"])
async def test_what_it_adds_holds_for_the_rest_of_the_session(wait: bool) -> None:
    on_error = OnError({"headers": {"Authorization": "fresh"}, "params": {"try": "2"}}, wait=wait)
    answers = [
        tail(b"[1]", "1", content_type=JSON),
        events(data("[2]"), control("2")),
        events(control("2", streamClosed=True)),
    ]

    async with ScriptedServer(lambda request: guarded(request) or answers.pop(0)) as server:
        headers = {"authorization": lambda: "stale"}
        async with stream(server.url + "/s", headers=headers, params={"try": "1"}, on_error=on_error) as response:
            assert await collect(response) == [1, 2]

    assert [request.headers["authorization"] for request in server.requests] == ["stale", "fresh", "fresh", "fresh"]
    assert [request.query["try"] for request in server.requests] == ["1", "2", "2", "2"]
    assert [(error.status, error.code) for error in on_error.errors] == [(401, "UNAUTHORIZED")]  # type: ignore[attr-defined]


@pytest.mark.parametrize("live", ["sse", "long-poll"])
async def test_a_token_that_expires_while_following_is_renewed_without_loss(live: Any) -> None:
    token = "first"
    log = [b"[1]", b"[2]", b"[3]"]

    def answer(request: Request) -> Reply:
        nonlocal token
        if request.headers["authorization"] != token:
            return error(401)
        at = max(int(request.query["offset"]), 0)
        flags: dict[str, Any] = {"content_type": JSON, "cursor": "c"}
        if "live" not in request.query:
            return tail(log[0], "1", **flags)
        token = {1: "second", 2: "third"}.get(at, token)  # what follows expires the token in use
        if at == 3:
            return events(control("3", streamClosed=True)) if live == "sse" else end(b"", "3", **flags)
        if live == "sse":
            return events(data(log[at].decode()), control(str(at + 1), upToDate=True))
        return tail(log[at], str(at + 1), **flags)

    def on_error(caught: Exception) -> dict[str, Any]:
        assert isinstance(caught, DurableStreamError)
        assert caught.status == 401
        attempts.append(caught.attempt)
        return {"headers": {"authorization": token}}

    attempts: list[int] = []
    async with (
        ScriptedServer(answer) as server,
        stream(server.url + "/s", live=live, headers={"authorization": "first"}, on_error=on_error) as response,
    ):
        assert await collect(response) == [1, 2, 3]

    assert attempts == [1, 1]


async def test_an_empty_mapping_tries_the_same_request_again() -> None:
    on_error = OnError({}, {}, {"headers": None})

    async with ScriptedServer() as server:
        server.replies(error(403), error(404), error(400), end(b"x", "1"))
        async with stream(server.url + "/s", on_error=on_error) as response:
            assert await response.read() == b"x"

    assert len({request.target for request in server.requests}) == 1
    assert on_error.attempts == [1, 2, 3]


async def test_attempts_count_anew_after_a_success() -> None:
    on_error = OnError({}, {}, {}, {})

    async with ScriptedServer() as server:
        server.replies(error(403), error(403), page(b"a", "1"), error(404), end(b"b", "2"))
        async with stream(server.url + "/s", live=False, on_error=on_error) as response:
            assert await response.read() == b"ab"

    assert on_error.attempts == [1, 2, 1]


async def test_none_raises_the_error() -> None:
    on_error = OnError(None)

    async with ScriptedServer() as server:
        server.replies(error(404, b"nobody here"))
        with pytest.raises(StreamNotFoundError) as caught:
            await stream(server.url + "/s", on_error=on_error)

    assert on_error.errors == [caught.value]
    assert caught.value.attempt == 1


async def test_it_is_asked_only_when_retries_are_exhausted() -> None:
    on_error = OnError({}, None)
    backoff = AT_ONCE.__class__(initial_delay=1e-6, max_delay=1e-6, max_retries=2)

    async with ScriptedServer(lambda request: error(500)) as server:
        with pytest.raises(DurableStreamError) as caught:
            await stream(server.url + "/s", on_error=on_error, backoff_options=backoff)

    assert caught.value.status == 500
    assert len(server.requests) == 6  # two rounds of a try and two retries
    assert on_error.attempts == [1, 2]


@pytest.mark.parametrize("wait", [False, True], ids=["sync", "async"])
async def test_its_own_exception_replaces_the_error_and_is_chained(wait: bool) -> None:
    class DeniedError(Exception):
        pass

    on_error = OnError(DeniedError("no"), wait=wait)
    async with ScriptedServer() as server:
        server.replies(tail(b"", "1"), error(401))
        async with stream(server.url + "/s", live="long-poll", on_error=on_error) as response:
            with pytest.raises(DeniedError) as caught:
                await collect(response.iter_bytes())
            with pytest.raises(DeniedError):
                await response.wait_closed()

    assert isinstance(caught.value.__cause__, DurableStreamError)
    assert caught.value.__cause__.status == 401


async def test_it_may_raise_the_error_itself() -> None:
    def on_error(caught: Exception) -> None:
        raise caught

    async with ScriptedServer() as server:
        server.replies(error(404))
        with pytest.raises(StreamNotFoundError) as caught:
            await stream(server.url + "/s", on_error=on_error)

    assert caught.value.__cause__ is None


@pytest.mark.parametrize("wait", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("answer", [True, "again", [], {"header": {}}, {"headers": "x"}, {"params": {"n": 1}}, {1: 2}])
async def test_any_other_result_is_a_type_error(answer: Any, wait: bool) -> None:
    async with ScriptedServer() as server:
        server.replies(error(401))
        with pytest.raises(TypeError) as caught:
            await stream(server.url + "/s", on_error=OnError(answer, wait=wait))

    assert isinstance(caught.value.__cause__, DurableStreamError)


async def test_headers_it_adds_are_checked() -> None:
    async with ScriptedServer() as server:
        server.replies(error(401))
        with pytest.raises(InvalidArgumentError, match="CR, LF or NUL"):
            await stream(server.url + "/s", on_error=OnError({"headers": {"x": "a\nb"}}))


async def test_what_it_adds_wins_over_per_call_values_and_may_be_callable() -> None:
    count = 0

    def fresh() -> str:
        nonlocal count
        count += 1
        return f"fresh-{count}"

    async with ScriptedServer() as server:
        server.replies(error(401), page(b"", "1"), end(b"", "2"))
        handle = DurableStream(server.url + "/s", headers={"x": "handle"}, on_error=OnError({"headers": {"X": fresh}}))
        async with handle, handle.stream(headers={"x": "call"}, live=False) as response:
            await response.read()

    assert [request.headers["x"] for request in server.requests] == ["call", "fresh-1", "fresh-2"]


async def test_a_network_error_reaches_it_after_the_retries() -> None:
    on_error = OnError(None)
    backoff = AT_ONCE.__class__(initial_delay=1e-6, max_delay=1e-6, max_retries=1)

    async with ScriptedServer(lambda request: DROP) as server:
        with pytest.raises(NetworkError):
            await stream(server.url + "/s", on_error=on_error, backoff_options=backoff)

    assert len(server.requests) == 2
    assert len(on_error.errors) == 1


async def test_a_broken_answer_reaches_it_and_may_be_read_again() -> None:
    on_error = OnError({})

    async with ScriptedServer() as server:
        server.replies(tail(b"[]", "1", content_type=JSON), events(b"event: control\ndata: {}\n\n"))
        server.replies(events(data("[1]"), control("2", streamClosed=True)))
        async with stream(server.url + "/s", on_error=on_error) as response:
            assert await collect(response) == [1]

    assert [type(error) for error in on_error.errors] == [ParseError]


OPERATIONS: list[tuple[str, Callable[[DurableStream], Any]]] = [
    ("create", lambda handle: handle.create(content_type="text/plain")),
    ("connect", lambda handle: handle.connect()),
    ("head", lambda handle: handle.head()),
    ("append", lambda handle: handle.append(b"x", content_type="text/plain")),
    ("append with unknown content type", lambda handle: handle.append(b"x")),
    ("append_json", lambda handle: handle.append_json(1)),
    ("close_stream", lambda handle: handle.close_stream()),
    ("delete", lambda handle: handle.delete()),
    ("fork", lambda handle: handle.fork("/fork")),
]


@pytest.mark.parametrize("call", [call for _, call in OPERATIONS], ids=[name for name, _ in OPERATIONS])
async def test_every_operation_of_a_handle_asks_it_and_keeps_what_it_adds(call: Callable[[DurableStream], Any]) -> None:
    on_error = OnError({"headers": {"authorization": "fresh"}})

    def answer(request: Request) -> Reply:
        return guarded(request) or Reply(204, headers={"content-type": "text/plain"})

    async with (
        ScriptedServer(answer) as server,
        DurableStream(server.url + "/s", headers={"authorization": "stale"}, on_error=on_error) as handle,
    ):
        await call(handle)
        await handle.head()
        await handle.head(headers={"x": "per call"})

    assert len(on_error.errors) == 1
    assert [request.headers["authorization"] for request in server.requests][:2] == ["stale", "fresh"]
    assert {request.headers["authorization"] for request in server.requests[1:]} == {"fresh"}


async def test_what_it_adds_during_a_call_with_values_of_its_own_holds_for_the_handle() -> None:
    on_error = OnError({"headers": {"authorization": "fresh"}})

    async with (
        ScriptedServer(lambda request: guarded(request) or Reply(204)) as server,
        DurableStream(server.url + "/s", on_error=on_error) as handle,
    ):
        await handle.head(headers={"x-request-id": "1"})
        await handle.head(headers={"x-request-id": "2"})

    assert [request.headers.get("authorization") for request in server.requests] == [None, "fresh", "fresh"]


async def test_a_session_s_own_keeps_what_it_adds_to_itself() -> None:
    of_handle, of_session = OnError(None), OnError({"headers": {"authorization": "fresh"}})

    async with (
        ScriptedServer(lambda request: guarded(request) or end(b"", "1")) as server,
        DurableStream(server.url + "/s", on_error=of_handle) as handle,
    ):
        async with handle.stream(on_error=of_session) as response:
            await response.read()
        with pytest.raises(DurableStreamError):
            await handle.head()

    assert [len(asked.errors) for asked in (of_session, of_handle)] == [1, 1]


async def test_a_streamed_append_is_never_repeated_and_never_asks() -> None:
    on_error = OnError()

    async with ScriptedServer() as server:
        server.replies(error(401))
        async with DurableStream(server.url + "/s", content_type="text/plain", on_error=on_error) as handle:
            with pytest.raises(DurableStreamError) as caught:
                await handle.append_stream([b"x"])

    assert caught.value.status == 401
    assert len(server.requests) == 1
    assert on_error.errors == []


async def test_it_is_not_asked_about_cancellation(transport: Transport) -> None:
    on_error = OnError()

    async with ScriptedServer() as server:
        server.replies(Reply(hold=anyio.Event()))
        async with anyio.create_task_group() as tasks:

            async def opening() -> None:
                await stream(server.url + "/s", on_error=on_error, transport=transport)

            tasks.start_soon(opening)
            await server.wait_requests(1)
            tasks.cancel_scope.cancel()

    assert on_error.errors == []


async def test_it_is_not_asked_about_callbacks_or_misuse() -> None:
    on_error = OnError()

    async with ScriptedServer() as server:
        server.replies(end(b"[1]", "1", content_type=JSON))
        async with stream(server.url + "/s", on_error=on_error) as response:
            with pytest.raises(ZeroDivisionError):
                await response.subscribe_json(lambda batch: 1 / 0)
            with pytest.raises(StreamConsumedError):
                response.read()

    assert on_error.errors == []


async def test_it_is_not_asked_when_the_handle_is_closed_under_a_session() -> None:
    on_error = OnError()

    async with ScriptedServer() as server:
        server.replies(tail(b"", "1"), Reply(hold=anyio.Event()))
        handle = DurableStream(server.url + "/s", on_error=on_error)
        caught: list[Exception] = []
        async with anyio.create_task_group() as tasks:

            async def follow() -> None:
                async with handle.stream(live="long-poll") as response:
                    with pytest.raises(AlreadyClosedError) as raised:
                        await collect(response.iter_bytes())
                    caught.append(raised.value)

            tasks.start_soon(follow)
            await server.wait_requests(2)
            await handle.aclose()
        with pytest.raises(AlreadyClosedError):
            await handle.stream()
        with pytest.raises(AlreadyClosedError):
            await handle.head()

    assert len(caught) == 1
    assert on_error.errors == []


async def test_cancelling_while_it_thinks_asks_again_on_resuming() -> None:
    asked = 0
    thinking = anyio.Event()

    async def on_error(caught: Exception) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        if asked == 1:
            thinking.set()
            await anyio.sleep_forever()
        return {}

    async with ScriptedServer() as server:
        server.replies(tail(b"a", "1"), error(403), end(b"b", "2"))
        async with stream(server.url + "/s", live="long-poll", on_error=on_error) as response:
            pieces = response.iter_bytes()
            assert await anext(pieces) == b"a"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pieces.__anext__)
                await thinking.wait()
                tasks.cancel_scope.cancel()
            assert await collect(pieces) == [b"b"]

    assert asked == 2
