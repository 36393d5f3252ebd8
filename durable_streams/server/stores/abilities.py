"""What a store may do beyond `Store`. The server uses what it finds; `SubscriptionStore` is another such ability."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from ..protocol import AppendRequest
from .base import AppendResult
from .errors import StoreFailedError

#: Is given what came of an append.
Appending: TypeAlias = Callable[[AppendResult | Exception], None]


class Histogram:
    """How values are distributed: counts by range, and their sum. One thread adds, any thread looks.

    Args:
        bounds: Upper ends of the ranges, each included in its range, in order. One more range has what is above.

    Attributes:
        bounds: As given.
        counts: list of len(bounds) + 1 int, values in each range.
        total: Sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds: tuple[float, ...] = tuple(bounds)
        self.counts: list[int] = [0] * (len(bounds) + 1)
        self.total: float = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(frozen=True, slots=True)
class StoreFigures:
    """A store in figures.

    Attributes:
        streams: How many streams there are, with those that are only kept for their forks.
        size: Bytes that they take: on disk, or of data in memory.
        commit_seconds: How long transactions took, the disk included; None if there are none.
        commit_requests: How many requests were in each; None if there are none.
    """

    streams: int
    size: int
    commit_seconds: Histogram | None = None
    commit_requests: Histogram | None = None


@runtime_checkable
class CountingStore(Protocol):
    """Knows how many streams it has. Needed for the limit `max_streams`."""

    def count_streams(self) -> int:
        """How many streams there are, with those that are only kept for their forks. Cheap."""
        ...


@runtime_checkable
class MeasuredStore(Protocol):
    """Has figures for `/metrics`."""

    def figures(self) -> StoreFigures:
        """The store in figures, now. Fast, and called on the event loop."""
        ...


@runtime_checkable
class FailingStore(Protocol):
    """Stops for good when a write fails. The server ends then."""

    @property
    def failure(self) -> StoreFailedError | None:
        """Why it has stopped; None while all is well."""
        ...

    async def wait_failed(self) -> StoreFailedError:
        """Wait until it stops by itself."""
        ...


@runtime_checkable
class PromptStore(Protocol):
    """Appends without a task that waits. For our own runner, which then needs none for the request.

    `append` and `append_soon` belong together. A store with an `append` of its own and an inherited `append_soon`, or
    one that comes from the store it wraps, is asked to `append` only, so that nothing goes past it.
    """

    def append_soon(self, r: AppendRequest, now: float, done: Appending) -> None:
        """Do what `Store.append` does, and call `done` on the event loop with what that would return or raise.

        It may be called before this returns. What can be raised at once may be raised here.
        """
        ...


def prompt_store(store: object) -> PromptStore | None:
    """The store, if it has an `append_soon` that does what its `append` does; else None."""
    own = getattr(store, "__dict__", {})
    for names in (own, *(kind.__dict__ for kind in type(store).__mro__)):
        if "append_soon" in names:
            return store if isinstance(store, PromptStore) else None
        if "append" in names:
            return None
    return None
