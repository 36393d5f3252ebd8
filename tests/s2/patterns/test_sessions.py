"""Sessions of messages: over sessions made of lists, and over real ones against a fake server."""

import json
import logging
import pickle
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from durable_streams.errors import BusyResourceError, InvalidArgumentError
from durable_streams.s2 import S2, AppendRecord, ReadBatch, S2ConnectionError, S2Retry, S2SessionClosedError, Stream
from durable_streams.s2.patterns import (
    JSON,
    MAX_CHUNK_BODY_BYTES,
    AppendSessionLike,
    DedupeFilter,
    DeserializingReadSession,
    DroppedFrame,
    FrameSizeError,
    MessageAck,
    MessageFormatError,
    ReadSessionLike,
    Serializer,
    SerializingAppendSession,
    frame_chunks_to_records,
    inject_dedupe_headers,
    messagepack,
)
from durable_streams.testing import S2Fake, S2Fault

from .fakes import FakeAppendSession, FakeReadSession, sequenced

pytestmark = pytest.mark.anyio

BYTES: Serializer[bytes] = Serializer(lambda data: data, lambda data: data)
W = "AAAAAAAAAAAA"


def writing(session: AppendSessionLike, **options: Any) -> SerializingAppendSession[bytes]:
    return SerializingAppendSession(session, BYTES, **options)


def reading(session: ReadSessionLike, **options: Any) -> DeserializingReadSession[bytes]:
    return DeserializingReadSession(session, BYTES, **options)


async def read_all(session: ReadSessionLike, **options: Any) -> list[bytes]:
    return [message async for message in reading(session, **options)]


# -- Writing -----------------------------------------------------------------------------------------------


async def test_a_message_is_durable_when_submit_returns() -> None:
    session = FakeAppendSession()
    writer = writing(session)
    first = await writer.submit(b"hello")
    session.hold = True
    acks: list[MessageAck] = []

    async def submit() -> None:
        acks.append(await writer.submit(b"world"))

    async with anyio.create_task_group() as group:
        group.start_soon(submit)
        await anyio.wait_all_tasks_blocked()
        assert acks == []
        session.release()

    assert [first, *acks] == [MessageAck(0, 1), MessageAck(1, 2)]


async def test_write_returns_when_the_message_is_handed_over_and_its_ticket_waits() -> None:
    session = FakeAppendSession()
    session.hold = True
    writer = writing(session, chunk_size=2)

    ticket = await writer.write(b"hello")
    assert [batch.records for batch in session.inputs] == [tuple(frame_chunks_to_records([b"he", b"ll", b"o"]))]
    session.release()

    assert await ticket == MessageAck(0, 3)
    assert await ticket.wait() == MessageAck(0, 3)
    assert ticket.batches == 1


async def test_the_vector_goes_out_in_one_batch_with_its_condition() -> None:
    session = FakeAppendSession()
    writer = writing(session, chunk_size=2, match_seq_num=7, dedupe_seq=5, writer_id=W, fencing_token="fence")
    await writer.write(b"hello")
    await writer.write(b"x")

    records, _ = inject_dedupe_headers(frame_chunks_to_records([b"he", b"ll", b"o"]), W, 5)
    assert session.inputs[0].records == tuple(records)
    assert [batch.match_seq_num for batch in session.inputs] == [7, 10]
    assert {batch.fencing_token for batch in session.inputs} == {"fence"}
    assert (writer.next_match_seq_num, writer.next_dedupe_seq, writer.writer_id) == (11, 9, W)


@pytest.mark.parametrize(("size", "batches"), [(1_048_477, 1), (1_048_478, 2), (3 << 20, 4)])
async def test_a_message_takes_as_few_batches_as_its_size_needs(size: int, batches: int) -> None:
    session = FakeAppendSession()
    ticket = await writing(session, dedupe_seq=0, match_seq_num=0).write(bytes(size))

    assert ticket.batches == len(session.inputs) == batches
    assert [batch.match_seq_num for batch in session.inputs] == list(range(batches))
    assert await read_all(FakeReadSession(session.records)) == [bytes(size)]


async def test_more_than_a_thousand_chunks_are_more_than_one_batch() -> None:
    session = FakeAppendSession()
    await writing(session, chunk_size=1).submit(bytes(2500))

    assert [len(batch.records) for batch in session.inputs] == [1000, 1000, 500]
    assert await read_all(FakeReadSession(session.records, size=700)) == [bytes(2500)]


