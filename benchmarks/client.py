"""Our client as a contender: `python -m benchmarks.client asyncio`.

Does what each line of JSON says, {"do": "read_bytes", "url": ...}, and answers with a line that has the `seconds` it
took and the `count` of what came or went.
"""

import json
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import repeat
from typing import Any

import anyio
import orjson

from durable_streams import IdempotentProducer, stream


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


WORK: dict[str, Callable[..., Awaitable[int]]] = {
    work.__name__: work
    for work in (
        *(read_bytes, read_json_items, read_json_batches, parse_json),
        *(append_many, append, append_nowait, append_many_json, append_json),
    )
}
#: What `parse_json` parses: fetched beforehand.
bodies: dict[str, bytes] = {}


async def timed(do: str, url: str, options: dict[str, Any]) -> dict[str, Any]:
    if do == "parse_json" and url not in bodies:
        async with stream(url, live=False) as response:
            bodies[url] = await response.read()
    started = time.perf_counter()
    count = await WORK[do](url, **options)
    return {"seconds": time.perf_counter() - started, "count": count}


def main() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        do, url = command.pop("do"), command.pop("url")
        print(json.dumps(anyio.run(timed, do, url, command, backend=sys.argv[1])), flush=True)


if __name__ == "__main__":
    main()
