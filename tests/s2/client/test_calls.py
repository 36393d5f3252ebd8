"""Single calls against the fake server: the same checks as `s2 lite` has to pass in tests/interop/test_s2_calls.py."""

from typing import Any

import pytest

from durable_streams.s2 import S2
from durable_streams.testing import S2Fake

from .kit import CHECKS, Check, fresh_basin

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_fake_and_the_client_agree(check: Check) -> None:
    async with S2Fake() as fake, S2("ignored", endpoints=fake.url) as s2:
        basin = fresh_basin()
        await s2.basins.create(basin)

        await check(s2, basin)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_compressed_calls_carry_the_same(compression: Any) -> None:
    async with S2Fake() as fake, S2("ignored", endpoints=fake.url, compression=compression) as s2:
        basin = fresh_basin()
        await s2.basins.create(basin)
        await s2.basin(basin).streams.create("s")
        stream = s2.basin(basin).stream("s")

        await stream.append("x" * 50_000)

        assert (await stream.read()).records[0].body == b"x" * 50_000
        append, read = fake.requests[-2:]
        assert append.headers["content-encoding"] == compression
        assert compression in read.headers["accept-encoding"]
