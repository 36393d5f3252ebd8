"""Blocks: how the data of a stream is cut into rows, and where a page of it may end.

All appends that one transaction adds to a stream become one block as long as they fit into 1 MiB together: fifty
appends cost one row, and reading them back costs one row, too. An append larger than that gets blocks of its own; in
JSON mode they end between messages if possible.

A block knows the places inside it, counted in bytes from its start:

========  ==========================================  =========================================================
column    places                                      shorthand
========  ==========================================  =========================================================
appends   after each append that ends in the block    None: one append ends here, at the end of the block
messages  after each JSON message, likewise           None: the same as `appends`
========  ==========================================  =========================================================

So the usual row, one append of one message, has neither. A part of a larger append has an empty `appends`, unless it is
the last part. Pages end at the former places, and where an append has to be divided, at the latter (`page_end`).

A fork's data lies in several streams' blocks: those of its ancestors up to where the next one branched off, then its
own. Its lineage, a tuple of segments, says which, and never changes.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

from ..._core.wire import is_json, is_text
from ..offsets import Offset
from ..protocol import Payload

#: Largest block, and largest piece of a page.
BLOCK_BYTES = 1 << 20

_INT32 = "I" if array("I").itemsize == 4 else "L"


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a stream between two offsets that lies in the blocks of one stream, itself or an ancestor."""

    stream: int
    start: Offset
    end: Offset


Lineage: TypeAlias = tuple[Segment, ...]

_OPEN_END = 1 << 62


def branch(lineage: Lineage, stream: int, offset: Offset) -> Lineage:
    """The lineage of a stream that branches off another one at `offset`; of an ordinary one if there is none."""
    inherited = (Segment(each.stream, each.start, min(each.end, offset)) for each in lineage if each.start < offset)
    return (*inherited, Segment(stream, offset, _OPEN_END))


class Mode(Enum):
    """Where an append may be divided."""

    BYTES = "anywhere"
    TEXT = "between characters"
    JSON = "between messages"

    @classmethod
    def of(cls, content_type: str) -> Mode:
        """The mode of streams of this type."""
        return cls.JSON if is_json(content_type) else cls.TEXT if is_text(content_type) else cls.BYTES


class Cuts:
    """A block without its data: where it lies, and the places in it.

    Attributes:
        start: Offset of its first byte.
        end: Offset after its last byte.
        appends: See the module.
        messages: See the module.
    """

    __slots__ = ("appends", "end", "messages", "start")

    def __init__(
        self, start: Offset, end: Offset, appends: Sequence[int] | None = None, messages: Sequence[int] | None = None
    ) -> None:
        self.start: Offset = start
        self.end: Offset = end
        self.appends: Sequence[int] | None = appends
        self.messages: Sequence[int] | None = messages

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.start}..{self.end}>"

    def last_append_end(self, limit: Offset) -> Offset | None:
        """The greatest end of an append in this block that is not beyond `limit`."""
        return self._last(self.appends, limit)

    def last_message_end(self, limit: Offset) -> Offset | None:
        """The greatest end of a message in this block that is not beyond `limit`."""
        return self._last(self._message_ends, limit)

    def next_message_end(self, offset: Offset) -> Offset | None:
        """The least end of a message in this block that is beyond `offset`."""
        return self._next(self._message_ends, offset)

    def next_append_end(self, offset: Offset) -> Offset | None:
        """The least end of an append in this block that is beyond `offset`."""
        return self._next(self.appends, offset)

    def is_message_end(self, offset: Offset) -> bool:
        """Whether a message ends here."""
        return self.last_message_end(offset) == offset

    @property
    def _message_ends(self) -> Sequence[int] | None:
        return self.appends if self.messages is None else self.messages

    def _last(self, ends: Sequence[int] | None, limit: Offset) -> Offset | None:
        if ends is None:
            return self.end if self.end <= limit else None
        index = bisect_right(ends, limit - self.start)
        return self.start + ends[index - 1] if index else None

    def _next(self, ends: Sequence[int] | None, offset: Offset) -> Offset | None:
        if ends is None:
            return self.end if self.end > offset else None
        index = bisect_right(ends, offset - self.start)
        return self.start + ends[index] if index < len(ends) else None

    def clip(self, end: Offset) -> Cuts:
        """What a fork sees that branched off at `end`: there an append ends for it, and a message anyway."""
        if self.end < end:
            return self
        size = end - self.start
        appends = None if self.appends is None else [*self.appends[: bisect_left(self.appends, size)], size]
        messages = None if self.messages is None else self.messages[: bisect_right(self.messages, size)]
        return Cuts(self.start, end, appends, messages)


class Block(Cuts):
    """A block with its data."""

    __slots__ = ("data",)

    def __init__(
        self, start: Offset, data: bytes, appends: Sequence[int] | None = None, messages: Sequence[int] | None = None
    ) -> None:
        super().__init__(start, start + len(data), appends, messages)
        self.data: bytes = data


