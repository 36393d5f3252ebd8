"""JSON of records, batches and acknowledgements, both directions (specification: S2 3.2, 3.6).

In the format "raw", texts are the bytes they stand for in UTF-8; bytes that are none cannot be sent so, and are read as
U+FFFD. In "base64" every name, value and body is base64 of the standard alphabet, padded. A fencing token is text in
both.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from typing import Any, Literal

from .._core.json_mode import decode_items, encode_item
from ..errors import InvalidArgumentError, ParseError
from ._values import (
    MAX_U64,
    MAX_UNARY_BODY_BYTES,
    AppendAck,
    AppendInput,
    AppendRecord,
    Header,
    ReadBatch,
    SequencedRecord,
    StreamPosition,
)
from .errors import S2ProtocolError

#: How bytes stand in JSON: the value of `s2-format`.
Format = Literal["raw", "base64"]

# --- Encoding ---------------------------------------------------------------------------------------------------------


def _to_base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


def _to_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"records have bytes that are not UTF-8 ({error.reason}): the format 'raw' cannot carry them"
        ) from None


def _to_replaced_text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def encode_append_input(batch: AppendInput, form: Format) -> bytes:
    """The body of a unary append.

    Raises:
        InvalidArgumentError: if the format is "raw" and a record is not UTF-8, or the body is larger than a server
            takes. A legal batch can be, by many escapes or by many small headers: protobuf has no such overhead.
    """
    text = _to_text if form == "raw" else _to_base64
    records: list[dict[str, Any]] = []
    for record in batch.records:
        shape: dict[str, Any] = {}
        if record.timestamp is not None:
            shape["timestamp"] = record.timestamp
        if record.headers:
            shape["headers"] = [(text(name), text(value)) for name, value in record.headers]
        if record.body:
            shape["body"] = text(record.body)
        records.append(shape)
    document: dict[str, Any] = {"records": records}
    if batch.match_seq_num is not None:
        document["match_seq_num"] = batch.match_seq_num
    if batch.fencing_token is not None:
        document["fencing_token"] = batch.fencing_token
    body = encode_item(document)
    if len(body) > MAX_UNARY_BODY_BYTES:
        raise InvalidArgumentError(
            f"the batch has {len(body)} bytes as JSON, the server takes {MAX_UNARY_BODY_BYTES}: make it smaller, or "
            "use protobuf"
        )
    return body


def position_shape(position: StreamPosition) -> dict[str, int]:
    """A position as the server's JSON has it."""
    return {"seq_num": position.seq_num, "timestamp": position.timestamp}


def encode_append_ack(ack: AppendAck) -> bytes:
    """An acknowledgement, as a server answers."""
    return encode_item({name: position_shape(getattr(ack, name)) for name in ("start", "end", "tail")})


def encode_read_batch(batch: ReadBatch, form: Format) -> bytes:
    """A batch, as a server answers: what is empty is left out."""
    text = _to_replaced_text if form == "raw" else _to_base64
    records = []
    for record in batch.records:
        shape: dict[str, Any] = {"seq_num": record.seq_num, "timestamp": record.timestamp}
        if record.headers:
            shape["headers"] = [(text(name), text(value)) for name, value in record.headers]
        if record.body:
            shape["body"] = text(record.body)
        records.append(shape)
    document: dict[str, Any] = {"records": records}
    if batch.tail is not None:
        document["tail"] = position_shape(batch.tail)
    return encode_item(document)


# --- Decoding ---------------------------------------------------------------------------------------------------------


def _from_base64(text: str) -> bytes:
    try:
        return a2b_base64(text, strict_mode=True)
    except (Base64Error, ValueError) as error:
        raise S2ProtocolError(f"JSON: a text is not base64: {error}") from None


