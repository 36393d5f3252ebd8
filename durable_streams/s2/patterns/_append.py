"""Messages of any size and type, appended."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import anyio

from ..._core import validate
from ...errors import InvalidArgumentError
from .._batching import batch_records
from .._values import MAX_U64, AppendAck, AppendInput, AppendRecord, check_conditions
from ..errors import S2SessionClosedError
from ._chunks import (
    DEFAULT_MAX_FRAME_BYTES,
    MAX_CHUNK_BODY_BYTES,
    WRITER_ID_BYTES,
    chunk_bytes,
    frame_chunks_to_records,
)
from ._dedupe import check_writer_id, inject_dedupe_headers
from ._errors import FrameSizeError
from ._serializers import Serializer

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

logger = logging.getLogger("durable_streams.s2.patterns")


class AppendSessionLike(Protocol):
    """What is needed of a session: `AppendSession` has it."""

    @property
    def started(self) -> bool:
        """Whether it was entered or started."""
        ...

    async def submit(self, batch: AppendInput, /) -> Awaitable[AppendAck]:
        """Hand over a batch; the ticket is awaited for its durability."""
        ...

    async def close(self) -> None:
        """Accept nothing more, and wait until everything is durable."""
        ...

    async def __aenter__(self) -> Any:
        """Start."""
        ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> Any:
        """Close, or drop what is not written yet."""
        ...


@dataclass(frozen=True, slots=True)
class MessageAck:
    """Proof that a message is durable.

    Attributes:
        start: Sequence number of its first record.
        end: Sequence number after its last record.
    """

    start: int
    end: int


class MessageTicket:
    """A message that was handed over: `ack = await ticket` waits until it is durable.

    Attributes:
        batches: In how many batches it went. One is stored as a whole or not at all.
    """

    __slots__ = ("_tickets", "batches")

    def __init__(self, tickets: Sequence[Awaitable[AppendAck]]) -> None:
        self._tickets = tickets
        self.batches: int = len(tickets)

    async def wait(self) -> MessageAck:
        """Wait until all of the message is durable. May be called again, by any number of tasks.

        Raises:
            S2Error: what ended the session first. Of a message in several batches the first may be stored: readers
                drop it as incomplete.
        """
        acks = [await ticket for ticket in self._tickets]
        return MessageAck(acks[0].start.seq_num, acks[-1].end.seq_num)

    def __await__(self) -> Generator[Any, Any, MessageAck]:
        return self.wait().__await__()


class SerializingAppendSession(Generic[T_contra]):
    """Appends messages: serialised, cut into records, numbered.

        async with SerializingAppendSession(stream.append_session(), JSON, dedupe_seq=0) as session:
            await session.submit({"user": "alice", "text": "hello"})

    A message goes in as few batches as its size needs; one that fits a single batch (1 MiB, 1000 records) is stored as
    a whole or not at all. Of a longer one a crash may leave the beginning, which readers drop. Messages written from
    several tasks do not mix: each is handed over entirely before the next begins.

    Under the retry policy "all", turn dedupe on: a batch that was stored twice ruins a message in several records for
    readers without it. One writer at a time is assumed, see `DedupeFilter`.

    Args:
        session: An append session. If it was not started, `async with` of this starts and ends it.
        serializer: A `Serializer`, such as `JSON`, or a function from a message to bytes.
        chunk_size: Most bytes in one record. By default as many as fit.
        max_frame_bytes: Most bytes of a message: readers refuse longer ones.
        match_seq_num: Sequence number that the next record has to get; counted on from there. None: no condition.
        fencing_token: Condition of every batch. None: no condition.
        dedupe_seq: Number of the first record for dedupe; None writes no dedupe headers.
        writer_id: Name of the writer; by default a new one of 12 characters. To go on after a restart as the same
            writer, keep it together with `next_dedupe_seq`, and start above every number that may have been written.

    Raises:
        InvalidArgumentError: an option is out of range; `chunk_size` leaves no room for headers; or there is a
            `writer_id` without `dedupe_seq`.
    """

    def __init__(
        self,
        session: AppendSessionLike,
        serializer: Serializer[T_contra] | Callable[[T_contra], bytes],
        *,
        chunk_size: int | None = None,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        match_seq_num: int | None = None,
        fencing_token: str | None = None,
        dedupe_seq: int | None = None,
        writer_id: str | None = None,
    ) -> None:
        validate.integer("max_frame_bytes", max_frame_bytes, minimum=1)
        check_conditions(match_seq_num, fencing_token)
        if dedupe_seq is not None:
            validate.integer("dedupe_seq", dedupe_seq, maximum=MAX_U64)
        elif writer_id is not None:
            raise InvalidArgumentError("writer_id needs dedupe_seq: without it no dedupe headers are written")
        self._session = session
        self._serialize = serializer.serialize if isinstance(serializer, Serializer) else serializer
        self._writer_id = secrets.token_urlsafe(WRITER_ID_BYTES * 3 // 4) if writer_id is None else writer_id
        # A longer name takes its place from the chunk.
        largest = MAX_CHUNK_BODY_BYTES - max(len(check_writer_id(self._writer_id)) - WRITER_ID_BYTES, 0)
        if largest < 1:
            raise InvalidArgumentError(f"writer_id leaves no room for messages: {len(self._writer_id)} characters")
        self._chunk_size = (
            largest if chunk_size is None else validate.integer("chunk_size", chunk_size, minimum=1, maximum=largest)
        )
        self._max_frame_bytes = max_frame_bytes
        self._match_seq_num = match_seq_num
        self._fencing_token = fencing_token
        self._dedupe_seq = dedupe_seq
        self._lock = anyio.Lock()
        self._newest: MessageTicket | None = None
        self._entered = self._closed = False

    # -- Facts ---------------------------------------------------------------------------------------------

    @property
    def writer_id(self) -> str | None:
        """Name of the writer; None without dedupe."""
        return None if self._dedupe_seq is None else self._writer_id

    @property
    def next_dedupe_seq(self) -> int | None:
        """Number of the next record for dedupe; None without dedupe."""
        return self._dedupe_seq

    @property
    def next_match_seq_num(self) -> int | None:
        """Sequence number that the next record has to get; None without that condition."""
        return self._match_seq_num

    def __repr__(self) -> str:
        return f"<SerializingAppendSession on {self._session!r}>"

    # -- Life ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if not self._session.started:
            await self._session.__aenter__()
            self._entered = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        if self._entered:
            await self._session.__aexit__(exc_type, exc, traceback)
        elif exc is None:
            await self._session.close()

    async def close(self) -> None:
        """Accept nothing more, wait until everything is durable, and end the session. Idempotent.

        Raises:
            S2Error: what ended the session first.
        """
        self._closed = True
        await self._session.close()

    # -- Messages ------------------------------------------------------------------------------------------

    async def submit(self, message: T_contra) -> MessageAck:
        """Append a message and wait until it is durable. Many may be under way at a time.

        Cancelling the wait does not take back what was handed over.

        Raises:
            FrameSizeError: the message is longer than `max_frame_bytes`; nothing was sent.
            InvalidArgumentError: it was serialised to nothing, which no reader could tell from no message.
            TypeError: the serializer did not return bytes.
            S2SessionClosedError: the session was closed.
            S2Error: what ended the session.
            Exception: what the serializer raised, unchanged.
        """
        return await (await self.write(message)).wait()

    async def write(self, message: T_contra) -> MessageTicket:
        """Hand over a message, waiting for room if there is none: the way for streams of messages.

        Cancelled while it waits, a message in several batches may have been handed over in part, which readers drop.

        Returns:
            A ticket to await, or not: `flush` and `close` tell whether all is well.

        Raises:
            Exception: as `submit`.
        """
        payload = self._payload(message)
        async with self._lock:
            if self._closed:
                raise S2SessionClosedError("the session was closed")
            tickets: list[Awaitable[AppendAck]] = []
            for batch in self._batches(payload):
                tickets.append(await self._session.submit(batch))
                # Only what was handed over counts: the next message goes on from there, whatever happens to this one.
                if self._match_seq_num is not None:
                    self._match_seq_num += len(batch.records)
                if self._dedupe_seq is not None:
                    self._dedupe_seq += len(batch.records)
            self._newest = ticket = MessageTicket(tickets)
        logger.debug("message handed over bytes=%d batches=%d", len(payload), len(tickets))
        return ticket

    async def write_all(self, messages: AsyncIterable[T_contra] | Iterable[T_contra]) -> None:
        """Write all messages of an iterable, in order, and wait until they are durable. The session stays open.

        Raises:
            Exception: as `submit`; or what the iterable raised, while messages before that are on their way.
        """
        if isinstance(messages, AsyncIterable):
            async for message in messages:
                await self.write(message)
        else:
            for message in messages:
                await self.write(message)
        await self.flush()

    async def flush(self) -> None:
        """Wait until every message handed over so far is durable. The session stays open.

        Raises:
            S2Error: what ended the session.
        """
        if self._newest is not None:
            await self._newest.wait()  # the batches before it were acknowledged before

    def _payload(self, message: T_contra) -> bytes:
        payload = self._serialize(message)
        if not isinstance(payload, bytes | bytearray | memoryview):
            raise TypeError(f"the serializer must return bytes, got {type(payload).__name__}")
        payload = bytes(payload)
        if not payload:
            raise InvalidArgumentError("a message must have at least one byte when serialised")
        if len(payload) > self._max_frame_bytes:
            raise FrameSizeError(
                f"a message of {len(payload)} bytes, where {self._max_frame_bytes} are allowed",
                size=len(payload),
                limit=self._max_frame_bytes,
            )
        return payload

    def _batches(self, payload: bytes) -> list[AppendInput]:
        records: list[AppendRecord] = frame_chunks_to_records(chunk_bytes(payload, self._chunk_size))
        if self._dedupe_seq is not None:
            records, _ = inject_dedupe_headers(records, self._writer_id, self._dedupe_seq)
        return list(batch_records(records, match_seq_num=self._match_seq_num, fencing_token=self._fencing_token))
