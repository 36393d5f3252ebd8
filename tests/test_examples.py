"""Every program in examples/ runs; those that promise to survive a kill are killed."""

import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import pytest

from durable_streams import DurableStream
from durable_streams.server import Server
from tests.interop.s2lite import Lite, find
from tests.s2.serving import s2_in_a_thread

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
#: The address that examples use.
ADDRESS = "http://localhost:4437"
S2_ADDRESS = "http://localhost:8080"
#: Seconds after which a program that hangs is killed, so that its test fails.
PATIENCE = 60

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[Start]:
    """Starts an example in an empty folder; its server is the fixture's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}

    with watched_processes() as processes:

        def begin(name: str) -> "subprocess.Popen[str]":
            program = tmp_path / name
            program.write_text((EXAMPLES / name).read_text().replace(ADDRESS, server.base_url))
            process = subprocess.Popen(
                [sys.executable, str(program)],
                cwd=tmp_path,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            processes.append(process)
            return process

        yield begin


@contextmanager
def watched_processes() -> Iterator["list[subprocess.Popen[str]]"]:
    """Processes that are killed when they hang, and in the end."""
    processes: list[subprocess.Popen[str]] = []

    def kill() -> None:
        for process in processes:
            process.kill()

    watchdog = threading.Timer(PATIENCE, kill)
    watchdog.start()
    try:
        yield processes
    finally:
        watchdog.cancel()
        kill()
        for process in processes:
            process.communicate()


@pytest.fixture
def run_s2(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Runs an example of examples/s2 to its end, on `s2 lite` where it is installed, else on our fake."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}

    with s2_server() as url, watched_processes() as processes:

        def run(name: str) -> str:
            program = tmp_path / name
            program.write_text((EXAMPLES / "s2" / name).read_text().replace(S2_ADDRESS, url))
            process = subprocess.Popen(
                [sys.executable, str(program)],
                cwd=tmp_path,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            processes.append(process)
            return finished(process)

        yield run


@contextmanager
def s2_server() -> Iterator[str]:
    """URL of an empty S2 server."""
    if find() is not None:
        with Lite() as lite:
            yield lite.url
    else:
        with s2_in_a_thread() as fake:
            yield fake.url


def finished(process: "subprocess.Popen[str]") -> str:
    """What a program printed, once it has ended well."""
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    return out


def write(url: str, *items: object, close: bool = False) -> None:
    """Append to a JSON stream, which is created if need be."""

    async def main() -> None:
        async with DurableStream(url, content_type="application/json") as handle:
            await handle.create()
            for item in items:
                await handle.append_json(item)
            if close:
                await handle.close_stream()

    anyio.run(main)


def test_every_example_is_tested_here() -> None:
    tests = Path(__file__).read_text()

    assert [path.name for path in sorted(EXAMPLES.glob("*.py")) if f'start("{path.name}")' not in tests] == []
    assert [path.name for path in sorted(EXAMPLES.glob("s2/*.py")) if f'run_s2("{path.name}")' not in tests] == []


def test_the_reader_is_the_one_in_the_readme() -> None:
    _, program = (EXAMPLES / "reader.py").read_text().split('"""\n\n', 1)

    assert f"```python\n{program}```" in (ROOT / "README.md").read_text()


def test_the_reader_survives_kills(start: Start, server: Server, tmp_path: Path) -> None:
    url = f"{server.url}/orders"
    items = [f"item {number}" for number in range(60)]

    for begin in range(0, 50, 10):
        write(url, *({"item": item} for item in items[begin : begin + 10]))
        reader = start("reader.py")
        assert reader.stdout is not None
        for _ in range(3):
            reader.stdout.readline()
        reader.kill()
        reader.wait()
    write(url, *({"item": item} for item in items[50:]), close=True)
    finished(start("reader.py"))
    again = finished(start("reader.py"))

    with closing(sqlite3.connect(tmp_path / "orders.sqlite")) as db:
        kept = [item for (item,) in db.execute("SELECT item FROM orders ORDER BY rowid")]
    assert kept == items
    assert again == ""


