"""`durable-streams inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import click

from ..server import inspect_store
from . import output
from .failures import FAILED, MISSING, NETWORK, NOT_ALLOWED, USAGE, CommandError
from .help import Command
from .store_file import store_path
from .target import parse_headers

_PATIENCE = 60.0


@click.command(
    cls=Command,
    short_help="Show what is in a store.",
    examples=[
        "durable-streams inspect /var/lib/streams.db",
        "durable-streams inspect sqlite:streams.db --prefix /v1/stream/orders --producers",
        "durable-streams inspect http://localhost:4437 --prefix /v1/stream | jq -r .path",
    ],
)
@click.argument("where", metavar="STORE|URL")
@click.option("--prefix", metavar="PATH", default="", help="Only the stream of this path, and those below it.")
@click.option(
    "--producers",
    is_flag=True,
    help="After each stream its producers; by URL the 100 that were seen last.",
)
@click.option(
    "headers",
    "-H",
    "--header",
    metavar="'NAME: VALUE'",
    multiple=True,
    callback=parse_headers,
    help="Send this header with each request. May be repeated.",
)
def inspect(where: str, *, prefix: str, producers: bool, headers: dict[str, str]) -> None:
    """Show a store, its subscriptions, and its streams with their sizes, tails and producers.

    STORE is the file of a store, also while a server has it open. URL is that of a server which was started with
    --inspection. What is shown has a "kind": store, subscription, stream or producer.
    """
    prefix = prefix.rstrip("/")
    if where.startswith(("http://", "https://")):
        found = _ask(where, prefix, producers, headers)
    else:
        found = _look(store_path(where), prefix, producers)
    for line in found:
        output.line(line, _in_words)


def _look(path: str, prefix: str, producers: bool) -> Iterator[dict[str, Any]]:
    with inspect_store(path) as look:
        if not prefix:
            yield look.store().line()
            for subscription in look.subscriptions():
                yield subscription.line()
        for stream in look.streams(prefix):
            yield stream.line()
            if producers:
                for producer in look.producers(stream.path):
                    yield producer.line()


def _ask(url: str, prefix: str, producers: bool, headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    base = url.rstrip("/")
    if not urlsplit(base).path:
        base += "/inspect"
    after = ""
    while True:
        query = f"prefix={quote(prefix, safe='/')}&after={quote(after, safe='/')}&producers={int(producers)}"
        after = ""
        for text in _get(f"{base}?{query}", headers).splitlines():
            line: dict[str, Any] = json.loads(text)
            if line["kind"] == "more":
                after = line["after"]
            else:
                yield line
        if not after:
            return


def _get(url: str, headers: dict[str, str]) -> bytes:
    shown = url.partition("?")[0]
    opener = build_opener(_NoRedirects)
    try:
        with opener.open(Request(url, headers=headers), timeout=_PATIENCE) as answer:  # noqa: S310  # http or https
            if answer.headers.get_content_type() != "application/x-ndjson":
                raise CommandError(f"{shown}: this is not what a durable streams server answers; give its base URL")
            body: bytes = answer.read()
            return body
    except HTTPError as error:
        error.close()
        problem, code = {
            400: ("the server does not accept the --prefix", USAGE),
            401: ("give credentials: --header 'Authorization: Bearer TOKEN'", NOT_ALLOWED),
            403: ("these credentials may not read that; try a --prefix", NOT_ALLOWED),
            404: ("no inspection there; start the server with --inspection, or inspect its store's file", MISSING),
        }.get(error.code, ("the server could not answer", FAILED))
        raise CommandError(f"{shown}: HTTP {error.code}; {problem}", code) from error
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise CommandError(f"{shown}: {reason}; is a server running there?", NETWORK) from error


class _NoRedirects(HTTPRedirectHandler):
    """Headers may be secrets, and are for the server that was named."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        """Follow none: the answer is an error then."""


def _in_words(line: dict[str, Any]) -> str:
    """A line for a person. The columns of streams stand below each other."""
    match line["kind"]:
        case "store":
            size = line["file_bytes"] + line["log_bytes"]
            return (
                f"{line['store']}: {line['streams']:,} streams, {line['subscriptions']:,} subscriptions, {size:,} bytes"
                f" ({line['free_bytes']:,} free)"
            )
        case "subscription":
            held = f", held by {line['holder']}" if line["holder"] else ""
            return f"subscription {line['id']} ({line['type']}): {len(line['streams']):,} streams{held}"
        case "stream":
            state = "deleted" if line["soft_deleted"] else "closed" if line["closed"] else "open"
            return (
                f"{line['bytes']:>15,} bytes  {line['offset']}  {state:7}  {line['producers']:>6,} producers  "
                f"{line['path']}"
            )
        case _:
            return f"{'':17}producer {line['id']}: epoch {line['epoch']}, sequence number {line['seq']}"
