"""A proxy that cuts connections at any byte, in either direction."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Self

import anyio
import anyio.abc

_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class CuttingProxy:
    """Passes connections on to a port of this machine, and cuts each after some bytes.

    Args:
        port: Where connections go.
        rng: Decides when they are cut.
        mean_bytes: How much a connection carries on average, in both directions together.

    Attributes:
        url: `http://127.0.0.1:port` of the proxy.
        cuts: Connections that were cut so far.
    """

    def __init__(self, port: int, rng: random.Random, *, mean_bytes: int) -> None:
        self._target = port
        self._rng = rng
        self._mean_bytes = mean_bytes
        self.url = ""
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.url = f"http://127.0.0.1:{self._listener.extra(anyio.abc.SocketAttribute.local_port)}"
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._listener.serve, self._serve)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        with anyio.CancelScope(shield=True):
            await self._listener.aclose()

    async def _serve(self, client: anyio.abc.SocketStream) -> None:
        left = int(self._rng.expovariate(1 / self._mean_bytes))

        async def relay(source: anyio.abc.SocketStream, target: anyio.abc.SocketStream) -> None:
            nonlocal left
            try:
                while True:
                    data = await source.receive()
                    passed, left = data[: max(left, 0)], left - len(data)
                    if passed:
                        await target.send(passed)
                    if left <= 0:
                        self.cuts += 1
                        tasks.cancel_scope.cancel()
                        return
            except anyio.EndOfStream:
                with anyio.move_on_after(1):
                    await target.send_eof()
            except _GONE:
                tasks.cancel_scope.cancel()

        try:
            server = await anyio.connect_tcp("127.0.0.1", self._target)
            async with server, client, anyio.create_task_group() as tasks:
                tasks.start_soon(relay, client, server)
                tasks.start_soon(relay, server, client)
        except _GONE:
            await anyio.aclose_forcefully(client)
