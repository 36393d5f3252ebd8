"""Shorthands for tests: one exchange in one line."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping

from durable_streams import Exchange, Timeouts, Transport

#: Long enough for any machine: what shall time out says so.
PATIENT = Timeouts(connect=20, write=20, read=20)


async def open_(
    transport: Transport,
    url: str,
    method: str = "GET",
    body: bytes | AsyncIterable[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    timeouts: Timeouts = PATIENT,
) -> Exchange:
    return await transport.open(method, url, headers or {}, body, timeouts)


async def read(exchange: Exchange) -> bytes:
    """The whole body; the exchange is closed afterwards."""
    pieces = []
    try:
        while piece := await exchange.receive():
            pieces.append(piece)
    finally:
        await exchange.aclose()
    return b"".join(pieces)


async def fetch(
    transport: Transport,
    url: str,
    method: str = "GET",
    body: bytes | AsyncIterable[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    timeouts: Timeouts = PATIENT,
) -> tuple[int, bytes]:
    """Status and body."""
    exchange = await open_(transport, url, method, body, headers, timeouts)
    return exchange.status, await read(exchange)
