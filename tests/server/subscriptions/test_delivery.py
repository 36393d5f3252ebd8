"""One webhook request on the wire: what is sent, where to, and how little of the answer is trusted."""

import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
import trustme
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.server.subscriptions.delivery import (
    MAX_ANSWER,
    DeliveryFailed,
    Reply,
    SocketPost,
    Timeouts,
    read_answer,
)
from durable_streams.server.subscriptions.ssrf import Target, UrlRejected

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"done":true}'
Handler = Callable[[ByteStream], Awaitable[None]]


# The answer as bytes


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (OK, Reply(200, b'{"done":true}')),
        (OK + b"more that nobody asked for", Reply(200, b'{"done":true}')),
        (OK + OK, Reply(200, b'{"done":true}')),
        (OK + OK.replace(b"200", b"500"), Reply(200, b'{"done":true}')),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", Reply(200, b"to the end")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", Reply(200, b"abc")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Reply(204, b"")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, Reply(200, b'{"done":true}')),
        (b"HTTP/1.1 103 Early Hints\r\nContent-Encoding: br\r\n\r\n" + OK, Reply(200, b'{"done":true}')),
        (b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n", Reply(302, b"")),
        (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno", Reply(500, b"no")),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", Reply(200, b"")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"a" * MAX_ANSWER, Reply(200, b"")),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * MAX_ANSWER, Reply(200, b"")),
    ],
)
def test_an_answer_is_read(data: bytes, reply: Reply) -> None:
    assert read_answer(data) == reply


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_ANSWER,
        b"<html>",
    ],
)
def test_what_is_no_answer_is_a_failure(data: bytes) -> None:
    with pytest.raises(DeliveryFailed):
        read_answer(data)


@given(st.binary() | st.binary().map(OK[:40].__add__) | st.integers(0, len(OK)).map(lambda end: OK[:end]))
def test_any_bytes_are_an_answer_or_a_failure(data: bytes) -> None:
    try:
        reply = read_answer(data)
    except DeliveryFailed:
        return
    assert 200 <= reply.status < 1000


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httptools", None)

    with pytest.raises(ModuleNotFoundError, match=r"pip install 'durable-streams-anyio\[webhooks\]'"):
        SocketPost()


# The request on a socket


class Receiver:
    """Keeps the requests that came."""

    def __init__(self, *answer: bytes) -> None:
        self.answer = answer or (OK,)
        self.requests: list[bytes] = []
        self.gone = anyio.Event()

    async def __call__(self, stream: ByteStream) -> None:
        async with stream:
            request = b""
            while not request.endswith(b"}"):
                request += await stream.receive()
            self.requests.append(request)
            for piece in self.answer:
                await stream.send(piece)
            try:
                while True:
                    await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                self.gone.set()


