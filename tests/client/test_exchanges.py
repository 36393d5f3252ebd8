"""Between a session and its bytes: redirects, credentials, codings, limits, broken answers (client 5.7, 7.5, 7.6)."""

from __future__ import annotations

import base64
import gzip
import logging
import pickle
import traceback
import zlib
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from durable_streams import (
    BackoffOptions,
    Checkpoint,
    DurableStream,
    DurableStreamError,
    FetchError,
    IncompleteBodyError,
    NetworkError,
    ParseError,
    RetentionGoneError,
    SSENotSupportedError,
    SSEResilience,
    StreamNotFoundError,
    Transport,
    stream,
)
from tests.client.answers import (
    AT_ONCE,
    BYTES,
    JSON,
    TEXT,
    collect,
    connections,
    control,
    data,
    end,
    error,
    events,
    flags,
    idle,
    page,
    tail,
)
from tests.scripted import DROP, RESET, Reply, ScriptedServer

pytestmark = pytest.mark.anyio


def redirect(location: str, status: int = 307) -> Reply:
    return Reply(status, headers={"location": location})


# -- Redirects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_reads_follow_redirects_and_start_anew_each_time(status: int) -> None:
    async with ScriptedServer() as server:
        server.replies(
            redirect("/t?offset=-1&extra=1", status), page(b"a", "1"), redirect("u?o=2", status), end(b"b", "2")
        )
        async with stream(
            server.url + "/s", live=False, headers={"Authorization": "secret", "cookie": "c"}
        ) as response:
            assert await response.read() == b"ab"

    assert [request.target for request in server.requests] == [
        "/s?offset=-1",
        "/t?extra=1&offset=-1",
        "/s?offset=1",
        "/u?o=2",
    ]
    assert {request.headers["authorization"] for request in server.requests} == {"secret"}
    assert {request.headers["cookie"] for request in server.requests} == {"c"}


async def test_a_head_follows_redirects() -> None:
    async with ScriptedServer() as server:
        server.replies(redirect("/t"), Reply(headers=flags("9")))
        async with DurableStream(server.url + "/s") as handle:
            assert (await handle.head()).offset == "9"

    assert [(request.method, request.path) for request in server.requests] == [("HEAD", "/s"), ("HEAD", "/t")]


async def test_credentials_stay_with_their_origin() -> None:
    async with ScriptedServer() as other, ScriptedServer() as server:
        server.replies(redirect(other.url + "/t"), redirect(other.url + "/back"))
        other.replies(end(b"x", "1"), redirect(server.url + "/home"))
        server.replies(end(b"y", "1"))
        headers = {"authorization": "secret", "cookie": "c", "x-own": "1"}
        for expected in (b"x", b"y"):
            async with stream(server.url + "/s", headers=headers) as response:
                assert await response.read() == expected

    for request in (*other.requests, server.requests[-1]):  # also not when it leads back
        assert "authorization" not in request.headers
        assert "cookie" not in request.headers
        assert request.headers["x-own"] == "1"
    assert server.requests[0].headers["authorization"] == "secret"


async def test_a_redirect_may_bring_credentials_and_its_fragment_is_dropped() -> None:
    async with ScriptedServer() as server:
        server.replies(redirect(f"http://user:pw@127.0.0.1:{server.port}/t?a=1#part"), end(b"x", "1"))
        async with stream(server.url + "/s") as response:
            assert await response.read() == b"x"

    assert server.requests[1].target == "/t?a=1"
    assert server.requests[1].headers["authorization"] == "Basic " + base64.b64encode(b"user:pw").decode()


async def test_at_most_five_redirects_are_followed() -> None:
    async with ScriptedServer() as server:
        server.replies(*[redirect(f"/{n}") for n in range(5)], end(b"x", "1"))
        async with stream(server.url + "/s") as response:
            assert await response.read() == b"x"

        server.replies(*[redirect("/again")] * 6)
        with pytest.raises(FetchError, match="redirects too often") as caught:
            await stream(server.url + "/s")

    assert (caught.value.status, caught.value.url) == (307, server.url + "/s")
    assert len(server.requests) == 12


