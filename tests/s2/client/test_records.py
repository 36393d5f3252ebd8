"""Appending, reading and asking for the tail: the worked exchanges of S2's appendix A, over a real socket."""

import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from durable_streams import InvalidArgumentError
from durable_streams.s2 import (
    S2,
    AppendAck,
    AppendInput,
    AppendRecord,
    BasinConfig,
    BasinReconfiguration,
    FencingTokenMismatchError,
    RangeNotSatisfiableError,
    ReadPage,
    S2ConnectionError,
    S2ProtocolError,
    S2Retry,
    S2ServerError,
    SeqNum,
    SeqNumMismatchError,
    SequencedRecord,
    StreamConfig,
    StreamPosition,
    StreamReconfiguration,
    TailOffset,
    Timestamp,
    Timestamping,
)
from durable_streams.s2._proto import decode_append_input, encode_append_ack, encode_read_batch
from durable_streams.s2._values import ReadBatch
from tests.scripted import DROP, Reply, ScriptedServer

pytestmark = pytest.mark.anyio

TIME = 1756720800000
PROTOBUF = {"content-type": "application/protobuf"}


def position(seq_num: int, timestamp: int = TIME) -> StreamPosition:
    return StreamPosition(seq_num, timestamp)


def acked(start: int, end: int) -> Reply:
    return Reply(headers=PROTOBUF, body=encode_append_ack(AppendAck(position(start), position(end), position(end))))


def batch(*bodies: bytes, start: int = 0, tail: StreamPosition | None = None) -> Reply:
    records = tuple(SequencedRecord(start + n, TIME, body) for n, body in enumerate(bodies))
    return Reply(headers=PROTOBUF, body=encode_read_batch(ReadBatch(records, tail)))


def tail(seq_num: int) -> Reply:
    return Reply(body=json.dumps({"tail": {"seq_num": seq_num, "timestamp": TIME}}).encode())


@asynccontextmanager
async def serving(*replies: Reply, **options: Any) -> AsyncIterator[tuple[ScriptedServer, S2]]:
    options.setdefault("retry", S2Retry(max_attempts=1))
    async with ScriptedServer() as server:
        server.replies(*replies)
        client = S2("t", endpoints=server.url, **options)
        try:
            yield server, client
        finally:
            await client.aclose()


# -- Appendix A ------------------------------------------------------------------------------------------------


async def test_create_a_basin_then_reconfigure_it() -> None:
    created = (
        b'{"name":"my-basin-01","location":null,"created_at":"2026-09-01T10:00:00.292385961Z","deleted_at":null,'
        b'"state":"active"}'
    )
    changed = (
        b'{"default_stream_config":null,"stream_cipher":null,"create_stream_on_append":true,'
        b'"create_stream_on_read":false}'
    )
    async with serving(Reply(201, {"s2-provision-result": "created"}, created), Reply(body=changed)) as (server, s2):
        config = BasinConfig(StreamConfig(retention_policy=86400), create_stream_on_append=False)
        info = await s2.basins.create("my-basin-01", config=config, request_token="0f3c")
        after = await s2.basins.reconfigure(
            "my-basin-01",
            BasinReconfiguration(StreamReconfiguration(retention_policy=None), create_stream_on_append=True),
        )

        create, patch = server.requests
        assert (create.method, create.target) == ("POST", "/v1/basins")
        assert create.headers["authorization"] == "Bearer t"
        assert create.headers["s2-request-token"] == "0f3c"
        assert create.headers["content-type"] == "application/json"
        assert create.body == (
            b'{"basin":"my-basin-01","config":{"default_stream_config":{"retention_policy":{"age":86400}},'
            b'"create_stream_on_append":false}}'
        )
        assert (patch.method, patch.target) == ("PATCH", "/v1/basins/my-basin-01")
        assert patch.body == b'{"default_stream_config":{"retention_policy":null},"create_stream_on_append":true}'
        assert info.provision_result == "created"
        assert after == BasinConfig(create_stream_on_append=True, create_stream_on_read=False)


async def test_ensure_a_stream_whose_name_needs_escaping() -> None:
    info = b'{"name":"a/b c","created_at":"2026-09-01T10:00:00Z","deleted_at":null,"cipher":null}'
    async with serving(Reply(201, {"s2-provision-result": "created"}, info)) as (server, s2):
        await s2.basin("my-basin-01").streams.ensure("a/b c", config=StreamConfig(timestamping=Timestamping("arrival")))

        (request,) = server.requests
        assert (request.method, request.target) == ("PUT", "/v1/streams/a%2Fb%20c")
        assert request.headers["s2-basin"] == "my-basin-01"
        assert request.body == b'{"timestamping":{"mode":"arrival"}}'


