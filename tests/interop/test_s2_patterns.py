"""Our patterns and those of `@s2-dev/streamstore-patterns`: equal answers, and messages either way through s2 lite."""

import random
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from durable_streams.s2 import S2, AppendRecord, Header, Stream
from durable_streams.s2.patterns import (
    DedupeFilter,
    DeserializingReadSession,
    FrameAssembler,
    FrameSizeError,
    MessageFormatError,
    SerializingAppendSession,
    chunk_bytes,
    extract_dedupe_seq,
    frame_chunks_to_records,
    inject_dedupe_headers,
)
from durable_streams.testing import S2Fake, S2Fault

from .conftest import TypeScriptClient

pytestmark = pytest.mark.anyio

W = "AAAAAAAAAAAA"
BYTES = bytes
#: Sizes about every border: one byte, a chunk, a chunk and a byte, several chunks.
MESSAGES = [b"a", b"b" * 1_048_477, b"c" * 1_048_478, random.Random(0).randbytes(3 << 20), b"last"]


def text(data: bytes) -> str:
    return b64encode(data).decode()


def texts(headers: Iterable[Header]) -> list[list[str]]:
    return [[text(name), text(value)] for name, value in headers]


def attempt(call: Any, *arguments: Any) -> Any:
    """What a call answers; an error as the TypeScript side tells of it, as far as the two can agree."""
    try:
        return call(*arguments)
    except FrameSizeError:
        return "FRAME_SIZE"
    except MessageFormatError:
        return "error"


def theirs(answers: list[Any]) -> list[Any]:
    return [
        ("FRAME_SIZE" if answer["code"] == "FRAME_SIZE" else "error") if isinstance(answer, dict) else answer
        for answer in answers
    ]


# -- The same answers --------------------------------------------------------------------------------------


def some_dedupe_headers(chance: random.Random) -> list[Header]:
    numbers = [*(n.to_bytes(8, "big") for n in (0, 0, 1, 2, 3, 5, 2**40)), b"", bytes(7), bytes(9)]
    writers = [b"", b"A", b"B", b"\xff\xfe", b"\xe2\x82", b"\xef\xbb\xbfA", W.encode(), b"\xf0\x9f\x98"]
    weights = [5] * 7 + [1] * 3
    kinds = [
        lambda: (b"_dedupe_seq", chance.choices(numbers, weights)[0]),
        lambda: (b"_writer_id", chance.choice(writers)),
        lambda: (b"x", b"y"),
    ]
    return [chance.choice(kinds)() for _ in range(chance.randrange(5))]


def some_record(chance: random.Random) -> AppendRecord:
    numbers = [*(n.to_bytes(8, "big") for n in (0, 1, 2, 3, 4, 5, 6, 8, 51, 2**33)), b"abc"]
    weights = [4] * 10 + [1]
    headers: list[Header] = []
    if chance.random() < 0.5:
        names = chance.choices([b"_frame_bytes", b"_frame_records", b"z"], k=chance.choice([1, 2, 2, 2, 3]))
        headers = [(name, chance.choices(numbers, weights)[0]) for name in names]
    return AppendRecord(chance.randbytes(chance.choice([0, 1, 1, 2, 2, 3, 4])), headers)


async def test_writer_and_number_are_found_as_theirs_are(ts_s2: TypeScriptClient) -> None:
    chance = random.Random(1)
    headers = [some_dedupe_headers(chance) for _ in range(2000)]

    def found(some: Sequence[Header]) -> list[str] | None:
        answer = extract_dedupe_seq(some)
        return None if answer is None else [answer[0], str(answer[1])]

    answer = await ts_s2.call("extract", headers=[texts(some) for some in headers])
    assert [attempt(found, some) for some in headers] == theirs(answer["found"])


