"""What is kept comes back."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.server import MemoryStore
from durable_streams.server.subscriptions.model import PULL_WAKE, WEBHOOK, Config, Link, State
from durable_streams.server.subscriptions.records import MemoryRecords, Record, decode_record, encode_record

from .store_checks import check_subscription_store

TEXTS = st.none() | st.text()
TIMES = st.none() | st.floats(0, 1e12)
CONFIGS = st.builds(
    Config,
    st.sampled_from([WEBHOOK, PULL_WAKE]),
    TEXTS,
    st.lists(st.text()).map(tuple),
    TEXTS,
    TEXTS,
    st.integers(1000, 600_000),
    TEXTS,
)
STATES = st.builds(State, st.integers(0), st.text(), TEXTS, TIMES, TIMES, st.integers(0))
RECORD = Record("/v1/stream", "s1", "life-1", Config(PULL_WAKE, "a/*", wake_stream="w"), 5.0, "http://s.example")


@given(st.builds(Record, st.text(), st.text(), st.text(), CONFIGS, st.floats(0, 1e12), st.text(), STATES))
def test_a_record_survives_as_text(record: Record) -> None:
    text = encode_record(record)

    assert decode_record(text) == record
    assert decode_record(text).config.digest == record.config.digest
    assert text.isascii()


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "1", '{"config": 1, "state": {}}', '{"config": {}, "state": {}}']
)
def test_a_text_that_is_no_record_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a subscription|Expecting value"):
        decode_record(text)


@pytest.mark.anyio
async def test_links_are_changed_one_by_one() -> None:
    records = MemoryRecords()
    await records.save_subscription(RECORD, {"a": Link(1), "b": Link(2)})
    await records.save_subscription(RECORD, {"a": None, "c": Link(3), "absent": None})

    assert await records.load_subscriptions() == [(RECORD, {"b": Link(2), "c": Link(3)})]


@pytest.mark.anyio
async def test_a_new_subscription_of_an_old_id_inherits_nothing() -> None:
    records = MemoryRecords()
    await records.save_subscription(RECORD, {"a": Link(1)})
    successor = replace(RECORD, incarnation="life-2", created_at=6.0)
    await records.save_subscription(successor, {"b": Link(2)})

    assert await records.load_subscriptions() == [(successor, {"b": Link(2)})]
    await records.remove_subscription("/v1/stream/__ds/subscriptions/s1")
    await records.remove_subscription("/v1/stream/__ds/subscriptions/s1")
    assert await records.load_subscriptions() == []


@pytest.mark.anyio
async def test_a_secret_is_kept_once() -> None:
    records = MemoryRecords()

    assert await records.keep_secret("k", b"1") == b"1"
    assert await records.keep_secret("k", b"2") == b"1"


@pytest.mark.anyio
async def test_the_memory_store_keeps_its_contract() -> None:
    store = MemoryStore()

    await check_subscription_store(lambda: store)
