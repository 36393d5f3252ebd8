"""Frames of s2s: vectors, splits, limits, damage."""

import gzip
import json
import sys
import threading
import zlib
from typing import Literal

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.errors import InvalidArgumentError
from durable_streams.s2 import _frames, _proto
from durable_streams.s2._frames import Compression, Frame, FrameDecoder, Terminal
from durable_streams.s2._values import (
    MAX_FRAME_PAYLOAD_BYTES,
    AppendInput,
    AppendRecord,
    ReadBatch,
    SequencedRecord,
    StreamPosition,
)
from durable_streams.s2.errors import S2ConnectionError, S2ProtocolError

LARGEST = MAX_FRAME_PAYLOAD_BYTES
PLAIN_1106 = _proto.encode_append_input(AppendInput([AppendRecord(b"a" * 1100)]))

#: The vectors of the specification (S2 4.7).
VECTORS: list[tuple[str, Frame | Terminal]] = [
    (
        "00001b000a1308cb89ec8ff72312060a016b1201761a02686910001a0174",
        Frame(bytes.fromhex("0a1308cb89ec8ff72312060a016b1201761a02686910001a0174")),
    ),
    ("00000700120408051009", Frame(_proto.encode_read_batch(ReadBatch((), StreamPosition(5, 9))))),
    (
        "000008100a051001220178",
        Frame(_proto.encode_read_batch(ReadBatch((SequencedRecord(0, 1, b"x"),))), reconnect=True),
    ),
    ("00000100", Frame(b"")),
    (
        "00001980019c7b227365715f6e756d5f6d69736d61746368223a357d",
        Terminal(412, b'{"seq_num_mismatch":5}'),
    ),
    ("0000192028b52ffd605203750000380acf081acc0861010048fcc008", Frame(PLAIN_1106)),
]


def decode(data: bytes) -> list[Frame | Terminal]:
    decoder = FrameDecoder()
    frames = decoder.feed(data)
    decoder.finish()
    return frames


@pytest.mark.parametrize(("text", "frame"), VECTORS)
def test_frames_have_the_bytes_of_the_specification(text: str, frame: Frame | Terminal) -> None:
    data = bytes.fromhex(text)

    assert decode(data) == [frame]
    if isinstance(frame, Terminal):
        assert _frames.encode_terminal(frame) == data
    elif len(frame.payload) < 1024 and not frame.reconnect:
        assert _frames.encode_frame(frame.payload) == data
        assert _frames.encode_frame(frame.payload, "zstd") == data
        assert _frames.encode_frame_of([frame.payload[:3], frame.payload[3:]]) == (data,)
        assert _frames.encode_frame_of([frame.payload], "gzip") == (data,)


def test_the_compressed_vector_is_an_append_input() -> None:
    assert len(PLAIN_1106) == 1106
    assert PLAIN_1106.hex().startswith("0acf081acc08")


def test_all_vectors_are_found_at_every_split() -> None:
    data = b"".join(bytes.fromhex(text) for text, _ in VECTORS if text != VECTORS[4][0]) + bytes.fromhex(VECTORS[4][0])
    expected = [frame for _, frame in VECTORS if isinstance(frame, Frame)] + [VECTORS[4][1]]

    for cut in range(len(data) + 1):
        for whole in (data, memoryview(data)):
            decoder = FrameDecoder()
            frames = decoder.feed(whole[:cut]) + decoder.feed(whole[cut:])
            decoder.finish()
            assert frames == expected
    decoder = FrameDecoder()
    assert [frame for byte in data for frame in decoder.feed(bytes([byte]))] == expected
    decoder.finish()


COMPRESSIONS: st.SearchStrategy[Compression] = st.sampled_from(["none", "gzip", "zstd"])
PAYLOADS = st.one_of(st.binary(max_size=50), st.binary(min_size=1, max_size=30).map(lambda unit: unit * 100))


