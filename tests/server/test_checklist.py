"""The checklist beyond the official suite (server 20), where no other module has it: on both stores, over HTTP.

1 is also in `test_store_model` and `test_sqlite_model`, 2 in `test_crash`, `test_sqlite_crash` and `test_sqlite_power`,
3 and 6 in `test_fuzz`, `test_requests` and `test_writing`, 7 in `test_json_messages`, 8 in `test_sse`, 11 in
`subscriptions`.
"""

from __future__ import annotations

import base64
import gc
import json
import tempfile
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.server import MemoryStore, SQLiteStore

from .driver import Answer, Client, Clock, connect, make_client

TEXT, JSON, OCTETS = "text/plain", "application/json", "application/octet-stream"
KINDS = ["memory", "sqlite", "sqlite without recent data"]


@asynccontextmanager
async def open_client(kind: str, folder: Path, **options: Any) -> AsyncIterator[Client]:
    """A client of an application on a store of this kind; its clock is `client.app.clock`."""
    clock = options.pop("clock", Clock())
    if kind == "memory":
        store: AbstractAsyncContextManager[Any] = MemoryStore()
    else:
        few: dict[str, Any] = {} if kind == "sqlite" else {"recent_bytes": 0, "streams_in_memory": 1}
        store = SQLiteStore(folder / "streams.db", durability="relaxed", clock=clock, **few)
    async with store as opened:
        yield make_client(store=opened, clock=clock, **options)


# --- 1: random operations, and every offset that was ever given as a place to resume

NAMES = ["a", "b", "c"]
MESSAGES = st.lists(
    st.sampled_from(["1", '"two"', '{"n":[3]}', "null", "12345678901234567890"]), min_size=1, max_size=4
)
OPERATIONS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMES), st.sampled_from([TEXT, JSON, OCTETS])),
    st.tuples(st.just("post"), st.sampled_from(NAMES), MESSAGES),
    st.tuples(st.just("post"), st.sampled_from(NAMES), MESSAGES),
    st.tuples(st.just("read"), st.sampled_from(NAMES), st.integers(0, 50), st.sampled_from(["", "long-poll", "sse"])),
    st.tuples(st.just("close"), st.sampled_from(NAMES)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
)


class Expected:
    """What a stream holds, and the places that the server named: for each the number of parts before it."""

    def __init__(self, content_type: str) -> None:
        self.content_type = content_type
        self.parts: list[str] = []  # messages, or pieces of text
        self.closed = False
        self.places: dict[str, int] = {"-1": 0}

    def body(self, parts: list[str]) -> str:
        return "[" + ",".join(parts) + "]" if self.content_type == JSON else "".join(parts)


