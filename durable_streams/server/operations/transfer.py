"""Taking one stream out of a store as a file, and putting it into another (`export_file` has the form).

Offsets, the places where appends and messages end, producers, `Stream-Seq` and closure are the same afterwards: readers
resume with the offsets they have, and producers go on with their next sequence number.

A fork is exported with what it inherits, and is an ordinary stream where it is imported. What cannot be taken along is
the incarnation: entity tags in caches count no more, and subscriptions take the stream for a new one.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO

from ..._core.wire import is_json, media_type, normalize_path
from ...errors import InvalidArgumentError
from ..creation import StreamConfig
from ..offsets import Offset
from ..protocol import Payload, ProducerState, StreamState
from ..stores.base import StreamRef
from ..stores.errors import StoreError
from ..stores.sqlite_blocks import BLOCK_BYTES, Cuts, Lineage, branch, make_blocks, unpack
from ..stores.sqlite_checksums import block_checksum, fixed_checksum, producer_checksum, stream_checksum
from ..stores.sqlite_lock import ExclusiveLock
from ..stores.sqlite_records import (
    ADD_BLOCK,
    SET_PRODUCER,
    Record,
    block_row,
    insert,
    load,
    producer_row,
)
from ..stores.sqlite_schema import connect_writer, write_meta
from .export_file import ExportReader, ExportWriter, Producer, StreamHead
from .snapshot import making_sense, open_snapshot

_STREAM = "SELECT * FROM streams WHERE id = ?"
_PRODUCERS = "SELECT producer, epoch, seq, tail, updated, checksum FROM producers WHERE stream = ? ORDER BY producer"
_BLOCKS = """
SELECT end_offset, written, appends, messages, data, checksum
FROM blocks WHERE stream = ? AND end_offset > ? ORDER BY end_offset
"""


class StreamMissingError(StoreError):
    """There is no such stream in the store."""

    code = "STREAM_MISSING"


class StreamPresentError(StoreError):
    """There is such a stream in the store already."""

    code = "STREAM_PRESENT"


@dataclass(frozen=True, slots=True)
class Transfer:
    """A stream that was exported or imported.

    Attributes:
        path: Its full path.
        tail: Its tail.
        closed: Whether it is closed.
        appends: How many appends it has.
        producers: How many producers.
    """

    path: str
    tail: Offset
    closed: bool
    appends: int
    producers: int


def export_stream(path: str | os.PathLike[str], stream: str, file: BinaryIO) -> Transfer:
    """Write a stream to a file, as it is at this moment, whether or not a server has the store open.

    Args:
        path: The store.
        stream: Full path of the stream: `/v1/stream/chat`.
        file: Where to write it. Needs memory for the largest append.

    Raises:
        StreamMissingError: if there is no such stream.
        StoreError: if the store cannot be read, or what is read is damaged; what was written so far is not a whole
            export then.
        OSError: if the file cannot be written.
    """
    with open_snapshot(path) as connection:
        normal = _normal(stream)
        with making_sense(path):
            record = load(connection, normal)
            producers = [] if record is None else _producers(connection, record.id)
        if record is None or record.state.deleted:
            raise StreamMissingError(f"{os.fspath(path)}: there is no stream {stream}")
        state, fork = record.state, record.config.fork
        became = StreamConfig(record.config.effective_type, record.config.ttl, record.config.expires_at)
        writer = ExportWriter(file)
        writer.stream(
            StreamHead(
                record.ref.path,
                record.asked if fork is None else became,
                became,
                state.tail,
                state.closed,
                state.closed_by,
                state.last_seq,
                record.created,
            ),
            None if fork is None else fork.source,
        )
        for producer in producers:
            writer.producer(producer)
        end = 0
        appends = _appends(connection, record.lineage, json=is_json(became.effective_type))
        while True:
            with making_sense(path):
                payload = next(appends, None)
            if payload is None:
                break
            end += len(payload.data)
            writer.append(payload, end)
        if end != state.tail:
            raise StoreError(f"{os.fspath(path)}: damaged: {stream} ends at {end} instead of {state.tail}; verify it")
        writer.end()
        return Transfer(record.ref.path, end, state.closed, writer.appends, len(producers))


def import_stream(
    path: str | os.PathLike[str], file: BinaryIO, *, stream: str | None = None, now: float | None = None
) -> Transfer:
    """Put an exported stream into a store that no server has open. It is there wholly, or not at all.

    The file is checked to the last byte, so that nothing gets in that the server would not have taken. Its lifetime
    counts from now.

    Args:
        path: The store; made if there is none.
        file: Where to read the export. Needs memory for the largest append.
        stream: Full path that the stream is to have; that from the export if None.
        now: Wall-clock time; the system's if None.

    Raises:
        ExportFormatError: if the file is not a whole export.
        StreamPresentError: if there is such a stream already.
        StoreInUseError: if a server has the store open.
        StoreError: if the store cannot be opened or written.
        OSError: if the file cannot be read.
    """
    name = os.path.realpath(path)
    at = time.time() if now is None else now
    reader = ExportReader(file)
    head = reader.stream()
    lock = ExclusiveLock(name)
    try:
        with closing(connect_writer(name, "full", "auto")) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                done = _import(connection, reader, head, _normal(stream or head.path), at, name)
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise StoreError(f"{name}: writing failed: {error}") from error
            return done
    finally:
        lock.release()


def _normal(stream: str) -> str:
    path = normalize_path(stream.encode("utf-8", "surrogateescape"))
    if path is None:
        raise InvalidArgumentError(f"stream must be a full path such as '/v1/stream/chat', got {stream!r}")
    return path


def _producers(connection: sqlite3.Connection, stream: int) -> list[Producer]:
    """All producers of a stream.

    Raises:
        ValueError: if one of them, or the stream's own row, is damaged.
    """
    row = connection.execute(_STREAM, (stream,)).fetchone()
    values = dict(zip(row.keys(), row, strict=True))
    if row["checksum"] != stream_checksum(values, fixed_checksum(values)):
        raise ValueError("the stream's record was changed")
    producers = []
    for name, epoch, seq, tail, updated, checksum in connection.execute(_PRODUCERS, (stream,)).fetchall():
        if checksum != producer_checksum(stream, name, epoch, seq, tail, updated):
            raise ValueError(f"the record of producer {name} was changed")
        producers.append(Producer(name, ProducerState(epoch, seq), tail, updated))
    return producers


def _appends(connection: sqlite3.Connection, lineage: Lineage, *, json: bool) -> Iterator[Payload]:
    """All appends of a stream from its beginning, inherited ones included.

    Raises:
        ValueError: if a block is damaged.
    """
    parts: list[bytes] = []  # of an append that began in an earlier block
    ends: list[int] = []
    size = 0
    for segment in lineage:
        for end, written, appends, messages, data, checksum in connection.execute(
            _BLOCKS, (segment.stream, segment.start)
        ):
            start = end - len(data)
            if start >= segment.end:
                break
            if checksum not in (None, block_checksum(segment.stream, end, written, appends, messages, data)):
                raise ValueError(f"the data before offset {end} was changed")
            cuts = Cuts(start, end, unpack(appends), unpack(messages)).clip(segment.end)
            place = start
            while place < cuts.end:
                append_end = cuts.next_append_end(place)
                stop = cuts.end if append_end is None else append_end
                first = place - size  # where the append began
                parts.append(data[place - start : stop - start])
                while json and (message := cuts.next_message_end(place)) is not None and message <= stop:
                    ends.append(message - first)
                    place = message
                size, place = stop - first, stop
                if append_end is not None:
                    yield Payload(b"".join(parts), ends)
                    parts, ends, size = [], [], 0
            if end >= segment.end:
                break


def _import(
    connection: sqlite3.Connection, reader: ExportReader, head: StreamHead, path: str, now: float, name: str
) -> Transfer:
    """Write a stream, inside a transaction."""
    if load(connection, path) is not None:
        raise StreamPresentError(f"{name}: there is a stream {path} already; give it another name, or delete it first")
    (last,) = connection.execute("SELECT max(id) FROM streams").fetchone()
    number = (last or 0) + 1
    state = StreamState(
        media_type(head.config.effective_type), head.tail, head.closed, head.closed_by, head.last_seq, False
    )
    ref = StreamRef(path, secrets.token_urlsafe(9))
    lineage = branch((), number, 0)
    insert(connection, [Record(number, ref, head.asked, head.config, state, head.created, now, lineage)])
    counted = connection.execute("SELECT value FROM meta WHERE key = 'streams'").fetchone()
    if counted is not None:
        write_meta(connection, "streams", counted[0] + 1)
    producers = 0
    for producer in reader.producers():
        row = producer_row(number, producer.id, producer.state, producer.tail, producer.updated)
        connection.execute(SET_PRODUCER, row)
        producers += 1
    start = size = 0
    gathered: list[Payload] = []
    for payload in reader.data():
        if size + len(payload.data) > BLOCK_BYTES:
            start, gathered, size = _write(connection, number, start, gathered, now), [], 0
        gathered.append(payload)
        size += len(payload.data)
    start = _write(connection, number, start, gathered, now)
    reader.end(head.tail, start)
    return Transfer(path, start, head.closed, reader.appends, producers)


def _write(connection: sqlite3.Connection, stream: int, start: Offset, payloads: list[Payload], now: float) -> Offset:
    """Write appends that begin at `start`; returns where they end."""
    connection.executemany(ADD_BLOCK, [block_row(stream, block, now) for block in make_blocks(start, payloads)])
    return start + sum(len(payload.data) for payload in payloads)
