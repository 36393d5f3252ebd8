"""Outcomes that come later: said once by whoever brings them about, asked by any number of callers.

What is known about a batch on its way is the same for every producer and session: nothing yet, a result, or an error.
This holds it. How to wait is for the subclasses, as nothing waits here.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Generic, Protocol, TypeVar

from .fresh import fresh

T = TypeVar("T")


class Signal(Protocol):
    """An event that tasks wait for."""

    def set(self) -> None:
        """It has happened."""
        ...

    def wait(self) -> Awaitable[None]:
        """Until it has happened."""
        ...


class Outcome(Generic[T]):
    """A result that is not known yet, or a result, or an error."""

    __slots__ = ("_error", "_event", "_value")

    def __init__(self) -> None:
        self._value: T | None = None
        self._error: Exception | None = None
        self._event: Signal | None = None  # of those who wait; the first of them makes it

    @property
    def done(self) -> bool:
        """Whether the batch is stored, or has failed for good."""
        return self._value is not None or self._error is not None

    def resolve(self, value: T) -> None:
        """Said by the maker: the batch is stored."""
        self._value = value
        if self._event is not None:
            self._event.set()

    def reject(self, error: Exception) -> None:
        """Said by the maker: the batch will not be sent again."""
        self._error = error
        if self._event is not None:
            self._event.set()

    def _result(self) -> T:
        """The result, or the error, raised afresh for each who asks. Only when `done`."""
        if self._error is not None:
            raise fresh(self._error)
        assert self._value is not None, "done"
        return self._value

    def _state(self) -> str:
        """What is known, in a few words."""
        return "waiting" if not self.done else f"failed: {self._error!r}" if self._error else repr(self._value)
