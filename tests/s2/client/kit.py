"""What any S2 server owes a client's single calls. Runs against the fake and, as interop, against `s2 lite`."""

from collections.abc import Awaitable, Callable
from uuid import uuid4

import anyio
import pytest

from durable_streams.s2 import (
    S2,
    AppendInput,
    AppendRecord,
    BasinConfig,
    BasinReconfiguration,
    FencingTokenMismatchError,
    RangeNotSatisfiableError,
    S2Error,
    S2ServerError,
    SeqNumMismatchError,
    Stream,
    StreamConfig,
    StreamReconfiguration,
    TailOffset,
    Timestamp,
    Timestamping,
    TimestampingReconfiguration,
)

#: A client, and the name of an empty basin of the test's own.
Check = Callable[[S2, str], Awaitable[None]]


def fresh_basin() -> str:
    return f"test-{uuid4().hex[:8]}"


async def code_of(call: Awaitable[object]) -> str:
    """The code of the error that a call ends with."""
    with pytest.raises(S2ServerError) as caught:
        await call
    return caught.value.code


async def new_stream(s2: S2, basin: str, name: str = "s", **config: object) -> Stream:
    await s2.basin(basin).streams.create(name, config=StreamConfig(**config))  # type: ignore[arg-type]
    return s2.basin(basin).stream(name)


# -- Managing --------------------------------------------------------------------------------------------------


async def creating_is_idempotent_by_its_token(s2: S2, basin: str) -> None:
    streams = s2.basin(basin).streams
    config = StreamConfig(retention_policy=60)

    assert (await streams.create("s", config=config, request_token="t1")).provision_result == "created"
    assert (await streams.create("s", config=config, request_token="t1")).provision_result == "noop"
    assert await code_of(streams.create("s", config=config, request_token="t2")) == "resource_already_exists"
    assert await code_of(streams.create("s", config=config)) == "resource_already_exists"

    other = fresh_basin()
    try:
        assert (await s2.basins.create(other, request_token="t1")).provision_result == "created"
        assert (await s2.basins.create(other, request_token="t1")).provision_result == "noop"
        assert await code_of(s2.basins.create(other)) == "resource_already_exists"
    finally:
        await s2.basins.delete(other, ignore_not_found=True)


async def ensuring_replaces_the_whole_configuration(s2: S2, basin: str) -> None:
    streams = s2.basin(basin).streams

    assert (await streams.ensure("s", config=StreamConfig(retention_policy=60))).provision_result == "created"
    assert (await streams.ensure("s", config=StreamConfig(retention_policy=60))).provision_result == "noop"
    assert (await streams.ensure("s")).provision_result == "updated"
    assert (await streams.get_config("s")).retention_policy == 604800

    assert (await s2.basins.ensure(basin, config=BasinConfig(create_stream_on_read=True))).provision_result == "updated"
    assert (await s2.basins.get_config(basin)).create_stream_on_read is True
    await s2.basins.ensure(basin)
    assert (await s2.basins.get_config(basin)).create_stream_on_read is False


async def reconfiguring_has_three_states(s2: S2, basin: str) -> None:
    streams = s2.basin(basin).streams
    config = StreamConfig("standard", "infinite", Timestamping("arrival", uncapped=True), 60)
    await streams.create("s", config=config)

    kept = await streams.reconfigure("s", StreamReconfiguration(delete_on_empty=120))
    assert (kept.storage_class, kept.retention_policy, kept.delete_on_empty) == ("standard", "infinite", 120)
    inner = TimestampingReconfiguration(mode=None)
    partly = await streams.reconfigure("s", StreamReconfiguration(timestamping=inner))
    assert partly.timestamping == Timestamping("client-prefer", uncapped=True)
    cleared = await streams.reconfigure("s", StreamReconfiguration(retention_policy=None, timestamping=None))
    assert cleared.retention_policy == 604800
    assert cleared.timestamping == Timestamping("client-prefer", uncapped=False)
    assert await streams.get_config("s") == cleared

    defaults = StreamReconfiguration(retention_policy=3600)
    changed = await s2.basins.reconfigure(basin, BasinReconfiguration(defaults, stream_cipher="aegis-256"))
    assert changed.default_stream_config == StreamConfig(retention_policy=3600)
    await streams.create("later")
    assert (await streams.get_config("later")).retention_policy == 3600
    back = await s2.basins.reconfigure(
        basin, BasinReconfiguration(StreamReconfiguration(retention_policy=None), stream_cipher=None)
    )
    assert (back.default_stream_config, back.stream_cipher) == (None, None)
    assert [info.cipher async for info in streams.list_all(prefix="later")] == ["aegis-256"]


