"""Content coding of answers: gzip and deflate, decoded in pieces of bounded size.

Transports hand the body over as it came. Decoding is ours, because HTTP libraries were found to report a truncated
compressed body as a success (specification: client 5.7). Here a compressed body is complete only when its own end was
reached, checksum included.

A small input may expand a thousandfold. The decoder therefore yields pieces of at most 1 MiB, works on at most 64 KiB
of input at a time, and counts what it yields against the limit.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator

from ..errors import IncompleteBodyError, ParseError

#: What requests offer. More is neither needed nor in the standard library.
ACCEPT_ENCODING: str = "gzip, deflate"

_PIECE = 1 << 20
_INPUT = 1 << 16
_MAX_CODINGS = 4  # each keeps a window; nobody compresses twice in earnest

_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's `wbits`


class _Inflater:
    """One gzip or deflate coding."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._gzip = name != "deflate"
        self._zlib = zlib.decompressobj(_GZIP) if self._gzip else None
        self._head = b""  # deflate: the first byte, until the second tells the format
        self._ended = False  # at the end of the data, or between two gzip members
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what these bytes decode to, in non-empty pieces of at most 1 MiB."""
        self._begun = self._begun or bool(data)
        view = memoryview(data)
        for start in range(0, len(data), _INPUT):
            yield from self._feed(bytes(view[start : start + _INPUT]))

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._ended:
                data = self._next_member(data)
                continue
            if self._zlib is None:
                self._head += data
                if len(self._head) < 2:
                    return
                data, self._head = self._head, b""
                self._zlib = zlib.decompressobj(_ZLIB if _is_zlib(data) else _RAW)
            data = yield from self._inflate(self._zlib, data)

    def _inflate(self, inflater: zlib._Decompress, data: bytes) -> Generator[bytes, None, bytes]:
        """Yield pieces until the input is used up or the end is reached; returns what follows the end."""
        while True:
            try:
                piece = inflater.decompress(data, _PIECE)
            except zlib.error as error:
                raise IncompleteBodyError(f"the body's {self._name} data is damaged: {error}", phase="body") from error
            if piece:
                yield piece
            if inflater.eof:
                self._ended = True
                return inflater.unused_data
            data = inflater.unconsumed_tail
            if not data and len(piece) < _PIECE:  # a full piece may have left output inside zlib
                return b""

    def _next_member(self, data: bytes) -> bytes:
        """Begin another gzip member, if these bytes are more than padding."""
        if not self._gzip:
            raise IncompleteBodyError("the body goes on after the end of its deflate data", phase="body")
        data = data.lstrip(b"\0")
        if data:
            self._zlib = zlib.decompressobj(_GZIP)
            self._ended = False
        return data

    def finish(self) -> None:
        if self._begun and not self._ended:
            raise IncompleteBodyError(f"the body ended before its {self._name} data did", phase="body")


def _is_zlib(data: bytes) -> bool:
    """Whether deflate data begins with a zlib header (RFC 1950), as it should; some servers leave it out."""
    return data[0] & 0x0F == 8 and data[0] >> 4 <= 7 and (data[0] << 8 | data[1]) % 31 == 0


class ContentDecoder:
    """Decoder of one answer's body, made by `make_decoder`."""

    def __init__(self, codings: list[str], max_bytes: int | None) -> None:
        self._stages = [_Inflater(name) for name in reversed(codings)]
        self._max_bytes = max_bytes
        self._total = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode the next bytes of the body.

        Yields:
            Non-empty pieces, of at most 1 MiB if the body is compressed. Take all of them before the next call.

        Raises:
            IncompleteBodyError: if the compressed data is damaged.
            ParseError: if the body is larger than `max_bytes`.
        """
        for piece in self._decode(data, self._stages) if self._stages else (data,):
            self._total += len(piece)
            if self._max_bytes is not None and self._total > self._max_bytes:
                raise ParseError(f"the body is larger than the limit of {self._max_bytes} bytes (max_response_bytes)")
            if piece:
                yield piece

    def _decode(self, data: bytes, stages: list[_Inflater]) -> Iterator[bytes]:
        first, *others = stages
        if not others:
            yield from first.feed(data)
            return
        for piece in first.feed(data):
            yield from self._decode(piece, others)

    def finish(self) -> None:
        """The body has ended.

        Raises:
            IncompleteBodyError: if compressed data has begun and not reached its end. No data at all is complete.
        """
        for stage in self._stages:
            stage.finish()


def make_decoder(content_encoding: str | None, *, max_bytes: int | None = None) -> ContentDecoder:
    """The decoder for a body with this `Content-Encoding` header.

    Args:
        content_encoding: Value of the header, codings in the order they were applied; None if absent.
        max_bytes: Largest decoded body; None for no limit.

    Raises:
        ParseError: if a coding is unknown.
    """
    codings = []
    for name in (content_encoding or "").lower().split(","):
        name = name.strip()
        if name in ("gzip", "x-gzip", "deflate"):
            codings.append(name)
        elif name not in ("", "identity"):
            raise ParseError(f"unknown content coding {name[:40]!r} (offered: {ACCEPT_ENCODING})")
    if len(codings) > _MAX_CODINGS:
        raise ParseError(f"the body has {len(codings)} content codings, at most {_MAX_CODINGS} are accepted")
    return ContentDecoder(codings, max_bytes)
