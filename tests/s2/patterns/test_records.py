"""Chunks, headers, duplicates and frames: the bytes of 7.2 to 7.5, and their vector."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.errors import InvalidArgumentError
from durable_streams.s2 import AppendInput, AppendRecord, Header
from durable_streams.s2.patterns import (
    LEGACY_WRITER,
    MAX_CHUNK_BODY_BYTES,
    CompletedFrame,
    DedupeFilter,
    DroppedFrame,
    FrameAssembler,
    FrameMeta,
    FrameSizeError,
    MessageFormatError,
    chunk_bytes,
    decode_u64,
    encode_u64,
    extract_dedupe_seq,
    frame_chunks_to_records,
    inject_dedupe_headers,
)

W = "AAAAAAAAAAAA"


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def numbered(seq: int, writer: str = W) -> list[Header]:
    return [(b"_dedupe_seq", u64(seq)), (b"_writer_id", writer.encode())]


def first(body: bytes, size: int, count: int) -> AppendRecord:
    """The first record of a message that declares this size and count."""
    return AppendRecord(body, ((b"_frame_records", u64(count)), (b"_frame_bytes", u64(size))))


def pushed(records: Sequence[AppendRecord], **options: Any) -> list[bytes]:
    assembler = FrameAssembler(**options)
    return [frame.payload for record in records for frame in assembler.push(record)]


# -- The vector --------------------------------------------------------------------------------------------


def test_the_vector_comes_out_byte_for_byte() -> None:
    records, following = inject_dedupe_headers(frame_chunks_to_records(chunk_bytes(b"hello", 2)), W, 5)

    writer = (b"_writer_id", bytes.fromhex("414141414141414141414141"))
    assert following == 8
    assert [(record.headers, record.body, record.metered_bytes) for record in records] == [
        (
            (
                (b"_frame_records", bytes.fromhex("0000000000000003")),
                (b"_frame_bytes", bytes.fromhex("0000000000000005")),
                (b"_dedupe_seq", bytes.fromhex("0000000000000005")),
                writer,
            ),
            bytes.fromhex("6865"),
            101,
        ),
        (((b"_dedupe_seq", bytes.fromhex("0000000000000006")), writer), bytes.fromhex("6c6c"), 55),
        (((b"_dedupe_seq", bytes.fromhex("0000000000000007")), writer), bytes.fromhex("6f"), 54),
    ]


# -- Chunks ------------------------------------------------------------------------------------------------


def test_a_full_chunk_with_all_headers_is_exactly_a_full_record() -> None:
    assert MAX_CHUNK_BODY_BYTES == 1_048_477
    records, _ = inject_dedupe_headers(frame_chunks_to_records(chunk_bytes(bytes(MAX_CHUNK_BODY_BYTES + 1))), W, 0)

    assert [record.metered_bytes for record in records] == [1_048_576, 54]
    AppendInput(records[:1])  # fits


@settings(deadline=None)  # a loaded machine is no failure
@given(st.binary(max_size=200), st.integers(1, 50))
def test_chunks_make_up_the_message_and_only_the_last_is_short(data: bytes, size: int) -> None:
    chunks = chunk_bytes(data, size)

    assert b"".join(chunks) == data
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(chunks)


def test_nothing_makes_no_chunk_and_no_record() -> None:
    assert chunk_bytes(b"") == []
    assert frame_chunks_to_records([]) == []


@pytest.mark.parametrize("size", [0, -1])
def test_a_chunk_has_at_least_a_byte(size: int) -> None:
    with pytest.raises(InvalidArgumentError, match="chunk_size"):
        chunk_bytes(b"x", size)


@settings(deadline=None)  # a loaded machine is no failure
@given(st.integers(0, 2**64 - 1))
def test_numbers_have_eight_bytes(value: int) -> None:
    assert decode_u64(encode_u64(value)) == value
    assert len(encode_u64(value)) == 8


@pytest.mark.parametrize("value", [-1, 2**64])
def test_numbers_that_have_not_are_refused(value: int) -> None:
    with pytest.raises(InvalidArgumentError):
        encode_u64(value)


# -- Dedupe headers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"_dedupe_seq", b"_writer_id"])
def test_reserved_names_are_refused_wherever_they_stand(name: bytes) -> None:
    records = [AppendRecord(b"a"), AppendRecord(b"b", ((b"x", b""), (name, b"")))]

    with pytest.raises(InvalidArgumentError, match="_dedupe_seq or _writer_id"):
        inject_dedupe_headers(records, W, 0)


def test_own_headers_and_timestamps_stay_in_front() -> None:
    [record], _ = inject_dedupe_headers([AppendRecord(b"a", ((b"k", b"v"),), timestamp=7)], W, 2**64 - 2)

    assert record.headers == ((b"k", b"v"), (b"_dedupe_seq", u64(2**64 - 2)), (b"_writer_id", W.encode()))
    assert record.timestamp == 7


@pytest.mark.parametrize(
    ("writer", "seq", "error"),
    [
        ("", 0, InvalidArgumentError),
        ("\ud800", 0, InvalidArgumentError),
        (W, -1, InvalidArgumentError),
        (5, 0, TypeError),
    ],
)
def test_writers_and_numbers_that_cannot_be(writer: Any, seq: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        inject_dedupe_headers([AppendRecord(b"a")], writer, seq)


def test_numbers_that_run_out_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="no numbers"):
        inject_dedupe_headers([AppendRecord(b"a")], W, 2**64 - 1)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], None),
        ([(b"_writer_id", b"A")], None),
        ([(b"_dedupe_seq", u64(7))], (LEGACY_WRITER, 7)),
        (numbered(7, "A"), ("A", 7)),
        (numbered(7, "A")[::-1], ("A", 7)),
        ([(b"_dedupe_seq", u64(7)), (b"_writer_id", b"\xff\xe2\x82")], ("\ufffd\ufffd", 7)),
        ([(b"_dedupe_seq", u64(7)), (b"_writer_id", b"\xef\xbb\xbfA")], ("A", 7)),
        ([(b"_dedupe_seq", u64(7)), (b"_dedupe_seq", u64(8)), (b"_writer_id", b"A")], ("A", 7)),
        # A first value that JavaScript takes for false is replaced, as long as the other header was not found.
        ([(b"_dedupe_seq", u64(0)), (b"_dedupe_seq", u64(8)), (b"_writer_id", b"A")], ("A", 8)),
        ([(b"_dedupe_seq", u64(0)), (b"_writer_id", b"A"), (b"_dedupe_seq", u64(8))], ("A", 0)),
        ([(b"_writer_id", b""), (b"_writer_id", b"B"), (b"_dedupe_seq", u64(7))], ("B", 7)),
        ([(b"_writer_id", b""), (b"_dedupe_seq", u64(7))], ("", 7)),
        ([(b"_writer_id", b"A"), (b"_dedupe_seq", u64(2**64 - 1))], ("A", 2**64 - 1)),
    ],
)
def test_writer_and_number_of_a_record(headers: list[Header], found: tuple[str, int] | None) -> None:
    assert extract_dedupe_seq(headers) == found


@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_number_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(MessageFormatError, match="8 bytes"):
        extract_dedupe_seq([(b"_dedupe_seq", bytes(size))])


# -- Duplicates --------------------------------------------------------------------------------------------


def accepted(*headers: list[Header], **options: int) -> list[bool]:
    dedupe = DedupeFilter(**options)
    return [dedupe.should_accept(header) for header in headers]


def test_a_repeated_run_is_dropped_and_gaps_are_fine() -> None:
    run = [numbered(seq) for seq in (3, 4, 9)]

    assert accepted(*run, *run, numbered(10)) == [True] * 3 + [False] * 3 + [True]


def test_records_without_a_number_pass_and_change_nothing() -> None:
    assert accepted(numbered(5), [], [(b"_writer_id", b"other")], numbered(5)) == [True, True, True, False]


def test_a_new_writer_begins_a_new_count() -> None:
    assert accepted(numbered(5), numbered(0, "B"), numbered(0, "B"), numbered(1, "B")) == [True, True, False, True]


def test_only_the_last_writer_is_remembered_unless_asked_for_more() -> None:
    late = (numbered(5, "A"), numbered(0, "B"), numbered(5, "A"), numbered(0, "B"))

    assert accepted(*late) == [True, True, True, True]
    assert accepted(*late, max_writers=2) == [True, True, False, False]
    assert accepted(numbered(1, "A"), numbered(1, "B"), numbered(1, "C"), numbered(1, "A"), max_writers=2)[-1]


def test_the_first_record_is_always_new() -> None:
    assert accepted(numbered(99)) == [True]


def test_a_filter_shows_what_it_knows() -> None:
    dedupe = DedupeFilter()
    dedupe.should_accept(numbered(1))
    dedupe.should_accept(numbered(1))
    with pytest.raises(MessageFormatError):
        dedupe.should_accept([(b"_dedupe_seq", b"")])

    assert (dedupe.last, dedupe.dropped) == ({W: 1}, 1)
    assert repr(dedupe) == "<DedupeFilter {'AAAAAAAAAAAA': 1}, 1 dropped>"


def test_a_filter_goes_on_with_what_an_earlier_one_knew() -> None:
    first = DedupeFilter(max_writers=3)
    for writer, seq in (("A", 5), ("", 7), ("B", 0), ("A", 6)):
        assert first.should_accept(numbered(seq, writer))
    kept = json.loads(json.dumps(first.last))
    second = DedupeFilter(max_writers=3, last=kept)

    assert list(second.last.items()) == [("", 7), ("B", 0), ("A", 6)]
    found = [second.should_accept(numbered(seq, writer)) for seq, writer in ((6, "A"), (7, "A"), (7, ""), (0, "C"))]
    assert found == [False, True, False, True]
    assert list(second.last) == ["B", "A", "C"]
    assert list(DedupeFilter(last=kept).last) == ["A"]


@pytest.mark.parametrize(
    ("last", "kind"),
    [([("A", 1)], TypeError), ({1: 1}, TypeError), ({"A": "1"}, TypeError), ({"A": -1}, InvalidArgumentError)],
)
def test_what_no_filter_knew_is_refused(last: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="last"):
        DedupeFilter(last=last)


# -- Frames ------------------------------------------------------------------------------------------------


def test_a_message_comes_back_with_what_was_declared() -> None:
    assembler = FrameAssembler()
    frames = [assembler.push(record) for record in frame_chunks_to_records([b"he", b"ll", b"o"])]

    assert frames == [[], [], [CompletedFrame(b"hello", FrameMeta(5, 3))]]
    assert assembler.pending is None


def test_a_reader_that_joins_in_the_middle_passes_over_the_rest() -> None:
    torn = frame_chunks_to_records([b"aa", b"bb", b"cc"])[1:]

    assert pushed([*torn, *frame_chunks_to_records([b"x"])]) == [b"x"]


@pytest.mark.parametrize("headers", [((b"_frame_bytes", u64(2)),), ((b"_frame_records", u64(1)),)])
def test_one_frame_header_alone_makes_a_plain_record(headers: tuple[Header, ...]) -> None:
    assert pushed([AppendRecord(b"ab", headers)]) == []
    assert pushed([first(b"a", 3, 2), AppendRecord(b"bc", headers)]) == [b"abc"]


def test_of_repeated_frame_headers_the_last_counts() -> None:
    headers = ((b"_frame_bytes", u64(9)), (b"_frame_records", u64(1)), (b"_frame_bytes", u64(2)))

    assert pushed([AppendRecord(b"ab", headers)]) == [b"ab"]


@pytest.mark.parametrize("name", [b"_frame_bytes", b"_frame_records"])
def test_a_frame_header_of_another_size_is_refused_and_the_rest_goes_on(name: bytes) -> None:
    assembler = FrameAssembler()
    assembler.push(first(b"a", 2, 2))

    with pytest.raises(MessageFormatError):
        assembler.push(AppendRecord(b"x", ((name, b"short"),)))
    assert [frame.payload for frame in assembler.push(AppendRecord(b"b"))] == [b"ab"]


@pytest.mark.parametrize("size", [0, 51, 2**64 - 1])
def test_a_declared_size_that_is_not_allowed_is_refused_and_the_rest_goes_on(size: int) -> None:
    assembler = FrameAssembler(max_frame_bytes=50)
    assembler.push(first(b"a", 2, 2))

    with pytest.raises(FrameSizeError) as raised:
        assembler.push(first(b"x", size, 1))
    assert (raised.value.code, raised.value.size, raised.value.limit) == ("FRAME_SIZE", size, 50)
    assert (assembler.dropped, assembler.pending) == (1, None)
    assert assembler.push(AppendRecord(b"b")) == []
    assert [frame.payload for frame in assembler.push(first(b"x" * 50, 50, 1))] == [b"x" * 50]


def test_what_becomes_of_messages_that_are_not_as_declared() -> None:
    dropped: list[DroppedFrame] = []
    records = [
        first(b"a", 9, 3),
        first(b"abc", 4, 2),  # interrupts
        AppendRecord(b"xyz"),  # too long
        AppendRecord(b"belongs to nothing"),
        first(b"abc", 9, 2),
        AppendRecord(b"x"),  # too short
        first(b"whole", 5, 1),
    ]

    assert pushed(records, on_drop=dropped.append) == [b"whole"]
    assert dropped == [
        DroppedFrame(FrameMeta(9, 3), 1, 1, "interrupted"),
        DroppedFrame(FrameMeta(4, 2), 3, 1, "too_long"),
        DroppedFrame(FrameMeta(9, 2), 4, 2, "too_short"),
    ]


def test_an_empty_record_counts() -> None:
    assert pushed([first(b"ab", 2, 2), AppendRecord(b"")]) == [b"ab"]
    assert pushed([first(b"", 2, 2), AppendRecord(b"ab")]) == [b"ab"]


@pytest.mark.parametrize("count", [0, 2**64 - 1])
def test_a_count_that_never_comes_true_holds_only_what_arrived(count: int) -> None:
    assembler = FrameAssembler()
    assembler.push(first(b"ab", 100 << 20, count))
    for _ in range(1000):
        assert assembler.push(AppendRecord(b"")) == []

    assert assembler._chunks == [b"ab"]
    assert "2 of 104857600 bytes" in repr(assembler)
    assert [frame.payload for frame in assembler.push(first(b"x", 1, 1))] == [b"x"]


@pytest.mark.parametrize(("size", "count"), [(5, 0), (5, 6)])
def test_strictly_impossible_declarations_are_refused(size: int, count: int) -> None:
    with pytest.raises(MessageFormatError, match="declares"):
        pushed([first(b"a", size, count)], strict=True)
    assert pushed([first(b"a", 5, 5), *[AppendRecord(b"b")] * 4], strict=True) == [b"abbbb"]


def test_a_duplicate_ruins_its_message_without_dedupe_and_not_with_it() -> None:
    for chunks in ([b"aa", b"bbb", b"c"], [b"aa", b"bb", b"cc"]):
        records, _ = inject_dedupe_headers(frame_chunks_to_records(chunks), W, 0)
        stored = [records[0], records[1], records[1], records[2]]
        dedupe = DedupeFilter()

        assert pushed(stored) in ([], [b"aabbbb"])  # dropped, or as long as declared and wrong
        assert pushed([record for record in stored if dedupe.should_accept(record.headers)]) == [b"".join(chunks)]


def test_a_command_in_the_middle_counts_as_one_of_the_message() -> None:
    records = frame_chunks_to_records([b"aa", b"bb"])

    assert pushed([records[0], AppendRecord.fence("t"), records[1]]) == []


@settings(deadline=None)  # a loaded machine is no failure
@given(
    st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=6),
    st.integers(1, 12),
    st.data(),
)
def test_messages_come_back_whole_and_in_order_whatever_is_repeated_or_missed(
    messages: list[bytes], size: int, chance: st.DataObject
) -> None:
    """9.4 (6): a batch may be stored twice, and the reader may join anywhere."""
    batches: list[list[AppendRecord]] = []
    seq = 0
    for message in messages:
        records, seq = inject_dedupe_headers(frame_chunks_to_records(chunk_bytes(message, size)), W, seq)
        while records:
            count = chance.draw(st.integers(1, len(records)))
            batches.append(records[:count])
            records = records[count:]
    # A lost connection makes the writer repeat its latest batches in order: A B A B, never B A.
    stored: list[list[AppendRecord]] = []
    for index, batch in enumerate(batches):
        stored.append(batch)
        if chance.draw(st.booleans()):
            back = chance.draw(st.integers(0, index))
            stored += batches[back : index + 1]
    flat = [record for batch in stored for record in batch]
    start = chance.draw(st.integers(0, len(flat)))
    dedupe = DedupeFilter()

    got = pushed([record for record in flat[start:] if dedupe.should_accept(record.headers)])

    if start == 0:
        assert got == messages
    remaining = iter(messages)
    assert all(message in remaining for message in got)  # a subsequence: none altered, none twice, none out of order
    assert got == messages[len(messages) - len(got) :]
