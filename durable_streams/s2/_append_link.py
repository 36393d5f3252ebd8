"""One connection of an append session: over HTTP/2 (s2s), or as unary calls one after the other.

A link lives from one `open` to the end or the first failure. It knows frames and answers, and nothing of order, retries
or deadlines: those are the core's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import anyio

from .._core.text import preview
from .._transport.base import Timeouts
from ._append_core import Entry
from ._context import StreamContext
from ._frames import Frame, FrameDecoder, Terminal
from ._proto import decode_append_ack, encode_append_input
from ._unary import PROTOBUF, Call, attempt
from ._values import AppendAck, AppendInput
from .errors import S2Error, S2ProtocolError, S2ServerError

#: Most bytes of an error's body that are read.
MAX_ERROR_BODY = 64 * 1024
_S2S = "s2s/proto"
_ACCEPTED = {"gzip": "gzip", "zstd": "zstd, gzip"}

#: What came: an acknowledgement, whether the server advises to reconnect; or the error that ended the connection.
Arrival = tuple[AppendAck, bool] | S2ServerError


class Duplex(Protocol):
    """One HTTP/2 stream, see `_h2`."""

    sent_any: bool

    async def head(self) -> tuple[int, Mapping[str, str]]:
        """Status and headers of the answer, once they have come."""
        ...

    async def send(self, *pieces: bytes) -> None:
        """Send a part of the request's body; waits for the peer's window."""
        ...

    async def finish(self) -> None:
        """End the request's body."""
        ...

    async def receive(self) -> bytes | memoryview:
        """The next piece of the answer's body; b"" at its end. A large one may be a view."""
        ...

    async def aclose(self) -> None:
        """Reset the stream unless it has ended."""
        ...

    @property
    def leaving(self) -> bool:
        """Whether the server has said GOAWAY: this stream goes on for now."""
        ...


class AppendLink(Protocol):
    """A connection of an append session.

    Attributes:
        pipelined: Whether several batches may be in flight.
        sent: Whether bytes of what is in flight may have left this machine: the frame signal of S2 5.3.
    """

    pipelined: bool

    @property
    def sent(self) -> bool:
        """Whether bytes of what is in flight may have left this machine."""
        ...

    async def open(self) -> None:
        """Get a connection. Does not wait for an answer."""
        ...

    async def send(self, entries: tuple[Entry[Any], ...]) -> None:
        """Write batches; returns when their bytes are on the way."""
        ...

    async def finish(self) -> None:
        """Say that nothing more will be written."""
        ...

    async def receive(self) -> list[Arrival] | None:
        """What has come, oldest first; None at the end."""
        ...

    @property
    def leaving(self) -> bool:
        """Whether the server has said that it will close this connection."""
        ...

    def all_acknowledged(self) -> None:
        """Nothing is in flight: clear the frame signal."""
        ...

    def retire(self) -> None:
        """Open no new streams on this connection."""
        ...

    async def aclose(self) -> None:
        """Release the connection; quick."""
        ...


async def session_headers(context: StreamContext, stream_config: str | None) -> dict[str, str]:
    """Headers that open an s2s session."""
    headers = await context.headers(stream_config=stream_config)
    headers["content-type"] = _S2S
    if (accepted := _ACCEPTED.get(context.compression)) is not None:
        headers["accept-encoding"] = accepted
    return headers


async def error_of(context: StreamContext, duplex: Duplex, status: int, headers: Mapping[str, str]) -> S2ServerError:
    """The error that an answer other than 200 is. A body that breaks off changes nothing about its status."""
    body = bytearray()
    try:
        while len(body) < MAX_ERROR_BODY and (data := await duplex.receive()):
            body += data
    except S2Error:
        pass
    return context.error(status, headers, bytes(body[:MAX_ERROR_BODY]))


def check_session_type(headers: Mapping[str, str]) -> None:
    """Refuse a success that does not speak s2s: a proxy's page, say."""
    media_type = headers.get("content-type", _S2S).partition(";")[0].strip().lower()
    if media_type != _S2S:
        found = preview(media_type.encode())
        raise S2ProtocolError(f"the answer is {found!r} instead of {_S2S}: is that S2, or a proxy?", status=200)


async def append_once(context: StreamContext, batch: AppendInput, *, stream_config: str | None = None) -> AppendAck:
    """One try of a unary append."""
    call = Call(
        "POST",
        context.records_url(),
        context.call_headers(stream_config=stream_config),
        encode_append_input(batch),
        content_type=PROTOBUF,
        accept=PROTOBUF,
        append=True,
        context=context,
    )
    reply = await attempt(context.service, call)
    return reply.read(decode_append_ack)


