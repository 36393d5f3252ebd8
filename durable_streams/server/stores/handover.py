"""From an event loop to a thread, with few wake-ups, and back.

Waking a thread costs more than most of what it is woken for, and a thread that wakes up takes the interpreter's lock
away from the one that woke it, in the middle of its work. So a thread that is busy is not told of what has come: it
looks when it is done. One that waits is told once for all that the event loop puts here in one go.

`waiting` and `_items` belong to both sides. The thread says that it waits and looks once more, the loop puts something
here and looks whether it waits: one of the two always sees the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

import anyio.lowlevel

T = TypeVar("T")
#: Has a function called on the event loop, after what is under way there.
Soon: TypeAlias = Callable[[Callable[[], None]], object]
#: The same from any thread.
Wake: TypeAlias = Callable[[Callable[[], None]], object]


class Handover(Generic[T]):
    """A queue from an event loop to one thread.

    Args:
        soon: To be used on the event loop's thread.

    Attributes:
        waiting: Whether the thread waits.
    """

    def __init__(self, soon: Soon) -> None:
        self._soon = soon
        self._items: deque[T] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self.waiting: bool = False
        self._due = False

    def __bool__(self) -> bool:
        return bool(self._items)

    def put(self, item: T) -> None:
        """Hand something over; on the event loop's thread."""
        self._items.append(item)
        if self.waiting and not self._due:
            self._due = True
            self._soon(self._ring)

    def put_from_elsewhere(self, item: T) -> None:
        """Hand something over; on any thread."""
        self._items.append(item)
        self._bell.put(None)

    def _ring(self) -> None:
        self._due = False
        self._bell.put(None)

    def take(self) -> T | None:
        """What comes next; None if there is nothing. In the thread, like what follows."""
        return self._items.popleft() if self._items else None

    def wait(self, timeout: float | None) -> bool:
        """Wait until there may be something. Returns False if nothing came for `timeout` seconds."""
        self.waiting = True
        try:
            if not self._items:
                self._bell.get(timeout=timeout)
        except Empty:
            return False
        finally:
            self.waiting = False
        return True


def waker() -> Wake:
    """What has a function called on the running event loop, from any thread and without waiting for it."""
    loop: Any = anyio.lowlevel.current_token().native_token
    wake: Wake = loop.call_soon_threadsafe if hasattr(loop, "call_soon_threadsafe") else loop.run_sync_soon
    return wake


def deferrer() -> Soon:
    """The same for the event loop's own thread, which costs less."""
    loop: Any = anyio.lowlevel.current_token().native_token
    soon: Soon = loop.call_soon if hasattr(loop, "call_soon") else loop.run_sync_soon
    return soon
