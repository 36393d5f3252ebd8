"""One HTTP request: its headers, path, query and body, read with the strictness of server 2.2 to 2.5."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import quote, unquote_plus

from .._core import wire
from .creation import Fork, StreamConfig
from .offsets import parse_offset
from .protocol import ProducerStamp, Refused, parse_stamp
from .responses import (
    CONNECTION_CLOSE,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    EXPIRES_AT,
    FORK_OFFSET,
    FORK_SUB_OFFSET,
    FORKED_FROM,
    NO_STORE,
    PRODUCER_EPOCH,
    PRODUCER_ID,
    PRODUCER_SEQ,
    TTL,
    Headers,
    Rejection,
    add_vary,
    refusal,
)
from .timestamps import Instant

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

# Headers with one value: a second one makes the request ambiguous.
_SINGLE = frozenset(
    name.encode()
    for name in (
        "host",
        "content-length",
        wire.CONTENT_TYPE,
        wire.SEQ,
        wire.TTL,
        wire.EXPIRES_AT,
        wire.CLOSED,
        wire.FORKED_FROM,
        wire.FORK_OFFSET,
        wire.FORK_SUB_OFFSET,
        wire.PRODUCER_ID,
        wire.PRODUCER_EPOCH,
        wire.PRODUCER_SEQ,
    )
)
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,15}")
_LENGTH_DIGITS = 18
_SHORT_BYTES = 64 * 1024
_PATH_SAFE = "/:@!$&'()*+,;=~-._"
_PREFERENCE = re.compile(r"""[ \t]*max-page-bytes[ \t]*=[ \t]*"?([0-9]{1,15})"?[ \t]*(?:;.*)?""", re.IGNORECASE)


class Disconnected(Exception):  # noqa: N818  # control flow inside the server; never reaches a user
    """The client went away: in the middle of its request, of which nothing may be stored, or of the answer."""


class Call:
    """One request and the way to answer it.

    Attributes:
        method: In capitals.
        path: Normalised full path of the stream, by which it is stored; "" until it was looked at.
        scope: What the ASGI server says of the request.
        headers: Names in lower case; values of repeated ones joined with ", ". Empty until `read_headers`.
        common: Headers of every answer.
        varies: Names of headers of the request on which the answer depends whatever it is.
        admitted: Whether it had begun to come when the server began to end: then it is served all the same.
        status: Of the answer; 0 before it has begun.
    """

    __slots__ = ("_receive", "_send", "admitted", "common", "headers", "method", "path", "scope", "status", "varies")

    def __init__(self, scope: Scope, receive: Receive, send: Send, common: Headers) -> None:
        self.scope: Scope = scope
        self._receive = receive
        self._send = send
        self.common: Headers = common
        self.method: str = scope["method"]
        self.path: str = ""
        self.headers: dict[bytes, bytes] = {}
        self.admitted: bool = False
        self.status: int = 0
        self.varies: bytes = b""

    @property
    def started(self) -> bool:
        """Whether the answer has begun."""
        return self.status != 0

    def read_headers(self) -> None:
        """Collect the headers.

        Raises:
            Rejection: if one that may stand once stands twice, or `Host` is malformed.
        """
        fields = self.scope["headers"]
        headers = self.headers
        if not headers:
            self.headers = headers = dict(fields)
        if len(headers) != len(fields):
            headers.clear()
            for name, value in fields:
                if name not in headers:
                    headers[name] = value
                elif name in _SINGLE:
                    raise Rejection(400, "a header that may be sent once was sent twice")
                else:
                    headers[name] += b", " + value
        host = headers.get(b"host")
        if host and not _is_host(host):
            raise Rejection(400, "the Host header is malformed")

    def header(self, name: bytes) -> str | None:
        """A header's value as text, or None."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def receive_message(self) -> Message:
        """The next ASGI message."""
        return await self._receive()

    def on_disconnect(self, call: Callable[[], None]) -> bool:
        """Have something called when the client goes away, if the server tells that by itself.

        Returns:
            False if it does not: then somebody has to `receive_message`s.
        """
        return False

    def content_length(self) -> int | None:
        """The declared length of the body; None if it is not declared.

        Raises:
            Rejection: if it is no number, or the body's end is declared in another way, too: where it is would depend
                on who looks, which is what request smuggling lives on.
        """
        value = self.headers.get(CONTENT_LENGTH)
        if value is None:
            return None
        if not value.isdigit() or len(value) > _LENGTH_DIGITS:  # of bytes, `isdigit` knows no digits but 0 to 9
            raise Rejection(400, "the Content-Length header is malformed", close=True)
        if b"transfer-encoding" in self.headers:
            raise Rejection(400, "Content-Length and Transfer-Encoding exclude each other", close=True)
        return int(value)

    def has_long_body(self) -> bool:
        """Whether there is a body that is too long to be read and thrown away; else the connection can stay open."""
        length = self.headers.get(CONTENT_LENGTH, b"0")
        if b"transfer-encoding" in self.headers:
            return True
        return not length.isdigit() or len(length) > _LENGTH_DIGITS or int(length) > _SHORT_BYTES

    def origin(self, public_url: str | None) -> str:
        """Scheme, host and port by which the client reaches us: the public ones if they are known."""
        if public_url is not None:
            return public_url
        host = (self.header(b"host") or "").strip()
        if not host:
            name, port = self.scope.get("server") or ("localhost", None)
            host = f"[{name}]" if ":" in name else name
            host += "" if port is None else f":{port}"
        return f"{self.scope.get('scheme', 'http')}://{host}"

    def check_body(self, limit: int) -> None:
        """See what the headers say of the body.

        Raises:
            Rejection: if it is longer than `limit` bytes, or coded: what is stored has to be what was meant.
        """
        coding = self.headers.get(b"content-encoding")
        if coding is not None and coding.strip().lower() not in (b"", b"identity"):
            raise Rejection(415, "compressed request bodies are not supported", close=True)
        if self.headers.get(b"transfer-encoding", b"chunked").strip().lower() != b"chunked":
            raise Rejection(501, "transfer codings other than chunked are not supported", close=True)
        length = self.content_length()
        if length is not None and length > limit:
            raise too_large(limit)

    async def read_body(self, limit: int) -> bytes:
        """Read the whole body.

        Raises:
            Rejection: if it is, or says it is, longer than `limit` bytes, is compressed, or is shorter than announced.
            Disconnected: if the client goes away before its end.
        """
        self.check_body(limit)
        message = await self._receive()
        pieces: list[bytes] = []
        size = 0
        while message["type"] == "http.request":
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise too_large(limit)
            if not message.get("more_body", False):
                if size < (self.content_length() or 0):  # uvicorn loses the body of a request that asks for an upgrade
                    raise Rejection(400, "the body is shorter than its Content-Length", close=True)
                return b"".join((*pieces, piece)) if pieces else piece
            pieces.append(piece)
            message = await self._receive()
        raise Disconnected

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers; the common ones are added."""
        self.status = status
        if self.varies:
            headers = add_vary(headers, self.varies)
        try:
            await self._send({"type": "http.response.start", "status": status, "headers": [*self.common, *headers]})
        except OSError as error:
            raise Disconnected from error

    async def send_body(self, body: bytes, *, more: bool = False) -> None:
        """Send a piece of the body.

        Raises:
            Disconnected: if the server tells that the client is gone. ASGI lets it raise an OSError; most are silent.
        """
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except OSError as error:
            raise Disconnected from error

    @property
    def can_push(self) -> bool:
        """Whether the server can send without waiting (`push`)."""
        return False

    def push(self, body: bytes) -> bool:
        """Send a piece of the body without waiting. Returns whether the client keeps up with what is sent."""
        raise NotImplementedError

    async def keep_up(self) -> None:
        """Wait until the client has taken what was pushed."""

    async def answer(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Send a whole answer. 204 and 304 have neither body nor length, HEAD has no body."""
        if status not in (204, 304) and self.method != "HEAD":
            headers = [*headers, (CONTENT_LENGTH, b"%d" % len(body))]
        await self.start(status, headers)
        await self.send_body(b"" if self.method == "HEAD" else body)

    async def reject(self, rejection: Rejection) -> None:
        """Send an error answer."""
        await self.answer(*self.rejection_answer(rejection))

    def rejection_answer(self, rejection: Rejection) -> tuple[int, Headers, bytes]:
        """Status, headers and body of an error answer."""
        headers = [(b"content-type", b"text/plain; charset=utf-8"), NO_STORE, *rejection.headers]
        if rejection.close:
            headers += self.close_connection()
        return rejection.status, headers, rejection.text.encode() + b"\n"

    def close_connection(self) -> Headers:
        """`Connection: close`, where the HTTP version has it."""
        return [CONNECTION_CLOSE] if self.scope.get("http_version", "1.1").startswith("1") else []


