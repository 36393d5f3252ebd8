"""Offsets in State Protocol messages (server 7.5): off unless asked for; then each is a place to resume."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.server import MemoryStore, SQLiteStore, Store, split_json
from durable_streams.server.state_offsets import annotate

from .driver import Client, make_client

JSON = "application/json"
CHANGE = {"type": "room", "key": "1", "value": {"headers": {"operation": "x"}}, "headers": {"operation": "insert"}}
CONTROL = {"headers": {"control": "reset", "offset": "of the writer"}}
OTHERS: list[Any] = [
    *(1, "headers", None, [CHANGE], {}, {"headers": 1}, {"headers": []}, {"headers": {"operation": 1}}),
    *({"headers": {"other": "x"}}, {"value": {"headers": {"operation": "insert"}}}),
]


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "streams.db") as store:
        yield store


async def fill(client: Client) -> None:
    await client.put("x", JSON, json.dumps([CHANGE, *OTHERS[:3]]).encode())
    await client.post("x", json.dumps([CONTROL, *OTHERS[3:], CHANGE]).encode(), JSON, stream_closed="true")


def without(message: Any) -> Any:
    """A message without the offset in its headers."""
    if isinstance(message, dict) and isinstance(message.get("headers"), dict):
        return {**message, "headers": {name: value for name, value in message["headers"].items() if name != "offset"}}
    return message


@pytest.mark.anyio
@pytest.mark.parametrize("live", ["", "&live=long-poll", "&live=sse"])
async def test_every_message_of_state_protocol_names_the_place_behind_it(store: Store, live: str) -> None:
    client = make_client(store=store, annotate_state_offsets=True)
    await fill(client)

    async def read(offset: str) -> list[Any]:
        answer = await client.get(f"x?offset={offset}{live}")
        text = answer.text if "sse" not in live else answer.text.partition("data:")[2].partition("\n")[0]
        if "sse" in live and "event: data" not in answer.text:
            return []
        return list(json.loads(text)) if text else []

    everything = await read("-1")

    assert list(map(without, everything)) == list(map(without, [CHANGE, *OTHERS[:3], CONTROL, *OTHERS[3:], CHANGE]))
    places = [
        (number, message["headers"]["offset"])
        for number, message in enumerate(everything)
        if isinstance(message, dict) and isinstance(message.get("headers"), dict) and "offset" in message["headers"]
    ]
    assert [number for number, _ in places] == [0, 4, len(everything) - 1]
    for number, place in places:
        assert await read(place) == everything[number + 1 :]
    assert everything[1:4] == OTHERS[:3]


@pytest.mark.anyio
async def test_it_is_off_unless_asked_for(store: Store) -> None:
    client = make_client(store=store)
    await fill(client)

    assert (await client.get("x?offset=-1")).json() == [CHANGE, *OTHERS[:3], CONTROL, *OTHERS[3:], CHANGE]


@pytest.mark.anyio
async def test_other_streams_and_long_pages_are_left_alone(store: Store) -> None:
    client = make_client(store=store, annotate_state_offsets=True)
    text = json.dumps([CHANGE] * 20_000).encode()
    await client.put("bytes", "application/vnd.x+json", text)
    await client.put("json", JSON, text)

    assert (await client.get("bytes?offset=-1")).body == text
    answer = await client.get("json?offset=-1")
    assert len(answer.body) > 1 << 20
    offsets = [message["headers"]["offset"] for message in answer.json()]
    assert sorted(set(offsets)) == offsets
    assert offsets[-1] == answer.next_offset


def test_what_else_a_message_says_stays_text() -> None:
    message = b'{"key":"\\u00e9","n":12345678901234567890,"x":1.0e5,"headers":{"a":"\\/","operation":"insert"}},'

    assert annotate(message, 7) == (
        b'{"key":"\\u00e9","n":12345678901234567890,"x":1.0e5,'
        b'"headers":{"a":"\\/","operation":"insert","offset":"0000000000000000_%016d"}},' % (7 + len(message))
    )


JSON_VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["headers", "operation", "control", "offset", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(messages=st.lists(JSON_VALUES, min_size=1, max_size=5))
def test_nothing_but_offsets_is_added(messages: list[Any]) -> None:
    stored = split_json(json.dumps(messages).encode())
    data: bytes = stored.data  # type: ignore[union-attr]

    annotated = json.loads(b"[" + annotate(data, 0)[:-1] + b"]")

    for before, after in zip(messages, annotated, strict=True):
        changed = before != after
        assert without(before) == without(after) if changed else True
