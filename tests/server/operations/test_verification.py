"""`verify_store` says nothing of a store that is whole, and finds whatever is wrong with another, where it is."""

from __future__ import annotations

import io
import random
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from durable_streams.server import (
    SQLiteStore,
    StoreError,
    StoreFormatError,
    backup_store,
    export_stream,
    inspect_store,
    verify_store,
)
from durable_streams.testing.store_kit import check_store
from durable_streams.testing.store_steps import append_to

from ..test_sqlite_checksums import make_it_old
from .sample import JSON, fill, make, path_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, closed and in order. Not to be changed."""
    return anyio.run(make, tmp_path_factory.mktemp("whole") / "store.db")


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copyfile(whole, tmp_path / "store.db"))


def edit(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def findings(path: Path, **options: Any) -> list[str]:
    return [str(finding) for finding in verify_store(path, **options).findings]


def test_a_whole_store_is_in_order(whole: Path) -> None:
    before = whole.read_bytes()

    seen = verify_store(whole)

    assert seen.findings == ()
    assert seen.ok
    assert seen.complete
    assert (seen.streams, seen.producers, seen.subscriptions, seen.blocks_without_checksum) == (9, 4, 1, 0)
    assert seen.blocks == 16
    assert seen.data_bytes > 5 << 18
    assert whole.read_bytes() == before


@pytest.mark.anyio
async def test_a_store_in_use_is_in_order(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        await fill(store)
        first = await anyio.to_thread.run_sync(verify_store, store.path)
        await append_to(store, b"[8]", JSON, path=path_of("json"))
        second = await anyio.to_thread.run_sync(verify_store, store.path)

    assert (first.findings, second.findings) == ((), ())
    assert second.blocks == first.blocks + 1


def test_a_store_of_an_older_release_is_checked_as_far_as_that_is_possible(store: Path) -> None:
    make_it_old(store)
    with pytest.raises(StoreFormatError, match="made by an older release"):
        verify_store(store)

    async def serve() -> None:
        async with SQLiteStore(store):
            pass

    anyio.run(serve)

    seen = verify_store(store)
    assert (seen.findings, seen.blocks_without_checksum) == ((), 16)


CHANGES = {
    "a byte of data": (
        "UPDATE blocks SET data = CAST('X' || substr(CAST(data AS TEXT), 2) AS BLOB) WHERE rowid = 9",
        r"data of stream .*: was changed: the checksum does not fit",
    ),
    "a row of data that is missing": (
        "DELETE FROM blocks WHERE stream = 1 AND end_offset = 39",
        r"data of stream /v1/stream/json from \d+ to \d+: \d+ bytes before it are missing",
    ),
    "the last row of data that is missing": (
        "DELETE FROM blocks WHERE end_offset = (SELECT max(end_offset) FROM blocks WHERE stream = 2) AND stream = 2",
        r"producer é of stream /v1/stream/text: 3 bytes of what it appended are missing at the end of the stream",
    ),
    "a part of an append that is missing": (
        "DELETE FROM blocks WHERE stream = 3 AND end_offset = (SELECT max(end_offset) FROM blocks WHERE stream = 3)",
        r"stream /v1/stream/bytes: its data ends at \d+_\d+, in the middle of an append",
    ),
    "all data of a fork's source": (
        "DELETE FROM blocks WHERE stream = 6",
        r"stream /v1/stream/keeper: begins at \S+4 of /v1/stream/kept, whose data ends at \S+0$",
    ),
    "data at another place": (
        "UPDATE blocks SET end_offset = end_offset + 1 WHERE stream = 3 AND end_offset = 2560",
        r"from 1 to 2561: 1 bytes before it are missing",
    ),
    "overlapping data": (
        "UPDATE blocks SET end_offset = end_offset - 1 WHERE stream = 3 AND end_offset > 2560",
        r"overlaps: the data before it ends at 2560",
    ),
    "data of nobody": ("UPDATE blocks SET stream = 77 WHERE stream = 2", r"no known stream .*belongs to no stream"),
    "places of messages": (
        "UPDATE blocks SET messages = x'0300000002000000' WHERE rowid = 1",
        r"its messages end at impossible places",
    ),
    "places that cannot be read": ("UPDATE blocks SET messages = x'03' WHERE rowid = 1", r"cannot be read"),
    "a comma": ("UPDATE blocks SET data = x'226f74686572223b' WHERE rowid = 7", r"no comma stands behind a message"),
    "messages in a byte stream": (
        "UPDATE blocks SET messages = x'02000000' WHERE stream = 3",
        r"it has messages, but the stream has none",
    ),
    "a producer's sequence number": (
        "UPDATE producers SET seq = 3 WHERE producer = 'p' AND stream = 1",
        r"producer p of stream /v1/stream/json: its record was changed: the checksum does not fit",
    ),
    "an impossible sequence number": ("UPDATE producers SET seq = -1", r"sequence number -1 are not possible"),
    "a sequence number that is text": ("UPDATE producers SET seq = 'four'", r"seq: no value that can stand there"),
    "a producer's place": (
        "UPDATE producers SET tail = tail - 1 WHERE producer = 'p' AND stream = 1",
        r"producer p of stream /v1/stream/json: it left the tail at \d+, where no append ends",
    ),
    "a producer's place before its stream": (
        "UPDATE producers SET tail = 1 WHERE producer = 'p' AND stream <> 1",
        r"producer p of stream /v1/stream/fork/of-fork: it left the tail at 1, before the stream's own data begins",
    ),
    "the producer that closed": (
        "UPDATE producers SET seq = 1 WHERE producer = 'é'",
        r"it closed the stream with epoch 0 and sequence number 0, its record says 0 and 1",
    ),
    "where the closing producer was": (
        "UPDATE producers SET tail = 2 WHERE producer = 'é'",
        r"it closed the stream at 2, but the data ends at",
    ),
    "a producer of nobody": ("UPDATE producers SET stream = 77 WHERE producer = 'é'", r"belongs to no stream"),
    "a stream's closure": ("UPDATE streams SET closed = 1 WHERE id = 1", r"stream /v1/stream/json: its record was"),
    "an impossible closure": ("UPDATE streams SET closed_by = 'x' WHERE id = 1", r"it cannot have been closed like"),
    "a stream's path": ("UPDATE streams SET path = '/a//b' WHERE id = 1", r"its path is not a normalised one"),
    "a stream's type": ("UPDATE streams SET base = 'x' WHERE id = 1", r"base: no value that can stand there"),
    "a stream's state": ("UPDATE streams SET state = 9 WHERE id = 1", r"its state is 9"),
    "a stream's beginning": ("UPDATE streams SET base = 5 WHERE id = 2", r"it cannot begin at 5 with 0 ancestors"),
    "what was asked for": ("UPDATE streams SET fork_path = '/a' WHERE id = 2", r"what it is a fork of is not what was"),
    "an expiry": ("UPDATE streams SET expires = 5 WHERE id = 1", r"it would not expire when it should"),
    "an expiry that is none": (
        "UPDATE streams SET effective_expires_at = 'soon' WHERE effective_expires_at IS NOT NULL",
        r"its expiry is 'soon'",
    ),
    "a fork's source": ("DELETE FROM streams WHERE path LIKE '%/kept'", r"keeper: the stream that it is a fork of is"),
    "a fork's depth": ("UPDATE streams SET depth = 7 WHERE depth = 2", r"it cannot be a fork of .*: depth 7 after 1"),
    "a fork's edge": ("DELETE FROM fork_edges", r"stream /v1/stream/keeper: nothing keeps the data of the stream"),
    "the edge of a deleted stream": ("DELETE FROM fork_edges", r"stream /v1/stream/kept: is kept for its forks, and"),
    "an edge to another": ("UPDATE fork_edges SET source = 3", r"keeps the data of stream 3 instead of its source's"),
    "an edge of nobody": ("INSERT INTO fork_edges VALUES (77, 1)", r"an edge from stream 77, which is not there"),
    "a subscription": ("UPDATE subscriptions SET record = '{'", r"subscription /v1.*worker: its record cannot be read"),
    "whose subscription it is": (
        "UPDATE subscriptions SET path = '/x'",
        r"subscription /x: its record is that of another",
    ),
    "a subscription's text": (
        "UPDATE subscriptions SET record = replace(record, 'a worker', 'no worker')",
        r"subscriptions, .*worker: its record was changed: the checksum does not fit",
    ),
    "a cursor that is possible": (
        "UPDATE subscription_links SET acked = acked + 1",
        r"subscription_links, .*worker: its record was changed: the checksum does not fit",
    ),
    "a key": ("UPDATE secrets SET value = x'00'", r"secrets, token key: its record was changed: the checksum does not"),
    "links of nobody": ("DELETE FROM subscriptions", r"link of .*worker to /v1/stream/bytes: belongs to no subscr"),
    "a cursor": ("UPDATE subscription_links SET acked = -2", r"its cursor is -2"),
    "a kind of link": ("UPDATE subscription_links SET explicit = 0, glob = 0", r"is neither an explicit link nor one"),
    "a secret": ("UPDATE secrets SET value = x''", r"secret token key: has no value"),
    "meta": ("UPDATE meta SET value = 'x' WHERE key = 'closed_cleanly'", r"meta: closed_cleanly is 'x'"),
    "how many streams there are": (
        "UPDATE meta SET value = value + 1 WHERE key = 'streams'",
        r"meta: it counts 9 streams, there are 8",
    ),
    "when TTLs begin": (
        "INSERT OR REPLACE INTO meta VALUES ('access_floor', 5.0, 1)",
        r"meta, access_floor: its record was changed: the checksum does not fit",
    ),
    "an index": ("DROP INDEX blocks_by_offset", r"tables: index blocks_by_offset is missing"),
    "a column": ("ALTER TABLE producers DROP COLUMN tail", r"tables: table producers has other columns"),
    "a table": ("DROP TABLE fork_edges", r"tables: table fork_edges is missing"),
}


@pytest.mark.parametrize(("statement", "words"), CHANGES.values(), ids=CHANGES)
def test_what_was_changed_is_found(store: Path, statement: str, words: str) -> None:
    edit(store, statement)

    found = findings(store)

    assert [line for line in found if re.search(words, line)], found


def test_a_change_is_found_in_the_row_where_it_is_and_nowhere_else(store: Path) -> None:
    edit(store, "UPDATE producers SET seq = 3 WHERE producer = 'p' AND stream = 1")

    assert findings(store) == [
        "producer p of stream /v1/stream/json: its record was changed: the checksum does not fit"
    ]


def test_it_stops_after_as_many_findings_as_are_wanted(store: Path) -> None:
    edit(store, "UPDATE blocks SET checksum = 0")

    assert not verify_store(store, max_findings=3).complete
    assert len(findings(store, max_findings=3)) == 3
    assert len(findings(store)) == 16
    with pytest.raises(ValueError, match="max_findings must be at least 1, got 0"):
        verify_store(store, max_findings=0)


# --- damage to the file


def logical_content(path: Path) -> list[Any]:
    """All that a store says, in tables."""
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        tables = [
            "meta",
            "streams",
            "blocks",
            "producers",
            "fork_edges",
            "subscriptions",
            "subscription_links",
            "secrets",
        ]
        return [sorted(map(repr, connection.execute(f"SELECT * FROM {table}"))) for table in tables]


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_is_found_wherever_it_makes_a_difference(whole: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(whole.read_bytes())
    expected = logical_content(whole)
    path = tmp_path / "damaged.db"
    found = harmless = 0
    # Most of the file is one stream's data; the pages before it hold everything else.
    places = [rng.randrange(len(data)) for _ in range(10)] + [rng.randrange(25 * 4096) for _ in range(50)]
    for place in places:
        bit = 1 << rng.randrange(8)
        data[place] ^= bit
        path.write_bytes(data)
        data[place] ^= bit
        try:
            damaged = not verify_store(path).ok
        except StoreError:
            damaged = True
        found += damaged
        if not damaged:
            assert logical_content(path) == expected, f"bit {bit} of byte {place}"
            harmless += 1
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    assert found >= 15
    assert found + harmless == len(places)


@pytest.mark.parametrize("seed", range(2))
def test_nothing_but_an_error_of_the_store_comes_out_of_a_damaged_one(whole: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(whole.read_bytes())
    path, copy = tmp_path / "damaged.db", tmp_path / "copy.db"

    def look() -> None:
        with inspect_store(path) as inspection:
            inspection.store().line()
            for stream in inspection.streams():
                stream.line()
                for producer in inspection.producers(stream.path):
                    producer.line()
            for subscription in inspection.subscriptions():
                subscription.line()

    def export() -> None:
        for name in ("json", "text", "fork/of-fork"):
            export_stream(path, path_of(name), io.BytesIO())

    damaged = 0
    for _ in range(40):
        for _ in range(3):
            data[rng.randrange(25 * 4096)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        for operation in (look, export, lambda: backup_store(path, copy, overwrite=True)):
            try:
                operation()
            except StoreError:
                damaged += 1
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    assert damaged


def test_whatever_the_server_does_leaves_a_store_in_order(tmp_path: Path) -> None:
    """Every store of the kit's checks is verified behind it: forks, expiry, deletion, producers, closure."""
    paths: list[Path] = []

    def make_store() -> SQLiteStore:
        paths.append(tmp_path / f"{len(paths)}.db")
        return SQLiteStore(paths[-1], durability="relaxed")

    anyio.run(check_store, make_store)

    assert len(paths) > 10
    for path in paths:
        assert findings(path) == [], path


