"""The demo: that it proves what it says, and that it would notice if it were not so."""

import re
import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from durable_streams import Checkpoint, JsonBatch
from durable_streams.cli import demo_run
from durable_streams.cli.demo_display import Bars, Lines
from durable_streams.cli.demo_reader import Database
from durable_streams.cli.demo_run import event, verify

from .conftest import Run

SEED = 7


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_demo_ends_with_its_proof(run: Run, seed: int) -> None:
    done = run("demo", "--events", "5000", "--seed", str(seed))

    assert done.code == 0
    assert re.fullmatch(
        r"proof: 5000 events, each once and in order, after [1-9]\d* faults? and 1 kill", done.lines[-1]
    )
    assert done.err.count("the reader was killed (SIGKILL)") == 1
    assert done.err.count("the first writer was refused") == 1


def test_the_kill_comes_in_mid_stream_even_of_two_events(run: Run) -> None:
    done = run("demo", "--events", "2", "--seed", str(SEED))

    assert done.lines[-1].startswith("proof: 2 events, each once and in order, ")
    assert "the reader was killed (SIGKILL) after 1 events" in done.err


def test_a_proof_that_fails_is_said_and_has_exit_code_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_run, "event", lambda seed, n: {"n": n, "word": "same" if n else "other"})

    def verify_against_something_else(database: Path, events: int, seed: int) -> str | None:
        return verify(database, events + 1, seed)

    monkeypatch.setattr(demo_run, "verify", verify_against_something_else)
    done = run("demo", "--events", "50", "--seed", "4")

    assert done.code == 1
    assert re.fullmatch(r"proof failed after \d+ faults? and 1 kill: 1 events are missing at the end", done.lines[-1])


def test_a_writer_that_is_not_fenced_spoils_the_proof(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = demo_run._producer
    monkeypatch.setattr(demo_run, "_producer", lambda handle, epoch=0: made(handle, epoch=0))
    done = run("demo", "--events", "50", "--seed", str(SEED))

    assert done.code == 1
    assert done.lines[-1].startswith("proof failed")


def test_a_reader_that_dies_by_itself_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")

    done = run("demo", "--events", "50", "--seed", str(SEED))

    assert done.code == 1
    assert done.err.endswith("durable-streams: the reader ended with exit code 1 before it was killed\n")


# -- Verification -----------------------------------------------------------------------------------------


def database(path: Path, rows: Iterable[tuple[int, object]]) -> Path:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE events (place INTEGER PRIMARY KEY AUTOINCREMENT, n INTEGER, word TEXT)")
        connection.executemany("INSERT INTO events (n, word) VALUES (?, ?)", rows)
    return path


RIGHT = [(n, event(SEED, n)["word"]) for n in range(10)]


def test_verification_accepts_what_was_written(tmp_path: Path) -> None:
    assert verify(database(tmp_path / "d", RIGHT), 10, SEED) is None


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (RIGHT[:9], "1 events are missing at the end"),
        (RIGHT[1:], "event 0 is missing at its place: event 1 is there"),
        (RIGHT[:4] + RIGHT[5:], "event 4 is missing at its place: event 5 is there"),
        (RIGHT[:5] + RIGHT[4:], "event 5 is missing at its place: event 4 is there"),
        ([*RIGHT[:3], RIGHT[4], RIGHT[3], *RIGHT[5:]], "event 3 is missing at its place: event 4 is there"),
        ([*RIGHT[:6], (6, RIGHT[7][1]), *RIGHT[7:]], "event 6 has another content"),
        (RIGHT + RIGHT[9:], "there are more than 10 events"),
        ([], "10 events are missing at the end"),
    ],
)
def test_verification_notices(tmp_path: Path, rows: list[tuple[int, object]], words: str) -> None:
    problem = verify(database(tmp_path / "d", rows), 10, SEED)

    assert problem is not None
    assert words in problem


# -- The reader's database --------------------------------------------------------------------------------


def test_the_reader_keeps_a_batch_and_its_position_together_or_not_at_all(tmp_path: Path) -> None:
    reader = Database(str(tmp_path / "d"))
    good = JsonBatch(Checkpoint("0_1"), [event(SEED, 0), event(SEED, 1)])
    bad = JsonBatch(Checkpoint("0_2"), [event(SEED, 2), {"n": 3}])

    reader.keep(good)
    with pytest.raises(sqlite3.ProgrammingError):
        reader.keep(bad)

    assert (reader.count, reader.checkpoint()) == (2, Checkpoint("0_1"))
    again = Database(str(tmp_path / "d"))
    assert (again.count, again.checkpoint()) == (2, Checkpoint("0_1"))
    reader.close()
    again.close()


def test_a_reader_begins_at_the_beginning(tmp_path: Path) -> None:
    reader = Database(str(tmp_path / "d"))

    assert (reader.count, reader.checkpoint()) == (0, None)
    reader.close()


# -- Display ----------------------------------------------------------------------------------------------


def test_lines_come_each_quarter(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(1000) as progress:
        for count in range(0, 1001, 10):
            progress.written(count)
        progress.read(1000)
        progress.say("done")

    assert capsys.readouterr().err.splitlines() == [
        "demo: written 250 of 1,000",
        "demo: written 500 of 1,000",
        "demo: written 750 of 1,000",
        "demo: written 1,000 of 1,000",
        "demo: delivered 1,000 of 1,000",
        "demo: done",
    ]


def test_bars_show_counts_and_words_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(1000) as progress:
        progress.say("words")
        progress.written(1000)
        progress.read(600)

    shown = capsys.readouterr()
    assert shown.out == ""
    for words in ("words", "1000/1000", "600/1000", "written", "delivered"):
        assert words in shown.err
