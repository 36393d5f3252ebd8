"""One call, one answer: requests with retries over the project's transport (S2 1.5, 1.6, 2.9, 5.1 to 5.3).

A call is tried until it succeeds, fails for good, or has used up its attempts. Each try has a limit of time of its own
and carries a fresh bearer token; everything else about it stays the same, the request token of a create included, so
that the server can tell a repetition from a second wish.

What an error of an append says about effects covers all tries: if an earlier one may have been stored, the call as a
whole is not `definite`, whatever the last one was told.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import anyio

from .._core.exchange import RetryDetails
from .._core.text import preview
from .._transport.base import Timeouts
from ..errors import AlreadyClosedError, InvalidArgumentError, NetworkError, ParseError
from . import _coding
from ._context import Service, StreamContext
from ._frames import MIN_COMPRESSED_BYTES, compress
from ._retry import Attempts
from ._values import MAX_UNARY_BODY_BYTES
from .errors import (
    S2ConnectionError,
    S2Error,
    S2ProtocolError,
    S2SessionClosedError,
    S2TimeoutError,
    connection_error,
)

T = TypeVar("T")

logger = logging.getLogger("durable_streams.s2.unary")

JSON: str = "application/json"
PROTOBUF: str = "application/protobuf"

#: Largest answer that is read. 1 MiB of records takes 8 MiB as JSON at the most.
MAX_REPLY_BYTES: int = 16 << 20
#: Of an error's answer, no more is read.
MAX_ERROR_BYTES: int = 64 << 10
#: The server holds no unary read back for longer, in seconds (S2 1.3).
MAX_WAIT: float = 60.0
_CLOSE_GRACE = 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request as all of its tries send it.

    Attributes:
        method: HTTP method.
        url: Complete URL.
        headers: Beside token and user agent, names in lower case.
        body: Not compressed; None for none.
        content_type: Of the body.
        accept: Media type wanted.
        wait: Seconds that the server may hold the answer back, on top of the limit of time.
        append: Whether this stores records, so that repeating it is a matter of policy.
        context: The stream that it is about, whose key is a secret as well.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    content_type: str = JSON
    accept: str | None = None
    wait: float = 0.0
    append: bool = False
    context: StreamContext | None = None

    @property
    def reads(self) -> bool:
        """Whether this has no effect at all."""
        return self.method == "GET"

    @classmethod
    def of_json(cls, method: str, url: str, document: Any, headers: Mapping[str, str] | None = None) -> Call:
        """A call whose body is this JSON document."""
        return cls(method, url, headers or {}, json.dumps(document, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful answer.

    Attributes:
        status: HTTP status, 200 to 299.
        headers: Names in lower case.
        body: Decoded from its content coding.
        effect: Whether the call has had an effect, although its answer may mean nothing.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    effect: bool = False

    def read(self, function: Callable[[bytes], T]) -> T:
        """What the function makes of the body. If it cannot, the error says whether the call had an effect.

        Raises:
            S2ProtocolError: raised by the function.
        """
        try:
            return function(self.body)
        except S2ProtocolError as error:
            error.definite = not self.effect
            error.status = self.status
            raise

    def read_json(self, function: Callable[[Any], T]) -> T:
        """What the function makes of the body's JSON; see `read`."""
        return self.read(lambda body: function(_parsed(body)))


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise S2ProtocolError(f"the answer is not valid JSON: {preview(body)!r}") from error


async def request(service: Service, call: Call) -> Reply:
    """Make a call, as often as the retry policy allows.

    Raises:
        S2ServerError: the server refused.
        S2ConnectionError: there was no whole answer.
        S2ProtocolError: the answer means nothing.
        S2SessionClosedError: the client was closed.
    """
    policy = service.retry.append_retry_policy if call.append else None
    attempts = Attempts(service.retry, policy=policy)
    encoded = _encode(service, call)
    tries = 0
    while True:
        tries += 1
        try:
            return await attempt(service, call, encoded)
        except S2Error as error:
            if call.reads:
                error.definite = True
            delay = attempts.fail(error, service.rng.random())
            error.attempts = tries
            if delay is None:
                if attempts.uncertain:
                    error.definite = False
                raise
            logger.debug(
                "retrying method=%s url=%s attempt=%d delay=%.3f error=%s",
                call.method,
                call.url.partition("?")[0],
                tries,
                delay,
                error,
            )
            if service.on_retry is not None:
                service.on_retry(RetryDetails(attempts.failures, delay, error))
        await anyio.sleep(delay)


