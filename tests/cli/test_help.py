"""What the help promises."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from durable_streams.cli.program import program

from .conftest import Run


def _all(group: click.Group, *names: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield " ".join([*names, name]), command
        if isinstance(command, click.Group):
            yield from _all(command, *names, name)


#: Every command by the words that lead to it, commands of groups included.
COMMANDS = dict(_all(program))


def test_help_lists_every_command_in_the_order_in_which_one_needs_them(run: Run) -> None:
    done = run("--help")

    assert re.findall(r"^  (\w+)  +[A-Z].*\.$", done.out.decode(), re.MULTILINE) == [
        "serve",
        "demo",
        "create",
        "append",
        "produce",
        "read",
        "head",
        "close",
        "delete",
        "inspect",
        "verify",
        "backup",
        "export",
        "import",
        "s2",
    ]
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(run: Run, name: str) -> None:
    shown = run(*name.split(), "--help").out.decode()

    assert re.search(rf"^  .*durable-streams {name}\b", shown, re.MULTILINE)
    assert run(*name.split(), "-h").out.decode() == shown


@pytest.mark.parametrize(
    "example",
    sorted({example for command in COMMANDS.values() for example in command.examples}),  # type: ignore[attr-defined]
)
def test_every_example_is_accepted(example: str) -> None:
    parts = [shlex.split(part.partition(" > ")[0]) for part in example.split(" | ")]

    for words in [part[1:] for part in parts if part[0] == "durable-streams"]:
        command: click.Command = program
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        with command.make_context(command.name, words) as context:
            assert isinstance(context, click.Context)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    options = [each for each in COMMANDS[name].params if isinstance(each, click.Option)]

    assert [option.name for option in options if not option.help] == []


def test_version(run: Run) -> None:
    done = run("--version")

    assert re.fullmatch(rb"durable-streams \d[\w.]*\n", done.out)
    assert done.code == 0
