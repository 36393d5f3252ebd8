"""The time limit of one call: a cancel scope whose deadline moves on as the exchange does.

HTTP libraries bound single socket operations, or everything at once; neither is what `Timeouts` promises. So each call
of a transport runs in one `Deadline`, which knows the stage the exchange is in and ends the call when that stage takes
too long. Closing the transport ends pending calls through the same scope.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Literal, Self

import anyio

from .._core import wire
from ..errors import AlreadyClosedError, DurableStreamError, Phase, RequestTimeoutError
from .base import Timeouts

#: What an exchange is doing: getting a connection, sending, or waiting for the server. Names of `Timeouts` fields.
Stage = Literal["connect", "write", "read"]

_SENTENCES: dict[Stage, str] = {
    "connect": "no connection within {limit:g} s",
    "write": "the server did not take the request within {limit:g} s",
    "read": "the server was silent for {limit:g} s",
}


class Deadline:
    """Bounds the block that it is entered for; see `error` for what to raise after it.

    Args:
        timeouts: Limits of the exchange.
        stage: Where the exchange is.

    Attributes:
        stage: Where the exchange is; where it was, once the block has ended.
        stopped: Whether `stop` was called.
    """

    __slots__ = ("_scope", "_timeouts", "stage", "stopped")

    def __init__(self, timeouts: Timeouts, stage: Stage = "connect") -> None:
        self._timeouts = timeouts
        self._scope = anyio.CancelScope()
        self.stopped = False
        self.move(stage)

    def __enter__(self) -> Self:
        self._scope.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return bool(self._scope.__exit__(exc_type, error, traceback))

    def move(self, stage: Stage) -> None:
        """Enter a stage; its limit counts from now. Any task may call this."""
        self.stage: Stage = stage
        limit = getattr(self._timeouts, stage)
        self._scope.deadline = math.inf if limit is None else anyio.current_time() + limit

    def pause(self) -> None:
        """Wait without limit until the next `move`: it is the caller's turn, not the server's."""
        self._scope.deadline = math.inf

    def stop(self) -> None:
        """End the block now, because the transport is being closed."""
        self.stopped = True
        self._scope.cancel()

    @property
    def phase(self) -> Phase:
        """The error phase of the present stage, as long as no head has come."""
        return "connect" if self.stage == "connect" else "sent"

    def error(self, url: str, phase: Phase | None = None) -> DurableStreamError:
        """What to raise if the block was ended from here. `phase` replaces the stage's own."""
        shown = wire.parse_url(url).display
        if self.stopped:
            return AlreadyClosedError(f"{shown}: the transport was closed", url=shown)
        sentence = _SENTENCES[self.stage].format(limit=getattr(self._timeouts, self.stage))
        return RequestTimeoutError(f"{shown}: {sentence}", phase=phase or self.phase, url=shown)
