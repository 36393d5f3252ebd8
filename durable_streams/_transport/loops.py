"""What the transports need to know of the running event loop, and cannot ask anyio for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio
from anyio.lowlevel import RunVar

_run: RunVar[object] = RunVar("durable_streams_run")
# asyncio itself holds its tasks weakly.
_tasks: set[asyncio.Task[None]] = set()


def running_loop() -> str:
    """Name of the library whose event loop is running: "asyncio" or "trio".

    Raises:
        RuntimeError: outside an event loop.
    """
    try:
        # Each backend of anyio has its own cancellation: a public name that tells which one is running.
        cancelled = anyio.get_cancelled_exc_class()
    except RuntimeError:
        raise RuntimeError("a transport works inside an event loop only: asyncio or trio") from None
    return cancelled.__module__.partition(".")[0]


def current_run() -> object:
    """An object that is the same for everything that runs in one run of one event loop.

    Raises:
        RuntimeError: outside an event loop.
    """
    running_loop()
    try:
        return _run.get()
    except LookupError:
        run = object()
        _run.set(run)
        return run


def spawn(function: Callable[[], Awaitable[None]], name: str) -> None:
    """Run a function in a task of its own that belongs to no task group: the caller has to see that it ends.

    The function must not raise: on trio that would end the whole run.
    """
    if running_loop() == "trio":
        import trio

        trio.lowlevel.spawn_system_task(function, name=name)
        return
    task = asyncio.ensure_future(function())
    assert isinstance(task, asyncio.Task), "function is a coroutine function"
    task.set_name(name)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
