"""Cursors: interval numbers that keep shared caches from answering a live reader with its own past (server 11)."""

from __future__ import annotations

import math
import random
import re

#: 2024-10-09T00:00:00Z, from where intervals are counted.
EPOCH = 1728432000
#: Seconds per interval.
INTERVAL = 20

_MAX_JITTER = 3600
_MAX_LEAD = 10**6
_DECIMAL = re.compile(r"[0-9]{1,20}")


def current_cursor(now: float) -> int:
    """The number of the present interval."""
    return math.floor((now - EPOCH) / INTERVAL)


def next_cursor(requested: str | None, now: float, rng: random.Random) -> int:
    """The cursor of an answer: never lower than the present interval, always greater than the client's own.

    A cursor that is no number, lies in the past, or leads by more than a million intervals (no server gave that out)
    counts as none.

    Args:
        requested: The request's `cursor` parameter, or None.
        now: Wall-clock time in seconds.
        rng: Jitter, so that clients that were ahead spread out.
    """
    current = current_cursor(now)
    if requested is None or not _DECIMAL.fullmatch(requested):
        return current
    theirs = int(requested)
    if theirs < current or theirs > current + _MAX_LEAD:
        return current
    return theirs + max(1, math.ceil(rng.uniform(1, _MAX_JITTER) / INTERVAL))
