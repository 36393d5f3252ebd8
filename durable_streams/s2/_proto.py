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
    A batch of the server is mostly records alike: the number goes up by one, timestamp and headers stay. Two shortcuts
    use that, and each proves byte by byte that it may; `_read_record` behind them takes everything.

    *Successor.* A record whose message begins with its number and ends with its body has a head: all before the bytes
    of the body. In the head of the record after it, the low seven bits of the number have counted up, and the lengths
    may differ; if all the `rest` is equal, so is what it means.

    *Run.* If the records that follow have the same lengths as well, their heads stand at equal distances, the stride.
    Each byte of the head is then one *column* over the whole run, a slice with a step, and has to be the same
    everywhere; the column of the low seven bits has to count up. What is left per record is to cut out its body, and
    one list comprehension does that. A run ends where those seven bits wrap: after 128 records at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain, repeat
from operator import attrgetter

from ._protobuf import TRUNCATED, check_end, read_span, read_tag, read_varint, skip, varint
from ._values import AppendAck, AppendInput, AppendRecord, Header, ReadBatch, SequencedRecord, StreamPosition
from .errors import S2ProtocolError

_make_record = partial(tuple.__new__, SequencedRecord)
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


# --- Decoding: the general part ---------------------------------------------------------------------------------------


def _read_header(data: bytes, at: int, end: int) -> Header:
    """A `Header` message."""
    name = value = b""
    while at < end:
        tag, at = read_tag(data, at)
        if tag == 0x0A:
            at, stop = read_span(data, at, end)
            name = data[at:stop]
            at = stop
        elif tag == 0x12:
            at, stop = read_span(data, at, end)
            value = data[at:stop]
            at = stop
        else:
            at = skip(data, tag, at, end)
    return name, value


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


def _read_record(data: bytes, at: int, end: int) -> tuple[SequencedRecord, int]:
    """A `SequencedRecord` message of any shape.

    Returns:
        The record, and where the tag of its body stands, if its number is the first field and appears once, and its
        body is the last one. Otherwise 0.
    """
    # The usual layout, straight on: number, timestamp, headers in the usual layout with short lengths, body.
    place = at
    seq_num = timestamp = 0
    headers: list[Header] = []
    if place < end and data[place] == 0x08:
        seq_num, place = read_varint(data, place + 1)
        if place < end and data[place] == 0x10:
            timestamp, place = read_varint(data, place + 1)
        while place + 3 < end and data[place] == 0x1A and data[place + 2] == 0x0A:
            stop = place + 2 + data[place + 1]
            name_end = place + 4 + data[place + 3]
            value = name_end + 2
            if stop - place > 129 or value > stop or stop > end or data[name_end] != 0x12:
                break
            if value + data[name_end + 1] != stop:
                break
            headers.append((data[place + 4 : name_end], data[value:stop]))
            place = stop
        if place + 1 < end and data[place] == 0x22:
            size, start = read_varint(data, place + 1)
            if start + size == end:
                return _make_record((seq_num, timestamp, data[start:end], tuple(headers))), place
    return _read_any_record(data, at, end)


def _read_any_record(data: bytes, at: int, end: int) -> tuple[SequencedRecord, int]:
    """The same without the straight way."""
    seq_num = timestamp = 0
    body = b""
    headers: list[Header] = []
    first, seq_at, body_at = at, -1, 0
    while at < end:
        place = at
        tag, at = read_tag(data, at)
        short = at - place == 1  # else the tag has needless bytes, and what follows stands elsewhere
        if tag == 0x22:
            body_at = place if short else 0
            at, stop = read_span(data, at, end)
            body = data[at:stop]
            at = stop
            continue
        body_at = 0
        if tag == 0x1A:
            at, stop = read_span(data, at, end)
            headers.append(_read_header(data, at, stop))
            at = stop
        elif tag == 0x08:
            seq_at = place if short else -1
            seq_num, at = read_varint(data, at)
        elif tag == 0x10:
            timestamp, at = read_varint(data, at)
        else:
            at = skip(data, tag, at, end)
    check_end(at, end)
    return SequencedRecord(seq_num, timestamp, body, tuple(headers)), body_at if seq_at == first else 0


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
            headers.append(_read_header(data, at, stop))
            at = stop
        elif tag == 0x1A:
            at, stop = read_span(data, at, end)
            body = data[at:stop]
            at = stop
        else:
            at = skip(data, tag, at, end)
    check_end(at, end)
    return body, tuple(headers), timestamp


