"""Which connections the network transports keep, use again, and close."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable

import anyio
import pytest
import trio

from durable_streams import AlreadyClosedError, Exchange, NetworkError, Transport
from durable_streams._transport.aiohttp import AiohttpTransport
from durable_streams._transport.default import open_transport
from durable_streams._transport.trio import HTTPCoreTransport
from tests.scripted import Reply, ScriptedServer
from tests.transport.exchanges import fetch, open_


def state(transport: Transport) -> str:
    """`2 open, 1 idle` of a transport's repr."""
    return repr(transport).strip("<>").partition(" ")[2]


@pytest.mark.anyio
async def test_a_connection_is_used_again_after_a_complete_body(transport: Transport) -> None:
    async with ScriptedServer(lambda request: Reply(body=b"x")) as server:
        assert state(transport) == "0 open, 0 idle"
        for _ in range(3):
            exchange = await open_(transport, server.url)
            assert await exchange.receive() == b"x"
            assert await exchange.receive() == b""
            assert state(transport) == "0 open, 1 idle"
            await exchange.aclose()

    assert server.accepted == 1


@pytest.mark.anyio
async def test_a_half_read_exchange_closes_its_connection(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(chunks=[b"x", anyio.Event()]), Reply(body=b"next"))
        exchange = await open_(transport, server.url)
        assert await exchange.receive() == b"x"
        assert state(transport) == "1 open, 0 idle"

        await exchange.aclose()
        await exchange.aclose()

        assert state(transport) == "0 open, 0 idle"
        await server.wait_connections(0)
        with pytest.raises(AlreadyClosedError):
            await exchange.receive()
        assert await fetch(transport, server.url) == (200, b"next")


@pytest.mark.anyio
async def test_cancelling_the_wait_for_a_head_closes_the_connection(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(hold=anyio.Event()), Reply(body=b"next"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_, transport, server.url)
            await server.wait_requests(1)
            assert state(transport) == "1 open, 0 idle"
            tasks.cancel_scope.cancel()

        await server.wait_connections(0)
        assert state(transport) == "0 open, 0 idle"
        assert await fetch(transport, server.url) == (200, b"next")


@pytest.mark.anyio
async def test_cancelling_a_receive_closes_the_connection(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(chunks=[b"x", anyio.Event()]), Reply(body=b"next"))
        exchange = await open_(transport, server.url)
        assert await exchange.receive() == b"x"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.receive)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()

        await server.wait_connections(0)
        assert state(transport) == "0 open, 0 idle"
        assert await fetch(transport, server.url) == (200, b"next")


@pytest.mark.anyio
async def test_cancelling_while_connecting_leaves_nothing_behind(transport: Transport) -> None:
    accepted = anyio.Event()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            accepted.set()
            async for _ in stream:  # until the client goes away
                pass
            gone.set()

    gone = anyio.Event()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as opening:
            # https to a server that does not answer the TLS greeting
            opening.start_soon(open_, transport, f"https://127.0.0.1:{port}/")
            await accepted.wait()
            opening.cancel_scope.cancel()
        with anyio.fail_after(20):
            await gone.wait()
        assert state(transport) == "0 open, 0 idle"
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_an_exchange_may_be_closed_by_another_task_than_it_was_opened_in(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(chunks=[b"x", anyio.Event()]))
        exchanges: list[Exchange] = []

        async def open_one() -> None:
            exchanges.append(await open_(transport, server.url))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_one)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchanges[0].aclose)

        await server.wait_connections(0)


@pytest.mark.anyio
async def test_closing_an_exchange_ends_a_receive_in_another_task(transport: Transport) -> None:
    async with ScriptedServer() as server:
        server.replies(Reply(chunks=[b"x", anyio.Event()]))
        exchange = await open_(transport, server.url)
        assert await exchange.receive() == b"x"

        async def receive() -> None:
            with pytest.raises(AlreadyClosedError):
                await exchange.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await exchange.aclose()

        await server.wait_connections(0)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("keep_alive", "connections"),
    [
        ("timeout=5", [1, 1]),
        ("timeout=5, max=100", [1, 1]),
        ("timeout=1", [1, 2]),
        ("max=1, timeout=0", [1, 2]),
        ("nonsense", [1, 1]),
    ],
)
async def test_the_servers_keep_alive_time_is_respected(
    transport: Transport, keep_alive: str, connections: list[int]
) -> None:
    async with ScriptedServer(lambda request: Reply(headers={"keep-alive": keep_alive})) as server:
        for _ in connections:
            assert await fetch(transport, server.url, "POST", b"x") == (200, b"")

    assert [request.connection for request in server.requests] == connections


