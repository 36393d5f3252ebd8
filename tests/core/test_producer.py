"""What a producer sends when, and what answers mean to it: client specification 12.3 to 12.5, row by row."""

from __future__ import annotations

from typing import Any

import pytest

from durable_streams._core.backoff import BackoffOptions
from durable_streams._core.batcher import Ack
from durable_streams._core.producer_values import Acked, Asked, Failed, ProducerOptions, Retried, Send, State, Wait
from durable_streams._core.wire import MAX_INTEGER
from durable_streams.errors import (
    AlreadyClosedError,
    DurableStreamError,
    FetchError,
    InvalidArgumentError,
    NetworkError,
    RetentionGoneError,
    StreamNotFoundError,
)

from .producer_bench import URL, Promise, bench, numbered, seqs

# -- Batching (12.3) ---------------------------------------------------------------------------------------


def test_a_request_carries_its_stamp_its_content_type_and_its_body() -> None:
    b = bench(epoch=3, next_seq=7, content_type="application/json", max_batch_items=2)
    b.add(b"1", b"[2]")

    request = b.send().request

    assert request.method == "POST"
    assert request.body == b"[1,[2]]"
    assert request.headers == {
        "producer-id": "p",
        "producer-epoch": "3",
        "producer-seq": "7",
        "content-type": "application/json",
    }


def test_numbers_count_requests_and_not_messages() -> None:
    b = bench(max_batch_items=3)
    b.add(*numbered(9))

    assert seqs(b.sends()) == [0, 1, 2]


def test_an_open_batch_lingers_from_the_first_poll_that_sees_it() -> None:
    b = bench(max_batch_items=None, linger=5.0)
    b.add(b"a")

    assert b.poll() == Wait(105.0)
    b.now += 4.9
    b.add(b"b")
    assert b.poll() == Wait(105.0)
    b.now = 105.0
    assert b.send().request.body == b"ab"


def test_sealing_ends_the_linger_time_so_that_the_next_batch_has_its_own() -> None:
    b = bench(max_batch_items=2, linger=5.0)
    b.add(b"a")
    b.poll()
    b.now += 4.0
    b.add(b"b")
    assert b.send().request.body == b"ab"
    b.add(b"c")

    assert b.poll() == Wait(109.0)


def test_a_linger_time_that_ends_while_all_lanes_are_busy_seals_nothing() -> None:
    b = bench(max_batch_items=None, max_batch_bytes=4, linger=1.0, max_in_flight=1)
    b.add(b"a")
    b.session.flush()
    busy = b.send()
    b.add(b"b")
    b.now += 10.0
    assert b.poll() == Wait(None)
    b.add(b"c", b"d")
    b.reply(busy)

    assert b.send().request.body == b"bcd"


def test_once_the_lanes_have_been_idle_a_batch_lingers_again() -> None:
    b = bench(max_batch_items=None, linger=1.0, max_in_flight=1)
    b.add(b"a")
    b.session.flush()
    b.reply(b.send())
    assert b.poll() == Wait(None)
    b.add(b"b")

    assert b.poll() == Wait(101.0)


def test_sealed_batches_wait_behind_the_window_and_none_grows_beyond_its_cap() -> None:
    b = bench(max_batch_items=None, max_batch_bytes=2, max_in_flight=1)
    b.add(b"a")
    busy = b.send()
    b.add(*numbered(7))
    bodies = []
    b.reply(busy)
    while isinstance(command := b.poll(), Send):
        bodies.append(command.request.body)
        b.reply(command)

    assert bodies == [b"01", b"23", b"45", b"6"]


@pytest.mark.parametrize("how", ["flush", "detach", "close"])
def test_flushing_detaching_and_closing_end_the_lingering(how: str) -> None:
    b = bench(max_batch_items=None, linger=60.0)
    b.add(b"a")
    b.poll()
    if how == "close":
        b.session.close(None, Promise())
    else:
        getattr(b.session, how)()

    assert b.send().request.body == b"a"


def test_what_comes_after_a_flush_lingers_again() -> None:
    b = bench(max_batch_items=None, linger=60.0)
    b.add(b"a")
    b.session.flush()
    b.reply(b.send())
    b.add(b"b")

    assert b.poll() == Wait(160.0)


