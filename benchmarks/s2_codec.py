"""What S2's records cost to encode and decode, beside the official protobuf runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from durable_streams.s2 import _proto
from durable_streams.s2._values import AppendInput, AppendRecord, ReadBatch, SequencedRecord
from tests.s2.codec import judge

from ._harness import Bench, Case, Goal

RECORDS = 1000
REPEATS = 20


def encode(bench: Bench) -> Iterator[Case]:
    """Append inputs of 1000 records, per record; the runtime has to be given each record first, too."""
    del bench
    for size in (100, 1000):
        batch = AppendInput([AppendRecord(bytes(size)) for _ in range(RECORDS)])
        assert _proto.encode_append_input(batch) == judge.append_input(batch)
        yield Case(
            f"encode S2 records of {size} bytes",
            "us",
            {
                "ours": _per_record(lambda batch=batch: _proto.encode_append_input(batch)),
                "protobuf": _per_record(lambda batch=batch: judge.append_input(batch)),
            },
            [Goal("ours", "protobuf", 1 / 3)],
        )


def decode(bench: Bench) -> Iterator[Case]:
    """Read batches of 1000 records, per record, into the same values; by how alike the records are."""
    del bench
    kinds: dict[str, Callable[[int], SequencedRecord]] = {
        "alike": lambda seq: SequencedRecord(seq, 1_750_000_000_000, bytes(100)),
        "of different lengths": lambda seq: SequencedRecord(seq, 1_750_000_000_000, bytes(90 + seq % 20)),
        "of different times": lambda seq: SequencedRecord(seq, 1_750_000_000_000 + seq, bytes(100)),
        "with headers": lambda seq: SequencedRecord(seq, 1_750_000_000_000, bytes(100), ((b"id", b"%d" % seq),)),
        "different in all": lambda seq: SequencedRecord(
            seq, 1_750_000_000_000 + seq, bytes(90 + seq % 20), ((b"id", b"%d" % (7**9 >> seq % 20)),)
        ),
    }
    for name, make in kinds.items():
        batch = ReadBatch(tuple(make(1_000_000 + number) for number in range(RECORDS)))
        data = judge.read_batch(batch)
        assert _proto.decode_read_batch(data) == judge.read_read_batch(data) == batch
        yield Case(
            f"decode S2 records {name}",
            "us",
            {
                "ours": _per_record(lambda data=data: _proto.decode_read_batch(data)),
                "protobuf": _per_record(lambda data=data: judge.read_read_batch(data)),
            },
            [Goal("ours", "protobuf", 0.5 if name == "alike" else 1.0)],
        )


def _per_record(work: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        begin = time.perf_counter()
        for _ in range(REPEATS):
            work()
        return 1e6 * (time.perf_counter() - begin) / REPEATS / RECORDS

    return run
