"""Ten thousand messages over a network on which everything goes wrong: each is stored once, in order.

A seed decides the faults, the batches and the ways of appending; time is faked, so that a seed repeats exactly.
`DURABLE_STREAMS_SEEDS=1000 python -m pytest tests/producer/test_faults.py` tries more of them.
"""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import suppress
from itertools import islice
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from durable_streams import (
    ASGITransport,
    BackoffOptions,
    Batching,
    BufferFullError,
    DurableStream,
    IdempotentProducer,
    stream,
)
from durable_streams.server import DurableStreamsApp
from durable_streams.testing import FaultTransport

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fake_clock")]

SEEDS = range(int(os.environ.get("DURABLE_STREAMS_SEEDS", "20")))
COUNT = 10_000
KINDS = ("refuse", "reset_before", "status_5xx", "reset_after", "duplicate", "cut_body", "delay", "reorder")


async def append_all(producer: IdempotentProducer, rng: random.Random) -> None:
    """Append the numbers below `COUNT` in every way there is, and flush now and then."""
    numbers = iter(range(COUNT))
    while run := list(islice(numbers, rng.randint(1, 400))):
        match rng.randrange(6):
            case 0:
                await producer.append_many([b"%d" % number for number in run])
            case 1:
                await producer.append_many(map(str, run))
            case 2:
                for number in run:
                    await producer.append_json(number)
            case 3:
                for number in run:
                    await producer.append(b"%d" % number)
            case 4:
                for number in run:
                    try:
                        producer.append_json_nowait(number)
                    except BufferFullError:
                        await producer.append_json(number)
            case _:
                await producer.append_many(str(number) for number in run[:-1])
                await producer.send(str(run[-1]))
        if rng.random() < 0.1:
            await producer.flush()
        await anyio.sleep(rng.choice([0.0, 0.0, 0.001, 0.05]))


async def stored(url: str, app: DurableStreamsApp) -> list[Any]:
    transport = ASGITransport(app)
    async with stream(url, live=False, transport=transport) as response:
        items: list[Any] = await response.json()
    await transport.aclose()
    return items


@pytest.mark.parametrize("seed", SEEDS)
async def test_each_message_is_stored_once_and_in_order_whatever_the_network_does(seed: int) -> None:
    with suppress(RuntimeError):
        asyncio.get_running_loop().set_debug(False)  # With it this takes thrice the time.
    rng = random.Random(seed)
    rates: dict[str, Any] = {kind: rng.choice([0.0, 0.02, 0.1]) for kind in KINDS}
    app = DurableStreamsApp(compression=False)  # It works in a thread, and faked time waits for none.
    url = "http://server/v1/stream/numbers"
    transport = FaultTransport(ASGITransport(app), seed=rng, max_delay=rng.choice([0.01, 0.3, 3.0]), **rates)
    retry = BackoffOptions(initial_delay=0.05, max_delay=1.0, multiplier=2.0)
    async with DurableStream(url, content_type="application/json", transport=transport) as handle:
        await handle.create_or_connect()
        async with IdempotentProducer(
            handle,
            "numbers",
            # A repetition of the first request looks like another writer to who may claim (guide: exactly once).
            auto_claim=not rates["duplicate"],
            batching=rng.choice([Batching.DEFAULT, Batching.LOW_LATENCY, Batching.HIGH_THROUGHPUT]),
            max_batch_bytes=rng.choice([100, 500, 4000]),
            max_batch_items=rng.choice([None, 10, 70]),
            max_in_flight=rng.randint(1, 8),
            max_buffered_bytes=rng.choice([3000, 1 << 20]),
            retry=retry,
            delivery_timeout=1e6,
        ) as producer:
            await append_all(producer, rng)
            await producer.flush()
            statistics = producer.statistics()
            if rng.random() < 0.5:
                await producer.close_stream(b"-1" if rng.random() < 0.5 else None)

    items = await stored(url, app)
    if items[-1] == -1:
        items.pop()
    assert items == list(range(COUNT))
    assert (statistics.pending, statistics.claims, statistics.epoch) == (0, 0, 0)
    await transport.aclose()
