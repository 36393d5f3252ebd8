"""HTTP/2 frames as values and as bytes (RFC 9113, 4 and 6), for a client and for a server. No I/O.

    +-----------------------------------------------+
    |                 Length (24)                   |
    +---------------+---------------+---------------+
    |   Type (8)    |   Flags (8)   |
    +-+-------------+---------------+-------------------------------+
    |R|                 Stream identifier (31)                      |
    +=+=============================================================+
    |                   Payload (Length bytes)                    ...

`FrameReader` turns received bytes, split anywhere, into frames. Three things in it are worth knowing:

* DATA is handed on as it comes. A frame of 1 MiB that arrives in five pieces makes five `Data`, and a large piece is
  not copied: it is a view of what was received, unless it is so small a part that keeping it would waste the rest. The
  first piece tells the length of the whole frame, as flow control counts
  a frame when it begins; only the last can end the stream.
* A header block is one value, however many CONTINUATION frames it took; it is bounded in bytes and in frames.
* Padding and PRIORITY are checked and dropped, and frames of unknown types are skipped, as the RFC asks for.

What breaks the connection raises `FrameError`; what breaks one stream only is a `Malformed` between the other frames.
Whether a frame is allowed in the state its stream is in is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from .rope import Rope

#: What a client sends before its first frame.
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: Bytes of a frame's head.
HEAD_SIZE: Final = 9
#: `SETTINGS_MAX_FRAME_SIZE` before anything was said about it, and the largest value there is.
DEFAULT_FRAME_SIZE: Final = 16_384
LARGEST_FRAME_SIZE: Final = (1 << 24) - 1
#: Flow-control windows: what both sides begin with, and the largest there may be.
DEFAULT_WINDOW: Final = 65_535
LARGEST_WINDOW: Final = (1 << 31) - 1
#: The largest stream identifier.
LARGEST_STREAM_ID: Final = (1 << 31) - 1

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

#: Header blocks take at most this many CONTINUATION frames: empty ones would cost their sender nothing.
MOST_CONTINUATIONS: Final = 64

# Length in two parts (16 + 8 bits), type, flags, stream identifier.
_HEAD = Struct(">HBBBL")
_LONG = Struct(">L")
_TWO_LONGS = Struct(">LL")
_SETTING = Struct(">HL")
_31_BITS = 0x7FFF_FFFF
_PRIORITY_SIZE = 5
# Padding (at most 255 bytes and their length) and priority come on top of a header block in HEADERS.
_HEADERS_EXTRA = 256 + _PRIORITY_SIZE
# A piece of DATA is a view from so many bytes on, and only if it is at least this part of what was received: so what a
# stream keeps holds at most four times its own size in memory.
_LEAST_VIEW = 16 << 10
_VIEW_SHARE = 4
# What is kept of the words in GOAWAY.
_MOST_DEBUG = 1024
# Frames that belong to a stream, those that never do, and those of one size.
_ON_STREAMS = {
    DATA: "DATA",
    HEADERS: "HEADERS",
    PRIORITY: "PRIORITY",
    RST_STREAM: "RST_STREAM",
    PUSH_PROMISE: "PUSH_PROMISE",
    CONTINUATION: "CONTINUATION",
}
_ON_CONNECTION = {SETTINGS: "SETTINGS", PING: "PING", GOAWAY: "GOAWAY"}
_SIZES = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}


class ErrorCode(IntEnum):
    """Why a stream or a connection ended (RFC 9113, 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def code_name(code: int) -> str:
    """An error code in words; unknown ones are legal and shown as numbers."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"error code {code:#x}"


class Setting(IntEnum):
    """Names of SETTINGS (RFC 9113, 6.5.2)."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class FrameError(Exception):
    """The peer broke the protocol in a way that ends the connection.

    Attributes:
        code: What to tell it in GOAWAY.
        reason: What it did, in words.
    """

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason} ({self.code.name})"


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of a DATA frame's payload.

    Attributes:
        stream_id: Of which stream.
        data: The bytes, without padding; may be empty. A view of what was received if they are many.
        end_stream: Whether this is the last piece of a frame that ends the stream.
        length: On the first piece of a frame what the frame counts for flow control, padding included; else 0.
        padding: How much of `length` is no data.
    """

    stream_id: int
    data: bytes | memoryview
    end_stream: bool = False
    length: int = 0
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Headers:
    """A whole header block, compressed: one HEADERS frame and what continues it."""

    stream_id: int
    block: bytes
    end_stream: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """RST_STREAM: the peer gives up a stream. `code` need not be a known one."""

    stream_id: int
    code: int


@dataclass(frozen=True, slots=True)
class Settings:
    """SETTINGS: (name, value) in the order they came, unknown names included; or the receipt for ours."""

    values: tuple[tuple[int, int], ...] = ()
    ack: bool = False


@dataclass(frozen=True, slots=True)
class Ping:
    """PING: eight bytes to send back, or those that came back."""

    payload: bytes
    ack: bool = False


@dataclass(frozen=True, slots=True)
class GoAway:
    """GOAWAY: streams above `last_stream_id` were not and will not be looked at; the others go on."""

    last_stream_id: int
    code: int
    debug: bytes = b""


@dataclass(frozen=True, slots=True)
class WindowUpdate:
    """WINDOW_UPDATE of one stream, or with `stream_id` 0 of the connection."""

    stream_id: int
    increment: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A frame that means nothing here (PRIORITY, or of an unknown type); it is told of because it can be a flood."""

    type: int
    stream_id: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """A frame that breaks the one stream it belongs to."""

    stream_id: int
    code: ErrorCode
    reason: str


