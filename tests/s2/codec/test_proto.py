"""Protobuf both ways, with the official runtime as judge."""

import contextlib
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.errors import InvalidArgumentError
from durable_streams.s2 import _proto
from durable_streams.s2._values import (
    MAX_U64,
    AppendAck,
    AppendInput,
    AppendRecord,
    ReadBatch,
    SequencedRecord,
    StreamPosition,
)
from durable_streams.s2.errors import S2ProtocolError

from . import judge

# --- The vectors of the specification (S2 3.8) -----------------------------------------------------------------------

INPUTS = [
    (
        AppendInput([AppendRecord(b"hi", [(b"k", b"v")], 1234567890123)], 0, "t"),
        "0a1308cb89ec8ff72312060a016b1201761a02686910001a0174",
    ),
    (AppendInput([AppendRecord.fence("tok")]), "0a0e1207120566656e63651a03746f6b"),
    (AppendInput([AppendRecord.trim(258)]), "0a12120612047472696d1a080000000000000102"),
]
ACK = AppendAck(StreamPosition(0, 0), StreamPosition(1, 300), StreamPosition(1, 300))
ACK_HEX = "0a001205080110ac021a05080110ac02"
BATCHES = [
    (ReadBatch((SequencedRecord(0, 1, b"x"),)), "0a051001220178"),
    (ReadBatch((), StreamPosition(5, 9)), "120408051009"),
]


@pytest.mark.parametrize(("batch", "text"), INPUTS)
def test_append_inputs_have_the_bytes_of_the_specification(batch: AppendInput, text: str) -> None:
    assert _proto.encode_append_input(batch).hex() == text
    assert _proto.decode_append_input(bytes.fromhex(text)) == batch


def test_an_acknowledgement_has_the_bytes_of_the_specification() -> None:
    assert _proto.encode_append_ack(ACK).hex() == ACK_HEX
    assert _proto.decode_append_ack(bytes.fromhex(ACK_HEX)) == ACK


@pytest.mark.parametrize(("batch", "text"), BATCHES)
def test_read_batches_have_the_bytes_of_the_specification(batch: ReadBatch, text: str) -> None:
    assert _proto.encode_read_batch(batch).hex() == text
    assert _proto.decode_read_batch(bytes.fromhex(text)) == batch


def test_conditions_with_a_default_value_are_sent() -> None:
    record = AppendRecord(b"", timestamp=0)

    assert _proto.encode_append_input(AppendInput([record], 0, "")).hex() == "0a02080010001a00"
    assert _proto.decode_append_input(bytes.fromhex("0a02080010001a00")) == AppendInput([record], 0, "")


def test_a_missing_position_is_that_of_an_empty_stream() -> None:
    origin = StreamPosition(0, 0)

    assert _proto.decode_append_ack(b"") == AppendAck(origin, origin, origin)


# --- Both directions against the judge -------------------------------------------------------------------------------

U64 = st.one_of(st.integers(0, MAX_U64), st.sampled_from([0, 1, 127, 128, 2**32, 2**63, MAX_U64]))
NAMES = st.binary(min_size=1, max_size=200)
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=200)), max_size=3).map(tuple)
BODIES = st.one_of(st.binary(max_size=40), st.integers(0, 20_000).map(bytes))
APPEND_RECORDS = st.one_of(
    st.builds(AppendRecord, BODIES, HEADERS, st.none() | U64),
    st.builds(AppendRecord.trim, U64),
    st.builds(AppendRecord.fence, st.text(max_size=9)),
)
INPUT = st.builds(
    AppendInput, st.lists(APPEND_RECORDS, min_size=1, max_size=4), st.none() | U64, st.none() | st.text(max_size=9)
)
POSITIONS = st.builds(StreamPosition, U64, U64)


