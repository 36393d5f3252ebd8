"""From a foreign error to ours: each backend has a table, and this reads it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

from .._core import wire
from ..errors import DurableStreamError, InvalidArgumentError, NetworkError, Phase

#: (foreign error, our error, what happened in words).
Row = tuple[type[BaseException], type[DurableStreamError], str]


def translate(
    table: Sequence[Row], error: BaseException, url: str, *, phase: Phase, reused: bool = False
) -> DurableStreamError:
    """Our error for a foreign one; raise it `from` that one.

    Args:
        table: The first row that fits decides.
        error: The foreign error. One that no row fits is a bug and is raised as it is.
        url: Of the request; shown without user information and query values.
        phase: Where the exchange was.
        reused: Whether the connection had served before, and no byte of the answer had come.
    """
    for foreign, ours, sentence in table:
        if not isinstance(error, foreign):
            continue
        shown = wire.parse_url(url).display
        detail = _detail(error)
        message = f"{shown}: {sentence} ({detail})" if detail else f"{shown}: {sentence}"
        if issubclass(ours, NetworkError):
            return ours(message, phase=phase, reused=reused, url=shown)
        return ours(message, url=shown)
    raise error


def check_url(url: str) -> None:
    """Refuse a URL that cannot be sent as it is.

    Raises:
        InvalidArgumentError: it is not http or https, or is not encoded.
    """
    if not url.isascii() or not url.startswith(("http://", "https://")):
        raise InvalidArgumentError(f"url must be an encoded http or https URL, got {url[:40]!r}")


def tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """Python's own TLS error that an error was caused by, if that is what happened."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and type(error).__module__ == "ssl":
            return error
        error = error.__cause__ or error.__context__
    return None


def _detail(error: BaseException) -> str:
    tls = tls_error(error)
    if isinstance(tls, ssl.SSLCertVerificationError):
        return tls.verify_message
    if tls is not None:
        return str(tls).strip()
    return _system_reason(error) or str(error).strip()


def _system_reason(error: BaseException) -> str | None:
    """What the operating system or the resolver said: "Connection refused". Libraries put other words around it."""
    causes: list[BaseException] = [error]
    for cause in causes:  # which grows
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno) if cause.errno > 0 else cause.strerror
        if isinstance(cause, BaseExceptionGroup):
            causes.extend(cause.exceptions)
        causes.extend(inner for inner in (cause.__cause__ or cause.__context__,) if inner is not None)
    return None
