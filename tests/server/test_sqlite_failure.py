"""The SQLite store when something is wrong: two owners, foreign files, bad requests, a disk that fails."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from durable_streams.server import Appended, AppendRequest, Created, Missing, Payload, ProducerStamp, StreamInfo
from durable_streams.server.stores import sqlite_schema
from durable_streams.server.stores.errors import (
    StoreError,
    StoreFailedError,
    StoreFormatError,
    StoreInUseError,
)
from durable_streams.server.stores.sqlite import SQLiteStore
from durable_streams.testing.store_steps import PATH, append_to, create_stream, expect, look_at, read_page

pytestmark = pytest.mark.anyio

BINARY = "application/octet-stream"


# --- the lock


async def test_a_second_store_on_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    (tmp_path / "link.db").symlink_to(path)
    async with SQLiteStore(path) as store:
        await create_stream(store, body=b"mine")
        for other in (path, tmp_path / "link.db"):
            with pytest.raises(StoreInUseError, match=f"process {os.getpid()} has this store open"):
                async with SQLiteStore(other):
                    pass
        assert (await look_at(store)).tail == 4
    async with SQLiteStore(path):
        pass


async def test_another_process_is_refused_until_it_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    code = (
        "import anyio, sys\n"
        "from durable_streams.server.stores.sqlite import SQLiteStore\n"
        "async def main():\n"
        "    async with SQLiteStore(sys.argv[1]):\n"
        "        print('open', flush=True)\n"
        "        await anyio.sleep_forever()\n"
        "anyio.run(main)\n"
    )
    async with await anyio.open_process([sys.executable, "-c", code, path]) as process:
        try:
            assert process.stdout is not None
            assert await process.stdout.receive(4) == b"open"
            with pytest.raises(StoreInUseError, match=f"process {process.pid} has this store open"):
                async with SQLiteStore(path):
                    pass
        finally:
            process.kill()
    async with SQLiteStore(path):
        pass


# --- files that are no stores


async def test_a_file_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "letter.txt"
    text.write_text("Dear reader, " * 100)
    database = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = text.read_bytes(), database.read_bytes()

    with pytest.raises(StoreFormatError, match="not a store, or damaged: file is not a database"):
        async with SQLiteStore(text):
            pass
    with pytest.raises(StoreFormatError, match="a database of another program"):
        async with SQLiteStore(database):
            pass
    assert (text.read_bytes(), database.read_bytes()) == before


async def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"missing/store\.db: cannot open its lock file: No such file or directory"):
        async with SQLiteStore(tmp_path / "missing" / "store.db"):
            pass
    with pytest.raises(StoreError, match="cannot be opened: unable to open database file"):
        async with SQLiteStore(tmp_path):
            pass


async def test_only_its_owner_can_read_a_new_store(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db"):
        for name in ("store.db", "store.db-wal", "store.db-shm"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600, name


async def test_a_store_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = await _empty_store(tmp_path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET value = 99 WHERE key = 'schema_version'")
    with pytest.raises(StoreFormatError, match="made by a newer release"):
        async with SQLiteStore(path):
            pass


async def test_a_store_of_an_older_release_is_brought_up_to_date_step_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await _empty_store(tmp_path)
    steps: list[int] = []

    def to_2(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE second (x)")
        steps.append(2)

    def to_3(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE third (x)")
        steps.append(3)
        if steps.count(3) == 1:
            raise RuntimeError("the power went out")

    version = sqlite_schema.SCHEMA_VERSION
    monkeypatch.setattr(sqlite_schema, "SCHEMA_VERSION", version + 2)
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", {version: to_2, version + 1: to_3})
    with pytest.raises(RuntimeError, match="power"):
        async with SQLiteStore(path):
            pass
    async with SQLiteStore(path) as store:
        expect(StreamInfo, await store.head(PATH, 0.0))
    async with SQLiteStore(path):
        pass
    assert steps == [2, 3, 3]


async def _empty_store(folder: Path) -> Path:
    async with SQLiteStore(folder / "store.db") as store:
        await create_stream(store)
    return folder / "store.db"


@pytest.mark.parametrize("check", ["auto", "quick", "full"])
async def test_damage_is_found_when_it_is_opened(tmp_path: Path, check: Any) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        for number in range(50):
            await create_stream(store, path=f"/v1/stream/{number}", body=b"x" * 1000)
    path = tmp_path / "store.db"
    data = bytearray(path.read_bytes())
    for page in range(4096 * 4, len(data), 4096):
        data[page : page + 200] = b"\xa5" * 200
    path.write_bytes(data)

    with pytest.raises(StoreFormatError, match="damaged"):
        async with SQLiteStore(path, check=check):
            pass


# --- requests that fail


async def test_a_request_that_cannot_be_stored_fails_alone(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        await create_stream(store)
        outcomes: dict[int, object] = {}

        async def append(number: int) -> None:
            # No HTTP request can have such a sequence number; SQLite has no room for it.
            stamp = ProducerStamp(f"p{number}", 1 << 70 if number == 5 else 0, 0)
            try:
                outcomes[number] = await append_to(store, b"%d;" % number, producer=stamp)
            except OverflowError as error:
                outcomes[number] = error

        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(append, number)

        assert isinstance(outcomes.pop(5), OverflowError)
        assert all(isinstance(outcome, Appended) for outcome in outcomes.values())
        data, _ = await read_page(store, (await look_at(store)).ref)
        assert sorted(data.split(b";")[:-1]) == [b"%d" % number for number in range(10) if number != 5]
        expect(Appended, await append_to(store, b"5;", producer=ProducerStamp("p5", 0, 0)))


async def test_a_read_that_fails_says_so_and_the_store_goes_on(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db", recent_bytes=0) as store:
        ref = expect(Created, await create_stream(store, body=b"x" * 10)).info.ref
        with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
            connection.execute("DELETE FROM blocks")
        page: Any = await store.read(ref, 0, 100)
        with pytest.raises(StoreError, match="the database is damaged: stream 1 lacks data after offset 0"):
            await page.next_piece()
        await page.aclose()
        expect(Appended, await append_to(store, b"more"))
        assert store.failure is None


# --- writes that fail


class Saboteur(sqlite3.Connection):
    """A connection whose COMMIT or checkpoint fails when `fails` says so."""

    fails: str | None = None

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if Saboteur.fails is not None and sql.startswith(Saboteur.fails):
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *args)


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the statements fail that begin like this, from now on."""
    original = sqlite_schema._connect

    monkeypatch.setattr(sqlite_schema, "_connect", lambda path: original(path, Saboteur))
    monkeypatch.setattr(Saboteur, "fails", None)
    return lambda statement: monkeypatch.setattr(Saboteur, "fails", statement)


