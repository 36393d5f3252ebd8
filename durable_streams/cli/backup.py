"""`durable-streams backup`."""

from __future__ import annotations

import click

from ..server import backup_store
from . import output
from .help import Command
from .store_file import store_argument
from .verify import check


@click.command(
    cls=Command,
    short_help="Copy a store, also one in use.",
    examples=[
        "durable-streams backup /var/lib/streams.db /backups/streams.db --verify",
    ],
)
@store_argument
@click.argument("copy", metavar="COPY")
@click.option("--overwrite", is_flag=True, help="Replace the copy if there is one.")
@click.option("--verify", is_flag=True, help="Check every page and row of the copy, as the command verify does.")
def backup(store: str, copy: str, *, overwrite: bool, verify: bool) -> None:
    """Copy a store as it is at this moment, also while a server has it open.

    COPY is one file, and a store itself: to restore it, stop the server, and serve the copy. It appears when it is
    whole and on disk.
    """
    done = backup_store(store, copy, overwrite=overwrite)
    if verify:
        check(done.path)
    output.facts({"copy": done.path, "bytes": done.size, "streams": done.streams, "verified": verify or None})