@pytest.mark.anyio
async def test_idle_connections_expire() -> None:
    transport = open_transport(proxies={}, keepalive_expiry=0.0)
    async with ScriptedServer(lambda request: Reply()) as server:
        for _ in range(2):
            await fetch(transport, server.url)
        await transport.aclose()

    assert [request.connection for request in server.requests] == [1, 2]


@pytest.mark.anyio
async def test_a_connection_that_the_server_closed_while_idle_is_not_used_again(transport: Transport) -> None:
    async with ScriptedServer(lambda request: Reply(body=b"x")) as server:
        await fetch(transport, server.url)
        await server.wait_idle()
        await server.close_idle()
        await anyio.wait_all_tasks_blocked()

        assert await fetch(transport, server.url, "POST", b"x") == (200, b"x")

    assert server.accepted == 2


@pytest.mark.anyio
async def test_connection_close_is_obeyed(transport: Transport) -> None:
    async with ScriptedServer(lambda request: Reply(body=b"x", close=True)) as server:
        for _ in range(2):
            assert await fetch(transport, server.url) == (200, b"x")

    assert server.accepted == 2


@pytest.mark.anyio
async def test_bytes_after_an_answer_are_not_taken_for_the_next(transport: Transport) -> None:
    smuggled = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad"
    async with ScriptedServer() as server:
        server.replies(Reply(raw=smuggled), Reply(body=b"good"), Reply(body=b"good"))
        await fetch(transport, server.url)
        try:
            answer = await fetch(transport, server.url)
        except NetworkError:
            answer = await fetch(transport, server.url)

    assert answer == (200, b"good")


@pytest.mark.anyio
async def test_closing_the_transport_ends_everything_at_once(transport: Transport) -> None:
    log: list[str] = []
    async with ScriptedServer() as server:
        server.replies(Reply(body=b"idle"))
        await fetch(transport, server.url)
        server.replies(Reply(chunks=[b"x", anyio.Event()]))
        receiving = await open_(transport, server.url)
        assert await receiving.receive() == b"x"
        server.replies(Reply(chunks=[b"x", anyio.Event()]))
        half_read = await open_(transport, server.url)
        server.replies(Reply(hold=anyio.Event()))

        async def receive() -> None:
            with pytest.raises(AlreadyClosedError):
                await receiving.receive()
            log.append("receive ended")

        async def wait_for_head() -> None:
            with pytest.raises(AlreadyClosedError):
                await open_(transport, server.url)
            log.append("open ended")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            tasks.start_soon(wait_for_head)
            await server.wait_requests(4)
            await anyio.wait_all_tasks_blocked()
            assert state(transport) == "3 open, 0 idle"
            with anyio.fail_after(5):
                await transport.aclose()
                await transport.aclose()

        await server.wait_connections(0)
        assert sorted(log) == ["open ended", "receive ended"]
        assert state(transport) == "closed"
        with pytest.raises(AlreadyClosedError):
            await half_read.receive()
        with pytest.raises(AlreadyClosedError):
            await open_(transport, server.url)


@pytest.mark.anyio
async def test_closing_does_not_wait_for_a_peer_that_does_not_read(transport: Transport) -> None:
    never = anyio.Event()

    async def upload() -> None:
        with pytest.raises(AlreadyClosedError):
            await open_(transport, server.url, "POST", b"x" * 30_000_000)

    async with ScriptedServer(on_head=lambda request: Reply(hold=never)) as server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(upload)
            await server.wait_connections(1)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(5):
                await transport.aclose()
        never.set()
        await server.wait_connections(0)


@pytest.mark.anyio
async def test_an_unused_transport_can_be_closed_and_dropped() -> None:
    await open_transport().aclose()
    open_transport()
    gc.collect()


