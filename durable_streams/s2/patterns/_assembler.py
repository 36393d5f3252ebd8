"""From records back to messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from ..._core import validate
from .._values import Header
from ._chunks import DEFAULT_MAX_FRAME_BYTES, FRAME_BYTES_HEADER, FRAME_RECORDS_HEADER, decode_u64
from ._errors import FrameSizeError, MessageFormatError


class RecordWithBody(Protocol):
    """What is needed of a record: `SequencedRecord` and `AppendRecord` have it."""

    @property
    def body(self) -> bytes:
        """The payload."""
        ...

    @property
    def headers(self) -> tuple[Header, ...]:
        """Pairs of name and value."""
        ...


@dataclass(frozen=True, slots=True)
class FrameMeta:
    """What the first record of a message declares.

    Attributes:
        bytes: Of the whole message.
        records: Of the whole message.
    """

    bytes: int
    records: int


@dataclass(frozen=True, slots=True)
class CompletedFrame:
    """A whole message.

    Attributes:
        payload: Its bytes.
        meta: What was declared of it.
    """

    payload: bytes
    meta: FrameMeta


@dataclass(frozen=True, slots=True)
class DroppedFrame:
    """A message that never became whole.

    Attributes:
        meta: What was declared of it.
        received_bytes: Bytes that came.
        received_records: Records that came.
        reason: "interrupted": another message began before its end, as after a writer's crash. "too_long" and
            "too_short": its records have not the bytes declared, as when a duplicate or a foreign record lies between.
    """

    meta: FrameMeta
    received_bytes: int
    received_records: int
    reason: Literal["interrupted", "too_long", "too_short"]


def parse_frame_headers(headers: Iterable[Header]) -> FrameMeta | None:
    """What a record declares of its message; None unless it has both headers. Of repeated ones the last counts.

    Raises:
        MessageFormatError: if a number has not 8 bytes.
    """
    size = count = None
    for name, value in headers:
        if name == FRAME_BYTES_HEADER:
            size = decode_u64(value)
        elif name == FRAME_RECORDS_HEADER:
            count = decode_u64(value)
    return None if size is None or count is None else FrameMeta(size, count)


class FrameAssembler:
    """Puts messages together, record by record, in stream order.

    Records that belong to no message are passed over: a reader may begin in the middle of one. A message that does not
    come out as declared is dropped, counted, and told of. Memory grows with what arrives, whatever is declared.

    Args:
        max_frame_bytes: Most bytes that a message may declare.
        strict: Refuse a message that declares no records, or more records than bytes: it could never be whole.
        on_drop: Plain function, called with each message that is dropped. What it raises is raised by `push`, whose
            record is lost then.

    Attributes:
        dropped: Messages dropped so far.
    """

    def __init__(
        self,
        *,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        strict: bool = False,
        on_drop: Callable[[DroppedFrame], None] | None = None,
    ) -> None:
        validate.integer("max_frame_bytes", max_frame_bytes, minimum=1)
        self._max_frame_bytes = max_frame_bytes
        self._strict = strict
        self._on_drop = on_drop
        self._meta: FrameMeta | None = None
        self._chunks: list[bytes] = []
        self._size = self._count = 0
        self.dropped: int = 0

    @property
    def pending(self) -> FrameMeta | None:
        """The message that has begun and is not whole yet."""
        return self._meta

    def push(self, record: RecordWithBody) -> list[CompletedFrame]:
        """Take the next record.

        Returns:
            The message that it completes, if it does.

        Raises:
            FrameSizeError: it declares no bytes, or too many. The assembler goes on with the next record.
            MessageFormatError: a number in its headers has not 8 bytes: the record is passed over. Or with `strict` it
                declares what cannot be.
        """
        declared = parse_frame_headers(record.headers) if record.headers else None
        if declared is not None:
            if self._meta is not None:
                self._drop("interrupted")
            self._check(declared)
            self._meta = declared
        meta = self._meta
        if meta is None:
            return []
        if self._size + len(record.body) > meta.bytes:
            self._drop("too_long")
            return []
        self._count += 1
        if record.body:  # empty ones count, and need not be kept
            self._chunks.append(record.body)
            self._size += len(record.body)
        if self._count != meta.records:
            return []
        if self._size != meta.bytes:
            self._drop("too_short")
            return []
        payload = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._reset()
        return [CompletedFrame(payload, meta)]

    def _check(self, declared: FrameMeta) -> None:
        if not 0 < declared.bytes <= self._max_frame_bytes:
            raise FrameSizeError(
                f"a message declares {declared.bytes} bytes, where 1 to {self._max_frame_bytes} are allowed",
                size=declared.bytes,
                limit=self._max_frame_bytes,
            )
        if self._strict and not 0 < declared.records <= declared.bytes:
            raise MessageFormatError(f"a message of {declared.bytes} bytes declares {declared.records} records")

    def _drop(self, reason: Literal["interrupted", "too_long", "too_short"]) -> None:
        assert self._meta is not None, "only what has begun is dropped"
        dropped = DroppedFrame(self._meta, self._size, self._count, reason)
        self._reset()
        self.dropped += 1
        if self._on_drop is not None:
            self._on_drop(dropped)

    def _reset(self) -> None:
        self._meta = None
        self._chunks = []
        self._size = self._count = 0

    def __repr__(self) -> str:
        state = "idle" if self._meta is None else f"{self._size} of {self._meta.bytes} bytes"
        return f"<FrameAssembler {state}, {self.dropped} dropped>"
