"""`durable-streams produce`: lines of standard input, exactly once."""

import importlib
import io
import json
from collections.abc import Iterator

import pytest

from durable_streams.server import Server

from .conftest import Run


@pytest.fixture
def url() -> Iterator[str]:
    with Server() as server:
        yield f"{server.url}/produced"


def test_each_line_is_a_json_message(run: Run, url: str) -> None:
    run("create", url, "--json")
    done = run("produce", url, "--json", stdin=b"".join(b'{"n":%d}\n' % n for n in range(50_000)) + b"\n[1]")

    assert done.code == 0
    assert json.loads(done.lines[-1])["messages"] == 50_001
    read = run("read", url, "--json").lines
    assert [json.loads(line) for line in read] == [*({"n": n} for n in range(50_000)), [1]]


def test_each_line_is_text_with_its_end(run: Run, url: str) -> None:
    run("create", url, "--content-type", "text/plain")
    done = run("produce", url, stdin=b"a\n\nb")

    assert json.loads(done.lines[-1])["messages"] == 3
    assert run("read", url).out == b"a\n\nb\n"


def test_the_same_name_takes_over_and_loses_nothing(run: Run, url: str) -> None:
    run("create", url, "--json")
    for n in range(3):
        assert run("produce", url, "--json", "--producer-id", "job", stdin=b"%d\n" % n).code == 0

    assert run("read", url, "--json").lines == ["0", "1", "2"]


def test_a_line_that_is_no_json_is_named_and_what_is_before_it_is_stored(run: Run, url: str) -> None:
    run("create", url, "--json")
    done = run("produce", url, "--json", stdin=b"1\n2\n{bad\n3\n")

    assert done.code == 2
    assert "line 3 is not JSON" in done.err
    assert run("read", url, "--json").lines == ["1", "2"]


@pytest.mark.parametrize(("create", "args", "hint"), [(["--json"], [], "use --json"), ([], ["--json"], "leave out")])
def test_the_stream_has_to_be_of_the_kind_that_is_sent(
    run: Run, url: str, create: list[str], args: list[str], hint: str
) -> None:
    run("create", url, *create)
    done = run("produce", url, *args, stdin=b"1\n")

    assert done.code != 0
    assert hint in done.err


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    class Producer:
        pending_count = 7

    produce = importlib.import_module("durable_streams.cli.produce")  # its command has the same name
    terminal, now = Terminal(), iter([0.0, 1.0, 2.0])
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(produce.time, "monotonic", lambda: next(now))
    progress = produce._Progress()
    progress.show(256, Producer())
    progress.show(257, Producer())
    progress.end(400)

    assert "256 messages, 256 per second, 7 pending" in terminal.getvalue()
    assert terminal.getvalue().endswith("400 messages, 200 per second\x1b[K\n")
