"""`IdempotentProducer`: exactly-once, batched, pipelined writing.

The core (`_core/producer`) decides what is sent when, and what answers mean; lanes (`lanes`) do it. This module is what
the caller sees of them, and the waiting: for room, for a flush, for the end. It knows no rule about sequence numbers,
gaps or lingering.
"""

from __future__ import annotations

import atexit
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import anyio
import anyio.lowlevel

from .._core import json_mode, validate, wire
from .._core.backoff import BackoffOptions
from .._core.batcher import EXHAUSTED, Ack
from .._core.fresh import fresh
from .._core.producer import ProducerSession
from .._core.producer_values import RETRY, CloseFailed, Outcome, ProducerOptions, State, StreamEnded
from .._transport.base import Transport
from ..errors import AlreadyClosedError, BufferFullError, DurableStreamError, InvalidArgumentError
from .context import Context, HeaderValue, ParamValue
from .groups import leave
from .handle import DurableStream
from .lanes import Lanes
from .notices import Notices
from .producer_values import BatchInfo as BatchInfo
from .producer_values import Batching as Batching
from .producer_values import FlushResult as FlushResult
from .producer_values import ProducerStatistics as ProducerStatistics
from .receipt import Receipt
from .results import CloseResult
from .room import Room

_NOT_ENTERED = "enter the producer first: async with IdempotentProducer(...) as producer"
_FORKED = "a producer cannot be used in a forked process: make one there, with an epoch or id of its own"

_alive: weakref.WeakSet[IdempotentProducer] = weakref.WeakSet()


