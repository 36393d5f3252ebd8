"""`durable-streams demo`."""

from __future__ import annotations

import sys
import time

import anyio
import click

from . import output
from .demo_run import Demo, Report
from .failures import FAILED, CommandError
from .help import Command


@click.command(
    cls=Command,
    short_help="Write, kill, resume, and prove that nothing was lost.",
    examples=[
        "durable-streams demo --events 20000 --seed 7",
    ],
)
@click.option("--events", type=click.IntRange(min=2), default=1_000_000, show_default=True, help="Events to write.")
@click.option("--seed", type=int, default=None, help="Determines events, faults and the kill; random if left out.")
@click.pass_context
def demo(context: click.Context, *, events: int, seed: int | None) -> None:
    """Show what durable streams are for.

    Starts a server on a free port and writes events to it over a bad network: connections are refused and reset,
    answers cut short, servers busy. A second process follows them live, is killed in mid-stream, and resumes from the
    position it has saved. A second writer takes over from the first, which is refused from then on. Then the reader's
    database is compared with what was written.

    The last line is the proof; the exit code is 1 if it fails.
    """
    try:
        from .demo_display import Bars, Lines
    except ModuleNotFoundError as error:
        raise CommandError(f"the demo needs {error.name}: pip install 'durable-streams-anyio[cli]'") from error
    seed = time.time_ns() % 1_000_000 if seed is None else seed
    began = time.perf_counter()
    with (Bars if sys.stderr.isatty() else Lines)(events) as progress:
        progress.say(f"{events:,} events, seed {seed}")
        try:
            report = anyio.run(Demo(events, seed, progress).run)
        except ModuleNotFoundError as error:
            raise CommandError(str(error)) from error
    output.write("".join(f"{line}\n" for line in summary(report, time.perf_counter() - began)).encode())
    if report.problem is not None:
        context.exit(FAILED)


def summary(report: Report, seconds: float) -> list[str]:
    """The last words: rates, and the proof."""
    written, read = report.events / report.write_seconds, report.events / report.read_seconds
    stored_before = f"the server recognised {report.duplicates} as stored before"
    lines = [
        f"written:   {written:,.0f} events/s in {report.requests} requests; {stored_before}",
        f"delivered: {read:,.0f} events/s, the start of two reader processes included",
        f"fencing:   {report.refused} event of the first writer refused, after the second had taken over",
        f"total:     {seconds:.1f} s",
    ]
    faults = f"{report.faults} fault{'s' * (report.faults != 1)}"
    kills = f"{report.kills} kill{'s' * (report.kills != 1)}"
    if report.problem is None:
        lines.append(f"proof: {report.events} events, each once and in order, after {faults} and {kills}")
    else:
        lines.append(f"proof failed after {faults} and {kills}: {report.problem}")
    return lines
