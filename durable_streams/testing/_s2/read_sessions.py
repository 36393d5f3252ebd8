"""Reads that go on: over s2s, and over SSE (specification: S2 3.6, 4.5)."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

import anyio

from . import reads
from .answers import Refusal
from .body_writers import BEFORE, DRAINING, BodyWriter, EventWriter, FrameWriter
from .call import Call
from .faults import S2FaultKind

_INSTEAD: tuple[S2FaultKind, ...] = (*BEFORE, "truncate", "bad_frame", "end")
_BEHIND: tuple[S2FaultKind, ...] = ("cut_after", "reset_after", "refuse_after")


async def read(call: Call) -> None:
    """GET records, s2s."""
    plan = reads.parse(call.request.query)
    plan.check()
    await _read(call, plan, FrameWriter(call))


async def read_sse(call: Call) -> None:
    """GET records, SSE."""
    asked = plan = reads.parse(call.request.query)
    if (event_id := call.request.headers.get("last-event-id")) is not None:
        plan = plan.after(event_id)
    writer = EventWriter(call, plan.progress)
    replace(asked, until=None).check()  # two starts are refused though neither counts; the others are checked as it is
    plan.check()
    await _read(call, plan, writer)


async def _read(call: Call, plan: reads.Plan, writer: BodyWriter) -> None:
    stream = call.open_stream("read")
    cursor = reads.Cursor.open(stream, plan, reads.decryption_key(stream, call.request.headers))
    cursor.heartbeat = call.behaviour.heartbeat
    cursor.chance.seed(call.request.number)
    await writer.start()
    ended = False
    sending = anyio.Lock()  # a server that begins to drain does not cut a frame in two
    async with anyio.create_task_group() as tasks:

        async def drain() -> None:
            await call.behaviour.drained.wait()
            await sending.acquire()
            tasks.cancel_scope.cancel()

        tasks.start_soon(drain)
        await _send_batches(call, cursor, writer, sending)
        ended = True
        tasks.cancel_scope.cancel()
    if not ended:
        await writer.end(DRAINING)


async def _send_batches(call: Call, cursor: reads.Cursor, writer: BodyWriter, sending: anyio.Lock) -> None:
    """Send batches to the end, whichever it is."""
    take = call.faults.take
    number = 0
    refused: Refusal | None = None
    try:
        async with aclosing(cursor.batches()) as batches:
            async for batch in batches:
                if take(number, "goaway", "unprocessed"):
                    await call.exchange.goaway()
                if fault := take(number, "delay"):
                    await anyio.sleep(fault.delay)
                unit = writer.batch(batch, advise=take(number, "advise") is not None)
                if fault := take(number, *_INSTEAD):
                    await writer.spoil(fault, unit)
                    return
                async with sending:
                    await writer.send(unit)
                if fault := take(number, *_BEHIND):
                    await writer.spoil(fault, unit)
                    return
                number += 1
    except Refusal as error:
        refused = error
    if fault := take(number, *_INSTEAD):  # it was meant for a batch that never came
        await writer.spoil(fault, b"\0")
    else:
        await writer.end(refused)
