"""`durable-streams import`."""

from __future__ import annotations

import sys

import click

from ..server import import_stream
from . import output
from .export import facts
from .failures import CommandError
from .help import Command
from .store_file import store_argument


@click.command(
    "import",
    cls=Command,
    short_help="Put an exported stream into a store.",
    examples=[
        "durable-streams import streams.db orders.jsonl",
        "zcat orders.jsonl.gz | durable-streams import streams.db - --as /v1/stream/orders-2",
    ],
)
@store_argument
@click.argument("file", metavar="FILE")
@click.option("stream", "--as", metavar="PATH", help="The stream's full path there; the one it had if left out.")
def import_command(store: str, file: str, *, stream: str | None) -> None:
    """Put a stream into a store from a file that `durable-streams export` wrote; "-" is standard input.

    No server may have the store open. The file is checked to its last byte, and the stream is there wholly or not at
    all. Readers go on with the offsets they have, and producers with their next sequence number.
    """
    try:
        if file == "-":
            done = import_stream(store, sys.stdin.buffer, stream=stream)
        else:
            with open(file, "rb") as source:
                done = import_stream(store, source, stream=stream)
    except OSError as error:
        raise CommandError(f"{file}: cannot be read: {error.strerror}") from error
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from error
    output.facts(facts(done))
