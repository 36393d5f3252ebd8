"""Reading a finished stream from its beginning."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from ._harness import Bench, Case, Goal, Program, fill

#: Less than a page of our server, as the TypeScript client with `live: false` reads no further than one.
SIZE = 48 << 20
ITEMS = 50_000
#: Items in one append.
PER_APPEND = 1_000
TRIO = Goal("trio", "asyncio", 0.5)


def read_bytes(bench: Bench) -> Iterator[Case]:
    """Catch-up read of 48 MiB of bytes."""
    piece = random.Random(1).randbytes(1 << 20)
    for name, server in bench.servers.items():
        url = fill(server, "bytes", "application/octet-stream", (piece for _ in range(SIZE >> 20)))
        contenders = {client: _rate(program, "read_bytes", url, SIZE, 1e6) for client, program in bench.clients.items()}
        yield Case("catch-up, bytes", "MB/s", contenders, [Goal("asyncio", "TypeScript", 2), TRIO], name)


def read_json_items(bench: Bench) -> Iterator[Case]:
    """Catch-up read of 50,000 JSON objects of 99 bytes, item by item."""
    goals = [Goal("asyncio", "TypeScript", 20), Goal("asyncio", "orjson.loads", 0.6), TRIO]
    yield from _json(bench, "read_json_items", "catch-up, JSON by item", goals)


def read_json_batches(bench: Bench) -> Iterator[Case]:
    """Catch-up read of 50,000 JSON objects of 99 bytes, batch by batch."""
    goals = [Goal("asyncio", "orjson.loads", 0.85), TRIO]
    yield from _json(bench, "read_json_batches", "catch-up, JSON by batch", goals)


def _json(bench: Bench, do: str, work: str, goals: list[Goal]) -> Iterator[Case]:
    for name, server in bench.servers.items():
        url = fill(server, "json", "application/json", arrays(ITEMS))
        contenders = {client: _rate(program, do, url, ITEMS, 1) for client, program in bench.clients.items()}
        contenders["orjson.loads"] = _rate(bench.clients["asyncio"], "parse_json", url, ITEMS, 1)
        yield Case(work, "items/s", contenders, goals, name)


def arrays(count: int) -> Iterator[bytes]:
    """Appends that make so many messages of 99 bytes."""
    for first in range(0, count, PER_APPEND):
        items = (_item(number) for number in range(first, first + PER_APPEND))
        yield b"[" + b",".join(items) + b"]"


def _item(number: int) -> bytes:
    """A JSON object of 99 bytes."""
    at = 1_700_000_000 + number
    start = f'{{"id":{1_000_000 + number},"kind":"click","user":"user-{number % 997:03}","at":{at},"note":"'
    return start.ljust(97, "x").encode() + b'"}'


def _rate(program: Program, do: str, url: str, amount: int, unit: float) -> Callable[[], float]:
    def run() -> float:
        answer = program.ask(do, url=url)
        if answer["count"] != amount:
            raise RuntimeError(f"{program.name} read {answer['count']} instead of {amount}")
        return amount / unit / float(answer["seconds"])

    return run
