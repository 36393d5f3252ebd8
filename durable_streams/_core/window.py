"""How many batches of a producer may be under way at a time.

A batch that overtakes another on its way is refused, and sent again when the other is stored (a gap). All that wait for
the same batch would be sent at once then, and would overtake each other again: once it has begun, each batch travels
twice, at least to servers that read many uploads at a time. So a gap narrows the window to one, and acknowledgements
widen it again, by one for each `ROUNDS` windows of them. It never closes, so the lowest batch can always be sent.
"""

from __future__ import annotations

#: So many windows of batches have to be acknowledged, without a gap, before one more may be under way.
ROUNDS = 2


class Window:
    """Such a window.

    Args:
        most: Its size to begin with, and the largest.

    Attributes:
        size: Requests that may be under way now, at least 1.
    """

    __slots__ = ("_acknowledged", "_most", "size")

    def __init__(self, most: int) -> None:
        self._most = most
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.size = self._most
        self._acknowledged = 0

    def on_gap(self) -> None:
        """A batch has overtaken another."""
        self.size = 1
        self._acknowledged = 0

    def on_acknowledged(self) -> None:
        """A batch was stored."""
        if self.size < self._most:
            self._acknowledged += 1
            if self._acknowledged >= self.size * ROUNDS:
                self.size += 1
                self._acknowledged = 0
