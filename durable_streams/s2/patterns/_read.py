"""Messages of any size and type, read."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Generic, Literal, Protocol, Self, TypeVar

from ..._core.fresh import fresh
from ...errors import BusyResourceError, InvalidArgumentError
from .._values import ReadBatch, SequencedRecord
from ..errors import S2SessionClosedError
from ._assembler import DroppedFrame, FrameAssembler
from ._chunks import DEFAULT_MAX_FRAME_BYTES
from ._dedupe import DedupeFilter
from ._serializers import Serializer

T_co = TypeVar("T_co", covariant=True)

logger = logging.getLogger("durable_streams.s2.patterns")


class ReadSessionLike(Protocol):
    """What is needed of a session: `ReadSession` has it."""

    def __aiter__(self) -> AsyncIterator[ReadBatch]:
        """Batches in stream order."""
        ...

    async def aclose(self) -> None:
        """End the session."""
        ...


class DeserializingReadSession(Generic[T_co]):
    """The messages of a stream, in order: duplicates left out, records put together, deserialised.

        async with DeserializingReadSession(stream.read_session(ignore_command_records=True), JSON) as messages:
            async for message in messages:
                ...

    Let the session leave out command records: a fence between two records of a message would count as one of it.
    What is incomplete is dropped, such as what a crashed writer began, or the rest of a message that began before the
    first record read. A cancelled wait loses nothing.

    Args:
        session: A read session. It is closed with this.
        serializer: A `Serializer`, such as `JSON`, or a function from bytes to a message.
        dedupe: Whether duplicates are left out; or a filter of your own, such as one that knows several writers.
        max_frame_bytes: Most bytes that a message may declare.
        strict: Refuse impossible declarations, see `FrameAssembler`.
        on_error: "raise" ends reading at the first message or record that cannot be read; "skip" passes it over.
        on_skip: Plain function, called with the error and the record when "skip" passes over something.
        on_drop: Plain function, called with each incomplete message.

    Attributes:
        skipped: What was passed over so far.
    """

    def __init__(
        self,
        session: ReadSessionLike,
        serializer: Serializer[T_co] | Callable[[bytes], T_co],
        *,
        dedupe: bool | DedupeFilter = True,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        strict: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        on_skip: Callable[[Exception, SequencedRecord], None] | None = None,
        on_drop: Callable[[DroppedFrame], None] | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise InvalidArgumentError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        if on_skip is not None and on_error != "skip":
            raise InvalidArgumentError("on_skip needs on_error='skip'")
        self._session = session
        self._batches = aiter(session)
        self._deserialize = serializer.deserialize if isinstance(serializer, Serializer) else serializer
        self._filter = (DedupeFilter() if dedupe else None) if isinstance(dedupe, bool) else dedupe
        self._on_drop = on_drop
        self._assembler = FrameAssembler(max_frame_bytes=max_frame_bytes, strict=strict, on_drop=self._tell_drop)
        self._skips = on_error == "skip"
        self._on_skip = on_skip
        self._records: deque[SequencedRecord] = deque()
        self._resume_at: int | None = None
        self._failure: Exception | None = None
        self._reading = self._closed = False
        self.skipped: int = 0

    # -- Facts ---------------------------------------------------------------------------------------------

    @property
    def resume_seq_num(self) -> int | None:
        """Sequence number after the last record of the last message handed over; None before the first.

        A later session that starts there goes on with the next message. A retry may have stored the last one again
        right behind it: give that session a `DedupeFilter` that knows what this one's knew, see `DedupeFilter.last`.
        """
        return self._resume_at

    @property
    def dropped(self) -> int:
        """Incomplete messages so far."""
        return self._assembler.dropped

    @property
    def duplicates(self) -> int:
        """Duplicate records left out so far."""
        return 0 if self._filter is None else self._filter.dropped

    def __repr__(self) -> str:
        return f"<DeserializingReadSession on {self._session!r}>"

    # -- Life ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End reading, and the session beneath. Idempotent."""
        self._closed = True
        self._records.clear()
        await self._session.aclose()

    # -- Messages ------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        """The next message.

        Raises:
            FrameSizeError: a message declares a size that is not allowed.
            MessageFormatError: headers of a record mean nothing.
            Exception: what the deserialiser raised, unchanged; what the session raised. After any error but those of
                the session, the session is closed, and the error is raised again.
            S2SessionClosedError: this was closed.
            BusyResourceError: another task is waiting for the next message.
        """
        if self._reading:
            raise BusyResourceError("another task is already waiting for this session's next message")
        self._reading = True
        try:
            while True:
                if self._failure is not None:
                    raise fresh(self._failure)
                if self._closed:
                    raise S2SessionClosedError("the session was closed")
                while self._records:
                    record = self._records.popleft()
                    try:
                        messages = self._read(record)
                    except Exception as error:
                        if not self._skips:
                            self._failure = error
                            await self.aclose()
                            raise
                        self._skip(error, record)
                        continue
                    if messages:
                        self._resume_at = record.seq_num + 1
                        return messages[0]
                self._records.extend((await anext(self._batches)).records)
        finally:
            self._reading = False

    def _read(self, record: SequencedRecord) -> list[T_co]:
        """The message that a record completes, if it does."""
        if self._filter is not None and not self._filter.should_accept(record.headers):
            return []
        return [self._deserialize(frame.payload) for frame in self._assembler.push(record)]

    def _skip(self, error: Exception, record: SequencedRecord) -> None:
        self.skipped += 1
        logger.warning("passed over what cannot be read seq_num=%d error=%r", record.seq_num, error)
        if self._on_skip is not None:
            self._on_skip(error, record)

    def _tell_drop(self, dropped: DroppedFrame) -> None:
        logger.info(
            "dropped an incomplete message reason=%s bytes=%d/%d records=%d/%d",
            *(dropped.reason, dropped.received_bytes, dropped.meta.bytes),
            *(dropped.received_records, dropped.meta.records),
        )
        if self._on_drop is not None:
            self._on_drop(dropped)
