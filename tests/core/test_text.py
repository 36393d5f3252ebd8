import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams._core.text import TextDecoder, preview
from durable_streams.errors import InvalidArgumentError, ParseError

from .strategies import relaxed, splits, texts

anything = st.binary(max_size=30) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))


def test_a_character_split_between_batches_waits_in_the_tail() -> None:
    decoder = TextDecoder()

    assert decoder.decode("a€".encode()[:-1]) == "a"
    assert decoder.tail == b"\xe2\x82"
    assert decoder.decode("€b".encode()[2:]) == "€b"
    assert decoder.tail == b""


@relaxed
@given(texts, st.data())
def test_text_survives_every_split_and_every_resumption(text: str, data: st.DataObject) -> None:
    pieces = data.draw(splits(text.encode()))

    decoded, decoder = "", TextDecoder()
    for piece in pieces:
        decoded += decoder.decode(piece)
        assert len(decoder.tail) <= 3
        decoder = TextDecoder(decoder.tail)  # as a checkpoint does

    assert decoded + decoder.decode(b"", final=True) == text


@relaxed
@given(anything, st.data())
def test_strict_decoding_accepts_exactly_what_is_utf_8(raw: bytes, data: st.DataObject) -> None:
    pieces = data.draw(splits(raw))
    try:
        expected: str | None = raw.decode("utf-8")
    except UnicodeDecodeError:
        expected = None

    decoder = TextDecoder()
    try:
        decoded: str | None = "".join([decoder.decode(piece) for piece in pieces]) + decoder.decode(b"", final=True)
    except ParseError:
        decoded = None

    assert decoded == expected


@relaxed
@given(anything, st.data())
def test_replacing_gives_the_same_for_every_split_and_never_fails(raw: bytes, data: st.DataObject) -> None:
    decoder, decoded = TextDecoder(errors="replace"), ""

    for piece in data.draw(splits(raw)):
        decoded += decoder.decode(piece)
        TextDecoder(decoder.tail)  # every tail can be resumed from

    assert decoded + decoder.decode(b"", final=True) == raw.decode("utf-8", "replace")
    assert decoder.tail == b""


def test_invalid_bytes_are_a_parse_error_that_tells_where() -> None:
    with pytest.raises(ParseError, match="offset '42': invalid start byte, byte 0xff") as caught:
        TextDecoder().decode(b"fine \xff bad", offset="42")

    assert caught.value.offset == "42"
    assert caught.value.preview == "\ufffd bad"
    assert isinstance(caught.value.__cause__, UnicodeDecodeError)


def test_the_preview_of_invalid_bytes_has_at_most_a_hundred_characters() -> None:
    with pytest.raises(ParseError) as caught:
        TextDecoder().decode(b"b" * 1000 + b"\xff" + b"a" * 1000)

    assert caught.value.preview == "\ufffd" + "a" * 99


@pytest.mark.parametrize("bad", [b"\xac\xff", b"x", b"\xff", b"\xac\xed\xa0"])
def test_after_an_error_the_decoder_is_as_before(bad: bytes) -> None:
    decoder = TextDecoder(b"\xe2\x82")

    with pytest.raises(ParseError):
        decoder.decode(bad)

    assert decoder.tail == b"\xe2\x82"
    assert decoder.decode(b"\xac!") == "€!"


def test_an_incomplete_character_at_the_end_is_an_error_if_strict() -> None:
    decoder = TextDecoder()

    assert decoder.decode(b"a\xf0\x9f\x98") == "a"
    with pytest.raises(ParseError, match="unexpected end of data"):
        decoder.decode(b"", final=True)
    assert decoder.tail == b"\xf0\x9f\x98"


def test_an_incomplete_character_at_the_end_is_replaced_on_request() -> None:
    assert TextDecoder(errors="replace").decode(b"a\xf0\x9f\x98", final=True) == "a\ufffd"


def test_an_encoded_surrogate_fails_before_its_third_byte() -> None:
    with pytest.raises(ParseError, match="invalid continuation byte"):
        TextDecoder().decode(b"ok\xed\xa0")

    decoder = TextDecoder(errors="replace")
    pieces = [decoder.decode(b"ok\xed\xa0"), decoder.decode(b"\x80!")]
    assert pieces == ["ok\ufffd\ufffd", "\ufffd!"]


def test_a_byte_order_mark_is_text_like_any_other() -> None:
    assert TextDecoder().decode(b"\xef\xbb\xbfa") == "\ufeffa"


@pytest.mark.parametrize("tail", [b"\xe2", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc3", b"\xed", b"\xed\x9f", b""])
def test_the_beginning_of_a_character_is_a_tail(tail: bytes) -> None:
    assert TextDecoder(tail).tail == tail


@pytest.mark.parametrize(
    "tail", [b"a", b"\xff", b"\x80", b"\xe2\x82\xac", b"\xe2\xe2", b"a\xe2", b"\xc0", b"\xed\xa0", b"\xf0\x9f\x98\x80"]
)
def test_other_bytes_are_no_tail(tail: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="text_tail must be the beginning of one UTF-8 character"):
        TextDecoder(tail)


def test_an_unknown_way_to_treat_errors_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="errors must be 'strict' or 'replace', got 'ignore'"):
        TextDecoder(errors="ignore")  # type: ignore[arg-type]  # the point of the test


def test_a_preview_is_short_and_never_fails() -> None:
    assert preview(b"") == ""
    assert preview(b"a\xff\n") == "a\ufffd\n"
    assert preview("€".encode() * 500) == "€" * 100
    assert preview("😀".encode() * 500) == "😀" * 100


def test_the_error_survives_pickling() -> None:
    with pytest.raises(ParseError) as caught:
        TextDecoder().decode(b"\xff", offset="1")

    copy = pickle.loads(pickle.dumps(caught.value))

    assert (str(copy), copy.preview, copy.offset) == (str(caught.value), "\ufffd", "1")
