"""The list of commands, and what becomes of their errors: one line on standard error and an exit code."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .. import DurableStreamError
from . import failures, output
from .help import Commands, Group

NAME = "durable-streams"


def _version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from .. import __version__

        output.write(f"{NAME} {__version__}\n".encode())
        context.exit()


@click.group(
    cls=Group,
    examples=[
        "durable-streams serve",
        "durable-streams create http://localhost:4437/v1/stream/chat --json",
        'durable-streams append http://localhost:4437/v1/stream/chat \'{"text": "hi"}\'',
        "durable-streams read http://localhost:4437/v1/stream/chat --follow",
    ],
    commands=Commands(
        serve="serve:serve",
        demo="demo:demo",
        create="create:create",
        append="append:append",
        produce="produce:produce",
        read="read:read",
        head="head:head",
        close="close:close",
        delete="delete:delete",
        inspect="inspect:inspect",
        verify="verify:verify",
        backup="backup:backup",
        export="export:export",
        **{"import": "import_stream:import_command"},
        s2="s2:s2",
    ),
    no_args_is_help=False,
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def program() -> None:
    """Durable streams: append-only logs behind URLs, read from any position and followed live.

    Data goes to standard output, words to standard error; "-" is standard input.
    """


def run(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        args: The words after the program's name; None means those of this process.
    """
    try:
        done = program.main(args, prog_name=NAME, standalone_mode=False)
        return done if isinstance(done, int) else 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else NAME
        return _complain(f"{where}: {error.format_message()} See: {where} --help", error.exit_code)
    except click.ClickException as error:
        return _complain(f"{NAME}: {error.format_message()}", error.exit_code)
    except failures.CommandError as error:
        return _complain(f"{NAME}: {error}", error.code)
    except DurableStreamError as error:
        return _complain(f"{NAME}: {failures.describe(error)}", failures.exit_code(error))
    except failures.StoppedError as stopped:
        if stopped.code == failures.PIPE_CLOSED:
            output.abandon()
        return stopped.code


def _complain(line: str, code: int) -> int:
    output.say(" ".join(line.split()))
    return code