def test_a_page_that_is_overwritten_is_found(store: Path) -> None:
    pages = store.stat().st_size // 4096
    for page in range(1, pages, max(1, pages // 12)):
        data = store.read_bytes()
        damaged = store.with_name(f"{page}.db")
        damaged.write_bytes(data[: page * 4096] + b"\xa5" * 4096 + data[(page + 1) * 4096 :])

        assert not verify_store(damaged).ok, page


@pytest.mark.parametrize("cut", [50, 4096, 10_000, -4096, -1])
def test_a_torn_file_is_found(store: Path, cut: int) -> None:
    store.write_bytes(store.read_bytes()[:cut])

    found = findings(store)

    assert found[0].startswith("file: is torn: it"), found


def test_garbage_behind_the_last_page_is_found(store: Path) -> None:
    with store.open("ab") as file:
        file.write(b"\0" * 4096)

    assert [line for line in findings(store) if line.startswith("file: is torn")]


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    other, empty, text = tmp_path / "other.db", tmp_path / "empty.db", tmp_path / "text.db"
    edit(other, "CREATE TABLE t (a)")
    empty.touch()
    text.write_text("Dear diary,")

    with pytest.raises(StoreFormatError, match=r"other\.db: a database of another program"):
        verify_store(other)
    with pytest.raises(StoreFormatError, match=r"empty\.db: the file is empty"):
        verify_store(empty)
    with pytest.raises(StoreFormatError, match=r"text\.db: not a store"):
        verify_store(text)
    with pytest.raises(StoreError, match=r"missing\.db: there is no such file"):
        verify_store(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()


def test_a_newer_store_is_refused(store: Path) -> None:
    edit(store, "UPDATE meta SET value = 99 WHERE key = 'schema_version'")

    with pytest.raises(StoreFormatError, match="made by a newer release"):
        verify_store(store)
