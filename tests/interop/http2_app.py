"""An ASGI application for hypercorn that answers while it is asked: the body comes back piece by piece."""

from collections.abc import Awaitable, Callable
from typing import Any


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    version = scope["http_version"].encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-version", version)]})
    if scope["path"] == "/early":  # the answer ends before the request does
        await send({"type": "http.response.body", "body": b"enough"})
        return
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})
