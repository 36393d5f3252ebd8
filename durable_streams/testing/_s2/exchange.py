"""One request and its answer, whatever carries them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import anyio
import anyio.abc

#: How a connection of anyio says that the peer is gone.
GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


@dataclass(slots=True)
class S2Request:
    """A request as the server saw it.

    Attributes:
        number: Of all requests, from 1.
        connection: Number of its connection, from 1.
        http_version: "1.1" or "2".
        method: HTTP method.
        path: Path, still encoded.
        query: Query, still encoded, without the question mark.
        headers: Names in lower case.
        operation: What kind of call it is; "" until that is known.
        status: Status of the answer; 0 before there is one.
    """

    number: int
    connection: int
    http_version: str
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    operation: str = ""
    status: int = 0


class Exchange(ABC):
    """One request and its answer. Its methods raise one of `GONE` once the client has left."""

    def __init__(self, request: S2Request) -> None:
        self.request = request

    @abstractmethod
    async def receive(self) -> bytes:
        """The next bytes of the request's body; b"" is its end."""

    @abstractmethod
    async def start(self, status: int, headers: Mapping[str, str], *, length: int | None = None) -> None:
        """Send the head of the answer. `length`: bytes of its body, if they are known."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send bytes of the body."""

    @abstractmethod
    async def finish(self) -> None:
        """End the body."""

    @abstractmethod
    async def cut(self) -> None:
        """End the connection at once. Does not return."""

    @abstractmethod
    async def reset(self, code: int) -> None:
        """End this exchange abruptly, and the connection if it cannot be done otherwise. Does not return."""

    @abstractmethod
    async def goaway(self, *, leave_out: bool = False) -> None:
        """Announce the end of the connection. `leave_out`: this request is said to be unprocessed."""

    async def respond(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Send a whole answer."""
        await self.start(status, headers, length=len(body))
        if body:
            await self.send(body)
        await self.finish()


#: What answers an exchange.
Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(slots=True)
class Wiring:
    """What a connection gets from the server.

    Attributes:
        handle: Answers an exchange.
        next_request: Numbers the requests.
        requests: All of them, in order.
    """

    handle: Handler
    next_request: Callable[[], int]
    requests: list[S2Request]
    max_streams: int = 200
    window: int = 1 << 20
    max_frame_size: int = 16_384

    def request(self, connection: int, version: str, method: str, target: str, headers: Mapping[str, str]) -> S2Request:
        """Note a request."""
        path, _, query = target.partition("?")
        request = S2Request(self.next_request(), connection, version, method, path, query, headers)
        self.requests.append(request)
        return request
