"""Histories of five clients of one S2 stream, over a proxy that cuts connections, are linearizable.

`DURABLE_STREAMS_SEEDS=50 python -m pytest tests/interop/test_s2_histories.py` tries more of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b
from typing import TypeAlias
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.abc import TaskGroup

from durable_streams.s2 import (
    S2,
    AppendAck,
    AppendInput,
    AppendRecord,
    AppendSession,
    FencingTokenMismatchError,
    RangeNotSatisfiableError,
    S2Error,
    S2Retry,
    SeqNumMismatchError,
    Stream,
)
from durable_streams.testing import History, Model, NotLinearizableError, Operation, check_linearizable

from . import s2lite
from .cutting_proxy import CuttingProxy

pytestmark = [pytest.mark.anyio, pytest.mark.interop]

SEEDS = range(int(os.environ.get("DURABLE_STREAMS_SEEDS", "4")))
CALLS = 30
#: Retries only what certainly did nothing: others would break the model.
CAREFUL = S2Retry(max_attempts=3, min_base_delay=0.01, max_base_delay=0.05, append_retry_policy="no_side_effects")


@dataclass(frozen=True, slots=True)
class Append:
    """Append one record, or a new fencing token."""

    body: bytes
    match: int | None = None
    token: str | None = None
    fences: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """Read everything."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Ask for the tail."""


@dataclass(frozen=True, slots=True)
class Stored:
    at: int


@dataclass(frozen=True, slots=True)
class Mismatch:
    expected: int


@dataclass(frozen=True, slots=True)
class Fenced:
    token: str


@dataclass(frozen=True, slots=True)
class Seen:
    bodies: tuple[bytes, ...]


Call: TypeAlias = Append | Read | Tail
Outcome: TypeAlias = Stored | Mismatch | Fenced | Seen | int
#: Number of records, digest of their bodies, fencing token.
State: TypeAlias = tuple[int, bytes, str]


def digested(digest: bytes, body: bytes) -> bytes:
    return blake2b(digest + body, digest_size=16).digest()


class OneStream(Model[State, Call, Outcome]):
    """One stream of S2 that serves one call after the other (specification: S2 3.4, 3.5, 9.3).

    Args:
        longest: The most that any reader saw. No body is appended twice, so it says of each where it came, and of
            those that are not in it that they came later, if ever.
    """

    def __init__(self, longest: tuple[bytes, ...] = ()) -> None:
        self._places = {body: place for place, body in enumerate(longest)}
        self._known = len(longest)

    def informed_by(self, operations: Sequence[Operation[Call, Outcome]]) -> OneStream:
        seen = (operation.outcome.bodies for operation in operations if isinstance(operation.outcome, Seen))
        return OneStream(max(seen, key=len, default=()))

    def initial(self) -> State:
        return 0, b"", ""

    def step(self, state: State, call: Call, outcome: Outcome | None) -> Iterable[State]:
        count, digest, token = state
        match call, outcome:
            case Append(), None | Stored():
                allowed = call.token in (None, token) and call.match in (None, count)
                if self._places.get(call.body, max(count, self._known)) != count:
                    return
                if allowed and (outcome is None or outcome == Stored(count)):
                    yield count + 1, digested(digest, call.body), call.body.decode() if call.fences else token
            case Append(), Fenced(current):
                if call.token not in (None, token) and current == token:
                    yield state
            case Append(), Mismatch(expected):
                if call.token in (None, token) and call.match not in (None, count) and expected == count:
                    yield state
            case Tail(), int():
                if outcome == count:
                    yield state
            case Read(), Seen():
                if len(outcome.bodies) == count and reduce(digested, outcome.bodies, b"") == digest:
                    yield state
            case _, None:
                yield state

    def reads_only(self, call: Call) -> bool:
        return not isinstance(call, Append)


