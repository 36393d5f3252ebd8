"""Single calls against `s2 lite`: managing, appending, reading, in every encoding and compression."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from durable_streams.s2 import S2, S2Retry
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


async def test_calls_go_on_over_a_crash_of_the_server(url: str, tmp_path: Path) -> None:
    retry = S2Retry(max_attempts=200, min_base_delay=0.02, max_base_delay=0.1, append_retry_policy="no_side_effects")
    with Lite(local_root=tmp_path) as lite:
        async with S2(token(), endpoints=lite.url, retry=retry) as s2:
            basin = fresh_basin()
            await s2.basins.create(basin)
            await s2.basin(basin).streams.create("s")
            stream = s2.basin(basin).stream("s")
            await stream.append("before")

            await anyio.to_thread.run_sync(lite.kill)
            async with anyio.create_task_group() as group:
                group.start_soon(stream.append, "meanwhile")
                await anyio.to_thread.run_sync(lite.start)
            await stream.append("after", match_seq_num=2, read_back=True)

            page = await stream.read()
            assert [record.body for record in page.records] == [b"before", b"meanwhile", b"after"]
            assert (await stream.check_tail()).seq_num == 3