async def test_without_dedupe_there_are_no_headers_for_it() -> None:
    session = FakeAppendSession()
    writer = writing(session, chunk_size=1)
    await writer.submit(b"ab")

    assert [[name for name, _ in record.headers] for record in session.records] == [
        [b"_frame_records", b"_frame_bytes"],
        [],
    ]
    assert (writer.writer_id, writer.next_dedupe_seq, writer.next_match_seq_num) == (None, None, None)


async def test_each_writer_has_a_name_of_its_own_of_twelve_characters() -> None:
    names = [writing(FakeAppendSession(), dedupe_seq=0).writer_id for _ in range(20)]

    assert all(name is not None and re.fullmatch(r"[A-Za-z0-9_-]{12}", name) for name in names)
    assert len(set(names)) == 20


async def test_messages_of_several_tasks_do_not_mix() -> None:
    session = FakeAppendSession()
    writer = writing(session, chunk_size=MAX_CHUNK_BODY_BYTES // 2, dedupe_seq=0)
    messages = [bytes([number]) * 1_300_000 for number in range(4)]
    async with anyio.create_task_group() as group:
        for message in messages:
            group.start_soon(writer.submit, message)

    assert len(session.inputs) == 8
    assert sorted(await read_all(FakeReadSession(session.records))) == messages


async def test_a_cancelled_message_leaves_a_part_that_readers_drop() -> None:
    session = FakeAppendSession()
    gate = anyio.Event()
    batches = 0

    async def pause() -> None:
        nonlocal batches
        batches += 1
        if batches == 2:
            await gate.wait()

    session.pause = pause
    writer = writing(session, dedupe_seq=0, match_seq_num=0)
    async with anyio.create_task_group() as group:
        group.start_soon(writer.write, bytes(3 << 20))
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    dropped: list[DroppedFrame] = []
    await writer.submit(b"next")

    assert (writer.next_dedupe_seq, writer.next_match_seq_num) == (2, 2)
    assert await read_all(FakeReadSession(session.records), on_drop=dropped.append) == [b"next"]
    assert [drop.reason for drop in dropped] == ["interrupted"]


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        (b"", InvalidArgumentError, "at least one byte"),
        (b"12345", FrameSizeError, "5 bytes, where 4"),
        ("x", TypeError, "str"),
    ],
)
async def test_a_message_that_cannot_be_sent_changes_nothing(message: Any, error: type[Exception], words: str) -> None:
    session = FakeAppendSession()
    writer = writing(session, max_frame_bytes=4, dedupe_seq=3)

    with pytest.raises(error, match=words):
        await writer.submit(message)
    assert (session.inputs, writer.next_dedupe_seq) == ([], 3)
    await writer.submit(b"1234")


async def test_what_the_serializer_raises_comes_out_unchanged() -> None:
    def serialize(_: object) -> bytes:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await SerializingAppendSession(FakeAppendSession(), serialize).submit(1)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_a_serializer_may_return_any_kind_of_bytes(kind: Callable[[bytes], Any]) -> None:
    session = FakeAppendSession()
    await SerializingAppendSession(session, kind).submit(b"abc")

    assert await read_all(FakeReadSession(session.records)) == [b"abc"]


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 0},
        {"chunk_size": MAX_CHUNK_BODY_BYTES + 1},
        {"chunk_size": MAX_CHUNK_BODY_BYTES, "dedupe_seq": 0, "writer_id": W + "x"},
        {"writer_id": W},
        {"dedupe_seq": -1},
        {"dedupe_seq": 0, "writer_id": ""},
        {"dedupe_seq": 0, "writer_id": "x" * MAX_CHUNK_BODY_BYTES * 2},
        {"max_frame_bytes": 0},
        {"match_seq_num": -1},
        {"fencing_token": "x" * 37},
    ],
)
async def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        writing(FakeAppendSession(), **options)


async def test_a_long_name_takes_its_place_from_the_chunk() -> None:
    session = FakeAppendSession()
    await writing(session, dedupe_seq=0, writer_id="name " * 10).submit(bytes(3_000_000))

    assert max(record.metered_bytes for record in session.records) == 1 << 20
    assert await read_all(FakeReadSession(session.records)) == [bytes(3_000_000)]


