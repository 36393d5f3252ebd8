"""Append sessions over s2s (specification: S2 4.4).

A session is two tasks. The *intake* applies inputs in the order they come and queues what is to be said about each; the
*speaker* says it in that order, each in its time. Whatever ends the session goes through the same queue, so that what
was acknowledged before always comes first. After that, nothing more is applied.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import anyio

from ...errors import InvalidArgumentError
from ...s2 import _proto
from ...s2._frames import Frame, FrameDecoder, Terminal
from ...s2._values import AppendAck, StreamPosition
from ...s2.errors import S2ConnectionError, S2ProtocolError
from . import reads
from .answers import Refusal, bad, invalid, refusal
from .body_writers import BEFORE, DRAINING, FrameWriter
from .call import Call
from .faults import S2Fault, S2FaultKind
from .stream import LOST, Stream


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

_AFTER: tuple[S2FaultKind, ...] = ("cut_after", "reset_after", "refuse_after", "truncate", "bad_frame", "end")


class _AppendSession:
    def __init__(self, call: Call, stream: Stream) -> None:
        self._call = call
        self._stream = stream
        self._key = reads.decryption_key(stream, call.request.headers)
        self._writer = FrameWriter(call)
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
        self._say(DRAINING)

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
        if fault := take(number, *BEFORE):
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
