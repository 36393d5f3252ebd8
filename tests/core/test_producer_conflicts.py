"""Gaps, fences and claims of a producer: client specification 12.6 and 12.7, row by row."""

from __future__ import annotations

import pytest

from durable_streams._core.batcher import Ack
from durable_streams._core.producer import MAX_CLAIMS
from durable_streams._core.producer_values import Asked, Claimed, Failed, State, Wait
from durable_streams._core.wire import MAX_INTEGER
from durable_streams.errors import (
    ConflictError,
    FetchError,
    NetworkError,
    SequenceGapError,
    StaleEpochError,
    StreamClosedError,
    StreamNotFoundError,
)

from .producer_bench import bench, numbered, seqs

# -- The three meanings of 409 (12.6) ----------------------------------------------------------------------


def test_a_closed_stream_ends_the_producer_even_if_the_answer_speaks_of_gaps_too() -> None:
    b = bench()
    promises = b.add(*numbered(2))
    sends = b.sends()
    b.reply(sends[1], 409, stream_closed="true", stream_next_offset="end", producer_expected_seq=0)

    assert isinstance(b.session.failure, StreamClosedError)
    assert b.session.failure.final_offset == "end"
    assert b.sends() == []
    assert [type(promise.error) for promise in promises] == [StreamClosedError] * 2


def test_a_batch_that_overtook_others_waits_for_them_and_is_sent_again_at_once() -> None:
    b = bench()
    promises = b.add(*numbered(3))
    sends = b.sends()
    assert b.gap(sends[2], 0) == []
    b.reply(sends[0])
    assert b.sends() == [], "number 1 is still missing"
    b.reply(sends[1])
    again = b.send()
    b.reply(again)

    assert again.request == sends[2].request
    assert promises[2].ack is not None
    assert b.session.gap_retries == 1
    assert b.session.retries == 0


def test_the_lowest_unresolved_batch_is_sent_again_first() -> None:
    b = bench(max_in_flight=3)
    b.add(*numbered(4))
    sends = b.sends()
    b.gap(sends[2], 0)
    b.gap(sends[1], 0)
    b.break_off(sends[0])
    b.now += 1.0

    assert seqs(b.sends()) == [0]


def test_whoever_waits_for_a_batch_fails_with_its_error() -> None:
    b = bench()
    promises = b.add(*numbered(2))
    sends = b.sends()
    b.gap(sends[1], 0)
    b.recover(b.reply(sends[0], 413), retry=False)

    assert [type(promise.error) for promise in promises] == [FetchError, FetchError]


def test_a_gap_that_none_of_ours_can_fill_is_tried_once_more_and_then_an_error() -> None:
    b = bench(next_seq=7)
    (promise,) = b.add(b"a")
    assert b.gap(b.send(), 3) == []
    b.gap(b.send(), 3)

    assert isinstance(promise.error, SequenceGapError)
    assert (promise.error.expected_seq, promise.error.received_seq) == (3, 7)
    assert not promise.error.maybe_applied
    assert b.session.gap_retries == 1


def test_a_gap_that_stays_after_all_before_are_acknowledged_is_an_error() -> None:
    b = bench()
    promises = b.add(*numbered(2))
    sends = b.sends()
    b.gap(sends[1], 0)
    b.reply(sends[0])
    requests = 1
    while promises[1].error is None:
        requests += 1
        assert requests < 5
        b.gap(b.send(), 0)

    assert isinstance(promises[1].error, SequenceGapError)


def test_a_number_that_is_acknowledged_is_not_waited_for() -> None:
    """The server has forgotten 2 but not 1, whose answer is still to come: this must not go round in circles."""
    b = bench()
    b.add(*numbered(4))
    sends = b.sends()
    for index in (0, 2):
        b.reply(sends[index])
    requests = 0
    send = sends[3]
    while b.session.failure is None:
        requests += 1
        assert requests < 5
        b.gap(send, 2)
        if requests == 1:
            assert b.sends() == [], "after a gap one at a time"
            b.break_off(sends[1])
        if b.session.failure is None:
            send = b.send()

    assert isinstance(b.session.failure, SequenceGapError)


def test_a_gap_narrows_the_window_and_acknowledgements_widen_it_again() -> None:
    b = bench(max_in_flight=3)
    b.add(*numbered(39))
    first, *others = b.sends()
    for other in others:
        b.gap(other, 0)
    assert b.sends() == []
    b.reply(first)

    sent = []
    while sends := b.sends():
        sent.append(seqs(sends))
        for send in sends:
            b.reply(send)

    assert sent[:3] == [[1], [2, 3], [4, 5]], "the first one counts too: two windows of one, two of two, then all"
    assert set(map(len, sent[3:])) == {3}
    assert [seq for together in sent for seq in together] == list(range(1, 39))