@lru_cache(256)
def _is_host(host: bytes) -> bool:
    return _HOST.fullmatch(host) is not None


def too_large(limit: int) -> Rejection:
    """The refusal of a body that is longer than `limit` bytes."""
    return Rejection(413, f"the body is larger than {limit} bytes", close=True)


def quote_mount(path: str) -> bytes:
    """The path of the application that we are mounted in, percent-encoded again, without a slash at its end."""
    return quote(path.rstrip("/"), safe=_PATH_SAFE).encode()


def raw_path(scope: Scope) -> bytes:
    """The request's path as it was sent.

    ASGI's `path` is decoded and merges `%2F` with `/`, so `raw_path` counts; where it is missing, `path` is quoted.
    """
    raw: bytes | None = scope.get("raw_path")
    return quote(scope["path"], safe=_PATH_SAFE).encode() if raw is None else raw


@dataclass(frozen=True, slots=True)
class ReadQuery:
    """The query of a GET, in the client's words. Values are checked as far as the stream is not needed.

    Attributes:
        offset: An offset's token, `-1` or `now`; None if there is none.
        live: None, `long-poll` or `sse`.
        cursor: As it was sent.
    """

    offset: str | None
    live: str | None
    cursor: str | None


def parse_read_query(query: bytes) -> ReadQuery:
    """Read the query of a GET; parameters we do not know are ignored.

    Raises:
        Rejection: if `offset` is repeated or empty, `live` repeated or unknown, or a live mode has no offset.
    """
    found: dict[str, list[str]] = {wire.OFFSET_PARAM: [], wire.LIVE_PARAM: [], wire.CURSOR_PARAM: []}
    for pair in query.decode("latin-1").split("&"):
        name, _, value = pair.partition("=")
        values = found.get(unquote_plus(name))
        if values is not None:
            values.append(unquote_plus(value))
    offsets, lives, cursors = found.values()
    if len(offsets) > 1 or offsets == [""]:
        raise Rejection(400, "the offset parameter must be given once and not be empty")
    if len(lives) > 1 or (lives and lives[0] not in (wire.LONG_POLL, wire.SSE)):
        raise Rejection(400, "the live parameter must be long-poll or sse")
    if lives and not offsets:
        raise Rejection(400, "live reads need an offset")
    return ReadQuery(
        offsets[0] if offsets else None, lives[0] if lives else None, cursors[0] if len(cursors) == 1 else None
    )


