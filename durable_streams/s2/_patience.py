"""Patience with a server that has said farewell: a planned restart is no failure.

A server that stops in an orderly way says GOAWAY (S2 8.3): streams that are open go on for a while, then the connection
is cut. What is in flight at that moment is in doubt. So an append session leaves as soon as it hears the farewell, with
everything acknowledged, and then finds nobody there, as the next server has yet to start. A refused connection is not
counted as an attempt for some time then: nothing was sent, and somebody is expected.
"""

from __future__ import annotations

from ._retry import S2Retry
from .errors import S2ConnectionError, S2Error

#: Seconds after a farewell in which connections that cannot be made are not counted.
PATIENCE = 30.0


class Patience:
    """Remembers a farewell, until somebody is there again."""

    __slots__ = ("_retry", "_said", "_tries")

    def __init__(self, retry: S2Retry) -> None:
        self._retry = retry
        self._said: float | None = None
        self._tries = 0

    def farewell(self, now: float) -> None:
        """The server has said that it goes away."""
        self._said = now
        self._tries = 0

    def progress(self) -> None:
        """Somebody is there."""
        self._said = None

    def delay(self, error: S2Error, now: float, draw: float) -> float | None:
        """Seconds until the next try, if this failure is not to be counted.

        Args:
            error: What happened.
            now: The time.
            draw: Uniform number in [0, 1).
        """
        if self._said is None or now - self._said > PATIENCE:
            return None
        if not isinstance(error, S2ConnectionError) or error.phase != "connect" or not error.retryable:
            return None
        self._tries += 1
        return self._retry.delay(self._tries - 1, draw)
