"""Drives an ASGI application in the test's own event loop, as strictly as a server would.

`call` makes one exchange; `Connection` keeps one open, so that a test decides when a piece of the request arrives, when
the client reads, and when it goes away.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from durable_streams.server import DurableStreamsApp

ROOT = "/v1/stream"
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

HeaderList = Iterable[tuple[str, str | bytes]]


def offset(position: int) -> str:
    return f"0000000000000000_{position:016}"


class Clock:
    """Wall-clock time that a test sets."""

    def __init__(self, now: float = 1_788_264_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def next_offset(self) -> str:
        return self.headers["stream-next-offset"]


def scope_for(
    method: str,
    target: str | bytes,
    headers: Mapping[str, str] | HeaderList = (),
    *,
    root_path: str = "",
    raw_path: bool = True,
    http_version: str = "1.1",
) -> dict[str, Any]:
    from urllib.parse import unquote_to_bytes

    raw = target.encode("latin-1") if isinstance(target, str) else target
    path, _, query = raw.partition(b"?")
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": http_version,
        "method": method,
        "scheme": "http",
        "path": unquote_to_bytes(path).decode("utf-8", "replace"),
        "raw_path": path,
        "root_path": root_path,
        "query_string": query,
        "headers": [
            (name.lower().encode("latin-1"), value if isinstance(value, bytes) else value.encode("latin-1"))
            for name, value in pairs
        ],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 4437),
    }
    if not any(name == b"host" for name, _ in scope["headers"]):
        scope["headers"].insert(0, (b"host", b"s.example"))
    if not raw_path:
        del scope["raw_path"]
    return scope


class Connection:
    """One exchange in progress."""

    def __init__(self, app: Any, scope: dict[str, Any]) -> None:
        self._app = app
        self._scope = scope
        self._to_app, self._from_client = anyio.create_memory_object_stream[dict[str, Any]](100)
        self._to_client, self._from_app = anyio.create_memory_object_stream[dict[str, Any]](0)
        self.received = 0  # messages that the application took
        self.gone = False
        self.finished = anyio.Event()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.header_list: list[tuple[str, str]] = []

    async def _receive(self) -> dict[str, Any]:
        message = await self._from_client.receive()
        self.received += 1
        return message

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            await self._to_client.send(message)
        except anyio.BrokenResourceError:
            if not self.gone:
                raise

    async def run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        finally:
            self._to_client.close()
            self.finished.set()

    def send_body(self, body: bytes = b"", *, more: bool = False) -> None:
        """A piece of the request arrives."""
        self._to_app.send_nowait({"type": "http.request", "body": body, "more_body": more})

    def disconnect(self) -> None:
        """The client goes away. What the application sends from now on gets lost without a word, as with servers."""
        self.gone = True
        self._from_app.close()
        self._to_app.send_nowait({"type": "http.disconnect"})

    async def head(self) -> int:
        """Wait for the answer's head; returns the status."""
        message = await self._from_app.receive()
        assert message["type"] == "http.response.start"
        self.status = message["status"]
        for name, value in message["headers"]:
            assert _NAME.fullmatch(name), f"header name {name!r}"
            assert not _BAD_VALUE.search(value), f"header value {value!r}"
        self.header_list = [(name.decode(), value.decode("latin-1")) for name, value in message["headers"]]
        self.headers = dict(self.header_list)
        assert len(self.headers) == len(self.header_list), f"repeated header in {self.header_list}"
        return self.status

    async def piece(self) -> bytes:
        """The next piece of the answer's body; b"" at its end."""
        try:
            message = await self._from_app.receive()
        except anyio.EndOfStream:
            return b""
        assert message["type"] == "http.response.body"
        assert type(message["body"]) is bytes
        if not message.get("more_body", False):
            await self._drain()
            return message["body"]
        return message["body"] or await self.piece()

    async def _drain(self) -> None:
        async for message in self._from_app:
            raise AssertionError(f"message after the end of the answer: {message}")

    async def rest(self) -> bytes:
        body = b""
        while piece := await self.piece():
            body += piece
        return body

    def close(self) -> None:
        for stream in (self._to_app, self._from_client, self._to_client, self._from_app):
            stream.close()


