"""Append and read sessions over s2s (specification: S2 4)."""

import json

import anyio

from durable_streams.s2 import _proto
from durable_streams.s2._frames import Terminal, encode_frame, encode_terminal, frame_head
from durable_streams.s2._values import MAX_FRAME_PAYLOAD_BYTES, AppendInput, AppendRecord, StreamPosition

from .checks_records import fill
from .probe import Bench, Http2, Session
from .registry import check, expect

BOTH = ("1.1", "2")


def batch(*bodies: bytes, match: int | None = None, token: str | None = None) -> AppendInput:
    return AppendInput([AppendRecord(body) for body in bodies], match, token)


def code(terminal: Terminal) -> tuple[int, str]:
    return terminal.status, json.loads(terminal.body)["code"]


# --- Append sessions --------------------------------------------------------------------------------------------------


@check(*BOTH)
async def each_input_is_acknowledged_once_and_in_order(bench: Bench) -> None:
    await bench.create()

    async with bench.append_session() as session:
        await session.send(batch(b"a"), batch(b"b", b"c"), batch(b"d"))
        acks = [await session.ack() for _ in range(3)]
        await session.send(batch(b"e"))
        acks.append(await session.ack())
        await session.wire.finish()
        await session.end()

    assert session.wire.headers["content-type"] == "s2s/proto"
    assert session.wire.headers["cache-control"] == "no-cache, no-transform"
    assert session.wire.headers["x-accel-buffering"] == "no"
    assert [(ack.start.seq_num, ack.end.seq_num) for ack in acks] == [(0, 1), (1, 3), (3, 4), (4, 5)]
    assert all(ack.tail.seq_num >= ack.end.seq_num for ack in acks)
    assert [record["body"] for record in (await bench.read("seq_num=0")).json["records"]] == list("abcde")


@check(*BOTH)
async def a_session_without_input_ends_cleanly(bench: Bench) -> None:
    await bench.create()

    async with bench.append_session() as session:
        await session.wire.finish()
        await session.end()


@check(*BOTH)
async def frames_are_put_together_across_any_split(bench: Bench) -> None:
    await bench.create()
    data = b"".join(encode_frame(_proto.encode_append_input(batch(body))) for body in (b"a", b"b"))

    async with bench.append_session() as session:
        for byte in data:
            await session.wire.send(bytes([byte]))
        acks = [await session.ack(), await session.ack()]

    assert [ack.end.seq_num for ack in acks] == [1, 2]


@check(*BOTH)
async def the_first_failure_comes_after_the_acknowledgements_before_it(bench: Bench) -> None:
    await bench.create()

    async with bench.append_session() as session:
        await session.send(batch(b"a", match=0), batch(b"b", match=0), batch(b"c"))
        ack = await session.ack()
        terminal = await session.terminal()
        await session.end()

    assert ack.end.seq_num == 1
    assert (terminal.status, json.loads(terminal.body)) == (412, {"seq_num_mismatch": 1})
    assert (await bench.tail())["seq_num"] == 1


@check(*BOTH)
async def conditions_see_earlier_inputs_of_the_session(bench: Bench) -> None:
    await bench.create()

    async with bench.append_session() as session:
        fence = AppendInput([AppendRecord.fence("me")], 0, "")
        await session.send(fence, batch(b"a", match=1, token="me"), batch(b"b", token="you"))
        assert [(await session.ack()).end.seq_num for _ in range(2)] == [1, 2]
        terminal = await session.terminal()

    assert json.loads(terminal.body) == {"fencing_token_mismatch": "me"}


@check(*BOTH)
async def the_body_of_a_terminal_frame_is_that_of_the_unary_error(bench: Bench) -> None:
    await bench.create()
    expect(await bench.append({"body": "x"}), 200)

    unary = await bench.append({"body": "x"}, match_seq_num=7)
    async with bench.append_session() as session:
        await session.send(batch(b"x", match=7))
        terminal = await session.terminal()

    assert terminal == Terminal(unary.status, unary.body)