@pytest.mark.parametrize("seed", range(5))
async def test_duplicates_are_told_as_theirs_are(ts_s2: TypeScriptClient, seed: int) -> None:
    chance = random.Random(seed)
    headers = [some_dedupe_headers(chance) for _ in range(300)]
    dedupe = DedupeFilter()

    answer = await ts_s2.call("filter", headers=[texts(some) for some in headers])
    assert [attempt(dedupe.should_accept, some) for some in headers] == theirs(answer["accepted"])


@pytest.mark.parametrize("seed", range(10))
async def test_messages_are_put_together_as_theirs_are(ts_s2: TypeScriptClient, seed: int) -> None:
    chance = random.Random(seed)
    records = [some_record(chance) for _ in range(300)]
    assembler = FrameAssembler(max_frame_bytes=50)

    def push(record: AppendRecord) -> list[Any]:
        return [[text(frame.payload), frame.meta.bytes, frame.meta.records] for frame in assembler.push(record)]

    sent = [{"headers": texts(record.headers), "body": text(record.body)} for record in records]
    answer = await ts_s2.call("assemble", records=sent, maxFrameBytes=50)
    assert [attempt(push, record) for record in records] == theirs(answer["frames"])


@pytest.mark.parametrize(("message", "size"), [(b"hello", 2), (b"x", 100), (bytes(range(256)) * 40, 1000)])
async def test_records_are_made_as_theirs_are(ts_s2: TypeScriptClient, message: bytes, size: int) -> None:
    answer = await ts_s2.call("make", message=text(message), chunkSize=size, writer=W, start=5)
    records, following = inject_dedupe_headers(frame_chunks_to_records(chunk_bytes(message, size)), W, 5)

    ours = [[texts(record.headers), text(record.body), record.metered_bytes] for record in records]
    assert ours == answer["records"]
    assert following == answer["next"]


# -- Through a server --------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(endpoint: str, basin: str, stream: str) -> AsyncIterator[Stream]:
    with anyio.fail_after(60):
        async with S2("ignored", endpoints=endpoint) as s2:
            await s2.basin(basin).streams.create(stream)
            yield s2.basin(basin).stream(stream)


async def read(stream: Stream) -> list[bytes]:
    session = stream.read_session(wait=0, ignore_command_records=True)
    async with DeserializingReadSession(session, BYTES) as reader:
        return [message async for message in reader]


@pytest.mark.parametrize("dedupe", [None, 0])
async def test_they_read_what_we_write(
    ts_s2: TypeScriptClient, s2_endpoint: str, s2_basin: str, s2_stream: str, dedupe: int | None
) -> None:
    async with opened(s2_endpoint, s2_basin, s2_stream) as stream:
        async with SerializingAppendSession(stream.append_session(), BYTES, dedupe_seq=dedupe) as writer:
            await writer.write_all(MESSAGES)
        where = {"endpoint": s2_endpoint, "basin": s2_basin, "stream": s2_stream}
        answer = await ts_s2.call("read_messages", **where)

        assert [b64decode(message) for message in answer["messages"]] == MESSAGES
        assert await read(stream) == MESSAGES


@pytest.mark.parametrize("options", [{}, {"dedupeSeq": 0}, {"dedupeSeq": 7, "matchSeqNum": 0}])
async def test_we_read_what_they_write(
    ts_s2: TypeScriptClient, s2_endpoint: str, s2_basin: str, s2_stream: str, options: dict[str, int]
) -> None:
    async with opened(s2_endpoint, s2_basin, s2_stream) as stream:
        where = {"endpoint": s2_endpoint, "basin": s2_basin, "stream": s2_stream}
        sent = [text(message) for message in MESSAGES]
        answer = await ts_s2.call("write_messages", messages=sent, way="submit", options=options, **where)

        assert [entry["end"] - entry["start"] for entry in answer["ranges"]] == [1, 1, 2, 4, 1]
        assert await read(stream) == MESSAGES