def test_a_flush_is_reached_when_everything_before_it_is_resolved() -> None:
    b = bench()
    b.add(*numbered(3))
    watermark = b.session.flush()
    sends = b.sends()
    b.add(b"later")
    for send in reversed(sends):
        assert b.session.settled < watermark
        b.break_off(send)
    b.now += 1
    for send in b.sends():
        b.reply(send)

    assert b.session.settled >= watermark


def test_what_is_unacknowledged_includes_the_open_batch() -> None:
    b = bench(max_batch_items=2, max_in_flight=1)
    b.add(*numbered(5))
    b.send()

    assert b.session.unacknowledged() == numbered(5)


# -- Numbers and pipelining (12.4) -------------------------------------------------------------------------


def test_a_batch_that_waits_reserves_no_number() -> None:
    b = bench(max_in_flight=2)
    b.add(*numbered(5))
    sends = b.sends()

    assert seqs(sends) == [0, 1]
    assert b.session.next_seq == 2
    assert b.session.unacknowledged() == numbered(5)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_answers_come_in_any_order_and_each_lets_the_next_batch_go(order: tuple[int, ...]) -> None:
    b = bench(max_in_flight=3)
    promises = b.add(*numbered(6))
    sends = b.sends()
    followers = []
    for index in order:
        b.reply(sends[index], stream_next_offset=f"o{index}")
        followers += seqs(b.sends())

    assert followers == [3, 4, 5]
    assert [promise.ack for promise in promises[:3]] == [Ack(f"o{n}", False, 0, n) for n in range(3)]


def test_a_repetition_has_the_same_stamp_and_the_same_bytes() -> None:
    b = bench(max_batch_items=None, content_type="application/json")
    b.add(b"1", b"2")
    first = b.send()
    b.add(b"3")
    b.break_off(first)
    b.now += 1.0
    again = b.send()

    assert again.stamp == first.stamp
    assert again.request.body is first.request.body
    assert again.request == first.request


def test_one_in_flight_keeps_the_order_of_requests() -> None:
    b = bench(max_in_flight=1)
    b.add(*numbered(3))
    for number in range(3):
        (send,) = b.sends()
        assert send.stamp == (0, number)
        b.reply(send)


@pytest.mark.parametrize("options", [{"auto_claim": True}, {"epoch": 2}, {"auto_claim": True, "epoch": 2}])
def test_only_one_batch_of_a_new_epoch_is_sent_before_one_is_acknowledged(options: dict[str, Any]) -> None:
    b = bench(max_in_flight=3, **options)
    b.add(*numbered(4))
    (first,) = b.sends()
    b.break_off(first)
    b.now += 1.0
    (again,) = b.sends()
    assert again.stamp == first.stamp
    b.reply(again)

    assert seqs(b.sends()) == [1, 2, 3]


def test_epoch_0_without_claims_needs_no_gate() -> None:
    b = bench(max_in_flight=3)
    b.add(*numbered(4))

    assert seqs(b.sends()) == [0, 1, 2]


def test_a_flush_waits_for_batches_behind_the_gate() -> None:
    b = bench(auto_claim=True)
    b.add(*numbered(3))
    watermark = b.session.flush()
    b.reply(b.send())
    assert b.session.settled < watermark
    for send in b.sends():
        b.reply(send)

    assert b.session.settled == watermark


def test_a_slow_first_batch_is_not_forgotten_however_many_overtake_it() -> None:
    b = bench(max_in_flight=50)
    promises = b.add(*numbered(50))
    first, *others = b.sends()
    for other in others:
        b.gap(other, 0)
    assert b.poll() == Wait(None)
    b.reply(first)
    again = []
    while sends := b.sends():
        again += seqs(sends)
        for send in sends:
            b.reply(send)

    assert again == list(range(1, 50))
    assert all(promise.ack for promise in promises)
    assert b.session.gap_retries == 49


# -- Answers (12.5) ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "duplicate"), [(200, False), (201, False), (204, True)])
@pytest.mark.parametrize("offset", [None, "0_7"])
def test_success_acknowledges_and_a_duplicate_is_a_success(status: int, duplicate: bool, offset: str | None) -> None:
    b = bench()
    (promise,) = b.add(b"a")
    headers = {} if offset is None else {"stream_next_offset": offset}
    send = b.send()

    outcomes = b.reply(send, status, producer_seq=9, **headers)

    assert promise.ack == Ack(offset, duplicate, 0, 0)
    assert outcomes == [Acked(send.batch, promise.ack)]
    assert b.session.duplicates == duplicate
    assert b.session.last_offset == offset


