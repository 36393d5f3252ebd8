"""What moves a stream's end and what does not, beyond the single requests in `test_writing` (server 12)."""

import anyio
import pytest

from durable_streams.server import MemoryStore

from .driver import Client, Clock, make_client

pytestmark = pytest.mark.anyio
TEXT = "text/plain"
STAMP = {"producer_id": "p", "producer_epoch": "0"}


@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_a_live_reader_renews_when_it_comes_and_when_it_goes(client: Client, clock: Clock, live: str) -> None:
    await client.put("x", TEXT, stream_ttl="10")
    clock.now += 9
    async with client.open(f"x?offset=now&live={live}") as reader:
        await anyio.wait_all_tasks_blocked()
        clock.now += 100
        assert (await client.head("x")).status == 200
        reader.disconnect()
        await reader.finished.wait()
    clock.now += 9.9
    assert (await client.head("x")).status == 200
    clock.now += 0.1
    assert (await client.head("x")).status == 404


async def test_every_form_of_closing_renews_and_so_do_its_repetitions(client: Client, clock: Clock) -> None:
    for name, headers in {"plain": {}, "producer": {**STAMP, "producer_seq": "0"}}.items():
        await client.put(name, TEXT, b"data", stream_ttl="10")
        for _ in range(3):
            clock.now += 8
            assert (await client.post(name, stream_closed="true", **headers)).status == 204
        clock.now += 8
        assert (await client.head(name)).headers["stream-closed"] == "true"


async def test_a_duplicate_renews_and_a_refused_append_does_not(client: Client, clock: Clock) -> None:
    await client.put("x", TEXT, stream_ttl="10")
    await client.post("x", b"a", TEXT, **STAMP, producer_seq="0")
    clock.now += 8
    assert (await client.post("x", b"a", TEXT, **STAMP, producer_seq="0")).status == 204
    clock.now += 8
    assert (await client.post("x", b"a", TEXT, **STAMP, producer_seq="7")).status == 409
    clock.now += 2
    assert (await client.head("x")).status == 404


async def test_forking_renews_neither_the_source_nor_a_fork_that_is_there(client: Client, clock: Clock) -> None:
    await client.put("source", TEXT, b"abc", stream_ttl="10")
    await client.put("x", None, stream_forked_from="/v1/stream/source")
    clock.now += 9
    assert (await client.put("x", None, stream_forked_from="/v1/stream/source")).status == 200
    assert (await client.put("y", None, stream_forked_from="/v1/stream/source")).status == 201
    clock.now += 1
    assert (await client.head("x")).status == 404
    assert (await client.head("source")).status == 410
    assert (await client.head("y")).status == 200


async def test_an_inherited_window_counts_from_the_fork(client: Client, clock: Clock) -> None:
    await client.put("source", TEXT, b"abc", stream_ttl="10")
    clock.now += 9
    await client.put("x", None, stream_forked_from="/v1/stream/source")
    head = await client.head("x")
    assert head.headers["stream-ttl"] == "10"
    clock.now += 9.9
    assert (await client.head("x")).status == 200
    clock.now += 0.1
    assert (await client.head("x")).status == 404


async def test_an_inherited_expiry_time_is_given_back_as_the_source_had_it(client: Client, clock: Clock) -> None:
    text = "2026-09-01T14:00:10.50+02:00"
    await client.put("source", TEXT, b"abc", stream_expires_at=text)
    await client.put("x", None, stream_forked_from="/v1/stream/source")
    await client.put("y", None, stream_forked_from="/v1/stream/source", stream_expires_at="2099-01-01T00:00:00Z")
    assert (await client.head("x")).headers["stream-expires-at"] == text
    clock.now += 10.5
    assert (await client.head("x")).status == 404
    assert (await client.head("source")).status == 410
    assert (await client.head("y")).status == 200


async def test_a_fork_that_is_born_expired_is_created_and_holds_nothing(client: Client) -> None:
    await client.put("source", TEXT, b"abc")
    for headers in ({"stream_ttl": "0"}, {"stream_expires_at": "2001-01-01T00:00:00Z"}):
        made = await client.put("x", None, b"d", stream_forked_from="/v1/stream/source", **headers)
        assert made.status == 201
        assert (await client.head("x")).status == 404
    assert (await client.delete("source")).status == 204
    assert (await client.head("source")).status == 404


async def test_the_sweeper_removes_chains_that_nobody_asks_for(clock: Clock) -> None:
    store = MemoryStore()
    client = make_client(store=store, clock=clock)
    await client.put("0", TEXT, b"abc", stream_ttl="10")
    for number in range(3):
        await client.put(f"{number + 1}", None, stream_forked_from=f"/v1/stream/{number}", stream_ttl=f"{20 - number}")
    await client.delete("2")
    clock.now += 18
    await store.sweep(clock())
    assert repr(store) == "<MemoryStore with 2 streams>"
    assert (await client.head("1")).status == 200
    clock.now += 2
    await store.sweep(clock())
    assert repr(store) == "<MemoryStore with 0 streams>"
