"""The transport that fails on purpose."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import anyio
import pytest

from durable_streams import (
    AlreadyClosedError,
    ASGITransport,
    IncompleteBodyError,
    NetworkError,
    Timeouts,
    open_transport,
)
from durable_streams.testing import Fault, FaultTransport, RequestFacts
from tests.scripted import Reply, ScriptedServer
from tests.transport.exchanges import fetch, open_

pytestmark = pytest.mark.anyio

Message = MutableMapping[str, Any]
URL = "http://test"


class App:
    """Answers every request with 100 bytes and remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        self.seen.append((scope["method"], scope["path"]))
        headers = [(b"content-length", b"100")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"0123456789" * 10})


async def outcome(transport: FaultTransport, path: str, method: str = "POST") -> str:
    """What came of one request, in a word or two."""
    try:
        status, body = await fetch(transport, URL + path, method)
    except NetworkError as error:
        return f"{error.phase} {str(error).rpartition(' ')[2]}"
    return f"{status} {len(body)}"


@pytest.mark.parametrize(
    ("kind", "expected", "seen"),
    [
        ("refuse", "connect refuse", 0),
        ("reset_before", "sent reset_before", 0),
        ("status_5xx", "503 25", 0),
        ("reset_after", "sent reset_after", 1),
        ("duplicate", "200 100", 2),
        ("cut_body", "body cut_body", 1),
        ("delay", "200 100", 1),
        ("reorder", "200 100", 1),
    ],
)
async def test_each_fault_does_what_its_name_says_once(kind: Any, expected: str, seen: int) -> None:
    app = App()
    transport = FaultTransport(ASGITransport(app), seed=0, max_delay=0.01)
    transport.script([kind])

    assert await outcome(transport, "/1") == expected
    assert app.seen == [("POST", "/1")] * seen
    assert await outcome(transport, "/2") == "200 100"
    assert [(fault.kind, fault.number, fault.method, fault.url) for fault in transport.log] == [
        (kind, 1, "POST", "http://test/1")
    ]
    assert transport.statistics().sent == seen + 1
    await transport.aclose()


async def test_a_script_waits_for_the_method_it_means() -> None:
    app = App()
    transport = FaultTransport(ASGITransport(app), seed=0)
    transport.script([Fault("reset_after", method="POST"), Fault("status_5xx", status=502), "refuse"])
    assert transport.statistics().scripted == 3

    got = [
        await outcome(transport, f"/{number}", method) for number, method in enumerate(["GET", "GET", "POST", "GET"])
    ]

    assert got == ["502 25", "connect refuse", "sent reset_after", "200 100"]
    assert transport.statistics().scripted == 0
    await transport.aclose()


@pytest.mark.parametrize("cut_at", [0, 1, 99])
async def test_a_body_is_cut_after_exactly_so_many_bytes(cut_at: int) -> None:
    transport = FaultTransport(ASGITransport(App()), seed=0)
    transport.script([Fault("cut_body", cut_at=cut_at)])
    exchange = await open_(transport, URL)
    got = b""

    with pytest.raises(IncompleteBodyError) as raised:
        while piece := await exchange.receive():
            got += piece

    assert got == (b"0123456789" * 10)[:cut_at]
    assert raised.value.phase == "body"
    await exchange.aclose()
    await transport.aclose()


async def test_a_body_that_ends_before_its_cut_is_whole_and_no_fault_is_noted() -> None:
    transport = FaultTransport(ASGITransport(App()), seed=0)
    transport.script([Fault("cut_body", cut_at=100)])

    assert await outcome(transport, "/") == "200 100"
    assert transport.log == []
    await transport.aclose()


RATES = {
    "refuse": 0.1,
    "reset_before": 0.1,
    "reset_after": 0.1,
    "cut_body": 0.1,
    "status_5xx": 0.1,
    "duplicate": 0.1,
    "delay": 0.2,
    "reorder": 0.1,
}


async def run(seed: int | random.Random, **rates: float) -> tuple[list[str], list[Fault]]:
    transport = FaultTransport(ASGITransport(App()), seed=seed, max_delay=0.001, **rates)
    outcomes = [await outcome(transport, f"/{number}") for number in range(100)]
    await transport.aclose()
    return outcomes, transport.log


async def test_the_same_seed_gives_the_same_faults() -> None:
    first = await run(7, **RATES)
    assert await run(7, **RATES) == first
    assert await run(random.Random(7), **RATES) == first
    assert await run(8, **RATES) != first
    assert {fault.kind for fault in first[1]} == set(RATES)


async def test_one_rate_does_not_change_what_another_does() -> None:
    alone = await run(3, delay=0.3)
    together = await run(3, delay=0.3, reset_after=0.2, duplicate=0.2)

    assert [fault for fault in together[1] if fault.kind == "delay"] == alone[1]


async def test_without_rates_nothing_happens() -> None:
    outcomes, log = await run(1)

    assert set(outcomes) == {"200 100"}
    assert log == []


async def test_a_rate_of_one_hits_every_request() -> None:
    outcomes, _ = await run(1, reset_after=1.0)

    assert set(outcomes) == {"sent reset_after"}


