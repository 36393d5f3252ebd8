"""Options of a read: where it begins and where it ends (S2 3.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._core import validate
from ..errors import InvalidArgumentError
from ._values import MAX_U64, ReadBatch, ReadStart, SeqNum, TailOffset, Timestamp

_MAX_U32 = 2**32 - 1


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a read asks for. Limits count the whole read, also over several requests.

    Attributes:
        start: Where it begins.
        count: Most records; None is no limit. 0 reads nothing.
        bytes: Most metered bytes, never exceeded; None is no limit. 0 reads nothing.
        until: Ends before the first record with this timestamp or a later one; None is no limit.
        clamp: A start beyond the tail begins at the tail; it is an error otherwise.
        wait: Seconds to wait for the next records when there are none. None is the server's default: not at all if
            there is a limit, for ever if there is none.
        ignore_command_records: Leave out fence and trim records.

    Raises:
        TypeError: an option has a wrong type.
        InvalidArgumentError: an option is out of range, or `until` is not after the timestamp to begin with.
    """

    start: ReadStart
    count: int | None = None
    bytes: int | None = None
    until: int | None = None
    clamp: bool = False
    wait: int | None = None
    ignore_command_records: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.start, SeqNum | Timestamp | TailOffset):
            raise TypeError(f"start must be SeqNum, Timestamp or TailOffset, got {type(self.start).__name__}")
        for name, most in (("count", MAX_U64), ("bytes", MAX_U64), ("until", MAX_U64), ("wait", _MAX_U32)):
            value = getattr(self, name)
            if value is not None:
                validate.integer(name, value, maximum=most)
        for name in ("clamp", "ignore_command_records"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {type(getattr(self, name)).__name__}")
        if isinstance(self.start, Timestamp) and self.until is not None and self.start.value >= self.until:
            raise InvalidArgumentError(f"until must be after the start {self.start.value}, got {self.until}")

    def query(self) -> dict[str, str]:
        """The parameters of a request, the start first."""
        match self.start:
            case SeqNum(value):
                query = {"seq_num": str(value)}
            case Timestamp(value):
                query = {"timestamp": str(value)}
            case TailOffset(value):
                query = {"tail_offset": str(value)}
        for name in ("count", "bytes", "until", "wait"):
            value = getattr(self, name)
            if value is not None:
                query[name] = str(value)
        if self.clamp:
            query["clamp"] = "true"
        return query


@dataclass(frozen=True, slots=True)
class ReadPage(ReadBatch):
    """The answer to one read.

    Attributes:
        next_seq_num: Where to read on: the number after the last record that came, command records that were left out
            included. None if none came.
    """

    next_seq_num: int | None = None


def read_start(
    start: Any, *, seq_num: int | None = None, timestamp: int | None = None, tail_offset: int | None = None
) -> ReadStart:
    """The one place to begin among several ways to name it; the stream's first record if there is none.

    Raises:
        TypeError: `start` is something else.
        InvalidArgumentError: several are given, or one is out of range.
    """
    given: list[ReadStart] = []
    if start is not None:
        given.append(start)
    if seq_num is not None:
        given.append(SeqNum(seq_num))
    if timestamp is not None:
        given.append(Timestamp(timestamp))
    if tail_offset is not None:
        given.append(TailOffset(tail_offset))
    if len(given) > 1:
        raise InvalidArgumentError("give one of start, seq_num, timestamp and tail_offset")
    return given[0] if given else SeqNum(0)
