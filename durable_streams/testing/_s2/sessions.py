"""Append and read sessions over s2s, and reads over SSE (specification: S2 3.6, 4).

An append session is two tasks. The *intake* applies inputs in the order they come and queues what is to be said about
each; the *speaker* says it in that order, each in its time. Whatever ends the session goes through the same queue, so
that earlier acknowledgements always come first. After that, nothing more is applied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import anyio

from ..._core.json_mode import encode_item
from ...errors import InvalidArgumentError
from ...s2 import _json_records, _proto
from ...s2._frames import Frame, FrameDecoder, Terminal, frame_head
from ...s2._frames import compress as compress_payload
from ...s2._json_records import position_shape
from ...s2._values import AppendAck, ReadBatch, StreamPosition
from ...s2.errors import S2ConnectionError, S2ProtocolError
from . import reads
from .answers import Refusal, bad, invalid, refusal
from .faults import S2Fault, S2FaultKind, bad_frame, terminal_frame
from .routes import Call, injected, offered
from .store import LOST, Stream

_COMMON = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
_FLAGS = {"none": 0x00, "zstd": 0x20, "gzip": 0x40}
_DRAINING = refusal(503, "server_draining", "server is draining")


class _Writer:
    """Puts frames on the wire, in the way that the server's behaviour says."""

    def __init__(self, call: Call) -> None:
        self._exchange = call.exchange
        self._behaviour = call.behaviour
        chosen = call.behaviour.compression
        self._compression = offered(call.header("accept-encoding")) if chosen is None else chosen

    async def start(self) -> None:
        """The head of the answer."""
        await self._exchange.start(200, {"content-type": "s2s/proto", **_COMMON})

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


# --- Append session ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Applied:
    """An input was stored: acknowledge it."""

    start: StreamPosition
    end: StreamPosition
    due: float
    number: int


@dataclass(frozen=True, slots=True)
class _Spoiled:
    """A fault ends the session here."""

    fault: S2Fault


#: What the speaker says; None is the clean end.
_Word = _Applied | _Spoiled | Refusal | None

_BEFORE: tuple[S2FaultKind, ...] = ("refuse", "cut_before", "reset_before", "stall")
_AFTER: tuple[S2FaultKind, ...] = ("cut_after", "reset_after", "refuse_after", "truncate", "bad_frame", "end")


class _AppendSession:
    def __init__(self, call: Call, stream: Stream) -> None:
        self._call = call
        self._stream = stream
        self._key = reads.decryption_key(stream, call.request.headers)
        self._writer = _Writer(call)
        self._queue: deque[_Word] = deque()
        self._said = anyio.Event()
        self._intake = anyio.CancelScope()

    async def run(self) -> None:
        await self._writer.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._take_in)
            tasks.start_soon(self._watch_drain)
            await self._speak()
            tasks.cancel_scope.cancel()

    def _say(self, word: _Word) -> None:
        self._queue.append(word)
        self._said.set()

    async def _watch_drain(self) -> None:
        await self._call.behaviour.drained.wait()
        self._intake.cancel()
        self._say(_DRAINING)

    # Intake

    async def _take_in(self) -> None:
        with self._intake:
            self._say(await self._apply_all())

    async def _apply_all(self) -> _Word:
        """Apply inputs to the end of the body or to the first failure; returns what ends the session."""
        decoder = FrameDecoder()
        number = 0
        try:
            while data := await self._call.exchange.receive():
                for frame in decoder.feed(data):
                    ending = await self._apply(frame, number)
                    if ending is not None:
                        return ending
                    number += 1
                decoder.check()
            decoder.finish()
        except (S2ProtocolError, S2ConnectionError) as error:
            return bad("bad_frame", str(error))
        except Refusal as refused:
            return refused
        return None

    async def _apply(self, frame: Frame | Terminal, number: int) -> _Spoiled | None:
        """Apply one input. Returns the fault that ends the session, if there is one."""
        if isinstance(frame, Terminal):
            raise bad("bad_frame", "terminal frame from a client")
        take = self._call.faults.take
        if take(number, "goaway", "unprocessed"):
            await self._call.exchange.goaway()
        if fault := take(number, *_BEFORE):
            return _Spoiled(fault)
        try:
            batch = _proto.decode_append_input(frame.payload)
        except InvalidArgumentError as error:
            raise invalid(str(error)) from None
        if self._stream.deleted_at:
            raise refusal(503, *LOST)
        start, end = self._stream.append(batch, self._call.store.clock(), self._key)
        if fault := take(number, *_AFTER):
            return _Spoiled(fault)
        due = anyio.current_time() + self._call.behaviour.ack_delay
        if fault := take(number, "delay"):
            due += fault.delay
        self._say(_Applied(start, end, due, number))
        return None

    # Speaker

    async def _speak(self) -> None:
        while True:
            while not self._queue:
                self._said = anyio.Event()
                await self._said.wait()
            word = self._queue.popleft()
            if isinstance(word, _Applied):
                await self._acknowledge(word)
            elif isinstance(word, _Spoiled):
                start = StreamPosition(0, 0)
                await self._writer.spoil(word.fault, self._ack(start, self._stream.tail))
                return
            else:
                await self._writer.end(word)
                return

    async def _acknowledge(self, first: _Applied) -> None:
        """Acknowledge an input, together with those behind it that are due as well."""
        await _sleep_until(first.due)
        data = self._ack_of(first)
        while self._call.behaviour.coalesce and self._queue:
            word = self._queue[0]
            if not isinstance(word, _Applied) or word.due > anyio.current_time():
                break
            self._queue.popleft()
            data += self._ack_of(word)
        await self._writer.send(data)

    def _ack_of(self, word: _Applied) -> bytes:
        """The acknowledgement of an input, with its faults."""
        take = self._call.faults.take
        advise = take(word.number, "advise") is not None
        start, end = word.start, word.end
        wrong = take(word.number, "wrong_ack")
        if wrong is not None and wrong.ack == "count":
            end = StreamPosition(end.seq_num + 1, end.timestamp)
        elif wrong is not None and wrong.ack == "backwards":
            size = end.seq_num - start.seq_num
            start = StreamPosition(max(0, start.seq_num - size), start.timestamp)
            end = StreamPosition(start.seq_num + size, end.timestamp)
        ack = self._ack(start, end, advise=advise)
        return ack + ack if wrong is not None and wrong.ack == "extra" else ack

    def _ack(self, start: StreamPosition, end: StreamPosition, *, advise: bool = False) -> bytes:
        ack = AppendAck(start, end, self._stream.tail)
        return self._writer.frame(_proto.encode_append_ack(ack), advise=advise)


async def _sleep_until(when: float) -> None:
    if (left := when - anyio.current_time()) > 0:
        await anyio.sleep(left)


async def append(call: Call) -> None:
    """POST records, s2s."""
    await _AppendSession(call, call.open_stream("append")).run()


# --- Reads ------------------------------------------------------------------------------------------------------------

_INSTEAD: tuple[S2FaultKind, ...] = (*_BEFORE, "truncate", "bad_frame", "end")
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
    writer = _Writer(call)
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
        await writer.end(_DRAINING)


async def _send_batch(call: Call, writer: _Writer, batch: ReadBatch, number: int) -> bool:
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
    await exchange.start(200, {"content-type": "text/event-stream", **_COMMON})
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
        await fail(_DRAINING)