# --- Decoding: records alike ------------------------------------------------------------------------------------------

#: The low byte of a number's varint as it counts up: alone, or with more bytes behind it.
_COUNT_ALONE, _COUNT = bytes(range(128)), bytes(range(128, 256))
#: Longest head whose columns are looked at. A longer one is compared record by record, which costs less.
_MAX_COLUMNS = 64


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
                at = _read_records(data, at, end, records)
                continue
            tag, at = read_tag(data, at)
            if tag == 0x12:
                at, stop = read_span(data, at, end)
                tail = _read_position(data, at, stop, tail)
                at = stop
            elif tag == 0x0A:  # written with needless bytes
                at, stop = read_span(data, at, end)
                records.append(_read_record(data, at, stop)[0])
                at = stop
            else:
                at = skip(data, tag, at, end)
    except IndexError:
        raise S2ProtocolError(TRUNCATED) from None
    return ReadBatch(tuple(records), tail)


def _read_records(data: bytes, at: int, end: int, records: list[SequencedRecord]) -> int:
    """Decode pieces `0a <length> <SequencedRecord>`, as many as follow each other; returns the place after them."""
    rest = b""  # of the head of the record before; empty if there is none to compare with
    seq_num = timestamp = 0  # what the next record has if it is the successor
    headers: tuple[Header, ...] = ()
    counter = _COUNT
    while at < end and data[at] == 0x0A:
        piece = at
        length, start = data[at + 1], at + 2
        if length > 0x7F:
            length, start = read_varint(data, at + 1)
        stop = start + length
        if stop > end:
            raise S2ProtocolError(f"protobuf: a record of {length} bytes goes beyond the end of its message")
        at = start + 2 + len(rest)
        if (
            rest
            and at < stop
            and data[start] == 0x08
            and data[start + 1] == counter[seq_num & 0x7F]
            and data.startswith(rest, start + 2)
        ):
            size = data[at]
            at += 1
            if size > 0x7F:
                size, at = read_varint(data, at - 1)
            if at + size == stop:
                count, stride = 1, stop - piece
                if at - piece <= _MAX_COLUMNS and data.startswith(data[piece : start + 1], stop):
                    limit = min(128 - (seq_num & 0x7F), (end - piece) // stride)
                    expected = counter[seq_num & 0x7F :]
                    count = _run_length(data, range(piece, at), stride, limit, start + 1, expected)
                if count == 1:
                    records.append(_make_record((seq_num, timestamp, data[at:stop], headers)))
                else:
                    bodies = [data[body : body + size] for body in range(at, at + count * stride, stride)]
                    numbers = range(seq_num, seq_num + count)
                    records += map(_make_record, zip(numbers, repeat(timestamp), bodies, repeat(headers)))
                seq_num += count
                if not seq_num & 0x7F:
                    rest = b""
                at = piece + count * stride
                continue
        record, body_at = _read_record(data, start, stop)
        records.append(record)
        seq_num, timestamp, _, headers = record
        counter = _COUNT if data[start + 1 : start + 2] >= b"\x80" else _COUNT_ALONE
        seq_num += 1
        rest = data[start + 2 : body_at + 1] if body_at and seq_num & 0x7F else b""
        at = stop
    return at


def _run_length(data: bytes, head: range, stride: int, limit: int, low_at: int, expected: bytes) -> int:
    """How many pieces from this one on have equal heads but for the low byte of the number, which counts up.

    Args:
        data: The message.
        head: Places of the first piece's head. Its lengths are part of it.
        stride: From one piece to the next.
        limit: Most pieces to look at, from 1; all of them lie within the data.
        low_at: Place of the low byte of the number.
        expected: What its column has to be.
    """
    count = limit
    for at in head:
        column = data[at : at + count * stride : stride]
        if at != low_at:
            count -= len(column.lstrip(column[:1]))
        elif column != expected[:count]:
            count = next(place for place, byte in enumerate(column) if byte != expected[place])
        if count == 1:
            break
    return count
