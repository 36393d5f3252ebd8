"""JSON bodies become messages: textually the same, and readable for everyone (server 7)."""

import json
import math
import subprocess
import sys
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.server import InvalidJson, Payload, json_messages, split_json
from durable_streams.server.json_messages import MAX_DEPTH, SLICE_BYTES, split_in_slices


def messages(body: bytes) -> list[bytes]:
    payload = split_json(body)
    assert isinstance(payload, Payload), payload
    parts = [payload.data[start : end - 1] for start, end in pairwise([0, *payload.ends])]
    assert b"".join(part + b"," for part in parts) == payload.data
    return parts


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"n":1}', [b'{"n":1}']),
        (b'[{"n":1},{"n":2}]', [b'{"n":1}', b'{"n":2}']),
        (b"[[1],[2,3]]", [b"[1]", b"[2,3]"]),
        (b'[[["x"]]]', [b'[["x"]]']),
        (b"[]", []),
        (b" [ ] \r\n", []),
        (b"[[]]", [b"[]"]),
        (b"null", [b"null"]),
        (b' "a" ', [b'"a"']),
        (b"12345678901234567890", [b"12345678901234567890"]),
        (b"[1.0, -0, 1e5, 1E+2, 0.1e-7]", [b"1.0", b"-0", b"1e5", b"1E+2", b"0.1e-7"]),
        (b'{"a":1,"a":2}', [b'{"a":1,"a":2}']),
        (b'[ { "a" :\r\n\t[ 1 , 2 ] } , " a , b " ]', [b'{"a":[1,2]}', b'" a , b "']),
        ('["ä\u2028\u00a0😀"]'.encode(), ['"ä\u2028\u00a0😀"'.encode()]),
        (b'["\\u00e4\\ud83d\\ude00\\/"]', [b'"\\u00e4\\ud83d\\ude00\\/"']),
        (b'["\x7f"]', [b'"\x7f"']),
        (b"[1e308, 1e-999, 2e0005]", [b"1e308", b"1e-999", b"2e0005"]),
        (b'["1e999", "NaN", "\\\\ud800", "]", "e1000,"]', [b'"1e999"', b'"NaN"', b'"\\\\ud800"', b'"]"', b'"e1000,"']),
        (b"[" + b"9" * 308 + b"]", [b"9" * 308]),
        (b'["' + b"9" * 400 + b'"]', [b'"' + b"9" * 400 + b'"']),
    ],
)
def test_a_body_becomes_its_messages(body: bytes, expected: list[bytes]) -> None:
    assert messages(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"n":',
        b"[1,]",
        b"[,1]",
        b"[1 2]",
        b"1 2",
        b"[1][2]",
        b"nul",
        b"truex",
        b"'a'",
        b"{1:2}",
        b"{'a':1}",
        b'{"a" 1}',
        b'{"a":1,}',
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"-",
        b"1e",
        b"0x10",
        b"NaN",
        b"[Infinity]",
        b'{"a":-Infinity}',
        b'"\\x41"',
        b'"\\u12g4"',
        b'"a\nb"',
        b'"a\x00"',
        b'"\t"',
        b"[1\x0b]",
        b"[1\xc2\xa0]",
        b"/* no */1",
        b"\xef\xbb\xbf[1]",
        b"\xff\xfe[\x001\x00]\x00",
        b'["\xff"]',
        b'["\xc3"]',
        b'["\xed\xa0\x80"]',
        b'["\xf4\x90\x80\x80"]',
        b'"\\ud800"',
        b'"\\udc00"',
        b'"\\ud800\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\\ud800x\\udc00"',
        b'"\\ud83d\\ude00\\udfff"',
        b'"\\\\\\ud800"',
        b"1e999",
        b"[1E400]",
        b'{"a":-1e+999}',
        b"1e0309",
        b"9" * 309 + b".0",
        b"[" + b"9" * 400 + b"]",
        b"1" + b"0" * 250 + b"e99",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_readers_could_not_read_is_refused(body: bytes) -> None:
    result = split_json(body)
    assert isinstance(result, InvalidJson)
    assert result.problem


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_is_limited_per_message(opening: bytes, closing: bytes) -> None:
    deepest = opening * (MAX_DEPTH - 1) + b"1" + closing * (MAX_DEPTH - 1)
    assert messages(b"[[1]," + deepest + b"]") == [b"[1]", deepest]
    assert messages(b"[[" + deepest + b"]]") == [b"[" + deepest + b"]"]
    assert isinstance(split_json(b"[[[" + deepest + b"]]]"), InvalidJson)
    assert messages(b"[" + b"[{}]," * 2000 + b"1]")[-1] == b"1"
    wide = b'{"a":[' + b'["]}[[[[",{}],' * 2000 + b"0]}"
    assert messages(wide) == [wide]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def no_surrogates(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@given(JSON_VALUES.filter(no_surrogates), st.booleans(), st.sampled_from([None, 0, 2]))
def test_values_survive_in_any_style(value: object, ascii_only: bool, indent: int | None) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    expected = value if isinstance(value, list) else [value]
    parts = messages(body)
    assert [json.loads(part) for part in parts] == expected
    assert not any(b"\n" in part or b"\r" in part for part in parts)
    assert messages(b"[" + b",".join(parts) + b"]") == parts, "compact text is left as it is"


QUOTED = st.text(max_size=40).map(lambda text: b'"%b"' % text.encode("utf-8", "surrogatepass"))
JSON_LIKE = st.text(alphabet='[]{},:"\\u0dDfe19.-+ nultrs\n', max_size=20).map(str.encode)


@given(st.binary(max_size=40) | QUOTED | JSON_LIKE)
def test_any_bytes_are_messages_or_refused(body: bytes) -> None:
    result = split_json(body)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        assert isinstance(result, InvalidJson)
    else:
        assert isinstance(result, Payload)
        assert orjson.loads(b"[" + result.data[:-1] + b"]") == (value if isinstance(value, list) else [value])


@given(st.floats(allow_nan=False), st.integers(-400, 400), st.sampled_from("eE"))
def test_numbers_are_refused_exactly_if_a_double_cannot_hold_them(mantissa: float, exponent: int, e: str) -> None:
    text = f"{mantissa:.17f}".rstrip("0").rstrip(".") if math.isfinite(mantissa) else "1"
    text = f"{text}{e}{exponent:+d}"
    fits = math.isfinite(float(text))
    assert isinstance(split_json(f'[{{"a":{text}}}]'.encode()), Payload if fits else InvalidJson)


# --- long bodies


def in_slices(body: bytes) -> tuple[Payload | InvalidJson, int]:
    """What a body becomes in slices, and in how many steps."""
    work, steps = split_in_slices(body), 0
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value, steps
        steps += 1


def comparable(result: Payload | InvalidJson) -> Any:
    return result if isinstance(result, InvalidJson) else (result.data, list(result.ends))


@pytest.fixture(scope="module")
def tiny_slices() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_messages, "SLICE_BYTES", 12)
        patch.setattr(json_messages, "_FEW_BYTES", 0)
        patch.setattr(json_messages, "_MARKS_AT_A_TIME", 3)
        yield


def whole(body: bytes) -> Payload | InvalidJson:
    """The same in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_messages, "SLICE_BYTES", 1 << 40)
        return split_json(body)


WRONG = [
    b",",
    b"]",
    b"[",
    b"}",
    b"{",
    b'"',
    b"1e999",
    b'"\\ud800"',
    b"\xff",
    b"\xc3",
    b" ",
    b"\\",
    b",,",
    b"01",
    b"]]",
    b"",
]
DEEP = [b"[" * 600 + b"]" * 600, b'{"a":' * 2000]


@given(
    st.lists(st.integers() | JSON_VALUES.filter(no_surrogates) | st.sampled_from([",", '",', "},{", "\\", [[], {}]])),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " : ")]),
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from(WRONG + DEEP), st.booleans()), max_size=3),
)
def test_a_body_becomes_the_same_in_slices_and_whole(
    tiny_slices: None, items: list[Any], separators: tuple[str, str], wrong: list[tuple[float, bytes, bool]]
) -> None:
    body = json.dumps(items, ensure_ascii=False, separators=separators).encode()
    for place, piece, instead in wrong:
        at = int(place * len(body))
        body = body[:at] + piece + body[at + instead :]

    assert comparable(in_slices(body)[0]) == comparable(whole(body))


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"1," * 50 + b"]",
        b"[" + b"1," * 50 + b" ]",
        b"[" + b"1," * 50 + b"1],[" + b"1," * 50 + b"1]",
        b"[" + b"1," * 50 + b"1]" + b" " * 100,
        b"[" + b"1," * 50 + b"1]" + b" " * 100 + b"1",
        b"[" + b'"' + b"," * 100 + b'",' + b"1," * 50 + b"1]",
        b"[" + b'"' + b"," * 100,
        b"[" + b"[[[1],[2]],[[3],[4]]]," * 20 + b"1]",
        b"[" + b'{"a":[{"b":1},{"b":2}]},' * 20 + b"1]",
        b'["\\ud800",' + b"1," * 50 + b"1e999]",
        b"[" + b" " * 200 + b"1" + b" " * 200 + b"]",
        b"[" + b"[1}," * 50 + b"1]",
        b" " * 100,
        b'"' + b"x" * 100 + b'"',
    ],
)
def test_slices_do_not_change_what_is_refused(tiny_slices: None, body: bytes) -> None:
    assert comparable(in_slices(body)[0]) == comparable(whole(body))


@pytest.mark.parametrize(
    "element",
    [b"1", b'"abc"', b'{"a":1}', b'{"a":[{"b":1},{"b":2}]}', b'[[],[1],"],["]', b'"\xc3\xa4,"'],
    ids=["numbers", "strings", "objects", "nested objects", "arrays", "text"],
)
def test_a_long_array_is_taken_apart_a_little_at_a_time(element: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"[" + b",".join([element] * (300_000 // (len(element) + 1))) + b"]"
    expected = comparable(whole(body))
    found, lengths = json_messages._elements, []

    def watched(pieces: Any) -> Any:
        lengths.append(sum(map(len, pieces)))
        return found(pieces)

    monkeypatch.setattr(json_messages, "_elements", watched)
    result, steps = in_slices(body)

    assert comparable(result) == expected
    assert steps >= len(body) // SLICE_BYTES - 1
    assert max(lengths) <= 2 * SLICE_BYTES + 2
    assert isinstance(result, Payload)
    assert isinstance(result.ends, array), "a list of numbers takes ten times the memory"


def test_without_msgspec_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['msgspec'] = None\n"
        "from durable_streams.server import DurableStreamsApp\n"
        "try: DurableStreamsApp()\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == ("the server needs msgspec for JSON streams: pip install 'durable-streams-anyio[server]'\n")
