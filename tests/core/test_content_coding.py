import gzip
import os
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams._core.content_coding import ACCEPT_ENCODING, ContentDecoder, make_decoder
from durable_streams.errors import IncompleteBodyError, ParseError

from .strategies import relaxed, splits

PLAIN = b"0123456789 abc " * 20 + bytes(range(256))
MIB = 1 << 20


def raw_deflate(data: bytes, level: int = -1) -> bytes:
    deflater = zlib.compressobj(level, wbits=-15)
    return deflater.compress(data) + deflater.flush()


def named_gzip(data: bytes) -> bytes:
    """A gzip member with a file name, a comment, an extra field and a checksum of its header."""
    head = b"\x1f\x8b\x08\x1e\0\0\0\0\0\xff" + b"\x03\0abc" + b"name\0" + b"words\0"
    return head + (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") + gzip.compress(data)[10:]


def decode(decoder: ContentDecoder, *chunks: bytes) -> bytes:
    decoded = b"".join(piece for chunk in chunks for piece in decoder.feed(chunk))
    decoder.finish()
    return decoded


CODED = {
    "gzip": ("gzip", gzip.compress(PLAIN)),
    "x-gzip": ("x-gzip", gzip.compress(PLAIN)),
    "gzip with every header field": ("gzip", named_gzip(PLAIN)),
    "stored gzip": ("gzip", gzip.compress(PLAIN, 0)),
    "deflate": ("deflate", zlib.compress(PLAIN)),
    "deflate, best": ("deflate", zlib.compress(PLAIN, 9)),
    "deflate, small window": ("deflate", (small := zlib.compressobj(wbits=9)).compress(PLAIN) + small.flush()),
    "raw deflate": ("deflate", raw_deflate(PLAIN)),
    "stored raw deflate": ("deflate", raw_deflate(PLAIN, 0)),
    "two gzip members": ("gzip", gzip.compress(PLAIN[:100]) + gzip.compress(PLAIN[100:])),
    "empty gzip members": ("gzip", gzip.compress(b"") + gzip.compress(PLAIN) + gzip.compress(b"")),
    "padded gzip": ("gzip", gzip.compress(PLAIN) + bytes(20)),
    "padding between members": ("gzip", gzip.compress(PLAIN[:9]) + bytes(5) + gzip.compress(PLAIN[9:]) + bytes(3)),
    "two codings": ("deflate, GZIP", gzip.compress(zlib.compress(PLAIN))),
    "three codings": ("gzip,deflate ,identity,gzip", gzip.compress(raw_deflate(gzip.compress(PLAIN)))),
    "identity": ("identity", PLAIN),
    "empty header": (" , ", PLAIN),
    "no header": (None, PLAIN),
}
coded = pytest.mark.parametrize(("coding", "body"), CODED.values(), ids=CODED)
compressed = pytest.mark.parametrize(("coding", "body"), list(CODED.values())[:-3], ids=list(CODED)[:-3])


@coded
def test_a_body_is_decoded_whole_and_byte_by_byte(coding: str | None, body: bytes) -> None:
    assert decode(make_decoder(coding), body) == PLAIN
    assert decode(make_decoder(coding), *(body[i : i + 1] for i in range(len(body)))) == PLAIN


@relaxed
@given(st.sampled_from(list(CODED.values())), st.data())
def test_a_body_is_decoded_however_it_is_split(case: tuple[str | None, bytes], data: st.DataObject) -> None:
    coding, body = case

    assert decode(make_decoder(coding), *data.draw(splits(body))) == PLAIN


@relaxed
@given(st.binary(max_size=200), st.sampled_from([gzip.compress, zlib.compress, raw_deflate]), st.data())
def test_any_content_comes_back(content: bytes, compress: object, data: st.DataObject) -> None:
    assert callable(compress)
    coding = "gzip" if compress is gzip.compress else "deflate"

    assert decode(make_decoder(coding), *data.draw(splits(compress(content)))) == content


@compressed
def test_a_body_cut_anywhere_is_incomplete(coding: str | None, body: bytes) -> None:
    # Between two members, or in the padding, a gzip body is complete: there is no telling that more was meant.
    whole = [end for end in range(1, len(body)) if is_whole(coding, body[:end])]

    for end in range(1, len(body)):
        decoder = make_decoder(coding)
        decoded = b"".join(decoder.feed(body[:end]))
        assert PLAIN.startswith(decoded)
        if end not in whole:
            with pytest.raises(IncompleteBodyError, match=r"the body ended before its .* data did") as caught:
                decoder.finish()
            assert caught.value.phase == "body"
            assert caught.value.retryable
        else:
            decoder.finish()
    assert coding == "gzip" or not whole


def is_whole(coding: str | None, body: bytes) -> bool:
    """Whether the body ends between gzip members."""
    if coding not in ("gzip", "x-gzip"):
        return False
    try:
        gzip.decompress(body)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return False
    return True


@pytest.mark.parametrize("name", [name for name in CODED if "gzip" in name or name.startswith("deflate")])
def test_a_body_damaged_anywhere_never_passes_for_another(name: str) -> None:
    coding, body = CODED[name]  # raw deflate is not among them: it has no checksum

    for position in range(len(body)):
        damaged = bytearray(body)
        damaged[position] ^= 0x55
        try:
            decoded: bytes | None = decode(make_decoder(coding), bytes(damaged))
        except IncompleteBodyError:
            decoded = None
        assert decoded in (None, PLAIN)  # some bytes of a gzip header have no meaning


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"not gzip at all"),
        ("gzip", bytes(10) + gzip.compress(PLAIN)),
        ("gzip", gzip.compress(PLAIN)[:-8] + bytes(8)),
        ("gzip", gzip.compress(PLAIN) + b"more"),
        ("gzip", gzip.compress(PLAIN) + bytes(5) + b"more"),
        ("gzip", zlib.compress(PLAIN)),
        ("deflate", zlib.compress(PLAIN)[:-4] + bytes(4)),
        ("deflate", gzip.compress(PLAIN)),
        ("deflate", b"\xff\xff\xff\xff"),
        ("deflate", zlib.compress(PLAIN) + b"more"),
        ("deflate", zlib.compress(PLAIN) + b"\0"),
        ("deflate", raw_deflate(PLAIN) + b"more"),
        ("gzip, deflate", zlib.compress(b"not gzip")),
    ],
)
def test_damaged_data_is_an_incomplete_body(coding: str, body: bytes) -> None:
    with pytest.raises(IncompleteBodyError, match=r"^the body") as caught:
        decode(make_decoder(coding), body)

    assert caught.value.phase == "body"
    assert isinstance(caught.value.__cause__, zlib.error) or "goes on after the end" in str(caught.value)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, deflate", None])
