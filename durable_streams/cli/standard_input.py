"""Standard input: whole, or in pieces or lines while it comes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator

import anyio
import anyio.to_thread

_CHUNK = 1 << 16


def text_or_stdin(data: str) -> bytes:
    """The argument itself, or all of standard input if it is `-`."""
    return sys.stdin.buffer.read() if data == "-" else os.fsencode(data)


async def pieces() -> AsyncIterator[bytes]:
    """Standard input in pieces of some kilobytes, each as soon as it is there."""
    descriptor = sys.stdin.buffer.fileno()
    while piece := await _read(descriptor):
        yield piece


async def lines() -> AsyncIterator[bytes]:
    """The lines of standard input without their ends, each as soon as it is complete."""
    rest: list[bytes] = []
    async for piece in pieces():
        first, *others = piece.split(b"\n")
        rest.append(first)
        for line in others:
            yield b"".join(rest)
            rest = [line]
    if last := b"".join(rest):
        yield last


def json_problem(line: bytes) -> str | None:
    """What is wrong with a line that should be JSON, or None."""
    try:
        json.loads(line)
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


async def _read(descriptor: int) -> bytes:
    """What there is, waiting for it without a thread where the system can: a thread could not be interrupted."""
    try:
        await anyio.wait_readable(descriptor)
    except OSError:  # Files cannot be waited for, and need not be.
        return await anyio.to_thread.run_sync(os.read, descriptor, _CHUNK)
    return os.read(descriptor, _CHUNK)