async def test_a_failed_commit_fails_the_whole_batch_and_stops_the_store(
    tmp_path: Path, sabotage: Callable[[str], None]
) -> None:
    path = tmp_path / "store.db"
    with pytest.raises(StoreFailedError):
        async with SQLiteStore(path) as store:
            ref = expect(Created, await create_stream(store, body=b"safe")).info.ref
            watch = store.watch(ref)
            page: Any = await store.read(ref, 0, 100)
            sabotage("COMMIT")
            failures: list[StoreFailedError] = []

            async def append() -> None:
                with pytest.raises(StoreFailedError) as caught:
                    await append_to(store, b"lost")
                failures.append(caught.value)

            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    for _ in range(20):
                        group.start_soon(append)
                    group.start_soon(watch.wait, 4)
                    assert await store.wait_failed() is not None
            assert watch.gone, "live readers learn of it"
            watch.close()
            assert len(failures) == len({id(failure) for failure in failures}) == 20
            assert str(failures[0]) == f"{path}: the store has stopped because writing failed: disk I/O error"
            assert isinstance(failures[0].__cause__, sqlite3.OperationalError)
            assert failures[0].code == "STORE_FAILED"
            assert repr(store) == f"<SQLiteStore {path}, failed, 0 streams in memory>"
            assert store.failure is not None

            for call in (
                lambda: append_to(store, b"x"),
                lambda: create_stream(store, path="/v1/stream/other"),
                lambda: store.delete(PATH, 0.0),
                lambda: store.head(PATH, 0.0),
                lambda: store.read(ref, 0, 100),
                lambda: store.sweep(0.0),
            ):
                with pytest.raises(StoreFailedError):
                    await call()
            with pytest.raises(StoreFailedError):
                store.watch(ref)
            store.touch(ref, 1.0)
            assert await page.next_piece() == b"safe"
            await page.aclose()

    sabotage("nothing")
    async with SQLiteStore(path, check="full") as store:
        assert await read_page(store, ref) == (b"safe", 4)
        expect(Appended, await append_to(store, b"!"))


