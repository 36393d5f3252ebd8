"""Sessions opened from a stream's handle: what they inherit, how they reach the server, and when they cannot."""

import inspect
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from durable_streams import InvalidArgumentError
from durable_streams.s2 import (
    S2,
    AppendSession,
    BasinConfig,
    Producer,
    S2Retry,
    S2ServerError,
    S2SessionClosedError,
    Stream,
    StreamConfig,
)
from durable_streams.testing import S2Fake, S2Fault

pytestmark = pytest.mark.anyio

BASIN = "my-basin-01"


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[S2Fake, S2]]:
    async with S2Fake() as fake, S2("ignored", endpoints=fake.url, **options) as s2:
        await s2.basins.create(BASIN, config=BasinConfig(create_stream_on_append=True, create_stream_on_read=True))
        yield fake, s2


async def numbers(stream: Stream, **options: Any) -> list[int]:
    async with stream.read_session(wait=0, **options) as session:
        return [record.seq_num async for record in session.iter_records()]


@pytest.mark.parametrize(
    ("transport", "content_type", "accept"),
    [("s2s", "s2s/proto", None), ("http", None, "text/event-stream"), ("auto", "s2s/proto", None)],
)
async def test_sessions_go_the_way_that_was_chosen(transport: Any, content_type: Any, accept: Any) -> None:
    async with serving() as (fake, s2):
        stream = s2.basin(BASIN).stream("s", transport=transport)
        async with stream.append_session() as session:
            for _ in range(3):
                await session.submit(["a", "b"])
        assert await numbers(stream) == [0, 1, 2, 3, 4, 5]

        read = fake.requests[-1]
        assert (read.headers.get("content-type"), read.headers.get("accept")) == (content_type, accept)
        appends = [
            request for request in fake.requests if request.path.endswith("/records") and request.method == "POST"
        ]
        assert len(appends) == (3 if transport == "http" else 1)


async def test_a_producer_from_the_handle_appends_in_order() -> None:
    async with serving() as (_, s2):
        stream = s2.basin(BASIN).stream("s")
        async with stream.producer(match_seq_num=0, max_batch_records=7) as producer:
            tickets = [await producer.submit(f"{n}") for n in range(20)]
        assert [(await ticket).seq_num for ticket in tickets] == list(range(20))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_handles_of_sessions_may_be_made_before_there_is_a_loop(backend: str) -> None:
    stream = S2("ignored", endpoints="http://127.0.0.1:1").basin(BASIN).stream("s")
    session, producer, reader = stream.append_session(), stream.producer(), stream.read_session()

    async def end() -> None:
        await session.aclose()
        await producer.aclose()
        await reader.aclose()
        with pytest.raises(S2SessionClosedError):
            await session.__aenter__()

    anyio.run(end, backend=backend)
    assert session.closed
    assert "failed" in repr(producer)  # it was never entered: whoever submits is told that it was closed
    assert "closed" in repr(reader)


async def test_auto_is_plain_http_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = S2("ignored", endpoints="http://far.example:8080").basin(BASIN).stream("s")

    assert stream._context.uses_s2s
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert not stream._context.uses_s2s


