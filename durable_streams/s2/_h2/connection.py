"""One HTTP/2 connection as a client sees it (RFC 9113). No I/O, no clock.

Theory of operation

    received bytes ──▶ receive(data, now) ──▶ events for the driver      open, send, finish, reset, consumed, ping
                            │                                                         │
                            └────────── replies ─────────▶ take() ◀───── frames ──────┘
                                                             │
                                                             ▼ bytes to write

Everything is synchronous and complete. What is to be written collects until `take` is called, in the order in which it
was asked for: header blocks in the order of their compression, the frames of one stream in theirs.

*Streams.* A stream exists (in `_streams`) from `open` until both sides have ended it or one has reset it. After that
the peer may go on for a while, not knowing better; what arrives is counted, decoded (headers are: the compression is
one for the connection) and dropped. A stream that was never opened is another matter, and breaks the connection. An
answer that is complete stays complete: a reset that follows it only means that the rest of the request is not wanted,
which is how servers end a session after its last word (S2 4.3).

*Windows out.* `send` takes as much as the stream's window, the connection's and the caller's limit allow, perhaps
nothing: that is back-pressure, and a `Room` event tells when it is worth another try. SETTINGS may shrink the windows
of open streams by any amount, also below zero.

*Windows in.* A stream's window is given back as its bytes are consumed: the bound of what one slow reader makes us
hold. The connection's is given back on arrival. Were it given back on consumption too, a reader that stands still with
a full window would silence all other streams, and one whose reader waits for another stream's acknowledgement would
wait for ever. It also makes an abandoned stream cost nothing: there is nothing left to give back for it.

*GOAWAY* is a farewell and no end. Streams above the last identifier were not looked at and fail as refused, so that
trying them again is safe. All others go on until they are done, PINGs are answered, windows given back; only new
streams are not opened. A server says it twice, first with the largest identifier there is, then with the true one.

*Effects.* Whether a request can have had one is decided where bytes leave: `take` marks each stream whose head or body
is among them (`Stream.head_left`, `Stream.body_left`). What was still waiting here when the connection broke has
certainly not been seen by anyone.

*Bounds.* A peer cannot make us hold or do much: frames, header blocks (compressed and not) and windows are limited,
frames that move nothing are paid from an `Allowance`, and replies that it does not read may not pile up.

An offence against one stream resets that stream. One against the connection queues GOAWAY and raises `FrameError`; the
connection is `broken` then and its streams are the driver's to fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import hpack

from . import frames
from .events import Event, Failed, Farewell, Head, Pong, Ready, Room
from .fields import MalformedError, check_request, content_length, parse_fields
from .flow import CONNECTION_START, Allowance, ReceiveWindow
from .frames import (
    Data,
    ErrorCode,
    FrameError,
    GoAway,
    Headers,
    Malformed,
    Ping,
    Reset,
    Setting,
    Settings,
    WindowUpdate,
)
from .rope import Rope

#: Receive windows, of a stream and of the connection (S2 4.8).
WINDOW: Final = 10 << 20
#: The longest frame we take: fewer, larger ones on reads (S2 4.8).
FRAME_SIZE: Final = 1 << 20
#: Most bytes of one list of headers, decoded or not.
HEADER_LIST: Final = 64 << 10

# The longest DATA frame we send, whatever the peer allows: a longer one saves nothing and holds up other streams.
_LONGEST_DATA = 256 << 10
# Replies (receipts, pongs, resets) that may wait to be written. A peer that does not read them gets no more.
_MOST_REPLIES = 64 << 10
# Of the compression that the peer may ask us to use, no more than the default is taken up.
_LARGEST_TABLE = 4096
# Tokens that one DATA frame of ours earns the peer: a window update for the stream, one for the connection.
_EARNED_BY_DATA = 4

# Never put into a compression table, where its length could be probed.
_SECRET = frozenset({"authorization", "s2-encryption-key", "cookie", "proxy-authorization"})


class Stream:
    """State of one request and its answer, as long as it lasts.

    Attributes:
        id: Stream identifier.
        head_left: Whether the request's head was handed over to be written.
        body_left: Whether any byte of the body was. May be set back by whoever knows that those bytes are settled.
        local_open: Whether more of the request may follow.
        remote_open: Whether more of the answer may follow.
        head_seen: Whether the answer's head has come.
    """

    __slots__ = (
        "body_left",
        "bodyless",
        "content_left",
        "head_left",
        "head_seen",
        "id",
        "local_open",
        "remote_open",
        "send_window",
        "window",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: int, *, body: bool, bodyless: bool) -> None:
        self.id = stream_id
        self.send_window = send_window
        self.window = ReceiveWindow(receive_window)
        self.local_open = body
        self.remote_open = True
        self.head_seen = False
        self.head_left = False
        self.body_left = False
        self.bodyless = bodyless  # HEAD: a content length that no content follows
        self.content_left: int | None = None


class Connection:
    """Client side of one HTTP/2 connection.

    Args:
        window: Receive window of each stream and of the connection.
        max_frame_size: The longest frame we take.
        max_header_list: Most bytes of one list of headers, by the RFC's count (name, value and 32 for each).
        allowance: Bounds frames that move nothing.

    Attributes:
        broken: Whether the peer broke the protocol, after which nothing more is sent or understood.
        leaving: Whether the peer said GOAWAY.
        ready: Whether the peer's first SETTINGS have come.
    """

    def __init__(
        self,
        *,
        window: int = WINDOW,
        max_frame_size: int = FRAME_SIZE,
        max_header_list: int = HEADER_LIST,
        allowance: Allowance | None = None,
    ) -> None:
        self.broken = False
        self.leaving = False
        self.ready = False
        self._allowance = allowance or Allowance()
        self._reader = frames.FrameReader(max_frame_size=max_frame_size, max_block=max_header_list)
        self._decoder = hpack.Decoder(max_header_list)
        self._encoder = hpack.Encoder()
        self._streams: dict[int, Stream] = {}
        self._next_id = 1
        self._last_accepted = frames.LARGEST_STREAM_ID
        self._virgin = True  # nothing was received yet
        # What the peer said in SETTINGS.
        self._max_streams = frames.LARGEST_STREAM_ID
        self._initial_send_window = frames.DEFAULT_WINDOW
        self._send_frame_size = frames.DEFAULT_FRAME_SIZE
        self._max_sent_headers: int | None = None
        # Windows.
        self._window = window
        self._receive_window = ReceiveWindow(max(window, CONNECTION_START), CONNECTION_START)
        self._send_window = frames.DEFAULT_WINDOW
        # To be written.
        self._out: list[bytes | memoryview] = []
        self._out_size = 0
        self._reply_size = 0
        self._leaving_heads: list[Stream] = []
        self._leaving_bodies: set[Stream] = set()
        self._queue(frames.PREFACE)
        self._queue(
            frames.settings_frame(
                {
                    Setting.ENABLE_PUSH: 0,
                    Setting.INITIAL_WINDOW_SIZE: window,
                    Setting.MAX_FRAME_SIZE: max_frame_size,
                    Setting.MAX_HEADER_LIST_SIZE: max_header_list,
                }
            )
        )
        if increment := self._receive_window.raise_to_size():
            self._queue(frames.window_update_frame(0, increment))

    def __repr__(self) -> str:
        state = "broken" if self.broken else "leaving" if self.leaving else "ready" if self.ready else "new"
        return f"<Connection {state}, {len(self._streams)} streams, {self._out_size} bytes to write>"

    # -- Streams -------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether new streams may ever be opened here."""
        return not (self.broken or self.leaving) and self._next_id <= frames.LARGEST_STREAM_ID

    @property
    def room(self) -> int:
        """How many streams may be opened now."""
        return max(self._max_streams - len(self._streams), 0) if self.usable and self.ready else 0

    @property
    def max_streams(self) -> int:
        """How many streams the peer allows at a time."""
        return self._max_streams

    def open(
        self, method: str, scheme: str, authority: str, path: str, headers: Mapping[str, str], *, body: bool
    ) -> Stream:
        """Begin a request.

        Args:
            method: HTTP method in capitals.
            scheme: "http" or "https".
            authority: Host, and port unless it is the scheme's own.
            path: Path and query, encoded.
            headers: Names in lower case. Those that carry secrets are kept out of the compression tables.
            body: Whether a body follows.

        Raises:
            ValueError: HTTP/2 cannot carry these headers, or the peer does not take so many.
        """
        assert self.room, "ask for room first"
        fields = [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path)]
        fields.extend(headers.items())
        check_request(fields, self._max_sent_headers)
        block = self._encoder.encode([(name, value, name in _SECRET) for name, value in fields])
        stream = Stream(self._next_id, self._initial_send_window, self._window, body=body, bodyless=method == "HEAD")
        self._next_id += 2
        self._streams[stream.id] = stream
        self._queue(frames.headers_frames(stream.id, block, max_frame_size=self._send_frame_size, end_stream=not body))
        self._leaving_heads.append(stream)
        return stream

    def send(self, stream: Stream, data: bytes | memoryview | Rope, limit: int = frames.LARGEST_WINDOW) -> int:
        """Send a part of a request's body.

        Args:
            stream: One that is `local_open`.
            data: What to send. It is kept, not copied, until it is written. What is sent of a rope is taken off it.
            limit: Take no more than this.

        Returns:
            How many bytes the windows allowed, perhaps 0. Offer the rest again after `Room`.
        """
        assert stream.local_open, "the request has ended"
        size = min(len(data), stream.send_window, self._send_window, limit)
        if size <= 0:
            return 0
        count = -(-size // self._send_frame_size)
        stream.send_window -= size
        self._send_window -= size
        self._out += frames.data_frames(stream.id, data, size, max_frame_size=self._send_frame_size)
        self._out_size += size + count * frames.HEAD_SIZE
        self._leaving_bodies.add(stream)
        self._allowance.earn(_EARNED_BY_DATA * count)
        return size

    def finish(self, stream: Stream) -> None:
        """End a request's body. Needs no window."""
        if stream.local_open:
            stream.local_open = False
            for piece in frames.data_frames(stream.id, b"", end_stream=True):
                self._queue(piece)
            self._drop_if_done(stream)

    def reset(self, stream: Stream, code: int = ErrorCode.CANCEL) -> None:
        """Give up a stream, unless it is over already. No event follows for it."""
        if self._streams.pop(stream.id, None) is not None:
            stream.local_open = stream.remote_open = False
            self._queue(frames.reset_frame(stream.id, code))

    def consumed(self, stream: Stream, length: int) -> None:
        """Give bytes of an answer back to the stream's window, when its reader has taken them."""
        if stream.remote_open and (increment := stream.window.give_back(length)):
            self._queue(frames.window_update_frame(stream.id, increment))

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life; `Pong` is the answer."""
        self._queue(frames.ping_frame(payload))

    def close(self) -> None:
        """Say goodbye; the peer opens no streams, so there is none for it to finish."""
        if not self.broken:
            self._queue(frames.goaway_frame(0, ErrorCode.NO_ERROR))

    # -- Writing -------------------------------------------------------------------------------------------

    @property
    def unsent(self) -> int:
        """Bytes that wait for `take`."""
        return self._out_size

    def take(self) -> list[bytes | memoryview]:
        """Everything that is to be written now, in order; whoever takes it writes it.

        The streams concerned count as sent from now on, as nobody can tell how far a write got that fails.
        """
        for stream in self._leaving_heads:
            stream.head_left = True
        for stream in self._leaving_bodies:
            stream.body_left = True
        self._leaving_heads.clear()
        self._leaving_bodies.clear()
        pieces, self._out = self._out, []
        self._out_size = self._reply_size = 0
        return pieces

    def _queue(self, data: bytes | memoryview) -> None:
        self._out.append(data)
        self._out_size += len(data)

    def _reply(self, data: bytes) -> None:
        """Queue a frame that the peer caused."""
        self._reply_size += len(data)
        if self._reply_size > _MOST_REPLIES:
            raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, "the server asks and does not read the answers")
        self._queue(data)

    # -- Receiving -----------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take received bytes.

        Args:
            data: At least one byte.
            now: Seconds, of a clock that only goes forward.

        Returns:
            What happened, in order.

        Raises:
            FrameError: the peer broke the protocol. GOAWAY is queued.
        """
        assert not self.broken, "the connection is broken"
        events: list[Event] = []
        self._allowance.tick(now)
        try:
            if self._virgin:
                self._check_first(data)
            for frame in self._reader.feed(data):
                if type(frame) is Data:
                    self._on_data(frame, events)
                else:
                    self._on_other(frame, events)
        except FrameError as error:
            self.broken = True
            self._queue(frames.goaway_frame(0, error.code))
            raise
        return events

    def _check_first(self, data: bytes) -> None:
        self._virgin = False
        if data.startswith(b"HTTP/1"):
            raise FrameError(ErrorCode.HTTP_1_1_REQUIRED, "the server answers in HTTP/1, not HTTP/2")

    def _on_other(self, frame: frames.Frame, events: list[Event]) -> None:
        if not self.ready and not (isinstance(frame, Settings) and not frame.ack):
            raise FrameError(ErrorCode.PROTOCOL_ERROR, "the server does not begin with SETTINGS")
        match frame:
            case Headers():
                self._on_headers(frame, events)
                return
            case WindowUpdate():
                self._on_window_update(frame, events)
            case Settings(ack=False):
                self._on_settings(frame, events)
            case Ping(ack=False):
                self._reply(frames.ping_frame(frame.payload, ack=True))
            case Ping():
                events.append(Pong(frame.payload))
            case Reset():
                self._on_reset(frame, events)
            case GoAway():
                self._on_goaway(frame, events)
            case Malformed():
                self._known(frame.stream_id)
                self._offend(frame.stream_id, frame.code, frame.reason, events)
        if not self._allowance.spend():
            raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, "a flood of frames that move nothing")

    def _known(self, stream_id: int) -> Stream | None:
        """The stream, or None if it is over.

        Raises:
            FrameError: there never was such a stream.
        """
        stream = self._streams.get(stream_id)
        if stream is None and (stream_id >= self._next_id or not stream_id & 1):
            raise FrameError(ErrorCode.PROTOCOL_ERROR, f"a frame on stream {stream_id}, which was never opened")
        return stream

    def _offend(self, stream_id: int, code: ErrorCode, reason: str, events: list[Event]) -> None:
        """Reset a stream for what the peer did on it."""
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            stream.local_open = stream.remote_open = False
            self._reply(frames.reset_frame(stream_id, code))
            events.append(Failed(stream_id, f"{reason} ({code.name})", code))

    def _drop_if_done(self, stream: Stream) -> None:
        if not (stream.local_open or stream.remote_open):
            self._streams.pop(stream.id, None)

    def _on_data(self, frame: Data, events: list[Event]) -> None:
        stream_id, length = frame.stream_id, frame.length
        stream = self._streams.get(stream_id)
        if length:
            if not self._receive_window.take(length):
                raise FrameError(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
            if increment := self._receive_window.give_back(length):
                self._queue(frames.window_update_frame(0, increment))
        elif not frame.data and not self._allowance.spend():
            raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, "a flood of empty frames")
        if stream is None:
            self._known(stream_id)  # given up here, and the peer did not know yet
            return
        if not stream.window.take(length):
            self._offend(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "more data than the stream's window", events)
            return
        if not stream.head_seen:
            self._offend(stream_id, ErrorCode.PROTOCOL_ERROR, "data before the head of the answer", events)
            return
        if not stream.remote_open:
            self._offend(stream_id, ErrorCode.STREAM_CLOSED, "data after the end of the answer", events)
            return
        if stream.content_left is not None:
            stream.content_left -= len(frame.data)
            if stream.content_left < 0 or (frame.end_stream and stream.content_left):
                self._offend(stream_id, ErrorCode.PROTOCOL_ERROR, "a body that is not as long as declared", events)
                return
        if frame.padding:
            self.consumed(stream, frame.padding)
        events.append(frame)
        if frame.end_stream:
            stream.remote_open = False
            self._drop_if_done(stream)

    def _on_headers(self, frame: Headers, events: list[Event]) -> None:
        try:
            fields = self._decoder.decode(frame.block, raw=True)
        except hpack.OversizedHeaderListError:
            raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, "a list of headers beyond all measure") from None
        except hpack.HPACKError as error:
            raise FrameError(ErrorCode.COMPRESSION_ERROR, f"headers cannot be decompressed ({error})") from None
        stream = self._known(frame.stream_id)
        if stream is None:
            if not self._allowance.spend():
                raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, "a flood of headers on streams that are over")
            return
        if not stream.remote_open:
            self._offend(stream.id, ErrorCode.STREAM_CLOSED, "headers after the end of the answer", events)
            return
        try:
            status, headers = parse_fields(fields, trailers=stream.head_seen)
            informational = not stream.head_seen and 100 <= status < 200
            if informational and (frame.end_stream or status == 101):
                raise MalformedError(f"status {status} is no answer in HTTP/2")
            if stream.head_seen and not frame.end_stream:
                raise MalformedError("trailers that do not end the answer")
            if not stream.head_seen and not informational:
                stream.content_left = content_length(status, headers, stream.bodyless)
            if frame.end_stream and stream.content_left:
                raise MalformedError("a body that is not as long as declared")
        except MalformedError as error:
            self._offend(stream.id, ErrorCode.PROTOCOL_ERROR, str(error), events)
            return
        if informational:
            if not self._allowance.spend():
                raise FrameError(ErrorCode.ENHANCE_YOUR_CALM, "a flood of informational answers")
            return
        if stream.head_seen:
            events.append(Data(stream.id, b"", end_stream=True))
        else:
            stream.head_seen = True
            events.append(Head(stream.id, status, headers, frame.end_stream))
        if frame.end_stream:
            stream.remote_open = False
            self._drop_if_done(stream)

    def _on_window_update(self, frame: WindowUpdate, events: list[Event]) -> None:
        if not frame.stream_id:
            self._send_window += frame.increment
            if self._send_window > frames.LARGEST_WINDOW:
                raise FrameError(ErrorCode.FLOW_CONTROL_ERROR, "a window larger than there may be")
            if self._send_window > 0:
                events.append(Room(0))
            return
        stream = self._known(frame.stream_id)
        if stream is None:
            return
        stream.send_window += frame.increment
        if stream.send_window > frames.LARGEST_WINDOW:
            self._offend(stream.id, ErrorCode.FLOW_CONTROL_ERROR, "a window larger than there may be", events)
            return
        if stream.send_window > 0:
            events.append(Room(stream.id))

    def _on_settings(self, frame: Settings, events: list[Event]) -> None:
        for name, value in frame.values:
            match name:
                case Setting.HEADER_TABLE_SIZE:
                    size = min(value, _LARGEST_TABLE)
                    if size != self._encoder.header_table_size:  # to hpack, the same again takes the change back
                        self._encoder.header_table_size = size
                case Setting.ENABLE_PUSH:
                    if value:
                        raise FrameError(ErrorCode.PROTOCOL_ERROR, "a server that offers to be pushed to")
                case Setting.MAX_CONCURRENT_STREAMS:
                    self._max_streams = value
                case Setting.INITIAL_WINDOW_SIZE:
                    self._resize_send_windows(value)
                    events.append(Room(0))
                case Setting.MAX_FRAME_SIZE:
                    if not frames.DEFAULT_FRAME_SIZE <= value <= frames.LARGEST_FRAME_SIZE:
                        raise FrameError(ErrorCode.PROTOCOL_ERROR, f"a frame size of {value}")
                    self._send_frame_size = min(value, _LONGEST_DATA)
                case Setting.MAX_HEADER_LIST_SIZE:
                    self._max_sent_headers = value
        self._reply(frames.settings_ack_frame())
        self.ready = True
        events.append(Ready())

    def _resize_send_windows(self, value: int) -> None:
        if value > frames.LARGEST_WINDOW:
            raise FrameError(ErrorCode.FLOW_CONTROL_ERROR, "a window larger than there may be")
        change = value - self._initial_send_window
        self._initial_send_window = value
        for stream in self._streams.values():
            stream.send_window += change  # perhaps below zero: then it has to be earned back first
            if stream.send_window > frames.LARGEST_WINDOW:
                raise FrameError(ErrorCode.FLOW_CONTROL_ERROR, "a window larger than there may be")

    def _on_reset(self, frame: Reset, events: list[Event]) -> None:
        stream = self._known(frame.stream_id)
        if stream is None:
            return
        del self._streams[stream.id]
        stream.local_open = stream.remote_open = False
        refused = frame.code == ErrorCode.REFUSED_STREAM
        reason = f"the server reset the stream ({frames.code_name(frame.code)})"
        events.append(Failed(stream.id, reason, frame.code, refused))

    def _on_goaway(self, frame: GoAway, events: list[Event]) -> None:
        self.leaving = True
        self._last_accepted = min(self._last_accepted, frame.last_stream_id)
        events.append(Farewell(frame.code, frame.debug))
        for stream_id in [stream_id for stream_id in self._streams if stream_id > self._last_accepted]:
            stream = self._streams.pop(stream_id)
            stream.local_open = stream.remote_open = False
            reason = f"the server is leaving and did not look at the request ({frames.code_name(frame.code)})"
            events.append(Failed(stream_id, reason, frame.code, refused=True))
