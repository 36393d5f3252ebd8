"""Protobuf of the S2 API, both directions, without the protobuf runtime.

Seven messages, all made of varints and length-delimited fields (specification: S2 3.3). The codec is held to the
official runtime by the tests: unknown fields are skipped, the last of a scalar field counts, repeated sub-messages of a
singular field are merged, a field of another wire type than declared is an unknown field. `_protobuf` has the encoding
itself.

Encoding
    A batch is the plain concatenation of its records, each `0a <length> <AppendRecord>`, and two optional fields. So it
    is one join, which copies each body once. What stands before the body of a plain record depends on the body's length
    alone and is kept by it.

Decoding
    Here are small messages and the frame of read batches; `_sequenced` has what stands in those, the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter

from ._protobuf import TRUNCATED, check_end, read_span, read_tag, read_varint, skip, varint
from ._sequenced import read_header, read_record, read_records
from ._values import AppendAck, AppendInput, AppendRecord, Header, ReadBatch, SequencedRecord, StreamPosition
from .errors import S2ProtocolError

_body_of, _headers_of, _timestamp_of = map(attrgetter, ("body", "headers", "timestamp"))

# --- Encoding ---------------------------------------------------------------------------------------------------------


class _Prefixes(dict[int, bytes]):
    """What stands before the body of a plain record, by the body's length."""

    _KEPT = 1 << 14

    def __missing__(self, length: int) -> bytes:
        if length:
            field = b"\x1a" + varint(length)
            prefix = b"\x0a" + varint(len(field) + length) + field
        else:
            prefix = b"\x0a\x00"
        if len(self) < self._KEPT:
            self[length] = prefix
        return prefix


_prefixes = _Prefixes()


def _headers(tag: bytes, headers: tuple[Header, ...]) -> bytes:
    parts = []
    for name, value in headers:
        header = b""
        if name:
            header = b"\x0a" + varint(len(name)) + name
        if value:
            header += b"\x12" + varint(len(value)) + value
        parts.append(tag + varint(len(header)) + header)
    return b"".join(parts)


def record_prefix(record: AppendRecord) -> bytes:
    """What stands before a record's body in a batch. The prefix and the body are the record's piece.

    For large bodies: the pieces of a batch are joined once, and the body need not be copied before.
    """
    body = record.body
    if record.timestamp is None and not record.headers:
        return _prefixes[len(body)]
    head = b"" if record.timestamp is None else b"\x08" + varint(record.timestamp)
    if record.headers:
        head += _headers(b"\x12", record.headers)
    if body:
        head += b"\x1a" + varint(len(body))
    return b"\x0a" + varint(len(head) + len(body)) + head


def encode_append_input(batch: AppendInput) -> bytes:
    """An `AppendInput` message."""
    return b"".join(input_pieces(batch))


def input_pieces(batch: AppendInput) -> list[bytes]:
    """An `AppendInput` message in pieces, for those who put something before it: bodies are copied once then."""
    records = batch.records
    bodies = list(map(_body_of, records))
    if not any(map(_headers_of, records)) and set(map(_timestamp_of, records)) == {None}:
        return body_pieces(bodies, batch.match_seq_num, batch.fencing_token)
    pieces = list(chain.from_iterable(zip(map(record_prefix, records), bodies, strict=True)))
    if conditions := _conditions(batch.match_seq_num, batch.fencing_token):
        pieces.append(conditions)
    return pieces


def body_pieces(
    bodies: Sequence[bytes], match_seq_num: int | None = None, fencing_token: str | None = None
) -> list[bytes]:
    """The same for records that have a body and nothing else: only C runs per record."""
    pieces = list(chain.from_iterable(zip(map(_prefixes.__getitem__, map(len, bodies)), bodies, strict=True)))
    if conditions := _conditions(match_seq_num, fencing_token):
        pieces.append(conditions)
    return pieces


def _conditions(match_seq_num: int | None, fencing_token: str | None) -> bytes:
    """Both fields have presence: 0 and "" are conditions, and are sent (S2 3.3)."""
    out = b"" if match_seq_num is None else b"\x10" + varint(match_seq_num)
    if fencing_token is not None:
        token = fencing_token.encode()
        out += b"\x1a" + varint(len(token)) + token
    return out


def _position(position: StreamPosition) -> bytes:
    out = b"\x08" + varint(position.seq_num) if position.seq_num else b""
    if position.timestamp:
        out += b"\x10" + varint(position.timestamp)
    return varint(len(out)) + out


def encode_append_ack(ack: AppendAck) -> bytes:
    """An `AppendAck` message."""
    return b"\x0a" + _position(ack.start) + b"\x12" + _position(ack.end) + b"\x1a" + _position(ack.tail)


