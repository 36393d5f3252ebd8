import json
import re
from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams._core.sse import (
    Control,
    Event,
    SSEParser,
    decode_base64,
    encode_control,
    encode_data,
    parse_control,
)
from durable_streams.errors import ParseError

from .strategies import json_values, relaxed, splits

# Protocol, appendix D.6.
D6 = b"""\
event: data
data:[{"n":1},[2,3],"x"]

event: control
data:{"streamNextOffset":"0000000000000000_0000000000000018","streamCursor":"2991600","upToDate":true}

event: data
data:[{"n":4}]

event: control
data:{"streamNextOffset":"0000000000000000_0000000000000026","upToDate":true,"streamClosed":true}

"""


def parse(*chunks: bytes) -> list[Event]:
    parser = SSEParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def one_by_one(body: bytes) -> list[bytes]:
    return [body[index : index + 1] for index in range(len(body))]


def message(*lines: bytes) -> Event:
    return Event("message", b"\n".join(lines))


# Parser

#: What `str.splitlines` takes for line ends, and server-sent events do not.
NO_LINE_ENDS = "\u0085b\u2028c\u2029d\x0b\x0c\x1c\x1d\x1ee"


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"data:x\n\n", [message(b"x")]),
        (b"data: x\n\n", [message(b"x")]),
        (b"data:  x \n\n", [message(b" x ")]),  # one space goes, the others stay
        (b"data:\tx\n\n", [message(b"\tx")]),
        (b"data:a\ndata:b\n\n", [message(b"a", b"b")]),
        (b"data:\n\n", [message(b"")]),
        (b"data\n\n", [message(b"")]),
        (b"data\ndata\n\n", [message(b"", b"")]),
        (b"data:a:b\n\n", [message(b"a:b")]),
        (b"event:data\ndata:x\n\n", [Event("data", b"x")]),
        (b"data:x\nevent: control\n\n", [Event("control", b"x")]),
        (b"event:a\nevent:b\ndata:x\n\n", [Event("b", b"x")]),
        (b"event:\ndata:x\n\n", [message(b"x")]),
        (b"event: data\n\ndata:x\n\n", [message(b"x")]),  # an event without data is none, and its type is gone
        (b":comment\ndata:x\n:\n\n", [message(b"x")]),
        (b": keep-alive\n\n", []),
        (b"id: 1\nretry: 5\ndata:x\nunknown\nunknown:y\nDATA:z\n data:z\ndata :z\n\n", [message(b"x")]),
        (b"\xef\xbb\xbfdata:x\n\n", [message(b"x")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata:x\n\ndata:y\n\n", [message(b"y")]),  # one mark only
        (b"data:x\n\n\xef\xbb\xbfdata:y\n\n", [message(b"x")]),  # and only at the very beginning
        (b"\n\n\n", []),
        (b"data:a\r\ndata:b\r\n\r\ndata:c\r\n\r\n", [message(b"a", b"b"), message(b"c")]),
        (b"data:a\rdata:b\r\rdata:c\r\r", [message(b"a", b"b"), message(b"c")]),
        (b"data:a\r\n\ndata:b\n\r\ndata:c\r\r\n", [message(b"a"), message(b"b"), message(b"c")]),
        (f"data:a{NO_LINE_ENDS}\n\n".encode(), [message(f"a{NO_LINE_ENDS}".encode())]),
        (b"data:\xff\xfe\x00\n\n", [message(b"\xff\xfe\x00")]),  # undecoded
        (b"event:\xff\ndata:x\n\n", [Event("\ufffd", b"x")]),
        (b"data:x\n\ndata:cut off", [message(b"x")]),
        (b"data:x\n\ndata:cut off\n", [message(b"x")]),
        (b"", []),
    ],
)
def test_events_are_parsed_whole_and_byte_by_byte(body: bytes, events: list[Event]) -> None:
    assert parse(body) == events
    assert parse(*one_by_one(body)) == events


def reference(body: bytes) -> list[Event]:
    """The HTML standard's algorithm in its plainest form, over a whole body."""
    events, kind, data = [], "", None
    lines = re.split(rb"\r\n|\r|\n", body.removeprefix(b"\xef\xbb\xbf"))
    for line in lines[:-1]:
        if line == b"":
            if data is not None:
                events.append(Event(kind or "message", data[:-1]))
            kind, data = "", None
            continue
        name, value = re.fullmatch(rb"([^:]*)(?:: ?(.*))?", line, re.DOTALL).groups()  # type: ignore[union-attr]
        if name == b"event":
            kind = (value or b"").decode("utf-8", "replace")
        elif name == b"data":
            data = (data or b"") + (value or b"") + b"\n"
    return events


