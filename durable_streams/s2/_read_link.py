"""One connection of a read session: over HTTP/2 (s2s), or server-sent events over any HTTP.

A link lives from one request to the end of its answer or the first failure. It turns bytes into batches, each when it
is asked for: what is not decoded yet is not held twice.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from typing import Any, Protocol

import anyio

from .._core.sse import Event, SSEParser
from .._transport.base import Exchange, Timeouts
from ..errors import AlreadyClosedError, NetworkError, ParseError
from . import _coding
from ._append_link import MAX_ERROR_BODY, Duplex, check_session_type, error_of, session_headers
from ._context import StreamContext
from ._frames import Frame, FrameDecoder, Terminal
from ._json_records import decode_ping, decode_read_batch
from ._proto import decode_read_batch as decode_proto_batch
from ._read_core import Connect
from ._reading import ReadOptions
from ._values import ReadBatch
from .errors import (
    S2ConnectionError,
    S2ProtocolError,
    S2ServerError,
    S2SessionClosedError,
    connection_error,
    error_from_reply,
    status_of_code,
)

#: Largest event: 1 MiB of records as base64 in JSON, in the worst case of many tiny headers, and room to spare.
MAX_EVENT_BYTES = 16 << 20
_CLOSE_GRACE = 1.0

#: A batch or heartbeat, and whether the server advises to reconnect.
Arrival = tuple[ReadBatch, bool]


def error_from_event(data: bytes) -> S2ServerError:
    """The error in an SSE `error` event. It has the body of an answer, whose status is to be inferred (S2 3.6)."""
    try:
        document = json.loads(data)
        if isinstance(document, str):
            data = document.encode()
            document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    status = 500
    if isinstance(document, dict):
        if "seq_num_mismatch" in document or "fencing_token_mismatch" in document:
            status = 412
        elif "tail" in document:
            status = 416
        else:
            status = status_of_code(document.get("code"))
    return error_from_reply(status, {}, data)


class ReadLink(Protocol):
    """A connection of a read session.

    Attributes:
        survives_cancel: Whether a cancelled `receive` has lost nothing, so that it can be called again.
        watchdog: Seconds of silence after which the server is taken for dead, as a multiple of the heartbeat's limit.
    """

    survives_cancel: bool
    watchdog: float

    @property
    def leaving(self) -> bool:
        """Whether the server has said that it will close this connection."""
        ...

    async def open(self) -> None:
        """Send the request and wait until the server has accepted it."""
        ...

    async def receive(self) -> Arrival | None:
        """The next batch or heartbeat; None at the regular end."""
        ...

    def retire(self) -> None:
        """Open no new streams on this connection."""
        ...

    async def aclose(self) -> None:
        """Release the connection; quick."""
        ...


class S2SReadLink:
    """A session over one HTTP/2 stream."""

    survives_cancel = True
    watchdog = 1.0

    def __init__(self, context: StreamContext, stream_config: str | None, connect: Connect) -> None:
        self._context = context
        self._stream_config = stream_config
        self._options = connect.options
        self._duplex: Duplex | None = None
        self._pool: Any = None
        self._decoder = FrameDecoder()
        self._frames: deque[Frame | Terminal] = deque()

    @property
    def leaving(self) -> bool:
        """Whether the server has said GOAWAY."""
        return self._duplex is not None and self._duplex.leaving

    async def open(self) -> None:
        """Send the request; raises the server's error if it refuses."""
        context = self._context
        self._pool = await context.service.pool()
        headers = await session_headers(context, self._stream_config)
        timeouts = Timeouts(connect=context.timeouts.connect, write=context.timeouts.heartbeat, read=None)
        url = context.records_url(self._options.query())
        duplex = self._duplex = await self._pool.open("GET", url, headers, body=False, timeouts=timeouts)
        status, answer = await duplex.head()
        if status != 200:
            raise await error_of(context, duplex, status, answer)
        check_session_type(answer)

    async def receive(self) -> Arrival | None:
        """The next batch.

        Raises:
            S2ServerError: the server ended the session with an error.
            S2ProtocolError: what came means nothing.
            S2ConnectionError: the connection broke, or the answer ended inside a frame.
        """
        assert self._duplex is not None, "opened before"
        while not self._frames:
            self._decoder.check()
            data = await self._duplex.receive()
            if not data:
                self._decoder.finish()
                return None
            self._frames.extend(self._decoder.feed(data))
        frame = self._frames.popleft()
        if isinstance(frame, Terminal):
            raise self._context.error(frame.status, {}, frame.body)
        return decode_proto_batch(frame.payload), frame.reconnect

    def retire(self) -> None:
        """Have the pool leave this connection."""
        if self._duplex is not None:
            self._pool.retire(self._duplex)

    async def aclose(self) -> None:
        """Reset the stream, unless it has ended."""
        self._frames.clear()
        if self._duplex is not None:
            await self._duplex.aclose()


