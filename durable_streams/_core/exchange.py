"""One HTTP exchange as values, and the commands by which a session tells its driver what to do.

A session (`read_session.ReadSession`, `call_session.CallSession`) is asked with `next(now)` and answers with one
command. The driver carries it out and reports; until it reports, `next` gives the same answer. The driver adds what
needs a network, a clock or the user's code: the URL, user headers, callables.

=============  ========================================================  =====================================
command        the driver                                                and reports
=============  ========================================================  =====================================
`Fetch`        sends the request                                         `on_head` or `on_failure`
`Receive`      takes the next piece of the open answer's body            `on_chunk`, `on_end` or `on_failure`
`Sleep`        waits until the time                                      nothing: it asks again
`Deliver`      hands the value over, keeping an open answer open         `on_taken`, when asked for the next
`Ask`          asks the user's `on_error`                                `on_recover`
`End`          stops, raising the error if there is one                  nothing more
=============  ========================================================  =====================================

On any command but `Receive` and `Deliver` the driver first closes an answer that is still open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Protocol, TypeVar

from ..errors import Phase

T = TypeVar("T")


class Kind(Enum):
    """What a request is for: decides about its time limits and about what may be retried."""

    CATCH_UP = "catch-up"
    LONG_POLL = "long-poll"
    SSE = "sse"
    UNARY = "unary"  # PUT, HEAD, DELETE: safe to send again
    APPEND = "append"  # plain POST: sending it again may store it twice
    PRODUCER = "producer"  # POST with a producer's stamp: the server recognises a repetition

    @property
    def idempotent(self) -> bool:
        """Whether sending the request a second time changes nothing."""
        return self is not Kind.APPEND


@dataclass(frozen=True, slots=True)
class Request:
    """One request, without what only the driver knows (URL, user headers and parameters)."""

    method: str
    kind: Kind
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of an answer. Header names are in lower case; `wall_time` is the Unix time it came at."""

    status: int
    headers: Mapping[str, str]
    wall_time: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """An exchange that did not come to its end. `error` is a `NetworkError`, or what a user's callable raised."""

    error: Exception
    phase: Phase


@dataclass(frozen=True, slots=True)
class RetryDetails:
    """Facts about a failed try that will be repeated; given to `BackoffOptions.on_failed_attempt`.

    Attributes:
        attempt: Failed tries in a row, from 1.
        delay: Seconds until the next try.
        error: Why it failed.
    """

    attempt: int
    delay: float
    error: Exception


@dataclass(frozen=True, slots=True)
class Fetch:
    """Send this request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Receive:
    """Take the next piece of the open answer's body."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait until this time (on the clock that `next` was given), then ask again.

    `retry` tells why, the first time this sleep is handed out; it is None for waits that are not failures.
    """

    until: float
    retry: RetryDetails | None = None


@dataclass(frozen=True, slots=True)
class Deliver(Generic[T]):
    """Hand this value to the caller."""

    value: T


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the user's `on_error` whether to try again after this error."""

    error: Exception


@dataclass(frozen=True, slots=True)
class End:
    """The session is over: normally if `error` is None."""

    error: Exception | None = None


class Session(Protocol[T]):
    """What a driver needs of a session, see the table of this module."""

    def next(self, now: float) -> Fetch | Receive | Sleep | Deliver[T] | Ask | End:
        """What to do now; the same answer until something is reported."""
        ...

    def on_head(self, head: Head, now: float, draw: float) -> None:
        """The answer's head has come. `draw` is a uniform number in [0, 1)."""
        ...

    def on_chunk(self, data: bytes, now: float) -> None:
        """A piece of the (decoded) body has come."""
        ...

    def on_end(self, now: float, draw: float) -> None:
        """The body is complete."""
        ...

    def on_failure(self, failure: Failure, now: float, draw: float) -> None:
        """The exchange broke."""
        ...

    def on_recover(self, retry: bool) -> None:
        """The user's `on_error` decided about the error of the last `Ask`."""
        ...

    def on_taken(self) -> None:
        """The delivered value is with the caller, who now asks for the next."""
        ...

    def on_abandoned(self) -> None:
        """The caller was cancelled in the middle of an exchange: it will be made again."""
        ...
