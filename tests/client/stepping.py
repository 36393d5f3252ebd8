"""Cancels a call at each of its awaits, one after the other.

    steps = Steps(mode)
    async for run in steps.rounds():
        ...                             # make what the call needs
        result = await run(call)        # `CANCELLED`, or what the call returns
        ...                             # look at what is left

Each round cancels one suspension later, until the call completes without having been suspended so often. Modes:

"scope"  a cancel scope around the call is cancelled when it is about to be suspended; on both loops.
"native" the call's asyncio task is cancelled when it is about to be suspended.
"late"   the call's asyncio task is cancelled when what it waited for has just come, so that its result is lost.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Literal

import anyio

Mode = Literal["scope", "native", "late"]
Run = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]

#: What `run` returns when the call was cancelled.
CANCELLED = object()


@types.coroutine
def stepped(call: Awaitable[Any], at: int, act: Callable[[Any], object]) -> Generator[Any, Any, tuple[Any, int]]:
    """Await something, and call `act` with what it waits for when it is about to be suspended for the `at`-th time.

    Returns:
        Its result, and how often it was suspended.
    """
    inner = call.__await__()
    count = 0
    step: Callable[[], Any] = lambda: next(inner)  # noqa: E731
    while True:
        try:
            awaited = step()
        except StopIteration as stop:
            return stop.value, count
        count += 1
        if count == at:
            act(awaited)
        try:
            value = yield awaited
        except BaseException as error:
            step = lambda error=error: inner.throw(error)  # type: ignore[misc, attr-defined]  # noqa: E731
        else:
            step = lambda value=value: inner.send(value)  # type: ignore[misc, attr-defined]  # noqa: E731


class Steps:
    """Counts the rounds of one test.

    Attributes:
        cancelled: How many rounds were cancelled.
    """

    def __init__(self, mode: Mode) -> None:
        self.cancelled = 0
        self._mode = mode
        self._done = False

    async def rounds(self) -> AsyncIterator[Run]:
        """One `run` for each round."""
        while not self._done:
            yield self._run
            assert self.cancelled < 1000, "the call never completes"

    async def _run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        at = self.cancelled + 1
        if self._mode == "scope":
            with anyio.CancelScope() as scope:
                result, count = await stepped(call(), at, lambda awaited: scope.cancel())
                self._done = count < at
            if not scope.cancelled_caught and self._done:
                return result
            if not scope.cancelled_caught:  # the cancellation came too late to be noticed
                self.cancelled += 1
                return result
        else:
            task = asyncio.ensure_future(stepped(call(), at, self._act))  # type: ignore[arg-type]
            self._task = task
            try:
                result, count = await task
                self._done = count < at
                if not self._done:
                    self.cancelled += 1
                return result
            except asyncio.CancelledError:
                assert task.cancelled()
        self.cancelled += 1
        return CANCELLED

    def _act(self, awaited: Any) -> None:
        if self._mode == "native":
            self._task.cancel()
        elif awaited is None:
            asyncio.get_running_loop().call_soon(self._task.cancel)
        else:
            awaited.add_done_callback(lambda future: self._task.cancel())