Frame = Data | Headers | Reset | Settings | Ping | GoAway | WindowUpdate | Skipped | Malformed


class FrameReader:
    """Turns received bytes into frames.

    Args:
        max_frame_size: What we said in `SETTINGS_MAX_FRAME_SIZE`; a longer frame is an error.
        max_block: Most bytes of a compressed header block.
        preface: Whether the bytes begin with a client's preface, as they do for a server.
    """

    __slots__ = (
        "_block",
        "_block_end_stream",
        "_block_size",
        "_block_stream",
        "_data_end_stream",
        "_data_left",
        "_data_padding",
        "_data_stream",
        "_held",
        "_max_block",
        "_max_frame_size",
        "_needed",
        "_preface",
    )

    def __init__(
        self, *, max_frame_size: int = DEFAULT_FRAME_SIZE, max_block: int = 65_536, preface: bool = False
    ) -> None:
        self._max_frame_size = max_frame_size
        self._max_block = max_block
        self._preface = preface
        # A frame (or preface) that is not complete yet, never part of a DATA payload; and how many bytes it needs.
        self._held = bytearray()
        self._needed = 0
        # The DATA frame whose payload is arriving: bytes of data and then of padding that are still to come.
        self._data_stream = 0
        self._data_left = 0
        self._data_padding = 0
        self._data_end_stream = False
        # The header block that is waiting for CONTINUATION.
        self._block: list[bytes] = []
        self._block_stream = 0
        self._block_size = 0
        self._block_end_stream = False

    @property
    def between_frames(self) -> bool:
        """Whether everything received so far makes whole frames and whole header blocks."""
        return not (self._held or self._preface or self._data_stream or self._block_stream)

    def feed(self, data: bytes) -> list[Frame]:
        """Take received bytes.

        Returns:
            The frames that they complete, and pieces of DATA.

        Raises:
            FrameError: the peer broke the protocol; the reader is of no use afterwards. Frames before the broken one,
                in the same bytes, are lost with it.
        """
        if self._held:
            self._held += data
            if len(self._held) < self._needed:
                return []
            data = bytes(self._held)
            self._held.clear()
        frames: list[Frame] = []
        position, size = 0, len(data)
        if self._preface:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise FrameError(ErrorCode.PROTOCOL_ERROR, "the connection does not begin with HTTP/2's preface")
            if size < len(PREFACE):
                return self._hold(data, 0, len(PREFACE), frames)
            self._preface = False
            position = len(PREFACE)
        while True:
            if self._data_stream:
                position = self._take_data(data, position, frames)
                if self._data_stream:
                    return frames
            if size - position < HEAD_SIZE:
                return self._hold(data, position, HEAD_SIZE, frames)
            high, low, kind, flags, stream_id = _HEAD.unpack_from(data, position)
            length = high << 8 | low
            stream_id &= _31_BITS
            self._check_head(kind, flags, stream_id, length)
            start = position + HEAD_SIZE
            if kind == DATA:
                if flags & PADDED and start == size:  # the length of the padding is the first byte of the payload
                    return self._hold(data, position, HEAD_SIZE + 1, frames)
                padding = data[start] + 1 if flags & PADDED else 0
                if padding > length:
                    raise FrameError(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
                self._data_stream = stream_id
                self._data_left = length - padding
                self._data_padding = padding - 1 if padding else 0
                self._data_end_stream = bool(flags & END_STREAM)
                position = self._take_data(
                    data, start + (padding > 0), frames, first=True, length=length, padding=padding
                )
                continue
            end = start + length
            if end > size:
                return self._hold(data, position, HEAD_SIZE + length, frames)
            frame = self._whole(kind, flags, stream_id, data[start:end])
            if frame is not None:
                frames.append(frame)
            position = end

    def _hold(self, data: bytes, position: int, needed: int, frames: list[Frame]) -> list[Frame]:
        """Keep what is not complete until there are `needed` bytes of it, so that single bytes cost linear time."""
        self._held += data[position:]
        self._needed = needed
        return frames

    def _check_head(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Refuse a frame by its head, before its payload is kept."""
        if length > self._max_frame_size:
            raise FrameError(
                ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes where {self._max_frame_size} are allowed"
            )
        if self._block_stream and (kind != CONTINUATION or stream_id != self._block_stream):
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "another frame inside a header block")
        if kind == CONTINUATION and not self._block_stream:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block")
        if kind in _ON_STREAMS and not stream_id:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, f"{_ON_STREAMS[kind]} on stream 0")
        if kind in _ON_CONNECTION and stream_id:
            raise FrameError(ErrorCode.PROTOCOL_ERROR, f"{_ON_CONNECTION[kind]} on stream {stream_id}")
        if kind in _SIZES and length != _SIZES[kind]:
            raise FrameError(ErrorCode.FRAME_SIZE_ERROR, f"frame type {kind:#x} with {length} bytes of payload")
        if flags & PADDED and kind in (DATA, HEADERS) and not length:
            raise FrameError(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
        if kind in (HEADERS, CONTINUATION) and length > self._max_block - self._block_size + _HEADERS_EXTRA:
            raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, f"a header block of more than {self._max_block} bytes")

    def _take_data(
        self,
        data: bytes,
        position: int,
        frames: list[Frame],
        *,
        first: bool = False,
        length: int = 0,
        padding: int = 0,
    ) -> int:
        """Hand on what is here of the current DATA frame.

        Returns:
            The position after it. `_data_stream` is 0 if that is the frame's end.
        """
        stream_id = self._data_stream
        end = min(position + self._data_left, len(data))
        size = end - position
        piece: bytes | memoryview = data
        if size != len(data):
            large = size >= _LEAST_VIEW and size * _VIEW_SHARE >= len(data)
            piece = memoryview(data)[position:end] if large else data[position:end]
        self._data_left -= size
        dropped = min(self._data_padding, len(data) - end)
        self._data_padding -= dropped
        end_stream = False
        if not self._data_left and not self._data_padding:
            self._data_stream = 0
            end_stream = self._data_end_stream
        if first or piece or end_stream:
            frames.append(Data(stream_id, piece, end_stream, length, padding))
        return end + dropped

    def _whole(self, kind: int, flags: int, stream_id: int, payload: bytes) -> Frame | None:
        """The frame that a type and its payload make; None while a header block goes on."""
        if kind == WINDOW_UPDATE:
            increment = _LONG.unpack(payload)[0] & _31_BITS
            if increment:
                return WindowUpdate(stream_id, increment)
            if stream_id:
                return Malformed(stream_id, ErrorCode.PROTOCOL_ERROR, "a window update by 0")
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "a window update by 0")
        if kind == HEADERS:
            self._block_stream = stream_id
            self._block_end_stream = bool(flags & END_STREAM)
            return self._continue_block(_unpadded_block(flags, payload), flags)
        if kind == CONTINUATION:
            return self._continue_block(payload, flags)
        if kind == RST_STREAM:
            return Reset(stream_id, _LONG.unpack(payload)[0])
        if kind == PING:
            return Ping(payload, bool(flags & ACK))
        if kind == SETTINGS:
            return _settings(flags, payload)
        if kind == GOAWAY:
            if len(payload) < _TWO_LONGS.size:
                raise FrameError(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is too short")
            last, code = _TWO_LONGS.unpack_from(payload)
            return GoAway(last & _31_BITS, code, payload[_TWO_LONGS.size :][:_MOST_DEBUG])
        if kind == PUSH_PROMISE:
            # A client forbids it in its SETTINGS, and a server never may receive it.
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which is switched off")
        if kind == PRIORITY and len(payload) != _PRIORITY_SIZE:
            return Malformed(stream_id, ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {len(payload)} bytes")
        return Skipped(kind, stream_id)

    def _continue_block(self, fragment: bytes, flags: int) -> Headers | None:
        self._block.append(fragment)
        self._block_size += len(fragment)
        if self._block_size > self._max_block:
            raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, f"a header block of more than {self._max_block} bytes")
        if len(self._block) > MOST_CONTINUATIONS + 1:
            raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, f"a header block in more than {MOST_CONTINUATIONS} pieces")
        if not flags & END_HEADERS:
            return None
        headers = Headers(self._block_stream, b"".join(self._block), self._block_end_stream)
        self._block = []
        self._block_stream = self._block_size = 0
        return headers


def _unpadded_block(flags: int, payload: bytes) -> bytes:
    """The fragment of a header block that a HEADERS frame carries."""
    start, end = 0, len(payload)
    if flags & PADDED:
        start, end = 1, end - payload[0]
    if flags & PRIORITY_FLAG:
        start += _PRIORITY_SIZE
    if start > end:
        raise FrameError(ErrorCode.PROTOCOL_ERROR, "HEADERS with more padding than frame")
    return payload[start:end]


def _settings(flags: int, payload: bytes) -> Settings:
    if len(payload) % _SETTING.size or (flags & ACK and payload):
        raise FrameError(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    return Settings(tuple(_SETTING.iter_unpack(payload)), bool(flags & ACK))


def _frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    length = len(payload)
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def data_frames(
    stream_id: int,
    data: bytes | memoryview | Rope,
    size: int | None = None,
    *,
    max_frame_size: int = DEFAULT_FRAME_SIZE,
    end_stream: bool = False,
) -> list[bytes | memoryview]:
    """DATA frames of at most `max_frame_size` bytes of payload, as pieces to be joined or written one after the other.

    The payload is not copied. No data and no `end_stream` make no frame.

    Args:
        stream_id: Of which stream.
        data: The payload. What is sent of a rope is taken off it.
        size: How much of it, from the front; None is all.
        max_frame_size: What the peer allows.
        end_stream: Whether the last frame ends the stream.
    """
    rope = data if isinstance(data, Rope) else Rope((data,))
    left = len(rope) if size is None else size
    pieces: list[bytes | memoryview] = []
    full = _HEAD.pack(max_frame_size >> 8, max_frame_size & 0xFF, DATA, 0, stream_id)
    while left or end_stream:
        for piece in rope.slices(max_frame_size, (left - 1) // max_frame_size):  # that is: not for the last frame
            pieces += (full, piece)
            left -= max_frame_size
        length = min(left, max_frame_size)
        left -= length
        last = end_stream and not left
        pieces.append(_HEAD.pack(length >> 8, length & 0xFF, DATA, END_STREAM if last else 0, stream_id))
        pieces += rope.take(length)
        if last:
            break
    return pieces


def headers_frames(
    stream_id: int, block: bytes, *, max_frame_size: int = DEFAULT_FRAME_SIZE, end_stream: bool = False
) -> bytes:
    """A header block as HEADERS and, if it is longer than a frame, CONTINUATION."""
    flags = END_STREAM if end_stream else 0
    parts = [block[start : start + max_frame_size] for start in range(0, len(block), max_frame_size)] or [b""]
    frames = [
        _frame(CONTINUATION if number else HEADERS, 0 if number else flags, stream_id, part)
        for number, part in enumerate(parts[:-1])
    ]
    kind = CONTINUATION if frames else HEADERS
    frames.append(_frame(kind, END_HEADERS | (0 if frames else flags), stream_id, parts[-1]))
    return b"".join(frames)


def settings_frame(values: Mapping[int, int]) -> bytes:
    """SETTINGS with these values."""
    return _frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values.items()))


def settings_ack_frame() -> bytes:
    """The receipt for the peer's SETTINGS."""
    return _frame(SETTINGS, ACK, 0)


def ping_frame(payload: bytes, *, ack: bool = False) -> bytes:
    """PING with eight bytes, or the answer to one."""
    assert len(payload) == _SIZES[PING], "PING carries eight bytes"
    return _frame(PING, ACK if ack else 0, 0, payload)


def goaway_frame(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """GOAWAY: streams of the peer above `last_stream_id` are not looked at."""
    return _frame(GOAWAY, 0, 0, _TWO_LONGS.pack(last_stream_id, code) + debug)


def reset_frame(stream_id: int, code: int) -> bytes:
    """RST_STREAM."""
    return _frame(RST_STREAM, 0, stream_id, _LONG.pack(code))


def window_update_frame(stream_id: int, increment: int) -> bytes:
    """WINDOW_UPDATE of a stream, or with stream 0 of the connection."""
    return _frame(WINDOW_UPDATE, 0, stream_id, _LONG.pack(increment))
