"""`durable-streams serve`."""

from __future__ import annotations

import logging

import click

from ..server import MemoryStore, Server, SQLiteStore, Store
from . import output
from .failures import CommandError
from .help import Command


@click.command(
    cls=Command,
    short_help="Run a server.",
    examples=[
        "durable-streams serve --port 8080",
        "durable-streams serve --store sqlite:/var/lib/streams.db",
    ],
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4437,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--root", default="/v1/stream", show_default=True, help="Path below which streams live.")
@click.option(
    "--store",
    metavar="memory | sqlite:PATH",
    default="memory",
    show_default=True,
    help="Where streams are kept. What is in memory is gone when the server ends; what is in SQLite is on disk when "
    "it is acknowledged.",
)
@click.option(
    "--long-poll-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="How long a long-poll waits for news.",
)
def serve(host: str, port: int, root: str, store: str, long_poll_timeout: float) -> None:
    """Run a server until Ctrl-C or SIGTERM.

    Once it accepts connections it says so in one line on standard error, which begins with
    "durable-streams: serving" and the URL below which streams live.
    """
    try:
        server = Server(_opened(store), host=host, port=port, root=root, long_poll_timeout=long_poll_timeout)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from error

    # Our own line says what is wrong; without a handler, what uvicorn logs would go to standard error as well.
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())

    def announce() -> None:
        output.say(f"durable-streams: serving {server.url} from {store}; Ctrl-C stops")

    try:
        server.serve_forever(announce)
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{error.strerror or error}; choose another with --port, 0 takes a free one") from error


def _opened(store: str) -> Store:
    kind, _, path = store.partition(":")
    if kind == "memory" and not path:
        return MemoryStore()
    if kind == "sqlite" and path:
        return SQLiteStore(path)
    raise click.BadParameter(f"{store!r} is neither memory nor sqlite:PATH", param_hint="'--store'")