def preferred_page_bytes(prefer: str | None) -> int | None:
    """The N of `Prefer: max-page-bytes=N` (RFC 7240); None if there is none. The first one counts."""
    for preference in (prefer or "").split(","):
        match = _PREFERENCE.fullmatch(preference)
        if match is not None:
            return int(match[1])
    return None


def parse_whole(text: str) -> int | None:
    """A decimal integer from 0 to 2**53 - 1 without sign or leading zeros; None if it is none."""
    if not _DECIMAL.fullmatch(text):
        return None
    number = int(text)
    return number if number <= wire.MAX_INTEGER else None


def parse_config(call: Call) -> StreamConfig:
    """The configuration that a PUT asks for.

    Raises:
        Rejection: if a header is malformed, or both `Stream-TTL` and `Stream-Expires-At` are there.
    """
    content_type = (call.header(CONTENT_TYPE) or "").strip() or None
    if content_type is not None and (not wire.is_media_type(content_type) or _CONTROL_CHARACTERS.search(content_type)):
        raise Rejection(400, "the Content-Type is no media type")
    ttl_text, expires_text = call.header(TTL), call.header(EXPIRES_AT)
    if ttl_text is not None and expires_text is not None:
        raise Rejection(400, "Stream-TTL and Stream-Expires-At exclude each other")
    ttl = expires_at = None
    if ttl_text is not None:
        ttl = parse_whole(ttl_text)
        if ttl is None:
            raise Rejection(400, "Stream-TTL must be a whole number of seconds without sign or leading zeros")
    if expires_text is not None:
        expires_at = Instant.parse(expires_text)
        if expires_at is None:
            raise Rejection(400, "Stream-Expires-At must be an RFC 3339 timestamp with a time zone")
    return StreamConfig(content_type, ttl, expires_at, _parse_fork(call))


def _parse_fork(call: Call) -> Fork | None:
    """The fork headers of a PUT.

    Raises:
        Rejection: if one is malformed, or an offset is there without a source.
    """
    source, offset_text, sub_text = (
        call.headers.get(FORKED_FROM),
        call.header(FORK_OFFSET),
        call.header(FORK_SUB_OFFSET),
    )
    if source is None:
        if offset_text is not None or sub_text is not None:
            raise Rejection(400, "Stream-Fork-Offset and Stream-Fork-Sub-Offset need Stream-Forked-From")
        return None
    path = wire.normalize_path(source)
    if path is None:
        raise Rejection(400, "Stream-Forked-From must be the URL path of a stream")
    offset = sub_offset = None
    if offset_text is not None:
        offset = parse_offset(offset_text)
        if offset is None:
            raise Rejection(400, "the Stream-Fork-Offset is none of this server's offsets")
    if sub_text is not None:
        sub_offset = parse_whole(sub_text)
        if sub_offset is None:
            raise Rejection(400, "Stream-Fork-Sub-Offset must be a whole number without sign or leading zeros")
    return Fork(path, offset, sub_offset or 0)


def parse_producer(call: Call) -> ProducerStamp | None:
    """The producer headers of a POST.

    Raises:
        Rejection: if they are incomplete or malformed.
    """
    headers = call.headers
    if PRODUCER_ID not in headers and PRODUCER_EPOCH not in headers and PRODUCER_SEQ not in headers:
        return None
    stamp = parse_stamp(call.header(PRODUCER_ID), call.header(PRODUCER_EPOCH), call.header(PRODUCER_SEQ))
    if isinstance(stamp, Refused):
        raise refusal(stamp)
    return stamp
