"""A handle's operations but for appending: create, connect, head, delete, close, fork (client 11.1, 11.2, 11.5)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anyio
import pytest

from durable_streams import (
    BackoffOptions,
    CloseResult,
    ConflictError,
    CreateResult,
    DeleteResult,
    DurableStream,
    DurableStreamError,
    HeadResult,
    InvalidArgumentError,
    NetworkError,
    RetentionGoneError,
    StreamClosedError,
    StreamExistsError,
    StreamNotFoundError,
)
from tests.client.answers import AT_ONCE, BYTES, JSON, TEXT, error, flags
from tests.client.memory import Answer, MemoryTransport, reset
from tests.scripted import Reply, ScriptedServer

pytestmark = pytest.mark.anyio

URL = "http://host/v1/s"


def memory(*script: Any, **options: Any) -> tuple[DurableStream, MemoryTransport]:
    """A handle whose answers come from a script, at once."""
    transport = MemoryTransport(*script)
    return DurableStream(URL, transport=transport, backoff_options=AT_ONCE, **options), transport


def own_headers(headers: Any) -> dict[str, str]:
    """What the protocol put into a request."""
    return {name: value for name, value in headers.items() if name.startswith("stream-") or name == "content-type"}


# -- create ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "headers", "body"),
    [
        ({}, {}, b""),
        ({"content_type": JSON}, {"content-type": JSON}, b""),
        ({"ttl_seconds": 0}, {"stream-ttl": "0"}, b""),
        ({"ttl_seconds": 3600}, {"stream-ttl": "3600"}, b""),
        ({"expires_at": "2030-01-01T00:00:00Z"}, {"stream-expires-at": "2030-01-01T00:00:00Z"}, b""),
        (
            {"expires_at": datetime(2030, 1, 1, tzinfo=UTC)},
            {"stream-expires-at": "2030-01-01T00:00:00+00:00"},
            b"",
        ),
        (
            {"expires_at": datetime(2030, 1, 1, 1, 2, 3, tzinfo=timezone(timedelta(hours=-5)))},
            {"stream-expires-at": "2030-01-01T01:02:03-05:00"},
            b"",
        ),
        ({"closed": True}, {"stream-closed": "true"}, b""),
        (
            {"content_type": JSON, "body": "[1,2]", "closed": True},
            {"content-type": JSON, "stream-closed": "true"},
            b"[1,2]",  # as it is: two messages
        ),
        ({"body": bytearray(b"x")}, {}, b"x"),
    ],
)
async def test_create_is_one_put(options: dict[str, Any], headers: dict[str, str], body: bytes) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(201, headers=flags("0", content_type=JSON, location="/s")))
        async with DurableStream(server.url + "/s") as handle:
            result = await handle.create(**options, headers={"x": "y"}, params={"p": "1"})

    [request] = server.requests
    assert (request.method, request.target, request.body) == ("PUT", "/s?p=1", body)
    assert own_headers(request.headers) == headers
    assert request.headers["x"] == "y"
    assert (result.status, result.created, result.offset) == (201, True, "0")
    assert (result.content_type, result.stream_closed, result.headers["location"]) == (JSON, False, "/s")


async def test_create_tells_whether_the_stream_was_there() -> None:
    handle, _ = memory(Answer(201, flags(closed=True)), Answer(200, flags("7", content_type=TEXT)))

    first = await handle.create(content_type=JSON)
    assert (first.created, first.stream_closed, first.content_type, first.offset) == (True, True, JSON, None)
    second = await handle.create()
    assert (second.created, second.stream_closed, second.content_type, second.offset) == (False, False, TEXT, "7")


async def test_a_200_after_an_unanswered_try_may_be_our_own() -> None:
    handle, transport = memory(
        *(reset(), Answer(200)), *(Answer(504), Answer(200)), *(reset("connect"), Answer(200)), *(reset(), Answer(201))
    )

    assert [(await handle.create()).created for _ in range(4)] == [None, None, False, True]
    assert len(transport.sent) == 8


async def test_a_stream_with_another_configuration_is_a_conflict() -> None:
    handle, _ = memory(Answer(409, {}, [b"ttl differs"]), Answer(409, flags("9", closed=True)))

    with pytest.raises(StreamExistsError, match="ttl differs") as exists:
        await handle.create()
    with pytest.raises(StreamClosedError) as closed:
        await handle.create()

    assert (exists.value.code, closed.value.code, closed.value.final_offset) == (
        "CONFLICT_EXISTS",
        "STREAM_CLOSED",
        "9",
    )


@pytest.mark.parametrize("conflict", [Answer(409), Answer(409, flags("9", closed=True))])
async def test_create_or_connect_takes_what_is_there(conflict: Answer) -> None:
    handle, transport = memory(
        Answer(201, flags("0", content_type=JSON)), conflict, Answer(200, flags("9", content_type=TEXT, closed=True))
    )

    assert (await handle.create_or_connect(content_type=JSON)).created is True
    found = await handle.create_or_connect(content_type=JSON)

    assert isinstance(found, CreateResult)
    assert (found.created, found.offset, found.content_type, found.stream_closed) == (False, "9", TEXT, True)
    assert [sent.method for sent in transport.sent] == ["PUT", "PUT", "HEAD"]
    assert handle.content_type == TEXT


async def test_create_remembers_the_content_type() -> None:
    handle, transport = memory(Answer(201, flags(content_type=JSON)), Answer(204), content_type="application/x")

    await handle.create()
    await handle.append("1")

    assert handle.content_type == JSON
    assert [sent.headers["content-type"] for sent in transport.sent] == ["application/x", JSON]
    assert transport.sent[1].body == b"[1]"


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"ttl_seconds": 1, "expires_at": "2030-01-01T00:00:00Z"}, InvalidArgumentError, "ttl_seconds and expires_at"),
        ({"ttl_seconds": -1}, InvalidArgumentError, "ttl_seconds"),
        ({"ttl_seconds": 1.5}, TypeError, "ttl_seconds"),
        ({"ttl_seconds": True}, TypeError, "ttl_seconds"),
        ({"ttl_seconds": "60"}, TypeError, "ttl_seconds"),
        ({"ttl_seconds": 2**53}, InvalidArgumentError, "ttl_seconds"),
        ({"expires_at": datetime(2030, 1, 1)}, InvalidArgumentError, "time zone"),
        ({"expires_at": "tomorrow"}, InvalidArgumentError, "RFC 3339"),
        ({"expires_at": "2030-02-30T00:00:00Z"}, InvalidArgumentError, "RFC 3339"),
        ({"expires_at": 5}, TypeError, "expires_at"),
        ({"content_type": "json"}, InvalidArgumentError, "content_type"),
        ({"content_type": "a/b\r\nx: y"}, InvalidArgumentError, "content_type"),
        ({"content_type": 5}, TypeError, "content_type"),
        ({"body": {"a": 1}}, TypeError, "body"),
        ({"headers": {"bad name": "x"}}, InvalidArgumentError, "header name"),
        ({"headers": {"x": 5}}, TypeError, "headers"),
        ({"headers": "x"}, TypeError, "headers"),
        ({"params": {"": "x"}}, InvalidArgumentError, "params"),
        ({"params": {"x": 5}}, TypeError, "params"),
        ({"params": {5: "x"}}, TypeError, "params"),
    ],
)
async def test_arguments_of_create_and_fork_are_checked_before_anything_is_sent(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    handle, transport = memory()

    for call in (handle.create, handle.create_or_connect, lambda **more: handle.fork("/f", **more)):
        with pytest.raises(kind, match=words):
            await call(**options)

    assert transport.sent == []


# -- connect and head ------------------------------------------------------------------------------------------------


async def test_head_tells_everything_and_reads_no_body() -> None:
    headers = flags("9", content_type=JSON, closed=True, etag='"e"', cache_control="no-store", stream_ttl="60")
    headers["stream-expires-at"] = "2030-01-01T00:00:00Z"

    async with ScriptedServer() as server:
        server.replies(
            Reply(200, headers={**headers, "content-length": "1000"}), Reply(200, headers={"stream-ttl": "x"})
        )
        async with DurableStream(server.url + "/s") as handle:
            result = await handle.head()
            assert handle.content_type == JSON
            bare = await handle.head()
            assert handle.content_type == JSON

    assert [request.method for request in server.requests] == ["HEAD", "HEAD"]
    assert result == HeadResult(
        200,
        {**headers, "content-length": "1000"},
        exists=True,
        content_type=JSON,
        offset="9",
        etag='"e"',
        cache_control="no-store",
        stream_closed=True,
        ttl_seconds=60,
        expires_at="2030-01-01T00:00:00Z",
    )
    assert (bare.exists, bare.content_type, bare.offset, bare.ttl_seconds, bare.stream_closed) == (
        *(True, None, None, None),
        False,
    )


async def test_a_missing_stream_is_no_error_for_head_and_one_for_connect() -> None:
    async with ScriptedServer(lambda request: error(404)) as server, DurableStream(server.url + "/s") as handle:
        head = await handle.head()
        with pytest.raises(StreamNotFoundError, match=server.url) as caught:
            await handle.connect()

    assert (head.exists, head.status, head.offset) == (False, 404, None)
    assert caught.value.code == "NOT_FOUND"


@pytest.mark.parametrize("name", ["head", "connect"])
async def test_head_requests_are_repeated(name: str) -> None:
    handle, transport = memory(reset(), Answer(503), reset("connect"), Answer(200, flags("1", content_type=TEXT)))

    result = await getattr(handle, name)()

    assert (result.exists, result.offset, handle.content_type) == (True, "1", TEXT)
    assert len(transport.sent) == 4


@pytest.mark.parametrize("name", ["head", "connect", "delete", "create", "close_stream"])
async def test_a_stream_that_forks_still_need_is_gone(name: str) -> None:
    handle, _ = memory(Answer(410, {"stream-earliest-offset": "5"}))

    with pytest.raises(RetentionGoneError) as caught:
        await getattr(handle, name)()

    assert (caught.value.code, caught.value.earliest_offset) == ("GONE", "5")


@pytest.mark.parametrize("status", [304, 205, 302, 500, 501])
async def test_a_head_with_a_strange_status_ends(status: int) -> None:
    transport = MemoryTransport(*[Answer(status)] * 2)
    handle = DurableStream(URL, transport=transport, backoff_options=BackoffOptions(1e-6, 1e-6, max_retries=1))

    with pytest.raises(DurableStreamError) as caught:
        await handle.head()

    assert caught.value.status == status
    assert len(transport.sent) == (2 if status == 500 else 1)


# -- delete ----------------------------------------------------------------------------------------------------------


async def test_delete_deletes_and_forgets_the_content_type() -> None:
    handle, transport = memory(
        Answer(204, {"x": "y"}), Answer(200, flags(content_type=JSON)), Answer(204), content_type=TEXT
    )

    assert await handle.delete() == DeleteResult(204, {"x": "y"})
    assert handle.content_type is None
    await handle.append("1")

    assert [sent.method for sent in transport.sent] == ["DELETE", "HEAD", "POST"]


async def test_deleting_what_is_not_there_is_an_error_unless_we_may_have_done_it() -> None:
    handle, _ = memory(
        Answer(404),
        *(reset(), Answer(404)),
        *(Answer(502), Answer(404)),
        *(reset(), Answer(410)),
        *(reset("connect"), Answer(404)),
        *(Answer(503), Answer(404)),
    )

    with pytest.raises(StreamNotFoundError):
        await handle.delete()
    assert [(await handle.delete()).status for _ in range(3)] == [404, 404, 410]
    for _ in range(2):
        with pytest.raises(StreamNotFoundError):
            await handle.delete()


# -- close_stream ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "options", "sent", "sent_type"),
    [
        (None, {}, b"", None),
        (JSON, {}, b"", None),
        (JSON, {"body": "[1]"}, b"[[1]]", JSON),
        (TEXT, {"body": b"bye"}, b"bye", TEXT),
        (None, {"body": "bye", "content_type": BYTES}, b"bye", BYTES),
    ],
)
async def test_close_stream_is_one_post(
    content_type: str | None, options: dict[str, Any], sent: bytes, sent_type: str | None
) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(204, headers=flags("9", closed=True)))
        async with DurableStream(server.url + "/s", content_type=content_type) as handle:
            result = await handle.close_stream(**options, headers={"x": "y"}, params={"p": "1"})

    [request] = server.requests
    assert (request.method, request.target, request.body) == ("POST", "/s?p=1", sent)
    assert (request.headers["stream-closed"], request.headers.get("content-type")) == ("true", sent_type)
    assert result == CloseResult(204, flags("9", closed=True, **server_headers(result)), final_offset="9")


def server_headers(result: CloseResult) -> dict[str, str]:
    """Headers that come with any answer."""
    return {name: value for name, value in result.headers.items() if name in ("connection", "date")}


async def test_closing_again_succeeds_without_a_body_and_fails_with_one() -> None:
    handle, _ = memory(Answer(204, flags("", closed=True)), Answer(409, flags("9", closed=True)), content_type=TEXT)

    assert (await handle.close_stream()).final_offset is None
    with pytest.raises(StreamClosedError) as caught:
        await handle.close_stream("late")

    assert (caught.value.final_offset, caught.value.maybe_applied) == ("9", False)


async def test_closing_is_repeated_since_it_cannot_happen_twice() -> None:
    handle, transport = memory(
        *(reset(), Answer(204)),
        *(reset(), Answer(204)),
        *(reset(), Answer(409, flags("9", closed=True))),
        content_type=TEXT,
    )

    await handle.close_stream()
    await handle.close_stream("last")
    with pytest.raises(StreamClosedError) as caught:
        await handle.close_stream("last")

    assert caught.value.maybe_applied  # the body may be there by our first try
    assert len(transport.sent) == 6


async def test_releasing_a_handle_never_closes_the_stream() -> None:
    async with ScriptedServer(lambda request: Reply(204)) as server:
        async with DurableStream(server.url + "/s", content_type=TEXT) as handle:
            await handle.append("x")
        other = DurableStream(server.url + "/s", content_type=TEXT)
        await other.append("x")
        await other.aclose()

    assert ["stream-closed" in request.headers for request in server.requests] == [False, False]


# -- fork ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "target"),
    [("/v1/f", "/v1/f"), ("f", "/v1/f"), ("../x/f", "/x/f"), ("URL/v2/f", "/v2/f"), ("/f?a=1", "/f?a=1")],
)
async def test_a_fork_is_one_put_on_the_new_url(new: str, target: str) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(201, headers=flags("9", content_type=JSON)))
        async with DurableStream(server.url + "/v1/a%20b?q=1", content_type=JSON) as handle:
            fork = await handle.fork(new.replace("URL", server.url))

    [request] = server.requests
    assert (request.method, request.target, request.body) == ("PUT", target, b"")
    assert own_headers(request.headers) == {"stream-forked-from": "/v1/a%20b"}
    assert fork.content_type == JSON


async def test_a_fork_may_have_an_offset_and_a_life_of_its_own() -> None:
    handle, transport = memory(Answer(201))

    await handle.fork(
        "/f", offset="5_0", sub_offset=3, content_type=TEXT, ttl_seconds=9, body="own", closed=True, headers={"x": "y"}
    )

    [sent] = transport.sent
    assert own_headers(sent.headers) == {
        "stream-forked-from": "/v1/s",
        "stream-fork-offset": "5_0",
        "stream-fork-sub-offset": "3",
        "stream-ttl": "9",
        "stream-closed": "true",
        "content-type": TEXT,
    }
    assert (sent.body, sent.headers["x"]) == (b"own", "y")


async def test_a_fork_is_a_clean_handle_with_the_same_defaults() -> None:
    handle, transport = memory(
        Answer(201, flags(content_type=JSON)),
        Answer(204),
        Answer(204),
        headers={"authorization": "a"},
        params={"p": "1"},
    )

    fork = await handle.fork("f", offset="5", headers={"x": "once"})
    await fork.append("1")
    await handle.append("2", content_type=TEXT)

    assert fork.url == "http://host/v1/f"
    assert [sent.url for sent in transport.sent] == ["http://host/v1/f?p=1", "http://host/v1/f?p=1", URL + "?p=1"]
    assert own_headers(transport.sent[1].headers) == {"content-type": JSON}
    assert "x" not in transport.sent[1].headers
    assert transport.sent[1].headers["authorization"] == "a"
    assert own_headers(transport.sent[2].headers) == {"content-type": TEXT}


async def test_a_fork_s_url_may_bring_other_credentials() -> None:
    transport = MemoryTransport(Answer(201))
    handle = DurableStream("http://u:one@host/s", transport=transport)

    await handle.fork("http://u:two@host/f")

    assert transport.sent[0].headers["authorization"] == "Basic dTp0d28="


@pytest.mark.parametrize(
    ("new", "options", "kind", "words"),
    [
        ("http://other/f", {}, InvalidArgumentError, "one server"),
        ("https://host/f", {}, InvalidArgumentError, "one server"),
        ("http://host:81/f", {}, InvalidArgumentError, "one server"),
        ("", {}, InvalidArgumentError, "new"),
        (None, {}, InvalidArgumentError, "new"),
        ("/f#x", {}, InvalidArgumentError, "fragment"),
        ("/f", {"offset": "-1"}, InvalidArgumentError, "offset"),
        ("/f", {"offset": "now"}, InvalidArgumentError, "offset"),
        ("/f", {"offset": "a/b"}, InvalidArgumentError, "offset"),
        ("/f", {"offset": 5}, TypeError, "offset"),
        ("/f", {"sub_offset": -1}, InvalidArgumentError, "sub_offset"),
        ("/f", {"sub_offset": True}, TypeError, "sub_offset"),
    ],
)
async def test_a_fork_that_cannot_be_is_refused(new: Any, options: Any, kind: type[Exception], words: str) -> None:
    handle, transport = memory()

    with pytest.raises(kind, match=words):
        await handle.fork(new, **options)

    assert transport.sent == []


@pytest.mark.parametrize(
    ("status", "kind"), [(404, StreamNotFoundError), (409, ConflictError), (400, DurableStreamError)]
)
async def test_a_refused_fork_says_why(status: int, kind: type[Exception]) -> None:
    handle, _ = memory(Answer(status, {}, [b"because"]))

    with pytest.raises(kind, match="because") as caught:
        await handle.fork("/f")

    assert "http://host/f" in str(caught.value)
    if status == 404:
        assert "fork from" in str(caught.value)


# -- Everything ------------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[DurableStream], Any]] = {
    "create": lambda handle: handle.create(),
    "connect": lambda handle: handle.connect(),
    "head": lambda handle: handle.head(),
    "delete": lambda handle: handle.delete(),
    "close_stream": lambda handle: handle.close_stream(),
    "append": lambda handle: handle.append("x", content_type=TEXT, seq="1"),
    "fork": lambda handle: handle.fork("/f"),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_lost_connections_are_repeated_at_once_where_that_is_safe(name: str) -> None:
    handle, transport = memory(reset(), reset("connect"), reset("body"), Answer(204))

    await OPERATIONS[name](handle)

    assert len(transport.sent) == 4
    assert transport.open_exchanges == 0


@pytest.mark.parametrize("name", OPERATIONS)
async def test_every_result_carries_status_and_headers(name: str) -> None:
    handle, _ = memory(Answer(204, {"X-Own": "1"}))

    result = await OPERATIONS[name](handle)

    if name != "fork":
        assert (result.status, result.headers["x-own"]) == (204, "1")
        assert "x-own" not in repr(result)


def test_a_handle_needs_an_event_loop_only_when_it_is_used(anyio_backend_name: str) -> None:
    handle = DurableStream("http://127.0.0.1:9/s", backoff_options=BackoffOptions(max_retries=0))

    async def use() -> None:
        async with handle:
            with pytest.raises(NetworkError):
                await handle.head()

    anyio.run(use, backend=anyio_backend_name)
