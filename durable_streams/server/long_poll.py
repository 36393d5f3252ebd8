"""Long-poll: one answer, as soon as there is something to say (server 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from .cursors import next_cursor
from .pages import Read, open_page, page_headers, send_page
from .requests import Call
from .responses import CLOSED, CURSOR, NO_STORE, UP_TO_DATE, next_offset
from .stores.base import StorePage, Watch
from .waiting import attached, time_left, while_connected

if TYPE_CHECKING:
    from .http import DurableStreamsApp


async def long_poll(app: DurableStreamsApp, call: Call, read: Read) -> None:
    """Answer with data as soon as there is any; else with 204 at closure, timeout or shutdown."""
    with attached(app, read.info) as watch:
        page = await open_page(app, read, read.page_bytes)
        if page.size or page.closed or app.waits.stopping:
            await _answer(app, call, read, page)
            return
        await page.aclose()
        # The client may leave while we wait, so someone listens; not before, as it costs a task.
        await while_connected(call, lambda: _wait_and_answer(app, call, read, watch))


async def _wait_and_answer(app: DurableStreamsApp, call: Call, read: Read, watch: Watch) -> None:
    deadline = anyio.current_time() + app.long_poll_timeout
    while True:
        await app.waits.wait(watch, read.start, min(deadline - anyio.current_time(), time_left(app, read.info)))
        if time_left(app, read.info) <= 0:
            await app.store.head(call.path, app.clock())  # here the store notices the expiry
        page = await open_page(app, read, read.page_bytes)
        if page.size or page.closed or app.waits.stopping or anyio.current_time() >= deadline:
            await _answer(app, call, read, page)
            return
        await page.aclose()


async def _answer(app: DurableStreamsApp, call: Call, read: Read, page: StorePage) -> None:
    cursor = (CURSOR, b"%d" % next_cursor(read.cursor, app.clock(), app.rng))
    try:
        if page.size:
            headers, _ = page_headers(app, read, page)
            headers.append(cursor)
            await send_page(call, read, page, headers)
            return
        headers = [next_offset(page.tail), UP_TO_DATE, NO_STORE]
        headers.append(CLOSED if page.closed else cursor)
        if app.waits.stopping:
            headers += call.close_connection()
        await call.answer(204, headers)
    finally:
        await page.aclose()
