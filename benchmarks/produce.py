"""Writing exactly once with the idempotent producer, every time into a fresh stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ._harness import Bench, Case, Goal, Program, fill, remove

SMALL = 100
MANY = 400_000
LARGE = 1 << 20
FEW = 64
#: About 100 bytes as JSON.
VALUE = {"id": 1_000_003, "kind": "click", "user": "user-003", "at": 1_700_000_003, "note": "x" * 22}
TRIO = Goal("trio", "asyncio", 0.5)


def small_bytes(bench: Bench) -> Iterator[Case]:
    """Idempotent producer, 400,000 messages of 100 bytes (`append_many`; `append` and `append_nowait` beside it)."""
    for name, server in bench.servers.items():
        task = {"size": SMALL, "count": MANY}
        contenders = _contenders(bench, server, "append_many", "application/octet-stream", 1, task)
        for other in ("append", "append_nowait"):
            program = bench.clients["asyncio"]
            contenders[f"asyncio, {other}"] = _rate(program, server, other, "application/octet-stream", 1, task)
        yield Case("produce, 100 B", "messages/s", contenders, [Goal("asyncio", "TypeScript", 2), TRIO], name)


def small_json(bench: Bench) -> Iterator[Case]:
    """Idempotent producer, 400,000 JSON objects of about 100 bytes, encoded on the way (and by `append_json`)."""
    for name, server in bench.servers.items():
        task = {"value": VALUE, "count": MANY}
        contenders = _contenders(bench, server, "append_many_json", "application/json", 1, task)
        program = bench.clients["asyncio"]
        contenders["asyncio, append_json"] = _rate(program, server, "append_json", "application/json", 1, task)
        yield Case("produce, JSON", "messages/s", contenders, [Goal("asyncio", "TypeScript", 3), TRIO], name)


def large_bytes(bench: Bench) -> Iterator[Case]:
    """Idempotent producer, 64 messages of 1 MiB."""
    for name, server in bench.servers.items():
        task = {"size": LARGE, "count": FEW}
        contenders = _contenders(bench, server, "append_many", "application/octet-stream", LARGE / 1e6, task)
        yield Case("produce, 1 MiB", "MB/s", contenders, [Goal("asyncio", "TypeScript", 1.3), TRIO], name)


def _contenders(
    bench: Bench, server: str, do: str, content_type: str, unit: float, task: dict[str, Any]
) -> dict[str, Callable[[], float]]:
    return {name: _rate(program, server, do, content_type, unit, task) for name, program in bench.clients.items()}


def _rate(
    program: Program, server: str, do: str, content_type: str, unit: float, task: dict[str, Any]
) -> Callable[[], float]:
    def run() -> float:
        url = fill(server, "produce", content_type)
        answer = program.ask(do, url=url, content_type=content_type, **task)
        remove(url)
        return unit * float(answer["count"]) / float(answer["seconds"])

    return run
