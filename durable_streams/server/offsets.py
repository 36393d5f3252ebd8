"""Offsets: positions in one stream, and the tokens that stand for them on the wire (server 4).

Inside the server an offset is an int that grows along the stream; what it counts is the store's business (memory and
SQLite: bytes of stored data). On the wire it is two numbers of sixteen digits joined by `_`, so that tokens sort as
text in stream order. The first number is reserved for segments and 0 so far; it is kept in the int, so that reading a
token loses nothing and a token that no store ever minted is simply beyond every tail.
"""

from __future__ import annotations

import re
from typing import TypeAlias

Offset: TypeAlias = int

#: The beginning of every stream.
ZERO: Offset = 0

_SPAN = 10**16
_TOKEN = re.compile(r"[0-9]{16}_[0-9]{16}")


def format_offset(offset: Offset) -> str:
    """The token of an offset, such as `0000000000000000_0000000000000018`."""
    if offset < _SPAN:
        return f"0000000000000000_{offset:016}"
    segment, position = divmod(offset, _SPAN)
    return f"{segment:016}_{position:016}"


def parse_offset(token: str) -> Offset | None:
    """The offset of a token; None if it has not exactly our shape. The sentinels `-1` and `now` are no tokens."""
    if not _TOKEN.fullmatch(token):
        return None
    return int(token[:16]) * _SPAN + int(token[17:])
