"""The life of an application: what is open and what runs beside its requests, from its start to its end.

An application may live several times, one after the other: tests start theirs again and again.

Opened are the store and the subscriptions that it keeps. Beside the requests run the sweep of expired streams, the
loop that wakes subscribers, and a look at the store, which stops for good when a write fails: then the application
says so (`/health`), refuses requests, and its server ends.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskStatus

from .requests import Receive, Send
from .signals import heard_first
from .stores.abilities import FailingStore

if TYPE_CHECKING:
    from .http import DurableStreamsApp

logger: logging.Logger = logging.getLogger("durable_streams.server")

#: The pause between two sweeps varies by this part, so that servers started together do not sweep together.
SWEEP_JITTER = 0.2


@asynccontextmanager
async def life(app: DurableStreamsApp, on_failure: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
    """One life of an application, for the length of the block. What the block raises comes out as it is.

    Args:
        app: Which one.
        on_failure: Called if the application cannot go on, once it has begun its shutdown.

    Raises:
        StoreError: if the store cannot be opened; or in the end, if it has failed.
    """
    failure: BaseException | None = None
    app.begin_life()
    await app.store.__aenter__()
    try:
        await app.subscriptions.load()
        async with anyio.create_task_group() as group:
            keeper = _Keeper(app, on_failure)
            await group.start(keeper.wake_subscribers)
            group.start_soon(keeper.sweep_now_and_then)
            group.start_soon(keeper.watch_store)
            try:
                with heard_first(app.begin_shutdown) if app.end_on_signals else nullcontext():
                    yield
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:
                failure = error  # raised below, without the group around it
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
    except BaseException as error:
        await _close(app, error)
        raise
    await _close(app, None)


async def _close(app: DurableStreamsApp, error: BaseException | None) -> None:
    app.begin_shutdown()
    try:
        with anyio.CancelScope(shield=True):
            await app.store.__aexit__(None if error is None else type(error), error, None)
    finally:
        app.end_life()


class _Keeper:
    """Runs beside the requests. None of its tasks raises anything: that would cancel who opened the application."""

    def __init__(self, app: DurableStreamsApp, on_failure: Callable[[], None]) -> None:
        self._app = app
        self._on_failure = on_failure

    def _fail(self, error: Exception) -> None:
        self._app.failure = error
        self._app.begin_shutdown()
        self._on_failure()

    async def wake_subscribers(self, *, task_status: TaskStatus[None]) -> None:
        try:
            await self._app.subscriptions.run(task_status=task_status)
        except Exception as error:
            logger.critical("subscriptions have stopped", exc_info=True)
            self._fail(error)

    async def watch_store(self) -> None:
        store = self._app.store
        if isinstance(store, FailingStore):
            failure: Exception
            try:
                failure = await store.wait_failed()
            except Exception as error:  # it has failed already, or cannot even tell
                failure = error
            logger.critical("the store has failed, so the server ends: %s", failure)
            self._fail(failure)

    async def sweep_now_and_then(self) -> None:
        app = self._app
        while True:
            await anyio.sleep(app.sweep_interval * app.rng.uniform(1 - SWEEP_JITTER, 1 + SWEEP_JITTER))
            try:
                await app.store.sweep(app.clock())
            except Exception:
                logger.exception("sweep failed")


async def answer_lifespan(app: DurableStreamsApp, receive: Receive, send: Send) -> None:
    """ASGI's lifespan protocol: live from startup to shutdown, or to a failure, which is raised."""
    await receive()
    started = False
    try:
        with anyio.CancelScope() as scope:
            async with life(app, scope.cancel):
                started = True
                await send({"type": "lifespan.startup.complete"})
                await receive()
        if app.failure is not None:
            raise app.failure
    except Exception as error:
        if not started:
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
        raise
    await send({"type": "lifespan.shutdown.complete"})
