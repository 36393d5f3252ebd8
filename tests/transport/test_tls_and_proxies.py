"""TLS, and going through proxies."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator

import anyio
import pytest
import trustme

from durable_streams import InvalidArgumentError, NetworkError, RequestTimeoutError, Timeouts, Transport, open_transport
from durable_streams._transport.proxies import Proxies, Proxy
from tests.scripted import Reply, Request, ScriptedServer
from tests.transport.exchanges import fetch, open_, read

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def serving(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    """What a server with a certificate for this name uses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
async def trusting_transport(trusting: ssl.SSLContext, anyio_backend: object) -> AsyncIterator[Transport]:
    made = open_transport(ssl_context=trusting, proxies={})
    yield made
    await made.aclose()


async def test_https_works_and_reuses_its_connection(trusting_transport: Transport, authority: trustme.CA) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a" * 100_000
        yield b"b"

    def echo(request: Request) -> Reply:
        return Reply(body=request.body)

    async with ScriptedServer(echo, ssl_context=serving(authority)) as server:
        assert server.url.startswith("https://")
        for size in (0, 10, 3_000_000):
            assert await fetch(trusting_transport, server.url, "POST", b"x" * size) == (200, b"x" * size)
        assert await fetch(trusting_transport, server.url, "POST", pieces()) == (200, b"a" * 100_000 + b"b")

    assert server.accepted == 1


async def test_a_half_read_https_exchange_closes_its_connection(
    trusting_transport: Transport, authority: trustme.CA
) -> None:
    async with ScriptedServer(ssl_context=serving(authority)) as server:
        server.replies(Reply(chunks=[b"x", anyio.Event()]))
        exchange = await open_(trusting_transport, server.url)
        assert await exchange.receive() == b"x"
        with anyio.fail_after(5):
            await exchange.aclose()
            await server.wait_connections(0)


async def test_an_early_answer_is_read_over_https(trusting_transport: Transport, authority: trustme.CA) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"begun"
        await anyio.sleep_forever()

    reply = Reply(413, body=b"too large")
    async with ScriptedServer(on_head=lambda request: reply, ssl_context=serving(authority)) as server:
        with anyio.fail_after(20):
            assert await fetch(trusting_transport, server.url, "POST", pieces()) == (413, b"too large")
        await server.wait_connections(0)


async def test_closing_the_transport_does_not_wait_for_the_peers_tls_farewell(
    trusting: ssl.SSLContext, authority: trustme.CA
) -> None:
    transport = open_transport(ssl_context=trusting, proxies={})
    async with ScriptedServer(lambda request: Reply(), ssl_context=serving(authority)) as server:
        await fetch(transport, server.url)

        with anyio.fail_after(5):
            await transport.aclose()
            await server.wait_connections(0)


async def test_an_unknown_authority_is_refused(transport: Transport, authority: trustme.CA) -> None:
    async with ScriptedServer(ssl_context=serving(authority)) as server:
        with pytest.raises(NetworkError, match=r"certificate is not accepted.*unable to get local issuer") as raised:
            await open_(transport, server.url, "POST", b"secret")

    assert raised.value.phase == "connect"
    assert server.requests == []


async def test_a_certificate_for_another_host_is_refused(trusting_transport: Transport, authority: trustme.CA) -> None:
    async with ScriptedServer(ssl_context=serving(authority, "elsewhere.example")) as server:
        with pytest.raises(NetworkError, match=r"certificate is not accepted.*not valid for '127\.0\.0\.1'") as raised:
            await open_(trusting_transport, server.url, "POST", b"secret")

    assert raised.value.phase == "connect"
    assert server.requests == []


async def test_https_to_a_plain_http_port_is_refused(trusting_transport: Transport) -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with pytest.raises(NetworkError, match="TLS failed, perhaps it is not a TLS port") as raised:
            await open_(trusting_transport, f"https://127.0.0.1:{port}/", "POST", b"x")
        tasks.cancel_scope.cancel()

    assert raised.value.phase == "connect"


async def test_http_to_a_tls_port_is_a_network_error(transport: Transport, authority: trustme.CA) -> None:
    async with ScriptedServer(ssl_context=serving(authority)) as server:
        with pytest.raises(NetworkError) as raised:
            await fetch(transport, server.url.replace("https", "http"), "POST", b"x")

    assert raised.value.phase == "sent"


async def test_a_tls_handshake_that_never_ends_runs_into_the_connect_limit(trusting_transport: Transport) -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            async for _ in stream:
                pass
        gone.set()

    gone = anyio.Event()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with pytest.raises(RequestTimeoutError, match="no connection within") as raised:
            await open_(trusting_transport, f"https://127.0.0.1:{port}/", timeouts=Timeouts(0.1, 20, 20))
        with anyio.fail_after(20):
            await gone.wait()
        tasks.cancel_scope.cancel()

    assert raised.value.phase == "connect"


# ---------------------------------------------------------------------------------------------------------- proxies


def proxy_url(server: ScriptedServer) -> str:
    return f"http://us%65r:p%40ss@127.0.0.1:{server.port}"


CREDENTIALS = "Basic " + base64.b64encode(b"user:p@ss").decode()


