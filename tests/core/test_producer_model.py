"""The producer against a model server, under schedules chosen by a seed.

Every request may be lost before or after it was applied, applied long after the client has given it up, delayed,
overtaken, duplicated, or answered with 401, 429 or 5xx; others may fence the producer or close the stream, and the
server may forget what it knew. Invariants 5 to 7 of the client specification, section 17.

`PRODUCER_SCHEDULES=20000` runs so many schedules of each kind instead of a few hundred.
"""

from __future__ import annotations

import copy
import math
import os
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams._core.backoff import BackoffOptions
from durable_streams._core.exchange import Failure, Head, Request
from durable_streams._core.producer import ProducerSession
from durable_streams._core.producer_values import (
    Asked,
    Claimed,
    Done,
    Failed,
    Outcome,
    ProducerOptions,
    Send,
    State,
    Wait,
)
from durable_streams.errors import BufferFullError, NetworkError, SequenceGapError, StaleEpochError, StreamClosedError

from .model_server import Server
from .producer_bench import Promise

JSON = "application/json"
SEEDS = st.integers(0, 2**40)


def schedules(count: int) -> settings:
    """How many schedules of a kind are run."""
    return settings(max_examples=int(os.environ.get("PRODUCER_SCHEDULES", count)), deadline=None)


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
    ghosts: list[Request] = field(default_factory=list)  # given up by the client, still on their way
    accepted: list[int] = field(default_factory=list)
    promises: dict[int, Promise] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    sent: dict[tuple[int, int], bytes] = field(default_factory=dict)
    uncertain: set[int] = field(default_factory=set)  # what a claim has sent again and may have been stored before
    patience: float = 1.0  # how likely the user mends what he is asked about

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
                self._fail(flight, NetworkError("refused", phase="connect", reused=self.rng.random() < 0.3))
            elif fate < 0.5:
                if self.rng.random() < 0.5:
                    self.ghosts.append(flight.send.request)
                self._fail(flight, NetworkError("reset", phase="sent", reused=self.rng.random() < 0.3))
            elif fate < 0.7:
                self._reply(flight, Head(self.rng.choice([500, 502, 503, 429, 401]), {}))
            else:
                flight.reply = self.server.apply(flight.send.request)
                if fate < 0.8:
                    self.server.apply(flight.send.request)  # a duplicate
                elif fate < 0.9:
                    flight.reply = Head(self.rng.choice([500, 504]), {})  # a gateway hides that it was applied
                elif fate < 1.0:
                    self._fail(flight, NetworkError("reset", phase="sent"))
        else:
            self._reply(flight, flight.reply)

    def haunt(self) -> None:
        """Let a request arrive that the client has long given up."""
        self.server.apply(self.ghosts.pop(self.rng.randrange(len(self.ghosts))))

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
                retry = self.rng.random() < self.patience
                self._note(self.session.on_recover(outcome.send, outcome.error, retry))
            elif isinstance(outcome, Claimed):
                for batch in self.session._unresolved.values():
                    if batch.ambiguous_before:
                        self.uncertain.update(map(int, batch.items))

    def step(self) -> None:
        choice = self.rng.random()
        if choice < 0.3:
            self.add()
        elif choice < 0.33 and self.ghosts:
            self.haunt()
        elif choice < 0.6 or not self.flights:
            command = self.poll()
            if isinstance(command, Wait) and command.until is not None and self.rng.random() < 0.5:
                self.now = max(self.now, command.until)
        else:
            self.deliver()

    def steps(self, most: int) -> None:
        for _ in range(self.rng.randint(0, most)):
            self.step()

    def settle(self, steps: int = 20_000) -> None:
        """Go on until everything is resolved, with an ever kinder network."""
        for n in range(steps):
            if n > steps // 2:
                self.faults, self.patience = 0.0, 1.0
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
        assert reported == unknown[len(late) :]
        assert self.session.batcher.buffered_messages + self.session.undelivered_messages == len(reported)
        for outcome in self.outcomes:
            if isinstance(outcome, Failed) and not getattr(outcome.error, "maybe_applied", True):
                assert not set(map(int, outcome.batch.items)) & set(self.server.log), "said to be certainly not stored"


def make(seed: int, *, kind: type[World] = World, **options: object) -> World:
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
    return kind(rng, session, Server(), faults=rng.choice([0.0, 0.3, 0.8]))


@given(SEEDS)
@schedules(300)
def test_everything_arrives_once_and_in_order(seed: int) -> None:
    world = make(seed)
    world.steps(300)
    watermark = world.session.flush()
    world.settle()

    world.check()
    assert world.session.settled >= watermark
    assert world.session.failure is None
    assert world.server.log == world.accepted


@given(SEEDS)
@schedules(200)
def test_after_any_failure_what_is_reported_is_exact(seed: int) -> None:
    world = make(seed, delivery_timeout=random.Random(seed).choice([0.5, 3.0, 1e9]))
    world.patience = 0.7
    world.steps(300)
    world.session.flush()
    world.settle()
    while world.ghosts:
        world.haunt()

    world.check()


@given(SEEDS)
@schedules(200)
def test_closing_comes_last_and_once(seed: int) -> None:
    world = make(seed)
    world.steps(200)
    promise = Promise()
    final = world.rng.choice([None, b"-1"])
    world.session.close(final, promise)
    world.settle()
    while world.ghosts:
        world.haunt()

    assert promise.ack is not None
    assert world.session.state is State.CLOSED
    assert world.server.closed
    assert world.server.log == [*world.accepted, *([-1] if final else [])]


