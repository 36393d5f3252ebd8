"""Records, batches and positions as values."""

import copy
import pickle

import pytest

from durable_streams.errors import InvalidArgumentError
from durable_streams.s2._values import (
    MAX_BATCH_BYTES,
    MAX_U64,
    AppendAck,
    AppendInput,
    AppendRecord,
    ReadBatch,
    SeqNum,
    SequencedRecord,
    StreamPosition,
    TailOffset,
    Timestamp,
    metered_bytes,
)

RECORD = AppendRecord(b"hi", [(b"k", b"v")], 1234567890123)


def test_metered_size_counts_record_headers_names_values_and_body() -> None:
    assert AppendRecord().metered_bytes == 8
    assert RECORD.metered_bytes == 8 + 2 + 1 + 1 + 2
    assert AppendRecord(b"abc", [(b"a", b""), (b"a", b"xx")]).metered_bytes == 8 + 4 + 1 + 3 + 3
    assert SequencedRecord(7, 9, b"hi", ((b"k", b"v"),)).metered_bytes == RECORD.metered_bytes
    assert metered_bytes(RECORD) == 14
    assert metered_bytes(iter([RECORD, AppendRecord(b"1")])) == 23
    assert ReadBatch((SequencedRecord(0, 0, b"x"),)).metered_bytes == 9


def test_records_take_any_bytes_and_keep_headers_in_order() -> None:
    record = AppendRecord(bytearray(b"b"), {b"x": b"1", b"a": b"\xff"}, 0)

    assert record == AppendRecord(b"b", ((b"x", b"1"), (b"a", b"\xff")), 0)
    assert AppendRecord(memoryview(b"b")).body == b"b"
    assert AppendRecord(b"", [(b"d", b"1"), (b"d", b"")]).headers == ((b"d", b"1"), (b"d", b""))


def test_text_records_are_utf8() -> None:
    record = AppendRecord.text("é", {"ü": "ß"}, timestamp=1)

    assert record == AppendRecord("é".encode(), [("ü".encode(), "ß".encode())], 1)
    with pytest.raises(InvalidArgumentError, match="lone surrogate at index 1"):
        AppendRecord.text("a\ud800")


