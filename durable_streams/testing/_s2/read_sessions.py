"""Reads that go on: over s2s, and over SSE (specification: S2 3.6, 4.5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing

import anyio

from ..._core.json_mode import encode_item
from ...s2 import _json_records, _proto
from ...s2._json_records import position_shape
from ...s2._values import ReadBatch
from . import reads
from .answers import Refusal
from .call import Call, injected
from .faults import S2Fault, S2FaultKind
from .frame_writer import BEFORE, DRAINING, STREAMING, FrameWriter

_INSTEAD: tuple[S2FaultKind, ...] = (*BEFORE, "truncate", "bad_frame", "end")
_BEHIND: tuple[S2FaultKind, ...] = ("cut_after", "reset_after", "refuse_after")


def _open(call: Call, plan: reads.Plan) -> reads.Cursor:
    stream = call.open_stream("read")
    cursor = reads.Cursor.open(stream, plan, reads.decryption_key(stream, call.request.headers))
    cursor.heartbeat = call.behaviour.heartbeat
    cursor.chance.seed(call.request.number)
    return cursor


async def _undrained(call: Call, work: Callable[[], Awaitable[None]]) -> bool:
    """Do the work. Returns whether the server began to drain before it was done."""
    async with anyio.create_task_group() as tasks:
        drained = False

        async def watch() -> None:
            nonlocal drained
            await call.behaviour.drained.wait()
            drained = True
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        await work()
        tasks.cancel_scope.cancel()
    return drained


async def read(call: Call) -> None:
    """GET records, s2s."""
    cursor = _open(call, reads.parse(call.request.query))
    writer = FrameWriter(call)
    await writer.start()
    ended = False

    async def go_on() -> None:
        nonlocal ended
        number = 0
        refused: Refusal | None = None
        try:
            async with aclosing(cursor.batches()) as batches:
                async for batch in batches:
                    if await _send_batch(call, writer, batch, number):
                        ended = True
                        return
                    number += 1
        except Refusal as error:
            refused = error
        if fault := call.faults.take(number, *_INSTEAD):
            await writer.spoil(fault, b"\0")
        else:
            await writer.end(refused)
        ended = True

    if await _undrained(call, go_on) and not ended:
        await writer.end(DRAINING)


async def _send_batch(call: Call, writer: FrameWriter, batch: ReadBatch, number: int) -> bool:
    """Send a batch, or what a fault wants instead. Returns whether the answer is over."""
    take = call.faults.take
    if take(number, "goaway", "unprocessed"):
        await call.exchange.goaway()
    if fault := take(number, "delay"):
        await anyio.sleep(fault.delay)
    frame = writer.frame(_proto.encode_read_batch(batch), advise=take(number, "advise") is not None)
    if fault := take(number, *_INSTEAD):
        await writer.spoil(fault, frame)
        return True
    await writer.send(frame)
    if fault := take(number, *_BEHIND):
        await writer.spoil(fault, frame)
        return True
    return False


async def read_sse(call: Call) -> None:
    """GET records, SSE."""
    form = call.form
    plan = reads.parse(call.request.query)
    if (event_id := call.request.headers.get("last-event-id")) is not None:
        plan = plan.after(event_id)
    cursor = _open(call, plan)
    exchange = call.exchange
    await exchange.start(200, {"content-type": "text/event-stream", **STREAMING})
    progress = plan.progress

    async def send(data: bytes) -> None:
        piece = call.behaviour.piece or len(data)
        for at in range(0, len(data), piece):
            await exchange.send(data[at : at + piece])

    async def fail(refused: Refusal) -> None:
        await send(b"event: error\ndata: " + refused.body + b"\n\n")
        await exchange.finish()

    async def spoil(fault: S2Fault, event: bytes) -> None:
        match fault.kind:
            case "cut_before" | "cut_after":
                await exchange.cut()
            case "reset_before" | "reset_after":
                await exchange.reset(fault.reset_code)
            case "refuse" | "refuse_after":
                await fail(injected(fault))
            case "truncate":
                await send(event[: len(event) // 2])
                await exchange.finish()
            case "bad_frame":
                await send(b"event: batch\nid: x\ndata: {nonsense\n\n")
                await exchange.finish()
            case "end":
                await exchange.finish()
            case _:
                await anyio.sleep_forever()

    def event_of(batch: ReadBatch) -> bytes:
        nonlocal progress
        if not batch.records:
            assert batch.tail is not None
            now = encode_item({"timestamp": call.store.clock(), "tail": position_shape(batch.tail)})
            return b"event: ping\ndata: " + now + b"\n\n"
        progress = reads.total(batch, progress)
        last = batch.records[-1].seq_num
        data = _json_records.encode_read_batch(batch, form)
        return b"event: batch\nid: %d,%d,%d\ndata: %b\n\n" % (last, *progress, data)

    ended = False

    async def go_on() -> None:
        nonlocal ended
        number = 0
        take = call.faults.take
        refused: Refusal | None = None
        try:
            async with aclosing(cursor.batches()) as batches:
                async for batch in batches:
                    if fault := take(number, "delay"):
                        await anyio.sleep(fault.delay)
                    event = event_of(batch)
                    if fault := take(number, *_INSTEAD):
                        await spoil(fault, event)
                        ended = True
                        return
                    await send(event)
                    if fault := take(number, *_BEHIND):
                        await spoil(fault, event)
                        ended = True
                        return
                    number += 1
        except Refusal as error:
            refused = error
        if refused is not None:
            await fail(refused)
        else:
            await send(b"data: [DONE]\n\n")
            await exchange.finish()
        ended = True

    if await _undrained(call, go_on) and not ended:
        await fail(DRAINING)
