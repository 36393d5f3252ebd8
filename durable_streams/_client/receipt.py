"""Receipts: how a message learns that its batch is stored."""

from __future__ import annotations

import anyio
import anyio.lowlevel

from .._core.batcher import Ack
from .._core.outcome import Outcome


class Receipt(Outcome[Ack]):
    """Shared by all messages of one batch; made by a producer.

    It is not awaitable itself, so that awaiting an append cannot defeat batching by accident.
    """

    __slots__ = ()

    async def wait(self) -> Ack:
        """Wait until the batch is stored. Cancelling the wait does not touch the batch.

        Raises:
            DurableStreamError: the batch failed for good; see `IdempotentProducer`.
        """
        if self.done:
            await anyio.lowlevel.checkpoint()
        else:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        return self._result()

    def __repr__(self) -> str:
        return f"<Receipt {self._state()}>"
