"""Clients that race for streams of the SQLite store, and a check of what each of them saw.

Tails give appends their order, so a history is linearizable if that order agrees with the order in which calls began
and returned, and if every read shows the bytes up to some place in it that agrees with both.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from durable_streams.server import Appended, Created, Deleted, Missing, Reason, Refused, StreamInfo, StreamRef
from durable_streams.server.stores.sqlite import SQLiteStore
from durable_streams.testing.store_steps import PATH, append_to, create_stream, expect, read_page

pytestmark = pytest.mark.anyio


@dataclass
class Event:
    """One call: when it began and returned, and what it told of the stream's end."""

    kind: str
    began: int
    returned: int
    tail: int
    closed: bool
    data: bytes


class Client:
    """Makes calls and writes the history."""

    def __init__(self, store: SQLiteStore, clock: Any, history: list[Event], rng: random.Random) -> None:
        self.store = store
        self.clock = clock
        self.history = history
        self.rng = rng

    def note(self, kind: str, began: int, tail: int, closed: bool, data: bytes = b"") -> None:
        self.history.append(Event(kind, began, next(self.clock), tail, closed, data))

    async def append(self, body: bytes, *, close: bool = False) -> bool:
        began = next(self.clock)
        result = await append_to(self.store, body, close=close)
        if isinstance(result, Refused):
            assert result.reason is Reason.CLOSED
            assert result.tail is not None
            self.note("refused", began, result.tail, True)
            return False
        self.note("append", began, expect(Appended, result).tail, result.closed, body)
        return True

    async def read(self) -> None:
        began = next(self.clock)
        info = expect(StreamInfo, await self.store.head(PATH, 0.0))
        self.note("head", began, info.tail, info.closed)
        began = next(self.clock)
        page: Any = await self.store.read(info.ref, self.rng.randrange(info.tail + 1), 1 << 20)
        data = b""
        while (piece := await page.next_piece()) is not None:
            data += piece
        await page.aclose()
        self.note("read", began, page.tail, page.closed, data)

    async def follow(self, ref: StreamRef) -> None:
        watch = self.store.watch(ref)
        tail = 0
        while not watch.closed:
            began = next(self.clock)
            await watch.wait(tail)
            tail = watch.tail
            self.note("watch", began, tail, watch.closed)
        watch.close()


def check(history: list[Event], content: bytes) -> None:
    """Raise AssertionError if a history cannot be that of one stream with this content."""
    appends = sorted((event for event in history if event.kind == "append"), key=lambda event: event.tail)
    assert [event.data for event in appends] == [content[a:b] for a, b in pairwise([0, *(e.tail for e in appends)])]
    assert appends[-1].tail == len(content)
    for event in history:
        if event.kind == "read":
            assert event.data == content[event.tail - len(event.data) : event.tail], "a read is no part of the stream"
        assert not event.closed or event.tail == len(content), "an end came before the last append"
    by_beginning = sorted(history, key=lambda event: event.began)
    returned = sorted(history, key=lambda event: event.returned)
    newest, closed, index = 0, False, 0
    for event in by_beginning:
        while returned[index].returned < event.began:
            newest = max(newest, returned[index].tail)
            closed = closed or returned[index].closed
            index += 1
        assert event.tail >= newest + (len(event.data) if event.kind == "append" else 0), "a call went back in time"
        assert event.closed or not closed, "a closed stream was open again"
        assert event.kind != "append" or not closed


@pytest.mark.parametrize("seed", range(6))
async def test_histories_are_linearizable(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    options: dict[str, Any] = {"recent_bytes": 0} if seed % 3 == 1 else {}
    if seed % 2:
        options["streams_in_memory"] = 1
    history: list[Event] = []
    clock = count()
    async with SQLiteStore(tmp_path / "store.db", durability="relaxed", **options) as store:
        ref = expect(Created, await create_stream(store)).info.ref

        async def write(client: Client, number: int) -> None:
            for turn in range(40):
                body = b"%d:%d;" % (number, turn) + b"." * client.rng.randrange(50)
                if not await client.append(body, close=(number, turn) == (0, 35)):
                    return
                for _ in range(client.rng.randrange(3)):
                    await anyio.lowlevel.checkpoint()

        async def read(client: Client) -> None:
            while not any(event.closed for event in history):
                await client.read()
                await anyio.lowlevel.checkpoint()  # what is answered from memory lets nobody else run

        async def push_out() -> None:
            number = 0
            while not any(event.closed for event in history):
                await create_stream(store, path=f"/v1/stream/other{number}")
                number += 1

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for number in range(8):
                    client = Client(store, clock, history, random.Random(rng.random()))
                    group.start_soon(write, client, number)
                    if number < 3:
                        group.start_soon(read, client)
                        group.start_soon(client.follow, ref)
                group.start_soon(push_out)

        check(history, (await read_page(store, ref))[0])
        assert {event.kind for event in history} >= {"append", "read", "watch", "head"}


@pytest.mark.parametrize(
    "broken",
    [
        [Event("append", 0, 1, 1, False, b"a"), Event("append", 2, 3, 2, False, b"x")],
        [Event("append", 0, 1, 2, False, b"b"), Event("append", 2, 3, 1, False, b"a")],
        [
            Event("append", 0, 1, 1, False, b"a"),
            Event("append", 2, 3, 2, False, b"b"),
            Event("head", 4, 5, 1, False, b""),
        ],
        [
            Event("append", 0, 5, 1, False, b"a"),
            Event("append", 1, 6, 2, False, b"b"),
            Event("read", 2, 3, 2, False, b"a"),
        ],
        [Event("append", 0, 1, 1, True, b"a"), Event("append", 2, 3, 2, False, b"b")],
        [Event("append", 0, 1, 2, True, b"ab"), Event("head", 2, 3, 2, False, b"")],
    ],
)
def test_the_check_finds_what_is_wrong(broken: list[Event]) -> None:
    with pytest.raises(AssertionError):
        check(broken, b"ab")


async def test_a_path_that_is_deleted_and_created_shows_one_life_at_a_time(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db", durability="relaxed", streams_in_memory=1, recent_bytes=0) as store:
        done = False
        seen: dict[StreamRef, int] = {}

        async def look() -> None:
            while not done:
                await anyio.lowlevel.checkpoint()
                info = await store.head(PATH, 0.0)
                if isinstance(info, Missing):
                    continue
                assert isinstance(info, StreamInfo)
                assert info.tail >= seen.get(info.ref, 0)
                seen[info.ref] = info.tail
                page: Any = await store.read(info.ref, 0, 100)
                if isinstance(page, Missing):
                    continue
                data = await page.next_piece()
                assert set(bytes(data or b"")) <= {ord(info.ref.incarnation[0])}
                await page.aclose()

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(look)
            for number in range(60):
                created = expect(Created, await create_stream(store))
                letter = created.info.ref.incarnation[0].encode()
                for _ in range(3):
                    expect(Appended, await append_to(store, letter * 5))
                old = created.info.ref
                expect(Deleted, await store.delete(PATH, 0.0))
                assert await store.head(PATH, 0.0) == Missing()
                assert await store.read(old, 0, 100) == Missing()
                if number % 10 == 9:
                    await store.sweep(0.0)
            done = True