class Walk:
    """Carries operations out, on a server and on the model."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.model: dict[str, Expected] = {}

    async def do(self, what: str, name: str, *rest: Any) -> None:
        await getattr(self, what)(name, *rest)

    async def put(self, name: str, content_type: str) -> None:
        answer = await self.client.put(name, content_type)
        known = self.model.get(name)
        if known is None:
            assert answer.status == 201
            self.model[name] = known = Expected(content_type)
        fits = known.content_type == content_type and not known.closed
        assert answer.status in ((200, 201) if fits else (409,))
        if fits:
            self.learn(known, answer)

    async def post(self, name: str, messages: list[str]) -> None:
        known = self.model.get(name)
        content_type = JSON if known is None else known.content_type
        body = "[" + " , ".join(messages) + "]" if content_type == JSON else "".join(messages)
        answer = await self.client.post(name, body.encode(), content_type)
        if known is None:
            assert answer.status == 404
        elif known.closed:
            assert answer.status == 409
            self.learn(known, answer)
        else:
            assert answer.status == 204
            known.parts += messages if content_type == JSON else ["".join(messages)]
            self.learn(known, answer)

    async def close(self, name: str) -> None:
        answer = await self.client.post(name, stream_closed="true")
        known = self.model.get(name)
        assert answer.status == (404 if known is None else 204)
        if known is not None:
            known.closed = True
            self.learn(known, answer)

    async def delete(self, name: str) -> None:
        answer = await self.client.delete(name)
        assert answer.status == (404 if self.model.pop(name, None) is None else 204)

    async def read(self, name: str, choice: int, live: str) -> None:
        known = self.model.get(name)
        places = ["-1"] if known is None else list(known.places)
        place = places[choice % len(places)]
        query = f"{name}?offset={place}" + (f"&live={live}" if live else "")
        if known is None:
            assert (await self.client.get(query)).status == 404
            return
        expected = known.parts[known.places[place] :]
        if live == "sse":
            payload, token, closed = await self.events(query, known)
            assert payload == "".join(expected) if known.content_type != JSON else payload == known.body(expected)
        else:
            answer = await self.client.get(query)
            token, closed = answer.next_offset, "stream-closed" in answer.headers
            if live and not expected:
                assert (answer.status, answer.body) == (204, b"")
            else:
                assert (answer.status, answer.text) == (200, known.body(expected))
                assert answer.headers["stream-up-to-date"] == "true"
        assert closed == known.closed
        assert known.places.setdefault(token, len(known.parts)) == len(known.parts)

    async def events(self, query: str, known: Expected) -> tuple[str, str, bool]:
        """The payloads of a connection, put together, and what its last control event says."""
        async with self.client.open(query) as connection:
            assert await connection.head() == 200
            parsed = parse_events((await connection.piece()).decode())
        data = [value for type_, value in parsed if type_ == "data"]
        control = json.loads(next(value for type_, value in parsed if type_ == "control"))
        if known.content_type == OCTETS:
            data = [base64.b64decode(value).decode() for value in data]
        payload = "".join(data) if known.content_type != JSON else (data[0] if data else "[]")
        assert control["upToDate"] is True
        return payload, control["streamNextOffset"], control.get("streamClosed", False)

    def learn(self, known: Expected, answer: Answer) -> None:
        token = answer.next_offset
        assert known.places.setdefault(token, len(known.parts)) == len(known.parts), "one offset for two places"


def parse_events(text: str) -> list[tuple[str, str]]:
    """Server-sent events as the HTML standard has them (9.2.6), written for these tests alone: type and data."""
    events, type_, data = [], "", []
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for line in lines[:-1]:
        if not line:
            if data:
                events.append((type_ or "message", "\n".join(data)))
            type_, data = "", []
            continue
        if line.startswith(":"):
            continue
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if field == "event":
            type_ = value
        elif field == "data":
            data.append(value)
    return events


def walk(kind: str, operations: list[Any]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with open_client(kind, Path(folder), long_poll_timeout=0.001) as client:
                walk = Walk(client)
                for operation in operations:
                    await walk.do(*operation)
                for name in walk.model:
                    for choice in range(len(walk.model[name].places)):
                        await walk.read(name, choice, "")

    anyio.run(run, backend="trio")


@pytest.mark.parametrize(("kind", "examples"), list(zip(KINDS, [60, 15, 15], strict=True)), ids=KINDS)
def test_every_offset_that_was_given_resumes_where_it_was_given(kind: str, examples: int) -> None:
    @given(operations=st.lists(OPERATIONS, min_size=5, max_size=30))
    @settings(max_examples=examples, deadline=None)
    def check(operations: list[Any]) -> None:
        walk(kind, operations)

    check()


# --- 3: cancelled between the commit and the answer


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("how", ["cancelled", "disconnected"])
async def test_a_request_that_ends_between_commit_and_answer_was_carried_out(
    kind: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_client(kind, tmp_path) as client:
        await client.put("x", TEXT)
        store = client.app.store
        append, committed, never = store.append, anyio.Event(), anyio.Event()

        async def append_and_wait(r: Any, now: float) -> Any:
            result = await append(r, now)
            committed.set()
            await never.wait()
            return result

        headers = {"content-type": TEXT, "producer-id": "p", "producer-epoch": "0", "producer-seq": "0"}
        monkeypatch.setattr(store, "append", append_and_wait)
        async with connect(client.app, client.scope("POST", "x", {**headers, "content-length": "4"})) as connection:
            connection.send_body(b"data")
            await committed.wait()
            if how == "disconnected":
                connection.disconnect()
        monkeypatch.undo()

        again = await client.call("POST", "x", b"data", headers)
        assert (again.status, again.headers["producer-seq"]) == (204, "0")
        assert (await client.get("x?offset=-1")).body == b"data"
        assert (await client.call("POST", "x", b"more", {**headers, "producer-seq": "1"})).status == 200


# --- 4: a thousand idle readers


# asyncio's debug mode, which `-X dev` switches on, keeps a traceback per task.
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"debug": False}), ("trio", {})], ids=["asyncio", "trio"])
@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS[:2])
async def test_a_thousand_idle_readers_cost_little_write_nothing_and_wake_together(kind: str, tmp_path: Path) -> None:
    connected, heard = Count(), Count()
    async with open_client(kind, tmp_path) as client, anyio.create_task_group() as group:
        await client.put("x", JSON)

        async def follow() -> None:
            async with client.open("x?offset=-1&live=sse") as connection:
                assert await connection.head() == 200
                await connection.piece()
                connected.add()
                assert (await connection.piece()).startswith(b'event: data\ndata:[{"n":1}]\n\n')
                heard.add()
                await connection.rest()

        with anyio.fail_after(60):
            for _ in range(100):  # what is made once for all is there before the measurement
                group.start_soon(follow)
            await connected.reach(100)
            await anyio.wait_all_tasks_blocked()
            gc.collect()
            tracemalloc.start()
            try:
                for _ in range(100):
                    group.start_soon(follow)
                await connected.reach(200)
                await anyio.wait_all_tasks_blocked()  # they are idle, and not just about to be
                gc.collect()
                each = tracemalloc.get_traced_memory()[0] / 100
            finally:
                tracemalloc.stop()
            for _ in range(800):
                group.start_soon(follow)
            await connected.reach(1000)
            commits = client.app.store.statistics().writer.commits if kind == "sqlite" else 0

            await client.post("x", b'{"n":1}', JSON, stream_closed="true")
            await heard.reach(1000)

        assert each < 40_000, "for the reader, and for the test's own client"
        if kind == "sqlite":
            assert client.app.store.statistics().writer.commits == commits + 1


class Count:
    """Counts up, and lets wait for a number."""

    def __init__(self) -> None:
        self._value = 0
        self._wanted = 0
        self._reached = anyio.Event()

    def add(self) -> None:
        self._value += 1
        if self._value == self._wanted:
            self._reached.set()

    async def reach(self, value: int) -> None:
        self._wanted, self._reached = value, anyio.Event()
        if self._value < value:
            await self._reached.wait()


# --- 8: text as events, read by another parser


@given(text=st.text(st.sampled_from("a \r\n:\u2028\x0b\x85é🚀") | st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=80, deadline=None)
def test_text_over_sse_is_what_another_parser_reads(text: str) -> None:
    async def run() -> None:
        client = make_client()
        await client.put("x", TEXT, text.encode(), stream_closed="true")
        async with client.open("x?offset=-1&live=sse") as connection:
            await connection.head()
            parsed = parse_events((await connection.rest()).decode())
        data = [value for type_, value in parsed if type_ == "data"]
        assert "".join(data) == text.replace("\r\n", "\n").replace("\r", "\n")
        assert [json.loads(value)["streamClosed"] for type_, value in parsed if type_ == "control"] == [True]

    anyio.run(run, backend="trio")


# --- 9: the clock jumps


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS[:2])
async def test_a_clock_that_jumps_expires_late_or_early_and_breaks_nothing(kind: str, tmp_path: Path) -> None:
    clock = Clock()
    async with open_client(kind, tmp_path, clock=clock) as client:
        await client.put("x", TEXT, b"a", stream_ttl="10")
        clock.now -= 86_400
        assert (await client.get("x?offset=-1")).body == b"a", "a day back: it lives on"
        assert (await client.post("x", b"b", TEXT)).status == 204
        cursor = int((await client.get("x?offset=-1&live=long-poll")).headers["stream-cursor"])
        clock.now += 86_400 + 10
        assert (await client.head("x")).status == 404, "a day forward: no stream lives on for having been used early"

        await client.put("x", TEXT, b"c", stream_ttl="10")
        clock.now -= 40
        later = await client.get(f"x?offset=-1&live=long-poll&cursor={cursor + 86_400}")
        assert int(later.headers["stream-cursor"]) > cursor + 86_400 - 4 or later.status == 200
        echoed = (await client.get("x?offset=-1&live=long-poll")).headers["stream-cursor"]
        again = (await client.get(f"x?offset=-1&live=long-poll&cursor={echoed}")).headers["stream-cursor"]
        assert int(again) > int(echoed), "a cursor never repeats, whatever the clock does"
        await client.app.store.sweep(clock.now)
        assert (await client.get("x?offset=-1")).body == b"c"


# --- 10: recreated under readers


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shorter", [False, True])
async def test_what_was_known_of_a_stream_is_worth_nothing_for_its_successor(
    kind: str, shorter: bool, tmp_path: Path
) -> None:
    old, new = b"old content", b"new" if shorter else b"new content"
    async with open_client(kind, tmp_path, long_poll_timeout=30.0) as client, anyio.create_task_group() as group:
        await client.put("x", TEXT, old)
        etag = (await client.get("x?offset=-1")).headers["etag"]
        tail = (await client.head("x")).next_offset
        waiting: dict[str, Answer] = {}

        async def wait() -> None:
            waiting["answer"] = await client.get(f"x?offset={tail}&live=long-poll")

        group.start_soon(wait)
        async with client.open(f"x?offset={tail}&live=sse") as events:
            await events.head()
            await events.piece()
            await anyio.wait_all_tasks_blocked()

            await client.delete("x")
            assert (await client.put("x", TEXT, new)).status == 201

            assert b"new" not in await events.rest()
        while "answer" not in waiting:
            await anyio.lowlevel.checkpoint()
        assert waiting["answer"].status == 404

        answer = await client.get("x?offset=-1", if_none_match=etag)
        assert (answer.status, answer.body) == (200, new)
        assert answer.headers["etag"] != etag
        assert (await client.get("x?offset=-1", if_none_match=f'W/{etag}, "y"')).status == 200
        beyond = await client.get(f"x?offset={tail}")
        assert (beyond.status, beyond.body) == ((400, beyond.body) if shorter else (200, b""))
