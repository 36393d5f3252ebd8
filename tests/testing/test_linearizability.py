"""The check of histories: it explains what can be explained, and nothing else."""

from __future__ import annotations

import itertools
import pickle
import random
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.testing import (
    History,
    Model,
    NotLinearizableError,
    Operation,
    UndecidedError,
    check_linearizable,
)

#: ("write", value), ("read",), ("swap", old, new); answers: None for a write, the value of a read, True for a swap.
Call = tuple[Any, ...]


class Register(Model[int, Call, Any]):
    """One number."""

    def initial(self) -> int:
        return 0

    def reads_only(self, call: Call) -> bool:
        return call[0] == "read"

    def step(self, state: int, call: Call, outcome: Any) -> Iterable[int]:
        match call:
            case ("write", value):
                return (value,)
            case ("swap", old, new):
                if outcome is None:
                    return (new,) if state == old else ()
                return (() if outcome else (state,)) if state != old else ((new,) if outcome else ())
        return (state,) if outcome in (None, state) else ()


class SlowRegister(Register):
    """The same without the hint that makes the check quicker."""

    def reads_only(self, call: Call) -> bool:
        return False


class Bag(Model[frozenset[str], Call, Any]):
    """Things that are put in, and taken out in any order."""

    def initial(self) -> frozenset[str]:
        return frozenset()

    def step(self, state: frozenset[str], call: Call, outcome: Any) -> Iterable[frozenset[str]]:
        if call[0] == "put":
            return (state | {call[1]},)
        if outcome is None:
            return [state - {thing} for thing in state]
        return (state - {outcome},) if outcome in state else ()


def op(call: Call, outcome: Any, began: int, ended: int | None) -> Operation[Call, Any]:
    return Operation("c", call, outcome, began, ended)


def write(value: int, began: int, ended: int | None) -> Operation[Call, Any]:
    return op(("write", value), "done", began, ended)


def read(value: int, began: int, ended: int) -> Operation[Call, Any]:
    return op(("read",), value, began, ended)


LINEARIZABLE = {
    "nothing": [],
    "one after the other": [write(1, 0, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7)],
    "a read during a write sees it": [write(1, 0, 3), read(1, 1, 2)],
    "a read during a write does not see it": [write(1, 0, 3), read(0, 1, 2)],
    "two writes at once, seen in the order that ended last": [write(1, 0, 5), write(2, 1, 4), read(1, 6, 7)],
    "a write of unknown outcome is seen": [write(1, 0, None), read(1, 1, 2)],
    "a write of unknown outcome is never seen": [write(1, 0, None), read(0, 1, 2), read(0, 3, 4)],
    "a write of unknown outcome is seen much later": [
        write(1, 0, None),
        write(2, 1, 2),
        read(2, 3, 4),
        read(1, 5, 6),
    ],
    "calls that touch are concurrent": [write(1, 0, 2), read(0, 2, 3)],
    "two unknown writes alike, both needed": [
        write(1, 0, None),
        write(1, 1, None),
        read(1, 2, 3),
        write(2, 4, 5),
        read(1, 6, 7),
    ],
    "a swap that failed, before the write": [write(1, 0, 5), op(("swap", 1, 2), False, 1, 2), read(1, 6, 7)],
}
NOT_LINEARIZABLE = {
    "a write is lost": [write(1, 0, 1), read(0, 2, 3)],
    "a read comes from the future": [read(1, 0, 1), write(1, 2, 3)],
    "a value from nowhere": [write(1, 0, 1), read(7, 2, 3)],
    "two readers see two orders": [
        write(1, 0, 10),
        write(2, 0, 10),
        read(1, 1, 2),
        read(2, 3, 4),
        read(1, 5, 6),
    ],
    "time goes back": [write(1, 0, 10), read(1, 1, 2), read(0, 3, 4)],
    "an unknown write happens before it began": [read(1, 0, 1), write(1, 2, None)],
    "an unknown write happens twice": [
        write(1, 0, None),
        read(1, 1, 2),
        write(2, 3, 4),
        read(1, 5, 6),
    ],
    "two swaps of one value": [op(("swap", 0, 1), True, 0, 3), op(("swap", 0, 2), True, 1, 4)],
}


@pytest.mark.parametrize("history", LINEARIZABLE.values(), ids=LINEARIZABLE)
@pytest.mark.parametrize("model", [Register(), SlowRegister()])
def test_what_has_an_explanation_passes(history: list[Operation[Call, Any]], model: Register) -> None:
    order = check_linearizable(reversed(history), model)

    assert {id(one) for one in order} >= {id(one) for one in history if one.ended is not None}
    replay(order, model)