@asynccontextmanager
async def connect(app: Any, scope: dict[str, Any]) -> AsyncIterator[Connection]:
    """An exchange whose request is sent by the test. Left early, the client goes away."""
    connection = Connection(app, scope)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(connection.run)
            try:
                yield connection
            finally:
                if not connection.finished.is_set():
                    group.cancel_scope.cancel()
    finally:
        connection.close()


class Client:
    """Makes requests to one application. Paths are relative to the root unless they begin with a slash."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def scope(self, method: str, target: str, headers: Mapping[str, str] | HeaderList = (), **facts: Any) -> Any:
        return scope_for(method, target if target.startswith("/") else f"{ROOT}/{target}", headers, **facts)

    async def call(
        self,
        method: str,
        target: str,
        body: bytes | list[bytes] = b"",
        headers: Mapping[str, str] | HeaderList = (),
        **facts: Any,
    ) -> Answer:
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        if isinstance(body, bytes):
            pieces = [body]
            if method in ("POST", "PUT") and not any(name.lower() == "content-length" for name, _ in pairs):
                pairs.append(("content-length", str(len(body))))
        else:
            pieces = body or [b""]
        return await exchange(self.app, self.scope(method, target, pairs, **facts), pieces)

    async def put(self, target: str, content_type: str | None = None, body: bytes = b"", **headers: str) -> Answer:
        return await self.call("PUT", target, body, _headers(content_type, headers))

    async def post(self, target: str, body: bytes = b"", content_type: str | None = None, **headers: str) -> Answer:
        return await self.call("POST", target, body, _headers(content_type, headers))

    async def get(self, target: str, **headers: str) -> Answer:
        return await self.call("GET", target, b"", _headers(None, headers))

    async def head(self, target: str) -> Answer:
        return await self.call("HEAD", target)

    async def delete(self, target: str) -> Answer:
        return await self.call("DELETE", target)

    @asynccontextmanager
    async def open(self, target: str, **headers: str) -> AsyncIterator[Connection]:
        """A GET that stays open."""
        async with connect(self.app, self.scope("GET", target, _headers(None, headers))) as connection:
            connection.send_body()
            yield connection


def _headers(content_type: str | None, headers: Mapping[str, str]) -> list[tuple[str, str | bytes]]:
    pairs: list[tuple[str, str | bytes]] = [(name.replace("_", "-"), value) for name, value in headers.items()]
    if content_type is not None:
        pairs.append(("content-type", content_type))
    return pairs


async def exchange(app: Any, scope: dict[str, Any], pieces: list[bytes]) -> Answer:
    """One whole exchange; checks what HTTP demands of every answer."""
    with anyio.fail_after(20):
        async with connect(app, scope) as connection:
            for number, piece in enumerate(pieces, 1):
                connection.send_body(piece, more=number < len(pieces))
            status = await connection.head()
            body = await connection.rest()
    answer = Answer(status, connection.headers, body)
    check_answer(scope["method"], answer)
    return answer


def check_answer(method: str, answer: Answer) -> None:
    """What holds for every answer of this server."""
    headers = answer.headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "cross-origin"
    assert headers["access-control-allow-origin"] == "*"
    if method == "HEAD" or answer.status in (204, 304):
        assert not answer.body
        assert "content-length" not in headers
        assert "transfer-encoding" not in headers
    elif headers.get("content-type") != "text/event-stream":
        assert headers["content-length"] == str(len(answer.body))
    if answer.status >= 400:
        assert headers["cache-control"] == "no-store"
        assert answer.body or method == "HEAD"


def make_client(**options: Any) -> Client:
    return Client(DurableStreamsApp(**options))
