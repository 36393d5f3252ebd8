"""A worker that is woken when there is something to do: orders come in on many streams, and are shipped from here.

Start as many of it as you like: each wake is claimed by one of them. Kill one at any time: when its lease has run out,
another goes on with the first order that was not acknowledged.

Needs a server: `durable-streams serve`. Then append to streams such as http://localhost:4437/v1/stream/orders/1.
"""

import json
import os
import socket
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import anyio
import anyio.to_thread

from durable_streams import DurableStream, stream

ROOT = "http://localhost:4437/v1/stream"
SUBSCRIPTION = f"{ROOT}/__ds/subscriptions/shipping"
LEASE_SECONDS = 10.0
NAME = f"{socket.gethostname()}-{os.getpid()}"


async def ask(method: str, url: str, body: dict, token: str = ""):
    """The server's answer; None if it says 409: somebody else is on it, or there is nothing to do."""

    def exchange():
        request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method=method)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except HTTPError as error:
            with error:
                if error.code == 409:
                    return None
                raise

    return await anyio.to_thread.run_sync(exchange)


async def ship(path: str, offset: str) -> str:
    """Handle what a stream has from an offset on. Returns the offset after it."""
    async with stream(f"{ROOT}/{path}", offset=offset, live=False) as orders:
        async for order in orders:
            print(f"shipping {order['item']} of {path}", flush=True)
        return orders.offset


async def work() -> None:
    """Claim what there is to do, and do it, until nothing is left or somebody else has it."""
    while (claim := await ask("POST", f"{SUBSCRIPTION}/claim", {"worker": NAME})) is not None:
        wake = {"wake_id": claim["wake_id"], "generation": claim["generation"]}

        async def keep_lease(wake: dict = wake, token: str = claim["token"]) -> None:
            while True:
                await anyio.sleep(LEASE_SECONDS / 3)
                await ask("POST", f"{SUBSCRIPTION}/ack", {**wake, "acks": []}, token)

        async with anyio.create_task_group() as group:
            group.start_soon(keep_lease)
            acks = [
                {"stream": each["path"], "offset": await ship(each["path"], each["acked_offset"])}
                for each in claim["streams"]
                if each["has_pending"]
            ]
            group.cancel_scope.cancel()
        # None means that the lease has run out meanwhile: another worker has all of it, and ships it again.
        await ask("POST", f"{SUBSCRIPTION}/ack", {**wake, "acks": acks, "done": True}, claim["token"])


async def main() -> None:
    async with DurableStream(f"{ROOT}/wakes/shipping", content_type="application/json") as wakes:
        await wakes.create()
    await ask(
        "PUT",
        SUBSCRIPTION,
        {
            "type": "pull-wake",
            "pattern": "orders/*",
            "wake_stream": "wakes/shipping",
            "lease_ttl_ms": int(LEASE_SECONDS * 1000),
        },
    )
    # First follow the wakes, then look: what comes in between is not missed.
    async with stream(f"{ROOT}/wakes/shipping", offset="now") as wakes:
        print("ready", flush=True)
        await work()
        async for _ in wakes:
            await work()


anyio.run(main)
