"""Every fault of the fake server does what its name says, at the point it is asked for."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import hpack
import pytest

from durable_streams.errors import InvalidArgumentError
from durable_streams.s2._frames import FrameDecoder, Terminal
from durable_streams.s2._h2 import frames
from durable_streams.s2._values import AppendInput, AppendRecord
from durable_streams.s2.errors import S2ConnectionError, S2ProtocolError
from durable_streams.testing import S2Fake, S2Fault
from durable_streams.testing._s2.faults import S2BadFrame, bad_frame

from ..kit.probe import GONE, Bench, Http2, StreamResetError

pytestmark = pytest.mark.anyio

BASIN = "fake-basin-1"
VERSIONS = pytest.mark.parametrize("version", ["1.1", "2"])


@pytest.fixture
async def fake() -> AsyncIterator[S2Fake]:
    async with S2Fake() as server:
        server.add_basin(BASIN, streams=["s"])
        yield server


def bench(fake: S2Fake, version: str = "1.1") -> Bench:
    return Bench(fake.url, BASIN, "s", version)


def batch(*bodies: bytes) -> AppendInput:
    return AppendInput([AppendRecord(body) for body in bodies])


def bodies(fake: S2Fake) -> list[bytes]:
    return [record.body for record in fake.records(BASIN, "s")]


# --- Unary calls ------------------------------------------------------------------------------------------------------


@VERSIONS
async def test_refuse_answers_without_acting(fake: S2Fake, version: str) -> None:
    fake.faults.script([S2Fault("refuse", "append", status=429, code="rate_limited", retry_after_ms=250)])

    reply = await bench(fake, version).append({"body": "x"})

    assert reply.refusal == (429, "rate_limited")
    assert reply.headers["retry-after-ms"] == "250"
    assert bodies(fake) == []
    assert (await bench(fake, version).append({"body": "x"})).status == 200


@VERSIONS
async def test_refuse_after_acts_and_answers_with_the_error(fake: S2Fake, version: str) -> None:
    fake.faults.script([S2Fault("refuse_after", "append", status=500, code="other")])

    reply = await bench(fake, version).append({"body": "x"})

    assert reply.refusal == (500, "other")
    assert bodies(fake) == [b"x"]


async def test_a_refusal_can_be_a_page_of_a_proxy(fake: S2Fake) -> None:
    fake.faults.script([S2Fault("refuse", status=502, body=b"<html>bad gateway</html>")])

    reply = await bench(fake).append({"body": "x"})

    assert (reply.status, reply.body, reply.headers["content-type"]) == (502, b"<html>bad gateway</html>", "text/html")


@VERSIONS
@pytest.mark.parametrize(("kind", "stored"), [("cut_before", []), ("cut_after", [b"x"])])
async def test_a_cut_loses_the_answer_before_or_after_acting(
    fake: S2Fake, version: str, kind: Any, stored: list[bytes]
) -> None:
    fake.faults.script([S2Fault(kind, "append")])

    with pytest.raises(GONE):
        await bench(fake, version).append({"body": "x"})
    await fake.wait_open(0)
    assert bodies(fake) == stored
    assert [fault.kind for _, fault in fake.faults.log] == [kind]


@pytest.mark.parametrize(("kind", "stored"), [("reset_before", []), ("reset_after", [b"x"])])
async def test_a_reset_ends_one_stream_with_its_code(fake: S2Fake, kind: Any, stored: list[bytes]) -> None:
    fake.faults.script([S2Fault(kind, "append", reset_code=7)])

    with pytest.raises(StreamResetError, match="7"):
        await bench(fake, "2").append({"body": "x"})
    assert bodies(fake) == stored


async def test_unprocessed_leaves_the_request_out_of_goaway(fake: S2Fake) -> None:
    fake.faults.script([S2Fault("unprocessed", "append")])
    fields = {"s2-basin": BASIN, "content-type": "application/json"}

    async with bench(fake, "2").wire("POST", "/streams/s/records", fields, b'{"records":[{}]}') as wire:
        assert isinstance(wire, Http2)
        with anyio.fail_after(5), pytest.raises(GONE):
            while True:
                await wire._pump()
    assert wire.goaways == [0]
    assert bodies(fake) == []


async def test_goaway_lets_the_request_go_on(fake: S2Fake) -> None:
    fake.faults.script([S2Fault("goaway", "append")])
    fields = {"s2-basin": BASIN, "content-type": "application/json"}

    async with bench(fake, "2").wire("POST", "/streams/s/records", fields, b'{"records":[{"body":"x"}]}') as wire:
        assert isinstance(wire, Http2)
        assert await wire.head() == 200
        assert b'"seq_num":1' in await wire.receive()
    assert wire.goaways == [1]
    assert bodies(fake) == [b"x"]


@VERSIONS
async def test_truncate_cuts_the_body_of_an_answer(fake: S2Fake, version: str) -> None:
    fake.faults.script([S2Fault("truncate", "tail")])

    with pytest.raises(GONE):
        await bench(fake, version).tail()


@VERSIONS
async def test_stall_says_nothing_and_keeps_the_connection(fake: S2Fake, version: str) -> None:
    fake.faults.script([S2Fault("stall", "append")])
    fields = {"s2-basin": BASIN, "content-type": "application/json"}

    async with bench(fake, version).wire("POST", "/streams/s/records", fields, b'{"records":[{"body":"x"}]}') as wire:
        await fake.wait_requests(1, "append")
        with anyio.move_on_after(0.1) as scope:
            await wire.head()
        assert scope.cancelled_caught
        assert fake.open == 1
    await fake.wait_open(0)


async def test_faults_wait_for_their_operation_and_skip_as_told(fake: S2Fake) -> None:
    fake.faults.script([S2Fault("refuse", "tail", skip=1), S2Fault("refuse", "append")])
    here = bench(fake)

    statuses = [
        (await here.append({"body": "x"})).status,
        (await here.append({"body": "x"})).status,
        *[(await here.call("GET", "/streams/s/records/tail")).status for _ in range(3)],
    ]

    assert statuses == [503, 200, 200, 503, 200]
    assert fake.faults.pending == 0


async def test_random_faults_depend_on_the_seed_alone() -> None:
    async def run(seed: int) -> list[int]:
        async with S2Fake(seed=seed, rates={"refuse": 0.5}) as fake:
            fake.add_basin(BASIN, streams=["s"])
            here = Bench(fake.url, BASIN, "s")
            return [(await here.append({"body": "x"})).status for _ in range(12)]

    first, again, other = await run(1), await run(1), await run(2)

    assert first == again
    assert first != other
    assert set(first) == {200, 503}


def test_rates_are_checked() -> None:
    for rates in ({"stall": 0.1}, {"refuse": 1.1}, {"nope": 0}):
        with pytest.raises(InvalidArgumentError):
            S2Fake(rates=rates)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        S2Fault("nope")  # type: ignore[arg-type]


# --- Append sessions --------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize(("kind", "stored"), [("cut_before", [b"a"]), ("cut_after", [b"a", b"b"])])
async def test_a_session_is_cut_around_one_input(fake: S2Fake, version: str, kind: Any, stored: list[bytes]) -> None:
    fake.faults.script([S2Fault(kind, "append_session", after=1)])

    async with bench(fake, version).append_session() as session:
        await session.send(batch(b"a"), batch(b"b"), batch(b"c"))
        assert (await session.ack()).end.seq_num == 1
        with pytest.raises(GONE):
            await session.frame()
    assert bodies(fake) == stored


async def test_a_session_is_reset_around_one_input(fake: S2Fake) -> None:
    fake.faults.script([S2Fault("reset_after", "append_session", after=0, reset_code=2)])

    async with bench(fake, "2").append_session() as session:
        await session.send(batch(b"a"), batch(b"b"))
        with pytest.raises(StreamResetError, match="2"):
            await session.frame()
    assert bodies(fake) == [b"a"]


@VERSIONS
@pytest.mark.parametrize(("kind", "stored"), [("refuse", [b"a"]), ("refuse_after", [b"a", b"b"])])
async def test_a_session_gets_a_terminal_frame_around_one_input(
    fake: S2Fake, version: str, kind: Any, stored: list[bytes]
) -> None:
    fake.faults.script([S2Fault(kind, "append_session", after=1, status=502, code="hot_server")])

    async with bench(fake, version).append_session() as session:
        await session.send(batch(b"a"), batch(b"b"), batch(b"c"))
        assert (await session.ack()).end.seq_num == 1
        assert (await session.terminal()).status == 502
        await session.end()
    assert bodies(fake) == stored


@VERSIONS
async def test_a_session_is_refused_at_its_opening(fake: S2Fake, version: str) -> None:
    fake.faults.script([S2Fault.draining("append_session")])
    fields = {"s2-basin": BASIN, "content-type": "s2s/proto"}

    async with bench(fake, version).wire("POST", "/streams/s/records", fields, None) as wire:
        assert await wire.head() == 503
        assert b"server_draining" in await wire.receive()


@VERSIONS
async def test_acknowledgements_are_delayed(fake: S2Fake, version: str) -> None:
    fake.behaviour.ack_delay = 0.05
    fake.faults.script([S2Fault("delay", "append_session", after=1, delay=0.1)])

    async with bench(fake, version).append_session() as session:
        began = anyio.current_time()
        await session.send(batch(b"a"), batch(b"b"), batch(b"c"))
        times = []
        for _ in range(3):
            await session.ack()
            times.append(anyio.current_time() - began)

    assert times[0] >= 0.05
    assert times[1] >= 0.15
    assert times == sorted(times)


@VERSIONS
async def test_advice_comes_with_the_frame_it_is_asked_for(fake: S2Fake, version: str) -> None:
    fake.faults.script([S2Fault("advise", "append_session", after=1)])

    async with bench(fake, version).append_session() as session:
        await session.send(batch(b"a"), batch(b"b"), batch(b"c"))
        flags = [(await session.frame()).reconnect for _ in range(3)]  # type: ignore[union-attr]

    assert flags == [False, True, False]


@VERSIONS
async def test_a_session_ends_early_or_in_the_middle_of_a_frame(fake: S2Fake, version: str) -> None:
    fake.faults.script([S2Fault("end", "append_session", after=1), S2Fault("truncate", "append_session", after=1)])

    async with bench(fake, version).append_session() as session:
        await session.send(batch(b"a"), batch(b"b"))
        await session.ack()
        await session.end()
    async with bench(fake, version).append_session() as session:
        await session.send(batch(b"c"), batch(b"d"))
        await session.ack()
        with pytest.raises(S2ConnectionError, match="cut"):
            await session.frame()
    assert bodies(fake) == [b"a", b"b", b"c", b"d"]


@VERSIONS
async def test_acknowledgements_can_be_wrong(fake: S2Fake, version: str) -> None:
    fake.faults.script(
        [
            S2Fault("wrong_ack", "append_session", ack="count"),
            S2Fault("wrong_ack", "append_session", after=1, ack="backwards"),
            S2Fault("wrong_ack", "append_session", ack="extra"),
        ]
    )

    async def ends(count: int) -> list[tuple[int, int]]:
        async with bench(fake, version).append_session() as session:
            await session.send(batch(b"a"), batch(b"b"))
            acks = [await session.ack() for _ in range(count)]
        return [(ack.start.seq_num, ack.end.seq_num) for ack in acks]

    assert await ends(2) == [(0, 2), (1, 2)]
    assert await ends(2) == [(2, 3), (2, 3)]
    assert await ends(3) == [(4, 5), (4, 5), (5, 6)]


@VERSIONS
@pytest.mark.parametrize(
    "name",
    [
        *("zero_length", "oversize", "unknown_compression", "bad_zstd", "bad_gzip", "bomb"),
        *("short_terminal", "empty_terminal", "terminal_without_json"),
    ],
)
async def test_bad_frames_are_seen_by_a_reader(fake: S2Fake, version: str, name: S2BadFrame) -> None:
    fake.faults.script([S2Fault("bad_frame", "append_session", after=1, frame=name)])

    async with bench(fake, version).append_session() as session:
        await session.send(batch(b"a"), batch(b"b"))
        await session.ack()
        with pytest.raises(S2ProtocolError):
            await session.frame()
            session.decoder.check()


def test_garbage_is_a_frame_that_never_ends() -> None:
    decoder = FrameDecoder()

    assert decoder.feed(bad_frame("garbage")) == []
    with pytest.raises(S2ConnectionError):
        decoder.finish()


# --- Read sessions ----------------------------------------------------------------------------------------------------


async def fill(fake: S2Fake, count: int = 3) -> None:
    await bench(fake).append(*({"body": str(number)} for number in range(count)))


@VERSIONS
async def test_a_read_session_is_cut_after_so_many_frames(fake: S2Fake, version: str) -> None:
    await fill(fake)
    fake.faults.script([S2Fault("cut_before", "read_session", after=1), S2Fault("cut_after", "read_session", after=1)])

    async with bench(fake, version).read_session("seq_num=0") as session:
        assert len((await session.batch()).records) == 3
        with pytest.raises(GONE):
            await session.frame()
    async with bench(fake, version).read_session("seq_num=0") as session:
        assert len((await session.batch()).records) == 3
        assert (await session.batch()).records == ()
        with pytest.raises(GONE):
            await session.frame()


@VERSIONS
@pytest.mark.parametrize("kind", ["refuse", "end", "truncate"])
async def test_a_read_session_ends_as_it_is_told(fake: S2Fake, version: str, kind: Any) -> None:
    await fill(fake)
    fake.faults.script([S2Fault(kind, "read_session", after=1)])

    async with bench(fake, version).read_session("seq_num=0") as session:
        await session.batch()
        if kind == "truncate":
            with pytest.raises(S2ConnectionError):
                await session.frame()
        else:
            last = await session.frame()
            assert last is None if kind == "end" else isinstance(last, Terminal)


@VERSIONS
@pytest.mark.parametrize(
    ("kind", "last"),
    [("refuse", b"event: error"), ("end", b"event: ping"), ("truncate", b"event: "), ("bad_frame", b"nonsense")],
)
async def test_sse_ends_as_it_is_told(fake: S2Fake, version: str, kind: Any, last: bytes) -> None:
    await fill(fake)
    fake.faults.script([S2Fault(kind, "read_sse", after=2 if kind == "end" else 1)])
    await fake.wait_requests(1)
    fake.behaviour.heartbeat = (0.0, 0.0)

    reply = await bench(fake, version).read("seq_num=0", headers={"accept": "text/event-stream"})

    assert last in reply.body
    assert b"[DONE]" not in reply.body


@VERSIONS
async def test_heartbeats_come_as_often_as_told(fake: S2Fake, version: str) -> None:
    await fill(fake)
    fake.behaviour.heartbeat = (0.01, 0.02)

    async with bench(fake, version).read_session("seq_num=0") as session:
        await session.batch()
        for _ in range(4):
            assert (await session.batch()).records == ()


@VERSIONS
async def test_a_slow_follower_falls_back_to_the_store_and_misses_nothing(fake: S2Fake, version: str) -> None:
    await fill(fake, 1)
    fake.faults.script([S2Fault("delay", "read_session", after=1, delay=0.3)])
    here = bench(fake, version)
    seen: list[bytes] = []

    async with here.read_session("seq_num=0") as session:
        await session.batch()
        async with here.append_session() as writer:
            await writer.send(*(batch(b"%d" % number) for number in range(40)))
            for _ in range(40):
                await writer.ack()
        kinds = []
        while len(seen) < 40:
            found = await session.batch()
            kinds.append((bool(found.records), found.tail is not None))
            seen += [record.body for record in found.records]

    assert seen == [b"%d" % number for number in range(40)]
    assert (True, False) in kinds  # merged, and without a tail


# --- How frames travel ------------------------------------------------------------------------------------------------


@VERSIONS
async def test_bodies_are_sent_in_pieces_with_reserved_bits_and_in_any_compression(fake: S2Fake, version: str) -> None:
    await fill(fake)
    fake.behaviour.piece = 1
    fake.behaviour.reserved_bits = 0x0B
    fake.behaviour.compression = "gzip"
    fake.behaviour.min_compressed = 0

    async with bench(fake, version).append_session() as session:
        await session.send(batch(b"a"), batch(b"b"))
        assert [(await session.ack()).end.seq_num for _ in range(2)] == [4, 5]
    async with bench(fake, version).read_session("seq_num=0&count=2") as session:
        assert len((await session.batch()).records) == 2
        await session.end()

    assert set(session.wire.data_sizes) == {1}


@VERSIONS
async def test_acknowledgements_that_are_due_together_travel_together(fake: S2Fake, version: str) -> None:
    fake.behaviour.ack_delay = 0.05

    async with bench(fake, version).append_session() as session:
        await session.send(*(batch(b"x") for _ in range(10)))
        for _ in range(10):
            await session.ack()
        together = len(session.wire.data_sizes)
    fake.behaviour.coalesce = False
    async with bench(fake, version).append_session() as session:
        await session.send(*(batch(b"x") for _ in range(10)))
        for _ in range(10):
            await session.ack()

    assert together < 10
    assert len(session.wire.data_sizes) == 10


# --- The server as a whole --------------------------------------------------------------------------------------------


@VERSIONS
async def test_a_draining_server_ends_sessions_after_what_it_took(fake: S2Fake, version: str) -> None:
    here = bench(fake, version)

    async with here.append_session() as writer, here.read_session("") as reader:
        await reader.batch()
        await writer.send(batch(b"a"))
        await writer.ack()
        fake.drain()
        assert (await writer.terminal()).body == (await reader_terminal(reader)).body
    assert (await here.append({"body": "x"})).refusal == (503, "server_draining")


async def reader_terminal(session: Any) -> Terminal:
    while not isinstance(frame := await session.frame(), Terminal):
        assert frame is not None
    return frame


async def test_a_graceful_stop_lets_sessions_go_on(fake: S2Fake) -> None:
    here = bench(fake, "2")

    async with here.append_session() as session:
        await session.send(batch(b"a"))
        await session.ack()
        await fake.stop(graceful=True)
        await session.send(batch(b"b"))
        await session.ack()
        with pytest.raises(OSError, match="connect"):
            await here.tail()
        await session.wire.finish()
        await session.end()
        wire = session.wire
        assert isinstance(wire, Http2)
        assert wire.goaways == [2**31 - 1, 1]
    await fake.wait_open(0)
    await fake.listen()
    assert (await here.tail())["seq_num"] == 2


@VERSIONS
async def test_a_stop_cuts_everything_and_data_outlive_it(fake: S2Fake, version: str) -> None:
    here = bench(fake, version)

    async with here.append_session() as session:
        await session.send(batch(b"a"))
        await session.ack()
        await fake.stop()
        with pytest.raises(GONE):
            await session.frame()
    url = fake.url
    await fake.listen()
    assert fake.url == url
    assert (await here.tail())["seq_num"] == 1


async def test_a_client_has_as_many_streams_as_it_is_allowed() -> None:
    async with S2Fake(max_streams=1) as fake:
        fake.add_basin(BASIN, streams=["s"])
        async with Bench(fake.url, BASIN, "s", "2").append_session() as session:
            wire = session.wire
            assert isinstance(wire, Http2)
            fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/health")]
            await wire.stream.send(frames.headers_frames(3, wire.h2.encoder.encode(fields), end_stream=True))
            answer = b""
            while b"\x03\x00\x00\x00\x00\x03\x00\x00\x00\x07" not in answer:  # RST_STREAM 3, REFUSED_STREAM
                answer += await wire.stream.receive()


async def test_windows_shrink_in_the_middle_of_an_answer(fake: S2Fake) -> None:
    await bench(fake).append(*({"body": "x" * 500_000} for _ in range(2)))

    async with bench(fake, "2").read_session("seq_num=0&count=2") as session:
        wire = session.wire
        assert isinstance(wire, Http2)
        wire.h2.update_settings({4: 10})
        await wire._flush()
        wire.h2.increment_flow_control_window(2 << 20, wire.id)
        await wire._flush()
        assert len((await session.batch()).records) == 2


async def test_deleted_streams_stay_pending_if_they_are_kept(fake: S2Fake) -> None:
    fake.behaviour.keep_deleted = True
    here = bench(fake)

    assert (await here.call("DELETE", "/streams/s")).status == 202
    assert (await here.append({})).refusal == (409, "stream_deletion_pending")
    listed = (await here.call("GET", "/streams")).json["streams"]
    assert listed[0]["deleted_at"] is not None
    fake.sweep()
    assert (await here.append({})).refusal == (404, "stream_not_found")


async def test_requests_are_noted(fake: S2Fake) -> None:
    await fill(fake)
    await bench(fake, "2").read("seq_num=0&count=1", headers={"accept": "text/event-stream"})

    first, second = fake.requests
    assert (first.http_version, first.operation, first.status) == ("1.1", "append", 200)
    assert (second.http_version, second.operation, second.status) == ("2", "read_sse", 200)
    assert (second.method, second.path, second.query) == ("GET", "/v1/streams/s/records", "seq_num=0&count=1")
    assert second.headers["s2-basin"] == BASIN
    assert [(request.number, request.connection) for request in fake.requests] == [(1, 1), (2, 2)]
    assert fake.accepted == 2


# --- Clients that break the rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"POST /v1/basins HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        (
            b"POST /v1/streams/s/records HTTP/1.1\r\ns2-basin: fake-basin-1\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\nzz\r\n"
        ),
    ],
)
async def test_what_is_no_http_is_refused(fake: S2Fake, data: bytes) -> None:
    async with await anyio.connect_tcp("127.0.0.1", int(fake.url.rpartition(":")[2])) as stream:
        await stream.send(data)
        assert (await stream.receive()).startswith(b"HTTP/1.1 400")
        with pytest.raises(GONE):
            await stream.receive()
    assert (await bench(fake).tail())["seq_num"] == 0


async def goaway_code(fake: S2Fake, data: bytes) -> int:
    """The code of the GOAWAY that these frames get."""
    async with await anyio.connect_tcp("127.0.0.1", int(fake.url.rpartition(":")[2])) as stream:
        await stream.send(frames.PREFACE + frames.settings_frame({}) + data)
        reader = frames.FrameReader()
        with anyio.fail_after(5):
            while True:
                for frame in reader.feed(await stream.receive()):
                    if isinstance(frame, frames.GoAway):
                        return frame.code


async def test_a_client_that_sends_beyond_its_window_is_told_so() -> None:
    async with S2Fake(window=65_535) as fake:
        fake.add_basin(BASIN, streams=["s"])
        fields = [(":method", "POST"), (":path", "/v1/streams/s/records"), ("s2-basin", BASIN)]
        block = hpack.Encoder().encode([*fields, ("content-type", "s2s/proto")])
        fake.faults.script([S2Fault("stall", "append_session", after=0)])
        first = frames.headers_frames(1, block)
        flood = b"".join(b"".join(frames.data_frames(1, bytes(16_000))) for _ in range(9))

        assert await goaway_code(fake, first + flood) == frames.ErrorCode.FLOW_CONTROL_ERROR


async def test_headers_that_cannot_be_decoded_end_the_connection(fake: S2Fake) -> None:
    assert await goaway_code(fake, frames.headers_frames(1, b"\xff\xff\xff\xff\xff\xff\xff")) == 9
