"""How a producer closes, detaches, restarts, fails and aborts: client specification 12.8 to 12.10."""

from __future__ import annotations

import pytest

from durable_streams._core.batcher import Ack
from durable_streams._core.exchange import Head
from durable_streams._core.producer import MAX_CLAIMS
from durable_streams._core.producer_values import CloseFailed, Done, Failed, State, StreamEnded, Wait
from durable_streams._core.wire import MAX_INTEGER
from durable_streams.errors import (
    AlreadyClosedError,
    ConflictError,
    DurableStreamError,
    InvalidArgumentError,
    NetworkError,
    StaleEpochError,
    StreamClosedError,
    StreamNotFoundError,
)

from .producer_bench import Promise, bench, numbered, seqs

# -- Closing (12.8) ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("json", "final", "body"), [(False, None, b""), (False, b"z", b"z"), (True, b"1", b"[1]")])
def test_closing_comes_after_everything_with_the_next_number(json: bool, final: bytes | None, body: bytes) -> None:
    b = bench(content_type="application/json" if json else "text/plain")
    b.add(b"1", b"2")
    promise = Promise()
    b.session.close(final, promise)
    sends = b.sends()
    assert seqs(sends) == [0, 1]
    b.break_off(sends[0])
    b.gap(sends[1], 0)
    assert b.sends() == []
    b.now += 1.0
    b.reply(b.send())
    b.reply(b.send())
    closing = b.send()

    assert closing.stamp == (0, 2)
    assert closing.request.headers["stream-closed"] == "true"
    assert closing.request.body == body
    assert ("content-type" in closing.request.headers) is bool(body)
    head = Head(200, {"stream-closed": "true", "stream-next-offset": "end"})
    assert b.session.on_reply(closing, head, b"", b.now, 0.5) == [StreamEnded(head, Ack("end", False, 0, 2))]
    assert promise.ack is not None
    assert b.session.state is State.CLOSED
    assert b.session.last_offset == "end"
    assert b.session.next_seq == 3
    assert b.session.abort() == []
    assert b.poll() == Done()
    with pytest.raises(AlreadyClosedError, match="has closed"):
        b.add(b"late")


def test_a_repetition_of_closing_that_was_applied_is_a_success() -> None:
    b = bench()
    promise = Promise()
    b.session.close(None, promise)
    first = b.send()
    b.break_off(first)
    b.now += 1.0
    again = b.send()
    b.reply(again, 204, stream_closed="true", producer_seq=0)

    assert again.request == first.request
    assert promise.ack is not None


@pytest.mark.parametrize(
    "headers",
    [
        {"producer_seq": 0},
        {"producer_seq": 3},
        {"producer_seq": 3, "stream_closed": "true"},
        {"stream_closed": "false"},
    ],
)
def test_an_acknowledgement_that_does_not_close_is_not_for_a_closing_request(headers: dict[str, object]) -> None:
    b = bench()
    promise = Promise()
    b.session.close(b"z", promise)
    outcomes = b.reply(b.send(), 204, **headers)

    assert [type(outcome) for outcome in outcomes] == [CloseFailed]
    assert isinstance(promise.error, ConflictError)


def test_with_claims_such_an_acknowledgement_is_a_fence() -> None:
    b = bench(auto_claim=True)
    promise = Promise()
    b.session.close(b"z", promise)
    b.reply(b.send(), 204, producer_seq=3)
    again = b.send()
    b.reply(again, 200, stream_closed="true")

    assert again.stamp == (1, 0)
    assert promise.ack is not None


def test_closing_is_fenced_like_everything_else() -> None:
    b = bench(epoch=1)
    promise = Promise()
    b.session.close(None, promise)
    outcomes = b.fence(b.send(), 3)

    assert isinstance(promise.error, StaleEpochError)
    assert [type(outcome) for outcome in outcomes] == [CloseFailed]
    assert b.session.failure is promise.error


