"""The runner: uvicorn in a thread, for programs of any colour (server 16)."""

import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import pytest

from durable_streams.server import DurableStreamsApp, MemoryStore, Server, _uvicorn
from durable_streams.server.http import AppOptions

TEXT = {"Content-Type": "text/plain"}


def server_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "durable-streams server" in thread.name]


def connect(server: Server) -> HTTPConnection:
    parts = urlsplit(server.base_url)
    return HTTPConnection(parts.hostname or "", parts.port, timeout=10)


def request(server: Server, method: str, name: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = connect(server)
    try:
        path = urlsplit(server.url).path + "/" + name
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_server_serves_within_its_block_and_leaves_nothing() -> None:
    server = Server()
    assert repr(server) == "<Server for 127.0.0.1:0, new>"
    with pytest.raises(RuntimeError, match="before it has started"):
        _ = server.url
    with server as entered:
        assert entered is server
        assert server.url == f"{server.base_url}/v1/stream"
        assert repr(server) == f"<Server at {server.url}, running>"
        assert request(server, "PUT", "x", b"abc", content_type="text/plain") == (201, b"")
        assert request(server, "GET", "x") == (200, b"abc")
        assert len(server_threads()) == 1
    assert repr(server) == f"<Server at {server.url}, stopped>"
    assert not server_threads()
    with pytest.raises(ConnectionRefusedError):
        request(server, "GET", "x")
    with pytest.raises(RuntimeError, match="runs once"), server:
        pass


@pytest.mark.anyio
async def test_a_server_serves_an_async_program_without_blocking_it() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        async with Server() as server:
            assert ticks > 1
            status, _ = await anyio.to_thread.run_sync(request, server, "PUT", "x")
            assert status == 201
        group.cancel_scope.cancel()
    assert not server_threads()


@pytest.mark.anyio
async def test_cancelling_the_program_stops_the_server() -> None:
    with anyio.move_on_after(0.05) as scope:
        async with Server():
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not server_threads()


def test_an_exception_in_the_block_goes_through_and_the_server_stops() -> None:
    with pytest.raises(KeyError, match="mine"), Server():
        raise KeyError("mine")
    assert not server_threads()


def test_a_busy_port_is_an_error_that_names_it() -> None:
    with Server() as server:
        port = int(server.base_url.rpartition(":")[2])
        with (
            pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"),
            Server(port=port),
        ):
            pass
    assert not server_threads()


def test_an_unknown_host_is_an_error_that_names_it() -> None:
    with (
        pytest.raises(OSError, match=r"cannot listen on no\.such\.host\.invalid:0"),
        Server(host="no.such.host.invalid"),
    ):
        pass


def test_the_address_can_be_chosen() -> None:
    with Server(host="localhost", root="/streams") as server:
        assert server.url.endswith("/streams")
        assert request(server, "PUT", "x")[0] == 201
    with Server(host="0.0.0.0") as server:
        assert server.base_url.startswith("http://127.0.0.1:")


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6_addresses_stand_in_brackets() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with Server(host="::1") as server:
        assert server.base_url.startswith("http://[::1]:")
        assert request(server, "PUT", "x")[0] == 201


def test_a_store_or_an_application_can_be_given() -> None:
    store = MemoryStore()
    with Server(store, max_append_bytes=3) as server:
        assert request(server, "PUT", "x", b"abc")[0] == 201
        assert request(server, "POST", "x", b"abcd", content_type="application/octet-stream")[0] == 413
    with Server(DurableStreamsApp(store)) as server:
        assert request(server, "GET", "x") == (200, b"abc")
    with pytest.raises(TypeError, match="max_append_bytes"):
        Server(DurableStreamsApp(), max_append_bytes=3)
    with pytest.raises(TypeError, match="root: options belong to the application"):
        Server(DurableStreamsApp(), root="/elsewhere")
    with pytest.raises(TypeError, match="nonsense"):
        Server(nonsense=3)


def test_another_application_may_mount_ours() -> None:
    inner = DurableStreamsApp()

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"  # it knows no lifespan: that has to be fine
        await inner({**scope, "root_path": "/api"}, receive, send)

    with Server(outer, root="/api/v1/stream") as server:
        assert request(server, "PUT", "x", b"abc")[0] == 201
        assert request(server, "GET", "x") == (200, b"abc")


def test_what_keeps_the_application_from_starting_comes_out() -> None:
    class Locked(MemoryStore):
        async def __aenter__(self) -> "Locked":
            raise PermissionError("the directory is locked")

    with pytest.raises(PermissionError, match="locked"), Server(Locked()):
        pass
    assert not server_threads()


def test_what_goes_wrong_when_the_store_is_closed_comes_out() -> None:
    class Full(MemoryStore):
        async def __aexit__(self, *error: object) -> None:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), Server(Full()):
        pass
    assert not server_threads()


