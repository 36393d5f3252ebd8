"""The store that forgets: streams in memory, for tests, development and data that may go with the process.

Everything happens on one event loop, and no method waits between reading a state and changing it. That makes each
call a critical section without a lock.

An append is kept as the bytes object it arrived as. A stream is a list of these, and beside it a sorted array of
offsets after each, in which a read finds its place by bisection. Both only ever grow, so a page needs no copy: it
remembers two positions and stays valid while others append, and after the stream was deleted.
"""

from __future__ import annotations

import secrets
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio

from ..._core.wire import is_json, is_text, media_type
from ..creation import decide_repetition
from ..offsets import Offset
from ..protocol import AppendRequest, Commit, Duplicate, Payload, ProducerState, Refused, decide
from .base import (
    Appended,
    AppendResult,
    BadOffset,
    Created,
    CreateRequest,
    CreateResult,
    Deleted,
    DeleteResult,
    Exists,
    Gone,
    InvalidJson,
    Missing,
    Reason,
    StreamConfig,
    StreamInfo,
    StreamRef,
    StreamState,
)

#: Largest piece of a page, in bytes.
PIECE_BYTES = 1 << 20
#: Seconds after which a silent producer is forgotten.
PRODUCER_TTL = 7 * 86400.0

_PRODUCER_SWEEP = 3600.0


class MemoryStore:
    """Keeps streams in memory, as long as the object lives: closing it and opening it again loses nothing.

    Args:
        incarnations: Makes the name of each new incarnation.
    """

    def __init__(self, *, incarnations: Callable[[], str] = lambda: secrets.token_urlsafe(9)) -> None:
        self._incarnations = incarnations
        self._streams: dict[str, _Stream] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in self._streams.values():
            stream.openings += 1
            stream.wake()

    def __repr__(self) -> str:
        return f"<MemoryStore with {len(self._streams)} streams>"

    async def create(self, r: CreateRequest, now: float) -> CreateResult:
        """Create a stream or confirm it, see `Store.create`."""
        existing = self._find(r.path, now)
        if existing is not None:
            return decide_repetition(existing.state, existing.config, existing.config, r) or Exists(existing.info())
        if isinstance(r.payload, InvalidJson):
            return Refused(Reason.INVALID_JSON, problem=r.payload.problem)
        stream = _Stream(StreamRef(r.path, self._incarnations()), r.config, now)
        if r.payload is not None and r.payload.data:
            stream.store(r.payload)
            stream.state.tail = len(r.payload.data)
        stream.state.closed = r.closed
        self._streams[r.path] = stream
        return Created(stream.info())

    async def append(self, r: AppendRequest, now: float) -> AppendResult:
        """Append and close, see `Store.append`."""
        stream = self._find(r.path, now)
        if stream is None:
            return decide(None, None, r)  # type: ignore[return-value]  # without a stream nothing is committed
        known = None if r.producer is None else stream.producer(r.producer.id, now)
        decision = decide(stream.state, known, r)
        if isinstance(decision, Refused):
            return decision
        stream.accessed = now
        if isinstance(decision, Duplicate):
            return decision
        stream.commit(decision)
        if r.producer is not None and decision.producer is not None:
            stream.producers[r.producer.id] = (decision.producer, now)
        return Appended(stream.state.tail, stream.state.closed, decision.producer)

    async def delete(self, path: str, now: float) -> DeleteResult:
        """Delete a stream and wake its watchers."""
        stream = self._find(path, now)
        if stream is None:
            return Refused(Reason.NOT_FOUND)
        if stream.state.deleted:
            return Refused(Reason.GONE)
        self._remove(stream)
        return Deleted()

    async def head(self, path: str, now: float) -> StreamInfo | Missing | Gone:
        """Look at a stream."""
        stream = self._find(path, now)
        if stream is None:
            return Missing()
        return Gone() if stream.state.deleted else stream.info()

    async def read(self, ref: StreamRef, offset: Offset, max_bytes: int) -> _Page | BadOffset | Missing | Gone:
        """A page, see `Store.read`. Costs nothing but finding its ends."""
        stream = self._streams.get(ref.path)
        if stream is None or stream.ref != ref:
            return Missing()
        if stream.state.deleted:
            return Gone()
        if offset > stream.state.tail:
            return BadOffset("the offset lies beyond the end of the stream")
        if stream.json and not stream.is_boundary(offset):
            return BadOffset("the offset lies inside a message")
        return _Page(stream, offset, stream.page_end(offset, max_bytes))

    def watch(self, ref: StreamRef) -> _Watch:
        """Attach a live reader."""
        stream = self._streams.get(ref.path)
        if stream is None or stream.ref != ref:
            stream = _Stream(ref, StreamConfig(), 0.0)
            stream.removed = True
        return _Watch(stream)

    def touch(self, ref: StreamRef, now: float) -> None:
        """Renew a TTL."""
        stream = self._streams.get(ref.path)
        if stream is not None and stream.ref == ref:
            stream.accessed = now

    async def sweep(self, now: float) -> None:
        """Remove expired streams, letting others run in between."""
        for index, path in enumerate(list(self._streams)):
            self._find(path, now)
            if index % 1000 == 999:
                await anyio.lowlevel.checkpoint()

    def _find(self, path: str, now: float) -> _Stream | None:
        """The stream at a path, unless it has expired: then it is removed."""
        stream = self._streams.get(path)
        if stream is not None and stream.mortal and stream.expired(now):
            self._remove(stream)
            return None
        return stream

    def _remove(self, stream: _Stream) -> None:
        del self._streams[stream.ref.path]
        stream.removed = True
        stream.wake()


