"""One request sent and its answer opened: URL and headers resolved, redirects followed, the body decoded."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Iterator

from .._core import content_coding, wire
from .._core.exchange import Head, Kind, Request
from .._core.status_errors import redirect_target
from .._transport.base import Exchange, Timeouts
from ..errors import FetchError, ParseError
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
        budget: Most bytes that the caller's method still accepts, or None.
    """

    def __init__(self, exchange: Exchange, max_bytes: int | None) -> None:
        self._exchange = exchange
        headers = exchange.headers
        self.head = Head(exchange.status, headers, time.time())
        self.budget: int | None = None
        self._max_bytes = max_bytes
        self._received = 0
        self._decoder: content_coding.ContentDecoder | None = None
        self._pieces: Iterator[bytes] = iter(())

    async def receive(self) -> bytes:
        """The next non-empty piece of the decoded body; b"" when it is complete.

        Raises:
            NetworkError: the connection broke, or the body ended too early.
            ParseError: the body is larger than allowed or than `budget`, or has an unknown coding.
        """
        if self._decoder is None:
            self._decoder = content_coding.make_decoder(
                self._exchange.headers.get("content-encoding"), max_bytes=self._max_bytes
            )
        while (piece := next(self._pieces, None)) is None:
            data = await self._exchange.receive()
            if not data:
                self._decoder.finish()
                return b""
            self._pieces = self._decoder.feed(data)  # decodes as it is asked, however much there is to come
        self._received += len(piece)
        if self.budget is not None and self._received > self.budget:
            raise ParseError(f"the body has more than the {self.budget} bytes that are still accepted (max_bytes)")
        return piece

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
        FetchError: more than five redirects, or one that leads nowhere.
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
        target = redirect_target(url, location)
        if followed > MAX_REDIRECTS or target is None:
            what = "redirects to an address that cannot be used" if target is None else "redirects too often"
            shown = context.url.display
            raise FetchError(
                f"{shown}: the server {what} ({exchange.status})",
                status=exchange.status,
                url=shown,
                headers=dict(exchange.headers),
            )
        if not wire.same_origin(wire.parse_url(url), target):
            headers = {name: value for name, value in headers.items() if name not in _CREDENTIALS}
        if target.authorization is not None:
            headers["authorization"] = target.authorization
        url = target.url({})