def test_a_stream_that_another_has_closed_cannot_be_closed_again() -> None:
    b = bench()
    promise = Promise()
    b.session.close(None, promise)
    b.reply(b.send(), 409, stream_closed="true", stream_next_offset="end")

    assert isinstance(promise.error, StreamClosedError)
    assert promise.error.final_offset == "end"


def test_failed_closing_uses_no_number_and_can_be_tried_again() -> None:
    b = bench()
    first, second = Promise(), Promise()
    b.session.close(b"z", first)
    tried = b.send()
    outcomes = b.recover(b.reply(tried, 401), retry=False)
    assert [type(outcome) for outcome in outcomes] == [CloseFailed]
    assert first.error is not None
    assert b.session.state is State.CLOSING
    assert b.poll() == Done()
    with pytest.raises(AlreadyClosedError, match="is closing"):
        b.add(b"late")
    b.session.close(b"z", second)
    again = b.send()
    b.reply(again, stream_closed="true")

    assert again.request == tried.request
    assert second.ack is not None


def test_after_closing_that_may_have_been_applied_the_last_message_is_bound_to_it() -> None:
    b = bench(delivery_timeout=1.0)
    b.session.close(b"z", Promise())
    b.break_off(b.send())
    b.now += 1.0
    b.break_off(b.send())
    for final in (None, b"other"):
        with pytest.raises(InvalidArgumentError, match="final_message"):
            b.session.close(final, Promise())
    promise = Promise()
    b.session.close(b"z", promise)
    b.recover(b.reply(b.send(), 404), retry=False)

    assert isinstance(promise.error, StreamNotFoundError)
    assert promise.error.maybe_applied


def test_after_closing_that_was_refused_the_last_message_is_free() -> None:
    b = bench()
    b.session.close(b"too large", Promise())
    b.recover(b.reply(b.send(), 413), retry=False)
    b.session.close(b"z", Promise())

    assert b.send().request.body == b"z"


def test_closing_ends_with_the_batch_that_fails_before_it() -> None:
    b = bench()
    b.add(b"a")
    promise = Promise()
    b.session.close(b"z", promise)
    outcomes = b.recover(b.reply(b.send(), 400), retry=False)

    assert [type(outcome) for outcome in outcomes] == [CloseFailed, Failed]
    assert promise.error is b.session.failure
    assert b.sends() == []
    assert b.session.unacknowledged() == [b"a"]


def test_closing_waits_for_the_users_decision_and_for_its_time() -> None:
    b = bench()
    b.session.close(None, Promise())
    outcomes = b.reply(b.send(), 401)
    assert b.poll() == Wait(None)
    b.recover(outcomes, retry=True)
    b.reply(b.send(), 503, draw=1.0)

    assert b.poll() == Wait(100.1)


# -- Detaching and restarting (12.8) -----------------------------------------------------------------------


def test_detaching_sends_what_is_there_and_accepts_nothing_more() -> None:
    b = bench()
    b.add(*numbered(2))
    b.session.detach()
    with pytest.raises(AlreadyClosedError, match="detached"):
        b.add(b"late")
    assert not b.session.done
    for send in b.sends():
        b.reply(send)

    assert b.session.done
    assert b.poll() == Done()


def test_a_restart_begins_a_new_epoch_behind_its_gate() -> None:
    b = bench()
    b.add(*numbered(2))
    for send in b.sends():
        b.reply(send)
    b.session.restart(resend=False)
    b.add(*numbered(3))

    assert [send.stamp for send in b.sends()] == [(1, 0)]


def test_what_is_added_during_a_restart_belongs_to_the_new_epoch() -> None:
    b = bench()
    b.add(b"old")
    b.session.pause()
    b.add(b"new")
    (old,) = b.sends()
    assert old.request.body == b"old"
    b.reply(old)
    assert b.poll() == Wait(None)
    b.session.restart(resend=False)

    assert (b.send().stamp, b.session.settled) == ((1, 0), 1)