def test_the_server_stops_at_once_though_readers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should it not, it waits for an hour, and the test fails by its time limit."""
    monkeypatch.setattr(_uvicorn, "GRACE", 3600.0)
    with Server(long_poll_timeout=3600, sse_max_age=3600, sse_keep_alive=3600) as server:
        request(server, "PUT", "x", b"abc")
        connections = []
        for query in ("offset=-1&live=sse", "offset=now&live=long-poll", "offset=now&live=sse"):
            connection = connect(server)
            connection.request("GET", f"/v1/stream/x?{query}")
            connections.append(connection)
        idle = connect(server)
        idle.connect()
        events = connections[0].getresponse()
        assert events.readline() == b"event: data\n"
        while len(server.app.waits._scopes) < 3:
            time.sleep(0.001)
    assert events.read().endswith(b"\n\n")
    poll = connections[1].getresponse()
    assert (poll.status, poll.headers["connection"]) == (204, "close")
    for connection in (*connections, idle):
        connection.close()


@pytest.mark.parametrize("size", [6, 100_000])
def test_an_append_that_is_coming_in_when_the_server_ends_is_carried_out(size: int) -> None:
    store = MemoryStore()
    with Server(store) as server:
        request(server, "PUT", "x", b"")
        parts = urlsplit(server.base_url)
        late = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)
        late.sendall(
            b"POST /v1/stream/x HTTP/1.1\r\nHost: s\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: %d\r\n\r\nabc" % size
        )
        assert server._runner is not None
        connections = server._runner.server_state.connections
        while not any(each.cycle is not None and each.cycle.more_body for each in list(connections)):
            time.sleep(0.001)
        server.stop()
        while all(each.cycle is None or each.cycle.keep_alive for each in list(connections)):
            time.sleep(0.001)
        late.sendall(bytes(size - 3))

        answer = late.recv(65536)

    assert answer.startswith(b"HTTP/1.1 204 ")
    assert b"\r\nconnection: close\r\n" in answer
    assert store.figures().size == size
    late.close()


def test_a_reader_that_does_not_read_does_not_keep_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_uvicorn, "GRACE", 0.1)
    with Server(max_append_bytes=1 << 30) as server:
        request(server, "PUT", "x", bytes(64 << 20))
        parts = urlsplit(server.base_url)
        stuck = socket.create_connection((parts.hostname or "", parts.port or 0))
        stuck.sendall(b"GET /v1/stream/x HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stuck.recv(12) == b"HTTP/1.1 200"
    stuck.close()
    assert not server_threads()


def test_an_embedded_server_leaves_signals_and_logging_alone() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with Server() as server:
        request(server, "PUT", "x")
        assert {number: signal.getsignal(number) for number in handlers} == handlers
    code = (
        "import logging, urllib.request\n"
        "from durable_streams.server import Server\n"
        "with Server() as server:\n"
        "    urllib.request.urlopen(urllib.request.Request(server.url + '/x', method='PUT')).close()\n"
        "print([name for name in logging.root.manager.loggerDict "
        "if name.startswith('uvicorn') and logging.getLogger(name).handlers])\n"
        "print(logging.getLogger('uvicorn.access').propagate)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("[]\nTrue\n", "")


def test_importing_the_server_imports_no_web_server() -> None:
    code = "import sys, durable_streams.server; print({'uvicorn', 'msgspec', 'uvloop'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_without_uvicorn_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from durable_streams.server import Server\n"
        "try: Server().__enter__()\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "Server needs uvicorn: pip install 'durable-streams-anyio[server]'\n"


SERVE = """
import json, sys
from durable_streams.server import MemoryStore, Server

class Slow(MemoryStore):
    async def __aexit__(self, *error):
        print("closed", flush=True)

server = Server(Slow())
server.serve_forever(lambda: print(json.dumps(server.url), flush=True))
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serving_forever_ends_properly_on_a_signal(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = urlsplit(json.loads(process.stdout.readline()))
        connection = HTTPConnection(url.hostname or "", url.port, timeout=10)
        connection.request("PUT", f"{url.path}/x", b"abc", TEXT)
        connection.getresponse().read()
        connection.request("GET", f"{url.path}/x?offset=-1&live=sse")
        events = connection.getresponse()
        assert events.readline() == b"event: data\n"
        process.send_signal(number)
        assert events.read().endswith(b"\n\n")
        connection.close()
        out, err = process.communicate(timeout=20)
        assert (out, err, process.returncode) == ("closed\nended\n", "", 0)
    finally:
        process.kill()
        process.communicate()


def test_serving_forever_in_a_thread_ends_when_asked_to() -> None:
    server = Server()
    started = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(started.set,))
    thread.start()
    assert started.wait(10)
    assert request(server, "PUT", "x")[0] == 201
    server.stop()
    server.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_serving_forever_in_the_main_thread_puts_signal_handlers_back() -> None:
    former = signal.getsignal(signal.SIGTERM)
    server = Server()
    server.serve_forever(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is former


def test_what_the_caller_raises_at_the_start_ends_the_server_and_comes_out() -> None:
    def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Server().serve_forever(fail)


def test_the_options_of_the_server_are_those_of_the_application() -> None:
    parameters = inspect.signature(DurableStreamsApp).parameters.values()
    assert {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY} == (
        AppOptions.__annotations__.keys()
    )


def test_serving_forever_on_a_busy_port_fails() -> None:
    with Server() as server, pytest.raises(OSError, match="cannot listen"):
        Server(port=int(server.base_url.rpartition(":")[2])).serve_forever()
