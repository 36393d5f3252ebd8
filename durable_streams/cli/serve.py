"""`durable-streams serve`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from .. import DurableStreamError
from ..server import DurableStreamsApp, MemoryStore, Server, SQLiteStore, Store, TokenFile, TokenFileError
from . import logs, output
from .failures import CommandError, StoppedError, describe, exit_code
from .help import Command
from .store_file import PREFIX

F = TypeVar("F", bound=Callable[..., Any])

_SECONDS = click.FloatRange(min=0, min_open=True)
_COUNT = click.IntRange(min=1)


def _option(name: str, **settings: Any) -> Callable[[F], F]:
    """An option that may also be set in the environment."""
    variable = "DURABLE_STREAMS_" + name.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    settings.setdefault("show_default", settings.get("default") is not None and settings["default"] != ())
    return click.option(name, envvar=variable, **settings)


@click.command(
    cls=Command,
    short_help="Run a server.",
    examples=[
        "durable-streams serve --port 8080",
        "durable-streams serve --store sqlite:/var/lib/streams.db --auth-token-file /etc/streams/tokens",
    ],
)
@_option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all.")
@_option("--port", type=click.IntRange(0, 65535), default=4437, help="Port to listen on; 0 takes a free one.")
@_option("--root", default="/v1/stream", help="Path below which streams live.")
@_option(
    "--store",
    metavar="memory | sqlite:PATH",
    default="memory",
    help="Where streams are kept. What is in memory is gone when the server ends; what is in SQLite is on disk when "
    "it is acknowledged.",
)
@_option(
    "--durability",
    type=click.Choice(["full", "relaxed"]),
    default="full",
    help="For SQLite. relaxed: acknowledge before the disk has it; a power cut may take the last seconds.",
)
@_option(
    "--auth-token-file",
    metavar="FILE",
    help="Who may read and write what: bearer tokens with path prefixes. Read again when it changes.",
)
@_option("--public-url", metavar="URL", help="Scheme, host and port by which clients reach the server.")
@_option(
    "--cors-origin",
    metavar="ORIGIN",
    multiple=True,
    default=("*",),
    help="Origin of pages that may use the server. May be repeated; * for all.  [default: *]",
)
@_option(
    "--cache-visibility",
    type=click.Choice(["private", "public"]),
    default="private",
    help="public: caches between server and clients may keep what is read.",
)
@_option("--compression/--no-compression", default=True, help="Compress what is read, for clients that take gzip.")
@_option("--long-poll-timeout", metavar="SECONDS", type=_SECONDS, default=20.0, help="How long a long-poll waits.")
@_option("--sse-max-age", metavar="SECONDS", type=_SECONDS, default=60.0, help="How long event streams last.")
@_option("--max-append-bytes", metavar="N", type=_COUNT, default=16 << 20, help="Largest body of a request.")
@_option("--page-bytes", metavar="N", type=_COUNT, default=64 << 20, help="Largest answer to a read.")
@_option("--max-connections", metavar="N", type=_COUNT, help="Most connections at a time; more are told 503.")
@_option("--max-requests", metavar="N", type=_COUNT, help="Most requests at a time, waiting readers included.")
@_option("--max-streams", metavar="N", type=_COUNT, help="Most streams there may be.")
@_option("--max-readers-per-stream", metavar="N", type=_COUNT, help="Most live readers of one stream.")
@_option(
    "--request-timeout", metavar="SECONDS", type=_SECONDS, default=20.0, help="How long a request may take to come."
)
@_option("--stall-timeout", metavar="SECONDS", type=_SECONDS, default=60.0, help="How long a client may take nothing.")
@_option(
    "--annotate-state-offsets",
    is_flag=True,
    help="Show messages of the State Protocol with the offset after them, as @durable-streams/state wants it.",
)
@_option("--webhooks", is_flag=True, help="Allow subscriptions of type webhook.")
@_option("--allow-insecure-webhooks", is_flag=True, help="The same, and for development at http://localhost, too.")
@_option("--metrics/--no-metrics", default=True, help="Answer GET /metrics, for Prometheus.")
@_option("--inspection", is_flag=True, help="Answer GET /inspect, which lists all streams.")
@_option("--workers", metavar="N", type=int, default=1, help="Processes. There can be one: stores live in one process.")
@_option("--access-log", is_flag=True, help="Log each request, from level info on.")
@_option("--log-level", type=click.Choice(logs.LEVELS), default="warning", help="Least level that is logged.")
@_option("--log-format", type=click.Choice(["text", "json"]), default="text", help="Form of what is logged.")
def serve(
    *,
    host: str,
    port: int,
    store: str,
    durability: str,
    auth_token_file: str | None,
    cors_origin: tuple[str, ...],
    max_connections: int | None,
    request_timeout: float,
    stall_timeout: float,
    workers: int,
    log_level: str,
    log_format: logs.Format,
    **options: Any,
) -> None:
    """Run a server until Ctrl-C or SIGTERM.

    Once it accepts connections it says so in one line on standard error, which begins with
    "durable-streams: serving" and the URL below which streams live. Beside the streams there are GET /health and
    GET /ready.

    Each option can be set in the environment, too: --log-level by DURABLE_STREAMS_LOG_LEVEL, and so on.
    """
    if workers != 1:
        raise click.UsageError("--workers must be 1: streams and who waits for them live in one process.")
    if options["access_log"] and logs.LEVELS.index(log_level) > logs.LEVELS.index("info"):
        log_level = "info"
    options["webhooks"] = options["webhooks"] or options["allow_insecure_webhooks"]
    options["cors_origin"] = cors_origin[0] if len(cors_origin) == 1 else cors_origin
    with _ending_in(log_format):
        try:
            options["authorize"] = None if auth_token_file is None else TokenFile(auth_token_file)
            app = DurableStreamsApp(_opened(store, durability), **options)
            server = Server(
                app,
                host=host,
                port=port,
                max_connections=max_connections,
                request_timeout=request_timeout,
                stall_timeout=stall_timeout,
            )
        except TokenFileError as error:
            raise CommandError(str(error)) from error
        except ValueError as error:
            raise click.UsageError(f"{error}.") from error
        except ModuleNotFoundError as error:
            raise CommandError(str(error)) from error

        def announce() -> None:
            if log_format == "json":
                output.say(logs.json_line("serving", url=server.url, store=store))
            else:
                output.say(f"durable-streams: serving {server.url} from {store}; Ctrl-C stops")

        try:
            with logs.to_stderr(log_level, log_format):
                server.serve_forever(announce)
        except ModuleNotFoundError as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{error.strerror or error}; choose another with --port, 0 takes a free one") from error


@contextmanager
def _ending_in(log_format: logs.Format) -> Iterator[None]:
    """See to it that the last line, which says why the server ends, has the form of those before it."""
    try:
        yield
    except (CommandError, DurableStreamError) as error:
        if log_format != "json":
            raise
        words = str(error) if isinstance(error, CommandError) else describe(error)
        output.say(logs.json_line(words, level="ERROR"))
        raise StoppedError(error.code if isinstance(error, CommandError) else exit_code(error)) from error


def _opened(store: str, durability: str) -> Store:
    kind, _, path = store.partition(":")
    if kind == "memory" and not path:
        if durability != "full":
            raise click.UsageError("--durability is about stores in SQLite; what is in memory is not durable at all.")
        return MemoryStore()
    if f"{kind}:" == PREFIX and path:
        return SQLiteStore(path, durability="relaxed" if durability == "relaxed" else "full")
    raise click.BadParameter(f"{store!r} is neither memory nor sqlite:PATH", param_hint="'--store'")
