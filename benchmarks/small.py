"""Single messages, and what a message or a process costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ._harness import Bench, Case, Goal, Program, fill, remove

BYTES = "application/octet-stream"
NOT_SLOWER = Goal("asyncio", "TypeScript", 1)
PRESETS = ("DEFAULT", "LOW_LATENCY", "HIGH_THROUGHPUT")
#: Longest way to the far server, in seconds.
FAR = 0.04


def append_one(bench: Bench) -> Iterator[Case]:
    """One append of 100 bytes after the other on one connection: median time, and CPU time of the client."""
    for name, server in bench.servers.items():
        task = {"size": 100, "count": 300}
        for work, field, goals in (("append", "seconds", [NOT_SLOWER]), ("append, client CPU", "cpu", [NOT_SLOWER])):
            contenders = {
                client: _ask(program, server, "append_one", field, 1e6, task, each=field == "cpu")
                for client, program in bench.clients.items()
            }
            yield Case(work, "µs", contenders, goals, name)


def deliver_one(bench: Bench) -> Iterator[Case]:
    """From an append to its arrival at a live reader in the same process, median."""
    for name, server in bench.servers.items():
        for live in ("long-poll", "sse"):
            contenders = {
                client: _ask(program, server, "deliver_one", "seconds", 1e6, {"live": live, "count": 100})
                for client, program in bench.clients.items()
            }
            yield Case(f"append to delivery, {live}", "µs", contenders, [NOT_SLOWER], name)


def presets(bench: Bench) -> Iterator[Case]:
    """What each preset of `Batching` is for: bulk to a near and to a far server, and a message every 2 ms."""
    program, server = bench.clients["asyncio"], bench.servers["ours"]
    for work, count, distance, goal in (
        ("producer presets, bulk", 400_000, 0.0, Goal("DEFAULT", "LOW_LATENCY", 1)),
        ("producer presets, bulk to a far server", 400_000, FAR, Goal("HIGH_THROUGHPUT", "DEFAULT", 1.5)),
    ):
        task = {"size": 100, "count": count, "distance": distance}
        contenders = {preset: _ask(program, server, "bulk", "rate", 1, task | {"preset": preset}) for preset in PRESETS}
        yield Case(work, "messages/s", contenders, [goal], "ours")
    contenders = {
        preset: _ask(program, server, "trickle", "seconds", 1e3, {"preset": preset, "count": 200}) for preset in PRESETS
    }
    goals = [Goal("LOW_LATENCY", "DEFAULT", 0.5)]
    yield Case("producer presets, one message every 2 ms", "ms", contenders, goals, "ours")


def own_cost(bench: Bench) -> Iterator[Case]:
    """What the producer does with one message before anything is sent, and the limit we set ourselves."""
    program, server = bench.clients["asyncio"], bench.servers["ours"]
    for how, limit in (("append_nowait", 250.0), ("append_many", 150.0), ("append_many of an iterator", 150.0)):
        task = {"how": how, "size": 100, "count": 300_000}
        contenders = {
            "ours": _ask(program, server, "own_cost", "seconds", 1e9, task),
            "limit": lambda limit=limit: limit,
        }
        yield Case(f"own cost of {how}", "ns", contenders, [Goal("ours", "limit", 1)])


def memory(bench: Bench) -> Iterator[Case]:
    """Most memory of a new process that reads 48 MiB, or writes 64 MiB in messages of 1 MiB."""
    server = bench.servers["ours"]
    full = fill(server, "memory", BYTES, (bytes(1 << 20) for _ in range(48)))
    for work, do, task in (
        ("memory, read 48 MiB", "read_bytes", {}),
        ("memory, write 64 MiB", "append_many", {"content_type": BYTES, "size": 1 << 20, "count": 64}),
    ):
        contenders = {
            client: _peak(bench, client, server, do, full if do == "read_bytes" else None, task)
            for client in bench.clients
        }
        yield Case(work, "MB", contenders, [NOT_SLOWER], "ours")


def _ask(
    program: Program, server: str, do: str, field: str, unit: float, task: dict[str, Any], *, each: bool = False
) -> Callable[[], float]:
    def run() -> float:
        url = fill(server, do, BYTES)
        answer = program.ask(do, url=url, content_type=BYTES, **task)
        remove(url)
        if field == "rate":
            return float(answer["count"]) / float(answer["seconds"])
        return unit * float(answer[field]) / (answer["count"] if each else 1)

    return run


def _peak(
    bench: Bench, client: str, server: str, do: str, url: str | None, task: dict[str, Any]
) -> Callable[[], float]:
    def run() -> float:
        target = url or fill(server, do, BYTES)
        with bench.client(client) as program:
            answer = program.ask(do, url=target, **task)
        if url is None:
            remove(target)
        return float(answer["peak"]) / 1e6

    return run
