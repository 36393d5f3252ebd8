"""A writer that tests kill: `python -m tests.producer.child BACKEND URL RECIPE RUN [EPOCH_FILE]`.

Appends `{"run": RUN, "n": 0}`, `{"run": RUN, "n": 1}`, ... until it is killed, and prints how many are acknowledged
after each flush.
"""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path
from typing import Any

import anyio

from durable_streams import IdempotentProducer


def next_epoch(path: Path) -> int:
    """Raise the stored epoch, on disk before it is used."""
    epoch = int(path.read_text()) + 1 if path.exists() else 0
    draft = path.with_suffix(".new")
    with draft.open("w") as file:
        file.write(str(epoch))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return epoch


async def write(url: str, recipe: str, run: str, epoch_file: str = "") -> None:
    options: dict[str, Any] = {"auto_claim": True} if recipe == "claim" else {"epoch": next_epoch(Path(epoch_file))}
    async with IdempotentProducer(url, "writer", max_batch_items=7, linger=0, **options) as producer:
        for number in count():
            await producer.append_json({"run": int(run), "n": number})
            if number % 50 == 49:
                await producer.flush()
                # Long lines soon fill the pipe: nobody gets far ahead of the one who watches.
                print(str(number + 1).ljust(4000), flush=True)


if __name__ == "__main__":
    anyio.run(write, *sys.argv[2:], backend=sys.argv[1])
