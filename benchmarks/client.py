"""Our client as a contender: `python -m benchmarks.client asyncio`.

Does what each line of JSON says, {"do": "read_bytes", "url": ...}, and answers with a line that has the `seconds` it
took, the CPU time (`cpu`), the `count` of what came or went, and the process's `peak` of memory in bytes. Work that is
a matter of single messages answers with their median as `seconds`.
"""

import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import repeat
from statistics import median
from typing import Any

import anyio
import orjson

from durable_streams import Batching, DurableStream, IdempotentProducer, open_transport, stream
from durable_streams.testing import FaultTransport


async def read_bytes(url: str) -> int:
    count = 0
    async with stream(url, live=False) as response:
        async for piece in response.iter_bytes():
            count += len(piece)
    return count


async def read_json_items(url: str) -> int:
    count = 0
    async with stream(url, live=False) as response:
        async for _ in response.iter_json():
            count += 1
    return count


async def read_json_batches(url: str) -> int:
    count = 0
    async with stream(url, live=False) as response:
        async for batch in response.iter_batches(as_="json"):
            count += len(batch.items)
    return count


async def parse_json(url: str) -> int:
    """`orjson.loads` alone: what no reader of JSON can be faster than."""
    return len(orjson.loads(bodies[url]))


async def append_many(url: str, content_type: str, size: int, count: int) -> int:
    messages = [b"x" * size] * count
    async with IdempotentProducer(url, "bench", content_type=content_type) as producer:
        await producer.append_many(messages)
        await producer.flush()
    return count


async def append(url: str, content_type: str, size: int, count: int) -> int:
    message = b"x" * size
    async with IdempotentProducer(url, "bench", content_type=content_type) as producer:
        for _ in range(count):
            await producer.append(message)
        await producer.flush()
    return count


async def append_nowait(url: str, content_type: str, size: int, count: int) -> int:
    message = b"x" * size
    async with IdempotentProducer(url, "bench", content_type=content_type, max_buffered_bytes=1 << 30) as producer:
        for _ in range(count):
            producer.append_nowait(message)
        await producer.flush()
    return count


async def append_many_json(url: str, content_type: str, value: Any, count: int) -> int:
    async with IdempotentProducer(url, "bench", content_type=content_type) as producer:
        await producer.append_many(map(orjson.dumps, repeat(value, count)))
        await producer.flush()
    return count


async def append_json(url: str, content_type: str, value: Any, count: int) -> int:
    async with IdempotentProducer(url, "bench", content_type=content_type) as producer:
        for _ in range(count):
            await producer.append_json(value)
        await producer.flush()
    return count


class Median(float):
    """Work that measures itself, message by message: the median, in seconds."""

    def __new__(cls, samples: list[float]) -> "Median":
        made = super().__new__(cls, median(samples))
        made.count = len(samples)
        return made

    count: int


async def append_one(url: str, content_type: str, size: int, count: int) -> Median:
    """Single appends, one after the other, on one connection."""
    message, samples = b"x" * size, []
    async with DurableStream(url, content_type=content_type) as handle:
        for _ in range(count):
            started = time.perf_counter()
            await handle.append(message)
            samples.append(time.perf_counter() - started)
    return Median(samples)


async def deliver_one(url: str, content_type: str, live: Any, count: int) -> Median:
    """From the call of `append` to the arrival at a live reader in the same process."""
    samples = []
    async with (
        DurableStream(url, content_type=content_type) as handle,
        handle.stream(offset="now", live=live) as response,
    ):
        batches = response.iter_batches("bytes")
        async with anyio.create_task_group() as tasks:
            while len(samples) < count:
                await anyio.sleep(0.002)  # The reader waits by then.
                started = time.perf_counter()
                tasks.start_soon(handle.append, b"x")
                async for batch in batches:
                    if batch.data:
                        break
                samples.append(time.perf_counter() - started)
    return Median(samples)


async def trickle(url: str, content_type: str, preset: str, count: int) -> Median:
    """A producer gets a message every 2 ms: from `append` to its acknowledgement."""
    samples = []
    async with IdempotentProducer(url, "b", content_type=content_type, batching=getattr(Batching, preset)) as producer:

        async def one() -> None:
            started = time.perf_counter()
            await (await producer.append(b"x" * 100)).wait()
            samples.append(time.perf_counter() - started)

        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(one)
                await anyio.sleep(0.002)
    return Median(samples)


async def bulk(url: str, content_type: str, preset: str, size: int, count: int, distance: float) -> int:
    """A producer gets all it can take, to a server that is up to `distance` seconds away."""
    messages = [b"x" * size] * count
    transport = FaultTransport(open_transport(), seed=1, delay=float(distance > 0), max_delay=distance)
    async with IdempotentProducer(
        url, "b", content_type=content_type, batching=getattr(Batching, preset), transport=transport
    ) as producer:
        await producer.append_many(messages)
        await producer.flush()
    await transport.aclose()
    return count


async def own_cost(url: str, content_type: str, how: str, size: int, count: int) -> Median:
    """What one message costs before anything is sent."""
    message = b"x" * size
    whole = Batching(max_batch_bytes=1 << 30, linger=60)
    async with IdempotentProducer(
        url, "b", content_type=content_type, batching=whole, max_buffered_bytes=1 << 30
    ) as producer:
        if how == "append_nowait":
            call = producer.append_nowait
            started = time.perf_counter()
            for _ in range(count):
                call(message)
        else:
            messages: Any = [message] * count
            messages = messages if how == "append_many" else repeat(message, count)
            add = producer.append_many(messages)
            started = time.perf_counter()
            await add
        seconds = time.perf_counter() - started
        await producer.abort()
    return Median([seconds / count])


WORK: dict[str, Callable[..., Awaitable[int | Median]]] = {
    work.__name__: work
    for work in (
        *(read_bytes, read_json_items, read_json_batches, parse_json),
        *(append_many, append, append_nowait, append_many_json, append_json),
        *(append_one, deliver_one, trickle, bulk, own_cost),
    )
}
#: What `parse_json` parses: fetched beforehand.
bodies: dict[str, bytes] = {}


async def timed(do: str, url: str, options: dict[str, Any]) -> dict[str, Any]:
    if do == "parse_json" and url not in bodies:
        async with stream(url, live=False) as response:
            bodies[url] = await response.read()
    started, cpu = time.perf_counter(), time.process_time()
    done = await WORK[do](url, **options)
    took = time.perf_counter() - started
    return {
        "seconds": float(done) if isinstance(done, Median) else took,
        "cpu": time.process_time() - cpu,
        "count": done.count if isinstance(done, Median) else done,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        do, url = command.pop("do"), command.pop("url")
        print(json.dumps(anyio.run(timed, do, url, command, backend=sys.argv[1])), flush=True)


if __name__ == "__main__":
    main()
