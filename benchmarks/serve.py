"""Our server beside others: appends, reads, deliveries, and what readers cost.

`load.py` makes the load, from a process of its own. It takes one of the machine's cores, and so does our server, while
the Rust server would use more than the one that is left: on two cores its appends are held back by the load.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from ._harness import Bench, Case, Goal, fill, remove
from .catch_up import arrays
from .peers import ServerUnderTest

SECONDS = 2.0
BYTES = "application/octet-stream"
LARGE = 100_000_000
JSON_ITEMS = 200_000
READERS = 100
IDLE = 10_000
LIMIT = "limit"
#: For rows in which rakaia would take minutes.
FAST = ("ours", "Node", "Rust")


def appends_memory(bench: Bench) -> Iterator[Case]:
    """100-byte appends to a stream in memory, on 1 and on 50 connections; and what they cost the server."""
    yield from _appends(bench, 1, 1, [("Node", 1.0), ("Rust", 0.7)], durable=False)
    yield from _appends(bench, 50, 1, [("Node", 1.5), ("rakaia", 2.0), ("Rust", 0.18)], durable=False)


def appends_durable(bench: Bench) -> Iterator[Case]:
    """100-byte appends that are on disk when they are acknowledged: 1, 50, and 50 connections on 50 streams."""
    yield from _appends(bench, 1, 1, [("Node", 3), ("Rust", 0.65)], durable=True)
    yield from _appends(bench, 50, 1, [("Node", 20), ("Rust", 0.30)], durable=True)
    yield from _appends(bench, 50, 50, [("Node", 6), ("Rust", 0.25)], durable=True)


def _appends(
    bench: Bench, connections: int, streams: int, goals: list[tuple[str, float]], *, durable: bool
) -> Iterator[Case]:
    costs: dict[str, deque[float]] = {}
    contenders = {}
    for server in bench.peers.those_here(durable=durable):
        costs[server.name] = deque()
        contenders[server.name] = partial(_append, bench, server, connections, streams, costs[server.name])
    to = "" if streams == 1 else f", {streams} streams"
    work, where = f"append 100 B, {connections} conn.{to}", "durable" if durable else "memory"
    yield Case(work, "appends/s", contenders, [Goal("ours", *goal) for goal in goals], where)
    # The machine may be busy with other things; this shows much less of them.
    yield Case(f"{work}: CPU", "us each", {name: each.popleft for name, each in costs.items()}, [], where)


def _append(bench: Bench, server: ServerUnderTest, connections: int, streams: int, costs: deque[float]) -> float:
    urls = [fill(server.url, f"append{number}", BYTES) for number in range(streams)]
    before = server.cpu_seconds()
    answer = bench.load.ask("append", urls=urls, connections=connections, seconds=SECONDS)
    costs.append((server.cpu_seconds() - before) / answer["count"] * 1e6)
    for url in urls:
        remove(url)
    return float(answer["count"]) / float(answer["seconds"])


def get_large(bench: Bench) -> Iterator[Case]:
    """GET of 100 MB: its rate, its first byte, and the server's memory meanwhile."""
    bodies = [bytes(1_000_000)] * (LARGE // 1_000_000)
    for durable in (False, True):
        yield from _get(bench, "GET 100 MB", BYTES, bodies, LARGE, [("Rust", 0.8)], durable=durable)


def get_json(bench: Bench) -> Iterator[Case]:
    """GET of 20 MB of JSON in messages of 99 bytes."""
    for durable in (False, True):
        bodies = list(arrays(JSON_ITEMS))
        goals = [("Rust", 0.4)]
        yield from _get(bench, "GET 20 MB JSON", "application/json", bodies, 99 * JSON_ITEMS, goals, durable=durable)


def _get(
    bench: Bench, work: str, content_type: str, bodies: list[bytes], size: int, goals: list[tuple[str, float]], *,
    durable: bool,
) -> Iterator[Case]:  # fmt: skip
    servers = bench.peers.those_here(durable=durable, names=FAST)
    where = "durable" if durable else "memory"
    firsts: dict[str, deque[float]] = {server.name: deque() for server in servers}
    growth: dict[str, deque[float]] = {server.name: deque() for server in servers}
    urls = {server.name: fill(server.url, "get", content_type, bodies) for server in servers}

    def read(server: ServerUnderTest) -> float:
        resident = server.resident_bytes()
        server.peak_bytes(reset=True)
        answer = bench.load.ask("get", url=urls[server.name], size=size)
        firsts[server.name].append(1e3 * answer["first"])
        growth[server.name].append((server.peak_bytes() - resident) / 1e6)
        return float(answer["count"]) / 1e6 / float(answer["seconds"])

    yield Case(
        work, "MB/s", {server.name: partial(read, server) for server in servers},
        [Goal("ours", *goal) for goal in goals], where,
    )  # fmt: skip
    yield Case(
        f"{work}: first byte", "ms", {name: each.popleft for name, each in firsts.items()} | {LIMIT: lambda: 5.0},
        [Goal("ours", LIMIT, 1)], where,
    )  # fmt: skip
    yield Case(
        f"{work}: memory", "MB more", {name: each.popleft for name, each in growth.items()} | {LIMIT: lambda: 100.0},
        [Goal("ours", LIMIT, 1)], where,
    )  # fmt: skip
    for url in urls.values():
        remove(url)


def delivery(bench: Bench) -> Iterator[Case]:
    """From an append to its delivery to a long-poll."""
    for durable, goals in ((False, [Goal("ours", "Node", 1.0)]), (True, [Goal("ours", "Rust", 1.5)])):
        contenders = {}
        for server in bench.peers.those_here(durable=durable, names=FAST):
            contenders[server.name] = partial(_delivery, bench, fill(server.url, "delivery", BYTES))
        yield Case("append to delivery", "ms", contenders, goals, "durable" if durable else "memory")


def _delivery(bench: Bench, url: str) -> float:
    return 1e3 * float(bench.load.ask("long_poll", url=url, rounds=200)["p50"])


def sse(bench: Bench) -> Iterator[Case]:
    """Server-sent events: deliveries to 100 readers of one stream, to which one connection appends."""
    for durable, goals in ((False, [Goal("ours", "Node", 2.5)]), (True, [Goal("ours", "Rust", 0.25)])):
        costs: dict[str, deque[float]] = {}
        contenders = {}
        for server in bench.peers.those_here(durable=durable):
            costs[server.name] = deque()
            contenders[server.name] = partial(_fan_out, bench, server, costs[server.name])
        where = "durable" if durable else "memory"
        yield Case(f"SSE, {READERS} readers", "deliveries/s", contenders, goals, where)
        costing = {name: each.popleft for name, each in costs.items()}
        yield Case(f"SSE, {READERS} readers: CPU", "us each", costing, [], where)


def _fan_out(bench: Bench, server: ServerUnderTest, costs: deque[float]) -> float:
    url = fill(server.url, "sse", "text/plain")
    bench.load.ask("attach", url=url, readers=READERS)
    before = server.cpu_seconds()
    answer = bench.load.ask("fan_out", url=url, seconds=SECONDS)
    costs.append((server.cpu_seconds() - before) / answer["count"] * 1e6)
    bench.load.ask("detach")
    remove(url)
    return float(answer["count"]) / float(answer["seconds"])


def after_readers(bench: Bench) -> Iterator[Case]:
    """Appends after 200 readers of the stream left, against before."""
    for durable in (False, True):
        contenders = {
            server.name: partial(_after_readers, bench, server)
            for server in bench.peers.those_here(durable=durable, names=("ours", "rakaia"))
        }
        where = "durable" if durable else "memory"
        contenders[LIMIT] = lambda: 1.0
        yield Case("append rate after readers", "of before/s", contenders, [Goal("ours", LIMIT, 0.95)], where)


def _after_readers(bench: Bench, server: ServerUnderTest) -> float:
    url = fill(server.url, "after", "text/plain")

    def rate() -> float:
        answer = bench.load.ask("append", urls=[url], connections=10, seconds=0.5, content_type="text/plain")
        return float(answer["count"]) / float(answer["seconds"])

    before = rate()
    bench.load.ask("attach", url=url, readers=200)
    bench.load.ask("detach")
    after = rate()
    remove(url)
    return after / before


def idle_readers(bench: Bench) -> Iterator[Case]:
    """10,000 idle readers with server-sent events: memory of each, and how soon one append has reached all."""
    reached: deque[float] = deque()

    def attach() -> float:
        server = bench.peers.fresh(durable=False)
        url = fill(server.url, "idle", "text/plain")
        bench.load.ask("attach", url=url, readers=10)
        bench.load.ask("fan_out", url=url, messages=1)  # all code has run once
        before = server.resident_bytes()
        bench.load.ask("detach")
        bench.load.ask("attach", url=url, readers=IDLE)
        each = (server.resident_bytes() - before) / IDLE / 1024
        reached.append(float(bench.load.ask("fan_out", url=url, messages=1)["seconds"]))
        bench.load.ask("detach")
        return each

    contenders: dict[str, Callable[[], float]] = {"ours": attach, LIMIT: lambda: 20.0}
    yield Case(f"{IDLE:,} idle SSE readers", "KiB each", contenders, [Goal("ours", LIMIT, 1)], "memory")
    contenders = {"ours": reached.popleft, LIMIT: lambda: 1.0}
    yield Case(f"one append to {IDLE:,} readers", "s", contenders, [Goal("ours", LIMIT, 1)], "memory")


def stalled_readers(bench: Bench) -> Iterator[Case]:
    """Readers that take nothing while 100 MB are appended: memory that each costs the server."""
    count = 20

    def stall() -> float:
        grown = []
        for readers in (0, count):
            server = bench.peers.fresh(durable=True)
            url = fill(server.url, "stalled", BYTES)
            before = server.resident_bytes()
            bench.load.ask("stall", url=url, readers=readers)
            bench.load.ask("append", urls=[url], connections=1, seconds=1, size=500_000)
            grown.append(server.resident_bytes() - before)
            bench.load.ask("release")
        return (grown[1] - grown[0]) / count / 1e6

    contenders: dict[str, Callable[[], float]] = {"ours": stall, LIMIT: lambda: 1.0}
    yield Case("stalled SSE reader", "MB each", contenders, [Goal("ours", LIMIT, 1)], "durable")


def scale(bench: Bench) -> Iterator[Case]:
    """What an append costs on a fresh server, on a long stream, beside 100,000 streams, after 100,000 producers."""
    for durable in (False, True):
        contenders = {}
        for name, prepare in (
            ("fresh", ""),
            ("a stream of 100,000 appends", "append_times"),
            ("beside 100,000 streams", "create_streams"),
            ("after 100,000 producers", "append_as_producers"),
        ):
            server = bench.peers.fresh(durable=durable)
            url = fill(server.url, "scale", BYTES)
            if prepare:
                bench.load.ask(prepare, url=url, times=100_000)
            contenders[name] = partial(_cost, bench, server, url)
        goals = [Goal(name, "fresh", 1.1) for name in list(contenders)[1:]]
        yield Case("append, cost", "us each", contenders, goals, "durable" if durable else "memory")


def _cost(bench: Bench, server: ServerUnderTest, url: str) -> float:
    """The least of a few short samples: whatever else the machine does only adds to it, and more than is at stake."""
    costs = []
    for _ in range(4):
        before = server.cpu_seconds()
        answer = bench.load.ask("append", urls=[url], connections=10, seconds=SECONDS / 4)
        costs.append((server.cpu_seconds() - before) / float(answer["count"]) * 1e6)
    return min(costs)
