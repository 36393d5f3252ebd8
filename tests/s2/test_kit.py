"""The fake server passes the kit; `s2 lite` does so in tests/interop."""

from collections.abc import AsyncIterator

import pytest

from durable_streams.testing import S2Fake

from .kit import checks_manage, checks_records, checks_sessions  # noqa: F401 - importing registers the checks
from .kit.probe import Bench
from .kit.registry import CHECKS, Entry

pytestmark = pytest.mark.anyio

BASIN = "kit-basin-1"
CASES = [pytest.param(entry, version, id=f"{entry.name}-{version}") for entry in CHECKS for version in entry.versions]


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with S2Fake() as fake:
        fake.add_basin(BASIN)
        yield fake.url


@pytest.mark.parametrize(("entry", "version"), CASES)
async def test_the_fake_server(entry: Entry, version: str, url: str) -> None:
    await entry.check(Bench(url, BASIN, "stream", version))
