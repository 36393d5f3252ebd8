"""What every `Store` of the server owes, as one reusable test.

Run it against your own store; it raises `AssertionError` at the first promise that is broken:

    async def test_my_store_keeps_its_promises():
        await check_store(lambda: MyStore(...))

Each check gets a fresh store. Time is given to the store as numbers, so nothing here waits for a clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import anyio.lowlevel

from ..server import (
    Appended,
    BadOffset,
    Created,
    Deleted,
    Duplicate,
    Exists,
    Instant,
    Missing,
    Offset,
    ProducerStamp,
    ProducerState,
    Reason,
    Store,
    StreamInfo,
    StreamRef,
)
from . import _store_history_checks, store_fork_checks  # noqa: F401  # they register their checks
from .store_steps import (
    CHECKS,
    PATH,
    append_to,
    check,
    create_stream,
    expect,
    expect_refusal,
    look_at,
    read_page,
    read_pages,
)


async def check_store(factory: Callable[[], AbstractAsyncContextManager[Store]]) -> None:
    """Hold a store to its contract (`durable_streams.server.stores.base`).

    Args:
        factory: Makes a new, empty store; it is entered and left around each check.

    Raises:
        AssertionError: if the store breaks a promise.
        TimeoutError: if a call does not return within 30 seconds.
    """
    for one in CHECKS:
        async with factory() as store:
            try:
                with anyio.fail_after(30):
                    await one(store)
            except AssertionError as error:
                error.add_note(f"in the check: {(one.__doc__ or one.__name__).strip()}")
                raise


@check
async def _creation(store: Store) -> None:
    """A stream is created once, and its repetition is recognised by what was asked for."""
    created = expect(Created, await create_stream(store, "text/plain; charset=UTF-8", body=b"first", ttl=60))
    info = created.info
    assert (info.ref.path, info.content_type, info.tail, info.closed, info.ttl) == (
        PATH,
        "text/plain; charset=UTF-8",
        5,
        False,
        60,
    )

    again = expect(Exists, await create_stream(store, "TEXT/plain", body=b"ignored", ttl=60))
    assert again.info.ref == info.ref
    assert again.info.tail == 5
    expect_refusal(await create_stream(store, "text/html", ttl=60), Reason.OTHER_CONFIG)
    expect_refusal(await create_stream(store, "text/plain", ttl=61), Reason.OTHER_CONFIG)
    expect_refusal(await create_stream(store, "text/plain", ttl=60, closed=True), Reason.OTHER_CONFIG)
    assert await read_page(store, info.ref) == (b"first", 5)


@check
async def _closed_creation(store: Store) -> None:
    """A stream may be born closed; a repetition is compared with the present closure."""
    info = expect(Created, await create_stream(store, closed=True, body=b"all")).info
    assert info.closed
    expect(Exists, await create_stream(store, closed=True))
    expect_refusal(await create_stream(store), Reason.OTHER_CONFIG)
    expect_refusal(await append_to(store, b"more"), Reason.CLOSED)


@check
async def _equal_expiry(store: Store) -> None:
    """Expiry is compared as a moment, and given back as it was written."""
    text = "2030-01-01T00:00:00.500+01:00"
    expect(Created, await create_stream(store, expires_at=Instant.parse(text)))
    info = expect(Exists, await create_stream(store, expires_at=Instant.parse("2029-12-31T23:00:00.5Z"))).info
    assert info.expires_at is not None
    assert info.expires_at.text == text


@check
async def _invalid_creation(store: Store) -> None:
    """A body that is not JSON creates nothing; an empty array creates an empty stream."""
    expect_refusal(await create_stream(store, "application/json", body=b"{"), Reason.INVALID_JSON)
    expect(Missing, await store.head(PATH, 0.0))
    assert expect(Created, await create_stream(store, "application/json", body=b"[]")).info.tail == 0
    expect(Exists, await create_stream(store, "application/json", body=b"{"))


@check
async def _racing_creations(store: Store) -> None:
    """Of creations that race, one wins."""
    results: list[Any] = []

    async def create() -> None:
        results.append(await create_stream(store))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(create)
    assert sum(isinstance(result, Created) for result in results) == 1
    assert sum(isinstance(result, Exists) for result in results) == 19


@check
async def _racing_appends(store: Store) -> None:
    """Appends that race get offsets of their own, and the stream is their bytes in that order."""
    info = expect(Created, await create_stream(store)).info
    tails: dict[int, bytes] = {}

    async def append(number: int) -> None:
        body = b"%03d;" % number
        tails[expect(Appended, await append_to(store, body)).tail] = body

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(append, number)
    assert sorted(tails) == [4 * count for count in range(1, 51)]
    assert await read_page(store, info.ref) == (b"".join(body for _, body in sorted(tails.items())), 200)


@check
async def _missing_stream(store: Store) -> None:
    """What is not there is Missing or NOT_FOUND for every call."""
    expect_refusal(await append_to(store, b"x"), Reason.NOT_FOUND)
    expect_refusal(await append_to(store, close=True), Reason.NOT_FOUND)
    expect_refusal(await store.delete(PATH, 0.0), Reason.NOT_FOUND)
    expect(Missing, await store.head(PATH, 0.0))
    expect(Missing, await store.read(StreamRef(PATH, "never"), 0, 100))
    watch = store.watch(StreamRef(PATH, "never"))
    assert watch.gone
    await watch.wait(0)
    watch.close()


@check
async def _producers(store: Store) -> None:
    """A producer's batches are stored once and in order, and its state changes only with stored data."""
    info = expect(Created, await create_stream(store, "application/json")).info
    json = "application/json"

    first = expect(Appended, await append_to(store, b"[1]", json, producer=ProducerStamp("p", 0, 0)))
    assert first == Appended(2, False, ProducerState(0, 0))
    expect_refusal(await append_to(store, b"[2", json, producer=ProducerStamp("p", 0, 1)), Reason.INVALID_JSON)
    expect(Appended, await append_to(store, b"[2]", json, producer=ProducerStamp("p", 0, 1)))
    duplicate = expect(Duplicate, await append_to(store, b"[1]", json, producer=ProducerStamp("p", 0, 0)))
    assert duplicate == Duplicate(4, False, ProducerState(0, 1))
    gap = expect_refusal(await append_to(store, b"[4]", json, producer=ProducerStamp("p", 0, 3)), Reason.SEQUENCE_GAP)
    assert (gap.expected, gap.received) == (2, 3)
    expect(Appended, await append_to(store, b"[3]", json, producer=ProducerStamp("p", 1, 0)))
    stale = expect_refusal(await append_to(store, b"[4]", json, producer=ProducerStamp("p", 0, 2)), Reason.STALE_EPOCH)
    assert stale.epoch == 1
    expect(Appended, await append_to(store, b"[5]", json, producer=ProducerStamp("other", 7, 0)))
    assert await read_page(store, info.ref) == (b"1,2,3,5,", 8)