def test_the_outbox_survives_kills(start: Start, server: Server, tmp_path: Path) -> None:
    url = f"{server.url}/outbox"
    write(url)
    with closing(sqlite3.connect(tmp_path / "application.sqlite")) as db, db:
        db.execute("CREATE TABLE outbox (id INTEGER PRIMARY KEY, body TEXT, sent INTEGER DEFAULT 0)")
        db.executemany("INSERT INTO outbox (body) VALUES (?)", [(f'{{"n": {n}}}',) for n in range(300)])

    for _ in range(4):
        outbox = start("outbox.py")
        assert outbox.stdout is not None
        for _ in range(20):
            outbox.stdout.readline()
        outbox.kill()
        outbox.wait()
    finished(start("outbox.py"))
    # What a kill leaves stored and not ticked off is put into words, even if none of the four did just that.
    with closing(sqlite3.connect(tmp_path / "application.sqlite")) as db, db:
        db.execute("UPDATE outbox SET sent = 0 WHERE id = 300")
    again = finished(start("outbox.py"))

    assert [message["n"] for message in read(url)] == list(range(300))
    assert again == "300 was stored before\n"


def test_workers_share_what_there_is_and_a_killed_one_is_replaced(start: Start, server: Server) -> None:
    first = start("worker.py")
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    for number in range(3):
        write(f"{server.url}/orders/{number}", {"item": "tea"}, {"item": "milk"})
    shipped = {first.stdout.readline() for _ in range(6)}
    first.kill()
    first.wait()
    second = start("worker.py")
    assert second.stdout is not None
    assert second.stdout.readline() == "ready\n"
    write(f"{server.url}/orders/1", {"item": "bread"})

    # What the first one had not acknowledged comes once more, when its lease has run out.
    while (line := second.stdout.readline()) in shipped:
        pass

    assert shipped == {f"shipping {item} of orders/{number}\n" for item in ("tea", "milk") for number in range(3)}
    assert line == "shipping bread of orders/1\n"


def read(url: str) -> list[dict[str, int]]:
    async def main() -> list[dict[str, int]]:
        async with DurableStream(url) as handle, handle.stream(live=False) as response:
            return await response.json()

    return anyio.run(main)


def test_the_chat_answer_survives_a_reload(start: Start) -> None:
    shown = finished(start("chat_tokens.py"))

    before, after = shown.split("| (reload) |")
    assert before + after == "Streams are logs that you can follow. \N{WATER WAVE}\n"
    assert len(before) >= 10
    assert "you" in after


def test_many_writers_lose_nothing_and_keep_their_order(start: Start) -> None:
    assert finished(start("many_writers.py")) == "2000 readings of 100 sensors, each sensor's in order: True\n"


def test_the_example_on_trio(start: Start) -> None:
    assert finished(start("on_trio.py")).splitlines() == [
        "the other one has seen 0",
        "and goes",
        "the patient follower has seen 1000",
    ]


def test_records_are_appended_to_s2_and_read(run_s2: Callable[[str], str]) -> None:
    assert run_s2("append_and_read.py").splitlines() == [
        "my basins: ['my-basin']",
        "record 0 b'Hello, world!' {b'foo': b'bar'}",
        "record 1 b'\\x01\\x02\\x03' {b'type': b'binary'}",
    ]


def test_an_s2_stream_is_followed_and_read_on_after_a_break(run_s2: Callable[[str], str]) -> None:
    for _ in range(2):
        assert run_s2("read_session.py").splitlines() == [
            "stopped before record 500",
            "then came reading 500 to reading 999",
        ]


def test_typed_messages_of_any_size_go_through_s2(run_s2: Callable[[str], str]) -> None:
    for _ in range(2):  # what the first run wrote is not read by the second
        assert run_s2("typed_messages.py").splitlines() == [
            "alice wrote 1 records",
            "bob wrote 4 records",
            "[alice] hello (5 characters)",
            "[bob] a long story: and th (3600014 characters)",
        ]


def test_messages_go_to_s2_and_back_in_a_loop(run_s2: Callable[[str], str]) -> None:
    for _ in range(2):
        shown = re.findall(r"^message (\d) was read after [\d.]+ ms$", run_s2("read_write.py"), re.MULTILINE)
        assert shown == ["0", "1", "2", "3", "4"]


def test_an_answer_goes_to_the_user_and_to_s2(run_s2: Callable[[str], str]) -> None:
    answer = "Once upon a time there was a log. Everybody could read it, and nobody could change it. "

    assert run_s2("token_stream.py").splitlines() == [
        answer,
        "-- stored; and once more, from the stream:",
        answer,
    ]


@pytest.mark.parametrize(
    "path", sorted([*EXAMPLES.glob("*.py"), *EXAMPLES.glob("s2/*.py")]), ids=lambda path: path.name
)
def test_every_example_says_what_it_shows_and_how_to_run_it(path: Path) -> None:
    text = path.read_text()

    assert re.match(r'"""[A-Z].*\.\n\n(.*\n)*?.*(Runs by itself: python examples/|Needs a server: `)', text)
