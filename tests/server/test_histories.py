"""Eight clients race for streams; what they are told has to be linearizable, on each store and over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from durable_streams import Timeouts, Transport, open_transport
from durable_streams.server import (
    Appended,
    Created,
    Deleted,
    Duplicate,
    Exists,
    MemoryStore,
    Missing,
    Reason,
    Refused,
    Server,
    SQLiteStore,
    Store,
    StreamInfo,
    StreamRef,
)
from durable_streams.testing import History, NotLinearizableError, check_linearizable
from durable_streams.testing._store_history_checks import RacingClient, race
from durable_streams.testing._stream_model import (
    AppendCall,
    CreateCall,
    DeleteCall,
    HeadCall,
    PathModel,
    ReadCall,
    Seen,
    append,
)
from durable_streams.testing.store_steps import PATH, append_to, create_stream, expect

from .driver import Answer, connect, make_client, offset

pytestmark = pytest.mark.anyio
KINDS = ["memory", "sqlite", "sqlite with little memory", "sqlite without recent data"]


@asynccontextmanager
async def open_store(kind: str, folder: Path) -> AsyncIterator[Store]:
    if kind == "memory":
        async with MemoryStore() as store:
            yield store
        return
    options: dict[str, Any] = {}
    if kind != "sqlite":
        options = {"recent_bytes": 0}
    if kind == "sqlite with little memory":
        options["streams_in_memory"] = 1
    async with SQLiteStore(folder / "store.db", durability="relaxed", **options) as store:
        yield store


async def crowd(store: Store, done: anyio.Event) -> None:
    """Push streams out of a small memory."""
    number = 0
    while not done.is_set():
        await create_stream(store, path=f"/v1/stream/other{number}")
        await anyio.lowlevel.checkpoint()
        number += 1


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("deletes", [False, True], ids=["one life", "many lives"])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_racing_clients_are_told_has_an_explanation(
    tmp_path: Path, kind: str, deletes: bool, seed: int
) -> None:
    async with open_store(kind, tmp_path) as store, anyio.create_task_group() as group:
        done = anyio.Event()
        if "little" in kind:
            group.start_soon(crowd, store, done)
        with anyio.fail_after(60):
            history = await race(store, seed, deletes=deletes)
        done.set()

    outcomes = {type(operation.outcome).__name__ for operation in history}
    assert outcomes >= {"Created", "Appended", "Refused", "StreamInfo", "Seen"}
    assert deletes == ("Deleted" in outcomes)
    if kind != "memory" and not deletes:  # calls of the memory store never wait
        assert any(operation.ended is None for operation in history), "no call was interrupted"


@dataclass(frozen=True)
class Accepted:
    """What HTTP tells of an append that was carried out, now or before."""

    tail: int
    closed: bool


class HttpModel(PathModel):
    """What the model tells, as far as HTTP does."""

    def step(self, state: Any, call: Any, outcome: Any) -> Iterable[Any]:
        if isinstance(call, AppendCall) and isinstance(outcome, Accepted):
            expected, after = append(state, call)
            if isinstance(expected, Appended | Duplicate):
                return (after,) if (expected.tail, expected.closed) == (outcome.tail, outcome.closed) else ()
            return ()
        return super().step(state, call, outcome)


class HttpClient(RacingClient):
    """Uses the path through the application. Its streams are never deleted, so that "" names their only life."""

    store: Any  # a Client

    async def create(self) -> None:
        with self.history.operation(self.name, CreateCall()) as operation:
            answer = await self.store.put(self.path, "application/octet-stream")
            info = self.info(answer) if answer.status < 400 else None
            results: dict[int, Any] = {201: Created, 200: Exists}
            operation.returned(results[answer.status](info) if info else Refused(Reason.OTHER_CONFIG))
        assert answer.status in (200, 201, 409)

    def info(self, answer: Answer) -> StreamInfo:
        tail, closed = position(answer), "stream-closed" in answer.headers
        return StreamInfo(StreamRef(self.path, ""), "application/octet-stream", tail, closed)

    async def head(self) -> None:
        with self.history.operation(self.name, HeadCall()) as operation:
            answer = await self.store.head(self.path)
            operation.returned(Missing() if answer.status == 404 else self.info(answer))
        if answer.status == 200:
            self.ref, self.tail = StreamRef(self.path, ""), position(answer)

    async def read(self) -> None:
        await self.get("")

    async def watch(self) -> None:
        with anyio.move_on_after(self.rng.choice([0, 0.02])):
            await self.get("&live=long-poll")

    async def get(self, live: str) -> None:
        place = self.rng.randrange(self.tail + 1)
        with self.history.operation(self.name, ReadCall("", place)) as operation:
            try:
                answer = await self.store.get(f"{self.path}?offset={offset(place)}{live}")
            except BaseException:
                operation.failed()  # a read that nobody heard of
                raise
            if answer.status == 404:
                operation.returned(Missing())
                return
            assert answer.headers["stream-up-to-date"] == "true"
            operation.returned(Seen(position(answer), "stream-closed" in answer.headers, answer.body))

    async def do_append(self, call: AppendCall) -> None:
        headers = {"stream-closed": "true"} if call.close else {}
        if call.producer is not None:
            stamp = call.producer
            headers |= {"producer-id": stamp.id, "producer-epoch": str(stamp.epoch), "producer-seq": str(stamp.seq)}
        with self.history.operation(self.name, call) as operation:
            answer = await self.store.post(self.path, call.body, "application/octet-stream", **headers)
            operation.returned(accepted(answer) if answer.status < 300 else refusal(answer))

    async def interrupted_append(self) -> None:
        """Some clients are cancelled, others hang up, and what was asked is done all the same or not at all."""
        if self.rng.random() < 0.5:
            await super().interrupted_append()
            return
        body = self._new_call().body
        headers = {"content-type": "application/octet-stream", "content-length": str(len(body))}
        with self.history.operation(self.name, AppendCall(body)):
            async with connect(self.store.app, self.store.scope("POST", self.path, headers)) as connection:
                for number in range(len(body)):
                    connection.send_body(body[number : number + 1], more=number < len(body) - 1)
                    if self.rng.random() < 0.05:
                        break
                    await anyio.lowlevel.checkpoint()
                connection.disconnect()
                await connection.finished.wait()


def position(answer: Answer) -> int:
    return int(answer.next_offset.partition("_")[2])


def accepted(answer: Answer) -> Any:
    return Accepted(position(answer), "stream-closed" in answer.headers)


def refusal(answer: Answer) -> Refused:
    headers = answer.headers
    if answer.status == 409 and "stream-closed" in headers:
        return Refused(Reason.CLOSED, tail=position(answer))
    if answer.status == 409:
        expected, received = int(headers["producer-expected-seq"]), int(headers["producer-received-seq"])
        return Refused(Reason.SEQUENCE_GAP, expected=expected, received=received)
    if answer.status == 403:
        return Refused(Reason.STALE_EPOCH, epoch=int(headers["producer-epoch"]))
    return Refused({400: Reason.NEW_EPOCH_NOT_AT_ZERO, 404: Reason.NOT_FOUND}[answer.status])


def check_outcomes(history: History[Any, Any]) -> None:
    """All that the clients do has happened."""
    outcomes = {type(operation.outcome).__name__ for operation in history}
    assert outcomes >= {"Created", "Exists", "Accepted", "Refused", "StreamInfo", "Seen"}
    assert any(operation.ended is None for operation in history), "no call was interrupted"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS[:2])
async def test_what_racing_clients_are_told_over_http_has_an_explanation(tmp_path: Path, kind: str, seed: int) -> None:
    async with open_store(kind, tmp_path) as store:
        client: Any = make_client(store=store, long_poll_timeout=5.0)
        with anyio.fail_after(60):
            history = await race(client, seed, deletes=False, kind=HttpClient, model=HttpModel())

    check_outcomes(history)


class Wire:
    """What `HttpClient` needs of a `Client`, over sockets."""

    def __init__(self, url: str, transport: Transport) -> None:
        self._url = url
        self._transport = transport

    async def call(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        exchange = await self._transport.open(method, self._url + target, named, body, Timeouts())
        try:
            content = b""
            while piece := await exchange.receive():
                content += piece
        finally:
            await exchange.aclose()
        return Answer(exchange.status, dict(exchange.headers), content)

    async def put(self, target: str, content_type: str) -> Answer:
        return await self.call("PUT", target, b"", {"content-type": content_type})

    async def post(self, target: str, body: bytes, content_type: str, **headers: str) -> Answer:
        return await self.call("POST", target, body, {"content-type": content_type, **headers})

    async def get(self, target: str) -> Answer:
        return await self.call("GET", target, b"", {})

    async def head(self, target: str) -> Answer:
        return await self.call("HEAD", target, b"", {})


class WireClient(HttpClient):
    """Uses the path over sockets."""

    async def interrupted_append(self) -> None:
        await RacingClient.interrupted_append(self)


@pytest.mark.parametrize("kind", KINDS[:2])
async def test_what_racing_clients_are_told_over_sockets_has_an_explanation(tmp_path: Path, kind: str) -> None:
    store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "store.db")
    async with Server(store) as server, aclosing(open_transport()) as transport:
        client: Any = Wire(server.base_url, transport)
        with anyio.fail_after(60):
            history = await race(client, 3, deletes=False, turns=25, kind=WireClient, model=HttpModel())

    check_outcomes(history)


class Stale(MemoryStore):
    """Looks at a stream before it lets others run, and answers what it saw."""

    async def head(self, path: str, now: float) -> Any:
        info = await super().head(path, now)
        if isinstance(info, StreamInfo):
            self.seen: Any = getattr(self, "seen", info)
            info, self.seen = self.seen, info
        return info


class Forgetful(MemoryStore):
    """Says of every tenth append that it was stored, and stores it not."""

    count = 0

    async def append(self, r: Any, now: float) -> Any:
        self.count += 1
        info = await self.head(r.path, now)
        if self.count % 10 == 0 and isinstance(info, StreamInfo) and not info.closed and r.payload and not r.producer:
            return Appended(info.tail + len(r.payload.data), r.close)
        return await super().append(r, now)


class Twice(MemoryStore):
    """Stores what a producer repeats."""

    async def append(self, r: Any, now: float) -> Any:
        result = await super().append(r, now)
        if isinstance(result, Duplicate) and r.payload is not None and not result.closed:
            await super().append(replace(r, producer=None), now)
        return result


class Reopening(MemoryStore):
    """Forgets now and then that a stream was closed."""

    async def append(self, r: Any, now: float) -> Any:
        result = await super().append(r, now)
        if isinstance(result, Appended) and result.closed and r.payload is not None:
            self._streams[r.path].state.closed = False  # type: ignore[attr-defined]
        return result


@pytest.mark.parametrize("broken", [Stale, Forgetful, Twice, Reopening])
async def test_a_store_that_breaks_its_word_is_found_out(broken: type[MemoryStore]) -> None:
    with pytest.raises(NotLinearizableError):
        for seed in range(500):  # trio runs tasks in no certain order: most seeds will do, not each
            async with broken() as store:
                await race(store, seed, deletes=False)


def test_what_only_a_creation_was_told_of_is_believed() -> None:
    """Found under load: nobody else had been told of a tail as great as that."""
    info = StreamInfo(StreamRef(PATH, "one"), "application/octet-stream", 0, closed=False)
    history = History[Any, Any]()
    with history.operation("a", CreateCall()) as operation:
        operation.returned(Created(info))
    with history.operation("b", AppendCall(b"unknown")):
        pass
    with history.operation("a", CreateCall()) as operation:
        operation.returned(Exists(replace(info, tail=7)))
    with history.operation("a", DeleteCall()) as operation:
        operation.returned(Deleted())

    check_linearizable(history, PathModel())


async def test_a_stream_that_is_pushed_out_while_it_is_loaded_is_not_remembered_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteStore(tmp_path / "store.db", durability="relaxed", streams_in_memory=1) as store:
        assert store._opening is not None
        readers = store._opening.readers
        expect(Created, await create_stream(store))
        expect(Created, await create_stream(store, path="/v1/stream/other0"))
        loaded, go_on, run = anyio.Event(), anyio.Event(), readers.run

        async def slowly(*arguments: Any) -> Any:
            record = await run(*arguments)
            loaded.set()
            await go_on.wait()
            return record

        monkeypatch.setattr(readers, "run", slowly)
        async with anyio.create_task_group() as group:
            group.start_soon(store.head, PATH, 0.0)
            await loaded.wait()
            monkeypatch.undo()
            expect(Appended, await append_to(store, b"new"))
            for number in range(1, 9):
                expect(Created, await create_stream(store, path=f"/v1/stream/other{number}"))
            go_on.set()

        assert expect(StreamInfo, await store.head(PATH, 0.0)).tail == 3


@pytest.mark.parametrize("who", ["a watch", "a look"])
async def test_what_one_found_removed_nobody_else_finds_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Found under load: a removal that was in the database, but not published, was seen by one and missed by others."""
    async with SQLiteStore(tmp_path / "store.db", durability="relaxed", streams_in_memory=1) as store:
        assert store._opening is not None
        readers, writer = store._opening.readers, store._opening.writer
        ref = expect(Created, await create_stream(store)).info.ref
        for number in range(2):
            expect(Created, await create_stream(store, path=f"/v1/stream/other{number}"))
        loaded, go_on, run, wake = anyio.Event(), anyio.Event(), readers.run, writer._wake
        held: list[Any] = []

        async def slowly(*arguments: Any) -> Any:
            record = await run(*arguments)
            loaded.set()
            await go_on.wait()
            return record

        async with anyio.create_task_group() as group:
            with monkeypatch.context() as patch:
                patch.setattr(readers, "run", slowly)
                group.start_soon(store.head, PATH, 0.0)
                await loaded.wait()
            monkeypatch.setattr(writer, "_wake", held.append)
            group.start_soon(store.delete, PATH, 0.0)
            while not held:
                await anyio.lowlevel.checkpoint()

            try:
                if who == "a watch":
                    watch = store.watch(ref)
                    assert watch.gone
                    watch.close()
                else:
                    expect(Missing, await store.head(PATH, 0.0))
                go_on.set()
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                expect(Missing, await store.head(PATH, 0.0))
            finally:
                monkeypatch.setattr(writer, "_wake", wake)
                for call in held:
                    call()


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
