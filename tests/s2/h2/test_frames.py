"""Frames and bytes, both ways: split anywhere, padded, continued, oversized, out of place."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.s2._h2 import frames as h2
from durable_streams.s2._h2.frames import (
    Data,
    ErrorCode,
    Frame,
    FrameError,
    FrameReader,
    GoAway,
    Headers,
    Malformed,
    Ping,
    Reset,
    Settings,
    Skipped,
    WindowUpdate,
)
from durable_streams.s2._h2.rope import Rope

PADDED, PRIORITY_FLAG, END_HEADERS, END_STREAM = h2.PADDED, h2.PRIORITY_FLAG, h2.END_HEADERS, h2.END_STREAM


def raw(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame by hand."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


def encode(frame: Frame, max_frame_size: int = h2.DEFAULT_FRAME_SIZE) -> bytes:
    match frame:
        case Data():
            pieces = h2.data_frames(
                frame.stream_id, frame.data, max_frame_size=max_frame_size, end_stream=frame.end_stream
            )
            return b"".join(pieces)
        case Headers():
            return h2.headers_frames(
                frame.stream_id, frame.block, max_frame_size=max_frame_size, end_stream=frame.end_stream
            )
        case Reset():
            return h2.reset_frame(frame.stream_id, frame.code)
        case Settings():
            return h2.settings_ack_frame() if frame.ack else h2.settings_frame(dict(frame.values))
        case Ping():
            return h2.ping_frame(frame.payload, ack=frame.ack)
        case GoAway():
            return h2.goaway_frame(frame.last_stream_id, frame.code, frame.debug)
        case WindowUpdate():
            return h2.window_update_frame(frame.stream_id, frame.increment)
    raise AssertionError(frame)


def frame_stream(frame: Frame) -> int:
    return getattr(frame, "stream_id", 0)


def joined(frames: list[Frame]) -> list[Frame]:
    """The same frames with the pieces of consecutive DATA of one stream put together."""
    answer: list[Frame] = []
    for frame in frames:
        before = answer[-1] if answer else None
        goes_on = isinstance(before, Data) and not before.end_stream and before.stream_id == frame_stream(frame)
        if goes_on and isinstance(frame, Data) and isinstance(before, Data):
            both = (bytes(before.data) + frame.data, frame.end_stream)
            total = (before.length + frame.length, before.padding + frame.padding)
            answer[-1] = Data(frame.stream_id, *both, *total)
        else:
            answer.append(frame)
    return answer


stream_ids = st.integers(1, h2.LARGEST_STREAM_ID)
longs = st.integers(0, 2**32 - 1)
some_frames = st.one_of(
    st.builds(Data, stream_ids, st.binary(max_size=100), st.booleans()),
    st.builds(Headers, stream_ids, st.binary(max_size=100), st.booleans()),
    st.builds(Reset, stream_ids, longs),
    st.builds(Settings, st.dictionaries(st.integers(0, 65535), longs, max_size=4).map(lambda d: tuple(d.items()))),
    st.just(Settings(ack=True)),
    st.builds(Ping, st.binary(min_size=8, max_size=8), st.booleans()),
    st.builds(GoAway, st.integers(0, h2.LARGEST_STREAM_ID), longs, st.binary(max_size=20)),
    st.builds(WindowUpdate, st.integers(0, h2.LARGEST_STREAM_ID), st.integers(1, h2.LARGEST_WINDOW)),
)


@settings(deadline=None)  # a loaded machine is no failure
@given(st.lists(some_frames, max_size=6), st.integers(1, 40), st.integers(1, 50), st.booleans())
def test_frames_come_back_however_they_were_cut(frames: list[Frame], frame_size: int, step: int, preface: bool) -> None:
    wire = (h2.PREFACE if preface else b"") + b"".join(encode(frame, frame_size) for frame in frames)
    reader = FrameReader(preface=preface)

    got = [frame for start in range(0, len(wire), step) for frame in reader.feed(wire[start : start + step])]

    expected = [frame for frame in frames if not isinstance(frame, Data) or frame.data or frame.end_stream]
    expected = [Data(f.stream_id, f.data, f.end_stream, len(f.data)) if isinstance(f, Data) else f for f in expected]
    assert joined(got) == joined(expected)
    assert reader.between_frames or (preface and not wire)


@settings(deadline=None)  # a loaded machine is no failure
@given(st.binary(max_size=300), st.integers(1, 300))
def test_any_bytes_make_frames_or_one_kind_of_error(data: bytes, step: int) -> None:
    reader = FrameReader(max_frame_size=200)

    with suppress(FrameError):
        for start in range(0, len(data), step):
            reader.feed(data[start : start + step])


def test_a_piece_of_data_that_is_what_was_received_is_not_copied() -> None:
    reader = FrameReader()
    reader.feed(raw(h2.DATA, 0, 1, b"")[:0] + (1000).to_bytes(3, "big") + b"\0\0\0\0\0\1")
    piece = bytes(400)

    [frame] = reader.feed(piece)

    assert isinstance(frame, Data)
    assert frame.data is piece


def test_a_large_piece_of_data_is_a_view_unless_it_would_keep_much_more_alive() -> None:
    size, other = 40_000, 200_000
    reader = FrameReader(max_frame_size=1 << 20)
    large, small = raw(h2.DATA, 0, 1, bytes(size)), raw(h2.DATA, 0, 3, b"x" * 9)

    first, between = [frame for frame in reader.feed(large + small) if isinstance(frame, Data)]
    assert first == Data(1, bytes(size), length=size)
    assert isinstance(first.data, memoryview)
    assert first.data.readonly
    assert between == Data(3, b"x" * 9, length=9)
    assert isinstance(between.data, bytes)
    frames = reader.feed(large + raw(h2.DATA, 0, 3, bytes(other)))
    part, rest = [frame for frame in frames if isinstance(frame, Data)]
    assert part == Data(1, bytes(size), length=size)
    assert isinstance(part.data, bytes)
    assert isinstance(rest.data, memoryview)


def test_a_long_data_frame_is_handed_on_as_it_comes_and_counts_once() -> None:
    reader = FrameReader()
    wire = raw(h2.DATA, END_STREAM, 3, b"abcdef")

    assert reader.feed(wire[:11]) == [Data(3, b"ab", length=6)]
    assert reader.feed(wire[11:13]) == [Data(3, b"cd")]
    assert not reader.between_frames
    assert reader.feed(wire[13:]) == [Data(3, b"ef", end_stream=True)]
    assert reader.between_frames


@settings(deadline=None)  # a loaded machine is no failure
@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 60), st.lists(st.integers(1, 70), max_size=12))
def test_pieces_are_framed_as_if_they_were_one(pieces: list[bytes], frame_size: int, sizes: list[int]) -> None:
    """However much is sent at a time, the frames are those of the bytes in one, and nothing is sent twice."""
    rope, whole = Rope(pieces), b"".join(pieces)
    assert repr(rope) == f"<Rope of {len(whole)} bytes in {len([piece for piece in pieces if piece])} pieces>"

    at = 0
    for wanted in [*sizes, len(whole)]:
        size = min(wanted, len(rope))
        frames = h2.data_frames(1, rope, size, max_frame_size=frame_size)
        assert b"".join(frames) == b"".join(h2.data_frames(1, whole[at : at + size], max_frame_size=frame_size))
        assert all(frames)
        at += size
        assert len(rope) == len(whole) - at
    assert not rope
    assert rope.take(1) == []


def test_pieces_that_are_sent_whole_are_not_copied() -> None:
    first, second, third = bytes(4), bytes(23), bytes(3)
    pieces = h2.data_frames(1, Rope([first, second, third]), max_frame_size=10)[1:]

    assert [len(piece) for piece in pieces] == [4, 6, *(9, 10), *(9, 7, 3)]
    assert pieces[0] is first
    assert pieces[-1] is third
    for view in (pieces[1], pieces[3], pieces[5]):
        assert isinstance(view, memoryview)
        assert view.obj is second


def test_padding_is_dropped_but_counts() -> None:
    wire = raw(h2.DATA, PADDED | END_STREAM, 1, b"\x03abc\0\0\0") + raw(h2.PING, 0, 0, b"12345678")

    assert FrameReader().feed(wire) == [Data(1, b"abc", True, 7, 4), Ping(b"12345678")]


def test_the_stream_ends_with_the_last_byte_of_padding() -> None:
    reader = FrameReader()
    wire = raw(h2.DATA, PADDED | END_STREAM, 1, b"\x02a\0\0")

    got = [reader.feed(wire[index : index + 1]) for index in range(len(wire))]

    assert got[-4:] == [[Data(1, b"", False, 4, 3)], [Data(1, b"a")], [], [Data(1, b"", True)]]


def test_a_frame_of_nothing_but_padding_is_legal() -> None:
    assert FrameReader().feed(raw(h2.DATA, PADDED, 1, b"\x01\0")) == [Data(1, b"", False, 2, 2)]


def test_padding_and_priority_of_headers_are_dropped() -> None:
    wire = raw(h2.HEADERS, PADDED | PRIORITY_FLAG | END_HEADERS | END_STREAM, 5, b"\x02\0\0\0\1\x10block\0\0")

    assert FrameReader().feed(wire) == [Headers(5, b"block", True)]


def test_continuations_make_one_block() -> None:
    wire = raw(h2.HEADERS, END_STREAM, 1, b"ab") + raw(h2.CONTINUATION, 0, 1, b"") + raw(9, END_HEADERS, 1, b"c")

    assert FrameReader().feed(wire) == [Headers(1, b"abc", True)]


def test_a_block_longer_than_a_frame_is_continued() -> None:
    wire = h2.headers_frames(1, bytes(40), max_frame_size=16, end_stream=True)

    assert [wire[3], wire[9 + 16 + 3], wire[2 * 25 + 3]] == [h2.HEADERS, h2.CONTINUATION, h2.CONTINUATION]
    assert FrameReader().feed(wire) == [Headers(1, bytes(40), True)]


def test_an_empty_block_is_still_a_frame() -> None:
    assert FrameReader().feed(h2.headers_frames(1, b"")) == [Headers(1, b"")]


def test_unknown_frames_and_priority_are_skipped_and_told_of() -> None:
    wire = raw(0xEE, 0xFF, 7, b"whatever") + raw(h2.PRIORITY, 0, 3, bytes(5))

    assert FrameReader().feed(wire) == [Skipped(0xEE, 7), Skipped(h2.PRIORITY, 3)]


def test_the_reserved_bit_of_a_stream_identifier_is_ignored() -> None:
    assert FrameReader().feed(raw(h2.RST_STREAM, 0, 0x8000_0001, b"\0\0\0\x08")) == [Reset(1, 8)]


def test_what_breaks_one_stream_does_not_break_the_rest() -> None:
    wire = raw(h2.WINDOW_UPDATE, 0, 3, bytes(4)) + raw(h2.PRIORITY, 0, 5, b"") + h2.ping_frame(bytes(8))

    first, second, third = FrameReader().feed(wire)

    assert isinstance(first, Malformed)
    assert (first.stream_id, first.code) == (3, ErrorCode.PROTOCOL_ERROR)
    assert isinstance(second, Malformed)
    assert (second.stream_id, second.code) == (5, ErrorCode.FRAME_SIZE_ERROR)
    assert third == Ping(bytes(8))


def test_words_in_a_goaway_are_kept_up_to_a_bound() -> None:
    wire = h2.goaway_frame(7, 0, b"x" * 5000)

    assert FrameReader().feed(wire) == [GoAway(7, 0, b"x" * 1024)]


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        pytest.param(raw(h2.DATA, 0, 1, bytes(101)), ErrorCode.FRAME_SIZE_ERROR, id="longer than allowed"),
        pytest.param(raw(h2.DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR, id="DATA on the connection"),
        pytest.param(raw(h2.DATA, PADDED, 1), ErrorCode.FRAME_SIZE_ERROR, id="no length of padding"),
        pytest.param(raw(h2.DATA, PADDED, 1, b"\x05abc"), ErrorCode.PROTOCOL_ERROR, id="more padding than frame"),
        pytest.param(raw(h2.HEADERS, 4, 0, b"x"), ErrorCode.PROTOCOL_ERROR, id="HEADERS on the connection"),
        pytest.param(raw(h2.HEADERS, 4 | PADDED, 1), ErrorCode.FRAME_SIZE_ERROR, id="headers without padding length"),
        pytest.param(raw(h2.HEADERS, 4 | PADDED, 1, b"\x09ab"), ErrorCode.PROTOCOL_ERROR, id="headers all padding"),
        pytest.param(raw(h2.HEADERS, 4 | PRIORITY_FLAG, 1, b"ab"), ErrorCode.PROTOCOL_ERROR, id="half a priority"),
        pytest.param(raw(h2.RST_STREAM, 0, 1, b"abc"), ErrorCode.FRAME_SIZE_ERROR, id="short RST_STREAM"),
        pytest.param(raw(h2.RST_STREAM, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR, id="RST_STREAM on the connection"),
        pytest.param(raw(h2.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR, id="SETTINGS on a stream"),
        pytest.param(raw(h2.SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR, id="SETTINGS of 5 bytes"),
        pytest.param(raw(h2.SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR, id="receipt with settings"),
        pytest.param(raw(h2.PUSH_PROMISE, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR, id="push"),
        pytest.param(raw(h2.PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR, id="short PING"),
        pytest.param(raw(h2.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR, id="PING on a stream"),
        pytest.param(raw(h2.GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR, id="short GOAWAY"),
        pytest.param(raw(h2.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR, id="GOAWAY on a stream"),
        pytest.param(raw(h2.WINDOW_UPDATE, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR, id="window update by 0"),
        pytest.param(raw(h2.WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR, id="short WINDOW_UPDATE"),
        pytest.param(raw(h2.CONTINUATION, 4, 1), ErrorCode.PROTOCOL_ERROR, id="CONTINUATION of nothing"),
        pytest.param(raw(1, 0, 1, b"a") + raw(9, 4, 3), ErrorCode.PROTOCOL_ERROR, id="CONTINUATION of another"),
        pytest.param(raw(1, 0, 1, b"a") + raw(6, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR, id="PING inside a block"),
        pytest.param(raw(1, 0, 1, bytes(40)) + raw(9, 4, 1, bytes(40)), ErrorCode.ENHANCE_YOUR_CALM, id="long block"),
        pytest.param(raw(1, 0, 1) + raw(9, 0, 1) * 65, ErrorCode.ENHANCE_YOUR_CALM, id="flood of CONTINUATION"),
    ],
)
@pytest.mark.parametrize("step", [1, 10_000])
def test_a_broken_frame_ends_the_connection(wire: bytes, code: ErrorCode, step: int) -> None:
    reader = FrameReader(max_frame_size=100, max_block=64)

    with pytest.raises(FrameError) as raised:
        for start in range(0, len(wire), step):
            reader.feed(wire[start : start + step])

    assert raised.value.code is code
    assert code.name in str(raised.value)


@pytest.mark.parametrize("wire", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX"])
@pytest.mark.parametrize("step", [1, 100])
def test_a_server_refuses_another_preface(wire: bytes, step: int) -> None:
    reader = FrameReader(preface=True)

    with pytest.raises(FrameError, match="preface"):
        for start in range(0, len(wire), step):
            reader.feed(wire[start : start + step])


def test_an_error_code_has_a_name_or_a_number() -> None:
    assert (h2.code_name(8), h2.code_name(0x99)) == ("CANCEL", "error code 0x99")
