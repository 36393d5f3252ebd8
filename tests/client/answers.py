"""Short ways to write down what a server says, and to look at what a client sent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any, TypeVar

import anyio

from durable_streams import BackoffOptions, Transport
from tests.scripted import Reply

T = TypeVar("T")

JSON = "application/json"
BYTES = "application/octet-stream"
TEXT = "text/plain"
EVENTS = "text/event-stream"

#: Retries without waiting, for tests on a real clock.
AT_ONCE = BackoffOptions(initial_delay=1e-6, max_delay=1e-6)


def flags(
    offset: str | None = None,
    *,
    up_to_date: bool = False,
    closed: bool = False,
    cursor: str | None = None,
    content_type: str | None = None,
    **more: str,
) -> dict[str, str]:
    """The protocol's headers; `more` takes others, with `_` for `-`."""
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    if content_type is not None:
        headers["content-type"] = content_type
    if offset is not None:
        headers["stream-next-offset"] = offset
    if up_to_date or closed:
        headers["stream-up-to-date"] = "true"
    if closed:
        headers["stream-closed"] = "true"
    if cursor is not None:
        headers["stream-cursor"] = cursor
    return headers


def page(body: bytes, offset: str, *, content_type: str = BYTES, **rest: Any) -> Reply:
    """An answer with data; up to date or closed only if it says so."""
    return Reply(headers=flags(offset, content_type=content_type, **rest), body=body)


def tail(body: bytes, offset: str, **rest: Any) -> Reply:
    """The last page for now."""
    return page(body, offset, up_to_date=True, **rest)


def end(body: bytes, offset: str, **rest: Any) -> Reply:
    """The last page of a closed stream."""
    return page(body, offset, closed=True, **rest)


def idle(offset: str, **rest: Any) -> Reply:
    """A long-poll that ends without data."""
    return Reply(204, headers=flags(offset, up_to_date=True, **rest))


def data(text: str) -> bytes:
    """A data event."""
    return f"event: data\ndata:{text}\n\n".encode()


def control(offset: str, **fields: object) -> bytes:
    """A control event; fields as Python values."""
    return f"event: control\ndata:{json.dumps({'streamNextOffset': offset, **fields})}\n\n".encode()


def events(*chunks: bytes | anyio.Event, **headers: str) -> Reply:
    """A stream of server-sent events, which ends with its last chunk; `headers` with `_` for `-`."""
    return Reply(headers=flags(content_type=EVENTS, **headers), chunks=chunks)


def error(status: int, body: bytes = b"", **headers: str) -> Reply:
    """An answer that is no success."""
    return Reply(status, headers=flags(**headers), body=body)


async def collect(items: AsyncIterable[T]) -> list[T]:
    """All items of an async iterable."""
    return [item async for item in items]


async def take(items: AsyncIterator[T], count: int) -> list[T]:
    """The next items of an async iterator."""
    return [await anext(items) for _ in range(count)]


def connections(transport: Transport) -> str:
    """`2 open, 1 idle`, as a network transport says in its repr."""
    return repr(transport).strip("<>").partition(" ")[2]


def queries(requests: Iterable[Any]) -> list[dict[str, str]]:
    """The query parameters of each request."""
    return [dict(request.query) for request in requests]
