"""When streams with a TTL were last used, as far as that is not stored yet (server 12).

A reader renews a TTL, and readers are many: nothing is written for them. Times gather here and are stored by a sweep,
if they moved far enough, and when the store is closed. Appends write the stream's row anyway and store the time with
it. After a crash the times gathered here are lost; every TTL then counts from the moment of opening (`floor`), so a
stream may live longer than it was promised, but never shorter.

Two threads use this: the event loop's changes it, the writer's asks it, and enters repeated appends. Each access is one
operation on one dict, which is atomic. What they may race for is which of two times that are microseconds apart
stays.
"""

from __future__ import annotations

from ..creation import StreamConfig
from .base import StreamRef

_NEVER = float("-inf")


class Accesses:
    """Times of use and attached readers, by stream.

    Args:
        floor: No TTL began before this time.
    """

    def __init__(self, floor: float = _NEVER) -> None:
        self.floor = floor
        self._times: dict[StreamRef, float] = {}
        self._attached: dict[StreamRef, int] = {}

    def touch(self, ref: StreamRef, now: float) -> None:
        """A stream is used."""
        if now > self._times.get(ref, _NEVER):
            self._times[ref] = now

    def attach(self, ref: StreamRef) -> None:
        """A live reader begins: while there is one, a TTL does not run out."""
        self._attached[ref] = self._attached.get(ref, 0) + 1

    def detach(self, ref: StreamRef) -> None:
        """A live reader ends."""
        count = self._attached[ref] - 1
        if count:
            self._attached[ref] = count
        else:
            del self._attached[ref]

    def last(self, ref: StreamRef, stored: float, now: float) -> float:
        """When a stream was last used, if `stored` is what its row says; now, if it has a live reader."""
        if ref in self._attached:
            return max(stored, now)
        return max(stored, self.floor, self._times.get(ref, _NEVER))

    def expired(self, ref: StreamRef, config: StreamConfig, stored: float, now: float) -> bool:
        """Whether a stream's time is over."""
        if config.ttl is not None and ref not in self._attached and now - self.last(ref, stored, now) >= config.ttl:
            return True
        return config.expires_at is not None and now >= config.expires_at.timestamp

    def pending(self) -> list[tuple[StreamRef, float]]:
        """What is not stored yet."""
        return list(self._times.items())

    def stored(self, entries: list[tuple[StreamRef, float]]) -> None:
        """These times are stored now, or their streams are gone."""
        for ref, time in entries:
            if self._times.get(ref) == time:
                del self._times[ref]


def expiry(config: StreamConfig, last_access: float) -> float | None:
    """When a stream's time will be over if nobody uses it; None for never."""
    times = []
    if config.ttl is not None:
        times.append(last_access + config.ttl)
    if config.expires_at is not None:
        times.append(config.expires_at.timestamp)
    return min(times, default=None)
