"""Every row that a store writes carries the checksum of its values, also after it was brought up to date."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from durable_streams.server import ProducerStamp, SQLiteStore
from durable_streams.server.stores import sqlite_schema
from durable_streams.server.stores.sqlite_checksums import (
    CHANGING,
    FIXED,
    SMALL,
    block_checksum,
    fixed_checksum,
    producer_checksum,
    stream_checksum,
    values_checksum,
)
from durable_streams.testing.store_steps import append_to, create_stream, fork_stream

pytestmark = pytest.mark.anyio

JSON = "application/json"


async def fill(path: Path, now: float = 100) -> None:
    """A store with a row of each kind; times are whole numbers, which SQLite keeps as integers."""
    async with SQLiteStore(path) as store:
        await create_stream(store, JSON, path="/s/json", body=b'[1,{"a":2}]', ttl=60, now=now)
        await create_stream(store, path="/s/é/✓", body=b"x" * (3 << 20), now=now)
        await append_to(store, b"[3]", JSON, path="/s/json", producer=ProducerStamp("p", 0, 0), now=now + 1)
        await append_to(store, b"[4]", JSON, path="/s/json", producer=ProducerStamp("p", 0, 1), now=now + 2)
        await append_to(store, b"y", path="/s/é/✓", seq=b"\xff\x00", now=now + 3)
        await fork_stream(store, "/s/fork", source="/s/json", now=now + 4)
        await append_to(store, path="/s/fork", close=True, producer=ProducerStamp("q'", 3, 0), now=now + 5)


def rows(path: Path, table: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]


def check(path: Path) -> int:
    """How many checksums there are, after comparing each with its row."""
    count = 0
    for row in rows(path, "streams"):
        assert set(row) == {*FIXED, *CHANGING, "checksum"}
        assert row.pop("checksum") == stream_checksum(row, fixed_checksum(row))
        count += 1
    for row in rows(path, "producers"):
        assert row.pop("checksum") == producer_checksum(**row)
        count += 1
    for table, columns in SMALL.items():
        for row in rows(path, table):
            assert row["checksum"] == values_checksum(*(row[column] for column in columns)), row
    for row in rows(path, "blocks"):
        row["end"] = row.pop("end_offset")
        found = row.pop("checksum")
        if found is not None:
            assert found == block_checksum(**row)
            count += 1
    return count


async def test_every_row_has_the_checksum_of_its_values(tmp_path: Path) -> None:
    await fill(tmp_path / "store.db")

    assert check(tmp_path / "store.db") == 3 + 2 + 7


async def test_a_row_that_changes_gets_a_new_checksum(tmp_path: Path) -> None:
    await fill(tmp_path / "store.db")
    async with SQLiteStore(tmp_path / "store.db") as store:
        await append_to(store, b"[5]", JSON, path="/s/json", producer=ProducerStamp("p", 1, 0), now=120)
        await append_to(store, b"z", path="/s/é/✓", close=True, producer=ProducerStamp("r", 0, 0), now=121)
        await store.delete("/s/json", 122)

    assert check(tmp_path / "store.db") == 3 + 3 + 9
    assert [row["tail"] for row in rows(tmp_path / "store.db", "producers")] == [16, (3 << 20) + 2, 14]


def make_it_old(path: Path) -> None:
    """Bring a store back to version 1 of the schema."""
    with closing(sqlite3.connect(path)) as connection:
        for table, column in (
            *(("blocks", "checksum"), ("producers", "checksum"), ("producers", "tail"), ("streams", "checksum")),
            *((table, "checksum") for table in SMALL),
        ):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute("UPDATE meta SET value = 1 WHERE key = 'schema_version'")
        connection.commit()


async def test_a_store_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    make_it_old(path)

    async with SQLiteStore(path) as store:
        await append_to(store, b"[5]", JSON, path="/s/json", producer=ProducerStamp("p", 0, 2), now=120)

    assert check(path) == 3 + 2 + 1
    known = {row["key"]: row["value"] for row in rows(path, "meta")}
    assert (known["schema_version"], known["blocks_without_checksum"]) == (sqlite_schema.SCHEMA_VERSION, 7)
    assert [row["tail"] for row in rows(path, "producers")] == [16, None]
