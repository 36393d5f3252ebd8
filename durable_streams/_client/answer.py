"""One request sent and its answer opened: URL and headers resolved, redirects followed, the body decoded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterable
from urllib.parse import urljoin

from .._core import content_coding, wire
from .._core.exchange import Head, Kind, Request
from .._transport.base import Exchange, Timeouts
from ..errors import FetchError
from .context import Context

#: Redirects followed for GET and HEAD.
MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CREDENTIALS = ("authorization", "cookie")

#: Seconds of silence allowed: a server may hold a long-poll for 30 s and more, other answers come at once.
_LIVE_READ = 90.0
_READ = 30.0
#: A body has to be sent at this rate at least, in bytes per second, on top of 30 s.
_WRITE_RATE = 64 * 1024


def timeouts_for(kind: Kind, size: int | None) -> Timeouts:
    """Time limits of one exchange (client specification 5.4). `size` is the body's, None if it is not known."""
    read = _LIVE_READ if kind in (Kind.LONG_POLL, Kind.SSE) else _READ
    return Timeouts(connect=10.0, write=None if size is None else 30.0 + size / _WRITE_RATE, read=read)


class Answer:
    """An open answer with its body decoded.

    Attributes:
        head: Its status and headers.
    """

    def __init__(self, exchange: Exchange, max_bytes: int | None) -> None:
        self._exchange = exchange
        headers = exchange.headers
        self.head = Head(exchange.status, headers, time.time())
        self._max_bytes = max_bytes
        self._decoder: content_coding.ContentDecoder | None = None
        self._pieces: deque[bytes] = deque()

    async def receive(self) -> bytes:
        """The next non-empty piece of the decoded body; b"" when it is complete.

        Raises:
            NetworkError: the connection broke, or the body ended too early.
            ParseError: the body is larger than allowed, or has an unknown coding.
        """
        if self._decoder is None:
            self._decoder = content_coding.make_decoder(
                self._exchange.headers.get("content-encoding"), max_bytes=self._max_bytes
            )
        while not self._pieces:
            data = await self._exchange.receive()
            if not data:
                self._decoder.finish()
                return b""
            self._pieces.extend(self._decoder.feed(data))
        return self._pieces.popleft()

    async def aclose(self) -> None:
        """Release the connection."""
        await self._exchange.aclose()


async def open_answer(
    context: Context,
    request: Request,
    *,
    body: AsyncIterable[bytes] | None = None,
    max_bytes: int | None = None,
) -> Answer:
    """Send a request and wait for the head of its answer.

    Args:
        context: The user's part.
        request: The protocol's part.
        body: Sent in chunks instead of `request.body`.
        max_bytes: Largest decoded body accepted; not applied to SSE, where events are limited one by one.

    Raises:
        NetworkError: see `Transport.open`.
        FetchError: too many redirects.
        Whatever a user's callable raises.
    """
    url, headers = await context.resolve(request)
    transport = context.owner.get()
    timeouts = timeouts_for(request.kind, None if body is not None else len(request.body))
    limit = None if request.kind is Kind.SSE else max_bytes
    content = request.body if body is None else body
    followed = 0
    while True:
        exchange = await transport.open(request.method, url, headers, content, timeouts)
        location = exchange.headers.get("location")
        if exchange.status not in _REDIRECTS or request.method not in ("GET", "HEAD") or not location:
            return Answer(exchange, limit)
        await exchange.aclose()
        followed += 1
        if followed > MAX_REDIRECTS:
            raise FetchError(
                f"{context.url.display}: more than {MAX_REDIRECTS} redirects",
                status=exchange.status,
                url=context.url.display,
            )
        target = wire.parse_url(urljoin(url, location).partition("#")[0])
        if not wire.same_origin(wire.parse_url(url), target):
            headers = {name: value for name, value in headers.items() if name not in _CREDENTIALS}
        if target.authorization is not None:
            headers["authorization"] = target.authorization
        url = target.url({})
