"""How much of everything one server takes on: requests at a time, streams, live readers of one stream.

A limit that is not set costs nothing. What is over one is refused before anything is done for it, with `Retry-After`:
503 if the server has too much to do altogether, 429 if there is too much of what was asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from .responses import Rejection
from .stores.abilities import CountingStore
from .stores.base import Gone, Missing, Store, StreamInfo, StreamRef

#: Seconds after which to come back: when the server is busy or stops, and when there is too much of something.
BUSY_SECONDS = 1
FULL_SECONDS = 5


def busy(text: str) -> Rejection:
    """The server cannot do this now; the body of the request is not waited for."""
    return Rejection(503, text, [(b"retry-after", b"%d" % BUSY_SECONDS)], close=True)


def too_many(text: str) -> Rejection:
    """There is too much of this already."""
    return Rejection(429, text, [(b"retry-after", b"%d" % FULL_SECONDS)])


class Readers:
    """The live readers, long-polls included.

    Args:
        most: How many one stream may have; None for any number.

    Attributes:
        open: How many there are.
    """

    def __init__(self, most: int | None) -> None:
        self.open: int = 0
        self._most = most
        self._by_stream: dict[StreamRef, int] = {}

    def enter(self, ref: StreamRef) -> None:
        """One more reader of a stream; `leave` has to follow.

        Raises:
            Rejection: if the stream has as many as it may have.
        """
        if self._most is not None:
            here = self._by_stream.get(ref, 0)
            if here >= self._most:
                raise too_many("the stream has as many live readers as it may have")
            self._by_stream[ref] = here + 1
        self.open += 1

    def leave(self, ref: StreamRef) -> None:
        """One less."""
        self.open -= 1
        if self._most is not None:
            here = self._by_stream.pop(ref) - 1
            if here:
                self._by_stream[ref] = here


class Room:
    """How many streams there may be.

    Those that are being made count as made: of several at a time no more get through than there is room for.

    Args:
        store: What holds the streams.
        most: How many there may be.

    Raises:
        ValueError: if the store does not count its streams (`CountingStore`).
    """

    def __init__(self, store: Store, most: int) -> None:
        if not isinstance(store, CountingStore):
            raise ValueError(f"max_streams needs a store that counts its streams, which {store!r} does not")
        self._count = store.count_streams
        self._most = most
        self._under_way = 0

    @asynccontextmanager
    async def place(self, look: Callable[[], Awaitable[StreamInfo | Missing | Gone]]) -> AsyncIterator[None]:
        """A place for a stream that may be made in the block.

        Args:
            look: Looks whether there is a stream already: who repeats a creation needs no place.

        Raises:
            Rejection: if there is no stream, and no room for one.
        """
        if self._is_full() and isinstance(await look(), Missing) and self._is_full():
            raise too_many("the server has as many streams as it may have")
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _is_full(self) -> bool:
        return self._count() + self._under_way >= self._most
