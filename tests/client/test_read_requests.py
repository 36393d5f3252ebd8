"""What a read session puts on the wire: options, headers, parameters, page by page and mode by mode."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from durable_streams import Checkpoint, DurableStream, Transport, stream
from tests.client.answers import BYTES, EVENTS, JSON, collect, control, data, end, events, idle, page, queries, tail
from tests.scripted import DROP, Reply, ScriptedServer

pytestmark = pytest.mark.anyio


def opened(url: str, transport: Transport, **options: Any) -> Any:
    """A session by the free function."""
    return stream(url, transport=transport, **options)


def from_handle(url: str, transport: Transport, **options: Any) -> Any:
    """The same session by a handle."""
    return DurableStream(url, transport=transport).stream(**options)


async def test_the_offset_is_always_sent_also_for_the_start() -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"x", "1"), tail(b"", "1"))
        async with stream(server.url + "/s", live=False) as response:
            assert response.start_offset == "-1"
            assert await response.read() == b"x"
            assert response.start_offset == "-1"
        async with stream(server.url + "/s", live=False, offset="1") as response:
            assert response.start_offset == "1"
            await response.read()

    assert [request.target for request in server.requests] == ["/s?offset=-1", "/s?offset=1"]
    assert [request.method for request in server.requests] == ["GET", "GET"]


@pytest.mark.parametrize("offset", ["0/9".replace("/", "_"), "a b".replace(" ", "+"), "x%41", "é", "a;b:c"])
async def test_offsets_are_opaque_and_percent_encoded(offset: str) -> None:
    async with ScriptedServer() as server:
        server.replies(end(b"", offset))
        async with stream(server.url + "/s", live=False, offset=offset) as response:
            await response.read()

    assert server.requests[0].query == {"offset": offset}
    assert server.requests[0].target.isascii()


async def test_catching_up_asks_for_page_after_page_without_live_and_echoes_the_cursor() -> None:
    async with ScriptedServer() as server:
        server.replies(page(b"a", "1"), page(b"b", "2", cursor="c1"), page(b"c", "3"), tail(b"d", "4"), end(b"", "4"))
        async with stream(server.url + "/s", live="long-poll") as response:
            assert await collect(response.iter_bytes()) == [b"a", b"b", b"c", b"d"]

    assert queries(server.requests) == [
        {"offset": "-1"},
        {"offset": "1"},
        {"offset": "2", "cursor": "c1"},
        {"offset": "3", "cursor": "c1"},
        {"offset": "4", "cursor": "c1", "live": "long-poll"},
    ]


async def test_live_false_goes_on_until_up_to_date() -> None:
    async with ScriptedServer() as server:
        server.replies(page(b"a", "1"), page(b"", "1.5"), page(b"b", "2"), tail(b"c", "3"))
        async with stream(server.url + "/s", live=False) as response:
            assert await response.read() == b"abc"

    assert len(server.requests) == 4


async def test_live_false_on_a_closed_stream_ends_without_the_up_to_date_flag() -> None:
    async with ScriptedServer() as server:
        server.replies(page(b"a", "1", stream_closed="TRUE"))
        async with stream(server.url + "/s", live=False) as response:
            assert await response.read() == b"a"
            assert response.stream_closed


@pytest.mark.parametrize(
    ("live", "content_type", "asked"),
    [
        ("long-poll", JSON, "long-poll"),
        ("long-poll", BYTES, "long-poll"),
        ("sse", JSON, "sse"),
        ("sse", BYTES, "sse"),
        (True, "Application/JSON; charset=utf-8", "sse"),
        (True, "application/json-seq", "long-poll"),
        (True, "application/problem+json", "long-poll"),
        (True, "text/plain", "long-poll"),
        (True, BYTES, "long-poll"),
    ],
)
@pytest.mark.parametrize("make", [opened, from_handle])
async def test_the_live_transport_follows_option_and_content_type(
    make: Callable[..., Any], live: Any, content_type: str, asked: str, transport: Transport
) -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"[]", "1", content_type=content_type))
        if asked == "sse":
            server.replies(events(control("1", streamClosed=True), stream_sse_data_encoding="base64"))
        else:
            server.replies(end(b"", "1", content_type=content_type))
        async with make(server.url + "/s", transport, live=live) as response:
            await collect(response.iter_batches(as_="bytes"))

    assert [request.query.get("live") for request in server.requests] == [None, asked]


def test_a_handle_s_session_takes_every_option_of_stream() -> None:
    free = inspect.signature(stream).parameters
    handle = inspect.signature(DurableStream.stream).parameters
    made_by_the_handle = {"url", "transport", "rng"}

    assert {name: parameter.default for name, parameter in free.items() if name not in made_by_the_handle} == {
        name: parameter.default for name, parameter in handle.items() if name != "self"
    }


async def test_a_conditional_read_of_what_is_unchanged_has_no_items() -> None:
    async with ScriptedServer() as server:
        for _ in range(2):
            server.replies(Reply(status=304, headers={"etag": '"e"'}))
        async with stream(server.url + "/s", live=False, if_none_match='"e"') as response:
            assert (response.status, response.etag) == (304, '"e"')
            assert await response.json() == []
            assert (response.checkpoint.offset, response.up_to_date) == ("-1", True)
        async with stream(server.url + "/s", live=False, if_none_match='"e"') as response:
            assert await response.read() == b""

    assert [request.headers["if-none-match"] for request in server.requests] == ['"e"', '"e"']


async def test_sse_requests_accept_events_only_and_no_compression() -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"[]", "1", content_type=JSON), events(control("1", streamClosed=True)))
        async with stream(server.url + "/s") as response:
            assert await collect(response.iter_json()) == []

    catch_up, live = server.requests
    assert catch_up.headers["accept-encoding"] == "gzip, deflate"
    assert live.headers["accept"] == EVENTS
    assert live.headers["accept-encoding"] == "identity"
    assert "prefer" not in live.headers


async def test_the_preferred_page_size_is_sent_unless_switched_off() -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"", "1"), end(b"", "1"), end(b"", "1"), end(b"", "1"))
        async with stream(server.url + "/s", live="long-poll") as response:
            await collect(response.iter_bytes())
        async with stream(server.url + "/s", live=False, max_page_bytes=1000) as response:
            await response.read()
        async with stream(server.url + "/s", live=False, max_page_bytes=None) as response:
            await response.read()

    preferred = [request.headers.get("prefer") for request in server.requests]
    assert preferred == ["max-page-bytes=4194304", "max-page-bytes=4194304", "max-page-bytes=1000", None]


async def test_now_is_asked_for_once_and_then_replaced_by_the_real_tail() -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"", "7", cursor="c"), idle("7", cursor="d"), end(b"x", "8"))
        async with stream(server.url + "/s", offset="now", live="long-poll") as response:
            assert response.checkpoint == Checkpoint("7")
            assert response.start_offset == "now"
            assert await collect(response.iter_bytes()) == [b"x"]

    assert queries(server.requests) == [
        {"offset": "now"},
        {"offset": "7", "cursor": "c", "live": "long-poll"},
        {"offset": "7", "cursor": "d", "live": "long-poll"},
    ]


async def test_now_is_not_asked_for_again_after_a_broken_answer() -> None:
    async with ScriptedServer() as server:
        broken = Reply(headers={"stream-next-offset": "7", "content-length": "9"}, body=b"x", close=True)
        server.replies(broken, tail(b"", "8"))
        async with stream(server.url + "/s", offset="now", live=False) as response:
            await response.read()

    assert queries(server.requests) == [{"offset": "now"}, {"offset": "7"}]


async def test_a_checkpoint_restores_offset_and_cursor() -> None:
    async with ScriptedServer() as server:
        server.replies(end(b"", "5"), end(b"", "5"), end(b"", "5"))
        async with stream(server.url + "/s", offset=Checkpoint("5", cursor="c")) as response:
            await response.read()
        async with stream(server.url + "/s", offset=Checkpoint("5", cursor="c"), cursor="d") as response:
            await response.read()
        async with stream(server.url + "/s", offset="5", cursor="e") as response:
            await response.read()

    assert [request.query["cursor"] for request in server.requests] == ["c", "d", "e"]


async def test_the_url_keeps_its_own_parameters_and_ours_win_in_sorted_order() -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"", "1"), end(b"", "1"))
        url = server.url + "/a%2Fb?z=1&offset=evil&tag=b&tag=a&live=sse&cursor=x&empty="
        async with stream(url, params={"m": "2", "offset": "worse", "z": "3"}, live="long-poll") as response:
            await collect(response.iter_bytes())

    assert [request.target for request in server.requests] == [
        "/a%2Fb?empty=&m=2&offset=-1&tag=b&tag=a&z=3",
        "/a%2Fb?empty=&live=long-poll&m=2&offset=1&tag=b&tag=a&z=3",
    ]


async def test_parameters_of_none_are_left_out() -> None:
    async with ScriptedServer() as server:
        server.replies(end(b"", "1"))
        async with (
            DurableStream(server.url + "/s", params={"a": "1", "b": "2"}) as handle,
            handle.stream(params={"a": None, "c": lambda: None}) as response,
        ):
            await response.read()

    assert server.requests[0].query == {"offset": "-1", "b": "2"}


async def test_callables_are_called_for_every_request_page_poll_reconnect_and_retry() -> None:
    counts = {"header": 0, "param": 0}

    def header() -> str:
        counts["header"] += 1
        return f"token-{counts['header']}"

    async def param() -> str:
        await anyio.lowlevel.checkpoint()
        counts["param"] += 1
        return str(counts["param"])

    async with ScriptedServer() as server:
        server.replies(
            Reply(503, headers={"retry-after": "0"}),
            page(b"[1]", "1", content_type=JSON),
            DROP,
            tail(b"[2]", "2", content_type=JSON),
            events(data("[3]"), control("3", upToDate=True)),
            events(data("[4]"), control("4", upToDate=True)),
            events(control("4", streamClosed=True)),
        )
        options = {"headers": {"Authorization": header}, "params": {"n": param}}
        async with stream(server.url + "/s", **options) as response:
            assert await collect(response) == [1, 2, 3, 4]

    assert [request.headers["authorization"] for request in server.requests] == [f"token-{n}" for n in range(1, 8)]
    assert [request.query["n"] for request in server.requests] == [str(n) for n in range(1, 8)]


async def test_per_call_values_win_over_the_handle_s_in_any_letter_case() -> None:
    async with ScriptedServer() as server:
        server.replies(end(b"", "1"))
        handle = DurableStream(
            server.url + "/s", headers={"X-One": "handle", "x-two": "handle"}, params={"p": "handle"}
        )
        async with handle, handle.stream(headers={"x-ONE": "call"}, params={"p": "call"}) as response:
            await response.read()

    request = server.requests[0]
    assert (request.headers["x-one"], request.headers["x-two"], request.query["p"]) == ("call", "handle", "call")


async def test_the_protocol_s_headers_win_over_the_user_s() -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"[]", "1", content_type=JSON), events(control("1", streamClosed=True)))
        headers = {"Accept": "text/html", "Prefer": "nothing", "Accept-Encoding": "br"}
        async with stream(server.url + "/s", headers=headers) as response:
            await collect(response)

    catch_up, live = server.requests
    assert (catch_up.headers["prefer"], catch_up.headers["accept-encoding"]) == (
        "max-page-bytes=4194304",
        "gzip, deflate",
    )
    assert (live.headers["accept"], live.headers["accept-encoding"]) == (EVENTS, "identity")


async def test_callables_of_one_handle_never_run_concurrently_with_themselves() -> None:
    running = 0

    async def token() -> str:
        nonlocal running
        running += 1
        assert running == 1
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        running -= 1
        return "t"

    async with (
        ScriptedServer(lambda request: end(b"", "1")) as server,
        DurableStream(server.url + "/s", headers={"authorization": token}) as handle,
    ):

        async def read() -> None:
            async with handle.stream() as response:
                await response.read()

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(read)
                tasks.start_soon(handle.head)

    assert len(server.requests) == 8


@pytest.mark.parametrize("kind", ["headers", "params"])
async def test_an_exception_of_a_callable_is_raised_as_it_is_and_not_retried(kind: str) -> None:
    class TokenError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(one, two)

    calls = 0

    def token() -> str:
        nonlocal calls
        calls += 1
        raise TokenError(1, 2)

    async with ScriptedServer() as server:
        with pytest.raises(TokenError):
            await stream(server.url + "/s", **{kind: {"x": token}})

    assert calls == 1
    assert server.requests == []


async def test_an_exception_of_a_callable_goes_through_on_error() -> None:
    seen: list[Exception] = []

    def token() -> str:
        if not seen:
            raise LookupError("no token yet")
        return "t"

    def on_error(error: Exception) -> dict[str, Any]:
        seen.append(error)
        return {}

    async with ScriptedServer() as server:
        server.replies(end(b"x", "1"))
        async with stream(server.url + "/s", headers={"x": token}, on_error=on_error) as response:
            assert await response.read() == b"x"

    assert [type(error) for error in seen] == [LookupError]


@pytest.mark.parametrize("value", [3, None, b"x"])
async def test_a_callable_that_makes_no_string_is_a_type_error(value: Any) -> None:
    async with ScriptedServer() as server:
        with pytest.raises(TypeError, match="'x-token' must return a str"):
            await stream(server.url + "/s", headers={"x-token": lambda: value})

    assert server.requests == []


@pytest.mark.parametrize("make", [lambda value: value, lambda value: lambda: value], ids=["static", "callable"])
@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\0b", "\u20ac"])
async def test_header_values_that_would_break_the_request_never_leave(make: Callable[[str], Any], value: str) -> None:
    async with ScriptedServer() as server:
        with pytest.raises(ValueError, match="x-token") as caught:
            await stream(server.url + "/s", headers={"x-token": make(value)})

    assert caught.value.code == "BAD_REQUEST"  # type: ignore[attr-defined]
    assert server.requests == []
    assert server.accepted == 0


async def test_async_callables_may_be_any_awaitable() -> None:
    class Later:
        def __await__(self) -> Any:
            yield from anyio.lowlevel.checkpoint().__await__()
            return "later"

    def later() -> Awaitable[str]:
        return Later()

    async with ScriptedServer() as server:
        server.replies(end(b"", "1"))
        async with stream(server.url + "/s", headers={"x": later}) as response:
            await response.read()

    assert server.requests[0].headers["x"] == "later"


async def test_the_first_answer_is_judged_before_the_session_exists() -> None:
    async with ScriptedServer() as server:
        hold = anyio.Event()
        server.replies(
            Reply(
                headers={"content-type": BYTES, "stream-next-offset": "5", "etag": '"e"', "x-own": "1"},
                chunks=[hold, b"later"],
            )
        )
        response = await stream(server.url + "/s", live=False)

        assert (response.status, response.content_type, response.etag) == (200, BYTES, '"e"')
        assert response.headers["x-own"] == "1"
        assert (response.offset, response.up_to_date, response.stream_closed, response.cursor) == (
            "-1",
            False,
            False,
            None,
        )
        hold.set()
        await response.aclose()


async def test_what_is_known_of_the_first_answer_stays() -> None:
    async with ScriptedServer() as server:
        server.replies(page(b"a", "1", etag="first"), end(b"b", "2", etag="second", content_type=JSON))
        async with stream(server.url + "/s", live=False) as response:
            assert await response.read() == b"ab"

            assert (response.etag, response.content_type, response.headers["etag"]) == ("first", BYTES, "first")
