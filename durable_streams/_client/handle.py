"""`DurableStream`: a cold handle bound to one URL."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import anyio

from .._core import json_mode, validate, wire
from .._core.backoff import BackoffOptions
from .._core.call_session import CallSession, Reply
from .._core.checkpoint import Checkpoint
from .._core.exchange import Kind, Request
from .._core.read_session import SSEResilience
from .._core.status_errors import Subject
from .._transport.base import Transport
from ..errors import InvalidArgumentError, StreamClosedError, StreamExistsError
from .append_queue import AppendBatching, AppendQueue, Entry, Route
from .context import Context, HeaderValue, OnError, ParamValue, TransportOwner, checked_headers, checked_params
from .driver import Driver
from .groups import leave
from .replies import appended, created, described, framed, pieces, refusal, stamp_headers
from .results import AppendResult, CloseResult, CreateResult, DeleteResult, HeadResult, ProducerStamp
from .stream import MAX_PAGE_BYTES, StreamSession, read_options

if TYPE_CHECKING:
    from .producer import Batching
    from .writable import StreamWriter

logger = logging.getLogger("durable_streams.handle")

Headers = Mapping[str, HeaderValue]
Params = Mapping[str, ParamValue]
#: Seconds that requests under way get when the block is left by an exception or cancelled.
_EXIT_GRACE = 1.0


class DurableStream:
    """A handle for one stream: create, append, read, close, delete.

    Making one sends nothing and needs no running event loop. It opens one transport on first use and closes it in
    `aclose`, or on leaving `async with`. Leaving never closes the *stream*: that is `close_stream`.

    Inside `async with handle` (or after `await handle.start(task_group)`), appends that are made while one is under
    way go together in the next request. Outside, each append is a request of its own, sent in the caller's task, one
    after the other.

    Args:
        url: Absolute http or https URL.
        headers: Sent with each request. A value may be a plain or async function, called for every request.
        params: Query parameters, likewise; a value of None is left out.
        content_type: The stream's content type. None: it is learnt from `create`, `connect` or `head`; the first
            append asks for it otherwise.
        batching: False sends each append as a request of its own also inside `async with`.
        max_batch_bytes: Largest body gathered into one request, in bytes. A single larger message goes alone.
        max_batch_items: Most messages gathered into one request; None for no limit.
        on_error: Called, plain or async, with an error that would be raised, after retries are exhausted. None as its
            result raises the error; a mapping tries again, with its "headers" and "params" added for good.
        backoff_options: Retry policy; None means `BackoffOptions()`.
        retry_ambiguous_appends: Repeat an append whose answer was lost although it may have been stored, so that it
            may be stored twice. False raises `NetworkError` with `maybe_applied` instead. With `seq` an append is
            always repeated, since the server then refuses a second copy.
        transport: Sends the requests; it is shared and not closed. None opens one for this handle.
        rng: Source of jitter; None makes a new one.

    Raises:
        TypeError: an argument has a wrong type.
        InvalidArgumentError: an argument has a wrong value.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Headers | None = None,
        params: Params | None = None,
        content_type: str | None = None,
        batching: bool = True,
        max_batch_bytes: int = 1 << 20,
        max_batch_items: int | None = None,
        on_error: OnError | None = None,
        backoff_options: BackoffOptions | None = None,
        retry_ambiguous_appends: bool = False,
        transport: Transport | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if backoff_options is not None and not isinstance(backoff_options, BackoffOptions):
            raise TypeError(f"backoff_options must be BackoffOptions, got {type(backoff_options).__name__}")
        validate.integer("max_batch_bytes", max_batch_bytes, minimum=1)
        if max_batch_items is not None:
            validate.integer("max_batch_items", max_batch_items, minimum=1)
        address = wire.parse_url(url)
        owner = TransportOwner(transport)
        context = Context(address, headers=headers, params=params, on_error=on_error, owner=owner, rng=rng)
        self._setup(
            context,
            content_type=validate.content_type(content_type),
            batching=batching,
            caps=AppendBatching(max_batch_bytes, max_batch_items),
            backoff=backoff_options or BackoffOptions(),
            retry_ambiguous_appends=retry_ambiguous_appends,
            owns=True,
        )

    def _setup(
        self,
        context: Context,
        *,
        content_type: str | None,
        batching: bool,
        caps: AppendBatching,
        backoff: BackoffOptions,
        retry_ambiguous_appends: bool,
        owns: bool,
    ) -> None:
        self._context = context
        self._content_type = content_type
        self._batching = batching
        self._caps = caps
        self._backoff = backoff
        self._retry_ambiguous = retry_ambiguous_appends
        self._owns = owns
        self._queue = AppendQueue(self._send_batch, caps)
        self._framing = anyio.Lock()
        self._entered = False
        self._task_group: Any = None

    # -- What it is ----------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The stream's URL, without user information and query values."""
        return self._context.url.display

    @property
    def content_type(self) -> str | None:
        """The stream's content type, if it is known."""
        return self._content_type

    def __repr__(self) -> str:
        return f"<DurableStream {self.url}, {self._content_type or 'content type not known'}>"

    # -- Life ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> DurableStream:
        self._check_startable()
        if self._batching:
            task_group = anyio.create_task_group()
            await task_group.__aenter__()
            try:
                await self._queue.start(task_group, shield=True)
            except BaseException:
                task_group.cancel_scope.cancel()
                await leave(task_group)
                raise
            self._task_group = task_group
        self._entered = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._queue.aclose(grace=None if exc is None else _EXIT_GRACE)
        finally:
            task_group, self._task_group = self._task_group, None
            try:
                if task_group is not None:
                    task_group.cancel_scope.cancel()
                    await leave(task_group)
            finally:
                await self._release()

    async def start(self, task_group: Any) -> None:
        """Gather appends with a worker in the caller's task group or nursery, instead of `async with`.

        Args:
            task_group: Anything with `start_soon`: an anyio task group, a trio nursery. `aclose` ends the worker;
                several handles may be closed in any order.

        Raises:
            RuntimeError: it has been started or entered before.
            AlreadyClosedError: it was closed.
        """
        self._check_startable()
        if self._batching:
            await self._queue.start(task_group, shield=False)

    def _check_startable(self) -> None:
        self._queue.check_open()
        if self._entered or self._queue.running:
            raise RuntimeError(f"{self!r} has been started already")

    async def aclose(self) -> None:
        """Finish the appends that were accepted, then close the connections. The stream stays open. Idempotent."""
        await self._queue.aclose(grace=None)
        await self._release()

    async def _release(self) -> None:
        if self._owns:
            await self._context.owner.aclose()

    # -- Operations ----------------------------------------------------------------------------------------

    async def create(
        self,
        *,
        content_type: str | None = None,
        ttl_seconds: int | None = None,
        expires_at: datetime | str | None = None,
        body: bytes | str | None = None,
        closed: bool = False,
        headers: Headers | None = None,
        params: Params | None = None,
    ) -> CreateResult:
        """Create the stream; succeeds too if it exists with the same configuration.

        Args:
            content_type: The stream's content type; None means the handle's, else the server's default
                (`application/octet-stream`). `application/json` makes a JSON stream.
            ttl_seconds: The stream expires after this many seconds without reads and writes.
            expires_at: The stream expires then: an aware datetime, or RFC 3339. Not together with `ttl_seconds`.
            body: First content, sent as it is: for a JSON stream one JSON text, whose elements become the messages if
                it is an array.
            closed: Create the stream closed: `body` is its complete content.
            headers: For this call, over the handle's.
            params: For this call, over the handle's.

        Returns:
            `created` tells whether this call made the stream.

        Raises:
            StreamExistsError: a stream with another configuration exists.
            StreamClosedError: the stream exists and is closed, and `closed` is False.
            DurableStreamError: see `errors`.
        """
        own, content_type = self._create_headers(content_type, ttl_seconds, expires_at)
        if closed:
            own[wire.CLOSED] = "true"
        data = b"" if body is None else validate.body(body)
        request = Request("PUT", Kind.UNARY, headers=own, body=data)
        reply = await self._call("create", request, headers=headers, params=params)
        return self._created(reply, content_type)

    async def create_or_connect(
        self,
        *,
        content_type: str | None = None,
        ttl_seconds: int | None = None,
        expires_at: datetime | str | None = None,
        body: bytes | str | None = None,
        closed: bool = False,
        headers: Headers | None = None,
        params: Params | None = None,
    ) -> CreateResult:
        """Create the stream, or take the one that is there, whatever its configuration. Arguments as in `create`.

        Raises:
            DurableStreamError: see `errors`.
        """
        try:
            return await self.create(
                content_type=content_type,
                ttl_seconds=ttl_seconds,
                expires_at=expires_at,
                body=body,
                closed=closed,
                headers=headers,
                params=params,
            )
        except (StreamExistsError, StreamClosedError):
            found = await self.connect(headers=headers, params=params)
        return CreateResult(
            found.status,
            found.headers,
            created=False,
            offset=found.offset,
            content_type=found.content_type,
            stream_closed=found.stream_closed,
        )

    async def connect(self, *, headers: Headers | None = None, params: Params | None = None) -> HeadResult:
        """Make sure that the stream exists, and learn its content type.

        Raises:
            StreamNotFoundError: there is no stream.
            DurableStreamError: see `errors`.
        """
        reply = await self._call("connect", Request("HEAD", Kind.UNARY), headers=headers, params=params)
        return self._described(reply)

    async def head(self, *, headers: Headers | None = None, params: Params | None = None) -> HeadResult:
        """Ask for the stream's tail, content type, lifetime and closure. A missing stream is `exists=False`.

        Raises:
            RetentionGoneError: the stream was deleted while forks need its data.
            DurableStreamError: see `errors`.
        """
        reply = await self._call(
            "head",
            Request("HEAD", Kind.UNARY),
            headers=headers,
            params=params,
            accept=lambda reply: reply.head.status == 404,
        )
        if reply.head.status == 404:
            return HeadResult(404, dict(reply.head.headers), exists=False)
        return self._described(reply)

    async def delete(self, *, headers: Headers | None = None, params: Params | None = None) -> DeleteResult:
        """Delete the stream and its data.

        Raises:
            StreamNotFoundError: there is no stream, and no earlier try of this call may have deleted it.
            RetentionGoneError: it was deleted before, and forks need its data.
            DurableStreamError: see `errors`.
        """
        reply = await self._call(
            "delete",
            Request("DELETE", Kind.UNARY),
            headers=headers,
            params=params,
            accept=lambda reply: reply.head.status in (404, 410) and reply.ambiguous,
        )
        self._content_type = None
        return DeleteResult(reply.head.status, dict(reply.head.headers))

    async def fork(
        self,
        new: str,
        *,
        offset: str | None = None,
        sub_offset: int | None = None,
        content_type: str | None = None,
        ttl_seconds: int | None = None,
        expires_at: datetime | str | None = None,
        body: bytes | str | None = None,
        closed: bool = False,
        headers: Headers | None = None,
        params: Params | None = None,
    ) -> DurableStream:
        """Create a stream that has this one's data up to an offset, and then its own.

        Args:
            new: URL of the fork, or a path on the same server, absolute or relative to this stream's.
            offset: Everything before it is inherited; None means this stream's tail. Only offsets that the server
                gave are valid.
            sub_offset: Inherit this much more: messages of a JSON stream, else bytes, at most to the next offset.
            content_type: Must equal this stream's; None inherits it.
            ttl_seconds: As in `create`; without `expires_at` too, the lifetime is inherited.
            expires_at: As in `create`.
            body: First own content, as in `create`.
            closed: Create the fork closed.
            headers: For this call, over the handle's.
            params: For this call, over the handle's.

        Returns:
            A handle for the fork. It shares this handle's transport, headers, params and options; close this one last.

        Raises:
            InvalidArgumentError: `new` is on another server, or an argument has a wrong value.
            StreamNotFoundError: this stream does not exist.
            ConflictError: other content type, another stream at `new`, or this stream is deleted.
            DurableStreamError: see `errors`.
        """
        if not isinstance(new, str) or not new:
            raise InvalidArgumentError(f"new must be a URL or path, got {new!r}")
        address = self._context.url.join(new)
        if not wire.same_origin(address, self._context.url):
            raise InvalidArgumentError(
                f"new must be on the server of {self.url}, got {address.display}: streams fork on one server only"
            )
        if content_type is None:
            own = validate.lifetime(ttl_seconds, expires_at)
        else:
            own, content_type = self._create_headers(content_type, ttl_seconds, expires_at)
        own[wire.FORKED_FROM] = self._context.url.path
        if offset is not None:
            if offset in (wire.START, wire.NOW):
                raise InvalidArgumentError(f"offset must be one that the server gave, got {offset!r}")
            own[wire.FORK_OFFSET] = validate.offset(offset)
        if sub_offset is not None:
            own[wire.FORK_SUB_OFFSET] = str(validate.integer("sub_offset", sub_offset))
        if closed:
            own[wire.CLOSED] = "true"
        data = b"" if body is None else validate.body(body)
        fork = DurableStream.__new__(DurableStream)
        fork._setup(
            self._context.moved(address),
            content_type=None,
            batching=self._batching,
            caps=self._caps,
            backoff=self._backoff,
            retry_ambiguous_appends=self._retry_ambiguous,
            owns=False,
        )
        request = Request("PUT", Kind.UNARY, headers=own, body=data)
        reply = await fork._call("fork", request, headers=headers, params=params)
        fork._created(reply, content_type or self._content_type)
        return fork

    async def append(
        self,
        body: bytes | str,
        *,
        seq: str | None = None,
        content_type: str | None = None,
        producer: ProducerStamp | None = None,
        validate_json: bool = False,
        headers: Headers | None = None,
        params: Params | None = None,
    ) -> AppendResult:
        """Append one message and wait until it is stored.

        Args:
            body: Bytes, or a str that is sent as UTF-8; not empty. For a JSON stream the text of one JSON value: an
                array is one message (`append_json` takes values instead of text).
            seq: Must sort, byte by byte, after all that were given before: the server refuses others. Zero-pad
                numbers.
            content_type: For this message; None means the stream's.
            producer: Makes this a raw producer append: one request, not gathered, `AppendResult.outcome` tells the
                server's decision. It is safe to repeat; `IdempotentProducer` keeps the count for you.
            validate_json: Check that `body` is JSON before it is sent. One bad message fails the batch it is in.
            headers: For this call, over the handle's.
            params: For this call, over the handle's.

        Raises:
            TypeError: `body` is neither bytes nor str.
            InvalidArgumentError: an argument has a wrong value; nothing was sent.
            StreamClosedError: the stream is closed.
            SeqConflictError: `seq` is not above the last one. With `maybe_applied` this may be our own earlier try.
            ConflictError: most often, the content type differs from the stream's.
            NetworkError: no answer. With `maybe_applied` the message may have been stored.
            AlreadyClosedError: the handle was closed.
            DurableStreamError: see `errors`.

        Cancelled while it is queued, the message is not sent; once on the wire it completes in the background, inside
        `async with`, or else may or may not be stored.
        """
        data = validate.body(body)
        if not data:
            raise InvalidArgumentError("body must not be empty")
        return await self._append(
            data,
            content_type=validate.content_type(content_type),
            seq=seq,
            producer=producer,
            validate_json=validate_json,
            headers=headers,
            params=params,
        )

    async def append_json(
        self,
        value: Any,
        *,
        seq: str | None = None,
        producer: ProducerStamp | None = None,
        headers: Headers | None = None,
        params: Params | None = None,
    ) -> AppendResult:
        """Append one JSON value as one message. Arguments and errors as in `append`.

        Raises:
            TypeError: the value cannot be written as JSON.
            InvalidArgumentError: it contains NaN or an infinity, or the stream is known not to be a JSON stream.
        """
        data = json_mode.encode_item(value)
        return await self._append(data, as_json=True, seq=seq, producer=producer, headers=headers, params=params)

    async def _append(
        self,
        data: bytes,
        *,
        content_type: str | None = None,
        as_json: bool = False,
        seq: str | None,
        producer: ProducerStamp | None,
        validate_json: bool = False,
        headers: Headers | None,
        params: Params | None,
    ) -> AppendResult:
        stamp = None if producer is None else stamp_headers(producer)
        seq = validate.seq(seq)
        headers, params = checked_headers(headers), checked_params(params)
        chosen = await self._accepted(content_type, headers, params, default=wire.JSON if as_json else None)
        if wire.is_json(chosen):
            json_mode.check_item(data, validate=validate_json)
        elif as_json:
            raise InvalidArgumentError(f"append_json needs a JSON stream; the content type is {chosen!r}")
        route = Route(chosen, headers, params, seq is not None)
        if stamp is not None:
            return await self._append_stamped(route, data, seq, stamp)
        return await self._queue.append(Entry(route, data, seq))

    async def append_stream(
        self,
        source: AsyncIterable[bytes | str] | Iterable[bytes | str],
        *,
        content_type: str | None = None,
        seq: str | None = None,
        headers: Headers | None = None,
        params: Params | None = None,
    ) -> AppendResult:
        """Append everything from an iterable as one message, sent while it is produced. Never repeated.

        Args:
            source: Plain or async iterable of bytes and str. An exception of it aborts the request and is raised;
                nothing is stored then.
            content_type: None means the stream's. For a JSON stream the pieces together are one JSON text.
            seq: As in `append`.
            headers: For this call, over the handle's.
            params: For this call, over the handle's.

        Raises:
            NetworkError: no answer; `maybe_applied` says whether the message may have been stored.
            DurableStreamError: see `append`.
        """
        if isinstance(source, str | bytes | bytearray | memoryview) or not hasattr(
            source, "__aiter__" if isinstance(source, AsyncIterable) else "__iter__"
        ):
            raise TypeError(f"source must be an iterable of bytes or str, got {type(source).__name__}")
        chosen = validate.content_type(content_type)
        own = {} if (seq := validate.seq(seq)) is None else {wire.SEQ: seq}
        headers, params = checked_headers(headers), checked_params(params)
        own[wire.CONTENT_TYPE] = await self._accepted(chosen, headers, params)
        async with self._queue.turn():
            reply = await self._call(
                "append",
                Request("POST", Kind.APPEND, headers=own),
                headers=headers,
                params=params,
                seq=seq,
                body=pieces(source),
            )
        return appended(reply)

    def writable(
        self, *, close_stream: bool = False, content_type: str | None = None, batching: Batching | None = None
    ) -> StreamWriter:
        """A sink to pipe into: `async with handle.writable() as sink: await sink.write(data)`.

        It writes exactly once, through an `IdempotentProducer` with an id of its own.

        Args:
            close_stream: Close the *stream* when the block is left normally. Left by an exception, it stays open.
            content_type: None means the stream's.
            batching: How data is gathered; None means `Batching.DEFAULT`.
        """
        from .producer import Batching  # The producer is built on the handle.
        from .writable import StreamWriter

        return StreamWriter(
            self, close_stream=close_stream, content_type=content_type, batching=batching or Batching.DEFAULT
        )

    async def close_stream(
        self,
        body: bytes | str | None = None,
        *,
        content_type: str | None = None,
        headers: Headers | None = None,
        params: Params | None = None,
    ) -> CloseResult:
        """Close the stream for good: readers see its end, and nobody can append any more. It cannot be undone.

        Appends that this handle has accepted are sent first. Closing again without `body` succeeds.

        Args:
            body: Last message, stored in the same step. For a JSON stream the text of one JSON value.
            content_type: Of `body`; None means the stream's.
            headers: For this call, over the handle's.
            params: For this call, over the handle's.

        Raises:
            StreamClosedError: the stream is closed already and `body` was given. With `maybe_applied` this may be
                our own earlier try.
            DurableStreamError: see `append`.
        """
        own = {wire.CLOSED: "true"}
        data, kind = b"", Kind.UNARY
        chosen = validate.content_type(content_type)
        headers, params = checked_headers(headers), checked_params(params)
        if body is not None:
            data, kind = validate.body(body), Kind.APPEND
            if not data:
                raise InvalidArgumentError("body must not be empty; leave it out to close without a last message")
            own[wire.CONTENT_TYPE] = chosen = await self._accepted(chosen, headers, params)
            if wire.is_json(chosen):
                json_mode.check_item(data)
                data = json_mode.frame([data])
        elif self._framing.locked():
            async with self._framing:  # Behind the appends that still ask for the content type.
                pass
        async with self._queue.turn():
            reply = await self._call(
                "close_stream",
                Request("POST", kind, headers=own, body=data),
                headers=headers,
                params=params,
                repeat_ambiguous=True,  # A second try finds the stream closed: it cannot store the body twice.
            )
        final = reply.head.headers.get(wire.NEXT_OFFSET) or None
        return CloseResult(reply.head.status, dict(reply.head.headers), final_offset=final)

    def stream(
        self,
        *,
        offset: str | Checkpoint | None = None,
        live: bool | Literal["long-poll", "sse"] = True,
        json: bool | None = None,
        headers: Headers | None = None,
        params: Params | None = None,
        cursor: str | None = None,
        on_error: OnError | None = None,
        backoff_options: BackoffOptions | None = None,
        sse_resilience: SSEResilience | None = None,
        max_page_bytes: int | None = MAX_PAGE_BYTES,
        max_response_bytes: int | None = None,
        if_none_match: str | None = None,
    ) -> StreamSession:
        """Open a read session on this stream. Arguments and errors as in `durable_streams.stream`.

        It uses the handle's transport, and its headers, params, `on_error` and retry policy where none are given.
        """
        options = read_options(
            self._context.url,
            offset=offset,
            live=live,
            json=json,
            cursor=cursor,
            max_page_bytes=max_page_bytes,
            max_response_bytes=max_response_bytes,
            if_none_match=if_none_match,
            backoff_options=backoff_options or self._backoff,
            sse_resilience=sse_resilience,
        )
        context = self._context.child(headers=headers, params=params, on_error=on_error)
        return StreamSession(options, context, owner=None, start_offset=options.start.offset)

    # -- Inside --------------------------------------------------------------------------------------------

    def _create_headers(
        self, content_type: str | None, ttl_seconds: int | None, expires_at: datetime | str | None
    ) -> tuple[dict[str, str], str | None]:
        own = validate.lifetime(ttl_seconds, expires_at)
        content_type = validate.content_type(content_type) or self._content_type
        if content_type is not None:
            own[wire.CONTENT_TYPE] = content_type
        return own, content_type

    def _created(self, reply: Reply, requested: str | None) -> CreateResult:
        result = created(reply, requested or self._content_type)
        self._content_type = result.content_type
        return result

    def _described(self, reply: Reply) -> HeadResult:
        result = described(reply)
        self._content_type = result.content_type or self._content_type
        return result

    async def _known_content_type(self) -> str:
        """The stream's content type, asked for if need be: the framing of a message depends on it."""
        return await self._accepted(None, {}, {})

    async def _accepted(
        self, content_type: str | None, headers: Headers, params: Params, *, default: str | None = None
    ) -> str:
        """The content type of a message that is accepted now.

        If nobody says it, the server is asked. Calls leave in the order in which they came: a message that has to wait
        for the answer is not overtaken by one that has not.

        Args:
            content_type: What the call says, which counts most; then the handle, then a user's header.
            headers: The call's headers.
            params: The call's parameters.
            default: Taken instead of asking.
        """
        content_type = content_type or self._content_type
        if content_type is not None and not self._framing.locked():
            return content_type
        async with self._framing:
            content_type = content_type or self._content_type or await self._context.content_type(headers) or default
            if content_type is None:
                head = Request("HEAD", Kind.UNARY)
                self._described(await self._call("append", head, headers=headers, params=params))
                content_type = self._content_type or wire.OCTET_STREAM
            return content_type

    async def _send_batch(self, route: Route, entries: list[Entry]) -> AppendResult:
        """One request for messages that go together; the last `seq` counts for all."""
        payloads = [entry.payload for entry in entries]
        seq = entries[-1].seq
        own = {wire.CONTENT_TYPE: route.content_type}
        if seq is not None:
            own[wire.SEQ] = seq
        request = Request("POST", Kind.APPEND, headers=own, body=framed(route.content_type, payloads))
        reply = await self._call("append", request, headers=route.headers, params=route.params, seq=seq)
        return appended(reply)

    async def _append_stamped(
        self, route: Route, data: bytes, seq: str | None, stamp: Mapping[str, str]
    ) -> AppendResult:
        self._queue.check_open()
        own = {wire.CONTENT_TYPE: route.content_type, **stamp}
        if seq is not None:
            own[wire.SEQ] = seq
        request = Request("POST", Kind.PRODUCER, headers=own, body=framed(route.content_type, [data]))
        reply = await self._call(
            "append",
            request,
            headers=route.headers,
            params=route.params,
            seq=seq,
            accept=lambda reply: refusal(reply) is not None,
        )
        return appended(reply, stamped=True)

    async def _call(
        self,
        operation: str,
        request: Request,
        *,
        headers: Headers | None,
        params: Params | None,
        seq: str | None = None,
        accept: Callable[[Reply], bool] = lambda reply: False,
        repeat_ambiguous: bool = False,
        body: AsyncIterable[bytes] | None = None,
    ) -> Reply:
        """Run one operation to its end."""
        context = self._context
        if headers or params:
            context = context.child(headers=headers, params=params)
        session = CallSession(
            request,
            Subject(operation, self.url, seq, len(request.body)),
            self._backoff,
            accept=accept,
            repeat_ambiguous=repeat_ambiguous or seq is not None or self._retry_ambiguous,
            repeatable=body is None,
        )
        driver: Driver[Reply] = Driver(
            session, context, logger=logger, on_failed_attempt=self._backoff.on_failed_attempt, body=body
        )
        try:
            reply = await driver.advance()
        finally:
            await driver.close_answer()
        assert reply is not None
        return reply
