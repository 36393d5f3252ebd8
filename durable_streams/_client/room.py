"""The line of those who wait for room in a producer's buffer."""

from __future__ import annotations

from collections import deque

import anyio

from .._core.batcher import Batcher


class Place:
    """A place in the line."""

    __slots__ = ("event", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.event = anyio.Event()


class Room:
    """Serves callers in the order in which they came. While somebody waits, nobody else's message is accepted.

    Args:
        batcher: Knows how much room there is.
    """

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._line: deque[Place] = deque()

    @property
    def wanted(self) -> bool:
        """Whether somebody waits."""
        return bool(self._line)

    def join(self, size: int) -> Place:
        """Take a place at the end of the line, for a message of this size."""
        place = Place(size)
        self._line.append(place)
        self._batcher.reserve(True)
        return place

    async def wait(self, place: Place) -> None:
        """Wait until it is the place's turn and there is room, or until nothing is accepted any more.

        Until the next suspension the caller alone may add messages.
        """
        while self._batcher.refusal is None and not (self._line[0] is place and self._batcher.has_room(place.size)):
            place.event = anyio.Event()
            await place.event.wait()
        self._batcher.reserve(False)

    def leave(self, place: Place) -> None:
        """Give the place up; who is next may be served."""
        self._line.remove(place)
        self._batcher.reserve(bool(self._line))
        self.look()

    def look(self) -> None:
        """Wake the first in line if there is room for it, or all if nothing is accepted any more."""
        if self._batcher.refusal is not None:
            for place in self._line:
                place.event.set()
        elif self._line and self._batcher.has_room(self._line[0].size):
            self._line[0].event.set()