fields = [b"data", b"event", b"id", b"retry", b"control", b"x", b":", b": ", b" ", b"data:a\n\n", b"event:b\r\n"]
line_ends = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r"]
oddities = [b"\xef\xbb\xbf", b"\xef\xbb", b"\xc2\x85", b"\xe2\x80\xa8", b"\x0b", b"\x0c", b"\x00", b"\xff"]
pieces_of_bodies = st.lists(st.sampled_from([*fields, *line_ends, *oddities]), max_size=30).map(b"".join)


@relaxed
@given(pieces_of_bodies, st.data())
def test_any_split_of_any_body_gives_what_the_standard_says(body: bytes, data: st.DataObject) -> None:
    expected = reference(body)

    assert parse(body) == expected
    assert parse(*one_by_one(body)) == expected
    assert parse(*data.draw(splits(body))) == expected


def test_an_event_is_complete_at_the_first_half_of_its_last_line_end() -> None:
    parser = SSEParser()

    assert parser.feed(b"data:x\r\n\r") == [message(b"x")]
    assert parser.feed(b"") == []
    assert parser.feed(b"\ndata:y\n\n") == [message(b"y")]


@pytest.mark.timeout(30)
def test_a_long_line_in_single_bytes_takes_linear_time() -> None:
    # Copying the line at each step would move a terabyte.
    body = b"data:" + b"x" * (3 << 19) + b"\n\n"

    (event,) = parse(*one_by_one(body))

    assert len(event.data) == 3 << 19


@pytest.mark.timeout(30)
def test_a_large_chunk_of_short_events_takes_linear_time() -> None:
    assert len(parse(b"data:x\n\n" * 300_000)) == 300_000


# Limit


def outcome(limit: int, chunks: list[bytes]) -> tuple[list[Event], str | None]:
    parser, events = SSEParser(limit), []
    try:
        for chunk in [*chunks, b""]:  # an error comes with the call after the last events
            events += parser.feed(chunk)
    except ParseError as error:
        return events, str(error)
    return events, None


def test_an_event_of_the_largest_size_passes_and_one_byte_more_is_an_error() -> None:
    body = b"event: data\ndata:123\n\n"  # 11 + 1 + 8 bytes before the end of its last line

    for chunks in ([body], one_by_one(body)):
        assert outcome(20, chunks) == ([Event("data", b"123")], None)
        assert outcome(19, chunks) == (
            [],
            "server-sent event is larger than the limit of 19 bytes (max_response_bytes)",
        )


def test_events_before_the_one_that_is_too_large_are_returned_first() -> None:
    parser = SSEParser(10)

    assert parser.feed(b"data:a\n\ndata:b\n\ndata:much too large\n\ndata:c\n\n") == [message(b"a"), message(b"b")]
    for _ in range(2):  # and it is not forgotten
        with pytest.raises(ParseError) as caught:
            parser.feed(b"data:d\n\n")
    assert caught.value.preview == "data:much too large"


@pytest.mark.parametrize("endless", [b"data:", b":", b"event:", b"unknown", b"id:", b"data:x\n", b":x\n"])
def test_an_endless_event_is_an_error_before_its_end(endless: bytes) -> None:
    events, error = outcome(1000, [endless] * 1001)

    assert events == []
    assert error is not None
    assert "limit of 1000 bytes" in error


def test_the_limit_is_for_each_event() -> None:
    assert len(outcome(20, [b"data:0123456789\n\n" * 1000])[0]) == 1000


@relaxed
@given(pieces_of_bodies, st.integers(1, 30), st.data())
def test_the_limit_works_the_same_for_every_split(body: bytes, limit: int, data: st.DataObject) -> None:
    expected = outcome(limit, [body])

    assert outcome(limit, one_by_one(body)) == expected
    assert outcome(limit, data.draw(splits(body))) == expected


