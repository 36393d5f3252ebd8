"""Read parameters, and batches out of the store (specification: S2 3.5).

`parse` makes a `Plan` of a query, `Cursor.open` resolves its start against the tail, and `Cursor.batches` yields what a
session sends: stored records, then a heartbeat, then live batches. A unary read takes the first of them.
"""

from __future__ import annotations

import random
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl

import anyio

from ...s2._values import (
    MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS,
    MAX_U64,
    ReadBatch,
    SequencedRecord,
    StreamPosition,
    metered_bytes,
)
from .answers import bad, beyond, invalid, refusal
from .stream import LOST, Follower, Stream

MAX_UNARY_WAIT = 60
_MAX_U32 = (1 << 32) - 1
_KEYS = ("seq_num", "timestamp", "tail_offset", "clamp", "count", "bytes", "until", "wait")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reader asked for; None is "not said".

    Attributes:
        progress: From `Last-Event-ID`: records and bytes that came before.
    """

    seq_num: int | None = None
    timestamp: int | None = None
    tail_offset: int | None = None
    clamp: bool = False
    count: int | None = None
    bytes: int | None = None
    until: int | None = None
    wait: int | None = None
    progress: tuple[int, int] = (0, 0)

    @property
    def follows(self) -> bool:
        """Whether it may wait at the tail. Without limits it may also with `wait` 0, and ends there at once."""
        bounded = self.count is not None or self.bytes is not None or self.until is not None
        return not bounded or bool(self.wait)

    def check(self) -> None:
        """The rules between parameters. They come after what the headers say."""
        if sum(value is not None for value in (self.seq_num, self.timestamp, self.tail_offset)) > 1:
            raise invalid("only one of seq_num, timestamp, and tail_offset can be provided")
        if self.timestamp is not None and self.until is not None and self.timestamp >= self.until:
            raise invalid("start timestamp exceeds or equal to `until`")

    def unary(self) -> Plan:
        """The same as a unary read, which is always bounded."""
        return replace(
            self,
            count=MAX_BATCH_RECORDS if self.count is None else min(self.count, MAX_BATCH_RECORDS),
            bytes=MAX_BATCH_BYTES if self.bytes is None else min(self.bytes, MAX_BATCH_BYTES),
            wait=None if self.wait is None else min(self.wait, MAX_UNARY_WAIT),
        )

    def after(self, event_id: str) -> Plan:
        """The same behind `Last-Event-ID`: it overrides the start and is subtracted from the limits."""
        parts = event_id.split(",")
        if len(parts) != 3:
            raise bad("bad_header", "invalid last-event-id")
        seq_num, count, size = (_unsigned(part, MAX_U64, "last-event-id", "bad_header") for part in parts)
        return replace(
            self,
            seq_num=seq_num + 1,
            timestamp=None,
            tail_offset=None,
            count=None if self.count is None else max(0, self.count - count),
            bytes=None if self.bytes is None else max(0, self.bytes - size),
            progress=(count, size),
        )


def parse(query: str) -> Plan:
    """The plan of a query string. Unknown keys are ignored."""
    given: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in given and key in _KEYS:
            raise bad("bad_query", f"duplicate field `{key}`")
        given[key] = value
    numbers = {
        key: _unsigned(given[key], _MAX_U32 if key == "wait" else MAX_U64, key, "bad_query")
        for key in _KEYS
        if key in given and key != "clamp"
    }
    clamp = given.get("clamp", "false")
    if clamp not in ("true", "false"):
        raise bad("bad_query", "clamp: expected `true` or `false`")
    given_plan: dict[str, Any] = {**numbers, "clamp": clamp == "true"}
    return Plan(**given_plan)


def _unsigned(text: str, most: int, name: str, code: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:25]) > most:
        raise bad(code, f"{name}: invalid number")
    return int(text)


@dataclass(slots=True)
class Cursor:
    """One read as it goes on.

    Attributes:
        stream: What is read.
        key: Key for encrypted records.
        at: Number of the next record.
        count, bytes: What is left of the limits.
        until: Timestamp to stop before.
        follows: Whether to wait at the tail.
        wait: Longest wait for a batch in seconds; None for ever.
        ended: A limit is used up.
        heartbeat: Shortest and longest time between heartbeats, in seconds.
    """

    stream: Stream
    key: str | None
    at: int
    count: int
    bytes: int
    until: int
    follows: bool
    wait: int | None
    heartbeat: tuple[float, float] = (5.0, 15.0)
    chance: random.Random = field(default_factory=random.Random)
    ended: bool = False

    @classmethod
    def open(cls, stream: Stream, plan: Plan, key: str | None) -> Cursor:
        """Resolve the start against the tail, or refuse it."""
        tail = stream.tail
        cursor = cls(
            stream,
            key,
            0,
            MAX_U64 if plan.count is None else plan.count,
            MAX_U64 if plan.bytes is None else plan.bytes,
            MAX_U64 + 1 if plan.until is None else plan.until,
            plan.follows,
            plan.wait,
        )
        if not cursor.count or not cursor.bytes:
            cursor.ended = True
            return cursor
        if plan.timestamp is not None:
            if plan.timestamp > tail.timestamp and not plan.clamp:
                raise beyond(tail)
            cursor.at = stream.find(plan.timestamp)
        elif plan.seq_num is not None:
            if plan.seq_num > tail.seq_num and not plan.clamp:
                raise beyond(tail)
            cursor.at = min(plan.seq_num, tail.seq_num)
        else:
            cursor.at = max(0, tail.seq_num - (plan.tail_offset or 0))
        if cursor.at == tail.seq_num and not cursor.follows:
            raise beyond(tail)
        return cursor

    async def batches(self, seen: StreamPosition | None = None) -> AsyncGenerator[ReadBatch, None]:
        """What a session sends, to its clean end."""
        follower = self.stream.follow()
        try:
            while not self.ended:
                while not self.ended and (batch := self.stored()).records:
                    yield batch
                if self.ended or not self.follows:
                    return
                follower.lagging = False
                follower.batches.clear()
                if self.at < self.stream.tail.seq_num and self.stored_is_behind():
                    continue
                if self.wait == 0:
                    return
                yield ReadBatch((), self.stream.tail)
                async with aclosing(self._live(follower)) as live:
                    async for batch in live:
                        yield batch
                if not follower.lagging:
                    return
        finally:
            self.stream.leave(follower)

    def stored_is_behind(self) -> bool:
        """Whether there are stored records from here on; if not, those up to the tail were trimmed."""
        if self.stream.slice(self.at, 1):
            return True
        self.at = self.stream.tail.seq_num
        return False

    def stored(self) -> ReadBatch:
        """The next batch of the store, without a tail; empty at the tail or where a limit ends the read."""
        found = self._cut(self.stream.slice(self.at, MAX_BATCH_RECORDS))
        return ReadBatch(found)

    def _cut(self, records: Iterable[SequencedRecord]) -> tuple[SequencedRecord, ...]:
        """As many of these records as the limits and one batch allow; counts them."""
        found: list[SequencedRecord] = []
        size = 0
        for record in records:
            record_size = record.metered_bytes
            if len(found) >= self.count or size + record_size > self.bytes or record.timestamp >= self.until:
                self.ended = True
                break
            if size + record_size > MAX_BATCH_BYTES:
                break
            if not self.stream.readable(record, self.key):
                if found:
                    break
                raise refusal(400, "decryption_failed", "record decryption failed")
            found.append(record)
            size += record_size
        if found:
            self.at = found[-1].seq_num + 1
            self.count -= len(found)
            self.bytes -= size
            if not self.count or not self.bytes:
                self.ended = True
        return tuple(found)

    async def _live(self, follower: Follower) -> AsyncGenerator[ReadBatch, None]:
        """Live batches and heartbeats, until the end, or until the follower lags."""
        deadline = None if self.wait is None else anyio.current_time() + self.wait
        beat = self._next_beat()
        while not self.ended:
            if follower.lagging:
                return
            if follower.batches:
                records, tail = follower.batches.popleft()
                batch = ReadBatch(self._cut([each for each in records if each.seq_num >= self.at]), tail)
                if batch.records:
                    yield batch
                    deadline = None if self.wait is None else anyio.current_time() + self.wait
                    beat = self._next_beat()
                continue
            if follower.lost:
                raise refusal(503, *LOST)
            follower.wake = anyio.Event()
            until = beat if deadline is None else min(beat, deadline)
            with anyio.move_on_after(max(0.0, until - anyio.current_time())) as scope:
                await follower.wake.wait()
            if not scope.cancelled_caught:
                continue
            if deadline is not None and anyio.current_time() >= deadline:
                return
            if anyio.current_time() >= beat:
                yield ReadBatch((), self.stream.tail)
                beat = self._next_beat()

    def _next_beat(self) -> float:
        return anyio.current_time() + self.chance.uniform(*self.heartbeat)


async def read_once(cursor: Cursor) -> ReadBatch:
    """The answer to a unary read: what is stored, else the first live batch, else nothing."""
    found: list[SequencedRecord] = []
    while not cursor.ended and (batch := cursor.stored()).records:
        found += batch.records
    if found or cursor.ended or not cursor.follows:
        return ReadBatch(tuple(found))
    async with aclosing(cursor.batches()) as batches:
        async for batch in batches:
            if batch.records:
                return batch
    return ReadBatch()


def total(batch: ReadBatch, progress: tuple[int, int]) -> tuple[int, int]:
    """Records and bytes so far, for the id of an SSE event."""
    return progress[0] + len(batch.records), progress[1] + metered_bytes(batch.records)


def decryption_key(stream: Stream, headers: Mapping[str, str]) -> str | None:
    """The key of a request, if the stream is encrypted (S2 1.7). A plain stream ignores it."""
    if stream.cipher is None:
        return None
    key = headers.get("s2-encryption-key", "").strip()
    if not _is_key(key):
        raise bad("bad_header", "missing or malformed s2-encryption-key")
    return key


def _is_key(text: str) -> bool:
    try:
        return len(a2b_base64(text, strict_mode=True)) == 32
    except (Base64Error, ValueError):
        return False
