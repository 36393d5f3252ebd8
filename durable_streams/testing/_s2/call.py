"""A request on its way to its answer: what it says, what goes wrong with it, how the server behaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio

from ..._core.json_mode import decode_items
from ...errors import ParseError
from ...s2._frames import Compression, compress, decompress
from ...s2._json_records import Format
from ...s2._values import MAX_UNARY_BODY_BYTES
from ...s2.errors import S2ProtocolError
from .answers import Refusal, bad, refusal
from .configs import Json, read_stream_config
from .exchange import Exchange, S2Request
from .faults import RequestFaults, S2Fault
from .store import Store, check_basin_name
from .stream import Stream

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
