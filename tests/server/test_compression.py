"""Compressed catch-up answers (server 8.3)."""

import gzip
import os
import zlib
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.server import BadOffset, DurableStreamsApp, Gone, MemoryStore, Missing, Server, SQLiteStore
from durable_streams.server.compression import MIN_BYTES, WHOLE_BYTES, accepts_gzip, is_compressible

from .driver import Answer, Client, make_client, offset

pytestmark = pytest.mark.anyio
TEXT = "text/plain"
JSON = "application/json"
LONG = b"0123456789" * 200


async def get(client: Client, target: str, accept: str | None = "gzip", **headers: str) -> Answer:
    """A GET, whatever its length looks like."""
    if accept is not None:
        headers["accept_encoding"] = accept
    return await client.get(target, **headers)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("gzip, deflate, br", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("br;q=1.0, gzip;q=0.001", True),
        ("gzip;q=1.000", True),
        ("gzip ; q=0.5", True),
        ("identity;q=0.5, gzip;q=0.5", True),
        ("identity;q=0, gzip", True),
        ("", False),
        ("identity", False),
        ("br, zstd", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("*;q=0", False),
        ("*, gzip;q=0", False),
        ("gzip;q=0.5, identity", False),
        ("gzip;q=2", False),
        ("gzip;q=nan", False),
        ("gzip;q=", False),
        ("gzip;q=-1", False),
        ("gzip;q=1_0", False),
    ],
)
async def test_gzip_is_sent_to_who_takes_it_as_gladly_as_anything(accept: str, expected: bool) -> None:
    assert accepts_gzip(accept.encode()) is expected


@given(
    st.text() | st.lists(st.sampled_from(["gzip", "*", "identity", ";", "q=", "0", "1", ".5", ",", " "])).map("".join)
)
def test_any_header_is_understood_somehow(accept: str) -> None:
    understood = accepts_gzip(accept.encode("latin-1", "replace"))
    assert understood is False or "gzip" in accept.lower() or "*" in accept


async def test_text_and_json_of_any_kind_are_worth_compressing() -> None:
    for content_type in (TEXT, "TEXT/html; charset=utf-8", JSON, "application/vnd.x+json", "image/svg+xml"):
        assert is_compressible(content_type)
    for content_type in ("application/octet-stream", "image/png", "application/jsonx", "video/mp4"):
        assert not is_compressible(content_type)


@pytest.mark.parametrize(
    ("content_type", "body", "sent"),
    [
        (TEXT, LONG, LONG),
        (JSON, b'["%b"]' % LONG, b'["%b"]' % LONG),
        (JSON, b"[" + b",".join([b'{"a":1}'] * 300) + b"]", b"[" + b",".join([b'{"a":1}'] * 300) + b"]"),
    ],
)
async def test_a_page_arrives_compressed_and_is_the_same(
    client: Client, content_type: str, body: bytes, sent: bytes
) -> None:
    await client.put("x", content_type, body)
    answer = await get(client, "x")
    assert answer.status == 200
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert len(answer.body) < len(sent) / 2
    assert gzip.decompress(answer.body) == sent
    plain = await get(client, "x", None)
    assert plain.body == sent
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "Accept-Encoding"
    for name in ("stream-next-offset", "stream-up-to-date", "cache-control", "content-type"):
        assert answer.headers[name] == plain.headers[name]


async def test_short_and_binary_pages_stay_as_they_are_and_depend_on_nothing(client: Client) -> None:
    await client.put("short", TEXT, b"x" * (MIN_BYTES - 1))
    await client.put("enough", TEXT, b"x" * MIN_BYTES)
    await client.put("binary", "application/octet-stream", LONG)
    for name in ("short", "binary"):
        answer = await get(client, name)
        assert answer.status == 200
        assert "content-encoding" not in answer.headers
        assert "vary" not in answer.headers
    assert (await get(client, "enough")).headers["content-encoding"] == "gzip"


async def test_each_form_has_its_entity_tag_and_both_are_taken_for_both(client: Client) -> None:
    await client.put("x", TEXT, LONG)
    packed, plain = await get(client, "x"), await get(client, "x", None)
    assert packed.headers["etag"] == plain.headers["etag"].removesuffix('"') + '-gz"'
    for known in (packed.headers["etag"], plain.headers["etag"], f'"other", W/{packed.headers["etag"]}', "*"):
        for accept, tag in (("gzip", packed.headers["etag"]), ("identity", plain.headers["etag"])):
            answer = await get(client, "x", accept, if_none_match=known)
            assert answer.status == 304
            assert answer.headers["etag"] == tag
            assert answer.headers["vary"] == "Accept-Encoding"
            assert answer.headers["stream-next-offset"] == offset(len(LONG))
            assert "content-encoding" not in answer.headers
    await client.post("x", b"more", TEXT)
    assert (await get(client, "x", if_none_match=packed.headers["etag"])).status == 200


async def test_a_similar_entity_tag_does_not_match(client: Client) -> None:
    await client.put("x", TEXT, LONG)
    tag = (await get(client, "x", None)).headers["etag"]
    for known in (tag.removesuffix('"') + '-gz-gz"', tag.removesuffix('"') + 'x"', tag.strip('"'), '"-gz"'):
        assert (await get(client, "x", if_none_match=known)).status == 200


