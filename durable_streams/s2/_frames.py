"""Frames of s2s, the session protocol, without I/O (specification: S2 4.2, 4.3).

     byte 0..2   L, unsigned, big-endian: 1 for the flag and the bytes of the payload
     byte 3      flag: bit 7 T terminal | bits 6-5 C compression | bit 4 A reconnect advised | bits 3-0 reserved
     byte 4..    payload, L-1 bytes

Frames know nothing of HTTP/2's frames or of chunks: they are put together again across any split. `FrameDecoder` holds
what has come of one frame and no more, and a length over the limit is refused before its payload is waited for. Each
frame says how it is compressed, whatever was negotiated; decompression is bounded by the same limit.

A bad frame must not swallow the good ones before it: their acknowledgements count. So `feed` returns those, and the
error is raised by the next call of `feed`, `check` or `finish`. A terminal frame ends everything; bytes after it are
ignored, because it tells better than they could what went wrong.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from .._core.json_mode import decode_items
from ..errors import InvalidArgumentError, ParseError
from ._values import MAX_FRAME_PAYLOAD_BYTES
from .errors import S2ConnectionError, S2ProtocolError

#: How frames are compressed.
Compression = Literal["none", "gzip", "zstd"]

#: Payloads below this stay as they are: compressing them gains nothing.
MIN_COMPRESSED_BYTES: int = 1024

#: Pieces of a payload that have at least so many bytes on average are not joined.
_LARGE_PIECE = 8 << 10

TERMINAL: int = 0x80
RECONNECT: int = 0x10
_CODES: dict[Compression, int] = {"none": 0x00, "zstd": 0x20, "gzip": 0x40}
_CODE_MASK = 0x60

_GZIP = 31  # zlib's `wbits`
_GZIP_LEVEL = 6
_ZSTD_LEVEL = 3
_MAX_WINDOW = 8 << 20  # what every decoder of zstd supports; a larger one would be allocated at the sender's word
_SIZE_UNKNOWN = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Frame:
    """A message of a session.

    Attributes:
        payload: A protobuf message, decompressed; may be empty.
        reconnect: The server advises to move to another connection soon.
    """

    payload: bytes
    reconnect: bool = False


@dataclass(frozen=True, slots=True)
class Terminal:
    """The error that ends a session.

    Attributes:
        status: HTTP status of the answer that a unary call would have got, 400 to 599.
        body: Its body: a JSON object.
    """

    status: int
    body: bytes


# --- Encoding ---------------------------------------------------------------------------------------------------------


def frame_head(size: int, flag: int = 0) -> bytes:
    """The four bytes before a payload of this size.

    Raises:
        InvalidArgumentError: if the payload is larger than a frame may be.
    """
    if size > MAX_FRAME_PAYLOAD_BYTES:
        raise InvalidArgumentError(
            f"the encoded message has {size} bytes, a frame holds {MAX_FRAME_PAYLOAD_BYTES}: make batches smaller, or "
            "use fewer and longer headers"
        )
    return (size + 1 << 8 | flag).to_bytes(4, "big")


def encode_frame(payload: bytes, compression: Compression = "none") -> bytes:
    """A frame with this payload.

    Args:
        payload: An encoded protobuf message.
        compression: Used from 1024 bytes up, and only if it makes the payload smaller.

    Raises:
        InvalidArgumentError: if the payload has more than 2,097,151 bytes.
    """
    head = frame_head(len(payload))
    if compression != "none" and len(payload) >= MIN_COMPRESSED_BYTES:
        packed = compress(payload, compression)
        if len(packed) < len(payload):
            return frame_head(len(packed), _CODES[compression]) + packed
    return head + payload


def encode_frame_of(pieces: Sequence[bytes], compression: Compression = "none") -> tuple[bytes, ...]:
    """A frame whose payload is the concatenation of these pieces.

    Returns:
        The frame in pieces: the same, behind a head, if they are large, so that nothing is copied; otherwise one.
    """
    if compression != "none":
        return (encode_frame(b"".join(pieces), compression),)
    size = sum(map(len, pieces))
    frame = (frame_head(size), *pieces)
    return frame if size >= len(frame) * _LARGE_PIECE else (b"".join(frame),)


def encode_terminal(terminal: Terminal) -> bytes:
    """A terminal frame, which only servers send."""
    return frame_head(2 + len(terminal.body), TERMINAL) + terminal.status.to_bytes(2, "big") + terminal.body


def compress(data: bytes, compression: Compression) -> bytes:
    """The data as one gzip member or one zstd frame.

    Raises:
        ImportError: if zstd is asked for and the package `zstandard` is missing.
    """
    if compression == "none":
        return data
    if compression == "zstd":
        return bytes(_zstd().compressor.compress(data))
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP)
    return compressor.compress(data) + compressor.flush()


# --- Decoding ---------------------------------------------------------------------------------------------------------


class FrameDecoder:
    """Turns the bytes of a session's body into frames.

    A payload is put together once, when all of it is there: until then its pieces are kept as they came.
    """

    def __init__(self) -> None:
        self._head = b""  # of a frame, as long as it is not complete
        self._flag = 0
        self._parts: list[bytes | memoryview] = []  # of a payload
        self._left = 0  # bytes of that payload that are still to come
        self._error: S2ProtocolError | None = None
        self._ended = False

    def __repr__(self) -> str:
        state = "failed" if self._error else "ended" if self._ended else f"{self._size} bytes of a frame"
        return f"<FrameDecoder: {state}>"

    @property
    def _size(self) -> int:
        """Bytes of a frame that is not complete."""
        return 4 + sum(map(len, self._parts)) if self._left else len(self._head)

    def feed(self, data: bytes | memoryview) -> list[Frame | Terminal]:
        """Take the next bytes of the body.

        Args:
            data: Read-only. Kept, not copied, until the payload that it is a part of is complete.

        Returns:
            The frames that are complete now. A `Terminal` is the last one ever.

        Raises:
            S2ProtocolError: if the peer broke the protocol. Frames before the bad one are returned first; then `check`
                raises, and so does every later call.
        """
        self.check()
        frames: list[Frame | Terminal] = []
        try:
            self._take(data, frames)
        except S2ProtocolError as error:
            self._error = error
            self._parts.clear()
            if not frames:
                raise
        return frames

    def check(self) -> None:
        """Raise the error that was held back because frames came before it.

        Raises:
            S2ProtocolError: that error.
        """
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """The body has ended.

        Raises:
            S2ProtocolError: if an error was held back.
            S2ConnectionError: if the body was cut in the middle of a frame. Another try may succeed.
        """
        self.check()
        if self._size and not self._ended:
            raise S2ConnectionError(f"the session was cut: it ended after {self._size} bytes of a frame", phase="body")

    def _take(self, data: bytes | memoryview, frames: list[Frame | Terminal]) -> None:
        """Append the frames that the data completes, and keep what is left over."""
        at, end = 0, len(data)
        while at < end and not self._ended:
            if not self._left:
                at = self._take_head(data, at, end)
                if self._head:
                    return
            start, at = at, min(at + self._left, end)
            self._left -= at - start
            if self._left:
                if start < at:
                    self._parts.append(memoryview(data)[start:at] if start else data)
                return
            if self._parts:
                payload = b"".join((*self._parts, memoryview(data)[start:at]))
                self._parts.clear()
            else:
                payload = bytes(data[start:at])
            frames.append(self._frame(payload))

    def _take_head(self, data: bytes | memoryview, at: int, end: int) -> int:
        """Read the head of a frame; returns the place after it, or the end if it is not complete."""
        begin, at = at, min(at + 4 - len(self._head), end)
        head = self._head + data[begin:at]
        if len(head) >= 3:
            length = head[0] << 16 | head[1] << 8 | head[2]
            if not 1 <= length <= MAX_FRAME_PAYLOAD_BYTES + 1:
                raise S2ProtocolError(f"a frame has the length {length}, 1 to {MAX_FRAME_PAYLOAD_BYTES + 1} are legal")
            if len(head) == 4:
                self._head, self._flag, self._left = b"", head[3], length - 1
                return at
        self._head = head
        return at

    def _frame(self, payload: bytes) -> Frame | Terminal:
        flag = self._flag
        if flag & TERMINAL:
            self._ended = True
            return _terminal(flag, payload)
        if code := flag & _CODE_MASK:
            payload = _decompress(payload, code)
        return Frame(payload, bool(flag & RECONNECT))


def _terminal(flag: int, payload: bytes) -> Terminal:
    """A terminal frame's content. It is never compressed, and is a status and a JSON object."""
    if flag & _CODE_MASK:
        raise S2ProtocolError("a terminal frame is compressed")
    if len(payload) < 2:
        raise S2ProtocolError(f"a terminal frame has {len(payload)} bytes: it lacks its status")
    status, body = int.from_bytes(payload[:2], "big"), payload[2:]
    if not 400 <= status <= 599:
        raise S2ProtocolError(f"a terminal frame has the status {status}, which is no error")
    try:
        document = decode_items([body])
    except ParseError as error:
        raise S2ProtocolError(
            f"a terminal frame with the status {status} has no JSON: {error}", status=status
        ) from None
    if len(document) != 1 or not isinstance(document[0], dict) or body.lstrip()[:1] != b"{":
        raise S2ProtocolError(f"a terminal frame with the status {status} has no JSON object", status=status)
    return Terminal(status, body)


