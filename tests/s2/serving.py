"""A fake S2 server in a thread of its own, for code that is not async: commands, examples, documentation."""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from anyio.from_thread import start_blocking_portal

from durable_streams.testing import S2Fake


@contextmanager
def s2_in_a_thread() -> Iterator[S2Fake]:
    """Run the fake until the block ends. Use what it shows, but change nothing from outside its thread."""
    fake = S2Fake()

    async def serve(*, task_status: anyio.abc.TaskStatus[anyio.Event]) -> None:
        ended = anyio.Event()
        async with fake:
            task_status.started(ended)
            await ended.wait()

    with start_blocking_portal() as portal:
        future, ended = portal.start_task(serve)
        try:
            yield fake
        finally:
            portal.call(ended.set)
            future.result()
