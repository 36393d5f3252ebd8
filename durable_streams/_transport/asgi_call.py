"""One run of an ASGI application for one request: what passes between it and the exchange."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import anyio
import anyio.lowlevel

from .deadline import Deadline
from .uploads import close_iterator, next_piece

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
#: An ASGI 3 application.
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ASGI_VERSION = {"version": "3.0", "spec_version": "2.4"}
#: How long an application may go on after its client went away, or its lifespan is to end, in seconds.
GRACE = 1.0

logger = logging.getLogger("durable_streams.transport.asgi")


class Call:
    """One run of the application, and everything that passes between it and the exchange.

    Attributes:
        started: Whether the head has been sent; then `status` and `headers` are there.
        complete: Whether the last piece has been sent.
        missing: Bytes that `Content-Length` declared and the complete body does not have.
        ended: Set when the application has returned.
        error: What the application raised.
        upload_error: What the user's iterable raised.
    """

    def __init__(
        self,
        app: ASGIApp,
        scope: MutableMapping[str, Any],
        body: bytes | AsyncIterable[bytes],
        opening: Deadline,
        running: set[Call],
    ) -> None:
        self._app = app
        self._scope = scope
        self._opening = opening
        self._running = running
        self.started = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self.missing = 0
        self.ended = anyio.Event()
        self.error: Exception | None = None
        self.upload_error: Exception | None = None
        self._body: bytes | AsyncIterator[bytes] | None = body if isinstance(body, bytes) else aiter(body)
        self._body_lock = anyio.Lock()
        self._piece: bytes | None = None
        self._length: int | None = None
        self._disconnected = False
        self._changed = anyio.Event()
        self._cancel = anyio.CancelScope()
        running.add(self)

    # ------------------------------------------------------------------ the exchange's side

    async def changed(self) -> None:
        """Wait until anything has happened."""
        await self._changed.wait()

    def take(self) -> bytes | None:
        """The waiting piece of the body, if there is one."""
        piece, self._piece = self._piece, None
        if piece is not None:
            self._notify()
        return piece

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come."""
        return self.complete or self.ended.is_set() or self.upload_error is not None

    @property
    def ended_by_itself(self) -> bool:
        """Whether the application returned or raised before it was told to stop."""
        return self.ended.is_set() and not self._disconnected

    def answer_for_it(self, status: int, body: bytes) -> None:
        """Answer in place of an application that has failed to."""
        self.status = status
        self.headers = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body))}
        self._piece = body
        self.complete = True

    def disconnect(self) -> None:
        """Say that the client has gone away; the application is cancelled if it goes on for too long."""
        if not self.ended.is_set() and self._cancel.deadline == math.inf:
            self._disconnected = True
            self._cancel.deadline = anyio.current_time() + GRACE
            self._notify()

    # ------------------------------------------------------------------ the application's side

    async def run(self) -> None:
        """Run the application to its end. Never raises."""
        try:
            with self._cancel:
                try:
                    await self._app(self._scope, self._receive, self._send)
                except Exception as error:
                    self._keep(error)
                finally:
                    await self._close_body()
        finally:
            self._running.discard(self)
            self.ended.set()
            self._notify()

    def _keep(self, error: Exception) -> None:
        if not (self._disconnected or self.complete):
            self.error = error
        elif not isinstance(error, OSError):  # a disconnected application may well end with our own OSError
            logger.error("%s %s failed after its answer", self._scope["method"], self._scope["path"], exc_info=error)

    async def _close_body(self) -> None:
        if self._body is not None and not isinstance(self._body, bytes):
            await close_iterator(self._body)

    async def _receive(self) -> Message:
        async with self._body_lock:
            if self._body is not None and not self._disconnected:
                message = await self._next_request()
                if message is not None:
                    return message
            while not (self._disconnected or self.complete):
                await self._changed.wait()
        return {"type": "http.disconnect"}

    async def _next_request(self) -> Message | None:
        if isinstance(self._body, bytes):
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        assert self._body is not None
        self._opening.pause()  # it is the iterable's turn, not the application's
        try:
            piece = await next_piece(self._body)
        except Exception as error:
            self.upload_error = error
            self.disconnect()
            return None
        finally:
            self._opening.move("read")
        if piece is None:
            self._body = None
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": piece, "more_body": True}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if self._disconnected:
            raise OSError("the client has gone away")
        if kind == "http.response.start" and not self.started:
            self._start(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.started and not self.complete:
            await self._send_body(bytes(message.get("body", b"")), bool(message.get("more_body", False)))
        else:
            raise RuntimeError(f"{kind!r} is not expected here")
        self._notify()

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        for raw_name, raw_value in headers:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("utf-8", "surrogateescape")
            self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value
        self.status = status
        self.started = True
        if self._scope["method"] == "HEAD" or status in (204, 304):
            self._length = -1  # whatever is sent: there is no body
        elif "content-length" in self.headers:
            self._length = self.missing = int(self.headers["content-length"])

    async def _send_body(self, body: bytes, more: bool) -> None:
        if self._length == -1:
            body = b""
        elif self._length is not None:
            if len(body) > self.missing:
                raise RuntimeError(f"the body is longer than its Content-Length of {self._length}")
            self.missing -= len(body)
        if body:
            while self._piece is not None and not self._disconnected:
                await self._changed.wait()
            if self._disconnected:
                raise OSError("the client has gone away")
            self._piece = body
        self.complete = not more
        await anyio.lowlevel.checkpoint()  # so that a fast application is as fair as a socket

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
