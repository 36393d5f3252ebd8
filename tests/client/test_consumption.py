"""The ways to consume a session: what each yields, when it ends, and that it can be done once (client 10.1 to 10.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest

from durable_streams import (
    AlreadyClosedError,
    BusyResourceError,
    BytesBatch,
    Checkpoint,
    DurableStreamError,
    InvalidArgumentError,
    JsonBatch,
    ParseError,
    StreamConsumedError,
    StreamResponse,
    TextBatch,
    stream,
)
from tests.client.answers import BYTES, JSON, TEXT, collect, control, data, end, events, idle, page, tail
from tests.scripted import Reply, ScriptedServer

pytestmark = pytest.mark.anyio


def pages(
    server: ScriptedServer, content_type: str, *bodies: bytes, last: Callable[..., Reply] = tail, after: int = 0
) -> None:
    """Queue these bodies as pages, at the offsets after this one; the last one is up to date, or closed."""
    *first, final = bodies
    server.replies(
        *(page(body, str(n), content_type=content_type) for n, body in enumerate(first, after + 1)),
        last(final, str(after + len(bodies)), content_type=content_type),
    )


# -- Collecting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True, "long-poll", "sse"])
@pytest.mark.parametrize(
    ("method", "content_type", "bodies", "result"),
    [
        ("read", BYTES, [b"a", b"", b"bc"], b"abc"),
        ("read", BYTES, [b""], b""),
        ("read", JSON, [b"[1, 2]", b"[]", b'[{"a":[3]}]'], b'[1, 2,{"a":[3]}]'),
        ("read", JSON, [b"[]"], b"[]"),
        ("text", TEXT, [b"\xf0\x9f", b"\x98\x80!"], "\U0001f600!"),
        ("text", BYTES, [b"plain"], "plain"),
        ("text", JSON, [b'["\xc3\xa9"]', b"[2]"], '["\u00e9",2]'),
        ("json", JSON, [b"[1,null]", b"[[2]]", b" "], [1, None, [2]]),
        ("json", JSON, [b"[]"], []),
    ],
)
async def test_collecting_ends_at_the_first_up_to_date_answer_also_if_live(
    live: Any, method: str, content_type: str, bodies: list[bytes], result: Any
) -> None:
    async with ScriptedServer() as server:
        pages(server, content_type, *bodies)
        async with stream(server.url + "/s", live=live) as response:
            assert await getattr(response, method)() == result
            await response.wait_closed()

            assert response.checkpoint == Checkpoint(str(len(bodies)), up_to_date=True)

    assert len(server.requests) == len(bodies)


async def test_collecting_ends_at_the_end_of_a_closed_stream() -> None:
    async with ScriptedServer() as server:
        pages(server, JSON, b"[1]", b"[2]", last=end)
        async with stream(server.url + "/s") as response:
            assert await response.json() == [1, 2]

            assert response.stream_closed


@pytest.mark.parametrize("method", ["read", "text", "json"])
async def test_more_than_max_bytes_is_an_error_and_not_kept_in_memory(method: str) -> None:
    never = anyio.Event()

    async with ScriptedServer() as server:
        pages(server, JSON, b"[1]", b"[2]", b"[3]")
        server.replies(page(b"[1]", "1", content_type=JSON))
        server.replies(
            Reply(headers={"content-type": JSON, "stream-next-offset": "2"}, chunks=[b"[", b"  ", b" ", never])
        )
        async with stream(server.url + "/s") as response:
            await getattr(response, method)(max_bytes=9)
        async with stream(server.url + "/s") as response:
            with pytest.raises(ParseError, match="max_bytes"):
                await getattr(response, method)(max_bytes=6)
            with pytest.raises(ParseError):
                await response.wait_closed()


async def test_text_reports_what_is_no_utf_8_with_the_offset_of_its_batch() -> None:
    async with ScriptedServer() as server:
        pages(server, TEXT, b"fine", b"a\xff")
        async with stream(server.url + "/s", live=False) as response:
            with pytest.raises(ParseError) as caught:
                await response.text()

        assert (caught.value.offset, caught.value.url) == ("1", server.url + "/s")

        pages(server, TEXT, b"fine", b"a\xffb\xc3")
        async with stream(server.url + "/s", live=False) as response:
            assert await response.text(errors="replace") == "finea\ufffdb\ufffd"


async def test_text_that_ends_inside_a_character_is_an_error_or_replaced() -> None:
    async with ScriptedServer() as server:
        pages(server, TEXT, b"ab\xc3")
        pages(server, TEXT, b"ab\xc3")
        pages(server, JSON, b'["\xc3"]')
        async with stream(server.url + "/s") as response:
            with pytest.raises(ParseError):
                await response.text()
        async with stream(server.url + "/s") as response:
            assert await response.text(errors="replace") == "ab\ufffd"
        async with stream(server.url + "/s") as response:
            with pytest.raises(ParseError) as caught:
                await response.text()
            assert caught.value.url == server.url + "/s"


# -- Iterating -------------------------------------------------------------------------------------------------------


async def test_items_come_one_at_a_time_until_up_to_date() -> None:
    async with ScriptedServer() as server:
        pages(server, JSON, b"[1,2]", b"[]", b"[null,[3]]")
        async with stream(server.url + "/s", live=False) as response:
            assert await collect(response) == [1, 2, None, [3]]
            await response.wait_closed()


async def test_iteration_follows_a_live_session_until_it_is_closed() -> None:
    async with ScriptedServer() as server:
        server.replies(
            tail(b"a", "1"),
            idle("1"),
            tail(b"b", "2"),
            tail(b"", "2.5"),
            end(b"c", "3"),
            tail(b"\xc3", "1", content_type=TEXT),
        )
        server.replies(end(b"\xa9", "2", content_type=TEXT))
        async with stream(server.url + "/s") as response:
            assert await collect(response.iter_bytes()) == [b"a", b"b", b"c"]
        async with stream(server.url + "/s") as response:
            assert await collect(response.iter_text()) == ["\u00e9"]


async def test_iter_bytes_of_a_json_stream_gives_one_array_per_batch() -> None:
    async with ScriptedServer() as server:
        server.replies(
            tail(b"[1, 2]", "1", content_type=JSON),
            events(data("[3]"), data("[4]"), control("2"), data("[5]"), control("3", streamClosed=True)),
        )
        async with stream(server.url + "/s") as response:
            assert await collect(response.iter_bytes()) == [b"[1, 2]", b"[3,4]", b"[5]"]


async def test_batches_carry_what_came_and_where_they_end() -> None:
    async with ScriptedServer() as server:
        server.replies(
            page(b"[1,2]", "1", content_type=JSON),
            tail(b"[]", "2", content_type=JSON, cursor="a"),
            events(data("[3]"), control("3", streamCursor="b"), control("3", upToDate=True)),
            events(control("3", streamClosed=True)),
        )
        async with stream(server.url + "/s") as response:
            batches = await collect(response.iter_batches())

    assert batches == [
        JsonBatch(Checkpoint("1"), [1, 2]),
        JsonBatch(Checkpoint("2", "a", up_to_date=True), []),
        JsonBatch(Checkpoint("3", "b"), [3]),
        JsonBatch(Checkpoint("3", "b", up_to_date=True), []),
        JsonBatch(Checkpoint("3", "b", up_to_date=True, stream_closed=True), []),
    ]
    last = batches[-1]
    assert (last.offset, last.cursor, last.up_to_date, last.stream_closed) == ("3", "b", True, True)


@pytest.mark.parametrize(
    ("as_", "content_type", "body", "expected"),
    [
        ("auto", JSON, b"[1]", JsonBatch(Checkpoint("1", up_to_date=True), [1])),
        ("auto", "text/markdown", b"x", TextBatch(Checkpoint("1", up_to_date=True), "x")),
        ("auto", BYTES, b"x", BytesBatch(Checkpoint("1", up_to_date=True), b"x")),
        ("auto", "application/vnd.x+json", b"[1]", BytesBatch(Checkpoint("1", up_to_date=True), b"[1]")),
        ("bytes", JSON, b"[1]", BytesBatch(Checkpoint("1", up_to_date=True), b"[1]")),
        ("text", BYTES, b"x\xc3", TextBatch(Checkpoint("1", up_to_date=True, text_tail=b"\xc3"), "x")),
        ("text", JSON, b"[1]", TextBatch(Checkpoint("1", up_to_date=True), "[1]")),
        ("json", JSON, b"1", JsonBatch(Checkpoint("1", up_to_date=True), [1])),
    ],
)
async def test_the_kind_of_batch_follows_the_content_type_or_the_wish(
    as_: Any, content_type: str, body: bytes, expected: object
) -> None:
    async with ScriptedServer() as server:
        pages(server, content_type, body)
        async with stream(server.url + "/s", live=False) as response:
            assert await collect(response.iter_batches(as_)) == [expected]


async def test_json_true_makes_json_of_any_content_type() -> None:
    async with ScriptedServer() as server:
        pages(server, BYTES, b'{"a":1}', b"[2]")
        async with stream(server.url + "/s", live=False, json=True) as response:
            assert await response.json() == [{"a": 1}, 2]


async def test_items_can_be_decoded_and_validated_by_the_caller() -> None:
    def loads(text: bytes) -> Any:
        return [text.decode().upper()]

    async with ScriptedServer() as server:
        for _ in range(4):
            pages(server, JSON, b'["a"]', b'["b"]')
        async with stream(server.url + "/s", live=False) as response:
            assert await response.json(loads=loads) == ['["A"]', '["B"]']
        async with stream(server.url + "/s", live=False) as response:
            assert await collect(response.iter_json(type=len, loads=loads)) == [5, 5]
        async with stream(server.url + "/s", live=False) as response:
            assert [batch.items async for batch in response.iter_batches("json", type=ord)] == [[97], [98]]
        async with stream(server.url + "/s", live=False) as response:
            seen: list[Any] = []
            await response.subscribe_json(lambda batch: seen.extend(batch.items), type=str.upper)
            assert seen == ["A", "B"]


@pytest.mark.parametrize("method", ["json", "iter_json", "iter_batches"])
async def test_an_error_of_the_validator_ends_the_session_where_its_batch_began(method: str) -> None:
    class WrongError(ValueError):
        pass

    def check(item: int) -> int:
        if item == 2:
            raise WrongError(item)
        return item

    async with ScriptedServer() as server:
        pages(server, JSON, b"[1]", b"[2]", b"[3]")
        async with stream(server.url + "/s", live=False) as response:
            with pytest.raises(WrongError) as caught:
                if method == "json":
                    await response.json(type=check)
                elif method == "iter_json":
                    await collect(response.iter_json(type=check))
                else:
                    await collect(response.iter_batches("json", type=check))
            with pytest.raises(WrongError) as again:
                await response.wait_closed()

            assert response.checkpoint == Checkpoint("-1" if method == "json" else "1")
            assert again.value is caught.value


@pytest.mark.parametrize(
    "body", [b"[1,", b'{"a":NaN}', b"[Infinity]", b'["\xff"]', b"[1][2]", b"nonsense" * 100, b"[" * 100_000]
)
async def test_what_is_no_json_is_an_error_with_preview_and_offset(body: bytes) -> None:
    async with ScriptedServer() as server:
        pages(server, JSON, b"[1]", body, b"[3]")
        async with stream(server.url + "/s", live=False) as response:
            items = response.iter_json()
            assert await anext(items) == 1
            with pytest.raises(ParseError) as caught:
                await anext(items)
            with pytest.raises(ParseError):
                await anext(items)

    assert (caught.value.code, caught.value.offset, caught.value.url) == ("PARSE_ERROR", "1", server.url + "/s")
    assert 0 < len(caught.value.preview) <= 100
    assert len(server.requests) == 2


async def test_integers_keep_their_precision_and_a_byte_order_mark_goes() -> None:
    async with ScriptedServer() as server:
        pages(server, JSON, b"\xef\xbb\xbf[123456789012345678901234567890]", b"\xef\xbb\xbf")
        async with stream(server.url + "/s", live=False) as response:
            assert await response.json() == [123456789012345678901234567890]


# -- Text across batches ---------------------------------------------------------------------------------------------


async def test_a_character_split_over_pages_is_whole_and_every_checkpoint_exact() -> None:
    smile = "\U0001f600".encode()
    async with ScriptedServer() as server:
        pages(server, TEXT, b"a" + smile[:1], smile[1:3], smile[3:] + b"b", last=end)
        async with stream(server.url + "/s", live=False) as response:
            batches = await collect(response.iter_batches("text"))

        assert [(batch.text, batch.checkpoint.text_tail) for batch in batches] == [
            ("a", smile[:1]),
            ("", smile[:3]),
            ("\U0001f600b", b""),
        ]
        rest = [smile[1:3], smile[3:] + b"b"]
        for n, batch in enumerate(batches[:2], 1):
            pages(server, TEXT, *rest[n - 1 :], after=n)
            async with stream(server.url + "/s", offset=batch.checkpoint, live=False) as response:
                assert "".join(await collect(response.iter_text())) == "\U0001f600b"
            pages(server, TEXT, *rest[n - 1 :], after=n)
            async with stream(server.url + "/s", offset=batch.checkpoint, live=False) as response:
                assert await response.text() == "\U0001f600b"


async def test_base64_events_go_through_the_same_text_decoder() -> None:
    async with ScriptedServer() as server:
        server.replies(
            tail(b"\xc3", "1", content_type=BYTES),
            events(data("qQ=="), control("2"), data("4oI="), control("3"), stream_sse_data_encoding="base64"),
            events(data("rA=="), control("4", streamClosed=True), stream_sse_data_encoding="base64"),
        )
        async with stream(server.url + "/s", live="sse") as response:
            assert await collect(response.iter_text()) == ["\u00e9", "\u20ac"]


@pytest.mark.parametrize("last", [tail, end])
async def test_the_end_of_a_closed_stream_inside_a_character_is_an_error(last: Any) -> None:
    async with ScriptedServer() as server:
        pages(server, TEXT, b"ok", b"a\xc3", last=last)
        async with stream(server.url + "/s", live=False) as response:
            pieces = response.iter_text()
            assert await anext(pieces) == "ok"
            if last is end:
                with pytest.raises(ParseError):
                    await anext(pieces)
                assert response.offset == "1"
            else:
                assert await collect(pieces) == ["a"]
                assert response.checkpoint.text_tail == b"\xc3"


# -- Positions -------------------------------------------------------------------------------------------------------


async def test_the_checkpoint_follows_the_consumer_and_not_the_network() -> None:
    async with ScriptedServer() as server:
        pages(server, JSON, b"[1,2]", b"[]", b"[3]", last=end)
        async with stream(server.url + "/s", live=False) as response:
            seen = [response.checkpoint]
            async for item in response:
                seen.append(response.checkpoint)
                assert item == len(seen) - 1
            seen.append(response.checkpoint)

    assert [checkpoint.offset for checkpoint in seen] == ["-1", "-1", "-1", "2", "3"]
    assert (seen[-1].stream_closed, response.stream_closed, response.up_to_date) == (True, True, True)


async def test_the_checkpoint_of_a_subscription_moves_when_the_callback_returns() -> None:
    seen: list[str] = []

    async with ScriptedServer() as server:
        pages(server, BYTES, b"a", b"b", last=end)
        async with stream(server.url + "/s", live=False) as response:

            async def callback(batch: BytesBatch) -> None:
                await anyio.lowlevel.checkpoint()
                seen.append(response.offset)

            await response.subscribe_bytes(callback)
            seen.append(response.offset)

    assert seen == ["-1", "1", "2"]


async def test_the_position_does_not_wait_for_the_next_batch() -> None:
    async with ScriptedServer() as server:
        hold = anyio.Event()
        server.replies(tail(b"a", "1"), replace(end(b"", "1"), hold=hold))
        async with stream(server.url + "/s") as response, anyio.create_task_group() as tasks:
            tasks.start_soon(response.subscribe_bytes, lambda batch: None)
            await server.wait_requests(2)
            assert response.offset == "1"
            hold.set()


@pytest.mark.parametrize("how", ["iterator", "callback"])
async def test_a_batch_counts_as_processed_also_if_its_consumer_cancels_the_session(how: str) -> None:
    async with ScriptedServer() as server:
        pages(server, JSON, b"[1]", b"[2]", b"[3]")
        async with stream(server.url + "/s") as response:
            seen: list[Any] = []

            def process(batch: JsonBatch[Any]) -> None:
                seen.extend(batch.items)
                if 2 in batch.items:
                    response.cancel()

            if how == "callback":
                await response.subscribe_json(process)
            else:
                async for batch in response.iter_batches("json"):
                    process(batch)

            assert seen == [1, 2]
            assert response.checkpoint == Checkpoint("2")


# -- Subscriptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "content_type", "expected"),
    [
        ("subscribe_json", JSON, [[1], [], []]),
        ("subscribe_bytes", BYTES, [b"[1]", b"", b""]),
        ("subscribe_text", TEXT, ["[1]", "", ""]),
    ],
)
@pytest.mark.parametrize("wait", [False, True], ids=["sync", "async"])
async def test_callbacks_get_every_batch_empty_ones_too(
    method: str, content_type: str, expected: Any, wait: bool
) -> None:
    got: list[tuple[Any, bool, bool]] = []

    def plain(batch: Any) -> None:
        content = getattr(batch, {JSON: "items", BYTES: "data", TEXT: "text"}[content_type])
        got.append((content, batch.up_to_date, batch.stream_closed))

    async def later(batch: Any) -> None:
        await anyio.lowlevel.checkpoint()
        plain(batch)

    async with ScriptedServer() as server:
        server.replies(
            page(b"[1]", "1", content_type=content_type),
            tail(b"", "1", content_type=content_type),
            idle("1", closed=True),
        )
        async with stream(server.url + "/s", live="long-poll") as response:
            assert await getattr(response, method)(later if wait else plain) is None

    assert got == [(expected[0], False, False), (expected[1], True, False), (expected[2], True, True)]


async def test_the_next_batch_is_fetched_when_the_callback_is_done() -> None:
    async with ScriptedServer() as server:
        pages(server, BYTES, b"a", b"b", b"c")
        async with stream(server.url + "/s", live=False) as response:
            requests: list[int] = []

            async def callback(batch: BytesBatch) -> None:
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                requests.append(len(server.requests))

            await response.subscribe_bytes(callback)

    assert requests == [1, 2, 3]


@pytest.mark.parametrize("wait", [False, True], ids=["sync", "async"])
async def test_an_exception_of_the_callback_ends_the_session(wait: bool) -> None:
    class FailedError(Exception):
        pass

    def plain(batch: Any) -> None:
        if batch.items == [2]:
            raise FailedError

    async def later(batch: Any) -> None:
        await anyio.lowlevel.checkpoint()
        plain(batch)

    async with ScriptedServer() as server:
        pages(server, JSON, b"[1]", b"[2]", b"[3]")
        async with stream(server.url + "/s", live="long-poll") as response:
            with pytest.raises(FailedError) as caught:
                await response.subscribe_json(later if wait else plain)
            with pytest.raises(FailedError) as again:
                await response.wait_closed()

            assert again.value is caught.value
            assert response.checkpoint == Checkpoint("1")

    assert len(server.requests) == 2


# -- Once ------------------------------------------------------------------------------------------------------------

METHODS: dict[str, Callable[[StreamResponse], Any]] = {
    "read": lambda response: response.read(),
    "text": lambda response: response.text(),
    "json": lambda response: response.json(),
    "iter_bytes": lambda response: response.iter_bytes(),
    "iter_text": lambda response: response.iter_text(),
    "iter_json": lambda response: response.iter_json(),
    "iter_batches": lambda response: response.iter_batches(),
    "subscribe_bytes": lambda response: response.subscribe_bytes(print),
    "subscribe_text": lambda response: response.subscribe_text(print),
    "subscribe_json": lambda response: response.subscribe_json(print),
}


def drop(consumer: Any) -> None:
    """Let go of what a consumption method returned."""
    if hasattr(consumer, "close"):
        consumer.close()  # a coroutine that nobody awaits would complain


@pytest.mark.parametrize("first", METHODS)
async def test_a_session_is_consumed_once_and_the_error_names_both_methods(first: str) -> None:
    async with ScriptedServer() as server:
        pages(server, JSON, b"[]")
        async with stream(server.url + "/s") as response:
            consumer = METHODS[first](response)
            for second, call in METHODS.items():
                with pytest.raises(StreamConsumedError) as caught:
                    call(response)  # at the call: it needs no await
                assert (caught.value.code, caught.value.first, caught.value.second) == (
                    "ALREADY_CONSUMED",
                    first,
                    second,
                )
                assert f"{first}()" in str(caught.value)
                assert f"{second}()" in str(caught.value)
            drop(consumer)


@pytest.mark.parametrize("method", METHODS)
async def test_consuming_a_session_that_was_cancelled_is_an_error(method: str) -> None:
    async with ScriptedServer() as server:
        pages(server, JSON, b"[]")
        async with stream(server.url + "/s") as response:
            response.cancel()
            with pytest.raises(AlreadyClosedError) as caught:
                METHODS[method](response)

    assert caught.value.code == "ALREADY_CLOSED"


@pytest.mark.parametrize("method", [name for name in METHODS if "json" in name] + ["aiter", "iter_batches"])
async def test_json_methods_on_another_type_name_it_and_do_not_use_up_the_session(method: str) -> None:
    calls = METHODS | {"aiter": aiter, "iter_batches": lambda response: response.iter_batches("json")}

    async with ScriptedServer() as server:
        pages(server, "application/x-ndjson", b"x")
        async with stream(server.url + "/s") as response:
            with pytest.raises(DurableStreamError, match="application/x-ndjson") as caught:
                calls[method](response)
            assert caught.value.code == "BAD_REQUEST"
            assert await response.read() == b"x"


async def test_options_that_do_not_go_with_the_batches_are_refused_and_use_nothing_up() -> None:
    async with ScriptedServer() as server:
        pages(server, BYTES, b"x")
        async with stream(server.url + "/s") as response:
            for call in (
                lambda: response.iter_batches("bytes", type=int),  # type: ignore[call-overload]
                lambda: response.iter_batches("text", loads=int),  # type: ignore[call-overload]
                lambda: response.iter_batches("bytes", errors="replace"),  # type: ignore[call-overload]
                lambda: response.iter_batches("lines"),  # type: ignore[call-overload]
                lambda: response.iter_text(errors="ignore"),  # type: ignore[arg-type]
                lambda: response.text(errors="ignore"),  # type: ignore[arg-type]
                lambda: response.read(max_bytes=-1),
            ):
                with pytest.raises(InvalidArgumentError):
                    call()
            with pytest.raises(TypeError):
                response.read(max_bytes="9")  # type: ignore[arg-type]
            assert await response.read(max_bytes=1) == b"x"


async def test_two_tasks_in_one_iterator_are_refused_and_the_first_goes_on() -> None:
    async with ScriptedServer() as server:
        hold = anyio.Event()
        server.replies(tail(b"[1]", "1", content_type=JSON), replace(end(b"[2]", "2", content_type=JSON), hold=hold))
        async with stream(server.url + "/s", live="long-poll") as response:
            items = response.iter_json()
            assert await anext(items) == 1
            got: list[Any] = []

            async def wait() -> None:
                got.append(await anext(items))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await server.wait_requests(2)
                with pytest.raises(BusyResourceError) as caught:
                    await anext(items)
                hold.set()
            assert got == [2]
            assert await collect(items) == []

    assert caught.value.code == "BUSY_RESOURCE"


async def test_reprs_and_statistics_tell_the_state() -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(500), page(b"abc", "1"), end(b"de", "2"))
        session = stream(server.url + "/s?token=secret")
        assert repr(session) == f"<StreamSession {server.url}/s?token=..., not opened>"
        async with session as response:
            assert repr(session) == f"<StreamSession {server.url}/s?token=..., opened>"
            assert repr(response) == f"<StreamResponse {server.url}/s?token=..., start, offset=-1>"
            await collect(response.iter_bytes())

            assert (
                repr(response) == f"<StreamResponse {server.url}/s?token=..., done, offset=2, consumed by iter_bytes>"
            )
            statistics = response.statistics()
            assert (statistics.phase, statistics.requests, statistics.retries) == ("done", 3, 1)
            assert (statistics.batches, statistics.bytes) == (2, 5)
            assert (response.url, response.live) == (f"{server.url}/s?token=...", True)
