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


@st.composite
def nearly_runs(draw: st.DrawFn) -> bytes:
    """A run of records alike in which one byte was changed: neither shortcut may overlook it."""
    low = draw(st.sampled_from([0, 5, 100, 125, 1000, 2**21 - 3]))
    headers = draw(st.sampled_from([(), ((b"k", b"v"),)]))
    records = [
        SequencedRecord(low + step, 1_750_000_000_000, b"abc", headers) for step in range(draw(st.integers(2, 9)))
    ]
    data = bytearray(judge.read_batch(ReadBatch(tuple(records))))
    data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@given(nearly_runs())
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_seen_by_the_shortcuts(data: bytes) -> None:
    agree(data)


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


def test_runs_end_where_the_low_seven_bits_wrap() -> None:
    records = tuple(SequencedRecord(seq, 7, b"%04d" % seq) for seq in range(1, 1001))

    assert _proto.decode_read_batch(judge.read_batch(ReadBatch(records))) == ReadBatch(records)


def test_records_beyond_the_kept_prefixes_are_encoded_alike() -> None:
    batch = AppendInput([AppendRecord(bytes(size)) for size in (0, 1, 127, 128, 16_383, 16_384, 900_000)])

    assert _proto.encode_append_input(batch) == judge.append_input(batch)


def test_a_record_of_many_small_headers_is_read_in_linear_time() -> None:
    headers = ((b"a", b"b"),) * 100_000
    batch = ReadBatch((SequencedRecord(1, 2, b"x", headers), SequencedRecord(2, 2, b"y", headers)))

    assert _proto.decode_read_batch(_proto.encode_read_batch(batch)) == batch
