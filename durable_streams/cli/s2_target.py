"""The S2 service, basin and stream that a command is about, and the options of every `durable-streams s2` command."""

from __future__ import annotations

import functools
import logging
import os
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import anyio
import click

from .. import InvalidArgumentError
from ..s2 import S2, S2Error, S2Retry, SessionTransport, Stream
from . import output
from .failures import USAGE, CommandError
from .s2_failures import command_error
from .target import log_to_stderr

P = ParamSpec("P")

_KEY_VARIABLE = "S2_ENCRYPTION_KEY"
_TOKEN_VARIABLE = "S2_ACCESS_TOKEN"  # noqa: S105  # a variable's name
_INSECURE_VARIABLE = "S2_SSL_NO_VERIFY"


@dataclass(frozen=True, slots=True)
class Service:
    """An S2 service and how to reach it.

    Attributes:
        endpoint: One URL for everything, or None: the environment says where it is.
        insecure: Whether certificates are not checked.
    """

    endpoint: str | None
    insecure: bool = False

    def client(self, *, duplicates: bool = True) -> S2:
        """A client with the token of the environment.

        Args:
            duplicates: Whether an append is repeated that may have been stored.

        Raises:
            CommandError: there is no token, or an endpoint is none.
        """
        options: dict[str, Any] = {
            "retry": S2Retry(append_retry_policy="all" if duplicates else "no_side_effects"),
            "ssl_context": _trusting_anybody() if self.insecure else None,
        }
        try:
            if self.endpoint is None:
                return S2.from_env(**options)
            # `s2 lite` takes any token.
            return S2(os.environ.get(_TOKEN_VARIABLE) or "ignored", endpoints=self.endpoint, **options)
        except InvalidArgumentError as error:
            raise CommandError(
                f"{error}; set {_TOKEN_VARIABLE}, or name a server that needs none: --endpoint http://localhost:8080",
                USAGE,
            ) from None


def _trusting_anybody() -> ssl.SSLContext:
    """Encrypts, but does not know for whom."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def with_service(command: Callable[Concatenate[Service, P], None]) -> Callable[..., None]:
    """Give a command the options for reaching the service; it gets a `Service` first."""

    @click.option(
        "--endpoint",
        metavar="URL",
        help="One server for everything, such as s2 lite. The variables S2_ACCOUNT_ENDPOINT and S2_BASIN_ENDPOINT, "
        "else s2.dev, if left out.",
    )
    @click.option(
        "--insecure",
        is_flag=True,
        envvar=_INSECURE_VARIABLE,
        help="Do not check certificates: for s2 lite with one that it made itself. The variable S2_SSL_NO_VERIFY.",
    )
    @click.option("-v", "--verbose", is_flag=True, help="Say what happens, retries included, on standard error.")
    @functools.wraps(command)
    def parsed(endpoint: str | None, insecure: bool, verbose: bool, **rest: Any) -> None:
        log_to_stderr(logging.DEBUG if verbose else logging.WARNING)
        command(Service(endpoint, insecure), **rest)  # type: ignore[call-arg]  # click fills in what P names

    return parsed


def split(target: str) -> tuple[str, str]:
    """Basin and stream of `BASIN/STREAM`, also written `s2://BASIN/STREAM`.

    Raises:
        UsageError: it has no stream.
    """
    basin, slash, stream = target.removeprefix("s2://").partition("/")
    if not slash or not stream:
        raise click.UsageError(f"{target!r} is not of the form BASIN/STREAM.")
    return basin, stream


def stream_of(client: S2, target: str, *, transport: SessionTransport = "auto") -> Stream:
    """The handle of `BASIN/STREAM`, with the encryption key of the environment."""
    basin, stream = split(target)
    key = os.environ.get(_KEY_VARIABLE) or None
    return client.basin(basin).stream(stream, encryption_key=key, transport=transport)


def run(
    service: Service,
    work: Callable[[S2], Coroutine[Any, Any, None]],
    *,
    prints: bool = False,
    duplicates: bool = True,
) -> None:
    """Do a command's work with a client of its own.

    Args:
        service: Where.
        work: What.
        prints: Whether it goes on printing for long: it ends when nobody reads standard output any more.
        duplicates: Whether an append is repeated that may have been stored.

    Raises:
        CommandError: what the service said, in one line with the next step.
        BrokenPipeError: nobody reads what is printed.
    """
    anyio.run(_run, service, work, prints, duplicates)


async def _run(
    service: Service, work: Callable[[S2], Coroutine[Any, Any, None]], prints: bool, duplicates: bool
) -> None:
    failure: Exception | None = None

    async def watch() -> None:
        nonlocal failure
        await output.wait_unwanted()
        failure = BrokenPipeError()
        tasks.cancel_scope.cancel()

    async with service.client(duplicates=duplicates) as client, anyio.create_task_group() as tasks:
        if prints:
            tasks.start_soon(watch)
        try:
            await work(client)
        except S2Error as error:
            failure = command_error(error)
        except Exception as error:  # Kept for later: leaving the group, it would be wrapped in an ExceptionGroup.
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