class _Stream:
    """One incarnation of a stream and all that belongs to it."""

    __slots__ = (
        "accessed",
        "attached",
        "changed",
        "chunks",
        "config",
        "ends",
        "json",
        "messages",
        "mortal",
        "openings",
        "producers",
        "producers_swept",
        "ref",
        "removed",
        "state",
    )

    def __init__(self, ref: StreamRef, config: StreamConfig, now: float) -> None:
        self.ref: StreamRef = ref
        self.config: StreamConfig = config
        self.mortal: bool = config.ttl is not None or config.expires_at is not None
        self.json: bool = is_json(config.effective_type)
        self.state: StreamState = StreamState(media_type(config.effective_type))
        self.chunks: list[bytes] = []
        self.ends: array[int] = array("q")
        self.messages: dict[int, array[int]] = {}  # index of an append of several messages -> position after each
        self.producers: dict[str, tuple[ProducerState, float]] = {}
        self.producers_swept: float = now
        self.accessed: float = now
        self.attached: int = 0
        self.openings: int = 0  # of the store; who watched in an earlier one is gone
        self.changed: anyio.Event | None = None
        self.removed: bool = False

    def info(self) -> StreamInfo:
        config, state = self.config, self.state
        return StreamInfo(self.ref, config.effective_type, state.tail, state.closed, config.ttl, config.expires_at)

    def expired(self, now: float) -> bool:
        config = self.config
        if config.ttl is not None and not self.attached and now - self.accessed >= config.ttl:
            return True
        return config.expires_at is not None and now >= config.expires_at.timestamp

    def producer(self, producer_id: str, now: float) -> ProducerState | None:
        """What is known of a producer. Those that were silent for too long are forgotten here, now and then."""
        if now - self.producers_swept > _PRODUCER_SWEEP:
            self.producers = {name: entry for name, entry in self.producers.items() if now - entry[1] < PRODUCER_TTL}
            self.producers_swept = now
        entry = self.producers.get(producer_id)
        return None if entry is None or now - entry[1] >= PRODUCER_TTL else entry[0]

    def commit(self, commit: Commit) -> None:
        if isinstance(commit.payload, Payload):
            self.store(commit.payload)
        self.state.apply(commit)
        self.wake()

    def store(self, payload: Payload) -> None:
        if len(payload.ends) > 1:
            self.messages[len(self.chunks)] = array("q", payload.ends)
        self.chunks.append(payload.data)
        self.ends.append(self.state.tail + len(payload.data))

    def wake(self) -> None:
        if self.changed is not None:
            self.changed.set()
            self.changed = None

    def is_boundary(self, offset: Offset) -> bool:
        """Whether a message ends, or the stream begins, at this offset."""
        index = bisect_left(self.ends, offset)
        if offset == 0 or self.ends[index] == offset:
            return True
        inner = self.messages.get(index)
        if inner is None:
            return False
        position = offset - self.ends[index] + len(self.chunks[index])
        return inner[bisect_left(inner, position)] == position

    def page_end(self, offset: Offset, max_bytes: int) -> Offset:
        """Where a page that begins at `offset` ends, see `Store.read`."""
        limit = offset + max_bytes
        if limit >= self.state.tail:
            return self.state.tail
        index = bisect_right(self.ends, limit)  # the append that would cross the limit
        if index and self.ends[index - 1] > offset:
            return self.ends[index - 1]
        chunk = self.chunks[index]
        base = self.ends[index] - len(chunk)
        inner = self.messages.get(index)
        if inner is not None:
            last = bisect_right(inner, limit - base) - 1
            if last >= 0 and base + inner[last] > offset:
                return base + inner[last]
            return base + inner[last + 1]
        if self.json:
            return self.ends[index]
        if is_text(self.config.effective_type):
            for back in range(4):
                position = limit - back
                if position > offset and chunk[position - base] & 0xC0 != 0x80:
                    return position
        return limit


