"""The demo's bad network: a few in a hundred requests go wrong, in ways that a seed decides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from .. import BackoffOptions, open_transport
from ..testing import FaultTransport

#: Retries come soon, as the trouble is short.
RETRY = BackoffOptions(initial_delay=0.01, max_delay=0.5, multiplier=2.0)


@dataclass(frozen=True, slots=True)
class BadNetwork:
    """A transport over a bad network."""

    transport: FaultTransport

    @property
    def faults(self) -> int:
        """Faults so far."""
        return len(self.transport.log)


@asynccontextmanager
async def bad_network(seed: int) -> AsyncIterator[BadNetwork]:
    """A network that fails; closed on leaving.

    Args:
        seed: Decides which request meets which fault.
    """
    transport = FaultTransport(
        open_transport(),
        seed=seed,
        refuse=0.01,
        reset_before=0.01,
        reset_after=0.02,
        cut_body=0.02,
        status_5xx=0.01,
        delay=0.01,
        reorder=0.02,
        max_delay=0.02,
    )
    try:
        yield BadNetwork(transport)
    finally:
        await transport.aclose()