@pytest.mark.parametrize(
    "location", ["ftp://elsewhere/s", "mailto:x@y", "https:///s", "http://h:99999/", "http://a b/", "http://[::1"]
)
async def test_a_redirect_to_nowhere_is_an_error_of_the_server(location: str, transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(redirect(location))
        with pytest.raises(FetchError, match="redirects") as caught:
            await stream(server.url + "/s", transport=transport)

    assert caught.value.code == "UNKNOWN"
    assert connections(transport).startswith("0 open")


async def test_a_redirect_without_location_is_an_unexpected_status() -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(302))
        with pytest.raises(FetchError) as caught:
            await stream(server.url + "/s")

    assert caught.value.status == 302


@pytest.mark.parametrize(
    "call",
    [
        lambda handle: handle.create(),
        lambda handle: handle.append("x"),
        lambda handle: handle.append_stream(["x"]),
        lambda handle: handle.close_stream(),
        lambda handle: handle.delete(),
        lambda handle: handle.fork("/f"),
    ],
)
async def test_writes_never_follow_a_redirect_and_name_where_it_leads(call: Callable[[DurableStream], Any]) -> None:
    async with ScriptedServer() as server:
        server.replies(redirect("http://user:hunter2@there/t?token=hunter2", 308))
        async with DurableStream(server.url + "/s", content_type=TEXT) as handle:
            with pytest.raises(FetchError, match=r"http://there/t\?token=\.\.\.") as caught:
                await call(handle)

    assert caught.value.status == 308
    assert "hunter2" not in str(caught.value)
    assert len(server.requests) == 1


# -- Credentials -----------------------------------------------------------------------------------------------------


async def test_user_information_in_the_url_becomes_authorization() -> None:
    async with ScriptedServer() as server:
        server.replies(end(b"", "1"), end(b"", "1"))
        url = server.url.replace("http://", "http://us%40er:p%3Aw@") + "/s"
        async with stream(url) as response:
            await response.read()
        async with stream(url, headers={"Authorization": "mine"}) as response:
            await response.read()

    expected = "Basic " + base64.b64encode(b"us@er:p:w").decode()
    assert [request.headers["authorization"] for request in server.requests] == [expected, "mine"]
    assert {request.headers["host"] for request in server.requests} == {f"127.0.0.1:{server.port}"}


SECRETS = {"headers": {"x-token": "hunter2"}, "params": {"key": "hunter2"}}


@pytest.mark.parametrize(
    "answer", [error(400), error(401), error(404), error(409), error(410), error(500), DROP, RESET]
)
async def test_no_error_log_or_repr_shows_a_secret(answer: Reply, caplog: pytest.LogCaptureFixture) -> None:
    backoff = BackoffOptions(1e-6, 1e-6, max_retries=3)
    async with ScriptedServer(lambda request: answer) as server:
        url = server.url.replace("http://", "http://user:hunter2@") + "/s?token=hunter2"
        shown: list[str] = []
        with caplog.at_level(logging.DEBUG, "durable_streams"):
            session = stream(url, backoff_options=backoff, **SECRETS)
            with pytest.raises(DurableStreamError) as reading:
                await session
            async with DurableStream(url, backoff_options=backoff, content_type=TEXT, **SECRETS) as handle:
                with pytest.raises(DurableStreamError) as writing:
                    await handle.append("x", seq="1")
                shown += [repr(handle), handle.url]
        for caught in (reading.value, writing.value):
            shown += [str(caught), repr(caught), repr(caught.args), caught.url or ""]
            shown += traceback.format_exception(caught)
            shown += [str(pickle.loads(pickle.dumps(caught)))]
        shown += [repr(session), caplog.text]

    assert all("hunter2" not in text for text in shown)
    assert reading.value.url == writing.value.url == f"{server.url}/s?token=..."
    assert caplog.records


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@127.0.0.1:9/s?token=hunter2", "http://user:hunter2@host.invalid/s?token=hunter2"]
)
async def test_a_server_that_is_not_there_is_a_clear_error_without_secrets(url: str) -> None:
    with pytest.raises(NetworkError) as caught:
        await stream(url, backoff_options=BackoffOptions(max_retries=0))

    assert caught.value.phase == "connect"
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.url == url.replace("user:hunter2@", "").replace("hunter2", "...")


# -- Codings ---------------------------------------------------------------------------------------------------------


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


CODINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("gzip", lambda body: gzip.compress(body[:5]) + gzip.compress(body[5:])),
    ("deflate, gzip", lambda body: gzip.compress(zlib.compress(body))),
    ("identity", lambda body: body),
]


