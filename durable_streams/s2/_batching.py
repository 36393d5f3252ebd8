"""Gathering records into batches: as many as fit, in order.

`Batcher` is the rule alone and waits for nothing. `batch_records` applies it to an iterable. `RecordBatches` applies it
to an async iterable, and adds the time: a batch that is not full goes out `linger` seconds after its first record.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterable, Iterable, Iterator
from types import TracebackType
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from .._core import validate
from ..errors import InvalidArgumentError
from ._stream import RecordLike, append_record
from ._values import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, AppendInput, AppendRecord, check_conditions

#: Seconds that a batch waits for more records after its first one, unless told otherwise.
LINGER: float = 0.005
#: Smallest limit of metered bytes: an empty record.
_MIN_BATCH_BYTES = 8


def check_limits(max_batch_records: int, max_batch_bytes: int, linger: float | None = LINGER) -> None:
    """Limits of a batch: 1 to 1000 records, 8 to 1,048,576 metered bytes; linger in seconds, None for no limit."""
    validate.integer("max_batch_records", max_batch_records, minimum=1, maximum=MAX_BATCH_RECORDS)
    validate.integer("max_batch_bytes", max_batch_bytes, minimum=_MIN_BATCH_BYTES, maximum=MAX_BATCH_BYTES)
    if linger is not None:
        validate.number("linger", linger)


def check_record(record: Any, max_batch_bytes: int) -> tuple[AppendRecord, int]:
    """A record that fits into a batch of its own, and its metered bytes."""
    checked = append_record(record)
    size = checked.metered_bytes
    if size > max_batch_bytes:
        raise InvalidArgumentError(f"record must have at most {max_batch_bytes} metered bytes, got {size}")
    return checked, size


class Batcher:
    """Makes batches of records, one record at a time.

    A record that does not fit closes the batch before it. A record that can fit into no batch is refused, and changes
    nothing.

    Args:
        max_batch_records: Most records of a batch.
        max_batch_bytes: Most metered bytes of a batch.
        match_seq_num: Condition of the first batch; each further one counts on from there. None for no condition.
        fencing_token: Condition of every batch. None for no condition.
    """

    def __init__(
        self,
        *,
        max_batch_records: int = MAX_BATCH_RECORDS,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        match_seq_num: int | None = None,
        fencing_token: str | None = None,
    ) -> None:
        check_limits(max_batch_records, max_batch_bytes)
        check_conditions(match_seq_num, fencing_token)
        self._max_records = max_batch_records
        self._max_bytes = max_batch_bytes
        self._match_seq_num = match_seq_num
        self._fencing_token = fencing_token
        self._records: list[AppendRecord] = []
        self._size = 0

    def __len__(self) -> int:
        """Records of the batch that is not complete yet."""
        return len(self._records)

    def add(self, record: RecordLike) -> list[AppendInput]:
        """Take a record; returns the batches that are complete now: none, one, or two.

        Raises:
            TypeError: it is no record.
            InvalidArgumentError: it is larger than a batch may be.
        """
        checked, size = check_record(record, self._max_bytes)
        complete: list[AppendInput] = []
        if self._size + size > self._max_bytes:
            complete += self._take()
        self._records.append(checked)
        self._size += size
        if len(self._records) >= self._max_records or self._size >= self._max_bytes:
            complete += self._take()
        return complete

    def flush(self) -> AppendInput | None:
        """What has been gathered, as a batch; None if there is nothing."""
        batches = self._take()
        return batches[0] if batches else None

    def _take(self) -> list[AppendInput]:
        if not self._records:
            return []
        batch = AppendInput(self._records, self._match_seq_num, self._fencing_token)
        if self._match_seq_num is not None:
            self._match_seq_num += len(self._records)
        self._records, self._size = [], 0
        return [batch]


def batch_records(
    records: Iterable[RecordLike],
    *,
    max_batch_records: int = MAX_BATCH_RECORDS,
    max_batch_bytes: int = MAX_BATCH_BYTES,
    match_seq_num: int | None = None,
    fencing_token: str | None = None,
) -> Iterator[AppendInput]:
    """Gather records into as few batches as the limits allow, in order.

    If the iterable raises, what came before is a batch first, and then the error is raised.

    Args:
        records: The records; a str or bytes is a record with that body.
        max_batch_records: See `Batcher`.
        max_batch_bytes: See `Batcher`.
        match_seq_num: See `Batcher`.
        fencing_token: See `Batcher`.
    """
    batcher = Batcher(
        max_batch_records=max_batch_records,
        max_batch_bytes=max_batch_bytes,
        match_seq_num=match_seq_num,
        fencing_token=fencing_token,
    )
    return _batches(records, batcher)


def _batches(records: Iterable[RecordLike], batcher: Batcher) -> Iterator[AppendInput]:
    error: Exception | None = None
    source = iter(records)
    while True:
        try:
            complete = batcher.add(next(source))
        except StopIteration:
            break
        except Exception as raised:
            error = raised
            break
        yield from complete
    if (rest := batcher.flush()) is not None:
        yield rest
    if error is not None:
        raise error


class RecordBatches:
    """Batches of the records of an async iterable: `async with RecordBatches(source) as batches`, and iterate.

    The source runs in a task of its own, at most one complete batch ahead. Where it ends or raises, what came before is
    a batch first. A cancelled step of the iteration loses nothing.

    Args:
        source: The records; a str or bytes is a record with that body.
        linger: Seconds that a batch waits for more records after its first one; 0 takes what is there, None waits until
            the batch is full.
        max_batch_records: See `Batcher`.
        max_batch_bytes: See `Batcher`.
        match_seq_num: See `Batcher`.
        fencing_token: See `Batcher`.
    """

    def __init__(
        self,
        source: AsyncIterable[RecordLike],
        *,
        linger: float | None = LINGER,
        max_batch_records: int = MAX_BATCH_RECORDS,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        match_seq_num: int | None = None,
        fencing_token: str | None = None,
    ) -> None:
        check_limits(max_batch_records, max_batch_bytes, linger)
        self._source = source
        self._linger = math.inf if linger is None else linger
        self._batcher = Batcher(
            max_batch_records=max_batch_records,
            max_batch_bytes=max_batch_bytes,
            match_seq_num=match_seq_num,
            fencing_token=fencing_token,
        )
        self._complete: deque[AppendInput] = deque()
        self._opened = 0.0
        self._done = False
        self._error: Exception | None = None
        self._news = anyio.Event()
        self._taken = anyio.Event()
        self._group: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> RecordBatches:
        group = anyio.create_task_group()
        await group.__aenter__()
        self._group = group
        group.start_soon(self._pump)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        group, self._group = self._group, None
        assert group is not None, "entered before"
        group.cancel_scope.cancel()
        # Not with the body's exception: it goes on bare, not wrapped in an ExceptionGroup.
        await group.__aexit__(None, None, None)

    def __aiter__(self) -> RecordBatches:
        return self

    async def __anext__(self) -> AppendInput:
        """The next batch.

        Raises:
            Exception: whatever the source raised, or what is wrong with one of its records.
        """
        if self._group is None:
            raise RuntimeError("enter the batches first: async with RecordBatches(...) as batches")
        await anyio.lowlevel.checkpoint()
        while True:
            if self._complete:
                self._taken.set()
                return self._complete.popleft()
            due = self._opened + self._linger if len(self._batcher) else math.inf
            if (self._done or anyio.current_time() >= due) and (batch := self._batcher.flush()) is not None:
                return batch
            if self._done:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._news = anyio.Event()
            with anyio.CancelScope(deadline=due):
                await self._news.wait()

    async def _pump(self) -> None:
        source = self._source.__aiter__()
        try:
            while True:
                try:
                    record = await source.__anext__()
                except StopAsyncIteration:
                    break
                fresh_batch = not len(self._batcher)
                complete = self._batcher.add(record)
                if len(self._batcher) and (fresh_batch or complete):
                    self._opened = anyio.current_time()
                self._complete += complete
                if complete or fresh_batch:
                    self._news.set()
                while len(self._complete) > 1:
                    self._taken = anyio.Event()
                    await self._taken.wait()
        except Exception as error:
            self._error = error
        finally:
            self._done = True
            self._news.set()
            if (aclose := getattr(source, "aclose", None)) is not None:
                with anyio.CancelScope(shield=True):
                    await aclose()
