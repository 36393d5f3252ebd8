"""Offsets in State Protocol messages, for servers that are asked to write them there (server 7.5).

Some readers of State Protocol look for their position in `headers.offset` of each change or control message. With
`annotate_state_offsets` every message that looks like one gets it as it is read: the offset after the message, from
which a reader goes on behind it. What is stored stays as it was, and what else the message says goes through as text.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from .offsets import Offset, format_offset

if TYPE_CHECKING:
    import msgspec

    from .stores.base import StorePage

_PIECE_BYTES = 1 << 20


class AnnotatedPage:
    """A page whose messages have their offsets. It is in memory as a whole.

    Args:
        page: The page as it is stored; it has been read to its end.
        data: Its messages with offsets, each followed by a comma.
    """

    def __init__(self, page: StorePage, data: bytes) -> None:
        self._page = page
        self._data = memoryview(data)
        self.start: Offset = page.start
        self.end: Offset = page.end
        self.tail: Offset = page.tail
        self.closed: bool = page.closed
        self.size: int = len(data)

    async def next_piece(self) -> memoryview | None:
        """The next bytes, see `StorePage`."""
        piece, self._data = self._data[:_PIECE_BYTES], self._data[_PIECE_BYTES:]
        return piece or None

    async def aclose(self) -> None:
        """Release what the page holds. Idempotent."""
        self._data = memoryview(b"")
        await self._page.aclose()


async def annotate_page(page: StorePage) -> StorePage:
    """A page of a JSON stream with offsets; the given one is used up, and closed with the new one."""
    pieces = []
    try:
        while (piece := await page.next_piece()) is not None:
            pieces.append(piece)
        return AnnotatedPage(page, annotate(b"".join(pieces), page.start))
    except BaseException:
        await page.aclose()
        raise


def annotate(data: bytes, start: Offset) -> bytes:
    """Write the offset after each State Protocol message into it.

    Args:
        data: Messages as they are stored: compact, each followed by a comma.
        start: Offset of the first.
    """
    if b'"headers"' not in data:
        return data
    parts, offset = [], start
    for raw in _decoders()[0].decode(b"[%b]" % data[:-1]):
        message = bytes(raw)
        offset += len(message) + 1
        parts.append(_annotated(message, offset))
    return b",".join(parts) + b","


def _annotated(message: bytes, offset: Offset) -> bytes:
    if b'"headers"' not in message or message[0] != ord("{"):
        return message
    _, objects, encoder = _decoders()
    fields = objects.decode(message)
    text = bytes(fields.get("headers", b""))
    if not text.startswith(b"{"):
        return message
    headers = objects.decode(text)
    if not any(bytes(headers.get(name, b"")).startswith(b'"') for name in ("operation", "control")):
        return message
    raw = type(fields["headers"])
    headers["offset"] = raw(b'"%b"' % format_offset(offset).encode())
    fields["headers"] = raw(encoder.encode(headers))
    answer: bytes = encoder.encode(fields)
    return answer


@cache
def _decoders() -> tuple[msgspec.json.Decoder[list[msgspec.Raw]], msgspec.json.Decoder[dict[str, Any]], Any]:
    """For arrays and for objects, whose elements stay text; and an encoder that puts them together again."""
    import msgspec

    return (
        msgspec.json.Decoder(list[msgspec.Raw]),
        msgspec.json.Decoder(dict[str, msgspec.Raw]),
        msgspec.json.Encoder(),
    )