def _encode(service: Service, call: Call) -> tuple[bytes, str | None]:
    """The body as it is sent, and its content coding."""
    body = call.body or b""
    if len(body) > MAX_UNARY_BODY_BYTES:
        raise InvalidArgumentError(
            f"the request is too large: {len(body)} bytes as {call.content_type}, at most {MAX_UNARY_BODY_BYTES}"
        )
    if service.compression == "none" or len(body) < MIN_COMPRESSED_BYTES:
        return body, None
    return compress(body, service.compression), service.compression


async def attempt(service: Service, call: Call, encoded: tuple[bytes, str | None] | None = None) -> Reply:
    """Make a call once, within its limit of time.

    Args:
        service: The client's.
        call: What to send.
        encoded: Its body as it is sent and the content coding, if they have been made before.

    Raises:
        S2Error: see `request`.
    """
    body, coding = _encode(service, call) if encoded is None else encoded
    headers = {**await service.headers(), **call.headers}
    if call.body is not None:
        headers["content-type"] = call.content_type
    if coding is not None:
        headers["content-encoding"] = coding
    if call.accept is not None:
        headers["accept"] = call.accept
    if (accepted := _coding.ACCEPTED.get(service.compression)) is not None:
        headers["accept-encoding"] = accepted
    limit = service.timeouts.request + min(call.wait, MAX_WAIT)
    timeouts = Timeouts(connect=min(service.timeouts.connect, limit), write=limit, read=limit)
    shown = call.url.partition("?")[0]
    with anyio.move_on_after(limit) as scope:
        try:
            status, answer_headers, data = await _exchange(service, call, body, headers, timeouts)
        except NetworkError as error:
            raise connection_error(error) from error
        except AlreadyClosedError as error:
            # It may have been closed before the request was sent, or after.
            raise S2SessionClosedError("the client was closed", definite=False) from error
    if scope.cancelled_caught:
        raise S2TimeoutError(f"{shown}: no complete answer within {limit:g} seconds", url=shown)
    return _judge(call, service, status, answer_headers, data)


async def _exchange(
    service: Service, call: Call, body: bytes, headers: dict[str, str], timeouts: Timeouts
) -> tuple[int, Mapping[str, str], bytes]:
    """Send the request and take the whole answer, still encoded.

    Of an error, the status says what happened: its body may be cut, and no more is read than anybody would look at.
    """
    exchange = await service.transport().open(call.method, call.url, headers, body, timeouts)
    failed = not 200 <= exchange.status < 300
    pieces: list[bytes] = []
    size = 0
    try:
        while data := await exchange.receive():
            size += len(data)
            if size > MAX_REPLY_BYTES:
                raise S2ProtocolError(
                    f"the answer is larger than {MAX_REPLY_BYTES} bytes", status=exchange.status, definite=False
                )
            pieces.append(data)
            if failed and size > MAX_ERROR_BYTES:
                break
    except NetworkError as error:
        if not failed:
            raise
        logger.debug("cut url=%s status=%d error=%s", call.url.partition("?")[0], exchange.status, error)
    finally:
        with anyio.move_on_after(_CLOSE_GRACE, shield=True):
            await exchange.aclose()
    return exchange.status, exchange.headers, b"".join(pieces)


def _judge(call: Call, service: Service, status: int, headers: Mapping[str, str], data: bytes) -> Reply:
    """A successful answer, or the error that it stands for."""
    failed = not 200 <= status < 300
    try:
        data = _coding.decode(data, headers.get("content-encoding", ""), limit=MAX_REPLY_BYTES)
    except (ParseError, NetworkError, S2ProtocolError) as error:
        if not failed:
            _raise_unreadable(error, status)
        data = b""  # the status still tells what happened
    if not failed:
        _check_type(call, status, headers.get("content-type", ""))
        return Reply(status, headers, data, effect=not call.reads)
    raise (call.context or service).error(status, headers, data)


def _check_type(call: Call, status: int, content_type: str) -> None:
    """Refuse what is not of the wanted type: an empty page of a proxy would pass for an empty batch of records."""
    media_type = content_type.partition(";")[0].strip().lower().replace("x-protobuf", "protobuf")
    if call.accept is not None and (status != 200 or (media_type and media_type != call.accept)):
        found = f"{status} {preview(content_type.encode())}".strip()
        raise S2ProtocolError(
            f"the answer is {found!r} instead of {call.accept}: is that S2, or a proxy?",
            status=status,
            definite=call.reads,
        )


def _raise_unreadable(error: ParseError | NetworkError | S2ProtocolError, status: int) -> NoReturn:
    """The server did what was asked, but what it says about that cannot be read."""
    if isinstance(error, NetworkError):
        raise S2ConnectionError(error.message, phase="body", status=status) from error
    raise S2ProtocolError(error.message, status=status, definite=False) from error
