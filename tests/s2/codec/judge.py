"""The official protobuf runtime, with the messages of package `s2.v1` described to it (specification: S2 3.3)."""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from durable_streams.s2._values import AppendAck, AppendInput, AppendRecord, ReadBatch, SequencedRecord, StreamPosition

_KINDS = {"uint64": 4, "string": 9, "bytes": 12}
_MESSAGES = {
    "StreamPosition": "1 seq_num uint64, 2 timestamp uint64",
    "Header": "1 name bytes, 2 value bytes",
    "AppendRecord": "1 timestamp uint64?, 2 headers Header*, 3 body bytes",
    "AppendInput": "1 records AppendRecord*, 2 match_seq_num uint64?, 3 fencing_token string?",
    "AppendAck": "1 start StreamPosition, 2 end StreamPosition, 3 tail StreamPosition",
    "SequencedRecord": "1 seq_num uint64, 2 timestamp uint64, 3 headers Header*, 4 body bytes",
    "ReadBatch": "1 records SequencedRecord*, 2 tail StreamPosition?",
}


def _describe() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="s2.proto", package="s2.v1", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields.split(", "):
            number, field_name, kind = text.split()
            field = message.field.add(name=field_name, number=int(number), label=3 if kind.endswith("*") else 1)
            base = kind.rstrip("*?")
            if base in _KINDS:
                field.type = _KINDS[base]
            else:
                field.type, field.type_name = 11, f".s2.v1.{base}"
            if kind.endswith("?"):
                field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{field_name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"s2.v1.{name}")) for name in _MESSAGES}


MESSAGES = _describe()


def _headers(message: Any, headers: Any) -> None:
    for name, value in headers:
        message.headers.add(name=name, value=value)


def append_input(batch: AppendInput) -> bytes:
    message = MESSAGES["AppendInput"](match_seq_num=batch.match_seq_num, fencing_token=batch.fencing_token)
    for record in batch.records:
        _headers(message.records.add(timestamp=record.timestamp, body=record.body), record.headers)
    return bytes(message.SerializeToString(deterministic=True))


def read_batch(batch: ReadBatch) -> bytes:
    message = MESSAGES["ReadBatch"]()
    for record in batch.records:
        added = message.records.add(seq_num=record.seq_num, timestamp=record.timestamp, body=record.body)
        _headers(added, record.headers)
    if batch.tail is not None:
        message.tail.SetInParent()
        message.tail.seq_num, message.tail.timestamp = batch.tail.seq_num, batch.tail.timestamp
    return bytes(message.SerializeToString(deterministic=True))


def append_ack(ack: AppendAck) -> bytes:
    message = MESSAGES["AppendAck"]()
    for name in ("start", "end", "tail"):
        position = getattr(message, name)
        position.SetInParent()
        position.seq_num, position.timestamp = getattr(ack, name).seq_num, getattr(ack, name).timestamp
    return bytes(message.SerializeToString(deterministic=True))


def _pairs(message: Any) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((header.name, header.value) for header in message.headers)


def _position(message: Any) -> StreamPosition:
    return StreamPosition(message.seq_num, message.timestamp)


def read_append_input(data: bytes) -> AppendInput:
    message = MESSAGES["AppendInput"].FromString(data)
    records = [
        AppendRecord(record.body, _pairs(record), record.timestamp if record.HasField("timestamp") else None)
        for record in message.records
    ]
    return AppendInput(
        records,
        message.match_seq_num if message.HasField("match_seq_num") else None,
        message.fencing_token if message.HasField("fencing_token") else None,
    )


def read_read_batch(data: bytes) -> ReadBatch:
    message = MESSAGES["ReadBatch"].FromString(data)
    records = [SequencedRecord(each.seq_num, each.timestamp, each.body, _pairs(each)) for each in message.records]
    return ReadBatch(tuple(records), _position(message.tail) if message.HasField("tail") else None)


def read_append_ack(data: bytes) -> AppendAck:
    message = MESSAGES["AppendAck"].FromString(data)
    return AppendAck(_position(message.start), _position(message.end), _position(message.tail))
