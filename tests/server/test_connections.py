"""Clients that are slow on purpose, or too many (server 16; issue: "slow loris bounded by the runner's timeouts")."""

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from durable_streams.server import Server
from durable_streams.server.connections import BODY_BYTES_PER_SECOND, Watchman

PUT = b"PUT /v1/stream/%b HTTP/1.1\r\nHost: s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b"


def connect(server: Server) -> socket.socket:
    parts = urlsplit(server.base_url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ends(connection: socket.socket) -> bytes:
    """All that comes until the server closes; fails by its timeout if it does not."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


@pytest.fixture
def impatient() -> Iterator[Server]:
    """A server with short timeouts."""
    with Server(request_timeout=0.5, stall_timeout=0.5, sse_keep_alive=3600, long_poll_timeout=3600) as server:
        yield server


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"G",
        b"GET /v1/stream/x HTTP/1.1\r\nHost: s\r\n",
        b"GET /v1/stream/x HTTP/1.1\r\nHost: s\r\nX-A: " + b"a" * 1000,
    ],
)
def test_headers_that_do_not_come_end_the_connection(impatient: Server, beginning: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(beginning)
        assert ends(connection) == b""


def test_headers_that_come_byte_by_byte_end_the_connection(impatient: Server) -> None:
    """Each byte is progress, and still the time is limited."""
    with connect(impatient) as connection:
        connection.sendall(b"GET /v1/stream/x HTTP/1.1\r\nHost: s\r\nX: ")
        with pytest.raises(OSError, match="Broken pipe|reset by peer"):  # noqa: RUF043
            while True:
                connection.sendall(b"a")
                time.sleep(0.02)


def test_the_headers_of_a_later_request_are_waited_for_as_long(impatient: Server) -> None:
    with connect(impatient) as connection:
        connection.sendall(PUT % (b"x", 3, b"abc"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")
        connection.sendall(b"GET /v1/stream/x HT")
        assert ends(connection) == b""


def test_a_body_that_does_not_go_on_ends_the_connection_and_is_not_stored(impatient: Server) -> None:
    with connect(impatient) as connection:
        connection.sendall(PUT % (b"torn", 100, b"half"))
        assert ends(connection) == b""
    with connect(impatient) as connection:
        connection.sendall(b"HEAD /v1/stream/torn HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n")
        assert ends(connection).startswith(b"HTTP/1.1 404 ")


def test_a_body_in_chunks_that_do_not_come_ends_the_connection(impatient: Server) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"PUT /v1/stream/x HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
        assert ends(connection) == b""


def test_idle_connections_and_waiting_readers_are_left_alone() -> None:
    """They outlive the timeouts several times."""
    looks: list[float] = []
    with Server(request_timeout=1.0, stall_timeout=1.0, sse_keep_alive=3600, long_poll_timeout=3600) as server:
        watchman = server._watchman
        original = watchman.look

        def look(connections: Any, now: float) -> None:
            looks.append(now)
            original(connections, now)

        watchman.look = look  # type: ignore[method-assign]
        with connect(server) as idle:
            idle.sendall(PUT % (b"x", 3, b"abc"))
            assert idle.recv(65536).startswith(b"HTTP/1.1 201 ")
            with connect(server) as poll, connect(server) as events:
                poll.sendall(b"GET /v1/stream/x?offset=now&live=long-poll HTTP/1.1\r\nHost: s\r\n\r\n")
                events.sendall(b"GET /v1/stream/x?offset=now&live=sse HTTP/1.1\r\nHost: s\r\n\r\n")
                assert events.recv(65536).startswith(b"HTTP/1.1 200 ")
                looks.clear()
                while not looks or looks[-1] - looks[0] < 2.5:
                    time.sleep(0.01)
                idle.sendall(PUT.replace(b"PUT", b"POST") % (b"x", 3, b"def"))
                assert idle.recv(65536).startswith(b"HTTP/1.1 204 ")
                assert poll.recv(65536).startswith(b"HTTP/1.1 200 ")
                assert events.recv(65536)


@pytest.mark.parametrize("target", [b"/v1/stream/x", b"/v1/stream/x?offset=-1&live=sse"])
def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(impatient: Server, target: bytes) -> None:
    body = bytes(12 << 20)
    with connect(impatient) as writer:
        writer.sendall(PUT % (b"x", len(body), body))
        assert writer.recv(65536).startswith(b"HTTP/1.1 201 ")
    with connect(impatient) as reader:
        reader.sendall(b"GET %b HTTP/1.1\r\nHost: s\r\n\r\n" % target)
        assert reader.recv(12) == b"HTTP/1.1 200"
        while impatient.app.in_progress:  # type: ignore[attr-defined]
            time.sleep(0.01)
        assert len(ends(reader)) < len(body)


@pytest.mark.parametrize("target", [b"/v1/stream/x", b"/v1/stream/x?offset=-1&live=sse"])
def test_a_client_that_takes_nothing_costs_a_bounded_buffer(target: bytes) -> None:
    """Of 64 MiB the server takes into its hands what the next send holds, and waits."""
    body = bytes(16 << 20)
    with Server(max_append_bytes=len(body)) as server:
        with connect(server) as writer:
            writer.sendall(PUT % (b"x", len(body), body))
            assert writer.recv(65536).startswith(b"HTTP/1.1 201 ")
            for _ in range(3):
                writer.sendall(PUT.replace(b"PUT", b"POST") % (b"x", len(body), body))
                assert writer.recv(65536).startswith(b"HTTP/1.1 204 ")
        with connect(server) as reader:
            reader.sendall(b"GET %b HTTP/1.1\r\nHost: s\r\n\r\n" % target)
            assert reader.recv(12) == b"HTTP/1.1 200"
            assert server._runner is not None
            held = [-1]
            while len(held) < 20 or not held[-1] or len(set(held[-20:])) > 1:  # until nothing moves any more
                connections: Any = server._runner.server_state.connections
                held.append(sum(connection.transport.get_write_buffer_size() for connection in list(connections)))
                time.sleep(0.005)
            assert 0 < held[-1] < 2 << 20


def test_a_connection_too_many_is_told_so_and_closed() -> None:
    with Server(max_connections=2) as server:
        with connect(server) as first, connect(server) as second:
            for connection in (first, second):
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: s\r\n\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            for request in (b"", b"GET /health HTTP/1.1\r\nHost: s\r\n\r\n", PUT % (b"x", 1 << 20, bytes(1 << 20))):
                with connect(server) as third:
                    try:
                        third.sendall(request)
                    except OSError:
                        continue  # it was closed while we sent
                    answer = ends(third)
                    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
                    head, _, body = answer.partition(b"\r\n\r\n")
                    assert b"retry-after: 1" in head
                    assert b"connection: close" in head
                    assert b"content-length: %d\r\n" % len(body) in head
            second.sendall(b"GET /ready HTTP/1.1\r\nHost: s\r\n\r\n")
            assert second.recv(65536).startswith(b"HTTP/1.1 200 ")
        while True:  # both are gone as soon as the server has noticed
            with connect(server) as fourth:
                fourth.sendall(b"GET /health HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n")
                if ends(fourth).startswith(b"HTTP/1.1 200 "):
                    break


def test_a_server_ends_though_a_refused_client_does_not_go() -> None:
    with Server(max_connections=1) as server:
        first, second = connect(server), connect(server)
        first.sendall(b"GET /health HTTP/1.1\r\nHost: s\r\n\r\n")
        first.recv(65536)
        assert second.recv(12) == b"HTTP/1.1 503"
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_connections", 0), ("request_timeout", 0), ("stall_timeout", -1.0), ("request_timeout", float("nan"))],
)
def test_arguments_that_cannot_work_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Server(**{name: value})  # type: ignore[arg-type]


# The watchman alone, with time as a number


class Thing:
    """What it looks at: stands for the connection and its transport."""

    def __init__(self) -> None:
        self.cycle: Any = None
        self.transport = self
        self.read_paused = False
        self.unsent = 0
        self.idle = False
        self.received = 0
        self.seen: Any = None
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.aborted = True


class Cycle:
    """One request and its answer."""

    response_complete = False
    more_body = True


def survives(change: Callable[[Thing, int], None], seconds: int) -> bool:
    """Whether a connection lives so long with something changing each second."""
    watchman, thing = Watchman(10.0, 30.0), Thing()
    for second in range(seconds):
        change(thing, second)
        watchman.look([thing], float(second))
    return not thing.aborted


def test_a_body_may_be_slow_but_not_slower_than_the_slowest() -> None:
    cycle = Cycle()

    def upload(rate: int) -> Callable[[Thing, int], None]:
        def change(thing: Thing, second: int) -> None:
            thing.cycle = cycle
            thing.received += rate

        return change

    assert survives(upload(BODY_BYTES_PER_SECOND), 1000)
    assert not survives(upload(BODY_BYTES_PER_SECOND // 2), 1000)
    assert survives(upload(0), 11)
    assert not survives(upload(0), 13)


def test_a_server_that_does_not_read_blames_nobody() -> None:
    cycle = Cycle()

    def change(thing: Thing, second: int) -> None:
        thing.cycle = cycle
        thing.read_paused = True

    assert survives(change, 1000)


def test_an_answer_that_is_taken_slowly_is_taken() -> None:
    cycle = Cycle()

    def change(every: int) -> Callable[[Thing, int], None]:
        def take(thing: Thing, second: int) -> None:
            thing.cycle = cycle
            if second % every == 0:
                thing.unsent = 1_000_000 - second

        return take

    assert survives(change(29), 1000)
    assert not survives(change(40), 1000)


def test_requests_that_come_and_go_are_never_the_same() -> None:
    def change(thing: Thing, second: int) -> None:
        if second % 9 == 0:
            thing.cycle = Cycle()

    assert survives(change, 1000)
    assert not survives(lambda thing, second: None, 1000)


def test_between_two_requests_there_is_no_limit_of_ours() -> None:
    def change(thing: Thing, second: int) -> None:
        thing.idle = True

    assert survives(change, 1000)
