"""Telling the user what happened to a producer's batches: callbacks and log."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable

from .._core.exchange import RetryDetails
from .._core.producer_values import Acked, Claimed, Failed, Outcome, ProducerOptions, Retried
from ..errors import DurableStreamError
from .producer_values import BatchInfo

logger = logging.getLogger("durable_streams.producer")

#: The failed try in a row of one batch that is worth a warning.
_WARN_AT = 3


class Notices:
    """Calls the user's callbacks, plain or async. What they raise is logged and changes nothing.

    Args:
        options: The producer's.
        on_error: Told of each batch that failed for good.
        on_claim: Told of each take-over.
        before_waiting: Called before an async callback is awaited: others have to do the work meanwhile.
    """

    def __init__(
        self,
        options: ProducerOptions,
        *,
        on_error: Callable[[Exception, BatchInfo], object] | None,
        on_claim: Callable[[int, int, int], object] | None,
        before_waiting: Callable[[], None],
    ) -> None:
        self._options = options
        self._on_error = on_error
        self._on_claim = on_claim
        self._before_waiting = before_waiting

    async def tell(self, outcome: Outcome) -> None:
        """Log an outcome, and call whom it concerns."""
        url = self._options.url
        match outcome:
            case Acked(batch, ack) if ack.duplicate and not batch.ambiguous:
                logger.warning(
                    "the server had this batch before, though it was sent once: does another writer use the id "
                    "and epoch? url=%s producer=%s epoch=%d seq=%d",
                    *(url, self._options.producer_id, ack.epoch, ack.seq),
                )
            case Retried(_, attempt, delay, error):
                level = logging.WARNING if attempt == _WARN_AT else logging.DEBUG
                logger.log(level, "retrying url=%s delay=%.3f error=%s", url, delay, error)
                await self._call(self._options.retry.on_failed_attempt, RetryDetails(attempt, delay, error))
            case Claimed(old, new, resent):
                logger.info("claimed url=%s epoch=%d resent=%d", url, new, resent)
                await self._call(self._on_claim, old, new, resent)
            case Failed(batch, error):
                assert batch.stamp is not None
                retryable = isinstance(error, DurableStreamError) and error.retryable
                await self._call(self._on_error, error, BatchInfo(*batch.stamp, len(batch.items), retryable))

    async def _call(self, callback: Callable[..., object] | None, *facts: object) -> None:
        if callback is None:
            return
        try:
            result = callback(*facts)
            if inspect.isawaitable(result):
                self._before_waiting()
                await result
        except Exception:
            logger.exception("a callback of the producer failed url=%s callback=%r", self._options.url, callback)
