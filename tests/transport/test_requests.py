"""What the network transports put on the wire."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import anyio
import pytest

from durable_streams import NetworkError, RequestTimeoutError, Timeouts, Transport
from durable_streams._transport.deadline import Deadline, Stage
from durable_streams._transport.version import user_agent
from tests.scripted import Reply, ScriptedServer
from tests.transport.exchanges import PATIENT, fetch, open_, read

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "target",
    [
        "/a%2Fb?offset=a%2Fb&x",
        "/a/../b/./c//d",
        "/%7Euser/~user;p=1/a+b/%C3%A9?q=a+b%20c&q=2&q",
        "/?a=/&b=?&c=:@!$'()*,;",
        "/%61?%61=%61",
    ],
)
async def test_the_target_is_sent_as_given(transport: Transport, target: str) -> None:
    async with ScriptedServer(lambda request: Reply()) as server:
        await fetch(transport, server.url + target)

    assert server.requests[0].target == target


@pytest.mark.parametrize(("rest", "target"), [("", "/"), ("?a=1", "/?a=1")])
async def test_an_empty_path_becomes_a_slash(transport: Transport, rest: str, target: str) -> None:
    async with ScriptedServer(lambda request: Reply()) as server:
        await fetch(transport, server.url + rest)

    assert server.requests[0].target == target


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT", "POST"])
async def test_nothing_is_added_but_what_http_needs(transport: Transport, method: str) -> None:
    async with ScriptedServer(lambda request: Reply()) as server:
        await fetch(transport, server.url, method, headers={"authorization": "Bearer x", "x-odd": "a, b"})

    headers = dict(server.requests[0].headers)
    length = headers.pop("content-length", None)
    assert headers == {
        "host": f"127.0.0.1:{server.port}",
        "authorization": "Bearer x",
        "x-odd": "a, b",
        "user-agent": user_agent(),
    }
    # RFC 9110, section 8.6: a method that anticipates a body says that there is none.
    assert length == "0" if method in ("PUT", "POST") else length in ("0", None)
    assert length is None if method in ("GET", "HEAD") else True


async def test_a_given_user_agent_and_content_type_are_kept(transport: Transport) -> None:
    given = {"user-agent": "mine/1", "content-type": "text/plain", "accept-encoding": "gzip"}
    async with ScriptedServer(lambda request: Reply()) as server:
        await fetch(transport, server.url, "POST", b"x", given)

    assert given.items() <= server.requests[0].headers.items()


@pytest.mark.parametrize("size", [1, 1000, 65_536, 65_537, 1 << 20, 5_000_000])
async def test_bodies_of_any_size_arrive_whole(transport: Transport, size: int) -> None:
    body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    async with ScriptedServer(lambda request: Reply()) as server:
        await fetch(transport, server.url, "POST", body)

    assert server.requests[0].headers["content-length"] == str(size)
    assert server.requests[0].body == body


async def test_head_and_small_body_go_out_in_one_write(transport: Transport) -> None:
    arrived: list[bytes] = []

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            arrived.append(await stream.receive())
            await stream.send(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        await fetch(transport, f"http://127.0.0.1:{port}/", "POST", b"x" * 1000)
        tasks.cancel_scope.cancel()

    assert arrived[0].endswith(b"\r\n\r\n" + b"x" * 1000)


async def test_an_iterable_is_sent_in_chunks_and_empty_pieces_do_not_end_it(transport: Transport) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"", b"ab", b"", b"c" * 100_000, b""):
            yield piece

    async with ScriptedServer(lambda request: Reply()) as server:
        await fetch(transport, server.url, "POST", pieces())
        await fetch(transport, server.url, "POST", b"next")

    assert server.requests[0].headers["transfer-encoding"] == "chunked"
    assert "content-length" not in server.requests[0].headers
    assert server.requests[0].body == b"ab" + b"c" * 100_000
    assert server.requests[1].connection == server.requests[0].connection


async def test_the_head_of_an_upload_is_sent_before_its_first_piece(transport: Transport) -> None:
    head_came = anyio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        await head_came.wait()
        yield b"late"

    async with ScriptedServer(lambda request: Reply(), on_head=lambda request: head_came.set()) as server:
        with anyio.fail_after(20):
            await fetch(transport, server.url, "POST", pieces())

    assert server.requests[0].body == b"late"


async def test_an_exception_of_the_iterable_aborts_the_request_and_surfaces_unchanged(transport: Transport) -> None:
    error = ValueError("no more data")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"begun"
        raise error

    async with ScriptedServer() as server:
        with pytest.raises(ValueError, match="no more data") as raised:
            await open_(transport, server.url, "POST", pieces())
        await server.wait_incomplete(1)
        await server.wait_connections(0)

    assert raised.value is error
    assert server.requests == []
    assert server.incomplete[0].body == b"begun"


async def test_an_early_answer_is_read_while_the_iterable_still_waits(transport: Transport) -> None:
    ended: list[str] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            yield b"begun"
            await anyio.sleep_forever()
        finally:
            ended.append("ended")

    async with ScriptedServer(on_head=lambda request: Reply(413, body=b"too large")) as server:
        with anyio.fail_after(20):
            assert await fetch(transport, server.url, "POST", pieces()) == (413, b"too large")
        await server.wait_connections(0)

    assert ended == ["ended"]


@pytest.mark.parametrize("close", [True, False], ids=["closing", "staying"])
async def test_an_early_answer_is_read_while_a_large_body_is_stuck(transport: Transport, close: bool) -> None:
    async def refuse(request: object) -> Reply:
        raise AssertionError("the body must not be complete")

    reply = Reply(413, body=b"too large", close=close)
    async with ScriptedServer(refuse, on_head=lambda request: reply) as server:
        exchange = await open_(transport, server.url, "POST", b"x" * 30_000_000)
        assert exchange.status == 413
        await exchange.aclose()
        await server.wait_connections(0)


async def test_an_informational_answer_during_an_upload_does_not_end_it(transport: Transport) -> None:
    sent = anyio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        await sent.wait()
        yield b"two"

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            got = b""
            while b"one" not in got:
                got += await stream.receive()
            await stream.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            sent.set()
            while not got.endswith(b"0\r\n\r\n"):
                got += await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        assert await fetch(transport, f"http://127.0.0.1:{port}/", "POST", pieces()) == (200, b"ok")
        tasks.cancel_scope.cancel()


async def test_a_server_that_hangs_up_during_an_upload_ends_it(transport: Transport) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"begun"
        await anyio.sleep_forever()

    async with ScriptedServer(on_head=lambda request: Reply(raw=b"", reset=True)) as server:
        with anyio.fail_after(20), pytest.raises(NetworkError) as raised:
            await open_(transport, server.url, "POST", pieces())

    assert raised.value.phase == "sent"


async def test_a_peer_that_does_not_read_runs_into_the_write_limit(transport: Transport) -> None:
    never = anyio.Event()
    async with ScriptedServer(on_head=lambda request: Reply(hold=never)) as server:
        with pytest.raises(RequestTimeoutError, match="did not take the request within") as raised:
            await open_(transport, server.url, "POST", b"x" * 30_000_000, timeouts=Timeouts(20, 0.1, 20))
        never.set()
        await server.wait_connections(0)

    assert raised.value.phase == "sent"


async def test_no_limit_runs_while_an_iterable_takes_its_time(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    pause, move = Deadline.pause, Deadline.move

    def logged_pause(deadline: Deadline) -> None:
        log.append("pause")
        pause(deadline)

    def logged_move(deadline: Deadline, stage: Stage) -> None:
        log.append(stage)
        move(deadline, stage)

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"x", b"y"):
            log.append("asked")
            yield piece

    monkeypatch.setattr(Deadline, "pause", logged_pause)
    monkeypatch.setattr(Deadline, "move", logged_move)
    async with ScriptedServer(lambda request: Reply()) as server:
        await open_(transport, server.url, "POST", pieces())

    start = log.index("pause")
    assert log[start : start + 7] == [*["pause", "asked", "write"] * 2, "pause"]
    assert log[-1] == "read"


async def test_a_cancelled_upload_ends_its_iterable(transport: Transport) -> None:
    waiting = anyio.Event()
    ended: list[str] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            yield b"begun"
            waiting.set()
            await anyio.sleep_forever()
        finally:
            ended.append("ended")

    async with ScriptedServer() as server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_, transport, server.url, "POST", pieces())
            await waiting.wait()
            tasks.cancel_scope.cancel()
        assert ended == ["ended"]
        await server.wait_connections(0)

    assert server.requests == []


async def test_redirects_are_not_followed_cookies_not_kept_and_codings_not_decoded(transport: Transport) -> None:
    odd = Reply(
        302, [("location", "/elsewhere"), ("set-cookie", "a=1"), ("content-encoding", "gzip")], b"not gzip at all"
    )
    async with ScriptedServer() as server:
        server.replies(odd, Reply())
        exchange = await open_(transport, server.url)
        assert (exchange.status, exchange.headers["location"]) == (302, "/elsewhere")
        assert await read(exchange) == b"not gzip at all"
        await fetch(transport, server.url)

    assert len(server.requests) == 2
    assert "cookie" not in server.requests[1].headers


async def test_header_values_beyond_ascii_are_sent_as_utf8(transport: Transport) -> None:
    async with ScriptedServer(lambda request: Reply()) as server:
        await fetch(transport, server.url, headers={"x-name": "Zoë"})

    assert server.requests[0].headers["x-name"].encode("latin-1").decode() == "Zoë"


async def test_many_held_answers_do_not_keep_a_request_waiting(transport: Transport) -> None:
    release = anyio.Event()
    held = 150

    async def answer(request: object) -> Reply:
        if len(server.requests) <= held:
            return Reply(hold=release)
        return Reply(body=b"now")

    async with ScriptedServer(answer) as server, anyio.create_task_group() as tasks:
        for _ in range(held):
            tasks.start_soon(fetch, transport, server.url)
        await server.wait_requests(held)
        with anyio.fail_after(20):
            assert await fetch(transport, server.url, timeouts=PATIENT) == (200, b"now")
        release.set()
