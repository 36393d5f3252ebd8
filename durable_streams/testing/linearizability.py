"""Whether what concurrent clients saw could have come from one object that serves one call after the other.

A `History` records when each call began and returned, and what it was told. `check_linearizable` looks for an order of
the calls in which a `Model` gives the same answers, and in which no call comes before another that had returned before
it began. That is linearizability (M. Herlihy, J. Wing, 1990): each call happens at one moment between its beginning and
its end.

A call may have three ends. Its answer is known. Or it certainly did nothing, and the history forgets it. Or nobody
knows: the connection broke, the process died. Such a call may have happened at any moment after it began, the whole
rest of the history through, or never.

The search is that of J. Wing and C. Gong (1993) with G. Lowe's memory (2017): take one of the calls that could come
next, go on from there, step back if that leads nowhere, and enter no pair of (calls taken, state) twice, nor one that
differs from an earlier one by nothing but more calls of unknown outcome that were taken. Three things keep it short.
What only reads and fits is taken at once and never reconsidered, since moving it to the front of the rest changes
nothing for the others. Calls of unknown outcome are tried last, first at most one in a row, then few, then any number:
whoever needs one will ask for it. And of two that are equal only the older is tried.

What makes a check long is many calls of unknown outcome that could happen anywhere. A model that knows what the other
answers reveal can rule most of them out (`Model.informed_by`).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

S = TypeVar("S", bound=Hashable)
C = TypeVar("C")
O = TypeVar("O")  # noqa: E741  # an outcome

_SHOWN = 8
# Most calls of unknown outcome in a row, and the share of the steps in which that has to lead to an explanation.
_UNKNOWN_IN_A_ROW = ((1, 0.25), (4, 0.5), (None, 1.0))


@dataclass(frozen=True, slots=True, eq=False)
class Operation(Generic[C, O]):
    """One call of a history.

    Attributes:
        client: Who made it; for reports only. A client may have several calls under way.
        call: What was asked.
        outcome: What was answered; None if nobody knows.
        began: Moment at which it was made, on the history's clock.
        ended: Moment at which it was answered; None if nobody knows what became of it.
    """

    client: Hashable
    call: C
    outcome: O | None
    began: int
    ended: int | None

    def __str__(self) -> str:
        end = "..." if self.ended is None else str(self.ended)
        outcome = "?" if self.ended is None else repr(self.outcome)
        return f"[{self.began}, {end}] {self.client}: {self.call!r} -> {outcome}"


class Underway(Generic[C, O]):
    """A call that has begun; `History.operation` gives it. Say how it ended, at most once, or leave it unknown."""

    def __init__(self, history: History[C, O], client: Hashable, call: C) -> None:
        self._history = history
        self._client = client
        self._call = call
        self._ended = False
        self._began = history.clock()

    def returned(self, outcome: O) -> None:
        """The call was answered just now. An error that tells something of the object is an outcome too."""
        self._end()
        self._history.add(Operation(self._client, self._call, outcome, self._began, self._history.clock()))

    def failed(self) -> None:
        """The call certainly did nothing and told nothing, such as a refused connection."""
        self._end()

    def unknown(self) -> None:
        """Nobody knows whether the call did, does or will do anything. Leaving the block says the same."""
        self._end()
        self._history.add(Operation(self._client, self._call, None, self._began, None))

    @property
    def ended(self) -> bool:
        """Whether it was said how the call ended."""
        return self._ended

    def _end(self) -> None:
        if self._ended:
            raise RuntimeError("a call ends once")
        self._ended = True


class History(Generic[C, O]):
    """What clients asked and were told, and when.

        with history.operation("client 1", Append(b"a")) as operation:
            operation.returned(await store.append(...))

    A block that is left in any way without a word, by an exception too, leaves the outcome unknown: right for a
    cancelled or interrupted call. Tasks and threads may share a history.

    Args:
        clock: Moments as integers that never decrease; by default the number of moments asked for before, which fits
            one process. Pass `time.monotonic_ns` to put the operations of several processes of one machine together.
            Calls that touch at one moment count as concurrent.
    """

    def __init__(self, *, clock: Callable[[], int] | None = None) -> None:
        self.clock: Callable[[], int] = itertools.count().__next__ if clock is None else clock
        self._operations: list[Operation[C, O]] = []

    def __repr__(self) -> str:
        open_ones = sum(operation.ended is None for operation in self._operations)
        return f"<History: {len(self._operations)} operations, {open_ones} of unknown outcome>"

    def __len__(self) -> int:
        return len(self._operations)

    def __iter__(self) -> Iterator[Operation[C, O]]:
        return iter(list(self._operations))

    def add(self, operation: Operation[C, O]) -> None:
        """Add an operation that was recorded elsewhere, on the same clock."""
        self._operations.append(operation)

    @contextmanager
    def operation(self, client: Hashable, call: C) -> Iterator[Underway[C, O]]:
        """Record a call that is made inside the block."""
        underway = Underway(self, client, call)
        try:
            yield underway
        finally:
            if not underway.ended:
                underway.unknown()

    def split(self, key: Callable[[C], Hashable]) -> dict[Hashable, list[Operation[C, O]]]:
        """The operations by what they concern.

        A history of independent objects is linearizable if that of each object is; checking them one by one is much
        quicker.
        """
        parts: dict[Hashable, list[Operation[C, O]]] = {}
        for operation in self._operations:
            parts.setdefault(key(operation.call), []).append(operation)
        return parts


class Model(ABC, Generic[S, C, O]):
    """An object that serves one call after the other: what concurrent clients are supposed to believe in."""

    @abstractmethod
    def initial(self) -> S:
        """The state before the first call. States are values: hashable, and never changed."""

    @abstractmethod
    def step(self, state: S, call: C, outcome: O | None) -> Iterable[S]:
        """The states after a call that had this outcome.

        Args:
            state: State before the call.
            call: What was asked.
            outcome: What was answered; None if nobody knows, and then the answer of this method is what the call could
                have done if it happened.

        Returns:
            No state if the call cannot have this outcome here; several if the outcome does not tell.
        """

    def reads_only(self, call: C) -> bool:
        """Whether a call never changes a state, whichever. Saying so makes the check quicker."""
        del call
        return False

    def informed_by(self, operations: Sequence[Operation[C, O]]) -> Model[S, C, O]:
        """A model of the same object for one history, asked for before the check.

        It may leave out of `step` the states that contradict answers of this history: after a call of unknown outcome,
        for example, that would have written what every later reader did not see. By default this model itself.
        """
        del operations
        return self


class NotLinearizableError(AssertionError):
    """No order explains what the clients were told.

    Attributes:
        explained: The longest order that was found, oldest first.
        state: The model's state after it.
        stuck: The operations of which one would have to come next; none of them can.
    """

    def __init__(
        self, explained: tuple[Operation[Any, Any], ...], state: object, stuck: tuple[Operation[Any, Any], ...]
    ) -> None:
        super().__init__(explained, state, stuck)
        self.explained: tuple[Operation[Any, Any], ...] = explained
        self.state: object = state
        self.stuck: tuple[Operation[Any, Any], ...] = stuck

    def __str__(self) -> str:
        lines = [f"not linearizable: after {len(self.explained)} operations, the last of them"]
        lines += [f"    {operation}" for operation in self.explained[-_SHOWN:]]
        lines += [f"the state would be {self.state!r}, and none of these can be next:"]
        lines += [f"    {operation}" for operation in self.stuck]
        return "\n".join(lines)


class UndecidedError(AssertionError):
    """The search took too long. Record a shorter history, split it, or leave fewer outcomes unknown.

    Attributes:
        steps: How many steps of the model were tried.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.steps: int = steps

    def __str__(self) -> str:
        return f"neither shown nor refuted in {self.steps} steps"


