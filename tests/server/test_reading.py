"""HEAD and catch-up GET: pages, entity tags, lifetimes in caches (server 8; protocol 5.5, 5.6, 8)."""

import pytest

from durable_streams.server import DurableStreamsApp, MemoryStore

from .driver import Client, connect, make_client, offset

pytestmark = pytest.mark.anyio
TEXT, JSON = "text/plain", "application/json"


async def test_head_tells_what_is_known(client: Client) -> None:
    await client.put("x", TEXT, b"abc", stream_ttl="60")
    await client.post("x", b"", stream_closed="true")
    answer = await client.head("x")
    assert answer.status == 200
    for name, value in {
        "content-type": TEXT,
        "stream-next-offset": offset(3),
        "stream-ttl": "60",
        "stream-closed": "true",
        "cache-control": "no-store",
    }.items():
        assert answer.headers[name] == value
    assert (await client.head("missing")).status == 404


async def test_a_read_gives_what_follows_the_offset(client: Client) -> None:
    await client.put("log", JSON, b'[{"n":1},[2,3],"x"]')
    await client.post("log", b'{"n":4}', JSON)
    await client.post("log", b"[[5,6]]", JSON)
    answer = await client.get(f"log?offset={offset(18)}")
    assert answer.body == b'[{"n":4},[5,6]]'
    assert answer.headers["content-type"] == JSON
    assert answer.next_offset == offset(32)
    assert answer.headers["stream-up-to-date"] == "true"
    assert answer.headers["etag"].endswith(f':{offset(18)}:{offset(32)}"')
    assert "stream-cursor" not in answer.headers
    for target in ("log", "log?offset=-1", f"log?offset={offset(0)}", "log?offset=-1&other=1&cursor=5"):
        assert (await client.get(target)).body == b'[{"n":1},[2,3],"x",{"n":4},[5,6]]'
    assert (await client.get(f"log?offset={offset(8)}")).body == b'[[2,3],"x",{"n":4},[5,6]]'


async def test_at_the_tail_there_is_nothing_and_that_is_up_to_date(client: Client) -> None:
    await client.put("j", JSON, b"[1]")
    await client.put("t", TEXT, b"ab")
    for target, body in ((f"j?offset={offset(2)}", b"[]"), (f"t?offset={offset(2)}", b"")):
        answer = await client.get(target)
        assert (answer.status, answer.body) == (200, body)
        assert answer.next_offset == offset(2)
        assert answer.headers["stream-up-to-date"] == "true"
        assert answer.headers["cache-control"] == "no-store"
        assert "stream-closed" not in answer.headers


@pytest.mark.parametrize("closed", [False, True])
async def test_now_is_the_tail_without_data_or_entity_tag(client: Client, closed: bool) -> None:
    await client.put("j", JSON, b"[1]")
    await client.put("t", TEXT, b"ab")
    for path, body in (("j", b"[]"), ("t", b"")):
        if closed:
            await client.post(path, b"", stream_closed="true")
        answer = await client.get(f"{path}?offset=now", if_none_match="*")
        assert (answer.status, answer.body) == (200, body)
        assert answer.next_offset == offset(2)
        assert answer.headers["stream-up-to-date"] == "true"
        assert answer.headers.get("stream-closed") == ("true" if closed else None)
        assert answer.headers["cache-control"] == "no-store"
        assert "etag" not in answer.headers


@pytest.mark.parametrize(
    "query",
    [
        "offset=",
        "offset",
        f"offset=-1&offset={offset(0)}",
        "offset=-1&offset=-1",
        "offset=0",
        "offset=0_0",
        "offset=ffffffffffffffff",
        "offset=-2",
        "offset=NOW",
        f"offset={offset(0)}%0a",
        f"offset=%20{offset(0)}",
        f"offset={offset(4)}",
        "offset=9999999999999999_9999999999999999",
        "live=long-poll",
        "live=sse",
        "offset=-1&live=",
        "offset=-1&live=poll",
        "offset=-1&live=true",
        "offset=-1&live=sse&live=sse",
        "offset=-1&live=LONG-POLL",
        f"offset={offset(4)}&live=long-poll",
        f"offset={offset(4)}&live=sse",
        "offset=%ff",
    ],
)
async def test_other_offsets_and_modes_are_400_and_without_a_stream_404(client: Client, query: str) -> None:
    await client.put("x", TEXT, b"abc")
    assert (await client.get(f"x?{query}")).status == 400
    assert (await client.get(f"missing?{query}")).status == 404


