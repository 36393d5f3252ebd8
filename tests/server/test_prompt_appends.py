"""What hosting demands holds for appends that our own runner serves without a task, too."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from durable_streams.server import AccessRequest, Allow, Deny, MemoryStore, Server, SQLiteStore
from durable_streams.server.stores.abilities import Appending, prompt_store
from durable_streams.server.stores.base import AppendRequest, AppendResult, Payload

ONE, OTHER = "https://one.example", "https://other.example"
TEXT = {"Content-Type": "text/plain"}


class Peer:
    """A connection on which request follows request."""

    def __init__(self, server: Server) -> None:
        parts = urlsplit(server.base_url)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)
        self._file = self._socket.makefile("rb")

    def send(self, method: str, target: str, body: bytes = b"", **headers: str) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: s.example", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def receive(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self._file.readline().split()[1])
        headers: dict[str, str] = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(": ")
            assert name not in headers, f"{name} twice"
            headers[name] = value
        return status, headers, self._file.read(int(headers.get("content-length", "0")))

    def call(self, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        self.send(method, target, body, **headers)
        return self.receive()

    def append(self, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
        return self.call("POST", "/v1/stream/x", body, **{**TEXT, **headers})

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "store")


@contextmanager
def serving(store: Any, **options: Any) -> Iterator[tuple[Server, Peer]]:
    """A server with one stream, and a connection to it."""
    with Server(store, **options) as server:
        peer = Peer(server)
        try:
            yield server, peer
        finally:
            peer.close()


def test_appends_are_counted(store: Any) -> None:
    with serving(store, metrics=True) as (_, peer):
        peer.call("PUT", "/v1/stream/x", b"[]", Content_Type="application/json")
        for body, status in ((b"[1,2]", 204), (b"3", 204), (b"[]", 400), (b"no", 400)):
            assert peer.append(body, **{"Content-Type": "application/json"})[0] == status
        producer = {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0", "Content-Type": "application/json"}
        assert [peer.append(b"[4,5,6]", **producer)[0] for _ in range(2)] == [200, 204]
        assert peer.call("POST", "/v1/stream/missing", b"x", **TEXT)[0] == 404
        text = peer.call("GET", "/metrics")[2].decode()
    found = {
        (sample.name, sample.labels.get("code")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("method", "POST") == "POST"
    }
    assert found["durable_streams_requests_total", "204"] == 3
    assert found["durable_streams_requests_total", "200"] == 1
    assert found["durable_streams_requests_total", "400"] == 2
    assert found["durable_streams_requests_total", "404"] == 1
    assert found["durable_streams_appends_total", None] == 3
    assert found["durable_streams_appended_messages_total", None] == 6
    assert found["durable_streams_requests_in_progress", None] == 1


def test_each_origin_is_told_its_own_on_one_connection(store: Any) -> None:
    with serving(store, cors_origin=[ONE, OTHER]) as (_, peer):
        peer.call("PUT", "/v1/stream/x", **TEXT)
        for origin in (ONE, OTHER, "https://evil.example", ONE, None):
            told = origin if origin in (ONE, OTHER) else None
            for method, target, status in (("POST", "x", 204), ("POST", "missing", 404), ("GET", "x", 200)):
                headers = TEXT if origin is None else {**TEXT, "Origin": origin}
                answer = peer.call(method, f"/v1/stream/{target}", b"a" if method == "POST" else b"", **headers)
                assert answer[0] == status
                assert answer[1].get("access-control-allow-origin") == told
                assert answer[1]["vary"] == "Origin"
                assert answer[1]["x-content-type-options"] == "nosniff"


def test_an_authorizer_is_asked_about_each_append(store: Any) -> None:
    asked = []

    def authorize(request: AccessRequest) -> Allow | Deny:
        asked.append((request.method, request.path))
        return Allow() if request.token == "t" else Deny(403)

    with serving(store, authorize=authorize) as (_, peer):
        token = {"Authorization": "Bearer t"}
        assert peer.call("PUT", "/v1/stream/x", **TEXT, **token)[0] == 201
        assert [peer.append(b"a", **headers)[0] for headers in ({}, token, {}, token)] == [403, 204, 403, 204]
        assert peer.call("GET", "/v1/stream/x", **token)[2] == b"aa"
    assert len(asked) == 6


def test_limits_hold(store: Any) -> None:
    with serving(store, max_requests=1, max_append_bytes=10) as (server, peer):
        peer.call("PUT", "/v1/stream/x", **TEXT)
        reader = Peer(server)
        reader.send("GET", "/v1/stream/x?offset=now&live=sse")
        assert reader._file.readline().startswith(b"HTTP/1.1 200 ")
        status, headers, _ = peer.append(b"a")
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        reader.close()
    with serving(store, max_append_bytes=10) as (server, peer):
        peer.call("PUT", "/v1/stream/x", **TEXT)
        assert peer.append(b"0123456789")[0] == 204
        status, headers, _ = peer.append(b"0123456789a")
        assert (status, headers["connection"]) == (413, "close")
        peer.close()
        again = Peer(server)
        status, headers, _ = again.append(b"abc", **{"Content-Encoding": "gzip"})
        assert (status, headers["connection"]) == (415, "close")
        again.close()


def test_a_server_that_ends_says_so(store: Any) -> None:
    with serving(store) as (server, peer):
        peer.call("PUT", "/v1/stream/x", **TEXT)
        begun = threading.Event()

        def begin() -> None:
            server.app.begin_shutdown()  # type: ignore[attr-defined]
            begun.set()

        assert server._runner is not None
        assert server._runner._loop is not None
        server._runner._loop.call_soon_threadsafe(begin)
        assert begun.wait(10)
        status, headers, _ = peer.append(b"a")
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")


class Loud(MemoryStore):
    """Has an `append` of its own, as who wraps a store to see what goes in."""

    async def append(self, r: AppendRequest, now: float) -> AppendResult:
        assert isinstance(r.payload, Payload)
        return await super().append(replace(r, payload=Payload(r.payload.data.upper())), now)


class LoudAndPrompt(Loud):
    """Has both."""

    def append_soon(self, r: AppendRequest, now: float, done: Appending) -> None:
        assert isinstance(r.payload, Payload)
        super().append_soon(replace(r, payload=Payload(r.payload.data.upper() + b"!")), now, done)


class Wrapper:
    """Has an `append` of its own and leaves the rest to another store."""

    def __init__(self) -> None:
        self._store = Loud()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._store.__aexit__(*error)

    async def append(self, r: AppendRequest, now: float) -> AppendResult:
        return await self._store.append(r, now)


def patched() -> MemoryStore:
    store = MemoryStore()
    store.append = Loud.append.__get__(Loud(), Loud)  # type: ignore[method-assign]  # as a test's monkeypatch would
    return store


@pytest.mark.parametrize(("kind", "prompt"), [(Loud, False), (LoudAndPrompt, True), (Wrapper, False), (patched, False)])
def test_a_store_with_an_append_of_its_own_is_not_passed_by(kind: Callable[[], Any], prompt: bool) -> None:
    store = kind()

    assert (prompt_store(store) is store) == prompt


@pytest.mark.parametrize(("kind", "stored"), [(Loud, b"ABC"), (LoudAndPrompt, b"ABC!"), (Wrapper, b"ABC")])
def test_appends_go_through_what_a_store_has_of_its_own(kind: Callable[[], Any], stored: bytes) -> None:
    with serving(kind()) as (_, peer):
        peer.call("PUT", "/v1/stream/x", **TEXT)
        assert peer.append(b"abc")[0] == 204

        assert peer.call("GET", "/v1/stream/x")[2] == stored
