"""`IdempotentProducer`: exactly-once, batched, pipelined writing.

The core (`_core/producer`) decides what is sent when, and what answers mean. This module owns what waits: lanes, the
callers that wait for room, for a flush or for an acknowledgement, and the user's callables. It knows no rule about
sequence numbers, gaps or lingering.

A lane is a task that asks the core what to do, does it and reports. Idle lanes stand on a stack, each with an event of
its own, so that one piece of work wakes one lane; a lane that gets work wakes the next one if there may be more.
"""

from __future__ import annotations

import atexit
import copy
import inspect
import logging
import math
import os
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ClassVar

import anyio
import anyio.lowlevel

from .._core import json_mode, validate, wire
from .._core.backoff import BackoffOptions
from .._core.batcher import EXHAUSTED, Ack
from .._core.exchange import Failure, Head, RetryDetails
from .._core.producer import (
    Acked,
    Asked,
    Claimed,
    CloseFailed,
    Done,
    Failed,
    Outcome,
    ProducerOptions,
    ProducerSession,
    Retried,
    Send,
    State,
    StreamEnded,
    Wait,
)
from .._core.status_errors import MAX_ERROR_BODY
from .._transport.base import Transport
from ..errors import AlreadyClosedError, BufferFullError, DurableStreamError, InvalidArgumentError, NetworkError
from .answer import open_answer
from .context import Context, HeaderValue, ParamValue
from .handle import DurableStream
from .receipt import Receipt
from .results import CloseResult

logger = logging.getLogger("durable_streams.producer")

#: The failed try in a row of one batch that is worth a warning.
_WARN_AT = 3


@dataclass(frozen=True, slots=True)
class Batching:
    """How messages are gathered and how many requests are under way; three presets stand ready.

    `Batching.DEFAULT` suits most. `Batching.LOW_LATENCY` sends at once, in small batches and on more lanes.
    `Batching.HIGH_THROUGHPUT` waits longer for larger batches.

    Attributes:
        max_batch_bytes: Largest body, framing included, in bytes. A larger message goes alone.
        max_batch_items: Most messages in a batch; None for no limit.
        linger: Seconds that a batch waits for more messages; 0 sends as soon as the event loop is free.
        max_in_flight: Requests under way at a time. With 1 they arrive in the order they were sent.
    """

    max_batch_bytes: int = 1 << 20
    max_batch_items: int | None = None
    linger: float = 0.005
    max_in_flight: int = 5

    DEFAULT: ClassVar[Batching]
    LOW_LATENCY: ClassVar[Batching]
    HIGH_THROUGHPUT: ClassVar[Batching]

    def __post_init__(self) -> None:
        validate.integer("max_batch_bytes", self.max_batch_bytes, minimum=1)
        if self.max_batch_items is not None:
            validate.integer("max_batch_items", self.max_batch_items, minimum=1)
        validate.number("linger", self.linger)
        validate.integer("max_in_flight", self.max_in_flight, minimum=1)


Batching.DEFAULT = Batching()
Batching.LOW_LATENCY = Batching(max_batch_bytes=64 << 10, linger=0.0, max_in_flight=8)
Batching.HIGH_THROUGHPUT = Batching(max_batch_bytes=4 << 20, linger=0.05)


@dataclass(frozen=True, slots=True)
class FlushResult:
    """Everything that was accepted before a flush is stored.

    Attributes:
        offset: Offset after the last acknowledged batch, if the server has sent one.
        duplicates: Batches since the last flush that an earlier try had stored.
    """

    offset: str | None
    duplicates: int


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """Facts about a batch that failed.

    Attributes:
        epoch: The producer's epoch.
        seq: Its sequence number; -1 if it was never sent.
        messages: How many messages it has.
        retryable: Whether sending it again later may succeed.
    """

    epoch: int
    seq: int
    messages: int
    retryable: bool


@dataclass(frozen=True, slots=True)
class ProducerStatistics:
    """What a producer has done so far.

    Attributes:
        epoch: Current epoch.
        next_seq: Number of the next batch.
        pending: Messages that are accepted and not acknowledged.
        pending_bytes: Their size.
        in_flight: Requests under way.
        requests: Requests made.
        retries: Requests repeated after a failure.
        gap_retries: Requests repeated because they had overtaken others.
        duplicates: Batches that an earlier try had stored.
        claims: Times that the producer was taken over from a newer epoch.
    """

    epoch: int
    next_seq: int
    pending: int
    pending_bytes: int
    in_flight: int
    requests: int
    retries: int
    gap_retries: int
    duplicates: int
    claims: int


