"""What the network transports make of answers, whole and broken."""

from __future__ import annotations

import socket
from typing import Any

import anyio
import pytest

from durable_streams import (
    BusyResourceError,
    Exchange,
    IncompleteBodyError,
    InvalidArgumentError,
    NetworkError,
    RequestTimeoutError,
    Timeouts,
    Transport,
)
from tests.scripted import DROP, RESET, Reply, ScriptedServer
from tests.transport.exchanges import fetch, open_, read

pytestmark = pytest.mark.anyio

QUICK = Timeouts(connect=20, write=20, read=0.05)


async def test_status_headers_and_body_come_as_sent(transport: Transport) -> None:
    reply = Reply(299, [("X-Twice", "one"), ("Stream-Next-Offset", "0_7"), ("x-twice", "two")], b"body")
    async with ScriptedServer() as server:
        server.replies(reply)
        exchange = await open_(transport, server.url)

        assert isinstance(exchange, Exchange)
        assert exchange.status == 299
        assert dict(exchange.headers) == {"x-twice": "one, two", "stream-next-offset": "0_7", "content-length": "4"}
        assert await read(exchange) == b"body"


async def test_a_complete_body_stays_complete(transport: Transport) -> None:
    async with ScriptedServer(lambda request: Reply(body=b"x")) as server:
        exchange = await open_(transport, server.url)

        assert [await exchange.receive() for _ in range(3)] == [b"x", b"", b""]
        await exchange.aclose()


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        ("HEAD", Reply(headers={"content-length": "1000"})),
        ("HEAD", Reply(body=b"1234")),
        ("GET", Reply(204)),
        ("GET", Reply(304, headers={"content-length": "1000"})),
        ("GET", Reply(body=b"")),
        ("GET", Reply(chunks=[])),
    ],
)
async def test_answers_without_a_body_leave_the_connection_usable(
    transport: Transport, method: str, reply: Reply
) -> None:
    async with ScriptedServer() as server:
        server.replies(reply, Reply(body=b"next"))

        assert await fetch(transport, server.url, method) == (reply.status, b"")
        assert await fetch(transport, server.url) == (200, b"next")

    assert [request.connection for request in server.requests] == [1, 1]


async def test_informational_answers_are_passed_over(transport: Transport) -> None:
    before = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    async with ScriptedServer() as server:
        server.replies(Reply(before=before, body=b"final"))

        assert await fetch(transport, server.url) == (200, b"final")


async def test_pieces_are_handed_over_as_they_come(transport: Transport) -> None:
    second = anyio.Event()
    async with ScriptedServer() as server:
        server.replies(Reply(chunks=[b"one", second, b"two"]))
        exchange = await open_(transport, server.url)

        assert await exchange.receive() == b"one"
        second.set()
        assert await exchange.receive() == b"two"
        assert await exchange.receive() == b""
        await exchange.aclose()


async def test_large_bodies_arrive_whole(transport: Transport) -> None:
    body = bytes(range(256)) * 40_000
    async with ScriptedServer() as server:
        server.replies(Reply(body=body), Reply(chunks=[body[:5_000_000], body[5_000_000:]]))

        assert await fetch(transport, server.url) == (200, body)
        assert await fetch(transport, server.url) == (200, body)


async def test_a_body_may_end_with_its_connection(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(body=b"all of it", framing="close"))

        assert await fetch(transport, server.url) == (200, b"all of it")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"12345", cut_after=3),
        Reply(body=b"12345", cut_after=0),
        Reply(chunks=[b"12345"], cut_after=3),
        Reply(chunks=[b"12345"], cut_after=5),
        Reply(raw=b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n123", close=True),
    ],
    ids=["length", "length-0", "chunked", "between-chunks", "in-chunk"],
)
async def test_a_body_that_ends_too_early_is_incomplete(transport: Transport, reply: Reply) -> None:
    async with ScriptedServer() as server:
        server.replies(reply)
        exchange = await open_(transport, server.url)

        with pytest.raises(IncompleteBodyError, match="the body ended too early") as raised:
            await read(exchange)
        await server.wait_connections(0)

    assert raised.value.phase == "body"
    assert not raised.value.reused


async def test_a_body_with_broken_framing_is_a_network_error(transport: Transport) -> None:
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n"
    async with ScriptedServer() as server:
        server.replies(Reply(raw=raw, close=True))

        with pytest.raises(NetworkError) as raised:
            await fetch(transport, server.url)

    # Whether the head is handed over before the nonsense is seen depends on how the bytes come in.
    assert raised.value.phase in ("sent", "body")


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_reset_in_the_body_is_a_network_error(transport: Transport, framing: str) -> None:
    taken = anyio.Event()
    chunks = [b"12345", taken, b"1"]
    headers = {"content-length": "10"} if framing == "length" else {}
    async with ScriptedServer() as server:
        server.replies(Reply(headers=headers, chunks=chunks, framing=framing, cut_after=6, reset=True))
        exchange = await open_(transport, server.url)
        assert await exchange.receive() == b"12345"
        taken.set()

        with pytest.raises(NetworkError) as raised:
            await read(exchange)

    assert raised.value.phase == "body"


