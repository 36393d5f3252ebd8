"""What the checks of `store_kit` are made of: a register, and calls of a store in few words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from ..server import (
    AppendRequest,
    BadOffset,
    CreateRequest,
    Fork,
    Gone,
    InvalidJson,
    Missing,
    Offset,
    Payload,
    ProducerStamp,
    Reason,
    Refused,
    Store,
    StreamConfig,
    StreamInfo,
    StreamRef,
    split_json,
)

T = TypeVar("T")
Check: TypeAlias = Callable[[Store], Awaitable[None]]

#: The stream that a check speaks of when it names none.
PATH = "/v1/stream/kit"
PIECE_BYTES = 1 << 20
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Register a check."""
    CHECKS.append(function)
    return function


def expect(kind: type[T], result: Any) -> T:
    """The result, which has to be of this kind."""
    assert isinstance(result, kind), f"expected {kind.__name__}, got {result!r}"
    return result


def expect_refusal(result: Any, reason: Reason) -> Refused:
    """The result, which has to be a refusal for this reason."""
    refusal = expect(Refused, result)
    assert refusal.reason is reason, f"expected a refusal for {reason.name}, got {refusal!r}"
    return refusal


async def create_stream(
    store: Store,
    content_type: str | None = "application/octet-stream",
    *,
    path: str = PATH,
    body: bytes = b"",
    closed: bool = False,
    now: float = 0.0,
    **config: Any,
) -> Any:
    """Create a stream."""
    payload = split(body, content_type) if body else None
    return await store.create(CreateRequest(path, StreamConfig(content_type, **config), closed, payload), now)


async def fork_stream(
    store: Store,
    path: str,
    offset: Offset | None = None,
    sub_offset: int = 0,
    *,
    source: str = PATH,
    content_type: str | None = None,
    body: bytes = b"",
    closed: bool = False,
    now: float = 0.0,
    **config: Any,
) -> Any:
    """Fork a stream."""
    asked = StreamConfig(content_type, fork=Fork(source, offset, sub_offset), **config)
    payload = split(body, content_type) if body else None
    request = CreateRequest(path, asked, closed, payload, split_json(body) if body and content_type is None else None)
    return await store.create(request, now)


def split(body: bytes, content_type: str | None) -> Payload | InvalidJson:
    """A body as it is stored in a stream of this type."""
    return split_json(body) if (content_type or "").lower() == "application/json" else Payload(body)


async def append_to(
    store: Store,
    body: bytes = b"",
    content_type: str = "application/octet-stream",
    *,
    path: str = PATH,
    close: bool = False,
    producer: ProducerStamp | None = None,
    seq: bytes | None = None,
    now: float = 0.0,
) -> Any:
    """Append to a stream, close it, or both."""
    payload = split(body, content_type) if body else None
    return await store.append(AppendRequest(path, content_type, payload, close, producer, seq), now)


async def look_at(store: Store, now: float = 0.0, path: str = PATH) -> StreamInfo:
    """Look at a stream, which has to be there."""
    return expect(StreamInfo, await store.head(path, now))


async def read_page(store: Store, ref: StreamRef, offset: Offset = 0, max_bytes: int = 1 << 30) -> tuple[bytes, Offset]:
    """One page: its bytes and its end."""
    page: Any = await store.read(ref, offset, max_bytes)
    assert not isinstance(page, BadOffset | Missing | Gone), f"expected a page, got {page!r}"
    assert page.start == offset
    data = b""
    while (piece := await page.next_piece()) is not None:
        assert 0 < len(piece) <= PIECE_BYTES, f"a piece has 1 to {PIECE_BYTES} bytes, got {len(piece)}"
        data += piece
    await page.aclose()
    assert len(data) == page.size == page.end - page.start
    assert page.end <= page.tail
    return data, page.end


async def read_pages(store: Store, ref: StreamRef, max_bytes: int) -> tuple[bytes, list[Offset]]:
    """All pages from the start: their bytes, and where each ended."""
    data, offset, ends = b"", 0, []
    tail = (await look_at(store, path=ref.path)).tail
    while offset < tail:
        page, end = await read_page(store, ref, offset, max_bytes)
        assert end > offset, "a page before the tail has data"
        data, offset = data + page, end
        ends.append(end)
    return data, ends
