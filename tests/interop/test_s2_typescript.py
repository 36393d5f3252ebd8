"""Our S2 client and the official TypeScript SDK on one server: each reads what the other wrote."""

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import pytest

from durable_streams.s2 import S2, AppendRecord, Compression, Header, Stream

from . import s2lite
from .conftest import TypeScriptClient

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))
#: Records with everything that may be in one: no body, no text, several headers of one name, empty values.
RECORDS = [
    AppendRecord(b"text"),
    AppendRecord(b"", [(b"only", b"header")]),
    AppendRecord(bytes(range(256)), [(b"a", b"1"), (b"a", b"2"), (b"\xff\x00", b"\xfe"), (b"empty", b"")]),
    AppendRecord(b"x" * 2000),
]
BATCHES = [[b"%d-%d" % (batch, number) * 50 for number in range(1 + batch % 7)] for batch in range(60)]


def text(data: bytes) -> str:
    return b64encode(data).decode()


def texts(headers: tuple[Header, ...]) -> list[list[str]]:
    return [[text(name), text(value)] for name, value in headers]


def plain(records: list[Any]) -> list[tuple[bytes, list[tuple[bytes, bytes]]]]:
    """Records as the TypeScript side tells of them."""
    return [
        (b64decode(body), [(b64decode(name), b64decode(value)) for name, value in headers]) for headers, body in records
    ]


@asynccontextmanager
async def opened(
    endpoint: str, basin: str, stream: str, *, compression: Compression = "none", **options: Any
) -> AsyncIterator[Stream]:
    with anyio.fail_after(60):
        async with S2("ignored", endpoints=endpoint, compression=compression) as s2:
            await s2.basin(basin).streams.create(stream)
            yield s2.basin(basin).stream(stream, **options)


@pytest.fixture(scope="session")
def s2_secret_basin(s2_endpoint: str) -> str:
    """Name of a basin whose streams are encrypted."""
    return s2lite.make_basin(s2_endpoint, stream_cipher="aegis-256")


async def check_both_ways(ts_s2: TypeScriptClient, stream: Stream, where: dict[str, Any]) -> None:
    """Append and read by single calls and by sessions, on each side what the other wrote."""
    expected = [(record.body, list(record.headers)) for record in RECORDS]
    await stream.append(RECORDS)
    sent = [{"headers": texts(record.headers), "body": text(record.body)} for record in RECORDS]
    ack = await ts_s2.call("append", records=sent, **where)
    assert (ack["start"], ack["end"], ack["tail"]) == (4, 8, 8)

    async with stream.append_session() as session:
        for batch in BATCHES:
            await session.submit(batch)
    lengths = [len(batch) for batch in BATCHES]
    first = 8 + sum(lengths)
    answer = await ts_s2.call("append_session", batches=[list(map(text, batch)) for batch in BATCHES], **where)
    assert answer["ends"] == [first + sum(lengths[: index + 1]) for index in range(len(BATCHES))]

    expected = expected * 2 + [(body, []) for batch in BATCHES * 2 for body in batch]
    page = await stream.read(seq_num=0, count=8)
    assert [(record.body, list(record.headers)) for record in page.records] == expected[:8]
    async with stream.read_session(seq_num=0, count=len(expected)) as reader:
        got = [record async for record in reader.iter_records()]
    assert [(record.body, list(record.headers)) for record in got] == expected
    assert plain((await ts_s2.call("read", count=8, **where))["records"]) == expected[:8]
    assert plain((await ts_s2.call("read_session", count=len(expected), **where))["records"]) == expected


@pytest.mark.parametrize("transport", ["s2s", "http"])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_each_reads_what_the_other_wrote(
    ts_s2: TypeScriptClient,
    s2_endpoint: str,
    s2_basin: str,
    s2_stream: str,
    transport: Literal["s2s", "http"],
    compression: Compression,
) -> None:
    # Theirs needs a newer Node.js for zstd; what either side stores is the same.
    where = {"endpoint": s2_endpoint, "basin": s2_basin, "stream": s2_stream}
    where["transport"] = "s2s" if transport == "s2s" else "fetch"
    where["compression"] = "gzip" if compression == "gzip" else "none"
    async with opened(s2_endpoint, s2_basin, s2_stream, compression=compression, transport=transport) as stream:
        await check_both_ways(ts_s2, stream, where)


async def test_each_reads_what_the_other_encrypted(
    ts_s2: TypeScriptClient, s2_endpoint: str, s2_secret_basin: str, s2_stream: str
) -> None:
    where = {"endpoint": s2_endpoint, "basin": s2_secret_basin, "stream": s2_stream, "key": text(KEY)}
    async with opened(s2_endpoint, s2_secret_basin, s2_stream, encryption_key=KEY) as stream:
        await check_both_ways(ts_s2, stream, where)
