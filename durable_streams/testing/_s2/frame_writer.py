"""Puts frames on the wire, in the way that the server's behaviour and its faults say (specification: S2 4.2, 4.3)."""

from __future__ import annotations

import anyio

from ...s2._frames import compress as compress_payload
from ...s2._frames import frame_head
from .answers import Refusal, refusal
from .call import Call, injected, offered
from .faults import S2Fault, S2FaultKind, bad_frame, terminal_frame

STREAMING = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
_FLAGS = {"none": 0x00, "zstd": 0x20, "gzip": 0x40}
DRAINING = refusal(503, "server_draining", "server is draining")


#: Faults in place of acting.
BEFORE: tuple[S2FaultKind, ...] = ("refuse", "cut_before", "reset_before", "stall")


class FrameWriter:
    """Puts frames on the wire, in the way that the server's behaviour says."""

    def __init__(self, call: Call) -> None:
        self._exchange = call.exchange
        self._behaviour = call.behaviour
        chosen = call.behaviour.compression
        self._compression = offered(call.header("accept-encoding")) if chosen is None else chosen

    async def start(self) -> None:
        """The head of the answer."""
        await self._exchange.start(200, {"content-type": "s2s/proto", **STREAMING})

    def frame(self, payload: bytes, *, advise: bool = False) -> bytes:
        """A frame."""
        flag = self._behaviour.reserved_bits & 0x0F | (0x10 if advise else 0)
        if self._compression != "none" and len(payload) >= self._behaviour.min_compressed:
            payload = compress_payload(payload, self._compression)
            flag |= _FLAGS[self._compression]
        return frame_head(len(payload), flag) + payload

    async def send(self, data: bytes) -> None:
        """Send bytes, in pieces if that is asked for."""
        piece = self._behaviour.piece or len(data)
        for at in range(0, len(data), piece):
            await self._exchange.send(data[at : at + piece])

    async def end(self, refused: Refusal | None = None) -> None:
        """End the answer, with a terminal frame if it is an error."""
        if refused is not None:
            await self.send(terminal_frame(refused.status, refused.body))
        await self._exchange.finish()

    async def spoil(self, fault: S2Fault, frame: bytes) -> None:
        """Perform a fault that ends the answer, in place of a frame. Returns only if the exchange is not over."""
        match fault.kind:
            case "cut_before" | "cut_after":
                await self._exchange.cut()
            case "reset_before" | "reset_after":
                await self._exchange.reset(fault.reset_code)
            case "refuse" | "refuse_after":
                await self.end(injected(fault))
            case "truncate":
                await self.send(frame[: max(1, len(frame) - 1)])
                await self.end()
            case "bad_frame":
                await self.send(bad_frame(fault.frame))
                await self.end()
            case "end":
                await self.end()
            case _:
                assert fault.kind == "stall"
                await anyio.sleep_forever()