@pytest.mark.parametrize("history", NOT_LINEARIZABLE.values(), ids=NOT_LINEARIZABLE)
@pytest.mark.parametrize("model", [Register(), SlowRegister()])
def test_what_has_none_fails(history: list[Operation[Call, Any]], model: Register) -> None:
    with pytest.raises(NotLinearizableError):
        check_linearizable(history, model)


def replay(order: Iterable[Operation[Any, Any]], model: Model[Any, Any, Any]) -> None:
    """An order is what it claims to be: the model agrees, and nothing comes before what had ended."""
    states, latest = {model.initial()}, -1
    for one in order:
        assert one.ended is None or one.ended >= latest
        latest = max(latest, one.began)
        states = {after for state in states for after in model.step(state, one.call, one.outcome)}
        assert states


def explainable(history: list[Operation[Call, Any]], model: Model[Any, Call, Any]) -> bool:
    """The same question answered by trying every order of every choice."""
    known = [one for one in history if one.ended is not None]
    unknown = [one for one in history if one.ended is None]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *chosen]):
                try:
                    replay(order, model)
                except AssertionError:
                    continue
                return True
    return False


def histories(calls: st.SearchStrategy[tuple[Call, Any]]) -> st.SearchStrategy[list[Operation[Call, Any]]]:
    def make(asked: tuple[Call, Any], began: int, takes: int | None) -> Operation[Call, Any]:
        unknown = takes is None
        return op(asked[0], None if unknown else asked[1], began, None if unknown else began + takes)

    moments = st.integers(0, 8)
    return st.lists(st.builds(make, calls, moments, st.none() | moments), max_size=5)


