"""The read session without I/O: what it asks for, and what it makes of the answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from durable_streams._core.backoff import BackoffOptions
from durable_streams._core.checkpoint import Checkpoint
from durable_streams._core.exchange import Ask, Deliver, End, Failure, Fetch, Head, Kind, Receive, Request, Sleep
from durable_streams._core.read_session import (
    LIVE,
    NEXT,
    Page,
    Phase,
    ReadOptions,
    ReadSession,
    Said,
    SSEResilience,
    choose_live,
)
from durable_streams.errors import (
    DurableStreamError,
    FetchError,
    IncompleteBodyError,
    NetworkError,
    ParseError,
    RetentionGoneError,
    SSENotSupportedError,
    StreamNotFoundError,
)

URL = "http://server/stream"
JSON = {"content-type": "application/json"}
TEXT = {"content-type": "text/plain"}
BYTES = {"content-type": "application/octet-stream"}
EVENTS = {"content-type": "text/event-stream"}


def flags(
    offset: str | None = None, *, up_to_date: bool = False, closed: bool = False, cursor: str | None = None
) -> dict[str, str]:
    """Protocol headers of an answer."""
    headers = {}
    if offset is not None:
        headers["stream-next-offset"] = offset
    if up_to_date:
        headers["stream-up-to-date"] = "true"
    if closed:
        headers["stream-closed"] = "true"
    if cursor is not None:
        headers["stream-cursor"] = cursor
    return headers


def control(offset: str, extra: str = "") -> bytes:
    """A control event."""
    return f'event: control\ndata:{{"streamNextOffset":"{offset}"{extra}}}\n\n'.encode()


def data(text: str) -> bytes:
    """A data event."""
    return f"event: data\ndata:{text}\n\n".encode()


@dataclass
class Run:
    """Drives a session by hand, with a clock that only the test moves."""

    session: ReadSession
    now: float = 1000.0
    draw: float = 0.5
    requests: list[Request] = field(default_factory=list)

    @classmethod
    def of(cls, **options: object) -> Run:
        start = options.pop("offset", "-1")
        position = start if isinstance(start, Checkpoint) else Checkpoint(str(start))
        return cls(ReadSession(ReadOptions(url=URL, start=position, **options)))  # type: ignore[arg-type]

    def command(self) -> object:
        return self.session.next(self.now)

    def fetch(self) -> Request:
        """The request that the session asks for, after any pause."""
        command = self.command()
        if isinstance(command, Sleep):
            self.now = command.until
            command = self.command()
        assert isinstance(command, Fetch), command
        self.requests.append(command.request)
        return command.request

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> Request:
        """Answer the next request completely."""
        request = self.fetch()
        self.session.on_head(Head(status, headers), self.now, self.draw)
        if isinstance(self.command(), Receive):
            if body:
                self.session.on_chunk(body, self.now)
            if isinstance(self.command(), Receive):
                self.session.on_end(self.now, self.draw)
        return request

    def open(self, headers: dict[str, str] | None = None) -> Request:
        """Answer the next request with the head of an SSE connection."""
        request = self.fetch()
        self.session.on_head(Head(200, EVENTS | (headers or {})), self.now, self.draw)
        return request

    def hang_up(self, after: float = 0.0) -> None:
        self.now += after
        self.session.on_end(self.now, self.draw)

    def fail(self, error: Exception | None = None, phase: str = "sent") -> None:
        self.fetch()
        self.session.on_failure(Failure(error or NetworkError("reset", phase="sent"), phase), self.now, self.draw)  # type: ignore[arg-type]

    def take(self) -> Page:
        """Take the page that is being delivered."""
        command = self.command()
        assert isinstance(command, Deliver), command
        self.session.on_taken()
        page = command.value
        assert isinstance(page, Page)
        return page

    def error(self) -> Exception:
        """The error that the session asks about; the answer is to give up."""
        command = self.command()
        assert isinstance(command, Ask), command
        self.session.on_recover(False)
        assert self.command() == End(command.error)
        assert self.session.phase is Phase.FAILED
        return command.error

    def catch_up(self, headers: dict[str, str] = JSON, offset: str = "5") -> None:
        """Get the first, up-to-date answer out of the way."""
        self.answer(200, headers | flags(offset, up_to_date=True), b"[1]" if headers is JSON else b"x")
        self.take()


# -- Requests ----------------------------------------------------------------------------------------------


def test_the_first_request_is_a_plain_catch_up_with_the_offset() -> None:
    request = Run.of(live=True).fetch()

    assert request.kind is Kind.CATCH_UP
    assert dict(request.params) == {"offset": "-1"}
    assert dict(request.headers) == {"accept-encoding": "gzip, deflate", "prefer": "max-page-bytes=4194304"}


def test_the_same_command_is_given_until_something_is_reported() -> None:
    run = Run.of()

    assert run.command() == run.command() == Fetch(run.fetch())


def test_the_preferred_page_size_can_be_left_to_the_server() -> None:
    assert "prefer" not in Run.of(max_page_bytes=None).fetch().headers


def test_every_catch_up_page_is_asked_for_without_live_and_with_the_cursor() -> None:
    run = Run.of(live=True)
    run.answer(200, BYTES | flags("3", cursor="c1"), b"abc")
    run.take()

    assert dict(run.fetch().params) == {"offset": "3", "cursor": "c1"}


def test_the_cursor_of_a_checkpoint_is_sent() -> None:
    assert Run.of(offset=Checkpoint("7", "c9")).fetch().params["cursor"] == "c9"


def test_an_sse_request_asks_for_events_and_no_compression() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    request = run.fetch()

    assert request.kind is Kind.SSE
    assert dict(request.params) == {"offset": "5", "live": "sse"}
    assert dict(request.headers) == {"accept-encoding": "identity", "accept": "text/event-stream"}


def test_the_cursor_stays_when_an_answer_has_none() -> None:
    run = Run.of(live="long-poll")
    run.answer(200, BYTES | flags("3", up_to_date=True, cursor="c1"), b"abc")
    run.take()
    run.answer(204, flags("3", up_to_date=True))
    run.take()

    assert run.fetch().params["cursor"] == "c1"


# -- Phases ------------------------------------------------------------------------------------------------


def test_the_table_has_an_answer_for_everything_an_answer_can_say() -> None:
    page = {Said.MORE, Said.UP_TO_DATE, Said.CLOSED}
    expected = {(phase, said) for phase in (Phase.START, Phase.CATCH_UP, Phase.LONG_POLL, Phase.SSE) for said in page}
    expected |= {(Phase.SSE, Said.SSE_ENDED), (Phase.SSE, Said.SSE_UNUSABLE)}

    assert set(NEXT) == expected
    assert all(isinstance(phase, Phase) or phase == LIVE for phase in NEXT.values())


@pytest.mark.parametrize(
    ("live", "content_type", "phase"),
    [
        (False, "application/json", Phase.DONE),
        (True, "application/json; charset=utf-8", Phase.SSE),
        (True, "APPLICATION/JSON", Phase.SSE),
        (True, "application/json-seq", Phase.LONG_POLL),
        (True, "application/problem+json", Phase.LONG_POLL),
        (True, "text/plain", Phase.LONG_POLL),
        (True, "application/octet-stream", Phase.LONG_POLL),
        (True, None, Phase.LONG_POLL),
        ("long-poll", "application/json", Phase.LONG_POLL),
        ("sse", "application/json", Phase.SSE),
        ("sse", "text/plain", Phase.SSE),
        ("sse", "application/octet-stream", Phase.SSE),
    ],
)
def test_the_live_transport_follows_the_table(live: bool | str, content_type: str | None, phase: Phase) -> None:
    assert choose_live(live, content_type) is phase  # type: ignore[arg-type]


def test_the_default_for_json_can_be_switched_to_long_poll() -> None:
    assert choose_live(True, "application/json", default="long-poll") is Phase.LONG_POLL


def test_catching_up_goes_on_until_up_to_date() -> None:
    run = Run.of(live=False)
    run.answer(200, BYTES | flags("3"), b"abc")
    first = run.take()
    run.answer(200, BYTES | flags("6", up_to_date=True), b"def")
    second = run.take()

    assert (first.data, second.data) == ((b"abc",), (b"def",))
    assert run.command() == End()
    assert run.session.delivered == Checkpoint("6", up_to_date=True)


def test_an_empty_page_is_not_the_end() -> None:
    run = Run.of(live=False)
    run.answer(200, BYTES | flags("3"), b"")
    run.take()

    assert dict(run.fetch().params) == {"offset": "3"}


@pytest.mark.parametrize("live", [False, True, "long-poll", "sse"])
def test_a_closed_stream_ends_the_session_after_its_data(live: bool | str) -> None:
    run = Run.of(live=live)
    run.answer(200, BYTES | flags("3", closed=True), b"abc")

    assert run.take().data == (b"abc",)
    assert run.command() == End()
    assert run.session.delivered.stream_closed
    assert run.session.delivered.up_to_date


def test_an_empty_closed_answer_ends_the_session_at_once() -> None:
    run = Run.of(offset="3", live=True)
    run.answer(200, BYTES | flags("3", closed=True, up_to_date=True))

    assert run.take().data == ()
    assert run.command() == End()
    assert len(run.requests) == 1


def test_resuming_at_a_closed_checkpoint_makes_one_request() -> None:
    run = Run.of(offset=Checkpoint("3", up_to_date=True, stream_closed=True), live=True)
    request = run.answer(200, BYTES | flags("3", closed=True, up_to_date=True))

    assert request.kind is Kind.CATCH_UP
    run.take()
    assert run.command() == End()


@pytest.mark.parametrize("value", ["true", "TRUE", "True"])
def test_the_closed_flag_is_true_in_any_case(value: str) -> None:
    run = Run.of(live=True)
    run.answer(200, BYTES | flags("3") | {"stream-closed": value}, b"abc")
    run.take()

    assert run.command() == End()


@pytest.mark.parametrize("value", ["false", "yes", "1", ""])
def test_any_other_value_is_no_closure(value: str) -> None:
    run = Run.of(live=True)
    run.answer(200, BYTES | flags("3", up_to_date=True) | {"stream-closed": value}, b"abc")
    run.take()

    assert isinstance(run.command(), Fetch)


@pytest.mark.parametrize(
    ("value", "up_to_date"), [("true", True), ("", True), ("1", True), ("false", False), ("FALSE", False)]
)
def test_up_to_date_is_present_and_not_false(value: str, up_to_date: bool) -> None:
    run = Run.of(live=False)
    run.answer(200, BYTES | flags("3") | {"stream-up-to-date": value}, b"abc")

    assert run.take().checkpoint.up_to_date is up_to_date


# -- now ---------------------------------------------------------------------------------------------------


def test_now_is_replaced_by_the_real_tail_as_soon_as_it_is_known() -> None:
    run = Run.of(offset="now", live="long-poll")
    request = run.fetch()
    run.session.on_head(Head(200, BYTES | flags("9", up_to_date=True)), run.now, run.draw)

    assert dict(request.params) == {"offset": "now"}
    assert run.session.delivered.offset == "9"
    run.session.on_failure(Failure(IncompleteBodyError("cut", phase="body"), "body"), run.now, 0.0)
    assert dict(run.fetch().params) == {"offset": "9"}


def test_now_goes_live_from_the_tail() -> None:
    run = Run.of(offset="now", live="long-poll")
    run.answer(200, BYTES | flags("9", up_to_date=True))
    run.take()

    assert dict(run.fetch().params) == {"offset": "9", "live": "long-poll"}


def test_a_now_without_a_tail_is_an_error_and_not_a_loop() -> None:
    run = Run.of(offset="now", live=True)
    run.answer(200, BYTES | flags(up_to_date=True))

    assert isinstance(run.error(), ParseError)


# -- Positions ---------------------------------------------------------------------------------------------


def test_the_position_moves_when_the_consumer_asks_for_more() -> None:
    run = Run.of(live=False)
    run.answer(200, BYTES | flags("3", up_to_date=True), b"abc")
    assert isinstance(run.command(), Deliver)

    assert run.session.delivered == Checkpoint("-1")
    run.session.on_taken()
    assert run.session.delivered == Checkpoint("3", up_to_date=True)


def test_a_cancelled_exchange_is_made_again_and_complete_batches_stay() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    run.open()
    run.session.on_chunk(data("[2]") + control("6") + data("[3"), run.now)
    run.session.on_abandoned()

    assert run.take().data == (b"[2]",)
    assert dict(run.fetch().params) == {"offset": "6", "live": "sse"}


def test_decoding_completes_the_position_of_the_page_being_delivered() -> None:
    run = Run.of(live=False)
    run.answer(200, TEXT | flags("3", up_to_date=True), b"a\xe2\x82")
    run.session.amend(Checkpoint("3", up_to_date=True, text_tail=b"\xe2\x82"))
    run.session.on_taken()

    assert run.session.delivered.text_tail == b"\xe2\x82"


def test_a_broken_body_is_dropped_and_asked_for_again() -> None:
    run = Run.of(live=False)
    run.fetch()
    run.session.on_head(Head(200, BYTES | flags("3", up_to_date=True)), run.now, run.draw)
    run.session.on_chunk(b"ab", run.now)
    run.session.on_failure(Failure(IncompleteBodyError("cut", phase="body"), "body"), run.now, run.draw)
    run.answer(200, BYTES | flags("3", up_to_date=True), b"abc")

    assert run.take().data == (b"abc",)
    assert [dict(request.params) for request in run.requests] == [{"offset": "-1"}] * 2


# -- Long-poll ---------------------------------------------------------------------------------------------


def test_a_204_moves_the_position_and_is_delivered_as_an_empty_batch() -> None:
    run = Run.of(live="long-poll")
    run.catch_up(BYTES)
    run.now += 20
    run.answer(204, flags("6", up_to_date=True, cursor="c2"))

    assert run.take() == Page((), Checkpoint("6", "c2", up_to_date=True), "5")
    assert dict(run.fetch().params) == {"offset": "6", "live": "long-poll", "cursor": "c2"}


def test_an_empty_200_is_delivered_too() -> None:
    run = Run.of(live="long-poll")
    run.catch_up()
    run.answer(200, JSON | flags("5", up_to_date=True), b"[]")

    assert run.take().data == ()


def test_a_204_with_the_closed_flag_ends_the_session() -> None:
    run = Run.of(live="long-poll")
    run.catch_up()
    run.answer(204, flags("5", up_to_date=True, closed=True))
    run.take()

    assert run.command() == End()


def test_data_and_closure_may_come_together() -> None:
    run = Run.of(live="long-poll")
    run.catch_up()
    run.answer(200, JSON | flags("6", closed=True), b"[2]")

    assert run.take().data == (b"[2]",)
    assert run.command() == End()


def test_a_304_that_nobody_asked_for_is_an_error_in_catch_up() -> None:
    run = Run.of(live=False)
    run.answer(304, flags("3"))

    error = run.error()
    assert isinstance(error, FetchError)
    assert error.status == 304


def test_a_conditional_read_that_finds_nothing_new_is_up_to_date_and_keeps_its_offset() -> None:
    run = Run.of(live=False, offset="3", if_none_match='"e"')
    request = run.answer(304, {"etag": '"e"'})

    assert request.headers["if-none-match"] == '"e"'
    assert run.take() == Page((), Checkpoint("3", None, True), "3")
    assert run.command() == End()


def test_only_the_first_request_is_conditional() -> None:
    run = Run.of(live="long-poll", if_none_match='"e"')
    run.answer(200, BYTES | flags("1"), b"a")
    run.take()
    run.answer(200, BYTES | flags("2", up_to_date=True), b"b")
    run.take()
    run.fetch()

    assert ["if-none-match" in request.headers for request in run.requests] == [True, False, False]


def test_a_read_from_now_is_never_conditional() -> None:
    assert "if-none-match" not in Run.of(offset="now", if_none_match='"e"').fetch().headers


def test_a_retried_conditional_read_stays_conditional() -> None:
    run = Run.of(live=False, if_none_match='"e"')
    run.fail()

    assert run.fetch().headers["if-none-match"] == '"e"'


def test_a_304_about_a_page_in_the_middle_goes_on_behind_it() -> None:
    run = Run.of(live=False, if_none_match='"e"')
    run.answer(304, flags("4", cursor="c"))
    assert run.take() == Page((), Checkpoint("4", "c", False), "-1")

    assert run.fetch().params == {"offset": "4", "cursor": "c"}


def test_a_conditional_read_goes_on_live_and_learns_the_content_type_there() -> None:
    run = Run.of(live=True, offset="3", if_none_match='"e"')
    run.answer(304, {})
    run.take()
    assert not run.session.json

    assert run.answer(200, JSON | flags("4", up_to_date=True), b"[1]").params["live"] == "long-poll"
    assert (run.session.json, run.take().data) == (True, (b"[1]",))


def test_now_is_never_taken_for_a_position() -> None:
    run = Run.of(live=True)
    run.answer(200, BYTES | flags("now"), b"a")

    error = run.error()
    assert isinstance(error, ParseError)
    assert error.offset == "-1"


# -- Fruitless answers -------------------------------------------------------------------------------------


def fruitless(run: Run, count: int, status: int = 200) -> list[float]:
    """Answer so many live requests with nothing; returns the pauses before the requests that follow."""
    pauses = []
    for _ in range(count):
        run.answer(status, JSON | flags("5", up_to_date=True), b"[]" if status == 200 else b"")
        run.take()
        command = run.command()
        pauses.append(command.until - run.now if isinstance(command, Sleep) else 0.0)
    return pauses


@pytest.mark.parametrize("status", [200, 204])
def test_five_fruitless_answers_in_a_row_put_pauses_before_the_next(status: int) -> None:
    run = Run.of(live="long-poll")
    run.catch_up()
    pauses = fruitless(run, 8, status)

    assert pauses[:4] == [0.0] * 4
    assert all(pause >= 0.199 for pause in pauses[4:])
    assert len(run.session.notices) == 1


def test_progress_ends_the_pauses() -> None:
    run = Run.of(live="long-poll")
    run.catch_up()
    fruitless(run, 6)
    run.answer(200, JSON | flags("6", up_to_date=True), b"[2]")
    run.take()

    assert isinstance(run.command(), Fetch)


def test_an_idle_204_is_no_reason_to_pause() -> None:
    run = Run.of(live="long-poll")
    run.catch_up()
    for _ in range(20):
        request = run.fetch()
        run.now += 0.15
        run.session.on_head(Head(204, flags("5", up_to_date=True)), run.now, run.draw)
        run.session.on_end(run.now, run.draw)
        run.take()
        assert request.kind is Kind.LONG_POLL
        assert isinstance(run.command(), Fetch)


def test_no_session_makes_more_than_ten_fruitless_requests_per_second() -> None:
    run = Run.of(live="long-poll")
    run.draw = 0.0
    run.catch_up()
    began = run.now
    fruitless(run, 100)

    assert 10 * (run.now - began) + 10 >= 100


def test_an_answer_with_an_earlier_offset_is_stale_and_ignored() -> None:
    run = Run.of(offset="5", live=False)
    run.answer(200, BYTES | flags("3", up_to_date=True), b"old")
    request = run.answer(200, BYTES | flags("8", up_to_date=True), b"new")

    assert request.params["offset"] == "5"
    assert run.take().data == (b"new",)


def test_catching_up_without_progress_gives_up_within_the_retry_bound() -> None:
    run = Run.of(offset="5", live=False)
    for _ in range(1000):
        if isinstance(run.command(), Ask):
            break
        run.answer(200, BYTES | flags("3", up_to_date=True), b"old")

    assert run.now <= 1000 + 130
    error = run.error()
    assert isinstance(error, FetchError)
    assert "before the one asked for" in str(error)


@pytest.mark.parametrize("headers", [{}, flags("5")])
def test_data_that_does_not_advance_the_offset_is_an_error_and_not_a_loop(headers: dict[str, str]) -> None:
    run = Run.of(offset="5", live=True)
    run.answer(200, BYTES | headers, b"abc")
    error = run.error()

    assert isinstance(error, ParseError)
    assert error.offset == "5"
    assert error.preview == "abc"


# -- SSE ---------------------------------------------------------------------------------------------------


def test_a_batch_is_delivered_when_its_control_event_has_come() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    run.open()
    run.session.on_chunk(data("[2]") + data("[3]"), run.now)
    assert isinstance(run.command(), Receive)
    run.session.on_chunk(control("7", ',"streamCursor":"c","upToDate":true'), run.now)

    assert run.take() == Page((b"[2]", b"[3]"), Checkpoint("7", "c", up_to_date=True), "5")
    assert isinstance(run.command(), Receive)


def test_several_batches_in_one_piece_keep_their_order() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    run.open()
    run.session.on_chunk(data("[2]") + control("6") + data("[3]") + control("7"), run.now)

    assert [run.take().checkpoint.offset for _ in range(2)] == ["6", "7"]


def test_an_incomplete_batch_is_read_again_from_before_it() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    run.open()
    run.session.on_chunk(data("[2]") + control("6") + data("[3]"), run.now)
    run.take()
    run.hang_up()

    assert run.fetch().params["offset"] == "6"


def test_a_control_event_without_data_is_delivered_if_it_says_something() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    run.open()
    run.session.on_chunk(control("6"), run.now)
    assert isinstance(run.command(), Receive)
    run.session.on_chunk(control("6", ',"upToDate":true'), run.now)

    assert run.take() == Page((), Checkpoint("6", up_to_date=True), "6")


def test_up_to_date_missing_means_no_with_data_and_as_before_without() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    run.open()
    run.session.on_chunk(data("[2]") + control("6"), run.now)
    assert run.take().checkpoint.up_to_date is False
    run.session.on_chunk(control("6", ',"upToDate":true') + control("7") + data("[3]") + control("8"), run.now)
    run.take()

    assert run.take().checkpoint == Checkpoint("8")


def test_closure_ends_the_session_without_reconnecting() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    run.open()
    run.session.on_chunk(data("[2]") + control("6", ',"streamClosed":true') + data("[9]"), run.now)

    assert run.take().checkpoint == Checkpoint("6", up_to_date=True, stream_closed=True)
    assert run.command() == End()


def test_base64_events_are_decoded_one_by_one() -> None:
    run = Run.of(live="sse")
    run.catch_up(BYTES)
    run.open({"stream-sse-data-encoding": "base64"})
    run.session.on_chunk(data("AA==") + data("AQ==") + control("7"), run.now)

    assert run.take().data == (b"\x00", b"\x01")


def test_the_encoding_is_read_anew_from_each_connection() -> None:
    run = Run.of(live="sse")
    run.catch_up(BYTES)
    run.open({"stream-sse-data-encoding": "base64"})
    run.hang_up(after=60)
    run.open()
    run.session.on_chunk(data("AA==") + control("9"), run.now)

    assert run.take().data == (b"AA==",)


@pytest.mark.parametrize(
    "events",
    [
        b"event: control\ndata:{nope\n\n",
        b"event: control\ndata:[1]\n\n",
        b"event: control\ndata:{}\n\n",
        b'event: control\ndata:{"streamNextOffset":5}\n\n',
    ],
)
def test_a_broken_control_event_is_fatal(events: bytes) -> None:
    run = Run.of(live="sse")
    run.catch_up()
    run.open()
    run.session.on_chunk(events, run.now)

    assert isinstance(run.error(), ParseError)


def test_broken_base64_is_fatal_after_what_was_complete() -> None:
    run = Run.of(live="sse")
    run.catch_up(BYTES)
    run.open({"stream-sse-data-encoding": "base64"})
    run.session.on_chunk(data("AA==") + control("6") + data("A!==") + control("7"), run.now)

    assert run.take().data == (b"\x00",)
    error = run.error()
    assert isinstance(error, ParseError)
    assert error.offset == "6"


def test_an_unknown_data_encoding_is_an_error() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    run.open({"stream-sse-data-encoding": "hex"})

    assert "hex" in str(run.error())


def test_a_healthy_connection_is_followed_by_another_at_once() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    for _ in range(10):
        run.open()
        run.hang_up(after=1.0)
        assert isinstance(run.command(), Fetch)

    assert run.session.phase is Phase.SSE


def test_three_short_connections_lead_to_long_poll_for_good() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    pauses = []
    for _ in range(3):
        run.open()
        run.hang_up(after=0.1)
        command = run.command()
        pauses.append(command.until - run.now if isinstance(command, Sleep) else None)
    run.answer(200, JSON | flags("6", up_to_date=True), b"[2]")

    assert pauses == [pytest.approx(0.1), pytest.approx(0.2), None]
    assert run.take().data == (b"[2]",)
    assert run.fetch().params["live"] == "long-poll"
    assert len(run.session.notices) == 1


def test_a_short_connection_that_brought_data_does_not_count() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    for n in range(6, 20):
        run.open()
        run.session.on_chunk(data("[2]") + control(f"5{n:02}"), run.now)
        run.take()
        run.hang_up(after=0.01)
        assert isinstance(run.command(), Fetch)

    assert run.session.phase is Phase.SSE


def test_data_that_does_not_advance_the_offset_is_no_progress() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    for _ in range(3):
        run.open()
        run.session.on_chunk(data("[2]") + control("5"), run.now)
        run.take()
        run.hang_up(after=0.01)
    run.answer(200, JSON | flags("5", up_to_date=True), b"[2]")

    error = run.error()  # where an endless loop of the same data would begin
    assert isinstance(error, ParseError)
    assert "does not advance the offset" in str(error)


def test_a_broken_connection_is_treated_as_one_that_ended() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    run.open()
    run.now += 5
    run.session.on_failure(Failure(NetworkError("reset", phase="body"), "body"), run.now, run.draw)

    assert isinstance(run.command(), Fetch)


@pytest.mark.parametrize("status", [400, 405, 406, 501])
def test_a_refused_sse_request_leads_to_long_poll(status: int) -> None:
    run = Run.of(live="sse")
    run.catch_up()
    run.answer(status, TEXT, b"no")

    assert run.fetch().params["live"] == "long-poll"
    assert len(run.session.notices) == 1


def test_a_server_that_ignores_live_is_long_polled() -> None:
    run = Run.of(live=True)
    run.catch_up()
    run.answer(200, JSON | flags("6", up_to_date=True), b"[2]")

    assert run.fetch().params["live"] == "long-poll"


def test_without_fallback_a_refusal_is_an_error() -> None:
    run = Run.of(live="sse", sse=SSEResilience(fallback=False))
    run.catch_up()
    run.answer(406, TEXT, b"no")
    error = run.error()

    assert isinstance(error, SSENotSupportedError)
    assert error.status == 406


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_retried_and_not_given_up(status: int) -> None:
    run = Run.of(live="sse")
    run.catch_up()
    for _ in range(30):
        run.answer(status, TEXT, b"busy")

    assert run.session.phase is Phase.SSE
    assert run.fetch().params["live"] == "sse"


def test_a_stale_batch_on_sse_is_ignored() -> None:
    run = Run.of(live="sse")
    run.catch_up()
    run.open()
    run.session.on_chunk(data("[0]") + control("3") + data("[2]") + control("6"), run.now)

    assert run.take().data == (b"[2]",)


def test_text_over_sse_is_warned_about_once() -> None:
    run = Run.of(live="sse")
    run.catch_up(TEXT)
    run.open()
    run.hang_up(after=60)
    run.open()

    assert len(run.session.notices) == 1
    assert "text" in run.session.notices[0]


# -- Failures ----------------------------------------------------------------------------------------------


def test_failures_are_repeated_with_growing_full_jitter() -> None:
    run = Run.of(live=False, backoff=BackoffOptions(initial_delay=1, multiplier=2, max_delay=5))
    run.draw = 1.0
    pauses = []
    for _ in range(5):
        run.fail()
        command = run.command()
        assert isinstance(command, Sleep)
        assert command.retry is not None
        pauses.append(command.until - run.now)

    assert pauses == [1, 2, 4, 5, 5]


def test_retry_after_is_a_floor() -> None:
    run = Run.of(live=False)
    run.answer(503, TEXT | {"retry-after": "7"}, b"busy")
    command = run.command()

    assert isinstance(command, Sleep)
    assert command.until == run.now + 7


def test_a_session_without_an_answer_gives_up_within_the_bound() -> None:
    run = Run.of(live=True)
    for _ in range(2000):
        run.fail(NetworkError("refused", phase="connect"), "connect")
        if isinstance(run.command(), Ask):
            break

    assert run.now <= 1060
    assert isinstance(run.error(), NetworkError)


def test_an_established_live_session_never_gives_up() -> None:
    run = Run.of(live="long-poll")
    run.catch_up()
    for _ in range(300):
        run.fail()

    assert run.now > 1000 + 600
    assert isinstance(run.command(), Sleep)


def test_the_number_of_retries_can_be_limited() -> None:
    run = Run.of(live=False, backoff=BackoffOptions(max_retries=2))
    for _ in range(3):
        run.fail()
    run.error()

    assert len(run.requests) == 3


def test_a_success_starts_the_count_anew() -> None:
    run = Run.of(live="long-poll", backoff=BackoffOptions(max_retries=1))
    run.fail()
    run.catch_up()
    run.fail()

    assert isinstance(run.command(), Sleep)


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, DurableStreamError, "BAD_REQUEST"),
        (401, DurableStreamError, "UNAUTHORIZED"),
        (403, DurableStreamError, "FORBIDDEN"),
        (404, StreamNotFoundError, "NOT_FOUND"),
        (410, RetentionGoneError, "GONE"),
        (418, FetchError, "UNKNOWN"),
        (501, FetchError, "UNKNOWN"),
        (505, FetchError, "UNKNOWN"),
        (302, FetchError, "UNKNOWN"),
    ],
)
def test_a_fatal_status_is_an_error_of_its_kind(status: int, kind: type[DurableStreamError], code: str) -> None:
    run = Run.of(live=True)
    run.answer(status, TEXT, b"the server's words")
    error = run.error()

    assert type(error) is kind
    assert isinstance(error, DurableStreamError)
    assert (error.code, error.status, error.url, error.details) == (code, status, URL, "the server's words")
    assert URL in str(error)


@pytest.mark.parametrize(("status", "code"), [(429, "RATE_LIMITED"), (503, "BUSY")])
def test_an_exhausted_retry_names_its_reason(status: int, code: str) -> None:
    run = Run.of(live=False, backoff=BackoffOptions(max_retries=0))
    run.answer(status, {"retry-after": "3"}, b"")
    error = run.error()

    assert isinstance(error, DurableStreamError)
    assert (error.code, error.retry_after, error.retryable) == (code, 3.0, True)


def test_an_error_body_that_breaks_does_not_hide_the_status() -> None:
    run = Run.of(live=False)
    run.fetch()
    run.session.on_head(Head(404, TEXT), run.now, run.draw)
    run.session.on_chunk(b"gone", run.now)
    run.session.on_failure(Failure(IncompleteBodyError("cut", phase="body"), "body"), run.now, run.draw)

    assert isinstance(run.error(), StreamNotFoundError)


def test_an_endless_error_body_is_cut() -> None:
    run = Run.of(live=False)
    run.fetch()
    run.session.on_head(Head(404, TEXT), run.now, run.draw)
    for _ in range(100):
        if not isinstance(run.command(), Receive):
            break
        run.session.on_chunk(b"x" * 4096, run.now)

    assert isinstance(run.error(), StreamNotFoundError)


def test_the_user_may_ask_for_another_round_as_often_as_he_likes() -> None:
    run = Run.of(live=True)
    attempts = []
    for _ in range(4):
        run.answer(401, TEXT, b"")
        command = run.command()
        assert isinstance(command, Ask)
        assert isinstance(command.error, DurableStreamError)
        attempts.append(command.error.attempt)
        run.session.on_recover(True)
    run.catch_up()
    run.answer(401, TEXT, b"")
    command = run.command()

    assert attempts == [1, 2, 3, 4]
    assert isinstance(command, Ask)
    assert isinstance(command.error, DurableStreamError)
    assert command.error.attempt == 1


def test_an_exception_of_a_callable_is_not_repeated() -> None:
    run = Run.of(live=True)
    boom = LookupError("no token")
    run.fail(boom, "connect")

    assert run.error() is boom


@pytest.mark.parametrize("live", ["long-poll", "sse"])
def test_deletion_during_a_live_session_is_fatal(live: str) -> None:
    run = Run.of(live=live)
    run.catch_up()
    run.answer(404, TEXT, b"")

    assert isinstance(run.error(), StreamNotFoundError)


# -- Cancelling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["new", "delivering", "sleeping", "asking", "receiving", "done", "failed"])
def test_cancelling_ends_the_session_in_every_state(state: str) -> None:
    run = Run.of(live=False)
    if state in ("delivering", "done"):
        run.answer(200, BYTES | flags("3", up_to_date=True), b"abc")
    if state == "done":
        run.take()
    if state == "sleeping":
        run.fail()
    if state in ("asking", "failed"):
        run.answer(404, TEXT, b"")
    if state == "failed":
        run.error()
    if state == "receiving":
        run.fetch()
        run.session.on_head(Head(200, BYTES | flags("3")), run.now, run.draw)
    run.session.cancel()
    run.session.cancel()
    run.session.on_taken()

    command = run.command()
    assert isinstance(command, End)
    assert (command.error is not None) == (state == "failed")
