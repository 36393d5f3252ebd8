"""The end of a server, and its beginning: lifespan, `begin_shutdown` (server 16)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from durable_streams.server import DurableStreamsApp, MemoryStore

from .driver import Client, connect, offset

pytestmark = pytest.mark.anyio
TEXT = "text/plain"


class Lifespan:
    """Plays an ASGI server's part in the lifespan protocol."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.sent: list[dict[str, Any]] = []
        self._stop = anyio.Event()
        self._answered = anyio.Event()

    async def _receive(self) -> dict[str, Any]:
        if not self._answered.is_set():
            return {"type": "lifespan.startup"}
        await self._stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        self._answered.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(self.app, {"type": "lifespan"}, self._receive, self._send)
            await self._answered.wait()
            yield
            self._stop.set()


class Recording(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.swept = anyio.Event()

    async def __aenter__(self) -> "Recording":
        self.events.append("open")
        return await super().__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        self.events.append("close")
        await super().__aexit__(*error)

    async def sweep(self, now: float) -> None:
        await super().sweep(now)
        self.swept.set()


async def test_lifespan_opens_and_closes_the_store() -> None:
    store = Recording()
    lifespan = Lifespan(DurableStreamsApp(store))
    async with lifespan.running():
        assert store.events == ["open"]
        assert lifespan.sent == [{"type": "lifespan.startup.complete"}]
    assert store.events == ["open", "close"]
    assert lifespan.sent[-1] == {"type": "lifespan.shutdown.complete"}


async def test_a_store_that_does_not_open_fails_the_start() -> None:
    class Locked(MemoryStore):
        async def __aenter__(self) -> "Locked":
            raise OSError("in use by another process")

    lifespan = Lifespan(DurableStreamsApp(Locked()))
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="in use")):
        async with lifespan.running():
            pass
    assert lifespan.sent == [{"type": "lifespan.startup.failed", "message": "OSError: in use by another process"}]


async def test_expired_streams_are_swept_now_and_then() -> None:
    store = Recording()
    app = DurableStreamsApp(store, sweep_interval=0.001, clock=lambda: 1e9)
    async with Lifespan(app).running():
        await Client(app).put("x", TEXT, stream_expires_at="2001-01-01T00:00:00Z")
        store.swept = anyio.Event()
        with anyio.fail_after(5):
            await store.swept.wait()
        assert repr(store) == "<MemoryStore with 0 streams>"


async def test_a_failing_sweep_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Recording):
        async def sweep(self, now: float) -> None:
            if not self.events[1:]:
                self.events.append("failed")
                raise RuntimeError("no luck")
            await super().sweep(now)

    store = Failing()
    async with Lifespan(DurableStreamsApp(store, sweep_interval=0.001)).running():
        with anyio.fail_after(5):
            await store.swept.wait()
    assert "no luck" in caplog.text


async def test_waiting_readers_get_a_proper_end(client: Client) -> None:
    await client.put("x", TEXT, b"abc")
    async with (
        client.open("x?offset=now&live=long-poll") as poll,
        client.open("x?offset=-1&live=sse") as events,
    ):
        await events.head()
        assert b"event: data\ndata:abc\n\nevent: control\n" in await events.piece()
        await anyio.wait_all_tasks_blocked()

        client.app.begin_shutdown()
        client.app.begin_shutdown()

        assert await poll.head() == 204
        await poll.rest()
        assert poll.headers["connection"] == "close"
        assert poll.headers["stream-next-offset"] == offset(3)
        assert "stream-closed" not in poll.headers
        assert await events.rest() == b""
    assert repr(client.app).startswith("<DurableStreamsApp stopping")


async def test_new_requests_are_503_with_retry_after(client: Client) -> None:
    await client.put("x", TEXT)
    client.app.begin_shutdown()
    for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
        answer = await client.call(method, "x")
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
    assert (await client.call("OPTIONS", "x")).status == 204


async def test_an_append_in_progress_finishes(client: Client) -> None:
    await client.put("x", TEXT)
    headers = {"content-type": TEXT, "content-length": "4"}
    async with connect(client.app, client.scope("POST", "x", headers)) as append:
        append.send_body(b"ab", more=True)
        await anyio.wait_all_tasks_blocked()
        client.app.begin_shutdown()
        append.send_body(b"cd")
        assert await append.head() == 204
        await append.rest()
    assert append.headers["stream-next-offset"] == offset(4)


async def test_an_event_that_is_being_sent_is_sent_whole(client: Client) -> None:
    await client.put("x", TEXT)
    async with client.open("x?offset=-1&live=sse") as events:
        await events.head()
        await events.piece()
        await client.post("x", b"abc", TEXT)
        await anyio.wait_all_tasks_blocked()
        client.app.begin_shutdown()
        assert (await events.rest()).count(b"\n\n") == 2
