"""JSON mode: bodies to items, items to bodies. The only module that knows orjson.

orjson is fast and strict, and deviates from JSON in three ways that this module mends: integers beyond 64 bits become
floats, nesting ends at 1024 levels, and lone surrogates and numbers beyond a double's range are refused. Such texts go
to the standard library, which is slower; everything else pays only for a search that rules out long integers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import orjson

from ..errors import InvalidArgumentError, ParseError
from .text import preview

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_EMPTY = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*+(?:\[[ \t\r\n]*+\][ \t\r\n]*+)?")

# The search for integers that orjson would turn into floats. They have 20 characters or more: 20 digits, or 19 and a
# minus. So they cover at least four of any positions five apart, and looking at those alone clears most texts in a
# twentieth of the time that decoding takes.
_MARK = bytes(0x30 if byte in b"-0123456789" else 0x20 for byte in range(256))
_RUN = b"0" * 20
_STRIDE = 5
_SAMPLED_RUN = b"0" * (len(_RUN) // _STRIDE)
_CHUNK = 1 << 16  # copies stay in the processor's cache
_LONG_INTEGER = re.compile(rb"(?<![.eE+])(?:-[0-9]{19}|[0-9]{20})[0-9]*+(?![.eE])")
_REST_OF_RUN = re.compile(rb"[-0-9]*+")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def _may_have_long_integer(text: bytes) -> bool:
    """Whether orjson might turn an integer of this text into a float. A wrong yes costs time and does no harm."""
    for start in range(0, len(text) - len(_RUN) + 1, _CHUNK):
        end = start + _CHUNK + len(_RUN) - 1  # the beginning of what begins in this chunk, at least
        if _SAMPLED_RUN in text[start:end:_STRIDE].translate(_MARK) and _has_long_integer(text[start:end]):
            return True
    return False


def _has_long_integer(chunk: bytes) -> bool:
    """The closer look at a chunk whose sample has a run: passes over fractions, dates and rulers of hyphens."""
    marks = chunk.translate(_MARK)
    start = marks.find(_RUN)
    while start >= 0:
        if _LONG_INTEGER.match(chunk, start):
            return True
        rest = _REST_OF_RUN.match(chunk, start)
        assert rest is not None  # it matches the empty text, too
        start = marks.find(_RUN, rest.end())
    return False


def _loads(text: bytes) -> Any:
    """Decode one JSON text. Raises ValueError or RecursionError."""
    if _may_have_long_integer(text):
        return _decoder.decode(text.decode("utf-8"))
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _decoder.decode(text.decode("utf-8"))


def decode_items(
    parts: Iterable[bytes],
    *,
    loads: Callable[[bytes], Any] | None = None,
    offset: str | None = None,
    url: str | None = None,
) -> list[Any]:
    """Decode the items of a batch (specification: client 9.1).

    Args:
        parts: JSON texts. An array stands for its elements, any other value for itself, a blank text for nothing.
        loads: Decoder to use instead of ours. It gets one text without byte order mark, and refuses it with a
            `ValueError`.
        offset: Offset of the batch, for the error.
        url: URL of the stream, for the error.

    Raises:
        ParseError: if a text cannot be decoded.
    """
    decode = loads or _loads
    items: list[Any] = []
    for part in parts:
        text = part.removeprefix(_BOM)
        if not text or (text.isspace() and not text.strip(_SPACE)):
            continue
        try:
            value = decode(text)
        except (ValueError, RecursionError) as error:
            value = _decode_again(decode, text, error, offset, url)
        if not isinstance(value, list):
            items.append(value)
        elif items or loads is not None:
            items += value
        else:
            items = value  # our own list: no need to copy it
    return items


def _decode_again(
    decode: Callable[[bytes], Any], text: bytes, error: Exception, offset: str | None, url: str | None
) -> Any:
    """Decode a text without the comma before its last bracket, which an example of the protocol has."""
    stripped = text.strip(_SPACE)
    if stripped.startswith(b"[") and stripped.endswith(b"]"):
        inner = _without_comma(stripped[1:-1])
        if inner is not None:
            try:
                return decode(b"[%b]" % inner)
            except (ValueError, RecursionError) as again:
                error = again
    where = "batch" if offset is None else f"batch at offset {offset!r}"
    raise ParseError(
        f"{where} is not valid JSON: {_reason(error)}", preview=preview(text), offset=offset, url=url
    ) from error


def _without_comma(inner: bytes) -> bytes | None:
    """The inside of an array without exactly one comma at its end; None if there is none, or nothing before it."""
    before, comma, after = inner.rpartition(b",")
    if not comma or after.strip(_SPACE):
        return None
    before = before.strip(_SPACE)
    return before if before and not before.endswith(b",") else None


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def encode_item(value: Any) -> bytes:
    """Encode one item as compact JSON.

    Beyond JSON's own types it takes what orjson takes: dataclasses, enums, dates and times, UUIDs.

    Raises:
        InvalidArgumentError: if the value has a NaN, an infinity, a lone surrogate or a cycle, or is too deep.
        TypeError: if a part of it cannot be encoded; the message names its type.
    """
    try:
        try:
            text = orjson.dumps(value)
        except TypeError:
            _check_keys(value)
            return _encoder.encode(value).encode("utf-8")
        if b"null" in text and not _explains_nulls(value, text):
            _encoder.encode(value)
    except RecursionError:
        raise InvalidArgumentError("item is nested too deeply for JSON") from None
    except ValueError as error:
        raise InvalidArgumentError(f"item cannot be encoded as JSON: {error}") from None
    return text


def _explains_nulls(value: Any, text: bytes) -> bool:
    """Whether there is no `null` in the text but those of a dict's own values: none stands for a NaN, then."""
    return type(value) is dict and list(value.values()).count(None) == text.count(b"null")


