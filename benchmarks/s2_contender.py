"""Our S2 client as a contender: `python -m benchmarks.s2_contender [asyncio|trio]`.

Records without headers are given as bytes, which the other SDKs do not take. Each line of standard input is a command
in JSON; each answer a line, with the seconds and the CPU seconds it took.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

import anyio
import anyio.to_thread

from durable_streams.s2 import S2, Stream

#: Metered bytes of a batch.
_BATCH = 1 << 20


async def append(stream: Stream, size: int, count: int) -> None:
    """Append batches as large as may be, in one session."""
    body = b"x" * size
    per_batch = min(1000, _BATCH // (size + 8))
    async with stream.append_session() as session:
        for begin in range(0, count, per_batch):
            await session.submit([body] * min(per_batch, count - begin))


async def read(stream: Stream, size: int, count: int) -> None:
    """Read everything in one session."""
    seen = 0
    async with stream.read_session(seq_num=0, count=count) as session:
        async for batch in session:
            for record in batch.records:
                seen += len(record.body) == size
    assert seen == count, f"{seen} of {count} records"


async def produce(stream: Stream, size: int, count: int) -> None:
    """Hand over record by record."""
    body = b"x" * size
    async with stream.producer() as producer:
        for _ in range(count):
            await producer.submit(body)


async def lone(stream: Stream, size: int, count: int) -> float:
    """Milliseconds from handing over one record to its acknowledgement, when there is no other."""
    body = b"x" * size
    took = []
    async with stream.producer() as producer:
        for _ in range(count):
            began = time.perf_counter()
            await (await producer.submit(body))
            took.append(time.perf_counter() - began)
    return 1e3 * median(took)


WORK: dict[str, Callable[[Stream, int, int], Awaitable[float | None]]] = {
    "append": append,
    "read": read,
    "produce": produce,
    "lone": lone,
}


async def main() -> None:
    """Carry out commands until the input ends."""
    while line := await anyio.to_thread.run_sync(sys.stdin.readline):
        command = json.loads(line)
        async with S2("ignored", endpoints=command["url"]) as s2:
            stream = s2.basin(command["basin"]).stream(command["stream"])
            await stream.check_tail()
            began, used = time.perf_counter(), time.process_time()
            value = await WORK[command["do"]](stream, command["size"], command["count"])
            answer: dict[str, Any] = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - used}
            print(json.dumps({**answer, "value": value}), flush=True)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1])
