"""Single calls over a real socket: tries, limits of time, compression, what is sent and what is made of answers."""

import gzip
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import anyio
import anyio.lowlevel
import pytest

from durable_streams import InvalidArgumentError, NetworkError, RetryDetails, Timeouts
from durable_streams.s2 import (
    S2,
    AppendRecord,
    S2ConnectionError,
    S2ProtocolError,
    S2Retry,
    S2ServerError,
    S2SessionClosedError,
    S2TimeoutError,
    S2Timeouts,
    SeqNumMismatchError,
    Stream,
)
from durable_streams.s2._proto import decode_append_input
from durable_streams.testing import S2Fake
from tests.scripted import DROP, RESET, Reply, ScriptedServer

pytestmark = pytest.mark.anyio

QUICK = S2Retry(min_base_delay=0.0, max_base_delay=0.0)
SAFE = S2Retry(min_base_delay=0.0, max_base_delay=0.0, append_retry_policy="no_side_effects")
ACK = Reply(headers={"content-type": "application/protobuf"}, body=bytes.fromhex("0a00120508011090031a0508011090 03"))
TAIL = b'{"tail":{"seq_num":1,"timestamp":400}}'
TOKEN = "sesame-open-token"


def error(status: int, code: str, **headers: str) -> Reply:
    body = json.dumps({"code": code, "message": f"because of {code}"}).encode()
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


@asynccontextmanager
async def serving(*replies: Reply, **options: Any) -> AsyncIterator[tuple[ScriptedServer, S2, Stream]]:
    options.setdefault("retry", QUICK)
    async with ScriptedServer() as server:
        server.replies(*replies)
        client = S2(options.pop("token", TOKEN), endpoints=server.url, **options)
        try:
            yield server, client, client.basin("my-basin-01").stream("s")
        finally:
            await client.aclose()


# -- Tries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [error(503, "unavailable"), error(429, "rate_limited"), DROP, RESET, Reply(500)])
async def test_a_call_is_tried_again(failure: Reply) -> None:
    async with serving(failure, failure, Reply(body=TAIL)) as (server, _, stream):
        assert (await stream.check_tail()).seq_num == 1

        assert len(server.requests) == 3


async def test_attempts_are_limited_and_the_last_error_is_raised() -> None:
    async with serving(*[error(503, "unavailable")] * 2, error(502, "hot_server")) as (server, _, stream):
        with pytest.raises(S2ServerError, match="hot_server") as caught:
            await stream.check_tail()

        assert len(server.requests) == 3
        assert caught.value.attempts == 3
        assert caught.value.definite  # it was a read


async def test_a_connection_that_is_refused_counts_as_an_attempt() -> None:
    async with ScriptedServer() as server:
        url = server.url
    client = S2(TOKEN, endpoints=url, retry=QUICK)

    with pytest.raises(S2ConnectionError) as caught:
        await client.basins.list()
    await client.aclose()

    assert caught.value.attempts == 3
    assert caught.value.refused
    assert caught.value.definite


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 416, 422, 501])
async def test_what_cannot_pass_is_not_tried_again(status: int) -> None:
    async with serving(Reply(status)) as (server, _, stream):
        with pytest.raises(S2ServerError):
            await stream.check_tail()

        assert len(server.requests) == 1


async def test_the_server_sets_a_least_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("durable_streams.s2._unary.anyio.sleep", _record(slept, anyio.sleep))
    retry = S2Retry(max_attempts=3)

    async with serving(
        error(429, "rate_limited", retry_after_ms="1500"),
        error(503, "server_draining"),
        error(502, "hot_server"),
        Reply(body=TAIL),
        retry=retry,
        rng=random.Random(7),
    ) as (_, _, stream):
        await stream.check_tail()

    draws = random.Random(7)
    first, _, third = draws.random(), draws.random(), draws.random()
    assert first < 1.0
    assert slept == [1.5, 0.0, pytest.approx(retry.delay(1, third))]


