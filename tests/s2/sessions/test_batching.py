"""Batches of records: limits, conditions, and what becomes of the rest."""

from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from durable_streams.errors import InvalidArgumentError
from durable_streams.s2 import AppendRecord
from durable_streams.s2._batching import Batcher, RecordBatches, batch_records


def sizes(batches: object) -> list[int]:
    return [len(batch.records) for batch in batches]  # type: ignore[attr-defined]


def test_a_batch_is_complete_when_it_has_the_most_records() -> None:
    batches = list(batch_records(map(str, range(7)), max_batch_records=3))

    assert sizes(batches) == [3, 3, 1]
    assert [record.body for batch in batches for record in batch.records] == [b"%d" % n for n in range(7)]


def test_a_record_that_would_overflow_begins_the_next_batch() -> None:
    batches = list(batch_records([b"x" * 8, b"x" * 8, b"x" * 9, b"x"], max_batch_bytes=32))

    assert sizes(batches) == [2, 2]
    assert [batch.metered_bytes for batch in batches] == [32, 26]


def test_one_record_can_complete_two_batches() -> None:
    batcher = Batcher(max_batch_bytes=32)
    batcher.add(b"small")

    assert sizes(batcher.add(b"x" * 24)) == [1, 1]
    assert batcher.flush() is None


def test_a_record_over_the_limit_is_refused_and_changes_nothing() -> None:
    batcher = Batcher(max_batch_bytes=32)
    batcher.add(b"a")

    with pytest.raises(InvalidArgumentError, match="at most 32 metered bytes, got 33"):
        batcher.add(b"x" * 25)
    batch = batcher.flush()

    assert batch is not None
    assert sizes([batch]) == [1]


def test_match_seq_num_counts_on_and_the_token_stays() -> None:
    batches = list(batch_records("abcde", max_batch_records=2, match_seq_num=10, fencing_token="mine"))

    assert [batch.match_seq_num for batch in batches] == [10, 12, 14]
    assert {batch.fencing_token for batch in batches} == {"mine"}


def test_what_came_before_an_error_of_the_source_is_a_batch_first() -> None:
    def source() -> Iterator[str]:
        yield "a"
        yield "b"
        raise LookupError("gone")

    batches = batch_records(source())

    assert sizes([next(batches)]) == [2]
    with pytest.raises(LookupError):
        next(batches)


@pytest.mark.parametrize(
    "bad",
    [{"max_batch_records": 0}, {"max_batch_records": 1001}, {"max_batch_bytes": 7}, {"max_batch_bytes": 2**20 + 1}],
)
def test_limits_out_of_range_are_refused_at_the_call(bad: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        batch_records([], **bad)


def test_something_that_is_no_record_is_refused_after_what_came_before() -> None:
    batches = batch_records(["a", 7])  # type: ignore[list-item]

    assert sizes([next(batches)]) == [1]
    with pytest.raises(TypeError):
        next(batches)


# -- With time -------------------------------------------------------------------------------------------------


async def every(seconds: float, count: int) -> AsyncIterator[str]:
    for number in range(count):
        yield str(number)
        await anyio.sleep(seconds)


@pytest.mark.anyio
@pytest.mark.usefixtures("fake_clock")
async def test_linger_counts_from_the_first_record_of_a_batch() -> None:
    async with RecordBatches(every(0.4, 10), linger=1.0) as batches:
        found = [len(batch.records) async for batch in batches]

    assert found == [3, 3, 3, 1]


@pytest.mark.anyio
@pytest.mark.usefixtures("fake_clock")
async def test_without_linger_only_full_batches_and_the_rest_come() -> None:
    async with RecordBatches(every(100, 7), linger=None, max_batch_records=3) as batches:
        found = [len(batch.records) async for batch in batches]

    assert found == [3, 3, 1]


@pytest.mark.anyio
@pytest.mark.usefixtures("fake_clock")
async def test_a_linger_of_zero_takes_what_is_there() -> None:
    async with RecordBatches(every(1, 3), linger=0) as batches:
        found = [len(batch.records) async for batch in batches]

    assert found == [1, 1, 1]


@pytest.mark.anyio
@pytest.mark.usefixtures("fake_clock")
async def test_the_rest_comes_before_the_error_of_an_async_source() -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"
        raise LookupError("gone")

    found = []
    with pytest.raises(LookupError):
        async with RecordBatches(source()) as batches:
            async for batch in batches:
                found.append(len(batch.records))  # noqa: PERF401  # what came before the error counts

    assert found == [1]


@pytest.mark.anyio
@pytest.mark.usefixtures("fake_clock")
async def test_the_source_runs_at_most_one_complete_batch_ahead() -> None:
    taken = []

    async def source() -> AsyncIterator[str]:
        for number in range(100):
            taken.append(number)
            yield str(number)

    async with RecordBatches(source(), max_batch_records=10) as batches:
        await anext(batches)
        await anyio.sleep(10)
        ahead = len(taken)

    assert ahead <= 40
    assert len(taken) == ahead


@pytest.mark.anyio
@pytest.mark.usefixtures("fake_clock")
async def test_leaving_early_closes_the_source_and_a_cancelled_step_loses_nothing() -> None:
    closed = []

    async def source() -> AsyncIterator[str]:
        try:
            for number in range(10):
                await anyio.sleep(1)
                yield str(number)
        finally:
            closed.append(True)

    async with RecordBatches(source(), linger=None, max_batch_records=2) as batches:
        with anyio.move_on_after(1.5):
            await anext(batches)
        batch = await anext(batches)

    assert [record.body for record in batch.records] == [b"0", b"1"]
    assert closed == [True]


def test_a_record_with_headers_is_metered_with_them() -> None:
    batcher = Batcher(max_batch_bytes=20)

    assert sizes(batcher.add(AppendRecord(b"1234567", ((b"k", b"v"),)))) == []
    assert sizes(batcher.add(b"x")) == [1]