def check_linearizable(
    operations: Iterable[Operation[C, O]], model: Model[S, C, O], *, max_steps: int = 1_000_000
) -> tuple[Operation[C, O], ...]:
    """Check that a history is linearizable with respect to a model.

    Args:
        operations: A `History`, or part of one, in any order.
        model: What the object is supposed to do.
        max_steps: Most steps of the model to try.

    Returns:
        An order that explains the history: each operation with an answer once, and those of unknown outcome that must
        have happened.

    Raises:
        NotLinearizableError: if there is no such order.
        UndecidedError: if `max_steps` did not suffice to tell.
        ValueError: if an operation ended before it began.
    """
    history = list(operations)
    informed = model.informed_by(history)
    steps = 0
    for most, share in _UNKNOWN_IN_A_ROW:
        search = _Search(history, informed, most, steps, int(max_steps * share))
        try:
            return search.run()
        except NotLinearizableError:
            if not search.left_out:
                raise
        except UndecidedError:
            if most is None:
                raise UndecidedError(max_steps) from None
        steps = search.steps
    raise AssertionError("the last search leaves nothing out")


class _Entry(Generic[C, O]):
    """Beginning or end of an operation, in a list of those that the search has not taken."""

    __slots__ = ("after", "before", "bit", "end", "moment", "operation")

    def __init__(self, operation: Operation[C, O] | None, moment: int, bit: int) -> None:
        self.operation = operation
        self.moment = moment
        self.bit = bit
        self.end: _Entry[C, O] | None = None  # of a beginning
        self.before: _Entry[C, O] = self
        self.after: _Entry[C, O] | None = None

    def take_out(self) -> None:
        self.before.after = self.after
        if self.after is not None:
            self.after.before = self.before

    def put_back(self) -> None:
        self.before.after = self
        if self.after is not None:
            self.after.before = self


