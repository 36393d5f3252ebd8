"""Errors of the S2 client, beneath `DurableStreamError`.

    S2Error
    ├── S2ServerError                    the server answered with an error: `status`, `code`, `message`
    │   ├── SeqNumMismatchError          412: `match_seq_num` is not the next number
    │   ├── FencingTokenMismatchError    412: the stream has another fencing token
    │   └── RangeNotSatisfiableError     416: the read begins beyond the tail, or at it and may not wait
    ├── S2ConnectionError                no answer, or a broken one
    │   └── S2TimeoutError               the server was silent for too long; also a `TimeoutError`
    ├── S2ProtocolError                  the peer broke the protocol: a bad frame, acknowledgement or body
    └── S2SessionClosedError             a session or client was used after its end

Two questions decide what a caller does next, and every error answers both:

* `retryable`: may another try of the same call succeed? (specification: S2 5.2)
* `definite`: is it certain that the call had no effect? An append that failed with `definite` False may have been
  stored, now or later: the record of an earlier try counts, whatever the last one said (S2 5.3).

Arguments that can never work raise `InvalidArgumentError` or `TypeError` before anything is sent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard, Unpack, cast

from .._core.backoff import MAX_RETRY_AFTER, parse_retry_after
from ..errors import DurableStreamError, Facts, NetworkError, Phase, RequestTimeoutError

if TYPE_CHECKING:
    from ._values import StreamPosition

__all__ = [
    "FencingTokenMismatchError",
    "RangeNotSatisfiableError",
    "S2ConnectionError",
    "S2Error",
    "S2ProtocolError",
    "S2ServerError",
    "S2SessionClosedError",
    "S2TimeoutError",
    "SeqNumMismatchError",
    "connection_error",
    "error_from_reply",
]

#: Statuses after which the same request may succeed, if no known code says otherwise (S2 5.2).
RETRYABLE_STATUSES: frozenset[int] = frozenset({408, 429, 500, 502, 503, 504})
#: Code of a server that is about to stop: everything that it did not acknowledge was never registered (S2 4.6).
SERVER_DRAINING: str = "server_draining"
#: Most characters of a foreign body that a message shows.
_EXCERPT = 300

_MAX_U64 = 2**64 - 1

#: code -> (the status that belongs to it, retryable, certainly without effect): the table of S2 2.9.
_CODES: dict[str, tuple[int, bool, bool]] = {
    "authn": (401, False, True),
    "bad_header": (400, False, True),
    "bad_path": (400, False, True),
    "bad_query": (400, False, True),
    "bad_json": (400, False, True),
    "bad_proto": (400, False, True),
    "bad_frame": (400, False, True),
    "decryption_failed": (400, False, True),
    "permission_denied": (403, False, True),
    "quota_exhausted": (403, False, True),
    "basin_not_found": (404, False, True),
    "stream_not_found": (404, False, True),
    "access_token_not_found": (404, False, True),
    "request_timeout": (408, True, False),
    "resource_already_exists": (409, False, True),
    "basin_deletion_pending": (409, False, True),
    "stream_deletion_pending": (409, False, True),
    "transaction_conflict": (409, True, True),
    "invalid": (422, False, True),
    "rate_limited": (429, True, True),
    "client_hangup": (499, False, False),
    "other": (500, True, False),
    "storage": (500, True, False),
    "not_implemented": (501, False, True),
    "hot_server": (502, True, True),
    SERVER_DRAINING: (503, True, True),
    "unavailable": (503, True, False),
    "upstream_timeout": (504, True, False),
}


class S2Facts(TypedDict, total=False):
    """Keyword arguments that every S2 error accepts, see `S2Error`."""

    code: str
    status: int | None
    url: str | None
    details: Any
    headers: dict[str, str] | None
    retry_after: float | None
    definite: bool
    retryable: bool


class S2Error(DurableStreamError):
    """Base of the errors of `durable_streams.s2`.

    Attributes:
        definite: True if the call certainly had no effect; False if it may have been applied. Of errors of reads,
            which have none, it is True.
        attempts: How many times the request was made, the last included.
    """

    code: str = "S2"

    def __init__(self, message: str, **facts: Unpack[S2Facts]) -> None:
        definite = facts.pop("definite", True)
        retryable = facts.pop("retryable", False)
        super().__init__(message, **cast("Facts", facts))
        self.definite = definite
        self.attempts: int = 1
        self._retryable: bool = retryable

    @property
    def definite(self) -> bool:
        """Whether the call certainly had no effect. The opposite of `maybe_applied`."""
        return not self.maybe_applied

    @definite.setter
    def definite(self, value: bool) -> None:
        self.maybe_applied: bool = not value

    @property
    def retryable(self) -> bool:
        """Whether another try of the same call may succeed. For an append, look at `definite` as well."""
        return self._retryable


class S2ServerError(S2Error):
    """The server answered with an error, or ended a session with one.

    Attributes:
        status: HTTP status.
        code: The server's name for the error, such as "stream_not_found"; "unknown" if it gave none.
        message: Status, code and the server's words, shortened.
        retry_after: Least delay before another try that it asked for, in seconds, or None.
    """

    code: str = "unknown"

    @property
    def draining(self) -> bool:
        """Whether the server is about to stop: try again at once, on a fresh connection (S2 4.6)."""
        return self.status == 503 and self.code == SERVER_DRAINING


class SeqNumMismatchError(S2ServerError):
    """`match_seq_num` is not the number that the next record gets (HTTP 412).

    With `definite` False an earlier, unanswered try of the same append came before it: the mismatch may be its success.

    Attributes:
        expected_seq_num: The number that the next record gets.
    """

    code: str = "seq_num_mismatch"

    def __init__(self, message: str, *, expected_seq_num: int = 0, **facts: Unpack[S2Facts]) -> None:
        super().__init__(message, **facts)
        self.expected_seq_num = expected_seq_num


class FencingTokenMismatchError(S2ServerError):
    """The stream has another fencing token than the append named: another writer took over (HTTP 412).

    Attributes:
        expected_fencing_token: The stream's token. Whoever has it can write: it is not part of any text.
    """

    code: str = "fencing_token_mismatch"

    def __init__(self, message: str, *, expected_fencing_token: str = "", **facts: Unpack[S2Facts]) -> None:
        super().__init__(message, **facts)
        self.expected_fencing_token = expected_fencing_token


class RangeNotSatisfiableError(S2ServerError):
    """The read begins beyond the stream's tail, or at the tail without leave to wait there (HTTP 416).

    Attributes:
        tail: The stream's tail, or None if the server did not tell.
    """

    code: str = "range_not_satisfiable"

    def __init__(self, message: str, *, tail: StreamPosition | None = None, **facts: Unpack[S2Facts]) -> None:
        super().__init__(message, **facts)
        self.tail = tail


class S2ConnectionError(S2Error):
    """The exchange broke: no connection, no answer, or one that ended too early.

    Attributes:
        phase: "connect": nothing was sent. "sent": it may have been acted upon. "body": the answer had begun.
        refused: The connection or the HTTP/2 stream was refused, so that the server certainly did not act.
    """

    code: str = "connection"

    def __init__(self, message: str, *, phase: Phase = "sent", refused: bool = False, **facts: Unpack[S2Facts]) -> None:
        facts.setdefault("definite", refused or phase == "connect")
        facts.setdefault("retryable", True)
        super().__init__(message, **facts)
        self.phase: Phase = phase
        self.refused = refused


class S2TimeoutError(S2ConnectionError, TimeoutError):
    """The server was silent for longer than the time allowed. Also a built-in `TimeoutError`."""

    code: str = "timeout"


class S2ProtocolError(S2Error):
    """The peer broke the protocol: a bad frame, an impossible acknowledgement, a body that means nothing."""

    code: str = "protocol"


class S2SessionClosedError(S2Error):
    """The session or client was closed, or has failed, before this call. The failure is its `__cause__`."""

    code: str = "closed"


def error_from_reply(status: int, headers: Mapping[str, str], body: bytes) -> S2ServerError:
    """The error that an answer, or a terminal frame, stands for.

    Proxies answer with pages of their own, and servers grow new codes: whatever the body is, this returns an error
    with the status. A code is trusted about retries and effects only when it came with the status that belongs to it
    (S2 2.9).

    Args:
        status: HTTP status.
        headers: The answer's headers, names in lower case; {} for a terminal frame.
        body: The body, decoded from its content coding.
    """
    facts = S2Facts(status=status, headers=dict(headers), retry_after=_retry_after(headers))
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    fields: dict[str, Any] = document if isinstance(document, dict) else {}
    facts["definite"] = True
    if status == 412:
        seq_num, token = fields.get("seq_num_mismatch"), fields.get("fencing_token_mismatch")
        if is_u64(seq_num):
            facts["details"] = fields
            return SeqNumMismatchError(
                f"match_seq_num does not hold: the next record gets {seq_num}", expected_seq_num=seq_num, **facts
            )
        if isinstance(token, str):
            return FencingTokenMismatchError(
                "the stream has another fencing token", expected_fencing_token=token, **facts
            )
    if status == 416 and "tail" in fields:
        from ._values import StreamPosition

        tail = fields["tail"]
        if isinstance(tail, dict) and is_u64(tail.get("seq_num")) and is_u64(tail.get("timestamp")):
            position = StreamPosition(tail["seq_num"], tail["timestamp"])
            facts["details"] = fields
            return RangeNotSatisfiableError(
                f"nothing to read at this position: the tail is at {position.seq_num}", tail=position, **facts
            )
    return _plain_error(status, fields, body, facts)


def _plain_error(status: int, fields: dict[str, Any], body: bytes, facts: S2Facts) -> S2ServerError:
    """An error with code and message, or whatever came instead of them."""
    kind = RangeNotSatisfiableError if status == 416 else S2ServerError
    code, message = fields.get("code"), fields.get("message")
    if isinstance(code, str) and code:
        facts["details"] = fields
    else:
        code = kind.code
    known_status, retryable, harmless = _CODES.get(code, (0, False, False))
    if known_status != status:
        retryable = status in RETRYABLE_STATUSES
        harmless = 400 <= status < 500 and status not in (408, 429, 499)
    facts["code"], facts["retryable"], facts["definite"] = code, retryable, harmless
    if 300 <= status < 400 and (location := (facts.get("headers") or {}).get("location")):
        # Not followed: the token would go where nobody meant it to, and a POST would become a GET.
        message = f"redirected to {location.partition('?')[0]}: give the address that answers as the endpoint"
    if not isinstance(message, str) or not message:
        message = body[: 4 * _EXCERPT].decode("utf-8", "replace").strip() or "no message"
    if len(message) > _EXCERPT:
        message = message[:_EXCERPT] + "..."
    return kind(f"HTTP {status} {code}: {message}", **facts)


def status_of_code(code: object) -> int:
    """The HTTP status that belongs to a code, where only the code is known (S2 3.6); 500 if we do not know it."""
    return _CODES[code][0] if isinstance(code, str) and code in _CODES else 500


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `retry-after-ms` (milliseconds) or `retry-after` (seconds, or a date), at most an hour."""
    value = headers.get("retry-after-ms", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:15]) / 1000.0, MAX_RETRY_AFTER)
    return parse_retry_after(headers.get("retry-after"), time.time())


def connection_error(error: NetworkError, *, definite: bool | None = None) -> S2ConnectionError:
    """The S2 error for a failure of the project's transport. Raise it `from error`.

    Args:
        error: What the transport raised.
        definite: Whether the call certainly had no effect; None derives it from the phase.
    """
    kind = S2TimeoutError if isinstance(error, RequestTimeoutError) else S2ConnectionError
    facts = S2Facts(url=error.url, status=error.status, details=error.details)
    if definite is not None:
        facts["definite"] = definite
    return kind(error.message, phase=error.phase, refused=error.phase == "connect", **facts)


def is_u64(value: Any) -> TypeGuard[int]:
    """Whether a decoded JSON value is an unsigned 64-bit integer."""
    return type(value) is int and 0 <= value <= _MAX_U64
