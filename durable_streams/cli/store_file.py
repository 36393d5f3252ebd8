"""The store that a command is about: a file, named as `serve --store` names it, or by its path alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

PREFIX = "sqlite:"


def store_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument `STORE`, a path."""
    return click.argument("store", metavar="STORE", callback=lambda context, parameter, text: store_path(text))(command)


def store_path(text: str) -> str:
    """The path of a store.

    Raises:
        click.BadParameter: if it names none.
    """
    path = text.removeprefix(PREFIX)
    if not path or text == "memory":
        raise click.BadParameter(f"{text!r} is no store on disk; name its file: sqlite:PATH or PATH")
    return path