class S2SAppendLink:
    """A session over one HTTP/2 stream.

    Args:
        context: The stream's.
        stream_config: JSON of the configuration for a stream that appending creates, or None.
    """

    pipelined = True

    def __init__(self, context: StreamContext, stream_config: str | None) -> None:
        self._context = context
        self._stream_config = stream_config
        self._duplex: Duplex | None = None
        self._pool: Any = None
        self._decoder = FrameDecoder()
        self._answered = False
        self._ended = False
        self._error: S2ProtocolError | None = None  # came behind good acknowledgements

    @property
    def sent(self) -> bool:
        """Whether a byte of a batch has left this machine since all before was acknowledged."""
        return self._duplex is not None and self._duplex.sent_any

    @property
    def leaving(self) -> bool:
        """Whether the server has said GOAWAY."""
        return self._duplex is not None and self._duplex.leaving

    async def open(self) -> None:
        """Open a stream on a connection of the pool."""
        context = self._context
        self._pool = await context.service.pool()
        headers = await session_headers(context, self._stream_config)
        # Silence is judged by acknowledgements; a window that stays shut for so long is a dead peer's.
        timeouts = Timeouts(connect=context.timeouts.connect, write=context.timeouts.heartbeat, read=None)
        self._duplex = await self._pool.open("POST", context.records_url(), headers, body=True, timeouts=timeouts)

    async def send(self, entries: tuple[Entry[Any], ...]) -> None:
        """Write frames, small ones together."""
        assert self._duplex is not None
        pieces = [piece for entry in entries for piece in entry.frame]
        if len(pieces) == len(entries) > 1:
            pieces = [b"".join(pieces)]
        await self._duplex.send(*pieces)

    async def finish(self) -> None:
        """End the request's body."""
        assert self._duplex is not None
        await self._duplex.finish()

    async def receive(self) -> list[Arrival] | None:
        """The next acknowledgements.

        Raises:
            S2ProtocolError: if what came means nothing; what came before it was returned by the call before.
            S2ConnectionError: if the connection broke, or the answer ended inside a frame.
        """
        duplex = self._duplex
        assert duplex is not None
        if not self._answered:
            status, headers = await duplex.head()
            self._answered = True
            if status != 200:
                self._ended = True
                return [await error_of(self._context, duplex, status, headers)]
            check_session_type(headers)
        if self._ended:
            return None
        if self._error is not None:
            raise self._error
        self._decoder.check()
        data = await duplex.receive()
        if not data:
            self._ended = True
            self._decoder.finish()
            return None
        arrivals: list[Arrival] = []
        try:
            for frame in self._decoder.feed(data):
                match frame:
                    case Frame(payload, reconnect):
                        arrivals.append((decode_append_ack(payload), reconnect))
                    case Terminal(status, body):
                        arrivals.append(self._context.error(status, {}, body))
        except S2ProtocolError as error:
            if not arrivals:
                raise
            self._error = error
        return arrivals

    def all_acknowledged(self) -> None:
        """Clear the frame signal."""
        if self._duplex is not None:
            self._duplex.sent_any = False

    def retire(self) -> None:
        """Have the pool leave this connection."""
        if self._duplex is not None:
            self._pool.retire(self._duplex)

    async def aclose(self) -> None:
        """Reset the stream, unless it has ended."""
        if self._duplex is not None:
            await self._duplex.aclose()


class UnaryAppendLink:
    """A session of unary calls, for networks without HTTP/2. One at a time: nothing else keeps the order (S2 4.8).

    Args:
        context: The stream's.
        stream_config: JSON of the configuration for a stream that appending creates, or None.
    """

    pipelined = False
    leaving = False

    def __init__(self, context: StreamContext, stream_config: str | None) -> None:
        self._context = context
        self._stream_config = stream_config
        self._arrivals: list[Arrival | S2Error] = []
        self._arrived = anyio.Event()
        self._finished = False
        self.sent = False

    async def open(self) -> None:
        """Nothing to do: each call finds its own connection."""

    async def send(self, entries: tuple[Entry[Any], ...]) -> None:
        """Make one call. How it ended is for `receive`."""
        (entry,) = entries
        self.sent = True
        try:
            ack = await append_once(self._context, entry.batch, stream_config=self._stream_config)
        except S2Error as error:
            self._arrivals.append(error)
        else:
            self._arrivals.append((ack, False))
        self._arrived.set()

    async def finish(self) -> None:
        """Nothing more will be sent."""
        self._finished = True
        self._arrived.set()

    async def receive(self) -> list[Arrival] | None:
        """The acknowledgement of the last call; or its error, raised unless it is the server's."""
        while not self._arrivals:
            if self._finished:
                return None
            await self._arrived.wait()
            self._arrived = anyio.Event()
        arrival = self._arrivals.pop(0)
        if isinstance(arrival, S2Error) and not isinstance(arrival, S2ServerError):
            raise arrival
        return [arrival]

    def all_acknowledged(self) -> None:
        """Clear the frame signal."""
        self.sent = False

    def retire(self) -> None:
        """Nothing to do: no connection is kept."""

    async def aclose(self) -> None:
        """Nothing to do."""
