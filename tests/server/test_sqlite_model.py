"""The SQLite store against the model that the memory store agrees with, through restarts and crashes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from durable_streams.server.stores.sqlite import SQLiteStore

from .test_store_model import StoreMachine, now


class Blocking:
    """A store whose calls have finished when they are awaited, since they run on an event loop of their own."""

    def __init__(self, portal: Any, target: Any) -> None:
        self._portal = portal
        self._target = target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found

        async def call(*args: Any) -> Any:
            result = self._portal.call(found, *args)
            return Blocking(self._portal, result) if hasattr(result, "next_piece") else result

        return call


class SQLiteMachine(StoreMachine):
    backend: ClassVar[str] = "asyncio"
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.generation = 0
        self.portal_manager = start_blocking_portal(self.backend)
        self.portal = self.portal_manager.__enter__()
        self.open()

    def open(self) -> None:
        store = SQLiteStore(
            self.folder / f"{self.generation}.db", durability="relaxed", clock=lambda: self.time, **self.options
        )
        self.opened = self.portal.wrap_async_context_manager(store)
        self.path = Path(self.opened.__enter__().path)
        self.store = Blocking(self.portal, store)  # type: ignore[assignment]

    def close(self) -> None:
        self.opened.__exit__(None, None, None)

    def teardown(self) -> None:
        self.close()
        self.portal_manager.__exit__(None, None, None)
        shutil.rmtree(self.folder)

    @precondition(lambda self: self.model)
    @rule()
    def restart(self) -> None:
        self.close()
        self.open()

    @precondition(lambda self: self.model)
    @rule(garbage=st.sampled_from([b"", bytes(range(256)) * 40]))
    def crash(self, garbage: bytes) -> None:
        """Go on with what a killed process would have left; a TTL counts from then on."""
        # An expired stream comes back after a crash unless somebody, or a sweep, had found it before. The model does
        # not know who has looked where, so let them all be found.
        now(self.store.sweep(self.time))
        for path in list(self.model):
            self.find(path)
        self.generation += 1
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{self.path}{suffix}", f"{self.folder / str(self.generation)}.db{suffix}")
        with open(self.folder / f"{self.generation}.db-wal", "ab") as log:
            log.write(garbage)
        self.close()
        self.open()
        for stream in self.model.values():
            stream.accessed = self.time


class ForgetfulMachine(SQLiteMachine):
    backend = "trio"
    options: ClassVar[dict[str, Any]] = {"recent_bytes": 0, "streams_in_memory": 1, "readers": 1}


SQLiteMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestSQLiteStoreAgreesWithTheModel = SQLiteMachine.TestCase
ForgetfulMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestSQLiteStoreWithLittleMemoryAgreesWithTheModel = ForgetfulMachine.TestCase