async def test_an_offset_inside_a_message_is_400(client: Client) -> None:
    await client.put("x", JSON, b"[11,22]")
    for position in (1, 2, 4, 5):
        for mode in ("", "&live=long-poll", "&live=sse"):
            assert (await client.get(f"x?offset={offset(position)}{mode}")).status == 400
    assert (await client.get(f"x?offset={offset(3)}")).body == b"[22]"


async def test_parameters_may_be_percent_encoded(client: Client) -> None:
    await client.put("x", TEXT, b"abc")
    assert (await client.get("x?%6Fffset=%2D1")).body == b"abc"
    assert (await client.get("x?offset=%6eow")).body == b""


async def test_closure_shows_only_at_the_end(client: Client) -> None:
    client = make_client(page_bytes=4)
    await client.put("t", TEXT, b"abcdef")
    await client.post("t", b"", stream_closed="true")
    first = await client.get("t?offset=-1")
    assert (first.body, first.next_offset) == (b"abcd", offset(4))
    assert "stream-up-to-date" not in first.headers
    assert "stream-closed" not in first.headers
    second = await client.get(f"t?offset={offset(4)}")
    assert second.body == b"ef"
    assert second.headers["stream-up-to-date"] == second.headers["stream-closed"] == "true"
    last = await client.get(f"t?offset={offset(6)}")
    assert last.body == b""
    assert last.headers["stream-up-to-date"] == last.headers["stream-closed"] == "true"


async def test_entity_tags_tell_start_end_closure_and_incarnation() -> None:
    """Appendix D.2."""
    names = iter(["q1", "q2"])
    client = Client(DurableStreamsApp(MemoryStore(incarnations=lambda: next(names)), page_bytes=4))
    await client.put("t", TEXT, b"abcdef")
    four, six = offset(4), offset(6)
    assert (await client.get("t")).headers["etag"] == f'"q1:-1:{four}"'
    etag = f'"q1:{four}:{six}"'
    known = await client.get(f"t?offset={four}", if_none_match=etag)
    assert known.status == 304
    for name, value in {
        "etag": etag,
        "cache-control": "no-cache",
        "stream-next-offset": six,
        "stream-up-to-date": "true",
    }.items():
        assert known.headers[name] == value

    await client.post("t", b"", stream_closed="true")
    changed = await client.get(f"t?offset={four}", if_none_match=etag)
    assert (changed.status, changed.body) == (200, b"ef")
    assert changed.headers["etag"] == f'"q1:{four}:{six}:c"'
    known = await client.get(f"t?offset={four}", if_none_match=changed.headers["etag"])
    assert known.status == 304
    assert known.headers["stream-closed"] == "true"

    await client.delete("t")
    await client.put("t", TEXT, b"ghijkl", stream_closed="true")
    assert (await client.get(f"t?offset={four}", if_none_match=changed.headers["etag"])).body == b"kl"


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("{}", 304),
        ("W/{}", 304),
        ('"a", {}', 304),
        ('"a",W/{} , "b"', 304),
        ("*", 304),
        ('"a"', 200),
        ("x{}", 200),
        ("", 200),
    ],
)
async def test_if_none_match_takes_lists_weak_tags_and_a_star(client: Client, value: str, status: int) -> None:
    await client.put("x", TEXT, b"abc")
    etag = (await client.get("x")).headers["etag"]
    assert (await client.get("x", if_none_match=value.format(etag))).status == status


async def test_what_cannot_change_may_be_cached_and_what_can_is_checked() -> None:
    for visibility in ("private", "public"):
        client = make_client(page_bytes=4, cache_visibility=visibility)
        await client.put("t", TEXT, b"abcdef")
        lasting = f"{visibility}, max-age=60, stale-while-revalidate=300"

        async def cached(position: int, client: Client = client) -> str:
            return (await client.get(f"t?offset={offset(position)}")).headers["cache-control"]

        assert [await cached(0), await cached(4), await cached(6)] == [lasting, "no-cache", "no-store"]
        await client.post("t", b"", stream_closed="true")
        assert [await cached(0), await cached(4), await cached(6)] == [lasting, lasting, "no-store"]


