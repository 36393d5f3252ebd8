"""What a producer puts on the wire, and what it takes from its handle (client 4, 5.5, 12.1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from durable_streams import (
    BackoffOptions,
    Batching,
    DurableStream,
    DurableStreamError,
    IdempotentProducer,
    InvalidArgumentError,
    StreamNotFoundError,
    open_transport,
)
from durable_streams.server import Server
from tests.scripted import DROP, Reply, Request, ScriptedServer

pytestmark = pytest.mark.anyio

AT_ONCE = BackoffOptions(initial_delay=1e-6, max_delay=1e-6, max_elapsed=None)


@pytest.fixture
async def scripted(anyio_backend: object) -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as server:
        yield server


def stamps(server: ScriptedServer) -> list[tuple[str, str]]:
    return [(request.headers["producer-epoch"], request.headers["producer-seq"]) for request in server.requests]


async def test_a_request_is_a_post_with_its_stamp_and_type(scripted: ScriptedServer) -> None:
    scripted.replies(Reply())
    async with IdempotentProducer(
        scripted.url + "/s?tenant=1", "p", epoch=3, next_seq=4, content_type="application/json; charset=utf-8"
    ) as producer:
        await producer.append_many(['"a"', "[2]"])

    (request,) = scripted.requests
    assert (request.method, request.target) == ("POST", "/s?tenant=1")
    assert request.body == b'["a",[2]]'
    assert request.headers["content-type"] == "application/json; charset=utf-8"
    assert request.headers["content-length"] == str(len(request.body))
    assert request.headers["producer-id"] == "p"
    assert stamps(scripted) == [("3", "4")]
    assert "stream-closed" not in request.headers
    assert "stream-seq" not in request.headers


@pytest.mark.parametrize(
    ("answer", "body"), [("application/json", b"[1]"), ("text/plain", b"1"), (None, b"1")], ids=str
)
async def test_an_unknown_content_type_is_asked_for_once_on_entering(
    scripted: ScriptedServer, answer: str | None, body: bytes
) -> None:
    headers = {} if answer is None else {"content-type": answer}
    scripted.replies(Reply(headers=headers), Reply(), Reply())
    async with IdempotentProducer(scripted.url + "/s", "p") as producer:
        assert [request.method for request in scripted.requests] == ["HEAD"]
        await producer.send("1")
        await producer.send("1")

    assert [request.method for request in scripted.requests] == ["HEAD", "POST", "POST"]
    assert scripted.requests[1].body == body
    assert scripted.requests[1].headers["content-type"] == (answer or "application/octet-stream")


@pytest.mark.parametrize(
    "make",
    [
        lambda url: IdempotentProducer(url, "p", content_type="application/json"),
        lambda url: IdempotentProducer(url, "p", headers={"Content-Type": "application/json"}),
        lambda url: IdempotentProducer(url, "p", headers={"Content-Type": lambda: "application/json"}),
        lambda url: IdempotentProducer(DurableStream(url, content_type="application/json"), "p"),
        lambda url: IdempotentProducer(DurableStream(url, headers={"content-type": "application/json"}), "p"),
        lambda url: IdempotentProducer(
            DurableStream(url, content_type="text/plain"), "p", content_type="application/json"
        ),
        lambda url: IdempotentProducer(
            DurableStream(url, content_type="application/json"), "p", headers={"content-type": "text/plain"}
        ),
    ],
)
async def test_a_content_type_that_was_given_is_not_asked_for(scripted: ScriptedServer, make: Any) -> None:
    scripted.replies(Reply())
    producer = make(scripted.url + "/s")
    async with producer:
        await producer.append("1")
    await producer._stream.aclose()

    (request,) = scripted.requests
    assert request.headers["content-type"] == "application/json"
    assert request.body == b"[1]"


async def test_a_stream_that_does_not_exist_is_noticed_on_entering(server: Server) -> None:
    producer = IdempotentProducer(f"{server.url}/nothing", "p")
    with pytest.raises(StreamNotFoundError, match="nothing"):
        async with producer:
            pytest.fail("entered")
    with pytest.raises(RuntimeError, match="once"):
        await producer.__aenter__()


async def test_the_handles_headers_and_params_go_along_and_the_producers_win(scripted: ScriptedServer) -> None:
    scripted.replies(Reply())
    handle = DurableStream(
        scripted.url + "/s?fixed=1",
        content_type="text/plain",
        headers={"Authorization": "old", "X-Handle": "h"},
        params={"tenant": "old", "region": "eu"},
    )
    async with IdempotentProducer(
        handle,
        "p",
        headers={"authorization": "new", "Producer-Id": "forged", "producer-seq": "99", "content-type": "forged/type"},
        params={"tenant": "new", "region": None},
    ) as producer:
        await producer.append("x")
    await handle.aclose()

    (request,) = scripted.requests
    assert request.query == {"fixed": "1", "tenant": "new"}
    assert request.headers["authorization"] == "new"
    assert request.headers["x-handle"] == "h"
    assert request.headers["producer-id"] == "p"
    assert request.headers["producer-seq"] == "0"
    assert request.headers["content-type"] == "text/plain"


async def test_callables_are_called_for_each_try(scripted: ScriptedServer) -> None:
    calls = {"header": 0, "param": 0}

    def header() -> str:
        calls["header"] += 1
        return f"token-{calls['header']}"

    async def param() -> str:
        await anyio.lowlevel.checkpoint()
        calls["param"] += 1
        return str(calls["param"])

    scripted.replies(Reply(503), DROP, Reply())
    handle = DurableStream(scripted.url + "/s", content_type="text/plain", headers={"authorization": header})
    async with IdempotentProducer(handle, "p", params={"n": param}, retry=AT_ONCE) as producer:
        await producer.append("x")
    await handle.aclose()

    assert [request.headers["authorization"] for request in scripted.requests] == ["token-1", "token-2", "token-3"]
    assert [request.query["n"] for request in scripted.requests] == ["1", "2", "3"]
    assert len(set(stamps(scripted))) == len({request.body for request in scripted.requests}) == 1


async def test_an_exception_of_a_callable_fails_the_producer_as_it_is(scripted: ScriptedServer) -> None:
    class VaultError(Exception):
        def __init__(self, vault: str, *, code: int) -> None:
            super().__init__(f"{vault} {code}")

    def header() -> str:
        raise VaultError("main", code=7)

    handle = DurableStream(scripted.url + "/s", content_type="text/plain", headers={"authorization": header})
    async with IdempotentProducer(handle, "p") as producer:
        receipt = producer.append_nowait("x")
        for call in (receipt.wait(), producer.flush(), producer.append("y"), producer.close_stream()):
            with pytest.raises(VaultError, match="main 7"):
                await call
        assert isinstance(producer.failed, VaultError)
        await producer.abort()
    await handle.aclose()

    assert scripted.requests == []


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_the_handles_on_error_mends_a_401_with_a_fresh_token(kind: str) -> None:
    asked: list[DurableStreamError] = []

    def answer(request: Request) -> Reply:
        return Reply(200 if request.headers.get("authorization") == "fresh" else 401)

    def recover(error: Exception) -> Any:
        assert isinstance(error, DurableStreamError)
        asked.append(error)
        return {"headers": {"authorization": "fresh"}}

    async def recover_async(error: Exception) -> Any:
        await anyio.lowlevel.checkpoint()
        return recover(error)

    async with ScriptedServer(answer) as server:
        on_error = recover if kind == "plain" else recover_async
        handle = DurableStream(server.url + "/s", content_type="text/plain", on_error=on_error)
        async with IdempotentProducer(handle, "p") as producer:
            await producer.send("x")
            await producer.send("y")
        await handle.append("z")  # the addition is the handle's, too
        await handle.aclose()

    assert [(error.status, error.attempt) for error in asked] == [(401, 1)]
    assert [request.body for request in server.requests] == [b"x", b"x", b"y", b"z"]


async def test_requests_that_met_the_same_error_together_ask_once() -> None:
    asked = 0
    together = anyio.Event()
    refused = 0

    async def answer(request: Request) -> Reply:
        nonlocal refused
        if request.headers.get("authorization") == "fresh":
            return Reply()
        refused += 1
        if refused == 5:
            together.set()
        await together.wait()
        return Reply(401)

    async def recover(error: Exception) -> Any:
        nonlocal asked
        asked += 1
        await anyio.wait_all_tasks_blocked()
        return {"headers": {"authorization": "fresh"}}

    async with ScriptedServer(answer) as server:
        handle = DurableStream(server.url + "/s", content_type="text/plain", on_error=recover)
        async with IdempotentProducer(handle, "p", max_batch_items=1, linger=0) as producer:
            await producer.append_many("abcde")
        await handle.aclose()

    assert asked == 1
    assert refused == 5


async def test_what_on_error_raises_takes_the_place_of_the_error(scripted: ScriptedServer) -> None:
    scripted.replies(Reply(401))

    def recover(error: Exception) -> None:
        raise LookupError("no key")

    handle = DurableStream(scripted.url + "/s", content_type="text/plain", on_error=recover)
    async with IdempotentProducer(handle, "p") as producer:
        with pytest.raises(LookupError, match="no key") as caught:
            await producer.send("x")
        cause = caught.value.__cause__
        assert isinstance(cause, DurableStreamError)
        assert cause.status == 401
        await producer.abort()
    await handle.aclose()


@pytest.mark.parametrize(
    "reply",
    [Reply(403, {"producer-epoch": "9"}), Reply(409), Reply(409, {"stream-closed": "true"})],
    ids=["fenced", "conflict", "closed"],
)
async def test_on_error_is_not_asked_about_fences_and_conflicts(scripted: ScriptedServer, reply: Reply) -> None:
    scripted.replies(reply)

    def recover(error: Exception) -> None:
        pytest.fail("asked")

    handle = DurableStream(scripted.url + "/s", content_type="text/plain", on_error=recover)
    async with IdempotentProducer(handle, "p") as producer:
        with pytest.raises(DurableStreamError):
            await producer.send("x")
        await producer.abort()
    await handle.aclose()


async def test_an_answer_counts_even_if_its_body_breaks_off(scripted: ScriptedServer) -> None:
    scripted.replies(Reply(200, body=b"x" * 100, cut_after=10))
    async with IdempotentProducer(scripted.url + "/s", "p", content_type="text/plain") as producer:
        assert not (await producer.send("x")).duplicate

    assert len(scripted.requests) == 1


async def test_long_error_bodies_are_read_in_part(scripted: ScriptedServer) -> None:
    scripted.replies(Reply(400, chunks=[b"why? " * 1000] * 100))
    async with IdempotentProducer(scripted.url + "/s", "p", content_type="text/plain") as producer:
        with pytest.raises(DurableStreamError, match="why") as caught:
            await producer.send("x")
        assert len(str(caught.value.details)) <= 64 * 1024
        await producer.abort()


async def test_a_transport_of_the_callers_is_shared_and_not_closed(server: Server) -> None:
    transport = open_transport(proxies={})
    handle = DurableStream(f"{server.url}/s", content_type="text/plain", transport=transport)
    await handle.create()
    async with IdempotentProducer(handle.url, "p", content_type="text/plain", transport=transport) as producer:
        await producer.send("x")
    assert (await handle.head()).exists
    with pytest.raises(InvalidArgumentError, match="transport"):
        IdempotentProducer(handle, "p", transport=transport)
    await transport.aclose()


async def test_connections_of_a_producers_own_are_closed_at_its_end() -> None:
    async with ScriptedServer(lambda request: Reply()) as server:
        async with IdempotentProducer(server.url + "/s", "p", content_type="text/plain") as producer:
            await producer.send("x")
            await server.wait_connections(1)
        with anyio.fail_after(10):
            await server.wait_connections(0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"batching": "fast"}, "batching"),
        ({"on_error": 1}, "on_error"),
        ({"on_claim": "x"}, "on_claim"),
        ({"retry": 3}, "retry"),
        ({"epoch": -1}, "epoch"),
        ({"next_seq": True}, "next_seq"),
        ({"max_batch_bytes": 0}, "max_batch_bytes"),
        ({"max_batch_items": 0}, "max_batch_items"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_buffered_bytes": 0}, "max_buffered_bytes"),
        ({"max_buffered_messages": 0}, "max_buffered_messages"),
        ({"linger": -1}, "linger"),
        ({"delivery_timeout": 0}, "delivery_timeout"),
        ({"exit_grace": -1}, "exit_grace"),
        ({"exit_grace": "1"}, "exit_grace"),
        ({"content_type": "no type"}, "content_type"),
        ({"headers": {"a b": "c"}}, "headers"),
        ({"params": {"": "c"}}, "params"),
        ({"auto_claim": "yes"}, "auto_claim"),
        ({"transport": object()}, "transport"),
    ],
)
def test_wrong_options_are_refused_by_name_before_anything_is_sent(options: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, InvalidArgumentError), match=name):
        IdempotentProducer("http://host/s", "p", **options)


@pytest.mark.parametrize(
    "options", [{"max_batch_bytes": 0}, {"max_batch_items": 0}, {"linger": -1}, {"max_in_flight": 0}]
)
def test_presets_are_checked_too(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        Batching(**options)


def test_single_options_win_over_the_preset() -> None:
    producer = IdempotentProducer("http://host/s", "p", batching=Batching.LOW_LATENCY, max_batch_items=7, linger=0.25)

    assert producer._options.max_batch_items == 7
    assert producer._options.linger == 0.25
    assert producer._options.max_batch_bytes == Batching.LOW_LATENCY.max_batch_bytes
    assert producer._options.max_in_flight == Batching.LOW_LATENCY.max_in_flight


def test_making_a_producer_needs_no_loop_and_shows_no_secrets() -> None:
    producer = IdempotentProducer(
        "http://user:secret@host/s?token=secret", "writer", headers={"authorization": "secret"}
    )

    assert "secret" not in repr(producer)
    assert repr(producer) == (
        "<IdempotentProducer 'writer' of http://host/s?token=..., not running, epoch 0, next seq 0, 0 pending>"
    )
    assert (producer.producer_id, producer.epoch, producer.next_seq) == ("writer", 0, 0)
    assert (producer.pending_count, producer.in_flight_count, producer.failed) == (0, 0, None)
    assert producer.last_successful_offset is None
    assert producer.unacknowledged() == []
    assert producer.statistics().requests == 0
