"""A backup is a whole store, made while another process appends; and nothing half-made is left anywhere."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from durable_streams.server import (
    Appended,
    Duplicate,
    ProducerStamp,
    SQLiteStore,
    StoreError,
    StoreFormatError,
    backup_store,
    verify_store,
)
from durable_streams.server.operations import backup
from durable_streams.testing.store_steps import append_to, create_stream, expect, look_at, read_page

from .sample import JSON, fill, make, path_of

pytestmark = pytest.mark.anyio


async def test_a_backup_of_a_store_in_use_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        await fill(store)
        done = await anyio.to_thread.run_sync(backup_store, store.path, tmp_path / "copy.db")
        expect(Appended, await append_to(store, b"[9]", JSON, path=path_of("json")))

    assert verify_store(done.path).findings == ()
    assert (done.size, done.streams) == (os.path.getsize(tmp_path / "copy.db"), 7)
    async with SQLiteStore(done.path) as copy:
        info = await look_at(copy, path=path_of("json"))
        assert info.tail == 79
        stamp = ProducerStamp("p", 2, 4)
        assert isinstance(await append_to(copy, b"[1]", JSON, path=path_of("json"), producer=stamp), Duplicate)


async def test_a_backup_is_one_moment_of_a_store_that_is_written_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_STEP_PAGES", 1)
    async with SQLiteStore(tmp_path / "store.db") as store:
        await create_stream(store, body=b"x" * (1 << 20))
        acknowledged: list[int] = []

        async def append() -> None:
            while True:
                number = len(acknowledged)
                done = expect(
                    Appended, await append_to(store, b"%07d;" % number, producer=ProducerStamp("p", 0, number))
                )
                acknowledged.append(done.tail)

        async with anyio.create_task_group() as group:
            group.start_soon(append)
            while len(acknowledged) < 3:
                await anyio.lowlevel.checkpoint()
            copies: list[tuple[int, backup.Backup, int]] = []
            for number in range(3):
                before = acknowledged[-1]
                done = await anyio.to_thread.run_sync(backup_store, store.path, tmp_path / f"{number}.db")
                copies.append((before, done, acknowledged[-1]))
            group.cancel_scope.cancel()

    for before, done, after in copies:
        assert verify_store(done.path).findings == ()
        async with SQLiteStore(done.path) as copy:
            info = await look_at(copy)
            assert before <= info.tail <= after + 8
            data, _ = await read_page(copy, info.ref)
            numbers = data[1 << 20 :].split(b";")[:-1]
            assert numbers == [b"%07d" % number for number in range(len(numbers))]
            expect(Appended, await append_to(copy, b"next", producer=ProducerStamp("p", 0, len(numbers))))


async def test_a_backup_is_one_file_for_its_owner_alone(tmp_path: Path) -> None:
    await make(tmp_path / "store.db")
    folder = tmp_path / "backups"
    folder.mkdir()

    backup_store(tmp_path / "store.db", folder / "copy.db")
    verify_store(folder / "copy.db")

    assert os.listdir(folder) == ["copy.db"]
    assert (folder / "copy.db").stat().st_mode & 0o777 == 0o600


async def test_a_file_is_replaced_only_if_that_is_wanted(tmp_path: Path) -> None:
    await make(tmp_path / "store.db")
    copy = tmp_path / "copy.db"
    copy.write_bytes(b"mine")

    with pytest.raises(StoreError, match=r"copy\.db: there is a file of this name already"):
        backup_store(tmp_path / "store.db", copy)
    assert copy.read_bytes() == b"mine"

    backup_store(tmp_path / "store.db", copy, overwrite=True)
    assert verify_store(copy).findings == ()


async def test_a_store_is_not_its_own_backup(tmp_path: Path) -> None:
    path = await make(tmp_path / "store.db")
    (tmp_path / "link.db").symlink_to(path)

    for target in (path, tmp_path / "link.db"):
        with pytest.raises(StoreError, match="a store cannot be its own backup"):
            backup_store(path, target, overwrite=True)
    assert verify_store(path).findings == ()


async def test_the_log_of_another_database_is_not_taken_for_the_copys(tmp_path: Path) -> None:
    path = await make(tmp_path / "store.db")
    (tmp_path / "copy.db-wal").write_bytes(b"log")

    with pytest.raises(StoreError, match=r"beside it there is the log of another database, .*copy\.db-wal"):
        backup_store(path, tmp_path / "copy.db")


async def test_a_backup_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await make(tmp_path / "store.db")
    before = sorted(os.listdir(tmp_path))

    with pytest.raises(StoreError, match=r"cannot be written: No such file or directory"):
        backup_store(path, tmp_path / "no" / "copy.db")

    class Full(sqlite3.Connection):
        def execute(self, statement: str, *args: Any) -> sqlite3.Cursor:
            if "journal_mode" in statement:
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(statement, *args)

    original = sqlite3.connect
    monkeypatch.setattr(backup.sqlite3, "connect", lambda *args, **options: original(*args, **options, factory=Full))
    with pytest.raises(StoreError, match=r"copy\.db: cannot be written: database or disk is full"):
        backup_store(path, tmp_path / "copy.db")

    left = [name for name in sorted(os.listdir(tmp_path)) if not name.endswith(("-wal", "-shm"))]
    assert left == before


async def test_a_backup_can_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await make(tmp_path / "store.db")
    steps = 0

    def interrupt(*_: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(backup, "_STEP_PAGES", 10)
    monkeypatch.setattr(backup, "_hear", interrupt)
    with pytest.raises(KeyboardInterrupt):
        backup_store(path, tmp_path / "copy.db")

    assert [name for name in os.listdir(tmp_path) if name.startswith("copy")] == []


async def test_a_damaged_store_is_not_copied_as_if_nothing_were_wrong(tmp_path: Path) -> None:
    path = await make(tmp_path / "store.db")
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * 4096 * 8 + data[9 * 4096 :])

    with pytest.raises(StoreFormatError, match="damaged"):
        backup_store(path, tmp_path / "copy.db")
    with pytest.raises(StoreError, match=r"none\.db: there is no such file"):
        backup_store(tmp_path / "none.db", tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


async def test_a_backup_of_what_a_killed_server_left_has_what_is_in_the_log(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        await create_stream(store, body=b"in the log")
        for suffix in ("", "-wal"):
            shutil.copyfile(store.path + suffix, f"{tmp_path / 'killed.db'}{suffix}")

    done = backup_store(tmp_path / "killed.db", tmp_path / "copy.db")

    with closing(sqlite3.connect(done.path)) as connection:
        assert connection.execute("SELECT data FROM blocks").fetchall() == [(b"in the log",)]
