"""The next piece of a body that a user's iterable makes."""

from __future__ import annotations

from collections.abc import AsyncIterator


async def next_piece(iterator: AsyncIterator[bytes]) -> bytes | None:
    """The next piece, None at the end.

    Raises:
        TypeError: it is not bytes.
        Exception: whatever the iterable raises.
    """
    try:
        piece = await anext(iterator)
    except StopAsyncIteration:
        return None
    if not isinstance(piece, bytes):
        raise TypeError(f"the body must yield bytes, got {type(piece).__name__}")
    return piece


async def close_iterator(iterator: AsyncIterator[bytes]) -> None:
    """Close an iterator that can be closed, such as an async generator."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()