def _record(slept: list[float], sleep: Callable[[float], Any]) -> Callable[[float], Any]:
    async def recording(delay: float) -> None:
        slept.append(delay)
        await sleep(0)

    return recording


async def test_each_repetition_is_told() -> None:
    told: list[RetryDetails] = []
    failures = [error(503, "server_draining"), error(500, "other"), Reply(404)]
    async with serving(*failures, on_retry=told.append) as (_, _, stream):
        with pytest.raises(S2ServerError):
            await stream.check_tail()

    assert [(details.attempt, getattr(details.error, "code", "")) for details in told] == [
        (0, "server_draining"),  # asked again at once, and not counted
        (1, "other"),
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, Timeouts(3.0, 5.0, 5.0)),
        (S2Timeouts(request=2.0, connect=1.0), Timeouts(1.0, 2.0, 2.0)),
        (0.5, Timeouts(0.5, 0.5, 0.5)),
    ],
)
async def test_limits_of_time_reach_the_transport(given: Any, expected: Timeouts) -> None:
    seen: list[Timeouts] = []

    class Recording:
        async def open(self, *arguments: Any) -> Any:
            seen.append(arguments[-1])
            raise NetworkError("enough", phase="connect")

        async def aclose(self) -> None: ...

    client = S2(TOKEN, timeout=given, retry=S2Retry(max_attempts=1), transport=Recording())
    with pytest.raises(S2ConnectionError, match="enough"):
        await client.basins.list()

    assert seen == [expected]


async def test_each_try_carries_a_fresh_token() -> None:
    tokens = iter(["token-number-1", "token-number-2"])

    async def fetch() -> str:
        return next(tokens)

    async with serving(error(503, "unavailable"), Reply(body=TAIL), token=fetch) as (server, _, stream):
        await stream.check_tail()

        assert [request.headers["authorization"] for request in server.requests] == [
            "Bearer token-number-1",
            "Bearer token-number-2",
        ]


async def test_a_token_that_cannot_be_sent_is_refused_without_being_shown() -> None:
    async with serving(token=lambda: "line\nfeed") as (server, _, stream):
        with pytest.raises(InvalidArgumentError) as caught:
            await stream.check_tail()

        assert "feed" not in str(caught.value)
        assert server.requests == []


async def test_a_create_has_one_request_token_for_all_its_tries() -> None:
    created = Reply(
        201,
        {"s2-provision-result": "noop"},
        b'{"name":"s","created_at":"2026-09-01T10:00:00Z","deleted_at":null,"cipher":null}',
    )
    async with serving(DROP, error(500, "other"), created, created) as (server, client, _):
        streams = client.basin("my-basin-01").streams
        assert (await streams.create("s")).provision_result == "noop"
        await streams.create("s")

        tokens = [request.headers["s2-request-token"] for request in server.requests]
        assert tokens[0] == tokens[1] == tokens[2] != tokens[3]
        assert len(tokens[0]) == 32
        assert {request.body for request in server.requests} == {b'{"stream":"s"}'}


# -- Appends ---------------------------------------------------------------------------------------------------


async def test_under_all_an_append_is_repeated_though_it_may_have_been_stored() -> None:
    async with serving(DROP, ACK) as (server, _, stream):
        ack = await stream.append("x")

        assert ack.end.seq_num == 1
        assert server.requests[0].body == server.requests[1].body


async def test_without_side_effects_an_uncertain_append_is_not_repeated() -> None:
    async with serving(DROP, retry=SAFE) as (server, _, stream):
        with pytest.raises(S2ConnectionError) as caught:
            await stream.append("x")

        assert not caught.value.definite
        assert len(server.requests) == 1


async def test_without_side_effects_a_harmless_failure_is_repeated() -> None:
    failures = [error(429, "rate_limited"), error(502, "hot_server")]
    async with serving(*failures, ACK, retry=SAFE) as (server, _, stream):
        await stream.append("x")

        assert len(server.requests) == 3


