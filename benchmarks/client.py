"""Our client as a contender: `python -m benchmarks.client asyncio`.

Does what each line of JSON says, {"do": "read_bytes", "url": ...}, and answers with a line that has the `seconds` it
took and the `count` of what came.
"""

import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import orjson

from durable_streams import stream


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


WORK: dict[str, Callable[[str], Awaitable[int]]] = {
    work.__name__: work for work in (read_bytes, read_json_items, read_json_batches, parse_json)
}
#: What `parse_json` parses: fetched beforehand.
bodies: dict[str, bytes] = {}


async def timed(do: str, url: str) -> dict[str, Any]:
    if do == "parse_json" and url not in bodies:
        async with stream(url, live=False) as response:
            bodies[url] = await response.read()
    started = time.perf_counter()
    count = await WORK[do](url)
    return {"seconds": time.perf_counter() - started, "count": count}


def main() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(anyio.run(timed, command["do"], command["url"], backend=sys.argv[1])), flush=True)


if __name__ == "__main__":
    main()
