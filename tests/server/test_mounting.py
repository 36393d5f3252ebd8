"""The application as a part of another one: Starlette and FastAPI, with a life of its own (server 16)."""

import gzip
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from durable_streams.server import (
    AccessRequest,
    Allow,
    Deny,
    DurableStreamsApp,
    MemoryStore,
    Server,
    SQLiteStore,
    StoreFailedError,
)
from durable_streams.server.lifespan import SWEEP_JITTER

from .driver import Client, offset

pytestmark = pytest.mark.anyio
TEXT, JSON = "text/plain", "application/json"


class Recording(MemoryStore):
    """Notes when it is opened, closed and swept."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.swept: list[float] = []

    async def __aenter__(self) -> "Recording":
        self.events.append("open")
        return await super().__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        self.events.append(f"close {error[0].__name__}" if error[0] else "close")
        await super().__aexit__(*error)

    async def sweep(self, now: float) -> None:
        self.swept.append(anyio.current_time())


def request(
    server: Server, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    host, _, port = server.base_url.removeprefix("http://").partition(":")
    connection = HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


# The life of the application


async def test_in_its_life_the_store_is_open_and_subscriptions_are_served() -> None:
    store = Recording()
    client = Client(DurableStreamsApp(store))
    assert (await client.get("__ds/subscriptions/s")).status == 501
    async with client.app.lifespan():
        assert store.events == ["open"]
        assert (await client.get("__ds/subscriptions/s")).status == 404
        assert client.app.subscriptions.running
    assert store.events == ["open", "close"]
    assert not client.app.subscriptions.running
    assert (await client.get("x")).status == 503


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_an_application_may_live_again(tmp_path: Path, kind: str) -> None:
    client = Client(DurableStreamsApp(MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "store")))
    for number in range(3):
        async with client.app.lifespan():
            assert (await client.put(f"x{number}", TEXT, b"abc")).status == 201
            async with client.open(f"x{number}?offset=-1&live=sse") as events:
                await events.head()
                assert b"data:abc" in await events.piece()
                await client.post(f"x{number}", b"def", TEXT)
                assert b"data:def" in await events.piece()
                events.disconnect()
            assert (await client.get("__ds/subscriptions/s")).status == 404
        assert (await client.get("/ready")).status == 503


async def test_a_shutdown_that_begins_before_the_life_is_not_forgotten() -> None:
    client = Client(DurableStreamsApp())
    client.app.begin_shutdown()
    async with client.app.lifespan():
        assert (await client.get("x")).status == 503


def test_each_life_may_be_on_another_event_loop(tmp_path: Path) -> None:
    """As with test clients, which start an application again and again."""
    client = Client(DurableStreamsApp(SQLiteStore(tmp_path / "store")))

    async def live(number: int) -> None:
        async with client.app.lifespan():
            assert (await client.put(f"x{number}", TEXT, b"abc" * 1000)).status == 201
            assert (await client.get("x0", accept_encoding="gzip")).headers["content-encoding"] == "gzip"
            assert (await client.get("x0?offset=-1&live=long-poll")).status == 200

    for number, backend in enumerate(["asyncio", "trio", "asyncio", "trio"]):
        anyio.run(live, number, backend=backend)


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    store = Recording()
    with pytest.raises(KeyError, match="mine"):
        async with DurableStreamsApp(store).lifespan():
            raise KeyError("mine")
    assert store.events == ["open", "close KeyError"]


async def test_a_life_may_be_cancelled() -> None:
    store = Recording()
    with anyio.CancelScope() as scope:
        async with DurableStreamsApp(store).lifespan():
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert store.events[0] == "open"
    assert store.events[1].startswith("close Cancel")


async def test_a_store_that_does_not_open_says_why_and_nothing_is_left() -> None:
    class Locked(Recording):
        async def __aenter__(self) -> "Locked":
            raise OSError("in use by another process")

    store = Locked()
    with pytest.raises(OSError, match="in use"):
        async with DurableStreamsApp(store).lifespan():
            pass
    assert store.events == []


async def test_subscriptions_that_cannot_be_loaded_close_the_store_again() -> None:
    class Damaged(Recording):
        async def load_subscriptions(self) -> Any:
            raise StoreFailedError("damaged")

    store = Damaged()
    with pytest.raises(StoreFailedError, match="damaged"):
        async with DurableStreamsApp(store).lifespan():
            pass
    assert store.events == ["open", "close StoreFailedError"]


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_the_pauses_between_sweeps_differ(anyio_backend: str) -> None:
    """On a clock that jumps: a thousand sweeps take no time."""
    import trio.testing

    store = Recording()
    app = DurableStreamsApp(store, sweep_interval=10.0, scan_interval=1e9)
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def live() -> None:
        async with app.lifespan():
            await anyio.sleep(10_000)

    from anyio.from_thread import start_blocking_portal

    def elsewhere() -> None:
        with start_blocking_portal("trio", {"clock": clock}) as portal:
            portal.call(live)

    await anyio.to_thread.run_sync(elsewhere)
    pauses = [later - earlier for earlier, later in zip(store.swept, store.swept[1:], strict=False)]
    assert 900 < len(pauses) < 1100
    assert len(set(pauses)) > 900
    assert min(pauses) >= 10 * (1 - SWEEP_JITTER)
    assert max(pauses) <= 10 * (1 + SWEEP_JITTER)
    assert max(pauses) - min(pauses) > 10 * SWEEP_JITTER


async def test_signals_are_heard_first_and_then_handled_as_before() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    mine = signal.getsignal(signal.SIGTERM)
    try:
        app = DurableStreamsApp(end_on_signals=True)
        async with app.lifespan():
            assert signal.getsignal(signal.SIGTERM) is not mine
            signal.raise_signal(signal.SIGTERM)
            assert heard == [signal.SIGTERM]
            with anyio.fail_after(5):
                while not app.waits.stopping:
                    await anyio.sleep(0.001)
        assert signal.getsignal(signal.SIGTERM) is mine
        async with DurableStreamsApp().lifespan():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_signals_that_nobody_handles_or_another_thread_hears_are_left_alone() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        async with DurableStreamsApp(end_on_signals=True).lifespan():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with Server(end_on_signals=True):  # in a thread
            assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


# Inside others


async def test_fastapi_runs_it_below_a_path_of_its_own(tmp_path: Path) -> None:
    streams = DurableStreamsApp(SQLiteStore(tmp_path / "store"), long_poll_timeout=0.05)
    api = FastAPI(lifespan=streams.lifespan)

    @api.get("/hello")
    def hello() -> str:
        return "world"

    api.mount("/streams", streams)
    async with Server(api, root="/streams/v1/stream") as server:
        assert server.url.endswith("/streams/v1/stream")

        def talk() -> None:
            assert request(server, "GET", "/hello")[2] == b'"world"'
            path = "/streams/v1/stream/a%2Fb"
            status, headers, _ = request(server, "PUT", path, b"[1]", content_type=JSON)
            assert (status, headers["location"]) == (201, f"{server.base_url}{path}")
            assert request(server, "POST", path, b"[2]", content_type=JSON)[0] == 204
            assert request(server, "GET", path)[2] == b"[1,2]"
            assert request(server, "GET", "/streams/v1/stream/a/b")[0] == 404
            status, headers, _ = request(server, "GET", f"{path}?offset=now&live=long-poll")
            assert (status, headers["stream-next-offset"]) == (204, offset(4))
            assert request(server, "GET", "/streams/ready")[2] == b"ready\n"
            assert request(server, "GET", "/ready")[0] == 404

        await anyio.to_thread.run_sync(talk)


async def test_subscriptions_work_in_a_mounted_application() -> None:
    streams = DurableStreamsApp(public_url="https://shop.example")
    outer = Starlette(routes=[Mount("/api", streams)], lifespan=streams.lifespan)
    async with Server(outer, root="/api/v1/stream") as server:

        def talk() -> dict[str, Any]:
            root = "/api/v1/stream"
            request(server, "PUT", f"{root}/wakes", content_type=JSON)
            config = {"type": "pull-wake", "pattern": "orders/*", "wake_stream": "wakes"}
            assert request(server, "PUT", f"{root}/__ds/subscriptions/s", json.dumps(config).encode())[0] == 201
            request(server, "PUT", f"{root}/orders/1", b"tea", content_type=TEXT)
            _, _, body = request(server, "POST", f"{root}/__ds/subscriptions/s/claim", b'{"worker":"w"}')
            claim: dict[str, Any] = json.loads(body)
            return claim

        claim = await anyio.to_thread.run_sync(talk)
        assert [stream["path"] for stream in claim["streams"]] == ["orders/1"]


async def test_the_users_of_middleware_are_known_to_the_authorizer() -> None:
    from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser

    class ByHeader(AuthenticationBackend):
        async def authenticate(self, connection: Any) -> Any:
            name = connection.headers.get("x-user")
            return None if name is None else (AuthCredentials(), SimpleUser(name))

    def authorize(request: AccessRequest) -> Allow | Deny:
        user = request.scope["user"]
        if not user.is_authenticated:
            return Deny(401, "X-User")
        return Allow() if request.path.startswith(f"/v1/stream/{user.display_name}/") else Deny(403)

    streams = DurableStreamsApp(authorize=authorize)
    outer = Starlette(
        routes=[Mount("/", streams)],
        middleware=[Middleware(AuthenticationMiddleware, backend=ByHeader())],
        lifespan=streams.lifespan,
    )
    async with Server(outer, root="/v1/stream") as server:

        def talk() -> None:
            path = "/v1/stream/anna/x"
            status, headers, _ = request(server, "PUT", path)
            assert (status, headers["www-authenticate"]) == (401, "X-User")
            assert request(server, "PUT", path, x_user="bob")[0] == 403
            assert request(server, "PUT", path, x_user="anna")[0] == 201

        await anyio.to_thread.run_sync(talk)


async def test_what_is_compressed_here_is_not_compressed_again() -> None:
    body = b"0123456789" * 1000
    for compression in (True, False):
        streams = DurableStreamsApp(compression=compression)
        outer = Starlette(
            routes=[Mount("/", streams)], middleware=[Middleware(GZipMiddleware)], lifespan=streams.lifespan
        )
        async with Server(outer, root="/v1/stream") as server:

            def talk(server: Server) -> None:
                request(server, "PUT", "/v1/stream/x", body, content_type=TEXT)
                _, headers, received = request(server, "GET", "/v1/stream/x", accept_encoding="gzip")
                assert headers["content-encoding"] == "gzip"
                assert gzip.decompress(received) == body

            await anyio.to_thread.run_sync(talk, server)


async def test_an_application_that_mounts_it_ends_with_its_store_closed() -> None:
    store = Recording()
    streams = DurableStreamsApp(store)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        store.events.append("outer open")
        async with streams.lifespan(app):
            yield
        store.events.append("outer close")

    async with Server(Starlette(routes=[Mount("/", streams)], lifespan=lifespan)):
        assert store.events == ["outer open", "open"]
    assert store.events == ["outer open", "open", "close", "outer close"]


async def test_readers_of_a_mounted_application_end_when_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should they not, the server waits for an hour, and the test fails by its time limit."""
    from durable_streams.server import _uvicorn

    monkeypatch.setattr(_uvicorn, "GRACE", 3600.0)
    streams = DurableStreamsApp(sse_max_age=3600, sse_keep_alive=3600)
    outer = Starlette(routes=[Mount("/", streams)], lifespan=streams.lifespan)
    outer.begin_shutdown = streams.begin_shutdown  # type: ignore[attr-defined]
    async with Server(outer, root="/v1/stream") as server:
        await anyio.to_thread.run_sync(request, server, "PUT", "/v1/stream/x")
        port = int(server.base_url.rpartition(":")[2])
        stream = await anyio.connect_tcp("127.0.0.1", port)
        await stream.send(b"GET /v1/stream/x?offset=-1&live=sse HTTP/1.1\r\nHost: s\r\n\r\n")
        with anyio.fail_after(10):
            received = await stream.receive()
    with anyio.fail_after(10):
        while b"\r\n0\r\n\r\n" not in received:
            received += await stream.receive()
    await stream.aclose()
    assert received.startswith(b"HTTP/1.1 200 ")
