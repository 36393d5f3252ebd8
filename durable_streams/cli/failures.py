"""From an error to one line with the next step, and to an exit code that scripts can rely on.

====  ==========================================================================================================
code  meaning
====  ==========================================================================================================
0     done
1     failed in a way that has no code of its own: the demo's proof, a busy port, a damaged store, a server's 500
2     wrong usage: an unknown option, a bad value, input that is no JSON
3     there is no such stream, or its data is no longer kept
4     conflict: the stream exists, is closed, or has another configuration or `--seq`; a server has the store open
5     no answer from the server, or a broken one
6     the server wants credentials, or refuses those it got
130   interrupted (Ctrl-C)
141   whoever read standard output has gone
====  ==========================================================================================================
"""

from __future__ import annotations

from .. import (
    ConflictError,
    DurableStreamError,
    InvalidArgumentError,
    NetworkError,
    ParseError,
    RetentionGoneError,
    SeqConflictError,
    StreamClosedError,
    StreamExistsError,
    StreamNotFoundError,
)
from ..server import StoreInUseError, StreamMissingError, StreamPresentError

FAILED = 1
USAGE = 2
MISSING = 3
CONFLICT = 4
NETWORK = 5
NOT_ALLOWED = 6
INTERRUPTED = 130
PIPE_CLOSED = 141


class CommandError(Exception):
    """A command cannot do what it was asked; the text says why and what to do.

    Args:
        message: One line.
        code: Exit code.
    """

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message, code)
        self.message = message
        self.code = code

    def __str__(self) -> str:
        return self.message


class StoppedError(Exception):
    """The user or the next program in a pipe has had enough: end quietly.

    Args:
        code: Exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def exit_code(error: DurableStreamError) -> int:
    """The exit code for an error of the library."""
    match error:
        case InvalidArgumentError():
            return USAGE
        case StreamNotFoundError() | RetentionGoneError() | StreamMissingError():
            return MISSING
        case ConflictError() | StreamClosedError() | StreamPresentError() | StoreInUseError():
            return CONFLICT
        case NetworkError() | ParseError():
            return NETWORK
        case DurableStreamError(code="UNAUTHORIZED" | "FORBIDDEN"):
            return NOT_ALLOWED
        case _:
            return FAILED


def next_step(error: DurableStreamError) -> str | None:
    """What the user can do about an error of the library, or None if the message says all."""
    url = error.url or "URL"
    if error.maybe_applied:
        return "look at the end of the stream before you try again"
    match error:
        case StreamNotFoundError():
            return f"create it: durable-streams create {url}"
        case RetentionGoneError(earliest_offset=str(earliest)):
            return f"the earliest data there is: --from {earliest}"
        case StreamExistsError():
            return f"see how it differs: durable-streams head {url}"
        case StreamClosedError():
            return "a closed stream can only be read"
        case SeqConflictError():
            return "give a --seq that sorts after the last one, byte by byte"
        case ConflictError():
            return f"see its content type: durable-streams head {url}"
        case NetworkError(phase="connect"):
            return "is a server running there? `durable-streams serve` starts one"
        case DurableStreamError(code="UNAUTHORIZED" | "FORBIDDEN"):
            return "give credentials: --header 'Authorization: Bearer TOKEN'"
        case StoreInUseError():
            return "stop the server, or take a backup and work on that"
        case ParseError():
            return "read it as it is: --bytes"
        case _:
            return None


def describe(error: DurableStreamError) -> str:
    """One line: what happened, and the next step."""
    step = next_step(error)
    line = " ".join(str(error).split())
    return line if step is None else f"{line}; {step}"