VALUES = st.integers(0, 2)
ON_A_REGISTER = st.one_of(
    st.builds(lambda value: (("write", value), "done"), VALUES),
    st.builds(lambda value: (("read",), value), VALUES),
    st.builds(lambda old, new, done: (("swap", old, new), done), VALUES, VALUES, st.booleans()),
)
ON_A_BAG = st.one_of(
    st.builds(lambda thing: (("put", thing), "done"), st.sampled_from("ab")),
    st.builds(lambda thing: (("take",), thing), st.sampled_from("ab")),
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_the_search_agrees_with_trying_every_order(data: st.DataObject) -> None:
    model: Model[Any, Call, Any] = data.draw(st.sampled_from([Register(), SlowRegister(), Bag()]))
    history = data.draw(histories(ON_A_BAG if isinstance(model, Bag) else ON_A_REGISTER))

    try:
        replay(check_linearizable(history, model), model)
    except NotLinearizableError:
        assert not explainable(history, model)
    else:
        assert explainable(history, model)


def long_history(seed: int, length: int, unknown: float) -> list[Operation[Call, Any]]:
    """What eight clients of a register could have seen, its calls of random length around the moment of each."""
    rng, state, history = random.Random(seed), 0, []
    for moment in range(length):
        began, ended = moment * 10 - rng.randrange(40), moment * 10 + rng.randrange(40)
        if rng.random() < 0.5:
            history.append(op(("read",), state, began, ended))
            continue
        state = moment
        history.append(write(state, began, None if rng.random() < unknown else ended))
    return history


@pytest.mark.parametrize("unknown", [0.0, 0.1])
def test_a_long_history_is_checked_quickly(unknown: float) -> None:
    history = long_history(5, 2000, unknown)

    assert len(check_linearizable(history, Register(), max_steps=200_000)) > 1900


def test_one_wrong_answer_in_a_long_history_is_found() -> None:
    history = long_history(6, 1000, 0.0)
    wrong = next(one for one in history[700:] if one.call == ("read",))
    history[history.index(wrong)] = op(("read",), wrong.outcome - 50, wrong.began, wrong.ended)

    with pytest.raises(NotLinearizableError) as caught:
        check_linearizable(history, Register(), max_steps=200_000)

    assert 600 < len(caught.value.explained) < 720


def test_a_history_that_is_too_hard_is_not_called_wrong() -> None:
    history = [write(number, 0, 100) for number in range(1, 30)]
    history += [op(("swap", 29, -1), True, 0, 100), op(("swap", -2, 0), True, 0, 100)]

    with pytest.raises(UndecidedError) as caught:
        check_linearizable(history, Register(), max_steps=5000)

    assert str(caught.value) == "neither shown nor refuted in 5000 steps"
    assert pickle.loads(pickle.dumps(caught.value)).steps == 5000


def test_a_model_may_learn_from_the_history() -> None:
    class Informed(Register):
        def __init__(self, read: frozenset[Any] | None = None) -> None:
            self.read = read

        def informed_by(self, operations: Sequence[Operation[Call, Any]]) -> Informed:
            return Informed(frozenset(one.outcome for one in operations if one.call == ("read",)))

        def step(self, state: int, call: Call, outcome: Any) -> Iterable[int]:
            if call[0] == "write" and outcome is None and self.read is not None and call[1] not in self.read:
                return ()
            return super().step(state, call, outcome)

    history = [write(number, 0, None) for number in range(1, 30)]
    history += [read(17, 1, 2), read(4, 3, 4), read(0, 5, 6)]

    with pytest.raises(UndecidedError):
        check_linearizable(history, Register(), max_steps=5000)
    with pytest.raises(NotLinearizableError):
        check_linearizable(history, Informed(), max_steps=5000)
    assert len(check_linearizable(history[:-1], Informed(), max_steps=5000)) == 4


def test_many_unknown_calls_in_a_row_are_found_if_they_are_needed() -> None:
    history = [op(("swap", number, number + 1), None, 0, None) for number in range(7)]
    history += [op(("swap", 70, number), None, 0, None) for number in range(3)]

    assert len(check_linearizable([*history, read(7, 1, 2)], Register())) == 8
    with pytest.raises(NotLinearizableError):
        check_linearizable([*history, read(70, 1, 2)], Register())


def test_the_error_tells_how_far_an_explanation_went_and_what_came_next() -> None:
    history = [write(1, 0, 1), read(1, 2, 3), Operation("me", ("read",), 5, 4, 5)]

    with pytest.raises(NotLinearizableError) as caught:
        check_linearizable(history, Register())

    error = pickle.loads(pickle.dumps(caught.value))
    assert [one.call for one in error.explained] == [("write", 1), ("read",)]
    assert (error.state, [one.client for one in error.stuck]) == (1, ["me"])
    assert str(error) == (
        "not linearizable: after 2 operations, the last of them\n"
        "    [0, 1] c: ('write', 1) -> 'done'\n"
        "    [2, 3] c: ('read',) -> 1\n"
        "the state would be 1, and none of these can be next:\n"
        "    [4, 5] me: ('read',) -> 5"
    )


def test_an_operation_that_ended_before_it_began_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ended before it began: \[3, 2\] c"):
        check_linearizable([write(1, 3, 2)], Register())


def test_a_history_keeps_the_order_of_beginnings_and_ends() -> None:
    history: History[Call, Any] = History()
    with history.operation("a", ("write", 1)) as first:
        with history.operation("b", ("read",)) as second:
            second.returned(0)
        first.returned("done")
    with history.operation("a", ("read",)) as third:
        third.returned(1)

    assert [str(one) for one in history] == [
        "[1, 2] b: ('read',) -> 0",
        "[0, 3] a: ('write', 1) -> 'done'",
        "[4, 5] a: ('read',) -> 1",
    ]
    check_linearizable(history, Register())
    assert list(history.split(lambda call: call[0])) == ["read", "write"]


def test_an_operation_may_fail_or_stay_unknown() -> None:
    history: History[Call, Any] = History()
    with history.operation("a", ("write", 1)) as refused:
        refused.failed()
    with history.operation("a", ("write", 2)) as unknown:
        unknown.unknown()
    with pytest.raises(OSError, match="gone"), history.operation("a", ("write", 3)):
        raise OSError("gone")
    with history.operation("a", ("write", 4)):
        pass

    assert [str(one) for one in history] == [
        f"[{number}, ...] a: ('write', {number + 1}) -> ?" for number in range(1, 4)
    ]
    assert repr(history) == "<History: 3 operations, 3 of unknown outcome>"
    assert len(history) == 3


def test_an_operation_ends_once() -> None:
    history: History[Call, Any] = History()
    with history.operation("a", ("read",)) as operation:
        operation.returned(0)
        with pytest.raises(RuntimeError, match="ends once"):
            operation.failed()
    assert len(history) == 1


@pytest.mark.anyio
async def test_a_cancelled_call_is_of_unknown_outcome() -> None:
    history: History[Call, Any] = History()
    with anyio.CancelScope() as scope:
        scope.cancel()
        with history.operation("a", ("write", 1)) as operation:
            await anyio.sleep_forever()
            operation.returned("done")

    assert [one.ended for one in history] == [None]


def test_threads_may_share_a_history_and_processes_a_clock() -> None:
    history: History[Call, Any] = History(clock=time.monotonic_ns)
    lock, value = threading.Lock(), 0

    def work(number: int) -> None:
        nonlocal value
        for turn in range(20):
            with history.operation(number, ("write", turn)) as operation, lock:
                value = turn
                operation.returned("done")
            with history.operation(number, ("read",)) as operation, lock:
                operation.returned(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(history) == 160
    check_linearizable(history, Register())
    elsewhere: History[Call, Any] = History()
    for operation in history:
        elsewhere.add(operation)
    check_linearizable(elsewhere, Register())
