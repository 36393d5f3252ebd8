"""What things cost does not grow with what is stored, counted in steps of SQLite's virtual machine."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from durable_streams.server import (
    Appended,
    AppendRequest,
    Created,
    CreateRequest,
    Payload,
    ProducerStamp,
    StreamConfig,
)
from durable_streams.server.stores import sqlite_schema
from durable_streams.server.stores.sqlite_ledger import Ledger
from durable_streams.server.stores.sqlite_opening import Files, Options, open_files

TYPE = "application/octet-stream"
PATH = "/v1/stream/measured"


class Counting(sqlite3.Connection):
    """Counts steps, of all connections together."""

    steps = 0

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.set_progress_handler(self.tick, 1)

    @staticmethod
    def tick() -> int:
        Counting.steps += 1
        return 0


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> None:
    original = sqlite_schema._connect
    monkeypatch.setattr(sqlite_schema, "_connect", lambda path: original(path, Counting))


@contextmanager
def opened(path: Path) -> Iterator[Files]:
    names = map(str, itertools.count())
    options = Options("relaxed", "none", 1, 100, 0, lambda: f"{path.name}{next(names)}", lambda: 0.0)
    files = open_files(str(path), options)
    yield files
    files.connection.close()
    files.lock.release()


def steps(action: Callable[[], object]) -> int:
    Counting.steps = 0
    action()
    return Counting.steps


def create(ledger: Ledger, path: str) -> None:
    assert isinstance(ledger.create(CreateRequest(path, StreamConfig(TYPE), False, Payload(b"first")), 0.0), Created)


def append(ledger: Ledger, producer: str | None = None, seq: int = 0) -> None:
    stamp = None if producer is None else ProducerStamp(producer, 0, seq)
    assert isinstance(ledger.append(AppendRequest(PATH, TYPE, Payload(b"x"), False, stamp), 0.0), Appended)


def fill(ledger: Ledger, what: str, number: int) -> None:
    """Store so much of something beside the stream that is measured, or in it."""
    for index in range(number):
        if what == "streams":
            create(ledger, f"/v1/stream/{index:06}")
        else:
            append(ledger, f"p{index:06}" if what == "producers" else None)
        if what == "appends" or index % 500 == 499:
            ledger.commit()


@pytest.mark.parametrize(("what", "number"), [("streams", 10_000), ("producers", 10_000), ("appends", 5_000)])
def test_an_append_costs_the_same_however_much_there_is(tmp_path: Path, what: str, number: int) -> None:
    costs: dict[str, list[int]] = {}
    for name, count in (("small", 100), ("large", number)):
        with opened(tmp_path / name) as files:
            create(files.ledger, PATH)
            fill(files.ledger, what, count)
            files.ledger.commit()
        with opened(tmp_path / name) as files:  # so that nothing of it is in memory
            ledger = files.ledger

            def cold(ledger: Ledger = ledger) -> None:
                append(ledger, "newcomer")
                ledger.commit()

            def warm(ledger: Ledger = ledger) -> None:
                append(ledger, "newcomer", 1)
                append(ledger)
                ledger.commit()

            def creation(ledger: Ledger = ledger) -> None:
                create(ledger, "/v1/stream/new")
                ledger.commit()

            costs[name] = [steps(action) for action in (cold, warm, creation)]
    assert all(cost > 20 for cost in costs["small"]), "nothing was counted"
    for small, large in zip(costs["small"], costs["large"], strict=True):
        assert large <= small * 1.5, costs


@pytest.mark.parametrize("what", ["streams", "appends"])
def test_opening_costs_the_same_however_much_there_is(tmp_path: Path, what: str) -> None:
    costs = []
    for name, count in (("small", 10), ("large", 5_000)):
        with opened(tmp_path / name) as files:
            create(files.ledger, PATH)
            fill(files.ledger, what, count)
            files.ledger.commit()

        def reopen(path: Path = tmp_path / name) -> None:
            with opened(path):
                pass

        costs.append(steps(reopen))
    assert costs[0] > 20, "nothing was counted"
    assert costs[1] <= costs[0] * 1.5, costs


def test_only_a_small_file_is_checked_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "store.db") as files:
        create(files.ledger, PATH)
        fill(files.ledger, "streams", 500)
        files.ledger.commit()

    def cost(check: sqlite_schema.Check) -> int:
        connections: list[sqlite3.Connection] = []
        count = steps(
            lambda: connections.append(sqlite_schema.connect_writer(str(tmp_path / "store.db"), "relaxed", check))
        )
        connections[0].close()
        return count

    none, auto, quick, full = (cost(check) for check in ("none", "auto", "quick", "full"))
    assert none * 10 < auto == quick < full
    monkeypatch.setattr(sqlite_schema, "_CHECKED_BYTES", 1000)
    assert cost("auto") == none
    assert cost("quick") == quick
