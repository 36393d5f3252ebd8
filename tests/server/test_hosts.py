"""The application under ASGI servers that are not ours (server 16).

Each is started as its users start it, in a process of its own, and asked for one thing of each kind.
"""

import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from .driver import offset

APP = "tests.server.hosted_app:app"
HOSTS = {
    "uvicorn": ["-m", "uvicorn", APP, "--port", "{port}", "--log-level", "error"],
    "hypercorn-asyncio": ["-m", "hypercorn", APP, "--bind", "127.0.0.1:{port}", "--worker-class", "asyncio"],
    "hypercorn-trio": ["-m", "hypercorn", APP, "--bind", "127.0.0.1:{port}", "--worker-class", "trio"],
    "granian": ["-m", "granian", APP, "--interface", "asgi", "--port", "{port}", "--log-level", "error"],
}


@pytest.fixture(scope="module", params=HOSTS)
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that accepts connections."""
    host: str = request.param
    if importlib.util.find_spec(host.partition("-")[0]) is None:
        pytest.skip(f"{host} is not installed")
    with socket.create_server(("127.0.0.1", 0)) as finder:
        number = finder.getsockname()[1]
    arguments = [argument.format(port=number) for argument in HOSTS[host]]
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", number)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.01)
        yield number
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
