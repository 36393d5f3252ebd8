"""Requests of one producer that overtake each other on their way (server 6.2).

A producer with several requests in flight sends them over several connections, so number 6 may be here before number 5.
Answering 409 at once would cost a round trip and the whole body once more. So a request that finds a gap waits a
moment for its predecessor, and as long as a predecessor whose headers have come is still uploading its body. What
decides is always the store: after each change of the producer's state the request is simply made again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from .protocol import ProducerStamp

#: Seconds that a gap may stay open when no predecessor is to be seen.
GAP_PATIENCE = 0.25
#: Seconds to wait at most for a predecessor whose body is on its way.
UPLOAD_PATIENCE = 10.0


class Arrivals:
    """The producers' requests that are under way in one server."""

    def __init__(self) -> None:
        self._uploading: dict[tuple[str, str], Counter[tuple[int, int]]] = {}
        self._moved: dict[tuple[str, str], anyio.Event] = {}

    @contextmanager
    def uploading(self, path: str, stamp: ProducerStamp) -> Iterator[None]:
        """Announce a request whose body is being read and which is then stored."""
        key, number = (path, stamp.id), (stamp.epoch, stamp.seq)
        numbers = self._uploading.setdefault(key, Counter())
        numbers[number] += 1
        try:
            yield
        finally:
            numbers[number] -= 1
            if not numbers[number]:
                del numbers[number]
            if not numbers:
                del self._uploading[key]
            self.moved(path, stamp)

    def moved(self, path: str, stamp: ProducerStamp) -> None:
        """A request of this producer was stored, or will not come: those who wait for it look again."""
        if self._moved:
            event = self._moved.pop((path, stamp.id), None)
            if event is not None:
                event.set()

    def has_predecessor(self, path: str, stamp: ProducerStamp) -> bool:
        """Whether a request of the same epoch with a lower number is being uploaded."""
        numbers = self._uploading.get((path, stamp.id))
        return numbers is not None and any(epoch == stamp.epoch and seq < stamp.seq for epoch, seq in numbers)

    def expect(self, path: str, stamp: ProducerStamp) -> anyio.Event:
        """What is set when the producer's state may have changed from now on.

        To be called before the last look at the state: a predecessor that was stored between look and call would not
        be noticed.
        """
        return self._moved.setdefault((path, stamp.id), anyio.Event())

    async def wait(self, event: anyio.Event, path: str, stamp: ProducerStamp, since: float) -> bool:
        """Wait for news.

        Args:
            event: From `expect`.
            path: The stream.
            stamp: The request that found a gap.
            since: When it did, on the event loop's clock.

        Returns:
            False if its patience is at an end.
        """
        patience = UPLOAD_PATIENCE if self.has_predecessor(path, stamp) else GAP_PATIENCE
        with anyio.move_on_after(since + patience - anyio.current_time()):
            await event.wait()
            return True
        return False