@check
async def _pipelined_producer(store: Store) -> None:
    """Of the same request made by several at once, one stores."""
    info = expect(Created, await create_stream(store)).info
    results: list[Any] = []

    async def append() -> None:
        results.append(await append_to(store, b"once", producer=ProducerStamp("p", 0, 0)))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(append)
    assert sum(isinstance(result, Appended) for result in results) == 1
    assert sum(isinstance(result, Duplicate) for result in results) == 19
    assert await read_page(store, info.ref) == (b"once", 4)


@check
async def _writer_sequence(store: Store) -> None:
    """`Stream-Seq` rises bytewise; a refused append does not move it."""
    expect(Created, await create_stream(store))
    expect(Appended, await append_to(store, b"a", seq=b"9"))
    expect_refusal(await append_to(store, b"b", seq=b"10"), Reason.SEQ_NOT_INCREASING)
    expect_refusal(await append_to(store, b"b", seq=b"9"), Reason.SEQ_NOT_INCREASING)
    expect_refusal(await append_to(store, b"b", "text/plain", seq=b"99"), Reason.TYPE_MISMATCH)
    expect(Appended, await append_to(store, b"c", seq=b"91"))
    expect(Appended, await append_to(store, b"d"))
    expect_refusal(await append_to(store, b"e", seq=b"91"), Reason.SEQ_NOT_INCREASING)