@check(*BOTH)
async def bad_frames_end_a_session_after_earlier_acknowledgements(bench: Bench) -> None:
    await bench.create()
    bomb = encode_frame(bytes(MAX_FRAME_PAYLOAD_BYTES), "gzip")
    cases = [
        b"\0\0\0",
        bytes.fromhex("20000100"),
        bytes.fromhex("0000026000"),
        frame_head(8, 0x20) + b"nonsense",
        bytes.fromhex("000003000aff"),
        encode_terminal(Terminal(500, b"{}")),
        bomb,
    ]
    for number, data in enumerate(cases):
        async with bench.append_session() as session:
            await session.wire.send(encode_frame(_proto.encode_append_input(batch(b"x"))) + data)
            assert (await session.ack()).end.seq_num == number + 1
            assert code(await session.terminal()) == (400, "bad_frame"), data[:20]
            await session.end()


@check(*BOTH)
async def a_frame_that_is_cut_is_a_bad_frame(bench: Bench) -> None:
    await bench.create()

    async with bench.append_session() as session:
        await session.wire.send(encode_frame(_proto.encode_append_input(batch(b"x"))) + b"\0\0\x09")
        await session.wire.finish()
        await session.ack()
        assert code(await session.terminal()) == (400, "bad_frame")


@check(*BOTH)
async def an_input_that_breaks_a_rule_is_invalid(bench: Bench) -> None:
    await bench.create()
    many = b"\x0a\x00" * 1001
    big = 2 * _proto.encode_append_input(batch(bytes(600_000)))

    for payload in (b"", many, big):
        async with bench.append_session() as session:
            await session.wire.send(encode_frame(payload))
            assert code(await session.terminal()) == (422, "invalid")
    assert (await bench.tail())["seq_num"] == 0


@check(*BOTH)
async def compressed_frames_flags_of_any_kind_and_the_largest_batch_are_taken(bench: Bench) -> None:
    await bench.create()
    plain = _proto.encode_append_input(batch(b"x"))

    async with bench.append_session() as session:
        await session.send(batch(b"a" * 5000), compression="zstd")
        await session.send(batch(b"a" * 5000), compression="gzip")
        await session.wire.send(frame_head(len(plain), 0x1F) + plain)
        await session.send(batch(bytes(1_048_576 - 8)))
        acks = [await session.ack() for _ in range(4)]
        await session.wire.finish()
        await session.end()

    assert [ack.end.seq_num for ack in acks] == [1, 2, 3, 4]


@check(*BOTH)
async def a_session_on_an_unknown_stream_is_refused_by_its_status(bench: Bench) -> None:
    fields = {"s2-basin": bench.basin, "content-type": "s2s/proto"}
    with anyio.fail_after(20):
        async with bench.wire("POST", f"{bench.path}/records", fields, None) as wire:
            assert await wire.head() == 404
            assert json.loads(await wire.receive())["code"] == "stream_not_found"


@check("2")
async def the_end_after_a_terminal_frame_is_followed_by_a_reset_without_error(bench: Bench) -> None:
    await bench.create()

    async with bench.append_session() as session:
        await session.send(batch(b"x", match=5))
        await session.terminal()
        await session.end()
        wire = session.wire
        assert isinstance(wire, Http2)
        while not wire.resets:
            await wire._pump()
        assert wire.resets == [0]


# --- Read sessions ----------------------------------------------------------------------------------------------------


@check(*BOTH)
async def a_read_session_catches_up_beats_and_follows(bench: Bench) -> None:
    await fill(bench)

    async with bench.read_session("seq_num=2") as session:
        stored = await session.batch()
        beat = await session.batch()
        expect(await bench.append({"body": "live"}), 200)
        live = await session.batch()

    assert ([record.seq_num for record in stored.records], stored.tail) == ([2, 3, 4, 5], None)
    assert (beat.records, beat.tail) == ((), StreamPosition(6, 60))
    assert [record.body for record in live.records] == [b"live"]
    assert live.tail is not None
    assert live.tail.seq_num == 7


@check(*BOTH)
async def a_read_session_without_a_start_begins_at_the_tail(bench: Bench) -> None:
    await fill(bench)

    async with bench.read_session("") as session:
        beat = await session.batch()

    assert (beat.records, beat.tail) == ((), StreamPosition(6, 60))


@check(*BOTH)
async def a_bounded_read_session_ends_cleanly_without_a_heartbeat(bench: Bench) -> None:
    await fill(bench)

    for query, expected in (
        ("seq_num=0&count=3", [0, 1, 2]),
        ("seq_num=0&bytes=40", [0, 1]),
        ("seq_num=0&until=25", [0, 1]),
        ("seq_num=4&count=99", [4, 5]),
        ("seq_num=4&wait=0", [4, 5]),
    ):
        async with bench.read_session(query) as session:
            found = await session.batch()
            await session.end()
        assert ([record.seq_num for record in found.records], found.tail) == (expected, None)


