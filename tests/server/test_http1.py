"""HTTP/1.1 as our own runner speaks it, on sockets (`_connection`)."""

import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import pytest

from durable_streams.server import (
    DurableStreamsApp,
    MemoryStore,
    Server,
    SQLiteStore,
    _connection,
    _uvicorn,
    arrivals,
    writing,
)
from durable_streams.server._connection import Connection
from durable_streams.server.requests import Message, Receive, Scope, Send

PUT = b"PUT /v1/stream/x HTTP/1.1\r\nhost: s\r\ncontent-type: text/plain\r\n\r\n"
POST = b"POST /v1/stream/x HTTP/1.1\r\nhost: s\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n%b\r\n%b"
GET = b"GET /v1/stream/x HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n"


def post(body: bytes, headers: bytes = b"") -> bytes:
    return POST % (len(body), headers, body)


def connect(server: Server) -> socket.socket:
    parts = urlsplit(server.base_url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes; fails by its timeout if it does not."""
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def exchange(server: Server, *pieces: bytes) -> bytes:
    """Send these and return all that comes until the server closes."""
    with connect(server) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return rest(connection)


def statuses(answers: bytes) -> list[int]:
    return [int(line[9:12]) for line in answers.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


@pytest.fixture(params=["memory", "sqlite"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "store.db")
    with Server(store, long_poll_timeout=3600, sse_keep_alive=3600) as server:
        yield server


def test_requests_that_come_together_are_answered_in_their_order(server: Server) -> None:
    answers = exchange(server, PUT + post(b"one ") + post(b"two ") + b"HEAD" + PUT[3:] + GET)

    assert statuses(answers) == [201, 204, 204, 200, 200]
    assert answers.endswith(b"\r\n\r\none two ")


def test_hundreds_of_requests_that_come_together_are_all_answered(server: Server) -> None:
    answers = exchange(server, PUT + b"".join(post(b"%d," % number) for number in range(500)) + GET)

    assert statuses(answers) == [201, *[204] * 500, 200]
    assert answers.endswith(b"".join(b"%d," % number for number in range(500)))


def test_a_request_may_come_in_single_bytes(server: Server) -> None:
    bytewise = [bytes([byte]) for byte in PUT + post(b"abc") + GET]

    answers = exchange(server, *bytewise)

    assert statuses(answers) == [201, 204, 200]
    assert answers.endswith(b"\r\n\r\nabc")


@pytest.mark.parametrize("size", [10, 5_000, 50_000, 2_000_000])
def test_bodies_of_any_size_arrive_whole(server: Server, size: int) -> None:
    body = bytes(range(32, 122)) * (size // 90 + 1)

    answers = exchange(server, PUT, post(body[:size]), GET)

    assert statuses(answers) == [201, 204, 200]
    assert answers.endswith(b"\r\n\r\n" + body[:size])


def test_a_body_in_chunks_is_one_append(server: Server) -> None:
    head = b"POST /v1/stream/x HTTP/1.1\r\nhost: s\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"

    answers = exchange(server, PUT, head, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n", GET)

    assert statuses(answers) == [201, 204, 200]
    assert answers.endswith(b"\r\n\r\nabcde")


def test_a_client_that_asks_first_is_told_to_go_on(server: Server) -> None:
    head, body = post(b"abc", b"expect: 100-continue\r\n").split(b"abc")[0], b"abc"
    with connect(server) as connection:
        connection.sendall(PUT + head)
        received = b""
        while b"100 Continue\r\n\r\n" not in received:
            received += connection.recv(65536)
        connection.sendall(body + GET)
        received += rest(connection)

    assert statuses(received) == [201, 100, 204, 200]
    assert received.endswith(b"abc")


def test_a_client_that_asks_first_is_refused_before_it_sends() -> None:
    with Server(max_append_bytes=2) as server:
        answers = exchange(server, PUT, post(b"abc", b"expect: 100-continue\r\n")[:-3])

    assert statuses(answers) == [201, 413]


@pytest.mark.parametrize("framing", [b"content-length: 8000000", b"transfer-encoding: chunked"])
def test_who_is_refused_while_it_sends_can_send_on_and_read_why(framing: bytes) -> None:
    head = b"POST /v1/stream/x HTTP/1.1\r\nhost: s\r\ncontent-type: text/plain\r\n%b\r\n\r\n"
    start = b"7a1200\r\n" if b"chunked" in framing else b""
    with Server(max_append_bytes=1000) as server:
        exchange(server, PUT + GET)

        answers = exchange(server, head % framing + start, *[bytes(1_000_000)] * 8)

        assert statuses(answers) == [413]


def test_who_is_refused_and_stays_is_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connection, "LINGER_SECONDS", 0.05)
    with Server(max_append_bytes=1000) as server, connect(server) as connection:
        assert server._runner is not None
        connections = server._runner.server_state.connections
        connection.sendall(PUT + POST % (8_000_000, b"", b"beginning"))
        assert statuses(rest(connection)) == [201, 413]

        eventually(lambda: not connections)


def test_whoever_is_refused_before_it_was_told_to_go_on_has_to_come_anew(server: Server) -> None:
    head = b"POST /v1/stream/none HTTP/1.1\r\nhost: s\r\ncontent-type: text/plain\r\nexpect: 100-continue\r\n"

    answers = exchange(server, head + b"content-length: 100000\r\n\r\n")

    assert statuses(answers) == [404]
    assert b"\r\nconnection: close\r\n" in answers


def test_the_rest_of_a_request_that_came_behind_another_is_waited_for(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(PUT + post(b"one ") + post(b"two ")[:-2])
        received = b""
        while len(statuses(received)) < 2:
            received += connection.recv(65536)
        connection.sendall(b"o " + GET)
        received += rest(connection)

    assert statuses(received) == [201, 204, 204, 200]
    assert received.endswith(b"one two ")


class FullTransport:
    """A transport to a client that takes nothing."""

    def __init__(self) -> None:
        self.written = b""
        self.reading = True

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, pieces: list[bytes]) -> None:
        self.written += b"".join(pieces)

    def close(self) -> None:
        self.reading = False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False


def connection_to(transport: FullTransport, app: DurableStreamsApp) -> Connection:
    config: Any = SimpleNamespace(max_connections=None, timeout_keep_alive=75, direct=app)
    config.prefix = lambda default, common: b""
    state = SimpleNamespace(connections=set(), tasks=set(), default_headers=[], total_requests=0)
    connection = Connection(config, state, {})
    connection.connection_made(transport)
    return connection


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_body_of_tiny_chunks_costs_little_more_than_its_size() -> None:
    transport = FullTransport()
    connection = connection_to(transport, DurableStreamsApp(MemoryStore()))
    connection.data_received(PUT)
    connection.data_received(
        b"POST /v1/stream/x HTTP/1.1\r\nhost: s\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    chunks = b"2\r\nab\r\n" * 1000

    tracemalloc.start()
    try:
        for _ in range(200):
            connection.data_received(chunks)
        assert tracemalloc.get_traced_memory()[0] < 2 * 400_000
    finally:
        tracemalloc.stop()
    connection.data_received(b"0\r\n\r\n" + GET)

    while len(statuses(transport.written)) < 3:
        await anyio.lowlevel.checkpoint()
    assert transport.written.endswith(b"ab" * 200_000)
    connection.connection_lost(None)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_client_that_takes_no_answers_is_given_no_more_and_nothing_more_is_read() -> None:
    transport = FullTransport()
    connection = connection_to(transport, DurableStreamsApp(MemoryStore()))
    connection.data_received(PUT)
    while not transport.written:
        await anyio.lowlevel.checkpoint()

    connection.pause_writing()
    before = len(transport.written)
    connection.data_received(post(b"a") * 3)
    await anyio.wait_all_tasks_blocked()
    assert len(transport.written) == before
    assert not transport.reading

    connection.resume_writing()
    while len(statuses(transport.written)) < 4:
        await anyio.lowlevel.checkpoint()
    assert transport.reading
    connection.connection_lost(None)


@pytest.mark.parametrize("header", [b"", b"connection: keep-alive\r\n"])
def test_http_1_0_gets_an_answer_without_chunks_and_then_the_end(server: Server, header: bytes) -> None:
    target = b"GET /v1/stream/x?offset=-1&live=sse HTTP/1.0\r\n" + header + b"\r\n"
    closing = PUT.replace(b"\r\n\r\n", b"\r\nstream-closed: true\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc")

    exchange(server, closing)
    answer = exchange(server, target)

    assert statuses(answer) == [200]
    assert b"transfer-encoding" not in answer
    _, _, events = answer.partition(b"\r\n\r\n")
    assert events.startswith(b"event: data\ndata:abc\n")
    assert b'"streamClosed":true' in events


@pytest.mark.parametrize(
    "nonsense", [b"nonsense\r\n\r\n", b"GET /v1/stream/x HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\na b: c\r\n\r\n"]
)
def test_what_is_no_http_is_400_and_the_end(server: Server, nonsense: bytes) -> None:
    assert statuses(exchange(server, nonsense)) == [400]
    assert statuses(exchange(server, PUT.replace(b"/x", b"/y"), nonsense)) in ([201, 400], [201])


def test_nonsense_behind_a_request_does_not_take_its_answer(server: Server) -> None:
    answers = exchange(server, PUT + post(b"abc") + b"nonsense\r\n\r\n" + post(b"def"))

    assert statuses(answers)[:1] == [201]
    assert exchange(server, GET).endswith(b"\r\n\r\nabc") or exchange(server, GET).endswith(b"\r\n\r\n")


def test_a_body_that_makes_no_sense_is_400_and_not_stored(server: Server) -> None:
    head = b"POST /v1/stream/x HTTP/1.1\r\nhost: s\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(PUT)
        received = connection.recv(65536)
        connection.sendall(head + b"3\r\nabc\r\nzzz\r\n")
        received += rest(connection)

    assert statuses(received) == [201, 400]
    assert exchange(server, GET).endswith(b"\r\n\r\n")


def test_a_client_that_leaves_in_the_middle_of_its_body_stores_nothing(server: Server) -> None:
    exchange(server, PUT.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    for size in (100, 1_000_000):
        with connect(server) as connection:
            connection.sendall(post(b"x" * size)[:-1])

    assert statuses(exchange(server, GET)) == [200]
    assert exchange(server, GET).endswith(b"\r\n\r\n")


@pytest.mark.parametrize("live", [b"long-poll", b"sse"])
def test_a_reader_that_leaves_is_noticed(server: Server, live: bytes) -> None:
    app = server.app
    assert isinstance(app, DurableStreamsApp)
    exchange(server, PUT.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    with connect(server) as connection:
        connection.sendall(b"GET /v1/stream/x?offset=-1&live=%b HTTP/1.1\r\nhost: s\r\n\r\n" % live)
        eventually(lambda: app.readers.open == 1)

    eventually(lambda: app.readers.open == 0 and app.in_progress == 0)


@pytest.mark.parametrize("live", [b"long-poll", b"sse"])
def test_a_reader_that_leaves_is_noticed_though_it_has_asked_for_more(server: Server, live: bytes) -> None:
    assert isinstance(server.app, DurableStreamsApp)
    readers = server.app.readers
    exchange(server, PUT + GET)
    with connect(server) as connection:
        connection.sendall(b"GET /v1/stream/x?offset=now&live=%b HTTP/1.1\r\nhost: s\r\n\r\n" % live)
        connection.sendall(3 * post(b"never") + GET)
        eventually(lambda: readers.open == 1)

    eventually(lambda: readers.open == 0)
    assert exchange(server, GET).endswith(b"\r\n\r\n")


def test_whoever_has_said_all_gets_the_answers(server: Server) -> None:
    large = post(b"x" * 3_000_000)
    with connect(server) as connection:
        connection.sendall(PUT + large + post(b"end") + GET.replace(b"connection: close\r\n", b"") + b"GET /v1/st")
        connection.shutdown(socket.SHUT_WR)
        answers = rest(connection)

    assert statuses(answers) == [201, 204, 204, 200]
    assert answers.endswith(b"xxxend")


def test_nonsense_behind_a_request_and_the_end_do_not_take_its_answer(server: Server) -> None:
    early = post(b"x", b"producer-id: p\r\nproducer-epoch: 0\r\nproducer-seq: 1\r\n")  # waits a moment for number 0
    chunked = POST.replace(b"content-length: %d", b"transfer-encoding: chunked") % (b"", b"nonsense\r\n")
    with connect(server) as connection:
        connection.sendall(PUT + early + chunked)
        connection.shutdown(socket.SHUT_WR)
        answers = rest(connection)

    assert statuses(answers) == [201, 409]


@pytest.mark.parametrize("live", [b"long-poll", b"sse"])
def test_whoever_has_said_all_and_waits_for_news_is_taken_for_gone(server: Server, live: bytes) -> None:
    assert isinstance(server.app, DurableStreamsApp)
    target = b"GET /v1/stream/x?offset=now&live=%b HTTP/1.1\r\nhost: s\r\n\r\n" % live
    with connect(server) as connection:
        connection.sendall(PUT + post(b"a") + target)
        connection.shutdown(socket.SHUT_WR)
        answers = rest(connection)

    assert statuses(answers)[:2] == [201, 204]
    assert 500 not in statuses(answers)
    readers = server.app.readers
    eventually(lambda: readers.open == 0)


def test_whoever_has_said_all_in_the_middle_of_a_body_gets_nothing(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(post(b"abcdef")[:-1])
        connection.shutdown(socket.SHUT_WR)

        assert rest(connection) == b""


def test_a_request_needs_a_host_except_in_http_1_0(server: Server) -> None:
    without = PUT.replace(b"host: s\r\n", b"")

    newer = exchange(server, without.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    older = exchange(server, without.replace(b"HTTP/1.1", b"HTTP/1.0"))

    assert (statuses(newer), statuses(older)) == ([400], [201])
    assert f"\r\nlocation: {server.url}/x\r\n".encode() in older


@pytest.mark.parametrize("authority", [b"other", b"other:81", b"[::1]", b"[::1]:81"])
def test_a_target_with_a_host_counts_more_than_the_header(server: Server, authority: bytes) -> None:
    answers = exchange(server, PUT.replace(b" /v1", b" http://%b/v1" % authority) + GET)

    assert b"\r\nlocation: http://%b/v1/stream/x\r\n" % authority in answers


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"x-other, chunked"])
def test_a_body_in_another_transfer_coding_is_not_stored(server: Server, coding: bytes) -> None:
    head = b"POST /v1/stream/x HTTP/1.1\r\nhost: s\r\ncontent-type: text/plain\r\ntransfer-encoding: %b\r\n\r\n"

    answers = exchange(server, PUT, head % coding + b"3\r\nabc\r\n0\r\n\r\n")

    assert statuses(answers) == [201, 501]
    assert exchange(server, GET).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "nonsense", [[b"FOO / HTTP/1.1\r\n\r\n"], [b"GET / HTTP/1.1\r\nx: " + b"y" * 65_000, b"y" * 600]]
)
def test_what_never_becomes_a_request_is_answered_with_the_common_headers(
    server: Server, nonsense: list[bytes]
) -> None:
    answers = exchange(server, *nonsense)

    assert statuses(answers) in ([400], [431])
    assert b"\r\nx-content-type-options: nosniff\r\n" in answers
    assert b"\r\naccess-control-allow-origin: *\r\n" in answers


def test_an_early_request_of_a_producer_waits_for_the_one_before_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "GAP_PATIENCE", 20.0)
    app = server.app
    assert isinstance(app, DurableStreamsApp)
    stamp = b"producer-id: p\r\nproducer-epoch: 0\r\nproducer-seq: %d\r\nconnection: close\r\n"
    exchange(server, PUT.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    with connect(server) as early:
        early.sendall(post(b"two", stamp % 1))
        eventually(lambda: app.in_progress == 1)
        first = exchange(server, post(b"one", stamp % 0))
        second = rest(early)

    assert statuses(first) == [200]
    assert statuses(second) == [200]
    assert app.in_progress == 0


class FailingStore(MemoryStore):
    """Cannot append."""

    def append_soon(self, *_: Any) -> None:
        raise RuntimeError("the store is full of bees")


def test_a_store_that_fails_is_500_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with Server(FailingStore()) as server:
        answers = exchange(server, PUT, post(b"abc"))

        assert statuses(answers) == [201, 500]
        assert b"bees" not in answers
        assert statuses(exchange(server, GET)) == [200]
        assert isinstance(server.app, DurableStreamsApp)
        assert server.app.in_progress == 0
    assert "full of bees" in caplog.text


def test_a_mistake_before_the_store_is_asked_is_500_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake(*_: object) -> None:
        raise ZeroDivisionError

    with Server() as server:
        monkeypatch.setattr(writing, "_request", mistake)
        answers = exchange(server, PUT, post(b"abc"))

        assert statuses(answers) == [201, 500]
        assert isinstance(server.app, DurableStreamsApp)
        assert server.app.in_progress == 0


def test_an_idle_connection_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_uvicorn, "KEEP_ALIVE", 0.05)
    with Server() as server, connect(server) as connection:
        connection.sendall(PUT)

        assert statuses(rest(connection)) == [201]


# Other applications


async def guest(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that does what its path says."""
    if scope["type"] != "http":
        return
    assert {"asgi", "client", "headers", "http_version", "method", "path", "query_string", "raw_path"} <= scope.keys()
    assert {"root_path", "scheme", "server", "state", "type"} <= scope.keys()
    start: Message = {"type": "http.response.start", "status": 200, "headers": [(b"X-Path", scope["path"].encode())]}
    match scope["path"]:
        case "/fails":
            raise RuntimeError("the guest failed")
        case "/breaks off":
            await send(start)
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            raise RuntimeError("the guest failed later")
        case "/silent":
            return
        case "/injects":
            await send({**start, "headers": [(b"a", b"b\r\nset-cookie: c")]})
        case "/echo":
            await send(start)
            more = True
            while more:
                message = await receive()
                more = message["more_body"]
                await send({"type": "http.response.body", "body": message["body"], "more_body": more})
            assert (await receive())["type"] == "http.disconnect"


@pytest.fixture
def host() -> Iterator[Server]:
    with Server(guest) as server:
        yield server


def ask(host: Server, path: bytes, body: bytes = b"") -> bytes:
    return exchange(host, b"POST %b HTTP/1.1\r\nhost: s\r\nconnection: close\r\n" % path
                    + b"content-length: %d\r\n\r\n%b" % (len(body), body))  # fmt: skip


def test_another_application_is_served_by_asgi(host: Server) -> None:
    answer = ask(host, b"/ec%68o?a=b", b"x" * 100_000)

    assert statuses(answer) == [200]
    assert b"x-path: /echo\r\n" in answer
    assert b"transfer-encoding: chunked\r\n" in answer
    assert answer.count(b"x") - answer.count(b"x-path") >= 100_000
    assert answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("path", [b"/fails", b"/silent", b"/injects"])
def test_an_application_that_gives_no_answer_gives_500(host: Server, path: bytes) -> None:
    answer = ask(host, path)

    assert statuses(answer) == [500]
    assert b"set-cookie" not in answer


def test_an_answer_that_breaks_off_has_no_end(host: Server) -> None:
    answer = ask(host, b"/breaks%20off")

    assert statuses(answer) == [200]
    assert answer.endswith(b"1\r\na\r\n")
