"""`durable-streams s2 ...` against `s2 lite`: the tests of tests/cli/test_s2.py, with another server."""

from collections.abc import Iterator

import pytest

from tests.cli.conftest import run as run  # the fixtures that those tests need
from tests.cli.test_s2 import *  # noqa: F403
from tests.cli.test_s2 import _environment as _environment

from .s2lite import Lite, required, why_not

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def fake() -> Iterator[Lite]:
    """The server, under the name that it has there: all that those tests want of it is `url`."""
    missing = why_not()
    if missing is not None:
        assert not required(), missing
        pytest.skip(missing)
    with Lite() as lite:
        yield lite
