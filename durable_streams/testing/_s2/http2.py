"""The server's side of one HTTP/2 connection, in the clear and by prior knowledge.

Frames are read and written by the client's own frame layer; what is here is the other role. Each request has a task.
Windows are credited when the handler takes the bytes, so that a slow handler holds its client back; a client that sends
more than its window allows is told so in GOAWAY. As the real server does, an answer that ends before its request's body
is followed by RST_STREAM(NO_ERROR).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import anyio
import anyio.abc
import anyio.lowlevel

from ...s2._h2 import frames
from ...s2._h2.frames import ErrorCode, Setting
from .exchange import GONE, Exchange, S2Request, Wiring


class Http2Connection:
    """Serves the streams of a connection.

    Args:
        stream: The connection.
        first: What was received already.
        number: Of this connection.
        wiring: Of the server.
    """

    def __init__(self, stream: anyio.abc.SocketStream, first: bytes, number: int, wiring: Wiring) -> None:
        import hpack

        self._stream = stream
        self._first = first
        self._number = number
        self._wiring = wiring
        self._reader = frames.FrameReader(preface=True)
        self._hpack_error = hpack.HPACKError
        self._decoder = hpack.Decoder(max_header_list_size=1 << 16)
        self._encoder = hpack.Encoder()
        self._exchanges: dict[int, _Exchange] = {}
        self._last_id = 0
        self._refused_above: int | None = None  # what we told in GOAWAY
        self._writing = anyio.Lock()
        self._tasks: anyio.abc.TaskGroup
        self.changed = anyio.Event()
        self.send_window = frames.DEFAULT_WINDOW
        self.receive_window = max(wiring.window, frames.DEFAULT_WINDOW)
        self._stream_window = max(wiring.window, frames.DEFAULT_WINDOW)  # less than the default once that is received
        self._unreceived: deque[dict[int, int]] = deque()  # settings of ours, until the client has received them
        self.peer_window = frames.DEFAULT_WINDOW
        self.peer_frame_size = frames.DEFAULT_FRAME_SIZE
        self.draining = False
        self.scope = anyio.CancelScope()

    async def run(self) -> None:
        """Serve until either side has enough."""
        with self.scope:
            try:
                async with anyio.create_task_group() as self._tasks:
                    await self._greet()
                    await self._take(self._first)
                    while not (self.draining and not self._exchanges):
                        await self._take(await self._stream.receive())
                    self._tasks.cancel_scope.cancel()
            except* GONE:
                pass  # the client's right
            except* frames.FrameError as group:
                error = group.exceptions[0]
                assert isinstance(error, frames.FrameError)
                with anyio.move_on_after(1):
                    await self._try_write(frames.goaway_frame(self._last_id, error.code, error.reason.encode()))

    async def _greet(self) -> None:
        wiring = self._wiring
        settings: dict[int, int] = {
            Setting.MAX_CONCURRENT_STREAMS: wiring.max_streams,
            Setting.INITIAL_WINDOW_SIZE: wiring.window,
            Setting.MAX_FRAME_SIZE: wiring.max_frame_size,
            Setting.MAX_HEADER_LIST_SIZE: 16_384,
        }
        self._reader = frames.FrameReader(preface=True, max_frame_size=wiring.max_frame_size)
        self._unreceived.append(settings)
        hello = frames.settings_frame(settings)
        if wiring.window > frames.DEFAULT_WINDOW:
            hello += frames.window_update_frame(0, wiring.window - frames.DEFAULT_WINDOW)
        await self.write(hello)

    # Sending

    async def write(self, data: bytes) -> None:
        """Send bytes, whole frames each time."""
        async with self._writing:
            await self._stream.send(data)

    async def _try_write(self, data: bytes) -> None:
        try:
            await self.write(data)
        except GONE:
            self.scope.cancel()

    async def write_headers(self, stream_id: int, headers: list[tuple[str, str]], *, end: bool) -> None:
        """Send a header block: encoding and sending are one step, as the compression has a state."""
        async with self._writing:
            block = self._encoder.encode(headers)
            data = frames.headers_frames(stream_id, block, max_frame_size=self.peer_frame_size, end_stream=end)
            await self._stream.send(data)

    async def goaway(self, last_id: int | None = None, code: int = 0) -> None:
        """Announce the end; streams up to `last_id` go on. None: all that there are."""
        last_id = self._last_id if last_id is None else last_id
        if last_id < 1 << 30:
            self._refused_above = last_id
            self.draining = True
        await self.write(frames.goaway_frame(last_id, code))

    async def retire(self) -> None:
        """Shut down as the real server does: a first GOAWAY that leaves all out, a ping, and the true one."""
        try:
            await self.write(
                frames.goaway_frame(frames.LARGEST_STREAM_ID, ErrorCode.NO_ERROR) + frames.ping_frame(b"shutdown")
            )
            await self.goaway()
        except GONE:
            self.scope.cancel()

    async def credit(self, size: int) -> None:
        """Give back window of the connection for bytes that nobody will take."""
        self.receive_window += size
        await self._try_write(frames.window_update_frame(0, size))

    async def change_settings(self, values: Mapping[int, int]) -> None:
        """Send SETTINGS in the middle of things."""
        self._unreceived.append(dict(values))
        await self._try_write(frames.settings_frame(values))

    def close(self, stream_id: int) -> None:
        """An exchange has ended on both sides, or was reset."""
        exchange = self._exchanges.pop(stream_id, None)
        if exchange is not None and (unread := exchange.unread()):
            self._tasks.start_soon(self.credit, unread)
        if self.draining and not self._exchanges:
            self.scope.cancel()

    def wake(self) -> None:
        """Windows have changed."""
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    # Receiving

    async def _take(self, data: bytes) -> None:
        for frame in self._reader.feed(data):
            await self._on_frame(frame)

    async def _on_frame(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Data():
                await self._on_data(frame)
            case frames.Headers():
                await self._on_headers(frame)
            case frames.Reset(stream_id):
                if exchange := self._exchanges.get(stream_id):
                    exchange.on_reset()
                    self.close(stream_id)
            case frames.Settings(values, ack=False):
                self._on_settings(dict(values))
                await self.write(frames.settings_ack_frame())
            case frames.Settings(ack=True):
                self._on_receipt()
            case frames.Ping(payload, ack=False):
                await self.write(frames.ping_frame(payload, ack=True))
            case frames.WindowUpdate(0, increment):
                self.send_window += increment
                self.wake()
            case frames.WindowUpdate(stream_id, increment):
                if exchange := self._exchanges.get(stream_id):
                    exchange.send_window += increment
                    self.wake()
            case frames.Malformed(stream_id, code):
                await self.write(frames.reset_frame(stream_id, code))
            case _:
                pass  # acknowledgements, GOAWAY of a client, frames without a meaning here

    def _on_settings(self, values: dict[int, int]) -> None:
        if (window := values.get(Setting.INITIAL_WINDOW_SIZE)) is not None:
            for exchange in self._exchanges.values():
                exchange.send_window += window - self.peer_window
            self.peer_window = window
        self.peer_frame_size = values.get(Setting.MAX_FRAME_SIZE, self.peer_frame_size)
        if (size := values.get(Setting.HEADER_TABLE_SIZE)) is not None:
            self._encoder.header_table_size = min(size, 4096)
        self.wake()

    def _on_receipt(self) -> None:
        """The client has received settings of ours: from now on it keeps to them."""
        values = self._unreceived.popleft() if self._unreceived else {}
        if (window := values.get(Setting.INITIAL_WINDOW_SIZE)) is not None:
            for exchange in self._exchanges.values():
                exchange.receive_window += window - self._stream_window
            self._stream_window = window

    async def _on_headers(self, frame: frames.Headers) -> None:
        try:
            pairs = [(str(name), str(value)) for name, value in self._decoder.decode(frame.block)]
        except (self._hpack_error, UnicodeDecodeError) as error:
            raise frames.FrameError(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        if exchange := self._exchanges.get(frame.stream_id):
            exchange.on_end()  # trailers
            return
        if self._refused_above is not None and frame.stream_id > self._refused_above:
            return  # left out, as GOAWAY said
        self._last_id = max(self._last_id, frame.stream_id)
        if len(self._exchanges) >= self._wiring.max_streams:
            await self.write(frames.reset_frame(frame.stream_id, ErrorCode.REFUSED_STREAM))
            return
        headers = dict(pairs)
        if not {":method", ":path"} <= set(headers):
            await self.write(frames.reset_frame(frame.stream_id, ErrorCode.PROTOCOL_ERROR))
            return
        request = self._wiring.request(self._number, "2", headers[":method"], headers[":path"], headers)
        exchange = _Exchange(self, request, frame.stream_id, self.peer_window, self._stream_window)
        self._exchanges[frame.stream_id] = exchange
        if frame.end_stream:
            exchange.on_end()
        self._tasks.start_soon(exchange.run, self._wiring)

    async def _on_data(self, frame: frames.Data) -> None:
        exchange = self._exchanges.get(frame.stream_id)
        self.receive_window -= frame.length
        if exchange is not None:
            exchange.receive_window -= frame.length
        if self.receive_window < 0 or (exchange is not None and exchange.receive_window < 0):
            raise frames.FrameError(ErrorCode.FLOW_CONTROL_ERROR, f"stream {frame.stream_id} sent beyond its window")
        if exchange is None:  # its answer has ended: nobody takes the bytes, and the connection must not starve
            if frame.length:
                await self.credit(frame.length)
            return
        if frame.padding:
            await exchange.credit(frame.padding)
        if frame.data:
            exchange.on_data(bytes(frame.data))
        if frame.end_stream:
            exchange.on_end()


class _Exchange(Exchange):
    def __init__(self, connection: Http2Connection, request: S2Request, stream_id: int, window: int, own: int) -> None:
        super().__init__(request)
        self._connection = connection
        self.stream_id = stream_id
        self.send_window = window
        self.receive_window = own
        self._received: deque[bytes] = deque()
        self._request_ended = False
        self._response_ended = False
        self._reset = False
        self._arrived = anyio.Event()
        self._scope = anyio.CancelScope()

    async def run(self, wiring: Wiring) -> None:
        """Answer."""
        try:
            with self._scope:
                await wiring.handle(self)
        except* GONE:
            self._connection.scope.cancel()
        finally:
            self._connection.close(self.stream_id)

    # From the connection

    def on_data(self, data: bytes) -> None:
        self._received.append(data)
        self._wake()

    def on_end(self) -> None:
        self._request_ended = True
        self._wake()

    def on_reset(self) -> None:
        self._reset = True
        self._scope.cancel()

    def _wake(self) -> None:
        arrived, self._arrived = self._arrived, anyio.Event()
        arrived.set()

    async def credit(self, size: int) -> None:
        """Give back flow-control window."""
        self._connection.receive_window += size
        self.receive_window += size
        update = frames.window_update_frame(0, size)
        if not self._request_ended:
            update += frames.window_update_frame(self.stream_id, size)
        await self._connection.write(update)

    # For the handler

    async def receive(self) -> bytes:
        while not self._received:
            if self._request_ended:
                return b""
            await self._arrived.wait()
        data = self._received.popleft()
        await self.credit(len(data))
        return data

    async def start(self, status: int, headers: Mapping[str, str], *, length: int | None = None) -> None:
        self.request.status = status
        fields = [(":status", str(status)), *headers.items()]
        if length is not None:
            fields.append(("content-length", str(length)))
        await self._connection.write_headers(self.stream_id, fields, end=False)

    async def send(self, data: bytes) -> None:
        connection = self._connection
        at = 0
        while at < len(data):
            room = min(connection.send_window, self.send_window, connection.peer_frame_size)
            if room <= 0:
                await connection.changed.wait()
                continue
            piece = data[at : at + room]
            connection.send_window -= len(piece)
            self.send_window -= len(piece)
            at += len(piece)
            await connection.write(b"".join(frames.data_frames(self.stream_id, piece, max_frame_size=room)))

    async def finish(self) -> None:
        self._response_ended = True
        data = b"".join(frames.data_frames(self.stream_id, b"", end_stream=True))
        if not self._request_ended:
            data += frames.reset_frame(self.stream_id, ErrorCode.NO_ERROR)
        await self._connection.write(data)

    def unread(self) -> int:
        """Bytes of the request that nobody will take; the connection must not starve of them."""
        size = sum(map(len, self._received))
        self._received.clear()
        return size

    async def cut(self) -> None:
        self._connection.scope.cancel()
        await anyio.sleep_forever()

    async def reset(self, code: int) -> None:
        await self._connection.write(frames.reset_frame(self.stream_id, code))
        self._scope.cancel()
        await anyio.lowlevel.checkpoint()

    async def goaway(self, *, leave_out: bool = False) -> None:
        await self._connection.goaway(max(0, self.stream_id - 2) if leave_out else None)
        if leave_out:
            self._scope.cancel()
            await anyio.lowlevel.checkpoint()