def _decompress(payload: bytes, code: int) -> bytes:
    if code == _CODES["gzip"]:
        return decompress(payload, "gzip")
    if code == _CODES["zstd"]:
        return decompress(payload, "zstd")
    raise S2ProtocolError("a frame has the compression 3, which does not exist")


def decompress(data: bytes, compression: Literal["gzip", "zstd"], limit: int = MAX_FRAME_PAYLOAD_BYTES) -> bytes:
    """What one gzip member or zstd frame holds. Never makes more than `limit` bytes and one.

    Raises:
        S2ProtocolError: if the data is damaged or cut, goes on after its end, or holds more than the limit.
        ImportError: if it is zstd and the package `zstandard` is missing.
    """
    return _gunzip(data, limit) if compression == "gzip" else _unzstd(data, limit)


def _gunzip(data: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(_GZIP)
    try:
        out = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise S2ProtocolError(f"gzip data is damaged: {error}") from None
    if len(out) > limit:
        raise S2ProtocolError(f"gzip data holds more than {limit} bytes")
    if not inflater.eof:
        raise S2ProtocolError("gzip data is cut")
    if inflater.unused_data:
        raise S2ProtocolError("gzip data goes on after its end")
    return out


def _unzstd(data: bytes, limit: int) -> bytes:
    tools = _zstd()
    try:
        size = tools.module.get_frame_parameters(data).content_size
        if size != _SIZE_UNKNOWN and size > limit:  # would be allocated at the sender's word
            raise S2ProtocolError(f"zstd data holds {size} bytes, more than {limit}")
        return bytes(tools.decompressor.decompress(data, max_output_size=limit, allow_extra_data=False))
    except tools.module.ZstdError as error:
        raise S2ProtocolError(f"zstd data is damaged, cut, or holds more than {limit} bytes: {error}") from None


class _Zstd(threading.local):
    """The zstd library's objects, which are costly to make and belong to one thread at a time."""

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise ImportError(
                "zstd needs the package zstandard: pip install 'durable-streams-anyio[s2]'", name="zstandard"
            ) from error
        self.module = zstandard
        self.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)


@cache
def _zstd() -> _Zstd:
    """The library's objects; each thread sees its own. Imports the library on first use."""
    return _Zstd()
