"""Streams as the event loop sees them: what is committed, who waits for more, and the newest data.

The writer publishes each commit here, after it is durable, in the order of the commits. So this is a faithful copy of
the newest state of some streams: those that were used lately, and all that are watched. A stream that is not here is
read from the database (`load`), and a commit may be published while that goes on. Then the copy is there already and
wins, being newer: no stream is pushed out of memory while it is loaded. Only for a removed stream there is no copy to
win. So `_Loading` tells that there was a removal: one that was published, or one that somebody else has found in the
database already, and may have spoken of.

The newest blocks of all streams stay in memory, up to a number of bytes altogether, and the oldest go first: always
all that one commit added to a stream. So those of one stream reach back from its tail without a gap, to the beginning
of an append. Readers who wait for news find it here, and the disk is left alone.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice

import anyio

from ..creation import StreamConfig
from ..offsets import Offset
from .base import StreamInfo, StreamRef
from .sqlite_blocks import BLOCK_BYTES, Block, Blocks, Lineage, Mode, is_boundary, page_end
from .sqlite_reading import Readers
from .sqlite_records import Change, Record, load

# What a block in memory costs beside its data, in bytes: with small blocks it is most of it.
_BLOCK_COST = 500
_EVICTION_STEPS = 4


class Live:
    """One incarnation of a stream.

    Attributes:
        id: Its number in the database.
        ref: Path and incarnation.
        mode: Where its appends may be divided.
        lineage: Where its data lies.
        tail: Offset after the last byte.
        closed: Whether it is closed.
        deleted: Whether it is soft-deleted.
        gone: Whether it was removed, or the store was closed.
        last_access: When it was last used, as far as that is stored.
        watches: How many watch it.
        blocks: Its newest blocks, up to the tail.
    """

    __slots__ = (
        "_changed",
        "blocks",
        "closed",
        "config",
        "deleted",
        "gone",
        "id",
        "last_access",
        "lineage",
        "mode",
        "ref",
        "tail",
        "watches",
    )

    def __init__(self, change: Change) -> None:
        self.id: int = change.id
        self.ref: StreamRef = change.ref
        self.config: StreamConfig = change.config
        self.mode: Mode = Mode.of(change.config.effective_type)
        self.lineage: Lineage = change.lineage
        self.tail: Offset = change.tail
        self.closed: bool = change.closed
        self.deleted: bool = change.deleted
        self.gone: bool = change.removed
        self.last_access: float = change.last_access
        self.watches: int = 0
        self.blocks: deque[Block] = deque()
        self._changed: anyio.Event | None = None

    @classmethod
    def nothing(cls, ref: StreamRef) -> Live:
        """A stream that is gone, or never was."""
        return cls(Change(0, ref, StreamConfig(), (), 0, closed=False, deleted=False, removed=True, last_access=0.0))

    def info(self) -> StreamInfo:
        """The stream in the words of the seam."""
        config = self.config
        return StreamInfo(self.ref, config.effective_type, self.tail, self.closed, config.ttl, config.expires_at)

    def apply(self, change: Change) -> bool:
        """Follow a commit, unless it is already known. Returns whether its blocks were taken."""
        end = self.blocks[-1].end if self.blocks else self.tail
        news = change.tail > self.tail or (change.closed, change.deleted) > (self.closed, self.deleted)
        taken = bool(change.blocks) and change.blocks[0].start == end
        if taken:
            self.blocks.extend(change.blocks)
        self.tail = max(self.tail, change.tail)
        self.closed = self.closed or change.closed
        self.deleted = self.deleted or change.deleted
        self.last_access = max(self.last_access, change.last_access)
        if news:
            self.wake()
        return taken

    def leave(self) -> None:
        """It is gone."""
        self.gone = True
        self.wake()

    def wake(self) -> None:
        """Let those who wait look again."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def wait(self) -> None:
        """Wait for `wake`."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def in_memory(self, offset: Offset) -> bool:
        """Whether all that follows an offset is in memory."""
        return offset == self.tail or (bool(self.blocks) and offset >= self.blocks[0].start)

    def page(self, offset: Offset, max_bytes: int) -> RecentPage | None:
        """A page of what is in memory; None if no page can begin at this offset."""
        tail, closed = self.tail, self.closed
        if offset == tail:
            return RecentPage((), offset, offset, tail, closed)
        source = Blocks(self.blocks)
        if self.mode is Mode.JSON and offset != self.blocks[0].start and not is_boundary(source, offset):
            return None
        limit = offset + max_bytes
        end = tail if limit >= tail else page_end(source, self.mode, offset, limit)
        blocks = tuple(islice(self.blocks, source.index(offset + 1), source.index(end) + 1))
        return RecentPage(blocks, offset, end, tail, closed)


class _Loading:
    """The loads of one path that are under way."""

    __slots__ = ("count", "removals")

    def __init__(self) -> None:
        self.count = 0
        self.removals = 0  # since the first of them began, as far as anybody knows


class LiveStreams:
    """The streams that are in memory.

    Args:
        readers: For those that are not.
        limit: How many to keep beside those that are watched.
        recent_bytes: How much memory their newest data may take.
    """

    def __init__(self, readers: Readers, limit: int, recent_bytes: int) -> None:
        self._readers = readers
        self._limit = limit
        self._recent_bytes = recent_bytes
        self._streams: OrderedDict[str, Live] = OrderedDict()  # by path, the one used last at the end
        self._recent: deque[tuple[Live, int, int]] = deque()  # stream, number of blocks, bytes; oldest first
        self._recent_size = 0
        self._loading: dict[str, _Loading] = {}  # by path

    def __len__(self) -> int:
        return len(self._streams)

    async def find(self, path: str) -> Live | None:
        """The stream at a path, which may be soft-deleted or past its expiry; None if there is none.

        Raises:
            StoreError: if the database cannot be read.
        """
        while True:
            stream = self._used(path)
            if stream is not None:
                return stream
            loading = self._loading.setdefault(path, _Loading())
            removals = loading.removals
            loading.count += 1
            try:
                record = await self._readers.run(load, path)
            finally:
                loading.count -= 1
                if not loading.count:
                    del self._loading[path]
            if path not in self._streams:
                if record is None:
                    loading.removals += 1
                    return None
                if removals == loading.removals:
                    return self._add(Change.of(record))
            # Else something was published meanwhile, which is newer than what was loaded.

    def find_here(self, ref: StreamRef) -> Live | None:
        """The stream, without waiting.

        Whoever asks has found the stream a moment before, so it is in memory. It takes thousands of other streams
        since to push it out; then this thread reads one row from the disk.
        """
        stream = self._used(ref.path)
        if stream is None:
            record: Record | None = self._readers.run_here(load, ref.path)
            if record is None:
                self._note_removal(ref.path)
            else:
                stream = self._add(Change.of(record))
        return stream if stream is not None and stream.ref == ref else None

    def known(self, ref: StreamRef) -> Live | None:
        """The stream if it is in memory."""
        stream = self._streams.get(ref.path)
        return stream if stream is not None and stream.ref == ref else None

    def publish(self, change: Change) -> None:
        """A commit is durable."""
        stream = self._used(change.ref.path)
        if change.removed:
            self._note_removal(change.ref.path)
            if stream is not None and stream.id == change.id:
                del self._streams[change.ref.path]
                stream.leave()
            return
        if stream is not None and stream.id > change.id:
            return  # loaded after its predecessor was removed, which is still to be published
        if stream is not None and stream.id < change.id:
            del self._streams[change.ref.path]
            stream.leave()
            stream = None
        if stream is None:
            stream = self._add(change)
            stream.tail = change.blocks[0].start if change.blocks else change.tail
        if stream.apply(change):
            size = sum(_BLOCK_COST + len(block.data) for block in change.blocks)
            self._recent.append((stream, len(change.blocks), size))
            self._recent_size += size
            while self._recent_size > self._recent_bytes:
                self._forget_oldest()

    def leave(self) -> None:
        """The store is closed: all who watch learn that."""
        streams, self._streams = self._streams, OrderedDict()
        self._recent.clear()
        for stream in streams.values():
            stream.leave()

    def _note_removal(self, path: str) -> None:
        loading = self._loading.get(path)
        if loading is not None:
            loading.removals += 1

    def _used(self, path: str) -> Live | None:
        stream = self._streams.get(path)
        if stream is not None:
            self._streams.move_to_end(path)
        return stream

    def _add(self, change: Change) -> Live:
        stream = self._streams[change.ref.path] = Live(change)
        # Those that are watched or loaded stay, so there may be more than the limit; a few steps per new one suffice.
        for _ in range(min(len(self._streams) - self._limit, _EVICTION_STEPS)):
            path, oldest = self._streams.popitem(last=False)
            if oldest.watches or oldest is stream or path in self._loading:
                self._streams[path] = oldest
        return stream

    def _forget_oldest(self) -> None:
        stream, count, size = self._recent.popleft()
        self._recent_size -= size
        for _ in range(count):
            stream.blocks.popleft()


class LiveWatch:
    """One attached reader."""

    __slots__ = ("_on_close", "_stream")

    def __init__(self, stream: Live, on_close: Callable[[], None]) -> None:
        self._stream = stream
        self._on_close: Callable[[], None] | None = on_close
        stream.watches += 1

    @property
    def tail(self) -> Offset:
        """The newest tail."""
        return self._stream.tail

    @property
    def closed(self) -> bool:
        """Whether the stream is closed."""
        return self._stream.closed

    @property
    def gone(self) -> bool:
        """Whether this incarnation no longer exists."""
        return self._stream.gone or self._stream.deleted

    async def wait(self, seen: Offset) -> None:
        """Wait for news, see `Watch.wait`."""
        while self._stream.tail <= seen and not self._stream.closed and not self.gone:
            await self._stream.wait()

    def close(self) -> None:
        """Detach. Idempotent."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            self._stream.watches -= 1
            on_close()


