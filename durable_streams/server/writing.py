"""PUT, POST and DELETE."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypeGuard

import anyio
import anyio.lowlevel

from .._core import wire
from .._core.wire import is_true
from . import json_messages
from .protocol import Appended, AppendRequest, InvalidJson, Payload, ProducerStamp, Reason, Refused
from .requests import Call, parse_config, parse_producer
from .responses import (
    CLOSED,
    CONTENT_TYPE,
    NO_STORE,
    STREAM_CLOSED,
    STREAM_SEQ,
    Headers,
    Rejection,
    next_offset,
    producer_headers,
    refusal,
)
from .stores.base import AppendResult, Created, CreateRequest, Gone, Missing, StreamInfo

if TYPE_CHECKING:
    from ._exchange import Exchange
    from .http import DurableStreamsApp
    from .metrics import Metrics
    from .stores.abilities import PromptStore

# A larger body, or one of unknown length, is only read after a look whether the stream exists.
_LARGE_BYTES = 64 * 1024


@lru_cache(256)
def _media_type(content_type: bytes) -> str:
    return wire.media_type(content_type.decode("latin-1"))


def _payload(body: bytes, media_type: str) -> Payload | InvalidJson | None:
    if not body:
        return None
    return json_messages.split_json(body) if media_type == wire.JSON else Payload(body)


async def _payload_in_time(body: bytes, media_type: str) -> Payload | InvalidJson | None:
    """The same, while others are served: a long array takes a while."""
    if media_type != wire.JSON or len(body) <= json_messages.SLICE_BYTES:
        return _payload(body, media_type)
    work = json_messages.split_in_slices(body)
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # the generator's result
        await anyio.lowlevel.checkpoint()


def _count(metrics: Metrics, payload: Payload | InvalidJson | None) -> None:
    if isinstance(payload, Payload) and payload.data:
        metrics.count_append(len(payload.data), len(payload.ends) or 1)


def _first_payload(request: CreateRequest, info: StreamInfo) -> Payload | InvalidJson | None:
    """What a creation has put into its stream: in JSON mode messages, also if a fork inherits that."""
    if request.payload_if_json is not None and wire.is_json(info.content_type):
        return request.payload_if_json
    return request.payload


async def put(app: DurableStreamsApp, call: Call) -> None:
    """Create a stream or a fork, or confirm that it exists as requested (server 5 and 13)."""
    config = parse_config(call)
    closed = is_true(call.header(STREAM_CLOSED))
    if config.fork is not None and app.gate is not None:
        await app.gate.check(call, config.fork.source, "read")
    body = await call.read_body(app.max_append_bytes)
    # What a fork without a content type holds shows in the store, in the moment in which the source is looked at.
    inherits_type = config.fork is not None and config.content_type is None
    request = CreateRequest(
        call.path,
        config,
        closed,
        await _payload_in_time(body, wire.media_type(config.content_type)),
        await _payload_in_time(body, wire.JSON) if inherits_type else None,
    )
    async with nullcontext() if app.room is None else app.room.place(lambda: app.store.head(call.path, app.clock())):
        result = await app.store.create(request, app.clock())
    if isinstance(result, Refused):
        raise refusal(result)
    info = result.info
    app.subscriptions.notice(call.path)
    if app.metrics is not None and isinstance(result, Created):
        _count(app.metrics, _first_payload(request, info))
    headers: Headers = [(CONTENT_TYPE, info.content_type.encode("latin-1")), next_offset(info.tail), NO_STORE]
    if info.closed:
        headers.append(CLOSED)
    if isinstance(result, Created):
        headers.append((b"location", f"{call.origin(app.public_url)}{call.path}".encode("latin-1")))
        await call.answer(201, headers)
    else:
        await call.answer(200, headers)


async def post(app: DurableStreamsApp, call: Call) -> None:
    """Append, close, or both (server 6)."""
    stamp, seq = _stamp_and_seq(call)
    length = call.content_length()
    if length is not None and length <= _LARGE_BYTES:
        request, result = await _append(app, call, stamp, seq)
    else:
        found = await app.store.head(call.path, app.clock())
        if isinstance(found, Missing | Gone):
            raise refusal(found)
        with nullcontext() if stamp is None else app.arrivals.uploading(call.path, stamp):
            request, result = await _append(app, call, stamp, seq)
    await call.answer(*_appended(app, request, result))


def post_now(app: DurableStreamsApp, store: PromptStore, call: Exchange) -> None:
    """The same without a task, for a request that is there as a whole.

    Raises:
        Rejection: if the request is refused before the store is asked.
    """
    stamp, seq = _stamp_and_seq(call)
    call.check_body(app.max_append_bytes)
    payload = _payload(call.whole_body(app.max_append_bytes), _media_type_of(call))
    request = _request(call, payload, stamp, seq)

    def done(result: AppendResult | Exception) -> None:
        if _is_early(result):
            app.serve_after_all(call, partial(_post_early, request=request, result=result))
        else:
            app.conclude(call, partial(_appended, app, request, result))

    try:
        store.append_soon(request, app.clock(), done)
    except Exception as error:
        done(error)


async def _post_early(app: DurableStreamsApp, call: Call, request: AppendRequest, result: AppendResult) -> None:
    await call.answer(*_appended(app, request, await _append_after_predecessor(app, request, result)))


def _stamp_and_seq(call: Call) -> tuple[ProducerStamp | None, bytes | None]:
    stamp = parse_producer(call)
    seq = call.headers.get(STREAM_SEQ)
    if seq == b"":
        raise Rejection(400, "Stream-Seq must not be empty")
    return stamp, seq


def _media_type_of(call: Call) -> str:
    return _media_type(call.headers.get(CONTENT_TYPE, b""))


def _request(
    call: Call, payload: Payload | InvalidJson | None, stamp: ProducerStamp | None, seq: bytes | None
) -> AppendRequest:
    close = STREAM_CLOSED in call.headers and is_true(call.header(STREAM_CLOSED))
    return AppendRequest(call.path, _media_type_of(call), payload, close, stamp, seq)


def _appended(app: DurableStreamsApp, request: AppendRequest, result: AppendResult | Exception) -> tuple[int, Headers]:
    """The answer to an append.

    Raises:
        Rejection: if it was refused.
    """
    if isinstance(result, Exception):
        raise result
    if isinstance(result, Refused):
        raise refusal(result)
    if isinstance(result, Appended):
        if request.producer is not None:
            app.arrivals.moved(request.path, request.producer)
        if app.metrics is not None:
            _count(app.metrics, request.payload)
    app.subscriptions.notice(request.path)
    answer: Headers = [next_offset(result.tail)]
    if result.closed:
        answer.append(CLOSED)
    status = 204
    if result.producer is not None:
        answer += producer_headers(result.producer)
        if request.payload is not None and isinstance(result, Appended):
            status = 200
    return status, answer


async def _append(
    app: DurableStreamsApp, call: Call, stamp: ProducerStamp | None, seq: bytes | None
) -> tuple[AppendRequest, AppendResult]:
    """Read the body and append it."""
    body = await call.read_body(app.max_append_bytes)
    request = _request(call, await _payload_in_time(body, _media_type_of(call)), stamp, seq)
    result = await app.store.append(request, app.clock())
    return request, await _append_after_predecessor(app, request, result)


def _is_early(result: AppendResult | Exception) -> TypeGuard[Refused]:
    return isinstance(result, Refused) and result.reason is Reason.SEQUENCE_GAP


async def _append_after_predecessor(
    app: DurableStreamsApp, request: AppendRequest, result: AppendResult
) -> AppendResult:
    """If a producer's request has come before the one before it: give that a moment (`arrivals`)."""
    stamp = request.producer
    if stamp is None or not _is_early(result):
        return result
    since = anyio.current_time()
    try:
        while True:
            news = app.arrivals.expect(request.path, stamp)
            result = await app.store.append(request, app.clock())
            if not _is_early(result) or not await app.arrivals.wait(news, request.path, stamp, since):
                return result
    finally:
        app.arrivals.moved(request.path, stamp)  # nobody is left behind; who still waits looks once more


async def delete(app: DurableStreamsApp, call: Call) -> None:
    """Delete a stream (server 14)."""
    result = await app.store.delete(call.path, app.clock())
    if isinstance(result, Refused):
        raise refusal(result)
    app.subscriptions.notice(call.path)
    await call.answer(204, [])