@dataclass(slots=True)
class _Node(Generic[S, C, O]):
    """A state that the search has reached, and the ways on that it has not tried."""

    state: S
    ways: Iterator[tuple[_Entry[C, O], S]]
    taken: _Entry[C, O] | None = None  # the way that was taken
    unknown: int = 0  # calls of unknown outcome in a row up to here


class _Search(Generic[S, C, O]):
    """One search; `run` once.

    Attributes:
        steps: Steps of the model that were tried, those of earlier searches included.
        left_out: Whether a call of unknown outcome was not tried because there were too many in a row.
    """

    def __init__(
        self, operations: list[Operation[C, O]], model: Model[S, C, O], most: int | None, steps: int, max_steps: int
    ) -> None:
        self._model = model
        self._most = most
        self._max_steps = max_steps
        self.steps = steps
        self.left_out = False
        self._bits = 0  # of the operations that were taken
        self._missing = 0  # operations with an answer that were not
        self._head = _Entry[C, O](None, 0, 0)
        self._unknown: list[_Entry[C, O]] = []
        self._uncertain = 0  # bits of those
        self._fill(operations)

    def _fill(self, operations: list[Operation[C, O]]) -> None:
        entries: list[_Entry[C, O]] = []
        for number, operation in enumerate(sorted(operations, key=lambda operation: operation.began)):
            entry = _Entry(operation, operation.began, 1 << number)
            if operation.ended is None:
                self._unknown.append(entry)
                self._uncertain |= entry.bit
                continue
            if operation.ended < operation.began:
                raise ValueError(f"an operation ended before it began: {operation}")
            entry.end = _Entry(operation, operation.ended, 0)
            entries += (entry, entry.end)
            self._missing += 1
        entries.sort(key=lambda entry: (entry.moment, entry.end is None))  # beginnings first: touching is concurrent
        last = self._head
        for entry in entries:
            last.after, entry.before = entry, last
            last = entry

    def run(self) -> tuple[Operation[C, O], ...]:
        state = self._model.initial()
        seen: dict[tuple[int, S], list[int]] = {}
        path = [_Node(state, self._ways(state, 0))]
        deepest: NotLinearizableError | None = None
        while self._missing:
            node = path[-1]
            for entry, following in node.ways:
                bits = self._bits | entry.bit
                uncertain = bits & self._uncertain
                before = seen.setdefault((bits ^ uncertain, following), [])
                if not any(fewer & uncertain == fewer for fewer in before):
                    before.append(uncertain)
                    node.taken = entry
                    self._take(entry)
                    unknown = node.unknown + 1 if entry.end is None else 0
                    path.append(_Node(following, self._ways(following, unknown), unknown=unknown))
                    break
            else:
                if deepest is None or len(path) > len(deepest.explained) + 1:
                    deepest = NotLinearizableError(_order(path), node.state, self._candidates())
                path.pop()
                if not path:
                    raise deepest
                self._give_back(path[-1])
        return _order(path)

    def _ways(self, state: S, unknown: int) -> Iterator[tuple[_Entry[C, O], S]]:
        """Each operation that could come next, with a state after it."""
        for entry in self._next_entries():
            operation = entry.operation
            assert operation is not None
            if entry.end is None and unknown == self._most:
                self.left_out = True
                return
            self.steps += 1
            if self.steps > self._max_steps:
                raise UndecidedError(self._max_steps)
            outcome = None if operation.ended is None else operation.outcome
            for following in self._model.step(state, operation.call, outcome):
                if operation.ended is None and following == state:
                    continue  # as if it had not happened
                yield entry, following
                if operation.ended is not None and self._model.reads_only(operation.call):
                    return  # if this leads nowhere, nothing does

    def _next_entries(self) -> Iterator[_Entry[C, O]]:
        """What began before anything else ended; while the caller goes on from one, that one is out of the list."""
        entry = self._head.after
        while entry is not None and entry.end is not None:
            yield entry
            entry = entry.after
        tried: list[C] = []
        for unknown in self._unknown:
            assert unknown.operation is not None
            if entry is not None and unknown.moment > entry.moment:
                return
            if not unknown.bit & self._bits and unknown.operation.call not in tried:
                tried.append(unknown.operation.call)
                yield unknown

    def _candidates(self) -> tuple[Operation[C, O], ...]:
        return tuple(entry.operation for entry in self._next_entries() if entry.operation is not None)

    def _take(self, entry: _Entry[C, O]) -> None:
        self._bits |= entry.bit
        if entry.end is not None:
            entry.take_out()
            entry.end.take_out()
            self._missing -= 1

    def _give_back(self, node: _Node[S, C, O]) -> None:
        entry = node.taken
        assert entry is not None
        node.taken = None
        self._bits &= ~entry.bit
        if entry.end is not None:
            entry.end.put_back()
            entry.put_back()
            self._missing += 1


def _order(path: list[_Node[S, C, O]]) -> tuple[Operation[C, O], ...]:
    return tuple(node.taken.operation for node in path if node.taken is not None and node.taken.operation is not None)
