"""When to try again: options, delays, and what may be repeated (S2 5.1 to 5.3). Pure: no clock, no chance.

A failed try leads to another one if three things hold: attempts are left, the failure is of a kind that may pass
(`S2Error.retryable`), and, for an append under the policy "no_side_effects", the try certainly did nothing. The proof
of the last is in the error (`definite`), or comes from the caller, who knows that nothing had left this machine.

A server that is draining is asked again at once, once: it stops, and another one takes over. If the next answer is the
same, it counts like any other failure, so that a server stuck in this state is not asked in a loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from .._core import validate
from ..errors import InvalidArgumentError
from .errors import S2Error, S2ServerError

#: What happens to an append whose try failed: "all" repeats whatever may pass, so that a lost acknowledgement can
#: store a batch twice; "no_side_effects" repeats only what certainly was not stored.
AppendRetryPolicy = Literal["all", "no_side_effects"]

_POLICIES: dict[str, AppendRetryPolicy] = {
    "all": "all",
    "no_side_effects": "no_side_effects",
    "noSideEffects": "no_side_effects",
    "NO_SIDE_EFFECTS": "no_side_effects",
}
#: Names of options in other SDKs -> ours, and how much of ours one of theirs is. Those of the second group are limits
#: of time, which other SDKs keep among the options of retrying.
_OPTIONS: dict[str, tuple[str, float]] = {
    "maxAttempts": ("max_attempts", 1),
    "minBaseDelayMillis": ("min_base_delay", 0.001),
    "retryBackoffDurationMillis": ("min_base_delay", 0.001),
    "maxBaseDelayMillis": ("max_base_delay", 0.001),
    "appendRetryPolicy": ("append_retry_policy", 1),
    "requestTimeoutMillis": ("request", 0.001),
    "connectionTimeoutMillis": ("connect", 0.001),
}
_TIMES = ("request", "connect")
_MAX_DOUBLINGS = 60


@dataclass(frozen=True, slots=True)
class S2Retry:
    """How failed calls are repeated. Sessions inherit it from the client.

    Attributes:
        max_attempts: Tries in a row that may fail before giving up, the first included; 1 never repeats. A session
            counts afresh after progress. A server that says that it is about to stop is asked once more all the same.
        min_base_delay: Base of the first delay, in seconds. It doubles with each failure in a row.
        max_base_delay: Largest base, in seconds. A delay is drawn from its base to twice its base.
        append_retry_policy: "all", or "no_side_effects" to repeat only appends that certainly were not stored.

    Raises:
        TypeError: an option has a wrong type.
        InvalidArgumentError: an option is out of range.
    """

    max_attempts: int = 3
    min_base_delay: float = 0.1
    max_base_delay: float = 1.0
    append_retry_policy: AppendRetryPolicy = "all"

    def __post_init__(self) -> None:
        validate.integer("max_attempts", self.max_attempts, minimum=1)
        validate.number("min_base_delay", self.min_base_delay)
        validate.number("max_base_delay", self.max_base_delay)
        if self.max_base_delay < self.min_base_delay:
            raise InvalidArgumentError(
                f"max_base_delay must be at least min_base_delay ({self.min_base_delay}), got {self.max_base_delay}"
            )
        if not isinstance(self.append_retry_policy, str):
            raise TypeError(f"append_retry_policy must be a str, got {type(self.append_retry_policy).__name__}")
        if self.append_retry_policy not in _POLICIES:
            raise InvalidArgumentError(
                f"append_retry_policy must be 'all' or 'no_side_effects', got {self.append_retry_policy!r}"
            )
        object.__setattr__(self, "append_retry_policy", _POLICIES[self.append_retry_policy])

    def delay(self, failures: int, draw: float, retry_after: float | None = None) -> float:
        """Seconds to wait before the next try.

        Args:
            failures: How many repetitions there have been in a row: 0 before the first one.
            draw: Uniform number in [0, 1).
            retry_after: Least delay that the server asked for, in seconds.
        """
        base = min(self.min_base_delay * 2.0 ** min(failures, _MAX_DOUBLINGS), self.max_base_delay)
        delay = base + draw * base
        return delay if retry_after is None else max(delay, retry_after)


def parse_retry(options: S2Retry | Mapping[str, Any] | None) -> tuple[S2Retry, dict[str, float]]:
    """Read retry options, also as a mapping with the names that other SDKs use.

    Args:
        options: `S2Retry`, None for the defaults, or a mapping of its fields, or of `maxAttempts`,
            `retryBackoffDurationMillis`, `minBaseDelayMillis`, `maxBaseDelayMillis`, `appendRetryPolicy`,
            `requestTimeoutMillis` and `connectionTimeoutMillis`.

    Returns:
        The options, and limits of time that were among them, in seconds: "request" and "connect".

    Raises:
        TypeError: it is something else, or an option has a wrong type.
        InvalidArgumentError: an option is unknown, given twice, or out of range.
    """
    if options is None:
        return S2Retry(), {}
    if isinstance(options, S2Retry):
        return options, {}
    if not isinstance(options, Mapping):
        raise TypeError(f"retry must be S2Retry, a mapping or None, got {type(options).__name__}")
    known = set(S2Retry.__dataclass_fields__)
    fields: dict[str, Any] = {}
    for name, value in options.items():
        field, scale = _OPTIONS.get(name, (name, 1.0))
        if field not in known and field not in _TIMES:
            raise InvalidArgumentError(f"retry: there is no option {name!r}")
        if field in fields:
            raise InvalidArgumentError(f"retry: {name!r} is given twice, under different names")
        fields[field] = value if scale == 1 else validate.number(f"retry: {name}", value) * scale
    times = {name: cast("float", fields.pop(name)) for name in _TIMES if name in fields}
    if "min_base_delay" in fields and "max_base_delay" not in fields:
        fields["max_base_delay"] = max(S2Retry().max_base_delay, fields["min_base_delay"])
    return S2Retry(**fields), times


def may_retry(error: S2Error, policy: AppendRetryPolicy | None = None, *, effect_possible: bool = True) -> bool:
    """Whether a call that failed like this may be made again.

    Args:
        error: What happened to this try.
        policy: Of an append; None for calls that may be repeated freely.
        effect_possible: False if the caller knows that this try did nothing: no byte of an input had left, or nothing
            was in flight.
    """
    if not error.retryable:
        return False
    return policy != "no_side_effects" or not effect_possible or error.definite


class Attempts:
    """Counts the failures in a row of one call or session, and remembers whether one of them may have had effect.

    Args:
        retry: The options.
        policy: Of appends; None for calls that may be repeated freely.
        unlimited: Never give up for the number of attempts.
    """

    __slots__ = ("_drained", "_policy", "_retry", "_unlimited", "failures", "uncertain")

    def __init__(self, retry: S2Retry, *, policy: AppendRetryPolicy | None = None, unlimited: bool = False) -> None:
        self._retry = retry
        self._policy = policy
        self._unlimited = unlimited
        self._drained = False
        self.failures = 0
        self.uncertain = False

    def progress(self) -> None:
        """The server acknowledged or delivered something: the next failure is the first of a row."""
        self.failures = 0
        self._drained = False

    def fail(self, error: S2Error, draw: float, *, effect_possible: bool = True) -> float | None:
        """Seconds to wait before the next try, or None to give up.

        Args:
            error: What happened to this try. If one before it may have had effect, it is marked so.
            draw: Uniform number in [0, 1).
            effect_possible: See `may_retry`.
        """
        again = may_retry(error, self._policy, effect_possible=effect_possible)
        self.uncertain = self.uncertain or (effect_possible and not error.definite)
        if isinstance(error, S2ServerError) and error.draining and not self._drained:
            self._drained = True
            return 0.0
        self.failures += 1
        if not again or (self.failures >= self._retry.max_attempts and not self._unlimited):
            return None
        return self._retry.delay(self.failures - 1, draw, error.retry_after)
