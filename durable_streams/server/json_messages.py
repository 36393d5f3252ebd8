"""JSON mode: a body becomes the messages that are stored (server 7).

What was posted is what readers get: messages are kept as text, so `1.0`, `12345678901234567890` and repeated keys come
back as they were. Only whitespace outside strings goes. In return the text has to be something that every reader can
read, so what common parsers refuse is refused here: invalid UTF-8, a byte order mark, NaN and Infinity, numbers beyond
the range of a double, surrogates that stand alone, nesting deeper than `MAX_DEPTH`.

msgspec checks the grammar and finds the messages, at more than 500 MB/s. What it lets pass is found by cheap searches
that almost never match; only a match leads to the exact and slow look.

A long array is taken apart in slices, since tiny messages take a hundred times as long as the same bytes in one, and
the server has others to serve meanwhile. Where a slice may end is guessed: if what lies before a comma is an array when
brackets are put around it, then the comma stands between two elements. If no guess is right the brackets are counted.
"""

from __future__ import annotations

import codecs
import math
import re
from array import array
from collections.abc import Generator, Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

from .protocol import InvalidJson, Payload

if TYPE_CHECKING:
    import msgspec

#: Deepest nesting of arrays and objects in a message. Python's own parser gives up a little below 1000.
MAX_DEPTH = 512

#: A longer body is better taken apart by `split_in_slices`. About as long are the slices.
SLICE_BYTES = 64 * 1024

_BEYOND_DOUBLE = "the JSON has a number beyond the range of a double"
_ALONE = "the JSON has a string with an unpaired surrogate"
_TOO_DEEP = f"the JSON is nested deeper than {MAX_DEPTH} levels"
_NOT_UTF8 = "the body is not valid UTF-8"
_NOT_JSON = "the body is not valid JSON"

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

_ARRAY = re.compile(rb"[ \t\n\r]*\[")
_NOT_BLANK = re.compile(rb"[^ \t\n\r]")
#: How an element ends and what follows, by how its neighbour begins.
_LIKELY_ENDS = {ord("{"): b"},", ord("["): b"],", ord('"'): b'",'}
_GUESSES = 3
# In a shorter text it does not matter how the elements are found.
_FEW_BYTES = 1024
# Strings and what stands between elements and around them; nothing is taken back, however long a string is.
_MARKS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)|[][{},]', re.DOTALL)
_MARKS_AT_A_TIME = 8192


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
    if len(body) > SLICE_BYTES:
        work = split_in_slices(body)
        while True:
            try:
                next(work)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # the generator's result
    try:
        body.decode()
    except UnicodeDecodeError:
        return InvalidJson(_NOT_UTF8)
    return _split(body)


def split_in_slices(body: bytes) -> Generator[None, None, Payload | InvalidJson]:
    """Do the same a few milliseconds at a time: whoever iterates lets others run in between. Returns the result.

    A single message is still one piece of work, however long it is: some milliseconds per MiB.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    step = 16 * SLICE_BYTES
    try:
        for start in range(0, len(body), step):
            decoder.decode(body[start : start + step], start + step >= len(body))
            yield
    except UnicodeDecodeError:
        return InvalidJson(_NOT_UTF8)
    opening = _ARRAY.match(body)
    if opening is None:
        return _split(body)
    parts: list[bytes] = []
    ends = array("I" if len(body) < 1 << 32 else "Q")
    problems: list[str] = []
    at = opening.end()
    more = True
    while more:
        found: tuple[bytes, list[int]] | str | None = None
        cut: int | None = None
        if more := len(body) - at > 2 * SLICE_BYTES:
            for cut in _guess_cuts(body, at):
                found = _elements((b"[", memoryview(body)[at:cut], b"]"))
                if not isinstance(found, str):
                    break
            else:
                cut = yield from _find_cut(body, at)
                more = cut is not None
        if isinstance(found, str) or found is None:
            found = _elements((b"[", memoryview(body)[at:cut], b"]" if more else b""))
        if isinstance(found, str):
            return InvalidJson(found)
        data, sizes = found
        if not sizes and (more or parts):
            return InvalidJson(_NOT_JSON)  # nothing between two commas, or behind the last one
        problem = _find_problem(data, sizes)
        if problem is not None:
            problems.append(problem)
        if sizes:
            sizes[0] += ends[-1] if ends else 0
            ends.extend(accumulate(sizes))
        parts.append(data)
        at = 0 if cut is None else cut + 1
        yield
    problem = next((each for each in (_BEYOND_DOUBLE, _ALONE, _TOO_DEEP) if each in problems), None)
    return Payload(b"".join(parts), ends) if problem is None else InvalidJson(problem)


def _split(body: bytes) -> Payload | InvalidJson:
    """A body that is valid UTF-8, in one go."""
    found = _elements((body,))
    if isinstance(found, str):
        return InvalidJson(found)
    data, sizes = found
    problem = _find_problem(data, sizes)
    return Payload(data, list(accumulate(sizes))) if problem is None else InvalidJson(problem)


def _elements(pieces: Sequence[bytes | memoryview]) -> tuple[bytes, list[int]] | str:
    """The messages of a text as they are stored, and the length of each with its comma; or what is wrong with it."""
    decoder = _decoder()
    import msgspec

    try:
        text = msgspec.json.format(pieces[0] if len(pieces) == 1 else b"".join(pieces), indent=-1)
        if text[0] != ord("["):
            return text + b",", [len(text) + 1]
        if text == b"[]":
            return b"", []
        data = text[1:-1] + b","
        if len(data) > _FEW_BYTES and b'"' not in data and b"[" not in data and b"{" not in data:
            return data, [len(each) + 1 for each in data[:-1].split(b",")]
        return data, [len(raw) + 1 for raw in decoder.decode(text)]
    except RecursionError:
        return _TOO_DEEP
    except msgspec.DecodeError:
        return _NOT_JSON


def _guess_cuts(body: bytes, at: int) -> Iterator[int]:
    """Commas that may stand behind an element, in a slice that begins with one: the most likely and last ones first."""
    first = _NOT_BLANK.search(body, at)
    end = _LIKELY_ENDS.get(body[first.start()], b",") if first is not None else b","
    stop = at + SLICE_BYTES
    for _ in range(_GUESSES):
        stop = body.rfind(end, at, stop)
        if stop < 0:
            return
        yield stop + len(end) - 1


def _find_cut(body: bytes, at: int) -> Generator[None, None, int | None]:
    """Find the first comma between two elements a slice behind `at`, or the last one before the array's end.

    Returns None if there is none, or the text makes no sense.
    """
    depth = 0
    cut = None
    for number, match in enumerate(_MARKS.finditer(body, at)):
        mark = body[match.start()]
        if mark == ord(","):
            if not depth:
                cut = match.start()
                if cut - at >= SLICE_BYTES:
                    break
        elif mark != ord('"'):
            depth += _STEP[mark]
            if depth < 0:
                break
        if not number % _MARKS_AT_A_TIME:
            yield
    return cut


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
        return _BEYOND_DOUBLE
    if _SURROGATE.search(data) and any(match[1] for match in _ESCAPES.finditer(data)):
        return _ALONE
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