class RecentPage:
    """A range of a stream in memory.

    Args:
        blocks: The blocks that it touches.
        start: First offset.
        end: Offset after the last byte.
        tail: The stream's tail in this snapshot.
        closed: Whether the stream is closed in it.
    """

    def __init__(self, blocks: tuple[Block, ...], start: Offset, end: Offset, tail: Offset, closed: bool) -> None:
        self.start = start
        self.end = end
        self.tail = tail
        self.closed = closed
        self.size: int = end - start
        self._blocks = deque(blocks)
        self._at = start

    async def next_piece(self) -> bytes | memoryview | None:
        """The next bytes, see `StorePage`."""
        blocks, limit = self._blocks, min(self._at + BLOCK_BYTES, self.end)
        parts: list[bytes | memoryview] = []
        while blocks and self._at < limit:
            block = blocks[0]
            skip = self._at - block.start
            if block.end <= limit:
                blocks.popleft()
            elif parts:
                break  # rather end the piece between two blocks than copy a part
            stop = min(block.end, limit)
            parts.append(
                block.data if not skip and stop == block.end else memoryview(block.data)[skip : stop - block.start]
            )
            self._at = stop
        if len(parts) == 1:
            return parts[0]
        return b"".join(parts) or None

    async def aclose(self) -> None:
        """Forget the data. Idempotent."""
        self._blocks.clear()
        self._at = self.end
