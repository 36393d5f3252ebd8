"""Sessions over real sockets against the fake server: both transports, every fault, compression, keys, restarts."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

import anyio
import pytest

from durable_streams.s2 import (
    S2,
    AppendRecord,
    FencingTokenMismatchError,
    RangeNotSatisfiableError,
    S2ConnectionError,
    S2Error,
    S2ProtocolError,
    S2Retry,
    S2ServerError,
    SeqNumMismatchError,
    StreamConfig,
)
from durable_streams.s2._context import S2Timeouts
from durable_streams.testing import S2Fake, S2Fault

pytestmark = pytest.mark.anyio

BASIN = "sessions-1"
QUICK = S2Retry(min_base_delay=0.001, max_base_delay=0.002)
STRICT = S2Retry(min_base_delay=0.001, max_base_delay=0.002, append_retry_policy="no_side_effects")
TRANSPORTS = pytest.mark.parametrize("transport", ["s2s", "http"])


@pytest.fixture
async def fake() -> AsyncIterator[S2Fake]:
    async with S2Fake() as fake:
        fake.add_basin(BASIN, streams=["s"])
        yield fake


def client(fake: S2Fake, retry: S2Retry = QUICK, **options: Any) -> S2:
    return S2("token", endpoints=fake.url, retry=retry, **options)


def bodies(fake: S2Fake) -> list[bytes]:
    return [record.body for record in fake.records(BASIN, "s")]


@TRANSPORTS
async def test_what_is_appended_in_a_session_is_read_in_one(fake: S2Fake, transport: Any) -> None:
    async with client(fake) as s2:
        stream = s2[BASIN].stream("s", transport=transport)
        async with stream.append_session() as session:
            for number in range(20):
                await session.submit([AppendRecord(b"%d" % number, ((b"k", bytes([number, 255])),)), b"", "text"])
        async with stream.read_session(seq_num=0, count=60) as reader:
            records = [record async for record in reader.iter_records()]

    assert tuple(records) == tuple(fake.records(BASIN, "s"))
    assert records[3].headers == ((b"k", b"\x01\xff"),)
    operations = {request.operation for request in fake.requests}
    assert operations == ({"append_session", "read_session"} if transport == "s2s" else {"append", "read_sse"})


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@TRANSPORTS
async def test_sessions_compress_both_ways(fake: S2Fake, transport: Any, compression: Any) -> None:
    fake.behaviour.piece = 97
    body = b"abc" * 2000

    async with client(fake, compression=compression) as s2:
        stream = s2[BASIN].stream("s", transport=transport)
        async with stream.append_session() as session:
            await session.submit([body, body])
        async with stream.read_session(seq_num=0, count=2) as reader:
            found = [record.body async for record in reader.iter_records()]

    assert found == [body, body]


@TRANSPORTS
@pytest.mark.parametrize(
    "fault",
    [
        S2Fault("cut_before"),
        S2Fault("reset_before", reset_code=7),
        S2Fault("reset_before"),
        S2Fault("unprocessed"),
        S2Fault("goaway"),
        S2Fault("refuse", status=429, code="rate_limited", retry_after_ms=1),
        S2Fault("refuse", status=503, code="server_draining"),
        S2Fault("refuse", status=502, body=b"<html>gateway</html>"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.code}",
)
async def test_a_fault_without_effect_leaves_no_trace(fake: S2Fake, transport: Any, fault: S2Fault) -> None:
    fake.faults.script([fault])

    async with client(fake) as s2:
        stream = s2[BASIN].stream("s", transport=transport)
        async with stream.append_session() as session:
            tickets = [await session.submit(str(number)) for number in range(5)]
            acks = [await ticket for ticket in tickets]

    assert [ack.start.seq_num for ack in acks] == [0, 1, 2, 3, 4]
    assert bodies(fake) == [b"0", b"1", b"2", b"3", b"4"]
    assert not fake.faults.pending


@TRANSPORTS
@pytest.mark.parametrize("kind", ["cut_after", "reset_after"])
async def test_a_lost_acknowledgement_is_a_duplicate_or_an_indefinite_failure(
    fake: S2Fake, transport: Any, kind: Any
) -> None:
    fake.faults.script([S2Fault(kind, after=-1 if transport == "http" else 0)])

    async with client(fake) as s2, s2[BASIN].stream("s", transport=transport).append_session() as session:
        await session.submit("a")
    stored = bodies(fake)
    fake.faults.script([S2Fault(kind, after=-1 if transport == "http" else 0)])
    with pytest.raises(S2ConnectionError) as caught:
        async with client(fake, STRICT) as s2, s2[BASIN].stream("s", transport=transport).append_session() as session:
            await session.submit("b")

    assert stored == [b"a", b"a"]
    assert caught.value.definite is False
    assert bodies(fake) == [b"a", b"a", b"b"]


@TRANSPORTS
async def test_reading_back_resolves_a_lost_acknowledgement(fake: S2Fake, transport: Any) -> None:
    fake.faults.script(
        [S2Fault("cut_after", after=-1 if transport == "http" else 1, skip=1 if transport == "http" else 0)]
    )

    async with client(fake) as s2:
        stream = s2[BASIN].stream("s", transport=transport)
        async with stream.append_session(read_back=True) as session:
            tickets = [await session.submit(str(number), match_seq_num=number) for number in range(4)]
            acks = [await ticket for ticket in tickets]

    assert [ack.start.seq_num for ack in acks] == [0, 1, 2, 3]
    assert bodies(fake) == [b"0", b"1", b"2", b"3"]


@TRANSPORTS
async def test_without_reading_back_a_repetition_fails_for_its_own_success(fake: S2Fake, transport: Any) -> None:
    fake.faults.script([S2Fault("cut_after", after=-1 if transport == "http" else 0)])

    with pytest.raises(SeqNumMismatchError) as caught:
        async with client(fake) as s2, s2[BASIN].stream("s", transport=transport).append_session() as session:
            await session.submit("a", match_seq_num=0)

    assert caught.value.expected_seq_num == 1
    assert caught.value.definite is False


@TRANSPORTS
async def test_conditions_are_told_apart(fake: S2Fake, transport: Any) -> None:
    async with client(fake) as s2:
        stream = s2[BASIN].stream("s", transport=transport)
        async with stream.append_session() as session:
            await session.submit([AppendRecord.fence("mine")], fencing_token="", match_seq_num=0)
            await session.submit("a", fencing_token="mine")
        with pytest.raises(FencingTokenMismatchError):
            async with stream.append_session() as session:
                await session.submit("b", fencing_token="yours")

    assert fake.tail(BASIN, "s").seq_num == 2


@pytest.mark.parametrize("ack", ["count", "backwards", "extra"])
async def test_a_lying_acknowledgement_ends_the_session(fake: S2Fake, ack: Any) -> None:
    fake.faults.script([S2Fault("wrong_ack", "append_session", after=1, ack=ack)])

    with pytest.raises(S2ProtocolError):
        async with client(fake) as s2, s2[BASIN].stream("s").append_session() as session:
            for number in range(5):
                await (await session.submit(str(number)))


@pytest.mark.parametrize(
    "frame", ["zero_length", "oversize", "unknown_compression", "bad_zstd", "bomb", "bad_proto", "short_terminal"]
)
@pytest.mark.parametrize("operation", ["append_session", "read_session"])
async def test_a_bad_frame_ends_the_session(fake: S2Fake, operation: Any, frame: Any) -> None:
    fake.faults.script([S2Fault("bad_frame", operation, after=0, frame=frame)])

    async with client(fake) as s2:
        stream = s2[BASIN].stream("s")
        if operation == "append_session":
            with pytest.raises(S2ProtocolError) as caught:
                async with stream.append_session() as session:
                    await session.submit("a")
            assert caught.value.definite is False
            return
        await stream.append(["a"])
        with pytest.raises(S2ProtocolError):
            async with stream.read_session() as reader:
                await anext(reader)


@pytest.mark.parametrize("kind", ["truncate", "end", "cut_before"])
async def test_a_cut_acknowledgement_is_repeated(fake: S2Fake, kind: Any) -> None:
    fake.faults.script([S2Fault(kind, "append_session", after=1)])

    async with client(fake) as s2, s2[BASIN].stream("s").append_session() as session:
        for number in range(4):
            await session.submit(str(number))

    assert list(dict.fromkeys(bodies(fake))) == [b"0", b"1", b"2", b"3"]


@TRANSPORTS
@pytest.mark.parametrize("kind", ["cut_before", "truncate", "reset_before", "goaway", "unprocessed"])
async def test_a_cut_read_session_goes_on(fake: S2Fake, transport: Any, kind: Any) -> None:
    operation = "read_session" if transport == "s2s" else "read_sse"
    async with client(fake) as s2:
        stream = s2[BASIN].stream("s", transport=transport)
        for number in range(3):
            await stream.append([b"%d" % (1000 * number + n) for n in range(1000)])
        fake.faults.script([S2Fault(kind, operation, after=1), S2Fault(kind, operation, after=0)])
        async with stream.read_session(seq_num=0, count=2500, bytes=1 << 30) as reader:
            found = [record.seq_num async for record in reader.iter_records()]

    assert found == list(range(2500))


async def test_a_resumed_read_of_events_sends_the_first_limits_and_its_place(fake: S2Fake) -> None:
    async with client(fake) as s2:
        stream = s2[BASIN].stream("s", transport="http")
        for _ in range(2):
            await stream.append([b"x"] * 1000)
        fake.faults.script([S2Fault("cut_before", "read_sse", after=1)])
        async with stream.read_session(tail_offset=2000, count=1500, bytes=20_000) as reader:
            found = [record.seq_num async for record in reader.iter_records()]

    resumed = [request for request in fake.requests if request.operation == "read_sse"][-1]
    assert found == list(range(1500))
    assert resumed.headers["last-event-id"] == "999,1000,9000"
    assert dict(parse_qsl(resumed.query)) == {"seq_num": "1000", "count": "1500", "bytes": "20000"}


@TRANSPORTS
async def test_errors_before_and_within_a_read_have_the_same_shape(fake: S2Fake, transport: Any) -> None:
    operation = "read_session" if transport == "s2s" else "read_sse"
    async with client(fake) as s2:
        stream = s2[BASIN].stream("s", transport=transport)
        with pytest.raises(RangeNotSatisfiableError) as before:
            async with stream.read_session(seq_num=5, count=1) as reader:
                await anext(reader)
        with pytest.raises(S2ServerError) as missing:
            async with s2[BASIN].stream("none", transport=transport).read_session() as reader:
                await anext(reader)
        await stream.append(["a"])
        fake.faults.script([S2Fault("refuse", operation, after=1, status=400, code="decryption_failed")])
        with pytest.raises(S2ServerError) as within:
            async with stream.read_session() as reader:
                await anext(reader)
                await anext(reader)

    assert before.value.tail is not None
    assert before.value.tail.seq_num == 0
    assert (missing.value.status, missing.value.code) == (404, "stream_not_found")
    assert (within.value.status, within.value.code) == (400, "decryption_failed")


@TRANSPORTS
async def test_a_follower_meets_what_another_session_appends(fake: S2Fake, transport: Any) -> None:
    found = []
    async with client(fake) as s2:
        stream = s2[BASIN].stream("s", transport=transport)
        async with stream.read_session(tail_offset=0) as reader, anyio.create_task_group() as group:

            async def follow() -> None:
                async for record in reader.iter_records():
                    found.append(record.body)
                    if record.body == b"9":
                        return

            group.start_soon(follow)
            with anyio.fail_after(20):
                await reader.wait_caught_up()
                async with stream.producer() as producer:
                    for number in range(10):
                        await producer.submit(str(number))

    assert found == [b"%d" % n for n in range(10)]
    assert reader.last_observed_tail is not None


@TRANSPORTS
async def test_a_restarted_server_does_not_end_the_sessions(fake: S2Fake, transport: Any) -> None:
    patient = S2Retry(max_attempts=50, min_base_delay=0.01, max_base_delay=0.02)
    found: list[bytes] = []
    async with client(fake, patient) as s2:
        stream = s2[BASIN].stream("s", transport=transport)
        async with stream.read_session(seq_num=0) as reader, anyio.create_task_group() as group:

            async def follow() -> None:
                async for record in reader.iter_records():
                    found.append(record.body)
                    if record.body == b"last":
                        return

            group.start_soon(follow)
            async with stream.append_session() as session:
                await (await session.submit("first"))
                await fake.stop()
                ticket = await session.submit("between")
                await fake.listen()
                with anyio.fail_after(20):
                    await ticket
                    await session.submit("last")

    assert found == [b"first", b"between", b"last"]


async def test_a_graceful_restart_loses_and_doubles_nothing(fake: S2Fake) -> None:
    """After GOAWAY the session leaves, and waits for the next server: no attempt is counted meanwhile."""
    async with client(fake, STRICT) as s2:
        stream = s2[BASIN].stream("s")
        async with stream.append_session() as session:
            await (await session.submit("a"))
            await fake.stop(graceful=True)
            tickets = [await session.submit("b")]
            await anyio.sleep(0.05)
            tickets.append(await session.submit("c"))
            await fake.cut()
            await fake.listen()
            with anyio.fail_after(20):
                for ticket in tickets:
                    await ticket

    assert bodies(fake) == [b"a", b"b", b"c"]


async def test_advice_moves_both_kinds_of_sessions_to_new_connections(fake: S2Fake) -> None:
    async with client(fake, S2Retry(max_attempts=1)) as s2:
        stream = s2[BASIN].stream("s")
        fake.faults.script([S2Fault("advise", "append_session", after=1), S2Fault("advise", "read_session", after=0)])
        async with stream.append_session() as session:
            for number in range(5):
                await (await session.submit(str(number)))
        async with stream.read_session(count=5) as reader, anyio.create_task_group() as group:
            found = [record.body async for record in reader.iter_records()]
            group.cancel_scope.cancel()

    assert bodies(fake) == [b"0", b"1", b"2", b"3", b"4"]
    assert found == bodies(fake)
    sessions = [request for request in fake.requests if request.operation == "append_session"]
    assert len(sessions) == 2
    assert fake.accepted >= 2


async def test_a_stalled_server_is_left(fake: S2Fake) -> None:
    fake.faults.script([S2Fault("stall", "append_session", after=0), S2Fault("stall", "read_session", after=0)])
    limits = S2Timeouts(request=0.2, heartbeat=0.2)

    async with client(fake, timeout=limits) as s2:
        stream = s2[BASIN].stream("s")
        async with stream.append_session() as session:
            await session.submit("a")
        async with stream.read_session(count=1) as reader:
            await anext(reader)

    assert set(bodies(fake)) == {b"a"}
    assert len(fake.requests) == 4


@TRANSPORTS
async def test_streams_are_made_with_the_configuration_that_was_given(fake: S2Fake, transport: Any) -> None:
    fake.add_basin("creating-1", {"create_stream_on_append": True})

    async with client(fake) as s2:
        config = StreamConfig(retention_policy=3600)
        stream = s2["creating-1"].stream("new", transport=transport)
        async with stream.append_session(stream_config=config) as session:
            await session.submit("a")
        found = await s2["creating-1"].streams.get_config("new")

    assert found.retention_policy == 3600


async def test_cancelled_readers_give_their_window_back(fake: S2Fake) -> None:
    """More than the connection's window is abandoned unread, and the connection still works."""
    async with client(fake) as s2:
        stream = s2[BASIN].stream("s")
        async with stream.append_session() as session:
            for _ in range(4):
                await session.submit([b"x" * 1_000_000])
        for _ in range(8):
            async with stream.read_session(seq_num=0) as reader:
                await anext(reader)
        with anyio.fail_after(20):
            async with stream.read_session(seq_num=0, count=4) as reader:
                assert len([batch async for batch in reader]) >= 1

    assert fake.accepted == 1


