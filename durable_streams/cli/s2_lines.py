"""Records of S2 as JSON lines: what `s2 read` prints and `s2 append --json` takes.

    {"seq_num":7,"timestamp":1756720800000,"headers":[["k","v"]],"body":"text"}
    {"seq_num":8,"timestamp":1756720800000,"body":"AAE=","base64":true}

A record whose body or headers are not UTF-8 has all of them in base64 and says so.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable
from typing import Any

from ..s2 import AppendRecord, SequencedRecord
from . import output


def printed(records: Iterable[SequencedRecord]) -> bytes:
    """Each record as a line of JSON."""
    return output.json_lines(map(_shape, records))


def parse(line: bytes) -> AppendRecord:
    """The record of a line; its `seq_num` is ignored.

    Raises:
        ValueError: it is no JSON object of that form, or a record that can never be appended.
    """
    try:
        shape = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(shape, dict):
        raise ValueError("it is no JSON object")
    unknown = shape.keys() - {"seq_num", "timestamp", "headers", "body", "base64"}
    if unknown:
        raise ValueError(f"there is no field {min(unknown)!r}")
    body, headers, timestamp = shape.get("body", ""), shape.get("headers", []), shape.get("timestamp")
    if not isinstance(headers, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in headers):
        raise ValueError("headers must be a list of [name, value]")
    encoded = bool(shape.get("base64", False))
    try:
        pairs = [(_bytes(name, encoded), _bytes(value, encoded)) for name, value in headers]
        return AppendRecord(_bytes(body, encoded), pairs, timestamp)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _shape(record: SequencedRecord) -> dict[str, Any]:
    shape: dict[str, Any] = {"seq_num": record.seq_num, "timestamp": record.timestamp}
    pieces = [record.body, *(part for pair in record.headers for part in pair)]
    try:
        body, *parts = [piece.decode() for piece in pieces]
        encoded = False
    except UnicodeDecodeError:
        body, *parts = [b64encode(piece).decode() for piece in pieces]
        encoded = True
    if parts:
        shape["headers"] = [list(pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
    if body:
        shape["body"] = body
    if encoded:
        shape["base64"] = True
    return shape


def _bytes(text: Any, encoded: bool) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"body, names and values must be text, got {type(text).__name__}")
    if not encoded:
        return text.encode()  # a lone surrogate is a ValueError as well
    try:
        return b64decode(text, validate=True)
    except Base64Error as error:
        raise ValueError(f"it is not base64: {error}") from None
