"""The scripted server itself: its promises are what the other tests lean on."""

from __future__ import annotations

import anyio
import pytest

from tests.scripted import DROP, RESET, Reply, Request, ScriptedServer

pytestmark = pytest.mark.anyio


async def exchange(server: ScriptedServer, *requests: bytes) -> bytes:
    """Send raw bytes on one new connection and return everything that comes until its end."""
    got = b""
    async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        for request in requests:
            await stream.send(request)
        try:
            while True:
                got += await stream.receive()
        except anyio.EndOfStream:
            return got


async def test_a_request_is_recorded_as_it_came() -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(body=b"ok", close=True))

        await exchange(
            server, b"POST /a%2Fb?x=1&y=%20 HTTP/1.1\r\nHost: h\r\nA: 1\r\na: 2\r\ncontent-length: 3\r\n\r\nabc"
        )

    assert server.requests == [
        Request(
            "POST",
            "/a%2Fb?x=1&y=%20",
            "/a%2Fb",
            {"x": "1", "y": " "},
            {"host": "h", "a": "1, 2", "content-length": "3"},
            b"abc",
            1,
            1,
        )
    ]


async def test_chunked_uploads_are_decoded() -> None:
    async with ScriptedServer(lambda request: Reply(close=True)) as server:
        await exchange(
            server, b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", b"1\r\nd\r\n0\r\n\r\n"
        )

    assert server.requests[0].body == b"abcd"


async def test_a_body_that_stops_coming_is_recorded_as_incomplete() -> None:
    async with ScriptedServer() as server, await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        await stream.send(b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nab")
        await stream.send_eof()
        await server.wait_incomplete(1)

    assert server.requests == []
    assert server.incomplete[0].body == b"ab"


async def test_connections_are_kept_alive_until_a_reply_closes_them() -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(body=b"one"), Reply(body=b"two", close=True))

        got = await exchange(server, b"GET /1 HTTP/1.1\r\n\r\n", b"GET /2 HTTP/1.1\r\n\r\n")

    assert got == (
        b"HTTP/1.1 200 Scripted\r\ncontent-length: 3\r\n\r\none"
        b"HTTP/1.1 200 Scripted\r\ncontent-length: 3\r\nconnection: close\r\n\r\ntwo"
    )
    assert [request.index for request in server.requests] == [1, 2]


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (Reply(chunks=[b"ab", b"c"], close=True), b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
        (Reply(chunks=[b"ab", b"c"], cut_after=1), b"1\r\na\r\n"),
        (Reply(chunks=[b"ab", b"c"], framing="close"), b"abc"),
        (Reply(body=b"abc", cut_after=2), b"ab"),
        (Reply(body=b"abc", framing="close"), b"abc"),
        (Reply(204, close=True), b""),
    ],
)
async def test_bodies_are_framed_as_the_reply_says(reply: Reply, body: bytes) -> None:
    async with ScriptedServer() as server:
        server.replies(reply)

        got = await exchange(server, b"GET / HTTP/1.1\r\n\r\n")

    assert got.partition(b"\r\n\r\n")[2] == body


async def test_raw_bytes_replace_the_answer_and_before_precedes_it() -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(raw=b"nonsense\r\n\r\n", before=b"first ", close=True), DROP)

        assert await exchange(server, b"GET / HTTP/1.1\r\n\r\n") == b"first nonsense\r\n\r\n"
        assert await exchange(server, b"GET / HTTP/1.1\r\n\r\n") == b""


async def test_a_reset_is_seen_as_an_error_and_not_as_an_end() -> None:
    async with ScriptedServer() as server:
        server.replies(RESET)

        with pytest.raises(anyio.BrokenResourceError):
            await exchange(server, b"GET / HTTP/1.1\r\n\r\n")


async def test_an_answer_can_come_before_the_body_is_read() -> None:
    async with ScriptedServer(on_head=lambda request: Reply(413, body=b"too large", close=True)) as server:
        got = await exchange(server, b"POST / HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n")

    assert got.startswith(b"HTTP/1.1 413 ")


async def test_events_hold_the_head_and_the_middle_of_a_body() -> None:
    head, middle = anyio.Event(), anyio.Event()
    async with ScriptedServer() as server:
        server.replies(Reply(chunks=[b"a", middle, b"b"], hold=head, close=True))
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            await stream.send(b"GET / HTTP/1.1\r\n\r\n")
            await server.wait_requests(1)
            head.set()
            got = b""
            while not got.endswith(b"1\r\na\r\n"):
                got += await stream.receive()
            middle.set()
            while not got.endswith(b"0\r\n\r\n"):
                got += await stream.receive()


async def test_a_held_answer_ends_when_the_client_goes_away() -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(hold=anyio.Event()))
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            await stream.send(b"GET / HTTP/1.1\r\n\r\n")
            await server.wait_requests(1)
            assert server.connections == 1

        await server.wait_connections(0)


async def test_idle_connections_can_be_closed() -> None:
    server = ScriptedServer(lambda request: Reply())
    async with server, await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        await stream.send(b"GET / HTTP/1.1\r\n\r\n")
        await stream.receive()
        await server.wait_idle()

        await server.close_idle()

        assert server.connections == 0


async def test_a_request_nobody_expected_fails_the_test() -> None:
    server = ScriptedServer()
    await server.__aenter__()
    async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        await stream.send(b"GET /odd HTTP/1.1\r\n\r\n")
        assert (await stream.receive()).startswith(b"HTTP/1.1 501 ")

    with pytest.raises(AssertionError, match="no reply was queued for GET /odd"):
        await server.__aexit__(None, None, None)


async def test_a_tunnel_passes_bytes_both_ways() -> None:
    async with ScriptedServer() as far, ScriptedServer() as proxy:
        far.replies(Reply(body=b"far", close=True))
        proxy.replies(Reply(tunnel=("127.0.0.1", far.port)))

        got = await exchange(proxy, b"CONNECT h:1 HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n")

    assert got.startswith(b"HTTP/1.1 200 Connected\r\n\r\n")
    assert got.endswith(b"\r\n\r\nfar")
