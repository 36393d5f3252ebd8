"""Which call a request is, and the answers of the unary ones (specification: S2 2, 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import anyio

from ..._core.json_mode import decode_items, encode_item
from ...errors import InvalidArgumentError, ParseError
from ...s2 import _json_records, _proto
from ...s2._frames import Compression, compress, decompress
from ...s2._json_records import Format, position_shape
from ...s2._values import MAX_UNARY_BODY_BYTES, AppendAck, AppendInput
from ...s2.errors import S2ProtocolError
from . import reads
from .answers import Refusal, bad, invalid, refusal
from .configs import Json, read_stream_config, shown
from .exchange import Exchange, S2Request
from .faults import RequestFaults, S2Fault, S2Faults, S2Operation
from .store import Store, Stream, check_basin_name, check_basin_prefix, check_prefix, check_stream_name

JSON = {"content-type": "application/json"}
PROTO = {"content-type": "application/protobuf"}
_PROTO_TYPES = ("application/protobuf", "application/x-protobuf")
_SESSION_TYPE = "s2s/proto"
_MIN_COMPRESSED = 1024
_FORMATS: dict[str, Format] = {"": "raw", "raw": "raw", "json": "raw", "base64": "base64", "json-binsafe": "base64"}


@dataclass(slots=True)
class S2Behaviour:
    """How the server behaves, beside faults. Tests change it as they like.

    Attributes:
        ack_delay: Seconds from the application of a batch to its acknowledgement.
        heartbeat: Shortest and longest time between heartbeats, in seconds.
        compression: How frames are compressed; None as the client offers it.
        min_compressed: Payloads of frames below this stay plain; 0 compresses them all.
        piece: Send bodies of sessions in pieces of at most so many bytes; None leaves them whole.
        coalesce: Send acknowledgements that are due together in one piece.
        reserved_bits: The low four bits of every flag.
        keep_deleted: Keep basins and streams that were deleted, with their answer "deletion pending", until `sweep` is
            called; else they are gone with the next request.
        draining: Refuse everything with 503 `server_draining`; sessions end so after what they have taken.
    """

    ack_delay: float = 0.0
    heartbeat: tuple[float, float] = (5.0, 15.0)
    compression: Compression | None = None
    min_compressed: int = _MIN_COMPRESSED
    piece: int | None = None
    coalesce: bool = True
    reserved_bits: int = 0
    keep_deleted: bool = False
    draining: bool = False
    drained: anyio.Event = field(default_factory=anyio.Event)


@dataclass(slots=True)
class Call:
    """A request on its way to its answer.

    Attributes:
        exchange: The request, and where the answer goes.
        store: All data.
        behaviour: How the server behaves.
        faults: What goes wrong with this request.
        stream_name: From the path, decoded; "" if there is none.
    """

    exchange: Exchange
    store: Store
    behaviour: S2Behaviour
    faults: RequestFaults
    stream_name: str = ""

    @property
    def request(self) -> S2Request:
        """The request."""
        return self.exchange.request

    def header(self, name: str) -> str:
        """A header, "" if it is missing."""
        return self.request.headers.get(name, "")

    @property
    def basin(self) -> str:
        """The basin that the request names."""
        name = self.request.headers.get("s2-basin")
        if name is None:
            raise bad("bad_header", "missing header: s2-basin")
        return check_basin_name(name, "bad_header")

    @property
    def form(self) -> Format:
        """How bytes stand in JSON."""
        name = self.header("s2-format")
        if name not in _FORMATS:
            raise bad("bad_header", f"unknown s2-format `{name}`")
        return _FORMATS[name]

    def open_stream(self, why: str) -> Stream:
        """The stream of the path, created if that is allowed."""
        text = self.request.headers.get("s2-stream-config")
        config: Json | None = None
        if text is not None and why != "tail":
            try:
                [value] = decode_items([text.encode()])
                config = read_stream_config(value)
            except (ParseError, ValueError, Refusal):
                raise bad("bad_header", "invalid s2-stream-config") from None
        return self.store.open_stream(self.basin, self.stream_name, "append" if why == "append" else "read", config)

    async def body(self, code: str) -> bytes:
        """The whole body of the request, decoded. `code`: of the refusal if that cannot be done."""
        parts, size = [], 0
        while data := await self.exchange.receive():
            parts.append(data)
            size += len(data)
            if size > 4 * MAX_UNARY_BODY_BYTES:
                break
        body = b"".join(parts)
        for coding in reversed([part.strip() for part in self.header("content-encoding").split(",") if part.strip()]):
            if coding not in ("gzip", "zstd"):
                raise Refusal(415, headers={"accept-encoding": "zstd,gzip"})
            try:
                body = decompress(body, "gzip" if coding == "gzip" else "zstd", MAX_UNARY_BODY_BYTES)
            except S2ProtocolError as error:
                raise bad(code, str(error)) from None
        if len(body) > MAX_UNARY_BODY_BYTES:
            raise bad(code, "length limit exceeded")
        return body

    async def json(self, *, optional: bool = False) -> Any:
        """The JSON of the request."""
        body = await self.body("bad_json")
        if optional and not body:
            return None
        if self.header("content-type").partition(";")[0].strip() != "application/json":
            raise bad("bad_json", "expected request with `Content-Type: application/json`")
        try:
            found = decode_items([body])
        except ParseError as error:
            raise bad("bad_json", str(error)) from None
        if body.lstrip()[:1] == b"[":
            return found
        return found[0] if found else None

    async def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Send a whole answer, compressed if the client likes it, and with the faults that are due."""
        headers = dict(headers)
        coding = offered(self.header("accept-encoding"))
        if coding != "none" and len(body) > _MIN_COMPRESSED:
            body = compress(body, coding)
            headers["content-encoding"] = coding
        await self._spoil_answer(status, headers, body)
        await self.exchange.respond(status, headers, body)

    async def before(self) -> None:
        """The faults that keep a call from being acted upon."""
        take = self.faults.take
        if self.behaviour.draining:
            raise refusal(503, "server_draining", "server is draining")
        if fault := take(-1, "delay"):
            await anyio.sleep(fault.delay)
        if fault := take(-1, "refuse"):
            raise injected(fault)
        if take(-1, "cut_before"):
            await self.exchange.cut()
        if fault := take(-1, "reset_before"):
            await self.exchange.reset(fault.reset_code)
        if take(-1, "unprocessed"):
            await self.exchange.goaway(leave_out=True)
            await self.exchange.cut()
        if take(-1, "goaway"):
            await self.exchange.goaway()

    async def _spoil_answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """The faults that come after the call was acted upon."""
        take = self.faults.take
        if take(-1, "cut_after"):
            await self.exchange.cut()
        if fault := take(-1, "reset_after"):
            await self.exchange.reset(fault.reset_code)
        if fault := take(-1, "refuse_after"):
            raise injected(fault)
        if take(-1, "stall"):
            await anyio.sleep_forever()
        if take(-1, "truncate"):
            await self.exchange.start(status, headers, length=len(body) + 1)
            await self.exchange.send(body[: len(body) // 2])
            await self.exchange.cut()


def injected(fault: S2Fault) -> Refusal:
    """The refusal that a fault asks for."""
    headers = {} if fault.retry_after_ms is None else {"retry-after-ms": str(fault.retry_after_ms)}
    if fault.body is not None:
        return Refusal(fault.status, fault.body, headers)
    made = refusal(fault.status, fault.code, "injected")
    return Refusal(made.status, made.body, headers)


def offered(accept: str) -> Compression:
    """The coding that a client offers, zstd before gzip; `q=0` excludes, other weights are ignored (S2 4.1)."""
    names = set()
    for part in accept.split(","):
        name, _, parameters = part.partition(";")
        weight = parameters.strip().removeprefix("q=").strip()
        if not (parameters.strip().startswith("q=") and weight.rstrip("0").rstrip(".") == ""):
            names.add(name.strip().lower())
    return "zstd" if "zstd" in names else "gzip" if "gzip" in names else "none"


async def serve(
    exchange: Exchange, store: Store, behaviour: S2Behaviour, faults: S2Faults, notify: Callable[[], None]
) -> None:
    """Answer one request. `notify` is called when it is known what it is."""
    from . import sessions

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
                await sessions.append(call)
            case "read_session":
                await sessions.read(call)
            case "read_sse":
                await sessions.read_sse(call)
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
        case ["access-tokens" | "locations" | "metrics", *_]:
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