@check
async def _closing(store: Store) -> None:
    """Closing is final and idempotent, with data or without; the closing stamp is remembered."""
    info = expect(Created, await create_stream(store)).info
    stamp = ProducerStamp("p", 0, 0)
    assert expect(Appended, await append_to(store, b"end", close=True, producer=stamp)).closed
    assert expect(Duplicate, await append_to(store, b"end", close=True, producer=stamp)).closed
    assert expect(Duplicate, await append_to(store, close=True)) == Duplicate(3, True)
    assert expect_refusal(await append_to(store, b"x"), Reason.CLOSED).tail == 3
    expect_refusal(await append_to(store, b"x", close=True), Reason.CLOSED)
    expect_refusal(await append_to(store, close=True, producer=ProducerStamp("p", 0, 1)), Reason.CLOSED)
    assert expect(StreamInfo, await store.head(PATH, 0.0)).closed
    assert await read_page(store, info.ref) == (b"end", 3)


@check
async def _racing_closures(store: Store) -> None:
    """An append that races a closure comes before it or is refused; it never undoes it."""
    for _ in range(200):
        info = expect(Created, await create_stream(store)).info
        results: list[Any] = []

        async def append(results: list[Any] = results) -> None:
            results.append(await append_to(store, b"x"))

        async def close() -> None:
            expect(Appended, await append_to(store, close=True))

        async with anyio.create_task_group() as group:
            group.start_soon(append)
            group.start_soon(close)
        stored = isinstance(results[0], Appended)
        if not stored:
            expect_refusal(results[0], Reason.CLOSED)
        after = await look_at(store)
        assert after.closed, "an append undid the closure"
        assert after.tail == (1 if stored else 0)
        assert after.ref == info.ref
        expect(Deleted, await store.delete(PATH, 0.0))


@check
async def _deletion(store: Store) -> None:
    """A deleted stream is gone at once, and what is created in its place knows nothing of it."""
    old = expect(Created, await create_stream(store, body=b"old")).info.ref
    expect(Appended, await append_to(store, b"x", producer=ProducerStamp("p", 3, 0), seq=b"z"))
    expect(Deleted, await store.delete(PATH, 0.0))
    expect(Missing, await store.head(PATH, 0.0))
    expect(Missing, await store.read(old, 0, 100))
    expect_refusal(await store.delete(PATH, 0.0), Reason.NOT_FOUND)

    new = expect(Created, await create_stream(store)).info.ref
    assert new != old
    expect(Missing, await store.read(old, 0, 100))
    assert await read_page(store, new) == (b"", 0)
    expect(Appended, await append_to(store, b"y", producer=ProducerStamp("p", 0, 0), seq=b"a"))


@check
async def _byte_pages(store: Store) -> None:
    """Pages end where appends end; only an append larger than a page is divided. Any position can be read from."""
    info = expect(Created, await create_stream(store)).info
    sizes = [1, 7, 3, 100, 40, 40, 2]
    content = b"".join(bytes([number]) * size for number, size in enumerate(sizes))
    for number, size in enumerate(sizes):
        expect(Appended, await append_to(store, bytes([number]) * size))
    boundaries = {sum(sizes[: count + 1]) for count in range(len(sizes))}
    for max_bytes in (1, 2, 3, 10, 39, 41, 80, 99, 100, 101, 150, 192, 193, 1000):
        data, ends = await read_pages(store, info.ref, max_bytes)
        assert data == content
        start = 0
        for end in ends:
            assert end - start <= max_bytes
            if end not in boundaries:
                begin = max(boundary for boundary in (0, *boundaries) if boundary < end)
                finish = min(boundary for boundary in boundaries if boundary > end)
                assert finish - begin > max_bytes, "an append that fits into a page was divided"
            start = end
    for offset in range(len(content) + 1):
        assert await read_page(store, info.ref, offset) == (content[offset:], len(content))
    expect(BadOffset, await store.read(info.ref, len(content) + 1, 100))
    expect(BadOffset, await store.read(info.ref, 10**31, 100))