@check(*BOTH)
async def limits_of_nothing_end_a_read_session_without_a_frame(bench: Bench) -> None:
    await fill(bench)

    for query in ("seq_num=0&count=0", "seq_num=99&bytes=0", "seq_num=6&wait=0"):
        if query.endswith("wait=0"):
            continue
        async with bench.read_session(query) as session:
            await session.end()


@check(*BOTH)
async def a_read_session_waits_as_long_as_it_may(bench: Bench) -> None:
    await fill(bench)

    async with bench.read_session("seq_num=5&count=9&wait=1") as session:
        assert [record.seq_num for record in (await session.batch()).records] == [5]
        assert (await session.batch()).tail == StreamPosition(6, 60)
        await session.end()


@check(*BOTH)
async def a_limit_ends_a_read_session_that_follows(bench: Bench) -> None:
    await fill(bench)

    async with bench.read_session("seq_num=6&count=2&wait=9") as session:
        assert (await session.batch()).records == ()
        expect(await bench.append({"body": "a"}, {"body": "b"}, {"body": "c"}), 200)
        assert [record.body for record in (await session.batch()).records] == [b"a", b"b"]
        await session.end()


@check(*BOTH)
async def a_read_session_is_refused_by_its_status(bench: Bench) -> None:
    await fill(bench)
    fields = {"s2-basin": bench.basin, "content-type": "s2s/proto", "accept": "text/event-stream"}
    for query, status in (("seq_num=6&count=5", 416), ("seq_num=7", 416), ("seq_num=0&timestamp=0", 422)):
        with anyio.fail_after(20):
            async with bench.wire("GET", f"{bench.path}/records?{query}", fields, b"") as wire:
                assert await wire.head() == status, query


@check(*BOTH)
async def read_frames_are_compressed_as_offered(bench: Bench) -> None:
    await bench.create()
    expect(await bench.append({"body": "x" * 5000}), 200)

    async def flag(offer: str) -> int:
        async with bench.read_session("seq_num=0&count=1", {"accept-encoding": offer}) as session:
            raw = b""
            while data := await session.wire.receive():
                raw += data
        [frame] = Session(session.wire).decoder.feed(raw)
        assert len(frame.payload) > 5000  # type: ignore[union-attr]
        return raw[3]

    assert await flag("gzip, zstd") == 0x20
    assert await flag("gzip") == 0x40
    assert await flag("zstd;q=0, gzip") == 0x40
    assert await flag("br") == 0


@check(*BOTH)
async def many_followers_see_the_same_records(bench: Bench) -> None:
    await bench.create()
    seen: dict[int, list[bytes]] = {}

    async def follow(number: int, ready: anyio.Event) -> None:
        async with bench.read_session("seq_num=0&count=20&wait=10") as session:
            assert (await session.batch()).records == ()
            ready.set()
            found: list[bytes] = []
            while len(found) < 20:
                found += [record.body for record in (await session.batch()).records]
            await session.end()
        seen[number] = found

    async with anyio.create_task_group() as tasks:
        events = [anyio.Event() for _ in range(3)]
        for number, event in enumerate(events):
            tasks.start_soon(follow, number, event)
        for event in events:
            await event.wait()
        async with bench.append_session() as session:
            await session.send(*(batch(b"%d" % number) for number in range(20)))
            for _ in range(20):
                await session.ack()

    assert seen == {number: [b"%d" % each for each in range(20)] for number in range(3)}


@check(*BOTH)
async def what_attached_sessions_see_when_their_stream_is_deleted(bench: Bench) -> None:
    await fill(bench)

    async with bench.read_session("seq_num=6") as reader, bench.append_session() as writer:
        assert (await reader.batch()).records == ()
        await writer.send(batch(b"x"))
        await writer.ack()
        assert (await reader.batch()).records[0].body == b"x"
        expect(await bench.call("DELETE", bench.path), 202)
        [trim] = (await reader.batch()).records
        assert (trim.is_command, trim.body) == (True, b"\xff" * 8)
        assert code(await reader.terminal()) == (503, "unavailable")
        await writer.send(batch(b"y"))
        assert code(await writer.terminal()) == (503, "unavailable")
