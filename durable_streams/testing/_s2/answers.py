"""What the server says no with: status, code and words (specification: S2 2.9)."""

from __future__ import annotations

from typing import Any

from ..._core.json_mode import encode_item
from ...s2._json_records import position_shape
from ...s2._values import StreamPosition


class Refusal(Exception):  # noqa: N818 - the server's answer to a client, and no failure of the server
    """A call is refused.

    Attributes:
        status: HTTP status.
        body: Body of the answer.
        headers: Headers of the answer beside its type.
    """

    def __init__(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.headers: dict[str, str] = headers or {}


def refusal(status: int, code: str, message: str) -> Refusal:
    """A refusal with code and message."""
    return Refusal(status, encode_item({"code": code, "message": message}))


def bad(code: str, message: str) -> Refusal:
    """HTTP 400: the request means nothing. `code` is `bad_...`, by the place of the mistake."""
    return refusal(400, code, message)


def invalid(message: str) -> Refusal:
    """HTTP 422: the request breaks a rule."""
    return refusal(422, "invalid", message)


def mismatch(**what: Any) -> Refusal:
    """HTTP 412: a condition of an append does not hold. Has neither code nor message."""
    return Refusal(412, encode_item(what))


def beyond(tail: StreamPosition) -> Refusal:
    """HTTP 416: nothing can be read there. Has neither code nor message."""
    return Refusal(416, encode_item({"tail": position_shape(tail)}))
