"""How the demo shows its progress: bars on a terminal, else a line now and then. On standard error."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import output

#: A line is printed whenever another part of this size is done.
_PART = 0.25


class Lines:
    """A line for each quarter.

    Args:
        events: How many events there will be.
    """

    def __init__(self, events: int) -> None:
        self._events = events
        self._next = {"written": _PART, "delivered": _PART}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to put away."""

    def say(self, words: str) -> None:
        """Say what happens now."""
        output.say(f"demo: {words}")

    def written(self, count: int) -> None:
        """So many events are stored by the server."""
        self._count("written", count)

    def read(self, count: int) -> None:
        """So many events are kept by the reader."""
        self._count("delivered", count)

    def _count(self, what: str, count: int) -> None:
        if count >= self._next[what] * self._events:
            self.say(f"{what} {count:,} of {self._events:,}")
            while self._next[what] * self._events <= count:
                self._next[what] += _PART


class Bars:
    """Two bars.

    Args:
        events: How many events there will be.
    """

    def __init__(self, events: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._written = self._progress.add_task("written", total=events)
        self._read = self._progress.add_task("delivered", total=events)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, words: str) -> None:
        """Say what happens now."""
        self._progress.console.print(words, highlight=False)

    def written(self, count: int) -> None:
        """So many events are stored by the server."""
        self._progress.update(self._written, completed=count)

    def read(self, count: int) -> None:
        """So many events are kept by the reader."""
        self._progress.update(self._read, completed=count)