class IdempotentProducer:
    """Writes messages exactly once and in order, batched and pipelined.

    Every request carries (producer id, epoch, sequence number), so that the server stores a repetition once and
    refuses a writer whose epoch is old. The guarantee holds within one epoch; see the guide on exactly-once writing
    for restarts.

    Use it in `async with`, or call `start`. Leaving the block sends what was accepted and waits for it; it never
    closes the stream. If the block is left by an exception, requests under way get `exit_grace` seconds and the rest
    is dropped.

    After an error that repeating cannot mend, nothing more is sent (*fail-stop*): `append` and `flush` raise it,
    `unacknowledged` returns what was not stored, and `restart(resend=True)` sends it again under a new epoch.

    Args:
        stream: A handle, whose URL, headers, params, transport, content type and `on_error` are used; or a URL.
        producer_id: Name of this logical writer: stable across restarts, unique among writers that run at once.
        epoch: At least 0; has to be raised at each restart, unless `auto_claim` finds it.
        auto_claim: When a newer epoch is found, take over with the one after it instead of failing.
        next_seq: First sequence number, to go on in the same epoch.
        batching: Presets for the four options that follow.
        max_batch_bytes: Largest body in bytes; None means that of `batching` (1 MiB).
        max_batch_items: Most messages in a batch; None means that of `batching` (no limit).
        linger: Seconds that a batch waits for more messages; None means that of `batching` (0.005).
        max_in_flight: Most requests under way at a time; None means that of `batching` (5).
        max_buffered_bytes: Most payload kept, in flight included, in bytes. Beyond it `append` waits.
        max_buffered_messages: Most messages kept; None for no limit.
        content_type: The stream's; None means the handle's. If that is not known it is asked for on entering.
        headers: Over the handle's.
        params: Over the handle's.
        on_error: Plain or async, called once for each batch that failed for good, with the error and a `BatchInfo`.
            What it raises is logged.
        on_claim: Plain or async, called after taking over, with the old epoch, the new one, and the number of batches
            that are sent again: those of them that had been stored are stored twice.
        retry: Pauses between tries; None means 0.1 to 30 s, doubling. Its `max_elapsed` is not used.
        delivery_timeout: Seconds from a batch's first try after which it fails.
        exit_grace: Seconds that requests under way get when the block is left by an exception.
        transport: With a URL: sends the requests; it is shared and not closed.

    Raises:
        TypeError: an argument has a wrong type.
        InvalidArgumentError: an argument has a wrong value.
    """

    def __init__(
        self,
        stream: DurableStream | str,
        producer_id: str,
        *,
        epoch: int = 0,
        auto_claim: bool = False,
        next_seq: int = 0,
        batching: Batching = Batching.DEFAULT,
        max_batch_bytes: int | None = None,
        max_batch_items: int | None = None,
        linger: float | None = None,
        max_in_flight: int | None = None,
        max_buffered_bytes: int = 64 << 20,
        max_buffered_messages: int | None = None,
        content_type: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        params: Mapping[str, ParamValue] | None = None,
        on_error: Callable[[Exception, BatchInfo], object] | None = None,
        on_claim: Callable[[int, int, int], object] | None = None,
        retry: BackoffOptions | None = None,
        delivery_timeout: float = 120.0,
        exit_grace: float = 1.0,
        transport: Transport | None = None,
    ) -> None:
        if not isinstance(batching, Batching):
            raise TypeError(f"batching must be a Batching, got {type(batching).__name__}")
        for name, value in (("on_error", on_error), ("on_claim", on_claim)):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        self._exit_grace = validate.number("exit_grace", exit_grace)
        self._owns_stream = not isinstance(stream, DurableStream)
        self._stream = stream if isinstance(stream, DurableStream) else DurableStream(stream, transport=transport)
        if not self._owns_stream and transport is not None:
            raise InvalidArgumentError("transport goes with a URL; a handle brings its own")
        self._content_type = validate.content_type(content_type)
        self._context: Context = self._stream._context.child(headers=headers, params=params)
        self._options = ProducerOptions(
            url=self._stream.url,
            producer_id=producer_id,
            content_type=wire.OCTET_STREAM,
            epoch=epoch,
            next_seq=next_seq,
            auto_claim=auto_claim,
            max_batch_bytes=batching.max_batch_bytes if max_batch_bytes is None else max_batch_bytes,
            max_batch_items=batching.max_batch_items if max_batch_items is None else max_batch_items,
            linger=batching.linger if linger is None else linger,
            max_in_flight=batching.max_in_flight if max_in_flight is None else max_in_flight,
            max_buffered_bytes=max_buffered_bytes,
            max_buffered_messages=max_buffered_messages,
            retry=RETRY if retry is None else retry,
            delivery_timeout=delivery_timeout,
        )
        self._on_error = on_error
        self._on_claim = on_claim
        self._set_session(ProducerSession(self._options, Receipt))
        self._batcher.refuse(RuntimeError(_NOT_ENTERED))
        self._started = False
        self._running = False
        self._stopped = False
        self._reported = False
        self._lanes: Lanes | None = None
        self._task_group: Any = None
        self._waiters: set[anyio.Event] = set()
        self._restarting = anyio.Lock()
        self._yielded_at = 0
        self._closing: Receipt | None = None
        self._closed: CloseResult | None = None
        self._final: bytes | None = None
        self._flushed_duplicates = 0
        self._pid = os.getpid()

    def _set_session(self, session: ProducerSession) -> None:
        self._session = session
        self._batcher = session.batcher
        self._add = session.batcher.add
        self._room = Room(session.batcher)

    # -- Facts ---------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The stream's URL, without user information and query values."""
        return self._stream.url

    @property
    def producer_id(self) -> str:
        """Name of this logical writer."""
        return self._options.producer_id

    @property
    def epoch(self) -> int:
        """Current epoch."""
        return self._session.epoch

    @property
    def next_seq(self) -> int:
        """Sequence number of the next batch."""
        return self._session.next_seq

    @property
    def pending_count(self) -> int:
        """Messages that are accepted and not acknowledged."""
        return self._batcher.buffered_messages + self._session.undelivered_messages

    @property
    def in_flight_count(self) -> int:
        """Requests under way."""
        return self._session.in_flight

    @property
    def last_successful_offset(self) -> str | None:
        """Offset after the newest acknowledged batch, as far as the server has sent offsets. Never goes back."""
        return self._session.last_offset

    @property
    def failed(self) -> Exception | None:
        """The error after which nothing more is sent, or None."""
        return self._session.failure

    def unacknowledged(self) -> list[bytes]:
        """Messages that were accepted and are not known to be stored, oldest first.

        Those that were under way when the producer failed may have been stored all the same.
        """
        return self._session.unacknowledged()

    def statistics(self) -> ProducerStatistics:
        """What the producer has done so far."""
        session = self._session
        return ProducerStatistics(
            epoch=session.epoch,
            next_seq=session.next_seq,
            pending=self.pending_count,
            pending_bytes=self._batcher.buffered_bytes,
            in_flight=session.in_flight,
            requests=self._lanes.requests if self._lanes is not None else 0,
            retries=session.retries,
            gap_retries=session.gap_retries,
            duplicates=session.duplicates,
            claims=session.claims,
        )

    def __repr__(self) -> str:
        state = self._session.state.value if self.__dict__.get("_running") else "not running"
        return (
            f"<IdempotentProducer {self._options.producer_id!r} of {self._stream.url}, {state}, "
            f"epoch {self.epoch}, next seq {self.next_seq}, {self.pending_count} pending>"
        )

    # -- Life ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> IdempotentProducer:
        task_group = anyio.create_task_group()
        await task_group.__aenter__()
        try:
            # Shielded: what is under way when the block is cancelled gets its grace in `__aexit__`.
            await self._start(task_group, shield=True)
        except BaseException:
            task_group.cancel_scope.cancel()
            await leave(task_group)
            raise
        self._task_group = task_group
        return self

    async def start(self, task_group: Any) -> None:
        """Start in the caller's task group or nursery, instead of `async with`; end with `aclose`.

        If the group is cancelled first, the producer ends as by `abort`.

        Args:
            task_group: Anything with `start_soon`: an anyio task group, a trio nursery. Several producers in it may be
                closed in any order.

        Raises:
            RuntimeError: it has been started before.
            DurableStreamError: the content type is not known and cannot be learnt. A new producer can try again.
        """
        await self._start(task_group, shield=False)

    async def _start(self, task_group: Any, *, shield: bool) -> None:
        if self._started or self._stopped:
            raise RuntimeError(f"{self!r} can be started once")
        self._started = True
        try:
            content_type = self._content_type or self._stream.content_type or await self._context.content_type()
            content_type = content_type or await self._stream._known_content_type()
            self._options = replace(self._options, content_type=content_type)
            self._set_session(ProducerSession(self._options, Receipt))
            notices = Notices(
                self._options, on_error=self._on_error, on_claim=self._on_claim, before_waiting=self._wake
            )
            self._lanes = Lanes(self._session, self._context, notices, on_outcomes=self._take_note, end=self._end)
            self._pid = os.getpid()
            self._running = True
            _alive.add(self)
            await self._lanes.start(task_group, self._options.max_in_flight + 1, shield=shield)
        except BaseException:
            await self._stop()
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pid != os.getpid():
            return  # The loop and the connections are the parent's.
        try:
            if exc is None:
                await self.aclose()
            else:
                await self._abandon()
        finally:
            task_group, self._task_group = self._task_group, None
            if task_group is not None:
                await leave(task_group)

    async def detach(self) -> None:
        """Accept nothing more, send what was accepted, and end. The stream stays open. A second call does nothing.

        Cancelling the wait changes nothing: the rest is still sent, and `detach` may be called again.

        Raises:
            DurableStreamError: the error with which the producer failed, if messages were not stored for it.
            AlreadyClosedError: it was aborted meanwhile.
            RuntimeError: in a forked process.
        """
        self._check_process()
        waits = self._running
        if waits and self._lanes is not None:
            self._session.detach()
            self._room.look()
            self._lanes.finish()
            await anyio.lowlevel.checkpoint()
            while not self._session.done and not self._stopped:
                await self._change()
        await self._stop()
        if waits or (self._session.failure is not None and not self._reported):
            self._reported = True
            if self.pending_count:
                self._raise_stopped()

    async def aclose(self) -> None:
        """Like `detach`; but if it is cancelled, the producer ends as when its block is left by an exception."""
        self._check_process()
        try:
            await self.detach()
        except BaseException:
            if self._running:
                await self._abandon()
            raise

    async def abort(self) -> None:
        """Drop what is queued and end. Requests under way are cut off and may have been stored.

        The receipts of what was not acknowledged raise `AlreadyClosedError`, and `on_error` is told;
        `unacknowledged` still has the messages.

        Raises:
            RuntimeError: in a forked process.
        """
        self._check_process()
        self._reported = True
        outcomes = [] if self._stopped else self._session.abort()
        await self._stop()
        if self._lanes is not None:
            await self._lanes.digest(outcomes)

    async def _abandon(self) -> None:
        """Give requests under way a moment, and drop the rest."""
        if self._session.state is State.OPEN:
            self._batcher.refuse(AlreadyClosedError("the producer's block was left by an exception", url=self.url))
        self._session.hold()
        self._reported = True
        try:
            with anyio.move_on_after(self._exit_grace, shield=True):
                while self._session.dispatched and self._running:
                    await self._change()
        finally:
            await self._end(True)

    async def _end(self, cancelled: bool) -> None:
        """End: when everything is done, or because of a cancellation, which leaves time for little."""
        outcomes = self._session.abort() if cancelled and not self._stopped else []
        await self._stop()
        assert self._lanes is not None
        with anyio.move_on_after(self._exit_grace, shield=True):
            await self._lanes.digest(outcomes)

    async def _stop(self) -> None:
        """End the lanes and release what is ours. Idempotent."""
        self._running, self._stopped = False, True
        _alive.discard(self)
        if self._batcher.refusal is None or not self._started:
            self._batcher.refuse(AlreadyClosedError("the producer was closed", url=self.url))
        self._tell_all()
        if self._lanes is not None:
            await self._lanes.stop(self._exit_grace)
        if self._owns_stream:
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()

    def _take_note(self, outcomes: list[Outcome]) -> None:
        """Remember how closing went, and wake those who wait for something."""
        for outcome in outcomes:
            if isinstance(outcome, StreamEnded):
                head = outcome.head
                self._closed = CloseResult(head.status, dict(head.headers), final_offset=outcome.ack.offset)
            elif isinstance(outcome, CloseFailed):
                self._closing = None
        self._tell_all()

    def _wake(self) -> None:
        if self._lanes is not None:
            self._lanes.wake()

    def _tell_all(self) -> None:
        self._room.look()
        for event in self._waiters:
            event.set()

    async def _change(self) -> None:
        """Wait until a request has come back, or the producer has been stopped."""
        event = anyio.Event()
        self._waiters.add(event)
        try:
            await event.wait()
        finally:
            self._waiters.discard(event)

    def _check_process(self) -> None:
        if self._started and self._pid != os.getpid():
            raise RuntimeError(_FORKED)

    def _check_running(self) -> None:
        self._check_process()
        if not self._running:
            if not self._stopped:
                raise RuntimeError(_NOT_ENTERED)
            self._raise_stopped()
            raise AlreadyClosedError("the producer was closed", url=self.url)

    def _raise_stopped(self) -> None:
        """Raise the error with which the producer has failed or was aborted, with the number of messages left over."""
        if self._session.state in (State.FAILED, State.ABORTED):
            assert self._session.stopped_by is not None
            error = fresh(self._session.stopped_by)
            if (count := self._session.undelivered_messages) and isinstance(error, DurableStreamError):
                error.add_note(f"{count} messages are not acknowledged; the producer's unacknowledged() has them")
            raise error

    # -- Appending -----------------------------------------------------------------------------------------

    def append_nowait(self, body: bytes | str) -> Receipt:
        """Queue one message; returns at once.

        Args:
            body: Bytes, or a str that is sent as UTF-8; not empty. For a JSON stream the text of one JSON value.

        Raises:
            BufferFullError: there is no room, or others wait for room in `append`. The message was not accepted.
            TypeError: `body` is neither bytes nor str.
            InvalidArgumentError: `body` is empty.
            AlreadyClosedError: after `close_stream`, `detach` or `abort`.
            RuntimeError: before entering, or in a forked process.
            DurableStreamError: the error with which the producer failed.
        """
        receipt: Receipt = self._add(body)  # type: ignore[arg-type]  # its slow path takes what is not bytes
        if self._batcher.needs_poll:
            self._wake()
        return receipt

    async def append(self, body: bytes | str) -> Receipt:
        """Queue one message, waiting for room while the buffer is full. Callers that wait are served in order.

        It suspends when the buffer is full, and once for each batch that fills up, so that a loop of appends starves
        no other task. A cancelled call has not queued its message. Errors as `append_nowait`, but for
        `BufferFullError`.
        """
        body = body if type(body) is bytes else validate.body(body)
        batcher = self._batcher
        if batcher.begins(body) and batcher.last_number != self._yielded_at:
            self._yielded_at = batcher.last_number
            await anyio.lowlevel.checkpoint()
        try:
            return self.append_nowait(body)
        except BufferFullError:
            return await self._append_when_room(body)

    async def append_many(self, bodies: Iterable[bytes | str]) -> Receipt | None:
        """Queue many messages: the fast way, for it waits for room per batch and not per message.

        Args:
            bodies: As `body` of `append_nowait`. An exception of the iterable is raised; what came before is queued.

        Returns:
            The receipt of the last message; None if there was none.

        Raises:
            As `append`; the messages before the offending one are queued.
        """
        await anyio.lowlevel.checkpoint()
        if not isinstance(bodies, list | tuple):
            return await self._append_each(iter(bodies))
        receipt: Receipt | None = None
        position = 0
        while position < len(bodies):
            count = self._batcher.add_run(bodies, position)
            if count > 0:
                receipt = self._batcher.last_promise
            else:
                count = -count
                receipt = await self._append_each(iter(bodies[position : position + count]))
            position += count
        return receipt

    async def _append_each(self, iterator: Iterator[bytes | str]) -> Receipt | None:
        """Queue messages one by one; returns the last one's receipt."""
        batcher = self._batcher
        receipt: Receipt | None = None
        while True:
            before = batcher.buffered_messages
            try:
                body = batcher.add_many(iterator)
            finally:
                if batcher.needs_poll:
                    self._wake()
            if batcher.buffered_messages > before:
                receipt = batcher.last_promise
            if body is EXHAUSTED:
                return receipt
            if body is None:
                await anyio.lowlevel.checkpoint()
            else:
                receipt = await self.append(body)

    async def append_json(self, value: Any) -> Receipt:
        """Queue one JSON value as one message; otherwise as `append`.

        Raises:
            TypeError: the value cannot be written as JSON.
            InvalidArgumentError: it contains NaN or an infinity, or the stream is no JSON stream.
        """
        return await self.append(self._encoded(value))

    def append_json_nowait(self, value: Any) -> Receipt:
        """Queue one JSON value as one message; otherwise as `append_nowait`."""
        return self.append_nowait(self._encoded(value))

    async def send(self, body: bytes | str) -> Ack:
        """Append one message, without lingering if nothing is under way, and wait until it is stored.

        Cancelled while waiting for the acknowledgement, the message is sent all the same. Errors as `append` and
        `flush`.
        """
        receipt = await self.append(body)
        if not self._session.in_flight:
            self._session.flush()
            self._wake()
        return await receipt.wait()

    def _encoded(self, value: Any) -> bytes:
        if self._running and not self._batcher.json:
            raise InvalidArgumentError(
                f"append_json needs a JSON stream; the content type is {self._options.content_type!r}"
            )
        return json_mode.encode_item(value)

    async def _append_when_room(self, body: bytes | str) -> Receipt:
        """Wait in line for room, then queue the message."""
        body = validate.body(body)
        place = self._room.join(len(body))
        self._send_without_lingering()
        try:
            await self._room.wait(place)
            return self.append_nowait(body)
        finally:
            self._room.leave(place)
            if self._room.wanted:
                self._send_without_lingering()

    def _send_without_lingering(self) -> None:
        """Room comes from sending: lingering would only delay it."""
        self._session.flush()
        self._wake()

    # -- Waiting for the server ----------------------------------------------------------------------------

    async def flush(self) -> FlushResult:
        """Wait until everything that was accepted before the call is stored.

        Cancelling the wait does not touch what is queued. Flushing concurrently is fine.

        Raises:
            DurableStreamError: the error with which the producer failed.
            AlreadyClosedError: it was aborted.
            RuntimeError: before entering.
        """
        self._check_running()
        await self._settle()
        duplicates = self._session.duplicates - self._flushed_duplicates
        self._flushed_duplicates = self._session.duplicates
        return FlushResult(self._session.last_offset, duplicates)

    async def _settle(self) -> None:
        """Send what was accepted without lingering, and wait until it is stored.

        Raises:
            DurableStreamError: the error with which the producer has failed, or was aborted, in between.
        """
        session = self._session
        self._raise_stopped()
        watermark, stops = session.flush(), session.stops
        self._wake()
        await anyio.lowlevel.checkpoint()
        while session.settled < watermark and session.stops == stops:
            await self._change()
        self._raise_stopped()
        if session.stops != stops:  # Another has restarted it since.
            assert session.stopped_by is not None
            raise fresh(session.stopped_by)

    async def close_stream(self, final_message: bytes | str | None = None) -> CloseResult:
        """Send what was accepted, then close the stream for good, with a last message if one is given.

        Idempotent: a second call returns the same result, and a concurrent one waits with the first. After a failed
        call nothing can be appended any more, but closing can be tried again. Cancelling the wait does not stop the
        closing.

        Raises:
            StreamClosedError: another has closed the stream.
            AlreadyClosedError: it was closed, or is being closed, with another last message than this one; or the
                producer was detached or aborted.
            InvalidArgumentError: an earlier call that failed, but may have been carried out, had another last message.
            DurableStreamError: as `flush`, in which case the stream was not closed by this call; or closing failed.
        """
        final = None if final_message is None else validate.body(final_message, name="final_message")
        if self._closed is None and self._closing is None:
            self._check_running()
            self._close(final)
        elif final is not None and final != self._final:
            raise AlreadyClosedError("the stream was closed with another last message", url=self.url)
        if self._closed is None:
            assert self._closing is not None
            await self._closing.wait()
        else:
            await anyio.lowlevel.checkpoint()
        result: CloseResult | None = self._closed
        assert result is not None
        return result

    def _close(self, final: bytes | None) -> None:
        self._raise_stopped()
        if self._session.state not in (State.OPEN, State.CLOSING):
            raise AlreadyClosedError(f"the producer is {self._session.state.value}", url=self.url)
        if final is not None and self._batcher.json:
            json_mode.check_item(final)
        elif final == b"":
            raise InvalidArgumentError("final_message must not be empty; leave it out to close without one")
        closing = Receipt()
        self._session.close(final, closing)
        self._closing, self._final = closing, final
        self._room.look()
        self._wake()

    async def restart(self, *, resend: bool = False) -> None:
        """Begin a new epoch with sequence number 0: after a flush, or after a failure.

        Args:
            resend: After a failure: send again what was not acknowledged. What had been stored all the same is then
                stored twice. False drops it; `unacknowledged` still has it before the call.

        Raises:
            AlreadyClosedError: the producer is closing or has closed the stream, was detached or aborted.
            DurableStreamError: flushing failed.
        """
        self._check_running()
        session = self._session
        async with self._restarting:
            try:
                if session.failure is None:
                    self._check_open()
                    session.pause()
                    await self._settle()
                while session.in_flight and self._running:
                    await self._change()
                self._check_running()
                if session.failure is None:
                    self._check_open()
                session.restart(resend=resend)
            finally:
                session.resume()
                self._tell_all()
                self._wake()

    def _check_open(self) -> None:
        if self._session.state is not State.OPEN:
            raise AlreadyClosedError(f"the producer is {self._session.state.value}", url=self.url)

    def __del__(self) -> None:
        if self.__dict__.get("_running") and self._pid == os.getpid() and self.pending_count:
            warnings.warn(f"{self!r} was dropped with messages unsent", ResourceWarning, stacklevel=2, source=self)


def _forbid_in_child() -> None:
    """A forked process must not go on counting for its parent."""
    for producer in list(_alive):
        producer._batcher.refuse(RuntimeError(_FORKED))


def _warn_at_exit() -> None:
    for producer in list(_alive):
        if producer.pending_count and producer._pid == os.getpid():
            warnings.warn(
                f"{producer!r}: the interpreter exits with {producer.pending_count} messages unsent",
                ResourceWarning,
                stacklevel=2,
            )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forbid_in_child)
atexit.register(_warn_at_exit)
