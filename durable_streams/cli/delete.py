"""`durable-streams delete`."""

from __future__ import annotations

import anyio
import click

from .help import Command
from .target import Target, with_target


@click.command(
    cls=Command,
    short_help="Delete a stream.",
    examples=[
        "durable-streams delete http://localhost:4437/v1/stream/chat",
    ],
)
@with_target
def delete(target: Target) -> None:
    """Delete a stream and its data. Prints nothing."""

    async def run() -> None:
        async with target.handle() as handle:
            await handle.delete()

    anyio.run(run)
