"""What comes from who means harm: paths, header values, bodies whose end is unclear, bodies that grow.

Slow clients are in `test_connections`, who may do what in `test_authorization`, webhooks' targets in
`subscriptions/test_ssrf`.
"""

import gzip
import socket
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from durable_streams.server import DurableStreamsApp, Server, SQLiteStore

from .driver import Client, connect, make_client, offset

TEXT, JSON = "text/plain", "application/json"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(max_append_bytes=1 << 20, request_timeout=5.0) as server:
        yield server


def exchange(server: Server, raw: bytes, *, half_close: bool = True) -> bytes:
    """Send bytes, and return all that is answered until the server closes."""
    parts = urlsplit(server.base_url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as connection:
        connection.sendall(raw)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
        except ConnectionResetError:
            pass
        return received


def status_of(server: Server, name: str) -> int:
    answer = exchange(server, b"HEAD /v1/stream/%b HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n" % name.encode())
    return int(answer.split(b" ", 2)[1])


# Paths

TRAVERSALS = [
    b"/v1/stream/../../../etc/passwd",
    b"/v1/stream/..",
    b"/v1/stream/a/../../b",
    b"/v1/stream/%2e%2e/%2e%2e/etc/passwd",
    b"/v1/stream/%2E./x",
    b"/v1/stream/.%2e/x",
    b"/v1/stream/./x",
    b"/v1/stream//etc/passwd",
    b"/v1/stream/x%00.txt",
    b"/v1/stream/x%0d%0aSet-Cookie:a",
    b"/v1/stream/%c0%ae%c0%ae/x",
    b"/v1/stream/%ff",
    b"/v1/stream/%u002e",
    b"/v1/stream/%",
    b"/v1/stream/" + b"x" * 1024,
]
ORDINARY = [b"/v1/stream/..%2f..%2fetc", b"/v1/stream/..;/x", b"/v1/stream/...", b"/v1/stream/C:%5Cboot.ini"]


@pytest.mark.anyio
async def test_no_path_leads_out_of_the_store(tmp_path: Path) -> None:
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    async with SQLiteStore(folder / "store") as store:
        client = Client(DurableStreamsApp(store))
        for target in TRAVERSALS:
            for method in ("PUT", "GET", "DELETE"):
                answer = await client.call(method, target.decode("latin-1"), b"", {"content-type": TEXT})
                assert answer.status == 400, target
        for target in ORDINARY:
            assert (await client.call("PUT", target.decode(), b"abc", {"content-type": TEXT})).status == 201
        # The source of a fork is a path, too.
        for source in TRAVERSALS:
            answer = await client.put("fork", stream_forked_from=source.decode("latin-1"))
            assert answer.status == 400, source
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} <= {
        "inner",
        "inner/folder",
        *(f"inner/folder/store{end}" for end in ("", "-wal", "-shm", "-lock")),
    }


@pytest.mark.parametrize("target", TRAVERSALS)
def test_no_path_leads_out_of_the_root_over_a_socket(server: Server, target: bytes) -> None:
    answer = exchange(server, b"PUT %b HTTP/1.1\r\nHost: s\r\nContent-Length: 0\r\n\r\n" % target)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 "))
    assert b"etc/passwd" not in answer
    assert b"Set-Cookie" not in answer


# Header values


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("content-type", b"text/plain\r\nset-cookie: a=b"),
        ("content-type", b"text/plain; a=\x00b"),
        ("host", b"s.example\r\nx: y"),
        ("host", b"s.example/<script>"),
        ("host", b"s.example, evil.example"),
        ("host", b"user@s.example"),
        ("stream-ttl", b"60\r\nx: y"),
        ("stream-expires-at", b"2999-01-01T00:00:00Z\r\nx: y"),
        ("stream-expires-at", b"2999-01-01T00:00:00Z\n"),
    ],
)
async def test_nothing_is_smuggled_into_an_answers_headers(name: str, value: bytes) -> None:
    """The driver refuses header values with control characters, whatever the status."""
    client = make_client()
    headers: list[tuple[str, str | bytes]] = [(name, value)]
    if name != "content-type":
        headers.append(("content-type", TEXT))
    answer = await client.call("PUT", "x", b"abc", headers)
    assert answer.status == 400
    assert b"script" not in answer.body
    assert (await client.head("x")).status == 404


@pytest.mark.anyio
async def test_what_a_read_asks_for_is_not_repeated_raw() -> None:
    client = make_client()
    await client.put("x", TEXT, b"abc")
    evil = "%0d%0aset-cookie:a=b<script>"
    for query in (f"offset={evil}", f"offset=-1&live={evil}", f"offset=-1&cursor={evil}&live=long-poll"):
        answer = await client.get(f"x?{query}")
        assert "set-cookie" not in answer.headers
        assert b"script" not in answer.body
    answer = await client.get("x", prefer="max-page-bytes=5\x0b\x0c")
    assert "preference-applied" not in answer.headers
    answer = await client.get("x", if_none_match='"\x00\r\n')
    assert answer.status == 200