async def names_of_all_kinds_are_listed_in_order(s2: S2, basin: str) -> None:
    names = ["a/b", "..x", "%", "?q#", " ", "é", "\N{WATER WAVE}", "a", "b&c=d", "x" * 512, "é" * 256, "+"]
    streams = s2.basin(basin).streams
    for name in names:
        assert (await streams.create(name)).name == name
        assert await streams.get_config(name)
    ordered = sorted(names, key=str.encode)

    assert [info.name async for info in streams.list_all(page_size=5)] == ordered
    assert [info.name async for info in streams.list_all(prefix="a")] == ["a", "a/b"]
    assert [info.name async for info in streams.list_all(start_after=ordered[3])] == ordered[4:]
    assert [info.name async for info in streams.list_all(prefix="b", start_after="a")] == ["b&c=d"]
    page = await streams.list(limit=2)
    assert ([info.name for info in page], page.has_more) == (ordered[:2], True)
    await s2.basin(basin).stream("a/b").append("x")
    assert (await s2.basin(basin).stream("a/b").check_tail()).seq_num == 1


async def what_is_deleted_goes(s2: S2, basin: str) -> None:
    streams = s2.basin(basin).streams
    await streams.create("s")
    await streams.delete("s")
    while await code_of(streams.get_config("s")) == "stream_deletion_pending":
        await anyio.sleep(0.02)

    assert await code_of(streams.get_config("s")) == "stream_not_found"
    assert await code_of(streams.delete("s")) == "stream_not_found"
    await streams.delete("s", ignore_not_found=True)
    assert [info.name async for info in streams.list_all()] == []
    assert (await streams.create("s")).provision_result == "created"
    assert (await s2.basin(basin).stream("s").check_tail()).seq_num == 0


async def what_does_not_exist_is_not_found(s2: S2, basin: str) -> None:
    nowhere = s2.basin(fresh_basin())

    assert await code_of(s2.basin(basin).stream("s").append("x")) == "stream_not_found"
    assert await code_of(s2.basin(basin).stream("s").read()) == "stream_not_found"
    assert await code_of(s2.basin(basin).stream("s").check_tail()) == "stream_not_found"
    assert await code_of(nowhere.stream("s").append("x")) == "basin_not_found"
    assert await code_of(nowhere.streams.create("s")) == "basin_not_found"
    assert await code_of(s2.basins.get_config(nowhere.name)) == "basin_not_found"


async def what_lite_has_not_is_not_implemented(s2: S2, basin: str) -> None:
    assert await code_of(s2.access_tokens.list()) == "not_implemented"
    assert await code_of(s2.locations.list()) == "not_implemented"
    assert await code_of(s2.metrics.account("account-ops")) == "not_implemented"


# -- Records ---------------------------------------------------------------------------------------------------

BINARY = [
    AppendRecord(b"\x00\xff", [(b"\xfe", b""), (b"k", b"v"), (b"k", b"v")], timestamp=0),
    AppendRecord(b"", [], timestamp=7),
    AppendRecord("téxt".encode(), timestamp=7),
]