async def test_silence_before_the_head_times_out_as_perhaps_sent(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(hold=anyio.Event()))

        with pytest.raises(RequestTimeoutError, match=r"the server was silent for 0\.05 s") as raised:
            await open_(transport, server.url, timeouts=QUICK)
        await server.wait_connections(0)

    assert raised.value.phase == "sent"
    assert isinstance(raised.value, TimeoutError)


async def test_silence_in_the_body_times_out_in_the_body(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(chunks=[b"x", anyio.Event()]))
        exchange = await open_(transport, server.url, timeouts=QUICK)
        assert await exchange.receive() == b"x"

        with pytest.raises(RequestTimeoutError) as raised:
            await exchange.receive()
        await server.wait_connections(0)

    assert raised.value.phase == "body"


async def test_no_limit_means_no_limit(transport: Transport) -> None:
    second = anyio.Event()
    async with ScriptedServer() as server:
        server.replies(Reply(chunks=[b"one", second, b"two"], hold=second))
        async with anyio.create_task_group() as tasks:

            @tasks.start_soon
            async def _() -> None:
                assert await fetch(transport, server.url, timeouts=Timeouts(None, None, None)) == (200, b"onetwo")

            await server.wait_requests(1)
            second.set()


async def test_a_drop_without_an_answer_may_have_been_applied(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(DROP)

        with pytest.raises(NetworkError, match="without an answer") as raised:
            await open_(transport, server.url, "POST", b"x")

    assert (raised.value.phase, raised.value.reused) == ("sent", False)


@pytest.mark.parametrize("reply", [DROP, RESET], ids=["end", "reset"])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
async def test_a_reused_connection_that_fails_before_the_answer_says_so_and_nothing_is_sent_twice(
    transport: Transport, method: str, reply: Reply
) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(), reply)
        await fetch(transport, server.url)

        with pytest.raises(NetworkError) as raised:
            await open_(transport, server.url, method)

    assert (raised.value.phase, raised.value.reused) == ("sent", True)
    assert [(request.connection, request.index) for request in server.requests] == [(1, 1), (1, 2)]


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 200 OK\r\nx: "])
async def test_a_begun_answer_does_not_count_as_a_failed_reuse(transport: Transport, begun: bytes) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(), Reply(raw=begun, close=True))
        await fetch(transport, server.url)

        with pytest.raises(NetworkError) as raised:
            await open_(transport, server.url)

    assert (raised.value.phase, raised.value.reused) == ("sent", False)


@pytest.mark.parametrize("raw", [b"SSH-2.0-OpenSSH_9\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0\0\0\0\r\n\r\n"])
async def test_an_answer_that_is_not_http_is_a_network_error(transport: Transport, raw: bytes) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(raw=raw, close=True))

        with pytest.raises(NetworkError) as raised:
            await open_(transport, server.url)
        await server.wait_connections(0)

    assert raised.value.phase == "sent"


async def test_a_head_without_end_is_refused(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(raw=b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000, close=True))

        with pytest.raises(NetworkError, match="the answer is not HTTP"):
            await open_(transport, server.url)


async def test_a_refused_connection_was_certainly_not_applied(transport: Transport) -> None:
    async with ScriptedServer() as server:
        pass

    with pytest.raises(NetworkError, match=r"/s: cannot connect \(Connection refused\)$") as raised:
        await open_(transport, f"{server.url}/s")

    assert raised.value.phase == "connect"
    assert raised.value.__cause__ is not None
    assert raised.value.url == f"{server.url}/s"


async def test_an_unknown_host_was_certainly_not_applied(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(NetworkError, match="Name or service not known") as raised:
        await open_(transport, "http://nowhere.example/s")

    assert raised.value.phase == "connect"


async def test_messages_show_neither_user_information_nor_query_values(transport: Transport) -> None:
    async with ScriptedServer() as server:
        pass

    with pytest.raises(NetworkError) as raised:
        await open_(transport, f"http://127.0.0.1:{server.port}/s?token=secret")

    assert "secret" not in str(raised.value)
    assert "secret" not in repr(raised.value)
    assert "token=..." in str(raised.value)


@pytest.mark.parametrize("url", ["ftp://h/", "h", "", "http://", "http://h/ü"])
async def test_impossible_urls_are_invalid_arguments(transport: Transport, url: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await open_(transport, url)


@pytest.mark.parametrize("headers", [{"x": "a\r\nb: c"}, {"x\n": "a"}])
async def test_headers_that_would_end_the_head_are_invalid_arguments(
    transport: Transport, headers: dict[str, str]
) -> None:
    async with ScriptedServer() as server:
        with pytest.raises(InvalidArgumentError):
            await open_(transport, server.url, headers=headers)

    assert server.requests == []


async def test_two_tasks_may_not_receive_from_one_exchange(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(chunks=[b"x", anyio.Event()]))
        exchange = await open_(transport, server.url)
        await exchange.receive()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.receive)
            await anyio.wait_all_tasks_blocked()

            with pytest.raises(BusyResourceError):
                await exchange.receive()
            tasks.cancel_scope.cancel()
