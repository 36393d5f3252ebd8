"""Every error: built, pickled, copied, printed; its place in the tree and its decision about retrying."""

import builtins
import copy
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

import durable_streams
from durable_streams import errors
from durable_streams.errors import DurableStreamError

CLASSES: list[type[DurableStreamError]] = [getattr(errors, name) for name in errors.__all__]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=errors.__all__)

FACTS: dict[str, Any] = {
    "code": "OTHER",
    "status": 503,
    "url": "http://host/x",
    "details": {"a": [1, None]},
    "headers": {"retry-after": "2"},
    "maybe_applied": True,
    "retry_after": 1.5,
}

#: Values of the arguments that only some classes have.
OWN: dict[str, Any] = {
    "final_offset": "5",
    "earliest_offset": "3",
    "text": "words",
    "json": {"error": 1},
    "phase": "sent",
    "reused": True,
    "preview": "{",
    "offset": "4",
    "current_epoch": 7,
    "expected_seq": 8,
    "received_seq": 9,
    "first": "json",
    "second": "text",
}


def own_arguments(cls: type[DurableStreamError]) -> list[str]:
    parameters = inspect.signature(cls).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def repickle(error: DurableStreamError, *, protocol: int) -> Any:
    return pickle.loads(pickle.dumps(error, protocol))


def build(cls: type[DurableStreamError]) -> DurableStreamError:
    error = cls("what happened", **FACTS, **{name: OWN[name] for name in own_arguments(cls)})
    error.attempt = 3
    return error


@every_class
def test_every_argument_becomes_an_attribute(cls: type[DurableStreamError]) -> None:
    error = build(cls)

    for name, value in {**FACTS, **{name: OWN[name] for name in own_arguments(cls)}}.items():
        assert getattr(error, name) == value
    assert (error.message, error.attempt) == ("what happened", 3)


@every_class
def test_every_argument_but_the_message_has_a_default(cls: type[DurableStreamError]) -> None:
    error = cls("what happened")

    assert str(error) == "what happened"
    assert error.code == cls.code
    assert (error.status, error.url, error.details, error.headers, error.retry_after) == (None,) * 5
    assert (error.maybe_applied, error.attempt) == (False, 0)
    assert error.args == ("what happened",)


@every_class
@pytest.mark.parametrize(
    "rebuild",
    [
        *(lambda error, p=protocol: pickle.loads(pickle.dumps(error, p)) for protocol in range(6)),
        copy.copy,
        copy.deepcopy,
    ],
)
def test_errors_can_be_pickled_and_copied(cls: type[DurableStreamError], rebuild: Callable[[Any], Any]) -> None:
    for error in (build(cls), cls("what happened")):
        rebuilt = rebuild(error)

        assert type(rebuilt) is cls
        assert rebuilt is not error
        assert vars(rebuilt) == vars(error)
        assert (str(rebuilt), repr(rebuilt), rebuilt.args) == (str(error), repr(error), error.args)
        assert rebuilt.retryable == error.retryable


@every_class
def test_a_write_that_may_have_been_applied_says_so(cls: type[DurableStreamError]) -> None:
    assert str(cls("what happened", maybe_applied=True)) == "what happened (the write may have been applied)"


@every_class
def test_every_error_is_public_documented_and_one_of_ours(cls: type[DurableStreamError]) -> None:
    assert issubclass(cls, DurableStreamError)
    assert cls.__doc__
    assert getattr(durable_streams, cls.__name__) is cls
    for name in own_arguments(cls):
        documented = "".join(base.__doc__ or "" for base in cls.__mro__ if issubclass(base, DurableStreamError))
        assert re.search(rf"^        {name}: ", documented, re.MULTILINE), name


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, tuple[str, str]] = {}
    above = {0: "DurableStreamError"}
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([│ ├└─]+)(\w+)(?: \((\w+)\))? +([A-Z_]+)", line)
        if found:
            depth = len(found[1]) // 4
            drawn[found[2]] = (above[depth - 1], found[4])
            above[depth] = found[2]
            if found[3]:
                assert issubclass(getattr(errors, found[2]), getattr(builtins, found[3]))

    actual = {cls.__name__: (cls.__bases__[0].__name__, cls.code) for cls in CLASSES if cls is not DurableStreamError}
    assert drawn == actual


def test_errors_are_also_what_callers_of_the_standard_library_expect() -> None:
    assert issubclass(errors.InvalidArgumentError, ValueError)
    assert issubclass(errors.RequestTimeoutError, TimeoutError)


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        *((400, False), (404, False), (409, False), (410, False), (429, True), (500, True), (501, False), (502, True)),
        *((503, True), (504, True), (505, False), (507, True), (599, True), (600, False), (200, False), (None, False)),
    ],
)
def test_the_status_decides_whether_trying_again_may_help(status: int | None, retryable: bool) -> None:
    assert DurableStreamError("words", status=status).retryable is retryable
    assert not DurableStreamError("words", status=status, maybe_applied=True).retryable


@pytest.mark.parametrize("cls", [errors.NetworkError, errors.IncompleteBodyError, errors.RequestTimeoutError])
def test_broken_exchanges_may_be_tried_again_unless_they_may_have_been_applied(cls: type[errors.NetworkError]) -> None:
    assert cls("words").retryable
    assert not cls("words", maybe_applied=True).retryable


def test_bytes_without_meaning_are_never_worth_another_try() -> None:
    assert not errors.ParseError("words").retryable


def test_a_preview_has_at_most_a_hundred_characters() -> None:
    assert errors.ParseError("words", preview="x" * 1000).preview == "x" * 100


def test_a_closed_stream_says_that_it_is_closed() -> None:
    assert errors.StreamClosedError("words").stream_closed is True
