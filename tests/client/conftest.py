"""The transport of the loop that a test runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from durable_streams import Transport, open_transport


@pytest.fixture
async def transport(anyio_backend: object) -> AsyncIterator[Transport]:
    """The running loop's transport, without the proxies of whoever runs the tests."""
    made = open_transport(proxies={})
    yield made
    await made.aclose()
