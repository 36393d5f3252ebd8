"""Names, tokens and keys: the table of S2 1.2, checked to the byte."""

import base64

import pytest

from durable_streams import InvalidArgumentError
from durable_streams.s2 import _names


@pytest.mark.parametrize("name", ["a" * 8, "a" * 48, "my-basin-01", "0a--b--c9", "12345678"])
def test_a_basin_has_8_to_48_characters_of_a_small_alphabet(name: str) -> None:
    assert _names.basin(name) == name


@pytest.mark.parametrize(
    "name", ["a" * 7, "a" * 49, "-abcdefgh", "abcdefgh-", "Abcdefgh", "abc_defgh", "abcdefgé", "abcdefgh\n", ""]
)
def test_any_other_basin_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="basin must be 8 to 48"):
        _names.basin(name)


@pytest.mark.parametrize("prefix", ["", "a", "a-", "my-basin-", "a" * 48])
def test_a_basin_prefix_may_be_short_and_end_in_a_hyphen(prefix: str) -> None:
    assert _names.basin_prefix(prefix) == prefix


@pytest.mark.parametrize("prefix", ["-", "-a", "A", "a" * 49, "a\n"])
def test_any_other_basin_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidArgumentError, match="prefix must be at most 48"):
        _names.basin_prefix(prefix)


@pytest.mark.parametrize("name", ["a", "a/b c", "..x", "...", "%", "?#", "é" * 256, "😀" * 128, "\n", " ", "%2E"])
def test_a_stream_has_1_to_512_bytes_of_anything(name: str) -> None:
    assert _names.stream(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "é" * 257, "a" * 513, "😀" * 129, "\ud800"])
def test_any_other_stream_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="stream "):
        _names.stream(name)


def test_a_stream_is_measured_in_bytes_and_the_message_says_how_many() -> None:
    with pytest.raises(InvalidArgumentError, match="at most 512 bytes in UTF-8, got 514"):
        _names.stream("é" * 257)


@pytest.mark.parametrize("prefix", ["", ".", "..", "é" * 256])
def test_a_stream_prefix_may_be_empty_or_dots(prefix: str) -> None:
    assert _names.stream_prefix(prefix) == prefix


@pytest.mark.parametrize("prefix", ["a\0", "a" * 513])
def test_any_other_stream_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidArgumentError, match="prefix must"):
        _names.stream_prefix(prefix)


def test_a_token_id_has_1_to_96_bytes() -> None:
    assert _names.token_id("é" * 48) == "é" * 48
    for wrong in ("", ".", "..", "a" * 97, "é" * 49, "\0"):
        with pytest.raises(InvalidArgumentError, match="id must"):
            _names.token_id(wrong)


def test_a_location_has_1_to_64_characters() -> None:
    assert _names.location("aws:us-east-1") == "aws:us-east-1"
    for wrong in ("", "a" * 65, "aws us", "é"):
        with pytest.raises(InvalidArgumentError, match="location must"):
            _names.location(wrong)


def test_a_request_token_has_1_to_36_characters() -> None:
    assert _names.request_token("x" * 36) == "x" * 36
    for wrong in ("", "x" * 37, "a b", "é", "a\n"):
        with pytest.raises(InvalidArgumentError, match="request_token must"):
            _names.request_token(wrong)


@pytest.mark.parametrize("limit", [0, 1001, -1])
def test_a_page_limit_that_the_server_would_silently_change_is_refused(limit: int) -> None:
    with pytest.raises(InvalidArgumentError, match="limit must be at"):
        _names.page_limit(limit)


def test_an_encryption_key_is_32_bytes_or_their_base64() -> None:
    raw = bytes(range(32))
    text = base64.b64encode(raw).decode()

    assert _names.encryption_key(raw) == text
    assert _names.encryption_key(bytearray(raw)) == text
    assert _names.encryption_key(f" {text}\n") == text


@pytest.mark.parametrize(
    "key",
    [b"x" * 31, b"x" * 33, "secret-that-is-no-base64!", base64.b64encode(b"y" * 31).decode(), "é", ""],
)
def test_any_other_encryption_key_is_refused_without_being_shown(key: bytes | str) -> None:
    with pytest.raises(InvalidArgumentError, match="encryption_key must be") as caught:
        _names.encryption_key(key)

    shown = key.decode() if isinstance(key, bytes) else key
    assert not shown or shown not in str(caught.value)


@pytest.mark.parametrize("token", ["", "with space", "line\nfeed", "é"])
def test_an_access_token_that_cannot_be_a_header_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(InvalidArgumentError, match="access_token") as caught:
        _names.access_token(token)

    assert not token or token not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "segment"),
    [
        ("a/b c", "a%2Fb%20c"),
        ("%?#", "%25%3F%23"),
        ("..x", "..x"),
        ("😀", "%F0%9F%98%80"),
        ("a&b=c+d", "a%26b%3Dc%2Bd"),
        ("%2E", "%252E"),
    ],
)
def test_every_reserved_byte_of_a_name_is_encoded(name: str, segment: str) -> None:
    assert _names.segment(name) == segment


@pytest.mark.parametrize(
    "check",
    [
        _names.basin,
        _names.basin_prefix,
        _names.stream,
        _names.stream_prefix,
        _names.token_id,
        _names.location,
        _names.request_token,
        _names.access_token,
        _names.encryption_key,
    ],
)
def test_a_wrong_type_is_a_type_error(check: object) -> None:
    assert callable(check)
    with pytest.raises(TypeError):
        check(5)
