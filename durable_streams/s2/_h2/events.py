"""What a connection tells its driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .frames import Data


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer has come.

    Attributes:
        stream_id: Of which stream.
        status: HTTP status, not an informational one.
        headers: Names in lower case; values of a repeated one joined with ", ".
        end_stream: Whether there is no body.
    """

    stream_id: int
    status: int
    headers: Mapping[str, str]
    end_stream: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """A stream was reset, by the peer or for what the peer did. It is gone.

    Attributes:
        stream_id: Of which stream.
        reason: What happened, in words.
        code: The error code of the reset.
        refused: Whether the peer certainly did not look at the request.
    """

    stream_id: int
    reason: str
    code: int
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """A window grew: of one stream, or with `stream_id` 0 perhaps of all."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class Ready:
    """SETTINGS came: the peer's limits are known now, or have changed."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """GOAWAY came; refused streams are told of by `Failed`.

    Attributes:
        code: Why, NO_ERROR for an orderly shutdown.
        debug: The peer's words.
    """

    code: int
    debug: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a PING of ours."""

    payload: bytes


Event = Head | Data | Failed | Room | Ready | Farewell | Pong
