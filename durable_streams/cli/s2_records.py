"""`durable-streams s2 append`, `read`, `tail`, `fence` and `trim`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click

from ..s2 import S2, AppendAck, AppendRecord, Gap, Producer, ReadSession, RecordTicket, SessionTransport
from . import output, s2_lines, standard_input
from .failures import USAGE, CommandError
from .help import Command
from .s2_target import Service, run, stream_of, with_service

#: Seconds between two lines of progress on a terminal.
_EVERY = 0.5
_TRANSPORTS = click.Choice(["auto", "s2s", "http"])
_NUMBER = click.IntRange(min=0, max=2**64 - 1)


@click.command(
    cls=Command,
    short_help="Append a record, or many.",
    examples=[
        "durable-streams s2 append my-basin/chat hello",
        "tail -f app.log | durable-streams s2 append my-basin/logs/app",
        "durable-streams s2 read my-basin/one | durable-streams s2 append my-basin/two --json",
    ],
)
@with_service
@click.argument("target", metavar="BASIN/STREAM")
@click.argument("data", metavar="[DATA|-]", default="-")
@click.option("--json", is_flag=True, help="Lines are records as `s2 read` prints them, with headers and timestamp.")
@click.option("--match-seq-num", metavar="N", type=_NUMBER, help="Refused unless the first record gets this number.")
@click.option("--fencing-token", metavar="TOKEN", help='Refused unless the stream has this token; "" is none.')
@click.option("--no-duplicates", is_flag=True, help="Give up rather than append again what may have been stored.")
def append(
    service: Service,
    /,
    *,
    target: str,
    data: str,
    json: bool,
    match_seq_num: int | None,
    fencing_token: str | None,
    no_duplicates: bool,
) -> None:
    """Append DATA as one record, or each line of standard input as one.

    Lines are sent in batches while they come, in order. On a terminal, progress and rate are shown.
    """

    async def work(client: S2) -> None:
        stream = stream_of(client, target)
        conditions: Any = {"match_seq_num": match_seq_num, "fencing_token": fencing_token}
        if data == "-":
            async with stream.producer(**conditions) as producer:
                await _append_lines(producer, json)
        else:
            line = standard_input.text_or_stdin(data)
            _print_ack(1, await stream.append(_parse(line, 1) if json else AppendRecord(line), **conditions))

    run(service, work, duplicates=not no_duplicates)


async def _append_lines(producer: Producer, json: bool) -> None:
    progress = _Progress("records")
    count = number = 0
    first: RecordTicket | None = None
    last: RecordTicket | None = None
    problem: CommandError | None = None
    async for line in standard_input.lines():
        number += 1
        if json and not line.strip():
            continue
        try:
            record = _parse(line, number) if json else AppendRecord(line)
        except CommandError as error:
            problem = error
            break
        last = await producer.submit(record)
        first = first or last
        count += 1
        progress.show(count, lambda: f"{producer.session.statistics().pending_batches:,} batches pending")
    await producer.flush()
    progress.end(count)
    if problem is not None:
        raise problem
    if first is None or last is None:
        raise CommandError("there is nothing to append: standard input is empty", USAGE)
    output.facts({"records": count, "start": (await first).seq_num, "end": (await last).seq_num + 1})


def _parse(line: bytes, number: int) -> AppendRecord:
    try:
        return s2_lines.parse(line)
    except ValueError as error:
        raise CommandError(f"line {number} is no record: {error}; what comes before it is stored", USAGE) from None


@click.command(
    cls=Command,
    short_help="Read a stream, and follow it.",
    examples=[
        "durable-streams s2 read my-basin/chat",
        "durable-streams s2 read my-basin/chat --tail-offset 10 --follow | jq .body",
        "durable-streams s2 read my-basin/logs/app --raw > app.log",
    ],
)
@with_service
@click.argument("target", metavar="BASIN/STREAM")
@click.option("--from", "seq_num", metavar="N", type=_NUMBER, help="Begin at this number; 0 if nothing is said.")
@click.option("--timestamp", metavar="MS", type=_NUMBER, help="Begin at the first record of this time or later.")
@click.option("--tail-offset", metavar="N", type=_NUMBER, help="Begin so many records before the tail.")
@click.option("--count", metavar="N", type=_NUMBER, help="Read at most so many records.")
@click.option("--bytes", metavar="N", type=_NUMBER, help="Read at most so many metered bytes.")
@click.option("--until", metavar="MS", type=_NUMBER, help="End before the first record of this time or later.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is appended.")
@click.option("--clamp", is_flag=True, help="Begin at the tail if the start lies beyond it.")
@click.option("--no-commands", is_flag=True, help="Leave out fence and trim records.")
@click.option("--raw", is_flag=True, help="Only the bodies, each with a line end.")
@click.option("--transport", type=_TRANSPORTS, default="auto", help="s2s: HTTP/2. http: through any proxy.")
def read(
    service: Service,
    /,
    *,
    target: str,
    follow: bool,
    no_commands: bool,
    raw: bool,
    transport: SessionTransport,
    **options: Any,
) -> None:
    """Print records as JSON lines, from the first one on unless told otherwise.

    Without --follow it ends at the tail.
    """

    async def work(client: S2) -> None:
        stream = stream_of(client, target, transport=transport)
        async with stream.read_session(
            **options,
            wait=None if follow else 0,
            ignore_command_records=no_commands,
            unlimited_retries=follow,
            on_gap=_say_gap,
        ) as session:
            await _print_records(session, raw)

    run(service, work, prints=True)


@click.command(
    cls=Command,
    short_help="Show a stream's tail, or its last records.",
    examples=["durable-streams s2 tail my-basin/chat", "durable-streams s2 tail my-basin/chat -n 10 --follow"],
)
@with_service
@click.argument("target", metavar="BASIN/STREAM")
@click.option("-n", "lines", metavar="N", type=_NUMBER, help="Print the last N records.")
@click.option("--follow", "-f", is_flag=True, help="Print what is appended.")
@click.option("--raw", is_flag=True, help="Only the bodies, each with a line end.")
def tail(service: Service, /, *, target: str, lines: int | None, follow: bool, raw: bool) -> None:
    """Show the number that the next record gets and the time of the last one; with -n or --follow, records."""

    async def work(client: S2) -> None:
        stream = stream_of(client, target)
        if lines is None and not follow:
            position = await stream.check_tail()
            output.facts({"seq_num": position.seq_num, "timestamp": position.timestamp})
            return
        wait = None if follow else 0
        async with stream.read_session(tail_offset=lines or 0, wait=wait, unlimited_retries=follow) as session:
            await _print_records(session, raw)

    run(service, work, prints=True)


@click.command(
    cls=Command,
    short_help="Set a stream's fencing token.",
    examples=["durable-streams s2 fence my-basin/chat writer-2 --old writer-1"],
)
@with_service
@click.argument("target", metavar="BASIN/STREAM")
@click.argument("token", metavar="TOKEN")
@click.option("--old", metavar="TOKEN", help='The token it has now, else nothing happens; "" is none.')
def fence(service: Service, /, *, target: str, token: str, old: str | None) -> None:
    """Set the fencing token: writers that name another one are refused from the next batch on. "" takes it off."""

    async def work(client: S2) -> None:
        _print_ack(1, await stream_of(client, target).append(AppendRecord.fence(token), fencing_token=old))

    run(service, work)


@click.command(
    cls=Command,
    short_help="Remove a stream's first records.",
    examples=["durable-streams s2 trim my-basin/chat 1000"],
)
@with_service
@click.argument("target", metavar="BASIN/STREAM")
@click.argument("seq_num", metavar="N", type=_NUMBER)
@click.option("--fencing-token", metavar="TOKEN", help='Refused unless the stream has this token; "" is none.')
def trim(service: Service, /, *, target: str, seq_num: int, fencing_token: str | None) -> None:
    """Make record N the first one. What comes before it is removed, for readers as well, some time later."""

    async def work(client: S2) -> None:
        _print_ack(1, await stream_of(client, target).append(AppendRecord.trim(seq_num), fencing_token=fencing_token))

    run(service, work)


def _print_ack(count: int, ack: AppendAck) -> None:
    output.facts({"records": count, "start": ack.start.seq_num, "end": ack.end.seq_num, "tail": ack.tail.seq_num})


async def _print_records(session: ReadSession, raw: bool) -> None:
    async for batch in session:
        if raw:
            output.write(b"".join(record.body + b"\n" for record in batch.records))
        else:
            output.write(s2_lines.printed(batch.records))


def _say_gap(gap: Gap) -> None:
    output.say(f"durable-streams: records {gap.expected} to {gap.found - 1} are no longer kept")


class _Progress:
    """A line on a terminal that is overwritten: how many, how fast, and what is still under way."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._shown = sys.stderr.isatty()
        self._began = self._last = time.monotonic()

    def show(self, count: int, pending: Callable[[], str]) -> None:
        """Show how far it is, now and then."""
        if not self._shown or count % 256:
            return
        now = time.monotonic()
        if now - self._last >= _EVERY:
            self._last = now
            print(f"\r{self._line(count, now)}, {pending()}\x1b[K", end="", file=sys.stderr, flush=True)

    def end(self, count: int) -> None:
        """Leave the last word standing."""
        if self._shown:
            print(f"\r{self._line(count, time.monotonic())}\x1b[K", file=sys.stderr)

    def _line(self, count: int, now: float) -> str:
        return f"{count:,} {self._unit}, {count / max(now - self._began, 1e-9):,.0f} per second"
