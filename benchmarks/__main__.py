"""The command: `python -m benchmarks [row...] [--runs 5] [--list]`."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator

from tests.interop import node

from . import catch_up, produce, s2, s2_codec, serve, small, start_up
from ._harness import Bench, Case, measure, table

Row = Callable[[Bench], Iterator[Case]]
#: By name; a name given on the command line chooses all rows that begin with it.
ROWS: dict[str, Row] = {
    "catch_up_bytes": catch_up.read_bytes,
    "catch_up_json_items": catch_up.read_json_items,
    "catch_up_json_batches": catch_up.read_json_batches,
    "produce_bytes": produce.small_bytes,
    "produce_json": produce.small_json,
    "produce_large": produce.large_bytes,
    "append_one": small.append_one,
    "deliver_one": small.deliver_one,
    "presets": small.presets,
    "own_cost": small.own_cost,
    "memory": small.memory,
    "server_appends": serve.appends_memory,
    "server_appends_durable": serve.appends_durable,
    "server_get": serve.get_large,
    "server_get_json": serve.get_json,
    "server_delivery": serve.delivery,
    "server_sse": serve.sse,
    "server_after_readers": serve.after_readers,
    "server_idle_readers": serve.idle_readers,
    "server_stalled_readers": serve.stalled_readers,
    "server_scale": serve.scale,
    "s2_encode": s2_codec.encode,
    "s2_decode": s2_codec.decode,
    "s2_append": s2.append,
    "s2_read": s2.read,
    "s2_produce": s2.produce,
    "s2_lone": s2.lone,
    "import": start_up.import_time,
}


def chosen(names: list[str]) -> list[Row]:
    """The rows that the command line asks for, in their own order; all if it names none."""
    for name in names:
        if not any(row.startswith(name) for row in ROWS):
            raise SystemExit(f"no row begins with {name!r}; there are: {', '.join(ROWS)}")
    rows = {key: row for key, row in ROWS.items() if not names or any(key.startswith(name) for name in names)}
    if sys.platform != "linux":  # they look at processes in /proc, and wait with epoll
        rows = {key: row for key, row in rows.items() if not key.startswith("server_")}
    return list(rows.values())


def main() -> None:
    """Measure the chosen rows and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed beside the peers', as ratios.")
    parser.add_argument("rows", nargs="*", metavar="row", help="names, or beginnings of names; all without")
    parser.add_argument(
        "--runs", type=int, default=5, help="samples of each contender, at least 5 (default %(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    options = parser.parse_args()
    if options.list:
        for name, row in ROWS.items():
            print(f"{name:24} {row.__doc__}")
        return
    if options.runs < 5:
        parser.error("--runs must be at least 5: medians of fewer samples say little")
    results = []
    with Bench() as bench:
        for row in chosen(options.rows):
            for case in row(bench):
                print(f"measuring {case.work} ({case.server or 'no server'})", file=sys.stderr)
                results.append(measure(case, options.runs))
    versions = ", ".join(f"{name} {version}" for name, version in node.versions().items() if name != "vitest")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores; {versions}; medians of {options.runs}\n")
    print(table(results))
    for remark in bench.remarks:
        print(f"\n{remark}")


if __name__ == "__main__":
    main()