@check
async def _text_pages(store: Store) -> None:
    """A text that is divided is divided between characters."""
    info = expect(Created, await create_stream(store, "text/plain")).info
    text = "aä€😀" * 20
    expect(Appended, await append_to(store, text.encode(), "text/plain"))
    for max_bytes in range(4, 40):
        data, offset = "", 0
        while offset < len(text.encode()):
            page, offset = await read_page(store, info.ref, offset, max_bytes)
            data += page.decode()
        assert data == text
    assert len((await read_pages(store, info.ref, 1))[1]) == len(text.encode())


@check
async def _json_pages(store: Store) -> None:
    """In JSON mode pages hold whole messages, and only positions between messages can be read from."""
    json = "application/json"
    info = expect(Created, await create_stream(store, json)).info
    expect(Appended, await append_to(store, b'[{"n":1},[2,3],"x"]', json))
    expect(Appended, await append_to(store, b'{"n": 4}', json))
    expect(Appended, await append_to(store, b"[[5,6], 7]", json))
    content = b'{"n":1},[2,3],"x",{"n":4},[5,6],7,'
    boundaries = [0, 8, 14, 18, 26, 32, 34]
    for max_bytes in range(1, 40):
        data, ends = await read_pages(store, info.ref, max_bytes)
        assert data == content
        for start, end in zip([0, *ends], ends, strict=False):
            assert end in boundaries
            following = boundaries[boundaries.index(start) + 1]
            assert end - start <= max_bytes or end == following, "a page larger than asked for has one message"
            if end in (8, 14):
                assert max_bytes < 18, "an append that fits into a page was divided"
    for offset in range(36):
        if offset in boundaries:
            assert (await read_page(store, info.ref, offset))[0] == content[offset:]
        else:
            expect(BadOffset, await store.read(info.ref, offset, 1000))


@check
async def _large_append(store: Store) -> None:
    """A large append comes back in pieces of at most 1 MiB, from any position."""
    info = expect(Created, await create_stream(store)).info
    content = bytes(range(256)) * 12_000
    expect(Appended, await append_to(store, b"before"))
    expect(Appended, await append_to(store, content))
    assert await read_page(store, info.ref) == (b"before" + content, 6 + len(content))
    assert await read_page(store, info.ref, 1_000_000) == (content[999_994:], 6 + len(content))
    assert await read_page(store, info.ref, 7, 1_500_000) == (content[1:1_500_001], 1_500_007)


@check
async def _snapshots(store: Store) -> None:
    """A page shows one moment, though the stream goes on before it is sent."""
    info = expect(Created, await create_stream(store, body=b"one")).info
    page: Any = await store.read(info.ref, 0, 100)
    expect(Appended, await append_to(store, b"two", close=True))
    assert (page.end, page.tail, page.closed, page.size) == (3, 3, False, 3)
    assert bytes(await page.next_piece()) == b"one"
    assert await page.next_piece() is None
    await page.aclose()
    await page.aclose()


@check
async def _waking(store: Store) -> None:
    """A watch returns for data, closure and deletion, and at once for what happened before it waits."""
    info = expect(Created, await create_stream(store)).info
    watch = store.watch(info.ref)
    assert (watch.tail, watch.closed, watch.gone) == (0, False, False)

    async def wake(action: Callable[[], Awaitable[Any]], seen: Offset) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(watch.wait, seen)
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            await action()

    await wake(lambda: append_to(store, b"one"), 0)
    assert watch.tail == 3
    await watch.wait(0)
    await watch.wait(2)
    await wake(lambda: append_to(store, close=True), 3)
    assert watch.closed
    await watch.wait(3)
    watch.close()

    other = expect(Deleted, await store.delete(PATH, 0.0))
    assert other == Deleted()
    info = expect(Created, await create_stream(store)).info
    assert watch.gone, "a watch does not see the stream that comes after its own"
    watch = store.watch(info.ref)
    await wake(lambda: store.delete(PATH, 0.0), 0)
    assert watch.gone
    await watch.wait(0)
    watch.close()
    watch.close()