async def test_auto_is_plain_http_without_hpack(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = S2("ignored", endpoints="http://localhost:8080").basin(BASIN).stream("s")
    monkeypatch.setattr("durable_streams.s2._context.has_hpack", lambda: False)

    assert not stream._context.uses_s2s


async def test_s2s_without_hpack_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hpack", None)
    for name in [name for name in sys.modules if name.startswith("durable_streams.s2._h2")]:
        monkeypatch.delitem(sys.modules, name)

    async with serving() as (_, s2):
        with pytest.raises(ImportError, match=r"durable-streams-anyio\[s2\]"):
            await s2._service.pool()


async def test_key_basin_and_configuration_are_sent_when_a_session_connects() -> None:
    config = StreamConfig(retention_policy=77)
    async with serving() as (fake, s2):
        stream = s2.basin(BASIN).stream("made/here", encryption_key=bytes(32))
        async with stream.append_session(stream_config=config) as session:
            await (await session.submit("x"))
        assert await numbers(stream, stream_config=config) == [0]

        for request in fake.requests[-2:]:
            assert request.headers["s2-basin"] == BASIN
            assert request.headers["s2-encryption-key"] == "A" * 43 + "="
            assert request.headers["s2-stream-config"] == '{"retention_policy":{"age":77}}'
        assert (await s2.basin(BASIN).streams.get_config("made/here")).retention_policy == 77


async def test_sessions_over_http2_need_a_running_client() -> None:
    async with S2Fake() as fake:
        s2 = S2("ignored", endpoints=fake.url, retry=S2Retry(max_attempts=1))
        stream = s2.basin(BASIN).stream("s", transport="s2s")
        with pytest.raises(RuntimeError, match="use `async with S2"):
            await numbers(stream)
        await s2.aclose()


async def test_a_client_may_run_in_a_task_group_of_the_callers() -> None:
    async with S2Fake() as fake, anyio.create_task_group() as group:
        s2 = S2("ignored", endpoints=fake.url)
        await s2.start(group)
        await s2.basins.create(BASIN, config=BasinConfig(create_stream_on_append=True))
        stream = s2.basin(BASIN).stream("s")
        async with stream.append_session() as session:
            await (await session.submit("x"))
        assert await numbers(stream) == [0]
        await s2.aclose()  # or the group would not end


async def test_leaving_the_client_ends_what_is_open() -> None:
    async with S2Fake() as fake:
        with pytest.raises(S2SessionClosedError):
            async with S2("ignored", endpoints=fake.url) as s2:
                await s2.basins.create(BASIN, config=BasinConfig(create_stream_on_read=True))
                session = s2.basin(BASIN).stream("s").read_session(tail_offset=0)
                async with anyio.create_task_group() as group:

                    async def leave() -> None:
                        await session.wait_caught_up()
                        await s2.aclose()

                    group.start_soon(leave)
                    try:
                        await anext(session)
                    except S2SessionClosedError as error:
                        caught = error
                raise caught


async def test_sessions_inherit_the_retry_options() -> None:
    async with serving(retry={"maxAttempts": 7, "appendRetryPolicy": "noSideEffects"}) as (_, s2):
        stream = s2.basin(BASIN).stream("s")

        assert stream.append_session()._core.policy == "no_side_effects"
        assert stream.append_session(retry=S2Retry())._core.policy == "all"


@pytest.mark.parametrize("window", [65_535, 1 << 24])
async def test_a_server_sends_no_further_ahead_than_it_is_allowed(window: int) -> None:
    async with serving(receive_window=window) as (fake, s2):
        stream = s2.basin(BASIN).stream("s")
        for _ in range(4):
            await stream.append(b"x" * 500_000)
        async with stream.read_session(wait=0) as session:
            batch = await anext(session)
            [connection] = [each for each in fake._connections if hasattr(each, "peer_window")]
            assert connection.peer_window == window
            assert len(batch.records) + sum([len(rest.records) async for rest in session]) == 4


@pytest.mark.parametrize(("window", "words"), [(65_534, "at least 65535"), (2**31, "at most 2147483647")])
async def test_a_window_that_http2_has_not_is_refused(window: int, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"receive_window must be {words}"):
        S2("ignored", receive_window=window)


async def test_retry_options_of_a_session_come_in_the_same_forms() -> None:
    told: list[int] = []
    async with serving() as (fake, s2):
        stream = s2.basin(BASIN).stream("s")
        options = {"maxAttempts": 2, "minBaseDelayMillis": 1, "appendRetryPolicy": "noSideEffects"}
        async with stream.append_session(retry=options) as session:
            await session.submit("a")
        fake.faults.script([S2Fault("refuse", status=503, code="unavailable") for _ in range(2)])
        with pytest.raises(S2ServerError):
            async with stream.read_session(
                retry=options, on_retry=lambda details: told.append(details.attempt)
            ) as reader:
                await anext(reader)

    assert len(told) == 1
    assert session._core.policy == "no_side_effects"


async def test_wrong_options_of_sessions_are_refused_at_once() -> None:
    stream = S2("ignored", endpoints="http://localhost:8080").basin(BASIN).stream("s")

    for call in (
        lambda: stream.append_session(max_in_flight_bytes=(1 << 20) - 1),
        lambda: stream.append_session(max_in_flight_batches=0),
        lambda: stream.producer(max_batch_records=1001),
        lambda: stream.producer(linger=-1),
        lambda: stream.read_session(seq_num=0, tail_offset=0),
        lambda: stream.read_session(timestamp=5, until=4),
        lambda: stream.read_session(retry={"attempts": 5}),
        lambda: stream.append_session(retry={"requestTimeoutMillis": 5}),
    ):
        with pytest.raises(InvalidArgumentError):
            call()
    wrong: Any = 5
    for call in (
        lambda: stream.append_session(stream_config=wrong),
        lambda: stream.append_session(read_back=wrong),
        lambda: stream.append_session(retry=wrong),
        lambda: stream.producer(on_retry=wrong),
        lambda: stream.read_session(retry=wrong),
        lambda: stream.read_session(on_gap=wrong),
        lambda: stream.read_session(on_retry=wrong),
        lambda: stream.read_session(unlimited_retries=wrong),
    ):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize(("made", "method"), [(AppendSession, Stream.append_session), (Producer, Stream.producer)])
def test_the_handle_offers_what_the_session_has_with_the_same_defaults(made: Any, method: Any) -> None:
    offered = {name: each.default for name, each in inspect.signature(method).parameters.items()}
    there = {
        name: each.default
        for name, each in inspect.signature(made).parameters.items()
        if each.kind is inspect.Parameter.KEYWORD_ONLY
    }

    assert {name: offered[name] for name in there} == there