async def test_chance_can_be_limited_to_some_requests() -> None:
    asked: list[RequestFacts] = []

    def only(facts: RequestFacts) -> bool:
        asked.append(facts)
        return facts.method == "POST"

    transport = FaultTransport(ASGITransport(App()), seed=0, refuse=1.0, only=only)
    await fetch(transport, URL + "/1?a=b", "GET", headers={"x": "y"})
    assert await outcome(transport, "/2", "POST") == "connect refuse"
    await transport.aclose()

    assert asked[0] == RequestFacts(1, "GET", URL + "/1?a=b", {"x": "y"})
    assert [fault.number for fault in transport.log] == [2]


async def test_a_reordered_request_lets_a_later_one_overtake() -> None:
    app = App()
    transport = FaultTransport(ASGITransport(app), seed=0)
    transport.script([Fault("reorder", method="PUT", delay=60)])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fetch, transport, URL + "/1", "PUT")
        await anyio.wait_all_tasks_blocked()
        assert app.seen == []
        await fetch(transport, URL + "/2", "POST")

    assert app.seen == [("POST", "/2"), ("PUT", "/1")]
    await transport.aclose()


async def test_an_earlier_request_does_not_release_a_reordered_one() -> None:
    release = anyio.Event()
    async with ScriptedServer() as server:
        server.replies(Reply(hold=release, body=b"slow"), Reply(body=b"later"), Reply(body=b"held back"))
        transport = FaultTransport(open_transport(proxies={}), seed=0)
        transport.script([Fault("reorder", method="PUT", delay=60)])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fetch, transport, server.url + "/1")
            await server.wait_requests(1)
            tasks.start_soon(fetch, transport, server.url + "/2", "PUT")
            await anyio.wait_all_tasks_blocked()
            release.set()
            await server.wait_idle()
            await anyio.wait_all_tasks_blocked()
            assert len(server.requests) == 1
            await fetch(transport, server.url + "/3")
        await transport.aclose()

    assert [request.path for request in server.requests] == ["/1", "/3", "/2"]


async def test_an_upload_from_an_iterable_is_not_sent_twice() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"once"

    app = App()
    transport = FaultTransport(ASGITransport(app), seed=0, duplicate=1.0)
    await fetch(transport, URL, "POST", pieces())
    await transport.aclose()

    assert len(app.seen) == 1
    assert transport.log == []


async def test_closing_ends_requests_that_are_held_back() -> None:
    transport = FaultTransport(ASGITransport(App()), seed=0, delay=1.0, max_delay=1000)

    async def fail() -> None:
        with pytest.raises(AlreadyClosedError):
            await open_(transport, URL)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        await anyio.wait_all_tasks_blocked()
        await transport.aclose()

    await transport.aclose()
    with pytest.raises(AlreadyClosedError):
        await open_(transport, URL)


async def test_a_request_cancelled_while_held_back_is_forgotten() -> None:
    app = App()
    transport = FaultTransport(ASGITransport(app), seed=0)
    transport.script([Fault("reorder", delay=1000)])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_, transport, URL)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert await outcome(transport, "/2") == "200 100"
    assert app.seen == [("POST", "/2")]
    await transport.aclose()


@pytest.mark.parametrize("kind", ["reset_after", "duplicate"])
async def test_a_failure_inside_comes_through(kind: Any) -> None:
    async with ScriptedServer() as server:
        pass
    transport = FaultTransport(open_transport(proxies={}), seed=0)
    transport.script([kind])

    with pytest.raises(NetworkError) as raised:
        await transport.open("GET", server.url, {}, b"", Timeouts())
    await transport.aclose()

    assert raised.value.phase == "connect"
    assert transport.log == []


async def test_its_repr_and_statistics_tell_what_happened() -> None:
    transport = FaultTransport(ASGITransport(App()), seed=0)
    assert repr(transport) == "<FaultTransport 0 requests, no faults, around <ASGITransport 0 open, 0 running>>"
    transport.script(["refuse", "duplicate", "refuse"])
    for number in range(4):
        await outcome(transport, f"/{number}")

    assert repr(transport).startswith("<FaultTransport 4 requests, 1 duplicate, 2 refuse, around <ASGITransport ")
    statistics = transport.statistics()
    assert (statistics.requests, statistics.sent, statistics.scripted) == (4, 3, 0)
    assert {kind: count for kind, count in statistics.injected.items() if count} == {"refuse": 2, "duplicate": 1}
    await transport.aclose()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"refuse": 1.5}, "refuse must be a probability from 0 to 1, got 1.5"),
        ({"delay": -0.1}, "delay must be a probability from 0 to 1, got -0.1"),
        ({"refuse": 0.6, "duplicate": 0.6}, "add up to 1.2, more than 1"),
        ({"max_delay": -1.0}, "max_delay must be at least 0, got -1.0"),
    ],
)
def test_impossible_rates_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaultTransport(ASGITransport(App()), seed=0, **arguments)


def test_unknown_faults_are_refused() -> None:
    transport = FaultTransport(ASGITransport(App()), seed=0)
    with pytest.raises(ValueError, match=r"fault must be one of refuse, .*, got 'explode'"):
        transport.script(["explode"])  # type: ignore[list-item]
