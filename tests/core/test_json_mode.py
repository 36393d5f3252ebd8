import dataclasses
import datetime
import enum
import json
import math
import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from durable_streams._core import json_mode
from durable_streams.errors import InvalidArgumentError, ParseError

from .strategies import json_values, relaxed

BOM = b"\xef\xbb\xbf"


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def same(one: object, other: object) -> bool:
    """Equal in type, too: 1 is not 1.0, and not True."""
    return repr(one) == repr(other)


# Bodies to items


@pytest.mark.parametrize(
    ("parts", "items"),
    [
        ([], []),
        ([b""], []),
        ([b" \r\n\t"], []),
        ([b"[]"], []),
        ([b" [ ] "], []),
        ([b'[null, 0, false, "", [], {}]'], [None, 0, False, "", [], {}]),
        ([b'{"a":1}'], [{"a": 1}]),
        ([b"null"], [None]),
        ([b'"x"'], ["x"]),
        ([b"[[1],[2,3]]"], [[1], [2, 3]]),
        ([b'[[["x"]]]'], [[["x"]]]),
        ([b"[[1],[2,3]]", b"4", b"", b"null", b"[5]", b"[]"], [[1], [2, 3], 4, None, 5]),
        ([BOM + b"[1]", BOM + b"2", BOM], [1, 2]),
        ([b"[1,2,]"], [1, 2]),
        ([b"[1,2\n,\n]\n"], [1, 2]),
        ([b"[[1],]", b"[2]"], [[1], 2]),
        ([b"[1.0, -0.0, 1e2, 1]"], [1.0, -0.0, 100.0, 1]),
        ([b'["\\ud83d\\ude00", "\\u0000", "\xf0\x9f\x98\x80"]'], ["😀", "\0", "😀"]),
        ([b'{"a":1,"a":2}'], [{"a": 2}]),
        ([b'["\\ud800"]'], ["\ud800"]),  # JSON has it, though it is no Unicode
        ([b"[1e400,-1e400]"], [math.inf, -math.inf]),  # likewise a number beyond a double
    ],
)
def test_texts_become_items(parts: list[bytes], items: list[object]) -> None:
    assert same(json_mode.decode_items(parts), items)


@pytest.mark.parametrize(
    "text",
    [
        *(b"[1,", b"[1", b"1]", b"{", b'"x', b"tru", b"1 2", b"[1][2]", b"[1],[2]", b"01", b"+1", b".5", b"1.", b"'x'"),
        *(b"NaN", b"[Infinity]", b"[-Infinity]", b"[nan]", b"\x0b", b"\xa0", b"\x00", b"[1]\x00", b'["\n"]', b'"\\x"'),
        *(b"[,]", b"[1,,]", b"[1,] []", b'{"a":1,}', b"[{},,]", b"[ , ]", b",", b"[[1,],2]"),
        *(b'"\xff"', b'["\xed\xa0\x80"]', BOM + BOM + b"[]", "[1]".encode("utf-16"), b"9" * 5000),
        *(deep(100_000), b"[" * 100_000, b'{"a":' * 100_000),
    ],
)
def test_a_broken_text_is_a_parse_error(text: bytes) -> None:
    with pytest.raises(ParseError, match=r"batch at offset '7' is not valid JSON: .") as caught:
        json_mode.decode_items([b"[0]", text], offset="7", url="http://host/x")

    assert (caught.value.offset, caught.value.url) == ("7", "http://host/x")
    assert caught.value.preview == text.removeprefix(BOM)[:400].decode("utf-8", "replace")[:100]
    assert isinstance(caught.value.__cause__, ValueError | RecursionError)
    assert not caught.value.retryable


def test_without_an_offset_the_error_names_none() -> None:
    with pytest.raises(ParseError, match=r"^batch is not valid JSON"):
        json_mode.decode_items([b"["])


@pytest.mark.parametrize("levels", [500, 900, 1023])
def test_deep_nesting_is_decoded(levels: int) -> None:
    (item,) = json_mode.decode_items([b"[" + deep(levels) + b"]"])

    for _ in range(levels - 1):
        (item,) = item
    assert item == []


@pytest.mark.parametrize("loads", [None, json.loads])
def test_nesting_never_ends_in_a_recursion_error(loads: Callable[[bytes], Any] | None) -> None:
    with pytest.raises(ParseError, match="nested too deeply"):
        json_mode.decode_items([deep(100_000)], loads=loads)