@pytest.mark.anyio
async def test_a_read_from_where_a_client_says_cannot_forge_a_tag() -> None:
    client = make_client()
    await client.put("x", TEXT, b"abc")
    for token in ("-1", offset(0), offset(1)):
        assert (await client.get(f"x?offset={token}")).headers["etag"].count('"') == 2


# Where a request ends

SMUGGLED = b"PUT /v1/stream/smuggled HTTP/1.1\r\nHost: s\r\nContent-Length: 0\r\n\r\n"
SHAPES = {
    "both lengths": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, the other way round": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED),
    "two lengths in one": b"Content-Length: 0, %d\r\n\r\n" % len(SMUGGLED),
    "a length with a sign": b"Content-Length: +0\r\n\r\n",
    "a negative length": b"Content-Length: -1\r\n\r\n",
    "a length in hexadecimal": b"Content-Length: 0x0\r\n\r\n",
    "a length with spaces inside": b"Content-Length: 0 0\r\n\r\n",
    "an enormous length": b"Content-Length: 99999999999999999999999\r\n\r\n",
    "a space before the colon": b"Content-Length : 0\r\n\r\n",
    "a space before the colon of the coding": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a coding that is none": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, and something after it": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "the coding twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a folded line": b"Content-Length:\r\n 0\r\n\r\n",
    "a chunk of bad size": b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "a chunk of negative size": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "a chunk that is longer than it says": b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    "a null in a header": b"X-A: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "a return alone in a header": b"X-A: a\rb\r\nContent-Length: 0\r\n\r\n",
    "no colon": b"Content-Length 0\r\n\r\n",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_body_whose_end_is_unclear_is_refused_with_all_that_follows(server: Server, shape: str) -> None:
    head = b"POST /v1/stream/none HTTP/1.1\r\nHost: s\r\nContent-Type: text/plain\r\n"
    answer = exchange(server, head + SHAPES[shape] + SMUGGLED)
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert status_of(server, "smuggled") == 404


def test_a_body_of_clear_length_hides_nothing(server: Server) -> None:
    head = b"PUT /v1/stream/outer HTTP/1.1\r\nHost: s\r\nContent-Type: text/plain\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
    for body in (b"Content-Length: %d\r\n\r\n%b" % (len(SMUGGLED), SMUGGLED), chunked):
        answer = exchange(server, head + body)
        assert answer.startswith(b"HTTP/1.1 20")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert status_of(server, "smuggled") == 404
    read = exchange(server, b"GET /v1/stream/outer HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n")
    assert read.endswith(SMUGGLED)


def test_requests_in_one_packet_are_answered_in_their_order(server: Server) -> None:
    one = b"PUT /v1/stream/%b HTTP/1.1\r\nHost: s\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nabc"
    last = b"GET /v1/stream/piped1 HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n"
    answer = exchange(server, one % b"piped1" + one % b"piped2" + last)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"201", b"201", b"200"]


@pytest.mark.anyio
async def test_two_declarations_of_a_bodys_end_are_refused_whatever_the_server_let_through() -> None:
    client = make_client()
    await client.put("x", TEXT)
    for method in ("PUT", "POST"):
        headers = {"content-type": TEXT, "content-length": "3", "transfer-encoding": "chunked"}
        answer = await client.call(method, "x", b"abc", headers)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert (await client.head("x")).next_offset == offset(0)


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v1/stream/x HTTP/9.9",
        b"GET /v1/stream/x",
        b"\x16\x03\x01\x02\x00\x01",
        b"G@T / HTTP/1.1",
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(server: Server, request_line: bytes) -> None:
    answer = exchange(server, request_line + b"\r\nHost: s\r\n\r\n" + SMUGGLED)
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505"))
    assert status_of(server, "smuggled") == 404


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c"])
def test_an_upgrade_is_not_followed_and_hides_nothing(server: Server, upgrade: bytes) -> None:
    """The parser would end such a request with its headers, and take the body for the next one."""
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMA\r\n" % upgrade
    put = b"PUT /v1/stream/open HTTP/1.1\r\nHost: s\r\nContent-Type: text/plain\r\n"
    body = b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED
    read = b"GET /v1/stream/open HTTP/1.1\r\nHost: s\r\n"

    answer = exchange(server, put + wish + body + read + wish + b"\r\n" + read + b"Connection: close\r\n\r\n")

    assert b"101 Switching" not in answer
    assert answer.count(b"HTTP/1.1 20") == 3
    assert answer.count(SMUGGLED) == 2, "it is the body, and read as such"
    assert status_of(server, "smuggled") == 404


