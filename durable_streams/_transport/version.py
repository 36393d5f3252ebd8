"""How this library introduces itself to servers."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def user_agent() -> str:
    """`durable-streams-anyio/<version>`; "0" if the package runs without being installed."""
    try:
        version = metadata.version("durable-streams-anyio")
    except metadata.PackageNotFoundError:
        version = "0"
    return f"durable-streams-anyio/{version}"
