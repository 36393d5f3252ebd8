"""Whatever comes over HTTP, the answer is a proper one: no 500, no hang, nothing stored that was not acknowledged.

Requests are made of the things that have ever confused a server, mixed at random, against an application whose streams
live on from one example to the next.
"""

from __future__ import annotations

import logging
import socket
import tempfile
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from itertools import accumulate, pairwise
from urllib.parse import quote_from_bytes, urlsplit

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable_streams.server import MemoryStore, Server, SQLiteStore, Store, StreamInfo
from durable_streams.testing.store_steps import read_page

from .driver import Answer, Client, Clock, exchange, make_client, offset

ODD_WORDS = """0 1 -1 +1 01 1_0 1.0 1e3 99999999999999999999 now true TRUE false null a,b a"b a;b a=b * W/ text / gzip
    identity text/plain application/json application/octet-stream TEXT/PLAIN;charset=x 2099-01-01T00:00:00Z /v1/stream/a
    http://s.example/v1/stream/a long-poll sse max-page-bytes=1 max-page-bytes=x [::1]:80 s.example"""
ODD_VALUES = [*ODD_WORDS.split(), offset(0), offset(3), "", " ", "\xb2", "\xe4", "a\tb", "9" * 40, "x" * 5000]
ODD_TEXT = st.sampled_from(ODD_VALUES) | st.text(
    st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=12
)
HEADER_NAMES = """content-type content-length content-encoding stream-closed stream-seq stream-ttl stream-expires-at
    stream-forked-from stream-fork-offset stream-fork-sub-offset producer-id producer-epoch producer-seq if-none-match
    prefer host x-other expect connection"""
HEADERS = st.lists(st.tuples(st.sampled_from(HEADER_NAMES.split()), ODD_TEXT), max_size=6)
USUAL = st.sampled_from(
    [
        [("content-type", "text/plain")],
        [("content-type", "application/json")],
        [("content-type", "text/plain"), ("producer-id", "p"), ("producer-epoch", "0"), ("producer-seq", "0")],
        [("content-type", "text/plain"), ("producer-id", "p"), ("producer-epoch", "1"), ("producer-seq", "1")],
        [("content-type", "text/plain"), ("stream-closed", "true")],
        [],
    ]
)
SEGMENTS = b"a b j %61 %2e .. %00 %ff % __ds %2F \xc3\xa4"
SEGMENT = st.sampled_from([*SEGMENTS.split(), b"", b"c" * 1100])
PATH = st.one_of(
    st.sampled_from([b"/v1/stream/a", b"/v1/stream/j", b"/v1/stream/b"]),
    st.lists(SEGMENT, max_size=3).map(lambda parts: b"/v1/stream/" + b"/".join(parts)),
    st.lists(SEGMENT, max_size=3).map(lambda parts: b"/" + b"/".join(parts)),
    st.binary(max_size=12).map(lambda raw: b"/v1/stream/" + quote_from_bytes(raw).encode()),
    st.binary(max_size=12).map(lambda raw: b"/v1/stream/" + raw.replace(b"?", b"")),
)
PARAMETERS = st.lists(
    st.tuples(st.sampled_from(["offset", "live", "cursor", "x", "%6fffset"]), ODD_TEXT).map("=".join), max_size=4
)
QUERY = st.one_of(
    st.sampled_from([b"", b"offset=-1", b"offset=now", b"offset=-1&live=long-poll", b"offset=-1&live=sse"]),
    PARAMETERS.map(lambda pairs: "&".join(pairs).encode("latin-1")),
    st.binary(max_size=12),
)
BODY = st.one_of(
    st.sampled_from([b"", b"a", b"[]", b"[1,2]", b"{", b'"\\ud800"', b"\xff", b"1e999", b"[" * 2000]),
    st.binary(max_size=30),
)
Request = tuple[str, bytes, bytes, list[tuple[str, str]], list[bytes]]


def fuzz_client(store: Store | None = None) -> Client:
    return make_client(
        store=store, clock=Clock(), long_poll_timeout=0.001, sse_max_age=0.001, max_append_bytes=1000, page_bytes=50
    )


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["PUT", "POST", "GET", "HEAD", "DELETE", "OPTIONS", "PATCH", "G\xe4T"]),
        PATH,
        QUERY,
        st.builds(lambda usual, odd: usual + odd, USUAL, HEADERS),
        st.lists(BODY, min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=8,
)
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@given(requests=REQUESTS)
@settings(UNHURRIED, max_examples=150)
def test_every_request_gets_a_proper_answer(requests: list[Request]) -> None:
    send_all(requests, MemoryStore)


