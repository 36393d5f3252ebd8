"""What other servers of the protocol got wrong at some time (server 18): one test for each row, on both stores."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from durable_streams._core.sse import SSEParser
from durable_streams.server import MemoryStore, SQLiteStore

from .driver import Client, Clock, make_client, offset

pytestmark = pytest.mark.anyio
TEXT, JSON, OCTETS = "text/plain", "application/json", "application/octet-stream"


class Servers:
    """One server after the other on the same store."""

    def __init__(self, kind: str, folder: Path, stack: AsyncExitStack) -> None:
        self.path = folder / "streams.db"
        self.clock = Clock()
        self._kind = kind
        self._stack = stack

    async def start(self) -> Client:
        await self._stack.aclose()
        if self._kind == "memory":
            store: Any = MemoryStore()
        else:
            store = SQLiteStore(self.path, durability="relaxed", clock=self.clock)
        await self._stack.enter_async_context(store)
        return make_client(store=store, clock=self.clock, long_poll_timeout=20.0)


@pytest.fixture(params=["memory", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def servers(kind: str, tmp_path: Path) -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        yield Servers(kind, tmp_path, stack)


@pytest.fixture
async def client(servers: Servers) -> Client:
    return await servers.start()


async def events_of(client: Client, target: str) -> list[tuple[str, bytes]]:
    """All events of a connection that ends by itself: type and data, cut apart here and not by the library."""
    with anyio.fail_after(10):
        async with client.open(target) as connection:
            assert await connection.head() == 200
            body = await connection.rest()
    answer = []
    for block in body.split(b"\n\n")[:-1]:
        lines = [line.partition(b":") for line in block.split(b"\n")]
        values = [value.removeprefix(b" ") for name, _, value in lines if name == b"data"]
        answer.append(
            (next(value.strip().decode() for name, _, value in lines if name == b"event"), b"\n".join(values))
        )
    return answer


async def test_no_append_undoes_a_closure(client: Client) -> None:
    for number in range(200):
        name = f"x{number}"
        await client.put(name, OCTETS)
        statuses: dict[str, int] = {}

        async def post(what: str, body: bytes, pause: int, name: str = name, seen: dict[str, int] = statuses) -> None:
            for _ in range(pause):
                await anyio.lowlevel.checkpoint()
            headers = {"stream_closed": "true"} if what == "close" else {}
            seen[what] = (await client.post(name, body, OCTETS, **headers)).status

        async with anyio.create_task_group() as group:
            group.start_soon(post, "append", b"data", number % 3)
            group.start_soon(post, "close", b"", number % 5)

        head = await client.head(name)
        assert head.headers["stream-closed"] == "true", f"closed and open again in round {number}"
        assert statuses["close"] == 204
        assert head.next_offset == offset(4 if statuses["append"] == 204 else 0)
        assert (await client.post(name, b"late", OCTETS)).status == 409


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("garbage", [b"\0" * 5000, b"\xff" * 17, b"torn" * 999])
async def test_what_is_appended_after_a_torn_write_is_kept(servers: Servers, garbage: bytes) -> None:
    client = await servers.start()
    await client.put("x", OCTETS, b"one;")
    written = Path(f"{servers.path}-wal").read_bytes() + garbage
    database = servers.path.read_bytes()
    await servers._stack.aclose()
    servers.path.write_bytes(database)
    Path(f"{servers.path}-wal").write_bytes(written)  # as a crash in the middle of a write leaves it

    client = await servers.start()
    assert (await client.post("x", b"two;", OCTETS)).next_offset == offset(8)
    client = await servers.start()
    assert (await client.post("x", b"three;", OCTETS)).next_offset == offset(14)
    client = await servers.start()

    assert (await client.get("x?offset=-1")).body == b"one;two;three;"


async def test_parallel_appends_get_an_offset_each(client: Client) -> None:
    await client.put("x", OCTETS)
    offsets: list[str] = []

    async def post(number: int) -> None:
        offsets.append((await client.post("x", b"%02d" % number, OCTETS)).next_offset)

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(post, number)

    assert sorted(offsets) == [offset(2 * number) for number in range(1, 51)]
    body = (await client.get("x?offset=-1")).body
    assert sorted(body[place : place + 2] for place in range(0, 100, 2)) == [b"%02d" % n for n in range(50)]


async def test_a_refused_fork_holds_no_reference(client: Client) -> None:
    await client.put("x", TEXT, b"abc")
    source = "/v1/stream/x"
    refused = [
        await client.put("fork", JSON, stream_forked_from=source),
        await client.put("fork", TEXT, stream_forked_from=source, stream_fork_offset=offset(4)),
        await client.put(
            "fork", TEXT, stream_forked_from=source, stream_fork_offset=offset(1), stream_fork_sub_offset="9"
        ),
        await client.put("fork", stream_forked_from=source, stream_ttl="x"),
    ]
    assert [answer.status for answer in refused] == [409, 400, 400, 400]

    assert (await client.delete("x")).status == 204
    assert (await client.head("x")).status == 404, "not 410: nothing refers to it"
    assert (await client.put("x", JSON)).status == 201


async def test_a_fork_takes_over_type_and_lifetime_and_can_be_asked_for_again(client: Client) -> None:
    await client.put("x", JSON, b"[1]", stream_ttl="60")

    answers = [await client.put("fork", stream_forked_from="/v1/stream/x") for _ in range(3)]

    assert [answer.status for answer in answers] == [201, 200, 200]
    head = await client.head("fork")
    assert (head.headers["content-type"], head.headers["stream-ttl"]) == (JSON, "60")
    assert (await client.get("fork?offset=-1")).json() == [1]


@pytest.mark.parametrize(("content_type", "body"), [(JSON, b'[{"last":1}]'), (TEXT, b"last"), (OCTETS, b"\0last")])
async def test_a_follower_gets_the_append_that_closes(client: Client, content_type: str, body: bytes) -> None:
    for patience in range(12):
        name = f"x{patience}"
        await client.put(name, content_type)
        seen: list[tuple[str, bytes]] = []

        async def follow(name: str = name, seen: list[tuple[str, bytes]] = seen) -> None:
            seen += await events_of(client, f"{name}?offset=-1&live=sse")

        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            for _ in range(patience):
                await anyio.lowlevel.checkpoint()
            await client.post(name, body, content_type, stream_closed="true")

        data = [value for type_, value in seen if type_ == "data"]
        assert data == [base64.b64encode(body) if content_type == OCTETS else body]
        assert json.loads(seen[-1][1])["streamClosed"] is True


async def test_text_lines_keep_their_leading_spaces_over_sse(client: Client) -> None:
    await client.put("x", TEXT, b" a\n  b\n\n c", stream_closed="true")

    assert (await events_of(client, "x?offset=-1&live=sse"))[0] == ("data", b" a\n  b\n\n c")


@pytest.mark.parametrize("soft", [False, True])
async def test_a_deletion_ends_a_connection(client: Client, soft: bool) -> None:
    await client.put("x", TEXT, b"a")
    if soft:
        await client.put("fork", stream_forked_from="/v1/stream/x")
    async with client.open("x?offset=-1&live=sse") as connection:
        assert await connection.head() == 200
        assert await connection.piece()
        await anyio.wait_all_tasks_blocked()

        assert (await client.delete("x")).status == 204

        with anyio.fail_after(5):
            rest = await connection.rest()
        assert not any(b"streamClosed" in event.data for event in SSEParser().feed(rest) if hasattr(event, "data"))
        await connection.finished.wait()


async def test_expiry_at_birth_and_a_bad_host_are_no_errors_of_the_server(client: Client) -> None:
    assert (await client.put("x", TEXT, stream_ttl="0")).status == 201
    assert (await client.head("x")).status == 404
    assert (await client.put("x", TEXT, stream_expires_at="2001-01-01T00:00:00Z")).status == 201
    assert (await client.head("x")).status == 404
    for host in ("a b", "[::1", "a/b", "a:b:c", "\xff", "user@host", "a?b"):
        assert (await client.call("PUT", "y", b"", [("host", host)])).status == 400
    assert (await client.head("y")).status == 404


@pytest.mark.parametrize("body", [b"{", b"[1,", b"nan", b"\xff", b"[NaN]", b'"\\ud800', b"1 2"])
async def test_invalid_json_creates_no_stream(client: Client, body: bytes) -> None:
    assert (await client.put("x", JSON, body)).status == 400

    assert (await client.head("x")).status == 404
    assert (await client.put("x", TEXT)).status == 201


async def test_closing_what_is_soft_deleted_is_410(client: Client) -> None:
    await client.put("x", TEXT, b"a")
    await client.put("fork", stream_forked_from="/v1/stream/x")
    await client.delete("x")
    producer = {"producer_id": "p", "producer_epoch": "0", "producer_seq": "0"}

    for headers in ({}, producer):
        answer = await client.post("x", stream_closed="true", **headers)
        assert answer.status == 410
    assert (await client.get("fork?offset=-1")).body == b"a"


@pytest.mark.parametrize("live", ["", "&live=long-poll", "&live=sse"])
@pytest.mark.parametrize("content_type", [TEXT, JSON])
async def test_an_offset_beyond_the_tail_is_400_at_once(client: Client, live: str, content_type: str) -> None:
    await client.put("x", content_type, b"[1]")
    tail = int((await client.head("x")).next_offset.partition("_")[2])

    with anyio.fail_after(5):  # less than a long-poll takes
        for place in (tail + 1, tail + 1000, 10**16 - 1):
            answer = await client.get(f"x?offset={offset(place)}{live}")
            assert (answer.status, "stream-next-offset" in answer.headers) == (400, False)


async def test_an_offset_inside_is_400_or_exact(client: Client) -> None:
    await client.put("j", JSON, b'[{"a":1},22]')
    await client.put("b", OCTETS, b"first")
    await client.post("b", b"second", OCTETS)

    stored = b'{"a":1},22,'
    for place in range(len(stored) + 1):
        answer = await client.get(f"j?offset={offset(place)}")
        between = place in (0, 8, 11)
        assert answer.status == (200 if between else 400)
        assert not between or answer.json() == json.loads(b"[" + stored[place:-1] + b"]")
    for place in range(12):
        assert (await client.get(f"b?offset={offset(place)}")).body == b"firstsecond"[place:]


async def test_a_closure_changes_the_entity_tag(client: Client) -> None:
    await client.put("x", TEXT, b"abc")
    before = (await client.get("x?offset=-1")).headers["etag"]
    other = (await client.get(f"x?offset={offset(1)}")).headers["etag"]
    assert (await client.get("x?offset=-1", if_none_match=before)).status == 304
    assert other != before, "the start belongs to it"

    await client.post("x", stream_closed="true")

    answer = await client.get("x?offset=-1", if_none_match=before)
    assert (answer.status, answer.headers["stream-closed"]) == (200, "true")
    again = await client.get("x?offset=-1", if_none_match=answer.headers["etag"])
    assert (again.status, again.headers["stream-closed"]) == (304, "true")


async def test_a_batch_is_one_frame(client: Client) -> None:
    await client.put("x", JSON)
    async with client.open("x?offset=-1&live=sse") as connection:
        await connection.head()
        await connection.piece()
        await client.post("x", b"[1,2,3]", JSON)
        await client.post("x", b"4", JSON, stream_closed="true")
        frames = SSEParser().feed(await connection.rest())

    payloads = [json.loads(event.data) for event in frames if event.type == "data"]
    assert payloads in ([[1, 2, 3], [4]], [[1, 2, 3, 4]])
    assert [event.type for event in frames] == ["data", "control"] * len(payloads)


async def test_an_expired_stream_is_not_in_the_way(servers: Servers) -> None:
    client = await servers.start()
    await client.put("x", TEXT, b"old", stream_ttl="5")
    servers.clock.now += 5

    assert (await client.put("x", JSON, b"[1]")).status == 201
    assert (await client.get("x?offset=-1")).json() == [1]
    for value in ("soon", "2099", "2099-01-01", "2099-02-30T00:00:00Z", "Jan 1 2099", "0"):
        assert (await client.put("y", TEXT, stream_expires_at=value)).status == 400
    assert (await client.head("y")).status == 404


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_live_readers_write_nothing(servers: Servers) -> None:
    client = await servers.start()
    store = client.app.store
    await client.put("x", TEXT, stream_ttl="60")
    connections = 0

    async def follow(mode: str) -> None:
        nonlocal connections
        async with client.open(f"x?offset=-1&live={mode}") as connection:
            connections += 1
            await connection.head()
            await connection.rest()

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(follow, "sse" if number % 2 else "long-poll")
        await anyio.wait_all_tasks_blocked()
        commits = store.statistics().writer.commits
        for _ in range(3):
            assert (await client.get("x?offset=-1")).status == 200
        assert store.statistics().writer.commits == commits

        await client.post("x", b"a", TEXT, stream_closed="true")

    assert store.statistics().writer.commits == commits + 1
    assert connections == 100
