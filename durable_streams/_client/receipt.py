"""Receipts: how a message learns that its batch is stored."""

from __future__ import annotations

import anyio
import anyio.lowlevel

from .._core.batcher import Ack
from .._core.fresh import fresh


class Receipt:
    """Shared by all messages of one batch; made by a producer.

    It is not awaitable itself, so that awaiting an append cannot defeat batching by accident.
    """

    __slots__ = ("_ack", "_error", "_event")

    def __init__(self) -> None:
        self._ack: Ack | None = None
        self._error: Exception | None = None
        self._event: anyio.Event | None = None

    @property
    def done(self) -> bool:
        """Whether the batch is stored, or has failed for good."""
        return self._ack is not None or self._error is not None

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
        if self._error is not None:
            raise fresh(self._error)
        assert self._ack is not None
        return self._ack

    def resolve(self, ack: Ack) -> None:
        """Said by the producer: the batch is stored."""
        self._ack = ack
        if self._event is not None:
            self._event.set()

    def reject(self, error: Exception) -> None:
        """Said by the producer: the batch will not be sent again."""
        self._error = error
        if self._event is not None:
            self._event.set()

    def __repr__(self) -> str:
        state = "waiting" if not self.done else repr(self._ack) if self._ack else f"failed: {self._error!r}"
        return f"<Receipt {state}>"