def make_blocks(start: Offset, payloads: Sequence[Payload]) -> list[Block]:
    """Cut appends that follow each other, the first of them at `start`, into blocks."""
    if len(payloads) == 1 and len(payloads[0].data) <= BLOCK_BYTES:
        return [_join(start, payloads)]
    blocks: list[Block] = []
    gathered: list[Payload] = []
    size = 0
    for payload in payloads:
        length = len(payload.data)
        if gathered and size + length > BLOCK_BYTES:
            blocks.append(_join(start, gathered))
            start += size
            gathered, size = [], 0
        if length > BLOCK_BYTES:
            blocks += _divide(start, payload)
            start += length
        else:
            gathered.append(payload)
            size += length
    if gathered:
        blocks.append(_join(start, gathered))
    return blocks


def _join(start: Offset, payloads: Sequence[Payload]) -> Block:
    """One block of several whole appends."""
    if len(payloads) == 1:
        data, ends = payloads[0].data, payloads[0].ends
        return Block(start, data, None, array(_INT32, ends) if len(ends) > 1 else None)
    appends, messages = array(_INT32), array(_INT32)
    position = 0
    for payload in payloads:
        messages.extend([position + end for end in payload.ends])
        position += len(payload.data)
        appends.append(position)
    data = b"".join([payload.data for payload in payloads])
    return Block(start, data, appends, messages if len(messages) > len(appends) else None)


def _divide(start: Offset, payload: Payload) -> list[Block]:
    """Several blocks of one append."""
    data, ends = payload.data, payload.ends
    blocks: list[Block] = []
    position = index = 0  # `index` counts the messages that are in blocks already
    while position < len(data):
        stop = min(position + BLOCK_BYTES, len(data))
        following = bisect_right(ends, stop, index)
        if following > index:
            stop = ends[following - 1]
        appends = None if stop == len(data) else array(_INT32)
        messages = array(_INT32, [end - position for end in ends[index:following]]) if ends else None
        blocks.append(Block(start + position, data[position:stop], appends, messages))
        position, index = stop, following
    return blocks


def pack(places: Sequence[int] | None) -> bytes | None:
    """Places as they are stored: 32 bits each, little-endian."""
    if places is None:
        return None
    packed = array(_INT32, places)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(stored: bytes | None) -> Sequence[int] | None:
    """Read what `pack` wrote."""
    if stored is None:
        return None
    places = array(_INT32)
    places.frombytes(stored)
    if sys.byteorder == "big":
        places.byteswap()
    return places


class BlockSource(Protocol):
    """The blocks of one stream, in memory or in the database."""

    def covering(self, offset: Offset) -> Cuts:
        """The first block that ends at `offset` or behind it."""
        ...

    def byte_at(self, offset: Offset) -> int:
        """The byte that follows an offset."""
        ...


class Blocks:
    """Blocks in memory that follow each other without a gap."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks

    def covering(self, offset: Offset) -> Block:
        """The first block that ends at `offset` or behind it."""
        return self._blocks[self.index(offset)]

    def byte_at(self, offset: Offset) -> int:
        """The byte that follows an offset."""
        block = self.covering(offset + 1)
        return block.data[offset - block.start]

    def index(self, offset: Offset) -> int:
        """Which block `covering` finds."""
        return bisect_left(self._blocks, offset, key=_end)


def _end(block: Block) -> Offset:
    return block.end


def is_boundary(source: BlockSource, offset: Offset) -> bool:
    """Whether a JSON stream can be read from an offset between its base and its tail."""
    return source.covering(offset).is_message_end(offset)


def page_end(source: BlockSource, mode: Mode, offset: Offset, limit: Offset) -> Offset:
    """Where a page ends that begins at `offset` and would reach beyond `limit`, see `Store.read`.

    Args:
        source: The stream. It holds `offset`, and goes on beyond `limit`.
        mode: The stream's.
        offset: Where the page begins.
        limit: Where it must end at the latest, `offset < limit`, unless one message reaches further.
    """
    cuts = at_limit = source.covering(limit)
    while True:
        end = cuts.last_append_end(limit)
        if end is not None:
            if end > offset:
                return end
            break
        if cuts.start <= offset:
            break
        cuts = source.covering(cuts.start)  # a part of a large append: look in the part before it
    if mode is Mode.JSON:
        return _between_messages(source, at_limit, offset, limit)
    if mode is Mode.TEXT:
        for place in range(limit, max(limit - 4, offset), -1):
            if source.byte_at(place) & 0xC0 != 0x80:  # no continuation of a character
                return place
    return limit


def _between_messages(source: BlockSource, cuts: Cuts, offset: Offset, limit: Offset) -> Offset:
    """The last message that ends in a page, else the first behind it."""
    at_limit = cuts
    while True:
        end = cuts.last_message_end(limit)
        if end is not None:
            if end > offset:
                return end
            break
        if cuts.start <= offset:
            break
        cuts = source.covering(cuts.start)
    cuts = at_limit
    while (end := cuts.next_message_end(limit)) is None:
        cuts = source.covering(cuts.end + 1)
    return end