@relaxed
@given(st.lists(json_values, max_size=6), st.booleans(), st.sampled_from([None, 1]))
def test_any_json_is_decoded_exactly(items: list[Any], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(items, ensure_ascii=ascii_only, indent=indent).encode()

    assert same(json_mode.decode_items([text]), items)
    for item in items:
        expected = item if isinstance(item, list) else [item]
        assert same(json_mode.decode_items([json.dumps(item).encode()]), expected)


# Integers of any size

long_integers = st.integers(-(10**24), 10**24) | st.integers(10**17, 10**20)
BOUNDS = [0, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**19 - 1, 10**19, 10**20 - 1, 10**20, 10**40, 10**300]


@pytest.mark.parametrize("integer", [*BOUNDS, *(-bound for bound in BOUNDS), -(2**63) - 1])
@pytest.mark.parametrize("place", range(12))
def test_integers_keep_their_precision_wherever_they_stand(integer: int, place: int) -> None:
    before, after = "x" * place, [1.5] * place

    assert same(json_mode.decode_items([json.dumps([before, integer, *after]).encode()]), [before, integer, *after])


@relaxed
@given(st.lists(long_integers | st.floats(0, 1), min_size=1), st.text(max_size=9))
def test_integers_keep_their_precision_among_others(numbers: list[float], text: str) -> None:
    value = {text: numbers, "0": text}

    assert same(json_mode.decode_items([json.dumps([value]).encode()]), [value])


@pytest.mark.parametrize("integer", [2 * 10**19, -99 * 10**17, 10**25])
def test_integers_keep_their_precision_across_the_chunks_of_the_search(integer: int) -> None:
    for position in range(json_mode._CHUNK - 45, json_mode._CHUNK + 5):
        value = ["x" * position, integer]

        assert same(json_mode.decode_items([json.dumps(value).encode()]), value)


@pytest.mark.parametrize(
    "text",
    [
        b"[0.12345678901234567890123456789]",
        b"[1234567890.12345678901234567890123456789]",
        b"[1e-00000000000000000000000000001]",
        b"[1E+00000000000000000000000000001]",
        b"[1.0e00000000000000000000000000001]",
        b"[123456789012345678901234567890.5]",
        b"[-123456789012345678901234567890e5]",
        b"[1" + b"0" * 400 + b"e-400]",
    ],
)
def test_long_floats_are_floats(text: bytes) -> None:
    assert same(json_mode.decode_items([text]), json.loads(text))


@pytest.mark.parametrize(
    ("text", "long"),
    [
        (b"[12345678901234567890]", True),
        (b"[-1234567890123456789]", True),
        (b"[1, -12345678901234567890123]", True),
        (b"1" * 20, True),
        (b"[1234567890123456789]", False),
        (b"[0.12345678901234567890123456789]", False),
        (b"[123456789012345678901234567890.5]", False),
        (b'"--------------------------------"', False),
        (b'"2024-01-01-2024-01-01-2024-01-01"', False),
        (b'"------------------------------" 12345678901234567890', True),
        (b"0.1234567890123456789012345, 0.1234567890123456789012345, 12345678901234567890", True),
        (b"", False),
    ],
)
def test_only_a_long_integer_leaves_the_fast_path(text: bytes, long: bool) -> None:
    assert json_mode._has_long_integer(text) is long


# Other decoders


@dataclasses.dataclass
class Point:
    x: int


def test_another_decoder_sees_each_text_without_its_byte_order_mark() -> None:
    seen = []

    def loads(text: bytes) -> object:
        seen.append(text)
        return json.loads(text)

    assert json_mode.decode_items([BOM + b"[1]", b"", b" ", b"2"], loads=loads) == [1, 2]
    assert seen == [b"[1]", b"2"]


@pytest.mark.parametrize("loads", [json.loads, msgspec.json.decode])
def test_other_decoders_can_be_plugged_in(loads: Callable[[bytes], Any]) -> None:
    assert json_mode.decode_items([b'[{"x":1}, null]', b"{}", b"[7,]"], loads=loads) == [{"x": 1}, None, {}, 7]


def test_a_typed_decoder_gives_objects() -> None:
    loads = msgspec.json.Decoder(list[Point]).decode

    assert json_mode.decode_items([b'[{"x":1}]', b'[{"x":2}]'], loads=loads) == [Point(1), Point(2)]


def test_a_refusal_of_another_decoder_is_a_parse_error() -> None:
    with pytest.raises(ParseError, match="Expected `int`, got `str`") as caught:
        json_mode.decode_items([b'[{"x":"a"}]'], loads=msgspec.json.Decoder(list[Point]).decode, offset="3")

    assert isinstance(caught.value.__cause__, msgspec.ValidationError)
    assert caught.value.offset == "3"


def test_other_errors_of_another_decoder_pass_through() -> None:
    def loads(text: bytes) -> object:
        raise KeyError(text)

    with pytest.raises(KeyError):
        json_mode.decode_items([b"[1,]"], loads=loads)


def test_the_list_of_another_decoder_is_not_changed() -> None:
    mine = [1]

    assert json_mode.decode_items([b"x", b"y"], loads=lambda text: mine) == [1, 1]
    assert mine == [1]


# Values to items


class Colour(enum.Enum):
    RED = "red"
    HUGE = 2**64


@dataclasses.dataclass(slots=True)
class Order:
    number: int
    note: object = None
    _secret: object = None


NOON = datetime.datetime(2024, 1, 2, 12, tzinfo=datetime.UTC)


@relaxed
@given(json_values)
@example([1.0, -0.0, 5e-324, 1.7976931348623157e308])
def test_any_json_value_comes_back(value: object) -> None:
    encoded = json_mode.encode_item(value)

    assert same(json_mode.decode_items([json_mode.frame([encoded])]), [value])
    json_mode.check_item(encoded, validate=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, b"null"),
        ({"a": [1, 2.5, True, None], "é": "\n"}, '{"a":[1,2.5,true,null],"é":"\\n"}'.encode()),
        ({"é": [2**64, (1, None)]}, '{"é":[18446744073709551616,[1,null]]}'.encode()),
        ([-(2**63), -(2**63) - 1], b"[-9223372036854775808,-9223372036854775809]"),
        ({"a": None, "b": "null"}, b'{"a":null,"b":"null"}'),
        ("null", b'"null"'),
        ([[[None]]], b"[[[null]]]"),
        ((1, 2), b"[1,2]"),
        (Order(1, Colour.RED, "hidden"), b'{"number":1,"note":"red"}'),
        (Order(2**64, Colour.HUGE, math.nan), b'{"number":18446744073709551616,"note":18446744073709551616}'),
        ([2**64, NOON], b'[18446744073709551616,"2024-01-02T12:00:00+00:00"]'),
        ([2**64, uuid.UUID(int=1)], b'[18446744073709551616,"00000000-0000-0000-0000-000000000001"]'),
        ([None, NOON, Order(1)], b'[null,"2024-01-02T12:00:00+00:00",{"number":1,"note":null}]'),
    ],
)
def test_values_are_encoded_compactly(value: object, text: bytes) -> None:
    assert json_mode.encode_item(value) == text


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda number: number,
        lambda number: [number],
        lambda number: {"a": number},
        lambda number: {"a": number, "b": None, "c": "null"},
        lambda number: {"a": None, "b": [number]},
        lambda number: [2**70, number],
        lambda number: Order(1, number),
        lambda number: [None, Order(1, [{"x": (number,)}])],
    ],
)
def test_what_json_has_no_number_for_is_refused(number: float, wrap: Callable[[float], object]) -> None:
    with pytest.raises(InvalidArgumentError, match="item cannot be encoded as JSON"):
        json_mode.encode_item(wrap(number))