async def test_long_pages_go_out_as_they_are_compressed() -> None:
    client = make_client()
    body = b"[" + b",".join(b'{"number":%d}' % number for number in range(200_000)) + b"]"
    assert len(body) > 3 * WHOLE_BYTES
    await client.put("x", JSON, body)
    async with client.open("x", accept_encoding="gzip") as connection:
        assert await connection.head() == 200
        assert connection.headers["content-encoding"] == "gzip"
        assert "content-length" not in connection.headers
        assert connection.headers["vary"] == "Prefer, Accept-Encoding"
        pieces = []
        while piece := await connection.piece():
            pieces.append(piece)
    assert len(pieces) > 2
    assert gzip.decompress(b"".join(pieces)) == body


class Counting(MemoryStore):
    """Counts the pieces that are taken of its pages, and lets others run in between."""

    pieces = 0

    async def read(self, *arguments: Any) -> Any:
        page = await super().read(*arguments)
        return page if isinstance(page, BadOffset | Missing | Gone) else CountingPage(self, page)


class CountingPage:
    def __init__(self, store: Counting, page: Any) -> None:
        self._store = store
        self._page = page

    def __getattr__(self, name: str) -> Any:
        return getattr(self._page, name)

    async def next_piece(self) -> Any:
        self._store.pieces += 1
        await anyio.lowlevel.checkpoint()
        return await self._page.next_piece()


@pytest.mark.parametrize("accept", ["gzip", "identity"])
async def test_who_leaves_in_the_midst_of_a_long_page_costs_no_more(accept: str) -> None:
    """Servers take what is sent to nobody without a word, so the rest would be read and compressed in vain."""
    store = Counting()
    client = make_client(store=store, max_append_bytes=64 << 20)
    await client.put("x", TEXT, os.urandom(32 << 20))
    async with client.open("x", accept_encoding=accept) as connection:
        await connection.head()
        await connection.piece()
        connection.disconnect()
        await connection.finished.wait()
    assert 1 <= store.pieces <= 8


async def test_offsets_count_bytes_before_compression(client: Client) -> None:
    await client.put("x", TEXT, LONG)
    await client.post("x", LONG[::-1], TEXT)
    answer = await get(client, f"x?offset={offset(len(LONG))}")
    assert gzip.decompress(answer.body) == LONG[::-1]
    assert answer.next_offset == offset(2 * len(LONG))


async def test_live_answers_are_never_compressed(client: Client) -> None:
    await client.put("x", TEXT, LONG)
    answer = await get(client, "x?offset=-1&live=long-poll")
    assert answer.body == LONG
    assert "content-encoding" not in answer.headers
    assert "vary" not in answer.headers
    await client.post("x", b"", stream_closed="true")
    events = await get(client, "x?offset=-1&live=sse")
    assert "content-encoding" not in events.headers
    assert LONG in events.body


async def test_head_and_errors_are_not_compressed(client: Client) -> None:
    await client.put("x", TEXT, LONG)
    head = await client.call("HEAD", "x", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in head.headers
    missing = await get(client, "missing")
    assert (missing.status, "content-encoding" in missing.headers) == (404, False)


async def test_it_can_be_turned_off() -> None:
    client = make_client(compression=False)
    await client.put("x", TEXT, LONG)
    answer = await get(client, "x")
    assert answer.body == LONG
    assert "content-encoding" not in answer.headers
    assert "vary" not in answer.headers


async def test_what_a_preference_shortens_depends_on_both(client: Client) -> None:
    for method in ("PUT", "POST", "POST"):
        await client.call(method, "x", b"0123456789" * 10_000, {"content-type": TEXT})
    answer = await get(client, "x?offset=-1", prefer="max-page-bytes=131072")
    assert answer.headers["vary"] == "Prefer, Accept-Encoding"
    assert gzip.decompress(answer.body) == b"0123456789" * 10_000
    assert answer.headers["preference-applied"] == "max-page-bytes=131072"


async def test_pages_on_disk_are_compressed_as_well(tmp_path: object) -> None:
    async with SQLiteStore(f"{tmp_path}/store", recent_bytes=0) as store:
        client = Client(DurableStreamsApp(store))
        body = b"[" + b",".join(b'{"number":%d}' % number for number in range(20_000)) + b"]"
        await client.put("x", JSON, body)
        answer = await get(client, "x")
        assert gzip.decompress(answer.body) == body


async def test_a_compressed_page_crosses_a_socket() -> None:
    body = b"0123456789abcdef" * 200_000
    async with Server() as server:
        port = int(server.base_url.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(
                b"PUT /v1/stream/x HTTP/1.1\r\nHost: s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b"
                b"GET /v1/stream/x HTTP/1.1\r\nHost: s\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
                % (len(body), body)
            )
            received = bytearray()
            with anyio.fail_after(20):
                async for data in stream:
                    received += data
    first, second = received.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"201 ")
    head, _, chunks = second.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    page = b""
    while True:
        size, _, chunks = chunks.partition(b"\r\n")
        if not int(size, 16):
            break
        page += unpacker.decompress(chunks[: int(size, 16)])
        chunks = chunks[int(size, 16) + 2 :]
    assert page == body
    assert unpacker.eof