# Control events


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ('{"streamNextOffset":"5","streamCursor":"7","upToDate":true}', Control("5", "7", True, False)),
        ('{"streamNextOffset":"5","streamClosed":true}', Control("5", None, None, True)),
        ('{"streamNextOffset":"5"}', Control("5", None, None, False)),
        (' {"streamNextOffset" : "5", "upToDate":false, "streamClosed":false}\n', Control("5", None, False, False)),
        ('{"streamNextOffset":"5","streamCursor":null,"upToDate":null}', Control("5", None, None, False)),
        ('{"streamNextOffset":"5","streamCursor":2991600}', Control("5", "2991600", None, False)),
        ('{"streamNextOffset":"5","streamCursor":1.50}', Control("5", "1.50", None, False)),
        ('{"streamNextOffset":"5","streamCursor":""}', Control("5", "", None, False)),
        ('{"streamNextOffset":"5","later":[{}]}', Control("5", None, None, False)),
        ('{"streamNextOffset":"1","streamNextOffset":"2"}', Control("2", None, None, False)),
        ('{"streamNextOffset":"\\u00e9é"}', Control("éé", None, None, False)),
    ],
)
def test_control_events_are_read(text: str, control: Control) -> None:
    got = parse_control(text.encode())

    assert got == control
    assert got.cursor is None or type(got.cursor) is str


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b'{"streamNextOffset":"5","x":NaN}', "not valid JSON: NaN"),
        (b'{"streamNextOffset":"5",}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'"5"', "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"5", "not a JSON object"),
        (b"{}", "no valid streamNextOffset"),
        (b'{"streamNextOffset":"now"}', "no valid streamNextOffset"),
        (b'{"streamNextOffset":null}', "no valid streamNextOffset"),
        (b'{"streamNextOffset":""}', "no valid streamNextOffset"),
        (b'{"streamNextOffset":5}', "no valid streamNextOffset"),
        (b'{"streamNextOffset":["5"]}', "no valid streamNextOffset"),
        (b'{"streamNextOffset":"5","streamCursor":true}', "no valid streamCursor"),
        (b'{"streamNextOffset":"5","streamCursor":{}}', "no valid streamCursor"),
        (b'{"streamNextOffset":"5","upToDate":"true"}', "upToDate is not a boolean"),
        (b'{"streamNextOffset":"5","upToDate":1}', "upToDate is not a boolean"),
        (b'{"streamNextOffset":"5","streamClosed":"yes"}', "streamClosed is not a boolean"),
    ],
)
def test_a_broken_control_event_is_a_parse_error(data: bytes, words: str) -> None:
    with pytest.raises(ParseError, match=words) as caught:
        parse_control(data)

    assert caught.value.preview == data[:100].decode("utf-8", "replace")
    assert not caught.value.retryable


# Base64


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (b"", b""),
        (b"\n", b""),
        (b"AA==", b"\x00"),
        (b"AQ==", b"\x01"),
        (b"AAEC/v8=", b"\x00\x01\x02\xfe\xff"),
        (b"AAEC\n/v8=", b"\x00\x01\x02\xfe\xff"),
        (b"A\r\nAEC/v\r8=\n", b"\x00\x01\x02\xfe\xff"),
        (b"+/+/", b"\xfb\xff\xbf"),
    ],
)
def test_base64_is_decoded(text: bytes, data: bytes) -> None:
    assert decode_base64(text) == data


@pytest.mark.parametrize(
    "text",
    [
        *(b"A", b"AA", b"AAA", b"AA=", b"A===", b"====", b"=", b"AAAA=", b"AAAA====", b"AA==AAAA", b"AA=A"),
        *(b"AAAA AAA", b"AAA ", b"AAAA\t", b"-_-_", b"AAA*", b"AAA\x00", b"\xff\xff\xff\xff", "ÄÄ".encode()),
    ],
)
def test_what_is_not_strictly_base64_is_a_parse_error(text: bytes) -> None:
    with pytest.raises(ParseError, match="not valid base64") as caught:
        decode_base64(text)

    assert caught.value.preview == text.decode("utf-8", "replace")


