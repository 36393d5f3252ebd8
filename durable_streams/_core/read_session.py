"""A read session without I/O: which request comes next, and what its answer means.

Theory of operation
-------------------

A session moves through the phases of `Phase`. In START, CATCH_UP and LONG_POLL an answer is one *page*: its body is
collected whole and handed over when it is complete, so that a body which breaks in the middle leaves nothing behind
and is asked for again from the same offset. In SSE one answer carries many *batches*: the `data` events up to a
`control` event, whose offset ends them; what stands before a missing control event is dropped and read again.

Three positions are kept apart:

* `_offset` and `_cursor` are the network position: where the next request starts. They move when a page or batch is
  complete.
* The queue holds pages that are complete and not yet handed over, oldest first. They stay through cancellation.
* `delivered` is the consumer's position. It moves when the consumer asks for the page after (`on_taken`), because
  only then is a page known to be processed. It alone is safe to store (client specification, section 8).

A session that gets nowhere is slowed down, never trusted: five fruitless answers in a row (same offset, no data, not
closed, not an ordinary idle 204) put pauses before further requests (7.4); SSE connections that end early without
progress are paused for and, after three, given up for long-poll for the rest of the session (7.5). An answer whose
offset lies before ours is stale and counts as fruitless.

The specification meant is the client's, sections 6 to 8, and the protocol's 5.6 to 5.8.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum

from ..errors import (
    AlreadyClosedError,
    DurableStreamError,
    FetchError,
    InvalidArgumentError,
    NetworkError,
    ParseError,
    SSENotSupportedError,
)
from . import json_mode, sse, validate, wire
from .backoff import BackoffOptions, RetrySchedule, may_repeat
from .checkpoint import Checkpoint
from .content_coding import ACCEPT_ENCODING
from .exchange import Ask, Deliver, End, Failure, Fetch, Head, Kind, Receive, Request, Sleep
from .status_errors import MAX_ERROR_BODY, Subject, status_error

#: Fruitless answers in a row that are let pass before pauses begin (client 7.4).
FRUITLESS_LIMIT = 5
#: Shortest of these pauses, in seconds: with it no session makes more than ten fruitless requests per second.
FRUITLESS_PAUSE = 0.2
#: A long-poll that waited this long before answering 204 did its job, in seconds.
IDLE_204 = 0.1
#: Answers to an SSE request that mean "not here": long-poll is tried instead.
_SSE_REFUSALS = frozenset({400, 405, 406, 501})
_KINDS = {wire.LONG_POLL: Kind.LONG_POLL, wire.SSE: Kind.SSE}


class Phase(Enum):
    """Where a session stands."""

    START = "start"
    CATCH_UP = "catch-up"
    LONG_POLL = "long-poll"
    SSE = "sse"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Said(Enum):
    """What a complete answer, or the end of an SSE connection, says about the way to go on."""

    MORE = "more"
    UP_TO_DATE = "up-to-date"
    CLOSED = "closed"
    SSE_ENDED = "sse-ended"
    SSE_UNUSABLE = "sse-unusable"


#: Stands in `NEXT` for the phase that `choose_live` answers.
LIVE = "live"

#: (phase, what the answer said) -> next phase (client 7.2). `LIVE` is decided by `choose_live`.
NEXT: dict[tuple[Phase, Said], Phase | str] = {
    (Phase.START, Said.MORE): Phase.CATCH_UP,
    (Phase.START, Said.UP_TO_DATE): LIVE,
    (Phase.START, Said.CLOSED): Phase.DONE,
    (Phase.CATCH_UP, Said.MORE): Phase.CATCH_UP,
    (Phase.CATCH_UP, Said.UP_TO_DATE): LIVE,
    (Phase.CATCH_UP, Said.CLOSED): Phase.DONE,
    (Phase.LONG_POLL, Said.MORE): Phase.LONG_POLL,
    (Phase.LONG_POLL, Said.UP_TO_DATE): Phase.LONG_POLL,
    (Phase.LONG_POLL, Said.CLOSED): Phase.DONE,
    (Phase.SSE, Said.MORE): Phase.SSE,
    (Phase.SSE, Said.UP_TO_DATE): Phase.SSE,
    (Phase.SSE, Said.CLOSED): Phase.DONE,
    (Phase.SSE, Said.SSE_ENDED): Phase.SSE,
    (Phase.SSE, Said.SSE_UNUSABLE): Phase.LONG_POLL,
}


@dataclass(frozen=True, slots=True)
class SSEResilience:
    """When server-sent events are given up for long-poll.

    A connection that ends early and brought nothing new is *short*. Each one is followed by a pause drawn uniformly
    from 0 to `min(backoff_max_delay, backoff_base_delay * 2 ** n)`.

    Attributes:
        min_connection_duration: Seconds that a connection has to live so as not to be short.
        max_short_connections: Short connections in a row after which the session long-polls from then on.
        backoff_base_delay: See above, in seconds.
        backoff_max_delay: See above, in seconds.
        log_warnings: Whether falling back is logged as a warning.
        fallback: Whether a server that answers an SSE request with something else is long-polled instead. If not, and
            it answers so, `SSENotSupportedError` is raised.

    Raises:
        TypeError: an option has a wrong type.
        InvalidArgumentError: an option is out of range.
    """

    min_connection_duration: float = 1.0
    max_short_connections: int = 3
    backoff_base_delay: float = 0.1
    backoff_max_delay: float = 5.0
    log_warnings: bool = True
    fallback: bool = True

    def __post_init__(self) -> None:
        validate.number("min_connection_duration", self.min_connection_duration)
        validate.integer("max_short_connections", self.max_short_connections, minimum=1)
        validate.number("backoff_base_delay", self.backoff_base_delay, exclusive=True)
        validate.number("backoff_max_delay", self.backoff_max_delay, exclusive=True)
        if self.backoff_max_delay < self.backoff_base_delay:
            raise InvalidArgumentError(
                f"backoff_max_delay must be at least backoff_base_delay ({self.backoff_base_delay}), "
                f"got {self.backoff_max_delay}"
            )

    def ceiling(self, short: int) -> float:
        """Largest pause after this many short connections in a row, in seconds."""
        return min(self.backoff_max_delay, self.backoff_base_delay * 2.0 ** min(short, 60))


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a session is asked to do; checked by the caller (`validate`).

    Attributes:
        url: The stream's URL, fit to be shown in errors.
        start: Where to begin.
        live: False, True, "long-poll" or "sse".
        json: Read in JSON mode whatever the content type says.
        max_page_bytes: Preferred size of a page, or None to leave it to the server.
        max_response_bytes: Largest decoded answer (on SSE: event) that is accepted, or None.
        backoff: Retry policy.
        sse: When to give up SSE.
        live_default: What `live=True` means for JSON streams.
        if_none_match: Entity tag of an earlier first answer from `start`, sent with the first request; or None.
    """

    url: str
    start: Checkpoint
    live: validate.Live = True
    json: bool = False
    max_page_bytes: int | None = 4 << 20
    max_response_bytes: int | None = None
    backoff: BackoffOptions = field(default_factory=BackoffOptions)
    sse: SSEResilience = field(default_factory=SSEResilience)
    live_default: str = wire.SSE
    if_none_match: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Data of one batch, undecoded, and the position after it.

    Attributes:
        data: Parts that follow on each other, none of them empty: in JSON mode the body of a page or one part per SSE
            event, else the pieces in which the data came.
        checkpoint: Position after the data.
        before: Offset where the data starts.
    """

    data: tuple[bytes, ...]
    checkpoint: Checkpoint
    before: str


def choose_live(live: validate.Live, content_type: str | None, *, default: str = wire.SSE) -> Phase:
    """The phase that follows on catching up (client specification, section 6).

    `text/*` is never moved to SSE without being asked for, because SSE does not carry text faithfully (9.3).
    """
    if live is False:
        return Phase.DONE
    preferred: str | bool = live
    if live is True:
        preferred = wire.SSE if wire.is_json(content_type) and default == wire.SSE else wire.LONG_POLL
    return Phase.SSE if preferred == wire.SSE else Phase.LONG_POLL


class ReadSession:
    """Protocol state of one reader. Commands and reports: see `exchange`.

    Attributes:
        delivered: Position of the consumer: everything before it was handed over and asked beyond.
        phase: Where the session stands.
        head: Head of the first answer, once there is one.
        notices: Sentences for the log, oldest first; the driver empties it.
    """

    def __init__(self, options: ReadOptions) -> None:
        self.options = options
        self.delivered = options.start
        self.phase = Phase.START
        self.head: Head | None = None
        self.notices: list[str] = []
        self._offset = options.start.offset
        self._cursor = options.start.cursor
        self._up_to_date = options.start.up_to_date
        self._pages: deque[Page] = deque()
        self._schedule = RetrySchedule(options.backoff)
        self._command: Fetch | Receive | Sleep | Ask | End | None = None  # None: the next request is due
        self._slept: Sleep | None = None
        self._established = False
        self._content_type: str | None = None
        self._asked = 0
        self._sent_at = 0.0
        # The open answer.
        self._answer: Head | None = None
        self._body: list[bytes] = []
        self._body_size = 0
        self._draw = 0.0
        # Fruitless answers, and short SSE connections.
        self._fruitless = 0
        self._fruitless_since = 0.0
        self._short = 0
        self._parser = sse.SSEParser()
        self._base64 = False
        self._progressed = False

    # -- What the driver asks ------------------------------------------------------------------------------

    def next(self, now: float) -> Fetch | Receive | Sleep | Deliver[Page] | Ask | End:
        """What to do now; the same answer until something is reported."""
        if self.phase is Phase.CANCELLED:
            return End()
        if self._pages:
            return Deliver(self._pages[0])
        if self._slept is not None and self._command is self._slept and now >= self._slept.until:
            self._command = None
        if self._command is None:
            if self.phase is Phase.DONE:
                self._command = End()
            else:
                self._command = Fetch(self._request())
                self._schedule.begin(now)
                self._sent_at = now
        if isinstance(self._command, Sleep):
            self._slept = self._command  # Handed out once even if it is over by now: it tells of a failure.
        return self._command

    @property
    def content_type(self) -> str | None:
        """Content type of the first answer, if it has come; of the one after, if that was a 304 without one."""
        return self._content_type

    @property
    def json(self) -> bool:
        """Whether this is a session in JSON mode (client 9.1)."""
        return self.options.json or wire.is_json(self.content_type)

    def _request(self) -> Request:
        live = {Phase.LONG_POLL: wire.LONG_POLL, Phase.SSE: wire.SSE}.get(self.phase)
        params = {wire.OFFSET_PARAM: self._offset}
        if live is not None:
            params[wire.LIVE_PARAM] = live
        if self._cursor is not None:
            params[wire.CURSOR_PARAM] = self._cursor
        headers = {"accept-encoding": ACCEPT_ENCODING}
        if self.phase is Phase.SSE:
            headers = {"accept-encoding": "identity", "accept": wire.EVENT_STREAM}
        elif self.options.max_page_bytes is not None:
            headers["prefer"] = f"max-page-bytes={self.options.max_page_bytes}"
        if self._conditional:
            assert self.options.if_none_match is not None
            headers["if-none-match"] = self.options.if_none_match
        kind = _KINDS[live] if live is not None else Kind.CATCH_UP
        return Request("GET", kind, params, headers)

    @property
    def _conditional(self) -> bool:
        """Whether the present request is for data unlike what the user has (client 7.7): the first one alone."""
        return self.phase is Phase.START and self.options.if_none_match is not None and self._offset != wire.NOW

    # -- What the driver reports ---------------------------------------------------------------------------

    def on_head(self, head: Head, now: float, draw: float) -> None:
        """The answer's head has come."""
        self._answer, self._draw = head, draw
        self._body, self._body_size = [], 0
        if self.phase is Phase.SSE:
            self._on_sse_head(head, now)
            return
        self._command = Receive()
        if self.head is not None and self.head.status == 304 and head.status == 200:
            self._content_type = self._content_type or head.headers.get(wire.CONTENT_TYPE)
        if self.phase is Phase.START and (head.status in (200, 204) or (head.status == 304 and self._conditional)):
            self.head = head
            self._content_type = head.headers.get(wire.CONTENT_TYPE)
            if self._offset == wire.NOW and (tail := head.headers.get(wire.NEXT_OFFSET)):
                self._offset = tail  # Never ask for `now` again: what is written meanwhile would be lost.
                self.delivered = replace(self.delivered, offset=tail)

    def on_chunk(self, data: bytes, now: float) -> None:
        """A piece of the decoded body has come."""
        assert self._answer is not None
        if self.phase is Phase.SSE and self._answer.status == 200:
            try:
                self._on_events(self._parser.feed(data))
            except ParseError as error:
                self._fatal(error)
            return
        self._body.append(data)
        self._body_size += len(data)
        if self._answer.status != 200 and self._body_size >= MAX_ERROR_BODY:
            self.on_end(now, self._draw)

    def on_end(self, now: float, draw: float) -> None:
        """The body is complete."""
        head = self._answer
        assert head is not None
        body = self._body
        self._answer, self._body = None, []
        if head.status == 200 and self.phase is Phase.SSE:
            self._on_connection_ended(now, draw)
        elif head.status in (200, 204) or (head.status == 304 and (self.phase is Phase.LONG_POLL or self._conditional)):
            self._on_page(head, body if head.status == 200 else [], now, draw)
        else:
            error = status_error(Subject("read", self.options.url), head, b"".join(body)[:MAX_ERROR_BODY])
            self._failed(error, now, draw)

    def on_failure(self, failure: Failure, now: float, draw: float) -> None:
        """The exchange broke: what came of a page or batch without its end is dropped."""
        head = self._answer
        if head is not None and head.status not in (200, 204):
            self.on_end(now, draw)  # Reading an error's body must not hide its status.
            return
        connected = head is not None and self.phase is Phase.SSE
        self._answer, self._body = None, []
        if connected and isinstance(failure.error, NetworkError):
            self._on_connection_ended(now, draw)
        else:
            self._failed(failure.error, now, draw)

    def on_recover(self, retry: bool) -> None:
        """The user's `on_error` decided about the error of the last `Ask`."""
        assert isinstance(self._command, Ask)
        if retry:
            self._schedule.reset()
            self._fruitless = 0
            self._command = None
        else:
            self.phase = Phase.FAILED
            self._command = End(self._command.error)

    def on_taken(self) -> None:
        """The delivered page is with the consumer, who now asks for the next."""
        if self._pages:  # Empty after `fail`.
            self.delivered = self._pages.popleft().checkpoint

    def amend(self, checkpoint: Checkpoint) -> None:
        """Decoding has completed the position after the page that is being delivered (its `text_tail`)."""
        if self._pages:
            self._pages[0] = replace(self._pages[0], checkpoint=checkpoint)

    def on_abandoned(self) -> None:
        """The caller was cancelled in mid-exchange: ask again from here; pages already complete stay."""
        self._answer, self._body = None, []
        if isinstance(self._command, Fetch | Receive):
            self._command = None

    def cancel(self) -> None:
        """End the session for good. Idempotent; has no effect on one that is over.

        The page that is with the consumer stays, for `on_taken` to say that it was processed.
        """
        if self.phase not in (Phase.DONE, Phase.FAILED) or self._pages:
            self.phase = Phase.CANCELLED
            while len(self._pages) > 1:
                self._pages.pop()

    def fail(self, error: Exception) -> None:
        """The delivered page cannot be decoded, or its consumer failed: the session is over, `delivered` stays."""
        self._pages.clear()
        self.phase = Phase.FAILED
        self._command = End(error)

    # -- Pages ---------------------------------------------------------------------------------------------

    def _on_page(self, head: Head, body: list[bytes], now: float, draw: float) -> None:
        if self.json and len(body) > 1:
            body = [b"".join(body)]  # Other data is not joined before somebody wants it in one piece.
        headers = head.headers
        before = self._offset
        after = headers.get(wire.NEXT_OFFSET) or before
        if after == wire.NOW:
            after = before  # No position: what is written until the next request would be lost.
        empty = not body or (self.json and json_mode.is_empty(body[0]))
        closed = wire.is_true(headers.get(wire.CLOSED))
        # 204 and 304 say by themselves that there is nothing more at the moment; but a 304 about a page that the user
        # has already may be followed by others.
        passed = self._conditional and head.status == 304 and after != before
        up_to_date = closed or (head.status != 200 and not passed) or wire.is_flag(headers.get(wire.UP_TO_DATE))
        stale = before not in (wire.START, wire.NOW) and after < before
        self._succeeded()
        if stale:
            self._on_fruitless(head, now, draw, f"an offset ({after}) before the one asked for ({before})")
            return
        advanced = after != before
        ends = closed or (up_to_date and self.options.live is False)
        if not advanced and not ends and (not empty or before == wire.NOW):
            missing = "lacks Stream-Next-Offset" if wire.NEXT_OFFSET not in headers else "does not advance the offset"
            self._fatal(
                self._parse_error(f"an answer to offset={before} {missing}, so reading cannot go on", b"".join(body))
            )
            return
        self._offset = after
        self._cursor = headers.get(wire.CURSOR) or self._cursor
        self._up_to_date = up_to_date
        self._established = True
        data = () if empty else tuple(body)
        self._pages.append(Page(data, Checkpoint(after, self._cursor, up_to_date, closed), before))
        caught_up = self.phase in (Phase.START, Phase.CATCH_UP) and up_to_date
        idle = head.status == 204 and now - self._sent_at >= IDLE_204
        self._advance(Said.CLOSED if closed else Said.UP_TO_DATE if up_to_date else Said.MORE)
        if advanced or caught_up or idle or closed:
            self._fruitless = 0
        else:
            self._on_fruitless(head, now, draw, "neither data nor a new offset")

    def _on_fruitless(self, head: Head, now: float, draw: float, what: str) -> None:
        """Count an answer that brought nothing; from the fifth in a row on, pause before the next request."""
        if self._fruitless == 0:
            self._fruitless_since = now
        self._fruitless += 1
        self._command = None
        if self._fruitless < FRUITLESS_LIMIT:
            return
        if self._fruitless == FRUITLESS_LIMIT:
            self.notices.append(f"the server keeps answering {head.status} with {what}; slowing down")
        limit = self.options.backoff.max_elapsed
        if self.phase in (Phase.START, Phase.CATCH_UP) and limit is not None and now - self._fruitless_since > limit:
            where = f"read {self.options.url}: no progress for {limit:g} s"
            error = FetchError(f"{where}: the server keeps answering with {what}", status=head.status)
            error.url, error.headers = self.options.url, dict(head.headers)
            self._ask(error)
            return
        pause = draw * self.options.backoff.ceiling(self._fruitless - FRUITLESS_LIMIT + 1)
        self._command = Sleep(now + max(FRUITLESS_PAUSE, pause))

    # -- Server-sent events --------------------------------------------------------------------------------

    def _on_sse_head(self, head: Head, now: float) -> None:
        media_type = wire.media_type(head.headers.get(wire.CONTENT_TYPE))
        if head.status == 200 and media_type == wire.EVENT_STREAM:
            encoding = head.headers.get(wire.SSE_DATA_ENCODING)
            if encoding is not None and encoding.strip().lower() != "base64":
                self._fatal(self._parse_error(f"unknown Stream-SSE-Data-Encoding {encoding!r}", b""))
                return
            self._base64 = encoding is not None
            self._parser = sse.SSEParser(self.options.max_response_bytes)
            self._sent_at = now  # From here on: when the connection was there.
            self._progressed = False
            self._succeeded()
            self._command = Receive()
        elif head.status in _SSE_REFUSALS or 200 <= head.status < 300:
            what = f"answers an SSE request with {head.status} {media_type or '(no content type)'}"
            self._answer = None
            if self.options.sse.fallback:
                if self.options.sse.log_warnings:
                    self.notices.append(f"the server {what}; using long-poll from now on")
                self._advance(Said.SSE_UNUSABLE)
            else:
                where = f"read {self.options.url}"
                headers = dict(head.headers)
                self._ask(
                    SSENotSupportedError(
                        f"{where}: the server {what}", status=head.status, url=self.options.url, headers=headers
                    )
                )
        else:
            self._command = Receive()

    def _on_events(self, events: list[sse.Event]) -> None:
        for event in events:
            if event.type == "data":
                data = sse.decode_base64(event.data) if self._base64 else event.data
                if data:
                    self._body.append(data)
                    self._body_size += len(data)
                    limit = self.options.max_response_bytes
                    if limit is not None and self._body_size > limit:
                        raise self._parse_error(f"a batch exceeds max_response_bytes ({limit})", b"")
            elif event.type == "control":
                self._on_control(sse.parse_control(event.data))
                if self.phase is Phase.DONE:
                    return

    def _on_control(self, control: sse.Control) -> None:
        before, after = self._offset, control.next_offset
        parts = tuple(part for part in self._body if not (self.json and json_mode.is_empty(part)))
        self._body, self._body_size = [], 0
        if before != wire.START and after < before:
            return  # A stale answer: nothing in it is new.
        closed = control.stream_closed
        up_to_date = closed or bool(control.up_to_date)
        if control.up_to_date is None and not parts:
            up_to_date = up_to_date or self._up_to_date  # Missing: as before without data, no with data.
        self._offset = after
        self._cursor = control.cursor or self._cursor
        self._up_to_date = up_to_date
        if after != before:
            self._progressed = True  # Data alone is none: it would come again with each connection.
        if parts or control.up_to_date or closed:
            self._pages.append(Page(parts, Checkpoint(after, self._cursor, up_to_date, closed), before))
        if closed:
            self._answer = None
            self._advance(Said.CLOSED)

    def _on_connection_ended(self, now: float, draw: float) -> None:
        """An SSE connection ended without closing the stream: reconnect, pause first, or give SSE up (7.5)."""
        self._answer, self._body = None, []
        resilience = self.options.sse
        if self._progressed or now - self._sent_at >= resilience.min_connection_duration:
            self._short = 0
            self._advance(Said.SSE_ENDED)
            return
        self._short += 1
        if self._short < resilience.max_short_connections:
            self._advance(Said.SSE_ENDED)
            self._command = Sleep(now + draw * resilience.ceiling(self._short))
            return
        if resilience.log_warnings:
            self.notices.append(
                f"{self._short} SSE connections in a row ended within {resilience.min_connection_duration:g} s, "
                "perhaps because a proxy buffers or cuts them; using long-poll from now on"
            )
        self._advance(Said.SSE_UNUSABLE)

    # -- Common --------------------------------------------------------------------------------------------

    def _advance(self, said: Said) -> None:
        following = NEXT[self.phase, said]
        if not isinstance(following, Phase):
            following = choose_live(self.options.live, self.content_type, default=self.options.live_default)
            if following is Phase.SSE and wire.is_text(self.content_type):
                self.notices.append("SSE does not carry text faithfully (line ends, leading spaces); use long-poll")
        self.phase = following
        self._command = None

    def _succeeded(self) -> None:
        self._schedule.reset()
        self._asked = 0

    def _failed(self, error: Exception, now: float, draw: float) -> None:
        """Try again if that may help; else ask the user."""
        if may_repeat(error, Kind.CATCH_UP):
            limited = not self._established or self.options.live is False
            retry = self._schedule.fail(error, now, draw, limited=limited)
            if retry is not None:
                self._command = Sleep(now + retry.delay, retry)
                return
        self._ask(error)

    def _fatal(self, error: ParseError) -> None:
        error.url = self.options.url
        error.offset = error.offset or self._offset
        self._ask(error)

    def _ask(self, error: Exception) -> None:
        self._answer, self._body = None, []
        if isinstance(error, AlreadyClosedError):  # The transport was closed under us: there is nothing to mend.
            self.fail(error)
            return
        self._asked += 1
        if isinstance(error, DurableStreamError):
            error.attempt = self._asked
        self._command = Ask(error)

    def _parse_error(self, what: str, data: bytes) -> ParseError:
        preview = data[:400].decode(errors="replace")[:100]
        return ParseError(f"read {self.options.url}: {what} (offset {self._offset})", preview=preview)