def circle() -> object:
    inner: list[object] = []
    inner.append({"a": inner})
    return inner


def tower(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [circle(), tower(50_000), "\ud800", {"\ud800": 1}, [2**70, "\udfff"], [10**5000]])
def test_what_can_never_be_sent_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^item "):
        json_mode.encode_item(value)


def test_nesting_that_one_encoder_refuses_is_left_to_the_other() -> None:
    assert json_mode.encode_item(tower(400)) == b"[" * 400 + b"1" + b"]" * 400


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "a value is of type object"),
        ({1, 2}, "a value is of type set"),
        (b"x", "a value is of type bytes"),
        ([1, {"a": datetime.timedelta(1)}], "a value is of type timedelta"),
        ([2**70, {1}], "a value is of type set"),
        (Order(1, b""), "a value is of type bytes"),
        (Order, "a value is of type type"),
        ({1: "a"}, "a key is of type int, not str"),
        ([{None: "a"}], "a key is of type NoneType, not str"),
        ({1: 2**70}, "a key is of type int, not str"),
        ([2**70, {True: 1}], "a key is of type bool, not str"),
        ([2**70, Order(1, ({2: 1},))], "a key is of type int, not str"),
    ],
)
def test_what_json_has_no_form_for_is_a_type_error(value: object, words: str) -> None:
    with pytest.raises(TypeError, match=rf"^item cannot be encoded as JSON: {words}$"):
        json_mode.encode_item(value)


# Items as text


@pytest.mark.parametrize("text", [b"", b" ", b"\t\r\n "])
def test_a_blank_item_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="one JSON text, got a blank one"):
        json_mode.check_item(text)


