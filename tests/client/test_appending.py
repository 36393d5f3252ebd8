"""Single appends: framing, results, refusals, ambiguity, streamed bodies, raw producer calls (client 5.3, 11.3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest

from durable_streams import (
    AppendResult,
    BackoffOptions,
    ConflictError,
    DurableStream,
    DurableStreamError,
    FetchError,
    InvalidArgumentError,
    NetworkError,
    ProducerStamp,
    RetentionGoneError,
    SeqConflictError,
    StreamClosedError,
    StreamNotFoundError,
    Transport,
)
from tests.client.answers import AT_ONCE, BYTES, JSON, TEXT, connections, error, flags
from tests.client.memory import Answer, MemoryTransport, reset
from tests.scripted import DROP, RESET, Reply, ScriptedServer

pytestmark = pytest.mark.anyio

URL = "http://host/s"


def appended(offset: str | None = "1", **rest: Any) -> Reply:
    return Reply(204, headers=flags(offset, **rest))


def memory(*script: Any, content_type: str | None = TEXT, **options: Any) -> tuple[DurableStream, MemoryTransport]:
    """A handle whose answers come from a script, at once."""
    transport = MemoryTransport(*script)
    options = {"backoff_options": AT_ONCE, **options}
    return DurableStream(URL, content_type=content_type, transport=transport, **options), transport


# -- Framing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "body", "sent"),
    [
        (BYTES, b"\x00\xff", b"\x00\xff"),
        (BYTES, bytearray(b"ab"), b"ab"),
        (BYTES, memoryview(b"abc")[1:], b"bc"),
        (TEXT, "gr\u00fc\u00df", "gr\u00fc\u00df".encode()),
        (JSON, b'{"a": 1}', b'[{"a": 1}]'),
        (JSON, "[1,2]", b"[[1,2]]"),
        (JSON, "null", b"[null]"),
        ("Application/JSON; charset=utf-8", "1", b"[1]"),
        ("application/x+json", "1", b"1"),
    ],
)
async def test_json_messages_are_wrapped_exactly_once_and_others_sent_as_they_are(
    content_type: str, body: Any, sent: bytes
) -> None:
    async with ScriptedServer(lambda request: appended()) as server:
        handle = DurableStream(server.url + "/s", content_type=content_type)
        await handle.append(body)  # a request of its own
        async with handle:
            await handle.append(body)  # a batch of one
            await handle.append(body, producer=ProducerStamp("p", 0, 0))

    assert [request.body for request in server.requests] == [sent] * 3
    assert {request.headers["content-type"] for request in server.requests} == {content_type}
    assert {(request.method, request.target) for request in server.requests} == {("POST", "/s")}


async def test_append_json_writes_values() -> None:
    async with ScriptedServer(lambda request: appended()) as server, DurableStream(server.url + "/s") as handle:
        for value in ({"a": [1, None]}, [1, 2], "text", None, 12345678901234567890123, "\u2028"):
            await handle.append_json(value)

    assert [request.body.decode() for request in server.requests] == [
        '[{"a":[1,null]}]',
        "[[1,2]]",
        '["text"]',
        "[null]",
        "[12345678901234567890123]",
        '["\u2028"]',
    ]
    assert [request.method for request in server.requests] == ["POST"] * 6  # it knows the framing without asking


@pytest.mark.parametrize("value", [{"a": 1}, [1], (1,), 1, 1.5, True])
async def test_a_json_value_given_to_append_is_a_type_error_that_names_append_json(value: Any) -> None:
    handle, transport = memory()

    with pytest.raises(TypeError, match="append_json"):
        await handle.append(value)

    assert transport.sent == []


@pytest.mark.parametrize("value", [object(), {1: 2}, {"a": {1, 2}}])
async def test_what_is_no_json_value_is_a_type_error(value: Any) -> None:
    handle, transport = memory(content_type=JSON)

    with pytest.raises(TypeError):
        await handle.append_json(value)

    assert transport.sent == []


@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
async def test_numbers_that_json_has_not_are_refused(value: Any) -> None:
    handle, transport = memory(content_type=JSON)

    with pytest.raises(InvalidArgumentError):
        await handle.append_json(value)

    assert transport.sent == []


@pytest.mark.parametrize("body", [b"", ""])
async def test_an_empty_body_is_refused(body: Any) -> None:
    handle, transport = memory(content_type=None)

    for call in (handle.append, handle.close_stream):
        with pytest.raises(InvalidArgumentError, match="empty"):
            await call(body)

    assert transport.sent == []


async def test_a_blank_json_message_is_refused_and_others_on_demand() -> None:
    handle, transport = memory(Answer(204), content_type=JSON)

    for body, validate_json in ((b" \n", False), (b"{", True), (b"1,2", True), (b"NaN", True)):
        with pytest.raises(InvalidArgumentError):
            await handle.append(body, validate_json=validate_json)
    await handle.append(b"{")

    assert [sent.body for sent in transport.sent] == [b"[{]"]


async def test_append_json_on_another_type_of_stream_is_refused() -> None:
    handle, transport = memory(content_type=TEXT)

    with pytest.raises(InvalidArgumentError, match="text/plain"):
        await handle.append_json(1)

    assert transport.sent == []


# -- Content type ----------------------------------------------------------------------------------------------------


async def test_an_unknown_content_type_is_asked_for_once() -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(headers=flags("1", content_type=JSON)), appended(), appended(), appended(), appended())
        async with DurableStream(server.url + "/s", params={"p": "1"}) as handle:
            await handle.append("1", headers={"x": "y"}, params={"q": "2"})
            await handle.append("2")
            await handle.append_stream([b"3"])
            await handle.close_stream("4")

    assert [(request.method, request.body) for request in server.requests] == [
        ("HEAD", b""),
        ("POST", b"[1]"),
        ("POST", b"[2]"),
        ("POST", b"3"),
        ("POST", b"[4]"),
    ]
    assert server.requests[0].query == {"p": "1", "q": "2"}
    assert server.requests[0].headers["x"] == "y"


async def test_a_missing_stream_is_found_when_the_content_type_is_asked_for() -> None:
    async with ScriptedServer() as server:
        server.replies(error(404))
        async with DurableStream(server.url + "/s") as handle:
            with pytest.raises(StreamNotFoundError, match=server.url):
                await handle.append("1")

    assert [request.method for request in server.requests] == ["HEAD"]


async def test_a_server_that_names_no_content_type_means_bytes() -> None:
    handle, transport = memory(Answer(200), Answer(204), content_type=None)

    await handle.append("x")

    assert transport.sent[1].headers["content-type"] == BYTES


async def test_the_content_type_of_a_write_comes_from_call_then_handle_then_user_header() -> None:
    async def later() -> str:
        return "text/csv"

    async with ScriptedServer(lambda request: appended()) as server:
        async with DurableStream(server.url + "/s", headers={"Content-Type": later}) as handle:
            await handle.append("a")
            await handle.append("b", headers={"CONTENT-TYPE": "text/html"})
            await handle.append("c", content_type="text/xml", headers={"content-type": "text/html"})
        async with DurableStream(server.url + "/s", content_type=JSON, headers={"content-type": "text/css"}) as handle:
            await handle.append("1")

    assert [request.headers["content-type"] for request in server.requests] == [
        "text/csv",
        "text/html",
        "text/xml",
        JSON,
    ]
    assert server.requests[-1].body == b"[1]"


async def test_a_user_s_content_type_header_is_checked() -> None:
    handle, transport = memory(content_type=None, headers={"content-type": "nonsense"})

    with pytest.raises(InvalidArgumentError, match="content_type"):
        await handle.append("x")

    assert transport.sent == []


async def test_a_message_that_waits_for_the_content_type_is_not_overtaken() -> None:
    async with ScriptedServer() as server:
        hold = anyio.Event()
        server.replies(Reply(headers=flags(content_type=TEXT), hold=hold), *[appended()] * 5)
        async with DurableStream(server.url + "/s", batching=False) as handle:
            calls: list[Callable[[], Any]] = [
                lambda: handle.append("1"),
                lambda: handle.append("2"),
                lambda: handle.append("3", content_type=TEXT),
                lambda: handle.append_stream(["4"]),
                handle.close_stream,
            ]
            async with anyio.create_task_group() as tasks:
                for call in calls:
                    tasks.start_soon(call)
                    await anyio.wait_all_tasks_blocked()
                assert [request.method for request in server.requests] == ["HEAD"]
                hold.set()

    assert [request.body for request in server.requests] == [b"", b"1", b"2", b"3", b"4", b""]
    assert "stream-closed" in server.requests[-1].headers


async def test_cancelling_the_one_who_asks_for_the_content_type_lets_the_next_ask() -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(hold=anyio.Event()), Reply(headers=flags(content_type=TEXT)), appended())
        async with DurableStream(server.url + "/s") as handle, anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                tasks.start_soon(cancel_when, scope, lambda: server.wait_requests(1))
                tasks.start_soon(handle.append, "second")
                await handle.append("first")

    assert [(request.method, request.body) for request in server.requests] == [
        ("HEAD", b""),
        ("HEAD", b""),
        ("POST", b"second"),
    ]


async def cancel_when(scope: anyio.CancelScope, ready: Callable[[], Any]) -> None:
    await ready()
    await anyio.wait_all_tasks_blocked()
    scope.cancel()


# -- Results ---------------------------------------------------------------------------------------------------------


async def test_the_result_tells_offset_status_and_headers() -> None:
    handle, _ = memory(
        Answer(204, flags("7", etag="e")), Answer(200, flags(closed=True)), Answer(204, {"stream-next-offset": ""})
    )

    assert await handle.append("x") == AppendResult(204, flags("7", etag="e"), next_offset="7", stream_closed=False)
    second = await handle.append("x")
    assert (second.next_offset, second.stream_closed, second.outcome, second.duplicate) == (None, True, "stored", False)
    assert (await handle.append("x")).next_offset is None


async def test_headers_of_seq_and_of_the_user_are_sent() -> None:
    handle, transport = memory(Answer(204), headers={"authorization": "a"})

    await handle.append("x", seq="0007", headers={"x-own": "1"}, params={"p": "q"})

    sent = transport.sent[0]
    assert {name: sent.headers.get(name) for name in ("stream-seq", "authorization", "x-own", "content-type")} == {
        "stream-seq": "0007",
        "authorization": "a",
        "x-own": "1",
        "content-type": TEXT,
    }
    assert sent.url == URL + "?p=q"


@pytest.mark.parametrize(
    ("answer", "seq", "kind", "code"),
    [
        (Answer(409, flags("9", closed=True)), None, StreamClosedError, "STREAM_CLOSED"),
        (Answer(409, flags("9", closed=True)), "1", StreamClosedError, "STREAM_CLOSED"),
        (Answer(409), "1", SeqConflictError, "CONFLICT_SEQ"),
        (Answer(409, {}, [b"content type mismatch"]), None, ConflictError, "CONFLICT"),
        (Answer(400), None, DurableStreamError, "BAD_REQUEST"),
        (Answer(401), None, DurableStreamError, "UNAUTHORIZED"),
        (Answer(403), None, DurableStreamError, "FORBIDDEN"),
        (Answer(404), None, StreamNotFoundError, "NOT_FOUND"),
        (Answer(410), None, RetentionGoneError, "GONE"),
        (Answer(413), None, FetchError, "UNKNOWN"),
        (Answer(304), None, FetchError, "UNKNOWN"),
        (Answer(501), None, FetchError, "UNKNOWN"),
    ],
)
async def test_refusals_are_final_and_have_names(answer: Answer, seq: str | None, kind: type, code: str) -> None:
    handle, transport = memory(answer)

    with pytest.raises(kind) as caught:
        await handle.append("12345", seq=seq)

    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.status, caught.value.url) == (code, answer.status, URL)
    assert not caught.value.maybe_applied
    assert len(transport.sent) == 1


async def test_refusals_carry_what_helps() -> None:
    handle, _ = memory(
        Answer(409, flags("9", closed=True)), Answer(409, {}, [b"type is text/html"]), Answer(413), Answer(413)
    )

    with pytest.raises(StreamClosedError) as closed:
        await handle.append("x")
    assert (closed.value.final_offset, closed.value.stream_closed) == ("9", True)
    with pytest.raises(ConflictError, match="type is text/html") as conflict:
        await handle.append("x")
    assert conflict.value.details == "type is text/html"
    with pytest.raises(FetchError, match="5 bytes"):
        await handle.append("12345")
    with pytest.raises(FetchError, match="too large for the server \\(413\\)"):
        await handle.append_stream(["12345"])  # nobody has counted them


# -- Repeating -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_these_answers_to_an_append_are_repeated(status: int) -> None:
    handle, transport = memory(Answer(status), Answer(204))

    await handle.append("x")

    assert [sent.body for sent in transport.sent] == [b"x", b"x"]


async def test_a_failure_to_connect_is_repeated() -> None:
    handle, transport = memory(reset("connect"), reset("connect"), Answer(204))

    await handle.append("x")

    assert len(transport.sent) == 3


@pytest.mark.parametrize("phase", ["sent", "body"])
async def test_a_failure_after_sending_is_ambiguous_and_final(phase: Any) -> None:
    handle, transport = memory(reset(phase))

    with pytest.raises(NetworkError, match="may have been applied") as caught:
        await handle.append("x")

    assert (caught.value.code, caught.value.maybe_applied, caught.value.retryable) == ("NETWORK_ERROR", True, False)
    assert len(transport.sent) == 1


async def test_an_ambiguous_failure_after_failures_to_connect_is_final_too() -> None:
    handle, transport = memory(reset("connect"), reset())

    with pytest.raises(NetworkError) as caught:
        await handle.append("x")

    assert caught.value.maybe_applied
    assert len(transport.sent) == 2


async def test_ambiguous_appends_are_repeated_if_asked_for() -> None:
    handle, transport = memory(reset(), Answer(204), retry_ambiguous_appends=True)

    await handle.append("x")

    assert len(transport.sent) == 2


async def test_an_append_with_seq_is_repeated_and_a_conflict_then_is_ambiguous() -> None:
    handle, transport = memory(reset(), Answer(204), reset(), Answer(409), Answer(409))

    await handle.append("x", seq="1")
    with pytest.raises(SeqConflictError) as ambiguous:
        await handle.append("y", seq="2")
    with pytest.raises(SeqConflictError) as plain:
        await handle.append("z", seq="2")

    assert [error.maybe_applied for error in (ambiguous.value, plain.value)] == [True, False]
    assert len(transport.sent) == 5


@pytest.mark.parametrize(("status", "maybe"), [(502, True), (504, True), (500, False), (503, False), (429, False)])
@pytest.mark.parametrize("retries", [0, 1])
async def test_a_gateway_that_gave_up_may_hide_a_stored_append(status: int, maybe: bool, retries: int) -> None:
    backoff = BackoffOptions(1e-6, 1e-6, max_retries=retries)
    handle, _ = memory(*[Answer(status)] * (retries + 1), Answer(status), Answer(400), backoff_options=backoff)

    with pytest.raises(DurableStreamError) as last:
        await handle.append("x")
    assert (last.value.status, last.value.maybe_applied, last.value.retryable) == (status, maybe, not maybe)
    if retries:
        with pytest.raises(DurableStreamError) as later:
            await handle.append("x")
        assert (later.value.status, later.value.maybe_applied) == (400, maybe)


async def test_max_retries_holds_for_appends() -> None:
    handle, transport = memory(*[Answer(503)] * 3, backoff_options=BackoffOptions(1e-6, 1e-6, max_retries=2))

    with pytest.raises(DurableStreamError) as caught:
        await handle.append("x")

    assert caught.value.code == "BUSY"
    assert len(transport.sent) == 3


@pytest.mark.parametrize("reply", [DROP, RESET])
async def test_an_append_whose_answer_is_lost_is_ambiguous_on_a_real_socket(reply: Reply) -> None:
    async with ScriptedServer() as server:
        server.replies(reply)
        async with DurableStream(server.url + "/s", content_type=TEXT) as handle:
            with pytest.raises(NetworkError) as caught:
                await handle.append("x")

    assert (caught.value.phase, caught.value.maybe_applied) == ("sent", True)
    assert len(server.requests) == 1


async def test_nobody_listening_is_certainly_not_applied() -> None:
    backoff = BackoffOptions(1e-6, 1e-6, max_retries=2)
    async with DurableStream("http://127.0.0.1:9/s", content_type=TEXT, backoff_options=backoff) as handle:
        with pytest.raises(NetworkError) as caught:
            await handle.append("x")

    assert (caught.value.phase, caught.value.maybe_applied, caught.value.retryable) == ("connect", False, True)


async def test_a_success_whose_body_breaks_is_a_success() -> None:
    handle, transport = memory(Answer(200, flags("5"), [b"wor", reset("body")]))

    assert (await handle.append("x")).next_offset == "5"
    assert transport.open_exchanges == 0


async def test_an_error_whose_body_breaks_keeps_its_status() -> None:
    handle, transport = memory(Answer(409, flags("5", closed=True), [b"wor", reset("body")]))

    with pytest.raises(StreamClosedError, match="wor"):
        await handle.append("x")
    assert transport.open_exchanges == 0


async def test_endless_bodies_are_not_read_to_the_end(transport: Transport) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1024

    async with ScriptedServer(lambda request: Reply(200 if request.body == b"1" else 400, chunks=endless())) as server:
        handle = DurableStream(server.url + "/s", content_type=TEXT, transport=transport)
        await handle.append("1")
        assert connections(transport).startswith("0 open")
        with pytest.raises(DurableStreamError) as caught:
            await handle.append("2")
        assert connections(transport).startswith("0 open")

    assert len(caught.value.details) == 64 * 1024


# -- Streamed bodies -------------------------------------------------------------------------------------------------


async def pieces() -> AsyncIterator[bytes | str]:
    for piece in (b"a", "", "\u00e9", b"c"):
        await anyio.lowlevel.checkpoint()
        yield piece


def plain_pieces() -> Iterator[bytes | str]:
    yield from (b"a", "", "\u00e9", b"c")


@pytest.mark.parametrize("source", [pieces, plain_pieces, lambda: [b"a", "\u00e9c"]])
@pytest.mark.parametrize("content_type", [TEXT, JSON])
async def test_a_streamed_append_sends_one_chunked_body_as_it_is(source: Callable[[], Any], content_type: str) -> None:
    async with (
        ScriptedServer(lambda request: appended("9")) as server,
        DurableStream(server.url + "/s", content_type=content_type) as handle,
    ):
        result = await handle.append_stream(source(), seq="1", headers={"x": "y"}, params={"p": "1"})

    [request] = server.requests
    assert (request.body, request.headers["transfer-encoding"]) == ("a\u00e9c".encode(), "chunked")
    assert (request.headers["content-type"], request.headers["stream-seq"]) == (content_type, "1")
    assert (request.headers["x"], request.query) == ("y", {"p": "1"})
    assert result.next_offset == "9"


async def test_a_streamed_append_is_sent_while_it_is_produced() -> None:
    async with ScriptedServer(lambda request: appended()) as server:
        heads: list[str] = []

        async def source() -> AsyncIterator[bytes]:
            yield b"first"
            await server_saw_head.wait()
            yield b"last"

        server_saw_head = anyio.Event()

        def on_head(request: Any) -> None:
            heads.append(request.method)
            server_saw_head.set()

        server._on_head = on_head
        async with DurableStream(server.url + "/s", content_type=TEXT) as handle:
            await handle.append_stream(source())

    assert heads == ["POST"]
    assert server.requests[0].body == b"firstlast"


@pytest.mark.parametrize("failure", [Answer(503), Answer(429), reset("connect"), reset()])
async def test_a_streamed_append_is_never_repeated(failure: Any) -> None:
    handle, transport = memory(failure)

    with pytest.raises(DurableStreamError) as caught:
        await handle.append_stream([b"x"], seq="1")

    assert caught.value.maybe_applied is (isinstance(failure, NetworkError) and failure.phase == "sent")
    assert len(transport.sent) == 1


async def test_an_exception_of_the_source_is_raised_and_nothing_is_stored() -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"part"
        raise LookupError("no more")

    async with (
        ScriptedServer(lambda request: appended()) as server,
        DurableStream(server.url + "/s", content_type=TEXT) as handle,
    ):
        with pytest.raises(LookupError):
            await handle.append_stream(source())
        await server.wait_incomplete(1)
        assert (await handle.append("next")).next_offset == "1"

    assert [request.body for request in server.requests] == [b"next"]
    assert [request.body for request in server.incomplete] == [b"part"]


@pytest.mark.parametrize("source", ["text", b"bytes", bytearray(b"x"), 5, None, [1], [None]])
async def test_a_source_of_anything_else_is_a_type_error(source: Any) -> None:
    async with ScriptedServer() as server, DurableStream(server.url + "/s", content_type=TEXT) as handle:
        with pytest.raises(TypeError, match="source"):
            await handle.append_stream(source)

    assert server.requests == []


# -- Raw producer appends --------------------------------------------------------------------------------------------


def stamped(status: int, **headers: str) -> Answer:
    return Answer(status, flags(**headers))


@pytest.mark.parametrize(
    ("answer", "outcome", "numbers"),
    [
        (stamped(200, offset="3", producer_epoch="1", producer_seq="2"), "stored", (1, 2, None, None)),
        (stamped(204, producer_epoch="1", producer_seq="5"), "duplicate", (1, 5, None, None)),
        (stamped(403, producer_epoch="4"), "stale-epoch", (4, None, None, None)),
        (
            stamped(409, producer_expected_seq="1", producer_received_seq="2"),
            "gap",
            (None, None, 1, 2),
        ),
        (stamped(200, producer_epoch="x", producer_seq="99999999999999999999"), "stored", (None, None, None, None)),
    ],
)
async def test_a_raw_producer_append_reports_the_server_s_decision(
    answer: Answer, outcome: str, numbers: tuple[Any, ...]
) -> None:
    handle, transport = memory(answer, content_type=JSON)

    result = await handle.append("{}", producer=ProducerStamp("p-1", 1, 2))

    assert (result.outcome, result.duplicate) == (outcome, outcome == "duplicate")
    assert (result.epoch, result.seq, result.expected_seq, result.received_seq) == numbers
    headers = transport.sent[0].headers
    assert [headers[name] for name in ("producer-id", "producer-epoch", "producer-seq")] == ["p-1", "1", "2"]
    assert transport.sent[0].body == b"[{}]"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (stamped(403), DurableStreamError),
        (stamped(409, stream_closed="true", producer_expected_seq="1"), StreamClosedError),
        (stamped(409), ConflictError),
        (stamped(400), DurableStreamError),
    ],
)
async def test_other_refusals_of_a_raw_producer_append_are_errors(answer: Answer, kind: type) -> None:
    handle, _ = memory(answer)

    with pytest.raises(kind) as caught:
        await handle.append("x", producer=ProducerStamp("p", 0, 0))

    assert type(caught.value) is kind


async def test_a_raw_producer_append_is_safe_to_repeat() -> None:
    handle, transport = memory(reset(), Answer(502), Answer(507), stamped(204, producer_epoch="0", producer_seq="0"))

    result = await handle.append("x", producer=ProducerStamp("p", 0, 0))

    assert result.duplicate
    assert len({(sent.body, tuple(sorted(sent.headers.items()))) for sent in transport.sent}) == 1


async def test_the_producer_s_headers_win_over_the_user_s() -> None:
    handle, transport = memory(Answer(200), headers={"Producer-Id": "evil", "Producer-Seq": "9", "content-type": "x/y"})

    await handle.append("x", producer=ProducerStamp("p", 0, 0), headers={"producer-epoch": "7"})

    headers = transport.sent[0].headers
    assert [headers[name] for name in ("producer-id", "producer-epoch", "producer-seq", "content-type")] == [
        *("p", "0", "0"),
        TEXT,
    ]


@pytest.mark.parametrize(
    ("stamp", "kind"),
    [
        (("p", 0, 0), TypeError),
        (ProducerStamp("", 0, 0), InvalidArgumentError),
        (ProducerStamp("a\nb", 0, 0), InvalidArgumentError),
        (ProducerStamp(" p", 0, 0), InvalidArgumentError),
        (ProducerStamp(1, 0, 0), TypeError),  # type: ignore[arg-type]
        (ProducerStamp("p", -1, 0), InvalidArgumentError),
        (ProducerStamp("p", 0, -1), InvalidArgumentError),
        (ProducerStamp("p", 2**53, 0), InvalidArgumentError),
        (ProducerStamp("p", 0, 2**53), InvalidArgumentError),
        (ProducerStamp("p", True, 0), TypeError),
        (ProducerStamp("p", 0, "1"), TypeError),  # type: ignore[arg-type]
    ],
)
async def test_stamps_are_checked_before_anything_is_sent(stamp: Any, kind: type[Exception]) -> None:
    handle, transport = memory(content_type=None)

    with pytest.raises(kind, match="producer"):
        await handle.append("x", producer=stamp)

    assert transport.sent == []