def encode_read_batch(batch: ReadBatch) -> bytes:
    """A `ReadBatch` message."""
    parts: list[bytes] = []
    for seq_num, timestamp, body, headers in batch.records:
        head = b"\x08" + varint(seq_num) if seq_num else b""
        if timestamp:
            head += b"\x10" + varint(timestamp)
        if headers:
            head += _headers(b"\x1a", headers)
        if body:
            head += b"\x22" + varint(len(body))
        parts += (b"\x0a" + varint(len(head) + len(body)) + head, body)
    if batch.tail is not None:
        parts.append(b"\x12" + _position(batch.tail))
    return b"".join(parts)


# --- Decoding --------------------------------------------------------------------------------------------------------


def _read_position(data: bytes, at: int, end: int, before: StreamPosition | None) -> StreamPosition:
    seq_num, timestamp = (0, 0) if before is None else (before.seq_num, before.timestamp)
    while at < end:
        tag, at = read_tag(data, at)
        if tag == 0x08:
            seq_num, at = read_varint(data, at)
        elif tag == 0x10:
            timestamp, at = read_varint(data, at)
        else:
            at = skip(data, tag, at, end)
    check_end(at, end)
    return StreamPosition(seq_num, timestamp)


def decode_append_ack(data: bytes) -> AppendAck:
    """Decode an `AppendAck` message. A missing position is that of an empty stream.

    Raises:
        S2ProtocolError: if the bytes are no such message.
    """
    found: dict[int, StreamPosition] = {}
    at, end = 0, len(data)
    try:
        while at < end:
            tag, at = read_tag(data, at)
            if tag in (0x0A, 0x12, 0x1A):
                at, stop = read_span(data, at, end)
                found[tag] = _read_position(data, at, stop, found.get(tag))
                at = stop
            else:
                at = skip(data, tag, at, end)
    except IndexError:
        raise S2ProtocolError(TRUNCATED) from None
    origin = StreamPosition(0, 0)
    return AppendAck(found.get(0x0A, origin), found.get(0x12, origin), found.get(0x1A, origin))


def decode_append_input(data: bytes) -> AppendInput:
    """Decode an `AppendInput` message, as a server does.

    Raises:
        S2ProtocolError: if the bytes are no such message.
        InvalidArgumentError: if they are, but the batch breaks a rule (S2 1.3, 3.4).
    """
    records: list[tuple[bytes, tuple[Header, ...], int | None]] = []
    match_seq_num: int | None = None
    fencing_token: str | None = None
    at, end = 0, len(data)
    try:
        while at < end:
            tag, at = read_tag(data, at)
            if tag == 0x0A:
                at, stop = read_span(data, at, end)
                records.append(_append_record(data, at, stop))
                at = stop
            elif tag == 0x10:
                match_seq_num, at = read_varint(data, at)
            elif tag == 0x1A:
                at, stop = read_span(data, at, end)
                fencing_token = data[at:stop].decode()
                at = stop
            else:
                at = skip(data, tag, at, end)
    except IndexError:
        raise S2ProtocolError(TRUNCATED) from None
    except UnicodeDecodeError as error:
        raise S2ProtocolError(f"protobuf: the fencing token is not UTF-8: {error.reason}") from None
    return AppendInput([AppendRecord(*fields) for fields in records], match_seq_num, fencing_token)


def _append_record(data: bytes, at: int, end: int) -> tuple[bytes, tuple[Header, ...], int | None]:
    """Body, headers and timestamp of an `AppendRecord` message."""
    timestamp: int | None = None
    body = b""
    headers: list[Header] = []
    while at < end:
        tag, at = read_tag(data, at)
        if tag == 0x08:
            timestamp, at = read_varint(data, at)
        elif tag == 0x12:
            at, stop = read_span(data, at, end)
            headers.append(read_header(data, at, stop))
            at = stop
        elif tag == 0x1A:
            at, stop = read_span(data, at, end)
            body = data[at:stop]
            at = stop
        else:
            at = skip(data, tag, at, end)
    check_end(at, end)
    return body, tuple(headers), timestamp


def decode_read_batch(data: bytes) -> ReadBatch:
    """Decode a `ReadBatch` message.

    Raises:
        S2ProtocolError: if the bytes are no such message.
    """
    records: list[SequencedRecord] = []
    tail: StreamPosition | None = None
    at, end = 0, len(data)
    try:
        while at < end:
            if data[at] == 0x0A:
                at = read_records(data, at, end, records)
                continue
            tag, at = read_tag(data, at)
            if tag == 0x12:
                at, stop = read_span(data, at, end)
                tail = _read_position(data, at, stop, tail)
                at = stop
            elif tag == 0x0A:  # written with needless bytes
                at, stop = read_span(data, at, end)
                records.append(read_record(data, at, stop))
                at = stop
            else:
                at = skip(data, tag, at, end)
    except IndexError:
        raise S2ProtocolError(TRUNCATED) from None
    return ReadBatch(tuple(records), tail)
