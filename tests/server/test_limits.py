"""How much one server takes on: requests, streams, readers (429 and 503 with `Retry-After`)."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from durable_streams.server import CreateRequest, DurableStreamsApp, Fork, MemoryStore, SQLiteStore, StreamConfig
from durable_streams.server.stores.sqlite_ledger import Ledger

from .driver import ROOT, Client, Clock, connect, make_client

pytestmark = pytest.mark.anyio
TEXT = "text/plain"
LIMITS = ("max_requests", "max_streams", "max_readers_per_stream")


@pytest.mark.parametrize("name", LIMITS)
async def test_a_limit_is_at_least_one(name: str) -> None:
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            make_client(**{name: value})


async def test_a_limit_of_streams_needs_a_store_that_counts() -> None:
    class Uncounted:
        """Some other store."""

    with pytest.raises(ValueError, match="max_streams needs a store that counts"):
        DurableStreamsApp(Uncounted(), max_streams=1)  # type: ignore[arg-type]


# Requests


async def test_more_requests_than_that_are_told_to_come_back() -> None:
    client = make_client(max_requests=2, long_poll_timeout=3600)
    await client.put("x", TEXT)
    async with (
        client.open("x?offset=now&live=long-poll") as poll,
        client.open("x?offset=now&live=sse") as events,
    ):
        await events.head()
        await anyio.wait_all_tasks_blocked()
        for method in ("GET", "POST", "PUT", "HEAD", "DELETE"):
            answer = await client.call(method, "x")
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["connection"] == "close"
        assert (await client.get("/ready")).status == 200
        assert (await client.get("/health")).status == 200
        assert (await client.call("OPTIONS", "x")).status == 204
        poll.disconnect()
        await poll.finished.wait()
        assert (await client.get("x")).status == 200
        events.disconnect()
    assert client.app.in_progress == 0


async def test_requests_that_fail_or_break_off_are_counted_out() -> None:
    client = make_client(max_requests=1)
    for target in ("missing", "/elsewhere", "x?offset=bad"):
        assert (await client.get(target)).status in (400, 404)
    async with connect(client.app, client.scope("PUT", "x", {"content-length": "10"})) as upload:
        upload.send_body(b"half", more=True)
        await anyio.wait_all_tasks_blocked()
        assert (await client.get("x")).status == 503
        upload.disconnect()
        await upload.finished.wait()
    async with connect(client.app, client.scope("PUT", "x", {"content-length": "10"})):
        await anyio.wait_all_tasks_blocked()  # and then it is cancelled
    assert client.app.in_progress == 0
    assert (await client.put("x", TEXT)).status == 201


# Streams


@pytest.fixture(params=["memory", "sqlite"])
async def limited(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Makes an application with a limit over either store."""
    store: Any = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "store")
    clock = Clock()
    async with store:
        yield Client(DurableStreamsApp(store, max_streams=3, clock=clock)), clock


async def test_one_stream_too_many_is_refused_and_the_others_live_on(limited: tuple[Client, Clock]) -> None:
    client, _ = limited
    for name in ("a", "b", "c"):
        assert (await client.put(name, TEXT)).status == 201
    answer = await client.put("d", TEXT)
    assert answer.status == 429
    assert answer.headers["retry-after"] == "5"
    assert (await client.head("d")).status == 404
    assert (await client.put("a", TEXT)).status == 200
    assert (await client.put("a", "text/html")).status == 409
    assert (await client.post("a", b"abc", TEXT)).status == 204
    assert (await client.put("f", stream_forked_from=f"{ROOT}/a")).status == 429
    assert (await client.delete("b")).status == 204
    assert (await client.put("d", TEXT)).status == 201
    assert (await client.put("e", TEXT)).status == 429


async def test_streams_that_are_kept_for_forks_count_and_expired_ones_do_not(limited: tuple[Client, Clock]) -> None:
    client, clock = limited
    await client.put("source", TEXT, b"abc")
    await client.put("fork", stream_forked_from=f"{ROOT}/source")
    await client.delete("source")
    await client.put("brief", TEXT, stream_ttl="10")
    assert (await client.put("d", TEXT)).status == 429
    assert (await client.put("source", TEXT)).status == 409
    clock.now += 10
    await client.app.store.sweep(clock.now)
    assert (await client.put("d", TEXT)).status == 201
    assert (await client.delete("fork")).status == 204  # and with it goes its source
    assert client.app.store.count_streams() == 1
    assert (await client.put("e", TEXT)).status == 201


async def test_of_many_at_a_time_no_more_get_through_than_there_is_room_for(limited: tuple[Client, Clock]) -> None:
    client, _ = limited
    statuses: list[int] = []

    async def create(number: int) -> None:
        statuses.append((await client.put(f"s{number}", TEXT)).status)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(create, number)
    assert sorted(statuses) == [201] * 3 + [429] * 17
    assert client.app.store.count_streams() == 3


async def test_sqlite_counts_the_same_after_a_restart_and_a_failed_batch(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store")
    async with store:
        client = Client(DurableStreamsApp(store))
        for name in ("a", "b", "c"):
            await client.put(name, TEXT)
        await client.delete("a")

        def create_and_fail(ledger: Ledger) -> None:
            ledger.create(CreateRequest(f"{ROOT}/d", StreamConfig(TEXT)), 0.0)
            ledger.create(CreateRequest(f"{ROOT}/f", StreamConfig(fork=Fork(f"{ROOT}/b"))), 0.0)
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await store._current().writer.submit(create_and_fail)
        assert store.count_streams() == 2
    async with store:
        assert store.count_streams() == 2
        assert store.figures().streams == store.statistics().writer.streams == 2


# Readers


@pytest.mark.parametrize("live", ["sse", "long-poll"])
async def test_a_stream_has_so_many_live_readers_and_each_stream_its_own(live: str) -> None:
    client = make_client(max_readers_per_stream=2)
    await client.put("x", TEXT)
    await client.put("y", TEXT)
    async with client.open("x?offset=now&live=sse") as first, client.open("x?offset=now&live=long-poll") as second:
        await first.head()
        await anyio.wait_all_tasks_blocked()
        answer = await client.get(f"x?offset=-1&live={live}")
        assert answer.status == 429
        assert answer.headers["retry-after"] == "5"
        assert (await client.get("x")).status == 200
        async with client.open(f"y?offset=-1&live={live}"):
            await anyio.wait_all_tasks_blocked()
            assert client.app.readers.open == 3
        first.disconnect()
        await first.finished.wait()
        async with client.open(f"x?offset=-1&live={live}"):
            await anyio.wait_all_tasks_blocked()
            assert client.app.readers.open == 2
        second.disconnect()
        await second.finished.wait()
    assert client.app.readers.open == 0
    assert not client.app.readers._by_stream


async def test_a_new_stream_at_a_path_has_readers_of_its_own() -> None:
    client = make_client(max_readers_per_stream=1)
    await client.put("x", TEXT)
    async with client.open("x?offset=now&live=sse") as old:
        await old.head()
        await client.delete("x")
        await old.rest()
    await client.put("x", TEXT)
    async with client.open("x?offset=now&live=sse") as new:
        assert await new.head() == 200
        new.disconnect()