@check
async def _idle_watch(store: Store) -> None:
    """A watch does not return without news."""
    info = expect(Created, await create_stream(store, body=b"x")).info
    watch = store.watch(info.ref)
    returned = False

    async def wait() -> None:
        nonlocal returned
        await watch.wait(1)
        returned = True

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        expect_refusal(await append_to(store, b"y", "text/plain"), Reason.TYPE_MISMATCH)
        store.touch(info.ref, 1.0)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert not returned
        group.cancel_scope.cancel()
    watch.close()


@check
async def _sliding_expiry(store: Store) -> None:
    """A TTL runs from the last append or touch, and not while somebody watches."""
    info = expect(Created, await create_stream(store, ttl=10, now=100.0)).info
    expect(StreamInfo, await store.head(PATH, 109.9))
    expect(Appended, await append_to(store, b"x", now=109.0))
    expect(StreamInfo, await store.head(PATH, 118.9))
    store.touch(info.ref, 118.0)
    expect(StreamInfo, await store.head(PATH, 127.9))
    watch = store.watch(info.ref)
    expect(StreamInfo, await store.head(PATH, 1000.0))
    store.touch(info.ref, 1000.0)
    watch.close()
    expect(StreamInfo, await store.head(PATH, 1009.9))
    expect(Missing, await store.head(PATH, 1010.0))
    expect_refusal(await append_to(store, b"x", now=1010.0), Reason.NOT_FOUND)
    assert expect(Created, await create_stream(store, ttl=10, now=1010.0)).info.tail == 0


@check
async def _absolute_expiry(store: Store) -> None:
    """An expiry time is never moved, and wakes nobody up to new data."""
    info = expect(Created, await create_stream(store, expires_at=Instant.parse("1970-01-01T00:01:00Z"))).info
    expect(Appended, await append_to(store, b"x", now=59.0))
    store.touch(info.ref, 59.0)
    watch = store.watch(info.ref)
    expect(StreamInfo, await store.head(PATH, 59.9))
    expect(Missing, await store.head(PATH, 60.0))
    assert watch.gone
    watch.close()
    expect(Created, await create_stream(store, now=60.0))


@check
async def _expired_at_birth(store: Store) -> None:
    """A TTL of 0 and an expiry in the past create a stream that is gone at once."""
    expect(Created, await create_stream(store, ttl=0, now=5.0))
    expect(Missing, await store.head(PATH, 5.0))
    expect(Created, await create_stream(store, expires_at=Instant.parse("1970-01-01T00:00:01Z"), now=5.0))
    expect(Missing, await store.head(PATH, 5.0))


@check
async def _sweeping(store: Store) -> None:
    """A sweep removes what has expired and nothing else."""
    expiring = expect(Created, await create_stream(store, ttl=10)).info.ref
    watch: Any = store.watch(expiring)
    watch.close()
    await store.sweep(9.0)
    assert not watch.gone
    await store.sweep(10.0)
    assert watch.gone
    expect(Created, await create_stream(store))
    await store.sweep(1e9)
    expect(StreamInfo, await store.head(PATH, 1e9))


@check
async def _cancelled_append(store: Store) -> None:
    """A cancelled append is stored wholly, producer and all, or not at all; it can be repeated."""
    info = expect(Created, await create_stream(store)).info
    for seq in range(20):
        stamp = ProducerStamp("p", 0, seq)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await append_to(store, b"data", producer=stamp)
        expect(Appended | Duplicate, await append_to(store, b"data", producer=stamp))  # type: ignore[arg-type]
        assert await read_page(store, info.ref) == (b"data" * (seq + 1), 4 * (seq + 1))