def test_what_is_open_when_a_restart_begins_belongs_to_the_old_epoch() -> None:
    b = bench(max_batch_items=None, linger=60.0)
    b.add(b"old")
    b.session.pause()

    assert b.send().stamp == (0, 0)


def test_a_restart_that_is_given_up_goes_on_where_it_was() -> None:
    b = bench()
    b.session.pause()
    b.add(b"a")
    assert b.poll() == Wait(None)
    b.session.resume()

    assert b.send().stamp == (0, 0)


def test_closing_waits_for_a_restart_to_end() -> None:
    b = bench()
    b.session.pause()
    b.session.close(None, Promise())
    assert b.poll() == Wait(None)
    b.session.resume()

    assert b.send().request.headers["stream-closed"] == "true"


def test_restarting_after_a_fence_goes_beyond_the_epoch_that_fenced() -> None:
    b = bench()
    b.add(*numbered(2))
    for send in b.sends():
        b.fence(send, 6)
    assert b.session.restart(resend=True) == 2
    (send,) = b.sends()

    assert send.stamp == (7, 0)
    assert b.session.unacknowledged() == numbered(2)


def test_after_a_restart_messages_are_accepted_and_claims_counted_anew() -> None:
    b = bench(auto_claim=True)
    b.add(b"a")
    for _ in range(2):
        while b.session.failure is None:
            send = b.send()
            b.fence(send, send.stamp[0])
            b.now += 10.0
        assert b.session.claims % MAX_CLAIMS == 0
        b.session.restart(resend=True)
    b.add(b"b")

    assert b.session.claims == 2 * MAX_CLAIMS
    assert b.session.unacknowledged() == [b"a", b"b"]


def test_after_a_restart_closing_may_have_another_last_message() -> None:
    b = bench(delivery_timeout=1.0)
    b.session.close(b"z", Promise())
    b.break_off(b.send())
    b.now += 1.0
    b.break_off(b.send())
    b.session.close(b"z", Promise())
    b.fence(b.send(), 5)
    b.session.restart(resend=False)
    b.session.close(b"other", Promise())

    assert b.send().request.body == b"other"


def test_restarting_without_sending_again_drops_the_rest() -> None:
    b = bench(max_in_flight=1)
    b.add(*numbered(2))
    b.recover(b.reply(b.send(), 400), retry=False)
    assert b.session.restart(resend=False) == 0

    assert b.session.unacknowledged() == []
    assert b.session.failure is None
    assert b.poll() == Wait(None)


def test_the_highest_epoch_can_be_reached() -> None:
    b = bench(epoch=MAX_INTEGER - 1)
    b.session.restart(resend=False)

    assert b.session.epoch == MAX_INTEGER


def test_there_is_no_epoch_beyond_the_highest() -> None:
    b = bench(epoch=MAX_INTEGER)
    with pytest.raises(OverflowError, match=str(MAX_INTEGER)):
        b.session.restart(resend=False)

    assert b.session.epoch == MAX_INTEGER


def test_a_claim_that_failed_is_forgotten_by_a_restart() -> None:
    b = bench(auto_claim=True, max_in_flight=2)
    b.open_gate()
    b.add(*numbered(2))
    sends = b.sends()
    b.fence(sends[0], 4)
    b.reply(sends[1], 409)
    assert b.session.state is State.FAILED
    b.session.restart(resend=True)

    assert b.send().stamp == (1, 0)


# -- Failing and aborting (12.9, 12.10) --------------------------------------------------------------------


def test_after_a_failure_nothing_is_sent_or_accepted() -> None:
    b = bench(max_in_flight=2)
    b.add(*numbered(3))
    sends = b.sends()
    b.break_off(sends[1])
    b.recover(b.reply(sends[0], 400), retry=False)
    b.now += 1000.0

    assert b.poll() == Done()
    with pytest.raises(DurableStreamError) as caught:
        b.add(b"more")
    assert caught.value.code == "BAD_REQUEST"
    assert b.session.unacknowledged() == numbered(3)


