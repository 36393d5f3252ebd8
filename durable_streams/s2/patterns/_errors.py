"""Errors of the patterns, beneath `S2Error`."""

from __future__ import annotations

from typing import Unpack

from ..errors import S2Error, S2Facts


class FrameSizeError(S2Error):
    """A message is larger than allowed: one that was to be written, or one that a stream's frame header declares.

    Attributes:
        size: Bytes of the message.
        limit: Bytes that are allowed.
    """

    code: str = "FRAME_SIZE"

    def __init__(self, message: str, *, size: int = 0, limit: int = 0, **facts: Unpack[S2Facts]) -> None:
        super().__init__(message, **facts)
        self.size = size
        self.limit = limit


class MessageFormatError(S2Error):
    """A record's frame or dedupe headers mean nothing: whoever wrote it does not follow the format."""

    code: str = "MESSAGE_FORMAT"