@st.composite
def read_batches(draw: st.DrawFn) -> ReadBatch:
    """Batches as servers send them, runs of records alike among them, and any others."""
    records: list[SequencedRecord] = []
    for _ in range(draw(st.integers(0, 4))):
        seq_num, timestamp = draw(U64), draw(U64)
        body, headers = draw(BODIES), draw(HEADERS)
        for step in range(draw(st.sampled_from([1, 1, 2, 3, 40, 200]))):
            if seq_num + step <= MAX_U64:
                fill = bytes([step & 0xFF]) * len(body)
                records.append(SequencedRecord(seq_num + step, timestamp, fill, headers))
    return ReadBatch(tuple(records), draw(st.none() | POSITIONS))


@given(INPUT)
@settings(max_examples=150, deadline=None)
def test_append_inputs_are_those_of_the_official_runtime(batch: AppendInput) -> None:
    data = _proto.encode_append_input(batch)

    assert data == judge.append_input(batch)
    assert _proto.decode_append_input(data) == batch
    assert b"".join(_proto.input_pieces(batch)) == data


@given(read_batches())
@settings(max_examples=150, deadline=None)
def test_read_batches_are_those_of_the_official_runtime(batch: ReadBatch) -> None:
    data = judge.read_batch(batch)

    assert _proto.decode_read_batch(data) == batch
    assert _proto.encode_read_batch(batch) == data


@given(POSITIONS, POSITIONS, POSITIONS)
@settings(max_examples=60, deadline=None)
def test_acknowledgements_are_those_of_the_official_runtime(
    start: StreamPosition, end: StreamPosition, tail: StreamPosition
) -> None:
    ack = AppendAck(start, end, tail)

    assert _proto.encode_append_ack(ack) == judge.append_ack(ack)
    assert _proto.decode_append_ack(judge.append_ack(ack)) == ack


# --- Messages as nobody writes them, but anybody may -----------------------------------------------------------------


def varint(value: int, extra: int = 0) -> bytes:
    """A varint, with needless bytes at its end."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    groups += [0] * min(extra, 10 - len(groups))
    return bytes(group | 0x80 for group in groups[:-1]) + bytes([groups[-1]])


VARINTS = st.builds(varint, U64, st.sampled_from([0, 0, 0, 1, 3]))


def delimited(content: bytes) -> bytes:
    return varint(len(content)) + content


def field(number: int, kind: int, content: bytes, extra: int = 0) -> bytes:
    return varint(number << 3 | kind, extra) + content


UNKNOWN = st.one_of(
    st.builds(field, st.integers(5, 2**29 - 1), st.just(0), VARINTS),
    st.builds(field, st.integers(5, 2000), st.just(1), st.binary(min_size=8, max_size=8)),
    st.builds(field, st.integers(5, 2000), st.just(2), st.binary(max_size=9).map(delimited)),
    st.builds(field, st.integers(5, 2000), st.just(5), st.binary(min_size=4, max_size=4)),
    st.builds(lambda number, inner: field(number, 3, inner) + field(number, 4, b""), st.integers(5, 99), st.just(b"")),
    st.just(field(6, 3, field(1, 0, b"\x05") + field(7, 3, b"") + field(7, 4, b"") + b"\x0a\x01x") + field(6, 4, b"")),
    st.builds(field, st.integers(1, 4), st.just(5), st.binary(min_size=4, max_size=4)),  # known number, other type
)


def message_of(*fields: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Such fields in any order, repeated or missing, with unknown ones between them."""
    return st.lists(st.one_of(*fields, UNKNOWN), max_size=5).map(b"".join)


#: Needless bytes in a tag: legal, and mostly none.
EXTRA = st.sampled_from([0, 0, 0, 0, 1, 2])


