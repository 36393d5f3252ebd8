"""Tickets: how a caller learns that what it handed in is durable."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import anyio

from .._core.outcome import Outcome
from ._values import AppendAck


class AppendTicket(Outcome[AppendAck]):
    """A batch that an append session has accepted: `ack = await ticket`.

    Any number of tasks may wait, now or later; cancelling one of them touches neither the batch nor the session. A
    ticket nobody waits for is fine: `flush` and `close` of the session tell whether all is well.

    Attributes:
        count: Records of the batch.
    """

    __slots__ = ("_next", "count")

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count: int = count
        self._next: AppendTicket | None = None  # the one accepted after it: iterators of acks walk along

    async def wait(self) -> AppendAck:
        """Wait until the batch is durable. The same as awaiting the ticket; returns at once if it is done.

        Raises:
            S2Error: the batch failed; `definite` tells whether it certainly was not stored.
        """
        await self.wait_done()
        return self._result()

    async def wait_done(self) -> None:
        """Wait until the batch is durable or has failed, whichever it is."""
        if not self.done:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()

    def __await__(self) -> Generator[Any, Any, AppendAck]:
        return self.wait().__await__()

    def __repr__(self) -> str:
        return f"<AppendTicket of {self.count} records: {self._state()}>"
