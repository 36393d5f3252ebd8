"""JSON mode: a body becomes the messages that are stored (server 7).

What was posted is what readers get: messages are kept as text, so `1.0`, `12345678901234567890` and repeated keys come
back as they were. Only whitespace outside strings goes. In return the text has to be something that every reader can
read, so what common parsers refuse is refused here: invalid UTF-8, a byte order mark, NaN and Infinity, numbers beyond
the range of a double, surrogates that stand alone, nesting deeper than `MAX_DEPTH`.

msgspec checks the grammar and finds the messages, at more than 500 MB/s. What it lets pass is found by cheap searches
that almost never match; only a match leads to the exact and slow look.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

from .protocol import InvalidJson, Payload

if TYPE_CHECKING:
    import msgspec

#: Deepest nesting of arrays and objects in a message. Python's own parser gives up a little below 1000.
MAX_DEPTH = 512

_TOO_DEEP = f"the JSON is nested deeper than {MAX_DEPTH} levels"

# A string; in an alternation it comes first, so that nothing inside strings is taken for something else.
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_STRINGS = re.compile(_STRING)
_NUMBERS = re.compile(_STRING + rb"|(-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")
# An exponent of three digits or more where a number may end. It starts with a literal, which makes the search fast.
_BIG_EXPONENTS = tuple(re.compile(rb"%b(?<=[0-9]%b)\+?[0-9]{3,}(?=[,\]}])" % (e, e)) for e in (b"e", b"E"))
# Without a big exponent a number needs at least this many digits to leave the range of a double (1e309 = 210 + 99).
_MANY_DIGITS = b"0" * 200
_DIGITS_ALIKE = bytes(ord("0") if ord("0") <= code <= ord("9") else code for code in range(256))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPES = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u([dD][89a-fA-F])|.)")
_BRACKETS = b"[]{}"
_NOT_BRACKETS = bytes(code for code in range(256) if code not in _BRACKETS)
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


@cache
def _decoder() -> msgspec.json.Decoder[list[msgspec.Raw]]:
    """The decoder that finds the elements of an array without decoding them."""
    try:
        import msgspec
    except ModuleNotFoundError as error:
        if error.name != "msgspec":
            raise
        raise ModuleNotFoundError(
            "the server needs msgspec for JSON streams: pip install 'durable-streams-anyio[server]'", name="msgspec"
        ) from None
    return msgspec.json.Decoder(list[msgspec.Raw])


def require() -> None:
    """Make sure that JSON streams will work.

    Raises:
        ModuleNotFoundError: if msgspec is missing; the message names the extra that brings it.
    """
    _decoder()


def split_json(body: bytes) -> Payload | InvalidJson:
    """Take a body apart: the elements of an array, or the one value it is.

    Returns:
        Each message's compact text followed by a comma, and the position after each; no messages for `[]`.
    """
    decoder = _decoder()
    import msgspec

    try:
        body.decode()
    except UnicodeDecodeError:
        return InvalidJson("the body is not valid UTF-8")
    try:
        text = msgspec.json.format(body, indent=-1)
        if text[0] == ord("["):
            sizes = [len(raw) + 1 for raw in decoder.decode(text)]
            data = text[1:-1] + b"," if sizes else b""
        else:
            sizes = [len(text) + 1]
            data = text + b","
    except RecursionError:
        return InvalidJson(_TOO_DEEP)
    except msgspec.DecodeError:
        return InvalidJson("the body is not valid JSON")
    problem = _find_problem(data, sizes)
    return Payload(data, list(accumulate(sizes))) if problem is None else InvalidJson(problem)


def _find_problem(data: bytes, sizes: list[int]) -> str | None:
    """Find what the grammar allows and readers do not.

    Args:
        data: The messages, grammatically right and compact, each followed by a comma.
        sizes: Length of each, comma included.
    """
    longest = max(sizes, default=0)
    suspicious = any(pattern.search(data) for pattern in _BIG_EXPONENTS)
    if not suspicious and longest > len(_MANY_DIGITS):
        suspicious = _MANY_DIGITS in data.translate(_DIGITS_ALIKE)
    if suspicious and any(math.isinf(float(number)) for number in _numbers(data)):
        return "the JSON has a number beyond the range of a double"
    if _SURROGATE.search(data) and any(match[1] for match in _ESCAPES.finditer(data)):
        return "the JSON has a string with an unpaired surrogate"
    if longest > 2 * MAX_DEPTH:
        messages = (data[end - size : end] for end, size in zip(accumulate(sizes), sizes, strict=True))
        if any(_depth(message) > MAX_DEPTH for message in messages if len(message) > 2 * MAX_DEPTH):
            return _TOO_DEEP
    return None


def _numbers(data: bytes) -> Iterator[bytes]:
    return (match[1] for match in _NUMBERS.finditer(data) if match[1] is not None)


def _depth(message: bytes) -> int:
    """How deep a message is nested; exact only beyond `MAX_DEPTH`."""
    if message.count(b"[") + message.count(b"{") <= MAX_DEPTH:
        return 0
    brackets = _STRINGS.sub(b"", message).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)
