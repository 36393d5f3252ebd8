"""`durable-streams close`."""

from __future__ import annotations

import anyio
import click

from . import output, standard_input
from .help import Command
from .target import Target, with_target


@click.command(
    cls=Command,
    short_help="Close a stream for good.",
    examples=[
        'durable-streams close http://localhost:4437/v1/stream/chat \'{"text": "bye"}\'',
    ],
)
@with_target
@click.argument("data", metavar="[DATA|-]", required=False)
@click.option("--content-type", metavar="TYPE", help="Of DATA; the stream's if left out.")
def close(target: Target, *, data: str | None, content_type: str | None) -> None:
    """Close a stream: readers see its end, and nothing can be appended ever again. It cannot be undone.

    DATA, or standard input if it is -, becomes the last message in the same step.
    """

    async def run() -> None:
        async with target.handle() as handle:
            body = None if data is None else standard_input.text_or_stdin(data)
            result = await handle.close_stream(body, content_type=content_type)
        output.facts({"final_offset": result.final_offset})

    anyio.run(run)
