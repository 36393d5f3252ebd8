"""A server with subscriptions in the test's own event loop: its clock is set by hand, its webhooks are caught."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from durable_streams.server import DurableStreamsApp, MemoryStore
from durable_streams.server.subscriptions.delivery import Reply, Timeouts
from durable_streams.server.subscriptions.ssrf import Target
from durable_streams.server.subscriptions.webhooks import Webhooks

from ..driver import Answer, Client, Clock

HOOK_URL = "https://8.8.8.8/hook"  # an address, so that nothing is looked up
SEED = bytes(range(32))


class Delivery:
    """One webhook request that has arrived; the test answers it."""

    def __init__(
        self, target: Target, addresses: Sequence[str], headers: Sequence[tuple[str, str]], raw: bytes
    ) -> None:
        self.target = target
        self.addresses = addresses
        self.headers = dict(headers)
        self.raw = raw
        self.body: dict[str, Any] = json.loads(raw)
        self._answered = anyio.Event()
        self._reply: Reply | Exception = Reply(200, b"")

    @property
    def wake(self) -> dict[str, Any]:
        return {"wake_id": self.body["wake_id"], "generation": self.body["generation"]}

    @property
    def token(self) -> str:
        return self.body["callback_token"]

    def answer(self, status: int = 200, value: object = None) -> None:
        self._reply = Reply(status, b"" if value is None else json.dumps(value).encode())
        self._answered.set()

    def fail(self, error: Exception) -> None:
        self._reply = error
        self._answered.set()

    async def wait(self) -> Reply:
        await self._answered.wait()
        if isinstance(self._reply, Exception):
            raise self._reply
        return self._reply


class Hook:
    """Catches webhook requests; a `Post`."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[Delivery](100)
        self.count = 0
        self.open = 0

    async def __call__(
        self,
        target: Target,
        locate: Callable[[], Awaitable[Sequence[str]]],
        headers: Sequence[tuple[str, str]],
        body: bytes,
        timeouts: Timeouts,
    ) -> Reply:
        delivery = Delivery(target, await locate(), headers, body)
        self.count += 1
        self.open += 1
        assert self.open == 1, "two deliveries at once"
        self._send.send_nowait(delivery)
        try:
            return await delivery.wait()
        finally:
            self.open -= 1

    async def next(self) -> Delivery:
        with anyio.fail_after(20):
            return await self._receive.receive()

    def close(self) -> None:
        self._send.close()
        self._receive.close()


class Bench:
    """The application with its service running, and all there is to test it with."""

    def __init__(self, app: DurableStreamsApp, clock: Clock, hook: Hook) -> None:
        self.app = app
        self.client = Client(app)
        self.clock = clock
        self.hook = hook

    async def advance(self, seconds: float) -> None:
        """Let time pass, and the service notice."""
        self.clock.now += seconds
        self.app.subscriptions.poke()
        await self.settle()

    async def settle(self) -> None:
        """Wait until everything that can happen has happened."""
        await anyio.wait_all_tasks_blocked()

    async def call(self, method: str, path: str, value: object = None, token: str | None = None) -> Answer:
        headers = [] if token is None else [("authorization", f"Bearer {token}")]
        body = b"" if value is None else json.dumps(value).encode()
        return await self.client.call(method, f"__ds/subscriptions/{path}", body, headers)

    async def put(self, name: str, **fields: object) -> Answer:
        return await self.call("PUT", name, fields)

    async def put_hook(self, name: str = "s1", pattern: str = "demo/*", **fields: object) -> Answer:
        answer = await self.put(name, type="webhook", pattern=pattern, webhook={"url": HOOK_URL}, **fields)
        assert answer.status in (200, 201), answer.text
        return answer

    async def put_pull(self, name: str = "s2", pattern: str = "demo/*", **fields: object) -> Answer:
        answer = await self.put(name, type="pull-wake", pattern=pattern, wake_stream="wake", **fields)
        assert answer.status in (200, 201), answer.text
        return answer

    async def write(self, path: str, text: str = "0123456789") -> str:
        """Append to a stream, which is created if need be; returns the tail."""
        await self.client.put(path, "text/plain")
        answer = await self.client.post(path, text.encode(), "text/plain")
        assert answer.status == 204, answer.text
        return answer.next_offset

    async def get(self, name: str) -> dict[str, Any]:
        return (await self.call("GET", name)).json()

    async def cursors(self, name: str) -> dict[str, str]:
        return {link["path"]: link["acked_offset"] for link in (await self.get(name))["streams"]}

    async def events(self, path: str = "wake") -> list[dict[str, Any]]:
        await self.settle()
        return (await self.client.get(f"{path}?offset=-1")).json()

    async def claim(self, name: str = "s2", worker: str = "A") -> dict[str, Any]:
        answer = await self.call("POST", f"{name}/claim", {"worker": worker})
        assert answer.status == 200, answer.text
        return answer.json()

    async def ack(self, claim: dict[str, Any], *acks: tuple[str, str], name: str = "s2", **more: object) -> Answer:
        value = {
            "wake_id": claim["wake_id"],
            "generation": claim["generation"],
            "acks": [{"stream": stream, "offset": offset} for stream, offset in acks],
            **more,
        }
        return await self.call("POST", f"{name}/ack", value, claim["token"])


@asynccontextmanager
async def serving(
    store: Any = None, *, clock: Clock | None = None, webhooks: bool = True, **options: Any
) -> AsyncIterator[Bench]:
    """The application, with its lifespan."""
    clock = clock or Clock()
    hook = Hook()
    app = DurableStreamsApp(
        MemoryStore() if store is None else store,
        clock=clock,
        rng=random.Random(7),
        webhooks=Webhooks(signing_key=SEED, post=hook) if webhooks else False,
        **{"token_key": b"k" * 32, "scan_interval": 1e6, **options},
    )
    to_app, receive = anyio.create_memory_object_stream[dict[str, Any]](2)
    send, from_app = anyio.create_memory_object_stream[dict[str, Any]](2)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(app, {"type": "lifespan"}, receive.receive, send.send)
            to_app.send_nowait({"type": "lifespan.startup"})
            assert (await from_app.receive())["type"] == "lifespan.startup.complete"
            try:
                yield Bench(app, clock, hook)
            finally:
                app.begin_shutdown()
                to_app.send_nowait({"type": "lifespan.shutdown"})
    finally:
        for stream in (to_app, receive, send, from_app, hook):
            stream.close()


def error(answer: Answer) -> tuple[int, str]:
    """Status and code of an error answer."""
    assert answer.headers["content-type"] == "application/json"
    value = answer.json()["error"]
    assert value["message"]
    return answer.status, value["code"]
