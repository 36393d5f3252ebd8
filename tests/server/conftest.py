"""A server in the test's own event loop, and a clock to go with it."""

import random

import pytest

from .driver import Client, Clock, make_client


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock) -> Client:
    """A server with small limits, so that tests reach them."""
    return make_client(
        clock=clock,
        rng=random.Random(7),
        long_poll_timeout=5.0,
        max_append_bytes=300_000,
        page_bytes=400_000,
    )
