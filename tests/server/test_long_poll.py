"""Long-poll over HTTP (server 9; protocol 5.7, appendix D.5)."""

import random

import anyio
import pytest

from .driver import Client, Clock, connect, make_client, offset

pytestmark = pytest.mark.anyio
TEXT, JSON = "text/plain", "application/json"


@pytest.fixture
def impatient(clock: Clock) -> Client:
    return make_client(clock=clock, rng=random.Random(7), long_poll_timeout=0.01)


async def test_data_is_answered_at_once(client: Client) -> None:
    await client.put("x", JSON, b"[1,2]")
    answer = await client.get(f"x?offset={offset(2)}&live=long-poll")
    assert (answer.status, answer.body) == (200, b"[2]")
    for name, value in {
        "content-type": JSON,
        "stream-next-offset": offset(4),
        "stream-up-to-date": "true",
        "stream-cursor": "2991600",
        "cache-control": "no-cache",
    }.items():
        assert answer.headers[name] == value


async def test_without_data_it_waits_for_data(client: Client) -> None:
    await client.put("x", JSON)
    for start in ("-1", "now", offset(0)):
        await client.delete("x")
        await client.put("x", JSON)
        async with client.open(f"x?offset={start}&live=long-poll") as poll:
            await anyio.wait_all_tasks_blocked()
            assert not poll.finished.is_set()
            await client.post("x", b'{"n":7}', JSON)
            assert await poll.head() == 200
            assert await poll.rest() == b'[{"n":7}]'
        assert poll.headers["stream-next-offset"] == offset(8)
        assert poll.headers["stream-up-to-date"] == "true"


async def test_now_gets_only_what_comes(client: Client) -> None:
    await client.put("x", TEXT, b"old")
    async with client.open("x?offset=now&live=long-poll") as poll:
        await anyio.wait_all_tasks_blocked()
        await client.post("x", b"new", TEXT)
        assert await poll.head() == 200
        assert await poll.rest() == b"new"
    assert poll.headers["cache-control"] == "no-store"
    assert "etag" not in poll.headers


@pytest.mark.parametrize("start", ["-1", "now"])
async def test_timeout_is_204_with_the_tail(impatient: Client, start: str) -> None:
    await impatient.put("x", TEXT)
    answer = await impatient.get(f"x?offset={start}&live=long-poll")
    assert answer.status == 204
    for name, value in {
        "stream-next-offset": offset(0),
        "stream-up-to-date": "true",
        "stream-cursor": "2991600",
        "cache-control": "no-store",
    }.items():
        assert answer.headers[name] == value
    assert "stream-closed" not in answer.headers


async def test_at_the_end_of_a_closed_stream_it_does_not_wait(client: Client) -> None:
    await client.put("x", TEXT, b"abc", stream_closed="true")
    for start in (offset(3), "now"):
        answer = await client.get(f"x?offset={start}&live=long-poll")
        assert answer.status == 204
        assert answer.headers["stream-closed"] == answer.headers["stream-up-to-date"] == "true"
        assert answer.next_offset == offset(3)
    answer = await client.get("x?offset=-1&live=long-poll")
    assert (answer.status, answer.body) == (200, b"abc")
    assert answer.headers["stream-closed"] == "true"


@pytest.mark.parametrize("final", [b"", b"bye"])
async def test_closing_wakes_with_the_final_data_or_without(client: Client, final: bytes) -> None:
    await client.put("x", TEXT)
    async with client.open("x?offset=-1&live=long-poll") as poll:
        await anyio.wait_all_tasks_blocked()
        await client.post("x", final, TEXT, stream_closed="true")
        assert await poll.head() == (200 if final else 204)
        assert await poll.rest() == final
    assert poll.headers["stream-closed"] == poll.headers["stream-up-to-date"] == "true"
    assert poll.headers["stream-next-offset"] == offset(len(final))


