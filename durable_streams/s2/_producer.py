"""`Producer`: appending record by record, at the price of batches.

`submit` puts a record into the open batch and returns its ticket; nothing else runs per record. A batch is complete
when it is full, when it has lingered, when somebody flushes, or as soon as nothing is in flight, so that a lone record
does not wait for company that may never come. Complete batches go to the append session at once if there is room, and
through one task if there is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from .._core.fresh import fresh
from ..errors import BufferFullError, InvalidArgumentError
from ._append_session import AppendSession
from ._batching import LINGER, check_limits, check_record
from ._outgoing import Outgoing, outgoing
from ._stream import RecordLike
from ._ticket import AppendTicket
from ._values import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, AppendAck, AppendRecord, check_conditions
from .errors import S2Error, S2SessionClosedError

#: Larger than any room: such a record needs a second look.
_LARGE = 1 << 62


@dataclass(frozen=True, slots=True)
class IndexedAppendAck:
    """Proof that a record is durable.

    Attributes:
        seq_num: The record's sequence number.
        batch: Acknowledgement of the batch that it went with.
    """

    seq_num: int
    batch: AppendAck


class RecordTicket:
    """A record that a producer has accepted: `ack = await ticket`. All records of a batch learn of it together.

    Attributes:
        index: Place of the record in its batch.
    """

    __slots__ = ("_batch", "index")

    def __init__(self, batch: AppendTicket, index: int) -> None:
        self._batch = batch
        self.index: int = index

    @property
    def done(self) -> bool:
        """Whether the record is durable, or has failed."""
        return self._batch.done

    async def wait(self) -> IndexedAppendAck:
        """Wait until the record is durable. The same as awaiting the ticket; returns at once if it is done.

        Raises:
            S2Error: the record failed; `definite` tells whether it certainly was not stored.
        """
        ack = await self._batch.wait()
        return IndexedAppendAck(ack.start.seq_num + self.index, ack)

    def __await__(self) -> Generator[Any, Any, IndexedAppendAck]:
        return self.wait().__await__()

    def __repr__(self) -> str:
        return f"<RecordTicket {self.index} of {self._batch!r}>"


class Producer:
    """Appends single records in order, batching them.

    Open it with `stream.producer()` and `async with`, or call `start`. Leaving the block waits until everything is
    durable and raises what prevented it.

    A record that can never be appended is refused by `submit`, and nothing else happens. The first error of the session
    ends the producer: all records that are not acknowledged, and all later calls, get it.

    Args:
        session: Where batches go. If it has not been started, the producer starts it, and closes it in the end.
        linger: Seconds that a batch waits for more records after its first one, while others are in flight; 0 sends
            what is there.
        max_batch_records: Most records of a batch.
        max_batch_bytes: Most metered bytes of a batch.
        match_seq_num: Sequence number that the first record has to get, the others following on. None for no
            condition.
        fencing_token: Condition of every batch. None for no condition.
    """

    def __init__(
        self,
        session: AppendSession,
        *,
        linger: float = LINGER,
        max_batch_records: int = MAX_BATCH_RECORDS,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        match_seq_num: int | None = None,
        fencing_token: str | None = None,
    ) -> None:
        check_limits(max_batch_records, max_batch_bytes, linger)
        check_conditions(match_seq_num, fencing_token)
        self.session: AppendSession = session
        self._owns_session = not session.started
        self._linger = linger
        self._max_records = max_batch_records
        self._max_bytes = max_batch_bytes
        self._match_seq_num = match_seq_num
        self._fencing_token = fencing_token
        self._records: list[RecordLike] = []
        self._ticket = AppendTicket(0)  # of the open batch, or of the last one
        self._room = -1  # metered bytes that still fit into the open batch; -1 if none is open
        self._due = 0.0
        self._complete: deque[tuple[list[RecordLike], AppendTicket]] = deque()
        self._line: deque[anyio.Event] = deque()
        self._yield = False
        self._wake = anyio.Event()
        self._closing = False
        self._failure: Exception | None = None
        self._ended: anyio.Event | None = None
        self._life: anyio.CancelScope | None = None  # from the start on: a handle may be made before there is a loop
        self._group: anyio.abc.TaskGroup | None = None

    # -- Life ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Producer:
        group = anyio.create_task_group()
        await group.__aenter__()
        try:
            await self.start(group)
        except BaseException:
            await group.__aexit__(None, None, None)
            raise
        self._group = group
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        group, self._group = self._group, None
        try:
            if error is None:
                await self.close()
        finally:
            self._stop("the producer was left by an exception")
            if self._owns_session:
                with anyio.CancelScope(shield=True):
                    await self.session.aclose()
            assert group is not None, "entered before"
            # Not with the body's exception: it goes on bare, not wrapped in an ExceptionGroup.
            await group.__aexit__(None, None, None)

    async def start(self, task_group: Any) -> None:
        """Run in a task group or nursery of the caller's, instead of `async with`. End it with `close` or `aclose`."""
        if self._ended is not None:
            raise RuntimeError("the producer has been started already")
        if self._closing:
            raise S2SessionClosedError("the producer was closed")
        if self.session._on_idle is not None:
            raise RuntimeError("the session has a producer already")
        if self._owns_session:
            await self.session.start(task_group)
        self._ended = anyio.Event()
        self._life = anyio.CancelScope()
        self.session._on_idle = self._poke
        task_group.start_soon(self._run)

    async def close(self) -> None:
        """Accept nothing more, and wait until everything is durable. Idempotent.

        Callers that wait for room are refused. Cancelling this does not stop the producer from finishing.

        Raises:
            S2Error: what ended the producer before everything was durable.
        """
        self._closing = True
        self._seal()
        self._refuse_waiting()
        self._poke()
        if self._ended is not None:
            await self._ended.wait()
            if self._owns_session:
                try:
                    await self.session.close()
                finally:
                    self._look_at_session()
            elif self._ticket.count:
                await self._ticket.wait_done()
                self._look_at_session()
        if self._failure is not None:
            raise fresh(self._failure)

    async def aclose(self) -> None:
        """End the producer now. Records that are not acknowledged fail; those in flight may still be stored."""
        self._stop("the producer was closed without waiting for its records")
        if self._owns_session:
            await self.session.aclose()
        if self._ended is not None:
            with anyio.CancelScope(shield=True):
                await self._ended.wait()

    def _stop(self, reason: str) -> None:
        if self._failure is None and (self._complete or self._records or not self._closing):
            self._fail(S2SessionClosedError(reason))
        self._closing = True
        self._refuse_waiting()
        if self._life is not None:
            self._life.cancel()

    # -- Records -------------------------------------------------------------------------------------------

    async def submit(self, record: RecordLike) -> RecordTicket:
        """Hand over a record, waiting for room if there is none. Callers are served in the order in which they came.

        A cancelled call has handed over nothing.

        Args:
            record: The record; a str or bytes is a record with that body.

        Returns:
            A ticket to await.

        Raises:
            InvalidArgumentError: the record is larger than a batch may be. The producer goes on.
            S2SessionClosedError: the producer was closed.
            S2Error: what ended the producer.
        """
        # The hot path: the open batch has room, so nothing needs to be asked.
        size = _LARGE
        if type(record) is bytes:
            size = 8 + len(record)
        elif type(record) is AppendRecord and not record.headers:
            size = 8 + len(record.body)
        if size <= self._room and not self._line:
            self._room -= size
            records = self._records
            ticket = RecordTicket(self._ticket, len(records))
            records.append(record)
            if len(records) >= self._max_records:
                self._seal()
            return ticket
        if not self._line and not self._yield and (slow := self._add(record)) is not None:
            return slow
        return await self._submit_slowly(record)

    async def _submit_slowly(self, record: RecordLike) -> RecordTicket:
        check_record(record, self._max_bytes)
        self._yield = False
        place = anyio.Event()
        self._line.append(place)
        try:
            await anyio.lowlevel.checkpoint()
            while True:
                self._check_usable()
                if self._line[0] is place and (ticket := self._add(record)) is not None:
                    return ticket
                index = self._line.index(place)
                place = self._line[index] = anyio.Event()
                await place.wait()
        finally:
            self._line.remove(place)
            self._wake_first()

    def submit_nowait(self, record: RecordLike) -> RecordTicket:
        """`submit`, or an error if there is no room.

        Raises:
            BufferFullError: there is no room, or others wait for it.
        """
        ticket = None if self._line else self._add(record)
        if ticket is None:
            self._check_usable()
            raise BufferFullError("the producer is full: two batches wait for room in the session")
        return ticket

    def _add(self, record: RecordLike) -> RecordTicket | None:
        """Put a record into the open batch, or a new one; None if there is no room."""
        self._check_usable()
        checked, size = check_record(record, self._max_bytes)
        if size > self._room:
            if self._records:
                if self._complete:
                    return None
                self._seal()
            if self._complete:
                return None
            self._open()
        self._room -= size
        ticket = RecordTicket(self._ticket, len(self._records))
        self._records.append(record if type(record) is bytes else checked)
        if len(self._records) >= self._max_records:
            self._seal()
        return ticket

    def _look_at_session(self) -> None:
        """The session's failure is ours."""
        if self._failure is None and (failure := self.session.failure_cause) is not None:
            self._fail(failure)

    def _check_usable(self) -> None:
        self._look_at_session()
        if self._failure is not None:
            raise fresh(self._failure, maybe_applied=False) if isinstance(self._failure, S2Error) else self._failure
        if self._closing:
            raise S2SessionClosedError("the producer was closed")
        if self._ended is None:
            raise RuntimeError("enter the producer first: async with stream.producer() as producer")

    async def flush(self) -> None:
        """Wait until everything submitted so far is durable. The producer stays open.

        Raises:
            S2Error: what ended the producer.
        """
        self._seal()
        ticket = self._ticket
        if ticket.count:
            await ticket.wait_done()
        self._look_at_session()
        if self._failure is not None:
            raise fresh(self._failure)

    # -- Batches -------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._records = []
        self._ticket = AppendTicket(0)
        self._room = self._max_bytes
        self._due = anyio.current_time() + self._linger
        self._poke()

    def _seal(self) -> None:
        """The open batch is complete: hand it over, or queue it if there is no room."""
        records, self._records = self._records, []
        size, self._room = self._max_bytes - self._room, -1
        if not records:
            return
        self._yield = True
        self._ticket.count = len(records)
        self._complete.append((records, self._ticket))
        running = self._ended is not None and not self._ended.is_set()
        if running and len(self._complete) == 1 and self.session.has_room(size):
            self._hand_over_nowait()
        if self._complete:
            self._poke()

    def _make_batch(self, records: list[RecordLike]) -> Outgoing:
        return outgoing(records, self._match_seq_num, self._fencing_token)

    def _hand_over_nowait(self) -> None:
        records, ticket = self._complete[0]
        try:
            self.session._accept(ticket, self._make_batch(records))
        except Exception as error:
            self._refused(ticket, error)
        else:
            self._handed_over(records)

    def _handed_over(self, records: list[RecordLike]) -> None:
        self._complete.popleft()
        if self._match_seq_num is not None:
            self._match_seq_num += len(records)
        self._wake_first()

    def _refused(self, ticket: AppendTicket, error: Exception) -> None:
        """The session did not accept the first complete batch."""
        self._complete.popleft()
        ticket.reject(error)
        if not isinstance(error, InvalidArgumentError):  # Of this batch alone: it is too large when encoded.
            self._fail(error)
        self._wake_first()

    def _fail(self, error: Exception) -> None:
        """End the producer: nothing that is not handed over will be."""
        if self._failure is None:
            self._failure = error
        # Of what was never handed over it is certain that it was not stored.
        mine = fresh(error, maybe_applied=False) if isinstance(error, S2Error) else error
        for _, ticket in self._complete:
            ticket.reject(mine)
        self._complete.clear()
        if self._records:
            self._ticket.count = len(self._records)
            self._ticket.reject(mine)
            self._records = []
        self._room = -1
        self._refuse_waiting()

    def _wake_first(self) -> None:
        if self._line:
            self._line[0].set()

    def _refuse_waiting(self) -> None:
        for place in self._line:
            place.set()

    # -- The task ------------------------------------------------------------------------------------------

    def _poke(self) -> None:
        self._wake.set()

    async def _run(self) -> None:
        session, life = self.session, self._life
        assert life is not None, "made by the start"
        try:
            with life:
                await self._work()
        finally:
            session._on_idle = None
            if not life.cancel_called and self._failure is None and (self._complete or self._records):
                self._fail(S2SessionClosedError("the task group of the producer was cancelled"))
            self._closing = True
            self._refuse_waiting()
            assert self._ended is not None, "set by start"
            self._ended.set()

    async def _work(self) -> None:
        while True:
            if self._complete:
                await self._hand_over()
            elif self._records:
                if self.session.idle or self._closing or anyio.current_time() >= self._due:
                    self._seal()
                else:
                    await self._wait(self._due)
            elif self._closing:
                return
            else:
                await self._wait(None)

    async def _hand_over(self) -> None:
        records, ticket = self._complete[0]
        try:
            await self.session._submit_as(ticket, self._make_batch(records))
        except Exception as error:
            if self._complete and self._complete[0][1] is ticket:
                self._refused(ticket, error)
        else:
            self._handed_over(records)

    async def _wait(self, until: float | None) -> None:
        self._wake = anyio.Event()
        if until is None:
            await self._wake.wait()
        else:
            with anyio.CancelScope(deadline=until):
                await self._wake.wait()

    def __repr__(self) -> str:
        state = "failed" if self._failure else "closed" if self._closing else "open"
        return f"<Producer {state}, {len(self._records)} records open, over {self.session!r}>"
