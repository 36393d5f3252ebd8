"""`ReadSession`: one read, over as many connections as it takes.

The core (`_read_core`) decides what is asked for and what is handed over; a link (`_read_link`) is one connection. This
module is the waiting. There is no task: everything happens in the caller's, when it asks for the next batch. So the
network is asked for more only when the consumer is, and what waits in between is bounded by the HTTP/2 window.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import anyio
import anyio.lowlevel

from .._core.exchange import RetryDetails
from .._core.fresh import fresh
from ..errors import BusyResourceError
from ._append_core import End, Sleep
from ._context import StreamContext
from ._read_core import Connect, Deliver, Gap, ReadCore, Receive
from ._read_link import ReadLink, S2SReadLink, SSEReadLink
from ._reading import ReadOptions
from ._retry import S2Retry
from ._values import ReadBatch, SequencedRecord, StreamPosition
from .errors import S2Error, S2ProtocolError, S2ServerError, S2SessionClosedError, S2TimeoutError

logger = logging.getLogger("durable_streams.s2.read")

#: Seconds that closing a connection may take.
_CLOSE_GRACE = 1.0


@dataclass(frozen=True, slots=True)
class ReadStatistics:
    """Where a read session stands, and where its time went.

    Attributes:
        batches: Handed over so far.
        records: Received so far, command records that were left out included.
        connections: Connections made so far.
        retries: Failures that were followed by another try.
        gaps: Holes met so far: trimmed records.
        network_wait: Seconds spent waiting for the server, pauses before another try included.
        consumer_wait: Seconds between handing a batch over and being asked for the next.
    """

    batches: int
    records: int
    connections: int
    retries: int
    gaps: int
    network_wait: float
    consumer_wait: float


class ReadSession:
    """Reads a stream in batches: `async for batch in session`, or record by record with `iter_records`.

    Open it with `stream.read_session(...)` and `async with`. Without limits it follows the stream for ever; with limits
    it ends when one is reached, or at the tail, or `wait` seconds after the last record.

    A broken connection is replaced and the read goes on behind the last record, as if nothing had been. Nothing is read
    ahead of the consumer but what the HTTP/2 window holds. A cancelled step loses nothing: the next one goes on.

    Args:
        context: The stream's.
        options: What to read.
        stream_config: JSON of the configuration for a stream that reading creates, or None.
        unlimited_retries: Repeat whatever may pass without end, instead of `max_attempts` times in a row.
        retry: Over the client's.
        on_gap: Plain function, called before the batch behind records that were trimmed is handed over. What it raises
            is raised to the consumer, and the batch stays.
        on_retry: Plain function, called with each failure that is followed by another try.
    """

    def __init__(
        self,
        context: StreamContext,
        options: ReadOptions,
        *,
        stream_config: str | None = None,
        unlimited_retries: bool = False,
        retry: S2Retry | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        on_retry: Callable[[RetryDetails], None] | None = None,
    ) -> None:
        self._context = context
        self._options = options
        self._stream_config = stream_config
        self._on_gap = on_gap
        self._on_retry = on_retry
        self._core = ReadCore(options, context.retry if retry is None else retry, unlimited=unlimited_retries)
        self._s2s = context.uses_s2s
        self._link: ReadLink | None = None
        self._lock = anyio.Lock(fast_acquire=True)
        self._pulling: anyio.CancelScope | None = None
        self._changed: anyio.Event | None = None
        self._consuming = False
        self._closed = False
        self._tail_of_rest: StreamPosition | None = None
        self._rest: list[SequencedRecord] | tuple[SequencedRecord, ...] = ()
        self._rest_at = 0
        self._announced: Sleep | None = None
        self._slept_until = 0.0
        self._handed_at: float | None = None
        self._batches = self._connections = self._retries = self._gaps = 0
        self._network_wait = self._consumer_wait = 0.0

    # -- Life ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> ReadSession:
        if self._closed:
            raise S2SessionClosedError("the read session was closed")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the session and release its connection. A consumer that waits gets `S2SessionClosedError`. Idempotent."""
        self._closed = True
        self._core.close()
        self._rest = ()
        if self._pulling is not None:
            self._pulling.cancel()
        self._tell()
        await self._drop_link()

    async def _drop_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            with anyio.move_on_after(_CLOSE_GRACE, shield=True):
                await link.aclose()

    # -- Reading -------------------------------------------------------------------------------------------

    def __aiter__(self) -> ReadSession:
        return self

    async def __anext__(self) -> ReadBatch:
        """The next batch: at least one record.

        Raises:
            RangeNotSatisfiableError: the read begins beyond the tail, or at the tail without leave to wait; or the
                stream has lost records that were read before.
            S2Error: what ended the session.
            S2SessionClosedError: it was closed.
            BusyResourceError: another task is waiting for the next batch.
        """
        if self._rest_at < len(self._rest):
            batch = ReadBatch(tuple(self._rest[self._rest_at :]), self._tail_of_rest)
            self._rest, self._rest_at = (), 0
            await anyio.lowlevel.checkpoint()
            return batch
        batch_or_none = await self._next_batch()
        if batch_or_none is None:
            raise StopAsyncIteration
        return batch_or_none

    def iter_records(self) -> RecordIterator:
        """The same record by record: `async for record in session.iter_records()`.

        Leaving the loop in the middle of a batch loses nothing: the rest comes next, in either way of reading.
        """
        return RecordIterator(self)

    async def _next_batch(self) -> ReadBatch | None:
        if self._consuming:
            raise BusyResourceError("another task is already waiting for this session's next batch")
        core = self._core
        self._consuming = True
        self._tell()  # The rest of the last batch, if there was one, is with the consumer now.
        try:
            if self._handed_at is not None:
                self._consumer_wait += anyio.current_time() - self._handed_at
                self._handed_at = None
            waited = False
            if not core.ready:
                waited = await self._pull(lambda: core.ready)
            if not waited:
                await anyio.lowlevel.checkpoint()
            if self._closed and core.failure is None:
                raise S2SessionClosedError("the read session was closed")
            self._report_gaps()
            command = core.next(anyio.current_time())
            if isinstance(command, Deliver):
                core.on_taken()
                self._batches += 1
                self._handed_at = anyio.current_time()
                return command.batch
            if core.failure is not None:
                raise fresh(core.failure)
            return None
        finally:
            self._consuming = False
            self._tell()

    def _report_gaps(self) -> None:
        gaps = self._core.gaps
        while gaps:
            gap = gaps.pop(0)
            self._gaps += 1
            logger.info(
                "records were trimmed before they were read stream=%s expected=%d found=%d",
                *(self._context.stream, gap.expected, gap.found),
            )
            if self._on_gap is not None:
                self._on_gap(gap)

    async def _pull(self, stop: Callable[[], bool]) -> bool:
        """Do what the core asks for until there is enough, or the session is over. One task at a time.

        Returns:
            Whether there was anything to wait for.
        """
        async with self._lock:
            waited = False
            try:
                # `aclose` reaches us through the scope; between two turns it is seen by `_closed`.
                with anyio.CancelScope() as self._pulling:
                    while not stop() and not self._closed:
                        command = self._core.next(max(anyio.current_time(), self._slept_until))
                        if isinstance(command, Deliver):
                            break
                        if isinstance(command, End):
                            await self._drop_link()
                            break
                        waited = True
                        began = anyio.current_time()
                        try:
                            await self._carry_out(command)
                        finally:
                            self._network_wait += anyio.current_time() - began
            finally:
                self._pulling = None
                self._tell()
            return waited

    async def _carry_out(self, command: Connect | Receive | Sleep) -> None:
        match command:
            case Connect():
                await self._connect(command)
            case Receive():
                await self._receive()
            case Sleep():
                await self._drop_link()
                self._announce(command)
                await anyio.sleep_until(command.until)
                self._slept_until = command.until  # A timer may be early by the resolution of its clock.

    async def _connect(self, command: Connect) -> None:
        """Open a connection, and report."""
        core, context = self._core, self._context
        if self._link is not None:
            if core.leaving:
                core.leaving = False
                logger.debug("following advice to reconnect stream=%s", context.stream)
                self._link.retire()
            await self._drop_link()
        link: ReadLink
        if self._s2s:
            link = S2SReadLink(context, self._stream_config, command)
        else:
            link = SSEReadLink(context, self._stream_config, command, self._options)
        limit = context.timeouts.connect + context.timeouts.request
        opened = False
        try:
            with anyio.move_on_after(limit) as scope:
                await link.open()
                opened = True
            if not opened and scope.cancelled_caught:
                raise S2TimeoutError(f"the server did not answer within {limit:g} s", phase="sent")
        except S2Error as error:
            self._report(error, link)
        finally:
            if not opened:
                with anyio.move_on_after(_CLOSE_GRACE, shield=True):
                    await link.aclose()
        if opened:
            self._connections += 1
            self._link = link
            core.on_open()
            if self._closed:
                await self._drop_link()

    async def _receive(self) -> None:
        """Take the next batch from the connection, and report. The watchdog runs here and nowhere else."""
        core, link = self._core, self._link
        if link is None:
            core.on_abandoned()
            return
        limit = self._context.timeouts.heartbeat * link.watchdog
        received = False
        arrival = None
        try:
            with anyio.move_on_after(limit) as scope:
                arrival = await link.receive()
                received = True
            if not received and scope.cancelled_caught:
                raise S2TimeoutError(f"the server gave no sign of life for {limit:g} s", phase="body")
            if arrival is None:
                core.on_end(anyio.current_time())
            else:
                batch, advised = arrival
                core.on_batch(batch, anyio.current_time(), advised=advised)
                if core.caught_up:
                    self._tell()
        except S2Error as error:
            self._report(error, link)
        finally:
            if not received and not link.survives_cancel:
                core.on_abandoned()

    def _report(self, error: S2Error, link: ReadLink) -> None:
        if isinstance(error, S2ServerError) and error.draining:
            link.retire()
        if isinstance(error, S2ProtocolError):
            logger.warning("the server broke the protocol stream=%s error=%s", self._context.stream, error)
        self._core.on_failure(error, anyio.current_time(), self._context.rng.random(), leaving=link.leaving)

    def _announce(self, sleep: Sleep) -> None:
        """Tell of a failure that is followed by another try."""
        if sleep is self._announced:
            return
        self._announced = sleep
        self._retries += 1
        delay = max(sleep.until - anyio.current_time(), 0.0)
        logger.debug(
            "retrying read session stream=%s attempt=%d delay=%.3f error=%s",
            *(self._context.stream, sleep.failures, delay, sleep.error),
        )
        if self._on_retry is not None:
            self._on_retry(RetryDetails(sleep.failures, delay, sleep.error))

    # -- Catching up ---------------------------------------------------------------------------------------

    @property
    def is_caught_up(self) -> bool:
        """Whether the consumer has everything there was when the server last told the tail.

        It is known from the first sign of life after the backlog on, and again after each reconnection.
        """
        return self._core.caught_up and self._rest_at >= len(self._rest)

    async def wait_caught_up(self) -> StreamPosition:
        """Wait until `is_caught_up`. If nobody is reading, this reads ahead, by one batch at the most.

        Returns:
            The tail that was reached.

        Raises:
            S2SessionClosedError: the session ended before; what ended it is the cause.
            S2Error: the session failed.
        """
        await anyio.lowlevel.checkpoint()
        core = self._core
        while not self.is_caught_up:
            command = core.next(anyio.current_time())
            if self._closed or isinstance(command, End):
                if core.failure is not None:
                    raise fresh(core.failure)
                raise S2SessionClosedError("the read session ended before it had caught up")
            if self._lock.locked() or core.ready or self._rest_at < len(self._rest):
                if self._changed is None:
                    self._changed = anyio.Event()
                await self._changed.wait()
            else:
                await self._pull(lambda: core.ready or core.caught_up)
        assert core.tail is not None, "whoever has caught up has been told of it"
        return core.tail

    def _tell(self) -> None:
        """Something has changed for those who wait to catch up."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    # -- Facts ---------------------------------------------------------------------------------------------

    @property
    def next_read_position(self) -> StreamPosition | None:
        """Where the consumer stands: number after the last record it was given, and that record's timestamp.

        Command records that were left out count as given. None as long as nothing has come.
        """
        if self._rest_at < len(self._rest):
            at = self._rest_at
            timestamp = self._rest[at - 1].timestamp if at else self._rest[0].timestamp
            return StreamPosition(self._rest[at].seq_num, timestamp)
        return self._core.position

    @property
    def last_observed_tail(self) -> StreamPosition | None:
        """The stream's tail as the server last told it; None if it has not."""
        return self._core.tail

    @property
    def failure_cause(self) -> Exception | None:
        """What ended the session, or None."""
        return self._core.failure

    def statistics(self) -> ReadStatistics:
        """Where the session stands."""
        return ReadStatistics(
            batches=self._batches,
            records=self._core.records,
            connections=self._connections,
            retries=self._retries,
            gaps=self._gaps,
            network_wait=self._network_wait,
            consumer_wait=self._consumer_wait,
        )

    def __repr__(self) -> str:
        core, context = self._core, self._context
        state = "closed" if self._closed else "failed" if core.failure else core.state.name.lower()
        return f"<ReadSession {context.basin}/{context.stream} {state}, next {core.next_seq}>"


class RecordIterator:
    """The records of a read session, made by `ReadSession.iter_records`."""

    def __init__(self, session: ReadSession) -> None:
        self._session = session

    def __aiter__(self) -> RecordIterator:
        return self

    async def __anext__(self) -> SequencedRecord:
        session = self._session
        try:
            record = session._rest[session._rest_at]
        except IndexError:
            pass
        else:
            session._rest_at += 1
            return record
        batch = await session._next_batch()
        if batch is None:
            raise StopAsyncIteration
        session._rest, session._rest_at, session._tail_of_rest = batch.records, 1, batch.tail
        return batch.records[0]
