"""Hearing the signals that end an ASGI server, before the server does what it does on them (server 16).

ASGI tells an application of its end when all answers are given, and live answers are not given until they hear of it.
So an application that is asked to (`end_on_signals`) puts a handler of its own in front of the server's, for as long as
it lives. That works where the server has set its handlers before it starts the application, as uvicorn and granian do,
and in the main thread.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import anyio.lowlevel

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def heard_first(call: Callable[[], None]) -> Iterator[None]:
    """Have a function called on the running event loop at SIGINT and SIGTERM, beside what is done on them anyway.

    Nothing happens outside the main thread, nor for a signal that no Python function handles.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop: Any = anyio.lowlevel.current_token().native_token
    wake = loop.call_soon_threadsafe if hasattr(loop, "call_soon_threadsafe") else loop.run_sync_soon
    former: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the loop has ended
            wake(call)
        former[number](number, frame)

    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler):
            former[number] = handler
            signal.signal(number, handle)
    try:
        yield
    finally:
        for known, handler in former.items():
            if signal.getsignal(known) is handle:
                signal.signal(known, handler)
