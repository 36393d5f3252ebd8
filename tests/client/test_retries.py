"""What is repeated, after how long, and when it is given up, on a fake clock (client 5.1 to 5.4, 7.4, 7.5)."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from email.utils import formatdate
from itertools import pairwise
from typing import Any

import anyio
import pytest

from durable_streams import (
    BackoffOptions,
    DurableStream,
    DurableStreamError,
    FetchError,
    IncompleteBodyError,
    NetworkError,
    ParseError,
    RequestTimeoutError,
    RetryDetails,
    SSEResilience,
    StreamNotFoundError,
    stream,
)
from tests.client.answers import EVENTS, JSON, collect, control, data, flags, take
from tests.client.memory import Answer, MemoryTransport, Script, Sent, cut, reset

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fake_clock")]

URL = "http://host/s"


class Ceiling(random.Random):
    """Draws the largest numbers there are, so that a jittered delay is its ceiling."""

    def random(self) -> float:
        return 1.0


def end(body: bytes = b"", offset: str = "1", **rest: Any) -> Answer:
    return Answer(200, flags(offset, closed=True, **rest), [body])


def tail(body: bytes = b"", offset: str = "1", **rest: Any) -> Answer:
    return Answer(200, flags(offset, up_to_date=True, **rest), [body])


def sse(*steps: Any) -> Answer:
    return Answer(200, {"content-type": EVENTS}, steps)


def times(transport: MemoryTransport) -> list[float]:
    """When each request was sent, in seconds after the first."""
    start = transport.sent[0].time
    return [round(sent.time - start, 4) for sent in transport.sent]


def session(transport: MemoryTransport, **options: Any) -> Any:
    return stream(URL, transport=transport, rng=Ceiling(), **options)


# -- Delays ----------------------------------------------------------------------------------------------------------


async def test_delays_grow_from_the_initial_one_to_the_largest() -> None:
    transport = MemoryTransport(*[Answer(500)] * 6, end())

    backoff = BackoffOptions(initial_delay=0.1, multiplier=2.0, max_delay=0.5)
    async with session(transport, backoff_options=backoff) as response:
        await response.read()

    assert times(transport) == [0, 0.1, 0.3, 0.7, 1.2, 1.7, 2.2]


async def test_the_defaults_are_those_of_the_specification() -> None:
    transport = MemoryTransport(*[Answer(500)] * 3, end())

    async with session(transport) as response:
        await response.read()

    assert times(transport) == [0, 0.1, 0.23, 0.399]
    assert BackoffOptions() == BackoffOptions(0.1, 60.0, 1.3, None, 60.0, None)


async def test_delays_are_drawn_from_zero_to_their_ceiling() -> None:
    class Zero(random.Random):
        def random(self) -> float:
            return 0.0

    told: list[RetryDetails] = []
    transport = MemoryTransport(*[Answer(500)] * 5, end(), Answer(500), Answer(204))

    backoff = BackoffOptions(on_failed_attempt=told.append)
    async with stream(URL, transport=transport, rng=Zero(), backoff_options=backoff) as response:
        await response.read()
        assert response.statistics().retries == 5
    await DurableStream(URL, transport=transport, rng=Zero(), backoff_options=backoff).delete()

    assert times(transport) == [0] * 8
    assert [details.attempt for details in told] == [1, 2, 3, 4, 5, 1]  # no wait, but failures all the same


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 507, 599])
async def test_retryable_statuses_are_repeated_on_reads(status: int) -> None:
    transport = MemoryTransport(Answer(status), end(b"x"))

    async with session(transport, live=False) as response:
        assert await response.read() == b"x"

    assert len(transport.sent) == 2


@pytest.mark.parametrize("status", [201, 301, 304, 400, 401, 403, 404, 409, 410, 413, 418, 501, 505])
async def test_all_other_statuses_are_final_at_once(status: int) -> None:
    transport = MemoryTransport(Answer(status))

    with pytest.raises(DurableStreamError) as caught:
        await session(transport)

    assert caught.value.status == status
    assert len(transport.sent) == 1


@pytest.mark.parametrize(
    ("retry_after", "waited"),
    [
        ("5", 5),
        (" 7 ", 7),
        ("0", 0.1),  # a floor below the jittered delay
        ("3601", 3600),
        ("99999999999999999999", 3600),
        ("soon", 0.1),
        ("-5", 0.1),
        ("1.5", 0.1),
        ("", 0.1),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0.1),
    ],
)
@pytest.mark.parametrize("status", [429, 503, 500])
async def test_retry_after_is_a_floor(retry_after: str, waited: float, status: int) -> None:
    transport = MemoryTransport(Answer(status, {"retry-after": retry_after}), end())

    backoff = BackoffOptions(max_elapsed=None)
    async with session(transport, backoff_options=backoff) as response:
        await response.read()

    assert times(transport) == [0, waited]


async def test_retry_after_may_be_a_date() -> None:
    transport = MemoryTransport(Answer(503, {"retry-after": formatdate(time.time() + 1000, usegmt=True)}), end())

    backoff = BackoffOptions(max_elapsed=None)
    async with session(transport, backoff_options=backoff) as response:
        await response.read()

    assert 900 < times(transport)[1] <= 1000  # the date is on the wall clock


# -- Giving up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_max_retries_counts_retries_and_not_requests(retries: int) -> None:
    transport = MemoryTransport(handler=lambda sent: reset())

    with pytest.raises(NetworkError):
        await session(transport, backoff_options=BackoffOptions(max_retries=retries))

    assert len(transport.sent) == retries + 1


async def test_a_success_starts_the_count_anew() -> None:
    transport = MemoryTransport(Answer(500), Answer(200, flags("1")), Answer(500), Answer(500), end())

    with pytest.raises(DurableStreamError):
        async with session(transport, live=False, backoff_options=BackoffOptions(max_retries=1)) as response:
            await response.read()

    assert times(transport) == [0, 0.1, 0.1, 0.2]


@pytest.mark.parametrize(
    ("failure", "error", "code"),
    [
        (Answer(503), DurableStreamError, "BUSY"),
        (Answer(429), DurableStreamError, "RATE_LIMITED"),
        (Answer(500), FetchError, "UNKNOWN"),
        (reset("connect"), NetworkError, "NETWORK_ERROR"),
    ],
)
async def test_the_first_answer_is_given_up_after_a_minute(failure: Script, error: type[Exception], code: str) -> None:
    transport = MemoryTransport(handler=lambda sent: failure)

    with pytest.raises(error) as caught:
        await session(transport)

    assert caught.value.code == code  # type: ignore[attr-defined]
    assert 30 < times(transport)[-1] <= 60


async def test_a_retry_after_beyond_the_limit_is_not_waited_for() -> None:
    transport = MemoryTransport(Answer(503, {"retry-after": "61"}))

    start = anyio.current_time()
    with pytest.raises(DurableStreamError) as caught:
        await session(transport)

    assert anyio.current_time() == pytest.approx(start, abs=0.01)
    assert caught.value.retry_after == 61


async def test_every_operation_of_a_handle_is_given_up_after_a_minute() -> None:
    calls: list[Callable[[DurableStream], Any]] = [
        lambda handle: handle.create(),
        lambda handle: handle.connect(),
        lambda handle: handle.head(),
        lambda handle: handle.append(b"x", content_type="text/plain"),
        lambda handle: handle.append(b"x"),
        lambda handle: handle.close_stream(),
        lambda handle: handle.delete(),
    ]
    for call in calls:
        transport = MemoryTransport(handler=lambda sent: Answer(503))
        with pytest.raises(DurableStreamError) as caught:
            await call(DurableStream(URL, transport=transport, rng=Ceiling()))
        assert caught.value.code == "BUSY"
        assert 30 < times(transport)[-1] <= 60


async def test_the_minute_begins_anew_with_each_success() -> None:
    successes = [0.0]

    def answer(sent: Sent) -> Script:
        if sent.time - successes[-1] < 45:
            return Answer(503)
        successes.append(sent.time)
        last = len(successes) == 5
        return Answer(200, flags(f"{len(successes)}", closed=last), [b"x"])

    transport = MemoryTransport(handler=answer)
    async with session(transport, live=False) as response:
        assert await response.read() == b"xxxx"

    assert times(transport)[-1] > 3 * 45


async def test_catching_up_is_given_up_after_a_minute_without_progress() -> None:
    transport = MemoryTransport(Answer(200, flags("1")), handler=lambda sent: reset())

    with pytest.raises(NetworkError):
        async with session(transport, live=False) as response:
            await response.read()

    assert 30 < times(transport)[-1] <= 60


@pytest.mark.parametrize("live", ["long-poll", "sse"])
@pytest.mark.parametrize("failure", [Answer(503), reset("connect"), Answer(429, {"retry-after": "3000"})])
async def test_a_session_that_follows_never_gives_up(live: Any, failure: Script) -> None:
    hours = 12

    def answer(sent: Any) -> Script:
        if sent.time - transport.sent[0].time < hours * 3600:
            return failure
        return (
            end(b"[2]", "2", content_type=JSON)
            if live == "long-poll"
            else sse(data("[2]"), control("2", streamClosed=True))
        )

    transport = MemoryTransport(tail(b"[1]", content_type=JSON), handler=answer)
    async with session(transport, live=live) as response:
        assert await collect(response) == [1, 2]

    assert times(transport)[-1] >= hours * 3600
    assert transport.open_exchanges == 0


async def test_cancelling_ends_a_wait_at_once() -> None:
    transport = MemoryTransport(tail(b"a"), Answer(503, {"retry-after": "3600"}), end(b"b", "2"))

    start = anyio.current_time()
    async with session(transport, live="long-poll") as response:
        pieces = response.iter_bytes()
        assert await anext(pieces) == b"a"
        with anyio.move_on_after(10):
            await anext(pieces)
        assert anyio.current_time() - start == pytest.approx(10, abs=0.01)
        assert await anext(pieces) == b"b"  # the wait goes on where it was

    assert times(transport) == [0, 0, 3600]


async def test_the_session_s_cancel_ends_a_wait_at_once() -> None:
    transport = MemoryTransport(tail(b"a"), Answer(503, {"retry-after": "3600"}))

    start = anyio.current_time()
    async with session(transport, live="long-poll") as response, anyio.create_task_group() as tasks:
        tasks.start_soon(collect, response.iter_bytes())
        await anyio.sleep(10)
        response.cancel()

    assert anyio.current_time() - start == pytest.approx(10, abs=0.01)


# -- Telling ---------------------------------------------------------------------------------------------------------


async def test_the_third_failure_in_a_row_is_a_warning_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    transport = MemoryTransport(*[Answer(503)] * 5, end())

    with caplog.at_level(logging.DEBUG, "durable_streams"):
        async with stream(
            "http://user:hunter2@host/s?token=hunter2", headers={"x": "hunter2"}, transport=transport
        ) as response:
            await response.read()

    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.name for record in warnings] == ["durable_streams.reader"]
    assert "attempt=3" in warnings[0].getMessage()
    assert "http://host/s?token=..." in warnings[0].getMessage()
    assert "hunter2" not in caplog.text


async def test_each_failure_that_is_repeated_is_told_to_the_hook() -> None:
    told: list[RetryDetails] = []
    backoff = BackoffOptions(max_retries=2, on_failed_attempt=told.append)
    transport = MemoryTransport(Answer(500), reset(), Answer(502))

    with pytest.raises(FetchError):
        await session(transport, backoff_options=backoff)

    assert [(details.attempt, round(details.delay, 3)) for details in told] == [(1, 0.1), (2, 0.13)]
    assert [type(details.error) for details in told] == [FetchError, NetworkError]


async def test_an_exception_of_the_hook_is_the_callers() -> None:
    def hook(details: RetryDetails) -> None:
        raise LookupError

    backoff = BackoffOptions(on_failed_attempt=hook)
    with pytest.raises(LookupError):
        await session(MemoryTransport(Answer(500)), backoff_options=backoff)
    with pytest.raises(LookupError):
        await DurableStream(URL, backoff_options=backoff, transport=MemoryTransport(Answer(500))).head()


async def test_a_stale_connection_is_repeated_at_once_and_neither_counted_nor_told() -> None:
    told: list[RetryDetails] = []
    backoff = BackoffOptions(max_retries=0, on_failed_attempt=told.append)
    stale = NetworkError("the server hung up", phase="sent", reused=True)
    transport = MemoryTransport(stale, Answer(200, flags("1")), stale, end(b"", "2"), stale, Answer(204), stale, stale)

    async with session(transport, live=False, backoff_options=backoff) as response:
        await response.read()
        assert response.statistics().retries == 0
    handle = DurableStream(URL, backoff_options=backoff, transport=transport, rng=Ceiling())
    await handle.delete()
    with pytest.raises(NetworkError):
        await handle.head()

    assert times(transport) == [0] * 8
    assert told == []


async def test_an_append_on_a_stale_connection_is_ambiguous_and_not_repeated() -> None:
    stale = NetworkError("the server hung up", phase="sent", reused=True)
    transport = MemoryTransport(stale)

    with pytest.raises(NetworkError) as caught:
        await DurableStream(URL, content_type="text/plain", transport=transport).append(b"x")

    assert caught.value.maybe_applied
    assert len(transport.sent) == 1


# -- Bodies that break -----------------------------------------------------------------------------------------------


async def test_a_page_that_breaks_is_read_again_without_duplicates() -> None:
    transport = MemoryTransport(
        Answer(200, flags("1"), [b"a"]),
        Answer(200, flags("2"), [b"b", cut()]),
        Answer(200, flags("2"), [b"b", b"c", reset("body")]),
        end(b"bcd", "3"),
    )

    async with session(transport, live=False) as response:
        assert await collect(response.iter_bytes()) == [b"a", b"bcd"]

    assert [sent.query["offset"] for sent in transport.sent] == ["-1", "1", "1", "1"]
    assert times(transport) == [0, 0, 0.1, 0.23]


async def test_a_body_that_breaks_for_ever_is_an_incomplete_body() -> None:
    transport = MemoryTransport(handler=lambda sent: Answer(200, flags("1"), [b"a", cut()]))

    with pytest.raises(IncompleteBodyError) as caught:
        async with session(transport, live=False) as response:
            await response.read()

    assert caught.value.code == "INCOMPLETE_BODY"
    assert times(transport)[-1] > 30


# -- Silence ---------------------------------------------------------------------------------------------------------


async def test_time_limits_follow_the_kind_of_request() -> None:
    transport = MemoryTransport(
        tail(b"[1]", content_type=JSON),
        sse(control("1", upToDate=True), 100.0),
        sse(control("1", streamClosed=True)),
        handler=lambda sent: Answer(204 if sent.method != "GET" else 200, flags("1", closed=True)),
    )
    async with session(transport) as response:
        await collect(response)
    handle = DurableStream(URL, content_type="text/plain", transport=transport)
    await handle.head()
    await handle.append(b"x" * (64 * 1024 * 10))
    await handle.append_stream([b"x"])

    limits = [(sent.timeouts.connect, sent.timeouts.write, sent.timeouts.read) for sent in transport.sent]
    assert limits == [
        (10, 30, 30),
        (10, 30, 90),
        (10, 30, 90),
        (10, 30, 30),
        (10, 40, 30),
        (10, None, 30),
    ]


async def test_a_silent_long_poll_is_asked_again_from_the_last_delivered_offset() -> None:
    transport = MemoryTransport(
        tail(b"a"),
        Answer(204, flags("1"), before=[200.0]),
        Answer(200, flags("2"), [b"b", 200.0]),
        end(b"b", "2"),
    )

    async with session(transport, live="long-poll") as response:
        assert await collect(response.iter_bytes()) == [b"a", b"b"]

    assert [sent.query["offset"] for sent in transport.sent] == ["-1", "1", "1", "1"]
    assert times(transport) == [0, 0, 90.1, 180.23]


async def test_a_silent_sse_connection_is_replaced() -> None:
    transport = MemoryTransport(
        tail(b"[1]", content_type=JSON),
        sse(data("[2]"), control("2"), 200.0),
        sse(data("[3]"), control("3", streamClosed=True)),
    )

    async with session(transport) as response:
        assert await collect(response) == [1, 2, 3]

    assert [sent.query["offset"] for sent in transport.sent] == ["-1", "1", "2"]
    assert times(transport) == [0, 0, 90]


async def test_a_silent_catch_up_is_a_timeout_in_both_families() -> None:
    transport = MemoryTransport(handler=lambda sent: Answer(200, before=[200.0]))

    with pytest.raises(RequestTimeoutError) as caught:
        await session(transport)

    assert isinstance(caught.value, TimeoutError)
    assert caught.value.code == "TIMEOUT"
    assert times(transport) == [0, 30.1]  # 60 seconds leave room for two


# -- Long-poll -------------------------------------------------------------------------------------------------------


async def test_an_idle_204_is_no_reason_to_wait() -> None:
    transport = MemoryTransport(
        tail(b"a"), *[Answer(204, flags("1", up_to_date=True), before=[20.0])] * 20, end(b"b", "2")
    )

    async with session(transport, live="long-poll") as response:
        assert await collect(response.iter_bytes()) == [b"a", b"b"]

    assert times(transport) == [0, *(20.0 * n for n in range(21))]


@pytest.mark.parametrize("status", [200, 204])
async def test_fruitless_answers_are_slowed_down_and_logged_once(status: int, caplog: pytest.LogCaptureFixture) -> None:
    transport = MemoryTransport(tail(b"a"), *[Answer(status, flags("1", up_to_date=True))] * 20, end(b"b", "2"))

    async with session(transport, live="long-poll") as response:
        assert await collect(response.iter_bytes()) == [b"a", b"b"]

    seen = times(transport)
    assert seen[:6] == [0] * 6
    assert all(later - earlier > 0.199 for earlier, later in pairwise(seen[6:]))
    for start in seen:
        assert sum(1 for moment in seen if start <= moment < start + 1) <= 10
    assert [record.levelname for record in caplog.records if "slowing down" in record.getMessage()] == ["WARNING"]


async def test_a_server_that_closes_costs_one_more_request_at_most() -> None:
    transport = MemoryTransport(tail(b"a"), Answer(204, flags("1", closed=True)))

    async with session(transport, live="long-poll") as response:
        assert await collect(response.iter_bytes()) == [b"a"]
        assert response.stream_closed

    assert len(transport.sent) == 2


async def test_a_stale_answer_is_ignored() -> None:
    transport = MemoryTransport(
        Answer(200, flags("5", up_to_date=True), [b"a"]),
        Answer(200, flags("3", up_to_date=True), [b"old"]),
        end(b"b", "6"),
    )

    async with session(transport, live="long-poll", offset="4") as response:
        assert await collect(response.iter_bytes()) == [b"a", b"b"]

    assert [sent.query["offset"] for sent in transport.sent] == ["4", "5", "5"]


# -- Server-sent events ----------------------------------------------------------------------------------------------


async def test_a_healthy_connection_is_followed_by_another_at_once() -> None:
    healthy = [sse(1.0)] * 10
    transport = MemoryTransport(tail(b"[1]", content_type=JSON), *healthy, sse(control("1", streamClosed=True)))

    async with session(transport) as response:
        assert await collect(response) == [1]

    assert times(transport) == [0, *(1.0 * n for n in range(11))]


async def test_three_short_connections_lead_to_long_poll_for_good_without_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transport = MemoryTransport(
        tail(b"[1]", content_type=JSON),
        sse(0.5),
        sse(data("[9]"), 0.5),  # an incomplete batch is no progress
        sse(0.5, reset("body")),
        tail(b"[2]", "2", content_type=JSON),
        tail(b"[3]", "3", content_type=JSON),
        end(b"[4]", "4", content_type=JSON),
    )

    async with session(transport) as response:
        assert await collect(response) == [1, 2, 3, 4]

    assert [sent.query.get("live") for sent in transport.sent] == [None, *["sse"] * 3, *["long-poll"] * 3]
    assert times(transport) == [0, 0, 0.7, 1.6, 2.1, 2.1, 2.1]  # pauses of 0.2 and 0.4 between them
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 1
    assert "prox" in messages[0]


async def test_short_connections_can_be_tuned_and_kept_quiet(caplog: pytest.LogCaptureFixture) -> None:
    resilience = SSEResilience(
        min_connection_duration=10,
        max_short_connections=2,
        backoff_base_delay=3,
        backoff_max_delay=4,
        log_warnings=False,
    )
    transport = MemoryTransport(
        tail(b"[1]", content_type=JSON), sse(9.0), sse(9.0), end(b"[2]", "2", content_type=JSON)
    )

    async with session(transport, sse_resilience=resilience) as response:
        assert await collect(response) == [1, 2]

    assert times(transport) == [0, 0, 13, 22]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_short_connection_with_data_is_progress() -> None:
    short = [sse(data(f"[{n}]"), control(f"{n:02}")) for n in range(2, 12)]
    transport = MemoryTransport(tail(b"[1]", "01", content_type=JSON), *short, sse(control("11", streamClosed=True)))

    async with session(transport) as response:
        assert await collect(response) == list(range(1, 12))

    assert {sent.query.get("live") for sent in transport.sent[1:]} == {"sse"}
    assert times(transport) == [0] * 12


async def test_busy_answers_on_reconnecting_are_waited_for_and_not_counted_as_short() -> None:
    transport = MemoryTransport(
        tail(b"[1]", content_type=JSON),
        sse(1.0),
        *[Answer(503, {"retry-after": "5"})] * 5,
        sse(data("[2]"), control("2", streamClosed=True)),
    )

    async with session(transport) as response:
        assert await collect(response) == [1, 2]

    assert {sent.query.get("live") for sent in transport.sent[1:]} == {"sse"}
    assert times(transport) == [0, 0, 1, 6, 11, 16, 21, 26]


async def test_a_stream_that_is_deleted_while_it_is_followed_is_an_error() -> None:
    transport = MemoryTransport(tail(b"[1]", content_type=JSON), sse(1.0), Answer(404))

    async with session(transport) as response:
        items = response.iter_json()
        assert await anext(items) == 1
        with pytest.raises(StreamNotFoundError):
            await anext(items)
        with pytest.raises(StreamNotFoundError):
            await response.wait_closed()


async def test_an_event_beyond_max_response_bytes_is_an_error() -> None:
    transport = MemoryTransport(
        tail(b"[1]", content_type=JSON),
        sse(*[data('["' + "x" * 50 + '"]') + control(str(n)) for n in range(2, 6)], data("[" + "1," * 100 + "1]")),
    )

    async with session(transport, max_response_bytes=150) as response:
        items = response.iter_json()
        assert len(await take(items, 5)) == 5  # the limit is not for a whole connection
        with pytest.raises(ParseError):
            await anext(items)


@pytest.mark.parametrize("live", ["sse", "long-poll"])
@pytest.mark.parametrize("wait", [False, True], ids=["sync", "async"])
async def test_a_token_that_expires_after_an_hour_is_renewed(live: Any, wait: bool) -> None:
    issued = -1.0
    count = 0
    attempts: list[int] = []

    def token() -> str:
        nonlocal issued
        issued = anyio.current_time()
        return f"issued-{issued}"

    def renew(error: Exception) -> Any:
        assert isinstance(error, DurableStreamError)
        attempts.append(error.attempt)
        return later() if wait else {"headers": {"authorization": token()}}

    async def later() -> Any:
        await anyio.sleep(1)
        return {"headers": {"authorization": token()}}

    def answer(sent: Sent) -> Script:
        nonlocal count
        if sent.headers["authorization"] != f"issued-{issued}" or anyio.current_time() - issued > 3600:
            return Answer(401)
        count += 1
        if count == 1:
            return tail(b"[1]", "001", content_type=JSON)
        offset, closed = f"{count:03}", count == 400
        if live == "sse":
            last: dict[str, Any] = {"streamClosed": True} if closed else {}
            return sse(60.0, data(f"[{count}]"), control(offset, **last))
        headers = flags(offset, up_to_date=True, closed=closed, content_type=JSON)
        return Answer(200, headers, [f"[{count}]".encode()], before=[30.0])

    transport = MemoryTransport(handler=answer)
    async with session(transport, live=live, headers={"authorization": token()}, on_error=renew) as response:
        assert await collect(response) == list(range(1, 401))

    assert attempts == [1] * len(attempts)
    assert len(attempts) >= 3
    assert transport.open_exchanges == 0
