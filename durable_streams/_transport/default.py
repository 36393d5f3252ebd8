"""The network transport for the running event loop."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from .base import Transport
from .loops import running_loop


def open_transport(
    *,
    ssl_context: ssl.SSLContext | None = None,
    proxies: Mapping[str, str] | None = None,
    keepalive_expiry: float = 4.0,
) -> Transport:
    """Make a transport for the event loop that is running: aiohttp on asyncio, httpcore2 on trio.

    Their libraries are imported here, on first use. Nothing is connected yet, and the caller has to `aclose` it.

    Args:
        ssl_context: For https; None trusts the system's certificate authorities.
        proxies: URLs of proxies by scheme; None reads the environment once, {} uses none.
        keepalive_expiry: Seconds after which an idle connection is not used again.

    Raises:
        RuntimeError: outside an event loop.
        ImportError: the library for this loop is missing; the message names the extra to install.
    """
    loop = running_loop()
    if loop == "asyncio":
        try:
            from .aiohttp import AiohttpTransport
        except ModuleNotFoundError as error:
            raise _missing(error, 'pip install "durable-streams-anyio"') from error
        return AiohttpTransport(ssl_context=ssl_context, proxies=proxies, keepalive_expiry=keepalive_expiry)
    if loop == "trio":
        try:
            from .trio import HTTPCoreTransport
        except ModuleNotFoundError as error:
            raise _missing(error, 'pip install "durable-streams-anyio[trio]"') from error
        return HTTPCoreTransport(ssl_context=ssl_context, proxies=proxies, keepalive_expiry=keepalive_expiry)
    raise RuntimeError(f"there is no transport for the event loop {loop!r}: use asyncio or trio")


def _missing(error: ModuleNotFoundError, command: str) -> ImportError:
    return ImportError(f"{error.name} is needed for HTTP on this event loop: {command}", name=error.name)