async def test_more_sessions_than_one_connection_takes_get_a_second() -> None:
    async with S2Fake(max_streams=5) as fake:
        fake.add_basin(BASIN, streams=["s"])
        async with client(fake) as s2, anyio.create_task_group() as group:
            readers = [s2[BASIN].stream("s").read_session() for _ in range(12)]
            for reader in readers:
                group.start_soon(reader.wait_caught_up)
            with anyio.fail_after(20):
                while not all(reader.is_caught_up for reader in readers):
                    await anyio.sleep(0.01)
            for reader in readers:
                await reader.aclose()

        assert fake.accepted >= 3


async def test_the_whole_under_random_faults_keeps_every_promise() -> None:
    """Every acknowledged batch is there once under `no_side_effects`, in order; definite failures never are."""
    for seed in range(3):
        rates: Any = {"cut_before": 0.05, "cut_after": 0.02, "goaway": 0.05, "refuse": 0.1, "advise": 0.1}
        async with S2Fake(seed=seed, rates=rates) as fake:
            fake.add_basin(BASIN, streams=["s"])
            acked: list[int] = []
            definite: list[int] = []
            async with client(fake, STRICT) as s2:
                stream = s2[BASIN].stream("s")
                number = 0
                while number < 60:
                    tickets: dict[int, Any] = {}
                    try:
                        async with stream.append_session() as session:
                            while number < 60:
                                tickets[number] = await session.submit(str(number))
                                number += 1
                    except S2Error:
                        number += 1
                    for key, ticket in tickets.items():
                        try:
                            await ticket
                            acked.append(key)
                        except S2Error as error:
                            if error.definite:
                                definite.append(key)
            stored = [int(body) for body in bodies(fake)]

        assert stored == sorted(set(stored)), "once, and in order"
        assert set(acked) <= set(stored)
        assert not set(definite) & set(stored)