def test_the_last_offset_never_goes_back() -> None:
    b = bench()
    b.add(*numbered(4))
    sends = b.sends()
    seen = []
    for index, offset in ((1, "o1"), (2, None), (0, "o0"), (3, "o3")):
        b.reply(sends[index], **({} if offset is None else {"stream_next_offset": offset}))
        seen.append(b.session.last_offset)

    assert seen == ["o1", "o1", "o1", "o3"]


def test_the_last_offset_is_that_of_the_newest_answer_that_had_one() -> None:
    b = bench()
    b.add(*numbered(3))
    sends = b.sends()
    b.reply(sends[0], stream_next_offset="o0")
    b.reply(sends[2])
    b.reply(sends[1], stream_next_offset="o1")

    assert b.session.last_offset == "o1"


def test_an_acknowledgement_confirms_what_was_sent_before_it() -> None:
    b = bench()
    promises = b.add(*numbered(3))
    sends = b.sends()
    b.break_off(sends[0])
    b.reply(sends[2], stream_next_offset="o")

    assert promises[0].ack == Ack(None, False, 0, 0)
    assert promises[1].ack is None, "its own answer is still to come"
    b.reply(sends[1], stream_next_offset="p")
    assert promises[1].ack == Ack("p", False, 0, 1)
    assert b.sends() == []


@pytest.mark.parametrize("status", [409, 403, 500])
def test_a_confirmed_batch_is_done_whatever_its_own_answer_says(status: int) -> None:
    b = bench()
    promises = b.add(*numbered(2))
    sends = b.sends()
    b.reply(sends[1])
    b.reply(sends[0], status, producer_epoch=5, producer_expected_seq=2)

    assert promises[0].ack == Ack(None, False, 0, 0)
    assert b.session.failure is None


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, DurableStreamError, "BAD_REQUEST"),
        (401, DurableStreamError, "UNAUTHORIZED"),
        (403, DurableStreamError, "FORBIDDEN"),
        (404, StreamNotFoundError, "NOT_FOUND"),
        (410, RetentionGoneError, "GONE"),
        (413, FetchError, "UNKNOWN"),
        (418, FetchError, "UNKNOWN"),
        (304, FetchError, "UNKNOWN"),
        (307, FetchError, "UNKNOWN"),
        (501, FetchError, "UNKNOWN"),
        (505, FetchError, "UNKNOWN"),
    ],
)
def test_other_answers_ask_the_user_and_then_stop_everything(
    status: int, error: type[DurableStreamError], code: str
) -> None:
    b = bench()
    promises = b.add(*numbered(2))
    sends = b.sends()

    outcomes = b.reply(sends[0], status)
    (asked,) = outcomes
    assert isinstance(asked, Asked)
    assert isinstance(asked.error, error)
    failed = b.recover(outcomes, retry=False)

    assert b.session.state is State.FAILED
    assert b.session.failure is asked.error
    assert asked.error.code == code
    assert [type(outcome) for outcome in failed] == [Failed, Failed]
    assert all(type(promise.error) is type(asked.error) for promise in promises)


def test_the_user_can_mend_what_answers_complain_about() -> None:
    b = bench()
    (promise,) = b.add(b"a")
    first = b.send()
    outcomes = b.reply(first, 401)
    assert b.poll() == Wait(None), "while the user is asked, nobody sends it"
    b.recover(outcomes, retry=True)
    again = b.send()
    b.reply(again)

    assert again.request == first.request
    assert promise.ack is not None


def test_the_user_is_told_how_often_he_was_asked_in_a_row() -> None:
    b = bench()
    b.add(b"a")
    attempts = []
    for _ in range(3):
        outcomes = b.reply(b.send(), 401)
        (asked,) = outcomes
        assert isinstance(asked, Asked)
        assert isinstance(asked.error, DurableStreamError)
        attempts.append(asked.error.attempt)
        b.recover(outcomes, retry=True)

    assert attempts == [1, 2, 3]


