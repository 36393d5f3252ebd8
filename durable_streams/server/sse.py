"""Server-sent events: a connection on which data follows data (server 10).

One turn of the loop is one snapshot: what there is after the reader's offset, up to 1 MiB, becomes one data event, and
the control event behind it says where that ends and whether the stream ends there. Both go out in one send. Then the
reader waits for the tail to move. A reader that cannot keep up is simply further behind when its send returns: nothing
is queued for it, it reads on from the store.

Readers at the same place get the same bytes: what follows an offset is built once per stream and tail.

Text must be valid UTF-8 on the wire, and a character may lie across two appends. So text is cut before an unfinished
character, and the offset with it: the rest comes first next time. Only at the end of a closed stream the pieces of a
character that will never be complete are replaced by U+FFFD, as invalid bytes elsewhere are. CR and CR LF become LF;
an LF whose CR was in the event before is left out, as that CR has ended the line already.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import anyio

from .._core import wire
from .._core.sse import encode_control, encode_data
from .offsets import Offset, format_offset
from .pages import Read
from .requests import Call
from .responses import CONTENT_TYPE, NO_CACHE, SSE_BASE64, Headers, Rejection, refusal
from .sse_session import Resting, Session
from .state_offsets import annotate
from .stores.base import BadOffset, Gone, Missing, StorePage, StreamInfo, Watch
from .waiting import attached, while_connected

if TYPE_CHECKING:
    from .http import DurableStreamsApp

#: Most data in one event, except for a single larger JSON message.
EVENT_BYTES = 1 << 20

_Utf8 = codecs.getincrementaldecoder("utf-8")
# Bytes of events kept per stream while it has several readers: the newest one, and what fits before it.
_KEPT_BYTES = EVENT_BYTES
# An offset, and the tail and closure of the stream as it was then: they decide what follows the offset.
_Key: TypeAlias = tuple[Offset, Offset, bool]


class Event:
    """What follows an offset, written as a data event, and what its control event says.

    Attributes:
        data: The data event; empty if there is no data.
        offset: Where it ends.
        tail: The stream's tail at that moment.
        closed: Whether the stream is closed and ends here.
    """

    __slots__ = ("_cursor", "_whole", "closed", "data", "offset", "tail")

    def __init__(self, data: bytes, offset: Offset, tail: Offset, closed: bool) -> None:
        self.data: bytes = data
        self.offset: Offset = offset
        self.tail: Offset = tail
        self.closed: bool = closed
        self._cursor: int | None = None
        self._whole = b""

    @property
    def up_to_date(self) -> bool:
        """Whether nothing lay behind it."""
        return self.offset == self.tail

    def whole(self, cursor: int) -> bytes:
        """Data and control event. Most readers have the same cursor: the last result is kept for them."""
        if self._cursor != cursor:
            self._whole = self.data + self.control(cursor)
            self._cursor = cursor
        return self._whole

    def control(self, cursor: int) -> bytes:
        """The control event alone."""
        return encode_control(
            format_offset(self.offset),
            cursor=None if self.closed else str(cursor),
            up_to_date=self.up_to_date,
            stream_closed=self.closed,
        )


class StreamEvents:
    """The events of one stream, shared by its readers.

    Args:
        app: For its store.
        info: The stream.

    Attributes:
        readers: How many there are.
        resting: Those that have all there is.
    """

    def __init__(self, app: DurableStreamsApp, info: StreamInfo) -> None:
        self.readers: int = 0
        self.resting: Resting = Resting()
        self._app = app
        self._ref = info.ref
        self._json = wire.is_json(info.content_type)
        self._text = wire.is_text(info.content_type)
        self._building: dict[_Key, anyio.Event] = {}
        self._kept: dict[_Key, Event] = {}
        self._kept_bytes = 0

    @property
    def binary(self) -> bool:
        """Whether data events are base64."""
        return not self._json and not self._text

    async def after(self, offset: Offset, watch: Watch) -> Event | BadOffset | Missing | Gone:
        """What follows an offset now."""
        key = (offset, watch.tail, watch.closed)
        while (event := self._kept.get(key)) is None:
            under_way = self._building.get(key)
            if under_way is None:
                return await self._build_shared(key)
            await under_way.wait()  # then look again: its builder may have been cancelled
        return event

    async def _build_shared(self, key: _Key) -> Event | BadOffset | Missing | Gone:
        """Build what follows an offset, while others that want the same wait for it."""
        done = self._building[key] = anyio.Event()
        try:
            page = await self._app.store.read(self._ref, key[0], EVENT_BYTES)
            if isinstance(page, BadOffset | Missing | Gone):
                return page
            try:
                event = await self._build(page)
            finally:
                await page.aclose()
            if self.readers > 1 and (page.tail, page.closed) == key[1:]:
                self._keep(key, event)
            return event
        finally:
            del self._building[key]
            done.set()

    def _keep(self, key: _Key, event: Event) -> None:
        self._kept_bytes += len(event.data)
        while self._kept and self._kept_bytes > _KEPT_BYTES:
            oldest = next(iter(self._kept))
            self._kept_bytes -= len(self._kept.pop(oldest).data)
        self._kept[key] = event

    async def _build(self, page: StorePage) -> Event:
        pieces = []
        while (piece := await page.next_piece()) is not None:
            pieces.append(piece)
        payload = b"".join(pieces)
        end, closed = page.end, page.closed and page.end == page.tail
        if self._json and payload:
            if self._app.annotate_state_offsets:
                payload = annotate(payload, page.start)
            payload = b"[" + payload[:-1] + b"]"
        elif self._text:
            if payload.startswith(b"\n") and await self._is_after_cr(page.start):
                payload = payload[1:]
            decoder = _Utf8("replace")
            payload = decoder.decode(payload, final=closed).encode()
            end -= len(decoder.getstate()[0])  # bytes of an unfinished character
        data = encode_data(payload, binary=self.binary) if payload else b""
        return Event(data, end, page.tail, closed)

    async def _is_after_cr(self, offset: Offset) -> bool:
        """Whether the byte before this offset is a CR."""
        page = await self._app.store.read(self._ref, offset - 1, 1) if offset else None
        if page is None or isinstance(page, BadOffset | Missing | Gone):
            return False
        try:
            return bytes(await page.next_piece() or b"") == b"\r"
        finally:
            await page.aclose()


@contextmanager
def stream_events(app: DurableStreamsApp, info: StreamInfo) -> Iterator[StreamEvents]:
    """The events of a stream; they are kept while somebody reads them."""
    events = app.events.get(info.ref)
    if events is None:
        events = app.events[info.ref] = StreamEvents(app, info)
    events.readers += 1
    try:
        yield events
    finally:
        events.readers -= 1
        if not events.readers:
            del app.events[info.ref]


async def serve_sse(app: DurableStreamsApp, call: Call, read: Read) -> None:
    """Answer with events until the stream ends, the client goes, or the connection is old enough."""
    with attached(app, read.info) as watch, stream_events(app, read.info) as events:
        first = await events.after(read.start, watch)
        if isinstance(first, BadOffset):
            raise Rejection(400, first.problem)
        if isinstance(first, Missing | Gone):
            raise refusal(first)
        app.store.touch(read.info.ref, app.clock())
        headers: Headers = [(CONTENT_TYPE, wire.EVENT_STREAM.encode()), NO_CACHE, (b"x-accel-buffering", b"no")]
        if events.binary:
            headers.append(SSE_BASE64)
        await call.start(200, headers)
        session = Session(app, call, read, watch, events, first)
        await while_connected(call, session.run)
        await call.send_body(b"")
