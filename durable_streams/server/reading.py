"""HEAD, and GET: catch-up here, the live modes in modules of their own (server 8)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from .._core import wire
from .compression import negotiate, send_compressed
from .long_poll import long_poll
from .pages import Read, empty_headers, open_page, page_headers, parse_read, send_page
from .requests import Call
from .responses import CLOSED, CONTENT_TYPE, EXPIRES_AT, NO_STORE, TTL, Headers, etag_matches, next_offset, refusal
from .sse import serve_sse
from .stores.base import StreamInfo
from .waiting import while_connected

if TYPE_CHECKING:
    from .http import DurableStreamsApp


# Longer pages are sent in more than one piece.
_WATCHED_BYTES = 1 << 20


async def head(app: DurableStreamsApp, call: Call) -> None:
    """Tell what is known of a stream."""
    info = await _find(app, call)
    headers: Headers = [(CONTENT_TYPE, info.content_type.encode("latin-1")), next_offset(info.tail), NO_STORE]
    if info.ttl is not None:
        headers.append((TTL, b"%d" % info.ttl))
    if info.expires_at is not None:
        headers.append((EXPIRES_AT, info.expires_at.text.encode("latin-1")))
    if info.closed:
        headers.append(CLOSED)
    await call.answer(200, headers)


async def get(app: DurableStreamsApp, call: Call) -> None:
    """Read a stream."""
    info = await _find(app, call)
    read = parse_read(call, info, app.page_bytes)
    if read.live == wire.LONG_POLL:
        await long_poll(app, call, read)
    elif read.live == wire.SSE:
        await serve_sse(app, call, read)
    elif read.from_now:
        app.store.touch(info.ref, app.clock())
        await call.answer(200, empty_headers(read), b"[]" if read.json else b"")
    else:
        await _catch_up(app, call, read)


async def _find(app: DurableStreamsApp, call: Call) -> StreamInfo:
    found = await app.store.head(call.path, app.clock())
    if not isinstance(found, StreamInfo):
        raise refusal(found)
    return found


async def _catch_up(app: DurableStreamsApp, call: Call, read: Read) -> None:
    page = await open_page(app, read, read.page_bytes)
    try:
        gzip = negotiate(app, call, read, page)
        headers, etag = page_headers(app, read, page, gzip=gzip)
        known = call.header(b"if-none-match")
        if known is not None and etag is not None and etag_matches(known, etag):
            await call.answer(304, headers)
            return
        send: Callable[[], Awaitable[None]]
        if gzip:
            send = partial(send_compressed, call, page, headers, json=read.json)
        else:
            send = partial(send_page, call, read, page, headers)
        # Who leaves in the midst of many pieces is noticed; not of one, as it costs a task. Our own runner tells each
        # piece, and lets a client that has said all have its answer.
        await (while_connected(call, send) if page.size > _WATCHED_BYTES and not call.can_push else send())
    finally:
        await page.aclose()
