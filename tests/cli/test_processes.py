"""Commands as processes: signals, pipes, kills."""

import json
import re
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from .conftest import Run, process


def announced(server: "subprocess.Popen[bytes]") -> str:
    """The URL that `serve` announces."""
    assert server.stderr is not None
    line = server.stderr.readline().decode()
    found = re.fullmatch(r"durable-streams: serving (http://\S+) from \S+; Ctrl-C stops\n", line)
    assert found is not None, line
    return found.group(1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_announces_its_url_and_ends_properly_when_told(run: Run, number: signal.Signals) -> None:
    with process("serve", "--port", "0", "--root", "/logs") as server:
        url = announced(server)
        created = run("create", f"{url}/a")

        server.send_signal(number)
        out, err = server.communicate()

    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/logs", url)
    assert created.code == 0
    assert (server.returncode, out, err) == (0, b"", b"")


def test_serve_keeps_a_long_poll_for_as_long_as_it_is_told(run: Run) -> None:
    with process("serve", "--port", "0", "--long-poll-timeout", "0.1") as server:
        url = announced(server) + "/a"
        offset = json.loads(run("create", url).out)["offset"]

        with urllib.request.urlopen(f"{url}?live=long-poll&offset={offset}", timeout=10) as answer:
            status = answer.status

    assert status == 204


def test_what_a_durable_server_has_acknowledged_survives_its_kill(run: Run, tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'streams.db'}"
    with process("serve", "--port", "0", "--store", store) as server:
        url = announced(server) + "/a"
        run("create", url, "--json")
        acknowledged = run("produce", url, "--json", "--producer-id", "p", stdin=b"1\n2\n")
        server.kill()
        server.wait()

    with process("serve", "--port", "0", "--store", store) as server:
        url = announced(server) + "/a"
        again = run("produce", url, "--json", "--producer-id", "p", stdin=b"3\n")

        assert (acknowledged.code, again.code) == (0, 0)
        assert run("read", url, "--json").lines == ["1", "2", "3"]


def test_a_store_that_cannot_be_opened_is_one_line(run: Run, tmp_path: Path) -> None:
    with process("serve", "--port", "0", "--store", f"sqlite:{tmp_path / 'none' / 'streams.db'}") as server:
        _, err = server.communicate()

    assert server.returncode == 1
    assert re.fullmatch(rb"durable-streams: .*streams\.db: cannot open .*\n", err)


@pytest.mark.parametrize("store", ["disk", "sqlite", "sqlite:", "memory:x"])
def test_an_unknown_store_is_a_usage_error(run: Run, store: str) -> None:
    done = run("serve", "--store", store)

    assert done.code == 2
    assert "neither memory nor sqlite:PATH" in done.err


def test_a_busy_port_is_one_line_with_the_next_step(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        done = run("serve", "--port", str(port))

    assert done.code == 1
    assert done.err == (
        f"durable-streams: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "choose another with --port, 0 takes a free one\n"
    )


def test_read_prints_what_is_appended_while_it_follows(run: Run, url: str) -> None:
    run("create", url, "--json", "--data", "[1]")

    with process("read", url, "--follow") as reader:
        assert reader.stdout is not None
        first = reader.stdout.readline()
        run("append", url, "2")
        second = reader.stdout.readline()
        run("close", url, "3")
        rest, err = reader.communicate()

    assert [first, second, rest, err, reader.returncode] == [b"1\n", b"2\n", b"3\n", b"", 0]


def test_append_json_sends_lines_while_they_come(run: Run, url: str) -> None:
    run("create", url, "--json")

    with process("append", url, "--json") as writer, process("read", url, "--follow") as reader:
        assert writer.stdin is not None
        assert reader.stdout is not None
        writer.stdin.write(b'"first"\n"sec')
        writer.stdin.flush()
        first = reader.stdout.readline()
        writer.stdin.write(b'ond"\n')
        writer.stdin.flush()
        second = reader.stdout.readline()
        out, err = writer.communicate()

    assert (first, second) == (b'"first"\n', b'"second"\n')
    assert (json.loads(out)["messages"], err, writer.returncode) == (2, b"", 0)


def test_append_sends_bytes_while_they_come(run: Run, url: str) -> None:
    run("create", url, "--content-type", "text/plain")

    with process("append", url) as writer, process("read", url, "--follow") as reader:
        assert writer.stdin is not None
        assert reader.stdout is not None
        writer.stdin.write(b"a")
        writer.stdin.flush()
        first = reader.stdout.read(1)
        writer.stdin.write(b"b")
        writer.communicate()
        second = reader.stdout.read(1)

    assert (first, second, writer.returncode) == (b"a", b"b", 0)


@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_interrupting_a_reader_is_quiet(run: Run, url: str, live: str) -> None:
    run("create", url, "--json", "--data", "[1]")

    with process("read", url, "--live", live) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        reader.send_signal(signal.SIGINT)
        out, err = reader.communicate()

    assert (reader.returncode, out, err) == (130, b"", b"")


def test_a_follower_ends_quietly_when_nobody_reads_it_any_more(run: Run, url: str) -> None:
    run("create", url, "--json", "--data", "[1]")

    with process("read", url, "--follow") as reader:
        assert reader.stdout is not None
        assert reader.stderr is not None
        reader.stdout.readline()
        reader.stdout.close()
        code = reader.wait()
        err = reader.stderr.read()

    assert (code, err) == (141, b"")


def test_a_reader_ends_quietly_when_its_output_is_cut(run: Run, url: str) -> None:
    run("create", url)
    run("append", url, stdin=b"x" * (4 << 20))

    with process("read", url) as reader:
        assert reader.stdout is not None
        assert reader.stderr is not None
        reader.stdout.read(10)
        reader.stdout.close()
        code = reader.wait()
        err = reader.stderr.read()

    assert (code, err) == (141, b"")


@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_a_killed_follower_goes_on_at_its_checkpoint(run: Run, url: str, live: str, tmp_path: Path) -> None:
    file = str(tmp_path / "position")
    run("create", url, "--json")
    runs: list[list[int]] = []

    def append(start: int) -> None:
        run("append", url, "--json", stdin=b"".join(b"%d\n" % n for n in range(start, start + 50)))

    for start in range(0, 500, 100):
        append(start)
        with process("read", url, "--live", live, "--checkpoint", file) as reader:
            assert reader.stdout is not None
            kept: list[int] = []
            while start + 49 not in kept:
                kept.append(int(reader.stdout.readline()))
            append(start + 50)  # Its first line shows that what came before has been saved.
            kept.append(int(reader.stdout.readline()))
            reader.kill()
            kept += [int(line) for line in reader.stdout]
        runs.append(kept)
    run("close", url)
    runs.append([int(line) for line in run("read", url, "--checkpoint", file).lines])

    # Nothing is left out; what a kill hits between printing and saving comes once more.
    printed = [n for kept in runs for n in kept]
    assert list(dict.fromkeys(printed)) == list(range(500))
    assert all(kept[0] >= number * 100 - 50 for number, kept in enumerate(runs) if kept)
