"""Answers: headers that all of them carry, refusals in words, entity tags, lifetimes in caches.

Header names stand in lower case, as bytes, ready for ASGI.
"""

from __future__ import annotations

from typing import TypeAlias

from .._core import wire
from .creation import MAX_DEPTH
from .offsets import Offset, format_offset
from .protocol import ProducerState, Reason, Refused
from .stores.base import Gone, Missing

Headers: TypeAlias = list[tuple[bytes, bytes]]

NEXT_OFFSET = wire.NEXT_OFFSET.encode()
UP_TO_DATE = (wire.UP_TO_DATE.encode(), b"true")
STREAM_CLOSED = wire.CLOSED.encode()
CLOSED = (STREAM_CLOSED, b"true")
CURSOR = wire.CURSOR.encode()
TTL = wire.TTL.encode()
EXPIRES_AT = wire.EXPIRES_AT.encode()
SSE_BASE64 = (wire.SSE_DATA_ENCODING.encode(), b"base64")
STREAM_SEQ = wire.SEQ.encode()
FORKED_FROM = wire.FORKED_FROM.encode()
FORK_OFFSET = wire.FORK_OFFSET.encode()
FORK_SUB_OFFSET = wire.FORK_SUB_OFFSET.encode()
CONTENT_TYPE = wire.CONTENT_TYPE.encode()
CONTENT_LENGTH = b"content-length"
PRODUCER_ID = wire.PRODUCER_ID.encode()
PRODUCER_EPOCH = wire.PRODUCER_EPOCH.encode()
PRODUCER_SEQ = wire.PRODUCER_SEQ.encode()
EXPECTED_SEQ = wire.PRODUCER_EXPECTED_SEQ.encode()
RECEIVED_SEQ = wire.PRODUCER_RECEIVED_SEQ.encode()
NO_STORE = (b"cache-control", b"no-store")
NO_CACHE = (b"cache-control", b"no-cache")
CONNECTION_CLOSE = (b"connection", b"close")

METHODS = "GET, POST, PUT, DELETE, HEAD, OPTIONS"

ALLOWED_HEADERS = (
    "Content-Type, Authorization, If-None-Match, Prefer, Stream-Seq, Stream-TTL, Stream-Expires-At, Stream-Closed, "
    "Producer-Id, Producer-Epoch, Producer-Seq, Stream-Forked-From, Stream-Fork-Offset, Stream-Fork-Sub-Offset"
)
EXPOSED_HEADERS = (
    "Stream-Next-Offset, Stream-Cursor, Stream-Up-To-Date, Stream-Closed, Stream-TTL, Stream-Expires-At, "
    "Stream-SSE-Data-Encoding, Producer-Epoch, Producer-Seq, Producer-Expected-Seq, Producer-Received-Seq, "
    "ETag, Location, Content-Type, Content-Encoding, Preference-Applied, Retry-After, Vary"
)

_GZIP_TAG = "-gz"

#: Status and words of each refusal. The words are the same for everybody: nothing of a request is repeated in them.
REFUSALS: dict[Reason, tuple[int, str]] = {
    Reason.MALFORMED_PRODUCER: (
        400,
        "Producer-Id, Producer-Epoch and Producer-Seq go together: a name and two integers from 0 to 2^53-1",
    ),
    Reason.EMPTY_BODY: (400, "an empty body appends nothing: send data, or Stream-Closed: true to close the stream"),
    Reason.NO_CONTENT_TYPE: (400, "a body needs a Content-Type"),
    Reason.NOT_FOUND: (404, "there is no stream at this path"),
    Reason.GONE: (410, "the stream was deleted and is only kept for its forks"),
    Reason.CLOSED: (409, "the stream is closed"),
    Reason.TYPE_MISMATCH: (409, "the Content-Type differs from the stream's"),
    Reason.SEQUENCE_GAP: (409, "the Producer-Seq is not the next one"),
    Reason.STALE_EPOCH: (403, "the Producer-Epoch is outdated: a newer instance of this producer has taken over"),
    Reason.NEW_EPOCH_NOT_AT_ZERO: (400, "a new Producer-Epoch starts at Producer-Seq 0"),
    Reason.SEQ_NOT_INCREASING: (409, "the Stream-Seq is not greater than the last one"),
    Reason.INVALID_JSON: (400, "the body is not valid JSON"),
    Reason.EMPTY_ARRAY: (400, "an empty array appends nothing"),
    Reason.OTHER_CONFIG: (409, "a stream with another configuration exists at this path"),
    Reason.SOFT_DELETED: (409, "the path belongs to a deleted stream that is kept for its forks"),
    Reason.SOURCE_NOT_FOUND: (404, "there is no stream to fork from at the path in Stream-Forked-From"),
    Reason.SOURCE_DELETED: (409, "the stream to fork from was deleted and is only kept for its forks"),
    Reason.FORK_TYPE_MISMATCH: (409, "the Content-Type differs from that of the stream to fork from"),
    Reason.FORK_TOO_DEEP: (409, f"a stream can have at most {MAX_DEPTH} ancestors"),
    Reason.BAD_FORK_OFFSET: (400, "the Stream-Fork-Offset is no position of the stream to fork from"),
    Reason.BAD_SUB_OFFSET: (
        400,
        "the Stream-Fork-Sub-Offset is greater than the rest of the append at the fork offset",
    ),
}


