"""A store with something of everything in it, for what is done with stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from durable_streams.server import Appended, Created, Instant, ProducerStamp, SQLiteStore
from durable_streams.server.subscriptions.model import Config, Link
from durable_streams.server.subscriptions.records import Record
from durable_streams.testing.store_steps import append_to, create_stream, expect, fork_stream

JSON = "application/json"
ROOT = "/v1/stream"
NOW = 1_788_264_000.0


def path_of(name: str) -> str:
    return f"{ROOT}/{name}"


async def made(how: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> None:
    expect(Created, await how(*args, **options))


async def appended(*args: Any, **options: Any) -> None:
    expect(Appended, await append_to(*args, **options))


async def fill(store: SQLiteStore) -> None:
    """Fill a store that is open."""
    json, text, data = path_of("json"), path_of("text"), path_of("bytes")
    at = {"now": NOW}
    await made(create_stream, store, JSON, path=json, body=b'[1.0,{"a":12345678901234567890}]', ttl=600, **at)
    for seq in range(5):
        stamp = ProducerStamp("p", 2, seq)
        await appended(store, b'["%d","x"]' % seq, JSON, path=json, producer=stamp, now=NOW + seq)
    await appended(store, b'["other"]', JSON, path=json, producer=ProducerStamp("q", 0, 0), seq=b"\xff7", **at)

    await made(create_stream, store, "text/plain; charset=utf-8", path=text, body="gräßlich\n".encode() * 40, **at)
    await appended(store, "€".encode(), "text/plain", path=text, close=True, producer=ProducerStamp("é", 0, 0), **at)

    await made(create_stream, store, path=data, body=bytes(range(256)) * 10, **at)
    await appended(store, b"\x00" * (5 << 18), path=data, **at)

    await made(fork_stream, store, path_of("fork"), 31, 1, source=json, body=b"[7]", **at)
    await made(fork_stream, store, path_of("fork/of-fork"), source=path_of("fork"), **at)
    await appended(store, b"[null]", JSON, path=path_of("fork/of-fork"), producer=ProducerStamp("p", 0, 0), **at)

    await made(create_stream, store, path=path_of("kept"), body=b"kept for a fork", **at)
    await made(fork_stream, store, path_of("keeper"), 4, source=path_of("kept"), **at)
    await store.delete(path_of("kept"), NOW)
    await made(create_stream, store, path=path_of("gone"), body=b"gone", **at)
    await store.delete(path_of("gone"), NOW)

    await made(
        create_stream,
        store,
        path=path_of("empty"),
        closed=True,
        expires_at=Instant.parse("2999-01-01T00:00:00.500Z"),
        **at,
    )
    config = Config("pull-wake", "**", (), wake_stream=path_of("json"), description="a worker")
    record = Record(ROOT, "worker", "inc", config, NOW, "http://localhost:4437")
    await store.save_subscription(record, {json: Link(8, True, True, "i"), data: Link(-1, False, True, "j")})
    await store.keep_secret("token key", b"k" * 32)


async def make(path: Path) -> Path:
    """A closed store at `path`."""
    async with SQLiteStore(path) as store:
        await fill(store)
    return path