@given(SEEDS)
@schedules(200)
def test_closing_can_be_tried_until_it_succeeds(seed: int) -> None:
    world = make(seed, retry=BackoffOptions(max_retries=0))
    world.faults = 0.0
    world.steps(50)
    world.session.flush()
    world.settle()
    world.faults, world.patience = 0.9, 0.5
    for attempt in range(1000):
        promise = Promise()
        world.session.close(b"-1", promise)
        while promise.ack is None and promise.error is None:
            if not isinstance(world.poll(), Send) and world.flights:
                world.deliver()
        if promise.ack is not None:
            break
        assert world.session.state is State.CLOSING
        world.faults = 0.9 if attempt < 20 else 0.1

    assert world.session.state is State.CLOSED
    assert world.server.log == [*world.accepted, -1]


@given(SEEDS)
@schedules(200)
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
@schedules(300)
def test_claiming_loses_nothing_and_keeps_the_order(seed: int) -> None:
    world = make(seed, auto_claim=True, epoch=seed % 4)
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
    assert list(dict.fromkeys(world.server.log)) == world.accepted, "lost, or first stored out of order"
    twice = {n for n, count in Counter(world.server.log).items() if count > 1}
    assert twice <= world.uncertain, "stored twice, though it was certain to be stored or certain not to be"


@given(SEEDS)
@schedules(150)
def test_a_crashed_producer_that_claims_loses_nothing_acknowledged(seed: int) -> None:
    world = make(seed, auto_claim=True)
    acknowledged: set[int] = set()
    for _ in range(world.rng.randint(1, 5)):
        world.steps(100)
        acknowledged |= {n for n, promise in world.promises.items() if promise.ack is not None}
        # Killed; what was under way may still arrive.
        world.ghosts += [flight.send.request for flight in world.flights if world.rng.random() < 0.5]
        while world.ghosts:
            world.haunt()
        if (world.server.epoch, world.server.seq) == (0, 0):
            # The one case that cannot be told: the server has a single batch of the epoch that the next producer
            # begins with, whose own first try is lost.
            world.server.seq = 1
        # The next one begins with what was not acknowledged.
        rest = [n for n in world.accepted if n not in acknowledged]
        world.flights.clear()
        world.sent.clear()
        world.session = ProducerSession(world.session.options, Promise)
        world.session.batcher.max_buffered_bytes = 1 << 20
        for n in rest:
            world.promises[n] = world.session.batcher.add(b"%d" % n)
    world.session.flush()
    world.settle()

    assert world.session.failure is None
    assert set(world.server.log) == set(world.accepted)


@given(SEEDS)
@schedules(150)
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
@schedules(150)
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
@schedules(150)
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
@schedules(150)
def test_restarting_in_between_changes_nothing(seed: int) -> None:
    world = make(seed)
    for _ in range(world.rng.randint(0, 3)):
        world.steps(80)
        watermark = world.session.flush()
        world.session.pause()
        for _ in range(20_000):
            if not world.session.dispatched and not world.flights and world.session.settled >= watermark:
                break
            if not isinstance(world.poll(), Send):
                if world.flights:
                    world.deliver()
                else:
                    world.now += 1.0
            if world.rng.random() < 0.1:
                world.add()
        world.ghosts.clear()  # they would be fenced
        world.session.restart(resend=False)
    world.steps(80)
    world.session.flush()
    world.settle()

    world.check()
    assert world.server.log == world.accepted


@given(SEEDS)
@schedules(150)
def test_aborting_returns_in_every_state(seed: int) -> None:
    world = make(seed)
    world.steps(100)
    world.session.abort()
    world.settle()

    assert isinstance(world.poll(), Done)
    assert all(promise.ack or promise.error for promise in world.promises.values())
    world.check()


class LazyWorld(World):
    """Lanes that ask only when they have reported, when they are woken, and when their time has come.

    `needs_poll` has to be set whenever there is more to do than the lanes that are awake will find: when all sleep,
    nothing may be left to do, and somebody has to wake in time for the next.
    """

    def run(self, add: int) -> None:
        lanes = self.session.options.max_in_flight + 1
        ready, woken = lanes, False
        resting: list[float | None] = []
        left = add
        for _ in range(20_000):
            asks = False
            if left and self.rng.random() < 0.3:
                left -= 1
                self.add()
                if not left:
                    self.session.flush()
                    asks = True
            elif ready:
                ready, woken = ready - 1, False
                command = self.poll()
                if not isinstance(command, Send):
                    resting.append(command.until if isinstance(command, Wait) else None)
            elif self.flights:
                self.deliver()
                ready = lanes - len(resting) - len(self.flights)  # who has reported asks
            elif timers := [until for until in resting if until is not None]:
                self.now = max(self.now, min(timers))
                resting.remove(min(timers))
                ready += 1
            elif not left:
                return
            if self.session.batcher.needs_poll or asks:
                self.session.batcher.needs_poll = False
                if resting and not woken:
                    resting.pop()
                    ready, woken = ready + 1, True
            if not ready and resting and self.rng.random() < 0.1:
                unseen = copy.deepcopy(self.session).poll(self.now)
                assert not isinstance(unseen, Send), "there is work, and all lanes sleep"
                if isinstance(unseen, Wait) and unseen.until is not None:
                    assert unseen.until >= min((until for until in resting if until is not None), default=math.inf)


@given(SEEDS)
@schedules(200)
def test_lanes_that_sleep_until_they_are_woken_miss_nothing(seed: int) -> None:
    world = make(seed, kind=LazyWorld, auto_claim=seed % 2 == 0, max_buffered_bytes=1 << 20)
    assert isinstance(world, LazyWorld)
    world.run(50)

    assert world.session.failure is None
    assert world.server.log == world.accepted


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

    assert world.now == timeout
    assert [int(item) for item in world.session.unacknowledged()] == [0]
