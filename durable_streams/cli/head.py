"""`durable-streams head`."""

from __future__ import annotations

import anyio
import click

from . import output
from .failures import MISSING, CommandError
from .help import Command
from .target import Target, with_target


@click.command(
    cls=Command,
    short_help="Show a stream's tail, content type and lifetime.",
    examples=[
        "durable-streams head http://localhost:4437/v1/stream/chat",
    ],
)
@with_target
def head(target: Target) -> None:
    """Show what the server says of a stream: its tail, content type, lifetime, and whether it is closed."""

    async def run() -> None:
        async with target.handle() as handle:
            found = await handle.head()
        if not found.exists:
            raise CommandError(
                f"head {target.url}: there is no stream; create it: durable-streams create {target.url}", MISSING
            )
        output.facts(
            {
                "offset": found.offset,
                "content_type": found.content_type,
                "closed": found.stream_closed,
                "ttl_seconds": found.ttl_seconds,
                "expires_at": found.expires_at,
                "etag": found.etag,
                "cache_control": found.cache_control,
            }
        )

    anyio.run(run)
