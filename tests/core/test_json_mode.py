import pytest

from durable_streams._core import json_mode
from durable_streams.errors import ParseError


@pytest.mark.parametrize(
    ("parts", "items"),
    [
        ([], []),
        ([b""], []),
        ([b" \r\n\t"], []),
        ([b"[]"], []),
        ([b"[null, 0, false, []]"], [None, 0, False, []]),
        ([b'{"a":1}'], [{"a": 1}]),
        ([b"null"], [None]),
        ([b"[[1],[2,3]]", b"4", b"", b"[5]"], [[1], [2, 3], 4, 5]),
        ([b"\xef\xbb\xbf[1]"], [1]),
        ([b"[18446744073709551616,-9223372036854775809]"], [2**64, -(2**63) - 1]),
        ([b"[1,2,\n]"], [1, 2]),
    ],
)
def test_texts_become_items(parts: list[bytes], items: list[object]) -> None:
    assert json_mode.decode_items(parts) == items


@pytest.mark.parametrize("text", [b"[1,", b"NaN", b"[Infinity]", b'"\xff"', b"[,]", b"1 2", b"[" * 100_000])
def test_a_broken_text_is_a_parse_error(text: bytes) -> None:
    with pytest.raises(ParseError, match="batch at offset '7'") as caught:
        json_mode.decode_items([text], offset="7", url="http://host/x")

    assert (caught.value.offset, caught.value.url) == ("7", "http://host/x")
    assert 0 < len(caught.value.preview) <= 100
