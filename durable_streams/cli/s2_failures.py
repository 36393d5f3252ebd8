"""From an error of the S2 client to one line with the next step, and to an exit code."""

from __future__ import annotations

from ..s2 import (
    FencingTokenMismatchError,
    RangeNotSatisfiableError,
    S2ConnectionError,
    S2Error,
    S2ProtocolError,
    S2ServerError,
    SeqNumMismatchError,
)
from .failures import CONFLICT, FAILED, MISSING, NETWORK, NOT_ALLOWED, USAGE, CommandError


def command_error(error: S2Error) -> CommandError:
    """What a command says, and how it exits."""
    line, step = " ".join(str(error).split()), next_step(error)
    return CommandError(line if step is None else f"{line}; {step}", exit_code(error))


def exit_code(error: S2Error) -> int:
    """The exit code for an error of the S2 client."""
    match error:
        case SeqNumMismatchError() | FencingTokenMismatchError():
            return CONFLICT
        case RangeNotSatisfiableError():
            return MISSING
        case S2ServerError(status=400 | 422):
            return USAGE
        case S2ServerError(status=401 | 403):
            return NOT_ALLOWED
        case S2ServerError(status=404):
            return MISSING
        case S2ServerError(status=409):
            return CONFLICT
        case S2ConnectionError() | S2ProtocolError():
            return NETWORK
        case _:
            return FAILED


def next_step(error: S2Error) -> str | None:
    """What the user can do about it, or None if the message says all."""
    if not error.definite:
        return "look at the end of the stream before you try again"
    match error:
        case SeqNumMismatchError(expected_seq_num=number):
            return f"read on from there, or append with --match-seq-num {number}"
        case FencingTokenMismatchError():
            return "another writer took over: ask it, or take the stream back with `fence`"
        case RangeNotSatisfiableError():
            return "wait for records: --follow"
        case S2ConnectionError(phase="connect"):
            return "is a server running there? `s2 lite` starts one"
        case S2ServerError(status=401 | 403):
            return "set S2_ACCESS_TOKEN to a token that may do this"
        case S2ServerError(code="basin_not_found"):
            return "create it: durable-streams s2 basins create BASIN"
        case S2ServerError(code="stream_not_found"):
            return "create it: durable-streams s2 streams create BASIN/STREAM"
        case S2ServerError(code="not_implemented"):
            return "s2 lite does not have this, s2.dev has"
        case _:
            return None
