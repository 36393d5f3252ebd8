"""Commands whose help ends with examples, and that end quietly when they are interrupted."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from importlib import import_module
from typing import Any

import click

from .failures import INTERRUPTED, PIPE_CLOSED, StoppedError

#: Options of every command that talks to a server, see `target`.
COMMON = ("headers", "retry_for", "endpoint", "verbose")


class Command(click.Command):
    """A command with examples.

    Args:
        examples: Command lines, shown below the options.
        **options: Arguments of `click.Command`.
    """

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(**options)
        self.examples: tuple[str, ...] = tuple(examples)
        # What a command has of its own stands first in its help.
        self.params.sort(key=lambda parameter: parameter.name in COMMON)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are: a command line must not be wrapped."""
        _write_examples(self.examples, formatter)


class Commands(MutableMapping[str, click.Command]):
    """The commands of a group by their names, each imported when it is asked for.

    So who runs a server does not wait for what other commands need, and it starts in about half the time.

    Args:
        **places: Where each command is: a module of this package, a colon, and its name there.
    """

    def __init__(self, **places: str) -> None:
        self._found: dict[str, str | click.Command] = {**places}

    def __getitem__(self, name: str) -> click.Command:
        found = self._found[name]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            command = getattr(import_module(f".{module}", __package__), attribute)
            assert isinstance(command, click.Command)
            found = self._found[name] = command
        return found

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._found[name] = command

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class Group(click.Group):
    """A group of commands with examples; arguments as for `Command`."""

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        options.setdefault("context_settings", {"help_option_names": ["-h", "--help"], "max_content_width": 100})
        super().__init__(**options)
        self.examples: tuple[str, ...] = tuple(examples)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which a newcomer meets them."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Click would answer an interruption with an empty line, and a closed pipe with exit code 1.

        Raises:
            StoppedError: the command was stopped from outside.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise StoppedError(INTERRUPTED) from None
        except BrokenPipeError:
            raise StoppedError(PIPE_CLOSED) from None

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are."""
        _write_examples(self.examples, formatter)


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    with formatter.section("Examples" if len(examples) > 1 else "Example"):
        for line in examples:
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")