async def test_append_in_base64_with_both_conditions() -> None:
    ack = (
        b'{"start":{"seq_num":0,"timestamp":1756720800000},"end":{"seq_num":2,"timestamp":1756720800000},'
        b'"tail":{"seq_num":2,"timestamp":1756720800000}}'
    )
    async with serving(Reply(body=ack), Reply(412, body=b'{"seq_num_mismatch":2}')) as (server, s2):
        stream = s2.basin("my-basin-01").stream("s", encoding="base64")
        records = [AppendRecord(b"hi", [(b"k", b"v")]), AppendRecord(b"\x00\x01")]
        assert await stream.append(records, match_seq_num=0, fencing_token="") == AppendAck(
            position(0), position(2), position(2)
        )
        with pytest.raises(SeqNumMismatchError) as caught:
            await stream.append(records, match_seq_num=0, fencing_token="")

        assert caught.value.expected_seq_num == 2
        first, again = server.requests
        assert (first.method, first.target) == ("POST", "/v1/streams/s/records")
        assert first.headers["s2-format"] == "base64"
        assert first.headers["content-type"] == "application/json"
        assert json.loads(first.body) == {
            "records": [{"headers": [["aw==", "dg=="]], "body": "aGk="}, {"body": "AAE="}],
            "match_seq_num": 0,
            "fencing_token": "",
        }
        assert again.body == first.body


async def test_fence_and_trim_in_base64() -> None:
    ack = json.dumps({name: {"seq_num": n, "timestamp": 0} for name, n in (("start", 0), ("end", 2), ("tail", 2))})
    async with serving(Reply(body=ack.encode())) as (server, s2):
        stream = s2.basin("my-basin-01").stream("s", encoding="base64")
        await stream.append([AppendRecord.fence("tok"), AppendRecord.trim(258)], fencing_token="old")

        assert json.loads(server.requests[0].body) == {
            "records": [
                {"headers": [["", "ZmVuY2U="]], "body": b64encode(b"tok").decode()},
                {"headers": [["", "dHJpbQ=="]], "body": "AAAAAAAAAQI="},
            ],
            "fencing_token": "old",
        }


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ({"seq_num": 0, "count": 1}, "seq_num=0&count=1"),
        ({"start": SeqNum(9), "count": 0}, "seq_num=9&count=0"),
        ({"seq_num": 9, "clamp": True, "wait": 5}, "seq_num=9&wait=5&clamp=true"),
        ({"tail_offset": 1}, "tail_offset=1"),
        ({"start": TailOffset(0)}, "tail_offset=0"),
        ({"start": Timestamp(0), "until": 1}, "timestamp=0&until=1"),
        ({"timestamp": 5, "bytes": 100}, "timestamp=5&bytes=100"),
        ({}, "seq_num=0"),
    ],
)
async def test_a_read_sends_what_it_asks_for(options: dict[str, Any], query: str) -> None:
    async with serving(batch()) as (server, s2):
        page = await s2.basin("my-basin-01").stream("s").read(**options)

        assert page == ReadPage((), None, None)
        assert server.requests[0].target == f"/v1/streams/s/records?{query}"
        assert server.requests[0].headers["accept"] == "application/protobuf"


async def test_a_read_at_the_tail_is_an_error_that_tells_the_tail() -> None:
    async with serving(Reply(416, body=b'{"tail":{"seq_num":2,"timestamp":1756720800000}}')) as (_, s2):
        with pytest.raises(RangeNotSatisfiableError) as caught:
            await s2.basin("my-basin-01").stream("s").read(seq_num=2)

        assert caught.value.tail == position(2)
        assert str(caught.value) == "nothing to read at this position: the tail is at 2"


@pytest.mark.parametrize("encoding", ["base64", "raw"])
async def test_a_read_in_json_gives_the_same_records(encoding: Any) -> None:
    form = (lambda text: b64encode(text.encode()).decode()) if encoding == "base64" else str
    document = {
        "records": [
            {"seq_num": 0, "timestamp": TIME, "headers": [[form("k"), form("v")]], "body": form("hi")},
            {"seq_num": 1, "timestamp": TIME, "body": form("\0\1")},
        ],
        "tail": {"seq_num": 2, "timestamp": TIME},
    }
    async with serving(Reply(body=json.dumps(document).encode())) as (server, s2):
        page = await s2.basin("my-basin-01").stream("s", encoding=encoding).read()

        assert page.records == (
            SequencedRecord(0, TIME, b"hi", ((b"k", b"v"),)),
            SequencedRecord(1, TIME, b"\0\1"),
        )
        assert page.tail == position(2)
        assert page.next_seq_num == 2
        assert server.requests[0].headers["s2-format"] == encoding
        assert server.requests[0].headers["accept"] == "application/json"


# -- Appending -------------------------------------------------------------------------------------------------


