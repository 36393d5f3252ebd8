"""The same names on trio: nurseries, cancel scopes, memory channels.

Two followers read one stream at their own pace; one of them loses patience, which costs the other nothing.

Runs by itself: python examples/on_trio.py
"""

import trio

from durable_streams import DurableStream, IdempotentProducer, stream
from durable_streams.server import Server


async def count(url: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> int:
    """Count what comes until the stream is closed."""
    total = 0
    async with stream(url) as events:
        task_status.started()
        async for _ in events:
            total += 1
    print("the patient follower has seen", total)
    return total


async def lose_patience(url: str) -> None:
    """Follow for one event, then find that the next one takes too long."""
    async with stream(url) as events:
        iterator = events.iter_json()
        print("the other one has seen", await anext(iterator))
        with trio.move_on_after(0.05):
            print("and", await anext(iterator))  # Cancelled, it loses nothing: the iterator could go on.
    print("and goes")


async def main() -> None:
    async with Server() as server:
        url = f"{server.url}/events"
        async with DurableStream(url, content_type="application/json") as events, trio.open_nursery() as nursery:
            await events.create(body="[0]")
            await nursery.start(count, url)
            await lose_patience(url)

            async with IdempotentProducer(events, "example") as producer:
                await producer.append_many(str(number) for number in range(1, 1000))
            await events.close_stream()


trio.run(main)