@given(requests=REQUESTS)
@settings(UNHURRIED, max_examples=40)
def test_every_request_gets_a_proper_answer_from_sqlite(requests: list[Request]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        send_all(requests, lambda: SQLiteStore(f"{folder}/streams.db", durability="relaxed"))


def send_all(requests: list[Request], make_store: Callable[[], AbstractAsyncContextManager[Store]]) -> None:
    """Send requests one after the other; what is refused has changed nothing."""

    async def run() -> None:
        async with make_store() as store:
            await send(fuzz_client(store))

    async def send(client: Client) -> None:
        await client.put("a", "text/plain", b"abc")
        await client.put("j", "application/json", b"[1,2]")
        for method, path, query, headers, body in requests:
            before = await contents(client)
            scope = client.scope(method, "/", headers)
            scope["raw_path"], scope["query_string"] = path, query
            scope["path"] = path.decode("utf-8", "replace")
            with anyio.fail_after(5):
                answer = await exchange(client.app, scope, body)
            assert answer.status < 500
            if answer.status >= 300:
                assert await contents(client) == before

    logging.disable(logging.CRITICAL)
    try:
        anyio.run(run)
    finally:
        logging.disable(logging.NOTSET)


async def contents(client: Client) -> list[object]:
    """What the best known streams hold, looked at in a way that renews no TTL."""
    store, answer = client.app.store, []
    for path in ("/v1/stream/a", "/v1/stream/j", "/v1/stream/b"):
        info = await store.head(path, client.app.clock())
        answer.append((info, (await read_page(store, info.ref))[0] if isinstance(info, StreamInfo) else None))
    return answer


@pytest.mark.anyio
@pytest.mark.parametrize("size", [100, 10_000, 100_000])
async def test_very_long_values_are_answered(size: int) -> None:
    client = fuzz_client()
    await client.put("a", "text/plain")
    long = "9" * size
    answers: list[Answer] = [
        await client.get(f"a?offset={long}"),
        await client.get(f"a?offset=-1&live=long-poll&cursor={long}"),
        await client.put("b", "text/plain", stream_ttl=long),
        await client.put("b", "text/plain", stream_expires_at=f"2099-01-01T00:00:00.{long}Z"),
        await client.post("a", b"x", "text/plain", producer_id=long, producer_epoch="0", producer_seq="0"),
        await client.post("a", b"x", "text/plain", producer_id="p", producer_epoch=long, producer_seq="0"),
        await client.post("a", b"x", "text/plain", stream_seq=long),
        await client.get("a", if_none_match='"x",' * size),
        await client.get("a", prefer=f"max-page-bytes={long}"),
        await client.call("POST", "a", b"x", {"content-length": long, "content-type": "text/plain"}),
    ]
    fraction = 201 if size == 100 else 400
    assert [answer.status for answer in answers] == [400, 204, 400, fraction, 200, 400, 204, 200, 200, 400]


# --- bytes on the wire

SOUND = b"GET /v1/stream/a?offset=-1 HTTP/1.1\r\nHost: s.example\r\n\r\n"
POST = b"POST /v1/stream/a HTTP/1.1\r\nHost: s.example\r\nContent-Type: text/plain\r\n"
LINES = st.sampled_from(
    [
        *(b"Content-Length: %b\r\n" % value for value in b"0 3 -1 +3 03 3,3 0x3 99999999999999999999".split()),
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"Stream-Closed: false\r\n",
        b"X: a\r\n b\r\n",
        b"X\0: a\r\n",
        b"X: \0\r\n",
        b": a\r\n",
        b"X-Long: " + b"x" * 9000 + b"\r\n",
        b"Host: other\r\n",
        b"\n",
    ]
)
AFTER = st.sampled_from(
    [
        b"",
        b"abc",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"3\r\nab",
        b"-1\r\n",
        b"ffffffffffffffff1\r\n",
        b"0\r\nX: y\r\n\r\n",
        SOUND,
    ]
)
WIRE = st.one_of(
    st.builds(lambda lines, after: POST + b"".join(lines) + b"\r\n" + after, st.lists(LINES, max_size=3), AFTER),
    st.builds(lambda lines, after: SOUND[:-2] + b"".join(lines) + b"\r\n" + after, st.lists(LINES, max_size=3), AFTER),
    st.builds(lambda at, noise: SOUND[:at] + noise + SOUND[at:], st.integers(0, len(SOUND)), st.binary(max_size=4)),
    st.binary(max_size=60),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@given(data=WIRE, cut=st.none() | st.integers(0, 200))
@settings(UNHURRIED, max_examples=120)
def test_whatever_comes_over_the_wire_the_server_goes_on(server: Server, data: bytes, cut: int | None) -> None:
    url = urlsplit(server.base_url)
    address = (url.hostname or "", url.port or 0)
    talk(address, b"PUT /v1/stream/kept HTTP/1.1\r\nHost: s\r\nContent-Length: 4\r\nConnection: close\r\n\r\nkept")

    answer = talk(address, data[:cut])

    for line in answer.split(b"\r\n"):
        assert not line.startswith(b"HTTP/1.1 5"), answer
    kept = talk(address, b"GET /v1/stream/kept?offset=-1 HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n")
    assert kept.startswith(b"HTTP/1.1 200 ")
    assert kept.endswith(b"\r\n\r\nkept")


def talk(address: tuple[str, int], data: bytes) -> bytes:
    """Send bytes and no more, and read what comes until the other side ends."""
    with socket.create_connection(address, timeout=20) as connection:
        answer = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(1 << 16):
                answer += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass  # it had seen enough
        return answer


# --- requests in a row, in pieces of any size


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("store") / "streams.db"
    with Server(MemoryStore() if request.param == "memory" else SQLiteStore(path)) as server:
        yield server


SENT = st.one_of(
    st.tuples(st.just("append"), st.sampled_from([1, 5, 300, 9_999, 10_000, 70_000])),
    st.tuples(st.just("append in chunks"), st.sampled_from([1, 300, 70_000])),
    st.tuples(st.just("append with upgrade"), st.sampled_from([1, 300, 70_000])),
    st.tuples(st.just("append to nowhere"), st.sampled_from([1, 300, 70_000])),
    st.tuples(st.sampled_from(["read", "head", "options"]), st.just(0)),
)


@given(sent=st.lists(SENT, min_size=1, max_size=8), cuts=st.lists(st.floats(0, 1), max_size=6), data=st.data())
@settings(UNHURRIED, max_examples=60)
def test_requests_in_a_row_are_answered_however_they_are_cut(
    either: Server, sent: list[tuple[str, int]], cuts: list[float], data: st.DataObject
) -> None:
    path = f"/v1/stream/{uuid.uuid4()}".encode()
    requests, expected, content = (
        [b"PUT %b HTTP/1.1\r\nhost: s\r\ncontent-type: text/plain\r\n\r\n" % path],
        [(201, b"")],
        b"",
    )
    for number, (what, size) in enumerate(sent):
        body = b"%d," % number * (size // 2 + 1)
        request, answer = as_request(what, path, body)
        if what in ("append", "append in chunks", "append with upgrade"):
            content += body
        requests.append(request)
        expected.append((answer, content if what == "read" else b""))
    whole = b"".join(requests)
    ends = list(accumulate(map(len, requests)))
    # Between two requests, and just around their beginnings, is where cuts matter most.
    near = data.draw(st.lists(st.tuples(st.sampled_from(ends), st.integers(-3, 120)), max_size=4))
    places = sorted({min(max(0, end + by), len(whole)) for end, by in near} | {int(cut * len(whole)) for cut in cuts})

    url = urlsplit(either.base_url)
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as connection:
        answers, received = [], b""
        for start, end in pairwise([0, *places, len(whole)]):
            connection.sendall(whole[start:end])
            while len(answers) < bisect_right(ends, end):  # all that is complete is answered before more is sent
                received += connection.recv(1 << 20)
                answers, received = take_answers(answers, received, expected)

    assert answers == expected
    assert not received


def as_request(what: str, path: bytes, body: bytes) -> tuple[bytes, int]:
    """A request, and the status of its answer."""
    head = b" %b HTTP/1.1\r\nhost: s\r\n" % path
    if what in ("read", "head", "options"):
        method = {"read": b"GET", "head": b"HEAD", "options": b"OPTIONS"}[what]
        return method + head + b"\r\n", 204 if what == "options" else 200
    if what == "append to nowhere":
        head = b" %b-none HTTP/1.1\r\nhost: s\r\n" % path
    head = b"POST" + head + b"content-type: text/plain\r\n"
    if what == "append with upgrade":
        head += b"connection: upgrade\r\nupgrade: h2c\r\n"
    status = 404 if what == "append to nowhere" else 204
    if what == "append in chunks":
        middle = len(body) // 2
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (body[:middle], body[middle:]) if chunk)
        return head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", status
    return head + b"content-length: %d\r\n\r\n" % len(body) + body, status


def take_answers(
    answers: list[tuple[int, bytes]], received: bytes, expected: list[tuple[int, bytes]]
) -> tuple[list[tuple[int, bytes]], bytes]:
    """The answers that are complete, and what is left. Bodies of errors are left out."""
    answers = list(answers)
    while b"\r\n\r\n" in received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status = int(head[9:12])
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
        if len(rest) < length:
            break
        answers.append((status, rest[:length] if status == 200 else b""))
        received = rest[length:]
        assert len(answers) <= len(expected), "more answers than requests"
    return answers, received
