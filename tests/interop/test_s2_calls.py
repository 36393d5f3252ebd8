"""Single calls against `s2 lite`: managing, appending, reading, in every encoding and compression."""

from collections.abc import Iterator
from typing import Any

import pytest

from durable_streams.s2 import S2
from tests.s2.client.kit import CHECKS, Check, fresh_basin

from .s2lite import Lite, required, token, why_not

pytestmark = [pytest.mark.anyio, pytest.mark.interop]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    missing = why_not()
    if missing is not None:
        assert not required(), missing
        pytest.skip(missing)
    with Lite() as lite:
        yield lite.url


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_lite_and_the_client_agree(check: Check, compression: Any, url: str) -> None:
    async with S2(token(), endpoints=url, compression=compression) as s2:
        basin = fresh_basin()
        await s2.basins.create(basin)
        try:
            await check(s2, basin)
        finally:
            await s2.basins.delete(basin, ignore_not_found=True)
