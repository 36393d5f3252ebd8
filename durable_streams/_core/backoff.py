"""When to try again: options, what may be repeated, and the schedule of delays (client specification 5.1 to 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from ..errors import RETRYABLE_STATUSES, DurableStreamError, InvalidArgumentError, NetworkError
from . import validate
from .exchange import Kind, RetryDetails

#: Longest wait that a server can ask for, in seconds.
MAX_RETRY_AFTER = 3600.0
#: 5xx answers after which a write, or a request about a stream, is sent again. Reads accept more.
_GATEWAY_STATUSES = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class BackoffOptions:
    """How failed requests are repeated. The defaults suit production.

    The delay before the n-th repetition is drawn uniformly from 0 to
    `min(max_delay, initial_delay * multiplier ** (n - 1))` ("full jitter"); a `Retry-After` of the server is a floor.

    Attributes:
        initial_delay: Ceiling of the first delay, in seconds; greater than 0.
        max_delay: Largest ceiling, in seconds; at least `initial_delay`.
        multiplier: Growth of the ceiling, at least 1.
        max_retries: Repetitions at the most, so that there are up to `max_retries + 1` requests; None for no limit.
        max_elapsed: Seconds after which to give up, counted from the first try; None for no limit. It holds for
            single operations, for catch-up reads and for the first answer of a session. A live session that has
            once been answered retries without limit of time.
        on_failed_attempt: Plain function called with each failure that is about to be repeated.

    Raises:
        TypeError: an option has a wrong type.
        InvalidArgumentError: an option is out of range.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    initial_delay: float = 0.1
    max_delay: float = 60.0
    multiplier: float = 1.3
    max_retries: int | None = None
    max_elapsed: float | None = 60.0
    on_failed_attempt: Callable[[RetryDetails], None] | None = None

    def __post_init__(self) -> None:
        validate.number("initial_delay", self.initial_delay, exclusive=True)
        validate.number("max_delay", self.max_delay, exclusive=True)
        if self.max_delay < self.initial_delay:
            raise InvalidArgumentError(
                f"max_delay must be at least initial_delay ({self.initial_delay}), got {self.max_delay}"
            )
        validate.number("multiplier", self.multiplier, minimum=1.0)
        if self.max_retries is not None:
            validate.integer("max_retries", self.max_retries)
        if self.max_elapsed is not None:
            validate.number("max_elapsed", self.max_elapsed)
        if self.on_failed_attempt is not None and not callable(self.on_failed_attempt):
            raise TypeError(f"on_failed_attempt must be callable, got {type(self.on_failed_attempt).__name__}")

    def ceiling(self, failures: int) -> float:
        """Largest delay after this many failures in a row (from 1), in seconds."""
        try:
            return min(self.max_delay, self.initial_delay * self.multiplier ** (failures - 1))
        except OverflowError:
            return self.max_delay


def parse_retry_after(value: str | None, wall_time: float) -> float | None:
    """Seconds to wait by a `Retry-After` header: whole seconds or an HTTP date; None if absent or unreadable.

    Args:
        value: The header.
        wall_time: Unix time at which the answer came.

    Returns:
        Seconds in [0, 3600]; a date in the past gives 0.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:12]), MAX_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return min(max(date.timestamp() - wall_time, 0.0), MAX_RETRY_AFTER)


def may_repeat(error: Exception, kind: Kind, *, ambiguous: bool = False) -> bool:
    """Whether a request that failed like this is sent again without asking anybody.

    Args:
        error: What happened.
        kind: What the request was for.
        ambiguous: Repeat a plain append although its first try may have been stored.
    """
    if isinstance(error, NetworkError):
        return kind.idempotent or error.phase == "connect" or ambiguous
    if not isinstance(error, DurableStreamError) or error.status is None:
        return False
    if kind in (Kind.UNARY, Kind.APPEND):
        return error.status in _GATEWAY_STATUSES
    return error.status in RETRYABLE_STATUSES


class RetrySchedule:
    """Counts failures in a row and says how long to wait before the next try, or to give up.

    A reused connection may have been closed by the server at the very moment it was used again: one such failure is
    repeated at once and not counted (client 5.7).
    """

    def __init__(self, options: BackoffOptions) -> None:
        self.options = options
        self.failures = 0
        self._started: float | None = None
        self._spared = False

    def begin(self, now: float) -> None:
        """A try begins; the time limit counts from the first of a row."""
        if self._started is None:
            self._started = now

    def reset(self) -> None:
        """A try succeeded, or the user asked for a fresh start."""
        self.failures = 0
        self._started = None
        self._spared = False

    def fail(self, error: Exception, now: float, draw: float, *, limited: bool = True) -> RetryDetails | None:
        """The delay after this failure, or None if it is time to give up. Attempt 0 is the one that is not counted.

        Args:
            error: Why the try failed.
            now: Time on the monotonic clock.
            draw: Uniform number in [0, 1).
            limited: Whether `max_elapsed` holds.
        """
        if isinstance(error, NetworkError) and error.reused and error.phase != "body" and not self._spared:
            self._spared = True
            return RetryDetails(0, 0.0, error)
        options = self.options
        if options.max_retries is not None and self.failures >= options.max_retries:
            return None
        self.failures += 1
        delay = draw * options.ceiling(self.failures)
        retry_after = error.retry_after if isinstance(error, DurableStreamError) else None
        if retry_after is not None:
            delay = max(delay, retry_after)
        if limited and options.max_elapsed is not None:
            started = now if self._started is None else self._started
            if now + delay - started > options.max_elapsed:
                return None
        return RetryDetails(self.failures, delay, error)
