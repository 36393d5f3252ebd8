"""A page of a stream as an answer: reading it, its headers, its bytes (server 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._core import wire
from .offsets import ZERO, Offset, parse_offset
from .requests import Call, parse_read_query, preferred_page_bytes
from .responses import (
    CLOSED,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    NO_STORE,
    UP_TO_DATE,
    Headers,
    Rejection,
    cache_control,
    entity_tag,
    next_offset,
    refusal,
)
from .state_offsets import annotate_page
from .stores.base import BadOffset, Gone, Missing, StorePage, StreamInfo

if TYPE_CHECKING:
    from .http import DurableStreamsApp

#: A reader may ask for smaller pages, but not for smaller ones than this.
MIN_PAGE_BYTES = 128 * 1024

_VARY = {(True, False): b"Prefer", (False, True): b"Accept-Encoding", (True, True): b"Prefer, Accept-Encoding"}


@dataclass(frozen=True, slots=True)
class Read:
    """A GET whose stream was found and whose parameters are right.

    Attributes:
        info: The stream, as it was when the request came.
        token: The offset in the client's words: a token, `-1` or `now`.
        start: Where to begin; for `now` the tail at that moment.
        live: None, `long-poll` or `sse`.
        cursor: The client's cursor as it was sent, or None.
        page_bytes: Largest answer to send.
        preferred: What the client asked for with `Prefer`, or None.
    """

    info: StreamInfo
    token: str
    start: Offset
    live: str | None
    cursor: str | None
    page_bytes: int
    preferred: int | None

    @property
    def json(self) -> bool:
        """Whether the stream is in JSON mode."""
        return wire.is_json(self.info.content_type)

    @property
    def from_now(self) -> bool:
        """Whether the client asked for `now`."""
        return self.token == wire.NOW


def parse_read(call: Call, info: StreamInfo, page_bytes: int) -> Read:
    """Read the parameters of a GET.

    Raises:
        Rejection: if they are malformed.
    """
    query = parse_read_query(call.scope.get("query_string", b""))
    token = wire.START if query.offset is None else query.offset
    start: Offset | None
    if token == wire.START:
        start = ZERO
    elif token == wire.NOW:
        start = info.tail
    else:
        start = parse_offset(token)
        if start is None:
            raise Rejection(400, "the offset is none of this server's")
    preferred = preferred_page_bytes(call.header(b"prefer"))
    if preferred is not None:
        page_bytes = min(page_bytes, max(preferred, MIN_PAGE_BYTES))
    return Read(info, token, start, query.live, query.cursor, page_bytes, preferred)


async def open_page(app: DurableStreamsApp, read: Read, max_bytes: int) -> StorePage:
    """The page from the read's start on; renews the stream's TTL.

    Raises:
        Rejection: if there is no such offset, or the stream has gone meanwhile.
    """
    # In JSON mode the two brackets come instead of the last comma, which makes one byte more.
    page = await app.store.read(read.info.ref, read.start, max_bytes - 1 if read.json else max_bytes)
    if isinstance(page, BadOffset):
        raise Rejection(400, page.problem)
    if isinstance(page, Missing | Gone):
        raise refusal(page)
    app.store.touch(read.info.ref, app.clock())
    return await annotate_page(page) if app.annotate_state_offsets and read.json and page.size else page


def page_headers(
    app: DurableStreamsApp, read: Read, page: StorePage, *, gzip: bool | None = None
) -> tuple[Headers, str | None]:
    """The headers of a page, and its entity tag if it has one.

    Args:
        app: The application.
        read: What was asked for.
        page: The page.
        gzip: Whether the page is sent compressed; None if it never is, whatever a client takes.
    """
    up_to_date = page.end == page.tail
    closed = up_to_date and page.closed
    headers: Headers = [(CONTENT_TYPE, read.info.content_type.encode("latin-1")), next_offset(page.end)]
    if up_to_date:
        headers.append(UP_TO_DATE)
    if closed:
        headers.append(CLOSED)
    if read.preferred is not None:
        headers.append((b"preference-applied", b"max-page-bytes=%d" % read.preferred))
    by_preference = page.size > MIN_PAGE_BYTES or (read.preferred is not None and not up_to_date)
    if by_preference or gzip is not None:
        headers.append((b"vary", _VARY[by_preference, gzip is not None]))
    if read.from_now:
        headers.append(NO_STORE)
        return headers, None
    etag = entity_tag(read.info.ref.incarnation, read.token, page.end, closed=closed, gzip=bool(gzip))
    headers.append(cache_control(app.cache_visibility, size=page.size, up_to_date=up_to_date, closed=closed))
    headers.append((b"etag", etag.encode("latin-1")))
    return headers, etag


def empty_headers(read: Read) -> Headers:
    """The headers of a catch-up answer to `now`: it begins and ends at the tail."""
    info = read.info
    headers = [(CONTENT_TYPE, info.content_type.encode("latin-1")), next_offset(info.tail), UP_TO_DATE, NO_STORE]
    if info.closed:
        headers.append(CLOSED)
    return headers


async def send_page(call: Call, read: Read, page: StorePage, headers: Headers) -> None:
    """Send a page with status 200, piece by piece as the store hands it out."""
    if not page.size:
        await call.answer(200, headers, b"[]" if read.json else b"")
        return
    # In JSON mode the pieces are messages each followed by a comma. The closing bracket takes the last comma's place.
    opening, closing = (b"[", b"]") if read.json else (b"", b"")
    headers.append((CONTENT_LENGTH, b"%d" % (page.size + len(opening))))
    await call.start(200, headers)
    left = page.size
    while left:
        piece = await page.next_piece()
        assert piece is not None, "the store's page is shorter than its size"
        left -= len(piece)
        if not left:
            await call.send_body(b"".join((opening, memoryview(piece)[: len(piece) - len(closing)], closing)))
        elif opening:
            await call.send_body(opening + piece, more=True)
            opening = b""
        else:
            await call.send_body(bytes(piece), more=True)