@pytest.mark.parametrize("text", [b"1", b" {} ", b"[]", b"null", b"[1,2]", b"123456789012345678901", b'"\\ud800"'])
def test_one_json_text_is_an_item(text: bytes) -> None:
    json_mode.check_item(text)
    json_mode.check_item(text, validate=True)


@pytest.mark.parametrize(
    "text",
    [b"{", b"1,2", b"{}{}", b"NaN", b'"\xff"', BOM + b"1", b"[1,]", b"\x0b", deep(100_000), b"12345678901234567890 x"],
)
def test_what_is_not_one_json_text_is_refused_on_request(text: bytes) -> None:
    json_mode.check_item(text)  # the server will look at it
    with pytest.raises(InvalidArgumentError, match="item must be one JSON text, got '"):
        json_mode.check_item(text, validate=True)


def test_items_are_framed_as_one_array() -> None:
    assert json_mode.frame([]) == b"[]"
    assert json_mode.frame([b"1"]) == b"[1]"
    assert json_mode.frame([b"1", b"[2]", b'{"a":3}']) == b'[1,[2],{"a":3}]'


# Whole bodies


@pytest.mark.parametrize("body", [b"", b" ", b"[]", b" [ \r\n\t] \n", BOM, BOM + b"[]", b"\r\n"])
def test_bodies_without_items_are_empty(body: bytes) -> None:
    assert json_mode.is_empty(body)
    assert json_mode.decode_items([body]) == []


@pytest.mark.parametrize(
    "body", [b"[[]]", b"[null]", b"{}", b'""', b"null", b"0", b"[", b"]", b"[] []", b"[]x", b"\x0b", b"[\x0c]"]
)
def test_other_bodies_are_not_empty(body: bytes) -> None:
    assert not json_mode.is_empty(body)


def test_a_large_body_is_not_copied_to_see_that_it_has_items() -> None:
    body = b" [ 1" + b", 1" * 1_000_000 + b"]"

    tracemalloc.start()
    empty = json_mode.is_empty(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert not empty
    assert peak < 10_000


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        ([], b"[]"),
        ([b""], b"[]"),
        ([b" ", b"[]", b" [\n] "], b"[]"),
        ([b"[1,2]"], b"[1,2]"),
        ([b' [ 1 , "] [" ] \n', b"[[2],{}]"], b'[1 , "] [",[2],{}]'),
        ([b"1", b'{"a":1}', b"null", b'"x"', b"[4]"], b'[1,{"a":1},null,"x",4]'),
        ([BOM + b"[1]", BOM, BOM + b"2"], b"[1,2]"),
        ([b"[1,]", b"[2 , ]"], b"[1,2]"),
        ([b"[12345678901234567890.50]"], b"[12345678901234567890.50]"),  # as it stands
    ],
)
def test_texts_are_joined_to_one_array(parts: list[bytes], joined: bytes) -> None:
    assert json_mode.join_arrays(parts) == joined


@pytest.mark.parametrize("part", [b"[", b"[1", b"[1,", b"{", b"1,2", b'"a","b"', b"1]", b"NaN", b"\xff", b'{"a":1},{}'])
def test_a_text_cut_off_is_not_joined(part: bytes) -> None:
    with pytest.raises(ParseError, match="batch at offset '9' is not valid JSON") as caught:
        json_mode.join_arrays([b"[1]", part], offset="9", url="http://host/x")

    assert caught.value.url == "http://host/x"


@relaxed
@given(st.lists(json_values, max_size=5), st.sampled_from(["", " ", "\r\n"]), st.sampled_from([None, 2]))
def test_joining_keeps_every_item(values: list[Any], space: str, indent: int | None) -> None:
    parts = [f"{space}{json.dumps(value, indent=indent)}{space}".encode() for value in values]

    joined = json_mode.join_arrays(parts)

    assert same(json_mode.decode_items([joined]), json_mode.decode_items(parts))


jumbled = st.lists(st.sampled_from([b"[", b"]", b",", b",]", b"1", b" ", b"{}", b"[1]"]), max_size=6).map(b"".join)


@relaxed
@given(st.lists(jumbled | jumbled.map(lambda inner: b"[1%b]" % inner), max_size=3))
def test_joining_never_makes_valid_what_is_not(parts: list[bytes]) -> None:
    try:
        expected: list[Any] | None = json_mode.decode_items(parts)
    except ParseError:
        expected = None

    try:
        joined: list[Any] | None = json_mode.decode_items([json_mode.join_arrays(parts)])
    except ParseError:
        joined = None

    assert same(joined, expected)
