"""What every store that keeps subscriptions owes (`SubscriptionStore`): one function for all of them.

await check_subscription_store(lambda: SQLiteStore(path))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from durable_streams.server import CreateRequest, Instant, StreamConfig, SubscriptionStore
from durable_streams.server.subscriptions.model import BEFORE, PULL_WAKE, WEBHOOK, Config, Link, State
from durable_streams.server.subscriptions.records import Record

NOW = 1_788_264_000.0
ROOT = "/v1/stream"
PULL = Record(
    ROOT, "a/b ü", "life-1", Config(PULL_WAKE, "demo/*", ("x",), wake_stream="w"), NOW + 0.25, "http://s.example"
)
HOOK = Record(
    ROOT,
    "s1",
    "life-2",
    Config(WEBHOOK, streams=("é%20",), webhook_url="https://w.example/", lease_ttl_ms=1000, description="\x00 ☃"),
    NOW,
    "https://s.example",
    State(7, "w_1", None, NOW + 1.5, NOW + 0.125, 3),
)


async def check_subscription_store(make: Callable[[], Any]) -> None:
    """Hold a store to its contract.

    Args:
        make: Makes the store, unopened; each call makes one that finds what an earlier one has kept.
    """
    await _check_streams(make)
    await _check_records(make)
    await _check_secrets(make)


async def _check_streams(make: Callable[[], Any]) -> None:
    async with make() as store:
        assert isinstance(store, SubscriptionStore)
        for name in ("b", "a/2", "a/1", "a", "a!", "ab", "A", "%C3%BC"):
            await store.create(CreateRequest(f"{ROOT}/{name}", StreamConfig()), NOW)
        mortal = StreamConfig(expires_at=Instant.parse("2026-09-01T12:00:05Z"))
        await store.create(CreateRequest(f"{ROOT}/a/mortal", mortal), NOW)

        async def names(prefix: str, after: str = "", limit: int = 100, now: float = NOW) -> list[str]:
            found = await store.list_streams(f"{ROOT}/{prefix}", after and f"{ROOT}/{after}", limit, now)
            return [info.ref.path.removeprefix(f"{ROOT}/") for info in found]

        assert await names("") == ["%C3%BC", "A", "a", "a!", "a/1", "a/2", "a/mortal", "ab", "b"]
        assert await names("a") == ["a", "a!", "a/1", "a/2", "a/mortal", "ab"]
        assert await names("a/", now=NOW + 5) == ["a/1", "a/2"]
        assert await names("a", limit=2) == ["a", "a!"]
        assert await names("a", after="a!", limit=2) == ["a/1", "a/2"]
        assert await names("a", after="zz") == []
        assert await names("%", after="") == ["%C3%BC"]
        assert await names("_") == []
        await store.delete(f"{ROOT}/a/1", NOW)
        assert await names("a/", after="a/1", now=NOW + 5) == ["a/2"]
        info = (await store.list_streams(f"{ROOT}/b", "", 1, NOW))[0]
        assert info == await store.head(f"{ROOT}/b", NOW)


async def _check_records(make: Callable[[], Any]) -> None:
    links = {"demo/a": Link(5, glob=True, incarnation="L1"), "x": Link(BEFORE, explicit=True)}
    async with make() as store:
        assert list(await store.load_subscriptions()) == []
        await store.save_subscription(PULL, links)
        await store.save_subscription(HOOK, {})
    async with make() as store:
        loaded = {record.path: (record, dict(kept)) for record, kept in await store.load_subscriptions()}
        assert loaded == {PULL.path: (PULL, links), HOOK.path: (HOOK, {})}
        moved = replace(PULL, state=State(1, "w_1", "worker ☃", NOW + 30))
        await store.save_subscription(moved, {"x": None, "demo/a": Link(9, True, True, "L1"), "never": None})
        await store.remove_subscription(HOOK.path)
        await store.remove_subscription(HOOK.path)
    async with make() as store:
        [(record, kept)] = await store.load_subscriptions()
        assert (record, dict(kept)) == (moved, {"demo/a": Link(9, True, True, "L1")})
        successor = replace(PULL, incarnation="life-3")
        await store.save_subscription(successor, {"new": Link()})
    async with make() as store:
        [(record, kept)] = await store.load_subscriptions()
        assert (record, dict(kept)) == (successor, {"new": Link()})


async def _check_secrets(make: Callable[[], Any]) -> None:
    async with make() as store:
        assert await store.keep_secret("k", bytes(range(256))) == bytes(range(256))
        assert await store.keep_secret("other", b"") == b""
    async with make() as store:
        assert await store.keep_secret("k", b"2") == bytes(range(256))
