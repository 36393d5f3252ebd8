"""The version of this library, and how it introduces itself to servers."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def version() -> str:
    """The installed version; "0" if the package runs without being installed."""
    try:
        return metadata.version("durable-streams-anyio")
    except metadata.PackageNotFoundError:
        return "0"


def user_agent() -> str:
    """`durable-streams-anyio/<version>`."""
    return f"durable-streams-anyio/{version()}"