async def test_deletion_wakes_with_404_though_the_path_is_used_again(client: Client) -> None:
    await client.put("x", TEXT)
    async with client.open("x?offset=-1&live=long-poll") as poll:
        await anyio.wait_all_tasks_blocked()
        await client.delete("x")
        await client.put("x", TEXT, b"another")
        assert await poll.head() == 404
        await poll.rest()


async def test_expiry_wakes_with_404(client: Client, clock: Clock) -> None:
    await client.put("x", TEXT, stream_expires_at="2026-09-01T12:00:00.02Z")

    async def advance() -> None:
        clock.now += 1

    async with client.open("x?offset=-1&live=long-poll") as poll:
        await anyio.wait_all_tasks_blocked()
        await advance()
        assert await poll.head() == 404
        await poll.rest()


async def test_a_waiting_reader_keeps_a_ttl_from_running_out(client: Client, clock: Clock) -> None:
    await client.put("x", TEXT, stream_ttl="10")
    async with client.open("x?offset=-1&live=long-poll") as poll:
        await anyio.wait_all_tasks_blocked()
        clock.now += 100
        assert (await client.post("x", b"a", TEXT)).status == 204
        assert await poll.head() == 200
        await poll.rest()
    clock.now += 9
    assert (await client.head("x")).status == 200


async def test_other_streams_and_refused_appends_do_not_wake(client: Client) -> None:
    await client.put("x", TEXT)
    await client.put("y", TEXT)
    async with client.open("x?offset=-1&live=long-poll") as poll:
        await anyio.wait_all_tasks_blocked()
        await client.post("y", b"a", TEXT)
        await client.post("x", b"a", JSON)
        await client.get("x")
        await anyio.wait_all_tasks_blocked()
        assert not poll.finished.is_set()
        await client.post("x", b"b", TEXT)
        assert await poll.head() == 200
        assert await poll.rest() == b"b"


async def test_an_append_between_looking_and_waiting_is_not_missed(client: Client) -> None:
    """The append happens while the answer's first look at the tail is under way."""
    await client.put("x", TEXT)
    store = client.app.store
    read = store.read

    async def read_then_append(ref: object, position: int, max_bytes: int) -> object:
        page = await read(ref, position, max_bytes)
        store.read = read
        await client.post("x", b"now", TEXT)
        return page

    store.read = read_then_append
    answer = await client.get("x?offset=-1&live=long-poll")
    assert (answer.status, answer.body) == (200, b"now")


async def test_a_hundred_readers_wake_at_once(client: Client) -> None:
    await client.put("x", TEXT)
    bodies: list[bytes] = []

    async def poll() -> None:
        bodies.append((await client.get("x?offset=now&live=long-poll")).body)

    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(poll)
        await anyio.wait_all_tasks_blocked()
        await client.post("x", b"all", TEXT)
    assert bodies == [b"all"] * 100


async def test_a_reader_that_leaves_is_forgotten(client: Client, clock: Clock) -> None:
    await client.put("x", TEXT, stream_ttl="10")
    async with connect(client.app, client.scope("GET", "x?offset=-1&live=long-poll")) as poll:
        poll.send_body()
        await anyio.wait_all_tasks_blocked()
        poll.disconnect()
        await poll.finished.wait()
    assert not client.app.waits._scopes
    clock.now += 10
    assert (await client.head("x")).status == 404


async def test_cursors_move_on(impatient: Client, clock: Clock) -> None:
    """Appendix D.5."""
    await impatient.put("x", TEXT)

    async def cursor(sent: str) -> int:
        answer = await impatient.get(f"x?offset=-1&live=long-poll&cursor={sent}")
        return int(answer.headers["stream-cursor"])

    assert await cursor("2991599") == 2991600
    assert await cursor("junk") == 2991600
    assert await cursor("2991600&cursor=2991601") == 2991600
    assert 2991601 <= await cursor("2991600") <= 2991780
    assert 2991701 <= await cursor("2991700") <= 2991880
    clock.now += 20
    assert await cursor("2991600") == 2991601
