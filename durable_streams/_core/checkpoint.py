"""The position of a reader, as a value that can be stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidArgumentError
from . import wire


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A position between two batches of a stream; everything before it was delivered.

    Store it after the batch before it has been processed: in the same transaction as the effects for exactly-once
    effects, after them for at-least-once. Give it back as `offset=` to go on exactly there.

    Attributes:
        offset: Offset after the last delivered batch; opaque.
        cursor: The server's last cursor, or None. Restores the sharing of cached answers; not needed for correctness.
        up_to_date: Whether the end of the stream, as it was then, had been reached.
        stream_closed: Whether the stream is closed and this is its end. Resuming makes one request and ends.
        text_tail: 0 to 3 bytes before `offset` that belong to a character whose rest is after it. Only filled when
            the stream is read as text; seeds the decoder on resuming.
    """

    offset: str
    cursor: str | None = None
    up_to_date: bool = False
    stream_closed: bool = False
    text_tail: bytes = b""

    def to_dict(self) -> dict[str, Any]:
        """The checkpoint as a small dict of JSON values; fields at their defaults are left out."""
        fields: dict[str, Any] = {"offset": self.offset}
        if self.cursor is not None:
            fields["cursor"] = self.cursor
        if self.up_to_date:
            fields["up_to_date"] = True
        if self.stream_closed:
            fields["stream_closed"] = True
        if self.text_tail:
            fields["text_tail"] = self.text_tail.hex()
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Checkpoint:
        """Rebuild a checkpoint from `to_dict`; unknown fields are ignored, so that older versions read newer ones.

        Raises:
            TypeError: if it is no mapping.
            InvalidArgumentError: if a field is missing or has a wrong type or value.
        """
        if not isinstance(fields, Mapping):
            raise TypeError(f"checkpoint must be a mapping, got {type(fields).__name__}")
        offset, cursor, tail = fields.get("offset"), fields.get("cursor"), fields.get("text_tail", "")
        if not isinstance(offset, str) or not offset:
            raise InvalidArgumentError(f"checkpoint: offset must be a non-empty str, got {offset!r}")
        if cursor is not None and not isinstance(cursor, str):
            raise InvalidArgumentError(f"checkpoint: cursor must be a str or None, got {cursor!r}")
        try:
            text_tail = bytes.fromhex(tail)
        except (TypeError, ValueError):
            raise InvalidArgumentError(f"checkpoint: text_tail must be hexadecimal, got {tail!r}") from None
        if len(text_tail) > 3:
            raise InvalidArgumentError(f"checkpoint: text_tail has at most 3 bytes, got {len(text_tail)}")
        up_to_date, stream_closed = fields.get("up_to_date", False), fields.get("stream_closed", False)
        for name, flag in (("up_to_date", up_to_date), ("stream_closed", stream_closed)):
            if not isinstance(flag, bool):
                raise InvalidArgumentError(f"checkpoint: {name} must be a bool, got {flag!r}")
        return cls(offset, cursor, up_to_date, stream_closed, text_tail)

    def dumps(self) -> str:
        """The checkpoint as one line of JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def loads(cls, text: str | bytes) -> Checkpoint:
        """Rebuild a checkpoint from `dumps`.

        Raises:
            InvalidArgumentError: if the text is not such a line.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"checkpoint: not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise InvalidArgumentError(f"checkpoint: expected a JSON object, got {type(fields).__name__}")
        return cls.from_dict(fields)

    @classmethod
    def start(cls) -> Checkpoint:
        """The beginning of a stream."""
        return cls(wire.START)