@pytest.mark.parametrize(("coding", "compress"), CODINGS)
async def test_compressed_pages_and_polls_are_decoded_and_offsets_stay(
    coding: str, compress: Callable[[bytes], bytes]
) -> None:
    body = b'["' + b"abc" * 1000 + b'"]'

    async with ScriptedServer() as server:
        for made in (
            page(body, "1", content_type=JSON),
            tail(body, "2", content_type=JSON),
            end(body, "3", content_type=JSON),
        ):
            server.replies(Reply(headers={**dict(made.headers), "content-encoding": coding}, body=compress(made.body)))
        async with stream(server.url + "/s", live="long-poll") as response:
            batches = await collect(response.iter_batches("json"))

    assert [(batch.items, batch.offset) for batch in batches] == [(["abc" * 1000], str(n)) for n in (1, 2, 3)]
    assert {request.headers["accept-encoding"] for request in server.requests} == {"gzip, deflate"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-10],
        lambda packed: packed[:-8] + b"\0" * 8,
        lambda packed: packed[:20] + b"\xff" * 5 + packed[25:],
        lambda packed: b"no gzip",
    ],
    ids=["cut", "wrong checksum", "damaged", "not compressed"],
)
async def test_a_damaged_compressed_body_is_read_again_and_never_a_success(damage: Callable[[bytes], bytes]) -> None:
    packed = gzip.compress(bytes(range(256)) * 20, mtime=0)
    headers = flags("1", closed=True, content_encoding="gzip")

    async with ScriptedServer() as server:
        server.replies(Reply(headers=headers, body=damage(packed)), Reply(headers=headers, body=packed))
        async with stream(server.url + "/s", live=False, backoff_options=AT_ONCE) as response:
            assert await response.read() == bytes(range(256)) * 20

        server.replies(*[Reply(headers=headers, body=damage(packed))] * 2)
        with pytest.raises(IncompleteBodyError) as caught:
            async with stream(server.url + "/s", backoff_options=BackoffOptions(1e-6, 1e-6, max_retries=1)) as response:
                await response.read()

    assert caught.value.code == "INCOMPLETE_BODY"
    assert isinstance(caught.value, NetworkError)


async def test_an_unknown_coding_is_an_error_and_not_retried() -> None:
    async with ScriptedServer() as server:
        server.replies(end(b"x", "1", content_encoding="br"))
        async with stream(server.url + "/s") as response:
            with pytest.raises(ParseError, match="'br'"):
                await response.read()

    assert len(server.requests) == 1


# -- Limits ----------------------------------------------------------------------------------------------------------


async def test_max_response_bytes_counts_decoded_bytes_of_one_answer() -> None:
    packed = gzip.compress(b"x" * 1_000_000)
    headers = flags("3", closed=True, content_encoding="gzip")

    async with ScriptedServer() as server:
        server.replies(page(b"x" * 100, "1"), page(b"x" * 100, "2"), Reply(headers=headers, body=packed))
        async with stream(server.url + "/s", live=False, max_response_bytes=100) as response:
            pieces = response.iter_bytes()
            assert [await anext(pieces), await anext(pieces)] == [b"x" * 100] * 2
            with pytest.raises(ParseError, match="max_response_bytes") as caught:
                await anext(pieces)
            assert response.offset == "2"

    assert caught.value.url == server.url + "/s"


async def test_an_error_s_body_is_shown_but_never_hides_the_status() -> None:
    async with ScriptedServer() as server:
        answers: dict[str, Reply] = {
            "json": error(404, b'{"why": "x"}', content_type="application/problem+json; charset=utf-8"),
            "text": error(404, b"plain\nwords \xff"),
            "broken json": error(404, b"{", content_type=JSON),
            "cut": Reply(404, headers={"content-length": "100"}, body=b"beginning", close=True),
            "bad gzip": Reply(404, headers={"content-encoding": "gzip"}, body=b"nonsense"),
            "unknown coding": Reply(404, headers={"content-encoding": "zstd"}, body=b"nonsense"),
            "gzip": Reply(404, headers={"content-encoding": "gzip"}, body=gzip.compress(b"packed")),
            "large": error(404, b"x" * 1_000_000),
        }
        details: dict[str, Any] = {}
        for name, answer in answers.items():
            server.replies(answer)
            with pytest.raises(StreamNotFoundError) as caught:
                await stream(server.url + "/s")
            assert caught.value.status == 404
            assert len(str(caught.value)) < 400
            assert "\n" not in str(caught.value)
            details[name] = caught.value.details

    assert details.pop("large") == "x" * 64 * 1024
    assert details == {
        "json": {"why": "x"},
        "text": "plain\nwords \ufffd",
        "broken json": "{",
        "cut": "beginning",
        "bad gzip": None,
        "unknown coding": None,
        "gzip": "packed",
    }


