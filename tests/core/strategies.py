"""Inputs that several tests of the core draw from."""

from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st

#: Machines differ in speed; no test here asserts about time.
relaxed = settings(deadline=None, max_examples=300)


def splits(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """The data cut into pieces at any positions; pieces may be empty."""

    def cut(positions: list[int]) -> list[bytes]:
        bounds = [0, *sorted(positions), len(data)]
        return [data[start:end] for start, end in pairwise(bounds)]

    return st.lists(st.integers(0, len(data)), max_size=12).map(cut)


#: Text that can be encoded: no lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

#: Any JSON value, integers of any size included.
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=12,
)
