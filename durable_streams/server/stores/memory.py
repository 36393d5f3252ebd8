"""The store that forgets: streams in memory, for tests, development and data that may go with the process.

Everything happens on one event loop, and no method waits between reading a state and changing it. That makes each
call a critical section without a lock.

The data is in logs (`memory_log`). Streams and their forks know each other directly: a fork is an edge in its source's
`forks`, and a source that is deleted stays, soft-deleted, until that set is empty. Forks that have expired leave it as
soon as somebody asks for the source, so an expired fork keeps nothing alive.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio

from ..._core.wire import is_json, media_type
from ..creation import Birth, decide_birth, decide_repetition
from ..offsets import Offset
from ..protocol import AppendRequest, Commit, Duplicate, Payload, ProducerState, Refused, decide
from ..subscriptions.records import MemoryRecords
from .abilities import Appending, StoreFigures
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
    Missing,
    Reason,
    SoftDeleted,
    StreamConfig,
    StreamInfo,
    StreamRef,
    StreamState,
)
from .memory_log import Log, Page, Span, inherited
from .reports import ProducerReport, StoreReport, StreamReport

#: Seconds after which a silent producer is forgotten.
PRODUCER_TTL = 7 * 86400.0

_PRODUCER_SWEEP = 3600.0


class MemoryStore(MemoryRecords):
    """Keeps streams, and subscriptions to them, in memory, as long as the object lives.

    Closing it and opening it again loses nothing.

    Args:
        incarnations: Makes the name of each new incarnation.
    """

    def __init__(self, *, incarnations: Callable[[], str] = lambda: secrets.token_urlsafe(9)) -> None:
        super().__init__()
        self._incarnations = incarnations
        self._streams: dict[str, _Stream] = {}
        self._sorted: list[str] | None = None  # the paths in order; None after a change
        self._size = 0

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
            refused = decide_repetition(existing.state, existing.asked, existing.config, r)
            return refused or Exists(existing.info())
        fork = r.config.fork
        source = None if fork is None else self._find(fork.source, now)
        birth = decide_birth(source, r)
        if isinstance(birth, Refused):
            return birth
        stream = _Stream(StreamRef(r.path, self._incarnations()), r.config, birth, source, now)
        self._streams[r.path] = stream
        self._sorted = None
        self._size += stream.size
        return Created(stream.info())

    async def append(self, r: AppendRequest, now: float) -> AppendResult:
        """Append and close, see `Store.append`."""
        return self._append(r, now)

    def append_soon(self, r: AppendRequest, now: float, done: Appending) -> None:
        """Append and close, see `PromptStore`."""
        done(self._append(r, now))

    def _append(self, r: AppendRequest, now: float) -> AppendResult:
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
        if isinstance(decision.payload, Payload):
            self._size += len(decision.payload.data)
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
        return SoftDeleted() if self._retire(stream, now) else Deleted()

    async def head(self, path: str, now: float) -> StreamInfo | Missing | Gone:
        """Look at a stream."""
        stream = self._find(path, now)
        if stream is None:
            return Missing()
        return Gone() if stream.state.deleted else stream.info()

    async def read(self, ref: StreamRef, offset: Offset, max_bytes: int) -> Page | BadOffset | Missing | Gone:
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
        return stream.page(offset, max_bytes)

    async def list_streams(self, prefix: str, after: str, limit: int, now: float) -> list[StreamInfo]:
        """Streams by path, see `SubscriptionStore.list_streams`."""
        order = self._order()
        start = max(bisect_left(order, prefix), bisect_right(order, after))
        found: list[StreamInfo] = []
        for index in range(start, len(order)):
            path = order[index]
            if len(found) == limit or not path.startswith(prefix):
                break
            stream = self._find(path, now)
            if stream is not None and not stream.state.deleted:
                found.append(stream.info())
        return found

    def watch(self, ref: StreamRef) -> _Watch:
        """Attach a live reader."""
        stream = self._streams.get(ref.path)
        if stream is None or stream.ref != ref:
            stream = _Stream(ref, StreamConfig(), Birth(StreamConfig(), closed=False), None, 0.0)
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

    def count_streams(self) -> int:
        """How many streams there are, see `CountingStore`."""
        return len(self._streams)

    def figures(self) -> StoreFigures:
        """The store in figures."""
        return StoreFigures(len(self._streams), self._size)

    async def report(self) -> StoreReport:
        """The store as a whole, see `InspectableStore`."""
        deleted = sum(stream.state.deleted for stream in self._streams.values())
        subscriptions = len(await self.load_subscriptions())
        return StoreReport("memory", len(self._streams) - deleted, deleted, 0, subscriptions, self._size)

    async def report_streams(self, prefix: str, after: str, limit: int) -> list[StreamReport]:
        """Streams by path, see `InspectableStore`."""
        order = self._order()
        reports: list[StreamReport] = []
        for index in range(max(bisect_left(order, prefix), bisect_right(order, after)), len(order)):
            path = order[index]
            if len(reports) == limit or not path.startswith(prefix):
                break
            if not prefix or path[len(prefix) :][:1] in ("", "/"):
                reports.append(self._streams[path].report())
        return reports

    async def report_producers(self, path: str, limit: int) -> list[ProducerReport]:
        """The producers of a stream, see `InspectableStore`."""
        stream = self._streams.get(path)
        known = [] if stream is None else sorted(stream.producers.items(), key=lambda entry: -entry[1][1])
        return [ProducerReport(path, name, state.epoch, state.seq, None, seen) for name, (state, seen) in known[:limit]]

    def _order(self) -> list[str]:
        """All paths in order."""
        if self._sorted is None:
            self._sorted = sorted(self._streams)
        return self._sorted

    def _find(self, path: str, now: float) -> _Stream | None:
        """The stream at a path. One that has expired, or was kept for forks that have, is removed here."""
        stream = self._streams.get(path)
        if stream is None or not stream.mortal:
            return stream
        if stream.state.deleted:
            kept = self._is_needed(stream, now)
            if not kept:
                self._remove(stream)
        elif stream.expired(now):
            kept = self._retire(stream, now)
        else:
            return stream
        return stream if kept else None

    def _retire(self, stream: _Stream, now: float) -> bool:
        """Delete a stream for everyone but its forks. Returns False if it has none: then it is removed."""
        if not self._is_needed(stream, now):
            self._remove(stream)
            return False
        stream.state.deleted = stream.mortal = True
        stream.producers.clear()
        stream.wake()
        return True

    def _is_needed(self, stream: _Stream, now: float) -> bool:
        """Whether forks need a stream's data. Those that have expired are removed on the way."""
        while stream.forks:
            fork = next(iter(stream.forks))
            if self._find(fork.ref.path, now) is not None:
                return True
        return False

    def _remove(self, stream: _Stream) -> None:
        """Remove a stream, and the soft-deleted ancestors that were only kept for it."""
        while not stream.removed:
            del self._streams[stream.ref.path]
            self._size -= stream.size
            self._sorted = None
            stream.removed = True
            stream.wake()
            if stream.source is None:
                return
            stream.source.forks.discard(stream)
            if stream.source.state.deleted and not stream.source.forks:
                stream = stream.source


