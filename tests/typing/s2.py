"""Uses of `durable_streams.s2` that are only type-checked, never run: what a user's editor infers. See `api.py`."""

from typing import assert_type

from durable_streams.s2 import (
    S2,
    UNSET,
    AppendAck,
    AppendInput,
    AppendRecord,
    AppendResolution,
    AppendSession,
    AppendTicket,
    Basin,
    BasinConfig,
    BasinInfo,
    BasinReconfiguration,
    IndexedAppendAck,
    Listing,
    LocationInfo,
    Metric,
    Page,
    Producer,
    RangeNotSatisfiableError,
    ReadBatch,
    ReadPage,
    ReadSession,
    S2Error,
    S2Retry,
    S2Timeouts,
    SeqNum,
    SeqNumMismatchError,
    SequencedRecord,
    Stream,
    StreamConfig,
    StreamInfo,
    StreamPosition,
    StreamReconfiguration,
    Timestamping,
    TimestampingReconfiguration,
)


def making_clients() -> None:
    async def token() -> str:
        return "fresh"

    assert_type(S2("token"), S2)
    S2(token, endpoints="http://localhost:8080", retry=S2Retry(max_attempts=5), timeout=2.5, compression="zstd")
    S2(lambda: "fresh", retry={"maxAttempts": 3}, timeout=S2Timeouts(request=2))
    S2("token", compression="brotli")  # type: ignore[arg-type]
    assert_type(S2.from_env(), S2)
    assert_type(S2("token").basin("my-basin"), Basin)
    assert_type(S2("token")["my-basin"]["my-stream"], Stream)


async def managing(s2: S2) -> None:
    assert_type(await s2.basins.list(), Page[BasinInfo])
    assert_type([basin.name for basin in await s2.basins.list()], list[str])
    assert_type(s2.basins.list_all(), Listing[BasinInfo])
    async for stream in s2.basin("my-basin").streams.list_all():
        assert_type(stream, StreamInfo)
    assert_type(await s2.basins.create("my-basin"), BasinInfo)
    assert_type(await s2.basins.get_config("my-basin"), BasinConfig)
    assert_type(await s2.locations.list(), tuple[LocationInfo, ...])
    assert_type(await s2.metrics.account("active-basins"), tuple[Metric, ...])


def three_states() -> None:
    StreamConfig(retention_policy="infinite", timestamping=Timestamping("arrival"))
    StreamConfig(retention_policy="for ever")  # type: ignore[arg-type]
    StreamReconfiguration(retention_policy=None, timestamping=TimestampingReconfiguration(mode=None))
    StreamReconfiguration(retention_policy=UNSET)
    StreamReconfiguration(timestamping=Timestamping())  # type: ignore[arg-type]
    BasinReconfiguration(create_stream_on_append=None)  # type: ignore[arg-type]


async def records(stream: Stream) -> None:
    assert_type(await stream.append(["text", b"bytes", AppendRecord(b"x")]), AppendAck)
    assert_type(await stream.append(AppendInput([AppendRecord(b"x")], match_seq_num=0)), AppendAck)
    page = await stream.read(seq_num=0, count=10)
    assert_type(page, ReadPage)
    assert_type(page.records, tuple[SequencedRecord, ...])
    assert_type(page.records[0].body, bytes)
    assert_type(page.next_seq_num, int | None)
    assert_type(await stream.check_tail(), StreamPosition)
    assert_type(await stream.resolve_append(AppendInput([AppendRecord()])), AppendResolution)


async def sessions(stream: Stream) -> None:
    async with stream.append_session(max_in_flight_batches=10) as session:
        assert_type(session, AppendSession)
        ticket = await session.submit("x")
        assert_type(ticket, AppendTicket)
        assert_type(await ticket, AppendAck)
        async for ack in session.acks():
            assert_type(ack, AppendAck)
    async with stream.producer() as producer:
        assert_type(producer, Producer)
        assert_type(await (await producer.submit("x")), IndexedAppendAck)
    async with stream.read_session(SeqNum(5)) as reader:
        assert_type(reader, ReadSession)
        async for batch in reader:
            assert_type(batch, ReadBatch)
        async for record in reader.iter_records():
            assert_type(record, SequencedRecord)


def errors(error: S2Error) -> None:
    assert_type(error.definite, bool)
    assert_type(error.retryable, bool)
    if isinstance(error, SeqNumMismatchError):
        assert_type(error.expected_seq_num, int)
    if isinstance(error, RangeNotSatisfiableError):
        assert_type(error.tail, StreamPosition | None)
