"""`durable-streams export`."""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress

import click

from ..server import Transfer, export_stream, format_offset
from . import output
from .failures import CommandError
from .help import Command
from .store_file import store_argument


@click.command(
    cls=Command,
    short_help="Write a stream of a store to a file.",
    examples=[
        "durable-streams export streams.db /v1/stream/orders --output orders.jsonl",
        "durable-streams export streams.db /v1/stream/orders | gzip > orders.jsonl.gz",
        "durable-streams export streams.db /v1/stream/orders | jq -r '.messages[]?'",
    ],
)
@store_argument
@click.argument("stream", metavar="PATH")
@click.option("-o", "--output", "file", metavar="FILE", default="-", help='Where to; "-" is standard output.')
def export(store: str, stream: str, *, file: str) -> None:
    """Write a stream with its offsets, producers and configuration, as lines of JSON.

    PATH is the stream's full path, as in its URL. A server may have the store open. What a fork inherits is written,
    too. The last line has a checksum of all others; `durable-streams import` takes the file.
    """
    if file == "-":
        export_stream(store, stream, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    output.facts(facts(_to_file(store, stream, file)))


def _to_file(store: str, stream: str, file: str) -> Transfer:
    """Write an export to a file, which is there only when it is whole."""
    part = f"{file}.part-{secrets.token_hex(4)}"
    try:
        with open(part, "xb") as target:
            done = export_stream(store, stream, target)
            target.flush()
            os.fsync(target.fileno())
        os.replace(part, file)
    except OSError as error:
        raise CommandError(f"{file}: cannot be written: {error.strerror}") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)
    return done


def facts(done: Transfer) -> dict[str, object]:
    """What to print of a stream that was exported or imported."""
    return {
        "path": done.path,
        "offset": format_offset(done.tail),
        "closed": done.closed,
        "appends": done.appends,
        "producers": done.producers,
    }