async def test_write_all_takes_iterables_of_both_kinds_and_returns_when_all_is_durable() -> None:
    session = FakeAppendSession()
    session.hold = True
    writer = writing(session)

    async def source() -> AsyncIterator[bytes]:
        for message in (b"c", b"d"):
            yield message

    async def write() -> None:
        await writer.write_all([b"a", b"b"])
        await writer.write_all(source())

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        await anyio.wait_all_tasks_blocked()
        assert len(session.records) == 2
        session.release()
        await anyio.wait_all_tasks_blocked()
        assert len(session.records) == 4
        session.release()

    assert await read_all(FakeReadSession(session.records)) == [b"a", b"b", b"c", b"d"]


async def test_a_failure_of_the_session_reaches_who_waits() -> None:
    session = FakeAppendSession()
    session.hold = True
    writer = writing(session)
    await writer.flush()  # nothing was written: nothing to wait for
    ticket = await writer.write(b"x")
    session.release(S2ConnectionError("gone"))

    for wait in (ticket.wait, writer.flush):
        with pytest.raises(S2ConnectionError, match="gone"):
            await wait()


async def test_a_session_that_was_not_started_is_started_and_ended() -> None:
    session = FakeAppendSession(started=False)
    async with writing(session) as writer:
        await writer.submit(b"x")
    with pytest.raises(S2SessionClosedError):
        await writer.write(b"y")

    assert session.calls == ["enter", "exit"]


async def test_a_session_that_was_started_is_closed_after_a_good_end_and_left_alone_after_a_bad_one() -> None:
    good, bad, explicit = FakeAppendSession(), FakeAppendSession(), FakeAppendSession()
    async with writing(good):
        pass
    with pytest.raises(KeyError):
        async with writing(bad):
            raise KeyError
    await writing(explicit).close()

    assert (good.calls, bad.calls, explicit.calls) == (["close"], [], ["close"])


async def test_an_exception_of_the_body_is_passed_to_the_session() -> None:
    session = FakeAppendSession(started=False)
    with pytest.raises(KeyError):
        async with writing(session):
            raise KeyError

    assert session.calls == ["enter", "exit KeyError"]


# -- Reading -----------------------------------------------------------------------------------------------


def stored(*messages: bytes, size: int = 2, dedupe: bool = True) -> list[AppendRecord]:
    records: list[AppendRecord] = []
    for message in messages:
        chunks = [message[start : start + size] for start in range(0, len(message), size)]
        records += frame_chunks_to_records(chunks)
    return inject_dedupe_headers(records, W, 0)[0] if dedupe else records


async def test_duplicates_are_left_out_before_messages_are_put_together() -> None:
    records = stored(b"hello", b"world")
    twice = FakeReadSession([*records[:2], *records[:4], *records[2:]])
    reader = reading(twice)

    assert [message async for message in reader] == [b"hello", b"world"]
    assert (reader.duplicates, reader.dropped) == (4, 0)


async def test_dedupe_can_be_turned_off_or_replaced() -> None:
    records = stored(b"x")

    assert await read_all(FakeReadSession(records * 2), dedupe=False) == [b"x", b"x"]
    assert await read_all(FakeReadSession(records * 2), dedupe=DedupeFilter(max_writers=3)) == [b"x"]


async def test_the_place_to_resume_is_behind_the_last_message_handed_over() -> None:
    records = stored(b"hello", b"wo", b"torn")[:5]
    reader = reading(FakeReadSession(records))
    before = reader.resume_seq_num
    places = [reader.resume_seq_num async for _ in reader]

    assert (before, places) == (None, [3, 4])
    resumed = FakeReadSession(sequenced(stored(b"hello", b"wo", b"torn"))[4:])
    assert await read_all(resumed) == [b"torn"]


async def test_a_later_session_knows_the_duplicates_of_what_an_earlier_one_read() -> None:
    records = sequenced([*stored(b"hello")[:3], *stored(b"hello", b"wo")])
    known = DedupeFilter()
    async with DeserializingReadSession(FakeReadSession(records[:3]), bytes, dedupe=known) as reader:
        assert await anext(reader) == b"hello"
        place = reader.resume_seq_num
    assert place == 3

    later = DeserializingReadSession(FakeReadSession(records[3:]), bytes, dedupe=DedupeFilter(last=known.last))
    assert [message async for message in later] == [b"wo"]
    afresh = DeserializingReadSession(FakeReadSession(records[3:]), bytes)
    assert [message async for message in afresh] == [b"hello", b"wo"]


