"""`durable-streams append`."""

from __future__ import annotations

import uuid

import anyio
import click

from .. import IdempotentProducer
from . import output, standard_input
from .failures import CONFLICT, USAGE, CommandError
from .help import Command
from .target import Target, is_json, with_target

NOTHING = "there is nothing to append: the data is empty"


@click.command(
    cls=Command,
    short_help="Append a message, or many.",
    examples=[
        'durable-streams append http://localhost:4437/v1/stream/chat \'{"text": "hi"}\'',
        "tail -f app.log | durable-streams append http://localhost:4437/v1/stream/log",
        "tail -f events.jsonl | durable-streams append http://localhost:4437/v1/stream/events --json",
    ],
)
@with_target
@click.argument("data", metavar="[DATA|-]", default="-")
@click.option("json", "--json", is_flag=True, help="Take JSON: from standard input, one message per line.")
@click.option("--content-type", metavar="TYPE", help="Of the data; the stream's if left out.")
@click.option("--seq", metavar="SEQ", help="Refused unless it sorts after the last one, byte by byte.")
def append(target: Target, *, data: str, json: bool, content_type: str | None, seq: str | None) -> None:
    """Append DATA, or standard input.

    DATA is one message. So is standard input on a JSON stream; with --json each of its lines is. Otherwise standard
    input is sent while it comes. What comes is sent in batches, in order and exactly once, whatever the network does.
    """
    if json and content_type is not None:
        raise click.UsageError("--json and --content-type exclude each other.")
    chosen = "application/json" if json else content_type
    if data != "-":
        anyio.run(_append_one, target, standard_input.text_or_stdin(data), chosen, seq)
    elif not json:
        anyio.run(_append_input, target, chosen, seq)
    elif seq is None:
        anyio.run(_append_lines, target)
    else:
        raise click.UsageError("--seq is for a single message; the lines of --json are numbered anyway.")


async def _append_one(target: Target, body: bytes, content_type: str | None, seq: str | None) -> None:
    if not body:
        raise CommandError(NOTHING, USAGE)
    # Not in `async with`: a single message needs no task that gathers others.
    handle = target.handle()
    try:
        result = await handle.append(body, seq=seq, content_type=content_type, validate_json=True)
    finally:
        await handle.aclose()
    output.facts({"offset": result.next_offset})


async def _append_input(target: Target, content_type: str | None, seq: str | None) -> None:
    async with target.handle() as handle:
        if content_type is None:
            content_type = (await handle.connect()).content_type
        if seq is not None or is_json(content_type):
            await _append_one(target, standard_input.text_or_stdin("-"), content_type, seq)
            return
        async with handle.writable(content_type=content_type) as sink:
            async for piece in standard_input.pieces():
                await sink.write(piece)
            offset = (await sink.producer.flush()).offset
    if offset is None:
        raise CommandError(NOTHING, USAGE)
    output.facts({"offset": offset})


async def _append_lines(target: Target) -> None:
    count = number = 0
    problem: str | None = None
    async with target.handle() as handle:
        found = await handle.connect()
        if not is_json(found.content_type):
            raise CommandError(
                f"append {handle.url}: --json needs a JSON stream, and this one is {found.content_type}; "
                "append to it without --json",
                CONFLICT,
            )
        async with IdempotentProducer(handle, f"durable-streams-cli-{uuid.uuid4()}") as producer:
            async for line in standard_input.lines():
                number += 1
                if not line.strip():
                    continue
                problem = standard_input.json_problem(line)
                if problem is not None:
                    break
                await producer.append(line)
                count += 1
            result = await producer.flush()
    if problem is not None:
        raise CommandError(f"line {number} is not JSON: {problem}; what comes before it is stored", USAGE)
    output.facts({"messages": count, "offset": result.offset})