async def test_we_read_what_their_writable_stream_writes(
    ts_s2: TypeScriptClient, s2_endpoint: str, s2_basin: str, s2_stream: str
) -> None:
    async with opened(s2_endpoint, s2_basin, s2_stream) as stream:
        where = {"endpoint": s2_endpoint, "basin": s2_basin, "stream": s2_stream}
        options = {"dedupeSeq": 0, "chunkSize": 1000}
        messages = [bytes([number]) * 1500 for number in range(20)]
        sent = [text(message) for message in messages]
        await ts_s2.call("write_messages", messages=sent, way="write", options=options, **where)

        assert await read(stream) == messages


async def test_a_stream_that_both_wrote_is_read_the_same_by_both(
    ts_s2: TypeScriptClient, s2_endpoint: str, s2_basin: str, s2_stream: str
) -> None:
    """Writers in turn, a torn message of a third, and a batch that was stored twice."""
    async with opened(s2_endpoint, s2_basin, s2_stream) as stream:
        where = {"endpoint": s2_endpoint, "basin": s2_basin, "stream": s2_stream}
        await ts_s2.call(
            "write_messages",
            messages=[text(b"theirs" * 500)],
            way="submit",
            options={"dedupeSeq": 0, "chunkSize": 999},
            **where,
        )
        async with stream.append_session() as session:
            writer = SerializingAppendSession(session, BYTES, chunk_size=1000, dedupe_seq=0)
            await writer.submit(b"ours" * 900)
        records, _ = inject_dedupe_headers(frame_chunks_to_records(chunk_bytes(b"once" * 600, 1000)), W, 0)
        torn, _ = inject_dedupe_headers(frame_chunks_to_records([b"to", b"rn"]), "third-writer", 0)
        await stream.append(torn[:1])
        await stream.append(records[:2])
        await stream.append(records[:2])
        await stream.append(records[1:])
        expected = [b"theirs" * 500, b"ours" * 900, b"once" * 600]
        answer = await ts_s2.call("read_messages", **where)

        assert await read(stream) == expected
        assert [b64decode(message) for message in answer["messages"]] == expected


@pytest.mark.parametrize("after", [0, 2, 5])
async def test_duplicates_that_their_retries_make_are_read_once(ts_s2: TypeScriptClient, after: int) -> None:
    """A cut connection makes their session write again what it had no acknowledgement for."""
    with anyio.fail_after(60):
        async with S2Fake() as fake:
            fake.add_basin("basin-01", streams=["messages"])
            fake.faults.script([S2Fault("cut_after", "append_session", after=after)])
            where = {"endpoint": fake.url, "basin": "basin-01", "stream": "messages"}
            sent = [text(message) for message in MESSAGES]
            await ts_s2.call("write_messages", messages=sent, way="submit", options={"dedupeSeq": 0}, **where)
            stored = len(fake.records("basin-01", "messages"))
            async with S2("ignored", endpoints=fake.url) as s2:
                got = await read(s2.basin("basin-01").stream("messages"))

    assert stored > 9  # more than the messages need: something is there twice
    assert got == MESSAGES


@pytest.mark.parametrize("after", [0, 2, 5])
async def test_duplicates_that_our_retries_make_are_read_once_by_them(ts_s2: TypeScriptClient, after: int) -> None:
    with anyio.fail_after(60):
        async with S2Fake() as fake:
            fake.add_basin("basin-01", streams=["messages"])
            fake.faults.script([S2Fault("cut_after", "append_session", after=after)])
            async with S2("ignored", endpoints=fake.url) as s2:
                session = s2.basin("basin-01").stream("messages").append_session()
                async with SerializingAppendSession(session, BYTES, dedupe_seq=0) as writer:
                    await writer.write_all(MESSAGES)
            stored = len(fake.records("basin-01", "messages"))
            where = {"endpoint": fake.url, "basin": "basin-01", "stream": "messages"}
            answer = await ts_s2.call("read_messages", **where)

    assert stored > 9
    assert [b64decode(message) for message in answer["messages"]] == MESSAGES
