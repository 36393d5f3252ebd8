"""Plain appends of one handle: one request at a time, in the order of the calls, gathered while one is under way.

Theory of operation
-------------------

Every append of a handle waits in one queue. Where the handle owns tasks (inside `async with`, or after `start`), a
worker takes from the queue's head what fits into one request - same content type, same user headers, all with or all
without `seq`, within the caps - sends it and wakes the callers. A caller that is cancelled takes its own entry out if
it is still queued; once its entry is on the wire it completes in the background, and nobody else notices.

Without a worker each caller sends its own entry, in its own task, when its turn comes: a FIFO lock is the queue.

Operations that must not overtake appends (closing the stream, streamed bodies) take a *turn*: an entry that gives its
caller the wire until it is done.

A failed request fails the callers of its batch, and the queue goes on (client specification, 11.3).
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel

from .._core import wire
from ..errors import AlreadyClosedError, DurableStreamError
from .context import HeaderValue, ParamValue
from .results import AppendResult


@dataclass(frozen=True, slots=True)
class AppendBatching:
    """How appends made while one is under way are gathered; see `DurableStream`.

    Attributes:
        max_batch_bytes: Largest body of a request, framing included, in bytes. A single larger message goes alone.
        max_batch_items: Most messages in one request, or None.
    """

    max_batch_bytes: int = 1 << 20
    max_batch_items: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """What all messages of one request have in common."""

    content_type: str
    headers: Mapping[str, HeaderValue] | None
    params: Mapping[str, ParamValue] | None
    has_seq: bool


class Entry:
    """One message in the queue, or a turn (`route` is None)."""

    __slots__ = ("done", "error", "on_wire", "payload", "result", "route", "seq")

    def __init__(self, route: Route | None, payload: bytes = b"", seq: str | None = None) -> None:
        self.route = route
        self.payload = payload
        self.seq = seq
        self.on_wire = False
        self.done = anyio.Event()
        self.result: AppendResult | None = None
        self.error: Exception | None = None


Send = Callable[[Route, list[Entry]], Awaitable[AppendResult]]


class _Worker:
    """The state of a queue's worker task."""

    def __init__(self, *, shield: bool) -> None:
        self.began = anyio.Event()
        self.finished = anyio.Event()
        self.wake = anyio.Event()
        self.scope = anyio.CancelScope(shield=shield)


