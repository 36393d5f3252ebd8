"""Errors that are raised more than once."""

from __future__ import annotations

from typing import TypeVar

from ..errors import DurableStreamError

E = TypeVar("E", bound=Exception)


def fresh(error: E, **changes: object) -> E:
    """An error to raise in place of one that several callers may meet, each in a task of its own.

    Raising one object again and again makes its traceback longer each time, keeps the frames of all who met it, and
    mixes the tracebacks of different tasks.

    Args:
        error: What happened.
        **changes: Attributes that shall differ.

    Returns:
        An equal `DurableStreamError`, with the cause of the first. Others - a user's callable raised them - may not be
        possible to copy; they come back themselves, without the traceback of the last time.
    """
    if not isinstance(error, DurableStreamError):
        return error.with_traceback(None)
    twin: E = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__, **changes)
    twin.__cause__ = error.__cause__
    if notes := getattr(error, "__notes__", None):
        twin.__notes__ = [*notes]
    return twin
