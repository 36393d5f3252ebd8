"""Many tasks append to one stream, and a reader follows it live.

The tasks share a handle: what they append while a request is under way goes together in the next one, so that ten
thousand appends cost a few requests. Each task's own messages stay in order.

Runs by itself: python examples/many_writers.py
"""

from collections import defaultdict

import anyio

from durable_streams import DurableStream, stream
from durable_streams.server import Server

SENSORS = 100
READINGS = 20


async def sensor(readings: DurableStream, name: int) -> None:
    for number in range(READINGS):
        await readings.append_json({"sensor": name, "number": number})


async def collect(url: str) -> dict[int, list[int]]:
    """Follow the stream until it is closed."""
    seen = defaultdict(list)
    async with stream(url) as readings:
        async for reading in readings:
            seen[reading["sensor"]].append(reading["number"])
    return seen


async def main() -> None:
    async with Server() as server:
        url = f"{server.url}/readings"
        async with DurableStream(url, content_type="application/json") as readings:
            await readings.create()
            async with anyio.create_task_group() as sensors:
                for name in range(SENSORS):
                    sensors.start_soon(sensor, readings, name)
            await readings.close_stream()
        seen = await collect(url)

    in_order = all(numbers == list(range(READINGS)) for numbers in seen.values())
    print(f"{sum(map(len, seen.values()))} readings of {len(seen)} sensors, each sensor's in order: {in_order}")


anyio.run(main)