class AppendQueue:
    """The queue of one handle.

    Args:
        send: Makes one request of the entries and returns the server's answer.
        batching: Caps.
    """

    def __init__(self, send: Send, batching: AppendBatching) -> None:
        self._send = send
        self._batching = batching
        self._entries: deque[Entry] = deque()
        self._lock = anyio.Lock(fast_acquire=True)
        self._closing = False
        self._worker: _Worker | None = None
        self.requests = 0

    @property
    def running(self) -> bool:
        """Whether a worker sends what is queued."""
        return self._worker is not None

    @property
    def waiting(self) -> int:
        """Messages that are queued and not on the wire."""
        return sum(1 for entry in self._entries if entry.route is not None)

    # -- Callers -------------------------------------------------------------------------------------------

    async def append(self, entry: Entry) -> AppendResult:
        """Send one message and return the server's answer.

        Cancelled while it is queued, it is not sent; later, it completes in the background.
        """
        self.check_open()
        if self._worker is None:
            async with self._lock:
                assert entry.route is not None
                self.requests += 1
                return await self._send(entry.route, [entry])
        await self._queued(entry)
        if entry.error is not None:
            await anyio.lowlevel.checkpoint_if_cancelled()  # What ended the worker may have cancelled us as well.
        if isinstance(entry.error, DurableStreamError):
            # Each caller gets an error of its own: tracebacks of several tasks must not mix.
            raise copy.copy(entry.error) from entry.error.__cause__
        if entry.error is not None:
            raise entry.error  # A user's own exception may be of a kind that cannot be copied.
        assert entry.result is not None
        return entry.result

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The wire for oneself, after everything that was accepted before."""
        self.check_open()
        if self._worker is None:
            async with self._lock:
                yield
            return
        entry = Entry(None)
        try:
            await self._queued(entry)
            if entry.error is not None:
                await anyio.lowlevel.checkpoint_if_cancelled()
                raise entry.error
            async with self._lock:
                yield
        finally:
            self._remove(entry)
            self._wake()

    async def _queued(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._wake()
        try:
            await entry.done.wait()
        except BaseException:
            if not entry.on_wire:
                self._remove(entry)
            raise

    def _remove(self, entry: Entry) -> None:
        if entry in self._entries:
            self._entries.remove(entry)

    def _wake(self) -> None:
        if self._worker is not None:
            self._worker.wake.set()

    def check_open(self) -> None:
        """Raise `AlreadyClosedError` after `aclose`."""
        if self._closing:
            raise AlreadyClosedError("the handle was closed; no append is accepted any more")

    # -- Worker --------------------------------------------------------------------------------------------

    async def start(self, task_group: Any, *, shield: bool) -> None:
        """Start the worker; returns when it runs.

        Args:
            task_group: A task group or nursery: anything with `start_soon`.
            shield: Whether only `aclose` ends the worker, so that what is on the wire survives the cancellation of
                the surrounding scope for a moment. Whoever asks for this has to call `aclose`.
        """
        self._worker = worker = _Worker(shield=shield)
        task_group.start_soon(self._run, worker)
        try:
            await worker.began.wait()
        except BaseException:
            self._worker = None
            worker.scope.cancel()
            raise

    async def _run(self, worker: _Worker) -> None:
        """Send what is queued, until `aclose`. Never raises into its task group but for cancellation."""
        worker.began.set()
        try:
            with worker.scope:
                while self._entries or not self._closing:
                    if self._entries:
                        await self._serve(worker)
                    else:
                        worker.wake = anyio.Event()
                        await worker.wake.wait()
        finally:
            self._worker = None
            while self._entries:
                entry = self._entries.popleft()
                entry.error = AlreadyClosedError("the handle was closed before the append was sent")
                entry.done.set()
            worker.finished.set()

    async def aclose(self, *, grace: float | None) -> None:
        """Stop accepting, let the worker finish what was accepted, and stop it.

        Args:
            grace: Seconds that it may take; None lets the requests take as long as the retry policy allows, and
                stops them if the caller is cancelled.
        """
        self._closing = True
        worker = self._worker
        if worker is None:
            return
        worker.wake.set()
        try:
            with anyio.move_on_after(math.inf if grace is None else grace, shield=grace is not None):
                await worker.finished.wait()
        finally:
            if not worker.finished.is_set():
                worker.scope.cancel()
                with anyio.CancelScope(shield=True):
                    await worker.finished.wait()

    async def _serve(self, worker: _Worker) -> None:
        first = self._entries[0]
        if first.route is None:
            await self._give_turn(first, worker)
            return
        batch = self._take(first.route)
        self.requests += 1
        try:
            async with self._lock:
                result = await self._send(first.route, batch)
        except Exception as error:
            for entry in batch:
                entry.error = error
        else:
            for entry in batch:
                entry.result = result
        finally:
            for entry in batch:
                if entry.error is None and entry.result is None:
                    entry.error = AlreadyClosedError(
                        "the handle was closed while the append was under way", maybe_applied=True
                    )
                entry.done.set()

    async def _give_turn(self, entry: Entry, worker: _Worker) -> None:
        """Let the entry's caller have the wire; go on when it has left the queue."""
        entry.on_wire = True
        entry.done.set()
        while entry in self._entries:
            worker.wake = anyio.Event()
            await worker.wake.wait()

    def _take(self, route: Route) -> list[Entry]:
        """Entries from the head of the queue that go together in one request."""
        batch: list[Entry] = []
        comma = 1 if wire.is_json(route.content_type) else 0
        size = comma  # A JSON array has two brackets, and one comma less than items.
        limit = self._batching.max_batch_items
        while self._entries and self._entries[0].route == route and (limit is None or len(batch) < limit):
            size += len(self._entries[0].payload) + comma
            if batch and size > self._batching.max_batch_bytes:
                break
            entry = self._entries.popleft()
            entry.on_wire = True
            batch.append(entry)
        return batch
