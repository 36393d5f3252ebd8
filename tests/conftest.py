"""Both event loops for every async test, and the strictest settings of each."""

import gc
import signal
from collections.abc import Iterator

import hypothesis  # noqa: F401  # its first import looks at trio's referrers, which the freeze below would hide
import looptime
import pytest
import trio.testing


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"debug": True}), id="asyncio"),
        pytest.param(("trio", {"strict_exception_groups": True}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """The loop that an async test runs on, with a clock that jumps if the test asks for `fake_clock`."""
    name, options = request.param
    if "fake_clock" not in request.fixturenames:
        return name, options
    if name == "trio":
        return name, options | {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return name, options | {"loop_factory": looptime.new_event_loop}


@pytest.fixture
def fake_clock() -> None:
    """Makes time jump to the next deadline whenever nothing else is to be done. Such a test uses no sockets."""


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


def pytest_configure() -> None:
    """Listen to Ctrl-C even if the shell has started the tests in the background: programs inherit who does not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Keep what importing has made out of those collections: they take a tenth of the time then."""
    gc.collect()
    gc.freeze()