class Rejection(Exception):  # noqa: N818  # control flow inside the server; never reaches a user
    """Ends the handling of a request with an error answer.

    Args:
        status: HTTP status.
        text: One line that says what is wrong, and nothing of the request.
        headers: Further headers.
        close: Whether the connection is to be closed, because the request's body was left unread.
    """

    def __init__(self, status: int, text: str, headers: Headers | None = None, *, close: bool = False) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.headers: Headers = headers or []
        self.close = close


def refusal(result: Refused | Missing | Gone) -> Rejection:
    """The answer to what a store refused or did not find."""
    if isinstance(result, Missing):
        return Rejection(*REFUSALS[Reason.NOT_FOUND])
    if isinstance(result, Gone):
        return Rejection(*REFUSALS[Reason.GONE])
    status, text = REFUSALS[result.reason]
    headers: Headers = []
    if result.reason is Reason.CLOSED:
        headers.append(CLOSED)
    if result.tail is not None:
        headers.append(next_offset(result.tail))
    if result.epoch is not None:
        headers.append((PRODUCER_EPOCH, b"%d" % result.epoch))
    if result.expected is not None and result.received is not None:
        headers += [(EXPECTED_SEQ, b"%d" % result.expected), (RECEIVED_SEQ, b"%d" % result.received)]
    return Rejection(status, result.problem or text, headers)


def next_offset(offset: Offset) -> tuple[bytes, bytes]:
    """The `Stream-Next-Offset` header."""
    return NEXT_OFFSET, format_offset(offset).encode()


def producer_headers(producer: ProducerState) -> Headers:
    """`Producer-Epoch`, and as `Producer-Seq` the highest sequence number accepted."""
    return [(PRODUCER_EPOCH, b"%d" % producer.epoch), (PRODUCER_SEQ, b"%d" % producer.seq)]


def add_vary(headers: Headers, name: bytes) -> Headers:
    """The headers, with `Vary` naming one more header of the request."""
    named = [value for key, value in headers if key == b"vary"]
    return [*(pair for pair in headers if pair[0] != b"vary"), (b"vary", b", ".join((*named, name)))]


def entity_tag(incarnation: str, start: str, end: Offset, *, closed: bool, gzip: bool = False) -> str:
    """The entity tag of a page (server 8.1): which life of a stream, from where to where, to its end or not.

    Args:
        incarnation: Of the stream; it keeps a cache from taking an old stream for the new one at its path.
        start: The offset as the client asked for it.
        end: Offset after the page.
        closed: Whether the answer says that the stream is closed.
        gzip: Whether the answer is compressed.
    """
    return f'"{incarnation}:{start}:{format_offset(end)}{":c" if closed else ""}{_GZIP_TAG if gzip else ""}"'


def etag_matches(if_none_match: str, etag: str) -> bool:
    """Whether an `If-None-Match` header names this tag: in a list, weakly, compressed or not, or by `*`."""
    page = etag.removesuffix(f'{_GZIP_TAG}"').removesuffix('"')
    for candidate in if_none_match.split(","):
        candidate = candidate.strip().removeprefix("W/")
        if candidate == "*" or candidate in (f'{page}"', f'{page}{_GZIP_TAG}"'):
            return True
    return False


def cache_control(visibility: str, *, size: int, up_to_date: bool, closed: bool) -> tuple[bytes, bytes]:
    """How long a page may be kept (server 8.2).

    What has data and does not end at an open tail will never change. What ends at an open tail grows, so it has to be
    checked each time; an empty answer is not worth keeping.
    """
    if not size:
        return NO_STORE
    if up_to_date and not closed:
        return NO_CACHE
    return b"cache-control", f"{visibility}, max-age=60, stale-while-revalidate=300".encode()