async def test_text_bytes_and_records_go_together_in_one_batch() -> None:
    async with serving(acked(0, 4)) as (server, s2):
        ack = (
            await s2.basin("my-basin-01")
            .stream("s")
            .append(["héllo", b"\xff", AppendRecord.text("x", {"foo": "bar"}), AppendRecord(b"y", timestamp=0)])
        )

        assert (ack.start.seq_num, ack.end.seq_num) == (0, 4)
        (request,) = server.requests
        assert request.headers["content-type"] == request.headers["accept"] == "application/protobuf"
        assert decode_append_input(request.body) == AppendInput(
            [
                AppendRecord("héllo".encode()),
                AppendRecord(b"\xff"),
                AppendRecord(b"x", ((b"foo", b"bar"),)),
                AppendRecord(b"y", timestamp=0),
            ]
        )


async def test_a_condition_of_zero_and_an_empty_token_are_sent() -> None:
    async with serving(acked(0, 1), acked(0, 1)) as (server, s2):
        stream = s2.basin("my-basin-01").stream("s")
        await stream.append("x", match_seq_num=0, fencing_token="")
        await stream.append(AppendInput([AppendRecord(b"x")], match_seq_num=0, fencing_token=""))

        for request in server.requests:
            sent = decode_append_input(request.body)
            assert (sent.match_seq_num, sent.fencing_token) == (0, "")


async def test_a_fenced_append_tells_the_token_but_does_not_show_it() -> None:
    async with serving(Reply(412, body=b'{"fencing_token_mismatch":"tok-of-another"}')) as (_, s2):
        with pytest.raises(FencingTokenMismatchError) as caught:
            await s2.basin("my-basin-01").stream("s").append("x", fencing_token="mine")

        assert caught.value.expected_fencing_token == "tok-of-another"
        assert "tok-of-another" not in repr(caught.value) + str(caught.value)


async def test_key_and_stream_configuration_are_sent_where_they_belong() -> None:
    key = bytes(range(32))
    async with serving(acked(0, 1), batch(b"x"), tail(1)) as (server, s2):
        stream = s2.basin("my-basin-01").stream("s", encryption_key=key)
        config = StreamConfig(retention_policy=60)
        await stream.append("x", stream_config=config)
        await stream.read(stream_config=config)
        await stream.check_tail()

        append, read, check = server.requests
        for request in (append, read):
            assert b64decode(request.headers["s2-encryption-key"]) == key
            assert request.headers["s2-stream-config"] == '{"retention_policy":{"age":60}}'
        assert "s2-encryption-key" not in check.headers
        assert "s2-stream-config" not in check.headers
        assert check.target == "/v1/streams/s/records/tail"


async def test_an_acknowledgement_of_another_number_of_records_is_an_error() -> None:
    async with serving(acked(0, 2)) as (_, s2):
        with pytest.raises(S2ProtocolError, match="acknowledged 2 records of 1") as caught:
            await s2.basin("my-basin-01").stream("s").append("x")

        assert not caught.value.definite


async def test_wrong_batches_and_reads_are_refused_before_anything_is_sent() -> None:
    async with serving() as (server, s2):
        stream = s2.basin("my-basin-01").stream("s")
        wrong: list[tuple[type[Exception], Any]] = [
            (InvalidArgumentError, lambda: stream.append([])),
            (InvalidArgumentError, lambda: stream.append(["x"] * 1001)),
            (InvalidArgumentError, lambda: stream.append("x" * (1 << 20))),
            (InvalidArgumentError, lambda: stream.append("x", match_seq_num=-1)),
            (InvalidArgumentError, lambda: stream.append("x", match_seq_num=2**64)),
            (InvalidArgumentError, lambda: stream.append("x", fencing_token="é" * 19)),
            (InvalidArgumentError, lambda: stream.append(AppendInput([AppendRecord()], 5), match_seq_num=5)),
            (InvalidArgumentError, lambda: stream.append("x", read_back=True)),
            (TypeError, lambda: stream.append([5])),
            (TypeError, lambda: stream.append("x", stream_config={})),
            (InvalidArgumentError, lambda: stream.read(seq_num=0, timestamp=0)),
            (InvalidArgumentError, lambda: stream.read(SeqNum(0), tail_offset=0)),
            (InvalidArgumentError, lambda: stream.read(seq_num=-1)),
            (InvalidArgumentError, lambda: stream.read(timestamp=5, until=5)),
            (InvalidArgumentError, lambda: stream.read(wait=2**32)),
            (TypeError, lambda: stream.read(wait=1.5)),
            (TypeError, lambda: stream.read(clamp="yes")),
            (TypeError, lambda: stream.read(5)),
            (InvalidArgumentError, lambda: stream.resolve_append(AppendInput([AppendRecord()]))),
        ]
        for error, call in wrong:
            with pytest.raises(error):
                await call()

        assert server.requests == []


# -- Reading ---------------------------------------------------------------------------------------------------


