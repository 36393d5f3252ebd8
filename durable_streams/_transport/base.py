"""The seam to the network: one HTTP exchange.

A transport sends what it is given and adds nothing but what HTTP itself needs (`Host`, lengths). It does not decode
bodies, follow redirects, retry, keep cookies or read a netrc file: those decisions are made once, above it. An
exchange holds no cancel scope between calls, so it may be opened in one task and closed in another.

What every implementation owes is tested by `durable_streams.testing.check_transport`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits of one exchange, in seconds; None means no limit.

    Attributes:
        connect: To get a connection: name lookup, TLS and a proxy's tunnel included.
        write: To send head and body; of an async iterable, each piece. The time that the iterable takes is not limited.
        read: For the server's silence: until the head, then between two pieces of the body.
    """

    connect: float | None = 10.0
    write: float | None = 30.0
    read: float | None = 30.0


@runtime_checkable
class Exchange(Protocol):
    """An answer whose head has come.

    Attributes:
        status: HTTP status.
        headers: Names in lower case; a repeated header's values joined with ", ".
    """

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case; a repeated header's values joined with ", "."""
        ...

    async def receive(self) -> bytes:
        """The next piece of the body as it was sent, undecoded; b"" when it is complete.

        Raises:
            IncompleteBodyError: if the body ends before its declared end. A body that is delimited by the end of the
                connection has none, and cannot show this.
            RequestTimeoutError: if nothing comes for `Timeouts.read` seconds.
            NetworkError: if the connection breaks. All three have `phase` "body".
            AlreadyClosedError: if the exchange, or its transport, was or is closed.
            BusyResourceError: if another task is receiving.
        """
        ...

    async def aclose(self) -> None:
        """Release the connection: to the pool after a complete body, else by closing it. Idempotent."""
        ...


@runtime_checkable
class Transport(Protocol):
    """Sends requests. Raises only errors of `durable_streams.errors`, and cancellation."""

    async def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes],
        timeouts: Timeouts,
    ) -> Exchange:
        """Send one request and wait for the head of its answer.

        The answer may come before the body is sent; then the rest may never be sent. Cancelling closes the connection.

        Args:
            method: HTTP method in capitals.
            url: Absolute http or https URL, already encoded; sent as it is.
            headers: Names in lower case; sent as they are.
            body: Bytes are sent with `Content-Length` (also 0 on PUT and POST), an async iterable in chunks. It may be
                iterated in another task; it is closed, if it can be, when it is not needed any more.
            timeouts: Limits of this exchange.

        Raises:
            NetworkError: `phase` says whether the server may have acted; `reused` whether the connection had served
                before.
            RequestTimeoutError: a limit passed, likewise with `phase`.
            AlreadyClosedError: the transport was, or is being closed.
            Exception: whatever `body` raised, unchanged; the server does not see the request complete.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections, also those of open exchanges, and end pending calls. Quick and idempotent."""
        ...
