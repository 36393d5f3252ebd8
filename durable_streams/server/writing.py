"""PUT, POST and DELETE."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import anyio

from .._core import wire
from .._core.wire import is_json, is_true
from . import json_messages
from .offsets import parse_offset
from .protocol import Appended, AppendRequest, InvalidJson, Payload, ProducerStamp, Reason, Refused
from .requests import Call, parse_config, parse_producer, parse_whole
from .responses import CLOSED, CONTENT_TYPE, NO_STORE, Headers, Rejection, next_offset, producer_headers, refusal
from .stores.base import AppendResult, Created, CreateRequest, Gone, Missing

if TYPE_CHECKING:
    from .http import DurableStreamsApp

# A larger body, or one of unknown length, is only read after a look whether the stream exists.
_LARGE_BYTES = 64 * 1024


def _payload(body: bytes, content_type: str | None) -> Payload | InvalidJson | None:
    if not body:
        return None
    return json_messages.split_json(body) if is_json(content_type) else Payload(body)


async def put(app: DurableStreamsApp, call: Call) -> None:
    """Create a stream, or confirm that it exists as requested (server 5)."""
    config = parse_config(call)
    _check_fork(call)
    closed = is_true(call.header(wire.CLOSED))
    body = await call.read_body(app.max_append_bytes)
    request = CreateRequest(call.path, config, closed, _payload(body, config.content_type))
    result = await app.store.create(request, app.clock())
    if isinstance(result, Refused):
        raise refusal(result)
    info = result.info
    headers: Headers = [(CONTENT_TYPE, info.content_type.encode("latin-1")), next_offset(info.tail), NO_STORE]
    if info.closed:
        headers.append(CLOSED)
    if isinstance(result, Created):
        headers.append((b"location", _url(call)))
        await call.answer(201, headers)
    else:
        await call.answer(200, headers)


def _check_fork(call: Call) -> None:
    """Forks are not there yet: say so, rather than create an ordinary stream."""
    source = call.header(wire.FORKED_FROM)
    offset, sub_offset = call.header(wire.FORK_OFFSET), call.header(wire.FORK_SUB_OFFSET)
    if source is None:
        if offset is not None or sub_offset is not None:
            raise Rejection(400, "Stream-Fork-Offset and Stream-Fork-Sub-Offset need Stream-Forked-From")
        return
    if wire.normalize_path(source.encode("latin-1")) is None:
        raise Rejection(400, "Stream-Forked-From must be the URL path of a stream")
    if offset is not None and parse_offset(offset) is None:
        raise Rejection(400, "Stream-Fork-Offset is no offset")
    if sub_offset is not None and parse_whole(sub_offset) is None:
        raise Rejection(400, "Stream-Fork-Sub-Offset must be a whole number")
    raise Rejection(501, "this server does not support forks")


def _url(call: Call) -> bytes:
    """The stream's URL as the client addresses us."""
    host = call.headers.get(b"host")
    if not host:
        name, port = call.scope.get("server") or ("localhost", None)
        host = (f"[{name}]" if ":" in name else name).encode()
        if port is not None:
            host += b":%d" % port
    return b"%b://%b%b" % (call.scope.get("scheme", "http").encode(), host, call.path.encode())


async def post(app: DurableStreamsApp, call: Call) -> None:
    """Append, close, or both (server 6)."""
    stamp = parse_producer(call)
    seq = call.headers.get(wire.SEQ.encode())
    if seq == b"":
        raise Rejection(400, "Stream-Seq must not be empty")
    length = call.content_length()
    large = length is None or length > _LARGE_BYTES
    if large:
        found = await app.store.head(call.path, app.clock())
        if isinstance(found, Missing | Gone):
            raise refusal(found)
    if stamp is None:
        request = await _read_append(app, call, None, seq)
        result = await app.store.append(request, app.clock())
    else:
        with app.arrivals.uploading(call.path, stamp) if large else nullcontext():
            request = await _read_append(app, call, stamp, seq)
            result = await _append_in_order(app, request, stamp)
    if isinstance(result, Refused):
        raise refusal(result)
    headers: Headers = [next_offset(result.tail)]
    if result.closed:
        headers.append(CLOSED)
    if result.producer is None:
        await call.answer(204, headers)
    else:
        headers += producer_headers(result.producer)
        await call.answer(200 if isinstance(result, Appended) and request.payload is not None else 204, headers)


async def _read_append(
    app: DurableStreamsApp, call: Call, stamp: ProducerStamp | None, seq: bytes | None
) -> AppendRequest:
    content_type = call.header(wire.CONTENT_TYPE)
    body = await call.read_body(app.max_append_bytes)
    return AppendRequest(
        call.path,
        wire.media_type(content_type),
        _payload(body, content_type),
        is_true(call.header(wire.CLOSED)),
        stamp,
        seq,
    )


async def _append_in_order(app: DurableStreamsApp, request: AppendRequest, stamp: ProducerStamp) -> AppendResult:
    """Append; if the producer's preceding request is not here yet, give it a moment (`arrivals`)."""
    result = await app.store.append(request, app.clock())
    if isinstance(result, Refused) and result.reason is Reason.SEQUENCE_GAP:
        since = anyio.current_time()
        while isinstance(result, Refused) and result.reason is Reason.SEQUENCE_GAP:
            if not await app.arrivals.wait(request.path, stamp, since):
                return result
            result = await app.store.append(request, app.clock())
    if isinstance(result, Appended):
        app.arrivals.moved(request.path, stamp)
    return result


async def delete(app: DurableStreamsApp, call: Call) -> None:
    """Delete a stream (server 14)."""
    result = await app.store.delete(call.path, app.clock())
    if isinstance(result, Refused):
        raise refusal(result)
    await call.answer(204, [])
