"""An S2 server in memory that speaks through `Duplex`, with faults by connection. No sockets, no time of its own."""

import json
import random
from collections import deque
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

import anyio
import anyio.lowlevel

from durable_streams.s2 import S2ConnectionError, S2Retry
from durable_streams.s2._context import S2Timeouts, Service, StreamContext
from durable_streams.s2._endpoints import Endpoints
from durable_streams.s2._frames import Frame, FrameDecoder, Terminal, encode_frame, encode_terminal
from durable_streams.s2._proto import decode_append_input, encode_append_ack, encode_read_batch
from durable_streams.s2._values import (
    AppendAck,
    AppendInput,
    ReadBatch,
    SequencedRecord,
    StreamPosition,
    metered_bytes,
)


@dataclass
class Plan:
    """What one connection does. Numbers count the inputs or frames of this connection, from 0."""

    refuse: S2ConnectionError | None = None  # no connection
    status: tuple[int, dict] | None = None  # an answer other than 200
    drop_before: int | None = None  # the input is lost with the connection
    drop_after: int | None = None  # the input is stored, the acknowledgement lost
    drop_at_send: int | None = None  # the write itself fails, nothing left
    silent_from: int | None = None  # stored, never acknowledged, the connection stays
    terminal_at: tuple[int, int, dict] | None = None  # instead of storing
    end_at: int | None = None  # a clean end instead of storing
    advise_at: int | None = None  # acknowledged with the advice to reconnect
    leave_at: int | None = None  # GOAWAY with the acknowledgement, or with the frame of a read
    ack_change: dict | None = None  # fields of the first acknowledgement that lie
    last_words_late: bool = False  # the terminal frame is there before the write fails
    cut_after: int | None = None  # read: frames, then the connection breaks
    cut_inside: int | None = None  # read: frames, then the answer ends inside the next one
    stall_after: int | None = None  # read: frames, then silence
    raw_after: tuple[int, bytes] | None = None  # read: frames, then these bytes
    headers: dict | None = None


def advised(frame: bytes, advice: bool) -> bytes:
    """The frame, with the flag that advises to reconnect if it shall have it."""
    return frame[:3] + bytes([frame[3] | 0x10]) + frame[4:] if advice else frame


def broken(phase: str = "body", *, refused: bool = False) -> S2ConnectionError:
    return S2ConnectionError("the connection broke", phase=phase, refused=refused)  # type: ignore[arg-type]


