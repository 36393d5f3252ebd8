"""Checks of arguments before any I/O: `TypeError` for a wrong type, `InvalidArgumentError` for a wrong value.

Every message names the argument, what was expected and what came (client specification, section 14).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from ..errors import InvalidArgumentError
from . import wire
from .checkpoint import Checkpoint

Live = bool | Literal["long-poll", "sse"]


def integer(name: str, value: Any, *, minimum: int = 0, maximum: int = wire.MAX_INTEGER) -> int:
    """An int (not a bool) within bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")
    if not minimum <= value <= maximum:
        bound = f"at least {minimum}" if value < minimum else f"at most {maximum}"
        raise InvalidArgumentError(f"{name} must be {bound}, got {value}")
    return value


def number(name: str, value: Any, *, minimum: float = 0.0, exclusive: bool = False) -> float:
    """A finite int or float (not a bool), at least `minimum`, or above it if `exclusive`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    if math.isnan(value) or math.isinf(value) or value < minimum or (exclusive and value == minimum):
        bound = f"greater than {minimum:g}" if exclusive else f"at least {minimum:g}"
        raise InvalidArgumentError(f"{name} must be a finite number {bound}, got {value}")
    return float(value)


def live(value: Any) -> Live:
    """A value of the `live` option."""
    if value is True or value is False or value in (wire.LONG_POLL, wire.SSE):
        mode: Live = value
        return mode
    if value == "auto":
        raise InvalidArgumentError('live="auto" no longer exists: use live=True')
    raise InvalidArgumentError(f'live must be False, True, "long-poll" or "sse", got {value!r}')


def offset(value: Any, *, name: str = "offset") -> str:
    """An offset as a str, or a sentinel: opaque, but without the characters that the protocol forbids (P8-6)."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, a Checkpoint or None, got {type(value).__name__} {value!r}")
    if not value:
        raise InvalidArgumentError(f'{name} must not be empty: leave it out, or use "-1", to read from the start')
    if value.startswith('{"'):
        raise InvalidArgumentError(f"{name}: a dumped checkpoint goes through Checkpoint.loads, got {value[:100]!r}")
    for character in value:
        if character <= " " or character == "\x7f" or character in ",&=?/":
            raise InvalidArgumentError(f"{name} must not contain {character!r}, got {value[:100]!r}")
    return value


def start(value: str | Checkpoint | None, cursor: str | None) -> Checkpoint:
    """The position to read from: `offset` as a str, a `Checkpoint`, or None for the start."""
    if isinstance(value, Checkpoint):
        offset(value.offset)
        position = value
    else:
        position = Checkpoint(wire.START if value is None else offset(value))
    if cursor is not None:
        if not isinstance(cursor, str):
            raise TypeError(f"cursor must be a str or None, got {type(cursor).__name__}")
        position = Checkpoint(position.offset, cursor, position.up_to_date, position.stream_closed, position.text_tail)
    return position


def content_type(value: Any) -> str | None:
    """A media type, or None."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"content_type must be a str or None, got {type(value).__name__}")
    if not wire.is_media_type(value):
        raise InvalidArgumentError(f"content_type must look like type/subtype, got {value!r}")
    return wire.check_header(wire.CONTENT_TYPE, value.strip())[1]


def seq(value: Any) -> str | None:
    """A `Stream-Seq` value, or None. Compared byte by byte by the server: numbers have to be zero-padded."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(
            f"seq must be a str, got {type(value).__name__} {value!r}: the server compares byte by byte, so numbers "
            "have to be zero-padded by you"
        )
    if not value or value != value.strip():
        raise InvalidArgumentError(f"seq must be a non-empty str without surrounding white space, got {value!r}")
    return wire.check_header(wire.SEQ, value)[1]


def entity_tag(name: str, value: Any) -> str:
    """An entity tag as a server gave it, quotes included."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str or None, got {type(value).__name__}")
    if not value.strip():
        raise InvalidArgumentError(f"{name} must not be empty: leave it out to read in any case")
    return wire.check_header(name.replace("_", "-"), value)[1]


def body(value: Any, *, name: str = "body") -> bytes:
    """Payload as bytes: a str is encoded as UTF-8, bytes-like objects are copied only if they are not bytes.

    Raises:
        TypeError: for anything else; a JSON value is sent with `append_json`.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    hint = (
        "; use append_json to send a JSON value" if isinstance(value, dict | list | tuple | int | float | bool) else ""
    )
    raise TypeError(f"{name} must be str or bytes, got {type(value).__name__}{hint}")


def lifetime(ttl_seconds: Any, expires_at: Any) -> dict[str, str]:
    """The headers for `ttl_seconds` and `expires_at`, at most one of which may be given."""
    if ttl_seconds is not None and expires_at is not None:
        raise InvalidArgumentError("ttl_seconds and expires_at exclude each other: give one of them")
    if ttl_seconds is not None:
        return {wire.TTL: str(integer("ttl_seconds", ttl_seconds))}
    if expires_at is None:
        return {}
    if isinstance(expires_at, datetime):
        if expires_at.tzinfo is None:
            raise InvalidArgumentError(f"expires_at must have a time zone, got {expires_at.isoformat()}")
        expires_at = expires_at.isoformat()
    if not isinstance(expires_at, str):
        raise TypeError(f"expires_at must be an aware datetime or a str, got {type(expires_at).__name__}")
    if not wire.is_rfc3339(expires_at):
        raise InvalidArgumentError(f"expires_at must be RFC 3339 with a time zone, got {expires_at!r}")
    return {wire.EXPIRES_AT: expires_at}


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """A mapping with str keys, or None for an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, got {type(value).__name__}")
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{name}: names must be str, got {type(key).__name__} {key!r}")
    return value
