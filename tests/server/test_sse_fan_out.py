"""Many readers with server-sent events on our own runner: one of them leads, the others are pushed to (`sse_session`).

The keep-alive is an hour, so a reader that is forgotten waits for ever, and its socket's timeout fails the test.
"""

import random
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest

from durable_streams.server import DurableStreamsApp, MemoryStore, Server, SQLiteStore

PATH = "/v1/stream/x"


@pytest.fixture(params=["memory", "sqlite"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "store.db")
    with Server(store, sse_keep_alive=3600, sse_max_age=3600) as server:
        ask(server, "PUT")
        yield server


def ask(server: Server, method: str, body: str | bytes = "", **headers: str) -> int:
    connection = HTTPConnection(urlsplit(server.base_url).netloc, timeout=20)
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, PATH, body, {"content-type": "text/plain", **fields})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.fixture(autouse=True)
def leave() -> Iterator[None]:
    """Close all readers in the end."""
    yield
    while Reader.opened:
        Reader.opened.pop().close()


class Reader:
    """Follows the stream, and has its text."""

    opened: ClassVar[list["Reader"]] = []

    def __init__(self, server: Server, offset: str = "-1", receive_buffer: int | None = None) -> None:
        parts = urlsplit(server.base_url)
        self.text = ""
        self.ended = False
        self._socket = socket.socket()
        self.opened.append(self)
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(20)
        self._socket.connect((parts.hostname, parts.port))
        self._socket.sendall(f"GET {PATH}?offset={offset}&live=sse HTTP/1.1\r\nhost: s\r\n\r\n".encode())
        self._unread = b""
        self._controls = 0

    def rest(self) -> None:
        """Read up to the first control event."""
        while not self._controls:
            self._read()

    def until(self, text: str) -> None:
        """Read until this is all that has come."""
        while not self.text.endswith(text):
            self._read()

    def to_the_end(self) -> None:
        while not self.ended:
            self._read()

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> None:
        assert not self.ended, f"the connection ended with {self.text[-100:]!r}"
        data = self._socket.recv(1 << 20)
        self._unread += data
        while True:  # chunks
            head, found, rest = self._unread.partition(b"\r\n\r\n" if self._unread.startswith(b"HTTP") else b"\r\n")
            if not found:
                break
            if head.startswith(b"HTTP"):
                assert b" 200 " in head
                self._unread = rest
                continue
            size = int(head, 16)
            if len(rest) < size + 2:
                break
            self._event(rest[:size].decode())
            self._unread = rest[size + 2 :]
            self.ended = self.ended or not size
        assert data or self.ended

    def _event(self, chunk: str) -> None:
        for event in filter(None, chunk.split("\n\n")):
            kind, *lines = event.split("\n")
            if kind == "event: data":
                self.text += "\n".join(line.removeprefix("data:") for line in lines)
            else:
                self._controls += 1


def test_all_readers_get_all_events_in_order(server: Server) -> None:
    readers = [Reader(server) for _ in range(20)]
    for reader in readers:
        reader.rest()

    for number in range(30):
        assert ask(server, "POST", f"<{number}>") == 204
    for reader in readers:
        reader.until("<29>")

    assert {reader.text for reader in readers} == {"".join(f"<{number}>" for number in range(30))}


@pytest.mark.parametrize("seed", range(2))
def test_readers_come_and_go_and_none_misses_anything(server: Server, seed: int) -> None:
    rng = random.Random(seed)
    readers: list[Reader] = []
    written = ""
    for number in range(60):
        for _ in range(rng.randrange(3)):
            readers.append(Reader(server))
            if rng.random() < 0.5:
                readers[-1].rest()
        if readers and rng.random() < 0.7:
            readers.pop(rng.choice((0, rng.randrange(len(readers))))).close()  # the first one often leads
        assert ask(server, "POST", f"<{number}>") == 204
        written += f"<{number}>"
        if readers and rng.random() < 0.3:
            reader = rng.choice(readers)
            reader.until(f"<{number}>")
            assert reader.text == written

    for reader in readers:
        reader.until("<59>")

    assert {reader.text for reader in readers} == {written}


def test_when_the_leader_leaves_another_one_leads(server: Server) -> None:
    readers = [Reader(server) for _ in range(5)]
    for reader in readers:
        reader.rest()

    for number in range(5):
        assert ask(server, "POST", f"<{number}>") == 204
        for reader in readers:
            reader.until(f"<{number}>")
        readers.pop(0).close()

    app = server.app
    assert isinstance(app, DurableStreamsApp)


@pytest.mark.parametrize("slow_one", [0, 2])
def test_a_slow_reader_holds_up_nobody_and_misses_nothing(server: Server, slow_one: int) -> None:
    readers = [Reader(server, receive_buffer=4096 if number == slow_one else None) for number in range(4)]
    for reader in readers:
        reader.rest()
    slow, others = readers[slow_one], [reader for reader in readers if reader is not readers[slow_one]]
    block = "x" * 500_000

    for number in range(8):
        assert ask(server, "POST", f"{block}<{number}>") == 204
        for reader in others:
            reader.until(f"<{number}>")
    slow.until("<7>")

    assert {reader.text for reader in readers} == {"".join(f"{block}<{number}>" for number in range(8))}


def test_the_end_of_the_stream_is_the_end_for_all(server: Server) -> None:
    readers = [Reader(server) for _ in range(5)]
    for reader in readers:
        reader.rest()

    assert ask(server, "POST", "the end", stream_closed="true") == 204
    for reader in readers:
        reader.to_the_end()

    assert {reader.text for reader in readers} == {"the end"}


def test_deletion_is_the_end_for_all(server: Server) -> None:
    readers = [Reader(server) for _ in range(5)]
    for reader in readers:
        reader.rest()

    assert ask(server, "DELETE") == 204

    for reader in readers:
        reader.to_the_end()


def test_the_servers_end_is_the_end_for_all() -> None:
    with Server(sse_keep_alive=3600, sse_max_age=3600) as server:
        ask(server, "PUT")
        readers = [Reader(server) for _ in range(5)]
        for reader in readers:
            reader.rest()

    for reader in readers:
        reader.to_the_end()


def test_a_character_in_two_appends_is_pushed_whole(server: Server) -> None:
    readers = [Reader(server) for _ in range(3)]
    for reader in readers:
        reader.rest()

    for piece in ("a", "ä", "€", "z"):
        for byte in piece.encode():
            assert ask(server, "POST", bytes([byte])) == 204
    for reader in readers:
        reader.until("z")

    assert {reader.text for reader in readers} == {"aä€z"}


def test_readers_that_are_pushed_to_still_leave_when_they_are_old() -> None:
    with Server(sse_keep_alive=0.02, sse_max_age=0.2) as server:
        ask(server, "PUT")
        readers = [Reader(server) for _ in range(5)]

        for reader in readers:
            reader.to_the_end()

        assert all(reader._controls > 1 for reader in readers)
