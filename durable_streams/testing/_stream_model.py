"""A path of a byte store as concurrent clients are supposed to see it: a model for `check_linearizable`.

The rules are written down a second time here, as short as they are, and not taken from the server that is tested.
Outcomes are the server's own values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..server import (
    Appended,
    BadOffset,
    Created,
    Deleted,
    Duplicate,
    Exists,
    Gone,
    Missing,
    Offset,
    ProducerStamp,
    Reason,
    Refused,
    SoftDeleted,
    StreamInfo,
)
from .linearizability import Model, Operation


@dataclass(frozen=True, slots=True)
class CreateCall:
    """Create a stream, open and empty."""


@dataclass(frozen=True, slots=True)
class AppendCall:
    """Append bytes, close the stream, or both."""

    body: bytes
    close: bool = False
    producer: ProducerStamp | None = None


@dataclass(frozen=True, slots=True)
class DeleteCall:
    """Delete the stream."""


@dataclass(frozen=True, slots=True)
class HeadCall:
    """Look at the stream."""


@dataclass(frozen=True, slots=True)
class ReadCall:
    """Read one incarnation to its tail."""

    incarnation: str
    offset: Offset


@dataclass(frozen=True, slots=True)
class WatchCall:
    """Ask a watch of one incarnation for its news."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a read or a watch told. `data`: what was read, up to `tail`."""

    tail: Offset
    closed: bool
    data: bytes = b""
    gone: bool = False


Call: TypeAlias = CreateCall | AppendCall | DeleteCall | HeadCall | ReadCall | WatchCall
Outcome: TypeAlias = (
    Created
    | Exists
    | Appended
    | Duplicate
    | Deleted
    | SoftDeleted
    | Refused
    | StreamInfo
    | Missing
    | Gone
    | BadOffset
    | Seen
)


@dataclass(frozen=True, slots=True)
class Stream:
    """One incarnation. `producers`: for each producer its id, epoch and last sequence number, in order of the ids."""

    incarnation: str
    content: bytes = b""
    closed: bool = False
    closed_by: ProducerStamp | None = None
    producers: tuple[tuple[str, int, int], ...] = ()