def _from_text(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise S2ProtocolError("JSON: a text has a lone surrogate") from None


def decode_object(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        S2ProtocolError: if the data is none.
    """
    try:
        found = decode_items([data])
    except ParseError as error:
        raise S2ProtocolError(f"JSON: {error}") from None
    if len(found) != 1 or not isinstance(found[0], dict) or data.lstrip()[:1] == b"[":
        raise S2ProtocolError("JSON: an object was expected")
    document: dict[str, Any] = found[0]
    return document


def decode_append_ack(data: bytes) -> AppendAck:
    """Decode the answer to an append.

    Raises:
        S2ProtocolError: if it is none.
    """
    document = decode_object(data)
    return AppendAck(*(_position(document.get(name), name) for name in ("start", "end", "tail")))


def decode_tail(data: bytes) -> StreamPosition:
    """Decode the answer to a check of the tail.

    Raises:
        S2ProtocolError: if it is none.
    """
    return _position(decode_object(data).get("tail"), "tail")


def decode_ping(data: bytes) -> ReadBatch:
    """Decode the data of an SSE `ping` event: a heartbeat, whose tail older servers leave out.

    Raises:
        S2ProtocolError: if it is none.
    """
    tail = decode_object(data).get("tail")
    return ReadBatch((), None if tail is None else _position(tail, "tail"))


def decode_read_batch(data: bytes, form: Format) -> ReadBatch:
    """Decode the answer to a read, or the data of an SSE `batch` event.

    Raises:
        S2ProtocolError: if it is none.
    """
    document = decode_object(data)
    decode = _from_text if form == "raw" else _from_base64
    records = [
        SequencedRecord(
            _u64(shape.get("seq_num"), "seq_num"),
            _u64(shape.get("timestamp"), "timestamp"),
            _bytes(shape, decode),
            _headers(shape, decode),
        )
        for shape in _shapes(document)
    ]
    tail = document.get("tail")
    return ReadBatch(tuple(records), None if tail is None else _position(tail, "tail"))


def decode_append_input(data: bytes, form: Format) -> AppendInput:
    """Decode the body of a unary append, as a server does.

    Raises:
        S2ProtocolError: if it is none.
        InvalidArgumentError: if it is, but the batch breaks a rule (S2 1.3, 3.4), or is not base64 as it should be.
    """
    document = decode_object(data)
    match_seq_num, fencing_token = document.get("match_seq_num"), document.get("fencing_token")
    if match_seq_num is not None:
        _u64(match_seq_num, "match_seq_num")
    if fencing_token is not None and (not isinstance(fencing_token, str) or len(_from_text(fencing_token)) > 36):
        raise S2ProtocolError("JSON: fencing_token must be a text of at most 36 bytes")
    shapes = _shapes(document)
    for shape in shapes:
        if shape.get("timestamp") is not None:
            _u64(shape["timestamp"], "timestamp")
        _headers(shape, _from_text)
        _bytes(shape, _from_text)
    try:
        decode = _from_text if form == "raw" else _from_base64
        fields = [(_bytes(shape, decode), _headers(shape, decode), shape.get("timestamp")) for shape in shapes]
    except S2ProtocolError as error:
        raise InvalidArgumentError(str(error)) from None
    return AppendInput([AppendRecord(*each) for each in fields], match_seq_num, fencing_token)


def _shapes(document: dict[str, Any]) -> list[dict[str, Any]]:
    shapes = document.get("records")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise S2ProtocolError("JSON: records must be an array of objects")
    return shapes


def _bytes(shape: dict[str, Any], decode: Callable[[str], bytes]) -> bytes:
    text = shape.get("body", "")
    if not isinstance(text, str):
        raise S2ProtocolError("JSON: body must be a text")
    return decode(text)


def _headers(shape: dict[str, Any], decode: Callable[[str], bytes]) -> tuple[Header, ...]:
    pairs = shape.get("headers", ())
    if not pairs and isinstance(pairs, list | tuple):
        return ()
    if not isinstance(pairs, list):
        raise S2ProtocolError("JSON: headers must be an array")
    headers = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise S2ProtocolError("JSON: a header must be an array of two texts")
        headers.append((decode(pair[0]), decode(pair[1])))
    return tuple(headers)


def _position(value: Any, name: str) -> StreamPosition:
    if not isinstance(value, dict):
        raise S2ProtocolError(f"JSON: {name} must be an object with seq_num and timestamp")
    return StreamPosition(_u64(value.get("seq_num"), "seq_num"), _u64(value.get("timestamp"), "timestamp"))


def _u64(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_U64:
        raise S2ProtocolError(f"JSON: {name} must be an integer from 0 to 2**64 - 1")
    return value
