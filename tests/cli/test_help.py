"""What the help promises."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from durable_streams.cli.help import Commands
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


def test_a_command_imports_nothing_of_the_others() -> None:
    code = (
        "import sys; from durable_streams.cli.program import program; program.commands['serve']; "
        "print([name for name in sys.modules if name.startswith(('durable_streams.s2', 'durable_streams.testing'))])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)

    assert done.stdout == b"[]\n"


def test_commands_can_be_added_and_taken_away() -> None:
    commands = Commands(serve="serve:serve")

    commands["mine"] = program.commands["head"]
    assert (list(commands), commands["mine"].name, commands["serve"].name) == (["serve", "mine"], "head", "serve")
    del commands["mine"]

    assert (list(commands), len(commands), commands.get("mine")) == (["serve"], 1, None)