async def records_come_back_as_they_were_in_every_encoding(s2: S2, basin: str) -> None:
    await s2.basin(basin).streams.create("s")
    for number, encoding in enumerate(("protobuf", "base64")):
        stream = s2.basin(basin).stream("s", encoding=encoding)  # type: ignore[arg-type]
        ack = await stream.append(BINARY)
        assert (ack.start.seq_num, ack.end.seq_num, ack.tail.seq_num) == (3 * number, 3 * number + 3, 3 * number + 3)
        for other in ("protobuf", "base64"):
            page = await s2.basin(basin).stream("s", encoding=other).read(seq_num=3 * number)  # type: ignore[arg-type]
            assert [(record.body, record.headers) for record in page.records] == [
                (record.body, record.headers) for record in BINARY
            ]
    text = s2.basin(basin).stream("s", encoding="raw")
    await text.append(AppendRecord.text("naïve", {"a": "b"}))
    (record,) = (await text.read(seq_num=6)).records
    assert (record.body.decode(), record.headers) == ("naïve", ((b"a", b"b"),))


async def conditions_hold(s2: S2, basin: str) -> None:
    stream = await new_stream(s2, basin)

    await stream.append("x", match_seq_num=0, fencing_token="")
    with pytest.raises(SeqNumMismatchError) as mismatch:
        await stream.append("x", match_seq_num=0)
    assert mismatch.value.expected_seq_num == 1
    await stream.append([AppendRecord.fence("é" * 18)], fencing_token="")
    with pytest.raises(FencingTokenMismatchError) as fenced:
        await stream.append("x", fencing_token="")
    assert fenced.value.expected_fencing_token == "é" * 18
    await stream.append([AppendRecord.fence("")], fencing_token="é" * 18)
    await stream.append("x", fencing_token="")

    page = await stream.read(ignore_command_records=True)
    assert [record.seq_num for record in page.records] == [0, 3]
    assert page.next_seq_num == 4


async def trimmed_records_go(s2: S2, basin: str) -> None:
    stream = await new_stream(s2, basin)
    await stream.append(["a", "b", "c"])
    ack = await stream.append([AppendRecord.trim(2)])
    assert ack.end.seq_num == 4
    while (page := await stream.read()).records[0].seq_num < 2:
        await anyio.sleep(0.02)

    assert [record.seq_num for record in page.records] == [2, 3]
    assert (await stream.check_tail()).seq_num == 4


async def the_limits_of_a_batch_are_exact(s2: S2, basin: str) -> None:
    stream = await new_stream(s2, basin)

    await stream.append(b"x" * ((1 << 20) - 8))
    await stream.append([b""] * 1000)
    assert (await stream.check_tail()).seq_num == 1001
    page = await stream.read(seq_num=0)
    assert len(page.records) == 1
    assert len((await stream.read(seq_num=1)).records) == 1000


async def reads_end_where_they_should(s2: S2, basin: str) -> None:
    stream = await new_stream(s2, basin, timestamping=Timestamping(uncapped=True))
    await stream.append([AppendRecord(b"12345", timestamp=time) for time in (10, 20, 30)])

    async def found(**options: object) -> list[int]:
        return [record.seq_num for record in (await stream.read(**options)).records]  # type: ignore[arg-type]

    assert await found() == [0, 1, 2]
    assert await found(seq_num=1) == [1, 2]
    assert await found(start=Timestamp(11)) == [1, 2]
    assert await found(start=TailOffset(1)) == [2]
    assert await found(tail_offset=99) == [0, 1, 2]
    assert await found(count=2) == [0, 1]
    assert await found(count=0) == []
    assert await found(bytes=26) == [0, 1]
    assert await found(bytes=12) == []
    assert await found(until=30) == [0, 1]
    assert await found(seq_num=9, count=0) == []
    assert await found(seq_num=9, clamp=True, wait=1) == []
    for options in ({"seq_num": 3}, {"seq_num": 4}, {"tail_offset": 0}, {"seq_num": 9, "clamp": True}):
        with pytest.raises(RangeNotSatisfiableError) as caught:
            await found(**options)
        assert caught.value.tail is not None
        assert caught.value.tail.seq_num == 3


