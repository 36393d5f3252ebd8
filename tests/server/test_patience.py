"""The real waiting times, on a clock that jumps: an hour passes in a moment."""

from collections.abc import Awaitable, Callable

import anyio
import pytest
import trio.testing

from durable_streams.server import DurableStreamsApp

from .driver import Client, offset

TEXT = "text/plain"


def on_jumping_clock(test: Callable[[Client], Awaitable[None]]) -> None:
    """Run on trio with a clock that jumps when everybody waits; it is the server's wall clock too."""

    async def run() -> None:
        await test(Client(DurableStreamsApp(clock=lambda: 1_788_264_000.0 + anyio.current_time())))

    clock = trio.testing.MockClock(autojump_threshold=0)
    anyio.run(run, backend="trio", backend_options={"clock": clock})


async def elapsed(action: Callable[[], Awaitable[object]]) -> tuple[float, object]:
    begin = anyio.current_time()
    result = await action()
    return anyio.current_time() - begin, result


def test_a_long_poll_waits_twenty_seconds() -> None:
    async def run(client: Client) -> None:
        await client.put("x", TEXT)
        async with client.open("x?offset=-1&live=long-poll") as poll:
            waited, status = await elapsed(poll.head)
            await poll.rest()
        assert (waited, status) == (20.0, 204)
        assert poll.headers["stream-cursor"] == "2991601"

    on_jumping_clock(run)


def test_events_repeat_every_fifteen_seconds_and_end_after_about_a_minute() -> None:
    async def run(client: Client) -> None:
        await client.put("x", TEXT)
        begin = anyio.current_time()
        times = []
        async with client.open("x?offset=-1&live=sse") as events:
            await events.head()
            while await events.piece():
                times.append(anyio.current_time() - begin)
        assert times == [0.0, 15.0, 30.0, 45.0, 60.0][: len(times)]
        assert 54.0 <= anyio.current_time() - begin <= 66.0

    on_jumping_clock(run)


def test_a_slow_reader_of_events_is_let_go_after_a_minute_too() -> None:
    async def run(client: Client) -> None:
        await client.put("x", TEXT)
        async with client.open("x?offset=-1&live=sse") as events:
            await events.head()
            await anyio.sleep(3600)
            body = await events.rest()
        assert body.count(b"event: control") == 1

    on_jumping_clock(run)


def test_a_gap_is_answered_after_a_quarter_of_a_second() -> None:
    async def run(client: Client) -> None:
        await client.put("x", TEXT)
        stamp = {"producer_id": "p", "producer_epoch": "0", "producer_seq": "1"}
        waited, answer = await elapsed(lambda: client.post("x", b"a", TEXT, **stamp))
        assert waited == 0.25
        assert getattr(answer, "status", None) == 409

    on_jumping_clock(run)


@pytest.mark.parametrize("live", ["long-poll", "sse"])
def test_a_stream_expires_under_its_readers_to_the_second(live: str) -> None:
    async def run(client: Client) -> None:
        await client.put("x", TEXT, stream_expires_at="2026-09-01T12:00:07Z")
        begin = anyio.current_time()
        async with client.open(f"x?offset={offset(0)}&live={live}") as reader:
            status = await reader.head()
            await reader.rest()
        assert anyio.current_time() - begin == pytest.approx(7.0)
        assert status == (404 if live == "long-poll" else 200)

    on_jumping_clock(run)


def test_a_ttl_shorter_than_the_wait_does_not_run_out_under_a_reader() -> None:
    async def run(client: Client) -> None:
        await client.put("x", TEXT, stream_ttl="2")
        async with client.open("x?offset=-1&live=long-poll") as poll:
            assert await poll.head() == 204
            await poll.rest()
        assert (await client.head("x")).status == 200
        await anyio.sleep(1.9)
        assert (await client.head("x")).status == 200
        await anyio.sleep(0.1)
        assert (await client.head("x")).status == 404

    on_jumping_clock(run)