class SSEReadLink:
    """A session as server-sent events, for networks without HTTP/2.

    A resumed one sends the limits of the first request and `Last-Event-ID`, from which the server takes what has come
    off (S2 3.6).
    """

    survives_cancel = False
    watchdog = 1.25
    leaving = False

    def __init__(self, context: StreamContext, stream_config: str | None, connect: Connect, first: ReadOptions) -> None:
        self._context = context
        self._stream_config = stream_config
        self._options = connect.options
        self._resume = connect.resume
        if connect.resume is not None:
            self._options = replace(connect.options, count=first.count, bytes=first.bytes)
        self._form: Any = "raw" if context.encoding == "raw" else "base64"
        self._exchange: Exchange | None = None
        self._parser = SSEParser(MAX_EVENT_BYTES)
        self._events: deque[Event] = deque()

    async def open(self) -> None:
        """Send the request; raises the server's error if it refuses."""
        context = self._context
        headers = await context.headers(stream_config=self._stream_config)
        headers |= {"accept": "text/event-stream", "s2-format": self._form}
        if self._resume is not None:
            headers["last-event-id"] = ",".join(map(str, self._resume))
        limits = context.timeouts
        timeouts = Timeouts(connect=limits.connect, write=limits.request, read=None)
        url = context.records_url(self._options.query())
        try:
            exchange = self._exchange = await context.service.transport().open("GET", url, headers, b"", timeouts)
            if exchange.status != 200:
                raise await self._refusal(exchange)
        except NetworkError as error:
            raise connection_error(error) from error
        except AlreadyClosedError as error:
            raise S2SessionClosedError("the client was closed") from error
        media_type = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "text/event-stream":
            raise S2ProtocolError(f"the server answered with {media_type!r} instead of text/event-stream", status=200)

    async def _refusal(self, exchange: Exchange) -> S2ServerError:
        body = bytearray()
        try:
            while len(body) < MAX_ERROR_BODY and (data := await exchange.receive()):
                body += data
            coding = exchange.headers.get("content-encoding", "")
            plain = _coding.decode(bytes(body), coding, limit=MAX_ERROR_BODY)
        except (NetworkError, ParseError, S2ProtocolError, S2ConnectionError):
            plain = b""  # The status still tells what happened.
        return self._context.error(exchange.status, exchange.headers, plain)

    async def receive(self) -> Arrival | None:
        """The next batch.

        Raises:
            S2ServerError: the server ended the session with an error.
            S2ProtocolError: what came means nothing.
            S2ConnectionError: the connection broke, or the body ended without the event that says so.
        """
        assert self._exchange is not None, "opened before"
        while True:
            while self._events:
                event = self._events.popleft()
                match event.type:
                    case "batch":
                        return decode_read_batch(event.data, self._form), False
                    case "ping":
                        return decode_ping(event.data), False
                    case "error":
                        raise error_from_event(self._context.redact(event.data))
                    case "message" if event.data.strip() == b"[DONE]":
                        return None
            try:
                data = await self._exchange.receive()
                if not data:
                    raise S2ConnectionError("the session was cut: its events ended without [DONE]", phase="body")
                self._events.extend(self._parser.feed(data))
            except NetworkError as error:
                raise connection_error(error) from error
            except AlreadyClosedError as error:
                raise S2SessionClosedError("the client was closed") from error
            except ParseError as error:
                raise S2ProtocolError(error.message) from error

    def retire(self) -> None:
        """Nothing to do: the connection is not used for anything else."""

    async def aclose(self) -> None:
        """Close the connection, unless the answer is complete."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            with anyio.move_on_after(_CLOSE_GRACE, shield=True):
                await exchange.aclose()