async def a_read_waits_for_the_next_record(s2: S2, basin: str) -> None:
    stream = await new_stream(s2, basin)
    bodies: list[bytes] = []

    async def wait() -> None:
        page = await stream.read(wait=30)
        bodies.extend(record.body for record in page.records)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(0.05)
        await stream.append("news")

    assert bodies == [b"news"]


async def streams_are_made_by_appending_and_reading(s2: S2, basin: str) -> None:
    await s2.basins.ensure(basin, config=BasinConfig(create_stream_on_append=True, create_stream_on_read=True))
    config = StreamConfig(retention_policy=77)
    made = s2.basin(basin)

    await made.stream("by-append").append("x", stream_config=config)
    with pytest.raises(RangeNotSatisfiableError):
        await made.stream("by-read").read(stream_config=config)
    await made.stream("by-tail").check_tail()

    assert (await made.streams.get_config("by-append")).retention_policy == 77
    assert (await made.streams.get_config("by-read")).retention_policy == 77
    assert (await made.streams.get_config("by-tail")).retention_policy == 604800


async def encrypted_streams_need_their_key(s2: S2, basin: str) -> None:
    await s2.basins.reconfigure(basin, BasinReconfiguration(stream_cipher="aegis-256"))
    info = await s2.basin(basin).streams.create("s")
    assert info.cipher == "aegis-256"
    plain = s2.basin(basin).stream("s")
    keyed = s2.basin(basin).stream("s", encryption_key=bytes(range(32)))
    wrong = s2.basin(basin).stream("s", encryption_key=bytes(32))

    assert await code_of(plain.append("secret")) == "bad_header"
    await keyed.append("secret")
    assert (await keyed.read()).records[0].body == b"secret"
    assert await code_of(plain.read()) == "bad_header"
    assert await code_of(wrong.read()) == "decryption_failed"
    assert (await plain.check_tail()).seq_num == 1


async def an_append_is_found_by_reading_back(s2: S2, basin: str) -> None:
    stream = await new_stream(s2, basin)
    batch = AppendInput([AppendRecord(b"a", [(b"k", b"v")]), AppendRecord(b"b")], match_seq_num=0)
    other = AppendInput([AppendRecord(b"a", [(b"k", b"v")]), AppendRecord(b"c")], match_seq_num=0)

    assert (await stream.resolve_append(batch)).outcome == "unknown"
    ack = await stream.append(batch)
    found = await stream.resolve_append(batch)
    assert (found.outcome, found.ack) == ("stored", ack)
    assert (await stream.resolve_append(other)).outcome == "not_stored"


async def refusals_of_the_server_are_definite(s2: S2, basin: str) -> None:
    stream = await new_stream(s2, basin, timestamping=Timestamping("client-require"))

    with pytest.raises(S2Error) as caught:
        await stream.append("no timestamp")

    assert (caught.value.status, caught.value.code) == (422, "invalid")
    assert caught.value.definite
    assert not caught.value.retryable


CHECKS: list[Check] = [
    creating_is_idempotent_by_its_token,
    ensuring_replaces_the_whole_configuration,
    reconfiguring_has_three_states,
    names_of_all_kinds_are_listed_in_order,
    what_is_deleted_goes,
    what_does_not_exist_is_not_found,
    what_lite_has_not_is_not_implemented,
    records_come_back_as_they_were_in_every_encoding,
    conditions_hold,
    trimmed_records_go,
    the_limits_of_a_batch_are_exact,
    reads_end_where_they_should,
    a_read_waits_for_the_next_record,
    streams_are_made_by_appending_and_reading,
    encrypted_streams_need_their_key,
    an_append_is_found_by_reading_back,
    refusals_of_the_server_are_definite,
]
