"""JSON of records and batches, raw and base64."""

import contextlib
import json
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.errors import InvalidArgumentError
from durable_streams.s2 import _json_records as codec
from durable_streams.s2._json_records import Format
from durable_streams.s2._values import (
    MAX_U64,
    AppendAck,
    AppendInput,
    AppendRecord,
    ReadBatch,
    SequencedRecord,
    StreamPosition,
)
from durable_streams.s2.errors import S2ProtocolError

from .test_proto import INPUT, read_batches

FORMATS: tuple[Format, ...] = ("raw", "base64")


def test_the_example_of_the_specification_has_its_bytes() -> None:
    batch = AppendInput([AppendRecord(b"hi", [(b"k", b"v")]), AppendRecord(b"\x00\x01")], 0, "")
    text = (
        b'{"records":[{"headers":[["aw==","dg=="]],"body":"aGk="},{"body":"AAE="}],'
        b'"match_seq_num":0,"fencing_token":""}'
    )

    assert codec.encode_append_input(batch, "base64") == text
    assert codec.decode_append_input(text, "base64") == batch


def test_commands_in_base64_have_the_bytes_of_the_specification() -> None:
    fence = json.loads(codec.encode_append_input(AppendInput([AppendRecord.fence("tok")]), "base64"))
    trim = json.loads(codec.encode_append_input(AppendInput([AppendRecord.trim(258)]), "base64"))

    assert fence == {"records": [{"headers": [["", "ZmVuY2U="]], "body": "dG9r"}]}
    assert trim == {"records": [{"headers": [["", "dHJpbQ=="]], "body": "AAAAAAAAAQI="}]}


def test_a_batch_of_the_server_leaves_out_what_is_empty() -> None:
    batch = ReadBatch(
        (SequencedRecord(0, 9, b"hi", ((b"k", b"v"),)), SequencedRecord(1, 9, b"\0\x01"), SequencedRecord(2, 9))
    )
    text = (
        b'{"records":[{"seq_num":0,"timestamp":9,"headers":[["k","v"]],"body":"hi"},'
        b'{"seq_num":1,"timestamp":9,"body":"\\u0000\\u0001"},{"seq_num":2,"timestamp":9}]}'
    )

    assert codec.encode_read_batch(batch, "raw") == text
    assert codec.decode_read_batch(text, "raw") == batch
    assert codec.decode_read_batch(b'{"records":[]}', "raw") == ReadBatch()


def is_text(batch: AppendInput) -> bool:
    texts = [text for record in batch.records for text in (record.body, *sum(record.headers, ()))]
    with contextlib.suppress(UnicodeDecodeError):
        return all(text.decode() is not None for text in texts)
    return False


@given(INPUT)
@settings(max_examples=100, deadline=None)
def test_any_batch_comes_back_from_base64_as_it_was(batch: AppendInput) -> None:
    assert codec.decode_append_input(codec.encode_append_input(batch, "base64"), "base64") == batch
    if is_text(batch):
        assert codec.decode_append_input(codec.encode_append_input(batch, "raw"), "raw") == batch
    else:
        with pytest.raises(InvalidArgumentError, match="not UTF-8"):
            codec.encode_append_input(batch, "raw")


@given(read_batches())
@settings(max_examples=60, deadline=None)
def test_any_batch_of_the_server_comes_back_from_base64_as_it_was(batch: ReadBatch) -> None:
    assert codec.decode_read_batch(codec.encode_read_batch(batch, "base64"), "base64") == batch
    assert len(codec.decode_read_batch(codec.encode_read_batch(batch, "raw"), "raw").records) == len(batch.records)


def test_raw_reads_replace_what_is_not_text() -> None:
    batch = ReadBatch((SequencedRecord(0, 0, b"a\xffb", ((b"\xfe", b""),)),))

    found = codec.decode_read_batch(codec.encode_read_batch(batch, "raw"), "raw")

    assert found.records[0].body == "a\ufffdb".encode()
    assert found.records[0].headers == (("\ufffd".encode(), b""),)


