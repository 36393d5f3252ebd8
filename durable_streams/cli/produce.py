"""`durable-streams produce`."""

from __future__ import annotations

import sys
import time
import uuid

import anyio
import click

from .. import IdempotentProducer
from . import output, standard_input
from .failures import CONFLICT, USAGE, CommandError
from .help import Command
from .target import Target, is_json, with_target

#: Seconds between two lines of progress on a terminal.
_EVERY = 0.5


@click.command(
    cls=Command,
    short_help="Write the lines of standard input exactly once, fast.",
    examples=[
        "seq 1000000 | durable-streams produce http://localhost:4437/v1/stream/numbers --json",
        "tail -f app.log | durable-streams produce http://localhost:4437/v1/stream/log --producer-id app",
    ],
)
@with_target
@click.option(
    "--producer-id",
    metavar="ID",
    help="Name of this writer. With the same name later, it takes over from the earlier one; random if left out.",
)
@click.option("--json", is_flag=True, help="Each line is a JSON message; empty lines are skipped.")
def produce(target: Target, *, producer_id: str | None, json: bool) -> None:
    """Write each line of standard input as one message, exactly once, batched and pipelined.

    Without --json a line is sent with its line end. On a terminal, progress and rate are shown.
    """
    anyio.run(_produce, target, producer_id or f"durable-streams-cli-{uuid.uuid4()}", json)


async def _produce(target: Target, producer_id: str, json: bool) -> None:
    count = number = 0
    progress = _Progress()
    async with target.handle() as handle:
        found = await handle.connect()
        if json != is_json(found.content_type):
            hint = "leave out --json" if json else "use --json"
            raise CommandError(f"produce {handle.url}: the stream is {found.content_type}: {hint}", CONFLICT)
        problem: str | None = None
        async with IdempotentProducer(handle, producer_id, auto_claim=True) as producer:
            async for line in standard_input.lines():
                number += 1
                if json and not line.strip():
                    continue
                if json and (problem := standard_input.json_problem(line)) is not None:
                    break
                await producer.append(line if json else line + b"\n")
                count += 1
                progress.show(count, producer)
            result = await producer.flush()
        progress.end(count)
    if problem is not None:
        raise CommandError(f"line {number} is not JSON: {problem}; what comes before it is stored", USAGE)
    output.facts({"messages": count, "offset": result.offset})


class _Progress:
    """A line on a terminal that is overwritten: messages, rate, and how many the server has still to acknowledge."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._began = self._last = time.monotonic()

    def show(self, count: int, producer: IdempotentProducer) -> None:
        """Show how far it is, now and then."""
        if not self._shown or count % 256:
            return
        now = time.monotonic()
        if now - self._last >= _EVERY:
            self._last = now
            pending = producer.pending_count
            print(f"\r{self._line(count, now)}, {pending:,} pending\x1b[K", end="", file=sys.stderr, flush=True)

    def end(self, count: int) -> None:
        """Leave the last word standing."""
        if self._shown:
            print(f"\r{self._line(count, time.monotonic())}\x1b[K", file=sys.stderr)

    def _line(self, count: int, now: float) -> str:
        rate = count / max(now - self._began, 1e-9)
        return f"{count:,} messages, {rate:,.0f} per second"
