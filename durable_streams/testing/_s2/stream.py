"""One stream: its records, its tail, its conditions, and those who follow it (specification: S2 1, 3.4).

A stream has followers, which `Follower` stands for: each append puts its batch, with the tail behind it, into their
queues and wakes them. One that is too far behind loses its queue and reads the records again from the store, without
tails, as the real server does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from ...s2._values import MAX_U64, AppendInput, SequencedRecord, StreamPosition
from .answers import invalid, mismatch
from .configs import Json, resolved

#: A follower that is more batches behind falls back to reading the store.
MOST_BEHIND = 25
#: What a stream that is deleted tells its followers.
LOST = ("unavailable", "streamer missing in action")


@dataclass(slots=True, eq=False)
class Follower:
    """One reader at the tail.

    Attributes:
        batches: Batches that it has not taken, each with the tail after it.
        lagging: It lost batches and has to read from the store again.
        lost: The stream is gone.
        wake: Set when something came.
    """

    batches: deque[tuple[tuple[SequencedRecord, ...], StreamPosition]] = field(default_factory=deque)
    lagging: bool = False
    lost: bool = False
    wake: anyio.Event = field(default_factory=anyio.Event)

    def tell(self, batch: tuple[SequencedRecord, ...], tail: StreamPosition) -> None:
        """A batch was appended."""
        if len(self.batches) >= MOST_BEHIND:
            self.lagging = True
            self.batches.clear()
        if not self.lagging:
            self.batches.append((batch, tail))
        self.wake.set()


class Stream:
    """One stream.

    Attributes:
        name: Its name.
        created_at: RFC 3339.
        cipher: How its records are encrypted, or None.
        own: What was configured for it alone.
        base: What its basin had for default when it was created.
        deleted: Whether it is being deleted, or gone.
        records: From the first that was not trimmed, in order.
        tail: Its tail.
        fencing_token: Its token; "" is none.
    """

    def __init__(self, name: str, own: Json, base: Json | None, cipher: str | None, created_at: str) -> None:
        self.name = name
        self.own = own
        self.base = base
        self.cipher = cipher
        self.created_at = created_at
        self.deleted_at: str | None = None
        self.records: deque[SequencedRecord] = deque()
        self.tail = StreamPosition(0, 0)
        self.fencing_token = ""
        self._first = 0  # the first number that was not trimmed
        self._keys: dict[int, str] = {}  # number of a record -> key it was encrypted with
        self._followers: set[Follower] = set()

    @property
    def config(self) -> Json:
        """The settings in force."""
        return resolved(self.own, self.base)

    @property
    def info(self) -> Json:
        """StreamInfo."""
        return {
            "name": self.name,
            "created_at": self.created_at,
            "deleted_at": self.deleted_at,
            "cipher": self.cipher,
        }

    def append(self, batch: AppendInput, now: int, key: str | None = None) -> tuple[StreamPosition, StreamPosition]:
        """Store a batch, or refuse it. Returns its start and its end."""
        timestamping = self.config["timestamping"]
        if timestamping["mode"] == "client-require" and any(record.timestamp is None for record in batch.records):
            raise invalid("a record has no timestamp, and this stream requires one")
        if batch.fencing_token is not None and batch.fencing_token != self.fencing_token:
            raise mismatch(fencing_token_mismatch=self.fencing_token)
        if batch.match_seq_num is not None and batch.match_seq_num != self.tail.seq_num:
            raise mismatch(seq_num_mismatch=self.tail.seq_num)
        seq_num, last = self.tail.seq_num, self.tail.timestamp
        stored: list[SequencedRecord] = []
        for record in batch.records:
            given = None if timestamping["mode"] == "arrival" else record.timestamp
            timestamp = now if given is None else given
            if not timestamping["uncapped"]:
                timestamp = min(timestamp, now)
            last = max(timestamp, last)
            stored.append(SequencedRecord(seq_num, last, record.body, record.headers))
            seq_num += 1
        start = StreamPosition(stored[0].seq_num, stored[0].timestamp)
        self.records.extend(stored)
        self.tail = StreamPosition(seq_num, last)
        if key is not None:
            self._keys.update((record.seq_num, key) for record in stored if not record.is_command)
        for each in stored:
            self._obey(each)
        for follower in self._followers:
            follower.tell(tuple(stored), self.tail)
        return start, self.tail

    def _obey(self, record: SequencedRecord) -> None:
        """Act upon a command record; others are passed over."""
        if not record.is_command:
            return
        if record.headers[0][1] == b"fence":
            self.fencing_token = record.body.decode()
        else:
            self._first = max(self._first, min(int.from_bytes(record.body, "big"), record.seq_num + 1))
            while self.records and self.records[0].seq_num < self._first:
                self._keys.pop(self.records.popleft().seq_num, None)

    def slice(self, start: int, most: int) -> Sequence[SequencedRecord]:
        """Up to `most` records from the first whose number is at least `start`."""
        skip = max(0, start - self.records[0].seq_num) if self.records else 0
        return [self.records[at] for at in range(skip, min(skip + most, len(self.records)))]

    def find(self, timestamp: int) -> int:
        """Number of the first record whose timestamp is at least this; the tail's if there is none."""
        return next((record.seq_num for record in self.records if record.timestamp >= timestamp), self.tail.seq_num)

    def readable(self, record: SequencedRecord, key: str | None) -> bool:
        """Whether this key opens this record."""
        return self._keys.get(record.seq_num, key) == key

    def follow(self) -> Follower:
        """Begin to follow. Call `leave` in the end."""
        follower = Follower()
        self._followers.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """Stop following."""
        self._followers.discard(follower)

    def delete(self, now: str) -> None:
        """Mark it as deleted: followers see a last trim, and then an error."""
        self.deleted_at = now
        trim = SequencedRecord(self.tail.seq_num, self.tail.timestamp, MAX_U64.to_bytes(8, "big"), ((b"", b"trim"),))
        tail = StreamPosition(self.tail.seq_num + 1, self.tail.timestamp)
        for follower in self._followers:
            follower.tell((trim,), tail)
            follower.lost = True
        self.records.clear()
        self._keys.clear()
