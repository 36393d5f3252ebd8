"""The application under ASGI servers that are not ours (server 16).

Each is started as its users start it, in a process of its own, and asked for one thing of each kind.
"""

import gzip
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import anyio
import pytest

from durable_streams.server import DurableStreamsApp, SQLiteStore

from .driver import Client, offset

APP = "tests.server.hosted_app:app"
HOSTS = {
    "uvicorn": ["-m", "uvicorn", APP, "--port", "{port}", "--log-level", "error"],
    "hypercorn-asyncio": ["-m", "hypercorn", APP, "--bind", "127.0.0.1:{port}", "--worker-class", "asyncio"],
    "hypercorn-trio": ["-m", "hypercorn", APP, "--bind", "127.0.0.1:{port}", "--worker-class", "trio"],
    "granian": ["-m", "granian", APP, "--interface", "asgi", "--port", "{port}", "--log-level", "error"],
}


#: What makes them end though a client stays: without it they wait for as long as it likes.
BOUNDS = {
    "uvicorn": ["--timeout-graceful-shutdown", "1"],
    "hypercorn-asyncio": ["--graceful-timeout", "1"],
    "hypercorn-trio": ["--graceful-timeout", "1"],
    "granian": ["--workers-kill-timeout", "1"],
}


@pytest.fixture(scope="module", params=HOSTS)
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that accepts connections."""
    with hosted(request.param) as (number, _):
        yield number


@contextmanager
def hosted(host: str, *more: str, **environment: str) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """A server that accepts connections, and its port."""
    if importlib.util.find_spec(host.partition("-")[0]) is None:
        pytest.skip(f"{host} is not installed")
    with socket.create_server(("127.0.0.1", 0)) as finder:
        number = finder.getsockname()[1]
    arguments = [argument.format(port=number) for argument in HOSTS[host]]
    process = subprocess.Popen(
        [sys.executable, *arguments, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", number)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.01)
        yield number, process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


class Peer:
    """One connection to the server."""

    def __init__(self, port: int) -> None:
        self.connection = HTTPConnection("127.0.0.1", port, timeout=10)

    def call(
        self, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, f"/v1/stream/{target}", body, names)
        answer = self.connection.getresponse()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, fields, answer.read()


@pytest.fixture
def peer(port: int) -> Iterator[Peer]:
    peer = Peer(port)
    yield peer
    peer.connection.close()


def test_a_stream_lives_its_life(peer: Peer) -> None:
    status, headers, _ = peer.call("PUT", "life/a%2Fb", content_type="application/json")
    assert status == 201
    assert headers["location"].endswith("/v1/stream/life/a%2Fb")
    assert peer.call("POST", "life/a%2Fb", b"[1,2]", content_type="application/json")[0] == 204
    status, headers, body = peer.call("GET", "life/a%2Fb")
    assert (status, body, headers["content-length"]) == (200, b"[1,2]", "5")
    status, not_modified, body = peer.call("GET", "life/a%2Fb", if_none_match=headers["etag"])
    assert (status, body) == (304, b"")
    assert not_modified["stream-next-offset"] == offset(4)
    status, headers, _ = peer.call("GET", "life/a%2Fb?offset=now&live=long-poll")
    assert (status, headers["stream-up-to-date"]) == (204, "true")
    status, headers, _ = peer.call("HEAD", "life/a%2Fb")
    assert (status, headers["stream-next-offset"]) == (200, offset(4))
    assert peer.call("POST", "life/a%2Fb", b"", stream_closed="true")[0] == 204
    status, headers, body = peer.call("GET", "life/a%2Fb?offset=-1&live=sse")
    assert headers["content-type"] == "text/event-stream"
    assert body.startswith(b"event: data\ndata:[1,2]\n\nevent: control\n")
    assert b'"streamClosed":true' in body
    assert peer.call("DELETE", "life/a%2Fb")[0] == 204
    assert peer.call("HEAD", "life/a%2Fb")[0] == 404


def test_live_readers_are_served_and_forgotten(peer: Peer, port: int) -> None:
    peer.call("PUT", "live", content_type="text/plain")
    reader = Peer(port)
    reader.connection.request("GET", "/v1/stream/live?offset=-1&live=sse")
    events = reader.connection.getresponse()
    assert events.readline() == b"event: control\n"
    peer.call("POST", "live", b"hello", content_type="text/plain")
    while (line := events.readline()) != b"data:hello\n":
        assert line
    reader.connection.close()
    events.close()
    assert peer.call("DELETE", "live")[0] == 204


def test_large_bodies_go_both_ways(peer: Peer) -> None:
    peer.call("PUT", "large", content_type="application/octet-stream")
    block = bytes(range(256)) * 4096 * 8
    for _ in range(3):
        assert peer.call("POST", "large", block, content_type="application/octet-stream")[0] == 204
    assert peer.call("GET", "large")[2] == block * 3


def test_a_body_that_is_too_large_is_refused(port: int) -> None:
    peer = Peer(port)
    peer.call("PUT", "limit", content_type="text/plain")
    peer.connection.putrequest("POST", "/v1/stream/limit")
    peer.connection.putheader("Content-Type", "text/plain")
    peer.connection.putheader("Content-Length", str(1 << 30))
    peer.connection.endheaders()
    assert peer.connection.getresponse().status == 413
    peer.connection.close()


def test_an_upload_that_breaks_off_stores_nothing(peer: Peer, port: int) -> None:
    peer.call("PUT", "torn", content_type="text/plain")
    writer = Peer(port)
    writer.connection.putrequest("POST", "/v1/stream/torn")
    writer.connection.putheader("Content-Type", "text/plain")
    writer.connection.putheader("Content-Length", "100000")
    writer.connection.endheaders(b"x" * 50_000)
    writer.connection.close()
    assert peer.call("POST", "torn", b"whole", content_type="text/plain")[0] == 204
    assert peer.call("GET", "torn")[2] == b"whole"


def test_the_server_tells_how_it_is(peer: Peer) -> None:
    assert peer.call("GET", "../../health")[0] == 400
    for path, text in (("/health", b"ok\n"), ("/ready", b"ready\n")):
        peer.connection.request("GET", path)
        answer = peer.connection.getresponse()
        assert (answer.status, answer.read()) == (200, text)
    peer.connection.request("GET", "/metrics")
    answer = peer.connection.getresponse()
    assert answer.status == 200
    assert b"durable_streams_requests_total{" in answer.read()


def test_who_may_not_is_kept_out(peer: Peer) -> None:
    status, headers, _ = peer.call("PUT", "private/x")
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert peer.call("PUT", "private/x", authorization="Bearer sesame")[0] == 201


def test_pages_are_compressed(peer: Peer) -> None:
    body = b"0123456789" * 500_000
    peer.call("PUT", "packed", body, content_type="text/plain")
    for target, expected in (("packed", body), (f"packed?offset={offset(4_998_000)}", body[-2000:])):
        _, headers, received = peer.call("GET", target, accept_encoding="gzip")
        assert headers["content-encoding"] == "gzip"
        assert gzip.decompress(received) == expected


def test_a_reader_too_many_is_refused(peer: Peer, port: int) -> None:
    peer.call("PUT", "crowded", content_type="text/plain")
    readers = [Peer(port) for _ in range(2)]
    for reader in readers:
        reader.connection.request("GET", "/v1/stream/crowded?offset=now&live=sse")
        assert reader.connection.getresponse().status == 200
    status, headers, _ = peer.call("GET", "crowded?offset=now&live=sse")
    assert (status, headers["retry-after"]) == (429, "5")
    for reader in readers:
        reader.connection.close()
    deadline = time.monotonic() + 20  # how fast a server tells that a client has gone is its affair
    while peer.call("GET", "crowded?offset=now&live=long-poll")[0] != 204:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("host", HOSTS)
def test_a_server_that_is_stopped_under_readers_keeps_what_it_acknowledged(host: str, tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    with hosted(host, *BOUNDS[host], HOSTED_STORE=path) as (number, process):
        writer, reader = Peer(number), Peer(number)
        writer.call("PUT", "kept", content_type="text/plain")
        reader.connection.request("GET", "/v1/stream/kept?offset=now&live=sse")
        events = reader.connection.getresponse()
        assert events.readline() == b"event: control\n"
        for index in range(10):
            assert writer.call("POST", "kept", b"%d," % index, content_type="text/plain")[0] == 204
        process.terminate()
        process.communicate(timeout=20)
        for peer in (writer, reader):
            peer.connection.close()
        events.close()

    async def look() -> bytes:
        async with SQLiteStore(path) as store:
            return (await Client(DurableStreamsApp(store)).get("kept")).body

    assert anyio.run(look) == b"0,1,2,3,4,5,6,7,8,9,"


@pytest.mark.parametrize(
    ("host", "number"), [("uvicorn", signal.SIGTERM), ("uvicorn", signal.SIGINT), ("granian", signal.SIGTERM)]
)
def test_readers_end_well_when_the_application_hears_the_signal(host: str, number: signal.Signals) -> None:
    """Should it not, the server waits for an hour, and the test fails by its timeout."""
    with hosted(host, HOSTED_SIGNALS="1") as (port, process):
        writer, reader = Peer(port), Peer(port)
        writer.call("PUT", "kept", b"abc", content_type="text/plain")
        reader.connection.request("GET", "/v1/stream/kept?offset=-1&live=sse")
        events = reader.connection.getresponse()
        assert events.readline() == b"event: data\n"
        process.send_signal(number)
        assert events.read().endswith(b"\n\n"), "an event is cut"
        process.communicate(timeout=20)
        writer.connection.close()
        reader.connection.close()