class _Page:
    """A range of a stream. Holds the stream's growing lists, not their contents."""

    __slots__ = ("_at", "_chunks", "_ends", "_index", "closed", "end", "size", "start", "tail")

    def __init__(self, stream: _Stream, start: Offset, end: Offset) -> None:
        self.start = start
        self.end = end
        self.tail = stream.state.tail
        self.closed = stream.state.closed
        self.size = end - start
        self._chunks = stream.chunks
        self._ends = stream.ends
        self._at = start
        self._index = bisect_right(stream.ends, start)

    async def next_piece(self) -> bytes | memoryview | None:
        if self._at >= self.end:
            return None
        first, at = self._index, self._at
        limit = min(at + PIECE_BYTES, self.end)
        chunk, chunk_end = self._chunks[first], self._ends[first]
        skip = at - chunk_end + len(chunk)
        last = bisect_right(self._ends, limit, first)  # the append after the last that fits wholly
        if last <= first + 1:
            self._at = min(chunk_end, limit)
            self._index = last if self._at == chunk_end else first
            return chunk if not skip and self._at == chunk_end else memoryview(chunk)[skip : skip + self._at - at]
        self._at, self._index = self._ends[last - 1], last
        return b"".join((memoryview(chunk)[skip:], *self._chunks[first + 1 : last]))

    async def aclose(self) -> None:
        self._at = self.end
        self._chunks = []


class _Watch:
    """One attached reader."""

    __slots__ = ("_attached", "_opening", "_stream")

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._opening = stream.openings
        self._attached = True
        stream.attached += 1

    @property
    def tail(self) -> Offset:
        return self._stream.state.tail

    @property
    def closed(self) -> bool:
        return self._stream.state.closed

    @property
    def gone(self) -> bool:
        stream = self._stream
        return stream.removed or stream.state.deleted or stream.openings != self._opening

    async def wait(self, seen: Offset) -> None:
        stream = self._stream
        while stream.state.tail <= seen and not stream.state.closed and not self.gone:
            if stream.changed is None:
                stream.changed = anyio.Event()
            await stream.changed.wait()

    def close(self) -> None:
        if self._attached:
            self._attached = False
            self._stream.attached -= 1
