"""Gathers messages into batches: framing and caps, nothing else.

`add` is the hot path of the producer: one comparison and one list append per message. Everything that can need a
decision - no open batch, a full one, a full buffer, a closed or failed producer, an unusual argument - is folded into
one number, `_room`: the bytes that may still be added to the open batch without asking anything. Where a decision is
due, `_room` is too small and `_add_slowly` makes it.

Sizes count framing (a JSON message costs one byte more, a JSON batch another one); what is said to the caller about
the buffer is payload alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import BufferFullError, InvalidArgumentError
from . import json_mode, validate
from .fresh import fresh

#: Said by `Batcher.add_many`: the iterator has ended.
EXHAUSTED = object()
#: Most messages that `Batcher.add_run` takes at a time: what it does for nothing if one of them needs a second look.
RUN = 4096


@dataclass(frozen=True, slots=True)
class Ack:
    """The server has stored a batch.

    Attributes:
        offset: Offset after the batch, or None if the server did not send it.
        duplicate: Whether an earlier try of the same batch had stored it.
        epoch: The producer's epoch in which it was stored.
        seq: The batch's sequence number in that epoch.
    """

    offset: str | None
    duplicate: bool
    epoch: int
    seq: int


class Promise(Protocol):
    """What all messages of a batch share: it is told once how the batch ended."""

    def resolve(self, ack: Ack) -> None:
        """The batch was stored."""
        ...

    def reject(self, error: Exception) -> None:
        """The batch will not be sent again."""
        ...


class Batch:
    """Messages that go together in one request.

    Attributes:
        number: Place in the order of all batches, from 1.
        items: The messages, until the batch is acknowledged.
        size: Bytes of the framed body.
        promise: Shared by the messages.
        stamp: (epoch, seq), bound at dispatch.
        opened: When the first poll saw it open.

    Of its delivery, kept by the producer session:

    Attributes:
        in_flight: A request is under way.
        due: When it may be sent again.
        first_sent: When it was dispatched, or the user asked for a fresh start.
        failures: Failed tries in a row.
        spared: One failure of a reused connection has been forgiven.
        ambiguous: A try under the present stamp may have been stored.
        ambiguous_before: One under an older epoch's stamp may have been.
        asked: How often in a row the user was asked about its error.
        asking: The user is being asked.
        waits_for: It met a gap that begins with this number, and waits for ours in it.
        gaps: How often it met a gap that none of ours could fill.
    """

    __slots__ = (
        "ambiguous",
        "ambiguous_before",
        "asked",
        "asking",
        "body",
        "due",
        "failures",
        "first_sent",
        "gaps",
        "in_flight",
        "items",
        "number",
        "opened",
        "promise",
        "size",
        "spared",
        "stamp",
        "waits_for",
    )

    def __init__(self, number: int, size: int, promise: Promise) -> None:
        self.number = number
        self.items: list[bytes] = []
        self.size = size
        self.promise = promise
        self.opened: float | None = None
        self.stamp: tuple[int, int] | None = None
        self.body: bytes | None = None
        self.in_flight = False
        self.due = 0.0
        self.first_sent: float | None = None
        self.failures = 0
        self.spared = False
        self.ambiguous = False
        self.ambiguous_before = False
        self.asked = 0
        self.asking = False
        self.waits_for: int | None = None
        self.gaps = 0

    @property
    def maybe_stored(self) -> bool:
        """Whether it may be on the server although no answer said so."""
        return self.in_flight or self.ambiguous or self.ambiguous_before

    def framed(self, *, json: bool) -> bytes:
        """The request's body; made once, so that every try sends the same bytes."""
        if self.body is None:
            self.body = json_mode.frame(self.items) if json else b"".join(self.items)
        return self.body


