"""The official TypeScript SDK takes our fake for an S2 server, and recovers from its faults."""

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from durable_streams.testing import S2Fake, S2Fault, S2Operation

from .conftest import TypeScriptClient

pytestmark = pytest.mark.anyio

BASIN, STREAM = "typescript-1", "a/stream"
BODIES = [b"%d" % number for number in range(40)]
BATCHES = [[b64encode(body).decode()] for body in BODIES]
RETRY = {"maxAttempts": 5, "minBaseDelayMillis": 1, "maxBaseDelayMillis": 10}


@pytest.fixture
async def fake() -> AsyncIterator[S2Fake]:
    async with S2Fake() as server:
        server.add_basin(BASIN, streams=[STREAM])
        yield server


def where(fake: S2Fake, **more: Any) -> dict[str, Any]:
    return {"endpoint": fake.url, "basin": BASIN, "stream": STREAM, "retry": RETRY, "transport": "s2s", **more}


def stored(fake: S2Fake) -> list[bytes]:
    return [record.body for record in fake.records(BASIN, STREAM)]


def without_repeats(bodies: Sequence[bytes]) -> list[bytes]:
    return list(dict.fromkeys(bodies))


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [S2Fault("refuse", "append_session", status=503)],
        [S2Fault("cut_after", "append_session", after=7), S2Fault("cut_before", "append_session", after=3)],
        [S2Fault("refuse", "append_session", after=5, status=429, code="rate_limited")],
        [S2Fault("truncate", "append_session", after=4)],
        [S2Fault("delay", "append_session", after=2, delay=0.1)],
        [S2Fault.draining("append_session", after=6)],
    ],
    ids=lambda faults: "+".join(fault.kind for fault in faults) or "none",
)
async def test_an_append_session_comes_through(ts_s2: TypeScriptClient, fake: S2Fake, faults: list[S2Fault]) -> None:
    fake.faults.script(faults)

    answer = await ts_s2.call("append_session", batches=BATCHES, **where(fake))

    assert answer["ends"] == sorted(answer["ends"])
    assert without_repeats(stored(fake)) == BODIES
    assert len(fake.faults.log) == len(faults)
    if not any(fault.kind in ("cut_after", "truncate") for fault in faults):
        assert stored(fake) == BODIES


@pytest.mark.parametrize("transport", ["s2s", "fetch"])
@pytest.mark.parametrize("piece", [None, 1])
async def test_a_read_session_comes_through(
    ts_s2: TypeScriptClient, fake: S2Fake, transport: str, piece: int | None
) -> None:
    await ts_s2.call("append_session", batches=BATCHES, **where(fake))
    fake.behaviour.piece = piece
    operation: S2Operation = "read_session" if transport == "s2s" else "read_sse"
    refuse = S2Fault("refuse", operation, status=500, code="other")
    fake.faults.script([refuse, S2Fault("cut_before", operation, after=0)])

    answer = await ts_s2.call("read_session", count=len(BODIES), **where(fake, transport=transport))

    assert [b64decode(body) for _, body in answer["records"]] == BODIES
    assert [fault.kind for _, fault in fake.faults.log] == ["refuse", "cut_before"]


async def test_small_compressed_frames_and_reserved_bits_are_read(ts_s2: TypeScriptClient, fake: S2Fake) -> None:
    fake.behaviour.min_compressed = 0
    fake.behaviour.reserved_bits = 0x0F
    place = where(fake, compression="gzip")

    await ts_s2.call("append_session", batches=BATCHES, **place)
    answer = await ts_s2.call("read_session", count=len(BODIES), **place)

    assert [b64decode(body) for _, body in answer["records"]] == BODIES