def test_wrong_types_are_refused_with_a_hint() -> None:
    with pytest.raises(TypeError, match=r"body must be bytes, got str: use AppendRecord\.text"):
        AppendRecord("x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="header value must be bytes, got str"):
        AppendRecord(b"", [(b"a", "x")])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="timestamp must be an int"):
        AppendRecord(b"", timestamp=True)
    with pytest.raises(TypeError, match="header name must be a str, got bytes"):
        AppendRecord.text("", {b"a": "x"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="got one AppendRecord"):
        AppendInput(RECORD)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be AppendRecord objects, got bytes"):
        AppendInput([RECORD, b"x"])  # type: ignore[list-item]


@pytest.mark.parametrize("timestamp", [-1, MAX_U64 + 1])
def test_timestamps_have_64_bits(timestamp: int) -> None:
    with pytest.raises(InvalidArgumentError, match="timestamp"):
        AppendRecord(b"", timestamp=timestamp)

    assert AppendRecord(b"", timestamp=MAX_U64).timestamp == MAX_U64


def test_a_fence_holds_a_token_of_36_bytes() -> None:
    assert AppendRecord.fence("tok") == AppendRecord(b"tok", [(b"", b"fence")])
    assert AppendRecord.fence("").is_command
    assert AppendRecord.fence("a" * 36).metered_bytes == 8 + 2 + 5 + 36
    for token in ("a" * 37, "é" * 18 + "a"):
        with pytest.raises(InvalidArgumentError, match="at most 36 bytes in UTF-8, got 37"):
            AppendRecord.fence(token)


def test_a_trim_holds_a_number_of_64_bits() -> None:
    assert AppendRecord.trim(258) == AppendRecord(bytes.fromhex("0000000000000102"), [(b"", b"trim")])
    assert AppendRecord.trim(MAX_U64).body == b"\xff" * 8
    for seq_num in (-1, MAX_U64 + 1):
        with pytest.raises(InvalidArgumentError, match="seq_num"):
            AppendRecord.trim(seq_num)


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ([(b"", b"nope")], b"", "b'fence' or b'trim'"),
        ([(b"", b"fence"), (b"a", b"")], b"", "no other header"),
        ([(b"a", b""), (b"", b"trim")], b"\0" * 8, "no other header"),
        ([(b"", b"trim")], b"\0" * 7, "8 bytes, big-endian, got 7"),
        ([(b"", b"fence")], b"\xff", "UTF-8"),
        ([(b"", b"fence")], b"x" * 37, "36 bytes"),
    ],
)
def test_malformed_commands_are_refused(headers: list[tuple[bytes, bytes]], body: bytes, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        AppendRecord(body, headers)


def test_commands_are_told_from_data_by_their_one_empty_name() -> None:
    assert SequencedRecord(0, 0, b"", ((b"", b"fence"),)).is_command
    assert not SequencedRecord(0, 0, b"", ((b"a", b"fence"),)).is_command
    assert not SequencedRecord(0, 0, b"", ((b"", b"a"), (b"b", b""))).is_command
    assert not AppendRecord(b"fence").is_command


def test_a_batch_has_1_to_1000_records_and_1_mib() -> None:
    assert len(AppendInput([AppendRecord()] * 1000).records) == 1000
    assert AppendInput([AppendRecord(b"x" * (MAX_BATCH_BYTES - 8))]).metered_bytes == MAX_BATCH_BYTES
    with pytest.raises(InvalidArgumentError, match="1 to 1000 in a batch, got 0"):
        AppendInput([])
    with pytest.raises(InvalidArgumentError, match="got 1001"):
        AppendInput([AppendRecord()] * 1001)
    with pytest.raises(InvalidArgumentError, match="at most 1048576 metered bytes, got 1048577"):
        AppendInput([AppendRecord(b"x" * (MAX_BATCH_BYTES - 7))])


def test_conditions_of_a_batch_are_checked() -> None:
    assert AppendInput([RECORD], 0, "").match_seq_num == 0
    with pytest.raises(InvalidArgumentError, match="match_seq_num"):
        AppendInput([RECORD], -1)
    with pytest.raises(InvalidArgumentError, match="fencing_token must have at most 36"):
        AppendInput([RECORD], None, "é" * 19)


def test_no_text_shows_a_fencing_token() -> None:
    fenced = AppendInput([AppendRecord.fence("secret")], fencing_token="secret")

    for thing in (fenced, fenced.records, SequencedRecord(0, 0, b"secret", ((b"", b"fence"),))):
        assert "secret" not in repr(thing)
    with pytest.raises(InvalidArgumentError) as caught:
        AppendRecord.fence("secret" * 9)
    assert "secret" not in str(caught.value)


def test_reprs_are_short() -> None:
    assert repr(RECORD) == "AppendRecord(b'hi', headers=[(b'k', b'v')], timestamp=1234567890123)"
    assert repr(AppendRecord.trim(3)) == "AppendRecord(trim 3)"
    assert repr(SequencedRecord(1, 2, b"x" * 100)).endswith("... of 100 bytes)")
    assert repr(AppendInput([RECORD], 5)) == "AppendInput(1 records, 14 metered bytes, match_seq_num=5)"


def test_starts_of_reads_have_64_bits() -> None:
    assert (SeqNum(0), Timestamp(MAX_U64), TailOffset()) == (SeqNum(0), Timestamp(MAX_U64), TailOffset(0))
    for kind in (SeqNum, Timestamp, TailOffset):
        with pytest.raises(InvalidArgumentError):
            kind(-1)
        with pytest.raises(TypeError):
            kind("1")  # type: ignore[arg-type]


def test_values_cannot_be_changed() -> None:
    for value, name in ((RECORD, "body"), (AppendInput([RECORD]), "records"), (SequencedRecord(0, 0), "body")):
        with pytest.raises(AttributeError):
            setattr(value, name, None)


def test_values_survive_pickle_and_copy() -> None:
    position = StreamPosition(1, 2)
    values = [
        RECORD,
        AppendInput([RECORD], 1, "t"),
        SequencedRecord(0, 1, b"x", ((b"a", b"b"),)),
        ReadBatch((SequencedRecord(0, 1),), position),
        AppendAck(position, StreamPosition(4, 2), position),
    ]

    assert pickle.loads(pickle.dumps(values)) == values
    assert copy.deepcopy(values) == values
    assert len({hash(value) for value in values}) == len(values)
    assert values[4].count == 3  # type: ignore[attr-defined]
