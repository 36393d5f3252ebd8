"""Every error this library raises on purpose, in one family tree.

    DurableStreamError                     code
    ├── InvalidArgumentError (ValueError)  BAD_REQUEST         an argument is wrong; nothing was sent
    ├── StreamNotFoundError                NOT_FOUND           404
    ├── ConflictError                      CONFLICT            409, none of the below
    │   ├── StreamExistsError              CONFLICT_EXISTS     create: other configuration
    │   └── SeqConflictError               CONFLICT_SEQ        `Stream-Seq` did not increase
    ├── StreamClosedError                  STREAM_CLOSED       409: no append is possible any more
    ├── RetentionGoneError                 GONE                410
    ├── SSENotSupportedError               SSE_NOT_SUPPORTED   and falling back is switched off
    ├── FetchError                         UNKNOWN             an answer we have no better name for
    ├── NetworkError                       NETWORK_ERROR       no answer, or a broken one
    │   ├── IncompleteBodyError            INCOMPLETE_BODY     the body ended too early
    │   └── RequestTimeoutError            TIMEOUT             also a TimeoutError
    ├── ParseError                         PARSE_ERROR         the answer's bytes mean nothing
    ├── StaleEpochError                    STALE_EPOCH         403: a newer producer took over
    ├── SequenceGapError                   SEQUENCE_GAP        409: the server misses earlier batches
    ├── BufferFullError                    BUFFER_FULL         a producer's buffer has no room
    ├── StreamConsumedError                ALREADY_CONSUMED    a read session is consumed once
    ├── AlreadyClosedError                 ALREADY_CLOSED      used after it was closed or cancelled
    └── BusyResourceError                  BUSY_RESOURCE       two tasks in one iterator

Statuses without a class of their own are plain `DurableStreamError` with the codes BAD_REQUEST (400),
UNAUTHORIZED (401), FORBIDDEN (403), RATE_LIMITED (429) and BUSY (503).

Wrong *types* raise the built-in `TypeError`. Cancellation and exceptions of the caller's own callables pass
through unchanged; nothing else leaves the library. All errors can be pickled and copied: they are rebuilt from
their message and their `__dict__`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypedDict, Unpack

__all__ = [
    "AlreadyClosedError",
    "BufferFullError",
    "BusyResourceError",
    "ConflictError",
    "DurableStreamError",
    "FetchError",
    "IncompleteBodyError",
    "InvalidArgumentError",
    "NetworkError",
    "ParseError",
    "RequestTimeoutError",
    "RetentionGoneError",
    "SSENotSupportedError",
    "SeqConflictError",
    "SequenceGapError",
    "StaleEpochError",
    "StreamClosedError",
    "StreamConsumedError",
    "StreamExistsError",
    "StreamNotFoundError",
]

#: Where an exchange failed. "connect": certainly not applied; "sent": perhaps; "body": the answer had begun.
Phase = Literal["connect", "sent", "body"]

#: Statuses that a later try of the same request may turn into a success (specification: client 5.1).
RETRYABLE_STATUSES = frozenset({429, *range(500, 600)} - {501, 505})


class Facts(TypedDict, total=False):
    """Keyword arguments that every error accepts, see `DurableStreamError`."""

    code: str
    status: int | None
    url: str | None
    details: Any
    headers: dict[str, str] | None
    maybe_applied: bool
    retry_after: float | None


class DurableStreamError(Exception):
    """Base of everything this library raises on purpose.

    Attributes:
        message: What happened, with the facts. The same as `str(error)`.
        code: Stable name of the kind of error, as drawn in the tree of this module.
        status: HTTP status, if there was an answer.
        url: The stream's URL without user information and query values, if one is known.
        details: Text or decoded JSON of the server's answer, or None.
        headers: The answer's headers, names in lower case, or None.
        maybe_applied: True if the failed write may have been stored all the same.
        retry_after: Seconds that the server asked to wait (`Retry-After`), or None.
        attempt: How often in a row `on_error` has now been asked about this request, from 1; 0 if it was not asked.
    """

    code: str = "UNKNOWN"

    def __init__(self, message: str, **facts: Unpack[Facts]) -> None:
        super().__init__(message)
        self.message = message
        if "code" in facts:
            self.code = facts["code"]
        self.status: int | None = facts.get("status")
        self.url: str | None = facts.get("url")
        self.details: Any = facts.get("details")
        self.headers: dict[str, str] | None = facts.get("headers")
        self.maybe_applied: bool = facts.get("maybe_applied", False)
        self.retry_after: float | None = facts.get("retry_after")
        self.attempt = 0

    def __str__(self) -> str:
        if self.maybe_applied:
            return f"{self.message} (the write may have been applied)"
        return self.message

    @property
    def retryable(self) -> bool:
        """Whether the same call, made later, may succeed without storing anything twice."""
        return self.status in RETRYABLE_STATUSES and not self.maybe_applied


class InvalidArgumentError(DurableStreamError, ValueError):
    """An argument has a value that can never work; nothing was sent.

    The message names the argument, what was expected and what came.
    """

    code = "BAD_REQUEST"


class StreamNotFoundError(DurableStreamError):
    """There is no stream at this URL (HTTP 404), or it was deleted or has expired."""

    code = "NOT_FOUND"


class ConflictError(DurableStreamError):
    """The server refused the request in the stream's present state (HTTP 409).

    Most often the content type of an append differs from the stream's. `details` has the server's words.
    """

    code = "CONFLICT"


class StreamExistsError(ConflictError):
    """A stream with another configuration exists at this URL (HTTP 409 on create)."""

    code = "CONFLICT_EXISTS"


class SeqConflictError(ConflictError):
    """`seq` is not greater than the last one the stream has seen (HTTP 409).

    With `maybe_applied` the conflict followed an unanswered try of the same append: the earlier try may be the one
    that was stored.
    """

    code = "CONFLICT_SEQ"


class StreamClosedError(DurableStreamError):
    """The stream is closed: it can be read to its end, and nothing can be appended ever again (HTTP 409).

    Attributes:
        final_offset: Offset after the last byte of the stream, if the server sent it.
        stream_closed: Always True.
    """

    code = "STREAM_CLOSED"
    stream_closed: ClassVar[bool] = True

    def __init__(self, message: str, *, final_offset: str | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(message, **facts)
        self.final_offset = final_offset


class RetentionGoneError(DurableStreamError):
    """The data at this offset is no longer kept, or the stream was deleted while forks need it (HTTP 410).

    Attributes:
        earliest_offset: The earliest offset that can still be read, if the server sent one.
    """

    code = "GONE"

    def __init__(self, message: str, *, earliest_offset: str | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(message, **facts)
        self.earliest_offset = earliest_offset


class SSENotSupportedError(DurableStreamError):
    """The server does not answer with server-sent events, and falling back to long-poll is switched off."""

    code = "SSE_NOT_SUPPORTED"


class FetchError(DurableStreamError):
    """The server answered with a status that has no error class of its own.

    Attributes:
        text: The answer's body as text, at most 64 KiB of it.
        json: The answer's body decoded, if its content type says JSON; else None.
    """

    code = "UNKNOWN"

    def __init__(self, message: str, *, text: str = "", json: Any = None, **facts: Unpack[Facts]) -> None:
        super().__init__(message, **facts)
        self.text = text
        self.json = json


class NetworkError(DurableStreamError):
    """The exchange broke: no connection, no answer, or an answer that ended too early.

    Attributes:
        phase: "connect": the request was certainly not applied. "sent": it may have been. "body": the answer had
            begun.
        reused: Whether the connection had served an earlier request. Such a connection may have been closed by the
            server just as it was used again, so one retry at once is worth it.
    """

    code = "NETWORK_ERROR"

    def __init__(self, message: str, *, phase: Phase = "connect", reused: bool = False, **facts: Unpack[Facts]) -> None:
        super().__init__(message, **facts)
        self.phase: Phase = phase
        self.reused = reused

    @property
    def retryable(self) -> bool:
        """Whether the same call, made later, may succeed without storing anything twice."""
        return not self.maybe_applied


class IncompleteBodyError(NetworkError):
    """The body of an answer ended before its declared end, or its compression is damaged."""

    code = "INCOMPLETE_BODY"


class RequestTimeoutError(NetworkError, TimeoutError):
    """The server was silent for longer than the time allowed. Also a built-in `TimeoutError`."""

    code = "TIMEOUT"


class ParseError(DurableStreamError):
    """The answer's bytes are not what the protocol or the content type promises. Never retried.

    Attributes:
        preview: The first bytes concerned as text, at most 100 characters.
        offset: Offset of the batch that cannot be decoded: everything before it was fine.
    """

    code = "PARSE_ERROR"

    def __init__(self, message: str, *, preview: str = "", offset: str | None = None, **facts: Unpack[Facts]) -> None:
        super().__init__(message, **facts)
        self.preview: str = preview[:100]
        self.offset = offset


class StaleEpochError(DurableStreamError):
    """A newer epoch of this producer exists: another writer took over, and this one is fenced (HTTP 403).

    Attributes:
        current_epoch: The epoch that the server knows.
    """

    code = "STALE_EPOCH"

    def __init__(self, message: str, *, current_epoch: int = 0, **facts: Unpack[Facts]) -> None:
        super().__init__(message, **facts)
        self.current_epoch = current_epoch


class SequenceGapError(DurableStreamError):
    """The server expects another sequence number of this producer, and none of ours can fill the gap (HTTP 409).

    It has lost state, or another writer uses the same producer id and epoch. The batch was not stored.

    Attributes:
        expected_seq: The number that the server expects.
        received_seq: The number that was sent.
    """

    code = "SEQUENCE_GAP"

    def __init__(self, message: str, *, expected_seq: int = 0, received_seq: int = 0, **facts: Unpack[Facts]) -> None:
        super().__init__(message, **facts)
        self.expected_seq = expected_seq
        self.received_seq = received_seq


class BufferFullError(DurableStreamError):
    """A producer's buffer has no room for the message; it was not accepted. `append` waits for room instead."""

    code = "BUFFER_FULL"


class StreamConsumedError(DurableStreamError):
    """A read session is consumed once, by one method; a second one was called.

    Attributes:
        first: Name of the method that consumes the session.
        second: Name of the method that came too late.
    """

    code = "ALREADY_CONSUMED"

    def __init__(self, message: str, *, first: str = "", second: str = "", **facts: Unpack[Facts]) -> None:
        super().__init__(message, **facts)
        self.first = first
        self.second = second


class AlreadyClosedError(DurableStreamError):
    """The object was closed or cancelled before this call."""

    code = "ALREADY_CLOSED"


class BusyResourceError(DurableStreamError):
    """Another task is already waiting in the same iterator; give each task a session of its own."""

    code = "BUSY_RESOURCE"
