"""Bytes that are in several pieces, to be sent without making one of them first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class Rope:
    """Pieces in a row, taken off from the front in any lengths.

    Args:
        pieces: Kept as they are.
    """

    __slots__ = ("_pieces", "_size")

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._pieces: deque[bytes | memoryview] = deque(piece for piece in pieces if piece)
        self._size = sum(map(len, self._pieces))

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"<Rope of {self._size} bytes in {len(self._pieces)} pieces>"

    def slices(self, size: int, most: int) -> list[memoryview]:
        """Take off as many slices of this size as the first piece holds, and no more than `most`."""
        if not self._pieces or (count := min(len(self._pieces[0]) // size, most)) <= 0:
            return []
        view = memoryview(self._pieces.popleft())
        taken = count * size
        if taken < len(view):
            self._pieces.appendleft(view[taken:])
        self._size -= taken
        return [view[at : at + size] for at in range(0, taken, size)]

    def take(self, size: int) -> list[bytes | memoryview]:
        """Take off the next `size` bytes, or all if there are fewer. What is cut becomes views."""
        taken: list[bytes | memoryview] = []
        pieces = self._pieces
        while size and pieces:
            piece = pieces.popleft()
            if len(piece) > size:
                view = memoryview(piece)
                piece = view[:size]
                pieces.appendleft(view[size:])
            taken.append(piece)
            size -= len(piece)
            self._size -= len(piece)
        return taken
