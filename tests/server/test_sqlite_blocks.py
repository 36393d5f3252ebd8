"""Blocks: appends cut into rows, and pages found in them, against a search through all places."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.server import Payload
from durable_streams.server.stores import sqlite_blocks
from durable_streams.server.stores.sqlite_blocks import (
    Block,
    Blocks,
    Mode,
    Segment,
    branch,
    is_boundary,
    make_blocks,
    pack,
    page_end,
    unpack,
)

#: Messages of one append, by their length; blocks have room for 16 bytes here.
APPENDS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=8)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_blocks, "BLOCK_BYTES", 16)
        yield


def payloads(appends: list[list[int]], *, json: bool) -> list[Payload]:
    """Appends whose bytes all differ from their neighbours'."""
    made, value = [], 0
    for sizes in appends:
        data = bytes((value + index) % 251 for index in range(sum(sizes)))
        value += len(data)
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        made.append(Payload(data, ends if json else ()))
    return made


def places(appends: list[list[int]], start: int) -> tuple[list[int], list[int]]:
    """Where appends end, and where messages do."""
    append_ends, message_ends = [], []
    for sizes in appends:
        for size in sizes:
            start += size
            message_ends.append(start)
        append_ends.append(start)
    return append_ends, message_ends


@given(APPENDS, st.integers(0, 100), st.booleans())
def test_blocks_are_small_and_have_all_bytes_and_all_places(appends: list[list[int]], start: int, json: bool) -> None:
    given_payloads = payloads(appends, json=json)
    blocks = make_blocks(start, given_payloads)

    assert all(1 <= len(block.data) <= 16 for block in blocks)
    assert b"".join(block.data for block in blocks) == b"".join(payload.data for payload in given_payloads)
    assert [block.start for block in blocks] == [start, *(block.end for block in blocks[:-1])]
    append_ends, message_ends = places(appends, start)
    offsets = range(start, append_ends[-1] + 1)
    found = {offset for offset in offsets for block in blocks if block.last_append_end(offset) == offset}
    assert sorted(found) == append_ends
    if json:
        found = {offset for offset in offsets for block in blocks if block.is_message_end(offset)}
        assert sorted(found) == message_ends


@given(APPENDS)
def test_places_survive_being_stored(appends: list[list[int]]) -> None:
    for block in make_blocks(0, payloads(appends, json=True)):
        for stored in (block.appends, block.messages):
            unpacked = unpack(pack(stored))
            assert (unpacked is None) == (stored is None)
            assert list(unpacked or ()) == list(stored or ())


def test_the_usual_block_stores_no_places() -> None:
    (block,) = make_blocks(7, [Payload(b"12,", [3])])

    assert (block.start, block.end, block.appends, block.messages) == (7, 10, None, None)
    assert block.data == b"12,"
    assert repr(block) == "<Block 7..10>"


@given(APPENDS, st.sampled_from(Mode), st.data())
def test_a_page_ends_at_the_best_place_there_is(appends: list[list[int]], mode: Mode, data: st.DataObject) -> None:
    blocks = make_blocks(0, payloads(appends, json=mode is Mode.JSON))
    append_ends, message_ends = places(appends, 0)
    tail = append_ends[-1]
    starts = [0, *message_ends[:-1]] if mode is Mode.JSON else range(tail)
    offset = data.draw(st.sampled_from(starts), label="offset")
    limit = data.draw(st.integers(offset + 1, max(offset + 1, tail)), label="limit")
    if limit >= tail:
        return
    content = b"".join(block.data for block in blocks)

    end = page_end(Blocks(blocks), mode, offset, limit)

    fitting = [place for place in append_ends if offset < place <= limit]
    if fitting:
        assert end == fitting[-1]
    elif mode is Mode.JSON:
        fitting = [place for place in message_ends if offset < place <= limit]
        assert end == (fitting or [place for place in message_ends if place > limit])[-1 if fitting else 0]
    elif mode is Mode.TEXT:
        fitting = [place for place in range(max(offset + 1, limit - 3), limit + 1) if content[place] & 0xC0 != 0x80]
        assert end == (fitting or [limit])[-1]
    else:
        assert end == limit


@given(APPENDS)
def test_boundaries_are_the_ends_of_messages(appends: list[list[int]]) -> None:
    source = Blocks(make_blocks(0, payloads(appends, json=True)))
    _, message_ends = places(appends, 0)

    assert [offset for offset in range(1, message_ends[-1] + 1) if is_boundary(source, offset)] == message_ends


@given(APPENDS, st.data())
def test_a_fork_sees_whole_appends_and_messages_up_to_where_it_branched_off(
    appends: list[list[int]], data: st.DataObject
) -> None:
    blocks = make_blocks(0, payloads(appends, json=True))
    append_ends, message_ends = places(appends, 0)
    end = data.draw(st.sampled_from(message_ends))
    block = next(block for block in blocks if block.end >= end)

    clipped = block.clip(end)

    assert clipped.end == end
    inside = range(block.start + 1, end + 1)
    kept = [place for place in inside if place in append_ends or place == end]
    assert [place for place in inside if clipped.last_append_end(place) == place] == kept
    assert [place for place in inside if clipped.is_message_end(place)] == [
        place for place in inside if place in message_ends
    ]


def test_a_block_that_ends_before_a_fork_is_not_clipped() -> None:
    block = Block(0, b"whole")

    assert block.clip(6) is block


def test_a_lineage_has_each_ancestors_part_and_nothing_behind_a_branch() -> None:
    root = branch((), 1, 0)
    child = branch(root, 2, 10)
    late = branch(child, 3, 15)
    early = branch(child, 4, 5)

    assert [(each.stream, each.start) for each in root] == [(1, 0)]
    assert child[:-1] == (Segment(1, 0, 10),)
    assert late[:-1] == (Segment(1, 0, 10), Segment(2, 10, 15))
    assert early[:-1] == (Segment(1, 0, 5),)
    assert branch(root, 5, 0)[:-1] == ()