# -- Broken answers --------------------------------------------------------------------------------------------------


def broken(**rest: Any) -> dict[str, Reply]:
    """Answers to a page that do not come to their end."""
    headers = flags("2", **rest)
    return {
        "cut length": Reply(headers={**headers, "content-length": "6"}, body=b"bc", close=True),
        "cut chunks": Reply(headers=headers, chunks=[b"b", b"c"], cut_after=2),
        "reset": Reply(headers={**headers, "content-length": "6"}, body=b"bc", reset=True),
        "no answer": DROP,
        "reset at once": RESET,
        "not http": Reply(raw=b"SSH-2.0-OpenSSH\r\n\r\n", close=True),
        "half a head": Reply(raw=b"HTTP/1.1 200 OK\r\nstream-next", close=True),
    }


@pytest.mark.parametrize("how", broken())
@pytest.mark.parametrize("live", [False, "long-poll"])
async def test_a_broken_page_is_read_again_from_the_last_delivered_one(
    how: str, live: Any, transport: Transport
) -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"a", "1") if live else page(b"a", "1"), broken()[how], end(b"bcd", "2"))
        async with stream(server.url + "/s", live=live, transport=transport, backoff_options=AT_ONCE) as response:
            assert await collect(response.iter_bytes()) == [b"a", b"bcd"]
            assert response.checkpoint == Checkpoint("2", up_to_date=True, stream_closed=True)
        assert connections(transport).startswith("0 open")

    assert [request.query["offset"] for request in server.requests] == ["-1", "1", "1"]


@pytest.mark.parametrize("how", broken())
async def test_a_broken_first_answer_is_asked_for_again(how: str) -> None:
    async with ScriptedServer() as server:
        server.replies(broken()[how], end(b"bcd", "2"))
        async with stream(server.url + "/s", live=False, backoff_options=AT_ONCE) as response:
            assert await response.read() == b"bcd"

    assert [request.query["offset"] for request in server.requests] == ["-1", "-1"]


@pytest.mark.parametrize(
    ("chunks", "kept"),
    [
        ([data("[2]") + control("2") + data("[3]")], [2]),
        ([data("[2]") + control("2") + data("[3]") + b'event: control\ndata: {"streamNextOffset":"3"}\n'], [2]),
        ([data("[2]"), control("2")[:-1]], []),
        ([b": comment\n\n"], []),
    ],
)
@pytest.mark.parametrize("ending", [{}, {"cut_after": 10**6}, {"reset": True}])
async def test_a_batch_without_its_control_event_is_read_again(
    chunks: list[bytes], kept: list[int], ending: dict[str, Any]
) -> None:
    resilience = SSEResilience(backoff_base_delay=1e-6, backoff_max_delay=1e-6)
    log = {"1": "[2]", "2": "[3]"}

    async with ScriptedServer() as server:
        server.replies(
            tail(b"[1]", "1", content_type=JSON),
            Reply(headers={"content-type": "text/event-stream"}, chunks=chunks, framing="chunked", **ending),
        )
        server._handler = lambda request: events(
            *[data(log[str(n)]) + control(str(n + 1)) for n in range(int(request.query["offset"]), 3)],
            control("3", streamClosed=True),
        )
        async with stream(server.url + "/s", sse_resilience=resilience) as response:
            assert await collect(response) == [1, 2, 3]

    assert server.requests[2].query["offset"] == ("2" if kept else "1")


async def test_nothing_is_asked_for_after_closure() -> None:
    async with ScriptedServer() as server:
        server.replies(
            tail(b"[1]", "1", content_type=JSON), events(data("[2]"), control("2", streamClosed=True), anyio.Event())
        )
        async with stream(server.url + "/s") as response:
            assert await collect(response) == [1, 2]
            await server.wait_connections(0)  # the server need not end it
            assert (response.up_to_date, response.stream_closed) == (True, True)

    assert len(server.requests) == 2