@asynccontextmanager
async def listening(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server; gives its port."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    served = listener if tls is None else TLSListener(listener, tls, standard_compatible=False)

    async def handle(stream: ByteStream) -> None:
        await handler(stream)

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(served.serve, handle)
            try:
                yield port
            finally:
                group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await listener.aclose()


def at(*addresses: str) -> Callable[[], Awaitable[Sequence[str]]]:
    async def locate() -> Sequence[str]:
        return addresses

    return locate


def plain(port: int, path: str = "/hook?x=1") -> Target:
    return Target(False, "127.0.0.1", port, f"127.0.0.1:{port}", path)


HEADERS = [("Content-Type", "application/json"), ("Webhook-Signature", "t=1,kid=k,ed25519=s")]


@pytest.mark.anyio
async def test_the_request_is_sent_whole_and_the_connection_ends() -> None:
    receiver = Receiver()
    async with listening(receiver) as port:
        with anyio.fail_after(20):
            reply = await SocketPost()(plain(port), at("127.0.0.1"), HEADERS, b'{"a":1}', Timeouts())
            await receiver.gone.wait()

    assert reply == Reply(200, b'{"done":true}')
    head, body = receiver.requests[0].split(b"\r\n\r\n")
    assert body == b'{"a":1}'
    assert head.decode().split("\r\n") == [
        "POST /hook?x=1 HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "User-Agent: durable-streams",
        "Accept: application/json",
        "Accept-Encoding: identity",
        "Connection: close",
        "Content-Length: 7",
        "Content-Type: application/json",
        "Webhook-Signature: t=1,kid=k,ed25519=s",
    ]


@pytest.mark.anyio
async def test_tls_uses_the_name_and_connects_to_the_checked_address(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(server_side)
    names: list[str | None] = []
    server_side.sni_callback = lambda _socket, name, _context: names.append(name)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    receiver = Receiver()
    async with listening(receiver, server_side) as port:
        target = Target(True, "hooks.example", port, f"hooks.example:{port}", "/")
        with anyio.fail_after(20):
            reply = await SocketPost(client_side)(target, at("127.0.0.1"), HEADERS, b"{}", Timeouts())

    assert reply.status == 200
    assert names == ["hooks.example"]
    assert f"Host: hooks.example:{port}\r\n".encode() in receiver.requests[0]


@pytest.mark.anyio
async def test_a_certificate_for_another_name_is_refused() -> None:
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("other.example").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    async with listening(Receiver(), server_side) as port:
        target = Target(True, "hooks.example", port, f"hooks.example:{port}", "/")
        with anyio.fail_after(20), pytest.raises(DeliveryFailed, match="cannot connect"):
            await SocketPost(client_side)(target, at("127.0.0.1"), HEADERS, b"{}", Timeouts())


@pytest.mark.anyio
async def test_a_redirect_is_an_answer_and_not_followed() -> None:
    elsewhere = Receiver()
    async with listening(elsewhere) as other_port:
        location = f"HTTP/1.1 307 T\r\nLocation: http://127.0.0.1:{other_port}/\r\nContent-Length: 0\r\n\r\n"
        async with listening(Receiver(location.encode())) as port:
            with anyio.fail_after(20):
                reply = await SocketPost()(plain(port), at("127.0.0.1"), HEADERS, b"{}", Timeouts())

    assert reply.status == 307
    assert elsewhere.requests == []


@pytest.mark.anyio
async def test_the_next_address_is_tried_when_one_refuses() -> None:
    async with listening(Receiver()) as port:
        with anyio.fail_after(20):
            reply = await SocketPost()(plain(port), at("127.0.0.2", "127.0.0.1"), HEADERS, b"{}", Timeouts())

    assert reply.status == 200


@pytest.mark.anyio
async def test_nobody_listening_is_a_failure() -> None:
    async with listening(Receiver()) as port:
        pass

    with pytest.raises(DeliveryFailed, match="cannot connect"):
        await SocketPost()(plain(port), at("127.0.0.1"), HEADERS, b"{}", Timeouts())


@pytest.mark.anyio
async def test_a_rejected_address_is_passed_on() -> None:
    async def locate() -> Sequence[str]:
        raise UrlRejected

    with pytest.raises(UrlRejected):
        await SocketPost()(plain(1), locate, HEADERS, b"{}", Timeouts())


@pytest.mark.anyio
async def test_an_endless_answer_is_cut_off() -> None:
    gone = anyio.Event()

    async def flood(stream: ByteStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\n\r\n")
            try:
                while True:
                    await stream.send(b"a" * 65536)
            except anyio.BrokenResourceError:
                gone.set()

    async with listening(flood) as port:
        with anyio.fail_after(20):
            reply = await SocketPost()(plain(port), at("127.0.0.1"), HEADERS, b"{}", Timeouts())
            await gone.wait()

    assert reply == Reply(200, b"")


@pytest.mark.anyio
@pytest.mark.parametrize("timeouts", [Timeouts(total=0.05), Timeouts(connect=0.05)], ids=["total", "connect"])
async def test_silence_ends_at_the_time_limit(timeouts: Timeouts) -> None:
    async def never() -> Sequence[str]:
        await anyio.sleep_forever()
        raise AssertionError

    async def mute(stream: ByteStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    async with listening(mute) as port:
        locate = at("127.0.0.1") if timeouts.total < 1 else never
        with anyio.fail_after(20), pytest.raises(DeliveryFailed, match="timed out"):
            await SocketPost()(plain(port), locate, HEADERS, b"{}", timeouts)


@pytest.mark.anyio
async def test_a_connection_that_is_cut_is_a_failure() -> None:
    async def cut(stream: ByteStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(OK[:-3])

    async with listening(cut) as port:
        with anyio.fail_after(20), pytest.raises(DeliveryFailed):
            await SocketPost()(plain(port), at("127.0.0.1"), HEADERS, b"{}", Timeouts())


@pytest.mark.anyio
async def test_an_answer_before_the_end_of_the_request_counts() -> None:
    async def impatient(stream: ByteStream) -> None:
        async with stream:
            await stream.receive(1)
            await stream.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            try:
                while True:
                    await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async with listening(impatient) as port:
        with anyio.fail_after(20):
            reply = await SocketPost()(plain(port), at("127.0.0.1"), HEADERS, b"x" * 3_000_000, Timeouts())

    assert reply.status == 413