async def test_a_poison_message_ends_reading_and_closes_the_session() -> None:
    session = FakeReadSession(stored(b"1", b"{", b"3"))
    reader = DeserializingReadSession(session, JSON)

    assert await anext(reader) == 1
    for _ in range(2):
        with pytest.raises(json.JSONDecodeError):
            await anext(reader)
    assert session.closed == 1


async def test_a_poison_message_is_passed_over_when_asked_to() -> None:
    skipped: list[tuple[type[Exception], int]] = []
    bad_frame = AppendRecord(b"x", ((b"_frame_bytes", b"?"), (b"_frame_records", b"?")))
    huge = AppendRecord(b"x", ((b"_frame_bytes", b"\1" * 8), (b"_frame_records", b"\1" * 8)))
    bad_number = AppendRecord(b"x", ((b"_dedupe_seq", b"?"),))
    records = [*stored(b"1", dedupe=False), bad_frame, *stored(b"{", dedupe=False), huge, bad_number]
    reader = DeserializingReadSession(
        FakeReadSession([*records, *stored(b"3", dedupe=False)]),
        JSON,
        on_error="skip",
        on_skip=lambda error, record: skipped.append((type(error), record.seq_num)),
    )

    assert [message async for message in reader] == [1, 3]
    assert skipped == [
        (MessageFormatError, 1),
        (json.JSONDecodeError, 2),
        (FrameSizeError, 3),
        (MessageFormatError, 4),
    ]
    assert reader.skipped == 4


@pytest.mark.parametrize(
    "record",
    [
        AppendRecord(b"x", ((b"_dedupe_seq", b"?"),)),
        AppendRecord(b"x", ((b"_frame_bytes", b"?"),)),
        AppendRecord(b"x", ((b"_frame_bytes", bytes(8)), (b"_frame_records", bytes(8)))),
    ],
)
async def test_a_malformed_record_ends_reading(record: AppendRecord) -> None:
    with pytest.raises((MessageFormatError, FrameSizeError)):
        await read_all(FakeReadSession([record]))


async def test_a_failure_of_the_session_comes_after_what_was_read() -> None:
    reader = reading(FakeReadSession(stored(b"x"), error=S2ConnectionError("gone")))

    assert await anext(reader) == b"x"
    with pytest.raises(S2ConnectionError, match="gone"):
        await anext(reader)


async def test_a_cancelled_wait_loses_nothing() -> None:
    messages = [b"message %d" % number for number in range(20)]
    reader = reading(_Live(stored(*messages)))
    got: list[bytes] = []

    async def read(scope: anyio.CancelScope) -> None:
        with scope:
            got.append(await anext(reader))

    for turns in range(12):
        scope = anyio.CancelScope()
        async with anyio.create_task_group() as group:
            group.start_soon(read, scope)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            scope.cancel()

    assert 0 < len(got) < 20
    assert got + [message async for message in reader] == messages


class _Live:
    """A read session that loses nothing when it is cancelled, as the real one."""

    def __init__(self, records: list[AppendRecord]) -> None:
        self.records = sequenced(records)

    def __aiter__(self) -> "_Live":
        return self

    async def __anext__(self) -> ReadBatch:
        await anyio.lowlevel.checkpoint()
        if not self.records:
            raise StopAsyncIteration
        return ReadBatch((self.records.pop(0),))

    async def aclose(self) -> None:
        self.records.clear()


async def test_two_tasks_cannot_read_at_once() -> None:
    session = FakeReadSession(stored(b"x"))
    session.gate = anyio.Event()
    reader = reading(session)
    async with anyio.create_task_group() as group:
        group.start_soon(anext, reader)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(BusyResourceError):
            await anext(reader)
        session.gate.set()


async def test_a_closed_reader_closes_its_session_and_says_so() -> None:
    session = FakeReadSession(stored(b"a", b"b"))
    async with reading(session) as reader:
        await anext(reader)
    with pytest.raises(S2SessionClosedError):
        await anext(reader)

    assert session.closed == 1


@pytest.mark.parametrize("options", [{"on_error": "ignore"}, {"on_skip": print}, {"max_frame_bytes": 0}])
async def test_options_of_reading_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        reading(FakeReadSession([]), **options)


