"""`AppendSession`: ordered, pipelined appending with recovery.

The core (`_append_core`) decides what is written when and what a failure leads to; a link (`_append_link`) is one
connection. This module is the waiting between them and the callers: for room, for acknowledgements, for deadlines.

One task runs a session. While there is a connection it reads acknowledgements, and a second one writes; so a closed
window stops neither acknowledgements nor the notice of a failure. Between connections there is nothing but a pause.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from .._core import validate
from .._core.exchange import RetryDetails
from .._core.fresh import fresh
from ..errors import BufferFullError
from ._append_core import AppendCore, End, Entry, HalfClose, Open, ReadBack, Sleep, State, Write
from ._append_link import AppendLink, S2SAppendLink, UnaryAppendLink
from ._append_views import AckIterator, AppendStatistics, AppendWriter
from ._context import StreamContext
from ._outgoing import Outgoing, outgoing
from ._retry import S2Retry
from ._stream import RecordLike, Stream
from ._ticket import AppendTicket
from ._values import MAX_BATCH_BYTES, AppendAck, AppendInput, StreamPosition
from .errors import S2Error, S2ProtocolError, S2ServerError, S2SessionClosedError

logger = logging.getLogger("durable_streams.s2.append")

#: Metered bytes that a session accepts ahead of their acknowledgement, unless told otherwise.
MAX_IN_FLIGHT_BYTES: int = 5 << 20
#: Seconds that closing a connection may take.
_CLOSE_GRACE = 1.0
#: Seconds in which a connection that cannot be written to may still say why: a terminal frame tells more.
_LAST_WORDS = 1.0


class _Place:
    """A place in the line of those who wait for room."""

    __slots__ = ("event", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.event = anyio.Event()


class AppendSession:
    """Appends batches to one stream, in the order in which they are submitted.

    Open it with `stream.append_session()` and `async with`, or call `start`. Leaving the block waits until everything
    is durable and raises what prevented it; leaving it by an exception drops what is not yet written.

    `submit` hands over a batch and returns a ticket; `await ticket` waits until it is durable. `writer` and `acks` are
    the two halves of the same for those who pass on a stream of batches. However batches come in, they are stored in
    that one order. A failed connection is replaced, and what was not acknowledged is written again, as the retry policy
    allows: see `S2Retry.append_retry_policy` about batches that could be stored twice.

    An error that trying again cannot mend ends the session: every batch that is not acknowledged, every later `submit`
    and `close` raise it. Its `definite` tells for each batch whether it certainly was not stored.

    Args:
        context: The stream's.
        max_in_flight_bytes: Most metered bytes that are accepted and not acknowledged, at least 1 MiB; 5 MiB by
            default. Beyond it `submit` waits.
        max_in_flight_batches: Most batches of these, or None.
        stream_config: JSON of the configuration for a stream that appending creates, or None.
        read_back: Before giving up on a batch with `match_seq_num` that may have been stored, read what stands there.
            The batch itself counts as acknowledged, and the session goes on. A foreign batch with equal bodies and
            headers at the same place cannot be told from it.
        retry: Over the client's.
        on_retry: Plain function, called with each failure that is followed by another try.
    """

    def __init__(
        self,
        context: StreamContext,
        *,
        max_in_flight_bytes: int = MAX_IN_FLIGHT_BYTES,
        max_in_flight_batches: int | None = None,
        stream_config: str | None = None,
        read_back: bool = False,
        retry: S2Retry | None = None,
        on_retry: Callable[[RetryDetails], None] | None = None,
    ) -> None:
        validate.integer("max_in_flight_bytes", max_in_flight_bytes, minimum=MAX_BATCH_BYTES)
        if max_in_flight_batches is not None:
            validate.integer("max_in_flight_batches", max_in_flight_batches, minimum=1)
        self._context = context
        self._stream_config = stream_config
        self._on_retry = on_retry
        self._s2s = context.uses_s2s
        self._keep = read_back or not self._s2s
        self._core: AppendCore[AppendTicket] = AppendCore(
            context.retry if retry is None else retry,
            ack_timeout=context.timeouts.request,
            max_bytes=max_in_flight_bytes,
            max_batches=max_in_flight_batches,
            reject=AppendTicket.reject,
            pipelined=self._s2s,
            read_back=read_back,
        )
        self._on_idle: Callable[[], None] | None = None  # a producer's, called when everything is acknowledged
        self._newest: AppendTicket = AppendTicket(0)
        self._settled: AppendTicket = self._newest
        self._line: deque[_Place] = deque()
        self._wake = anyio.Event()
        self._news: anyio.Event | None = None
        self._ended: anyio.Event | None = None  # from the start on
        self._life: anyio.CancelScope | None = None  # from the start on: a handle may be made before there is a loop
        self._group: anyio.abc.TaskGroup | None = None
        self._reading: anyio.CancelScope | None = None
        self._write_error: S2Error | None = None
        self._announced: Sleep | None = None
        self._acked_batches = self._acked_records = self._acked_bytes = 0
        self._connections = self._retries = 0
        self._window_wait = self._ack_wait = self._max_ack_wait = self._backpressure_wait = 0.0

    # -- Life ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> AppendSession:
        self._begin()
        group = anyio.create_task_group()
        await group.__aenter__()
        self._group = group
        group.start_soon(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        group, self._group = self._group, None
        try:
            if error is None:
                await self.close()
        finally:
            self._stop("the append session was left by an exception")
            assert group is not None, "entered before"
            # Not with the body's exception: it goes on bare, not wrapped in an ExceptionGroup.
            await group.__aexit__(None, None, None)

    async def start(self, task_group: Any) -> None:
        """Run in a task group or nursery of the caller's, instead of `async with`. End it with `close` or `aclose`."""
        self._begin()
        task_group.start_soon(self._run)

    @property
    def started(self) -> bool:
        """Whether it was entered or started."""
        return self._ended is not None

    def _begin(self) -> None:
        if self._ended is not None:
            raise RuntimeError("the append session has been started already")
        if self._core.closing:
            raise S2SessionClosedError("the append session was closed")
        self._ended = anyio.Event()
        self._life = anyio.CancelScope()

    async def close(self) -> None:
        """Accept nothing more and wait until everything is durable. Idempotent, safe from several tasks.

        Callers that wait for room are refused. Cancelling this does not stop the session from finishing.

        Raises:
            S2Error: what ended the session before everything was durable; `definite` is True if no batch that failed
                can have been stored.
        """
        self._core.close()
        self._look()
        self._poke()
        if self._ended is not None:
            await self._ended.wait()
        if self._core.failure is not None:
            raise fresh(self._core.failure)

    async def aclose(self) -> None:
        """End the session now. Batches that are not acknowledged fail; those in flight may still be stored."""
        self._stop("the append session was closed without waiting for its batches")
        if self._ended is not None:
            with anyio.CancelScope(shield=True):
                await self._ended.wait()

    def _stop(self, reason: str) -> None:
        core = self._core
        if core.state is not State.ENDED and (core.pending or not core.closing):
            core.abort(reason)
        core.close()
        self._look()
        self._tell()
        if self._life is not None:
            self._life.cancel()

    # -- Appending -----------------------------------------------------------------------------------------

    async def submit(
        self,
        batch: AppendInput | RecordLike | Iterable[RecordLike],
        *,
        match_seq_num: int | None = None,
        fencing_token: str | None = None,
    ) -> AppendTicket:
        """Hand over a batch, waiting for room if there is none. Callers are served in the order in which they came.

        A cancelled call has handed over nothing.

        Args:
            batch: The batch, or its records, or one record; a str or bytes is a record with that body.
            match_seq_num: If records are given: see `AppendInput`.
            fencing_token: If records are given: see `AppendInput`.

        Returns:
            A ticket to await.

        Raises:
            InvalidArgumentError: the batch is too large, or a condition is out of range.
            S2SessionClosedError: the session was closed.
            S2Error: what ended the session.
        """
        wanted = outgoing(batch, match_seq_num, fencing_token)
        self._check_usable()
        await anyio.lowlevel.checkpoint()
        return await self._submit_as(AppendTicket(wanted.count), wanted)

    async def _submit_as(self, ticket: AppendTicket, wanted: Outgoing) -> AppendTicket:
        """`submit` under a ticket that was made before."""
        if self.has_room(wanted.metered_bytes):
            return self._accept(ticket, wanted)
        began = anyio.current_time()
        place = _Place(wanted.metered_bytes)
        self._line.append(place)
        try:
            while self._core.refusal() is None:
                if self._line[0] is place and self._core.has_room(place.size):
                    break
                place.event = anyio.Event()
                await place.event.wait()
            return self._accept(ticket, wanted)
        finally:
            self._backpressure_wait += anyio.current_time() - began
            self._line.remove(place)
            self._look()

    def submit_nowait(
        self,
        batch: AppendInput | RecordLike | Iterable[RecordLike],
        *,
        match_seq_num: int | None = None,
        fencing_token: str | None = None,
    ) -> AppendTicket:
        """`submit`, or an error if there is no room.

        Raises:
            BufferFullError: there is no room, or others wait for it.
        """
        wanted = outgoing(batch, match_seq_num, fencing_token)
        self._check_usable()
        if not self.has_room(wanted.metered_bytes):
            raise BufferFullError(
                f"the session is full: {len(self._core.pending)} batches of {self._core.pending_bytes} metered bytes "
                "wait for their acknowledgement"
            )
        return self._accept(AppendTicket(wanted.count), wanted)

    def has_room(self, size: int) -> bool:
        """Whether `submit_nowait` of a batch of so many metered bytes finds room."""
        return not self._line and self._core.has_room(size)

    def _check_usable(self) -> None:
        if self._ended is None and not self._core.closing:
            raise RuntimeError("enter the session first: async with stream.append_session() as session")
        if (refusal := self._core.refusal()) is not None:
            raise refusal

    def _accept(self, ticket: AppendTicket, batch: Outgoing) -> AppendTicket:
        self._check_usable()
        frame = batch.frame(self._context.compression) if self._s2s else ()
        self._core.accept(Entry(batch, frame, ticket, keep=self._keep))
        self._newest._next = ticket
        self._newest = ticket
        self._poke()
        if self._news is not None:
            self._tell()
        return ticket

    async def flush(self) -> None:
        """Wait until everything submitted so far is durable. The session stays open.

        Raises:
            S2Error: what ended the session; `definite` is True if no batch that failed can have been stored.
        """
        newest = self._newest
        if newest.count:
            await newest.wait_done()
        if self._core.failure is not None:
            raise fresh(self._core.failure)

    def writer(self) -> AppendWriter:
        """A sink with backpressure: `async with session.writer() as w: await w.write(records)`."""
        return AppendWriter(self)

    def acks(self) -> AckIterator:
        """The acknowledgements from now on, in order: `async for ack in session.acks()`.

        It begins with the oldest batch that is not acknowledged, and ends when the session is closed; a failure is
        raised in its place. Any number of iterators may run. One that is not read keeps the acknowledgements.
        """
        return AckIterator(self)

    # -- Facts ---------------------------------------------------------------------------------------------

    @property
    def last_acked_position(self) -> StreamPosition | None:
        """Position after the last record that was acknowledged, or None."""
        ack = self._core.last_ack
        return None if ack is None else ack.end

    @property
    def failure_cause(self) -> Exception | None:
        """What ended the session, or None."""
        return self._core.failure

    @property
    def idle(self) -> bool:
        """Whether everything accepted is acknowledged."""
        return not self._core.pending

    @property
    def closed(self) -> bool:
        """Whether nothing more is accepted."""
        return self._core.closing or self._core.failure is not None

    def statistics(self) -> AppendStatistics:
        """Where the session stands."""
        core = self._core
        return AppendStatistics(
            pending_batches=len(core.pending),
            pending_bytes=core.pending_bytes,
            in_flight_batches=core.in_flight,
            waiting=len(self._line),
            acked_batches=self._acked_batches,
            acked_records=self._acked_records,
            acked_bytes=self._acked_bytes,
            connections=self._connections,
            retries=self._retries,
            window_wait=self._window_wait,
            ack_wait=self._ack_wait,
            max_ack_wait=self._max_ack_wait,
            backpressure_wait=self._backpressure_wait,
        )

    def __repr__(self) -> str:
        core, context = self._core, self._context
        state = "failed" if core.failure else core.state.name.lower()
        return f"<AppendSession {context.basin}/{context.stream} {state}, {len(core.pending)} batches pending>"

    # -- Wake-ups ------------------------------------------------------------------------------------------

    def _poke(self) -> None:
        """Something may be to do for the task that waits."""
        self._wake.set()

    async def _wait(self) -> None:
        self._wake = anyio.Event()
        await self._wake.wait()

    def _tell(self) -> None:
        """There is a new batch, or there will be none: iterators of acknowledgements look again."""
        if self._news is not None:
            self._news.set()
            self._news = None

    async def _next_after(self, ticket: AppendTicket) -> AppendTicket | None:
        """The batch accepted after this one, or None if there will be none."""
        while ticket._next is None:
            if self.closed or self._core.state is State.ENDED:
                return None
            if self._news is None:
                self._news = anyio.Event()
            await self._news.wait()
        return ticket._next

    def _look(self) -> None:
        """Wake the first in line if there is room for it, or all if nothing is accepted any more."""
        if self.closed:
            for place in self._line:
                place.event.set()
            self._tell()
        elif self._line and self._core.has_room(self._line[0].size):
            self._line[0].event.set()

    # -- The task ------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        core, life = self._core, self._life
        assert life is not None, "made by the start"
        try:
            with life:
                await self._work()
        except Exception as error:  # The user's callable that makes tokens, say. It is raised to those who wait.
            logger.warning("append session failed stream=%s error=%r", self._context.stream, error)
            core.fail(error)
        finally:
            if core.state is not State.ENDED and (core.pending or not core.closing):
                core.abort("the task group of the append session was cancelled")
            core.state = State.ENDED
            self._look()
            self._tell()
            assert self._ended is not None
            self._ended.set()

    async def _work(self) -> None:
        core = self._core
        slept_until = 0.0
        while True:
            command = core.next(max(anyio.current_time(), slept_until))
            match command:
                case Open():
                    await self._serve()
                case Sleep():
                    self._announce(command)
                    await anyio.sleep_until(command.until)
                    slept_until = command.until  # a timer may be early by the resolution of its clock
                case ReadBack(entry):
                    await self._read_back(entry)
                case End():
                    return
                case _:
                    await self._wait()

    def _announce(self, sleep: Sleep) -> None:
        """Tell of a failure that is followed by another try."""
        if sleep is self._announced:
            return
        self._announced = sleep
        self._retries += 1
        delay = max(sleep.until - anyio.current_time(), 0.0)
        logger.debug(
            "retrying append session stream=%s attempt=%d delay=%.3f error=%s",
            self._context.stream,
            sleep.failures,
            delay,
            sleep.error,
        )
        if self._on_retry is not None:
            self._on_retry(RetryDetails(sleep.failures, delay, sleep.error))

    async def _serve(self) -> None:
        """Use one connection from its beginning to its end."""
        kind = S2SAppendLink if self._s2s else UnaryAppendLink
        link: AppendLink = kind(self._context, self._stream_config)
        core = self._core
        self._write_error = None
        try:
            try:
                await link.open()
            except S2Error as error:
                self._report(error, sent=False)
                return
            self._connections += 1
            core.on_open()
            async with anyio.create_task_group() as group:
                group.start_soon(self._write, link)
                await self._read(link)
                group.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(_CLOSE_GRACE, shield=True):
                await link.aclose()

    def _report(self, error: S2Error, *, sent: bool) -> None:
        self._core.on_failure(error, anyio.current_time(), self._context.rng.random(), sent=sent)
        self._look()

    async def _write(self, link: AppendLink) -> None:
        """Write whatever the core has for this connection."""
        core = self._core
        try:
            while core.state is State.OPEN:
                began = anyio.current_time()
                if link.leaving:
                    core.on_farewell(began)
                match core.next(began):
                    case Write(entries):
                        await link.send(entries)
                        now = anyio.current_time()
                        self._window_wait += now - began
                        core.on_written(entries, now)
                        self._set_deadline(core.deadline)
                    case HalfClose():
                        await link.finish()
                        core.on_half_closed(anyio.current_time())
                        self._set_deadline(core.deadline)
                    case _:
                        await self._wait()
        except S2Error as error:
            self._write_error = error
            self._set_deadline(anyio.current_time() + _LAST_WORDS)

    def _set_deadline(self, deadline: float | None) -> None:
        """Of what is being received right now."""
        if self._reading is not None:
            self._reading.deadline = math.inf if deadline is None else deadline

    async def _read(self, link: AppendLink) -> None:
        """Take acknowledgements until the connection is over, and report how it ended."""
        core = self._core
        while True:
            deadline = math.inf if core.deadline is None else core.deadline
            if self._write_error is not None:
                deadline = min(deadline, anyio.current_time() + _LAST_WORDS)
            arrivals = None
            try:
                with anyio.CancelScope(deadline=deadline) as scope:
                    self._reading = scope
                    arrivals = await link.receive()
            except S2Error as error:
                self._report(self._write_error or error, sent=link.sent)
                return
            finally:
                self._reading = None
            now = anyio.current_time()
            if scope.cancelled_caught:
                if self._write_error is not None:
                    self._report(self._write_error, sent=link.sent)
                else:
                    core.on_late(now, self._context.rng.random())
                    self._look()
                return
            if arrivals is None:
                if self._write_error is not None:
                    self._report(self._write_error, sent=link.sent)
                else:
                    core.on_end(now, self._context.rng.random(), sent=link.sent)
                    self._look()
                return
            for arrival in arrivals:
                if isinstance(arrival, S2ServerError):
                    if arrival.draining:
                        link.retire()
                    self._report(arrival, sent=link.sent)
                    return
                ack, advised = arrival
                try:
                    entry = core.on_ack(ack)
                except S2ProtocolError as error:
                    self._report(error, sent=True)
                    return
                self._settle(entry, ack)
                if not core.in_flight:
                    link.all_acknowledged()
                if advised and core.on_advice(now):
                    logger.debug("following advice to reconnect stream=%s", self._context.stream)
                    link.retire()
                    self._poke()
            self._look()
            if not link.pipelined or (link.leaving and core.on_farewell(now)):
                self._poke()

    def _settle(self, entry: Entry[AppendTicket], ack: AppendAck) -> None:
        """A batch is durable."""
        ticket = entry.promise
        self._settled = ticket
        self._acked_batches += 1
        self._acked_records += ticket.count
        self._acked_bytes += entry.size
        took = anyio.current_time() - entry.written
        self._ack_wait += took
        self._max_ack_wait = max(self._max_ack_wait, took)
        ticket.resolve(ack)
        if self._on_idle is not None and not self._core.pending:
            self._on_idle()

    async def _read_back(self, entry: Entry[AppendTicket]) -> None:
        """Look whether a batch is stored, and report."""
        ack, stored = None, None
        try:
            resolution = await Stream(self._context).resolve_append(entry.batch)
        except S2Error as error:
            logger.debug("could not read back stream=%s error=%s", self._context.stream, error)
        else:
            ack = resolution.ack
            stored = {"stored": True, "not_stored": False}.get(resolution.outcome)
        if (settled := self._core.on_read_back(ack, stored=stored)) is not None and ack is not None:
            self._settle(settled, ack)
        self._look()
