"""Programs that tests start as child processes: `python -m tests.client.children NAME ARGUMENTS...`."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import anyio

from durable_streams import Checkpoint, DurableStream, stream


async def follow(url: str, live: str, journal: str) -> None:
    """Read a stream into a journal, and print a line after each batch.

    A line of the journal holds the items of a batch and the position after it: both are written or neither is. What a
    kill has left of a last line is cut off on starting; reading goes on at the position of the last whole line.
    """
    path = Path(journal)
    text = path.read_bytes() if path.exists() else b""
    whole = text[: text.rfind(b"\n") + 1]
    lines = whole.splitlines()
    position = Checkpoint.from_dict(json.loads(lines[-1])["checkpoint"]) if lines else None
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(len(whole))
        file.seek(len(whole))
        options: Any = {"live": {"False": False, "True": True}.get(live, live)}
        async with stream(url, offset=position, max_page_bytes=1, **options) as response:
            async for batch in response.iter_batches("json"):
                numbers = [item["n"] for item in batch.items]
                line = json.dumps({"items": numbers, "checkpoint": batch.checkpoint.to_dict()})
                os.write(file.fileno(), line.encode() + b"\n")
                # Long lines soon fill the pipe: nobody gets far ahead of the one who watches.
                print(str(len(numbers)).ljust(8000), flush=True)


def peak() -> int:
    """Most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def read(url: str, how: str) -> None:
    """Read a stream to its end, and print its size and how much the memory grew, in bytes."""
    # A first read loads what is loaded once.
    async with stream(url, live=False, max_page_bytes=1 << 10) as response:
        await anext(response.iter_bytes())
    before, size = peak(), 0
    async with stream(url, live=False, max_page_bytes=1 << 20) as response:
        if how == "items":
            async for item in response.iter_json():
                size += len(item)
        elif how == "subscribe":

            async def count(batch: Any) -> None:
                nonlocal size
                size += len(batch.data)

            await response.subscribe_bytes(count)
        else:
            async for piece in response.iter_bytes():
                size += len(piece)
    print(size, peak() - before)


async def write(url: str, size: str) -> None:
    """Append a body of this size while it is produced, and print how much the memory grew, in bytes."""

    def pieces(total: int) -> Any:
        for _ in range(total >> 16):
            yield b"x" * (1 << 16)

    async with DurableStream(url) as handle:
        await handle.create()
        await handle.append_stream(pieces(1 << 17))
        before = peak()
        await handle.append_stream(pieces(int(size)))
    print(size, peak() - before)


if __name__ == "__main__":
    name, backend, *arguments = sys.argv[1:]
    anyio.run({"follow": follow, "read": read, "write": write}[name], *arguments, backend=backend)
