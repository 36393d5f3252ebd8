"""A batch given as bytes goes out as the same frame, under the same rules, as one of records."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.errors import InvalidArgumentError
from durable_streams.s2 import AppendInput, AppendRecord
from durable_streams.s2._outgoing import outgoing


@settings(deadline=None)  # a loaded machine is no failure
@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=20),
    st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=36),
)
def test_bytes_and_records_make_the_same_frame(bodies: list[bytes], match: int | None, token: str | None) -> None:
    as_bytes = outgoing(bodies, match, token)
    as_records = outgoing([AppendRecord(body) for body in bodies], match, token)
    mixed = outgoing([AppendRecord(bodies[0]), *bodies[1:]], match, token)

    assert as_bytes.frame("none") == as_records.frame("none") == mixed.frame("none")
    assert (as_bytes.count, as_bytes.metered_bytes) == (as_records.count, as_records.metered_bytes)
    assert as_bytes.batch == as_records.batch == AppendInput([AppendRecord(body) for body in bodies], match, token)


@pytest.mark.parametrize(
    "records",
    [[], [b""] * 1001, [b"x" * (1 << 20)], [b"x" * 600_000, b"x" * 600_000]],
    ids=["none", "too many", "one too large", "too large together"],
)
def test_batches_that_break_a_limit_are_refused_in_either_form(records: list[bytes]) -> None:
    for form in (records, [AppendRecord(body) for body in records], iter(records)):
        with pytest.raises(InvalidArgumentError):
            outgoing(form)


@pytest.mark.parametrize(("match", "token"), [(-1, None), (2**64, None), (None, "t" * 37)])
def test_conditions_out_of_range_are_refused_in_either_form(match: Any, token: Any) -> None:
    for form in ([b"x"], [AppendRecord(b"x")]):
        with pytest.raises(InvalidArgumentError):
            outgoing(form, match, token)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [7, [7], [b"a", None], None])
def test_what_is_no_record_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError):
        outgoing(bad)


def test_a_single_record_of_any_kind_is_a_batch() -> None:
    frames = {outgoing(record).frame("none") for record in ("x", b"x", AppendRecord(b"x"), ["x"], (b"x",))}

    assert len(frames) == 1
