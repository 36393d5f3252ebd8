"""`stream()`: one read session without a handle."""

from __future__ import annotations

import random
import warnings
from collections.abc import Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from .._core import validate, wire
from .._core.backoff import BackoffOptions
from .._core.checkpoint import Checkpoint
from .._core.read_session import ReadOptions, SSEResilience
from .._transport.base import Transport
from .context import Context, HeaderValue, OnError, ParamValue, TransportOwner
from .response import StreamResponse

#: Default of `max_page_bytes`: 4 MiB.
MAX_PAGE_BYTES = 4 << 20


class StreamSession:
    """What `stream()` returns: await it for a `StreamResponse`, or use it in `async with`.

    Nothing is sent before. It can be opened once.
    """

    def __init__(
        self, options: ReadOptions, context: Context, *, owner: TransportOwner | None, start_offset: str
    ) -> None:
        self._options = options
        self._context = context
        self._owner = owner
        self._start_offset = start_offset
        self._opened = False
        self._response: StreamResponse | None = None

    async def _open(self) -> StreamResponse:
        if self._opened:
            raise RuntimeError("a session from stream() can be opened once; call stream() again for another")
        self._opened = True
        response = StreamResponse(self._options, self._context, owner=self._owner, start_offset=self._start_offset)
        await response._open()
        return response

    def __await__(self) -> Generator[Any, Any, StreamResponse]:
        return self._open().__await__()

    async def __aenter__(self) -> StreamResponse:
        self._response = await self._open()
        return self._response

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._response is not None:
            await self._response.aclose()

    if not TYPE_CHECKING:  # Type checkers find the mistake by themselves.

        def __getattr__(self, name: str) -> NoReturn:
            hint = ""
            if not name.startswith("_") and hasattr(StreamResponse, name):
                hint = f": open it first, `async with stream(...) as response`, then use `response.{name}`"
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"<StreamSession {self._options.url}, {'opened' if self._opened else 'not opened'}>"

    def __del__(self) -> None:
        if not self.__dict__.get("_opened", True):
            warnings.warn(f"{self!r} was never awaited", ResourceWarning, stacklevel=2, source=self)


def read_options(
    url: wire.Address,
    *,
    offset: str | Checkpoint | None,
    live: validate.Live,
    json: bool | None,
    cursor: str | None,
    max_page_bytes: int | None,
    max_response_bytes: int | None,
    if_none_match: str | None,
    backoff_options: BackoffOptions | None,
    sse_resilience: SSEResilience | None,
) -> ReadOptions:
    """Check the options of `stream()` and make one value of them."""
    if json not in (None, True, False):
        raise TypeError(f"json must be True, False or None, got {json!r}")
    for name, value in (("max_page_bytes", max_page_bytes), ("max_response_bytes", max_response_bytes)):
        if value is not None:
            validate.integer(name, value, minimum=1)
    if if_none_match is not None:
        validate.entity_tag("if_none_match", if_none_match)
    if backoff_options is not None and not isinstance(backoff_options, BackoffOptions):
        raise TypeError(f"backoff_options must be BackoffOptions, got {type(backoff_options).__name__}")
    if sse_resilience is not None and not isinstance(sse_resilience, SSEResilience):
        raise TypeError(f"sse_resilience must be SSEResilience, got {type(sse_resilience).__name__}")
    return ReadOptions(
        url=url.display,
        start=validate.start(offset, cursor),
        live=validate.live(live),
        json=bool(json),
        max_page_bytes=max_page_bytes,
        max_response_bytes=max_response_bytes,
        backoff=backoff_options or BackoffOptions(),
        sse=sse_resilience or SSEResilience(),
        if_none_match=if_none_match,
    )


def stream(
    url: str,
    *,
    offset: str | Checkpoint | None = None,
    live: bool | Literal["long-poll", "sse"] = True,
    json: bool | None = None,
    headers: Mapping[str, HeaderValue] | None = None,
    params: Mapping[str, ParamValue] | None = None,
    cursor: str | None = None,
    on_error: OnError | None = None,
    backoff_options: BackoffOptions | None = None,
    sse_resilience: SSEResilience | None = None,
    max_page_bytes: int | None = MAX_PAGE_BYTES,
    max_response_bytes: int | None = None,
    if_none_match: str | None = None,
    transport: Transport | None = None,
    rng: random.Random | None = None,
) -> StreamSession:
    """Open a read session on a stream: await the result for a `StreamResponse`, or use it in `async with`.

    Resolves when the first answer's head has been accepted, so that a missing stream or a refused token raises here.
    The session fetches only when its consumer asks for more: no task runs in the background.

    Args:
        url: Absolute http or https URL; its own query parameters are kept, user information becomes `Authorization`.
        offset: Where to begin: an offset saved before, a `Checkpoint`, "now" for what comes from now on, or None (or
            "-1") for the beginning.
        live: False ends when the session is up to date. True follows the stream, by server-sent events for JSON
            streams and long-poll for others; "long-poll" and "sse" choose. SSE changes text: line ends become LF and
            some servers lose leading spaces, so read `text/*` by long-poll where bytes matter.
        json: True reads in JSON mode whatever the content type says.
        headers: Sent with each request. A value may be a plain or async function, called for every request.
        params: Query parameters, likewise; a value of None is left out. `offset`, `live` and `cursor` are ours.
        cursor: A cursor saved before; a `Checkpoint` brings its own.
        on_error: Called, plain or async, with an error that would end the session, after retries are exhausted. None
            as its result raises the error; a mapping tries again, with its "headers" and "params" added for good.
            `error.attempt` counts how often in a row it was asked.
        backoff_options: Retry policy; None means `BackoffOptions()`.
        sse_resilience: When to give up SSE for long-poll; None means `SSEResilience()`.
        max_page_bytes: Preferred size of one answer, in bytes; None leaves it to the server. Servers may ignore it
            and send the whole stream at once: then only `max_response_bytes` bounds memory.
        max_response_bytes: Largest decoded answer (SSE: event) to accept, in bytes; None for no limit.
        if_none_match: `StreamResponse.etag` of an earlier session with the same offset: if nothing has changed since,
            the server answers 304 without the data, and the session is up to date with no items (`status` is 304).
            Sent with the first request only, and not with "now". A 304 may lack the content type: the JSON methods
            then take it for a JSON stream.
        transport: Sends the requests; it is shared and not closed. None opens one for this session.
        rng: Source of jitter; None makes a new one.

    Raises:
        TypeError: an argument has a wrong type (raised at the call).
        InvalidArgumentError: an argument has a wrong value (raised at the call).
        StreamNotFoundError: there is no stream.
        DurableStreamError: `UNAUTHORIZED`, `FORBIDDEN`, `BAD_REQUEST`, `BUSY`, `RATE_LIMITED`; see `errors`.
        RetentionGoneError: the data at the offset is no longer kept.
        NetworkError: no answer within `backoff_options.max_elapsed`.
    """
    owner = TransportOwner(transport)
    context = Context(wire.parse_url(url), headers=headers, params=params, on_error=on_error, owner=owner, rng=rng)
    options = read_options(
        context.url,
        offset=offset,
        live=live,
        json=json,
        cursor=cursor,
        max_page_bytes=max_page_bytes,
        max_response_bytes=max_response_bytes,
        if_none_match=if_none_match,
        backoff_options=backoff_options,
        sse_resilience=sse_resilience,
    )
    return StreamSession(options, context, owner=owner, start_offset=options.start.offset)
