"""The commands for whoever operates a server: inspect, verify, backup, export and import."""

import gzip
import json
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from durable_streams.cli import output
from durable_streams.cli import verify as cli_verify
from durable_streams.server import Allow, Deny, Server, SQLiteStore
from tests.server.operations.sample import make

from .conftest import Run, process
from .test_processes import announced


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A closed store."""
    return str(anyio.run(make, tmp_path / "store.db"))


def lines(out: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def change(store: str, statement: str) -> None:
    with closing(sqlite3.connect(store)) as connection:
        connection.execute(statement)
        connection.commit()


# -- inspect ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "sqlite:"])
def test_inspect_shows_the_store_and_its_streams(run: Run, store: str, prefix: str) -> None:
    done = run("inspect", prefix + store)

    shown = lines(done.out)
    assert (done.code, done.err) == (0, "")
    assert [line["kind"] for line in shown] == ["store", "subscription"] + ["stream"] * 8
    assert shown[0]["streams"] == 7
    assert [(line["bytes"], line["producers"]) for line in shown if line.get("path") == "/v1/stream/json"] == [(79, 2)]


def test_inspect_shows_a_part_with_its_producers(run: Run, store: str) -> None:
    shown = lines(run("inspect", store, "--prefix", "/v1/stream/fork/", "--producers").out)

    assert [(line["kind"], line.get("path", line.get("id"))) for line in shown] == [
        ("stream", "/v1/stream/fork"),
        ("stream", "/v1/stream/fork/of-fork"),
        ("producer", "p"),
    ]


def test_inspect_shows_the_same_by_url(run: Run, store: str) -> None:
    with Server(SQLiteStore(store), inspection=True, sweep_interval=3600.0) as server:
        for url in (server.base_url, f"{server.base_url}/", f"{server.base_url}/inspect"):
            told = lines(run("inspect", url, "--producers").out)
            seen = lines(run("inspect", store, "--producers").out)

            assert [line["kind"] for line in told[:2]] == ["store", "subscription"]
            assert told[2:] == seen[2:]
            assert len(told) == 14


def test_inspect_by_url_needs_a_server_that_allows_it(run: Run) -> None:
    def authorize(request: Any) -> Allow | Deny:
        return {None: Deny(401), "good": Allow()}.get(request.token, Deny(403))

    with Server() as server:
        closed = run("inspect", server.base_url)
    with Server(inspection=True, authorize=authorize) as server:
        nobody = run("inspect", server.base_url)
        wrong = run("inspect", server.base_url, "-H", "Authorization: Bearer bad")
        right = run("inspect", server.base_url, "-H", "Authorization: Bearer good")
        strange = run("inspect", server.base_url, "--prefix", "a//b", "-H", "Authorization: Bearer good")
        stream = run("inspect", f"{server.url}/a", "-H", "Authorization: Bearer good")
    gone = run("inspect", server.base_url)

    assert (closed.code, "start the server with --inspection" in closed.err) == (3, True)
    assert (nobody.code, "give credentials" in nobody.err) == (6, True)
    assert (wrong.code, "these credentials may not read that" in wrong.err) == (6, True)
    assert (right.code, lines(right.out)[0]["store"]) == (0, "memory")
    assert (strange.code, "does not accept the --prefix" in strange.err) == (2, True)
    assert stream.code == 3
    assert (gone.code, "is a server running there?" in gone.err) == (5, True)
    assert all(done.out == b"" for done in (closed, nobody, wrong, strange, stream, gone))


def test_inspect_speaks_to_a_person_in_words(run: Run, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bytes] = []
    monkeypatch.setattr(output, "write", shown.append)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    run("inspect", store, "--producers")

    text = b"".join(shown).decode()
    assert f"{store}: 7 streams, 1 subscriptions, " in text
    assert "subscription worker (pull-wake): 2 streams\n" in text
    assert (
        "             79 bytes  0000000000000000_0000000000000079  open          2 producers  /v1/stream/json\n" in text
    )
    assert "producer p: epoch 2, sequence number 4\n" in text
    assert "deleted       0 producers  /v1/stream/kept\n" in text


def test_inspect_does_not_let_names_steer_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bytes] = []
    monkeypatch.setattr(output, "write", shown.append)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    output.line({"id": "a\x1b[2J\n\x9b2Jé\ud800"}, lambda line: line["id"])

    assert shown == [rb"a\x1b[2J\n\x9b2J" + "é".encode() + b"\\ud800\n"]


def test_inspect_takes_its_credentials_nowhere_else(run: Run) -> None:
    seen: list[object] = []

    async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    async def redirecting(scope: Any, receive: Any, send: Any) -> None:
        location = f"{other.base_url}/inspect".encode()
        await send({"type": "http.response.start", "status": 307, "headers": [(b"location", location)]})
        await send({"type": "http.response.body"})

    with Server(elsewhere) as other, Server(redirecting) as server:
        done = run("inspect", server.base_url, "-H", "Authorization: Bearer secret")

    assert (done.code, "HTTP 307" in done.err) == (1, True)
    assert [scope for scope in seen if isinstance(scope, dict) and scope["type"] == "http"] == []


# -- verify -----------------------------------------------------------------------------------------------


def test_verify_tells_what_it_has_seen_when_all_is_well(run: Run, store: str) -> None:
    done = run("verify", store)

    assert (done.code, done.err) == (0, "")
    assert lines(done.out) == [
        {"ok": True, "streams": 9, "blocks": 16, "bytes": 1313832, "producers": 4, "subscriptions": 1}
    ]


def test_verify_tells_what_is_wrong_and_where(run: Run, store: str) -> None:
    change(store, "UPDATE producers SET seq = 3 WHERE producer = 'q'")
    one = run("verify", store)
    change(store, "UPDATE blocks SET checksum = 0")
    many = run("verify", store, "--max-findings", "2")

    assert (one.code, one.err) == (
        1,
        f"durable-streams: {store}: 1 is wrong; keep the file, and serve a backup that is in order\n",
    )
    assert lines(one.out) == [
        {
            "where": "producer q of stream /v1/stream/json",
            "problem": "its record was changed: the checksum does not fit",
        }
    ]
    assert (many.code, len(many.lines)) == (1, 2)
    assert "2 or more things are wrong" in many.err


def test_verify_can_be_interrupted_though_sqlite_is_at_work(
    run: Run, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def look_at_pages(*_: object, **__: object) -> None:
        # SQLite does not return to Python before it has seen all pages, and only there the main thread hears a signal.
        assert threading.current_thread() is not threading.main_thread()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        released.wait(20)

    monkeypatch.setattr(cli_verify, "verify_store", look_at_pages)
    try:
        done = run("verify", store)
    finally:
        released.set()

    assert (done.code, done.out, done.err) == (130, b"", "")


@pytest.mark.parametrize("command", ["inspect", "verify", "backup", "export", "import"])
def test_a_store_that_is_none_is_one_line(run: Run, tmp_path: Path, command: str) -> None:
    more = {"backup": ["copy"], "export": ["/a"], "import": ["file"]}.get(command, [])

    missing = run(command, str(tmp_path / "none.db"), *more)
    memory = run(command, "memory", *more)

    assert (missing.code, len(missing.err.splitlines())) == (1, 1)
    assert (memory.code, "'memory' is no store on disk; name its file" in memory.err) == (2, True)
    assert not (tmp_path / "none.db").exists()


# -- backup, export, import -------------------------------------------------------------------------------


def test_backup_copies_and_verifies(run: Run, store: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.db")

    done = run("backup", store, copy, "--verify")
    again = run("backup", store, copy)
    replaced = run("backup", store, copy, "--overwrite")

    assert (done.code, done.err) == (0, "")
    assert lines(done.out) == [{"copy": copy, "bytes": Path(copy).stat().st_size, "streams": 7, "verified": True}]
    assert (again.code, again.err.endswith("copy.db: there is a file of this name already\n")) == (1, True)
    assert replaced.code == 0
    assert run("verify", copy).code == 0


def test_backup_tells_of_damage_in_the_copy(run: Run, store: str, tmp_path: Path) -> None:
    change(store, "DELETE FROM fork_edges")

    done = run("backup", store, str(tmp_path / "copy.db"), "--verify")

    assert done.code == 1
    assert "copy.db: 4 things are wrong" in done.err
    assert [set(line) for line in lines(done.out)] == [{"where", "problem"}] * 4


def test_a_stream_goes_from_one_store_to_another_through_a_pipe(run: Run, store: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.db")
    export = run("export", store, "/v1/stream/json")
    file = tmp_path / "json.jsonl.gz"
    file.write_bytes(gzip.compress(export.out))

    done = run("import", other, "-", "--as", "/v1/stream/copy", stdin=gzip.decompress(file.read_bytes()))

    assert (export.code, export.err) == (0, "")
    assert lines(done.out) == [
        {
            "path": "/v1/stream/copy",
            "offset": f"{0:016}_{79:016}",
            "closed": False,
            "appends": 7,
            "producers": 2,
        }
    ]
    assert run("export", other, "/v1/stream/copy").lines[1:-1] == export.lines[1:-1]
    assert run("import", other, "-", stdin=export.out).code == 0


def test_export_and_import_by_file(run: Run, store: str, tmp_path: Path) -> None:
    file, other = str(tmp_path / "text.jsonl"), str(tmp_path / "other.db")

    exported = run("export", store, "/v1/stream/text", "--output", file)
    imported = run("import", other, file)
    again = run("import", other, file)
    missing = run("export", store, "/v1/stream/none", "--output", str(tmp_path / "none.jsonl"))
    nowhere = run("export", store, "/v1/stream/text", "--output", str(tmp_path / "none" / "text.jsonl"))
    nothing = run("import", other, str(tmp_path / "none.jsonl"))
    wrong = run("import", other, store)

    assert exported.out == imported.out
    assert (again.code, "there is a stream /v1/stream/text already" in again.err) == (4, True)
    assert (missing.code, "there is no stream /v1/stream/none" in missing.err) == (3, True)
    assert (nowhere.code, "cannot be written: No such file or directory" in nowhere.err) == (1, True)
    assert (nothing.code, "cannot be read: No such file or directory" in nothing.err) == (1, True)
    assert (wrong.code, "line 1: this is no export of a stream" in wrong.err) == (1, True)
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name or path.name == "none.jsonl"]


def test_all_but_import_work_while_a_server_has_the_store_open(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "served.db")
    with process("serve", "--port", "0", "--store", f"sqlite:{path}") as server:
        url = announced(server)
        run("create", f"{url}/a", "--json", "--data", "[1,2]")

        assert [line["bytes"] for line in lines(run("inspect", path).out) if line["kind"] == "stream"] == [4]
        assert run("verify", path).code == 0
        assert run("backup", path, str(tmp_path / "copy.db"), "--verify").code == 0
        export = run("export", path, "/v1/stream/a")
        assert export.code == 0
        refused = run("import", path, "-", "--as", "/v1/stream/b", stdin=export.out)
        assert refused.code == 4
        assert "has this store open; stop the server" in refused.err
        run("append", f"{url}/a", "3")
        assert lines(run("read", f"{url}/a").out) == [1, 2, 3]  # type: ignore[comparison-overlap]


def test_what_a_killed_server_leaves_is_in_order(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "killed.db")
    with process("serve", "--port", "0", "--store", f"sqlite:{path}") as server:
        url = announced(server)
        run("create", f"{url}/a", "--json")
        with process("produce", f"{url}/a", "--json", "--producer-id", "p") as writer:
            assert writer.stdin is not None
            writer.stdin.write(b"".join(b'{"n":%d}\n' % number for number in range(20_000)))
            writer.stdin.flush()
            while not any(line.get("producers") for line in lines(run("inspect", path).out)):
                assert server.poll() is None  # the watchdog ends it if nothing comes
            server.kill()
            server.wait()
            writer.kill()

    seen = run("verify", path)
    assert (seen.code, lines(seen.out)[0]["producers"]) == (0, 1)
    assert [line["closed_cleanly"] for line in lines(run("inspect", path).out) if line["kind"] == "store"] == [False]
    assert run("backup", path, str(tmp_path / "copy.db"), "--verify").code == 0