@pytest.mark.anyio
@pytest.mark.parametrize("left", ["0 open, 1 idle", "1 open, 0 idle"])
async def test_a_transport_dropped_with_a_connection_warns_and_closes_it(
    left: str, caplog: pytest.LogCaptureFixture
) -> None:
    transport = open_transport(proxies={})
    async with ScriptedServer() as server:
        server.replies(Reply() if left == "0 open, 1 idle" else Reply(chunks=[b"x", anyio.Event()]))
        exchange = await open_(transport, server.url)
        await exchange.receive()
        kind = type(transport).__name__
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del transport, exchange
            gc.collect()
            await server.wait_connections(0)
            gc.collect()

    messages = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    # Where an exchange is left open, trio itself adds a word about the generator in it.
    assert f"<{kind} {left}> was not closed: use its aclose()" in messages
    assert "iohttp" not in caplog.text
    if kind == "AiohttpTransport" or left == "0 open, 1 idle":
        assert len(messages) == 1


def runs() -> list[object]:
    """Per loop: the transport, and a function that runs a coroutine function in a new loop."""

    def on_asyncio(function: Callable[[], object]) -> None:
        anyio.run(function, backend="asyncio")

    def on_trio(function: Callable[[], object]) -> None:
        anyio.run(function, backend="trio")

    return [
        pytest.param(AiohttpTransport, on_asyncio, id="asyncio"),
        pytest.param(HTTPCoreTransport, on_trio, id="trio"),
    ]


@pytest.mark.parametrize(("kind", "run"), runs())
def test_use_in_another_loop_is_refused(kind: type, run: Callable[..., None]) -> None:
    transport = kind(proxies={})

    async def use() -> None:
        async with ScriptedServer(lambda request: Reply(close=True)) as server:
            await fetch(transport, server.url)

    async def use_again() -> None:
        with pytest.raises(RuntimeError, match="belongs to another"):
            await open_(transport, "http://127.0.0.1:1/")

    run(use)
    run(use_again)


def test_a_transport_of_another_loop_library_is_refused() -> None:
    async def use(transport: Transport) -> None:
        await open_(transport, "http://127.0.0.1:1/")

    with pytest.raises(RuntimeError, match="works on trio only"):
        asyncio.run(use(HTTPCoreTransport()))
    with pytest.raises(RuntimeError, match="works on asyncio only"):
        trio.run(use, AiohttpTransport())


def test_making_a_default_transport_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="inside an event loop"):
        open_transport()


@pytest.mark.parametrize("left", ["dropped", "kept until the interpreter ends"])
def test_one_warning_is_all_that_is_said_of_a_transport_left_open_after_its_loop(left: str) -> None:
    program = textwrap.dedent(
        """
        import anyio, gc, sys, warnings
        from durable_streams import open_transport
        from tests.scripted import Reply, ScriptedServer
        from tests.transport.exchanges import fetch, open_

        async def main():
            transport = open_transport(proxies={})
            async with ScriptedServer() as server:
                server.replies(Reply(body=b"x"), Reply(chunks=[b"x", anyio.Event()]))
                await fetch(transport, server.url)
                left.append((transport, await open_(transport, server.url)))

        left = []
        anyio.run(main, backend=sys.argv[1])
        if sys.argv[2] == "dropped":
            left.clear()
            gc.collect()
        """
    )
    for loop in ("asyncio", "trio"):
        command = [sys.executable, "-X", "dev", "-c", program, loop, left]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert "was not closed: use its aclose()" in result.stderr
        for noise in ("Unclosed client session", "Unclosed connector", "Unclosed connection", "Traceback", "aiohttp."):
            assert noise not in result.stderr, result.stderr


@pytest.mark.parametrize(("loop", "library"), [("asyncio", "aiohttp"), ("trio", "httpcore2")])
def test_a_missing_library_is_named_with_the_command_that_installs_it(loop: str, library: str) -> None:
    program = textwrap.dedent(
        f"""
        import sys
        sys.modules[{library!r}] = None
        import anyio
        from durable_streams import open_transport

        async def main():
            try:
                open_transport()
            except ImportError as error:
                print(error)

        anyio.run(main, backend={loop!r})
        """
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    extra = {"aiohttp": "", "httpcore2": "[trio]"}[library]
    assert library in result.stdout
    assert f'pip install "durable-streams-anyio{extra}"' in result.stdout
