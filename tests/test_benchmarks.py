"""The benchmark harness measures in turn and compares medians with goals in the right direction."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import _harness
from benchmarks._harness import Case, Goal, Program, Result, fill, measure, table
from durable_streams.server import Server

ROOT = Path(__file__).parents[1]


def case(unit: str = "MB/s", goals: tuple[Goal, ...] = (), **contenders: Callable[[], float]) -> Case:
    return Case("reading", unit, contenders, goals, "Node")


def test_contenders_take_turns_and_each_round_begins_with_another() -> None:
    turns: list[str] = []

    def worker(name: str) -> Callable[[], float]:
        return lambda: float(turns.append(name) or 1)  # type: ignore[func-returns-value]  # append, then 1

    result = measure(case(a=worker("a"), b=worker("b")), 3)

    assert "".join(turns) == "abbaabba"
    assert result.samples == {"a": [1, 1, 1], "b": [1, 1, 1]}


def test_the_first_round_only_warms_up() -> None:
    values = iter([100.0, 1.0, 2.0, 3.0])

    result = measure(case(a=lambda: next(values)), 3)

    assert result.samples["a"] == [1, 2, 3]
    assert result.medians() == {"a": 2}


def test_a_rate_meets_its_goal_from_above_and_a_time_from_below() -> None:
    goals = (Goal("ours", "peer", 0.5),)
    workers = {"ours": lambda: 3.0, "peer": lambda: 4.0}
    rate, seconds = case("MB/s", goals, **workers), case("ms", goals, **workers)

    text = table([measure(rate, 1), measure(seconds, 1)])

    assert [line.split("|")[-3:-1] for line in text.splitlines()[-2:]] == [
        [" at least 0.5 ", " met    "],
        [" at most 0.5  ", " missed "],
    ]
    assert "0.75" in text


def test_goals_about_absent_contenders_are_left_out() -> None:
    result = Result(case(goals=(Goal("ours", "peer", 2),), ours=lambda: 1.0), {"ours": [1.0]})

    assert "peer |" not in table([result]).splitlines()[-1]


def test_a_program_answers_line_by_line_and_ends_with_its_input() -> None:
    echo = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"

    with Program("echo", [sys.executable, "-c", echo]) as program:
        answer = program.ask("something", url="x")

    assert answer == {"do": "something", "url": "x"}


def test_every_row_is_listed_with_what_it_measures() -> None:
    command = [sys.executable, "-m", "benchmarks", "--list"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert {line.split()[0] for line in done.stdout.splitlines()} >= {"catch_up_bytes", "catch_up_json_items", "import"}
    assert all(len(line.split()) > 3 for line in done.stdout.splitlines())


def test_numbers_are_short() -> None:
    assert [_harness._number(value) for value in (1_234_567.8, 0.12345, 42.0)] == ["1,234,568", "0.123", "42"]


@pytest.fixture
def load() -> Iterator[Program]:
    with Program("load", [sys.executable, "-m", "benchmarks.load"]) as program:
        yield program


@pytest.mark.skipif(sys.platform != "linux", reason="the load waits with epoll")
def test_the_load_counts_what_was_stored_and_delivered(load: Program) -> None:
    with Server() as server:
        url, texts = (fill(server.base_url, "load", each) for each in ("application/octet-stream", "text/plain"))

        appended = load.ask("append", urls=[url], connections=3, seconds=0.05)["count"]
        load.ask("append_times", url=url, times=7)
        size = 100 * (appended + 7)

        assert appended > 3
        assert load.ask("get", url=url, size=size)["count"] == size
        assert load.ask("long_poll", url=url, rounds=2)["count"] == 2
        load.ask("attach", url=texts, readers=5)
        assert load.ask("fan_out", url=texts, messages=3)["count"] == 15
        assert load.ask("fan_out", url=texts, seconds=0.05)["count"] % 5 == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the load waits with epoll")
def test_the_load_does_not_count_what_was_refused(load: Program) -> None:
    with Server() as server, pytest.raises(RuntimeError, match="404"):
        load.ask("append", urls=[f"{server.url}/nothing"], connections=1, seconds=1)
