"""The SQLite store: the promises of every store, and what stays when it is closed, killed or copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from durable_streams.errors import AlreadyClosedError
from durable_streams.server import (
    Appended,
    Created,
    Deleted,
    Duplicate,
    Exists,
    Instant,
    Missing,
    ProducerStamp,
    Reason,
    StreamInfo,
)
from durable_streams.server.stores.sqlite import SQLiteStore
from durable_streams.testing.store_kit import check_store
from durable_streams.testing.store_steps import (
    PATH,
    append_to,
    create_stream,
    expect,
    expect_refusal,
    fork_stream,
    look_at,
    read_page,
    read_pages,
)

from .subscriptions.store_checks import check_subscription_store

pytestmark = pytest.mark.anyio

JSON = "application/json"


def stores(folder: Path, **options: Any) -> Callable[[], SQLiteStore]:
    """A new store in a new file with each call."""
    count = 0

    def make() -> SQLiteStore:
        nonlocal count
        count += 1
        return SQLiteStore(folder / f"{count}.db", **options)

    return make


def crash(store: SQLiteStore, copy: Path) -> Path:
    """What a killed process would leave of an open store, in another place."""
    for suffix in ("", "-wal"):
        shutil.copyfile(store.path + suffix, f"{copy}{suffix}")
    return copy


# --- the promises of every store


async def test_it_keeps_its_promises(tmp_path: Path) -> None:
    await check_store(stores(tmp_path))


@pytest.mark.parametrize(
    "options",
    [{"recent_bytes": 0}, {"streams_in_memory": 1}, {"streams_in_memory": 1, "recent_bytes": 0, "readers": 1}],
    ids=["reading from disk", "knowing one stream", "knowing next to nothing"],
)
async def test_it_keeps_them_with_little_memory(tmp_path: Path, options: dict[str, int]) -> None:
    await check_store(stores(tmp_path, durability="relaxed", **options))


async def test_it_keeps_subscriptions_as_promised(tmp_path: Path) -> None:
    await check_subscription_store(lambda: SQLiteStore(tmp_path / "store.db"))


async def test_a_long_list_of_streams_skips_the_expired_ones(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db", durability="relaxed") as store:
        for number in range(60):
            path = f"/v1/stream/{number:02}"
            ref = expect(Created, await create_stream(store, path=path, ttl=10 if number % 3 else 1000)).info.ref
            if number == 31:
                store.touch(ref, 5.0)
        await append_to(store, b"data", path="/v1/stream/30")

        found = await store.list_streams("/v1/stream/", "/v1/stream/20", 6, 12.0)

        names = [info.ref.path.removeprefix("/v1/stream/") for info in found]
        assert names == ["21", "24", "27", "30", "31", "33"]
        assert [info.tail for info in found] == [0, 0, 0, 4, 0, 0]


# --- opening and closing


async def test_everything_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    stamp = ProducerStamp("p", 2, 0)
    expires = Instant.parse("2999-01-01T00:00:00.250+02:00")
    async with SQLiteStore(path) as store:
        ref = expect(Created, await create_stream(store, "Application/JSON", body=b"[1,[2]]", ttl=60)).info.ref
        await append_to(store, b'{"n": 1.0}', JSON, producer=stamp, seq=b"\xff")
        await append_to(store, close=True, producer=ProducerStamp("p", 2, 1))
        await fork_stream(store, "/v1/stream/fork", 2, 1, expires_at=expires)
        await store.delete(PATH, 0.0)

    async with SQLiteStore(path) as store:
        expect_refusal(await create_stream(store, JSON), Reason.SOFT_DELETED)
        fork = await look_at(store, path="/v1/stream/fork")
        assert fork.content_type == "Application/JSON"
        assert fork.expires_at is not None
        assert expires is not None
        assert fork.expires_at.text == expires.text
        assert (await read_page(store, fork.ref))[0] == b"1,[2],"
        assert fork.ref != ref
        expect(Exists, await fork_stream(store, "/v1/stream/fork", 2, 1, expires_at=expires))


async def test_producers_and_closure_go_on_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SQLiteStore(path) as store:
        await create_stream(store)
        await append_to(store, b"a", producer=ProducerStamp("p", 3, 0), seq=b"b")
        await append_to(store, b"b", producer=ProducerStamp("p", 3, 1))

    async with SQLiteStore(path) as store:
        expect(Duplicate, await append_to(store, b"b", producer=ProducerStamp("p", 3, 1)))
        expect_refusal(await append_to(store, b"x", producer=ProducerStamp("p", 2, 2)), Reason.STALE_EPOCH)
        expect_refusal(await append_to(store, b"x", seq=b"a"), Reason.SEQ_NOT_INCREASING)
        expect(Appended, await append_to(store, b"c", close=True, producer=ProducerStamp("p", 3, 2)))

    async with SQLiteStore(path) as store:
        duplicate = expect(Duplicate, await append_to(store, b"c", close=True, producer=ProducerStamp("p", 3, 2)))
        assert duplicate.closed
        expect_refusal(await append_to(store, close=True, producer=ProducerStamp("p", 3, 3)), Reason.CLOSED)
        assert (await read_page(store, (await look_at(store)).ref))[0] == b"abc"


async def test_a_killed_store_is_opened_with_all_that_was_acknowledged(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        await create_stream(store)
        for number in range(20):
            await append_to(store, b"%02d;" % number, producer=ProducerStamp("p", 0, number))
        remains = crash(store, tmp_path / "remains.db")

    async with SQLiteStore(remains, check="full") as store:
        assert (await read_page(store, (await look_at(store)).ref))[0] == b"".join(b"%02d;" % n for n in range(20))
        expect(Appended, await append_to(store, b"more", producer=ProducerStamp("p", 0, 20)))


async def test_garbage_behind_the_log_is_neither_read_nor_appended_to(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        await create_stream(store, body=b"one;")
        remains = crash(store, tmp_path / "remains.db")
    with open(f"{remains}-wal", "ab") as log:
        log.write(bytes(range(256)) * 100)

    async with SQLiteStore(remains, check="full") as store:
        await append_to(store, b"two;")
        remains = crash(store, tmp_path / "again.db")

    async with SQLiteStore(remains, check="full") as store:
        assert (await read_page(store, (await look_at(store)).ref))[0] == b"one;two;"


async def test_a_log_that_was_cut_loses_whole_requests_only(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        await create_stream(store)
        for number in range(10):
            await append_to(store, b"%d" % number * 3000, producer=ProducerStamp("p", 0, number))
        whole = crash(store, tmp_path / "whole.db")
    log = Path(f"{whole}-wal").read_bytes()

    seen = set()
    for count, cut in enumerate(range(len(log), 0, -3001)):
        path = tmp_path / f"cut{count}.db"
        shutil.copyfile(whole, path)
        Path(f"{path}-wal").write_bytes(log[:cut])
        async with SQLiteStore(path, check="full", durability="relaxed") as store:
            info = await store.head(PATH, 0.0)
            if isinstance(info, Missing):
                continue
            stored = info.tail // 3000
            seen.add(stored)
            content = b"".join(b"%d" % number * 3000 for number in range(stored))
            assert await read_page(store, info.ref) == (content, 3000 * stored)
            if stored:
                expect(Duplicate, await append_to(store, b"x", producer=ProducerStamp("p", 0, stored - 1)))
            expect(Appended, await append_to(store, b"x", producer=ProducerStamp("p", 0, stored)))
    assert seen == set(range(11))


async def test_it_is_of_no_use_before_it_is_opened_and_after_it_was_closed(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store.db")
    with pytest.raises(AlreadyClosedError, match="not open"):
        await store.head(PATH, 0.0)
    assert repr(store) == f"<SQLiteStore {tmp_path}/store.db, not open>"
    async with store:
        ref = expect(Created, await create_stream(store, body=b"x" * 3_000_000)).info.ref
        assert repr(store) == f"<SQLiteStore {tmp_path}/store.db, open, 1 streams in memory>"
        with pytest.raises(RuntimeError, match="open already"):
            await store.__aenter__()
    async with SQLiteStore(tmp_path / "store.db", recent_bytes=0) as store:
        watch = store.watch(ref)
        page: Any = await store.read(ref, 0, 1 << 30)
    assert watch.gone
    await watch.wait(3_000_000)
    watch.close()
    store.touch(ref, 1.0)
    with pytest.raises(AlreadyClosedError, match="was closed"):
        await page.next_piece()
    await page.aclose()
    with pytest.raises(AlreadyClosedError, match="not open"):
        await create_stream(store)


async def test_what_is_asked_while_it_closes_is_done_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SQLiteStore(path)
    await store.__aenter__()
    await create_stream(store)
    acknowledged = []

    async def append(number: int) -> None:
        result = await append_to(store, b"%02d;" % number)
        acknowledged.append(expect(Appended, result).tail)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(append, number)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        await store.__aexit__(None, None, None)

    async with SQLiteStore(path) as store:
        assert (await look_at(store)).tail == max(acknowledged)
        assert sorted(acknowledged) == list(range(3, 61, 3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": ":memory:"}, "path must name a file"),
        ({"path": ""}, "path must name a file"),
        ({"durability": "none"}, "durability must be 'full' or 'relaxed', got 'none'"),
        ({"check": "maybe"}, "check must be"),
        ({"readers": 0}, "readers must be at least 1, got 0"),
        ({"streams_in_memory": 0}, "streams_in_memory must be at least 1"),
        ({"recent_bytes": -1}, "recent_bytes must be at least 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SQLiteStore(**{"path": "x.db", **arguments})


# --- TTL


async def test_a_time_of_use_is_stored_when_the_store_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SQLiteStore(path) as store:
        ref = expect(Created, await create_stream(store, ttl=100)).info.ref
        store.touch(ref, 90.0)

    async with SQLiteStore(path, clock=lambda: 1000.0) as store:
        expect(StreamInfo, await store.head(PATH, 189.0))
        expect(Missing, await store.head(PATH, 190.0))


async def test_a_time_of_use_is_stored_by_a_sweep_if_it_moved_enough(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        ref = expect(Created, await create_stream(store, ttl=100)).info.ref
        commits = store.statistics().writer.commits
        for moment in (1.0, 3.0, 5.0):
            store.touch(ref, moment)
            await store.sweep(moment)
        assert store.statistics().writer.commits == commits
        store.touch(ref, 5.1)
        await store.sweep(5.1)
        assert store.statistics().writer.commits == commits + 1


async def test_after_a_crash_a_ttl_counts_from_the_opening(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        await create_stream(store, ttl=100)
        await create_stream(store, path="/v1/stream/absolute", expires_at=Instant.parse("1970-01-01T00:02:00Z"))
        remains = crash(store, tmp_path / "remains.db")

    async with SQLiteStore(remains, clock=lambda: 5000.0) as store:
        expect(StreamInfo, await store.head(PATH, 5099.0))
        expect(Missing, await store.head("/v1/stream/absolute", 5000.0))
        await store.sweep(5050.0)
    async with SQLiteStore(remains, clock=lambda: 7000.0) as store:
        expect(StreamInfo, await store.head(PATH, 5099.0))
        expect(Missing, await store.head(PATH, 5100.0))


async def test_a_sweep_finds_what_expired_without_being_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SQLiteStore(path, durability="relaxed") as store:
        for number in range(600):
            await create_stream(store, path=f"/v1/stream/{number}", ttl=10 if number % 2 else 1000)
    async with SQLiteStore(path, durability="relaxed") as store:
        await store.sweep(10.0)
        for number in range(600):
            expect(Missing if number % 2 else StreamInfo, await store.head(f"/v1/stream/{number}", 0.0))


async def test_a_watched_stream_is_not_swept_and_its_time_begins_when_the_watch_ends(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        ref = expect(Created, await create_stream(store, ttl=10)).info.ref
        watch = store.watch(ref)
        await store.sweep(500.0)
        assert not watch.gone
        watch.close()
        expect(StreamInfo, await store.head(PATH, 509.0))
        expect(Missing, await store.head(PATH, 510.0))


async def test_readers_cost_no_commit(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        ref = expect(Created, await create_stream(store, ttl=3600)).info.ref
        commits = store.statistics().writer.commits
        watches = [store.watch(ref) for _ in range(100)]
        for moment in range(10):
            for _ in watches:
                await read_page(store, ref)
                store.touch(ref, float(moment))
        assert store.statistics().writer.commits == commits

        await append_to(store, b"news")
        for watch in watches:
            await watch.wait(0)
            assert (await read_page(store, ref))[0] == b"news"
            watch.close()
        assert store.statistics().writer.commits == commits + 1


# --- reading


async def test_an_open_page_outlives_its_stream(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    async with SQLiteStore(tmp_path / "store.db", recent_bytes=0) as store:
        ref = expect(Created, await create_stream(store, body=content)).info.ref
        fork = expect(Created, await fork_stream(store, "/v1/stream/fork", 4_000_000, body=b"own")).info.ref
        page: Any = await store.read(fork, 1, 1 << 30)
        first = await page.next_piece()
        expect(Deleted, await store.delete("/v1/stream/fork", 0.0))
        expect(Deleted, await store.delete(PATH, 0.0))
        await store.sweep(0.0)
        expect(Missing, await store.read(ref, 0, 100))

        read = bytes(first)
        while (piece := await page.next_piece()) is not None:
            read += piece
        assert read == content[1:4_000_000] + b"own"
        await page.aclose()
        assert store.statistics().open_pages == 0
        await store.sweep(0.0)
        await create_stream(store, body=content)
    size = (tmp_path / "store.db").stat().st_size
    assert size <= len(content) + 1_000_000, "the room of the old stream is used again"


async def test_the_next_part_of_a_page_is_read_while_this_one_is_sent_and_no_more(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    async with SQLiteStore(tmp_path / "store.db", recent_bytes=0) as store:
        ref = expect(Created, await create_stream(store, body=content)).info.ref
        page: Any = await store.read(ref, 0, 1 << 30)
        read = b""
        while (piece := await page.next_piece()) is not None:
            read += piece
            while page._reading is not None:
                await page._reading.wait()
            waiting = sum(map(len, page._pieces))
            assert waiting == page._waiting
            assert 0 < waiting <= 2 << 20 or len(read) == len(content)
        assert read == content
        await page.aclose()


async def test_a_page_that_is_closed_while_it_is_read_keeps_its_rows_until_nobody_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteStore(tmp_path / "store.db", recent_bytes=0) as store:
        ref = expect(Created, await create_stream(store, body=b"x" * 3_000_000)).info.ref
        page: Any = await store.read(ref, 0, 1 << 30)
        held: list[Callable[[], None]] = []
        monkeypatch.setattr(page, "_finish", lambda outcome: held.append(lambda: type(page)._finish(page, outcome)))
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(page.next_piece)
                while not held:
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        assert store.statistics().open_pages == 1

        async with anyio.create_task_group() as group:
            group.start_soon(page.aclose)
            group.cancel_scope.cancel()
            for _ in range(5):
                await anyio.lowlevel.cancel_shielded_checkpoint()
            assert store.statistics().open_pages == 1
            held[0]()
        assert store.statistics().open_pages == 0
        assert await page.next_piece() is None


async def test_many_small_appends_are_read_like_a_large_one(tmp_path: Path) -> None:
    bodies = [bytes([number % 256, 0]) * (1 + number % 50) for number in range(400)]
    content = b"".join(bodies)
    async with SQLiteStore(tmp_path / "store.db", durability="relaxed", recent_bytes=0) as store:
        ref = expect(Created, await create_stream(store)).info.ref
        for body in bodies:
            await append_to(store, body)
        for offset in (0, 1, 777, len(content) - 1):
            assert (await read_page(store, ref, offset))[0] == content[offset:]
        assert (await read_pages(store, ref, 1000))[0] == content


async def test_appends_of_one_commit_are_one_row(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db", recent_bytes=0) as store:
        ref = expect(Created, await create_stream(store, JSON)).info.ref
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(append_to, store, b"[%d,[%d]]" % (number, number), JSON)
        commits = store.statistics().writer.commits
        assert commits < 100
        for max_bytes in (1, 2, 10, 50, 400):
            data, ends = await read_pages(store, ref, max_bytes)
            assert sorted(data.replace(b"[", b"").replace(b"]", b"").split(b",")[:-1], key=int) == [
                b"%d" % (number // 2) for number in range(200)
            ]
            if max_bytes >= 10:
                assert all(data[:end].count(b",") % 2 == 0 for end in ends), "an append was divided"


async def test_the_newest_data_is_in_memory_and_the_rest_on_disk(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db", recent_bytes=2000) as store:
        ref = expect(Created, await create_stream(store, JSON)).info.ref
        for number in range(10, 30):
            await append_to(store, b"%d" % number, JSON)
        content = b"".join(b"%d," % number for number in range(10, 30))
        for offset in range(0, 61, 3):
            assert (await read_page(store, ref, offset))[0] == content[offset:]
            for bad in (offset + 1, offset + 2):
                assert type(await store.read(ref, bad, 100)).__name__ == "BadOffset"
        page: Any = await store.read(ref, 57, 100)
        disk: Any = await store.read(ref, 0, 100)
        assert (type(page).__name__, type(disk).__name__) == ("RecentPage", "StoredPage")
        await disk.aclose()


async def test_a_json_message_larger_than_a_row_is_read_whole_and_from_its_ends_only(tmp_path: Path) -> None:
    large = b'"' + b"x" * 2_500_000 + b'"'
    body = b"[1," + large + b",2,3]"
    content = body[1:-1] + b","
    boundaries = [0, 2, len(content) - 4, len(content) - 2, len(content)]
    async with SQLiteStore(tmp_path / "store.db", recent_bytes=0) as store:
        ref = expect(Created, await create_stream(store, JSON)).info.ref
        await append_to(store, body, JSON)
        data, ends = await read_pages(store, ref, 1000)
        assert data == content
        assert ends == [2, len(content) - 4, len(content)]
        for offset in (1, 3, 1_000_000, 1 << 20, (1 << 20) + 2, 2 << 20, len(content) - 1):
            assert type(await store.read(ref, offset, 100)).__name__ == "BadOffset"
        for start, end in pairwise(boundaries):
            assert await read_page(store, ref, start, end - start) == (content[start:end], end)


# --- upkeep


async def test_rows_of_deleted_streams_go_in_slices_and_the_file_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SQLiteStore(path, durability="relaxed") as store:
        for number in range(3):
            name = f"/v1/stream/{number}"
            await create_stream(store, path=name, body=b"x" * 15_000_000)
            for seq in range(30):
                await append_to(store, b"y", path=name, producer=ProducerStamp(f"p{seq}", 0, 0))
        expect(Deleted, await store.delete("/v1/stream/0", 0.0))
        expect(Deleted, await store.delete("/v1/stream/1", 0.0))
    async with SQLiteStore(path, durability="relaxed") as store:
        await store.sweep(0.0)
        ref = (await look_at(store, path="/v1/stream/2")).ref
        assert len((await read_page(store, ref))[0]) == 15_000_030
    assert path.stat().st_size < 35_000_000, "free pages went back to the file system"
    async with SQLiteStore(path, check="full"):
        pass


async def test_a_checkpoint_keeps_the_log_short(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db", durability="relaxed") as store:
        await create_stream(store)
        for _ in range(40):
            await append_to(store, b"x" * 1_000_000)
        statistics = store.statistics()
        assert statistics.writer.checkpoints >= 2
        assert statistics.log_bytes < 25_000_000
        assert statistics.file_bytes > 20_000_000
        assert statistics.writer.appended_bytes == 40_000_000
        assert statistics.streams_in_memory == 1