@given(st.lists(st.tuples(PAYLOADS, COMPRESSIONS), max_size=5), st.data())
@settings(max_examples=150, deadline=None)
def test_any_frames_in_any_split_come_back_as_they_were(
    frames: list[tuple[bytes, Compression]], draw: st.DataObject
) -> None:
    data = b"".join(_frames.encode_frame(payload, how) for payload, how in frames)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))

    for whole in (data, memoryview(data)):
        decoder, found = FrameDecoder(), []
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            found += decoder.feed(whole[start:stop])
        decoder.finish()

        assert found == [Frame(payload) for payload, _ in frames]
        assert {type(frame.payload) for frame in found if isinstance(frame, Frame)} <= {bytes}


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_payloads_are_compressed_from_1024_bytes_up_if_it_helps(how: Literal["gzip", "zstd"]) -> None:
    flag = {"gzip": 0x40, "zstd": 0x20}[how]

    assert _frames.encode_frame(b"a" * 1023, how)[3] == 0
    assert _frames.encode_frame(b"a" * 1024, how)[3] == flag
    noise = zlib.compress(bytes(range(256)) * 8)[:1] + bytes((i * i * 31 + i // 7) & 0xFF for i in range(1024))
    packed = _frames.encode_frame(noise, how)
    assert len(packed) <= len(noise) + 4
    assert decode(packed) == [Frame(noise)]


def test_a_compressed_frame_is_decoded_though_it_was_never_asked_for() -> None:
    for small in (b"", b"tiny"):
        packed = zstandard.ZstdCompressor().compress(small)
        assert decode(_frames.frame_head(len(packed), 0x20) + packed) == [Frame(small)]
        packed = gzip.compress(small)
        assert decode(_frames.frame_head(len(packed), 0x40) + packed) == [Frame(small)]


def test_zstd_without_content_size_is_decoded() -> None:
    for size in (10, 100_000, LARGEST):
        packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
        packed = packer.compress(b"z" * size) + packer.flush()
        assert decode(_frames.frame_head(len(packed), 0x20) + packed) == [Frame(b"z" * size)]


def test_reserved_bits_are_ignored() -> None:
    assert decode(bytes([0, 0, 2, 0x0F, 7])) == [Frame(b"\x07")]
    assert decode(bytes([0, 0, 2, 0x1A, 7])) == [Frame(b"\x07", reconnect=True)]
    assert decode(b"\x00\x00\x05\x9f\x01\xf4{}") == [Terminal(500, b"{}")]


def test_the_largest_frame_passes_and_one_byte_more_does_not() -> None:
    head = _frames.frame_head(LARGEST)
    assert head[:3].hex() == "200000"
    [frame] = decode(head + bytes(LARGEST))
    assert frame == Frame(bytes(LARGEST))

    with pytest.raises(InvalidArgumentError, match="make batches smaller"):
        _frames.encode_frame(bytes(LARGEST + 1))
    with pytest.raises(S2ProtocolError, match="length 2097153"):
        FrameDecoder().feed(bytes.fromhex("200001"))


def test_an_illegal_length_is_refused_before_anything_follows_it() -> None:
    for head in ("000000", "ffffff", "200001"):
        with pytest.raises(S2ProtocolError, match="has the length"):
            FrameDecoder().feed(bytes.fromhex(head))


@pytest.mark.parametrize("how", ["gzip", "zstd", "zstd without size"])
@pytest.mark.parametrize("size", [LARGEST, LARGEST + 1, 50 * LARGEST])
def test_bombs_are_bounded(how: str, size: int) -> None:
    if how == "gzip":
        packed = gzip.compress(bytes(size))
    else:
        packer = zstandard.ZstdCompressor(write_content_size=how == "zstd").compressobj(size)
        packed = packer.compress(bytes(size)) + packer.flush()
    data = _frames.frame_head(len(packed), 0x40 if how == "gzip" else 0x20) + packed

    if size == LARGEST:
        assert decode(data) == [Frame(bytes(size))]
    else:
        with pytest.raises(S2ProtocolError, match="2097151"):
            FrameDecoder().feed(data)


@pytest.mark.parametrize(
    ("flag", "payload", "words"),
    [
        (0x60, b"", "compression 3"),
        (0x20, b"nonsense", "zstd data is damaged"),
        (0x20, zstandard.ZstdCompressor().compress(b"abc" * 9)[:-2], "zstd data is damaged"),
        (0x20, zstandard.ZstdCompressor().compress(b"abc" * 9) + b"!", "zstd data is damaged"),
        (0x20, b"", "zstd data is damaged"),
        (0x40, b"nonsense", "gzip data is damaged"),
        (0x40, gzip.compress(b"abc", mtime=0)[:-2], "gzip data is cut"),
        (0x40, b"", "gzip data is cut"),
        (0x40, gzip.compress(b"abc", mtime=0) + b"!", "goes on after its end"),
        (0x80, b"", "lacks its status"),
        (0x80, b"\x01", "lacks its status"),
        (0x80, b"\x01\xf4", "no JSON object"),
        (0x80, b"\x01\xf4<html>", "status 500 has no JSON"),
        (0x80, b"\x01\xf4[{}]", "no JSON object"),
        (0x80, b"\x01\xf4null", "no JSON object"),
        (0x80, b"\x01\xf4\xff", "no JSON"),
        (0x80, b"\x00\xc8{}", "status 200, which is no error"),
        (0xA0, zstandard.ZstdCompressor().compress(b"\x01\xf4{}"), "terminal frame is compressed"),
    ],
)
def test_bad_frames_are_named(flag: int, payload: bytes, words: str) -> None:
    with pytest.raises(S2ProtocolError, match=words):
        FrameDecoder().feed(_frames.frame_head(len(payload), flag) + payload)


def test_good_frames_before_a_bad_one_come_first() -> None:
    decoder = FrameDecoder()

    assert decoder.feed(bytes.fromhex("00000100" + "0000020007" + "000000")) == [Frame(b""), Frame(b"\x07")]
    for _ in range(2):
        with pytest.raises(S2ProtocolError, match="length 0"):
            decoder.check()
    with pytest.raises(S2ProtocolError, match="length 0"):
        decoder.feed(b"")
    with pytest.raises(S2ProtocolError, match="length 0"):
        decoder.finish()


def test_bytes_after_a_terminal_frame_are_ignored() -> None:
    terminal = Terminal(503, b'{"code":"server_draining"}')
    decoder = FrameDecoder()

    assert decoder.feed(_frames.encode_terminal(terminal) + b"\x00\x00\x00garbage") == [terminal]
    assert decoder.feed(b"\xff\xff\xff\xff") == []
    decoder.finish()


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_body_cut_inside_a_frame_can_be_tried_again(cut: int) -> None:
    decoder = FrameDecoder()
    assert decoder.feed(bytes.fromhex("00000100" + "00000700120408051009")[: 4 + cut]) == [Frame(b"")]

    with pytest.raises(S2ConnectionError, match=f"after {cut} bytes of a frame") as caught:
        decoder.finish()
    assert caught.value.retryable
    assert not caught.value.definite


def test_a_body_that_ends_between_frames_is_complete() -> None:
    decoder = FrameDecoder()
    decoder.finish()
    decoder.feed(bytes.fromhex("00000100"))
    decoder.finish()


@given(st.lists(st.sampled_from([bytes.fromhex(text) for text, _ in VECTORS]), min_size=1, max_size=4), st.data())
@settings(max_examples=400, deadline=None)
def test_damaged_frames_raise_a_protocol_error_and_nothing_else(frames: list[bytes], draw: st.DataObject) -> None:
    damaged = bytearray(b"".join(frames))
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = draw.draw(st.integers(0, 255))
    decoder = FrameDecoder()
    cut = draw.draw(st.integers(0, len(damaged)))

    try:
        found = decoder.feed(bytes(damaged[:cut])) + decoder.feed(bytes(damaged[cut:]))
        decoder.check()
    except S2ProtocolError:
        return
    for frame in found:
        assert isinstance(frame, Frame | Terminal)
        if isinstance(frame, Terminal):
            assert isinstance(json.loads(frame.body), dict)


def test_every_thread_has_its_own_zstd() -> None:
    found: list[bytes] = []
    payload = b"abc" * 1000
    thread = threading.Thread(target=lambda: found.append(_frames.encode_frame(payload, "zstd")))
    packed = _frames.encode_frame(payload, "zstd")
    thread.start()
    thread.join()

    assert found == [packed]
    assert decode(packed) == [Frame(payload)]


def test_feeding_many_small_pieces_of_a_large_frame_takes_linear_time() -> None:
    decoder = FrameDecoder()
    decoder.feed(_frames.frame_head(1_000_000))
    for _ in range(9_999):
        assert decoder.feed(bytes(100)) == []

    assert decoder.feed(bytes(100)) == [Frame(bytes(1_000_000))]
    assert repr(decoder) == "<FrameDecoder: 0 bytes of a frame>"


def test_large_pieces_of_a_payload_are_not_copied() -> None:
    large, small = [bytes(20_000), b"ab", bytes(60_000)], [bytes(20_000), *[b"ab"] * 9]

    assert _frames.encode_frame_of(large)[1:] == tuple(large)
    assert all(piece is given for piece, given in zip(_frames.encode_frame_of(large)[1:], large, strict=True))
    assert b"".join(_frames.encode_frame_of(large)) == _frames.encode_frame(b"".join(large))
    assert _frames.encode_frame_of(small) == (_frames.encode_frame(b"".join(small)),)
    assert _frames.encode_frame_of(large, "zstd") == (_frames.encode_frame(b"".join(large), "zstd"),)
    with pytest.raises(InvalidArgumentError, match="make batches smaller"):
        _frames.encode_frame_of([bytes(LARGEST), b"x"])


def test_a_decoder_tells_how_much_of_a_frame_it_has() -> None:
    data = _frames.frame_head(20) + bytes(20)
    decoder = FrameDecoder()

    for cut in range(len(data)):
        assert repr(decoder) == f"<FrameDecoder: {cut} bytes of a frame>"
        found = decoder.feed(data[cut : cut + 1])
    assert found == [Frame(bytes(20))]
    assert repr(decoder) == "<FrameDecoder: 0 bytes of a frame>"


def test_zstd_without_its_package_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    _frames._zstd.cache_clear()
    try:
        with pytest.raises(ImportError, match=r"pip install 'durable-streams-anyio\[s2\]'"):
            _frames.encode_frame(b"a" * 2000, "zstd")
        assert decode(_frames.encode_frame(b"a" * 2000, "gzip")) == [Frame(b"a" * 2000)]
    finally:
        _frames._zstd.cache_clear()
