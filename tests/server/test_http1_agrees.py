"""Our runner's own connections answer as the application does by the messages of ASGI, whatever is asked.

Both serve the same random requests, with streams of their own; status, headers and bodies have to be the same.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.server import DurableStreamsApp, MemoryStore
from durable_streams.server._connection import Connection

from .driver import Answer, Client, Clock, exchange
from .test_fuzz import REQUESTS, UNHURRIED, USUAL, Request

#: What says where a message ends, or is for the connection alone.
_FRAMING = {"content-length", "connection", "expect", "host"}


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, pieces: list[bytes]) -> None:
        self.written += b"".join(pieces)

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Wire:
    """An application behind connections of our runner, without sockets."""

    def __init__(self, app: DurableStreamsApp) -> None:
        self._config: Any = SimpleNamespace(max_connections=None, timeout_keep_alive=75, direct=app)
        self._config.prefix = lambda default, common: b"".join(b"%b: %b\r\n" % pair for pair in (*default, *common))
        self._state = SimpleNamespace(connections=set(), tasks=set(), default_headers=[], total_requests=0)

    async def exchange(self, request: bytes) -> Answer:
        """Make one request on a connection of its own."""
        transport: Any = Transport()
        connection = Connection(self._config, self._state, {})
        connection.connection_made(transport)
        connection.data_received(request)
        async with asyncio.timeout(5):
            while connection.cycle is not None and not connection.cycle.response_complete:
                await asyncio.sleep(0)
        connection.connection_lost(None)
        head, _, body = bytes(transport.written).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        assert len(headers) == len(lines)
        return Answer(int(first[9:12]), headers, unchunked(body) if "transfer-encoding" in headers else body)


def unchunked(body: bytes) -> bytes:
    content = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        content, body = content + body[:length], body[length + 2 :]
    return content


def app() -> DurableStreamsApp:
    names = map(str, itertools.count())
    return DurableStreamsApp(
        MemoryStore(incarnations=lambda: next(names)),
        clock=Clock(),
        rng=random.Random(1),
        long_poll_timeout=0.001,
        sse_max_age=0.001,
        max_append_bytes=1000,
        page_bytes=50,
    )


def on_the_wire(request: Request) -> bytes | None:
    """A request as bytes; None if it cannot be written as HTTP."""
    method, path, query, headers, body = request
    target = path + b"?" + query if query else path
    if not method.isascii() or not path.startswith(b"/") or b"?" in path or any(byte <= 32 for byte in target):
        return None
    if b"#" in target or any(byte >= 127 for byte in target):
        return None  # the parser is strict
    content = b"".join(body)
    lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in headers]
    return b"%b %b HTTP/1.1\r\nhost: s.example\r\n%bcontent-length: %d\r\n\r\n%b" % (
        *(method.encode(), target, b"".join(lines), len(content), content),
    )


def sendable(request: Request) -> Request:
    """The same without what a connection has to say, and with header values as they arrive."""
    method, path, query, headers, body = request
    kept = [
        (name, value.strip(" \t"))
        for name, value in headers
        if name not in _FRAMING and not any(ord(char) < 32 or ord(char) == 127 for char in value.replace("\t", ""))
    ]
    return method, path, query, kept, body


def plain(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    headers = {name: value for name, value in answer.headers.items() if name not in ("transfer-encoding", "connection")}
    return answer.status, headers, answer.body


APPENDS = st.lists(
    st.tuples(
        st.just("POST"),
        st.sampled_from([b"/v1/stream/a", b"/v1/stream/j", b"/v1/stream/none"]),
        st.just(b""),
        USUAL,
        st.sampled_from([[b""], [b"x"], [b"[1,2]"], [b"{"], [b"y" * 999], [b"z" * 1001]]),
    ),
    max_size=6,
)


@given(requests=st.builds(lambda one, other: one + other, APPENDS, REQUESTS))
@settings(UNHURRIED, max_examples=50)
def test_connections_answer_as_the_application_does(requests: list[Request]) -> None:
    async def run() -> None:
        ours, theirs = app(), app()
        wire, client = Wire(ours), Client(theirs)
        usual: list[Request] = [
            ("PUT", b"/v1/stream/a", b"", [("content-type", "text/plain")], [b"abc"]),
            ("PUT", b"/v1/stream/j", b"", [("content-type", "application/json")], [b"[1]"]),
        ]
        for request in map(sendable, [*usual, *requests]):
            data = on_the_wire(request)
            if data is None:
                continue
            over_wire = await wire.exchange(data)
            method, path, query, headers, body = request
            content = b"".join(body)
            scope = client.scope(method, "/", [*headers, ("content-length", str(len(content)))])
            scope["raw_path"], scope["query_string"] = path, query
            assert plain(over_wire) == plain(await exchange(theirs, scope, [content]))
        assert ours.in_progress == 0

    asyncio.run(run())
