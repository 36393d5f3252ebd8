"""The stream that a command is about: its URL, and the options of every command that talks to a server."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import click

from .. import BackoffOptions, DurableStream

P = ParamSpec("P")

#: Seconds for which an unreachable server is tried, unless `--retry-for` says otherwise.
RETRY_FOR = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """A stream and how to reach it.

    Attributes:
        url: The stream's URL.
        headers: Sent with each request.
        retry_for: Seconds for which failed requests are repeated.
    """

    url: str
    headers: dict[str, str]
    retry_for: float

    @property
    def backoff(self) -> BackoffOptions:
        """The retry policy."""
        return BackoffOptions(max_elapsed=self.retry_for, max_delay=5.0)

    def handle(self) -> DurableStream:
        """A handle for the stream."""
        return DurableStream(self.url, headers=self.headers, backoff_options=self.backoff)


def with_target(command: Callable[Concatenate[Target, P], None]) -> Callable[..., None]:
    """Give a command the argument `URL` and the options for reaching it; it gets a `Target` first."""

    @click.argument("url", metavar="URL")
    @click.option(
        "headers",
        "-H",
        "--header",
        metavar="'NAME: VALUE'",
        multiple=True,
        callback=parse_headers,
        help="Send this header with each request. May be repeated.",
    )
    @click.option(
        "--retry-for",
        metavar="SECONDS",
        type=click.FloatRange(min=0),
        default=RETRY_FOR,
        show_default=True,
        help="How long to repeat requests that fail; 0 tries once.",
    )
    @click.option("-v", "--verbose", is_flag=True, help="Say what happens, retries included, on standard error.")
    @functools.wraps(command)
    def parsed(url: str, headers: dict[str, str], retry_for: float, verbose: bool, **rest: Any) -> None:
        log_to_stderr(logging.DEBUG if verbose else logging.WARNING)
        command(Target(url, headers, retry_for), **rest)  # type: ignore[call-arg]  # click fills in what P names

    return parsed


def parse_headers(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Headers from options of the form 'Name: value'.

    Raises:
        click.BadParameter: if one has another form.
    """
    headers = {}
    for text in values:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{text!r} is not of the form 'Name: value'")
        headers[name.strip()] = value.strip()
    return headers


def log_to_stderr(level: int) -> None:
    """Show what the library logs from this level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("durable-streams: %(message)s"))
    logger = logging.getLogger("durable_streams")
    for former in [each for each in logger.handlers if isinstance(each, logging.StreamHandler)]:
        logger.removeHandler(former)
    logger.addHandler(handler)
    logger.setLevel(level)


def is_json(content_type: str | None) -> bool:
    """Whether a stream of this content type keeps messages apart."""
    return (content_type or "").partition(";")[0].strip().lower() == "application/json"