class _Stream:
    """One incarnation of a stream and all that belongs to it. Serves as a `ForkSource`."""

    __slots__ = (
        "accessed",
        "asked",
        "attached",
        "changed",
        "config",
        "depth",
        "forks",
        "json",
        "layers",
        "log",
        "mortal",
        "openings",
        "producers",
        "producers_swept",
        "ref",
        "removed",
        "source",
        "start",
        "state",
    )

    def __init__(self, ref: StreamRef, asked: StreamConfig, birth: Birth, source: _Stream | None, now: float) -> None:
        config = birth.config
        self.ref: StreamRef = ref
        self.asked: StreamConfig = asked
        self.config: StreamConfig = config
        self.mortal: bool = config.ttl is not None or config.expires_at is not None
        self.json: bool = is_json(config.effective_type)
        self.state: StreamState = StreamState(media_type(config.effective_type), birth.start)
        self.start: Offset = birth.start
        self.log: Log = Log()
        self.source: _Stream | None = source
        self.layers: tuple[Span, ...] = ()
        self.depth: int = birth.depth
        self.forks: set[_Stream] = set()
        self.producers: dict[str, tuple[ProducerState, float]] = {}
        self.producers_swept: float = now
        self.accessed: float = now
        self.attached: int = 0
        self.openings: int = 0  # of the store; who watched in an earlier one is gone
        self.changed: anyio.Event | None = None
        self.removed: bool = False
        if source is not None:
            self.layers = inherited(source.layers, source.own, birth.start)
            source.forks.add(self)
        for payload in birth.appends:
            self.log.add(self.state.tail, payload)
            self.state.tail += len(payload.data)
        self.state.closed = birth.closed

    @property
    def size(self) -> int:
        """Bytes of its own."""
        return self.state.tail - self.start

    @property
    def own(self) -> Span:
        """Its own data."""
        return Span(self.log, self.start, self.state.tail)

    def info(self) -> StreamInfo:
        config, state = self.config, self.state
        return StreamInfo(self.ref, config.effective_type, state.tail, state.closed, config.ttl, config.expires_at)

    def report(self) -> StreamReport:
        config, state, fork = self.config, self.state, self.config.fork
        return StreamReport(
            self.ref.path,
            config.effective_type,
            state.tail,
            self.size,
            state.closed,
            state.deleted,
            config.ttl,
            None if config.expires_at is None else config.expires_at.text,
            self.accessed,
            None if fork is None else fork.source,
            len(self.forks),
            len(self.producers),
        )

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
            self.log.add(self.state.tail, commit.payload)
        self.state.apply(commit)
        self.wake()

    def wake(self) -> None:
        if self.changed is not None:
            self.changed.set()
            self.changed = None

    def span_at(self, offset: Offset) -> Span:
        """Where the byte at this offset is, which is less than the tail."""
        if offset >= self.start:
            return self.own
        return self.layers[bisect_right(self.layers, offset, key=lambda span: span.end)]

    def is_boundary(self, offset: Offset) -> bool:
        """Whether a message ends, or the stream begins, at this offset."""
        if offset in (0, self.start):
            return True
        log = self.log
        if offset < self.start:
            span = self.span_at(offset)
            if offset == span.start:
                return True
            log = span.log
        return log.is_boundary(offset)

    def rest_of_append(self, offset: Offset) -> Payload:
        """What the append at this offset has from there on."""
        return self.span_at(offset).rest_of_append(offset, json=self.json)

    def page(self, offset: Offset, max_bytes: int) -> Page:
        """A page that begins at this offset."""
        limit = offset + max_bytes
        end = self.state.tail
        if limit < end:
            end = self.span_at(limit).page_end(
                offset, limit, json=self.json, text=self.state.media_type.startswith("text/")
            )
        spans = (self.own,) if offset >= self.start else (*self.layers, self.own)
        return Page(spans, offset, end, self.state.tail, self.state.closed)


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
