"""S2 sessions beside the official SDKs, on `s2 lite`.

Each sample of appending gets a server of its own, as one that has taken gigabytes stalls for seconds. Wall time and CPU
time of the client come from the same runs.
"""

from __future__ import annotations

import json
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from tests.interop import node, s2lite

from ._harness import ROOT, Bench, Case, Goal, Program
from .start_up import peer_python

OFFICIAL = "s2-sdk==0.13.0"
SIZES = {"100 bytes": (100, 200_000), "1 KiB": (1024, 100_000), "100 KiB": (102_400, 2_000)}
#: Least ratio of wall time to the official Python SDK: for small appends the server is the limit.
PYTHON_GOALS = {("append", 100): 1.7}
SERVER = "s2 lite, memory"


def append(bench: Bench) -> Iterator[Case]:
    """Batches in an append session."""
    yield from _cases(bench, "append", "append session")


def read(bench: Bench) -> Iterator[Case]:
    """Everything in a read session."""
    yield from _cases(bench, "read", "read session")


def produce(bench: Bench) -> Iterator[Case]:
    """Record by record through a producer."""
    yield from _cases(bench, "produce", "producer", sizes=["100 bytes"])


def lone(bench: Bench) -> Iterator[Case]:
    """One record at a time through a producer, to its acknowledgement."""
    with ExitStack() as stack:
        programs = _programs(bench, stack)
        if not programs:
            return
        contenders = {
            name: lambda program=program: _sample(program, "lone", 100, 200)["value"]
            for name, program in programs.items()
        }
        goals = [Goal("ours", "official Python", 0.6), Goal("ours", "official TypeScript", 0.6)]
        yield Case("producer, one record at a time, to its acknowledgement", "ms", contenders, goals, SERVER)


def _cases(bench: Bench, do: str, words: str, sizes: list[str] | None = None) -> Iterator[Case]:
    with ExitStack() as stack:
        programs = _programs(bench, stack)
        for shown, (size, count) in SIZES.items():
            if not programs or (sizes is not None and shown not in sizes):
                continue
            filled = _filled(stack, programs["ours"], size, count) if do == "read" else None
            cpu: dict[str, list[float]] = {name: [] for name in programs}
            contenders = {
                name: _contender(program, cpu[name], do, size, count, filled) for name, program in programs.items()
            }
            goals = [
                Goal("ours", "official Python", PYTHON_GOALS.get((do, size), 2.0)),
                Goal("ours", "official TypeScript", 1.4),
                Goal("ours, trio", "ours", 0.5),
            ]
            yield Case(f"{words}, {shown}", "records/s", contenders, goals, SERVER)
            # The samples are there already: this table is handed them one by one.
            spent = {name: iter(values) for name, values in cpu.items()}
            yield Case(
                f"{words}, {shown}, CPU of the client",
                "µs/record",
                {name: lambda samples=samples: next(samples) for name, samples in spent.items()},
                [Goal("ours", "official Python", 1 / 3), Goal("ours", "official TypeScript", 1 / 3)],
                SERVER,
            )


def _contender(
    program: Program, cpu: list[float], do: str, size: int, count: int, filled: dict[str, str] | None
) -> Callable[[], float]:
    def work() -> float:
        answer = _sample(program, do, size, count, filled)
        cpu.append(1e6 * answer["cpu"] / count)
        return count / answer["seconds"]

    return work


def _sample(program: Program, do: str, size: int, count: int, filled: dict[str, str] | None = None) -> dict[str, float]:
    """Have the work done once: on a server that has the records, or on a fresh one."""
    if filled is not None:
        return program.ask(do, size=size, count=count, **filled)
    with s2lite.Lite() as server:
        return program.ask(do, size=size, count=count, **_stream(server))


def _filled(stack: ExitStack, program: Program, size: int, count: int) -> dict[str, str]:
    """A server with a stream of so many records, until the stack ends."""
    where = _stream(stack.enter_context(s2lite.Lite()))
    program.ask("append", size=size, count=count, **where)
    return where


def _stream(server: s2lite.Lite) -> dict[str, str]:
    basin = s2lite.make_basin(server.url)
    request = urllib.request.Request(
        f"{server.url}/v1/streams",
        json.dumps({"stream": "bench"}).encode(),
        {"content-type": "application/json", "s2-basin": urllib.parse.quote(basin), "authorization": "Bearer ignored"},
    )
    urllib.request.urlopen(request, timeout=10).close()
    return {"url": server.url, "basin": basin, "stream": "bench"}


def _programs(bench: Bench, stack: ExitStack) -> dict[str, Program]:
    """The contenders that can run here, by name; none without the server."""
    missing = s2lite.why_not()
    if missing is not None:
        bench.remarks.append(f"The rows of S2 are left out: {missing}.")
        return {}
    commands: dict[str, tuple[object, ...]] = {
        "ours": (sys.executable, "-m", "benchmarks.s2_contender", "asyncio"),
        "ours, trio": (sys.executable, "-m", "benchmarks.s2_contender", "trio"),
    }
    if (python := peer_python(bench, OFFICIAL)) is not None:
        commands["official Python"] = (python, "-I", ROOT / "benchmarks" / "s2_official.py")
    if node.why_not() is None:
        commands["official TypeScript"] = (node.find_node() or "node", ROOT / "benchmarks" / "s2_contender.mjs")
    return {
        name: stack.enter_context(Program(name, [str(part) for part in command])) for name, command in commands.items()
    }