async def test_a_reader_may_ask_for_smaller_pages() -> None:
    client = make_client()
    await client.put("x", TEXT)
    for number in range(10):
        await client.post("x", bytes([48 + number]) * 100_000, TEXT)
    small = await client.get("x", prefer="max-page-bytes=250000")
    assert len(small.body) == 200_000
    assert small.headers["preference-applied"] == "max-page-bytes=250000"
    assert small.headers["vary"] == "Prefer, Accept-Encoding"
    assert "stream-up-to-date" not in small.headers

    least = await client.get("x", prefer="max-page-bytes=1")
    assert len(least.body) == 100_000
    large = await client.get("x")
    assert len(large.body) == 1_000_000
    assert large.headers["vary"] == "Prefer, Accept-Encoding"
    assert "preference-applied" not in large.headers
    rest = await client.get(f"x?offset={offset(900_000)}", prefer="max-page-bytes=250000")
    assert rest.headers["preference-applied"] == "max-page-bytes=250000"
    assert rest.headers["vary"] == "Accept-Encoding"
    polled = await client.get("x?offset=-1&live=long-poll", prefer="max-page-bytes=250000")
    assert len(polled.body) == 200_000


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("respond-async, Max-Page-Bytes=200000", "200000"),
        ('max-page-bytes="200000"; x=y', "200000"),
        (" max-page-bytes = 200000 ", "200000"),
        ("max-page-bytes=200000, max-page-bytes=300000", "200000"),
        ("max-page-bytes=-1", None),
        ("max-page-bytes=", None),
        ("max-page-bytes", None),
        ("max-page-bytes=1x", None),
        ("xmax-page-bytes=5", None),
        ("", None),
    ],
)
async def test_prefer_is_a_list_and_what_it_does_not_say_is_ignored(
    client: Client, prefer: str, applied: str | None
) -> None:
    await client.put("x", TEXT, b"abc")
    headers = (await client.get("x", prefer=prefer)).headers
    assert headers.get("preference-applied") == (applied and f"max-page-bytes={applied}")


async def test_json_pages_are_arrays_no_larger_than_asked_for() -> None:
    client = make_client()
    await client.put("x", JSON)
    for _ in range(40):
        await client.post("x", b'["%b","%b"]' % (b"a" * 4996, b"b" * 4996), JSON)  # 2 messages of 4999 bytes with comma
    target, texts = "x", []
    while True:
        answer = await client.get(target, prefer="max-page-bytes=130000")
        assert len(answer.body) <= 131_072
        texts += answer.json()
        assert len(answer.json()) % 2 == 0, "appends stay whole"
        if "stream-up-to-date" in answer.headers:
            break
        target = f"x?offset={answer.next_offset}"
    assert texts == ["a" * 4996, "b" * 4996] * 40


async def test_one_json_message_larger_than_a_page_comes_whole(client: Client) -> None:
    client = make_client(page_bytes=10)
    await client.put("x", JSON, b'["%b",1]' % (b"a" * 50))
    answer = await client.get("x")
    assert answer.json() == ["a" * 50]
    assert (await client.get(f"x?offset={answer.next_offset}")).json() == [1]


async def test_a_large_answer_is_sent_in_pieces_as_the_client_reads() -> None:
    client = make_client(max_append_bytes=1 << 30)
    message = b"x" * (3 << 20)
    await client.put("t", TEXT, message)
    await client.put("j", JSON, b'["%b"]' % message)
    for path, content in (("t", message), ("j", b'["%b"]' % message)):
        async with connect(client.app, client.scope("GET", path)) as connection:
            connection.send_body()
            await connection.head()
            assert connection.headers["content-length"] == str(len(content))
            pieces = []
            while piece := await connection.piece():
                pieces.append(piece)
        assert b"".join(pieces) == content
        assert len(pieces) >= 3
        assert max(map(len, pieces)) <= (1 << 20) + 1


async def test_a_stream_of_a_gigabyte_is_read_with_little_memory() -> None:
    """The appends are one object, so that the test itself needs little."""
    import tracemalloc

    from durable_streams.server import AppendRequest, CreateRequest, Payload, StreamConfig

    store = MemoryStore()
    client = Client(DurableStreamsApp(store))
    await store.create(CreateRequest("/v1/stream/x", StreamConfig(TEXT)), 0.0)
    chunk = Payload(bytes(16 << 20))
    for _ in range(64):
        await store.append(AppendRequest("/v1/stream/x", TEXT, chunk), 0.0)

    tracemalloc.start()
    try:
        position, target = 0, "x"
        while position < 1 << 30:
            async with connect(client.app, client.scope("GET", target)) as connection:
                connection.send_body()
                await connection.head()
                while piece := await connection.piece():
                    position += len(piece)
            target = f"x?offset={connection.headers['stream-next-offset']}"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert position == 1 << 30
    assert peak < 8 << 20


async def test_a_page_is_whole_though_the_stream_is_deleted_while_it_is_sent() -> None:
    client = make_client(max_append_bytes=1 << 30)
    await client.put("t", TEXT, b"x" * (5 << 20))
    async with connect(client.app, client.scope("GET", "t")) as connection:
        connection.send_body()
        await connection.head()
        first = await connection.piece()
        await client.delete("t")
        rest = await connection.rest()
    assert len(first + rest) == 5 << 20
