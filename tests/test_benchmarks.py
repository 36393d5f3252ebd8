"""The benchmark harness measures in turn and compares medians with goals in the right direction."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import _harness
from benchmarks._harness import Case, Goal, Program, Result, measure, table

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
