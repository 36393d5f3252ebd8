"""How live readers wait: for more data, but not beyond a disconnect, a shutdown, or the stream's expiry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio

from .offsets import Offset
from .requests import Call
from .stores.base import StreamInfo, Watch

if TYPE_CHECKING:
    from .http import DurableStreamsApp


class Waits:
    """All waits of one application, so that its shutdown can end them.

    Attributes:
        stopping: Whether the application is shutting down: nobody waits any more.
    """

    def __init__(self) -> None:
        self.stopping: bool = False
        self._scopes: set[anyio.CancelScope] = set()

    async def wait(self, watch: Watch, seen: Offset, timeout: float) -> None:
        """Wait until there is news (see `Watch.wait`), for `timeout` seconds at most, or until the shutdown."""
        await self.wait_for(watch.wait(seen), timeout)

    async def wait_for(self, news: Coroutine[Any, Any, object], timeout: float) -> None:
        """Wait for this, for `timeout` seconds at most, or until the shutdown."""
        if self.stopping or timeout <= 0:
            news.close()
            return
        with anyio.move_on_after(timeout) as scope:
            self._scopes.add(scope)
            try:
                await news
            finally:
                self._scopes.discard(scope)

    def stop(self) -> None:
        """End all waits, now and from now on."""
        self.stopping = True
        for scope in self._scopes:
            scope.cancel()


@contextmanager
def attached(app: DurableStreamsApp, info: StreamInfo) -> Iterator[Watch]:
    """A live reader's attachment to a stream; renews its TTL at both ends (server 12).

    Raises:
        Rejection: if the stream has as many live readers as it may have.
    """
    app.readers.enter(info.ref)
    try:
        watch = app.store.watch(info.ref)
        try:
            yield watch
        finally:
            app.store.touch(info.ref, app.clock())
            watch.close()
    finally:
        app.readers.leave(info.ref)


def time_left(app: DurableStreamsApp, info: StreamInfo) -> float:
    """Seconds until the stream's absolute expiry; infinite if it has none. A TTL does not run while we are attached."""
    return float("inf") if info.expires_at is None else info.expires_at.timestamp - app.clock()


async def while_connected(call: Call, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work, but stop when the client goes away.

    Our own runner tells when that happens. Other servers let an application write to a connection that is gone without
    telling, so someone has to listen.
    """
    with anyio.CancelScope() as scope:
        if call.on_disconnect(scope.cancel):
            await work()
            return
    if scope.cancelled_caught:
        return
    failure: Exception | None = None

    async def stop_on_disconnect(scope: anyio.CancelScope) -> None:
        while (await call.receive_message())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(stop_on_disconnect, group.cancel_scope)
        try:
            await work()
        except Exception as error:
            failure = error  # raised below, without the group around it
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
