"""Clients that race for the streams of a store, and the check that what each was told has an explanation."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel

from ..server import BadOffset, Gone, Missing, Offset, ProducerStamp, Store, StreamInfo, StreamRef
from ._stream_model import (
    AppendCall,
    Call,
    CreateCall,
    DeleteCall,
    HeadCall,
    Outcome,
    PathModel,
    ReadCall,
    Seen,
    WatchCall,
    told,
)
from .linearizability import History, check_linearizable
from .store_steps import append_to, check, create_stream

#: Who writes as one producer: enough of them that they meet, repeat and fence each other.
_PRODUCERS = ("p", "q")


class RacingClient:
    """One of several clients that use the same path of a store and write down what they are told.

    Subclasses may reach the store in another way.

    Args:
        name: Stands in the history, and in what is appended, so that no two appends are alike.
        store: What is used.
        path: The one path.
        history: Where to write.
        rng: Decides everything.
        deletes: Whether the stream is deleted and created again now and then.
        interrupts: Whether appends are cancelled now and then.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        path: str,
        history: History[Call, Outcome],
        rng: random.Random,
        *,
        deletes: bool,
        interrupts: bool,
    ) -> None:
        self.name = name
        self.store = store
        self.path = path
        self.history = history
        self.rng = rng
        self.ref: StreamRef | None = None  # as last seen
        self.tail: Offset = 0
        self.sent = 0
        self.deletes = deletes
        self.closes = False
        self.next = dict.fromkeys(_PRODUCERS, 0)
        actions: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (10, self.append),
            (2 if interrupts else 0, self.interrupted_append),
            (1, self.close),
            (4, self.head),
            (6, self.read),
            (3, self.watch),
            (4, self.create),
            (1 if deletes else 0, self.delete),
        ]
        self.actions = [action for weight, action in actions for _ in range(weight)]

    async def run(self, turns: int) -> None:
        """Make so many calls. A stream that is never deleted is not closed before the last quarter of them."""
        for turn in range(turns):
            self.closes = self.deletes or turn >= turns * 3 // 4
            await self.rng.choice(self.actions)()
            for _ in range(self.rng.randrange(3)):
                await anyio.lowlevel.checkpoint()

    async def create(self) -> None:
        """Create the stream, or find that it is there."""
        with self.history.operation(self.name, CreateCall()) as operation:
            operation.returned(await create_stream(self.store, path=self.path))

    async def append(self) -> None:
        """Append something new, as a producer or not, and now and then close."""
        await self.do_append(self._new_call())

    async def interrupted_append(self) -> None:
        """Append, and be cancelled at some moment of it."""
        call, patience = self._new_call(), self.rng.randrange(4)

        async def cancel() -> None:
            for _ in range(patience):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(cancel)
            await self.do_append(call)

    async def close(self) -> None:
        """Close the stream without data, if it is time."""
        if not self.closes:
            await self.append()
            return
        await self.do_append(AppendCall(b"", True, self._stamp()))

    async def head(self) -> None:
        """Look at the stream."""
        with self.history.operation(self.name, HeadCall()) as operation:
            info = await self.store.head(self.path, 0.0)
            operation.returned(info)
        if isinstance(info, StreamInfo):
            self.ref, self.tail = info.ref, info.tail

    async def read(self) -> None:
        """Read the incarnation that was seen last, from somewhere to the tail."""
        if self.ref is None:
            await self.head()
            return
        call = ReadCall(self.ref.incarnation, self.rng.randrange(self.tail + 1))
        with self.history.operation(self.name, call) as operation:
            page: Any = await self.store.read(self.ref, call.offset, 1 << 30)
            if isinstance(page, Missing | Gone | BadOffset):
                operation.returned(page)
                self.ref = None
                return
            operation.returned(Seen(page.tail, page.closed, await _content(page)))

    async def watch(self) -> None:
        """Wait for news of the incarnation that was seen last; there are some if it has moved on since."""
        if self.ref is None:
            await self.head()
            return
        watch = self.store.watch(self.ref)
        try:
            with anyio.CancelScope() as scope:
                if self.rng.random() < 0.5:
                    scope.cancel()
                await watch.wait(self.rng.randrange(self.tail + 1) - 1)
            with self.history.operation(self.name, WatchCall(self.ref.incarnation)) as operation:
                operation.returned(Seen(watch.tail, watch.closed, gone=watch.gone))
        finally:
            watch.close()

    async def delete(self) -> None:
        """Delete the stream."""
        with self.history.operation(self.name, DeleteCall()) as operation:
            operation.returned(await self.store.delete(self.path, 0.0))

    async def do_append(self, call: AppendCall) -> None:
        """Make one append and record it."""
        with self.history.operation(self.name, call) as operation:
            result = await append_to(self.store, call.body, path=self.path, close=call.close, producer=call.producer)
            operation.returned(told(result))

    def _new_call(self) -> AppendCall:
        self.sent += 1
        body = f"{self.name}:{self.sent};{'.' * self.rng.randrange(40)}".encode()
        return AppendCall(body, self.closes and self.rng.random() < 0.02, self._stamp())

    def _stamp(self) -> ProducerStamp | None:
        """The next of a producer, or one that is too early or late, or fences the others."""
        if self.rng.random() < 0.4:
            return None
        name = self.rng.choice(_PRODUCERS)
        seq = max(0, self.next[name] + self.rng.choice([0, 0, 0, 0, -1, 1]))
        self.next[name] = seq + 1
        if self.rng.random() < 0.2:
            self.next[name] = 0
        return ProducerStamp(name, self.rng.choice([0, 0, 0, 1]), seq)


async def _content(page: Any) -> bytes:
    data = b""
    while (piece := await page.next_piece()) is not None:
        data += piece
    await page.aclose()
    return data


async def race(
    store: Store,
    seed: object,
    *,
    path: str = "/v1/stream/race",
    clients: int = 8,
    turns: int = 40,
    deletes: bool = True,
    kind: type[RacingClient] | None = None,
    model: PathModel | None = None,
) -> History[Call, Outcome]:
    """Let clients race for one path of a store, and check that their history is linearizable.

    Args:
        store: What to check.
        seed: Decides what the clients do; with a store and an event loop that do the same each time, all that happens.
        path: Which path they use; nobody else may.
        clients: How many.
        turns: How often each acts.
        deletes: Whether the stream is deleted and created again now and then; without, it has one life, and is closed
            late.
        kind: What the clients are, if not `RacingClient`.
        model: What they believe in, if not `PathModel`.

    Returns:
        The history.

    Raises:
        AssertionError: if it is not linearizable.
    """
    history: History[Call, Outcome] = History()
    rng = random.Random(str(seed))
    make = kind or RacingClient
    racing = []
    for number in range(clients):
        # Of a stream with many lives nobody knows in which one an interrupted append has landed: few have to do there.
        interrupts = not deletes or number == 0
        chance = random.Random(rng.random())
        racing.append(make(f"client {number}", store, path, history, chance, deletes=deletes, interrupts=interrupts))
    async with anyio.create_task_group() as group:
        for client in racing:
            group.start_soon(client.run, turns)
    check_linearizable(history, model or PathModel())
    return history


@check
async def _racing_clients(store: Store) -> None:
    """What concurrent clients of one path are told could have come from calls that were served one after the other."""
    await race(store, 1)
    await race(store, 2, path="/v1/stream/race2", deletes=False)