def _check_keys(value: Any) -> None:
    """Refuse keys that the standard library would turn into text without a word."""
    if isinstance(value, dict):
        for key, child in value.items():
            if not isinstance(key, str):
                raise TypeError(f"item cannot be encoded as JSON: a key is of type {type(key).__name__}, not str")
            _check_keys(child)
    elif isinstance(value, (list, tuple)):
        for child in value:
            _check_keys(child)


def _plain(value: Any) -> Any:
    """What the standard library needs to know of the types that orjson adds."""
    if is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: getattr(value, f.name) for f in fields(value) if not f.name.startswith("_")}
        _check_keys(plain)
        return plain
    if isinstance(value, Enum):
        return value.value
    try:
        return orjson.loads(orjson.dumps(value))
    except TypeError:
        raise TypeError(f"item cannot be encoded as JSON: a value is of type {type(value).__name__}") from None


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)


def check_item(text: bytes, *, validate: bool = False) -> None:
    """Check an item that the caller has encoded.

    Args:
        text: One JSON text in UTF-8.
        validate: Whether to parse it too. The server does so in any case.

    Raises:
        InvalidArgumentError: if it is blank, or with `validate` if it is not one JSON text.
    """
    if not text or (text.isspace() and not text.strip(_SPACE)):
        raise InvalidArgumentError("item must be one JSON text, got a blank one")
    if validate:
        try:
            _loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(
                f"item must be one JSON text, got {preview(text)!r}: {_reason(error)}"
            ) from error


def frame(items: Sequence[bytes]) -> bytes:
    """One JSON array of these JSON texts."""
    return b"[%b]" % b",".join(items)


def is_empty(body: bytes) -> bool:
    """Whether a body holds no item: it is blank or an empty array. Looks no further than the first item."""
    return _EMPTY.fullmatch(body) is not None


def join_arrays(parts: Iterable[bytes], *, offset: str | None = None, url: str | None = None) -> bytes:
    """One JSON array text with the items of all these JSON texts, each as it stands.

    The parts count as in `decode_items`. Arrays are not parsed, only their brackets are looked at: who doubts the
    server decodes the result.

    Raises:
        ParseError: if an array does not end in its bracket, or a text that is no array is not valid JSON.
    """
    inner: list[bytes] = []
    for part in parts:
        text = part.removeprefix(_BOM).strip(_SPACE)
        if text.startswith(b"[") and text.endswith(b"]"):
            text = text[1:-1].strip(_SPACE)
            if text.endswith(b","):
                text = _without_comma(text) or text
        elif text:
            decode_items((text,), offset=offset, url=url)
        if text:
            inner.append(text)
    return frame(inner)