class Batcher:
    """Makes batches of messages.

    Args:
        json: Frame bodies as JSON arrays.
        max_batch_bytes: Largest body, framing included. A larger message goes alone.
        max_batch_items: Most messages in a batch, or None.
        max_buffered_bytes: Most payload kept, in flight included.
        max_buffered_messages: Most messages kept, or None.
        make_promise: Makes what the messages of a batch share.
    """

    def __init__(
        self,
        *,
        json: bool,
        max_batch_bytes: int,
        max_batch_items: int | None,
        max_buffered_bytes: int,
        max_buffered_messages: int | None,
        make_promise: Callable[[], Promise],
    ) -> None:
        self.json = json
        self.max_batch_bytes = max_batch_bytes
        self.max_batch_items = max_batch_items
        self.max_buffered_bytes = max_buffered_bytes
        self.max_buffered_messages = max_buffered_messages
        self.sealed: deque[Batch] = deque()
        self.last_number = 0
        self.open: Batch | None = None
        self.refusal: Exception | None = None
        self.needs_poll = False
        self._make_promise = make_promise
        # JSON: one comma or bracket per message and one more bracket per batch.
        self._item_overhead = 1 if json else 0
        self._batch_overhead = 1 if json else 0
        #: A first byte above this needs no second look: in JSON mode white space may make a blank message.
        self._floor = 32 if json else -1
        self._settled_bytes = 0  # Messages with their framing, of batches that are sealed and not released.
        self._settled_items = 0
        self._append: Callable[[bytes], None] = list[bytes]().append
        self._promise: Any = None
        self._granted = 0
        self._room = -1
        self._reserved = False

    # -- Hot path ------------------------------------------------------------------------------------------

    def add(self, body: bytes) -> Any:
        """Put one message into the open batch and return its promise.

        Raises:
            BufferFullError: there is no room.
            InvalidArgumentError: the message is empty, or blank in JSON mode.
            Exception: `refusal`, if the producer accepts nothing any more.
        """
        if (
            type(body) is bytes
            and (size := len(body) + self._item_overhead) <= self._room
            and body
            and body[0] > self._floor
        ):
            self._room -= size
            self._append(body)
            return self._promise
        return self._add_slowly(body)

    def add_many(self, bodies: Iterator[Any]) -> Any:
        """Put messages into the open batch, up to the end of the iterator or of the batch, or until there is no room.

        Returns:
            `EXHAUSTED`; None if there may be more (call again); or a message that comes next and is not in: the batch
            is full, and sealed now, or the buffer is.

        Raises:
            As `add`; the messages before the offending one are in.
        """
        overhead, floor = self._item_overhead, self._floor
        for body in bodies:
            # The same as `add`, without the call. The iterator may use the producer too: nothing is kept in locals.
            if type(body) is bytes and (size := len(body) + overhead) <= self._room and body and body[0] > floor:
                self._room -= size
                self._append(body)
                continue
            body = validate.body(body, name="a message")
            if self.open is not None and self.begins(body):
                self.seal()
                return body
            try:
                self._add_slowly(body)
            except BufferFullError:
                return body
            if self.open is None:
                return None
        return EXHAUSTED

    def add_run(self, bodies: Sequence[Any], start: int) -> int:
        """Put messages of a list, from `start` on, into the open batch at once.

        The same as `add_many` for messages that fit and need no second look, at half its cost: each check is one pass
        in C over the run.

        Returns:
            How many are in; or, negative, how many have to go through `add_many` before the next run.
        """
        room, overhead = self._room, self._item_overhead
        first = bodies[start]
        if type(first) is not bytes or not first or (size := len(first) + overhead) > room:
            return -1
        count = min(RUN, room // size)
        while True:
            run = bodies[start : start + count]
            if set(map(type, run)) != {bytes} or not all(run):
                return -len(run)
            size = sum(map(len, run)) + overhead * len(run)
            if size <= room:
                break
            count = max(1, min(len(run) - 1, len(run) * room // size))  # The first fits: it does not get to 0.
        if self._floor >= 0 and min(run)[0] <= self._floor:
            return -len(run)
        assert self.open is not None
        self._room -= size
        self.open.items += run
        return len(run)

    def begins(self, body: bytes | str) -> bool:
        """Whether this message begins a batch: none is open, or it does not fit into the one that is."""
        batch = self.open
        size = len(body) + self._item_overhead
        if batch is None or size <= self._room:
            return batch is None
        self._settle_room()
        return batch.size + size > self.max_batch_bytes

    def _add_slowly(self, body: Any) -> Any:
        body = validate.body(body)
        if self.refusal is not None:
            raise fresh(self.refusal)
        if self.json:
            json_mode.check_item(body)
        elif not body:
            raise InvalidArgumentError("body must not be empty")
        size = len(body) + self._item_overhead
        if size <= self._room:  # Nothing but its type, or a white space at its start, needed a second look.
            self._room -= size
            self._append(body)
            return self._promise
        if self._reserved or not self.has_room(len(body)):
            raise BufferFullError(
                f"the buffer is full: {self.buffered_bytes} of {self.max_buffered_bytes} bytes and "
                f"{self.buffered_messages} messages wait for the server"
            )
        return self._put(body, size)

    def _put(self, body: bytes, size: int) -> Any:
        """Put a message into the open batch or, if it does not fit, into a new one."""
        self._settle_room()
        batch = self.open
        if batch is not None and batch.size + size > self.max_batch_bytes:
            self.seal()
            batch = None
        if batch is None:
            self.last_number += 1
            batch = self.open = Batch(self.last_number, self._batch_overhead, self._make_promise())
            self._append, self._promise = batch.items.append, batch.promise
            self.needs_poll = True
        batch.items.append(body)
        batch.size += size
        self._grant(batch)
        # Full: no message is small enough to come in.
        full = batch.size + self._item_overhead >= self.max_batch_bytes
        if full or (self.max_batch_items is not None and len(batch.items) >= self.max_batch_items):
            self.seal()
        return batch.promise

    @property
    def last_promise(self) -> Any:
        """The promise of the message that was added last; None if there was none."""
        return self._promise

    # -- Room ----------------------------------------------------------------------------------------------

    def _settle_room(self) -> None:
        """Write what the hot path took off `_room` to the open batch's size."""
        if self.open is not None:
            self.open.size += self._granted - self._room
            self._granted = self._room

    def _grant(self, batch: Batch) -> None:
        """Let the hot path fill the batch without asking, as far as no limit can be met."""
        if (
            self.max_batch_items is not None
            or self.max_buffered_messages is not None
            or self.refusal is not None
            or self._reserved
        ):
            self._granted = self._room = -1
            return
        free = self.max_buffered_bytes - self._settled_bytes - batch.size
        self._granted = self._room = max(-1, min(self.max_batch_bytes - batch.size, free))

    def has_room(self, size: int) -> bool:
        """Whether a message of this size fits. A message larger than the whole buffer fits into an empty one."""
        buffered = self.buffered_bytes
        if buffered and buffered + size > self.max_buffered_bytes:
            return False
        limit = self.max_buffered_messages
        return limit is None or self.buffered_messages < limit

    def reserve(self, reserved: bool) -> None:
        """While reserved, `add` refuses: those who wait for room come first."""
        self._settle_room()
        self._reserved = reserved
        if self.open is not None:
            self._grant(self.open)

    def refuse(self, error: Exception | None) -> None:
        """Accept nothing any more, raising this error; or accept again."""
        self._settle_room()
        self.refusal = error
        if self.open is not None:
            self._grant(self.open)

    @property
    def buffered_bytes(self) -> int:
        """Payload that is kept: of the batches that are sealed and not released, and of the open one."""
        self._settle_room()
        framed = self._settled_bytes + (self.open.size - self._batch_overhead if self.open else 0)
        return framed - self._item_overhead * self.buffered_messages

    @property
    def buffered_messages(self) -> int:
        """Messages that are kept."""
        return self._settled_items + (len(self.open.items) if self.open else 0)

    def requeue(self, bodies: Iterable[bytes]) -> int:
        """Put messages that were accepted before into the queue again, whatever the buffer holds; returns how many."""
        count = 0
        for body in bodies:
            self._put(body, len(body) + self._item_overhead)
            count += 1
        return count

    # -- Batches -------------------------------------------------------------------------------------------

    def seal(self) -> None:
        """Close the open batch, if there is one, and queue it."""
        batch = self.open
        if batch is None:
            return
        self._settle_room()
        self._granted = self._room = -1
        self._settled_bytes += batch.size - self._batch_overhead
        self._settled_items += len(batch.items)
        self.open = None
        self.sealed.append(batch)
        self.needs_poll = True

    def release(self, batch: Batch) -> None:
        """A sealed batch is over: its bytes make room."""
        self._settle_room()
        self._settled_bytes -= batch.size - self._batch_overhead
        self._settled_items -= len(batch.items)
        if self.open is not None:
            self._grant(self.open)