def test_an_empty_body_is_complete_whatever_its_header_says(coding: str | None) -> None:
    assert decode(make_decoder(coding)) == b""
    assert decode(make_decoder(coding), b"", b"") == b""


def test_a_body_without_coding_is_not_copied() -> None:
    body = os.urandom(100)

    (piece,) = make_decoder("identity").feed(body)

    assert piece is body


def test_there_are_no_empty_pieces() -> None:
    for coding in ("gzip", "deflate", "identity"):
        assert list(make_decoder(coding).feed(b"")) == []
    assert list(make_decoder("gzip").feed(gzip.compress(b""))) == []


def test_deflate_is_told_from_its_raw_form_by_its_first_two_bytes() -> None:
    for number in range(600):
        content = bytes([number % 256, number * 7 % 256, number // 3]) * 3
        assert decode(make_decoder("deflate"), zlib.compress(content)) == content
        assert decode(make_decoder("deflate"), raw_deflate(content)) == content
    # Stored blocks whose padding looks like the beginning of a zlib header.
    assert decode(make_decoder("deflate"), b"\x08\x05\x00\xfa\xffhello\x03\x00") == b"hello"
    assert decode(make_decoder("deflate"), b"\x88\x1c\x00\xe3\xff%b\x03\x00" % PLAIN[:28]) == PLAIN[:28]


def test_each_of_several_codings_must_reach_its_end() -> None:
    inner = gzip.compress(PLAIN)

    for body in (gzip.compress(inner[:-3]), gzip.compress(inner)[:-3]):
        with pytest.raises(IncompleteBodyError, match="the body ended before its gzip data did"):
            decode(make_decoder("gzip, gzip"), body)


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, br", "x-deflate", "gzip;q=1"])
def test_an_unknown_coding_is_a_parse_error_that_names_it(coding: str) -> None:
    with pytest.raises(ParseError, match=f"unknown content coding '{coding.split(', ')[-1]}'"):
        make_decoder(coding)


def test_a_long_chain_of_codings_is_refused() -> None:
    assert decode(make_decoder("gzip, gzip, gzip, gzip")) == b""
    with pytest.raises(ParseError, match="5 content codings, at most 4"):
        make_decoder("gzip, gzip, gzip, gzip, gzip")


def test_only_what_can_be_decoded_is_offered() -> None:
    for coding in ACCEPT_ENCODING.split(", "):
        make_decoder(coding)


# Limits


@coded
def test_a_body_of_the_largest_size_passes_and_one_byte_more_is_an_error(coding: str | None, body: bytes) -> None:
    assert decode(make_decoder(coding, max_bytes=len(PLAIN)), body) == PLAIN
    for chunks in ([body], [body[i : i + 1] for i in range(len(body))]):
        decoder = make_decoder(coding, max_bytes=len(PLAIN) - 1)
        with pytest.raises(ParseError, match=rf"limit of {len(PLAIN) - 1} bytes \(max_response_bytes\)"):
            decode(decoder, *chunks)


def bomb(coding: str, size: int) -> bytes:
    deflater = zlib.compressobj(9, wbits=31 if coding == "gzip" else 15)
    return b"".join(deflater.compress(bytes(MIB)) for _ in range(size // MIB)) + deflater.flush()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip", "gzip members"])
def test_a_bomb_is_decoded_in_little_memory(coding: str) -> None:
    if coding == "gzip members":
        coding, body = "gzip", bomb("gzip", 2 * MIB) * 32
    else:
        body = bomb(coding.split(",")[0], 64 * MIB)
        body = gzip.compress(body) if "," in coding else body
    decoder, total = make_decoder(coding), 0
    assert len(body) < 80_000

    tracemalloc.start()
    for piece in decoder.feed(body):
        total += len(piece)
        assert len(piece) <= MIB
        del piece
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    decoder.finish()
    assert total == 64 * MIB
    assert peak < 5 * MIB


def test_a_bomb_over_the_limit_is_not_decoded_to_its_end() -> None:
    pieces = []

    decoder = make_decoder("gzip", max_bytes=3 * MIB)
    with pytest.raises(ParseError, match="limit of 3145728 bytes"):
        pieces.extend(len(piece) for piece in decoder.feed(bomb("gzip", 64 * MIB)))

    assert sum(pieces) <= 3 * MIB


def test_all_that_has_come_is_decoded_even_if_a_piece_is_full() -> None:
    # Cut where a repetition that crosses the end of the first piece is known, and the input used up.
    body = zlib.compress(bytes(MIB + 200))

    for end in range(len(body) - 20, len(body)):
        expected = len(zlib.decompressobj().decompress(body[:end]))
        assert sum(len(piece) for piece in make_decoder("deflate").feed(body[:end])) == expected


@pytest.mark.timeout(60)
def test_many_empty_members_take_linear_time() -> None:
    assert decode(make_decoder("gzip"), gzip.compress(b"") * 20_000 + gzip.compress(b"x")) == b"x"