async def test_what_is_dropped_and_skipped_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "durable_streams.s2.patterns")
    records = [stored(b"torn")[0], *stored(b"{", dedupe=False)]
    session = FakeAppendSession()
    await writing(session).submit(b"hello")
    reader = DeserializingReadSession(FakeReadSession(records), JSON, on_error="skip", dedupe=False)
    assert [message async for message in reader] == []

    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "message handed over bytes=5 batches=1"
    assert lines[1] == "dropped an incomplete message reason=interrupted bytes=2/4 records=1/2"
    assert lines[2].startswith("passed over what cannot be read seq_num=1 error=JSONDecodeError")


# -- Serializers -------------------------------------------------------------------------------------------


@dataclass
class Chat:
    user: str
    text: str


async def test_json_takes_what_orjson_takes_and_reads_plain_values() -> None:
    session = FakeAppendSession()
    await SerializingAppendSession(session, JSON).write_all([Chat("alice", "hällo"), [1, None], "x"])

    assert session.records[0].body == '{"user":"alice","text":"hällo"}'.encode()
    messages = [message async for message in DeserializingReadSession(FakeReadSession(session.records), JSON)]
    assert messages == [{"user": "alice", "text": "hällo"}, [1, None], "x"]


async def test_messagepack_reads_plain_values_or_a_type() -> None:
    session = FakeAppendSession()
    typed = messagepack(Chat)
    await SerializingAppendSession(session, typed).submit(Chat("alice", "hi"))

    assert session.records[0].body == bytes.fromhex("82a475736572a5616c696365a474657874a26869")
    assert await anext(DeserializingReadSession(FakeReadSession(session.records), typed)) == Chat("alice", "hi")
    plain = await anext(DeserializingReadSession(FakeReadSession(session.records), messagepack()))
    assert plain == {"user": "alice", "text": "hi"}


def test_messagepack_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "msgspec", None)

    with pytest.raises(ImportError, match=r"durable-streams-anyio\[messagepack\]"):
        messagepack()


def test_errors_of_the_patterns_can_be_pickled() -> None:
    error = FrameSizeError("too long", size=5, limit=4)
    again = pickle.loads(pickle.dumps(error))

    assert (type(again), str(again), again.size, again.limit, again.code) == (
        FrameSizeError,
        "too long",
        5,
        4,
        "FRAME_SIZE",
    )
    assert str(pickle.loads(pickle.dumps(MessageFormatError("no")))) == "no"


# -- Over real sessions ------------------------------------------------------------------------------------


@asynccontextmanager
async def served(*faults: S2Fault) -> AsyncIterator[tuple[S2Fake, Stream]]:
    with anyio.fail_after(30):
        async with S2Fake() as fake:
            fake.add_basin("basin-01")
            fake.add_stream("basin-01", "messages")
            fake.faults.script(list(faults))
            retry = S2Retry(max_attempts=5, min_base_delay=0.001, max_base_delay=0.001)
            async with S2("token", endpoints=fake.url, retry=retry) as s2:
                yield fake, s2.basin("basin-01").stream("messages")


async def messages_of(stream: Stream) -> list[Any]:
    session = stream.read_session(seq_num=0, count=10_000, ignore_command_records=True)
    async with DeserializingReadSession(session, JSON) as reader:
        return [message async for message in reader]


MESSAGES = [{"n": 0}, {"n": 1, "text": "x" * 2_500_000}, {"n": 2}, {"n": 3, "text": "y" * 1_100_000}, {"n": 4}]


async def test_messages_of_any_size_pass_through_a_server() -> None:
    async with served() as (_, stream):
        async with SerializingAppendSession(stream.append_session(), JSON, dedupe_seq=0) as writer:
            acks = [await writer.submit(message) for message in MESSAGES]

        assert await messages_of(stream) == MESSAGES
        assert [(ack.start, ack.end) for ack in acks] == [(0, 1), (1, 4), (4, 5), (5, 7), (7, 8)]


@pytest.mark.parametrize("after", range(6))
async def test_batches_that_a_retry_stores_twice_are_read_once(after: int) -> None:
    fault = S2Fault("cut_after", "append_session", after=after)
    async with served(fault) as (fake, stream):
        async with SerializingAppendSession(stream.append_session(), JSON, dedupe_seq=0) as writer:
            await writer.write_all(MESSAGES)

        assert await messages_of(stream) == MESSAGES
        assert not fake.faults.pending
