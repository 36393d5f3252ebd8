"""From an answer that is no success to the error that says so (client specification 5.1 and 13)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from ..errors import (
    ConflictError,
    DurableStreamError,
    FetchError,
    RetentionGoneError,
    SeqConflictError,
    StreamClosedError,
    StreamExistsError,
    StreamNotFoundError,
)
from . import wire
from .backoff import parse_retry_after
from .exchange import Head

#: Most that is read of an error's body, in bytes.
MAX_ERROR_BODY = 64 * 1024
#: Statuses that are plain `DurableStreamError` with a code of their own.
_CODES = {400: "BAD_REQUEST", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 413: "UNKNOWN", 429: "RATE_LIMITED", 503: "BUSY"}
_REASONS = {
    400: "the server refuses the request",
    401: "the server asks for credentials",
    403: "the server forbids it",
    413: "the body is too large for the server",
    429: "too many requests",
    503: "the server is busy",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What an error message has to name.

    Attributes:
        operation: What was done, as the caller calls it: "read", "create", "append", ...
        url: The stream's URL, fit to be shown.
        seq: The `Stream-Seq` that was sent, or None.
        size: Bytes of the request's body; 0 if it is not known.
    """

    operation: str
    url: str
    seq: str | None = None
    size: int = 0


def status_error(subject: Subject, head: Head, body: bytes) -> DurableStreamError:
    """The error for an answer whose status is no success.

    Args:
        subject: What was asked.
        head: Status and headers of the answer.
        body: What was read of its body, at most `MAX_ERROR_BODY` bytes.
    """
    status, headers = head.status, dict(head.headers)
    text = body.decode(errors="replace")
    details = _decoded(headers.get(wire.CONTENT_TYPE), text)
    said = _said(text)
    where = f"{subject.operation} {subject.url}"
    facts: dict[str, Any] = {
        "status": status,
        "url": subject.url,
        "headers": headers,
        "details": text if details is None and text else details,
        "retry_after": parse_retry_after(headers.get("retry-after"), head.wall_time),
    }
    if status == 404:
        what = "there is no stream to fork from" if subject.operation == "fork" else "there is no stream"
        return StreamNotFoundError(f"{where}: {what} (404){said}", **facts)
    if status == 409:
        return _conflict(subject, where, said, headers, facts)
    if status == 410:
        earliest = headers.get("stream-earliest-offset")
        return RetentionGoneError(
            f"{where}: the data is no longer kept, or the stream was deleted (410){said}",
            earliest_offset=earliest,
            **facts,
        )
    if status in _CODES:
        reason = _REASONS[status]
        if status == 413 and subject.size:
            reason += f": {subject.size} bytes"
        if _CODES[status] != "UNKNOWN":
            return DurableStreamError(f"{where}: {reason} ({status}){said}", code=_CODES[status], **facts)
    elif status in (301, 302, 303, 307, 308):
        target = redirect_target(subject.url, headers.get("location", ""))
        reason = f"the server redirects to {target.display if target else 'an address that cannot be used'}"
    else:
        reason = "unexpected status"
    return FetchError(f"{where}: {reason} ({status}){said}", text=text, json=details, **facts)


def redirect_target(url: str, location: str) -> wire.Address | None:
    """Where a `Location` header leads, or None if that is no address to send a request to."""
    try:
        return wire.parse_url(urljoin(url, location).partition("#")[0]) if location else None
    except ValueError:  # ours, and those of `urljoin`
        return None


def _conflict(
    subject: Subject, where: str, said: str, headers: dict[str, str], facts: dict[str, Any]
) -> DurableStreamError:
    if wire.is_true(headers.get(wire.CLOSED)):
        final = headers.get(wire.NEXT_OFFSET) or None
        return StreamClosedError(f"{where}: the stream is closed (409){said}", final_offset=final, **facts)
    if subject.operation == "create":
        return StreamExistsError(f"{where}: a stream with another configuration exists (409){said}", **facts)
    if subject.seq is not None:
        return SeqConflictError(f"{where}: seq {subject.seq!r} is not above the last one (409){said}", **facts)
    return ConflictError(f"{where}: conflict with the stream's state (409){said}", **facts)


def _decoded(content_type: str | None, text: str) -> Any:
    media_type = wire.media_type(content_type)
    if media_type != wire.JSON and not media_type.endswith("+json"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _said(text: str) -> str:
    """The server's own words for a message: one line, no control characters, at most 200 characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:400]).split())
    return f": {line[:200]}" if line else ""
