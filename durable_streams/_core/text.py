"""Bytes to text: one incremental UTF-8 decoder for a whole session, and previews for error messages.

Appends are arbitrary bytes and a page may end anywhere, so a character may be split between two chunks, two batches or
two connections. The decoder keeps the beginning of such a character, its *tail*, until the rest comes. The tail
travels in `Checkpoint.text_tail`, and a decoder seeded with it goes on exactly there (specification: client 9.2).
"""

from __future__ import annotations

from codecs import utf_8_decode
from typing import Literal

from ..errors import InvalidArgumentError, ParseError

#: Longest preview of bytes in an error, in characters.
PREVIEW_CHARACTERS = 100


def preview(data: bytes) -> str:
    """The first bytes as text for an error message: at most 100 characters, invalid bytes as U+FFFD."""
    return data[: 4 * PREVIEW_CHARACTERS].decode("utf-8", "replace")[:PREVIEW_CHARACTERS]


class TextDecoder:
    """Decodes the text of one session, batch by batch.

    Args:
        tail: Bytes that an earlier decoder left undecoded (its `tail`), 0 to 3.
        errors: "strict": invalid UTF-8 raises `ParseError`. "replace": it becomes U+FFFD.

    Raises:
        InvalidArgumentError: if `tail` is not the beginning of one character.
    """

    __slots__ = ("_errors", "_tail")

    def __init__(self, tail: bytes = b"", *, errors: Literal["strict", "replace"] = "strict") -> None:
        if errors not in ("strict", "replace"):
            raise InvalidArgumentError(f"errors must be 'strict' or 'replace', got {errors!r}")
        if tail and not _is_tail(tail):
            raise InvalidArgumentError(f"text_tail must be the beginning of one UTF-8 character, got {tail!r}")
        self._errors = errors
        self._tail = tail

    @property
    def tail(self) -> bytes:
        """The 0 to 3 bytes at the end of what was fed that wait for the rest of their character."""
        return self._tail

    def decode(self, data: bytes, *, final: bool = False, offset: str | None = None) -> str:
        """Decode the next bytes; what they leave incomplete is kept as `tail`.

        Args:
            data: The bytes that follow those of the last call.
            final: Whether nothing can follow. An incomplete character is then invalid, and `tail` is empty afterwards.
            offset: Offset of the batch, for the error.

        Raises:
            ParseError: if the bytes are not UTF-8 (only with `errors="strict"`). The decoder stays as it was.
        """
        if self._tail:
            data = self._tail + data
        try:
            text, used = utf_8_decode(data, self._errors, final)
            tail = data[used:]
            if _is_surrogate(tail):
                # CPython waits for a third byte here, though none makes a character.
                utf_8_decode(tail + b"\x80", self._errors, True)
                text, tail = text + "\ufffd\ufffd", b""
        except UnicodeDecodeError as error:
            where = "" if offset is None else f" in the batch at offset {offset!r}"
            raise ParseError(
                f"invalid UTF-8{where}: {error.reason}, byte {error.object[error.start]:#04x}",
                preview=preview(error.object[error.start : error.start + 4 * PREVIEW_CHARACTERS]),
                offset=offset,
            ) from error
        self._tail = tail
        return text


def _is_surrogate(tail: bytes) -> bool:
    """Whether these are the first two bytes of an encoded surrogate, which UTF-8 has no place for."""
    return len(tail) == 2 and tail[0] == 0xED and tail[1] >= 0xA0


def _is_tail(tail: bytes) -> bool:
    """Whether these are the first bytes of one character, and not all of them."""
    try:
        return utf_8_decode(tail, "strict", False)[1] == 0 and not _is_surrogate(tail)
    except UnicodeDecodeError:
        return False
