"""The rules between the rows of a store.

Of each row: its values are of the right kind, and its checksum fits. And beyond that:

=====================  ================================================================================================
table                  what has to hold
=====================  ================================================================================================
`streams`              the path is a normalised one; state, closure and expiry are possible; a fork's source is there,
                       is one generation older, and reaches to where the fork begins
`blocks`               the stream exists; its blocks follow each other without gap or overlap from where its own data
                       begins; appends and messages end in order, the last append at the end of the last block; in
                       JSON mode a comma stands behind each message
`producers`            the stream exists; epoch and sequence number are possible; the tail that the producer left is an
                       end of an append, and not beyond the stream's; who closed the stream did so with its last number
`fork_edges`           exactly one for each fork whose source must stay, and a soft-deleted stream has one at least
`subscriptions`        the record can be read and is that of its path; links belong to a subscription
`meta`, `secrets`      what must be there is, and makes sense
=====================  ================================================================================================

Blocks are read in the order in which they were written, once: a stream's come in the order of their offsets.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from ..._core.wire import is_json, normalize_path
from ..creation import MAX_DEPTH, StreamConfig
from ..offsets import Offset, format_offset
from ..stores.sqlite_access import expiry
from ..stores.sqlite_blocks import BLOCK_BYTES, Cuts, unpack
from ..stores.sqlite_checksums import (
    SMALL,
    block_checksum,
    fixed_checksum,
    producer_checksum,
    stream_checksum,
    values_checksum,
)
from ..stores.sqlite_schema import LIVE, REMOVED, SOFT_DELETED
from ..subscriptions.model import BEFORE
from ..subscriptions.records import decode_record
from ..timestamps import Instant

Add = Callable[[str, str], None]

_LARGEST = 2**53 - 1
_TEXT, _INT, _REAL, _BLOB = (str,), (int,), (float,), (bytes,)
_NONE = type(None)
_STREAM: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "state", "base", "depth", "closed", "checksum"), _INT),
    **dict.fromkeys(("path", "incarnation", "effective_type"), _TEXT),
    **dict.fromkeys(("content_type", "expires_at", "fork_path", "effective_expires_at", "closed_by"), (str, _NONE)),
    **dict.fromkeys(
        ("ttl", "fork_offset", "fork_sub_offset", "effective_ttl", "source", "closed_epoch", "closed_seq"), (int, _NONE)
    ),
    **dict.fromkeys(("created", "last_access"), _REAL),
    "last_seq": (bytes, _NONE),
    "expires": (float, _NONE),
}
_PRODUCER: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("stream", "epoch", "seq", "checksum"), _INT),
    "producer": _TEXT,
    "tail": (int, _NONE),
    "updated": _REAL,
}
_BLOCK: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("stream", "end_offset"), _INT),
    "written": _REAL,
    "appends": (bytes, _NONE),
    "messages": (bytes, _NONE),
    "data": _BLOB,
    "checksum": (int, _NONE),
}
_COVERING = """
SELECT end_offset, length(data), appends FROM blocks WHERE stream = ? AND end_offset >= ? ORDER BY end_offset LIMIT 1
"""


@dataclass(slots=True)
class Counts:
    """How much was read."""

    streams: int = 0
    blocks: int = 0
    data_bytes: int = 0
    blocks_without_checksum: int = 0
    producers: int = 0
    subscriptions: int = 0


@dataclass(slots=True)
class _Stream:
    """What the rules need of a stream; `end` is where its data ends, as far as it was read."""

    path: str
    state: int
    json: bool
    base: Offset
    end: Offset
    source: int | None
    depth: int
    stamp: tuple[str, int, int] | None
    begun: bool = False
    whole: bool = True  # the last block read ends an append
    edges: int = field(default=0)


class RowCheck:
    """Checks the rows of a store.

    Args:
        connection: Inside a transaction, with rows as `sqlite3.Row`.
        add: Called with each finding: where, and what.
        counts: Counts what is read.
    """

    def __init__(self, connection: sqlite3.Connection, add: Add, counts: Counts) -> None:
        self._connection = connection
        self._add = add
        self._counts = counts
        self._streams: dict[int, _Stream] = {}
        self._counted: object = None  # how many streams there should be
        self._unchecked = 0  # blocks up to this row may be without a checksum

    def parts(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """The checks with their names, in the order in which they have to run."""
        yield "meta", self._check_meta
        yield "streams", self._check_streams
        yield "data", self._check_blocks
        yield "streams", self._check_ends
        yield "producers", self._check_producers
        yield "forks", self._check_edges
        yield "subscriptions", self._check_subscriptions
        yield "secrets", self._check_secrets

    def _rows(self, query: str) -> sqlite3.Cursor:
        return self._connection.execute(query)

    def _well_typed(self, where: str, row: sqlite3.Row, columns: Mapping[str, tuple[type, ...]]) -> bool:
        wrong = [name for name, types in columns.items() if not isinstance(row[name], types)]
        if wrong:
            self._add(where, f"{', '.join(wrong)}: no value that can stand there")
        return not wrong

    def _small(self, table: str) -> Iterator[sqlite3.Row]:
        """The rows of a small table, with a look at their checksums."""
        for row in self._rows(f"SELECT * FROM {table}"):  # noqa: S608  # a constant
            columns = SMALL[table]
            if row["checksum"] != values_checksum(*(row[column] for column in columns)):
                self._add(f"{table}, {row[columns[0]]!s}", "its record was changed: the checksum does not fit")
            yield row

    # --- meta

    def _check_meta(self) -> None:
        known = {row["key"]: row["value"] for row in self._small("meta")}
        if known.get("closed_cleanly") not in (0, 1, None):
            self._add("meta", f"closed_cleanly is {known['closed_cleanly']!r}")
        floor = known.get("access_floor", 0.0)
        if not isinstance(floor, int | float) or math.isnan(floor):
            self._add("meta", f"access_floor is {floor!r}")
        self._counted = known.get("streams")
        unchecked = known.get("blocks_without_checksum", 0)
        if isinstance(unchecked, int) and unchecked >= 0:
            self._unchecked = unchecked
        else:
            self._add("meta", f"blocks_without_checksum is {unchecked!r}")

    # --- streams

    def _check_streams(self) -> None:
        for row in self._rows("SELECT * FROM streams ORDER BY id"):
            self._counts.streams += 1
            where = f"stream {row['path']!s}"
            if not self._well_typed(where, row, _STREAM):
                continue
            values = dict(zip(row.keys(), row, strict=True))
            if row["checksum"] != stream_checksum(values, fixed_checksum(values)):
                self._add(where, "its record was changed: the checksum does not fit")
            for problem in _stream_problems(row):
                self._add(where, problem)
            closed_by = row["closed_by"]
            self._streams[row["id"]] = _Stream(
                row["path"],
                row["state"],
                is_json(row["effective_type"]),
                row["base"],
                row["base"],
                row["source"],
                row["depth"],
                None if closed_by is None else (closed_by, row["closed_epoch"], row["closed_seq"]),
            )

    def _check_ends(self) -> None:
        """What shows of streams when all data was read."""
        alive = sum(stream.state != REMOVED for stream in self._streams.values())
        if self._counted not in (None, alive):
            self._add("meta", f"it counts {self._counted!r} streams, there are {alive}")
        for number, stream in self._streams.items():
            where = f"stream {stream.path}"
            if stream.state == REMOVED:
                continue
            if not stream.whole:
                self._add(where, f"its data ends at {format_offset(stream.end)}, in the middle of an append")
            if stream.source is None:
                continue
            source = self._streams.get(stream.source)
            if source is None or source.state == REMOVED:
                self._add(where, "the stream that it is a fork of is missing")
            elif stream.source >= number or stream.depth != source.depth + 1:
                self._add(where, f"it cannot be a fork of {source.path}: depth {stream.depth} after {source.depth}")
            elif stream.base > source.end:
                self._add(
                    where,
                    f"begins at {format_offset(stream.base)} of {source.path}, whose data ends at "
                    f"{format_offset(source.end)}",
                )

    # --- data

    def _check_blocks(self) -> None:
        last = 0
        cursor = self._rows("SELECT rowid, * FROM blocks ORDER BY rowid")
        while True:
            try:
                row = cursor.fetchone()
            except sqlite3.DatabaseError as error:
                self._add("data", f"cannot be read behind row {last}: {error}")
                return
            if row is None:
                return
            last = row["rowid"]
            self._counts.blocks += 1
            if self._well_typed(f"data, row {last}", row, _BLOCK):
                self._check_block(row)

    def _check_block(self, row: sqlite3.Row) -> None:
        number, end, data = row["stream"], row["end_offset"], row["data"]
        start = end - len(data)
        self._counts.data_bytes += len(data)
        stream = self._streams.get(number)
        name = f"stream {stream.path}" if stream is not None else f"row {row['rowid']} of no known stream"
        where = f"data of {name} from {start} to {end}"
        if row["checksum"] is None and row["rowid"] <= self._unchecked:
            self._counts.blocks_without_checksum += 1
        elif row["checksum"] != block_checksum(number, end, row["written"], row["appends"], row["messages"], data):
            self._add(where, "was changed: the checksum does not fit")
        if stream is None:
            self._add(where, "belongs to no stream")
            return
        if not 0 < len(data) <= BLOCK_BYTES:
            self._add(where, f"has {len(data)} bytes in one row")
        if start != stream.end and (stream.begun or stream.state != REMOVED):  # what is removed goes from its start on
            problem = f"{start - stream.end} bytes before it are missing" if start > stream.end else "overlaps"
            self._add(where, f"{problem}: the data before it ends at {stream.end}")
        stream.begun, stream.end = True, end
        try:
            appends, messages = unpack(row["appends"]), unpack(row["messages"])
        except ValueError:
            self._add(where, "the places of its appends and messages cannot be read")
            return
        cuts = Cuts(start, end, appends, messages)
        for problem in _block_problems(cuts, data, json=stream.json):
            self._add(where, problem)
        stream.whole = cuts.last_append_end(end) == end

    # --- producers

    def _check_producers(self) -> None:
        for row in self._rows("SELECT * FROM producers"):
            self._counts.producers += 1
            stream = self._streams.get(row["stream"])
            name = f"stream {stream.path}" if stream is not None else f"no known stream ({row['stream']})"
            where = f"producer {row['producer']!s} of {name}"
            if not self._well_typed(where, row, _PRODUCER):
                continue
            number, producer, epoch, seq, tail = (row[name] for name in ("stream", "producer", "epoch", "seq", "tail"))
            if row["checksum"] != producer_checksum(number, producer, epoch, seq, tail, row["updated"]):
                self._add(where, "its record was changed: the checksum does not fit")
            if not producer or not (0 <= epoch <= _LARGEST and 0 <= seq <= _LARGEST):
                self._add(where, f"epoch {epoch} and sequence number {seq} are not possible")
            if stream is None:
                self._add(where, "belongs to no stream")
            elif stream.state != REMOVED:
                self._check_place(where, number, stream, row)

    def _check_place(self, where: str, number: int, stream: _Stream, row: sqlite3.Row) -> None:
        """Whether what a producer has done fits with its stream."""
        tail = row["tail"]
        if stream.stamp is not None and stream.stamp[0] == row["producer"]:
            if stream.stamp[1:] != (row["epoch"], row["seq"]):
                self._add(
                    where,
                    "it closed the stream with epoch {} and sequence number {}, its record says {} and {}".format(
                        *stream.stamp[1:], row["epoch"], row["seq"]
                    ),
                )
            if tail is not None and tail != stream.end:
                self._add(where, f"it closed the stream at {tail}, but the data ends at {stream.end}")
        if tail is None or tail == stream.end:
            return
        if tail > stream.end:
            self._add(where, f"{tail - stream.end} bytes of what it appended are missing at the end of the stream")
        elif tail < stream.base:
            self._add(where, f"it left the tail at {tail}, before the stream's own data begins at {stream.base}")
        elif tail > stream.base:
            found = self._connection.execute(_COVERING, (number, tail)).fetchone()
            if found is None:
                return  # the data there could not be read, which was told
            end, length, appends = found
            if Cuts(end - length, end, unpack(appends)).last_append_end(tail) != tail:
                self._add(where, f"it left the tail at {tail}, where no append ends")

    # --- forks

    def _check_edges(self) -> None:
        forks = set()
        for row in self._rows("SELECT fork, source FROM fork_edges"):
            fork, source = self._streams.get(row["fork"]), self._streams.get(row["source"])
            if fork is None or fork.state == REMOVED:
                self._add("forks", f"an edge from stream {row['fork']}, which is not there, keeps {row['source']}")
            elif fork.source != row["source"]:
                self._add(f"stream {fork.path}", f"keeps the data of stream {row['source']} instead of its source's")
            else:
                forks.add(row["fork"])
            if source is not None:
                source.edges += 1
        for number, stream in self._streams.items():
            if stream.state != REMOVED and stream.source is not None and number not in forks:
                self._add(f"stream {stream.path}", "nothing keeps the data of the stream that it is a fork of")
            if stream.state == SOFT_DELETED and not stream.edges:
                self._add(f"stream {stream.path}", "is kept for its forks, and has none")

    # --- subscriptions

    def _check_subscriptions(self) -> None:
        paths = set()
        for row in self._small("subscriptions"):
            self._counts.subscriptions += 1
            where = f"subscription {row['path']!s}"
            paths.add(row["path"])
            try:
                record = decode_record(str(row["record"]))
                fits = (record.path, record.incarnation) == (row["path"], row["incarnation"])
            except (ValueError, TypeError, AttributeError) as error:
                self._add(where, f"its record cannot be read: {error}")
                continue
            if not fits:
                self._add(where, "its record is that of another subscription")
        for row in self._small("subscription_links"):
            where = f"link of {row['subscription']!s} to {row['stream']!s}"
            if row["subscription"] not in paths:
                self._add(where, "belongs to no subscription")
            if not isinstance(row["acked"], int) or row["acked"] < BEFORE:
                self._add(where, f"its cursor is {row['acked']!r}")
            if row["explicit"] not in (0, 1) or row["glob"] not in (0, 1) or not (row["explicit"] or row["glob"]):
                self._add(where, "is neither an explicit link nor one by a pattern")

    def _check_secrets(self) -> None:
        for row in self._small("secrets"):
            if not isinstance(row["value"], bytes) or not row["value"]:
                self._add(f"secret {row['name']!s}", "has no value")


def _stream_problems(row: sqlite3.Row) -> Iterator[str]:
    """What is wrong with a stream's row by itself."""
    path, source, base, depth = row["path"], row["source"], row["base"], row["depth"]
    if normalize_path(path.encode("utf-8", "surrogateescape")) != path:
        yield "its path is not a normalised one"
    if row["state"] not in (LIVE, SOFT_DELETED, REMOVED):
        yield f"its state is {row['state']}"
    if row["closed"] not in (0, 1):
        yield f"closed is {row['closed']}"
    stamp = [row[name] is None for name in ("closed_by", "closed_epoch", "closed_seq")]
    if len(set(stamp)) > 1 or (not stamp[0] and not row["closed"]):
        yield "it cannot have been closed like that"
    if not (0 <= depth <= MAX_DEPTH and base >= 0) or (source is None) != (not depth) or (source is None and base):
        yield f"it cannot begin at {base} with {depth} ancestors"
    if (source is None) != (row["fork_path"] is None):
        yield "what it is a fork of is not what was asked for"
    instant = None
    if row["effective_expires_at"] is not None:
        instant = Instant.parse(row["effective_expires_at"])
        if instant is None:
            yield f"its expiry is {row['effective_expires_at']!r}"
            return
    config = StreamConfig(ttl=row["effective_ttl"], expires_at=instant)
    if row["expires"] != (expiry(config, row["last_access"]) if row["state"] == LIVE else None):
        yield "it would not expire when it should"


def _block_problems(cuts: Cuts, data: bytes, *, json: bool) -> Iterator[str]:
    """What is wrong with a block by itself."""
    for name, places in (("appends", cuts.appends), ("messages", cuts.messages)):
        if places is None:
            continue
        if any(before >= after for before, after in pairwise((0, *places))) or (places and places[-1] > len(data)):
            yield f"its {name} end at impossible places"
            return
    messages = cuts.appends if cuts.messages is None else cuts.messages
    if not json:
        if cuts.messages is not None:
            yield "it has messages, but the stream has none"
        return
    if cuts.appends and messages is not None and not set(cuts.appends) <= set(messages):
        yield "an append ends in the middle of a message"
    if any(data[place - 1] != ord(",") for place in ((len(data),) if messages is None else messages)):
        yield "no comma stands behind a message"
