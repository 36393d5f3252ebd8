"""What is counted on an HTTP/2 connection: receive windows, and frames that cost their sender nothing. No I/O."""

from __future__ import annotations

from typing import Final

from .frames import DEFAULT_WINDOW

#: A window is topped up when this part of it has been used: seldom enough to cost nothing, soon enough to never stall.
_SHARE: Final = 4


class ReceiveWindow:
    """How much the peer may still send, and how much of what it sent it has not been given back.

    Args:
        size: Bytes the peer may send before it has to wait.
        told: What the peer was told so far, if that differs from `size`; the rest is given by `raise_to_size`.

    Attributes:
        left: What the peer may still send.
    """

    __slots__ = ("_owed", "_size", "left")

    def __init__(self, size: int, told: int | None = None) -> None:
        self._size = size
        self._owed = 0
        self.left = size if told is None else told

    def raise_to_size(self) -> int:
        """The increment to send at the start, for a window that begins smaller than wanted; 0 for none."""
        increment = max(self._size - self.left, 0)
        self.left += increment
        return increment

    def take(self, length: int) -> bool:
        """Count a frame that came. False: the peer has sent more than it may."""
        self.left -= length
        return self.left >= 0

    def give_back(self, length: int) -> int:
        """Count bytes that were consumed.

        Returns:
            The increment to send now, or 0 if it is better saved up.
        """
        self._owed += length
        if self._owed * _SHARE < self._size:
            return 0
        increment, self._owed = self._owed, 0
        self.left += increment
        return increment


#: Window of a connection before anything was said: SETTINGS does not change it.
CONNECTION_START: Final = DEFAULT_WINDOW


class Allowance:
    """How many frames the peer may send that move nothing (PING, SETTINGS, window updates, resets, empty DATA...).

    One that sends these without end keeps us busy at no cost of its own. A bucket of tokens bounds it: time refills
    it, so that a quiet connection lives for ever, and so does every frame of ours, as each may well be answered by some
    (two window updates for each DATA, say).

    Args:
        burst: Tokens in the full bucket.
        per_second: Tokens that time brings.
    """

    __slots__ = ("_burst", "_now", "_per_second", "_tokens")

    def __init__(self, burst: int = 10_000, per_second: float = 500.0) -> None:
        self._burst = burst
        self._per_second = per_second
        self._tokens = float(burst)
        self._now: float | None = None

    def tick(self, now: float) -> None:
        """Tell the time, in seconds of any clock that only goes forward."""
        if self._now is not None:
            self.earn((now - self._now) * self._per_second)
        self._now = now

    def earn(self, tokens: float) -> None:
        """Fill up, after something useful happened."""
        self._tokens = min(self._tokens + tokens, self._burst)

    def spend(self) -> bool:
        """Pay for one frame. False: the peer floods us."""
        self._tokens -= 1
        return self._tokens >= 0
