"""Operators see what is in a store: in its file, and over HTTP while it is served, for those who may read it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from durable_streams.server import (
    AccessRequest,
    Allow,
    Deny,
    DurableStreamsApp,
    MemoryStore,
    ProducerStamp,
    SQLiteStore,
    Store,
    StoreFormatError,
    inspect_store,
    inspecting,
)
from durable_streams.testing.store_steps import append_to, create_stream, fork_stream

from ..driver import Client
from .sample import JSON, NOW, fill, make, path_of

pytestmark = pytest.mark.anyio


async def test_a_file_tells_what_is_in_it(tmp_path: Path) -> None:
    path = await make(tmp_path / "store.db")

    with inspect_store(path) as look:
        store, streams = look.store(), {stream.path: stream for stream in look.streams()}
        producers = list(look.producers(path_of("json")))
        (subscription,) = look.subscriptions()

    assert (store.streams, store.soft_deleted, store.removed, store.subscriptions) == (7, 1, 1, 1)
    assert (store.clean, store.schema_version, store.file_bytes) == (True, 2, path.stat().st_size)
    assert list(streams) == sorted(streams)
    assert len(streams) == 8
    json_stream, kept = streams[path_of("json")], streams[path_of("kept")]
    assert json_stream.line() == {
        "kind": "stream",
        "path": "/v1/stream/json",
        "content_type": JSON,
        "offset": f"{0:016}_{79:016}",
        "bytes": 79,
        "closed": False,
        "soft_deleted": False,
        "ttl": 600,
        "expires_at": None,
        "last_used": NOW + 4,
        "fork_of": None,
        "forks": 1,
        "producers": 2,
    }
    assert (kept.soft_deleted, kept.forks, streams[path_of("text")].closed) == (True, 1, True)
    fork = streams[path_of("fork/of-fork")]
    assert (fork.fork_of, fork.tail, fork.size) == ("/v1/stream/fork", 42, 5)
    assert [(each.id, each.epoch, each.seq, each.tail) for each in producers] == [("p", 2, 4, 71), ("q", 0, 0, 79)]
    assert subscription.line() == {
        "kind": "subscription",
        "id": "worker",
        "root": "/v1/stream",
        "type": "pull-wake",
        "pattern": "**",
        "generation": 0,
        "holder": None,
        "lease_until": None,
        "failures": 0,
        "streams": {"/v1/stream/bytes": "-1", "/v1/stream/json": f"{0:016}_{8:016}"},
    }


async def test_a_store_in_use_is_seen_as_it_was_when_the_look_began(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        await fill(store)

        def look_twice() -> tuple[int, int]:
            with inspect_store(store.path) as look:
                first = sum(stream.size for stream in look.streams())
                anyio.from_thread.run(append_to, store, b"[0]", JSON)
                return first, sum(stream.size for stream in look.streams())

        await create_stream(store, JSON)
        first, second = await anyio.to_thread.run_sync(look_twice)
        with inspect_store(store.path) as look:
            assert not look.store().clean
            assert sum(stream.size for stream in look.streams()) == first + 2
    assert first == second


async def test_a_prefix_is_one_of_whole_segments(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        for name in ("a", "a/b", "a/b/c", "a-b", "a0", "b"):
            await create_stream(store, path=f"/s/{name}")
    memory = MemoryStore()
    for name in ("a", "a/b", "a/b/c", "a-b", "a0", "b"):
        await create_stream(memory, path=f"/s/{name}")

    with inspect_store(store.path) as look:
        assert [stream.path for stream in look.streams("/s/a")] == ["/s/a", "/s/a/b", "/s/a/b/c"]
        assert len(list(look.streams("/s"))) == len(list(look.streams())) == 6
        assert list(look.streams("/t")) == []
    assert [stream.path for stream in await memory.report_streams("/s/a", "/s/a", 2)] == ["/s/a/b", "/s/a/b/c"]


async def test_damage_is_told(tmp_path: Path) -> None:
    path = await make(tmp_path / "store.db")
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))

    with pytest.raises(StoreFormatError, match="damaged"), inspect_store(path) as look:
        look.store()


# --- over HTTP


@asynccontextmanager
async def serving(store: Store, **options: Any) -> AsyncIterator[DurableStreamsApp]:
    app = DurableStreamsApp(store, **options)
    async with app.lifespan():
        yield app


async def lines(app: DurableStreamsApp, query: str = "", **headers: str) -> list[dict[str, Any]]:
    answer = await Client(app).call("GET", f"/inspect{query}", headers=headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson"), answer.text
    assert answer.headers["cache-control"] == "no-store"
    return [json.loads(line) for line in answer.body.splitlines()]


async def test_a_server_tells_the_same_as_the_file(tmp_path: Path) -> None:
    async with serving(SQLiteStore(tmp_path / "store.db"), inspection=True) as app:
        assert isinstance(app.store, SQLiteStore)
        await fill(app.store)
        told = await lines(app, "?producers=1")
        with inspect_store(app.store.path) as look:
            seen = [look.store().line(), *(each.line() for each in look.subscriptions())]
            for stream in look.streams():
                seen += [stream.line(), *(producer.line() for producer in look.producers(stream.path))]

    assert told == seen


async def test_both_stores_tell_the_same_over_http(tmp_path: Path) -> None:
    told = []
    for store in (MemoryStore(), SQLiteStore(tmp_path / "store.db")):
        async with serving(store, inspection=True) as app:
            await create_stream(store, JSON, path=path_of("a"), body=b"[1]", ttl=60, now=NOW)
            await append_to(store, b"[2]", JSON, path=path_of("a"), producer=ProducerStamp("p", 0, 0), now=NOW)
            await append_to(store, b"[2]", JSON, path=path_of("a"), producer=ProducerStamp("q", 4, 0), now=NOW + 1)
            await fork_stream(store, path_of("a/fork"), 2, source=path_of("a"), now=NOW + 1)
            await store.delete(path_of("a"), NOW + 1)
            told.append(await lines(app, "?prefix=/v1/stream/a"))

    assert told[0] == [each | {"producers": 0} for each in told[1]]  # what nobody can write to needs no producers
    assert [(each["kind"], each["path"]) for each in told[0]] == [
        ("stream", path_of("a")),
        ("stream", path_of("a/fork")),
    ]


async def test_more_comes_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspecting, "PAGE", 2)
    store = MemoryStore()
    for name in "abcde":
        await create_stream(store, path=f"/s/{name}")

    async with serving(store, inspection=True) as app:
        seen = [each["path"] for each in await lines(app) if each["kind"] == "stream"]
        while len(found := await lines(app, f"?after={seen[-1]}")) and found[-1]["kind"] == "more":
            assert found[-1]["after"] == found[-2]["path"]
            seen += [each["path"] for each in found[:-1]]
        seen += [each["path"] for each in found]

    assert seen == [f"/s/{name}" for name in "abcde"]


async def test_there_is_no_inspection_unless_it_was_asked_for() -> None:
    async with serving(MemoryStore()) as app:
        assert (await Client(app).call("GET", "/inspect")).status == 404


async def test_who_may_read_a_path_may_list_what_is_below_it_and_nothing_else() -> None:
    asked: list[tuple[str, str]] = []

    def authorize(request: AccessRequest) -> Allow | Deny:
        asked.append((request.path, request.action))
        if request.token is None:
            return Deny(401)
        return Allow() if request.path == "/v1/stream/mine" else Deny(403)

    async with serving(MemoryStore(), inspection=True, authorize=authorize) as app:
        await create_stream(app.store, path=path_of("mine"))
        await create_stream(app.store, path=path_of("yours"))
        token = {"authorization": "Bearer t"}
        mine = await lines(app, "?prefix=/v1/stream/mine", **token)
        refused = [
            (await Client(app).call("GET", f"/inspect{query}", headers=headers)).status
            for query, headers in (("", token), ("?prefix=/v1/stream", token), ("?prefix=/v1/stream/mine", {}))
        ]

    assert [each["path"] for each in mine] == [path_of("mine")]
    assert refused == [403, 403, 401]
    assert asked[1] == ("/", "read")


@pytest.mark.parametrize(
    "query", ["?prefix=a", "?prefix=/a/../b", "?after=%ff", "?producers=2", "?limit=5", "?after=/a&after=/b", "?x"]
)
async def test_nonsense_is_refused(query: str) -> None:
    async with serving(MemoryStore(), inspection=True) as app:
        assert (await Client(app).call("GET", f"/inspect{query}")).status == 400


async def test_only_reading_is_possible() -> None:
    async with serving(MemoryStore(), inspection=True) as app:
        answer = await Client(app).call("POST", "/inspect")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert (await Client(app).call("HEAD", "/inspect")).body == b""
