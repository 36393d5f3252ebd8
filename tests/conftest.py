"""Both event loops for every async test, and the strictest settings of each."""

import gc
from collections.abc import Iterator

import hypothesis  # noqa: F401  # its first import looks at trio's referrers, which the freeze below would hide
import pytest


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"debug": True}), id="asyncio"),
        pytest.param(("trio", {"strict_exception_groups": True}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """The loop that an async test runs on."""
    return request.param


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Collect garbage after each test, so that a leaked socket or coroutine fails the test that leaked it.

    In between nothing is collected. So all that the test has made is in the youngest generation, and nothing else has
    to be looked at: looking at everything each time would be a third of the suite's time.
    """
    gc.disable()
    yield
    gc.collect(0)
    gc.enable()


def pytest_collection_finish() -> None:
    """Keep what importing has made out of those collections: they take a tenth of the time then."""
    gc.collect()
    gc.freeze()
