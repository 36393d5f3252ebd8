"""Example uses of the patterns on S2, checked by mypy and pyright and never run."""

from dataclasses import dataclass
from typing import Any, assert_type

from durable_streams.s2 import Stream
from durable_streams.s2.patterns import (
    JSON,
    DeserializingReadSession,
    MessageAck,
    MessageTicket,
    Serializer,
    SerializingAppendSession,
    chunk_bytes,
    extract_dedupe_seq,
    frame_chunks_to_records,
    inject_dedupe_headers,
    messagepack,
)


@dataclass
class Event:
    name: str


async def a_serializer_carries_the_type(stream: Stream) -> None:
    typed = messagepack(Event)
    assert_type(typed, Serializer[Event])
    async with SerializingAppendSession(stream.append_session(), typed, dedupe_seq=0) as writer:
        assert_type(writer, SerializingAppendSession[Event])
        assert_type(await writer.submit(Event("x")), MessageAck)
        ticket = await writer.write(Event("y"))
        assert_type(ticket, MessageTicket)
        assert_type(await ticket, MessageAck)
        await writer.submit("no event")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with DeserializingReadSession(stream.read_session(), typed) as reader:
        async for event in reader:
            assert_type(event, Event)


async def so_does_a_function(stream: Stream) -> None:
    def serialize(number: int) -> bytes:
        return b"%d" % number

    writer = SerializingAppendSession(stream.append_session(), serialize)
    assert_type(writer, SerializingAppendSession[int])
    reader = DeserializingReadSession(stream.read_session(), int)
    assert_type(await anext(reader), int)


async def json_is_anything(stream: Stream) -> None:
    writer = SerializingAppendSession(stream.append_session(), JSON)
    await writer.write_all([1, "two", {"three": 3}])
    assert_type(await anext(DeserializingReadSession(stream.read_session(), JSON)), Any)


def records_by_hand() -> None:
    records, following = inject_dedupe_headers(frame_chunks_to_records(chunk_bytes(b"hello", 2)), "writer", 0)
    assert_type(following, int)
    assert_type(extract_dedupe_seq(records[0].headers), tuple[str, int] | None)
