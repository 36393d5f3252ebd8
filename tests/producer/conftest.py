"""Our server, and a stream of numbers on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from durable_streams import DurableStream
from durable_streams.server import Server


@pytest.fixture
async def server(anyio_backend: object) -> AsyncIterator[Server]:
    """Our server, on a port of its own."""
    async with Server() as server:
        yield server


@pytest.fixture
async def handle(server: Server) -> AsyncIterator[DurableStream]:
    """A JSON stream on that server."""
    made = DurableStream(f"{server.url}/numbers", content_type="application/json")
    await made.create()
    yield made
    await made.aclose()