def test_a_new_epoch_begins_with_the_whole_window() -> None:
    b = bench(max_in_flight=3)
    b.add(*numbered(9))
    first, *others = b.sends()
    for other in others:
        b.gap(other, 0)
    b.recover(b.reply(first, 413), retry=False)
    b.session.restart(resend=True)
    b.reply(b.send())

    assert seqs(b.sends()) == [1, 2, 3]


def test_an_expected_number_at_or_above_ours_is_a_confusion() -> None:
    for expected in (0, 5):
        b = bench()
        (promise,) = b.add(b"a")
        b.gap(b.send(), expected)

        assert isinstance(promise.error, SequenceGapError)


@pytest.mark.parametrize("headers", [{}, {"producer_expected_seq": "zero"}, {"producer_expected_seq": "-1"}])
def test_a_conflict_without_expected_number_is_neither_a_gap_nor_a_duplicate(headers: dict[str, str]) -> None:
    b = bench()
    promises = b.add(*numbered(2))
    sends = b.sends()
    b.reply(sends[1], 409, **headers)

    assert type(promises[1].error) is ConflictError
    assert b.session.state is State.FAILED


def test_a_server_that_lost_its_state_is_an_error_and_not_a_loop() -> None:
    b = bench()
    for number in range(3):
        b.add(b"%d" % number)
        b.reply(b.send())
    b.add(*numbered(3, start=3))
    requests = 0
    while b.session.failure is None:
        for send in b.sends():
            requests += 1
            assert requests < 10
            b.gap(send, 0)

    assert isinstance(b.session.failure, SequenceGapError)
    assert b.session.unacknowledged() == numbered(3, start=3)


# -- Fencing and claims (12.7) -----------------------------------------------------------------------------


def test_without_claims_a_newer_epoch_ends_the_producer() -> None:
    b = bench(max_in_flight=2)
    promises = b.add(*numbered(3))
    sends = b.sends()
    outcomes = b.fence(sends[0], 4)

    assert isinstance(b.session.failure, StaleEpochError)
    assert b.session.failure.current_epoch == 4
    assert [type(promise.error) for promise in promises] == [StaleEpochError] * 3
    assert [outcome.batch.stamp for outcome in outcomes if isinstance(outcome, Failed)] == [(0, 0), (0, 1), (0, -1)]
    b.fence(sends[1], 4)
    assert b.sends() == []
    assert b.session.unacknowledged() == numbered(3)


def test_a_403_without_epoch_is_a_matter_of_rights() -> None:
    b = bench(auto_claim=True)
    b.add(b"a")
    (asked,) = b.reply(b.send(), 403)

    assert isinstance(asked, Asked)
    assert not isinstance(asked.error, StaleEpochError)
    assert b.session.epoch == 0


def test_a_claim_is_made_once_for_all_batches_and_renumbers_them_in_order() -> None:
    b = bench(auto_claim=True, max_in_flight=4)
    b.open_gate()
    promises = b.add(*numbered(6))
    sends = b.sends()
    assert seqs(sends) == [1, 2, 3, 4]
    assert b.fence(sends[2], 7) == []
    assert b.sends() == [], "nothing is sent while answers are under way"
    b.reply(sends[0])
    assert b.fence(sends[3], 9) == []
    outcomes = b.break_off(sends[1])
    assert outcomes[-1] == Claimed(0, 10, 3)

    b.now += 1.0
    (first,) = b.sends()
    assert (first.stamp, first.request.body) == ((10, 0), b"1")
    b.reply(first)
    rest = b.sends()
    assert [(send.stamp, send.request.body) for send in rest] == [
        ((10, 1), b"2"),
        ((10, 2), b"3"),
        ((10, 3), b"4"),
        ((10, 4), b"5"),
    ]
    for send in rest:
        b.reply(send)
    assert [promise.ack is not None for promise in promises] == [True] * 6
    assert b.session.claims == 1


def test_the_first_claim_is_made_at_once() -> None:
    b = bench(auto_claim=True)
    b.add(b"a")
    assert b.fence(b.send(), 0, draw=1.0) == [Claimed(0, 1, 1)]

    assert b.send().stamp == (1, 0)


def test_a_claim_that_is_fenced_in_turn_is_repeated_after_a_pause() -> None:
    b = bench(auto_claim=True)
    b.add(b"a")
    b.fence(b.send(), 3)
    b.fence(b.send(), 5, draw=0.5)

    assert b.poll() == Wait(100.125)
    b.now = 100.125
    assert b.send().stamp == (6, 0)