@pytest.mark.parametrize("trailer", [b"Stream-Closed: true", b"Producer-Id: p", b"Content-Type: text/html"])
def test_what_comes_behind_a_body_is_no_header(server: Server, trailer: bytes) -> None:
    """A proxy that looks at headers does not look there, and what is meant must not depend on packets."""
    head = b" /v1/stream/trailed HTTP/1.1\r\nHost: s\r\nContent-Type: text/plain\r\n"
    body = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + trailer + b"\r\n\r\n"

    answer = exchange(server, b"DELETE" + head + b"\r\n" + b"PUT" + head + b"\r\n" + b"POST" + head + body)

    assert answer.count(b"HTTP/1.1 204 No Content") >= 1
    assert b"HTTP/1.1 400" not in answer
    assert b"stream-closed: true" not in answer
    assert status_of(server, "trailed") == 200


def test_a_tunnel_is_refused(server: Server) -> None:
    answer = exchange(server, b"CONNECT s:1 HTTP/1.1\r\nHost: s\r\n\r\n" + SMUGGLED)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert status_of(server, "smuggled") == 404


# Bodies that grow

#: 64 MiB of zeros, in whatever format.
BOMB = gzip.compress(bytes(64 << 20), 1)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "coding", ["gzip", "deflate", "br", "zstd", "x-gzip", "gzip, identity", "identity, gzip", "GZIP"]
)
async def test_a_compressed_body_is_refused_and_never_unpacked(coding: str) -> None:
    client = make_client(max_append_bytes=1 << 20)
    await client.put("x", TEXT)
    bomb = BOMB
    tracemalloc.start()
    for method in ("POST", "PUT"):
        answer = await client.call(method, "x", bomb, {"content-type": TEXT, "content-encoding": coding})
        assert (answer.status, answer.headers["connection"]) == (415, "close")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert (await client.head("x")).next_offset == offset(0)


@pytest.mark.anyio
async def test_a_body_without_a_length_is_read_no_further_than_the_limit() -> None:
    client = make_client(max_append_bytes=1000)
    await client.put("x", TEXT)
    async with connect(client.app, client.scope("POST", "x", {"content-type": TEXT})) as upload:
        for _ in range(50):
            upload.send_body(b"x" * 400, more=True)
        assert await upload.head() == 413
        await upload.rest()
        assert upload.received == 3
    assert (await client.head("x")).next_offset == offset(0)


FLOODS = {
    "one header": b"GET /v1/stream/x HTTP/1.1\r\nHost: s\r\nX-A: " + b"a" * (4 << 20),
    "many headers": b"GET /v1/stream/x HTTP/1.1\r\nHost: s\r\n" + b"X-A: a\r\n" * 500_000,
    "an endless target": b"GET /v1/stream/" + b"x" * (4 << 20),
    "trailers": b"PUT /v1/stream/x HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    + b"X-A: a\r\n" * 500_000,
}


@pytest.mark.parametrize("before", ["nothing", "an answer", "an early answer"])
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_headers_ends_the_connection(server: Server, flood: str, before: str) -> None:
    parts = urlsplit(server.base_url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as connection:
        if before == "an answer":
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: s\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        elif before == "an early answer":  # it comes before the body
            head = b"POST /v1/stream/none HTTP/1.1\r\nHost: s\r\nContent-Type: text/plain\r\n"
            connection.sendall(head + b"Content-Length: 100000\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
            connection.sendall(bytes(100_000))
        answer = b""
        with suppress(OSError):
            connection.sendall(FLOODS[flood])
        with suppress(ConnectionResetError):
            while data := connection.recv(65536):
                answer += data
    assert not answer or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))


def test_headers_of_half_that_length_are_read(server: Server) -> None:
    long = b"".join(b"X-%d: %b\r\n" % (number, b"a" * 1000) for number in range(30))
    request = b"GET /health HTTP/1.1\r\nHost: s\r\n" + long + b"\r\n"
    parts = urlsplit(server.base_url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as connection:
        for _ in range(5):
            for piece in (request[:20_000], request[20_000:]):
                connection.sendall(piece)
                time.sleep(0.001)  # most likely in two pieces, and right if not
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_comes_after_its_answer_is_no_flood(server: Server) -> None:
    parts = urlsplit(server.base_url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as connection:
        for _ in range(3):
            head = b"POST /v1/stream/none HTTP/1.1\r\nHost: s\r\nContent-Type: text/plain\r\n"
            connection.sendall(head + b"Content-Length: 1000000\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
            connection.sendall(bytes(1_000_000))