def test_a_batch_that_grows_beyond_the_servers_limit_is_refused() -> None:
    escapes = AppendInput([AppendRecord(b"\x01" * 500_000)])
    headers = AppendInput([AppendRecord(b"", [(b"a", b"b")] * 260_000)])

    with pytest.raises(InvalidArgumentError, match="3000025 bytes as JSON, the server takes 2097152"):
        codec.encode_append_input(escapes, "raw")
    with pytest.raises(InvalidArgumentError, match="the server takes 2097152"):
        codec.encode_append_input(headers, "base64")
    assert len(codec.encode_append_input(escapes, "base64")) < 700_000


def test_numbers_have_64_bits() -> None:
    position = StreamPosition(MAX_U64, MAX_U64)
    ack = AppendAck(StreamPosition(0, 0), position, position)

    assert codec.decode_append_ack(codec.encode_append_ack(ack)) == ack
    assert codec.decode_tail(b'{"tail":{"seq_num":18446744073709551615,"timestamp":0}}').seq_num == MAX_U64
    for number in ("18446744073709551616", "-1", "1.0", "true", '"1"', "null"):
        with pytest.raises(S2ProtocolError, match="seq_num must be an integer"):
            codec.decode_tail(b'{"tail":{"seq_num":%s,"timestamp":0}}' % number.encode())


def test_a_ping_is_a_heartbeat_with_or_without_a_tail() -> None:
    assert codec.decode_ping(b'{"timestamp":1,"tail":{"seq_num":5,"timestamp":9}}') == ReadBatch(
        (), StreamPosition(5, 9)
    )
    assert codec.decode_ping(b'{"timestamp":1}') == ReadBatch()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'[{"records":[]}]',
        b"{",
        b"\xff",
        b'{"records":{}}',
        b'{"records":[1]}',
        b'{"records":[{"seq_num":0,"timestamp":0,"body":1}]}',
        b'{"records":[{"seq_num":0,"timestamp":0,"headers":{"a":"b"}}]}',
        b'{"records":[{"seq_num":0,"timestamp":0,"headers":[["a"]]}]}',
        b'{"records":[{"seq_num":0,"timestamp":0,"headers":[["a",1]]}]}',
        b'{"records":[{"timestamp":0}]}',
        b'{"records":[],"tail":1}',
        b'{"records":[{"seq_num":0,"timestamp":0,"body":"\\ud800"}]}',
        b"[" * 100_000,
    ],
)
def test_answers_of_another_shape_raise_a_protocol_error(text: bytes) -> None:
    with pytest.raises(S2ProtocolError):
        codec.decode_read_batch(text, "raw")


@pytest.mark.parametrize("body", ["aGk", "aG k=", "aGk_", "aGk=\n", "aGk=aGk=", "=", "é"])
def test_base64_is_padded_and_of_the_standard_alphabet(body: str) -> None:
    record = {"seq_num": 0, "timestamp": 0, "body": body}

    with pytest.raises(S2ProtocolError, match="base64"):
        codec.decode_read_batch(json.dumps({"records": [record]}).encode(), "base64")
    with pytest.raises(InvalidArgumentError, match="base64"):
        codec.decode_append_input(json.dumps({"records": [{"body": body}]}).encode(), "base64")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"records": []}, "rule"),
        ({"records": [{"headers": [["", "nope"]]}]}, "rule"),
        ({"records": [{}], "fencing_token": "x" * 37}, "shape"),
        ({"records": [{}], "match_seq_num": MAX_U64 + 1}, "shape"),
        ({"records": [{"timestamp": -1}]}, "shape"),
        ({"records": [{"headers": None}]}, "shape"),
        ({}, "shape"),
    ],
)
def test_a_server_tells_bad_shapes_from_broken_rules(document: object, expected: Literal["rule", "shape"]) -> None:
    error = InvalidArgumentError if expected == "rule" else S2ProtocolError

    with pytest.raises(error):
        codec.decode_append_input(json.dumps(document).encode(), "raw")


@given(read_batches(), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_answers_raise_a_protocol_error_and_nothing_else(batch: ReadBatch, draw: st.DataObject) -> None:
    damaged = bytearray(codec.encode_read_batch(ReadBatch(batch.records[:3], batch.tail), "base64"))
    for _ in range(draw.draw(st.integers(1, 3))):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))

    for form in FORMATS:
        for decode in (codec.decode_read_batch, lambda data, _: codec.decode_append_ack(data)):
            with contextlib.suppress(S2ProtocolError):
                decode(bytes(damaged), form)
