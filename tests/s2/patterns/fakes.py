"""Sessions for the patterns, without a server: a stream as a list, with what can go wrong in between."""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import anyio
import anyio.lowlevel

from durable_streams.s2 import AppendAck, AppendInput, AppendRecord, ReadBatch, SequencedRecord, StreamPosition


class Ticket:
    """Resolved when the session says so."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.ack: AppendAck | None = None
        self.error: Exception | None = None

    async def wait(self) -> AppendAck:
        await self.done.wait()
        if self.error is not None:
            raise self.error
        assert self.ack is not None
        return self.ack

    def __await__(self) -> Any:
        return self.wait().__await__()


class FakeAppendSession:
    """Stores what it is given. `hold` keeps acknowledgements back, `pause` is awaited by each `submit`."""

    def __init__(self, *, started: bool = True) -> None:
        self.inputs: list[AppendInput] = []
        self.records: list[AppendRecord] = []
        self.tickets: deque[Ticket] = deque()
        self.hold = False
        self.pause: Callable[[], Awaitable[None]] | None = None
        self.started = started
        self.calls: list[str] = []

    async def submit(self, batch: AppendInput, /) -> Ticket:
        await (self.pause or anyio.lowlevel.checkpoint)()
        self.inputs.append(batch)
        start = len(self.records)
        self.records += batch.records
        ticket = Ticket()
        end = StreamPosition(len(self.records), 0)
        ticket.ack = AppendAck(StreamPosition(start, 0), end, end)
        self.tickets.append(ticket)
        if not self.hold:
            self.release()
        return ticket

    def release(self, error: Exception | None = None) -> None:
        while self.tickets:
            ticket = self.tickets.popleft()
            ticket.error = error
            ticket.done.set()

    async def close(self) -> None:
        self.calls.append("close")
        self.release()

    async def __aenter__(self) -> "FakeAppendSession":
        self.calls.append("enter")
        self.started = True
        return self

    async def __aexit__(self, exc_type: Any, exc: Any, traceback: Any, /) -> None:
        self.calls.append("exit" if exc is None else f"exit {exc_type.__name__}")


class FakeReadSession:
    """Gives the records in batches of a size, then ends or raises."""

    def __init__(
        self, records: Iterable[AppendRecord | SequencedRecord], size: int = 3, error: Exception | None = None
    ) -> None:
        self.records = sequenced(records)
        self.size = size
        self.error = error
        self.closed = 0
        self.gate: anyio.Event | None = None

    async def _batches(self) -> AsyncIterator[ReadBatch]:
        for start in range(0, len(self.records), self.size):
            if self.gate is not None:
                await self.gate.wait()
            await anyio.lowlevel.checkpoint()
            yield ReadBatch(tuple(self.records[start : start + self.size]))
        if self.error is not None:
            raise self.error

    def __aiter__(self) -> AsyncIterator[ReadBatch]:
        return self._batches()

    async def aclose(self) -> None:
        self.closed += 1


def sequenced(records: Iterable[AppendRecord | SequencedRecord], first: int = 0) -> list[SequencedRecord]:
    """The records as they would stand in a stream."""
    return [
        record if isinstance(record, SequencedRecord) else SequencedRecord(number, 0, record.body, record.headers)
        for number, record in enumerate(records, first)
    ]
