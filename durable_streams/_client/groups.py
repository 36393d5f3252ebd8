"""Leaving a task group of ours without putting anything around what comes out."""

from __future__ import annotations

from typing import Any


async def leave(task_group: Any) -> None:
    """Leave a task group that was entered by hand, waiting for its tasks.

    It is left without the exception of the block around it, which so goes on bare, not wrapped in an ExceptionGroup.
    Our own tasks never raise into it; but trio raises KeyboardInterrupt in whichever task runs at that moment. That
    comes out bare as well.
    """
    try:
        await task_group.__aexit__(None, None, None)
    except BaseExceptionGroup as group:
        interrupts, others = group.split(KeyboardInterrupt)
        if interrupts is None or others is not None:
            raise
        raise KeyboardInterrupt from group
