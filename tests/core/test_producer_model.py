"""The producer against a model server, under schedules chosen by a seed.

Every request may be lost before or after it was applied, delayed, overtaken, duplicated, or answered with 5xx; others
may fence the producer or close the stream, and the server may forget what it knew. Invariants 5 to 7 of the client
specification, section 17.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams._core import json_mode
from durable_streams._core.backoff import BackoffOptions
from durable_streams._core.batcher import Ack
from durable_streams._core.exchange import Failure, Head, Request
from durable_streams._core.producer import (
    Asked,
    Claimed,
    Done,
    Outcome,
    ProducerOptions,
    ProducerSession,
    Send,
    State,
    Wait,
)
from durable_streams.errors import BufferFullError, NetworkError, SequenceGapError, StaleEpochError, StreamClosedError

JSON = "application/json"


class Promise:
    """Remembers how its batch ended."""

    def __init__(self) -> None:
        self.ack: Ack | None = None
        self.error: Exception | None = None

    def resolve(self, ack: Ack) -> None:
        assert not self.done
        self.ack = ack

    def reject(self, error: Exception) -> None:
        assert not self.done
        self.error = error

    @property
    def done(self) -> bool:
        return self.ack is not None or self.error is not None


@dataclass
class Server:
    """The decision list of the protocol, section 5.2.1, for one producer id."""

    log: list[object] = field(default_factory=list)
    epoch: int | None = None
    seq: int = -1
    closed: bool = False
    closed_by: tuple[int, int] | None = None

    def apply(self, request: Request) -> Head:
        epoch, seq = int(request.headers["producer-epoch"]), int(request.headers["producer-seq"])
        closes = request.headers.get("stream-closed") == "true"
        tail = {"stream-next-offset": f"{len(self.log):08}"}
        echo = {"producer-epoch": str(epoch)}
        if self.closed:
            if self.closed_by == (epoch, seq):
                return Head(204, tail | echo | {"producer-seq": str(self.seq), "stream-closed": "true"})
            return Head(409, tail | {"stream-closed": "true"})
        if self.epoch is None:
            if seq != 0:
                return Head(409, {"producer-expected-seq": "0", "producer-received-seq": str(seq)})
        elif epoch < self.epoch:
            return Head(403, {"producer-epoch": str(self.epoch)})
        elif epoch > self.epoch:
            if seq != 0:
                return Head(400, {})
        elif seq <= self.seq:
            return Head(204, tail | echo | {"producer-seq": str(self.seq)})
        elif seq > self.seq + 1:
            return Head(409, {"producer-expected-seq": str(self.seq + 1), "producer-received-seq": str(seq)})
        self.epoch, self.seq = epoch, seq
        if request.body:
            self.log += json_mode.decode_items([request.body])
        if closes:
            self.closed, self.closed_by = True, (epoch, seq)
        tail = {"stream-next-offset": f"{len(self.log):08}"}
        status = 204 if closes and not request.body else 200
        return Head(status, tail | echo | {"producer-seq": str(seq)} | ({"stream-closed": "true"} if closes else {}))


@dataclass
class Flight:
    """A request on its way."""

    send: Send
    reply: Head | None = None


@dataclass
class World:
    """Producer, server, and a network between them that a random generator decides about."""

    rng: random.Random
    session: ProducerSession
    server: Server
    faults: float = 0.2
    now: float = 0.0
    flights: list[Flight] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    promises: dict[int, Promise] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    sent: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def add(self) -> None:
        number = len(self.accepted)
        try:
            promise = self.session.batcher.add(b"%d" % number)
        except BufferFullError:
            return
        except Exception:
            assert self.session.state is not State.OPEN
            return
        self.accepted.append(number)
        self.promises[number] = promise

    def poll(self) -> Send | Wait | Done:
        command = self.session.poll(self.now)
        if isinstance(command, Send):
            epoch, seq = command.stamp
            body = command.request.body
            if "stream-closed" not in command.request.headers:
                assert self.sent.setdefault((epoch, seq), body) == body, "a stamp was sent with two bodies"
            if self.session.gated:
                assert not self.flights, "more than one batch passed the gate"
            assert len(self.flights) < self.session.options.max_in_flight
            self.flights.append(Flight(command))
        return command

    def deliver(self) -> None:
        """Let something happen to one request that is on its way."""
        flight = self.rng.choice(self.flights)
        fate = self.rng.random() / max(self.faults, 1e-9)
        if flight.reply is None:
            if fate < 0.3:
                self._fail(flight, NetworkError("refused", phase="connect"))
            elif fate < 0.5:
                self._fail(flight, NetworkError("reset", phase="sent"))
            elif fate < 0.7:
                self._reply(flight, Head(self.rng.choice([500, 502, 503, 429]), {}))
            else:
                flight.reply = self.server.apply(flight.send.request)
                if fate < 0.8:
                    self.server.apply(flight.send.request)  # a duplicate
                elif fate < 1.0:
                    self._fail(flight, NetworkError("reset", phase="sent"))
        else:
            self._reply(flight, flight.reply)

    def _reply(self, flight: Flight, head: Head) -> None:
        self.flights.remove(flight)
        self._note(self.session.on_reply(flight.send, head, b"", self.now, self.rng.random()))

    def _fail(self, flight: Flight, error: NetworkError) -> None:
        self.flights.remove(flight)
        self._note(self.session.on_failure(flight.send, Failure(error, error.phase), self.now, self.rng.random()))

    def _note(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            self.outcomes.append(outcome)
            if isinstance(outcome, Asked):
                self._note(self.session.on_recover(outcome.send, outcome.error, False, self.now))

    def step(self) -> None:
        choice = self.rng.random()
        if choice < 0.3:
            self.add()
        elif choice < 0.6 or not self.flights:
            command = self.poll()
            if isinstance(command, Wait) and command.until is not None and self.rng.random() < 0.5:
                self.now = max(self.now, command.until)
        else:
            self.deliver()

    def settle(self, steps: int = 20_000) -> None:
        """Go on until everything is resolved, with an ever kinder network."""
        for n in range(steps):
            if n > steps // 2:
                self.faults = 0.0
            command = self.poll()
            if isinstance(command, Done):
                return
            if not isinstance(command, Send):
                if self.flights:
                    self.deliver()
                elif isinstance(command, Wait):
                    if command.until is None:
                        return
                    self.now = max(self.now, command.until)
        raise AssertionError(f"not settled: {self.session.state}")

    def check(self, *, exact: bool = True) -> None:
        acked = [n for n in self.accepted if self.promises[n].ack is not None]
        unknown = [n for n in self.accepted if self.promises[n].ack is None]
        if exact:
            assert len(set(self.server.log)) == len(self.server.log), "something was stored twice"
            assert self.server.log == self.accepted[: len(self.server.log)], "lost or reordered"
            assert acked == self.accepted[: len(acked)], "what is unacknowledged is no suffix"
        assert set(acked) <= set(self.server.log), "something acknowledged is missing"
        reported = [int(item) for item in self.session.unacknowledged()]
        late = [n for n in unknown if n not in reported]  # acknowledged after their producer had failed
        assert set(late) <= set(self.server.log)
        assert reported == unknown[len(late) :] or self.session.state is State.ABORTED


def make(seed: int, **options: object) -> World:
    rng = random.Random(seed)
    defaults: dict[str, object] = {
        "linger": rng.choice([0.0, 0.005, 1.0]),
        "max_batch_items": rng.choice([None, 1, 2, 3]),
        "max_batch_bytes": rng.choice([1, 8, 1000]),
        "max_in_flight": rng.choice([1, 2, 5]),
        "max_buffered_bytes": rng.choice([30, 1000]),
        "retry": BackoffOptions(initial_delay=0.1, max_delay=1.0, multiplier=2, max_elapsed=None),
        "delivery_timeout": 1e9,
    }
    session = ProducerSession(ProducerOptions("http://s/x", "p", JSON, **(defaults | options)), Promise)  # type: ignore[arg-type]
    return World(rng, session, Server(), faults=rng.choice([0.0, 0.3, 0.8]))


SEEDS = st.integers(0, 2**40)


@given(SEEDS)
@settings(max_examples=300, deadline=None)
def test_everything_arrives_once_and_in_order(seed: int) -> None:
    world = make(seed)
    for _ in range(world.rng.randint(0, 300)):
        world.step()
    watermark = world.session.flush()
    world.settle()

    world.check()
    assert world.session.settled >= watermark
    assert world.session.failure is None
    assert world.server.log == world.accepted


@given(SEEDS)
@settings(max_examples=200, deadline=None)
def test_closing_comes_last_and_once(seed: int) -> None:
    world = make(seed)
    for _ in range(world.rng.randint(0, 200)):
        world.step()
    promise = Promise()
    final = world.rng.choice([None, b"-1"])
    world.session.close(final, promise)
    world.settle()

    assert promise.ack is not None
    assert world.session.state is State.CLOSED
    assert world.server.closed
    assert world.server.log == [*world.accepted, *([-1] if final else [])]


@given(SEEDS)
@settings(max_examples=200, deadline=None)
def test_a_fenced_producer_stops_and_reports_the_rest(seed: int) -> None:
    world = make(seed, epoch=3)
    fence = world.rng.randint(0, 200)
    for n in range(250):
        if n == fence:
            world.server.epoch, world.server.seq = 7, 0
        world.step()
    world.session.flush()
    world.settle()

    world.check()
    if world.session.failure is not None:
        assert isinstance(world.session.failure, StaleEpochError)
        assert world.session.failure.current_epoch == 7


@given(SEEDS)
@settings(max_examples=300, deadline=None)
def test_claiming_loses_nothing_and_keeps_the_order(seed: int) -> None:
    world = make(seed, auto_claim=True, epoch=world_epoch(seed))
    world.server.epoch, world.server.seq = 4, 9
    fences = {world.rng.randint(0, 250) for _ in range(world.rng.randint(0, 2))}
    for n in range(250):
        if n in fences and world.server.epoch is not None:
            # Two batches of another: with one only, a lost first try of ours could not be told from it.
            world.server.epoch, world.server.seq = world.server.epoch + world.rng.randint(1, 5), 1
        world.step()
    world.session.flush()
    world.settle()

    assert world.session.failure is None
    world.check(exact=False)
    first = list(dict.fromkeys(world.server.log))
    assert first == world.accepted, "lost, or first stored out of order"
    if len(first) != len(world.server.log):  # twice only through a claim
        assert any(isinstance(outcome, Claimed) and outcome.resent for outcome in world.outcomes)


def world_epoch(seed: int) -> int:
    return seed % 4


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_closure_by_another_ends_the_producer(seed: int) -> None:
    world = make(seed)
    moment = world.rng.randint(0, 150)
    for n in range(200):
        if n == moment:
            world.server.closed = True
        world.step()
    world.session.flush()
    world.settle()

    world.check()
    if world.session.failure is not None:
        assert isinstance(world.session.failure, StreamClosedError)


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_a_server_that_forgets_is_noticed_and_never_hangs(seed: int) -> None:
    world = make(seed)
    moment = world.rng.randint(0, 150)
    for n in range(200):
        if n == moment:
            world.server.epoch, world.server.seq = None, -1
        world.step()
    world.session.flush()
    world.settle()

    acked = [n for n in world.accepted if world.promises[n].ack is not None]
    assert set(acked) <= set(world.server.log)
    if world.session.failure is not None:
        assert isinstance(world.session.failure, SequenceGapError)


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_after_a_failure_the_rest_can_be_sent_again(seed: int) -> None:
    world = make(seed)
    for _ in range(100):
        world.step()
    world.server.epoch, world.server.seq = 5, 0
    for _ in range(100):
        world.step()
    world.session.flush()
    world.settle()
    if world.session.failure is None:
        return
    rest = [int(item) for item in world.session.unacknowledged()]
    world.session.restart(resend=True)
    world.session.flush()
    world.settle()

    assert world.session.epoch == 6
    assert world.session.failure is None
    assert set(rest) <= set(world.server.log)
    assert list(dict.fromkeys(world.server.log)) == world.accepted
    assert world.session.unacknowledged() == []


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_aborting_returns_in_every_state(seed: int) -> None:
    world = make(seed)
    for _ in range(world.rng.randint(0, 100)):
        world.step()
    world.session.abort()
    world.settle()

    assert isinstance(world.poll(), Done)
    assert all(promise.done for promise in world.promises.values())
    assert world.server.log == world.accepted[: len(world.server.log)]


@pytest.mark.parametrize("timeout", [1.0, 5.0])
def test_delivery_gives_up_in_time(timeout: float) -> None:
    world = make(1, delivery_timeout=timeout, max_in_flight=1, linger=0.0)
    world.add()
    while world.session.failure is None:
        command = world.poll()
        if isinstance(command, Send):
            world._fail(world.flights[0], NetworkError("refused"))
        else:
            assert isinstance(command, Wait)
            assert command.until is not None
            world.now = command.until

    assert world.now <= timeout
    assert [int(item) for item in world.session.unacknowledged()] == [0]