@TRANSPORTS
async def test_under_random_faults_and_the_policy_all_nothing_is_lost_and_order_is_kept(transport: Any) -> None:
    """Every batch is acknowledged, there at least once, and in the order of first occurrence; readers see just that."""
    endless = S2Retry(max_attempts=1000, min_base_delay=0.001, max_base_delay=0.002)
    rates: Any = {
        **dict.fromkeys(("cut_before", "cut_after", "reset_before", "reset_after", "refuse", "truncate"), 0.04),
        **dict.fromkeys(("goaway", "unprocessed", "advise"), 0.05),
    }
    for seed in range(2):
        async with S2Fake(seed=seed, rates=rates) as fake:
            fake.add_basin(BASIN, streams=["s"])
            async with client(fake, endless) as s2:
                stream = s2[BASIN].stream("s", transport=transport)
                with anyio.fail_after(60):
                    async with stream.producer(max_batch_records=3) as producer:
                        tickets = [await producer.submit(str(number)) for number in range(150)]
                        acks = [await ticket for ticket in tickets]
                    stored = bodies(fake)
                    async with stream.read_session(seq_num=0, count=len(stored)) as reader:
                        read = [record.body async for record in reader.iter_records()]

        assert list(dict.fromkeys(stored)) == [b"%d" % number for number in range(150)]
        assert [stored[ack.seq_num] for ack in acks] == [b"%d" % number for number in range(150)]
        assert read == stored
