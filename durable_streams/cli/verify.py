"""`durable-streams verify`."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import click

from ..server import Verification, verify_store
from . import output
from .failures import CommandError
from .help import Command
from .store_file import store_argument


@click.command(
    cls=Command,
    short_help="Check a store for damage.",
    examples=[
        "durable-streams verify /backups/streams.db",
        "durable-streams verify sqlite:streams.db | jq -r .where",
    ],
)
@store_argument
@click.option(
    "--max-findings",
    metavar="N",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Stop after so many.",
)
def verify(store: str, *, max_findings: int) -> None:
    """Check every page of a store, and every stream, row of data, producer, fork and subscription in it.

    Prints what is wrong, one finding a line, and ends with exit code 1 then; if all is well, what it has seen. Nothing
    is changed. A server may have the store open; for a large one verify a backup instead.
    """
    seen = check(store, max_findings)
    output.facts(
        {
            "ok": seen.ok,
            "streams": seen.streams,
            "blocks": seen.blocks,
            "bytes": seen.data_bytes,
            "producers": seen.producers,
            "subscriptions": seen.subscriptions,
            "without_checksum": seen.blocks_without_checksum or None,
        }
    )


def check(store: str, max_findings: int = 1000) -> Verification:
    """Verify a store and print what is wrong.

    Raises:
        CommandError: if something is.
    """
    seen = _verify_beside(store, max_findings)
    for finding in seen.findings:
        output.line({"where": finding.where, "problem": finding.problem}, _in_words)
    if not seen.ok:
        count = len(seen.findings)
        many = f"{count} or more things are" if not seen.complete else f"{count} things are" if count > 1 else "1 is"
        raise CommandError(f"{store}: {many} wrong; keep the file, and serve a backup that is in order")
    return seen


def _verify_beside(store: str, max_findings: int) -> Verification:
    """Verify a store in a thread that does not keep the process: SQLite hears of Ctrl-C when it has seen all pages."""
    done: Future[Verification] = Future()

    def work() -> None:
        try:
            done.set_result(verify_store(store, max_findings=max_findings))
        except BaseException as error:  # raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=work, name="durable-streams verify", daemon=True).start()
    return done.result()


def _in_words(line: dict[str, Any]) -> str:
    return f"{line['where']}: {line['problem']}"
