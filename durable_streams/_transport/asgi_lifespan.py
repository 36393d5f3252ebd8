"""The lifespan of an ASGI application: started once, shut down once."""

from __future__ import annotations

from collections import deque
from typing import Any

import anyio

from . import asgi_call
from .asgi_call import ASGI_VERSION, ASGIApp, Message, logger
from .loops import spawn


class Lifespan:
    """The application's lifespan: started once, shut down once.

    Attributes:
        state: What the application keeps for its requests, or None if it has no lifespan.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.state: dict[str, Any] | None = {}
        self._shutting_down = anyio.Event()
        self._asked = False
        self._answers: deque[Message] = deque()
        self._answered = anyio.Event()
        self._ended = anyio.Event()
        self._cancel = anyio.CancelScope()

    async def startup(self) -> None:
        """Start, or find that the application has no lifespan.

        Raises:
            RuntimeError: the application reports a failure.
        """
        spawn(self._run, "lifespan")
        try:
            await self._answered.wait()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.shutdown()
            raise
        if self._answers and self._answers[0]["type"] == "lifespan.startup.failed":
            self.state = None
            with anyio.CancelScope(shield=True):
                await self.shutdown()
            raise RuntimeError(f"the application failed to start: {self._answers[0].get('message', '')}")
        if not self._answers:
            self.state = None

    async def shutdown(self) -> None:
        """Let the application end; cancel it if it does not."""
        self._shutting_down.set()
        with anyio.move_on_after(asgi_call.GRACE):
            await self._ended.wait()
        self._cancel.cancel()
        await self._ended.wait()
        failed = [answer for answer in self._answers if answer["type"] == "lifespan.shutdown.failed"]
        if failed:
            logger.error("the application failed to shut down: %s", failed[0].get("message", ""))

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": ASGI_VERSION, "state": self.state}
        try:
            with self._cancel:
                try:
                    await self._app(scope, self._receive, self._send)
                except Exception as error:
                    if self._answers:
                        logger.error("the application's lifespan failed", exc_info=error)
        finally:
            self._ended.set()
            self._answered.set()

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._shutting_down.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        self._answers.append(message)
        self._answered.set()
