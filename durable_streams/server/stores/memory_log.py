"""What a stream in memory is made of: logs of appends, of which a fork borrows the beginnings of others.

An append is kept as the bytes object it arrived as. A log is a list of these, and beside it a sorted array of offsets
after each, in which a read finds its place by bisection. Both only ever grow, so a page needs no copy: it remembers
two positions and stays valid while others append, and after the stream was deleted.

A stream reads its own log behind a few layers: stretches of its ancestors' logs, in order, each up to the fork offset
at which the next one branches off. They are settled when the fork is made and never change, so reading a fork costs a
look at its layers and not a walk along its ancestors, and what happens to these later makes no difference.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..offsets import Offset
from ..protocol import Payload

#: Largest piece of a page, in bytes.
PIECE_BYTES = 1 << 20


class Log:
    """The appends of one stream.

    Attributes:
        chunks: Their bytes.
        ends: Offset after each.
        messages: For an append of several messages, by its index: position after each.
    """

    __slots__ = ("chunks", "ends", "messages")

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.ends: array[int] = array("q")
        self.messages: dict[int, array[int]] = {}

    def add(self, start: Offset, payload: Payload) -> None:
        """Add an append that starts at this offset."""
        if len(payload.ends) > 1:
            ends = payload.ends  # of very many messages it is an array already
            self.messages[len(self.chunks)] = ends if isinstance(ends, array) else array("q", ends)
        self.chunks.append(payload.data)
        self.ends.append(start + len(payload.data))

    def is_boundary(self, offset: Offset) -> bool:
        """Whether a message ends at this offset, which is greater than the log's start."""
        index = bisect_left(self.ends, offset)
        if self.ends[index] == offset:
            return True
        inner = self.messages.get(index)
        if inner is None:
            return False
        position = offset - self.ends[index] + len(self.chunks[index])
        return inner[bisect_left(inner, position)] == position


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of a log between two offsets."""

    log: Log
    start: Offset
    end: Offset

    def page_end(self, offset: Offset, limit: Offset, *, json: bool, text: bool) -> Offset:
        """Where a page that begins at `offset` ends, if it has to end at `limit`, which is before the span's end.

        Args:
            offset: At or before `limit`; before the span's start if the page begins in an earlier span.
            limit: Last offset to end at.
            json: Whether only whole messages may be handed out.
            text: Whether characters are better not divided.
        """
        log = self.log
        index = bisect_right(log.ends, limit)  # the append that would cross the limit
        base = log.ends[index - 1] if index else self.start
        start = max(base, self.start)
        if start > offset:
            return start
        chunk = log.chunks[index]
        base = log.ends[index] - len(chunk)
        inner = log.messages.get(index)
        if inner is not None:
            last = bisect_right(inner, limit - base) - 1
            if last >= 0 and base + inner[last] > offset:
                return base + inner[last]
            return base + inner[last + 1]
        if json:
            return log.ends[index]
        if text:
            for back in range(4):
                position = limit - back
                if position > offset and chunk[position - base] & 0xC0 != 0x80:
                    return position
        return limit

    def rest_of_append(self, offset: Offset, *, json: bool) -> Payload:
        """What the append at this offset has from there on, up to the span's end at most."""
        log = self.log
        index = bisect_right(log.ends, offset)
        base = log.ends[index] - len(log.chunks[index])
        data = log.chunks[index][offset - base : self.end - base]
        if not json:
            return Payload(data)
        inner: Sequence[int] = log.messages.get(index) or (len(log.chunks[index]),)
        ends = [base + end - offset for end in inner if offset < base + end <= self.end]
        return Payload(data, ends)


class Page:
    """A range of a stream. Holds the growing lists of its logs, not their contents."""

    __slots__ = ("_at", "_index", "_span", "_spans", "closed", "end", "size", "start", "tail")

    def __init__(self, spans: Sequence[Span], start: Offset, end: Offset, tail: Offset, closed: bool) -> None:
        self.start: Offset = start
        self.end: Offset = end
        self.tail: Offset = tail
        self.closed: bool = closed
        self.size: int = end - start
        self._at = start
        self._spans: Iterator[Span] = iter(spans)
        self._span: Span | None = None
        self._index = 0

    async def next_piece(self) -> bytes | memoryview | None:
        """The next bytes, without copying them, unless they are many small ones to be joined."""
        if self._at >= self.end:
            return None
        span = self._span
        while span is None or span.end <= self._at:
            span = self._span = next(self._spans)
            self._index = bisect_right(span.log.ends, self._at)
        chunks, ends = span.log.chunks, span.log.ends
        first, at = self._index, self._at
        limit = min(at + PIECE_BYTES, self.end, span.end)
        chunk, chunk_end = chunks[first], ends[first]
        skip = at - chunk_end + len(chunk)
        last = bisect_right(ends, limit, first)  # the append after the last that fits wholly
        if last <= first + 1:
            self._at = min(chunk_end, limit)
            self._index = last if self._at == chunk_end else first
            return chunk if not skip and self._at == chunk_end else memoryview(chunk)[skip : skip + self._at - at]
        self._at, self._index = ends[last - 1], last
        return b"".join((memoryview(chunk)[skip:], *chunks[first + 1 : last]))

    async def aclose(self) -> None:
        """Let go of the logs."""
        self._at = self.end
        self._spans = iter(())
        self._span = None


def inherited(layers: Sequence[Span], own: Span, end: Offset) -> tuple[Span, ...]:
    """The layers of a fork: what its source's layers and own data hold before the fork offset."""
    return tuple(
        Span(span.log, span.start, min(span.end, end)) for span in (*layers, own) if span.start < min(span.end, end)
    )
