"""`durable-streams read`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import anyio
import click

from .. import BatchIterator, BytesBatch, Checkpoint, JsonBatch, TextBatch, stream
from . import output
from .checkpoint_file import CheckpointFile
from .help import Command
from .target import Target, is_json, with_target

Form = Literal["json", "text", "bytes"]
Live = Literal["long-poll", "sse"]


@click.command(
    cls=Command,
    short_help="Read a stream, and follow it.",
    examples=[
        "durable-streams read http://localhost:4437/v1/stream/chat",
        "durable-streams read http://localhost:4437/v1/stream/chat --follow | jq .text",
        "durable-streams read http://localhost:4437/v1/stream/chat --follow --checkpoint chat.position",
    ],
)
@with_target
@click.option("offset", "--from", metavar="OFFSET", help='Where to begin: an offset, or "now". The start if left out.')
@click.option("--follow", "-f", is_flag=True, help="Go on with what is appended, until the stream is closed.")
@click.option("--live", metavar="MODE", type=click.Choice(["long-poll", "sse"]), help="Follow by long-poll or sse.")
@click.option("form", "--json", flag_value="json", help="One JSON value per line, whatever the content type says.")
@click.option("form", "--text", flag_value="text", help="UTF-8 text, checked.")
@click.option("form", "--bytes", flag_value="bytes", help="The data as it is.")
@click.option(
    "file",
    "--checkpoint",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Save the position there after each batch, and begin at the one saved before.",
)
def read(
    target: Target, *, offset: str | None, follow: bool, live: Live | None, form: Form | None, file: Path | None
) -> None:
    """Print a stream: JSON streams as one value per line, others as they are.

    Without --follow it ends at the end of the stream. With --checkpoint it can be stopped, or killed, at any time, and
    the next run goes on: nothing is left out, and at most the last batch is printed again.
    """
    anyio.run(_read_while_wanted, target, offset, live or follow, form, file)


async def _read_while_wanted(
    target: Target, offset: str | None, live: bool | Live, form: Form | None, file: Path | None
) -> None:
    """Read until the end, or until nobody reads what is printed.

    Raises:
        BrokenPipeError: nobody reads what is printed.
    """
    failure: Exception | None = None

    async def watch() -> None:
        nonlocal failure
        await output.wait_unwanted()
        failure = BrokenPipeError()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            await _read(target, offset, live, form, file)
        except Exception as error:  # Kept for later: leaving the group, it would be wrapped in an ExceptionGroup.
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _read(target: Target, offset: str | None, live: bool | Live, form: Form | None, file: Path | None) -> None:
    saved = None if file is None else CheckpointFile(file, target.url)
    start = (saved and saved.load()) or offset
    if form != "text" and isinstance(start, Checkpoint):
        output.write(start.text_tail)  # half a character, which an earlier run with --text had to keep back
    async with stream(
        target.url,
        offset=start,
        live=live,
        json=True if form == "json" else None,
        headers=target.headers,
        backoff_options=target.backoff,
    ) as response:
        json = form == "json" or is_json(response.content_type)
        batches: BatchIterator[JsonBatch[Any]] | BatchIterator[TextBatch] | BatchIterator[BytesBatch]
        if form == "text":
            batches = response.iter_batches(as_="text")
        elif json and form != "bytes":
            batches = response.iter_batches(as_="json")
        else:
            batches = response.iter_batches(as_="bytes")
        async for batch in batches:
            output.write(_printed(batch, json=json))
            if saved is not None:
                saved.save(batch.checkpoint)


def _printed(batch: JsonBatch[Any] | TextBatch | BytesBatch, *, json: bool) -> bytes:
    if isinstance(batch, JsonBatch):
        return output.json_lines(batch.items)
    data = batch.text.encode() if isinstance(batch, TextBatch) else batch.data
    return data + b"\n" if json and data else data  # one array of messages per line
