"""Tickets: how a caller learns that what it handed in is durable."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import anyio

from .._core.fresh import fresh
from ._values import AppendAck


class AppendTicket:
    """A batch that an append session has accepted: `ack = await ticket`.

    Any number of tasks may wait, now or later; cancelling one of them touches neither the batch nor the session. A
    ticket nobody waits for is fine: `flush` and `close` of the session tell whether all is well.

    Attributes:
        count: Records of the batch.
    """

    __slots__ = ("_ack", "_error", "_event", "_next", "count")

    def __init__(self, count: int) -> None:
        self.count: int = count
        self._ack: AppendAck | None = None
        self._error: Exception | None = None
        self._event: anyio.Event | None = None
        self._next: AppendTicket | None = None  # the one accepted after it: iterators of acks walk along

    @property
    def done(self) -> bool:
        """Whether the batch is durable, or has failed."""
        return self._ack is not None or self._error is not None

    async def wait(self) -> AppendAck:
        """Wait until the batch is durable. The same as awaiting the ticket; returns at once if it is done.

        Raises:
            S2Error: the batch failed; `definite` tells whether it certainly was not stored.
        """
        await self.wait_done()
        if self._error is not None:
            raise fresh(self._error)
        assert self._ack is not None, "done"
        return self._ack

    async def wait_done(self) -> None:
        """Wait until the batch is durable or has failed, whichever it is."""
        if self._ack is None and self._error is None:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()

    def __await__(self) -> Generator[Any, Any, AppendAck]:
        return self.wait().__await__()

    def resolve(self, ack: AppendAck) -> None:
        """Said by the session: the batch is durable."""
        self._ack = ack
        if self._event is not None:
            self._event.set()

    def reject(self, error: Exception) -> None:
        """Said by the session: the batch will not be written any more."""
        self._error = error
        if self._event is not None:
            self._event.set()

    def __repr__(self) -> str:
        state = "waiting" if not self.done else repr(self._ack) if self._ack else f"failed: {self._error!r}"
        return f"<AppendTicket of {self.count} records: {state}>"