class PathModel(Model[Stream | None, Call, Outcome]):
    """One path: no stream, or one incarnation after the other.

    Args:
        revealed: For each incarnation what is known of its bytes by position, from what was read.
        greatest: The greatest tail that anybody was told of.
    """

    def __init__(self, revealed: Mapping[str, Mapping[int, int]] | None = None, greatest: Offset = 0) -> None:
        self._revealed = revealed
        self._greatest = greatest

    def informed_by(self, operations: Sequence[Operation[Call, Outcome]]) -> PathModel:
        """A model that lets no append of unknown outcome write something else than was read, or more than was told."""
        revealed: dict[str, dict[int, int]] = {}
        greatest = 0
        for operation in operations:
            told = getattr(operation.outcome, "info", operation.outcome)
            greatest = max(greatest, getattr(told, "tail", None) or 0)
            if isinstance(operation.call, ReadCall) and isinstance(operation.outcome, Seen):
                content = revealed.setdefault(operation.call.incarnation, {})
                content.update(enumerate(operation.outcome.data, operation.call.offset))
        return type(self)(revealed, greatest)

    def _contradicts(self, state: Stream | None, after: Stream | None) -> bool:
        """Whether a change is refuted by what was read, or explains nothing."""
        if self._revealed is None or state is None or after is None:
            return False
        if len(after.content) > self._greatest:
            return True
        known, start = self._revealed.get(after.incarnation, {}), len(state.content)
        return any(known.get(place, byte) != byte for place, byte in enumerate(after.content[start:], start))

    def initial(self) -> Stream | None:
        """No stream."""
        return None

    def reads_only(self, call: Call) -> bool:
        """Whether a call only looks."""
        return isinstance(call, HeadCall | ReadCall | WatchCall)

    def step(self, state: Stream | None, call: Call, outcome: Outcome | None) -> Iterable[Stream | None]:
        """What the call leaves, if it can have this outcome. Unknown outcomes are understood of appends only."""
        if isinstance(call, AppendCall):
            expected, after = append(state, call)
            if outcome is None:
                return () if self._contradicts(state, after) else (after,)
            return (after,) if outcome == expected else ()
        assert outcome is not None, "only appends are interrupted"
        match call, outcome:
            case CreateCall(), Created(info):
                return (
                    (Stream(info.ref.incarnation),) if state is None and (info.tail, info.closed) == (0, False) else ()
                )
            case CreateCall(), Exists(info):
                return (state,) if self._shows(state, info) and not info.closed else ()
            case CreateCall(), Refused(Reason.OTHER_CONFIG):
                return (state,) if state is not None and state.closed else ()
            case DeleteCall(), Deleted():
                return (None,) if state is not None else ()
            case DeleteCall(), Refused(Reason.NOT_FOUND):
                return (None,) if state is None else ()
            case HeadCall(), Missing():
                return (None,) if state is None else ()
            case HeadCall(), StreamInfo() as info:
                return (state,) if self._shows(state, info) else ()
        return (state,) if self._is_seen(state, call, outcome) else ()

    @staticmethod
    def _shows(state: Stream | None, info: StreamInfo) -> bool:
        return state is not None and (info.ref.incarnation, info.tail, info.closed) == (
            state.incarnation,
            len(state.content),
            state.closed,
        )

    @staticmethod
    def _is_seen(state: Stream | None, call: Call, outcome: Outcome) -> bool:
        """Whether a read or a watch of an incarnation can tell this."""
        assert isinstance(call, ReadCall | WatchCall), f"{call} cannot be answered with {outcome}"
        if state is None or state.incarnation != call.incarnation:
            return outcome == Missing() or (isinstance(outcome, Seen) and outcome.gone)
        if not isinstance(outcome, Seen) or outcome.gone:
            return False
        return (outcome.tail, outcome.closed) == (len(state.content), state.closed) and (
            isinstance(call, WatchCall) or outcome.data == state.content[call.offset :]
        )


def append(state: Stream | None, call: AppendCall) -> tuple[Outcome, Stream | None]:
    """What an append is answered, with `producer` and other details left out, and the stream after it."""
    if state is None:
        return Refused(Reason.NOT_FOUND), None
    tail, stamp = len(state.content), call.producer
    if state.closed:
        again = stamp == state.closed_by if stamp is not None else not call.body
        return (Duplicate(tail, True) if again else Refused(Reason.CLOSED, tail=tail)), state
    producers = state.producers
    if stamp is not None:
        known = {name: (epoch, seq) for name, epoch, seq in producers}
        epoch, last = known.get(stamp.id, (stamp.epoch, -1))
        if stamp.epoch < epoch:
            return Refused(Reason.STALE_EPOCH, epoch=epoch), state
        if stamp.epoch > epoch and stamp.seq:
            return Refused(Reason.NEW_EPOCH_NOT_AT_ZERO), state
        if stamp.epoch == epoch:
            if stamp.seq <= last:
                return Duplicate(tail, False), state
            if stamp.seq > last + 1:
                return Refused(Reason.SEQUENCE_GAP, expected=last + 1, received=stamp.seq), state
        known[stamp.id] = (stamp.epoch, stamp.seq)
        producers = tuple((name, *known[name]) for name in sorted(known))
    content, closed_by = state.content + call.body, stamp if call.close else None
    after = replace(state, content=content, closed=call.close, closed_by=closed_by, producers=producers)
    return Appended(len(content), call.close), after


def told(result: Appended | Duplicate | Refused) -> Outcome:
    """A store's answer to an append in the form in which the model gives it."""
    return result if isinstance(result, Refused) else replace(result, producer=None)