@relaxed
@given(st.text("AB/+=\n\r -", max_size=12).map(str.encode))
def test_base64_is_accepted_exactly_if_it_is_canonical_in_form(text: bytes) -> None:
    joined = text.replace(b"\n", b"").replace(b"\r", b"")
    strict = re.fullmatch(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", joined)

    try:
        decoded: bytes | None = decode_base64(text)
    except ParseError:
        decoded = None

    assert decoded == (b64decode(joined) if strict else None)


# Writer


def test_the_worked_exchange_of_the_protocol_is_written_byte_for_byte() -> None:
    written = [
        encode_data(b'[{"n":1},[2,3],"x"]', binary=False),
        encode_control("0000000000000000_0000000000000018", cursor="2991600", up_to_date=True, stream_closed=False),
        encode_data(b'[{"n":4}]', binary=False),
        encode_control("0000000000000000_0000000000000026", cursor=None, up_to_date=True, stream_closed=True),
    ]

    assert b"".join(written) == D6


def test_the_worked_exchange_of_the_protocol_is_read() -> None:
    data, control, final_data, final_control = parse(D6)

    assert (data, final_data) == (Event("data", b'[{"n":1},[2,3],"x"]'), Event("data", b'[{"n":4}]'))
    assert (control.type, final_control.type) == ("control", "control")
    assert parse_control(control.data) == Control("0000000000000000_0000000000000018", "2991600", True, False)
    assert parse_control(final_control.data) == Control("0000000000000000_0000000000000026", None, True, True)


@pytest.mark.parametrize(
    ("payload", "binary", "written"),
    [
        (b"a\nb\r\ncd", False, b"event: data\ndata:a\ndata:b\ndata:cd\n\n"),  # protocol D.7
        (b"\x00\x01\x02\xfe\xff", True, b"event: data\ndata:AAEC/v8=\n\n"),  # the same
        (b"\x00" * 600, True, b"event: data\ndata:" + b"A" * 800 + b"\n\n"),  # on one line
        (b"", False, b"event: data\ndata:\n\n"),
        (b"", True, b"event: data\ndata:\n\n"),
        (b" a\n  b\n c\nd", False, b"event: data\ndata:  a\ndata:   b\ndata:  c\ndata:d\n\n"),
        (b"a\r b\r\n c", False, b"event: data\ndata:a\ndata:  b\ndata:  c\n\n"),
        (b"a\n", False, b"event: data\ndata:a\ndata:\n\n"),
        (b"\n\r\r\n", False, b"event: data\ndata:\ndata:\ndata:\ndata:\n\n"),
        (b"a\n\nevent: x\nid:", False, b"event: data\ndata:a\ndata:\ndata:event: x\ndata:id:\n\n"),
        ("\u0085\u2028\x0b".encode(), False, b"event: data\ndata:\xc2\x85\xe2\x80\xa8\x0b\n\n"),
    ],
)
def test_data_events_are_written(payload: bytes, binary: bool, written: bytes) -> None:
    assert encode_data(payload, binary=binary) == written


text_payloads = st.text(st.sampled_from(" ab:\n\r\t\u0085\u2028é"), max_size=20) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=20
)


@relaxed
@given(text_payloads.map(str.encode), st.data())
def test_text_comes_back_but_for_its_line_ends(payload: bytes, data: st.DataObject) -> None:
    chunks = data.draw(splits(encode_data(payload, binary=False)))

    assert parse(*chunks) == [Event("data", payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))]


@relaxed
@given(st.lists(json_values, min_size=1, max_size=3), st.data())
def test_json_comes_back_exactly(items: list[object], data: st.DataObject) -> None:
    payload = json.dumps(items, ensure_ascii=data.draw(st.booleans()), separators=(",", ":")).encode()

    assert parse(encode_data(payload, binary=False)) == [Event("data", payload)]


@relaxed
@given(st.binary(max_size=60), st.data())
def test_bytes_come_back_exactly(payload: bytes, data: st.DataObject) -> None:
    written = encode_data(payload, binary=True)
    text = data.draw(splits(b64encode(payload)))
    folded = b"event: data\n" + b"".join(b"data:" + piece + b"\n" for piece in text) + b"\n"

    for body in (written, folded):
        (event,) = parse(body)
        assert (event.type, decode_base64(event.data)) == ("data", payload)


@relaxed
@given(st.text(min_size=1, max_size=20), st.none() | st.text(max_size=10), st.booleans(), st.booleans())
def test_control_events_come_back_exactly(offset: str, cursor: str | None, up_to_date: bool, closed: bool) -> None:
    written = encode_control(offset, cursor=cursor, up_to_date=up_to_date, stream_closed=closed)

    (event,) = parse(written)

    assert event.type == "control"
    assert parse_control(event.data) == Control(offset, cursor, True if up_to_date else None, closed)
