"""`durable-streams s2 metrics`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import click

from ..s2 import S2, Accumulation, Gauge, Interval, Metric
from . import output
from .help import Command
from .s2_target import Service, run, with_service

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 60


class _Moment(click.ParamType[int]):
    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value.isascii() and value.isdigit():
            return int(value)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no moment: give seconds since the epoch, or 2026-11-21T08:00Z", param, ctx)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


@click.command(
    cls=Command,
    short_help="Show what was used.",
    examples=[
        "durable-streams s2 metrics active-basins --start 2026-11-01 --end 2026-11-21",
        "durable-streams s2 metrics append-ops my-basin --start 2026-11-20 --end 2026-11-21 --interval hour",
        "durable-streams s2 metrics storage my-basin/logs/web --start 2026-11-20",
    ],
)
@with_service
@click.argument("set_", metavar="SET")
@click.argument("target", metavar="[BASIN[/STREAM]]", required=False)
@click.option("--start", metavar="TIME", type=_Moment(), help="From then on: a date, or seconds since the epoch.")
@click.option("--end", metavar="TIME", type=_Moment(), help="Until then.")
@click.option("--interval", type=click.Choice(["minute", "hour", "day"]), help="Sum over such intervals.")
def metrics(
    service: Service, /, *, set_: str, target: str | None, start: int | None, end: int | None, interval: Interval | None
) -> None:
    """Show measurements of the account, of a basin or of a stream. s2 lite has none.

    SET is, for the account, active-basins, account-ops or estimated-billable-usage; for a basin storage, append-ops,
    read-ops, append-throughput, read-throughput or basin-ops; for a stream storage. On a terminal, series are drawn.
    """
    basin, _, stream = (target or "").removeprefix("s2://").partition("/")
    times: Any = {"start": start, "end": end, "interval": interval}

    async def work(client: S2) -> None:
        if stream:
            found = await client.metrics.stream(basin, stream, set_, **times)
        elif basin:
            found = await client.metrics.basin(basin, set_, **times)
        else:
            found = await client.metrics.account(set_, **times)
        for metric in found:
            output.write(drawn(metric).encode() if sys.stdout.isatty() else _line(metric))

    run(service, work)


def _line(metric: Metric) -> bytes:
    return output.json_lines([{"kind": type(metric).__name__.lower(), **asdict(metric)}])


def drawn(metric: Metric) -> str:
    """A measurement for a person: series as a row of bars with their extremes."""
    if isinstance(metric, Accumulation | Gauge):
        values = [value for _, value in metric.values]
        if not values:
            return f"{metric.name}: nothing in this time\n"
        first, last = (datetime.fromtimestamp(metric.values[n][0], UTC).isoformat("T", "minutes") for n in (0, -1))
        words = f"{metric.name}, {metric.unit}: least {min(values):g}, most {max(values):g}, {first} to {last}"
        return f"{words}\n{bars(values)}\n"
    return _line(metric).decode()


def bars(values: Sequence[float], width: int = _WIDTH) -> str:
    """The values as a row of bars; of more than fit, the largest of each neighbourhood."""
    groups = min(len(values), width)
    edges = [n * len(values) // groups for n in range(groups + 1)]
    peaks = [max(values[start:end]) for start, end in pairwise(edges)]
    top = max(*peaks, 0.0)
    steps = len(_BARS) - 1
    return "".join(_BARS[round(max(peak, 0.0) / top * steps) if top else 0] for peak in peaks)
