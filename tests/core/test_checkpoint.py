import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams import Checkpoint, InvalidArgumentError

from .strategies import relaxed, texts

checkpoints = st.builds(
    Checkpoint,
    offset=st.text(min_size=1, max_size=40),
    cursor=st.none() | texts,
    up_to_date=st.booleans(),
    stream_closed=st.booleans(),
    text_tail=st.sampled_from([b"", b"\xe2", b"\xe2\x82", b"\xf0\x9f\x98"]),
)


@relaxed
@given(checkpoints)
def test_a_checkpoint_survives_being_stored(checkpoint: Checkpoint) -> None:
    line = checkpoint.dumps()

    assert "\n" not in line
    assert line.isascii()
    assert Checkpoint.loads(line) == checkpoint
    assert Checkpoint.loads(line.encode()) == checkpoint
    assert Checkpoint.from_dict(checkpoint.to_dict()) == checkpoint
    assert Checkpoint.from_dict(json.loads(json.dumps(checkpoint.to_dict()))) == checkpoint
    assert pickle.loads(pickle.dumps(checkpoint)) == checkpoint
    assert copy.deepcopy(checkpoint) == checkpoint
    assert hash(checkpoint) == hash(Checkpoint.loads(line))


def test_fields_at_their_defaults_are_left_out() -> None:
    assert Checkpoint("5_1").dumps() == '{"offset":"5_1"}'
    assert Checkpoint("5_1", "7", True, True, b"\xe2\x82").to_dict() == {
        "offset": "5_1",
        "cursor": "7",
        "up_to_date": True,
        "stream_closed": True,
        "text_tail": "e282",
    }


def test_fields_of_later_versions_are_ignored() -> None:
    assert Checkpoint.loads('{"offset":"5","later":{"x":NaN}}') == Checkpoint("5")


def test_the_start_of_a_stream_is_a_checkpoint() -> None:
    assert Checkpoint.start() == Checkpoint("-1")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "offset must be a non-empty str, got None"),
        ({"offset": ""}, "offset must be a non-empty str, got ''"),
        ({"offset": 5}, "offset must be a non-empty str, got 5"),
        ({"offset": "5", "cursor": 7}, "cursor must be a str or None, got 7"),
        ({"offset": "5", "up_to_date": 1}, "up_to_date must be a bool, got 1"),
        ({"offset": "5", "stream_closed": "true"}, "stream_closed must be a bool, got 'true'"),
        ({"offset": "5", "text_tail": "e2x"}, "text_tail must be hexadecimal, got 'e2x'"),
        ({"offset": "5", "text_tail": b"\xe2"}, "text_tail must be hexadecimal"),
        ({"offset": "5", "text_tail": None}, "text_tail must be hexadecimal, got None"),
        ({"offset": "5", "text_tail": "f09f9880"}, "text_tail has at most 3 bytes, got 4"),
    ],
)
def test_fields_with_wrong_values_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^checkpoint: {words}"):
        Checkpoint.from_dict(fields)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("5_1", "not JSON"),
        (b"\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected a JSON object, got list"),
        ('"5_1"', "expected a JSON object, got str"),
        ("null", "expected a JSON object, got NoneType"),
        ("{}", "offset must be"),
    ],
)
def test_what_is_no_dumped_checkpoint_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^checkpoint: {words}"):
        Checkpoint.loads(text)


@pytest.mark.parametrize("wrong", [None, 5, ["offset"], "5_1"])
def test_other_types_are_type_errors(wrong: object) -> None:
    with pytest.raises(TypeError):
        Checkpoint.from_dict(wrong)  # type: ignore[arg-type]  # the point of the test
    if not isinstance(wrong, str):
        with pytest.raises(TypeError):
            Checkpoint.loads(wrong)  # type: ignore[arg-type]  # the point of the test


def test_a_checkpoint_cannot_be_changed_by_accident() -> None:
    with pytest.raises(AttributeError):
        Checkpoint("5").offset = "6"  # type: ignore[misc]  # the point of the test
