"""Which call a request is, and the answers of the unary ones (specification: S2 2, 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import anyio

from ..._core.json_mode import encode_item
from ...errors import InvalidArgumentError
from ...s2 import _json_records, _proto
from ...s2._json_records import position_shape
from ...s2._values import AppendAck, AppendInput
from ...s2.errors import S2ProtocolError
from . import append_session, read_sessions, reads
from .answers import Refusal, bad, invalid, refusal
from .call import Call, S2Behaviour
from .configs import Json, shown
from .exchange import Exchange, S2Request
from .faults import S2Faults, S2Operation
from .store import Store, check_basin_name, check_basin_prefix, check_prefix, check_stream_name
from .stream import Stream

JSON = {"content-type": "application/json"}
PROTO = {"content-type": "application/protobuf"}
_PROTO_TYPES = ("application/protobuf", "application/x-protobuf")
_SESSION_TYPE = "s2s/proto"
#: Sets of metrics of the account, of a basin, of a stream.
_METRICS = (
    ("active-basins", "account-ops", "estimated-billable-usage"),
    ("storage", "append-ops", "read-ops", "append-throughput", "read-throughput", "basin-ops"),
    ("storage",),
)


async def serve(
    exchange: Exchange, store: Store, behaviour: S2Behaviour, faults: S2Faults, notify: Callable[[], None]
) -> None:
    """Answer one request. `notify` is called when it is known what it is."""
    request = exchange.request
    call: Call | None = None
    try:
        if request.path in ("/health", "/ping"):
            await exchange.respond(200, {"content-type": "text/plain"}, b"OK")
            return
        parts = request.path.removeprefix("/v1/").split("/") if request.path.startswith("/v1/") else [""]
        operation = operation_of(request, parts)
        request.operation = operation
        notify()
        if not behaviour.keep_deleted:
            store.sweep()
        call = Call(exchange, store, behaviour, faults.at_request(operation))
        if len(parts) > 1 and parts[0] == "streams":
            call.stream_name = _segment(parts[1], check_stream_name)
        await call.before()
        match operation:
            case "append_session":
                await append_session.append(call)
            case "read_session":
                await read_sessions.read(call)
            case "read_sse":
                await read_sessions.read_sse(call)
            case "append":
                await append(call)
            case "read":
                await read(call)
            case "tail":
                await tail(call)
            case _:
                await manage(call, parts)
    except Refusal as error:
        headers = {**(JSON if error.body else {}), **error.headers}
        if error.body.startswith(b"<"):
            headers["content-type"] = "text/html"
        await exchange.respond(error.status, headers, error.body)


def operation_of(request: S2Request, parts: list[str]) -> S2Operation:
    """What kind of call a request is."""
    session = request.headers.get("content-type", "").partition(";")[0].strip() == _SESSION_TYPE
    match parts, request.method:
        case ["streams", _, "records"], "POST":
            return "append_session" if session else "append"
        case ["streams", _, "records"], "GET":
            accept = request.headers.get("accept", "").partition(",")[0].partition(";")[0].strip()
            return "read_session" if session else "read_sse" if accept == "text/event-stream" else "read"
        case ["streams", _, "records", "tail"], "GET":
            return "tail"
    return "manage"


def _segment(text: str, check: Callable[[str, str], str]) -> str:
    try:
        name = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise bad("bad_path", "path is not UTF-8") from None
    return check(name, "bad_path")


def _media_type(value: str) -> str:
    return value.partition(",")[0].partition(";")[0].strip().lower()


async def append(call: Call) -> None:
    """POST records, unary."""
    proto = _media_type(call.header("content-type")) in _PROTO_TYPES
    code = "bad_proto" if proto else "bad_json"
    if not proto and _media_type(call.header("content-type")) != "application/json":
        raise bad("bad_json", "expected request with `Content-Type: application/json`")
    body = await call.body(code)
    try:
        batch = _proto.decode_append_input(body) if proto else _json_records.decode_append_input(body, call.form)
    except S2ProtocolError as error:
        raise bad(code, str(error)) from None
    except InvalidArgumentError as error:
        raise invalid(str(error)) from None
    start, end, stream = apply(call, batch)
    if call.behaviour.ack_delay:
        await anyio.sleep(call.behaviour.ack_delay)
    ack = AppendAck(start, end, stream.tail)
    if _media_type(call.header("accept")) in _PROTO_TYPES:
        await call.answer(200, _proto.encode_append_ack(ack), PROTO)
    else:
        await call.answer(200, _json_records.encode_append_ack(ack), JSON)


def apply(call: Call, batch: AppendInput) -> tuple[Any, Any, Stream]:
    """Store a batch. Returns its start, its end, and the stream."""
    stream = call.open_stream("append")
    key = reads.decryption_key(stream, call.request.headers)
    start, end = stream.append(batch, call.store.clock(), key)
    return start, end, stream


async def read(call: Call) -> None:
    """GET records, unary."""
    plan = reads.parse(call.request.query).unary()
    form = call.form
    plan.check()
    stream = call.open_stream("read")
    cursor = reads.Cursor.open(stream, plan, reads.decryption_key(stream, call.request.headers))
    batch = await reads.read_once(cursor)
    if _media_type(call.header("accept")) in _PROTO_TYPES:
        await call.answer(200, _proto.encode_read_batch(batch), PROTO)
    else:
        await call.answer(200, _json_records.encode_read_batch(batch, form), JSON)


async def tail(call: Call) -> None:
    """GET the tail."""
    stream = call.open_stream("tail")
    await call.answer(200, encode_item({"tail": position_shape(stream.tail)}), JSON)


# --- Basins and streams -----------------------------------------------------------------------------------------------


async def manage(call: Call, parts: list[str]) -> None:
    """Everything that is not about records."""
    store, method = call.store, call.request.method
    match parts:
        case ["basins"]:
            await _collection(call, method, "basins")
        case ["basins", segment]:
            name = _segment(segment, check_basin_name)
            if method == "GET":
                await _reply(call, 200, _basin_config(store.basin(name).config))
            elif method == "PUT":
                result, basin = store.ensure_basin(name, await call.json(optional=True))
                await _provisioned(call, result, basin.info, 201 if result == "created" else 200)
            elif method == "PATCH":
                await _reply(call, 200, _basin_config(store.patch_basin(name, await call.json()).config))
            elif method == "DELETE":
                store.delete_basin(name)
                await call.answer(202, b"", {})
            else:
                raise _method("GET,PUT,PATCH,DELETE")
        case ["streams"]:
            await _collection(call, method, "streams")
        case ["streams", _]:
            await _stream(call, method)
        case ["metrics", *names] if method == "GET" and len(names) < len(_METRICS):
            if dict(parse_qsl(call.request.query)).get("set") not in _METRICS[len(names)]:
                raise bad("bad_query", "missing or unknown `set`")
            raise refusal(501, "not_implemented", "not implemented")
        case ["access-tokens" | "locations", *_]:
            raise refusal(501, "not_implemented", "not implemented")
        case ["streams", _, "records"] | ["streams", _, "records", "tail"]:
            raise _method("GET,POST" if len(parts) == 3 else "GET")
        case _:
            raise Refusal(404)


def _method(allow: str) -> Refusal:
    return Refusal(405, headers={"allow": allow})


async def _stream(call: Call, method: str) -> None:
    store, name, basin = call.store, call.stream_name, call.basin
    if method == "GET":
        await _reply(call, 200, store.stream(basin, name).config)
    elif method == "PUT":
        result, stream = store.ensure_stream(basin, name, await call.json(optional=True))
        await _provisioned(call, result, stream.info, 201 if result == "created" else 200)
    elif method == "PATCH":
        await _reply(call, 200, store.patch_stream(basin, name, await call.json()).config)
    elif method == "DELETE":
        store.delete_stream(basin, name)
        await call.answer(202, b"", {})
    else:
        raise _method("GET,PUT,PATCH,DELETE")


async def _collection(call: Call, method: str, kind: str) -> None:
    """The list of basins or of streams, or a new one."""
    store = call.store
    if method == "GET":
        prefix, start_after, limit = _page(call.request.query, check_basin_prefix if kind == "basins" else check_prefix)
        members: dict[str, Any] = dict(store.basins if kind == "basins" else store.basin(call.basin).streams)
        names = sorted((name for name in members if name.startswith(prefix) and name > start_after), key=str.encode)
        shown_names = names[:limit]
        await _reply(
            call, 200, {kind: [members[name].info for name in shown_names], "has_more": len(names) > len(shown_names)}
        )
    elif method == "POST":
        token = call.request.headers.get("s2-request-token")
        if token is not None and not 1 <= len(token.encode()) <= 36:
            raise bad("bad_header", "s2-request-token must be 1 to 36 bytes")
        result: str
        made: Any
        if kind == "basins":
            result, made = store.create_basin(await call.json(), token)
        else:
            result, made = store.create_stream(call.basin, await call.json(), token)
        await _provisioned(call, result, made.info, 201)
    else:
        raise _method("GET,POST")


def _page(query: str, check: Callable[[str], str]) -> tuple[str, str, int]:
    """Prefix, name to start after, and size of a page of names."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    limit = given.get("limit", "1000")
    if not limit.isdigit():
        raise bad("bad_query", "limit: invalid number")
    size = int(limit) if 1 <= int(limit[:9]) <= 1000 else 1000
    return check(given.get("prefix", "")), check(given.get("start_after", "")), size


def _basin_config(config: Json) -> Json:
    return {**config, "default_stream_config": shown(config["default_stream_config"])}


async def _provisioned(call: Call, result: str, info: Json, status: int) -> None:
    await call.answer(status, encode_item(info), {**JSON, "s2-provision-result": result})


async def _reply(call: Call, status: int, document: Json) -> None:
    await call.answer(status, encode_item(document), JSON)
