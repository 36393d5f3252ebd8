"""One operation on a stream - create, append, head, delete, close - as a session without I/O.

It sends its request until there is an answer to hand over or an error to raise: failures that may be repeated are
(`backoff.may_repeat`), others go to the user's `on_error` (`Ask`), who may ask for another round.

What the caller has to know about earlier tries travels with the answer: `Reply.ambiguous` says that one of them was
sent without being answered, so that this answer may be about its effect (a 404 after a delete that did happen, a 200
after a create that was ours).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import AlreadyClosedError, DurableStreamError, NetworkError
from .backoff import BackoffOptions, RetrySchedule, may_repeat
from .exchange import Ask, Deliver, End, Failure, Fetch, Head, Kind, Receive, Request, Sleep
from .status_errors import MAX_ERROR_BODY, Subject, status_error

_SUCCESS = frozenset({200, 201, 204})
#: Answers of a gateway that can hide a request which the server did apply.
_HIDING = frozenset({502, 504})


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer.

    Attributes:
        head: Its status and headers.
        body: Its body, at most 64 KiB of it.
        ambiguous: Whether an earlier try was sent without an answer, and may have been applied.
    """

    head: Head
    body: bytes
    ambiguous: bool


class CallSession:
    """Protocol state of one operation. Delivers exactly one `Reply`, or ends with an error.

    Args:
        request: What to send.
        subject: What errors have to name.
        backoff: Retry policy.
        accept: Which answers besides 200, 201 and 204 are results and no errors.
        repeat_ambiguous: Repeat a plain append although its first try may have been stored.
        repeatable: False for a body that can be read only once: every failure is final.
    """

    def __init__(
        self,
        request: Request,
        subject: Subject,
        backoff: BackoffOptions,
        *,
        accept: Callable[[Reply], bool] = lambda reply: False,
        repeat_ambiguous: bool = False,
        repeatable: bool = True,
    ) -> None:
        self._request = request
        self._subject = subject
        self._schedule = RetrySchedule(backoff)
        self._accept = accept
        self._repeat_ambiguous = repeat_ambiguous
        self._repeatable = repeatable
        self._command: Fetch | Receive | Sleep | Deliver[Reply] | Ask | End = Fetch(request)
        self._head = Head(0, {})
        self._body = bytearray()
        self._draw = 0.0
        self._slept: Sleep | None = None
        self._ambiguous = False
        self._asked = 0

    def next(self, now: float) -> Fetch | Receive | Sleep | Deliver[Reply] | Ask | End:
        """What to do now; the same answer until something is reported."""
        if self._slept is not None and self._command is self._slept and now >= self._slept.until:
            self._command = Fetch(self._request)
        if isinstance(self._command, Fetch):
            self._schedule.begin(now)
        elif isinstance(self._command, Sleep):
            self._slept = self._command  # Handed out once even if it is over by now: it tells of a failure.
        return self._command

    def on_head(self, head: Head, now: float, draw: float) -> None:
        """The answer's head has come."""
        self._head, self._draw = head, draw
        self._body.clear()
        self._command = Receive()  # Of HEAD, too: only a complete answer gives its connection back.

    def on_chunk(self, data: bytes, now: float) -> None:
        """A piece of the body has come; beyond 64 KiB the rest is not waited for."""
        self._body += data[: MAX_ERROR_BODY - len(self._body)]
        if len(self._body) >= MAX_ERROR_BODY:
            self.on_end(now, self._draw)

    def on_end(self, now: float, draw: float) -> None:
        """The body is complete."""
        reply = Reply(self._head, bytes(self._body), self._ambiguous)
        if self._head.status in _SUCCESS or self._accept(reply):
            self._command = Deliver(reply)
        else:
            self._failed(status_error(self._subject, reply.head, reply.body), now, draw)

    def on_failure(self, failure: Failure, now: float, draw: float) -> None:
        """The exchange broke. With the head there, its status decides: reading the body must not hide it."""
        if failure.phase == "body" and self._head.status:
            self.on_end(now, draw)
            return
        self._failed(failure.error, now, draw)

    def _failed(self, error: Exception, now: float, draw: float) -> None:
        self._head = Head(0, {})
        writes = self._request.kind is Kind.APPEND
        if isinstance(error, NetworkError) and error.phase != "connect":
            self._ambiguous = True
        if isinstance(error, DurableStreamError):
            hidden = error.status in _HIDING
            error.maybe_applied = writes and (self._ambiguous or hidden)
            self._ambiguous = self._ambiguous or hidden
        if self._repeatable and may_repeat(error, self._request.kind, ambiguous=self._repeat_ambiguous):
            retry = self._schedule.fail(error, now, draw)
            if retry is not None:
                self._command = Sleep(now + retry.delay, retry)
                return
        if not self._repeatable or isinstance(error, AlreadyClosedError):
            self._command = End(error)
            return
        self._asked += 1
        if isinstance(error, DurableStreamError):
            error.attempt = self._asked
        self._command = Ask(error)

    def on_recover(self, retry: bool) -> None:
        """The user's `on_error` decided about the error of the last `Ask`."""
        assert isinstance(self._command, Ask)
        if retry:
            self._schedule.reset()
            self._command = Fetch(self._request)
        else:
            self._command = End(self._command.error)

    def on_taken(self) -> None:
        """The reply is with the caller."""
        self._command = End()

    def on_abandoned(self) -> None:
        """The caller was cancelled: the operation is over, whatever became of its request."""
        self._command = End()
