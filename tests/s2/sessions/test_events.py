"""Read sessions over server-sent events: what servers and proxies make of them (S2 3.6)."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from durable_streams.s2 import (
    S2,
    FencingTokenMismatchError,
    RangeNotSatisfiableError,
    ReadBatch,
    S2ConnectionError,
    S2ProtocolError,
    S2Retry,
    S2ServerError,
    SeqNumMismatchError,
    Stream,
    StreamPosition,
    _read_link,
)
from tests.scripted import Reply, ScriptedServer

pytestmark = pytest.mark.anyio

ONCE = S2Retry(max_attempts=1)
TWICE = S2Retry(max_attempts=2, min_base_delay=0.0, max_base_delay=0.0)
FIRST = '{"records":[{"seq_num":0,"timestamp":5,"body":"aGk="},{"seq_num":1,"timestamp":6}]}'
SECOND = '{"records":[{"seq_num":2,"timestamp":7,"body":"aG8="}],"tail":{"seq_num":3,"timestamp":7}}'
DONE = "data: [DONE]\n\n"


def batch(data: str, last: str = "1,2,18") -> str:
    return f"event: batch\nid: {last}\ndata: {data}\n\n"


def events(text: str, *, pieces: int = 1 << 20, close: bool = False) -> Reply:
    body = text.encode()
    chunks = [body[at : at + pieces] for at in range(0, len(body), pieces)]
    return Reply(headers={"content-type": "text/event-stream"}, chunks=chunks, close=close)


@asynccontextmanager
async def serving(*replies: Reply, retry: S2Retry = ONCE) -> AsyncIterator[tuple[ScriptedServer, Stream]]:
    async with ScriptedServer() as server, S2("sesame-open", endpoints=server.url, retry=retry) as s2:
        server.replies(*replies)
        yield server, s2.basin("my-basin-01").stream("s", transport="http", encryption_key=b"k" * 32)


async def read(stream: Stream, **options: Any) -> list[ReadBatch]:
    async with stream.read_session(**options) as session:
        return [each async for each in session]


@pytest.mark.parametrize(
    "text",
    [
        batch(FIRST) + batch(SECOND, "2,3,28") + DONE,
        (batch(FIRST) + batch(SECOND) + DONE).replace("\n", "\r\n"),
        (batch(FIRST) + batch(SECOND) + DONE).replace("\n", "\r"),
        "\ufeff: hello\n\n" + batch(FIRST, "0,0,0") + ":\n" + batch(SECOND, "0,0,0") + DONE,
        batch(FIRST, "") + "event: news\ndata: {\n\n" + "event: batch\n\n" + batch(SECOND, "?") + DONE,
        f"data: {FIRST[:12]}\nevent:batch\ndata:{FIRST[12:]}\nretry: 5\n\n" + batch(SECOND) + "data: [DONE] \n\n",
        'event: ping\ndata: {"timestamp":1}\n\n' + batch(FIRST) + batch(SECOND) + DONE + batch("beyond the end"),
    ],
    ids=["lf", "crlf", "cr", "bom and comments", "strange events", "two lines of data", "beyond the end"],
)
@pytest.mark.parametrize("pieces", [1, 1 << 20])
async def test_events_of_any_form_are_read(text: str, pieces: int) -> None:
    async with serving(events(text, pieces=pieces)) as (server, stream):
        found = await read(stream)

    assert [[record.seq_num for record in each.records] for each in found] == [[0, 1], [2]]
    assert [record.body for each in found for record in each.records] == [b"hi", b"", b"ho"]
    assert [each.tail for each in found] == [None, StreamPosition(3, 7)]
    assert len(server.requests) == 1


@pytest.mark.parametrize("rest", ["", "event: batch\nid: 2,3,28\ndata: " + SECOND, "event: batch\n", ": so far\n\n"])
async def test_without_its_last_event_a_read_goes_on_behind_what_came_whole(rest: str) -> None:
    cut = events(batch(FIRST) + rest)
    async with serving(cut, events(batch(SECOND) + DONE), retry=TWICE) as (server, stream):
        found = await read(stream, count=10)

    assert [record.seq_num for each in found for record in each.records] == [0, 1, 2]
    first, second = server.requests
    assert "last-event-id" not in first.headers
    assert (second.query["seq_num"], second.query["count"]) == ("2", "10")
    assert second.headers["last-event-id"].split(",")[:2] == ["1", "2"]


async def test_an_end_without_its_last_event_is_an_error_when_nobody_comes_to_help() -> None:
    async with serving(events(batch(FIRST))) as (_, stream), stream.read_session() as session:
        assert len((await anext(session)).records) == 2
        with pytest.raises(S2ConnectionError, match=r"without \[DONE\]"):
            await anext(session)


@pytest.mark.parametrize(
    ("document", "kind", "status", "code", "retryable"),
    [
        ({"code": "stream_not_found", "message": "gone"}, S2ServerError, 404, "stream_not_found", False),
        ({"code": "unavailable", "message": "missing"}, S2ServerError, 503, "unavailable", True),
        ({"code": "brand_new", "message": "?"}, S2ServerError, 500, "brand_new", True),
        ({"seq_num_mismatch": 7}, SeqNumMismatchError, 412, "seq_num_mismatch", False),
        ({"fencing_token_mismatch": "x"}, FencingTokenMismatchError, 412, "fencing_token_mismatch", False),
        ({"tail": {"seq_num": 3, "timestamp": 9}}, RangeNotSatisfiableError, 416, "range_not_satisfiable", False),
        ([], S2ServerError, 500, "unknown", True),
        (None, S2ServerError, 500, "unknown", True),
        (5, S2ServerError, 500, "unknown", True),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
async def test_an_error_within_events_is_that_of_a_single_call(
    document: Any, kind: Any, status: int, code: str, retryable: bool, wrapped: bool
) -> None:
    data = json.dumps(json.dumps(document) if wrapped else document)
    reply = events(batch(FIRST) + f"event: error\ndata: {data}\n\n")
    async with serving(reply) as (_, stream), stream.read_session() as session:
        await anext(session)
        with pytest.raises(S2ServerError) as caught:
            await anext(session)

    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (status, code, retryable)


async def test_an_error_within_events_shows_no_secret() -> None:
    async with ScriptedServer() as server:

        async def echo(request: Any) -> Reply:
            words = f"{request.headers['authorization']} {request.headers['s2-encryption-key']}"
            return events("event: error\ndata: " + json.dumps(json.dumps({"code": "x", "message": words})) + "\n\n")

        server._handler = echo
        async with S2("sesame-open", endpoints=server.url, retry=ONCE) as s2:
            stream = s2.basin("my-basin-01").stream("s", transport="http", encryption_key=b"\xff" * 32)
            with pytest.raises(S2ServerError, match=r"Bearer \*\*\* \*\*\*$"):
                await read(stream)


@pytest.mark.parametrize(
    "text",
    [
        "event: batch\ndata: null\n\n",
        "event: batch\ndata: {\n\n",
        "event: ping\ndata: []\n\n",
        "data: " + "x" * (1 << 17),
    ],
    ids=["null", "half", "list", "endless"],
)
async def test_events_that_mean_nothing_end_the_session(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_read_link, "MAX_EVENT_BYTES", 1 << 16)
    async with serving(events(text, pieces=1 << 16)) as (_, stream):
        with pytest.raises(S2ProtocolError) as caught:
            await read(stream)

    assert not caught.value.retryable
