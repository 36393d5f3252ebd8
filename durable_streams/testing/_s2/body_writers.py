"""Bodies of answers that go on: frames of s2s, and events of SSE (specification: S2 3.6, 4.2, 4.3).

What the server's behaviour and a fault say about them is the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import anyio

from ..._core.json_mode import encode_item
from ...s2 import _json_records, _proto
from ...s2._frames import compress, frame_head
from ...s2._json_records import position_shape
from ...s2._values import ReadBatch
from .answers import Refusal, refusal
from .call import Call, injected, offered
from .faults import S2Fault, S2FaultKind, bad_frame, terminal_frame
from .reads import total

#: Faults that come instead of acting, or of a unit of the body.
BEFORE: tuple[S2FaultKind, ...] = ("refuse", "cut_before", "reset_before", "stall")
DRAINING = refusal(503, "server_draining", "server is draining")

_STREAMING = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
_FLAGS = {"none": 0x00, "zstd": 0x20, "gzip": 0x40}


class BodyWriter(ABC):
    """Writes the body of an answer, one unit after the other.

    Attributes:
        media_type: Of the body.
        last: What says that this is the proper end.
    """

    media_type: str
    last: bytes = b""

    def __init__(self, call: Call) -> None:
        self._exchange = call.exchange
        self._behaviour = call.behaviour

    @abstractmethod
    def batch(self, batch: ReadBatch, *, advise: bool) -> bytes:
        """A batch or a heartbeat as a unit of the body. `advise`: to reconnect, if that can be said."""

    @abstractmethod
    def failure(self, refused: Refusal) -> bytes:
        """An error as the last unit of the body."""

    @abstractmethod
    def broken(self, fault: S2Fault) -> bytes:
        """What breaks the protocol."""

    async def start(self) -> None:
        """The head of the answer."""
        await self._exchange.start(200, {"content-type": self.media_type, **_STREAMING})

    async def send(self, data: bytes) -> None:
        """Send bytes, in pieces if that is asked for."""
        piece = self._behaviour.piece or len(data)
        for at in range(0, len(data), piece):
            await self._exchange.send(data[at : at + piece])

    async def end(self, refused: Refusal | None = None) -> None:
        """End the body: properly, or with an error."""
        if last := self.last if refused is None else self.failure(refused):
            await self.send(last)
        await self._exchange.finish()

    async def spoil(self, fault: S2Fault, unit: bytes) -> None:
        """Perform a fault that ends the body, in place of a unit or behind it."""
        match fault.kind:
            case "cut_before" | "cut_after":
                await self._exchange.cut()
            case "reset_before" | "reset_after":
                await self._exchange.reset(fault.reset_code)
            case "refuse" | "refuse_after":
                await self.end(injected(fault))
            case "truncate":
                await self.send(unit[: max(1, len(unit) - 1)])
                await self._exchange.finish()
            case "bad_frame":
                await self.send(self.broken(fault))
                await self._exchange.finish()
            case "end":
                await self._exchange.finish()
            case _:
                assert fault.kind == "stall"
                await anyio.sleep_forever()


class FrameWriter(BodyWriter):
    """Frames of s2s."""

    media_type = "s2s/proto"

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        chosen = call.behaviour.compression
        self._compression = offered(call.header("accept-encoding")) if chosen is None else chosen

    def frame(self, payload: bytes, *, advise: bool = False) -> bytes:
        """A frame with this payload."""
        flag = self._behaviour.reserved_bits & 0x0F | (0x10 if advise else 0)
        if self._compression != "none" and len(payload) >= self._behaviour.min_compressed:
            payload = compress(payload, self._compression)
            flag |= _FLAGS[self._compression]
        return frame_head(len(payload), flag) + payload

    def batch(self, batch: ReadBatch, *, advise: bool) -> bytes:
        return self.frame(_proto.encode_read_batch(batch), advise=advise)

    def failure(self, refused: Refusal) -> bytes:
        return terminal_frame(refused.status, refused.body)

    def broken(self, fault: S2Fault) -> bytes:
        return bad_frame(fault.frame)


class EventWriter(BodyWriter):
    """Events of SSE.

    Args:
        call: The request.
        progress: Records and bytes that came before, from `Last-Event-ID`.
    """

    media_type = "text/event-stream"
    last = b"data: [DONE]\n\n"

    def __init__(self, call: Call, progress: tuple[int, int]) -> None:
        super().__init__(call)
        self._form = call.form
        self._clock = call.store.clock
        self._progress = progress

    def batch(self, batch: ReadBatch, *, advise: bool) -> bytes:
        if not batch.records:
            assert batch.tail is not None
            now = encode_item({"timestamp": self._clock(), "tail": position_shape(batch.tail)})
            return b"event: ping\ndata: " + now + b"\n\n"
        self._progress = total(batch, self._progress)
        data = _json_records.encode_read_batch(batch, self._form)
        return b"event: batch\nid: %d,%d,%d\ndata: %b\n\n" % (batch.records[-1].seq_num, *self._progress, data)

    def failure(self, refused: Refusal) -> bytes:
        return b"event: error\ndata: " + refused.body + b"\n\n"

    def broken(self, fault: S2Fault) -> bytes:
        return b"event: batch\nid: x\ndata: {nonsense\n\n"