class Client:
    """One of those who use the stream; `kind` says how."""

    def __init__(
        self, name: int, kind: str, stream: Stream, history: History[Call, Outcome], seed: str, tasks: TaskGroup
    ) -> None:
        self.tasks = tasks
        self.name = name
        self.kind = kind
        self.stream = stream
        self.history = history
        self.rng = random.Random(f"{seed}-{name}")
        self.tail = 0
        self.token: str | None = None
        self.session: AppendSession | None = None

    async def run(self) -> None:
        for number in range(CALLS):
            draw = self.rng.random()
            if draw < 0.15:
                await self.look(Tail())
            elif draw < 0.3:
                await self.look(Read())
            else:
                await self.append(self.next_append(number))
        if self.session is not None:
            await self.session.aclose()

    def next_append(self, number: int) -> Append:
        body = b"%d.%d" % (self.name, number)
        match self.kind:
            case "matching":
                return Append(body, match=self.tail)
            case "fencing" if self.token is None or self.rng.random() < 0.1:
                return Append(body, fences=True, token=self.token)
            case "fencing":
                return Append(body, token=self.token)
            case _:
                return Append(body)

    async def append(self, call: Append) -> None:
        record = AppendRecord.fence(call.body.decode()) if call.fences else AppendRecord(call.body)
        batch = AppendInput([record], match_seq_num=call.match, fencing_token=call.token)
        with self.history.operation(self.name, call) as underway:
            try:
                ack = await self.send(batch)
            except SeqNumMismatchError as error:
                self.tail = error.expected_seq_num
                if error.definite:
                    underway.returned(Mismatch(error.expected_seq_num))
            except FencingTokenMismatchError as error:
                self.token = None
                if error.definite:
                    underway.returned(Fenced(error.expected_fencing_token))
            except S2Error as error:
                if error.definite:
                    underway.failed()
            else:
                underway.returned(Stored(ack.start.seq_num))
                self.tail = ack.end.seq_num
                if call.fences:
                    self.token = call.body.decode()

    async def send(self, batch: AppendInput) -> AppendAck:
        if self.kind != "session":
            return await self.stream.append(batch)
        if self.session is None:
            self.session = self.stream.append_session()
            await self.session.start(self.tasks)
        try:
            return await (await self.session.submit(batch))
        except S2Error:
            session, self.session = self.session, None
            await session.aclose()
            raise

    async def look(self, call: Read | Tail) -> None:
        with self.history.operation(self.name, call) as underway:
            try:
                if isinstance(call, Tail):
                    self.tail = (await self.stream.check_tail()).seq_num
                    underway.returned(self.tail)
                else:
                    underway.returned(await self.read())
            except S2Error:
                underway.failed()

    async def read(self) -> Seen:
        try:
            page = await self.stream.read(seq_num=0, count=1000)
        except RangeNotSatisfiableError as error:
            if error.tail is None:
                raise  # The answer's body broke off.
            return Seen((b"?",) * error.tail.seq_num)  # Only an empty stream may answer so: the model finds out.
        return Seen(tuple(record.body for record in page.records))


@pytest.mark.parametrize("seed", SEEDS)
async def test_clients_see_one_stream_whatever_connections_break(seed: int, s2_endpoint: str, s2_basin: str) -> None:
    rng = random.Random(seed)
    port = urlsplit(s2_endpoint).port
    assert port is not None
    name = f"history-{seed}-{rng.randrange(1 << 30)}-{os.urandom(3).hex()}"
    history: History[Call, Outcome] = History()

    async with S2(s2lite.token(), endpoints=s2_endpoint) as direct:
        await direct.basin(s2_basin).streams.create(name)
        with CuttingProxy(port, rng, mean_bytes=rng.choice([4_000, 12_000])) as proxy:
            async with S2(s2lite.token(), endpoints=proxy.url, retry=CAREFUL) as s2, anyio.create_task_group() as tasks:
                stream = s2.basin(s2_basin).stream(name)
                for number, kind in enumerate(("plain", "matching", "fencing", "fencing", "session")):
                    tasks.start_soon(Client(number, kind, stream, history, str(seed), tasks).run)
        async with anyio.create_task_group() as tasks:
            await Client(5, "last", direct.basin(s2_basin).stream(name), history, "", tasks).look(Read())

    order = check_linearizable(history, OneStream())
    assert proxy.cuts
    assert sum(isinstance(operation.outcome, Stored) for operation in order) >= CALLS


def test_a_stream_that_shows_an_append_twice_is_found_out() -> None:
    history: History[Call, Outcome] = History()
    with history.operation(0, Append(b"a")) as underway:
        underway.returned(Stored(0))
    with history.operation(1, Read()) as underway:
        underway.returned(Seen((b"a", b"a")))

    with pytest.raises(NotLinearizableError):
        check_linearizable(history, OneStream())
