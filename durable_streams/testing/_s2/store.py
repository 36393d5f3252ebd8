"""Basins, streams and records in memory. Nothing here waits or knows of connections (specification: S2 1, 3.4).

A stream has followers, which `Follower` stands for: each append puts its batch, with the tail behind it, into their
queues and wakes them. One that is too far behind loses its queue and reads the records again from the store, without
tails, as the real server does.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import anyio

from ...s2._values import MAX_U64, AppendInput, SequencedRecord, StreamPosition
from .answers import Refusal, bad, invalid, mismatch, refusal
from .configs import Json, new_basin_config, patch_basin, patch_stream, read_basin_config, read_stream_config, resolved

#: A follower that is more batches behind falls back to reading the store.
MOST_BEHIND = 25
#: What a stream that is deleted tells its followers.
LOST = ("unavailable", "streamer missing in action")

_BASIN_PREFIX = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
_BASIN_NAME = re.compile(r"[a-z0-9][a-z0-9-]{6,46}[a-z0-9]")


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


class Basin:
    """One basin with its streams.

    Attributes:
        name: Its name.
        config: BasinConfig, all fields.
        streams: By name, those being deleted included.
    """

    def __init__(self, name: str, config: Json, created_at: str) -> None:
        self.name = name
        self.config = config
        self.created_at = created_at
        self.deleted_at: str | None = None
        self.streams: dict[str, Stream] = {}
        self.tokens: dict[str, tuple[str, Json]] = {}  # request token -> name and settings of what it created

    @property
    def info(self) -> Json:
        """BasinInfo."""
        return {
            "name": self.name,
            "location": None,
            "created_at": self.created_at,
            "deleted_at": self.deleted_at,
            "state": "deleting" if self.deleted_at else "active",
        }

    def add(self, name: str, own: Json, now: str) -> Stream:
        """Create a stream."""
        stream = Stream(name, own, self.config["default_stream_config"], self.config["stream_cipher"], now)
        self.streams[name] = stream
        return stream


class Store:
    """All basins.

    Args:
        clock: Milliseconds since the epoch.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.basins: dict[str, Basin] = {}
        self._tokens: dict[str, tuple[str, Json]] = {}

    def now(self) -> str:
        """The time as RFC 3339."""
        seconds, rest = divmod(self.clock(), 1000)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03}Z"

    # Basins

    def basin(self, name: str) -> Basin:
        """The basin of that name."""
        basin = self.basins.get(name)
        if basin is None:
            raise refusal(404, "basin_not_found", f"basin `{name}` not found")
        return basin

    def create_basin(self, body: Any, token: str | None) -> tuple[str, Basin]:
        """Create a basin. Returns "created", or "noop" for the same request again."""
        if not isinstance(body, dict) or not isinstance(body.get("basin"), str):
            raise bad("bad_json", "missing field `basin`")
        name = check_basin_name(body["basin"], "bad_json")
        config = read_basin_config(body.get("config") or {})
        there = self.basins.get(name)
        if there is not None:
            if there.deleted_at:
                raise refusal(409, "basin_deletion_pending", f"basin `{name}` is being deleted")
            if token is None or self._tokens.get(token) != (name, config):
                raise refusal(409, "resource_already_exists", f"basin `{name}` already exists")
            return "noop", there
        self.basins[name] = basin = Basin(name, config, self.now())
        if token is not None:
            self._tokens[token] = (name, config)
        return "created", basin

    def ensure_basin(self, name: str, body: Any) -> tuple[str, Basin]:
        """Create or replace a basin's configuration."""
        config = read_basin_config((body or {}).get("config") or {}) if isinstance(body, dict) else new_basin_config()
        basin = self.basins.get(name)
        if basin is None:
            self.basins[name] = basin = Basin(name, config, self.now())
            return "created", basin
        if basin.deleted_at:
            raise refusal(409, "basin_deletion_pending", f"basin `{name}` is being deleted")
        config["stream_cipher"] = basin.config["stream_cipher"]
        if basin.config == config:
            return "noop", basin
        basin.config = config
        return "updated", basin

    def patch_basin(self, name: str, body: Any) -> Basin:
        """Reconfigure a basin."""
        basin = self.basin(name)
        if basin.deleted_at:
            raise refusal(409, "basin_deletion_pending", f"basin `{name}` is being deleted")
        basin.config = patch_basin(basin.config, body)
        return basin

    def delete_basin(self, name: str) -> None:
        """Mark a basin as deleted; `sweep` removes it with its streams."""
        basin = self.basin(name)
        basin.deleted_at = basin.deleted_at or self.now()

    def sweep(self) -> None:
        """Remove what is marked as deleted."""
        for name, basin in list(self.basins.items()):
            if basin.deleted_at:
                for stream in basin.streams.values():
                    if not stream.deleted_at:
                        stream.delete(self.now())
                del self.basins[name]
                self._tokens = {key: value for key, value in self._tokens.items() if value[0] != name}
                continue
            for stream in [stream for stream in basin.streams.values() if stream.deleted_at]:
                del basin.streams[stream.name]
                basin.tokens = {key: value for key, value in basin.tokens.items() if value[0] != stream.name}

    # Streams

    def stream(self, basin_name: str, name: str, *, unknown_basin: bool = False) -> Stream:
        """The stream of that name. `unknown_basin`: an unknown basin is told as such, and not as an unknown stream."""
        basin = self.basin(basin_name) if unknown_basin else self.basins.get(basin_name)
        stream = basin.streams.get(name) if basin is not None else None
        if stream is None:
            raise refusal(404, "stream_not_found", f"stream `{name}` not found in basin `{basin_name}`")
        if stream.deleted_at:
            raise _pending(stream)
        return stream

    def open_stream(self, basin_name: str, name: str, why: str, config: Json | None) -> Stream:
        """The stream of that name, created if the basin allows it. `why`: "append" or "read"."""
        basin = self.basin(basin_name)
        if name not in basin.streams and basin.config[f"create_stream_on_{why}"] and not basin.deleted_at:
            return basin.add(name, config or {}, self.now())
        return self.stream(basin_name, name)

    def create_stream(self, basin_name: str, body: Any, token: str | None) -> tuple[str, Stream]:
        """Create a stream. Returns "created", or "noop" for the same request again."""
        if not isinstance(body, dict) or not isinstance(body.get("stream"), str):
            raise bad("bad_json", "missing field `stream`")
        name = check_stream_name(body["stream"], "bad_json")
        config = read_stream_config(body.get("config") or {})
        basin = self._open_basin(basin_name)
        there = basin.streams.get(name)
        if there is not None:
            if there.deleted_at:
                raise _pending(there)
            if token is None or basin.tokens.get(token) != (name, config):
                raise refusal(409, "resource_already_exists", f"stream `{name}` already exists")
            return "noop", there
        if token is not None:
            basin.tokens[token] = (name, config)
        return "created", basin.add(name, config, self.now())

    def ensure_stream(self, basin_name: str, name: str, body: Any) -> tuple[str, Stream]:
        """Create a stream or replace its configuration."""
        config = read_stream_config(body or {})
        basin = self._open_basin(basin_name)
        stream = basin.streams.get(name)
        if stream is None:
            return "created", basin.add(name, config, self.now())
        if stream.deleted_at:
            raise _pending(stream)
        before = stream.config
        stream.own, stream.base = config, basin.config["default_stream_config"]
        return ("noop" if stream.config == before else "updated"), stream

    def patch_stream(self, basin_name: str, name: str, body: Any) -> Stream:
        """Reconfigure a stream."""
        stream = self.stream(basin_name, name, unknown_basin=True)
        stream.own = patch_stream(stream.own, body)
        return stream

    def delete_stream(self, basin_name: str, name: str) -> None:
        """Mark a stream as deleted; `sweep` removes it."""
        self.stream(basin_name, name).delete(self.now())

    def _open_basin(self, name: str) -> Basin:
        basin = self.basin(name)
        if basin.deleted_at:
            raise refusal(409, "basin_deletion_pending", f"basin `{name}` is being deleted")
        return basin


def _pending(stream: Stream) -> Refusal:
    return refusal(409, "stream_deletion_pending", f"stream `{stream.name}` is being deleted")


def check_basin_name(name: str, code: str) -> str:
    """A basin's name; `code` tells the place it stood in."""
    if not _BASIN_NAME.fullmatch(name):
        raise bad(code, "basin name must be 8 to 48 of lower-case letters, digits and hyphens")
    return name


def check_basin_prefix(text: str) -> str:
    """A prefix of basins' names, or one to start after; "" is none."""
    if text and not _BASIN_PREFIX.fullmatch(text):
        raise bad("bad_query", "basin prefix must be at most 48 of lower-case letters, digits and hyphens")
    return text


def check_prefix(text: str) -> str:
    """A prefix of streams' names, or one to start after."""
    if len(text.encode()) > 512 or "\0" in text:
        raise bad("bad_query", "stream prefix must be at most 512 bytes, without NUL")
    return text


def check_stream_name(name: str, code: str) -> str:
    """A stream's name; `code` tells the place it stood in."""
    if not 1 <= len(name.encode()) <= 512 or name in (".", "..") or "\0" in name:
        raise bad(code, "stream name must be 1 to 512 bytes, and neither `.` nor `..`")
    return name
