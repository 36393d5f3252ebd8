"""Names and small rules of the wire: headers, parameters, flags, media types, URLs.

The names are used by client and server alike. Header names stand in lower case, as both sides handle them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode, urljoin, urlsplit, urlunsplit

from ..errors import InvalidArgumentError

# Headers (protocol, appendix A).
NEXT_OFFSET = "stream-next-offset"
CURSOR = "stream-cursor"
UP_TO_DATE = "stream-up-to-date"
CLOSED = "stream-closed"
SEQ = "stream-seq"
TTL = "stream-ttl"
EXPIRES_AT = "stream-expires-at"
FORKED_FROM = "stream-forked-from"
FORK_OFFSET = "stream-fork-offset"
FORK_SUB_OFFSET = "stream-fork-sub-offset"
PRODUCER_ID = "producer-id"
PRODUCER_EPOCH = "producer-epoch"
PRODUCER_SEQ = "producer-seq"
PRODUCER_EXPECTED_SEQ = "producer-expected-seq"
PRODUCER_RECEIVED_SEQ = "producer-received-seq"
SSE_DATA_ENCODING = "stream-sse-data-encoding"
CONTENT_TYPE = "content-type"

# Query parameters (appendix B).
OFFSET_PARAM = "offset"
LIVE_PARAM = "live"
CURSOR_PARAM = "cursor"
#: Ours whatever the user's parameters say (client 2).
PROTOCOL_PARAMS = frozenset({OFFSET_PARAM, LIVE_PARAM, CURSOR_PARAM})
LONG_POLL = "long-poll"
SSE = "sse"

# Sentinel offsets (protocol 8).
START = "-1"
NOW = "now"

# Fields of the control event (protocol 5.8).
CONTROL_NEXT_OFFSET = "streamNextOffset"
CONTROL_CURSOR = "streamCursor"
CONTROL_UP_TO_DATE = "upToDate"
CONTROL_CLOSED = "streamClosed"

JSON = "application/json"
OCTET_STREAM = "application/octet-stream"
EVENT_STREAM = "text/event-stream"

#: Largest number in a header: epochs and sequence numbers (protocol 5.2.1).
MAX_INTEGER = 2**53 - 1

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_MEDIA_TYPE = re.compile(rf"{_NAME}/{_NAME}[ \t]*(?:;[^\r\n\0]*)?")
_HEADER_NAME = re.compile(_NAME)
_HOST = re.compile(r"[-0-9A-Za-z._~%!$&'()*+,;=]+")
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_DECIMAL = re.compile(r"[0-9]{1,30}")
_UNRESERVED = frozenset(b"-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPE_OR_FOREIGN = re.compile(rb"%..|[^-._~0-9A-Za-z!$&'()*+,;=:@/]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def is_true(value: str | None) -> bool:
    """Whether a `Stream-Closed` header is set: its value is `true` in any letter case (protocol P4.1-3)."""
    return value is not None and value.strip().lower() == "true"


def is_flag(value: str | None) -> bool:
    """Whether a `Stream-Up-To-Date` header is set: present, and not `false` (client 2)."""
    return value is not None and value.strip().lower() != "false"


def parse_integer(value: str | None) -> int | None:
    """Read a decimal header such as `Producer-Seq`; None if it is absent or no number up to 2**53 - 1."""
    if value is None or not _DECIMAL.fullmatch(value):
        return None
    number = int(value)
    return number if number <= MAX_INTEGER else None


def media_type(content_type: str | None) -> str:
    """The media type without parameters, in lower case; "" if there is none."""
    return (content_type or "").partition(";")[0].strip().lower()


def is_json(content_type: str | None) -> bool:
    """Whether a stream of this type is in JSON mode: exactly `application/json` (protocol 9.1)."""
    return media_type(content_type) == JSON


def is_text(content_type: str | None) -> bool:
    """Whether the media type is `text/*`."""
    return media_type(content_type).startswith("text/")


def is_media_type(content_type: str) -> bool:
    """Whether the value has the syntax of a media type, `type/subtype` with optional parameters."""
    return _MEDIA_TYPE.fullmatch(content_type.strip()) is not None


def is_rfc3339(value: str) -> bool:
    """Whether the value is a date and time with zone as RFC 3339 writes them, and exists in the calendar."""
    if not _RFC3339.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(re.sub(r"\.[0-9]+", "", value.upper()))
    except ValueError:
        return False
    return True


def check_header(name: str, value: str) -> tuple[str, str]:
    """Validate one header and return it with its name in lower case.

    Raises:
        InvalidArgumentError: if the name is no token, or the value has CR, LF, NUL or a character beyond Latin-1.
    """
    if not _HEADER_NAME.fullmatch(name):
        raise InvalidArgumentError(f"headers: {name!r} is not a header name")
    if not value.isascii():
        try:
            value.encode("latin-1")
        except UnicodeEncodeError:
            raise InvalidArgumentError(f"headers: the value of {name!r} has characters beyond Latin-1") from None
    if "\r" in value or "\n" in value or "\0" in value:
        raise InvalidArgumentError(f"headers: the value of {name!r} has CR, LF or NUL")
    return name.lower(), value


@dataclass(frozen=True, slots=True)
class Address:
    """A stream's URL taken apart: what goes on the wire, and what may be shown.

    Attributes:
        base: URL without user information, query and fragment.
        query: The URL's own parameters, in order, repetitions kept.
        authorization: `Authorization` header made of the URL's user information, or None.
    """

    base: str
    query: tuple[tuple[str, str], ...] = field(repr=False)
    authorization: str | None = field(default=None, repr=False)

    @property
    def display(self) -> str:
        """The URL for errors, logs and reprs: no user information, no query values."""
        if not self.query:
            return self.base
        names = (quote(name, safe="", errors="surrogateescape") for name, _ in self.query)
        return f"{self.base}?{'&'.join(f'{name}=...' for name in names)}"

    @property
    def path(self) -> str:
        """The URL's path, still percent-encoded."""
        return urlsplit(self.base).path

    @property
    def origin(self) -> tuple[str, str]:
        """Scheme and host with port."""
        parts = urlsplit(self.base)
        return parts.scheme, parts.netloc

    def url(self, params: Mapping[str, str]) -> str:
        """The complete URL: own and given parameters, sorted by name so that equal reads share a cache entry.

        A given parameter replaces all of the URL's own with that name; of several own ones with one name the order
        stays.

        Raises:
            InvalidArgumentError: if a parameter has lone surrogates: they have no encoding.
        """
        pairs = [pair for pair in self.query if pair[0] not in params]
        pairs.extend(params.items())
        if not pairs:
            return self.base
        pairs.sort(key=lambda pair: pair[0])
        try:
            query = urlencode(pairs, quote_via=quote, safe="", errors="surrogateescape", encoding="utf-8")
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(f"params: {error.object[error.start]!r} cannot be encoded") from None
        return f"{self.base}?{query}"

    def join(self, reference: str) -> Address:
        """The address that a URL or path, taken relative to this one, leads to. Own query parameters stay behind."""
        return parse_url(urljoin(self.base, reference))


