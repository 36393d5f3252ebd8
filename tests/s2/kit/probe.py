"""A client that sends what it is told, over HTTP/1.1 and HTTP/2, and shares no code with ours but the codecs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
import h2.config
import h2.connection
import h2.events
import h2.settings

from durable_streams.s2 import _proto
from durable_streams.s2._frames import Frame, FrameDecoder, Terminal, encode_frame
from durable_streams.s2._values import AppendAck, AppendInput, ReadBatch

GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError)


@dataclass
class Reply:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Code of an error."""
        return str(self.json["code"])

    @property
    def refusal(self) -> tuple[int, str]:
        """Status and code of an error."""
        return self.status, self.code


@dataclass
class Wire:
    """A connection with one exchange on it. `receive` gives b"" at the proper end, and raises one of `GONE` before."""

    stream: anyio.abc.SocketStream
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    data_sizes: list[int] = field(default_factory=list)  # of the pieces of the body as they came

    async def open(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> None:
        """Send a request; `body` None leaves it open."""
        raise NotImplementedError

    async def head(self) -> int:
        raise NotImplementedError

    async def send(self, data: bytes) -> None:
        raise NotImplementedError

    async def finish(self) -> None:
        raise NotImplementedError

    async def receive(self) -> bytes:
        raise NotImplementedError


@dataclass
class Http1(Wire):
    buffer: bytes = b""
    left: int | None = None  # None: chunked

    async def open(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> None:
        lines = [
            f"{method} {target} HTTP/1.1",
            "host: localhost",
            *(f"{key}: {value}" for key, value in headers.items()),
        ]
        lines.append("transfer-encoding: chunked" if body is None else f"content-length: {len(body)}")
        await self.stream.send("\r\n".join([*lines, "", ""]).encode() + (body or b""))

    async def _line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            self.buffer += await self.stream.receive()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line

    async def head(self) -> int:
        self.status = int((await self._line()).split()[1])
        while line := await self._line():
            name, _, value = line.decode().partition(":")
            self.headers[name.lower()] = value.strip()
        chunked = self.headers.get("transfer-encoding") == "chunked"
        self.left = None if chunked else int(self.headers.get("content-length", "0"))
        return self.status

    async def send(self, data: bytes) -> None:
        await self.stream.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def finish(self) -> None:
        await self.stream.send(b"0\r\n\r\n")

    async def receive(self) -> bytes:
        if self.left is None:
            size = int(await self._line(), 16)
            while len(self.buffer) < size + 2:
                self.buffer += await self.stream.receive()
            data, self.buffer = self.buffer[:size], self.buffer[size + 2 :]
        else:
            if not self.left:
                return b""
            if not self.buffer:
                self.buffer = await self.stream.receive()
            data, self.buffer = self.buffer[: self.left], self.buffer[self.left :]
            self.left -= len(data)
        if data:
            self.data_sizes.append(len(data))
        return data


class StreamResetError(ConnectionError):
    """The stream was reset."""


@dataclass
class Http2(Wire):
    events: list[h2.events.Event] = field(default_factory=list)
    resets: list[int] = field(default_factory=list)
    goaways: list[int] = field(default_factory=list)
    ended: bool = False
    held: bytes = b""  # of a frame that is not complete

    async def open(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(1 << 24)
        fields = [
            (":method", method),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", target),
            *headers.items(),
        ]
        self.id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(self.id, fields, end_stream=body == b"")
        if body != b"":
            self.h2.increment_flow_control_window(1 << 24, self.id)
        await self._flush()
        if body:
            await self.send(body)
            await self.finish()

    async def _flush(self) -> None:
        if data := self.h2.data_to_send():
            await self.stream.send(data)

    async def _pump(self) -> None:
        data = self._without_goaways(await self.stream.receive())
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.StreamReset):
                self.resets.append(int(event.error_code or 0))
            else:
                self.events.append(event)
        await self._flush()

    def _without_goaways(self, data: bytes) -> bytes:
        """Whole frames but GOAWAY, which would make h2 refuse everything behind it. They are noted."""
        self.held += data
        kept = b""
        while len(self.held) >= 9 and len(self.held) >= (size := 9 + int.from_bytes(self.held[:3], "big")):
            frame, self.held = self.held[:size], self.held[size:]
            if frame[3] == 7:
                self.goaways.append(int.from_bytes(frame[9:13], "big"))
            else:
                kept += frame
        return kept

    async def head(self) -> int:
        while not self.status:
            for event in list(self.events):
                if isinstance(event, h2.events.ResponseReceived):
                    self.events.remove(event)
                    self.headers = {str(name): str(value) for name, value in event.headers}
                    self.status = int(self.headers.pop(":status"))
                    return self.status
            if self.resets:
                raise StreamResetError(str(self.resets))
            await self._pump()
        return self.status

    async def send(self, data: bytes) -> None:
        while data:
            room = min(self.h2.local_flow_control_window(self.id), self.h2.max_outbound_frame_size)
            if room <= 0:
                await self._pump()
                continue
            self.h2.send_data(self.id, data[:room])
            data = data[room:]
            await self._flush()

    async def finish(self) -> None:
        self.h2.end_stream(self.id)
        await self._flush()

    async def receive(self) -> bytes:
        while True:
            for event in list(self.events):
                self.events.remove(event)
                if isinstance(event, h2.events.DataReceived) and event.data:
                    self.h2.acknowledge_received_data(event.flow_controlled_length or 0, self.id)
                    await self._flush()
                    self.data_sizes.append(len(event.data))
                    return event.data
                if isinstance(event, h2.events.StreamEnded):
                    self.ended = True
            if self.ended:
                return b""
            if self.resets:
                raise StreamResetError(str(self.resets))
            await self._pump()


@dataclass
class Session:
    """An s2s session."""

    wire: Wire
    decoder: FrameDecoder = field(default_factory=FrameDecoder)
    frames: list[Frame | Terminal] = field(default_factory=list)
    ended: bool = False

    async def send(self, *batches: AppendInput, compression: str = "none") -> None:
        data = b"".join(encode_frame(_proto.encode_append_input(batch), compression) for batch in batches)  # type: ignore[arg-type]
        await self.wire.send(data)

    async def frame(self) -> Frame | Terminal | None:
        """The next frame; None is the end."""
        while not self.frames:
            data = await self.wire.receive()
            if not data:
                self.decoder.finish()
                return None
            self.frames += self.decoder.feed(data)
        return self.frames.pop(0)

    async def ack(self) -> AppendAck:
        frame = await self.frame()
        assert isinstance(frame, Frame), frame
        return _proto.decode_append_ack(frame.payload)

    async def batch(self) -> ReadBatch:
        frame = await self.frame()
        assert isinstance(frame, Frame), frame
        return _proto.decode_read_batch(frame.payload)

    async def terminal(self) -> Terminal:
        frame = await self.frame()
        assert isinstance(frame, Terminal), frame
        return frame

    async def end(self) -> None:
        """The session ends here, cleanly."""
        assert await self.frame() is None


@dataclass
class Bench:
    """A server, a basin on it, and a stream that may not exist yet.

    Attributes:
        url: Of the server.
        basin: A basin of this run.
        stream: Name of a stream for one check.
        version: "1.1" or "2".
    """

    url: str
    basin: str
    stream: str
    version: str = "1.1"

    @asynccontextmanager
    async def wire(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> AsyncIterator[Wire]:
        parts = urlsplit(self.url)
        async with await anyio.connect_tcp(parts.hostname or "", parts.port or 80) as stream:
            wire: Wire = Http1(stream) if self.version == "1.1" else Http2(stream)
            await wire.open(method, f"/v1{path}", headers, body)
            yield wire

    async def call(
        self, method: str, path: str, body: Any = b"", *, headers: Mapping[str, str] | None = None, basin: bool = True
    ) -> Reply:
        """A unary call. A body that is not bytes is sent as JSON."""
        fields = {"s2-basin": self.basin} if basin else {}
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            fields["content-type"] = "application/json"
        fields.update(headers or {})
        with anyio.fail_after(20):
            async with self.wire(method, path, fields, body) as wire:
                await wire.head()
                parts = []
                while data := await wire.receive():
                    parts.append(data)
                return Reply(wire.status, wire.headers, b"".join(parts))

    @property
    def path(self) -> str:
        """Of the stream."""
        return f"/streams/{self.stream}"

    def on(self, stream: str) -> Bench:
        """The same with another stream."""
        return replace(self, stream=stream)

    def name(self, *parts: str) -> str:
        """A basin's name that no other check has."""
        digest = hashlib.blake2s("/".join([self.basin, self.stream, self.version, *parts]).encode(), digest_size=6)
        return f"kit-{digest.hexdigest()}"

    async def create(self, config: Any = None) -> None:
        reply = await self.call("POST", "/streams", {"stream": self.stream, **({"config": config} if config else {})})
        assert reply.status == 201, reply

    async def append(self, *records: Any, headers: Mapping[str, str] | None = None, **conditions: Any) -> Reply:
        """Unary append of records as JSON has them."""
        return await self.call("POST", f"{self.path}/records", {"records": records, **conditions}, headers=headers)

    async def read(self, query: str = "", *, headers: Mapping[str, str] | None = None) -> Reply:
        return await self.call("GET", f"{self.path}/records?{query}", headers=headers)

    async def tail(self) -> Any:
        return (await self.call("GET", f"{self.path}/records/tail")).json["tail"]

    @asynccontextmanager
    async def append_session(self, headers: Mapping[str, str] | None = None) -> AsyncIterator[Session]:
        fields = {"s2-basin": self.basin, "content-type": "s2s/proto", **(headers or {})}
        with anyio.fail_after(20):
            async with self.wire("POST", f"{self.path}/records", fields, None) as wire:
                assert await wire.head() == 200
                yield Session(wire)

    @asynccontextmanager
    async def read_session(self, query: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[Session]:
        fields = {"s2-basin": self.basin, "content-type": "s2s/proto", **(headers or {})}
        with anyio.fail_after(20):
            async with self.wire("GET", f"{self.path}/records?{query}", fields, b"") as wire:
                assert await wire.head() == 200
                yield Session(wire)