async def test_http_goes_to_the_proxy_with_the_whole_url() -> None:
    async with ScriptedServer() as proxy:
        proxy.replies(Reply(body=b"by proxy"), Reply(body=b"again"))
        transport = open_transport(proxies={"http": proxy_url(proxy)})
        assert await fetch(transport, "http://far.example/s%2F?a=%20b", "POST", b"x") == (200, b"by proxy")
        assert await fetch(transport, "http://far.example/s") == (200, b"again")
        await transport.aclose()

    assert [request.target for request in proxy.requests] == [
        "http://far.example/s%2F?a=%20b",
        "http://far.example/s",
    ]
    assert proxy.requests[0].headers["host"] == "far.example"
    assert proxy.requests[0].headers["proxy-authorization"] == CREDENTIALS
    assert proxy.accepted == 1


async def test_https_goes_through_a_tunnel(trusting: ssl.SSLContext, authority: trustme.CA) -> None:
    async with ScriptedServer(ssl_context=serving(authority, "far.example")) as far, ScriptedServer() as proxy:
        far.replies(Reply(body=b"far"), Reply(body=b"again"))
        proxy.replies(Reply(tunnel=("127.0.0.1", far.port)))
        transport = open_transport(ssl_context=trusting, proxies={"https": proxy_url(proxy)})
        headers = {"authorization": "Bearer mine"}
        assert await fetch(transport, "https://far.example/s", "POST", b"x", headers) == (200, b"far")
        assert await fetch(transport, "https://far.example/s") == (200, b"again")
        await transport.aclose()

    assert [(request.method, request.target) for request in proxy.requests] == [("CONNECT", "far.example:443")]
    assert proxy.requests[0].headers["proxy-authorization"] == CREDENTIALS
    assert "authorization" not in proxy.requests[0].headers
    assert "proxy-authorization" not in far.requests[0].headers
    assert far.requests[0].headers["host"] == "far.example"
    assert [request.connection for request in far.requests] == [1, 1]


@pytest.mark.parametrize(
    "reply", [Reply(407), Reply(502, body=b"no way"), Reply(raw=b"", close=True), Reply(raw=b"nonsense\r\n\r\n")]
)
async def test_a_tunnel_that_is_refused_was_certainly_not_applied(reply: Reply, trusting: ssl.SSLContext) -> None:
    async with ScriptedServer() as proxy:
        proxy.replies(reply)
        transport = open_transport(ssl_context=trusting, proxies={"https": proxy_url(proxy)})
        with pytest.raises(NetworkError) as raised:
            await open_(transport, "https://far.example/s", "POST", b"x")
        await transport.aclose()
        await proxy.wait_connections(0)

    assert (raised.value.phase, raised.value.reused) == ("connect", False)
    assert "p@ss" not in str(raised.value)


async def test_a_proxy_that_cannot_be_reached_was_certainly_not_applied() -> None:
    async with ScriptedServer() as proxy:
        pass
    transport = open_transport(proxies={"all": proxy_url(proxy)})
    for scheme in ("http", "https"):
        with pytest.raises(NetworkError, match="cannot connect") as raised:
            await open_(transport, f"{scheme}://far.example/s")
        assert raised.value.phase == "connect"
    await transport.aclose()


async def test_silence_of_a_tunnelling_proxy_runs_into_the_connect_limit(trusting: ssl.SSLContext) -> None:
    async with ScriptedServer() as proxy:
        proxy.replies(Reply(hold=anyio.Event()))
        transport = open_transport(ssl_context=trusting, proxies={"https": proxy_url(proxy)})
        with pytest.raises(RequestTimeoutError) as raised:
            await open_(transport, "https://far.example/s", timeouts=Timeouts(0.1, 20, 20))
        await proxy.wait_connections(0)
        await transport.aclose()

    assert raised.value.phase == "connect"


async def test_hosts_of_no_proxy_are_reached_directly() -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(body=b"direct"))
        transport = open_transport(proxies={"http": "http://127.0.0.1:1", "no": "localhost, 127.0.0.1"})
        exchange = await open_(transport, server.url)
        assert await read(exchange) == b"direct"
        await transport.aclose()

    assert server.requests[0].target == "/"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_proxy_of_another_kind_is_refused_when_it_would_be_used() -> None:
    transport = open_transport(proxies={"http": "socks5://user:secret@h:1"})
    with pytest.raises(InvalidArgumentError, match="a proxy must have an http or https URL") as raised:
        await open_(transport, "http://far.example/")
    assert "secret" not in str(raised.value)
    await transport.aclose()


def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clean_environment(monkeypatch)
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "near.example,.sub.example")

    proxies = Proxies(None)
    monkeypatch.setenv("HTTP_PROXY", "http://other:3128")
    monkeypatch.setenv("no_proxy", "*")

    assert proxies.find("http", "far.example", None) == Proxy("http://proxy:3128")
    assert proxies.find("http", "near.example", 8080) is None
    assert proxies.find("http", "a.sub.example", 80) is None
    assert proxies.find("https", "far.example", None) is None


def test_no_proxies_means_none_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    clean_environment(monkeypatch)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")

    assert Proxies({}).find("http", "far.example", None) is None


def test_a_proxy_without_scheme_is_http_and_its_credentials_stay_out_of_its_repr() -> None:
    proxy = Proxies({"all": "user:secret@proxy:3128"}).find("https", "far.example", 443)

    assert proxy == Proxy("http://proxy:3128", "Basic " + base64.b64encode(b"user:secret").decode())
    assert "secret" not in repr(proxy)
    assert base64.b64encode(b"user:secret").decode() not in repr(proxy)
