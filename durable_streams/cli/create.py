"""`durable-streams create`."""

from __future__ import annotations

import anyio
import click

from . import output, standard_input
from .help import Command
from .target import Target, with_target


@click.command(
    cls=Command,
    short_help="Create a stream.",
    examples=[
        "durable-streams create http://localhost:4437/v1/stream/chat --json",
    ],
)
@with_target
@click.option("--content-type", metavar="TYPE", help="What the stream holds, such as text/plain.")
@click.option("json", "--json", is_flag=True, help="Short for --content-type application/json.")
@click.option("--ttl", metavar="SECONDS", type=click.IntRange(min=0), help="Expire after so long without use.")
@click.option("--expires-at", metavar="TIME", help="Expire then (RFC 3339: 2030-01-31T12:00:00Z).")
@click.option("--data", metavar="TEXT|-", help="First content; - reads standard input.")
@click.option("--closed", is_flag=True, help="Create it closed: --data is all there will ever be.")
def create(
    target: Target,
    *,
    content_type: str | None,
    json: bool,
    ttl: int | None,
    expires_at: str | None,
    data: str | None,
    closed: bool,
) -> None:
    """Create a stream. Succeeds too if it exists with the same configuration.

    A JSON stream keeps messages apart and gives each back as a value; other streams are one row of bytes. In a JSON
    stream an array given with --data makes a message of each of its elements.
    """
    if json and content_type is not None:
        raise click.UsageError("--json and --content-type exclude each other.")
    chosen = "application/json" if json else content_type

    async def run() -> None:
        async with target.handle() as handle:
            result = await handle.create(
                content_type=chosen,
                ttl_seconds=ttl,
                expires_at=expires_at,
                body=None if data is None else standard_input.text_or_stdin(data),
                closed=closed,
            )
        output.facts(
            {
                "created": result.created,
                "offset": result.offset,
                "content_type": result.content_type,
                "closed": result.stream_closed,
            }
        )

    anyio.run(run)