def parse_url(url: str) -> Address:
    """Take a stream's URL apart.

    Raises:
        TypeError: if it is not a str.
        InvalidArgumentError: if it is empty, not an absolute http or https URL, or has a fragment.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, got {type(url).__name__}")
    if not url:
        raise InvalidArgumentError("url is missing: expected an absolute http or https URL, got an empty string")
    if any(character <= " " or character == "\x7f" for character in url):
        raise InvalidArgumentError("url must not contain spaces or control characters")
    if any("\ud800" <= character <= "\udfff" for character in url):
        raise InvalidArgumentError("url must not contain lone surrogates: they cannot be encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # whose text may show a password
        raise InvalidArgumentError("url cannot be parsed: its host or port is invalid") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = f"{parts.scheme}:..." if parts.scheme else repr(parts.path.rpartition("@")[2][:40])
        raise InvalidArgumentError(
            f"url must be an absolute http or https URL, got {shown}; it looks like http://localhost:4437/v1/stream/chat"
        )
    if "#" in url:
        raise InvalidArgumentError("url must not have a fragment (#...)")
    authorization = None
    if "@" in parts.netloc:
        login = unquote_to_bytes(parts.username or "") + b":" + unquote_to_bytes(parts.password or "")
        authorization = "Basic " + base64.b64encode(login).decode()
    netloc = _encode_host(parts.hostname, bracketed="[" in parts.netloc)
    if port is not None:
        netloc += f":{port}"
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    base = urlunsplit((parts.scheme, netloc, path, "", ""))
    query = tuple(parse_qsl(parts.query, keep_blank_values=True, errors="surrogateescape"))
    return Address(base, query, authorization)


def _encode_host(host: str, *, bracketed: bool) -> str:
    """The host name as it goes on the wire; refused here if the resolver would only choke on it."""
    if ":" in host:
        return f"[{host}]"
    try:
        encoded = host.encode("idna").decode("ascii")
        encoded.encode("idna")  # what came of other scripts may have empty labels
    except UnicodeError:
        raise InvalidArgumentError("url has a host name that cannot be encoded") from None
    if bracketed or not _HOST.fullmatch(encoded):
        raise InvalidArgumentError(f"url has the host name {encoded!r}, which no host can have")
    return encoded


def same_origin(one: Address, other: Address) -> bool:
    """Whether both lead to the same server: scheme, host and port are equal, default ports included."""

    def normal(address: Address) -> tuple[str, str]:
        scheme, netloc = address.origin
        return scheme, netloc.removesuffix(":443" if scheme == "https" else ":80")

    return normal(one) == normal(other)


def normalize_path(path: bytes) -> str | None:
    """The one spelling of a percent-encoded URL path, as streams are keyed by it (server 2.2).

    Unreserved characters stand decoded, and what may not stand in a path is encoded, with upper-case hex digits. All
    else stays as it is: `%2F` apart from `/`, and `%3A` from `:`.

    Returns:
        The path, or None if it is not acceptable: not starting with `/`, longer than 1024 bytes, broken
        percent-encoding, control characters or invalid UTF-8 after decoding, empty segments, or segments `.` and `..`.
    """
    if not path.startswith(b"/") or len(path) > 1024 or _BROKEN_ESCAPE.search(path):
        return None
    for raw in path[1:].split(b"/"):
        try:
            segment = unquote_to_bytes(raw).decode()
        except UnicodeDecodeError:
            return None
        if segment in ("", ".", "..") or _CONTROL.search(segment):
            return None
    return _ESCAPE_OR_FOREIGN.sub(_respell, path).decode("ascii")


def _respell(match: re.Match[bytes]) -> bytes:
    text = match.group()
    byte = int(text[1:], 16) if len(text) == 3 else text[0]
    return bytes((byte,)) if byte in _UNRESERVED else b"%%%02X" % byte


def merge_headers(*layers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Merge headers, later layers winning; names compare without letter case and come out in lower case."""
    merged: dict[str, str] = {}
    for layer in layers:
        for name, value in layer:
            merged[name.lower()] = value
    return merged
