"""One webhook request over a connection of its own: to an address that was checked, and to nowhere else.

This is no general HTTP client, on purpose: it connects to the address it is given, with the URL's name for TLS and
`Host`, follows no redirect, keeps no connection, no cookie, and asks no proxy. What it reads of the answer is limited
in size and time. httptools parses it, imported on first use.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import anyio
from anyio.abc import ByteStream

from .ssrf import Target

#: Most bytes that are read of an answer, its head included.
MAX_ANSWER = 64 * 1024

_CHUNK = 16 * 1024


class DeliveryFailed(Exception):  # noqa: N818  # control flow inside the server; never reaches a user
    """There was no usable answer. The text says why, for the log."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one request, in seconds.

    Attributes:
        connect: For looking up the name, connecting and TLS together.
        total: For everything.
    """

    connect: float = 10.0
    total: float = 30.0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        status: HTTP status.
        body: The body, as it was sent; empty if it was longer than is read, or compressed.
    """

    status: int
    body: bytes


#: Looks up the addresses to connect to; may raise `ssrf.UrlRejected` or OSError.
Locate: TypeAlias = Callable[[], Awaitable[Sequence[str]]]
#: Sends a POST. Raises `DeliveryFailed`, `ssrf.UrlRejected` or OSError.
Post: TypeAlias = Callable[[Target, Locate, Sequence[tuple[str, str]], bytes, Timeouts], Awaitable[Reply]]


class SocketPost:
    """Sends webhook requests over sockets of anyio; a `Post`.

    Args:
        tls: How to verify servers; by default against the system's authorities.

    Raises:
        ModuleNotFoundError: if httptools is missing (extra `webhooks`).
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        _new_parser(_Answer())
        self._tls = ssl.create_default_context() if tls is None else tls

    def __repr__(self) -> str:
        return "<SocketPost>"

    async def __call__(
        self, target: Target, locate: Locate, headers: Sequence[tuple[str, str]], body: bytes, timeouts: Timeouts
    ) -> Reply:
        """Send the request and read the answer."""
        try:
            with anyio.fail_after(timeouts.total):
                with anyio.fail_after(timeouts.connect):
                    stream = await self._connect(target, await locate())
                try:
                    return await _exchange(stream, _request(target, headers, body))
                finally:
                    await anyio.aclose_forcefully(stream)
        except TimeoutError:
            raise DeliveryFailed("timed out") from None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError) as error:
            raise DeliveryFailed(f"the connection broke: {error}") from error

    async def _connect(self, target: Target, addresses: Sequence[str]) -> ByteStream:
        """Connect to the first address that answers."""
        failure: Exception = DeliveryFailed("there is no address")
        for address in addresses:
            try:
                if not target.tls:
                    return await anyio.connect_tcp(address, target.port)
                return await anyio.connect_tcp(
                    address,
                    target.port,
                    tls_hostname=target.host,
                    ssl_context=self._tls,
                    tls_standard_compatible=False,
                )
            except (OSError, anyio.BrokenResourceError) as error:
                failure = error
        raise DeliveryFailed(f"cannot connect: {failure}") from failure


def _request(target: Target, headers: Sequence[tuple[str, str]], body: bytes) -> bytes:
    fields = [
        ("Host", target.authority),
        ("User-Agent", "durable-streams"),
        ("Accept", "application/json"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
        ("Content-Length", str(len(body))),
        *headers,
    ]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"POST {target.path} HTTP/1.1\r\n{head}\r\n".encode("ascii") + body


async def _exchange(stream: ByteStream, request: bytes) -> Reply:
    """Send a request and read its answer.

    A receiver may answer, and close, before it has read everything: what it said counts then, not that it stopped.
    """
    with suppress(anyio.BrokenResourceError):  # the answer decides; without one, reading fails as well
        await stream.send(request)
    answer = _Answer()
    parser = _new_parser(answer)
    left = MAX_ANSWER
    while not answer.complete:
        try:
            data = await stream.receive(min(left, _CHUNK))
        except anyio.EndOfStream:
            return answer.at_end()
        answer.feed(parser, data)
        left -= len(data)
        if not left and not answer.complete:
            return answer.cut()
    return answer.reply()


def read_answer(data: bytes) -> Reply:
    """The answer in these bytes, after which the connection ends; the parser of `SocketPost` on its own.

    Raises:
        DeliveryFailed: if there is none.
    """
    answer = _Answer()
    parser = _new_parser(answer)
    answer.feed(parser, data[:MAX_ANSWER])
    if answer.complete:
        return answer.reply()
    return answer.cut() if len(data) >= MAX_ANSWER else answer.at_end()


class _Answer:
    """What the parser has found so far; httptools calls the `on_...` methods."""

    def __init__(self) -> None:
        self.complete = False
        self._parser: Any = None
        self._status = 0  # of the final answer, once its head is complete
        self._framed = False
        self._coded = False
        self._body: list[bytes] = []

    def feed(self, parser: Any, data: bytes) -> None:
        self._parser = parser
        import httptools

        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.complete:  # what comes after the answer is of no interest
                raise DeliveryFailed(f"the answer is not HTTP: {error}") from error

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            self._coded = True

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        status: int = self._parser.get_status_code()
        if status >= 200:
            self._status = status
        else:
            self._framed = self._coded = False

    def on_body(self, data: bytes) -> None:
        if not self.complete:
            self._body.append(data)

    def on_message_complete(self) -> None:
        if self._status:
            self.complete = True

    def reply(self) -> Reply:
        return Reply(self._status, b"" if self._coded else b"".join(self._body))

    def at_end(self) -> Reply:
        """The connection has ended: that is the end of an answer without a length, and the loss of another."""
        if not self._status:
            raise DeliveryFailed("the connection ended before the answer")
        if self._framed:
            raise DeliveryFailed("the connection ended in the middle of the answer")
        return self.reply()

    def cut(self) -> Reply:
        """We stop reading: the status counts, the body does not."""
        if not self._status:
            raise DeliveryFailed("the head of the answer is too long")
        return Reply(self._status, b"")


def _new_parser(answer: _Answer) -> Any:
    try:
        import httptools
    except ModuleNotFoundError as error:
        if error.name != "httptools":
            raise
        raise ModuleNotFoundError(
            "webhooks need httptools: pip install 'durable-streams-anyio[webhooks]'", name="httptools"
        ) from None
    return httptools.HttpResponseParser(answer)