def test_each_failed_batch_is_reported_with_its_own_uncertainty() -> None:
    b = bench(max_in_flight=3)
    promises = b.add(*numbered(4))
    sends = b.sends()
    b.break_off(sends[1], NetworkError("refused", phase="connect"))
    outcomes = b.recover(b.reply(sends[0], 400), retry=False)

    assert [outcome.batch.stamp for outcome in outcomes if isinstance(outcome, Failed)] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, -1),
    ]
    errors = [promise.error for promise in promises]
    assert [error.maybe_applied for error in errors if isinstance(error, DurableStreamError)] == [
        False,
        False,
        True,  # under way
        False,  # never sent
    ]


def test_what_is_refused_after_a_failure_is_certainly_not_stored() -> None:
    b = bench(delivery_timeout=1.0)
    b.add(b"a")
    b.break_off(b.send())
    b.now += 1.0
    b.break_off(b.send())
    assert isinstance(b.session.failure, NetworkError)
    assert b.session.failure.maybe_applied
    with pytest.raises(NetworkError) as caught:
        b.add(b"more")

    assert not caught.value.maybe_applied


def test_what_is_acknowledged_after_the_failure_is_not_sent_again() -> None:
    b = bench(max_in_flight=3)
    b.add(*numbered(4))
    sends = b.sends()
    b.recover(b.reply(sends[2], 400), retry=False)
    b.reply(sends[1])

    assert b.session.unacknowledged() == numbered(2, start=2)


def test_a_late_duplicate_that_cannot_be_ours_is_sent_again() -> None:
    b = bench(max_in_flight=2)
    b.add(*numbered(2))
    sends = b.sends()
    b.recover(b.reply(sends[1], 400), retry=False)
    b.reply(sends[0], 204)

    assert b.session.unacknowledged() == numbered(2)


def test_a_batch_that_was_confirmed_before_the_failure_is_not_part_of_it() -> None:
    b = bench(max_in_flight=3)
    promises = b.add(*numbered(3))
    sends = b.sends()
    b.reply(sends[1])
    b.recover(b.reply(sends[2], 400), retry=False)

    assert promises[0].ack == Ack(None, False, 0, 0)
    assert b.session.unacknowledged() == [b"2"]


def test_aborting_drops_everything_and_says_what_may_be_stored() -> None:
    b = bench(max_in_flight=1)
    promises = b.add(*numbered(2))
    closing = Promise()
    b.session.close(None, closing)
    b.send()
    outcomes = b.session.abort()

    assert [type(outcome) for outcome in outcomes] == [CloseFailed, Failed, Failed]
    for promise, maybe_applied in zip([*promises, closing], [True, False, False], strict=True):
        assert isinstance(promise.error, AlreadyClosedError)
        assert promise.error.maybe_applied is maybe_applied
    assert b.session.unacknowledged() == numbered(2), "it can still be asked what was dropped"
    assert b.session.abort() == []


def test_aborting_a_failed_producer_keeps_its_failure() -> None:
    b = bench()
    b.add(b"a")
    b.recover(b.reply(b.send(), 400), retry=False)
    failure = b.session.failure

    assert b.session.abort() == []
    assert b.session.failure is failure
    assert b.session.unacknowledged() == [b"a"]


def test_a_held_producer_sends_again_but_nothing_new() -> None:
    b = bench(max_in_flight=2)
    b.add(*numbered(3))
    sends = b.sends()
    b.session.hold()
    b.break_off(sends[1])
    b.reply(sends[0])
    b.now += 1.0
    assert seqs(b.sends()) == [1]
    b.session.resume()

    assert b.sends() == [], "holding is for good"