async def test_command_records_are_left_out_and_the_page_tells_where_to_go_on() -> None:
    records = (
        SequencedRecord(5, TIME, b"tok", ((b"", b"fence"),)),
        SequencedRecord(6, TIME, b"data", ((b"a", b""),)),
        SequencedRecord(7, TIME, bytes(8), ((b"", b"trim"),)),
    )
    answer = Reply(headers=PROTOBUF, body=encode_read_batch(ReadBatch(records)))
    async with serving(answer, answer) as (server, s2):
        stream = s2.basin("my-basin-01").stream("s")

        hidden = await stream.read(seq_num=5, ignore_command_records=True)
        assert [record.seq_num for record in hidden.records] == [6]
        assert hidden.next_seq_num == 8
        assert [record.is_command for record in (await stream.read(seq_num=5)).records] == [True, False, True]
        assert len(server.requests) == 2


# -- Reading back ----------------------------------------------------------------------------------------------

MINE = AppendInput([AppendRecord(b"a"), AppendRecord(b"b", ((b"k", b"v"),))], match_seq_num=7)
STORED = Reply(
    headers=PROTOBUF,
    body=encode_read_batch(
        ReadBatch((SequencedRecord(7, TIME, b"a"), SequencedRecord(8, TIME + 5, b"b", ((b"k", b"v"),))))
    ),
)


async def test_a_lost_acknowledgement_is_found_by_reading_back() -> None:
    async with serving(DROP, tail(12), STORED) as (server, s2):
        ack = await s2.basin("my-basin-01").stream("s").append(MINE, read_back=True)

        assert ack == AppendAck(position(7), position(9, TIME + 5), position(12))
        assert server.requests[2].query == {"seq_num": "7", "count": "2"}


async def test_a_mismatch_that_was_an_own_success_is_found_by_reading_back() -> None:
    mismatch = Reply(412, body=b'{"seq_num_mismatch":9}')
    retry = S2Retry(min_base_delay=0, max_base_delay=0)
    async with serving(DROP, mismatch, tail(9), STORED, retry=retry) as (_, s2):
        ack = await s2.basin("my-basin-01").stream("s").append(MINE, read_back=True)

        assert ack.start.seq_num == 7


async def test_something_else_in_its_place_proves_that_a_batch_was_not_stored() -> None:
    async with serving(DROP, tail(9), batch(b"a", b"c", start=7)) as (_, s2):
        with pytest.raises(S2ConnectionError) as caught:
            await s2.basin("my-basin-01").stream("s").append(MINE, read_back=True)

        assert caught.value.definite


async def test_the_beginning_of_another_batch_proves_it_as_well() -> None:
    async with serving(tail(8), batch(b"a", start=7)) as (_, s2):
        resolution = await s2.basin("my-basin-01").stream("s").resolve_append(MINE)

        assert (resolution.outcome, resolution.ack) == ("not_stored", None)


async def test_nothing_in_its_place_proves_nothing() -> None:
    async with serving(DROP, tail(7)) as (_, s2):
        with pytest.raises(S2ConnectionError, match="may have been applied") as caught:
            await s2.basin("my-basin-01").stream("s").append(MINE, read_back=True)

        assert not caught.value.definite


async def test_what_was_trimmed_proves_nothing() -> None:
    async with serving(tail(20), batch(b"z", start=15), tail(20), batch()) as (_, s2):
        stream = s2.basin("my-basin-01").stream("s")

        assert (await stream.resolve_append(MINE)).outcome == "unknown"
        assert (await stream.resolve_append(MINE)).outcome == "unknown"


async def test_reading_back_goes_on_where_an_answer_was_short() -> None:
    rest = Reply(
        headers=PROTOBUF, body=encode_read_batch(ReadBatch((SequencedRecord(8, TIME, b"b", ((b"k", b"v"),)),)))
    )
    async with serving(tail(9), batch(b"a", start=7), rest) as (server, s2):
        assert (await s2.basin("my-basin-01").stream("s").resolve_append(MINE)).outcome == "stored"

        assert server.requests[2].query == {"seq_num": "8", "count": "1"}


async def test_when_reading_back_fails_the_error_is_that_of_the_append() -> None:
    async with serving(DROP, Reply(500)) as (_, s2):
        with pytest.raises(S2ConnectionError) as caught:
            await s2.basin("my-basin-01").stream("s").append(MINE, read_back=True)

        assert not caught.value.definite
        assert isinstance(caught.value.__cause__, S2ServerError)


async def test_a_definite_failure_is_not_read_back() -> None:
    async with serving(Reply(412, body=b'{"seq_num_mismatch":9}')) as (server, s2):
        with pytest.raises(SeqNumMismatchError):
            await s2.basin("my-basin-01").stream("s").append(MINE, read_back=True)

        assert len(server.requests) == 1
