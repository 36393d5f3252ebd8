"""Gathering messages into batches: framing, caps, the buffer's bound, and the hot path that must not forget them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams._core import json_mode
from durable_streams._core.batcher import EXHAUSTED, Batch, Batcher
from durable_streams.errors import AlreadyClosedError, BufferFullError, InvalidArgumentError

from .strategies import relaxed


class Promise:
    """One object per batch is all that is asked of it here."""

    def resolve(self, ack: object) -> None: ...

    def reject(self, error: Exception) -> None: ...


def make(**options: Any) -> Batcher:
    defaults: dict[str, Any] = {
        "json": False,
        "max_batch_bytes": 10,
        "max_batch_items": None,
        "max_buffered_bytes": 1 << 30,
        "max_buffered_messages": None,
    }
    return Batcher(make_promise=Promise, **(defaults | options))


def add_all(batcher: Batcher, bodies: Iterator[Any]) -> object:
    """Add until the iterator has ended or there is no room."""
    while (left := batcher.add_many(bodies)) is not EXHAUSTED:
        if left is not None:
            try:
                batcher.add(left)
            except BufferFullError:
                return left
    return EXHAUSTED


def batches(batcher: Batcher) -> list[list[bytes]]:
    """The items of all batches, the open one last."""
    return [batch.items for batch in [*batcher.sealed, *([batcher.open] if batcher.open else [])]]


def bodies(batcher: Batcher) -> list[bytes]:
    batcher.seal()
    return [batch.framed(json=batcher.json) for batch in batcher.sealed]


# -- Framing and caps --------------------------------------------------------------------------------------


def test_a_byte_batch_is_its_messages_one_after_the_other() -> None:
    batcher = make()
    for body in (b"ab", b"c", b"def"):
        batcher.add(body)

    assert bodies(batcher) == [b"abcdef"]


@pytest.mark.parametrize(("items", "body"), [([b"1"], b"[1]"), ([b"1", b"[2]", b'"x"'], b'[1,[2],"x"]')])
def test_a_json_batch_is_always_one_array(items: list[bytes], body: bytes) -> None:
    batcher = make(json=True, max_batch_bytes=100)
    for item in items:
        batcher.add(item)

    assert bodies(batcher) == [body]


def test_the_body_of_a_batch_is_made_once() -> None:
    batch = Batch(1, 0, Promise())
    batch.items += [b"1", b"2"]

    assert batch.framed(json=True) is batch.framed(json=True)


def test_a_batch_is_sealed_before_it_exceeds_its_size() -> None:
    batcher = make(max_batch_bytes=4)
    for body in (b"abc", b"de", b"f"):
        batcher.add(body)

    assert batches(batcher) == [[b"abc"], [b"de", b"f"]]


def test_the_size_counts_brackets_and_commas() -> None:
    batcher = make(json=True, max_batch_bytes=5)  # [1,2] and not a byte more
    for body in (b"1", b"2", b"3"):
        batcher.add(body)

    assert batches(batcher) == [[b"1", b"2"], [b"3"]]


@pytest.mark.parametrize(("json", "full"), [(False, b"abcd"), (True, b"12"), (False, b"too large"), (True, b"123456")])
def test_a_batch_that_no_message_fits_into_is_sealed_at_once(json: bool, full: bytes) -> None:
    batcher = make(json=json, max_batch_bytes=4)
    batcher.needs_poll = False
    batcher.add(full)

    assert batcher.open is None
    assert [batch.items for batch in batcher.sealed] == [[full]]
    assert batcher.needs_poll


def test_a_message_larger_than_a_batch_goes_alone() -> None:
    batcher = make(max_batch_bytes=4)
    for body in (b"a", b"large one", b"b"):
        batcher.add(body)

    assert batches(batcher) == [[b"a"], [b"large one"], [b"b"]]


def test_a_batch_is_sealed_when_it_has_its_items() -> None:
    batcher = make(max_batch_items=2)
    for number in range(5):
        batcher.add(b"%d" % number)

    assert batches(batcher) == [[b"0", b"1"], [b"2", b"3"], [b"4"]]
    assert [batch.number for batch in batcher.sealed] == [1, 2]


def test_messages_of_one_batch_share_a_promise() -> None:
    batcher = make(max_batch_items=2)
    first, second, third = (batcher.add(b"x") for _ in range(3))

    assert first is second
    assert third is not second
    assert batcher.last_promise is third


def test_a_poll_is_asked_for_when_a_batch_opens_and_when_it_is_sealed() -> None:
    batcher = make(max_batch_items=3, max_batch_bytes=100)

    asked = []
    for body in (b"opens", b"waits", b"seals"):
        batcher.needs_poll = False
        batcher.add(body)
        asked.append(batcher.needs_poll)

    assert asked == [True, False, True]


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_batch_is_filled_to_the_last_byte(kind: type) -> None:
    batcher = make(max_batch_bytes=4)
    for body in (b"a", b"bcd", b"e"):
        batcher.add(kind(body))

    assert batches(batcher) == [[b"a", b"bcd"], [b"e"]]


# -- What is accepted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", ""])
def test_an_empty_message_is_refused(body: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="empty"):
        make().add(body)


@pytest.mark.parametrize("body", [b"", "", b" ", b"\t\r\n ", "  "])
def test_a_blank_json_message_is_refused_wherever_it_stands(body: Any) -> None:
    batcher = make(json=True)
    batcher.add(b"1")
    for call in (batcher.add, lambda item: batcher.add_many(iter([item]))):
        with pytest.raises(InvalidArgumentError, match="blank"):
            call(body)

    assert batches(batcher) == [[b"1"]]


def test_json_text_may_begin_with_white_space() -> None:
    batcher = make(json=True, max_batch_bytes=100)
    batcher.add(b"0")
    batcher.add(b" 1")
    add_all(batcher, iter([b"\n2", "3"]))

    assert bodies(batcher) == [b"[0, 1,\n2,3]"]


def test_text_is_sent_as_utf8_and_what_can_change_is_copied() -> None:
    batcher = make(max_batch_bytes=100)
    changing = bytearray(b"before")
    for body in ("ä", changing, memoryview(b"view")):
        batcher.add(body)  # type: ignore[arg-type]
    changing[:] = b"after!"

    assert batches(batcher) == [["ä".encode(), b"before", b"view"]]


@pytest.mark.parametrize("body", [1, None, {"a": 1}, [b"x"]])
def test_other_types_are_refused_and_values_are_sent_to_append_json(body: Any) -> None:
    batcher = make()
    with pytest.raises(TypeError, match="append_json" if body is not None else "NoneType"):
        batcher.add(body)
    with pytest.raises(TypeError):
        add_all(batcher, iter([b"x", body, b"y"]))

    assert batches(batcher) == [[b"x"]]


def test_a_refusal_is_raised_anew_for_each_caller() -> None:
    batcher = make()
    batcher.add(b"x")
    batcher.refuse(AlreadyClosedError("over", url="http://s/x"))

    met = []
    for _ in range(3):
        with pytest.raises(AlreadyClosedError, match="over") as caught:
            batcher.add(b"y")
        met.append(caught.value)

    assert len({id(error) for error in met}) == 3
    assert len({len(caught_frames(error)) for error in met}) == 1, "tracebacks grow"
    assert met[0].url == "http://s/x"
    assert batches(batcher) == [[b"x"]]


def test_an_error_of_somebody_else_is_raised_as_it_is_without_old_frames() -> None:
    class TheirError(Exception):
        def __init__(self, one: int, *, two: int) -> None:
            super().__init__(f"{one} {two}")

    batcher = make()
    error = TheirError(1, two=2)
    batcher.refuse(error)

    depths = set()
    for _ in range(3):
        with pytest.raises(TheirError) as caught:
            batcher.add(b"y")
        assert caught.value is error
        depths.add(len(caught_frames(error)))
    assert len(depths) == 1


def caught_frames(error: BaseException) -> list[object]:
    frames, traceback = [], error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return frames


def test_after_a_refusal_is_lifted_messages_are_accepted_again() -> None:
    batcher = make()
    batcher.add(b"a")
    batcher.refuse(RuntimeError("wait"))
    batcher.refuse(None)
    batcher.add(b"b")

    assert batches(batcher) == [[b"a", b"b"]]


# -- The buffer's bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("json", [False, True])
def test_the_buffer_is_bounded_in_bytes_of_payload(json: bool) -> None:
    batcher = make(json=json, max_buffered_bytes=10)
    for _ in range(10):
        batcher.add(b"1")
    with pytest.raises(BufferFullError, match="10 of 10 bytes and 10 messages"):
        batcher.add(b"1")

    assert batcher.buffered_bytes == batcher.buffered_messages == 10


def test_the_buffer_is_bounded_in_messages() -> None:
    batcher = make(max_buffered_messages=2)
    batcher.add(b"1")
    batcher.add(b"2")
    with pytest.raises(BufferFullError):
        batcher.add(b"3")


def test_a_message_larger_than_the_buffer_fits_into_an_empty_one() -> None:
    batcher = make(max_buffered_bytes=3)
    batcher.add(b"larger")
    with pytest.raises(BufferFullError):
        batcher.add(b"x")
    batcher.seal()
    batcher.release(batcher.sealed.popleft())
    batcher.add(b"x")

    assert batches(batcher) == [[b"x"]]


def test_released_batches_make_room() -> None:
    batcher = make(max_buffered_bytes=4, max_batch_items=2)
    assert add_all(batcher, iter([b"1", b"2", b"3", b"4", b"5"])) == b"5"
    batcher.release(batcher.sealed.popleft())

    assert batcher.buffered_bytes == batcher.buffered_messages == 2
    assert add_all(batcher, iter([b"5", b"6", b"7"])) == b"7"


def test_while_room_is_reserved_nobody_else_gets_in() -> None:
    batcher = make()
    batcher.add(b"a")
    batcher.reserve(True)
    with pytest.raises(BufferFullError):
        batcher.add(b"b")
    assert add_all(batcher, iter([b"b"])) == b"b"
    batcher.reserve(False)
    batcher.add(b"b")

    assert batches(batcher) == [[b"a", b"b"]]


def test_what_was_accepted_before_is_queued_again_whatever_the_buffer_holds() -> None:
    batcher = make(max_buffered_bytes=2, max_batch_items=2)
    count = batcher.requeue([b"1", b"2", b"3"])

    assert count == 3
    assert batches(batcher) == [[b"1", b"2"], [b"3"]]
    assert batcher.buffered_bytes == 3


# -- Many at once ------------------------------------------------------------------------------------------


def test_add_many_stops_at_the_end_of_a_batch_so_that_others_get_their_turn() -> None:
    batcher = make(max_batch_bytes=5)
    source = iter([b"ab", b"cd", b"ef", b"gh", b"i", b"jk", "lm"])

    assert batcher.add_many(source) == b"ef"  # does not fit
    assert batches(batcher) == [[b"ab", b"cd"]]
    assert batcher.open is None
    batcher.add(b"ef")
    assert batcher.add_many(source) == b"jk"
    assert batcher.open is None
    batcher.add(b"jk")
    assert batcher.add_many(source) is EXHAUSTED
    assert batches(batcher) == [[b"ab", b"cd"], [b"ef", b"gh", b"i"], [b"jk", b"lm"]]


def test_add_many_stops_when_a_batch_has_its_items() -> None:
    batcher = make(max_batch_items=2)
    source = iter([b"1", b"2", b"3"])

    assert batcher.add_many(source) is None
    assert batches(batcher) == [[b"1", b"2"]]
    assert batcher.add_many(source) is EXHAUSTED


def test_add_many_does_not_stop_for_unusual_messages() -> None:
    batcher = make(json=True, max_batch_bytes=1000)

    assert batcher.add_many(iter([b"0", *["1", " 2", bytearray(b"3")] * 5])) is EXHAUSTED


@pytest.mark.parametrize("options", [{}, {"max_batch_items": 9}, {"max_buffered_messages": 9}])
@pytest.mark.parametrize("json", [False, True])
def test_whether_a_message_begins_a_batch_is_known_before(json: bool, options: dict[str, int]) -> None:
    batcher = make(json=json, max_batch_bytes=6, **options)
    for body in (b"1", b"12", b"12", b"1", b"12345678", b"1"):
        begins, number = batcher.begins(body), batcher.last_number
        batcher.add(body)
        assert begins is (batcher.last_number > number)


def test_an_exception_of_the_iterable_leaves_what_came_before() -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        yield b"b"
        raise LookupError

    batcher = make()
    with pytest.raises(LookupError):
        add_all(batcher, broken())
    batcher.add(b"c")

    assert batches(batcher) == [[b"a", b"b", b"c"]]
    assert batcher.buffered_bytes == 3


def test_the_iterable_may_use_the_batcher_itself() -> None:
    batcher = make(max_batch_bytes=4)

    def source() -> Iterator[bytes]:
        for number in range(6):
            batcher.add(b"x")
            assert batcher.buffered_messages == 2 * number + 1
            yield b"%d" % number

    add_all(batcher, source())

    assert batcher.buffered_bytes == batcher.buffered_messages == 12
    assert b"".join(bodies(batcher)) == b"x0x1x2x3x4x5"
    assert all(len(body) == 4 for body in bodies(batcher))


def test_a_run_takes_what_fits_and_says_what_does_not_belong_to_it() -> None:
    batcher = make(max_batch_bytes=10)

    assert batcher.add_run([b"ab"], 0) == -1  # opens a batch
    batcher.add(b"ab")
    assert batcher.add_run([b"--", b"c", b"de", b"fgh", b"ijk"], 1) == 3
    assert batcher.add_run([b"ijk"], 0) == -1  # does not fit
    assert batcher.add_run([b"k", "l", b"m"], 0) == -2
    assert batcher.add_run([b"k", b"", b"m"], 0) == -2
    assert batcher.add_run([b""], 0) == -1
    assert batches(batcher) == [[b"ab", b"c", b"de", b"fgh"]]


#: Messages of all kinds, most of them ordinary.
RUNS = st.lists(
    st.one_of(st.binary(max_size=9), st.integers(1, 9).map(lambda size: b"7" * size), st.sampled_from(["8", b" 9", 0])),
    max_size=60,
)


@given(st.booleans(), st.integers(1, 80), st.integers(1, 200), RUNS)
@relaxed
def test_runs_add_the_same_as_one_message_after_the_other(json: bool, cap: int, room: int, wanted: list[Any]) -> None:
    each = make(json=json, max_batch_bytes=cap, max_buffered_bytes=room)
    runs = make(json=json, max_batch_bytes=cap, max_buffered_bytes=room)

    def add_in_runs() -> object:
        position = 0
        while position < len(wanted):
            count = runs.add_run(wanted, position)
            if count < 0:
                count = -count
                left = add_all(runs, iter(wanted[position : position + count]))
                if left is not EXHAUSTED:
                    return left
            position += count
        return EXHAUSTED

    outcomes: list[object] = []
    for add in (lambda: add_all(each, iter(wanted)), add_in_runs):
        try:
            outcomes.append(add())
        except (InvalidArgumentError, TypeError) as error:
            outcomes.append((type(error), str(error)))

    assert outcomes[0] == outcomes[1]
    assert batches(each) == batches(runs)
    assert (each.buffered_bytes, each.buffered_messages) == (runs.buffered_bytes, runs.buffered_messages)


# -- Everything together -----------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 12)),
        st.tuples(st.just("many"), st.lists(st.integers(1, 12), max_size=8)),
        st.tuples(st.just("text"), st.integers(1, 12)),
        st.tuples(st.sampled_from(["seal", "release", "reserve", "refuse", "look"]), st.none()),
    ),
    max_size=40,
)


@given(
    st.booleans(),
    st.integers(1, 25),
    st.none() | st.integers(1, 4),
    st.integers(1, 60),
    st.none() | st.integers(1, 10),
    STEPS,
)
@relaxed
def test_caps_hold_and_nothing_is_lost_under_any_use(
    json: bool, cap: int, items: int | None, room: int, count: int | None, steps: list[tuple[str, Any]]
) -> None:
    batcher = make(
        json=json, max_batch_bytes=cap, max_batch_items=items, max_buffered_bytes=room, max_buffered_messages=count
    )
    accepted: list[bytes] = []
    released: list[bytes] = []

    def digit(size: int) -> bytes:
        return b"%d" % (len(accepted) % 9 + 1) * size

    def look() -> None:
        kept = accepted[len(released) :]
        assert batcher.buffered_messages == len(kept)
        assert batcher.buffered_bytes == sum(map(len, kept))
        assert [item for batch in batches(batcher) for item in batch] == kept
        assert sum(map(len, kept)) <= room or len(kept) == 1
        assert count is None or len(kept) <= count

    for step, value in steps:
        if step in ("add", "text"):
            body = digit(value)
            try:
                batcher.add(body if step == "add" else body.decode())  # type: ignore[arg-type]
            except BufferFullError:
                kept = sum(map(len, accepted[len(released) :]))
                messages = len(accepted) - len(released)
                assert messages
                assert kept + value > room or (count is not None and messages >= count)
            else:
                accepted.append(body)
        elif step == "many":
            wanted = [digit(size) for size in value]
            left = add_all(batcher, iter(wanted))
            entered = len(wanted) if left is EXHAUSTED else batcher.buffered_messages - (len(accepted) - len(released))
            accepted += wanted[:entered]
            assert left is EXHAUSTED or left == wanted[entered]
        elif step == "seal":
            batcher.seal()
        elif step == "release" and batcher.sealed:
            batch = batcher.sealed.popleft()
            released += batch.items
            batcher.release(batch)
        elif step == "reserve":
            batcher.reserve(True)
            batcher.reserve(False)
        elif step == "refuse":
            batcher.refuse(RuntimeError("wait"))
            batcher.refuse(None)
        elif step == "look":
            look()
    look()

    batcher.seal()
    for batch in batcher.sealed:
        body = batch.framed(json=json)
        assert len(body) == batch.size
        assert batch.size <= cap or len(batch.items) == 1
        assert items is None or len(batch.items) <= items
        if json:
            assert len(json_mode.decode_items([body])) == len(batch.items)