def test_being_mended_without_asking_does_not_count() -> None:
    b = bench()
    b.add(b"a")
    (asked,) = b.reply(b.send(), 401)
    assert isinstance(asked, Asked)
    b.session.on_recover(asked.send, asked.error, True, asked=False)
    (asked,) = b.reply(b.send(), 401)

    assert isinstance(asked, Asked)
    assert isinstance(asked.error, DurableStreamError)
    assert asked.error.attempt == 1


def test_a_mended_batch_has_its_whole_time_again() -> None:
    b = bench(delivery_timeout=10.0)
    b.add(b"a")
    b.break_off(b.send())
    b.now += 9.0
    b.recover(b.reply(b.send(), 401), retry=True)
    b.now += 9.0
    (retried,) = b.break_off(b.send())

    assert isinstance(retried, Retried)
    assert retried.attempt == 1


def test_deciding_about_a_batch_that_turned_out_to_be_stored_changes_nothing() -> None:
    b = bench()
    promises = b.add(*numbered(2))
    sends = b.sends()
    b.break_off(sends[0])  # stored, but the answer is lost
    b.now += 1.0
    asked = b.reply(b.send(), 401)
    b.reply(sends[1])

    assert b.recover(asked, retry=False) == []
    assert b.session.failure is None
    assert promises[0].ack is not None


def test_deciding_about_a_batch_of_before_a_restart_changes_nothing() -> None:
    b = bench()
    b.add(*numbered(2))
    sends = b.sends()
    asked = b.reply(sends[0], 401)
    b.recover(b.reply(sends[1], 400), retry=False)
    b.session.restart(resend=True)

    assert b.recover(asked, retry=False) == []
    assert b.session.state is State.OPEN
    assert b.send().stamp == (1, 0)


def test_an_exception_of_the_users_own_is_asked_about_too() -> None:
    b = bench()
    (promise,) = b.add(b"a")
    error = LookupError("no token")
    outcomes = b.break_off(b.send(), error)
    b.recover(outcomes, retry=False)

    assert promise.error is error
    assert b.session.failure is error


def test_what_the_user_is_asked_about_says_whether_the_batch_may_be_stored() -> None:
    b = bench()
    b.add(b"a")
    b.break_off(b.send())
    b.now += 1.0
    (asked,) = b.break_off(b.send(), AlreadyClosedError("the handle was closed"))

    assert isinstance(asked, Asked)
    assert isinstance(asked.error, AlreadyClosedError)
    assert asked.error.maybe_applied


# -- Trying again (12.1, 12.5) -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 599])
def test_busy_and_broken_servers_are_tried_again_after_a_pause(status: int) -> None:
    b = bench(retry=BackoffOptions(initial_delay=1.0, max_delay=3.0, multiplier=2.0))
    b.add(b"a")
    delays = []
    for attempt in range(1, 5):
        (retried,) = b.reply(b.send(), status, draw=1.0)
        assert isinstance(retried, Retried)
        assert retried.attempt == attempt
        delays.append(retried.delay)
        assert b.poll() == Wait(b.now + retried.delay)
        b.now += retried.delay

    assert delays == [1.0, 2.0, 3.0, 3.0]
    assert b.session.retries == 4


@pytest.mark.parametrize("phase", ["connect", "sent", "body"])
def test_broken_exchanges_are_tried_again(phase: Any) -> None:
    b = bench()
    b.add(b"a")
    (retried,) = b.break_off(b.send(), NetworkError("broken", phase=phase))

    assert isinstance(retried, Retried)
    assert b.poll() == Wait(b.now + retried.delay)


def test_retry_after_is_a_floor() -> None:
    b = bench()
    b.add(b"a")
    (retried,) = b.reply(b.send(), 503, retry_after=7)

    assert isinstance(retried, Retried)
    assert retried.delay == 7.0


def test_a_retry_after_beyond_the_delivery_timeout_fails_now() -> None:
    b = bench(delivery_timeout=10.0)
    (promise,) = b.add(b"a")
    b.reply(b.send(), 503, retry_after=11)

    assert isinstance(promise.error, DurableStreamError)
    assert promise.error.code == "BUSY"
    assert promise.error.retry_after == 11.0


def test_a_retry_after_that_ends_with_the_delivery_timeout_is_waited_for() -> None:
    b = bench(delivery_timeout=10.0)
    b.add(b"a")
    (retried,) = b.reply(b.send(), 503, retry_after=10)

    assert isinstance(retried, Retried)
    assert retried.delay == 10.0


