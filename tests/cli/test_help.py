"""What the help promises."""

import re
import shlex

import click
import pytest

from durable_streams.cli.program import program

from .conftest import Run

COMMANDS = sorted(program.commands)


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
    ]
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(run: Run, name: str) -> None:
    shown = run(name, "--help").out.decode()

    assert re.search(rf"^  .*durable-streams {name}\b", shown, re.MULTILINE)
    assert run(name, "-h").out.decode() == shown


@pytest.mark.parametrize(
    "example",
    [example for command in program.commands.values() for example in command.examples],  # type: ignore[attr-defined]
)
def test_every_example_is_accepted(example: str) -> None:
    (words,) = [part for part in map(shlex.split, example.split(" | ")) if part[0] == "durable-streams"]
    command = program.commands[words[1]]

    with command.make_context(words[1], words[2:]) as context:
        assert isinstance(context, click.Context)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    options = [each for each in program.commands[name].params if isinstance(each, click.Option)]

    assert [option.name for option in options if not option.help] == []


def test_version(run: Run) -> None:
    done = run("--version")

    assert re.fullmatch(rb"durable-streams \d[\w.]*\n", done.out)
    assert done.code == 0
