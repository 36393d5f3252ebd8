"""Clients that are slow on purpose, or dead: how long a connection may keep the server waiting.

uvicorn closes connections that are idle between two requests, but waits without limit for a request's headers, for the
rest of a body, and for a client that takes nothing of its answer. So whoever opens connections and says one byte a
minute could have them all. Here is the limit to each:

- the headers of a request have to be there `request_timeout` seconds after the connection was opened, or after they
  began;
- a body may take as long, and another second for each `BODY_BYTES_PER_SECOND` bytes of it that have come;
- what is no body, be it headers, sizes of chunks or trailers, may have `HEAD_BYTES` in a row, give or take what comes
  in one piece;
- of an answer something has to be taken every `stall_timeout` seconds, if there is something to take.

Next to nothing of this happens per request. All connections are looked at every few seconds, and what stands still is
seen by its state being the same as in the look before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Protocol

logger: logging.Logger = logging.getLogger("durable_streams.server")

#: Slowest body.
BODY_BYTES_PER_SECOND = 500
#: Most of a request that is no body, in a row.
HEAD_BYTES = 64 * 1024
#: Seconds that a refused client gets to read why.
PARTING_SECONDS = 1.0
#: Seconds that a client may go on sending what nobody wants, after the answer that ends its connection.
LINGER_SECONDS = 5.0

_LAST_WORDS = {
    400: b"this is no HTTP request that the server understands\n",
    431: b"the headers are too long\n",
    503: b"the server has as many connections as it takes\n",
}


def last_words(status_line: bytes, prefix: bytes, status: int) -> bytes:
    """The answer to what never became a request.

    Args:
        status_line: Of the answer.
        prefix: Lines of headers that every answer has.
        status: 400, 431 or 503.
    """
    text = _LAST_WORDS[status]
    retry = b"retry-after: 1\r\n" if status == 503 else b""
    return (
        b"%b%bcontent-type: text/plain; charset=utf-8\r\ncache-control: no-store\r\n%bcontent-length: %d\r\n"
        b"connection: close\r\n\r\n%b"
    ) % (status_line, prefix, retry, len(text), text)


class Connection(Protocol):
    """What is looked at, see `_connection.Connection`."""

    cycle: Any
    transport: Any
    received: int
    read_paused: bool
    seen: Seen | None

    @property
    def idle(self) -> bool:
        """Whether it waits for the next request."""
        ...


class Seen:
    """The state in which a connection was seen, and since when.

    Attributes:
        state: What the connection waits for, and of which request.
        since: When it was seen so first.
        received: How many bytes had come by then.
    """

    __slots__ = ("received", "since", "state")

    def __init__(self, state: tuple[str, object], since: float, received: int) -> None:
        self.state: tuple[str, object] = state
        self.since: float = since
        self.received: int = received


class Watchman:
    """Ends connections that keep the server waiting for too long.

    Args:
        request_timeout: Seconds for headers, and for a body that does not come.
        stall_timeout: Seconds for an answer that is not taken.
    """

    def __init__(self, request_timeout: float, stall_timeout: float) -> None:
        self._request_timeout = request_timeout
        self._stall_timeout = stall_timeout
        self.interval: float = min(request_timeout, stall_timeout, 20.0) / 4

    def look(self, connections: Iterable[Connection], now: float) -> None:
        """Look at all connections; to be called every `interval` seconds."""
        for connection in list(connections):
            if self._is_overdue(connection, now):
                state = connection.seen.state[0] if connection.seen is not None else ""
                logger.debug("ending a connection that stands still waiting_for=%s", state)
                connection.transport.abort()

    def _is_overdue(self, connection: Connection, now: float) -> bool:
        state = _state(connection)
        if state is None:
            connection.seen = None
            return False
        seen = connection.seen
        if seen is None or seen.state != state:
            connection.seen = Seen(state, now, connection.received)
            return False
        match state[0]:
            case "answer":
                allowed = self._stall_timeout
            case "body":
                allowed = self._request_timeout + (connection.received - seen.received) / BODY_BYTES_PER_SECOND
            case _:
                allowed = self._request_timeout
        return now - seen.since > allowed


def _state(connection: Connection) -> tuple[str, object] | None:
    """What the client owes us, with something that changes when it moves; None if it owes nothing."""
    cycle = connection.cycle
    unsent = connection.transport.get_write_buffer_size()
    if unsent:
        return "answer", (cycle, unsent)
    if connection.idle:
        return None  # between two requests, which has a limit of its own
    if cycle is None or cycle.response_complete:
        return "headers", cycle
    if cycle.more_body and not connection.read_paused:
        return "body", cycle
    return None


class Refused(asyncio.Protocol):
    """A connection too many: it is told so, whatever it asks, and ended.

    It is not closed at once: what it has sent would be unread then, and its system would drop our answer for that.

    Args:
        transport: Of the connection.
        words: The answer.
        refused: Where such connections are kept while they last.
    """

    def __init__(self, transport: asyncio.Transport, words: bytes, refused: set[asyncio.Transport]) -> None:
        self._transport = transport
        self._refused = refused
        refused.add(transport)
        transport.write(words)
        if transport.can_write_eof():
            transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(PARTING_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._timer.cancel()
        self._refused.discard(self._transport)