@pytest.mark.parametrize("status", [429, 502, 503])
async def test_without_side_effects_a_gateways_page_is_no_proof(status: int) -> None:
    async with serving(Reply(status, body=b"<html>"), retry=SAFE) as (server, _, stream):
        with pytest.raises(S2ServerError) as caught:
            await stream.append("x")

        assert not caught.value.definite
        assert len(server.requests) == 1


async def test_a_definite_error_after_an_uncertain_try_is_not_definite() -> None:
    async with serving(DROP, error(422, "invalid")) as (_, _, stream):
        with pytest.raises(S2ServerError) as caught:
            await stream.append("x")

        assert caught.value.code == "invalid"
        assert not caught.value.definite
        assert "may have been applied" in str(caught.value)


async def test_a_mismatch_after_an_uncertain_try_is_not_definite() -> None:
    async with serving(DROP, Reply(412, body=b'{"seq_num_mismatch":1}')) as (_, _, stream):
        with pytest.raises(SeqNumMismatchError) as caught:
            await stream.append("x", match_seq_num=0)

        assert caught.value.expected_seq_num == 1
        assert not caught.value.definite


async def test_a_first_mismatch_is_definite() -> None:
    async with serving(Reply(412, body=b'{"seq_num_mismatch":1}')) as (_, _, stream):
        with pytest.raises(SeqNumMismatchError) as caught:
            await stream.append("x", match_seq_num=0)

        assert caught.value.definite


@pytest.mark.parametrize("body", [b"\x08", b"", bytes.fromhex("0a0012020802")])
async def test_an_acknowledgement_that_means_nothing_is_an_error_and_not_repeated(body: bytes) -> None:
    async with serving(Reply(body=body)) as (server, _, stream):
        with pytest.raises(S2ProtocolError) as caught:
            await stream.append("x")

        assert not caught.value.definite
        assert not caught.value.retryable
        assert len(server.requests) == 1


async def test_an_answer_that_breaks_off_is_retried() -> None:
    cut = Reply(body=TAIL, cut_after=5)
    async with serving(cut, Reply(body=TAIL)) as (server, _, stream):
        await stream.check_tail()

        assert len(server.requests) == 2


async def test_an_error_whose_words_break_off_keeps_its_status() -> None:
    words = Reply(404, body=b'{"code":"stream_not_found","message":"gone"}', cut_after=10)
    async with serving(words) as (server, _, stream):
        with pytest.raises(S2ServerError, match="HTTP 404 unknown") as caught:
            await stream.append("x")

        assert caught.value.definite
        assert len(server.requests) == 1


async def test_of_an_error_no_more_is_read_than_anybody_would_look_at() -> None:
    never = anyio.Event()
    async with serving(Reply(403, chunks=[bytes(100_000), never])) as (server, _, stream):
        with pytest.raises(S2ServerError, match="HTTP 403"):
            await stream.check_tail()

        await server.wait_connections(0)


@pytest.mark.parametrize("body", [b"not json", b"null", b"[]", b"{}", b'{"tail":{"seq_num":-1,"timestamp":0}}'])
async def test_an_answer_that_means_nothing_is_not_retried(body: bytes) -> None:
    async with serving(Reply(body=body)) as (server, _, stream):
        with pytest.raises(S2ProtocolError):
            await stream.check_tail()

        assert len(server.requests) == 1


# -- Time ------------------------------------------------------------------------------------------------------


async def test_a_try_has_a_limit_of_time_also_for_an_answer_that_drips() -> None:
    never = anyio.Event()
    drip = Reply(chunks=[b"{", never])
    async with serving(drip, retry=S2Retry(max_attempts=1), timeout=0.2) as (server, _, stream):
        with pytest.raises(S2TimeoutError, match="no complete answer within") as caught:
            await stream.append("x")

        assert not caught.value.definite
        await server.wait_connections(0)


