"""What HTTP/2 allows in the headers of requests and answers (RFC 9113, 8)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"[^\0\r\n]*")
_STATUS = re.compile(rb"[1-5][0-9][0-9]")
# Headers that belong to one hop of HTTP/1.1 and make an HTTP/2 message malformed (RFC 9113, 8.2.2).
_FORBIDDEN = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})


def check_request(fields: list[tuple[str, str]], most: int | None) -> None:
    """Refuse what cannot be sent.

    Args:
        fields: Four pseudo-headers, then the others.
        most: How many bytes the peer takes, by the RFC's count; None if it did not say.

    Raises:
        ValueError: HTTP/2 cannot carry it, or it is too much for the peer.
    """
    size = 0
    for number, (name, value) in enumerate(fields):
        raw_name, raw_value = name.encode(), value.encode()
        # The first four are ours, and begin with a colon.
        if number >= 4 and (not _NAME.fullmatch(raw_name) or raw_name in _FORBIDDEN):
            raise ValueError(f"HTTP/2 has no place for a header {name!r}")
        if not _VALUE.fullmatch(raw_value):
            raise ValueError(f"the value of header {name!r} breaks its line")
        size += len(raw_name) + len(raw_value) + 32
    if most is not None and size > most:
        raise ValueError(f"headers of {size} bytes, where the server takes {most}")


class MalformedError(Exception):
    """An answer that HTTP/2 does not know (RFC 9113, 8.1.1)."""


def parse_fields(fields: Iterable[tuple[bytes, bytes]], *, trailers: bool) -> tuple[int, dict[str, str]]:
    """Status and headers of a decoded block; the status of trailers is 0."""
    status = 0
    headers: dict[str, str] = {}
    for name, value in fields:
        if name.startswith(b":"):
            if name != b":status" or status or headers or trailers or not _STATUS.fullmatch(value):
                raise MalformedError("a pseudo-header that does not belong there")
            status = int(value)
            continue
        if not _NAME.fullmatch(name) or name in _FORBIDDEN or not _VALUE.fullmatch(value):
            raise MalformedError("a header that HTTP/2 does not allow")
        text, shown = name.decode(), value.decode("latin-1").strip(" \t")
        headers[text] = f"{headers[text]}, {shown}" if text in headers else shown
    if not status and not trailers:
        raise MalformedError("an answer without a status")
    return status, headers


def content_length(status: int, headers: Mapping[str, str], bodyless: bool) -> int | None:
    """How many bytes the body has to have; None if that is not told."""
    text = headers.get("content-length")
    if text is None or bodyless or status in (204, 304):
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise MalformedError("a content length that is no number")
    return int(text)