def sub(number: int, content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(lambda inner, extra: field(number, 2, delimited(inner), extra), content, EXTRA)


def number(of: int) -> st.SearchStrategy[bytes]:
    return st.builds(lambda value, extra: field(of, 0, value, extra), VARINTS, EXTRA)


RAW = st.binary(max_size=6)
RAW_POSITION = message_of(number(1), number(2))
RAW_HEADER = message_of(sub(1, RAW), sub(2, RAW))
RAW_RECORD = message_of(number(1), number(2), sub(3, RAW_HEADER), sub(4, RAW))
RAW_BATCH = st.lists(st.one_of(sub(1, RAW_RECORD), sub(1, RAW_RECORD), sub(2, RAW_POSITION), UNKNOWN), max_size=5).map(
    b"".join
)
RAW_ACK = message_of(sub(1, RAW_POSITION), sub(2, RAW_POSITION), sub(3, RAW_POSITION))


@given(RAW_BATCH)
@settings(max_examples=300, deadline=None)
def test_batches_of_any_layout_mean_what_the_official_runtime_says(data: bytes) -> None:
    assert _proto.decode_read_batch(data) == judge.read_read_batch(data)


@given(RAW_ACK)
@settings(max_examples=100, deadline=None)
def test_acknowledgements_of_any_layout_mean_what_the_official_runtime_says(data: bytes) -> None:
    assert _proto.decode_append_ack(data) == judge.read_append_ack(data)


@given(st.lists(st.one_of(sub(1, message_of(number(1), sub(3, RAW))), number(2), UNKNOWN), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_inputs_of_any_layout_mean_what_the_official_runtime_says(fields: list[bytes]) -> None:
    data = b"".join(fields)
    try:
        expected = judge.read_append_input(data)
    except InvalidArgumentError:
        with pytest.raises(InvalidArgumentError):
            _proto.decode_append_input(data)
    else:
        assert _proto.decode_append_input(data) == expected


#: Numbers before which digits of the varint wrap, or bytes are added.
EDGES = st.sampled_from([1, 100, 126, 1000, 2**14 - 30, 2**14, 2**15 - 9, 2**21 - 3, 2**63, MAX_U64 - 60])
TIMES = st.sampled_from([1, 126, 2**14 - 20, 1_750_000_000_000, 2**42 - 10, 2**63 - 7, MAX_U64 - 300])
#: How much later each record is than the one before; the pattern is repeated.
STEPS = st.lists(st.sampled_from([0, 0, 1, 5, 127, 5000]), min_size=1, max_size=4)


@st.composite
def rows(draw: st.DrawFn) -> list[SequencedRecord]:
    """Records in a row, as alike as those of one application: names stay, values and lengths change or not."""
    seq_num, time, steps = draw(EDGES), draw(TIMES), draw(STEPS)
    names = draw(st.lists(st.sampled_from([b"", b"k", b"id", b"trace" * 13, b"n" * 130]), max_size=3))
    wide = draw(st.lists(st.sampled_from(["%d", "%04d", "same", "", "%070d", "%0200d"]), min_size=3, max_size=3))
    body = draw(st.sampled_from(["", "%d", "%05d", "%0130d"]))
    records = []
    for index in range(draw(st.sampled_from([1, 5, 15, 17, 40, 60]))):
        values = [form % index if "%" in form else form for form in wide]
        headers = tuple((name, value.encode()) for name, value in zip(names, values, strict=False))
        text = (body % index if body else "").encode()
        records.append(SequencedRecord(seq_num + index, min(time, MAX_U64), text, headers))
        time += steps[index % len(steps)]
    return records


@given(st.lists(rows(), min_size=1, max_size=3), st.none() | POSITIONS)
@settings(max_examples=200, deadline=None)
def test_rows_of_records_are_those_of_the_official_runtime(parts: list[list[SequencedRecord]], tail: Any) -> None:
    batch = ReadBatch(tuple(record for part in parts for record in part), tail)

    assert _proto.decode_read_batch(judge.read_batch(batch)) == batch


@given(
    rows(), st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255)), min_size=1, max_size=3), st.integers(0, 60)
)
@settings(max_examples=500, deadline=None)
def test_a_changed_byte_is_seen_by_the_shortcuts(
    records: list[SequencedRecord], changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(judge.read_batch(ReadBatch(tuple(records))))
    for place, byte in changes:
        data[place % len(data)] = byte

    agree(bytes(data))
    agree(bytes(data[: len(data) - cut]))


@pytest.mark.parametrize("time", [2**41, 2**63 + 2**20])
def test_each_byte_of_a_run_counts(time: int) -> None:
    """Wherever a byte is changed in the midst of a run, what it means is what the official runtime says."""
    records = [
        SequencedRecord(2**14 + 300 + index, time + 100 * index, b"body", ((b"id", b"%03d" % index), (b"k", b"v")))
        for index in range(40)
    ]
    data = judge.read_batch(ReadBatch(tuple(records)))
    stride = len(data) // 40
    assert stride * 40 == len(data)

    for at in range(20 * stride, 21 * stride):
        for change in (0x01, 0x02, 0x80):
            changed = bytearray(data)
            changed[at] ^= change
            agree(bytes(changed))
    assert _proto.decode_read_batch(data).records == tuple(records)


@pytest.mark.parametrize("first", [1, 90, 127, 128, 2**14 - 200, 2**14 - 1, 2**14, 2**15 - 100, 2**21 - 77])
def test_runs_end_where_digits_wrap_or_are_added(first: int) -> None:
    for step in (0, 1, 3):
        records = tuple(SequencedRecord(first + n, 2**20 + n * step, b"%04d" % n) for n in range(400))

        assert _proto.decode_read_batch(judge.read_batch(ReadBatch(records))) == ReadBatch(records)


@pytest.mark.parametrize(
    "fields",
    [
        "1a00" + "0a0178",  # an empty header, and behind it what would be a name
        "1a030a016b" + "120178",  # a header without value, and behind it what would be one
        "1a03120176",  # a header without name
        "1a06120176" + "0a016b",  # value before name
        "1a080a016b120176" + "1000",  # more behind the value, known and
        "1a080a016b120176" + "2a00",  # unknown
        "1a060a016b120176" * 3,
        "1a860000",
        "1a86000a016b120176",  # needless bytes in a length
    ],
)
def test_headers_of_any_layout_are_read_alike(fields: str) -> None:
    first, usual = bytes.fromhex("08c80110c801" + fields), bytes.fromhex("08c90110c801" + "1a060a016b120176" + "220178")
    pieces = [
        b"\x0a" + delimited(content + body) for content, body in ((usual, b""), (first, b""), (first, b"\x22\x01x"))
    ]

    for data in (b"".join(pieces), b"".join(reversed(pieces)), pieces[0] + pieces[1], pieces[1], pieces[2] + pieces[0]):
        agree(data)
        agree(data + b"\x0a\x00")  # a record of nothing


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("before", [1, 2, 5, 17, 40])
def test_digits_that_wrap_without_another_digit_are_no_count(width: int, before: int) -> None:
    """Numbers of two bytes after the largest one that fits into two: 0 again, with needless bytes, and not 2**14."""
    largest = 1 << 7 * width
    pieces = []
    for number in range(largest - before, largest + 60):
        content = b"\x08" + varint(number % largest, 9)[: width - 1]
        content += bytes([number % largest >> 7 * (width - 1)]) + b"\x10" + varint(2**41) + b"\x22\x01x"
        pieces.append(b"\x0a" + delimited(content))
    data = b"".join(pieces)

    assert _proto.decode_read_batch(data) == judge.read_read_batch(data)
    assert [record.seq_num for record in _proto.decode_read_batch(data).records[before - 1 : before + 2]] == [
        *(largest - 1, 0, 1)
    ]


def test_a_number_that_does_not_count_on_ends_a_run() -> None:
    numbers = [*range(200, 230), *range(500, 530), 530 + 2**14, 532, 533, *range(533, 560), *range(600, 640, 2)]
    records = tuple(SequencedRecord(number, 2**41, b"abc") for number in numbers)

    assert _proto.decode_read_batch(judge.read_batch(ReadBatch(records))).records == records


def test_records_of_equal_length_and_different_layout_are_told_apart() -> None:
    """The same stride and other places: looking for runs goes on, at ever longer distances, and finds the next one."""
    layouts: list[tuple[tuple[bytes, bytes], ...]] = [((b"ab", b"c"),), ((b"a", b"bc"),)]
    mixed = [SequencedRecord(2**14 + n, 2**41, b"%04d" % n, layouts[n // 2 % 2]) for n in range(300)]
    alike = [SequencedRecord(2**14 + n, 2**41, b"%04d" % n, layouts[0]) for n in range(300, 3000)]
    records = (*mixed, *alike)

    assert _proto.decode_read_batch(judge.read_batch(ReadBatch(records))).records == records


def test_what_is_the_same_in_a_run_is_one_object() -> None:
    records = tuple(
        SequencedRecord(n, 2**41, b"x", ((b"name", b"value"), (b"id", b"%03d" % n))) for n in range(200, 300)
    )
    found = _proto.decode_read_batch(judge.read_batch(ReadBatch(records))).records

    assert found == records
    assert found[50].headers[0] is found[60].headers[0] or found[50].headers[0][1] is found[60].headers[0][1]
    assert found[50].headers[1][0] is found[60].headers[1][0]


@given(RAW_BATCH, st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_messages_raise_a_protocol_error_and_nothing_else(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        if damaged:
            at = draw.draw(st.integers(0, len(damaged) - 1))
            choice = draw.draw(st.integers(0, 2))
            if choice == 0:
                damaged[at] = draw.draw(st.integers(0, 255))
            elif choice == 1:
                del damaged[at]
            else:
                del damaged[at:]
    agree(bytes(damaged))
    for decode in (_proto.decode_append_ack, _proto.decode_append_input):
        with contextlib.suppress(S2ProtocolError, InvalidArgumentError):
            decode(bytes(damaged))


def agree(data: bytes) -> None:
    """Both decoders refuse, or both say the same. Ours refuses long varints and bad tags in groups as well."""
    result: Any
    try:
        result = _proto.decode_read_batch(data)
    except S2ProtocolError as error:
        if "64 bits" in str(error) or "is no tag" in str(error):
            return
        result = None
    try:
        expected = judge.read_read_batch(data)
    except DecodeError:
        expected = None
    assert result == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0a", "middle of a field"),
        ("0a05", "beyond the end"),
        ("0a0108", "middle of a field"),
        ("0a0208ff", "middle of a field"),
        ("0affffffffffffffffffff01", "more than ten bytes"),
        ("0a0b08ffffffffffffffffff02", "more than 64 bits"),
        ("00", "0 is no tag"),
        ("0e", "14 is no tag"),
        ("3b", "middle of a field"),
        ("3c", "did not begin"),
        ("3b44", "did not begin"),
        ("3b" * 101, "nested too deeply"),
        ("0a020880" + "0a00", "beyond the end"),
        ("3d000000", "beyond the end"),
        ("12020880" + "01", "beyond the end"),
    ],
)
def test_bad_bytes_are_named(text: str, words: str) -> None:
    with pytest.raises(S2ProtocolError, match=words):
        _proto.decode_read_batch(bytes.fromhex(text))


def test_a_fencing_token_has_to_be_utf8() -> None:
    with pytest.raises(S2ProtocolError, match="not UTF-8"):
        _proto.decode_append_input(bytes.fromhex("0a001a01ff"))


@pytest.mark.parametrize("text", ["", "1000", "0a0a1204120266661a020000"])
def test_a_well_formed_input_that_breaks_a_rule_is_told_from_bad_bytes(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        _proto.decode_append_input(bytes.fromhex(text))


def test_records_beyond_the_kept_prefixes_are_encoded_alike() -> None:
    batch = AppendInput([AppendRecord(bytes(size)) for size in (0, 1, 127, 128, 16_383, 16_384, 900_000)])

    assert _proto.encode_append_input(batch) == judge.append_input(batch)


def test_a_record_of_many_small_headers_is_read_in_linear_time() -> None:
    headers = ((b"a", b"b"),) * 100_000
    batch = ReadBatch((SequencedRecord(1, 2, b"x", headers), SequencedRecord(2, 2, b"y", headers)))

    assert _proto.decode_read_batch(_proto.encode_read_batch(batch)) == batch
