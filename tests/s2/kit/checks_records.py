"""Unary appends, reads and SSE (specification: S2 1.3, 3, appendix A)."""

import base64
import json
import time
from typing import Any

import anyio

from durable_streams.s2 import _proto
from durable_streams.s2._values import AppendInput, AppendRecord

from .probe import Bench, Reply
from .registry import check, expect, until

U64 = 2**64 - 1
PROTO = {"content-type": "application/protobuf", "accept": "application/protobuf"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def command(name: bytes, body: bytes) -> dict[str, Any]:
    return {"headers": [["", b64(name)]], "body": b64(body)}


BASE64 = {"s2-format": "base64"}


# --- Appends ----------------------------------------------------------------------------------------------------------


@check("1.1", "2")
async def the_worked_example_of_an_append_holds(bench: Bench) -> None:
    await bench.create()
    body = {
        "records": [{"headers": [["aw==", "dg=="]], "body": "aGk="}, {"body": "AAE="}],
        "match_seq_num": 0,
        "fencing_token": "",
    }

    first = await bench.call("POST", f"{bench.path}/records", body, headers=BASE64)
    again = await bench.call("POST", f"{bench.path}/records", body, headers=BASE64)
    read = await bench.read("seq_num=0")

    ack = expect(first, 200).json
    assert (ack["start"]["seq_num"], ack["end"]["seq_num"], ack["tail"]["seq_num"]) == (0, 2, 2)
    assert ack["end"] == ack["tail"] == await bench.tail()
    assert (again.status, again.json) == (412, {"seq_num_mismatch": 2})
    timestamp = ack["start"]["timestamp"]
    assert read.json == {
        "records": [
            {"seq_num": 0, "timestamp": timestamp, "headers": [["k", "v"]], "body": "hi"},
            {"seq_num": 1, "timestamp": timestamp, "body": "\x00\x01"},
        ]
    }


@check()
async def a_new_stream_has_the_tail_0(bench: Bench) -> None:
    await bench.create()

    assert await bench.tail() == {"seq_num": 0, "timestamp": 0}


@check("1.1", "2")
async def protobuf_goes_both_ways(bench: Bench) -> None:
    await bench.create()
    batch = AppendInput(
        [AppendRecord(b"\xff\x00", [(b"\xfe", b""), (b"d", b"1"), (b"d", b"2")]), AppendRecord()], 0, ""
    )

    reply = await bench.call("POST", f"{bench.path}/records", _proto.encode_append_input(batch), headers=PROTO)
    read = await bench.read("seq_num=0", headers={"accept": "application/protobuf, application/json"})
    second = await bench.read("seq_num=0", headers={"accept": "application/json, application/protobuf"})

    ack = _proto.decode_append_ack(expect(reply, 200).body)
    assert (ack.start.seq_num, ack.end.seq_num) == (0, 2)
    assert read.headers["content-type"] in ("application/protobuf", "application/x-protobuf")
    records = _proto.decode_read_batch(read.body).records
    assert [(record.body, record.headers) for record in records] == [
        (record.body, record.headers) for record in batch.records
    ]
    assert second.headers["content-type"] == "application/json"
    assert second.json["records"][0]["body"] == "\ufffd\x00"


@check()
async def conditions_are_checked_fencing_first(bench: Bench) -> None:
    await bench.create()
    expect(await bench.append(command(b"fence", b"old"), headers=BASE64), 200)

    both = await bench.append({"body": ""}, match_seq_num=9, fencing_token="other")
    unfenced = await bench.append({"body": ""}, fencing_token="")
    seq = await bench.append({"body": ""}, match_seq_num=0, fencing_token="old")
    free = await bench.append({"body": ""})

    assert (both.status, both.json) == (412, {"fencing_token_mismatch": "old"})
    assert (unfenced.status, unfenced.json) == (412, {"fencing_token_mismatch": "old"})
    assert (seq.status, seq.json) == (412, {"seq_num_mismatch": 1})
    expect(free, 200)


@check()
async def a_fence_holds_for_the_batches_after_it(bench: Bench) -> None:
    await bench.create()

    expect(await bench.append(command(b"fence", b"me"), {"body": "eA=="}, headers=BASE64, fencing_token=""), 200)
    expect(await bench.append({"body": "x"}, fencing_token="me"), 200)
    expect(await bench.append(command(b"fence", b""), headers=BASE64, fencing_token="me"), 200)
    expect(await bench.append({"body": "x"}, fencing_token=""), 200)
    read = (await bench.read("seq_num=0", headers=BASE64)).json["records"]

    assert read[0]["headers"] == [["", "ZmVuY2U="]]
    assert len(read) == 5


@check()
async def a_trim_removes_records_and_keeps_the_tail(bench: Bench) -> None:
    await bench.create()
    expect(await bench.append(*({"body": str(number)} for number in range(5))), 200)

    expect(await bench.append(command(b"trim", (3).to_bytes(8, "big")), headers=BASE64), 200)

    async def first() -> int:
        return int((await bench.read("seq_num=0")).json["records"][0]["seq_num"])

    async def trimmed() -> bool:
        return await first() == 3

    await until(trimmed)
    assert (await bench.tail())["seq_num"] == 6
    expect(await bench.append(command(b"trim", (1).to_bytes(8, "big")), headers=BASE64), 200)
    assert await first() == 3


@check()
async def everything_can_be_trimmed(bench: Bench) -> None:
    await bench.create()
    expect(await bench.append(command(b"trim", U64.to_bytes(8, "big")), headers=BASE64), 200)

    async def empty() -> bool:
        return not (await bench.read("seq_num=0")).json.get("records", [0])

    await until(empty)
    assert (await bench.tail())["seq_num"] == 1
    expect(await bench.read("timestamp=0"), 416)


@check()
async def malformed_commands_are_refused(bench: Bench) -> None:
    await bench.create()
    wrong = [
        command(b"nope", b""),
        command(b"trim", b"\0" * 7),
        command(b"fence", b"x" * 37),
        {"headers": [["", b64(b"fence")], ["YQ==", ""]], "body": ""},
        {"headers": [["YQ==", ""], ["", b64(b"trim")]], "body": b64(b"\0" * 8)},
    ]

    for record in wrong:
        expect(await bench.append(record, headers=BASE64), 422, "invalid")
    assert (await bench.tail())["seq_num"] == 0


@check()
async def batches_are_limited(bench: Bench) -> None:
    await bench.create()

    expect(await bench.append(), 422, "invalid")
    expect(await bench.append(*[{}] * 1001), 422, "invalid")
    expect(await bench.append(*[{}] * 1000), 200)
    expect(await bench.append({"body": "x" * (1_048_576 - 7)}), 422, "invalid")
    expect(await bench.append({"body": "x" * (1_048_576 - 8)}), 200)


@check()
async def bodies_are_limited_after_decoding(bench: Bench) -> None:
    await bench.create()

    expect(await bench.append({"body": "\x01" * 500_000}), 400, "bad_json")
    body = json.dumps({"records": [{"body": "x"}]}).encode()
    fields = {"content-type": "application/json"}
    fits = await bench.call("POST", f"{bench.path}/records", body.ljust(2 << 20), headers=fields)
    over = await bench.call("POST", f"{bench.path}/records", body.ljust((2 << 20) + 1), headers=fields)
    expect(fits, 200)
    expect(over, 400, "bad_json")


@check()
async def malformed_appends_are_told_from_broken_rules(bench: Bench) -> None:
    await bench.create()
    path = f"{bench.path}/records"

    async def raw(body: bytes, **fields: str) -> Reply:
        return await bench.call("POST", path, body, headers={"content-type": "application/json", **fields})

    async def proto(batch: bytes) -> Reply:
        return await bench.call("POST", path, batch, headers=PROTO)

    expect(await raw(b"{"), 400, "bad_json")
    expect(await raw(b'{"records":[{"body":1}]}'), 400, "bad_json")
    expect(await raw(b'{"records":[{"headers":{"a":"b"}}]}'), 400, "bad_json")
    expect(await raw(b'{"records":[{}],"match_seq_num":18446744073709551616}'), 400, "bad_json")
    expect(await raw(b'{"records":[{}],"match_seq_num":-1}'), 400, "bad_json")
    expect(await raw(json.dumps({"records": [{}], "fencing_token": "x" * 37}).encode()), 400, "bad_json")
    expect(await raw(b'{"records":[{"body":"aGk"}]}', **BASE64), 422, "invalid")
    expect(await raw(b'{"records":[{"body":"aGk_"}]}', **BASE64), 422, "invalid")
    expect(await raw(b'{"records":[{"body":"x"}]}', **{"s2-format": "nope"}), 400, "bad_header")
    expect(await bench.call("POST", path, b'{"records":[{}]}'), 400, "bad_json")
    expect(await proto(b"\x0a\x05"), 400, "bad_proto")
    expect(await proto(b"\x0a\x00\x1a\x01\xff"), 400, "bad_proto")
    expect(await proto(b"\x0a\x00\x1a\x25" + b"x" * 37), 422, "invalid")
    expect(await proto(b""), 422, "invalid")
    expect(await proto(b"\x0a\x00\x3a\x01x"), 200)  # an unknown field
    expect(await raw(b'{"records":[{"more":1}],"unknown":2}'), 200)


@check()
async def the_aliases_of_formats_are_taken(bench: Bench) -> None:
    await bench.create()

    expect(await bench.append({"body": "aGk="}, headers={"s2-format": "json-binsafe"}), 200)
    expect(await bench.append({"body": "hi"}, headers={"s2-format": "json"}), 200)

    raw = (await bench.read("seq_num=0", headers={"s2-format": "json"})).json["records"]
    assert [record["body"] for record in raw] == ["hi", "hi"]
    coded = (await bench.read("seq_num=0", headers={"s2-format": "json-binsafe"})).json["records"]
    assert [record["body"] for record in coded] == ["aGk=", "aGk="]


# --- Timestamps -------------------------------------------------------------------------------------------------------


async def stamps(bench: Bench) -> list[int]:
    return [record["timestamp"] for record in (await bench.read("seq_num=0")).json["records"]]


@check()
async def timestamps_of_the_client_are_taken_but_never_decrease_nor_lie_ahead(bench: Bench) -> None:
    await bench.create()
    ahead = U64

    expect(await bench.append({"timestamp": 0}, {"timestamp": 100}, {"timestamp": 50}, {"timestamp": ahead}, {}), 200)

    found = await stamps(bench)
    assert found[:3] == [0, 100, 100]
    assert 1_600_000_000_000 < found[3] <= time.time() * 1000 + 60_000
    assert found == sorted(found)


@check()
async def uncapped_timestamps_may_lie_ahead(bench: Bench) -> None:
    await bench.create({"timestamping": {"uncapped": True}})

    expect(await bench.append({"timestamp": U64}, {}), 200)

    assert await stamps(bench) == [U64, U64]


@check()
async def arrival_ignores_the_clients_timestamps(bench: Bench) -> None:
    await bench.create({"timestamping": {"mode": "arrival"}})

    expect(await bench.append({"timestamp": 5}, {}), 200)

    assert min(await stamps(bench)) > 1_600_000_000_000


@check()
async def required_timestamps_have_to_be_there(bench: Bench) -> None:
    await bench.create({"timestamping": {"mode": "client-require"}})

    expect(await bench.append({"timestamp": 5}, {}), 422, "invalid")
    expect(await bench.append({"timestamp": 5}, {"timestamp": 6}), 200)
    assert await stamps(bench) == [5, 6]


# --- Reads ------------------------------------------------------------------------------------------------------------


async def fill(bench: Bench) -> None:
    """Six records at 10, 20 ... 60."""
    await bench.create()
    expect(await bench.append(*({"timestamp": 10 * number, "body": "x" * 10} for number in range(1, 7))), 200)


async def numbers(bench: Bench, query: str) -> list[int]:
    reply = expect(await bench.read(query), 200)
    return [record["seq_num"] for record in reply.json["records"]]


@check()
async def reads_begin_where_they_are_told(bench: Bench) -> None:
    await fill(bench)

    assert await numbers(bench, "seq_num=4") == [4, 5]
    assert await numbers(bench, "timestamp=30") == [2, 3, 4, 5]
    assert await numbers(bench, "timestamp=31&count=1") == [3]
    assert await numbers(bench, "tail_offset=2") == [4, 5]
    assert await numbers(bench, "tail_offset=99") == [0, 1, 2, 3, 4, 5]


@check()
async def reads_end_before_their_limits(bench: Bench) -> None:
    await fill(bench)

    assert await numbers(bench, "seq_num=1&count=2") == [1, 2]
    assert await numbers(bench, "seq_num=0&bytes=36") == [0, 1]
    assert await numbers(bench, "seq_num=0&bytes=35") == [0]
    assert await numbers(bench, "seq_num=0&bytes=17") == []
    assert await numbers(bench, "seq_num=0&until=30") == [0, 1]
    assert await numbers(bench, "timestamp=0&until=1") == []
    assert await numbers(bench, "timestamp=20&until=41&count=9&bytes=40") == [1, 2]
    for query in ("seq_num=9&count=0", "seq_num=99&bytes=0", "seq_num=0&count=0", "count=0"):
        assert (await bench.read(query)).json == {"records": []}


@check()
async def nothing_to_read_is_an_error_unless_one_may_wait(bench: Bench) -> None:
    await fill(bench)
    tail = {"tail": {"seq_num": 6, "timestamp": 60}}

    for query in (
        *("", "seq_num=6", "seq_num=7", "seq_num=9&clamp=true", "tail_offset=0"),
        *("timestamp=61", "timestamp=61&clamp=true", "seq_num=7&wait=1", "timestamp=61&wait=1", "seq_num=6&wait=0"),
    ):
        reply = await bench.read(query)
        assert (reply.status, reply.json) == (416, tail), query


@check()
async def read_parameters_are_checked(bench: Bench) -> None:
    await fill(bench)

    for query in ("seq_num=0&timestamp=0", "seq_num=0&tail_offset=1", "timestamp=5&until=5", "timestamp=6&until=5"):
        expect(await bench.read(query), 422, "invalid")
    for query in ("clamp=1&seq_num=0", "seq_num=-1", "seq_num=x", "seq_num=0&count=-1", f"seq_num={U64 + 1}"):
        expect(await bench.read(query), 400, "bad_query")
    expect(await bench.read(f"seq_num=0&wait={2**32}"), 400, "bad_query")
    assert await numbers(bench, "seq_num=5&unknown=1") == [5]


@check()
async def the_first_mistake_of_a_read_is_told(bench: Bench) -> None:
    await fill(bench)
    form, both, unknown = {"s2-format": "nope"}, "seq_num=0&timestamp=0", bench.on("unknown")

    expect(await bench.read("clamp=1", headers=form), 400, "bad_query")
    expect(await bench.read(both, headers=form), 400, "bad_header")
    expect(await bench.read(both, headers={**SSE, "last-event-id": "x"}), 400, "bad_header")
    expect(await unknown.read("seq_num=0", headers=form), 400, "bad_header")
    expect(await unknown.read(both), 422, "invalid")
    expect(await unknown.read("seq_num=0", headers={"s2-encryption-key": "x"}), 404, "stream_not_found")


@check()
async def base64_reads_keep_what_raw_reads_replace(bench: Bench) -> None:
    await bench.create()
    expect(await bench.append({"headers": [["/w==", ""]], "body": "/wA="}, {}, headers=BASE64), 200)

    raw = (await bench.read("seq_num=0")).json["records"]
    coded = (await bench.read("seq_num=0", headers=BASE64)).json["records"]

    assert (raw[0]["headers"], raw[0]["body"]) == ([["\ufffd", ""]], "\ufffd\x00")
    assert (coded[0]["headers"], coded[0]["body"]) == ([["/w==", ""]], "/wA=")
    assert set(raw[1]) == {"seq_num", "timestamp"}


@check()
async def a_unary_read_returns_at_most_1000_records_and_1_mib(bench: Bench) -> None:
    await bench.create()
    for _ in range(2):
        expect(await bench.append(*[{}] * 1000), 200)
    assert await numbers(bench, "seq_num=500&count=5000") == list(range(500, 1500))
    for _ in range(3):
        expect(await bench.append({"body": "x" * 500_000}), 200)
    assert await numbers(bench, "seq_num=2000&bytes=9999999") == [2000, 2001]


@check("1.1", "2")
async def a_unary_read_waits_for_the_first_live_batch(bench: Bench) -> None:
    await fill(bench)
    replies: list[Reply] = []

    async def read() -> None:
        replies.append(await bench.read("seq_num=9&clamp=true&wait=10"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.sleep(0.2)
        expect(await bench.append({"body": "a"}, {"body": "b"}), 200)

    [reply] = replies
    assert [record["body"] for record in expect(reply, 200).json["records"]] == ["a", "b"]
    assert reply.json["tail"]["seq_num"] == 8


@check()
async def a_unary_read_that_waited_in_vain_is_empty(bench: Bench) -> None:
    await fill(bench)

    reply = expect(await bench.read("seq_num=6&wait=1"), 200)

    assert reply.json["records"] == []


# --- SSE --------------------------------------------------------------------------------------------------------------

SSE = {"accept": "text/event-stream"}


@check("1.1", "2")
async def sse_has_the_bytes_of_the_specification(bench: Bench) -> None:
    await bench.create()
    records = [
        {"headers": [["k", "v"]], "body": "hi", "timestamp": 1756720800000},
        {"body": "\x00\x01", "timestamp": 1756720800000},
    ]
    expect(await bench.append(*records), 200)

    reply = expect(await bench.read("seq_num=0&count=2", headers=SSE), 200)

    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["cache-control"] == "no-cache, no-transform"
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.body == (
        b"event: batch\nid: 1,2,24\n"
        b'data: {"records":[{"seq_num":0,"timestamp":1756720800000,"headers":[["k","v"]],"body":"hi"},'
        b'{"seq_num":1,"timestamp":1756720800000,"body":"\\u0000\\u0001"}]}\n\ndata: [DONE]\n\n'
    )


@check()
async def sse_resumes_after_the_last_event_and_keeps_the_limits(bench: Bench) -> None:
    await fill(bench)

    async def read(query: str, event_id: str) -> Reply:
        return await bench.read(query, headers={**SSE, "last-event-id": event_id})

    resumed = await read("seq_num=0&count=4", "1,2,36")
    used_up = await read("seq_num=0&count=2", "1,2,36")

    assert resumed.body.startswith(b"event: batch\nid: 3,4,72\n")
    assert resumed.body.endswith(b"data: [DONE]\n\n")
    assert used_up.body == b"data: [DONE]\n\n"
    for wrong in ("", "1", "1,2", "1,2,3,4", "a,b,c", "-1,0,0"):
        expect(await read("seq_num=0", wrong), 400, "bad_header")
    expect(await read("seq_num=0&timestamp=0", "1,2,36"), 422, "invalid")


@check()
async def sse_refuses_before_it_begins(bench: Bench) -> None:
    await fill(bench)

    assert (await bench.read("seq_num=6&count=1", headers=SSE)).status == 416
    assert (await bench.read("seq_num=7", headers=SSE)).status == 416


@check("1.1", "2")
async def sse_pings_at_the_tail_and_goes_on_live(bench: Bench) -> None:
    await fill(bench)
    fields = {"s2-basin": bench.basin, **SSE}
    with anyio.fail_after(20):
        async with bench.wire("GET", f"{bench.path}/records?seq_num=5", fields, b"") as wire:
            await wire.head()
            seen = b""
            while seen.count(b"\n\n") < 2:
                seen += await wire.receive()
            expect(await bench.append({"body": "live"}), 200)
            while seen.count(b"\n\n") < 3:
                seen += await wire.receive()

    stored, ping, live = seen.split(b"\n\n")[:3]
    assert stored.startswith(b"event: batch\nid: 5,1,18\ndata: ")
    assert ping.startswith(b"event: ping\ndata: ")
    beat = json.loads(ping.partition(b"data: ")[2])
    assert beat["tail"] == {"seq_num": 6, "timestamp": 60}
    assert beat["timestamp"] > 1_600_000_000_000
    assert live.startswith(b"event: batch\nid: 6,2,30\ndata: ")
    assert json.loads(live.partition(b"data: ")[2])["tail"]["seq_num"] == 7