async def test_a_failed_checkpoint_stops_the_store_but_loses_nothing(
    tmp_path: Path, sabotage: Callable[[str], None]
) -> None:
    path = tmp_path / "store.db"
    with pytest.raises(StoreFailedError):
        async with SQLiteStore(path) as store:
            await create_stream(store)
            sabotage("PRAGMA wal_checkpoint")
            stored = 0
            with contextlib.suppress(StoreFailedError):
                while True:
                    await append_to(store, b"x" * 1_000_000)
                    stored += 1_000_000
    assert stored >= 1_000_000

    sabotage("nothing")
    async with SQLiteStore(path, check="full") as store:
        assert (await look_at(store)).tail >= stored


async def test_a_failure_does_not_replace_the_exception_of_the_block(
    tmp_path: Path, sabotage: Callable[[str], None]
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with SQLiteStore(tmp_path / "store.db") as store:
            sabotage("COMMIT")
            with pytest.raises(StoreFailedError):
                await create_stream(store)
            raise ZeroDivisionError


async def test_a_foreign_writer_that_holds_the_database_stops_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_schema, "_BUSY_SECONDS", 0.01)
    with pytest.raises(StoreFailedError, match="database is locked"):
        async with SQLiteStore(tmp_path / "store.db") as store:
            await create_stream(store)
            with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as intruder:
                intruder.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreFailedError, match="database is locked"):
                    await append_to(store, b"x")


FILLING = """
import json, resource, signal, sys
import anyio
from durable_streams.server import AppendRequest, CreateRequest, Payload, StreamConfig
from durable_streams.server.stores.errors import StoreFailedError
from durable_streams.server.stores.sqlite import SQLiteStore

TYPE = "application/octet-stream"
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

async def main():
    stored = 0
    try:
        async with SQLiteStore(sys.argv[1]) as store:
            await store.create(CreateRequest("/v1/stream/kit", StreamConfig(TYPE)), 0.0)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
            try:
                while True:
                    await store.append(AppendRequest("/v1/stream/kit", TYPE, Payload(b"%08d" % stored * 1000)), 0.0)
                    stored += 1
            except StoreFailedError as error:
                text = str(error)
            try:
                await store.append(AppendRequest("/v1/stream/kit", TYPE, Payload(b"x")), 0.0)
            except StoreFailedError:
                print(json.dumps([stored, text]))
    except StoreFailedError:
        sys.exit(3)

anyio.run(main, backend=sys.argv[3])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
@pytest.mark.parametrize("limit", [150_000, 1_000_003, 3_500_000])
async def test_a_full_disk_stops_the_store_and_what_was_acknowledged_stays(
    tmp_path: Path, limit: int, anyio_backend_name: str
) -> None:
    path = tmp_path / "store.db"
    command = [sys.executable, "-c", FILLING, str(path), str(limit), anyio_backend_name]
    with anyio.fail_after(60):
        done = await anyio.run_process(command, check=False)
    assert done.returncode == 3, done.stderr.decode()
    stored, text = json.loads(done.stdout)
    assert "the store has stopped because writing failed" in text
    assert stored > 0

    async with SQLiteStore(path, check="full") as store:
        info = await look_at(store)
        assert info.tail in (8000 * stored, 8000 * (stored + 1))
        content = b"".join(b"%08d" % number * 1000 for number in range(info.tail // 8000))
        assert (await read_page(store, info.ref))[0] == content
        expect(Appended, await append_to(store, b"on we go"))
        expect(Missing, await store.head("/v1/stream/other", 0.0))


async def test_a_full_database_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = sqlite_schema.connect_writer

    def small(*args: Any) -> sqlite3.Connection:
        connection = original(*args)
        connection.execute("PRAGMA max_page_count = 100")
        return connection

    monkeypatch.setattr("durable_streams.server.stores.sqlite_opening.connect_writer", small)
    request = AppendRequest(PATH, BINARY, Payload(b"x" * 10_000))
    with pytest.raises(StoreFailedError, match="database or disk is full"):
        async with SQLiteStore(tmp_path / "store.db") as store:
            await create_stream(store)
            with pytest.raises(StoreFailedError, match="database or disk is full"):
                while True:
                    await store.append(request, 0.0)
