"""Everything at once: random requests never break the interface, and workers that race never work twice."""

import json
import random

import anyio
import pytest

from ..driver import offset
from .driver import Bench, serving

pytestmark = pytest.mark.anyio

ODD_VALUES = [
    *(None, True, 0, -1, 1, 2**70, 1.5),
    *("", "x", "demo/a", "**", "wake", "\ud800"),
    *([], [None], ["x"], {}, {"url": 1}),
]
FIELDS = [
    *("type", "pattern", "streams", "webhook", "wake_stream", "lease_ttl_ms"),
    *("worker", "wake_id", "generation", "acks"),
]
ACTIONS = [
    *("", "/streams", "/streams/demo/a", "/streams/%2525"),
    *("/callback", "/claim", "/ack", "/release", "/x", "/ack/x"),
]


def odd_body(rng: random.Random, claim: dict[str, object]) -> bytes:
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(20))
    value: dict[str, object] = {}
    if rng.random() < 0.7:
        value = {"type": "pull-wake", "pattern": "demo/*", "wake_stream": "wake", "worker": "A", "streams": ["demo/b"]}
        value |= {"wake_id": claim.get("wake_id", "w"), "generation": claim.get("generation", 1), "done": True}
        value["acks"] = [{"stream": "demo/a", "offset": offset(rng.randrange(12))}]
    for name in rng.sample(FIELDS, rng.randrange(3)):
        value[name] = rng.choice(ODD_VALUES)
    return json.dumps(value).encode()


@pytest.mark.parametrize("seed", range(4))
async def test_random_requests_get_proper_answers(seed: int) -> None:
    rng = random.Random(seed)
    claim: dict[str, object] = {}
    async with serving() as bench:
        await bench.client.put("wake", "application/json")
        statuses = set()
        for _ in range(300):
            if rng.random() < 0.2:
                await bench.call("PUT", "s1", {"type": "pull-wake", "pattern": "demo/*", "wake_stream": "wake"})
            if rng.random() < 0.2:
                await bench.write(f"demo/{rng.choice('ab')}", "x")
            if rng.random() < 0.05:
                await bench.client.delete("demo/a")
            if rng.random() < 0.05:
                await bench.advance(rng.random() * 40)
            method = rng.choice(["GET", "PUT", *["POST"] * 12, "DELETE", "PATCH"])
            path = f"__ds/subscriptions/{rng.choice(['s1'] * 6 + ['s2', '%2F'])}{rng.choice(ACTIONS)}"
            token = str(claim.get("token", "x")) if rng.random() < 0.8 else "x"
            headers = [("authorization", f"Bearer {token}")]

            answer = await bench.client.call(method, path, odd_body(rng, claim), headers)

            statuses.add(answer.status)
            assert answer.status in (200, 201, 204, 400, 401, 404, 405, 409), answer.text
            if answer.status >= 400:
                assert set(answer.json()["error"]) >= {"code", "message"}
            elif path.endswith("/claim"):
                claim = answer.json()
        assert statuses >= {200, 204, 400, 401, 404, 405, 409}


async def test_workers_that_race_do_everything_once() -> None:
    done: dict[str, list[tuple[int, int]]] = {}
    holders = 0

    async def work(bench: Bench, name: str, finished: anyio.Event) -> None:
        nonlocal holders
        rng = random.Random(name)
        while True:
            answer = await bench.call("POST", "s2/claim", {"worker": name})
            if answer.status == 200:
                holders += 1
                assert holders == 1, "two workers hold the lease"
                claim = answer.json()
                for _ in range(rng.randrange(3)):
                    await anyio.lowlevel.checkpoint()
                acks = []
                for entry in claim["streams"]:
                    if entry["has_pending"] and rng.random() < 0.8:
                        start = max(int(entry["acked_offset"].partition("_")[2] or 0), 0)
                        end = int(entry["tail_offset"].partition("_")[2])
                        done.setdefault(entry["path"], []).append((start, end))
                        acks.append((entry["path"], entry["tail_offset"]))
                holders -= 1
                assert (await bench.ack(claim, *acks, done=True)).status == 200
            elif finished.is_set() and answer.json()["error"]["code"] == "NO_PENDING_WORK":
                return
            await anyio.lowlevel.checkpoint()

    async with serving() as bench:
        await bench.client.put("wake", "application/json")
        await bench.put_pull()
        finished = anyio.Event()
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for name in "ABC":
                    group.start_soon(work, bench, name, finished)
                for number in range(60):
                    await bench.write(f"demo/{number % 5}", "x" * (1 + number % 7))
                finished.set()
        tails = await bench.cursors("s2")

    for path, parts in done.items():
        ends = [0, *(end for _, end in parts)]
        assert [start for start, _ in parts] == ends[:-1], "something was worked on twice, or never"
        assert tails[path] == offset(ends[-1])
    assert len(done) == 5


async def test_generations_of_wake_events_only_rise() -> None:
    async with serving() as bench:
        await bench.client.put("wake", "application/json")
        await bench.put_pull(lease_ttl_ms=1000)
        rng = random.Random(3)
        for _ in range(40):
            await bench.write(f"demo/{rng.randrange(3)}", "x")
            await bench.settle()
            answer = await bench.call("POST", "s2/claim", {"worker": "A"})
            if answer.status == 200 and rng.random() < 0.5:
                claim = answer.json()
                acks = [(entry["path"], entry["tail_offset"]) for entry in claim["streams"]]
                await bench.ack(claim, *acks, done=True)
            else:
                await bench.advance(rng.random() * 1.5)

        generations = [event["generation"] for event in await bench.events()]

        assert generations == sorted(set(generations))
        assert len(generations) > 10