async def test_a_stream_that_goes_away_while_it_is_followed_is_an_error() -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"a", "1"), error(410, stream_earliest_offset="7"))
        async with stream(server.url + "/s") as response:
            pieces = response.iter_bytes()
            assert await anext(pieces) == b"a"
            with pytest.raises(RetentionGoneError) as caught:
                await anext(pieces)
            with pytest.raises(RetentionGoneError):
                await anext(pieces)

    assert caught.value.earliest_offset == "7"
    assert repr(response).endswith("failed, offset=1, consumed by iter_bytes>")


# -- Falling back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 405, 406, 501, 204, 200])
@pytest.mark.parametrize("live", [True, "sse"])
async def test_a_server_without_events_is_polled_with_one_warning(
    status: int, live: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with ScriptedServer() as server:
        server.replies(
            tail(b"[1]", "1", content_type=JSON),
            Reply(status, headers=flags("9", content_type=JSON), body=b"" if status == 204 else b"[9]"),
            idle("1"),
            end(b"[2]", "2", content_type=JSON),
        )
        async with stream(server.url + "/s", live=live) as response:
            assert await collect(response) == [1, 2]

    assert [request.query.get("live") for request in server.requests] == [None, "sse", "long-poll", "long-poll"]
    assert [record.levelname for record in caplog.records if "long-poll" in record.getMessage()] == ["WARNING"]


async def test_without_fallback_it_is_an_error() -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"[1]", "1", content_type=JSON), Reply(406))
        async with stream(server.url + "/s", sse_resilience=SSEResilience(fallback=False)) as response:
            with pytest.raises(SSENotSupportedError) as caught:
                await collect(response)

    assert (caught.value.code, caught.value.status) == ("SSE_NOT_SUPPORTED", 406)


async def test_text_over_sse_warns_once_that_it_is_not_exact(caplog: pytest.LogCaptureFixture) -> None:
    async with ScriptedServer() as server:
        server.replies(
            tail(b"a", "1", content_type=TEXT),
            events(data(" b"), control("2")),
            events(data("c"), control("3")),
            events(control("3", streamClosed=True)),
        )
        async with stream(server.url + "/s", live="sse") as response:
            assert await collect(response.iter_text()) == ["a", " b"[1:], "c"]

    assert [record.levelname for record in caplog.records if "faithfully" in record.getMessage()] == ["WARNING"]


@pytest.mark.parametrize(
    "chunk",
    [
        b"event: control\ndata: {}\n\n",
        b"event: control\ndata: nonsense\n\n",
        b"event: control\ndata: []\n\n",
        b'event: control\ndata: {"streamNextOffset": 5}\n\n',
        data("%%%") + control("2"),
        data("YQ=") + control("2"),
        data("Y Q==") + control("2"),
    ],
)
async def test_events_without_meaning_are_fatal_and_not_retried(chunk: bytes) -> None:
    async with ScriptedServer() as server:
        server.replies(tail(b"a", "1"), events(chunk, stream_sse_data_encoding="base64"))
        async with stream(server.url + "/s", live="sse") as response:
            pieces = response.iter_bytes()
            assert await anext(pieces) == b"a"
            with pytest.raises(ParseError) as caught:
                await anext(pieces)

    assert (caught.value.code, caught.value.offset, caught.value.url) == ("PARSE_ERROR", "1", server.url + "/s")
    assert len(server.requests) == 2


@pytest.mark.parametrize("method", ["iter_bytes", "iter_text"])
async def test_base64_events_serve_every_way_of_consuming(method: str) -> None:
    async with ScriptedServer() as server:
        server.replies(
            tail(b"a", "1", content_type=BYTES),
            events(data("Yg=="), data("Yw=="), control("2"), stream_sse_data_encoding="base64"),
            events(data("eA=="), control("3", streamClosed=True), stream_sse_data_encoding="base64"),
        )
        async with stream(server.url + "/s", live="sse") as response:
            got = await collect(getattr(response, method)())

    assert got == ([b"a", b"b", b"c", b"x"] if method == "iter_bytes" else ["a", "bc", "x"])
