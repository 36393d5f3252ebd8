"""Records as they come in read batches, decoded: where the time of a reader goes.

A batch of the server is a row of pieces `0a <length> <SequencedRecord>`. What comes before a record's body, its *head*,
is mostly like the head before it: the number goes up by one; timestamp and headers stay, or change in their values and
not in their lengths. Three readers use that, one behind the other, and each proves byte by byte that it may.

*One by one*, in the usual layout: number, timestamp, headers, body. What is equal to the record before, as bytes, is
not read again but known: the upper bytes of the number, the timestamp or its upper bytes, all headers together or their
names. What has changed from the record before to this one is not compared in the next.

*Runs.* If the records that follow have the same lengths as well, their heads stand at equal distances, the stride. Each
byte of the head is then one *column* over the whole run, a slice with a step. Columns of tags, lengths and the upper
digits of the number have to be the same everywhere. Those of the number's two lower digits have to count up, which ends
a run where they wrap: every 16,384 records. Those of a timestamp may hold any digits, as long as each of them says as
before whether more follow; timestamps that differ are put together digit by digit. Those of names and values of headers
may hold anything: what differs is cut out together with the bodies, by `struct`. Only C runs per record.

*Any layout.* The general loop takes everything that protobuf allows: fields repeated, in any order, unknown ones among
them. A record that it read is still good as a pattern for those behind it, if its number comes first and its body last.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import chain, repeat, starmap
from operator import add
from struct import Struct
from typing import Any

from ._protobuf import check_end, read_span, read_tag, read_varint, skip
from ._values import Header, SequencedRecord
from .errors import S2ProtocolError

_new: Any = tuple.__new__
#: The low byte of a number's varint as it counts up: alone, or with more bytes behind it.
_COUNT_ALONE, _COUNT = bytes(range(128)), bytes(range(128, 256))
#: The same for as long as the two lower digits do not wrap; and the second byte: the last one, or with more behind it.
_LOW = _COUNT * 128
_SECOND_LAST = b"".join(bytes((digit,)) * 128 for digit in range(128))
_SECOND = _SECOND_LAST.translate(_COUNT * 2)
#: Runs shorter than this are read one by one, which costs less.
_SHORTEST = 16
#: Records after which another run is looked for, at most, if there was none.
_LONGEST_WAIT = 1024
#: Longest head whose columns are looked at.
_LONGEST_HEAD = 256
#: Longest name or value that is compared column by column; a longer one is cut out of each record.
_LONGEST_COMPARED = 64
#: Records that `struct` takes apart at a time.
_AT_A_TIME = 16


def read_header(data: bytes, at: int, end: int) -> Header:
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


#: A header's name: the field of the name and the tag of the value as bytes, the way from the header's tag to the value,
#: and the name.
_Named = tuple[bytes, int, bytes]


def _read_usual_headers(data: bytes, at: int, end: int, headers: list[Header], names: list[_Named]) -> int:
    """Read headers in the usual layout, name before value; returns the place after them.

    Args:
        data: The message.
        at: Where the first of them begins.
        end: The end of the record.
        headers: Those before. Appended to.
        names: The names of at least those. Becomes the names of all.
    """
    while at < end and data[at] == 0x1A:
        begin, stop = read_span(data, at + 1, end)
        if begin >= stop or data[begin] != 0x0A:
            break
        name_at, name_end = read_span(data, begin + 1, stop)
        if name_end >= stop or data[name_end] != 0x12:
            break
        value_at, value_end = read_span(data, name_end + 1, stop)
        if value_end != stop:
            break
        del names[len(headers) :]
        names.append((data[begin : name_end + 1], value_at - at, data[name_at:name_end]))
        headers.append((names[-1][2], data[value_at:stop]))
        at = stop
    return at


def read_record(data: bytes, at: int, end: int) -> SequencedRecord:
    """A `SequencedRecord` message of any layout."""
    seq_num = timestamp = 0
    body = b""
    headers: list[Header] = []
    while at < end:
        tag, at = read_tag(data, at)
        if tag == 0x22:
            at, stop = read_span(data, at, end)
            body = data[at:stop]
            at = stop
        elif tag == 0x1A:
            at, stop = read_span(data, at, end)
            headers.append(read_header(data, at, stop))
            at = stop
        elif tag == 0x08:
            seq_num, at = read_varint(data, at)
        elif tag == 0x10:
            timestamp, at = read_varint(data, at)
        else:
            at = skip(data, tag, at, end)
    check_end(at, end)
    return SequencedRecord(seq_num, timestamp, body, tuple(headers))


def read_records(data: bytes, at: int, end: int, records: list[SequencedRecord]) -> int:
    """Decode pieces `0a <length> <SequencedRecord>`, as many as follow each other.

    Args:
        data: The message they are in.
        at: Where the first of them begins.
        end: The end of the message.
        records: Appended to.

    Returns:
        The place after the last piece.

    Raises:
        S2ProtocolError: the bytes are no such records.
        IndexError: the data ends in the middle of a field.
    """
    # What the record before has shown, in bytes and what they mean. All are empty at first.
    fixed = seq_num = 0  # bytes up to the timestamp, and the number that is next; `fixed` is 0 if none is expected
    middle = b""  # those bytes behind the low one of the number
    counter = _COUNT
    time = upper = b""  # the timestamp, if it stays the same, and its digits from the third on
    timestamp = above = width = 0  # what they mean, and the length of the timestamp
    block = b""  # all headers, if they stay the same, and the tag of the body
    headers: tuple[Header, ...] = ()
    names: list[_Named] = []  # their names
    stride, wait, try_at = 0, _SHORTEST, at  # of the piece before; where a run is looked for again
    while at < end and data[at] == 0x0A:
        piece, length, start = at, data[at + 1], at + 2
        if length > 0x7F:
            byte = data[start]
            if byte < 0x80:
                length += (byte << 7) - 0x80
                start += 1
            else:
                length, start = read_varint(data, at + 1)
        at = start + length
        if at > end:
            raise S2ProtocolError(f"protobuf: a record of {length} bytes goes beyond the end of its message")
        place = at  # in the record; its end if the record is not of the usual layout
        if (
            fixed
            and length > fixed
            and data[start] == 0x08
            and data[start + 1] == counter[seq_num & 0x7F]
            and data.startswith(middle, start + 2)
        ):
            place = start + fixed
        elif length > 2 and data[start] == 0x08:
            seq_num, number_end = read_varint(data, start + 1)
            if number_end + 1 < at and data[number_end] == 0x10:
                place = number_end + 1
                middle, fixed = data[start + 2 : place], place - start
                counter = _COUNT if data[start + 1] > 0x7F else _COUNT_ALONE
        if place < at:
            if time and data.startswith(time, place):
                place += width
            elif upper and data.startswith(upper, place + 2) and data[place] > 0x7F and data[place + 1] > 0x7F:
                begin, place, last = place, place + width, timestamp
                timestamp = above + data[begin] + (data[begin + 1] << 7)
                time = data[begin:place] if timestamp == last else b""
            else:
                begin = place
                timestamp, place = read_varint(data, place)
                time, width = data[begin:place], place - begin
                upper = time[2:]
                above = timestamp - time[0] - (time[1] << 7) if upper else 0
            if block and data.startswith(block, place):
                place += len(block)
            else:
                begin = place
                found: list[Header] = []
                for field, way, name in names:
                    if place >= at or data[place] != 0x1A or not data.startswith(field, place + 2):
                        break
                    value_at, stop = place + way, place + 2 + data[place + 1]
                    if stop - place > 129 or stop > at or value_at + data[value_at - 1] != stop:
                        break
                    found.append((name, data[value_at:stop]))
                    place = stop
                if place < at and data[place] == 0x1A:
                    place = _read_usual_headers(data, place, at, found, names)
                if place < at and data[place] == 0x22:
                    place += 1
                    before, headers = headers, tuple(found)
                    block = data[begin:place] if headers == before else b""
                else:
                    place = at
        if place < at:
            size = data[place]
            place += 1
            if size > 0x7F:
                byte = data[place]
                if byte < 0x80:
                    size += (byte << 7) - 0x80
                    place += 1
                else:
                    size, place = read_varint(data, place - 1)
            if place + size == at:
                records.append(_new(SequencedRecord, (seq_num, timestamp, data[place:at], headers)))
                seq_num += 1
                if at - piece != stride:
                    stride = at - piece
                elif at >= try_at and data.startswith(data[piece : start + 1], at + (_SHORTEST - 1) * stride):
                    limit = (end - at) // stride
                    if count := _read_run(data, piece, start, place, at, limit, records):
                        wait = _SHORTEST
                        at += count * stride
                        fixed = 0
                    else:
                        wait = min(2 * wait, _LONGEST_WAIT)
                        try_at = at + wait * stride
                if not seq_num & 0x7F:
                    fixed = 0
                continue
        records.append(read_record(data, start, at))
        fixed = 0
    return at


@cache
def _values_of(digit: int) -> tuple[int, ...]:
    """What each byte means as this digit of a varint."""
    return tuple((byte & 0x7F) << 7 * digit for byte in range(256))


@lru_cache(256)
def _cutter(form: str) -> tuple[Struct, Struct]:
    """Takes pieces of this form apart: many at a time, and one."""
    return Struct(form * _AT_A_TIME), Struct(form)


def _read_run(
    data: bytes, first: int, start: int, body: int, origin: int, limit: int, records: list[SequencedRecord]
) -> int:
    """Decode the pieces that have the layout of one before them.

    Args:
        data: The message.
        first: Where the piece before begins.
        start: Where its message begins.
        body: Where its body begins. It is in the usual layout.
        origin: Where it ends, and the next piece begins.
        limit: How many pieces of its length fit in.
        records: What was decoded, that piece at the end of it. Appended to.

    Returns:
        How many pieces were decoded; 0 if they are too few to be worth it.
    """
    stride, pattern = origin - first, data[first:body]
    if limit < _SHORTEST or len(pattern) > _LONGEST_HEAD:
        return 0
    previous = records[-1]
    number, time, contents = _places(pattern, start - first)
    seq_num = previous.seq_num + 1
    digits = _counting(seq_num, len(number))
    count = min(limit, len(digits[0]))
    for at, expected in zip(number, digits, strict=False):
        column = data[origin + at : origin + at + count * stride : stride]
        if column != expected[:count]:
            count = next(place for place, byte in enumerate(column) if byte != expected[place])
    if count < _SHORTEST:
        return 0
    edge = 0
    for free in (number[: len(digits)], time, *contents):
        count = _agreeing(data, pattern, range(edge, free.start), origin, stride, count)
        edge = free.stop
    count = _agreeing(data, pattern, range(edge, len(pattern)), origin, stride, count)

    base, parts = 0, []  # of the timestamps: digits that stay, and digits that change
    for digit, at in enumerate(time):
        column = data[origin + at : origin + at + count * stride : stride]
        if column == pattern[at : at + 1] * count:
            base += _values_of(digit)[pattern[at]]
        elif len(time) == 10:
            count -= len(column.lstrip(pattern[at : at + 1]))  # the only digit with fewer than seven bits is among them
            base += _values_of(digit)[pattern[at]]
        else:
            count -= len(column.lstrip(_COUNT_ALONE if at == time[-1] else _COUNT))
            parts.append(map(_values_of(digit).__getitem__, column))
    if count < _SHORTEST:
        return 0
    timestamps: Iterable[int] = repeat(previous.timestamp)
    if parts:
        timestamps = repeat(base)
        for part in parts:
            timestamps = map(add, timestamps, part)

    changing = [at for at in contents if not _stays(data, pattern, at, origin, stride, count)]
    bodies, *columns = _cut([*changing, range(body - first, stride)], data, origin, stride, count)
    headers: Iterable[tuple[Header, ...]] = repeat(previous.headers)
    if changing:
        found = dict(zip(changing, columns, strict=True))
        fields = [found.get(at) or repeat(pattern[at.start : at.stop]) for at in contents]
        headers = zip(*(zip(*pair, strict=False) for pair in zip(fields[::2], fields[1::2], strict=True)), strict=False)
    rows = zip(range(seq_num, seq_num + count), timestamps, bodies, headers, strict=False)
    records += starmap(_new, zip(repeat(SequencedRecord), rows, strict=False))
    return count


def _places(pattern: bytes, start: int) -> tuple[range, range, list[range]]:
    """Where in a head of the usual layout number and timestamp stand; and names and values of headers, taking turns.

    Args:
        pattern: A piece up to its body.
        start: Where its message begins.
    """
    spans = []
    stop = start
    for _ in range(2):
        begin = stop = stop + 1
        while pattern[stop] > 0x7F:
            stop += 1
        stop += 1
        spans.append(range(begin, stop))
    contents = []
    while pattern[stop] == 0x1A:
        stop, _ = read_span(pattern, stop + 1, len(pattern))
        for _ in range(2):
            begin, stop = read_span(pattern, stop + 1, len(pattern))
            contents.append(range(begin, stop))
    return spans[0], spans[1], contents


def _counting(seq_num: int, width: int) -> tuple[bytes, ...]:
    """The columns of digits that change while a number counts up from this one, until another digit changes.

    Args:
        seq_num: The number.
        width: Bytes of the number before it, which has the digits above these columns.
    """
    if width == 1:
        return (_COUNT_ALONE[seq_num:],)
    step = seq_num & 0x3FFF
    if not step:
        return (b"",)
    return _LOW[step:], (_SECOND_LAST if width == 2 else _SECOND)[step:]


def _agreeing(data: bytes, pattern: bytes, places: range, origin: int, stride: int, count: int) -> int:
    """How many of the pieces, from the first on, are like the pattern at these places."""
    for at in places:
        byte = pattern[at : at + 1]
        column = data[origin + at : origin + at + count * stride : stride]
        if column != byte * count:
            count -= len(column.lstrip(byte))
    return count


def _stays(data: bytes, pattern: bytes, places: range, origin: int, stride: int, count: int) -> bool:
    """Whether a name or value is the same in all pieces, and short enough to say so. The end changes most often."""
    return len(places) <= _LONGEST_COMPARED and all(
        data[origin + at : origin + at + count * stride : stride] == pattern[at : at + 1] * count
        for at in reversed(places)
    )


def _cut(places: list[range], data: bytes, origin: int, stride: int, count: int) -> list[Iterable[bytes]]:
    """What stands in each piece at these places, in order: the last one first, which is the body's, then the others."""
    form, edge = "", 0
    for at in places:
        form += f"{at.start - edge}x{len(at)}s"
        edge = at.stop
    many, one = _cutter(form)
    pieces = memoryview(data)[origin : origin + count * stride]
    rest = count // _AT_A_TIME * _AT_A_TIME * stride
    cut = chain(
        chain.from_iterable(many.iter_unpack(pieces[:rest])), chain.from_iterable(one.iter_unpack(pieces[rest:]))
    )
    if len(places) == 1:
        return [cut]
    fields = list(cut)
    return [fields[column :: len(places)] for column in (len(places) - 1, *range(len(places) - 1))]