async def test_a_read_that_waits_has_its_wait_on_top_of_the_limit() -> None:
    hold = anyio.Event()
    async with (
        serving(Reply(body=b"", hold=hold), timeout=0.05) as (server, _, stream),
        anyio.create_task_group() as group,
    ):

        async def let_go() -> None:
            await server.wait_requests(1)
            await anyio.sleep(0.2)  # longer than the limit, shorter than the wait
            hold.set()

        group.start_soon(let_go)
        page = await stream.read(seq_num=0, wait=30)

        assert page.records == ()
        assert len(server.requests) == 1
        assert server.requests[0].query == {"seq_num": "0", "wait": "30"}


async def test_a_call_may_be_cancelled_at_any_step() -> None:
    cancelled = whole = 0
    async with S2Fake() as fake:
        fake.add_basin("my-basin-01", streams=["s"])
        async with S2(TOKEN, endpoints=fake.url, retry=QUICK) as client:
            stream = client.basin("my-basin-01").stream("s")
            for steps in range(60):
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as group:

                        async def cut(steps: int = steps, scope: anyio.CancelScope = scope) -> None:
                            for _ in range(steps):
                                await anyio.lowlevel.checkpoint()
                            scope.cancel()

                        group.start_soon(cut)
                        await stream.append([f"{steps}", "second"])
                        whole += 1
                        await stream.read(tail_offset=1)
                        group.cancel_scope.cancel()
                cancelled += scope.cancelled_caught
            tail = await stream.check_tail()
            assert tail.seq_num == len(fake.records("my-basin-01", "s"))

        await fake.wait_open(0)
    bodies = [record.body for record in fake.records("my-basin-01", "s")]
    assert bodies[1::2] == [b"second"] * (len(bodies) // 2)
    assert len(set(bodies[::2])) == len(bodies) // 2 >= whole
    assert cancelled > 10


async def test_cancelling_a_call_closes_its_connection() -> None:
    async with serving(Reply(hold=anyio.Event())) as (server, _, stream):
        async with anyio.create_task_group() as group:
            group.start_soon(stream.check_tail)
            await server.wait_requests(1)
            group.cancel_scope.cancel()

        await server.wait_connections(0)


# -- Bodies ----------------------------------------------------------------------------------------------------


async def test_nothing_is_compressed_and_nothing_offered_unless_asked_for() -> None:
    async with serving(ACK) as (server, _, stream):
        await stream.append("x" * 5000)

        headers = server.requests[0].headers
        assert "accept-encoding" not in headers
        assert "content-encoding" not in headers


@pytest.mark.parametrize(("compression", "offered"), [("gzip", "gzip"), ("zstd", "zstd, gzip")])
async def test_large_bodies_are_compressed_when_asked_for(compression: Any, offered: str) -> None:
    zstandard = pytest.importorskip("zstandard")
    async with serving(ACK, ACK, compression=compression) as (server, _, stream):
        await stream.append("x" * 5000)
        await stream.append("x")

        large, small = server.requests
        assert large.headers["content-encoding"] == compression
        assert large.headers["accept-encoding"] == offered
        plain = gzip.decompress(large.body) if compression == "gzip" else zstandard.decompress(large.body)
        assert decode_append_input(plain).records == (AppendRecord(b"x" * 5000),)
        assert "content-encoding" not in small.headers


@pytest.mark.parametrize("coding", ["gzip", "zstd", "gzip, zstd", "identity", "GZIP"])
async def test_an_answer_is_decoded_by_what_it_says_whatever_was_asked_for(coding: str) -> None:
    zstandard = pytest.importorskip("zstandard")
    body = TAIL
    for name in coding.lower().split(", "):
        body = {"gzip": gzip.compress, "zstd": zstandard.compress, "identity": bytes}[name](body)
    async with serving(Reply(headers={"content-encoding": coding}, body=body)) as (_, _, stream):
        assert (await stream.check_tail()).seq_num == 1


async def test_a_compressed_error_is_read_and_one_that_cannot_be_keeps_its_status() -> None:
    body = gzip.compress(b'{"code":"stream_not_found","message":"gone"}')
    coded = Reply(404, {"content-encoding": "gzip"}, body)
    broken = Reply(404, {"content-encoding": "br"}, b"???")
    async with serving(coded, broken) as (_, _, stream):
        with pytest.raises(S2ServerError, match="gone"):
            await stream.check_tail()
        with pytest.raises(S2ServerError, match="HTTP 404 unknown"):
            await stream.check_tail()


@pytest.mark.parametrize("coding", ["br", "gzip", "zstd", "gzip, gzip, gzip, gzip, gzip"])
async def test_a_success_that_cannot_be_decoded_is_an_error(coding: str) -> None:
    pytest.importorskip("zstandard")
    bad = Reply(headers={"content-encoding": coding}, body=b"\x00 no such thing")
    async with serving(bad, retry=S2Retry(max_attempts=1)) as (_, _, stream):
        with pytest.raises((S2ProtocolError, S2ConnectionError)) as caught:
            await stream.append("x")

        assert not caught.value.definite


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_a_bomb_is_an_error(coding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zstandard = pytest.importorskip("zstandard")
    monkeypatch.setattr("durable_streams.s2._unary.MAX_REPLY_BYTES", 1 << 20)
    body = {"gzip": gzip.compress, "zstd": zstandard.compress}[coding](bytes(8 << 20))
    async with serving(Reply(headers={"content-encoding": coding}, body=body)) as (_, _, stream):
        with pytest.raises(S2ProtocolError):
            await stream.check_tail()


@pytest.mark.parametrize("encoding", ["protobuf", "base64"])
async def test_an_answer_of_another_type_is_an_error_and_no_empty_page(encoding: Any) -> None:
    page = Reply(headers={"content-type": "text/html; charset=utf-8"})
    async with serving(page, Reply(204), page) as (_, client, _):
        stream = client.basin("my-basin-01").stream("s", encoding=encoding)
        with pytest.raises(S2ProtocolError, match="is '200 text/html; charset=utf-8' instead of application") as read:
            await stream.read()
        with pytest.raises(S2ProtocolError, match="is '204' instead of application"):
            await stream.read()
        with pytest.raises(S2ProtocolError, match="is that S2, or a proxy") as append:
            await stream.append("x")

    assert (read.value.definite, append.value.definite) == (True, False)
    assert (read.value.retryable, append.value.status) == (False, 200)


@pytest.mark.parametrize("type_", ["application/x-protobuf", "Application/Protobuf; v=1", ""])
async def test_the_type_of_an_answer_has_other_spellings(type_: str) -> None:
    async with serving(Reply(headers={"content-type": type_}, body=ACK.body)) as (_, _, stream):
        assert (await stream.append("x")).count == 1


async def test_an_answer_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable_streams.s2._unary.MAX_REPLY_BYTES", 1 << 16)
    async with serving(Reply(body=bytes(1 << 18))) as (_, _, stream):
        with pytest.raises(S2ProtocolError, match="larger than 65536 bytes"):
            await stream.check_tail()


async def test_a_batch_that_is_too_large_on_the_wire_is_refused_before_it_is_sent() -> None:
    async with serving() as (server, client, _):
        raw = client.basin("my-basin-01").stream("s", encoding="raw")
        with pytest.raises(InvalidArgumentError, match="bytes as JSON, the server takes 2097152"):
            await raw.append("\x01" * 500_000)

        assert server.requests == []


async def test_raw_json_refuses_what_is_no_text_before_it_is_sent() -> None:
    async with serving() as (server, client, _):
        raw = client.basin("my-basin-01").stream("s", encoding="raw")
        with pytest.raises(InvalidArgumentError, match="not UTF-8"):
            await raw.append(["text", b"\xff"])

        assert server.requests == []


async def test_the_limit_on_the_wire_is_exact_for_protobuf() -> None:
    tiny = AppendRecord(b"", [(b"k", b"v")] * 262_142)
    assert tiny.metered_bytes == 1 << 20
    async with serving(ACK) as (server, _, stream):
        await stream.append(tiny)
        with pytest.raises(InvalidArgumentError, match="too large: 20971"):
            await stream.append(tiny, fencing_token="t" * 20)

        (request,) = server.requests
        assert len(request.body) == 2_097_140


# -- Secrets and closing ---------------------------------------------------------------------------------------


async def test_secrets_are_in_no_error_log_or_repr(caplog: pytest.LogCaptureFixture) -> None:
    key = bytes(range(100, 132))
    caplog.set_level(logging.DEBUG, "durable_streams")
    async with ScriptedServer() as server:
        client = S2(TOKEN, endpoints=server.url, retry=QUICK)
        stream = client.basin("my-basin-01").stream("s", encryption_key=key)

        async def echo(request: Any) -> Reply:
            echoed = {f"x-{name}": value for name, value in request.headers.items()}
            return Reply(503, echoed, json.dumps(dict(request.headers)).encode())

        server._handler = echo
        with pytest.raises(S2ServerError) as caught:
            await stream.append("x")
        await client.aclose()

    request = server.requests[0]
    secrets = [TOKEN, request.headers["s2-encryption-key"]]
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    texts = [str(caught.value), repr(caught.value), repr(vars(caught.value)), caplog.text]
    texts += [repr(client), repr(stream), repr(client._service), repr(stream._context)]
    for text in texts:
        assert not any(secret in text for secret in secrets), text
    assert "***" in str(caught.value)
    assert "retrying" in caplog.text


async def test_secrets_are_found_in_urls_in_json_and_when_the_token_has_changed() -> None:
    key = b"\xff" * 32  # its base64 is full of slashes
    tokens = iter(["first/token+1", "second/token+2"])
    async with ScriptedServer() as server:
        client = S2(lambda: next(tokens), endpoints=server.url, retry=QUICK)
        stream = client.basin("my-basin-01").stream("s", encryption_key=key)

        async def echo(request: Any) -> Reply:
            sent = request.headers["s2-encryption-key"]
            words = f"first/token+1 {sent.replace('/', chr(92) + '/')} {quote(sent, safe='')} first%2Ftoken%2B1"
            return Reply(
                400, {"location": "/?token=first%2Ftoken%2B1"}, b'{"code":"x","message":"%s"}' % words.encode()
            )

        server._handler = echo
        for _ in range(2):
            with pytest.raises(S2ServerError) as caught:
                await stream.append("x")
            assert str(caught.value) == "HTTP 400 x: *** *** *** ***"
            assert caught.value.headers is not None
            assert caught.value.headers["location"] == "/?token=***"
        await client.aclose()


async def test_a_closed_client_says_so() -> None:
    async with serving(Reply(body=TAIL)) as (_, client, stream):
        await stream.check_tail()
        await client.aclose()
        await client.aclose()

        with pytest.raises(S2SessionClosedError, match="the client was closed"):
            await stream.check_tail()
        with pytest.raises(S2SessionClosedError):
            await client.__aenter__()


@pytest.mark.parametrize("append", [True, False])
async def test_a_call_under_way_ends_when_the_client_is_closed(append: bool) -> None:
    async with serving(Reply(hold=anyio.Event())) as (server, client, stream):
        errors: list[S2SessionClosedError] = []

        async def call() -> None:
            try:
                await (stream.append("x") if append else stream.check_tail())
            except S2SessionClosedError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await server.wait_requests(1)
            await client.aclose()

        assert [error.definite for error in errors] == [not append]


async def test_an_error_in_the_block_goes_on_bare() -> None:
    with pytest.raises(ZeroDivisionError):
        async with S2(TOKEN, endpoints="http://127.0.0.1:1"):
            raise ZeroDivisionError


async def test_a_client_is_started_once() -> None:
    async with S2(TOKEN, endpoints="http://127.0.0.1:1") as client, anyio.create_task_group() as group:
        with pytest.raises(RuntimeError, match="started already"):
            await client.start(group)
