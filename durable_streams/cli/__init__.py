"""The command line: `durable-streams ...`, also `python -m durable_streams.cli`.

Each command has a module of its own, which parses, calls the public API and prints. What they share: `program` (the
list of commands, and what happens to errors), `target` (the stream's URL and how to reach it), `output` (standard
output), `failures` (messages and exit codes).

Data goes to standard output, words to standard error, and `-` is standard input.
"""

from __future__ import annotations

# Refuse to be half of another distribution before anything is imported.
from .._collision import refuse_collision

refuse_collision()

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit code.

    Args:
        args: The words after the program's name; None means those of this process.

    Raises:
        SystemExit: always; `failures` lists the codes.
    """
    try:
        from .program import run  # Imported here: click may be missing.
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.exit("durable-streams: the command line needs click: pip install 'durable-streams-anyio[cli]'")
    sys.exit(run(args))