def test_two_writers_that_claim_in_turns_are_told_so() -> None:
    b = bench(auto_claim=True)
    (promise,) = b.add(b"a")
    epoch = 1
    while promise.error is None:
        send = b.send()
        epoch = send.stamp[0] + 1
        b.fence(send, epoch)
        b.now += 10.0

    assert isinstance(promise.error, StaleEpochError)
    assert promise.error.current_epoch == epoch
    assert b.session.claims == MAX_CLAIMS


def test_an_acknowledgement_between_claims_starts_the_count_anew() -> None:
    b = bench(auto_claim=True)
    for _ in range(3 * MAX_CLAIMS):
        b.add(b"a")
        send = b.send()
        b.fence(send, send.stamp[0])
        b.now += 10.0
        b.reply(b.send())

    assert b.session.failure is None
    assert b.session.claims == 3 * MAX_CLAIMS


def test_an_answer_to_a_request_of_before_the_claim_counts_for_nothing() -> None:
    b = bench(auto_claim=True)
    (promise,) = b.add(b"a")
    old = b.send()
    b.fence(old, 1)
    b.session._in_flight += 1  # as if the network had kept a copy of the answer
    b.reply(old)

    assert promise.ack is None
    assert b.send().stamp == (2, 0)


def test_a_gap_of_the_old_epoch_is_forgotten_with_it() -> None:
    b = bench(auto_claim=True, max_in_flight=3)
    b.open_gate()
    b.add(*numbered(3))
    sends = b.sends()
    b.gap(sends[2], 1)
    b.fence(sends[0], 1)
    b.fence(sends[1], 1)
    b.reply(b.send())
    for send in b.sends():
        b.reply(send)

    assert b.session.unacknowledged() == []


def test_asking_the_user_outlasts_a_claim() -> None:
    b = bench(auto_claim=True, max_in_flight=2)
    b.open_gate()
    b.add(*numbered(2))
    sends = b.sends()
    asked = b.reply(sends[0], 401)
    b.fence(sends[1], 4)
    assert b.sends() == []
    b.recover(asked, retry=True)

    assert b.send().stamp == (5, 0)


def test_what_may_be_stored_under_an_old_epoch_stays_uncertain() -> None:
    b = bench(auto_claim=True)
    (promise,) = b.add(b"a")
    b.break_off(b.send())
    b.now += 1.0
    b.fence(b.send(), 3)
    b.recover(b.reply(b.send(), 404), retry=False)

    assert isinstance(promise.error, StreamNotFoundError)
    assert promise.error.maybe_applied


def test_in_a_new_epoch_no_try_is_uncertain_yet() -> None:
    b = bench(auto_claim=True)
    b.add(b"a")
    b.break_off(b.send())
    b.now += 1.0
    b.fence(b.send(), 3)
    b.reply(b.send(), 204, producer_seq=0)  # somebody else was faster
    b.now += 1.0

    assert b.send().stamp == (5, 0)


@pytest.mark.parametrize(
    ("before", "headers", "ours"),
    [
        ((), {}, False),  # the first try, and the server has it already
        ((), {"producer_seq": 0}, False),
        ((429,), {"producer_seq": 0}, False),
        (("refused",), {"producer_seq": 0}, False),
        ((503,), {"producer_seq": 0}, True),
        (("reset",), {}, True),
        (("reset",), {"producer_seq": 0}, True),
        (("reset",), {"producer_seq": 1}, False),  # number 1 was never sent by us
    ],
)
def test_a_duplicate_that_cannot_be_ours_counts_as_being_fenced(
    before: tuple[object, ...], headers: dict[str, object], ours: bool
) -> None:
    b = bench(auto_claim=True)
    (promise,) = b.add(b"a")
    for happened in before:
        if isinstance(happened, int):
            b.reply(b.send(), happened)
        else:
            b.break_off(b.send(), NetworkError("x", phase="connect" if happened == "refused" else "sent"))
        b.now += 1.0
    b.reply(b.send(), 204, **headers)

    if ours:
        assert promise.ack is not None
        assert promise.ack.duplicate
    else:
        assert b.send().stamp == (1, 0)


def test_after_the_first_acknowledgement_duplicates_are_ours() -> None:
    b = bench(auto_claim=True)
    b.open_gate()
    (promise,) = b.add(b"a")
    b.reply(b.send(), 204, producer_seq=8)

    assert promise.ack == Ack(None, True, 0, 1)


def test_beyond_the_highest_epoch_there_is_nothing_to_claim() -> None:
    b = bench(auto_claim=True)
    (promise,) = b.add(b"a")
    b.fence(b.send(), MAX_INTEGER)

    assert isinstance(promise.error, StaleEpochError)


def test_a_claim_takes_the_higher_of_the_epochs_it_has_heard_of() -> None:
    b = bench(auto_claim=True, epoch=8)
    b.add(b"a")

    assert b.fence(b.send(), 2) == [Claimed(8, 9, 1)]