class World:
    """One stream, its connections, and what they were told to do."""

    def __init__(self, *plans: Plan, batch: int = 3) -> None:
        self.records: list[SequencedRecord] = []
        self.first = 0
        self.token = ""
        self.plans = deque(plans)
        self.connections: list[FakeDuplex] = []
        self.retired: list[FakeDuplex] = []
        self.gate: anyio.Event | None = None  # while set, acknowledgements wait for it
        self.allowed: int | None = None  # acknowledgements that are let through until it is raised
        self.window: anyio.Event | None = None  # while set, writing waits for it
        self.changed = anyio.Event()
        self.batch = batch
        self.peak = 0

    @property
    def tail(self) -> StreamPosition:
        number = self.records[-1].seq_num + 1 if self.records else 0
        return StreamPosition(number, self.records[-1].timestamp if self.records else 0)

    def bodies(self) -> list[bytes]:
        return [record.body for record in self.records]

    def fill(self, count: int, *, command_every: int = 0) -> None:
        for number in range(len(self.records), len(self.records) + count):
            headers = ((b"", b"fence"),) if command_every and number % command_every == 0 else ()
            self.records.append(SequencedRecord(number, 1000 + number // 2, b"r%d" % number, headers))
        self.notify()

    def notify(self) -> None:
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def allow(self, count: int | None) -> None:
        self.allowed = count
        self.notify()

    def store(self, batch: AppendInput) -> AppendAck | tuple[int, dict]:
        if batch.fencing_token is not None and batch.fencing_token != self.token:
            return 412, {"fencing_token_mismatch": self.token}
        if batch.match_seq_num is not None and batch.match_seq_num != self.tail.seq_num:
            return 412, {"seq_num_mismatch": self.tail.seq_num}
        start = self.tail.seq_num
        for number, record in enumerate(batch.records, start):
            self.records.append(SequencedRecord(number, 1000 + number, record.body, record.headers))
        self.notify()
        return AppendAck(StreamPosition(start, 1000 + start), self.tail, self.tail)

    def context(
        self, *, retry: S2Retry | None = None, timeouts: S2Timeouts | None = None, **options: object
    ) -> StreamContext:
        service = FakeService(self, retry or S2Retry(), timeouts or S2Timeouts())
        return StreamContext(service, "basin-01", "stream", transport="s2s", **options)  # type: ignore[arg-type]

    def open(self, method: str, url: str, headers: dict[str, str]) -> "FakeDuplex":
        plan = self.plans.popleft() if self.plans else Plan()
        if plan.refuse is not None:
            raise plan.refuse
        query = dict(parse_qsl(urlsplit(url).query))
        duplex = FakeDuplex(self, plan, method, query, headers)
        self.connections.append(duplex)
        return duplex


class FakePool:
    def __init__(self, world: World) -> None:
        self.world = world

    async def open(self, method, url, headers, *, body, timeouts):
        await anyio.lowlevel.checkpoint()
        return self.world.open(method, url, headers)

    def retire(self, duplex) -> None:
        self.world.retired.append(duplex)


class FakeService(Service):
    def __init__(self, world: World, retry: S2Retry, timeouts: S2Timeouts) -> None:
        super().__init__(
            "token",
            endpoints=Endpoints.shared("http://localhost:1"),
            retry=retry,
            timeouts=timeouts,
            compression="none",
            transport=None,
            ssl_context=None,
            rng=random.Random(1),
        )
        self.world = world

    async def pool(self):
        return FakePool(self.world)


class FakeDuplex:
    """One stream of HTTP/2, both ends."""

    def __init__(self, world: World, plan: Plan, method: str, query: dict[str, str], headers: dict[str, str]) -> None:
        self.world = world
        self.plan = plan
        self.query = query
        self.headers = headers
        self.sent_any = False
        self.leaving = False
        self.inputs: list[AppendInput] = []
        self.finished = False
        self.closed = False
        self._acks = 0
        self._decoder = FrameDecoder()
        self._out: deque[bytes | Exception] = deque()
        self._news = anyio.Event()
        self._broken: Exception | None = None
        self._ended = False
        self._frames = 0
        if method == "GET":
            self._reader = FakeReader(world, query)

    async def head(self):
        await anyio.lowlevel.checkpoint()
        if self.plan.status is not None:
            status, document = self.plan.status
            self._put(json.dumps(document).encode())
            self._put(b"")
            return status, self.plan.headers or {}
        if hasattr(self, "_reader") and (refusal := self._reader.refusal()) is not None:
            self._put(json.dumps(refusal[1]).encode())
            self._put(b"")
            return refusal[0], {}
        return 200, self.plan.headers or {"content-type": "s2s/proto"}

    def _put(self, item: bytes | Exception) -> None:
        self._out.append(item)
        self._news.set()

    async def send(self, *pieces: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        if self.world.window is not None:
            await self.world.window.wait()
        if self._broken is not None:
            raise self._broken
        plan = self.plan
        if plan.drop_at_send is not None and len(self.inputs) >= plan.drop_at_send:
            self._fail(broken("sent"))
            raise broken("sent")
        self.sent_any = True
        if plan.status is not None:
            return
        for frame in self._decoder.feed(b"".join(pieces)):
            assert isinstance(frame, Frame)
            self._take(frame)
        if self._broken is not None:
            raise self._broken

    def _take(self, frame: Frame) -> None:
        if self._ended:
            return None
        plan, number = self.plan, len(self.inputs)
        batch = decode_append_input(frame.payload)
        self.inputs.append(batch)
        self.world.peak = max(self.world.peak, sum(i.metered_bytes for i in self.inputs[self._acks :]))
        if plan.drop_before == number:
            return self._fail(broken())
        if plan.end_at == number:
            return self._end()
        if plan.terminal_at is not None and plan.terminal_at[0] == number:
            self._put(encode_terminal(Terminal(plan.terminal_at[1], json.dumps(plan.terminal_at[2]).encode())))
            self._end()
            if plan.last_words_late:
                self._broken = broken("sent")
            return None
        result = self.world.store(batch)
        if plan.drop_after == number:
            return self._fail(broken())
        if plan.silent_from is not None and number >= plan.silent_from:
            return None
        if isinstance(result, tuple):
            self._put(encode_terminal(Terminal(result[0], json.dumps(result[1]).encode())))
            return self._end()
        if plan.ack_change is not None and number == 0:
            fields = {"start": result.start, "end": result.end, "tail": result.tail} | plan.ack_change
            result = AppendAck(**fields)
        self.leaving = self.leaving or plan.leave_at == number
        self._put(advised(encode_frame(encode_append_ack(result)), plan.advise_at == number))
        return None

    def _end(self) -> None:
        self._ended = True
        self._put(b"")

    def _fail(self, error: Exception) -> None:
        self._ended = True
        self._broken = error
        self._put(error)

    def drop(self) -> None:
        """Break the connection now."""
        self._fail(broken())

    async def finish(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self._broken is not None:
            raise self._broken
        self.finished = True
        if not self._ended and self.plan.silent_from is None:
            self._end()

    async def receive(self) -> bytes:
        if hasattr(self, "_reader") and not self._out:
            await self._read_frame()
        while not self._out:
            self._news = anyio.Event()
            await self._news.wait()
        while self.world.gate is not None and not hasattr(self, "_reader"):
            await self.world.gate.wait()
        while self.world.allowed == 0:
            await self.world.changed.wait()
        if self.world.allowed is not None:
            self.world.allowed -= 1
        item = self._out[0]
        if isinstance(item, Exception):
            raise item
        if item:
            self._out.popleft()
            self._acks += 1
        return item

    async def _read_frame(self) -> None:
        plan, number = self.plan, self._frames
        self.leaving = self.leaving or plan.leave_at == number
        if plan.cut_after == number:
            return self._fail(broken())
        if plan.stall_after == number:
            await anyio.sleep_forever()
        if plan.raw_after is not None and plan.raw_after[0] == number:
            self._put(plan.raw_after[1])
            return self._end()
        if plan.terminal_at is not None and plan.terminal_at[0] == number:
            self._put(encode_terminal(Terminal(plan.terminal_at[1], json.dumps(plan.terminal_at[2]).encode())))
            return self._end()
        batch = await self._reader.next()
        if batch is None:
            return self._end()
        frame = advised(encode_frame(encode_read_batch(batch)), plan.advise_at == number)
        if plan.cut_inside == number:
            self._put(frame[:-1])
            return self._end()
        self._frames += 1
        self._put(frame)
        return None

    async def aclose(self) -> None:
        self.closed = True


class FakeReader:
    """One read request, as appendix B of the specification has it."""

    def __init__(self, world: World, query: dict[str, str]) -> None:
        self.world = world
        assert sum(name in query for name in ("seq_num", "timestamp", "tail_offset")) <= 1, "two starts: 422"
        self.count = int(query["count"]) if "count" in query else None
        self.bytes = int(query["bytes"]) if "bytes" in query else None
        self.until = int(query["until"]) if "until" in query else None
        self.bounded = any(name in query for name in ("count", "bytes", "until"))
        self.wait = int(query["wait"]) if "wait" in query else (0 if self.bounded else None)
        self.query = query
        self.at = self._start()
        self.live = False
        self.quiet_since = 0.0
        self.limited = False

    def _start(self) -> int:
        query, tail = self.query, self.world.tail
        if "seq_num" in query:
            at = int(query["seq_num"])
            return min(at, tail.seq_num) if query.get("clamp") else at
        if "timestamp" in query:
            wanted = int(query["timestamp"])
            return next((r.seq_num for r in self.world.records if r.timestamp >= wanted), tail.seq_num)
        return max(tail.seq_num - int(query.get("tail_offset", 0)), 0)

    def refusal(self):
        tail = self.world.tail
        document = {"tail": {"seq_num": tail.seq_num, "timestamp": tail.timestamp}}
        if self.count == 0 or self.bytes == 0:
            return None
        may_follow = not self.bounded or bool(self.wait)
        if self.at > tail.seq_num or (self.at == tail.seq_num and not may_follow):
            return 416, document
        return None

    async def next(self) -> ReadBatch | None:
        await anyio.lowlevel.checkpoint()
        if self.count == 0 or self.bytes == 0 or self.limited:
            return None
        self.at = max(self.at, self.world.first)
        records = self._stored()
        if records:
            tail = self.world.tail if self.live else None
            self.quiet_since = anyio.current_time()
            return ReadBatch(tuple(records), tail)
        if self.limited:
            return None
        if self.wait == 0:
            return None
        if not self.live:
            self.live = True
            self.quiet_since = anyio.current_time()
            return ReadBatch((), self.world.tail)
        ends = float("inf") if self.wait is None else self.quiet_since + self.wait
        with anyio.move_on_after(min(ends - anyio.current_time(), 10.0)):
            await self.world.changed.wait()
            return await self.next()
        if anyio.current_time() >= ends:
            return None
        return ReadBatch((), self.world.tail)

    def _stored(self) -> list[SequencedRecord]:
        found: list[SequencedRecord] = []
        for record in self.world.records[self.at : self.at + self.world.batch]:
            if self.until is not None and record.timestamp >= self.until:
                self.limited = True
                break
            if self.count is not None:
                if self.count == 0:
                    break
                self.count -= 1
            if self.bytes is not None:
                if self.bytes < metered_bytes(record):
                    self.limited = True
                    break
                self.bytes -= metered_bytes(record)
            found.append(record)
        self.at += len(found)
        if self.count == 0:
            self.limited = True
        return found
