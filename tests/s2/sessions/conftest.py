"""Loops whose time jumps, for the tests that ask for `fake_clock`."""

from __future__ import annotations

from typing import Any

import looptime
import pytest
import trio.testing


@pytest.fixture
def fake_clock() -> None:
    """Makes time jump to the next deadline whenever nothing else is to be done. Such a test uses no sockets."""


@pytest.fixture
def anyio_backend(anyio_backend: tuple[str, dict[str, Any]], request: pytest.FixtureRequest) -> object:
    """The loop that an async test runs on, with a fake clock if the test has asked for one."""
    name, options = anyio_backend
    if "fake_clock" not in request.fixturenames:
        return anyio_backend
    if name == "trio":
        return name, options | {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return name, options | {"loop_factory": looptime.new_event_loop}
