"""What `check_transport` asks for, described once as an ASGI application."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import anyio

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
#: How many requests "/gather" waits for before it answers any.
TOGETHER = 50


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the application saw it.

    Attributes:
        method: HTTP method.
        target: Path and query, still encoded.
        headers: Names in lower case.
        body: What came of the body.
        complete: Whether that is all of it.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    complete: bool


class Application:
    """Does what the path says. Everything that waits, waits for an event that a check sets.

    Attributes:
        seen: Requests whose body has ended, one way or the other.
        gone: Paths whose client went away before the answer was complete.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.gone: list[str] = []
        self._events: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)
        self._changed = anyio.Event()
        self._gathered = 0

    def event(self, name: str) -> anyio.Event:
        """An event of that name, the same for check and application."""
        return self._events[name]

    async def wait_gone(self, path: str) -> None:
        """Wait until the client of a path is known to have gone."""
        while path not in self.gone:
            await self._changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http":
            raise ValueError("only HTTP here")
        await getattr(self, "_do_" + scope["path"].strip("/").partition("/")[0])(scope, receive, send)

    async def _read(self, scope: MutableMapping[str, Any], receive: Receive) -> Seen:
        body, more, complete = b"", True, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                complete = False
                break
            body += message.get("body", b"")
            more = message.get("more_body", False)
        query = scope["query_string"].decode()
        target = scope["raw_path"].decode() + (f"?{query}" if query else "")
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        seen = Seen(scope["method"], target, headers, body, complete)
        self.seen.append(seen)
        self._notify()
        return seen

    async def wait_seen(self, count: int) -> None:
        """Wait until so many requests have been read."""
        while len(self.seen) < count:
            await self._changed.wait()

    async def _do_echo(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        seen = await self._read(scope, receive)
        await _answer(send, body=seen.body)

    async def _do_status(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await self._read(scope, receive)
        status = int(scope["path"].rpartition("/")[2])
        body = b"" if status in (204, 304) else b"a body"
        headers = [(b"X-Twice", b"one"), (b"x-twice", b"two"), (b"X-Status", b"%d" % status)]
        if status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _do_steps(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await self._read(scope, receive)
        await send({"type": "http.response.start", "status": 200})
        for number in range(3):
            await self.event(f"step {number}").wait()
            await send({"type": "http.response.body", "body": b"piece %d" % number, "more_body": True})
        await send({"type": "http.response.body"})

    async def _do_large(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await self._read(scope, receive)
        await send({"type": "http.response.start", "status": 200})
        for _ in range(40):
            await send({"type": "http.response.body", "body": bytes(range(256)) * 256, "more_body": True})
        await send({"type": "http.response.body"})

    async def _do_hold(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await self._read(scope, receive)
        await self._wait_for_the_client_to_go(scope, receive)

    async def _do_begin(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await self._read(scope, receive)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await self._wait_for_the_client_to_go(scope, receive)

    async def _wait_for_the_client_to_go(self, scope: MutableMapping[str, Any], receive: Receive) -> None:
        message = await receive()
        assert message["type"] == "http.disconnect", message
        self.gone.append(scope["path"])
        self._notify()

    async def _do_cut(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await self._read(scope, receive)
        headers = [(b"content-length", b"10")] if scope["path"].endswith("length") else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        raise ConnectionAbortedError("as the check wishes")

    async def _do_nothing(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await self._read(scope, receive)

    async def _do_gather(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        seen = await self._read(scope, receive)
        self._gathered += 1
        if self._gathered == TOGETHER:
            self.event("gathered").set()
        await self.event("gathered").wait()
        await _answer(send, body=seen.body)


async def _answer(send: Send, *, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
