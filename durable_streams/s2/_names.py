"""Names, prefixes, tokens and keys of S2: checked before any I/O, with exact byte counts (S2 1.2, 1.3, 1.7).

A wrong type raises `TypeError`, a wrong value `InvalidArgumentError`. Messages show the value, except of secrets.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from typing import Any
from urllib.parse import quote

from .._core import validate
from ..errors import InvalidArgumentError

#: Most entries of one page of a listing.
MAX_PAGE: int = 1000
#: Bytes of an encryption key.
KEY_BYTES: int = 32

_BASIN = re.compile(r"[a-z0-9][a-z0-9-]{6,46}[a-z0-9]")
_BASIN_PREFIX = re.compile(r"(?:[a-z0-9][a-z0-9-]{0,47})?")
_LOCATION = re.compile(r"[A-Za-z0-9:.-]{1,64}")
_MAX_STREAM_BYTES = 512
_MAX_TOKEN_ID_BYTES = 96
_MAX_REQUEST_TOKEN_BYTES = 36


def basin(value: Any, *, name: str = "basin") -> str:
    """A basin's name: 8 to 48 of a-z, 0-9 and hyphen, no hyphen at either end."""
    text = _text(name, value)
    if not _BASIN.fullmatch(text):
        raise InvalidArgumentError(
            f"{name} must be 8 to 48 characters of a-z, 0-9 and '-', with no '-' at either end, got {_shown(text)}"
        )
    return text


def basin_prefix(value: Any, *, name: str = "prefix") -> str:
    """A prefix of basin names, or a name to start after; "" is none."""
    text = _text(name, value)
    if not _BASIN_PREFIX.fullmatch(text):
        raise InvalidArgumentError(
            f"{name} must be at most 48 characters of a-z, 0-9 and '-', the first no '-', got {_shown(text)}"
        )
    return text


def stream(value: Any, *, name: str = "stream") -> str:
    """A stream's name: 1 to 512 bytes in UTF-8, without NUL, and neither "." nor ".."."""
    return _path_name(name, value, _MAX_STREAM_BYTES)


def stream_prefix(value: Any, *, name: str = "prefix") -> str:
    """A prefix of stream names, or a name to start after: at most 512 bytes in UTF-8, without NUL; "" is none."""
    return _short_text(name, value, _MAX_STREAM_BYTES)


def token_id(value: Any, *, name: str = "id") -> str:
    """An access token's id: 1 to 96 bytes in UTF-8, without NUL, and neither "." nor ".."."""
    return _path_name(name, value, _MAX_TOKEN_ID_BYTES)


def token_id_prefix(value: Any, *, name: str = "prefix") -> str:
    """A prefix of token ids, or an id to start after: at most 96 bytes in UTF-8; "" is none."""
    return _short_text(name, value, _MAX_TOKEN_ID_BYTES)


def location(value: Any, *, name: str = "location") -> str:
    """A location such as "aws:us-east-1"."""
    text = _text(name, value)
    if not _LOCATION.fullmatch(text):
        raise InvalidArgumentError(f"{name} must be 1 to 64 of A-Z, a-z, 0-9, ':', '.', '-', got {_shown(text)}")
    return text


def request_token(value: Any, *, name: str = "request_token") -> str:
    """A request token: 1 to 36 printable ASCII characters."""
    text = _text(name, value)
    if not 1 <= len(text) <= _MAX_REQUEST_TOKEN_BYTES or not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidArgumentError(
            f"{name} must be 1 to {_MAX_REQUEST_TOKEN_BYTES} printable ASCII characters, got {_shown(text)}"
        )
    return text


def page_limit(value: Any, *, name: str = "limit") -> int:
    """Entries of a page. The server takes anything outside 1 to 1000 for 1000 without a word, so it is refused here."""
    return validate.integer(name, value, minimum=1, maximum=MAX_PAGE)


def access_token(value: Any, *, name: str = "access_token") -> str:
    """A bearer token: printable ASCII without spaces. Messages never show it."""
    text = _text(name, value)
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidArgumentError(f"{name} must be printable ASCII without spaces, and not empty (value not shown)")
    return text


def encryption_key(value: Any, *, name: str = "encryption_key") -> str:
    """An encryption key as its header wants it: base64 of 32 bytes. Messages never show it.

    Args:
        value: The 32 bytes themselves, or their base64 as text.
        name: The argument's name.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(value)
    elif isinstance(value, str):
        try:
            raw = a2b_base64(value.strip(), strict_mode=True)
        except (Base64Error, ValueError):
            raise InvalidArgumentError(f"{name} must be base64 of {KEY_BYTES} bytes (value not shown)") from None
    else:
        raise TypeError(f"{name} must be {KEY_BYTES} bytes, or their base64 as str, got {type(value).__name__}")
    if len(raw) != KEY_BYTES:
        raise InvalidArgumentError(f"{name} must be {KEY_BYTES} bytes, got {len(raw)} (value not shown)")
    return b64encode(raw).decode()


def segment(name: str) -> str:
    """A name as one segment of a URL's path: every reserved byte is percent-encoded, the slash too."""
    return quote(name, safe="")


def _path_name(name: str, value: Any, most: int) -> str:
    text = _short_text(name, value, most)
    if text in ("", ".", ".."):
        raise InvalidArgumentError(f"{name} must not be empty, '.' or '..', got {text!r}")
    return text


def _short_text(name: str, value: Any, most: int) -> str:
    text = _text(name, value)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{name} has no UTF-8 form: lone surrogate at index {error.start}") from None
    if size > most:
        raise InvalidArgumentError(f"{name} must have at most {most} bytes in UTF-8, got {size}: {_shown(text)}")
    if "\0" in text:
        raise InvalidArgumentError(f"{name} must not contain NUL, got {_shown(text)}")
    return text


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    return value


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}... of {len(text)} characters"