_FORKED = "a producer cannot be used in a forked process: make one there, with an epoch or id of its own"


class _Place:
    """A place in the line of callers that wait for room."""

    __slots__ = ("event", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.event = anyio.Event()


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
        max_in_flight: Requests under way at a time; None means that of `batching` (5).
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
        if not isinstance(producer_id, str):
            raise TypeError(f"producer_id must be a str, got {type(producer_id).__name__}")
        if not producer_id.strip():
            raise InvalidArgumentError(f"producer_id must not be empty, got {producer_id!r}")
        wire.check_header(wire.PRODUCER_ID, producer_id)
        if not isinstance(batching, Batching):
            raise TypeError(f"batching must be a Batching, got {type(batching).__name__}")
        if retry is not None and not isinstance(retry, BackoffOptions):
            raise TypeError(f"retry must be BackoffOptions, got {type(retry).__name__}")
        for name, value in (("on_error", on_error), ("on_claim", on_claim)):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        if not isinstance(auto_claim, bool):
            raise TypeError(f"auto_claim must be a bool, got {type(auto_claim).__name__}")
        validate.integer("epoch", epoch)
        validate.integer("next_seq", next_seq)
        validate.integer("max_buffered_bytes", max_buffered_bytes, minimum=1)
        if max_buffered_messages is not None:
            validate.integer("max_buffered_messages", max_buffered_messages, minimum=1)
        validate.number("delivery_timeout", delivery_timeout, exclusive=True)
        self._exit_grace = validate.number("exit_grace", exit_grace)
        self._batching = Batching(
            batching.max_batch_bytes if max_batch_bytes is None else max_batch_bytes,
            batching.max_batch_items if max_batch_items is None else max_batch_items,
            batching.linger if linger is None else linger,
            batching.max_in_flight if max_in_flight is None else max_in_flight,
        )
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
            max_batch_bytes=self._batching.max_batch_bytes,
            max_batch_items=self._batching.max_batch_items,
            linger=self._batching.linger,
            max_in_flight=self._batching.max_in_flight,
            max_buffered_bytes=max_buffered_bytes,
            max_buffered_messages=max_buffered_messages,
            retry=retry or BackoffOptions(initial_delay=0.1, max_delay=30.0, multiplier=2.0, max_elapsed=None),
            delivery_timeout=delivery_timeout,
        )
        self._on_error = on_error
        self._on_claim = on_claim
        # A producer that has not been entered has a session that refuses everything.
        self._set_session(ProducerSession(self._options, Receipt))
        self._batcher.refuse(RuntimeError(f"enter the producer first: async with IdempotentProducer(...) ({self!r})"))
        self._running = False
        self._stopped = False
        self._task_group: Any = None
        self._scopes: list[anyio.CancelScope] = []  # one per lane
        self._lanes_began: anyio.Event | None = None
        self._lanes_left: anyio.Event | None = None
        self._idle_lanes: list[anyio.Event] = []
        self._waiting: deque[_Place] = deque()
        self._settle_waiters: list[anyio.Event] = []
        self._yielded_at = 0
        self._requests = 0
        self._closing: Receipt | None = None
        self._closed: CloseResult | None = None
        self._flushed_duplicates = 0
        self._pid = os.getpid()

    def _set_session(self, session: ProducerSession) -> None:
        self._session = session
        self._batcher = session.batcher
        self._add = session.batcher.add

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
            requests=self._requests,
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
            await self._stop()
            await task_group.__aexit__(None, None, None)
            raise
        self._task_group = task_group
        return self

    async def start(self, task_group: Any) -> None:
        """Start in the caller's task group or nursery, instead of `async with`; end with `aclose`.

        If the group is cancelled first, the producer ends as by `abort`.

        Args:
            task_group: Anything with `start_soon`: an anyio task group, a trio nursery.

        Raises:
            RuntimeError: it has been started before.
            DurableStreamError: the content type is not known and cannot be learnt.
        """
        await self._start(task_group, shield=False)

    async def _start(self, task_group: Any, *, shield: bool) -> None:
        if self._running or self._stopped:
            raise RuntimeError(f"{self!r} can be started once")
        content_type = self._content_type or await self._stream._known_content_type()
        self._options = replace(self._options, content_type=content_type)
        self._set_session(ProducerSession(self._options, Receipt))
        self._pid = os.getpid()
        self._running = True
        self._lanes_began, self._lanes_left = anyio.Event(), anyio.Event()
        _alive.add(self)
        for _ in range(self._options.max_in_flight):
            task_group.start_soon(self._lane, shield)
        await self._lanes_began.wait()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc is None:
                await self.detach()
            else:
                await self._abandon()
        finally:
            task_group, self._task_group = self._task_group, None
            if task_group is not None:
                task_group.cancel_scope.cancel()
                # Not with the body's exception: it goes on bare, not wrapped in an ExceptionGroup.
                await task_group.__aexit__(None, None, None)

    async def aclose(self) -> None:
        """The same as `detach`."""
        await self.detach()

    async def _abandon(self) -> None:
        """Give requests under way a moment, and drop the rest."""
        if self._session.state is State.OPEN:
            self._batcher.refuse(AlreadyClosedError("the producer's block was left by an exception"))
            self._session.pause()
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(self._exit_grace):
                while self._session.in_flight and not self._stopped:
                    await self._wait_settled()
            await self.abort()

    async def _stop(self) -> None:
        """End the lanes and release what is ours. Idempotent."""
        lanes_left = self._lanes_left if self._running else None
        self._running, self._stopped = False, True
        _alive.discard(self)
        for scope in self._scopes:
            scope.cancel()
        if self._batcher.refusal is None:
            self._batcher.refuse(AlreadyClosedError("the producer was closed", url=self._stream.url))
        self._tell_all()
        with anyio.CancelScope(shield=True):
            if lanes_left is not None:
                await lanes_left.wait()
            if self._owns_stream:
                await self._stream.aclose()

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
            self._wake_lane()
        return receipt

    async def append(self, body: bytes | str) -> Receipt:
        """Queue one message, waiting for room while the buffer is full. Callers that wait are served in order.

        It suspends when the buffer is full, and once for each batch that fills up, so that a loop of appends starves
        no other task. A cancelled call has not queued its message. Errors as `append_nowait`, but for
        `BufferFullError`.
        """
        if self._yielded_at != self._batcher.last_number:
            self._yielded_at = self._batcher.last_number
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
        iterator = iter(bodies)
        receipt: Receipt | None = None
        while True:
            await anyio.lowlevel.checkpoint()
            before = self._batcher.buffered_messages
            try:
                body = self._batcher.add_many(iterator)
            finally:
                if self._batcher.needs_poll:
                    self._wake_lane()
            if self._batcher.buffered_messages > before:
                receipt = self._batcher.last_promise
            if body is EXHAUSTED:
                return receipt
            if body is not None:
                receipt = await self._append_when_room(body)

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
            self._wake_lane()
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
        place = _Place(len(body))
        self._waiting.append(place)
        self._batcher.reserve(True)
        self._session.flush()  # Room comes from sending: lingering would only delay it.
        self._wake_lane()
        try:
            while self._batcher.refusal is None and not (
                self._waiting[0] is place and self._batcher.has_room(place.size)
            ):
                place.event = anyio.Event()
                await place.event.wait()
            self._batcher.reserve(False)
            return self.append_nowait(body)
        finally:
            self._waiting.remove(place)
            self._batcher.reserve(bool(self._waiting))
            self._tell_room()

    def _tell_room(self) -> None:
        """Wake the first caller in line if there is room for it, or all if nothing is accepted any more."""
        if self._batcher.refusal is not None:
            for place in self._waiting:
                place.event.set()
        elif self._waiting and self._batcher.has_room(self._waiting[0].size):
            self._waiting[0].event.set()

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
        self._raise_failure()
        duplicates = self._session.duplicates - self._flushed_duplicates
        self._flushed_duplicates = self._session.duplicates
        return FlushResult(self._session.last_offset, duplicates)

    async def _settle(self) -> None:
        """Send what was accepted without lingering, and wait until it is stored or the producer has failed."""
        watermark = self._session.flush()
        self._wake_lane()
        await anyio.lowlevel.checkpoint()
        while self._session.settled < watermark and self._session.failure is None and not self._stopped:
            await self._wait_settled()

    async def close_stream(self, final_message: bytes | str | None = None) -> CloseResult:
        """Send what was accepted, then close the stream for good, with a last message if one is given.

        Idempotent: a second call returns the same result, and a concurrent one waits with the first. After a failed
        call nothing can be appended any more, but closing can be tried again.

        Raises:
            StreamClosedError: another has closed the stream.
            DurableStreamError: as `flush`, in which case the stream was not closed by this call; or closing failed.
        """
        if self._closed is not None:
            await anyio.lowlevel.checkpoint()
            return self._closed
        self._check_running()
        if self._closing is None:
            self._raise_failure()
            final = None
            if final_message is not None:
                final = validate.body(final_message, name="final_message")
                if self._batcher.json:
                    json_mode.check_item(final)
                elif not final:
                    raise InvalidArgumentError("final_message must not be empty; leave it out to close without one")
            if self._session.state not in (State.OPEN, State.CLOSING):
                raise AlreadyClosedError(f"the producer is {self._session.state.value}", url=self._stream.url)
            self._closing = Receipt()
            self._session.close(final, self._closing)
            self._tell_room()
            self._wake_lane()
        await self._closing.wait()
        result: CloseResult | None = self._closed
        assert result is not None
        return result

    async def detach(self) -> None:
        """Accept nothing more, send what was accepted, and end. The stream stays open. A second call does nothing.

        Raises:
            DurableStreamError: the error with which the producer failed, if messages were not stored for it.
        """
        if not self._running:
            await self._stop()
            return
        self._session.detach()
        self._tell_room()
        try:
            await self._settle()
        finally:
            failure, pending = self._session.failure, self.pending_count
            # Cancelled: what is left is dropped, and its receipts say so.
            await self._digest(self._session.abort() if failure is None and pending else [])
            await self._stop()
        if failure is not None and pending:
            raise copy.copy(failure) from failure.__cause__

    async def restart(self, *, resend: bool = False) -> None:
        """Begin a new epoch with sequence number 0: after a flush, or after a failure.

        Args:
            resend: After a failure: send again what was not acknowledged. What had been stored all the same is then
                stored twice. False drops it; `unacknowledged` still has it before the call.

        Raises:
            AlreadyClosedError: the producer has closed the stream, was detached or aborted.
            DurableStreamError: flushing failed.
        """
        self._check_running()
        if self._session.failure is None:
            if self._session.state is not State.OPEN:
                raise AlreadyClosedError(f"the producer is {self._session.state.value}", url=self._stream.url)
            self._session.pause()
            try:
                await self._settle()
                self._raise_failure()
            except BaseException:
                self._session.resume()
                raise
        while self._session.in_flight and not self._stopped:
            await self._wait_settled()
        self._check_running()
        self._session.restart(resend=resend)
        self._closing = None
        self._tell_room()
        self._wake_lane()

    async def abort(self) -> None:
        """Drop what is queued and end. Requests under way are cut off and may have been stored.

        The receipts of what was not acknowledged raise `AlreadyClosedError`, and `on_error` is told.
        """
        if not self._stopped:
            await self._digest(self._session.abort())
        await self._stop()

    def _check_running(self) -> None:
        if not self._running:
            if self._session.failure is not None:
                self._raise_failure()
            if self._stopped:
                raise AlreadyClosedError("the producer was closed", url=self._stream.url)
            raise RuntimeError(f"enter the producer first: async with IdempotentProducer(...) ({self!r})")
        if self._pid != os.getpid():
            raise RuntimeError(_FORKED)

    def _raise_failure(self) -> None:
        failure = self._session.failure
        if failure is not None:
            raise copy.copy(failure) from failure.__cause__
        if self._session.state is State.ABORTED:
            raise AlreadyClosedError("the producer was aborted", url=self._stream.url)

    async def _wait_settled(self) -> None:
        """Wait until a request has come back, or the producer has been stopped."""
        event = anyio.Event()
        self._settle_waiters.append(event)
        await event.wait()

    def _tell_all(self) -> None:
        self._tell_room()
        waiters, self._settle_waiters = self._settle_waiters, []
        for event in waiters:
            event.set()

    # -- Lanes ---------------------------------------------------------------------------------------------

    async def _lane(self, shield: bool) -> None:
        """Do what the core asks for, until the producer is stopped. Raises nothing but cancellation into the group."""
        assert self._lanes_began is not None
        assert self._lanes_left is not None
        scope = anyio.CancelScope(shield=shield)
        self._scopes.append(scope)
        if len(self._scopes) == self._options.max_in_flight:
            self._lanes_began.set()
        try:
            with scope:
                while True:
                    command = self._session.poll(anyio.current_time())
                    match command:
                        case Send():
                            if self._batcher.needs_poll:
                                self._wake_lane()
                            await self._digest(await self._exchange(command))
                        case Wait(until):
                            await self._rest(until)
                        case Done():
                            await self._rest(None)
        finally:
            self._scopes.remove(scope)
            if self._running:  # The caller's group was cancelled.
                self._running, self._stopped = False, True
                _alive.discard(self)
                self._session.abort()
                self._lanes_began.set()
                self._tell_all()
            if not self._scopes:
                self._lanes_left.set()

    async def _rest(self, until: float | None) -> None:
        event = anyio.Event()
        self._idle_lanes.append(event)
        try:
            with anyio.move_on_at(math.inf if until is None else until):
                await event.wait()
        finally:
            if event in self._idle_lanes:
                self._idle_lanes.remove(event)

    def _wake_lane(self) -> None:
        if self._idle_lanes:
            self._idle_lanes.pop().set()

    async def _exchange(self, send: Send) -> list[Outcome]:
        """Make one request and report."""
        self._requests += 1
        context = self._context
        head: Head | None = None
        body = bytearray()
        try:
            answer = await open_answer(context, send.request)
            head = answer.head
            try:
                while len(body) < MAX_ERROR_BODY and (data := await answer.receive()):
                    body += data
            finally:
                with anyio.CancelScope(shield=True):
                    await answer.aclose()
        except Exception as error:
            if head is None:
                phase = error.phase if isinstance(error, NetworkError) else "connect"
                failure = Failure(error, phase)
                return self._session.on_failure(send, failure, anyio.current_time(), context.rng.random())
            # The status has come: that its body broke off changes nothing.
        return self._session.on_reply(send, head, bytes(body), anyio.current_time(), context.rng.random())

    async def _digest(self, outcomes: list[Outcome]) -> None:
        """Wake those whom outcomes concern, and tell the user."""
        for outcome in outcomes:
            if isinstance(outcome, StreamEnded):
                self._closed = CloseResult(
                    outcome.head.status, dict(outcome.head.headers), final_offset=outcome.ack.offset
                )
            elif isinstance(outcome, CloseFailed):
                self._closing = None
        self._tell_all()
        for outcome in outcomes:
            match outcome:
                case Asked(send, error):
                    await self._digest(await self._recover(send, error))
                case Acked(batch, ack) if ack.duplicate and not batch.ambiguous:
                    logger.warning(
                        "the server had this batch before, though it was sent once: does another writer use the id "
                        "and epoch? url=%s producer=%s epoch=%d seq=%d",
                        *(self._stream.url, self.producer_id, ack.epoch, ack.seq),
                    )
                case Retried(_, attempt, delay, error):
                    level = logging.WARNING if attempt == _WARN_AT else logging.DEBUG
                    logger.log(level, "retrying url=%s delay=%.3f error=%s", self._stream.url, delay, error)
                    await self._notify(self._options.retry.on_failed_attempt, RetryDetails(attempt, delay, error))
                case Claimed(old, new, resent):
                    logger.info("claimed url=%s epoch=%d resent=%d", self._stream.url, new, resent)
                    await self._notify(self._on_claim, old, new, resent)
                case Failed(batch, error):
                    epoch, seq = batch.stamp or (self.epoch, -1)
                    retryable = isinstance(error, DurableStreamError) and error.retryable
                    await self._notify(self._on_error, error, BatchInfo(epoch, seq, len(batch.items), retryable))

    async def _recover(self, send: Send, error: Exception) -> list[Outcome]:
        """Let the handle's `on_error` mend what it can."""
        retry = False
        try:
            retry = await self._context.recover(error)
        except Exception as raised:
            error = raised
        return self._session.on_recover(send, error, retry, anyio.current_time())

    async def _notify(self, callback: Callable[..., object] | None, *facts: object) -> None:
        """Tell the user; what the callback raises is logged and changes nothing."""
        if callback is None:
            return
        try:
            result = callback(*facts)
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("a callback of the producer failed url=%s callback=%r", self._stream.url, callback)

    def __del__(self) -> None:
        if self.__dict__.get("_running") and self.pending_count:
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