def test_a_last_try_is_made_when_the_delivery_timeout_ends() -> None:
    b = bench(delivery_timeout=10.0, retry=BackoffOptions(initial_delay=8.0, max_delay=100.0, multiplier=10.0))
    (promise,) = b.add(b"a")
    times = []
    while promise.error is None:
        b.break_off(b.send(), draw=1.0)
        if isinstance(wait := b.poll(), Wait):
            assert wait.until is not None
            times.append(wait.until - 100.0)
            b.now = wait.until

    assert times == [8.0, 10.0]
    assert isinstance(promise.error, NetworkError)
    assert promise.error.maybe_applied


def test_the_delivery_timeout_counts_from_the_first_dispatch_of_the_batch() -> None:
    b = bench(delivery_timeout=10.0, max_in_flight=1)
    b.add(*numbered(2))
    first = b.send()
    b.now += 100.0
    b.reply(first)
    (retried,) = b.break_off(b.send())

    assert isinstance(retried, Retried)


def test_tries_may_be_limited_in_number() -> None:
    b = bench(retry=BackoffOptions(max_retries=2))
    (promise,) = b.add(b"a")
    requests = 0
    while promise.error is None:
        requests += 1
        b.break_off(b.send())
        b.now += 1.0

    assert requests == 3


def test_a_reused_connection_that_breaks_is_forgiven_once_and_at_once() -> None:
    b = bench()
    b.add(b"a")
    broken = NetworkError("closed", phase="sent", reused=True)
    send = b.send()
    assert b.break_off(send, broken) == [Retried(send.batch, 0, 0.0, broken)]
    (retried,) = b.break_off(b.send(), broken, draw=1.0)

    assert isinstance(retried, Retried)
    assert (retried.attempt, retried.delay) == (1, 0.1)


@pytest.mark.parametrize(
    ("happened", "maybe_applied"),
    [
        (NetworkError("refused", phase="connect"), False),
        (NetworkError("reset", phase="sent"), True),
        (429, False),
        (500, True),
        (503, True),
    ],
)
def test_the_final_error_says_whether_the_batch_may_be_stored(happened: Any, maybe_applied: bool) -> None:
    b = bench()
    (promise,) = b.add(b"a")
    send = b.send()
    if isinstance(happened, int):
        b.reply(send, happened)
    else:
        b.break_off(send, happened)
    b.now += 1.0
    b.recover(b.reply(b.send(), 404), retry=False)

    assert isinstance(promise.error, StreamNotFoundError)
    assert promise.error.maybe_applied is maybe_applied


# -- Options (12.1, 14) ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"producer_id": 3}, TypeError),
        ({"producer_id": ""}, InvalidArgumentError),
        ({"producer_id": " p"}, InvalidArgumentError),
        ({"producer_id": "a\nb"}, InvalidArgumentError),
        ({"producer_id": "☃"}, InvalidArgumentError),
        ({"auto_claim": 1}, TypeError),
        ({"retry": 3}, TypeError),
        *[
            ({name: value}, error)
            for name in ("epoch", "next_seq", "max_batch_bytes", "max_batch_items", "max_in_flight")
            for value, error in ((-1, InvalidArgumentError), (True, TypeError), (1.5, TypeError), ("1", TypeError))
        ],
        *[
            ({name: 0}, InvalidArgumentError)
            for name in ("max_batch_bytes", "max_batch_items", "max_in_flight", "max_buffered_bytes")
        ],
        ({"max_buffered_messages": 0}, InvalidArgumentError),
        ({"epoch": MAX_INTEGER + 1}, InvalidArgumentError),
        ({"next_seq": MAX_INTEGER + 1}, InvalidArgumentError),
        ({"linger": -0.1}, InvalidArgumentError),
        ({"linger": float("nan")}, InvalidArgumentError),
        ({"linger": "1"}, TypeError),
        ({"delivery_timeout": 0}, InvalidArgumentError),
        ({"delivery_timeout": float("inf")}, InvalidArgumentError),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], error: type[Exception]) -> None:
    arguments: dict[str, Any] = {"url": URL, "producer_id": "p", "content_type": "text/plain"} | options
    (name,) = options
    with pytest.raises(error, match=name.replace("_", ".")):
        ProducerOptions(**arguments)
