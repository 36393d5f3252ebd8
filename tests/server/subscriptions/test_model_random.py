"""Random lives of a subscription: what must hold whatever streams, workers, time and deliveries do."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from durable_streams.server.subscriptions.model import (
    BEFORE,
    PULL_WAKE,
    WEBHOOK,
    Change,
    Config,
    Denied,
    Seen,
    Snapshot,
    Subscription,
    Wake,
)

PATHS = st.sampled_from(["events/a", "events/b", "named", "foreign"])
DRAWS = st.floats(0, 1, exclude_max=True)


class Life(RuleBasedStateMachine):
    """Streams are counted by hand; every wake that was ever given out is kept and tried again."""

    kind: str

    def __init__(self) -> None:
        super().__init__()
        webhook = self.kind == WEBHOOK
        config = Config(
            WEBHOOK if webhook else PULL_WAKE,
            "events/*",
            webhook_url="https://w.example/" if webhook else None,
            wake_stream=None if webhook else "wake",
            lease_ttl_ms=5000,
        )
        self.subscription = Subscription(config)
        self.apply(self.subscription.link("named", None))
        self.now = 0.0
        self.names = 0
        self.lives = 0
        self.streams: dict[str, Seen] = {}
        self.wakes: list[Wake] = []
        self.in_flight: tuple[Wake, Snapshot] | None = None
        self.sent_at: list[float] = []
        self.generation = 0
        self.cursors: dict[tuple[str, str], int] = {}

    def apply(self, decision: Change | Denied | None) -> bool:
        change = decision.change if isinstance(decision, Denied) else decision
        if change is not None:
            self.subscription.apply(change)
        return not isinstance(decision, Denied)

    def name(self) -> str:
        self.names += 1
        return f"w_{self.names}"

    def look(self, path: str) -> None:
        seen = self.streams.get(path)
        self.apply(self.subscription.see(path, seen))
        self.subscription.note(path, seen)

    @rule(path=PATHS, size=st.integers(0, 5), told=st.booleans())
    def append(self, path: str, size: int, told: bool) -> None:
        seen = self.streams.get(path)
        if seen is None:
            self.lives += 1
            seen = Seen(f"L{self.lives}", 0)
        self.streams[path] = Seen(seen.incarnation, seen.tail + size)
        if told:
            self.look(path)

    @rule(path=PATHS, told=st.booleans())
    def delete(self, path: str, told: bool) -> None:
        self.streams.pop(path, None)
        if told:
            self.look(path)

    @rule()
    def scan(self) -> None:
        for path in {*self.streams, *self.subscription.links}:
            self.look(path)

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def tick(self) -> None:
        busy = self.in_flight is not None
        self.apply(self.subscription.tick(self.now, self.name(), busy=busy))
        state = self.subscription.state
        if busy:
            return
        if self.subscription.pending:
            waits = state.attempt_at is not None and state.attempt_at > self.now
            assert state.wake_id or (waits and state.failures), "pending work without a wake"
        wake = self.subscription.to_send(self.now)
        if wake is None:
            due = self.subscription.due()
            assert due is None or due > self.now, "due now, but there is nothing to do"
            return
        if self.kind == WEBHOOK:
            self.apply(self.subscription.attempt(self.now))
        self.wakes.append(wake)
        self.in_flight = wake, self.subscription.snapshot()

    @rule(done=st.booleans())
    def succeed(self, done: bool) -> None:
        if self.in_flight is not None:
            wake, told = self.in_flight
            self.in_flight = None
            told_done = told if done and self.kind == WEBHOOK else None
            self.apply(self.subscription.on_sent(wake, self.now, done=told_done))

    @rule(draw=DRAWS)
    def fail(self, draw: float) -> None:
        if self.in_flight is not None:
            wake, _ = self.in_flight
            self.in_flight = None
            self.apply(self.subscription.on_failed(wake, self.now, draw))

    @rule(worker=st.sampled_from("AB"))
    def claim(self, worker: str) -> None:
        if self.kind == PULL_WAKE:
            held = self.subscription.settle(self.now).holder
            granted = self.apply(self.subscription.claim(worker, self.now, self.name()))
            assert not (granted and held is not None), "two holders"
            if granted:
                state = self.subscription.state
                self.wakes.append(Wake(state.generation, state.wake_id))

    @rule(data=st.data(), path=PATHS, offset=st.integers(-1, 30), done=st.booleans())
    def ack(self, data: st.DataObject, path: str, offset: int, done: bool) -> None:
        if not self.wakes:
            return
        wake = data.draw(st.sampled_from(self.wakes))
        current = self.subscription.settle(self.now)
        before = dict(self.subscription.links)
        decision = self.subscription.acknowledge(wake.generation, wake, [(path, offset)], self.now, done=done)
        if wake != Wake(current.generation, current.wake_id):
            assert isinstance(decision, Denied)
        if isinstance(decision, Denied):
            assert self.subscription.links == before
        self.apply(decision)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.wakes:
            wake = data.draw(st.sampled_from(self.wakes))
            self.apply(self.subscription.release(wake.generation, wake, self.now))

    @rule(path=st.sampled_from(["events/a", "named"]), wanted=st.booleans())
    def member(self, path: str, wanted: bool) -> None:
        self.look(path)
        subscription = self.subscription
        self.apply(subscription.link(path, self.streams.get(path)) if wanted else subscription.unlink(path))
        self.look(path)

    @rule()
    def restart(self) -> None:
        old = self.subscription
        self.in_flight = None
        self.subscription = Subscription(old.config, old.state, old.links)
        self.scan()

    @invariant()
    def generations_rise(self) -> None:
        assert self.subscription.state.generation >= self.generation
        self.generation = self.subscription.state.generation

    @invariant()
    def cursors_stay_within_their_stream_and_never_go_back(self) -> None:
        for path, link in self.subscription.links.items():
            seen = self.subscription.seen.get(path)
            assert link.acked == BEFORE or (seen is not None and link.acked <= seen.tail)
            key = path, link.incarnation
            assert link.acked >= self.cursors.get(key, BEFORE)
            self.cursors[key] = link.acked if path != "named" else BEFORE  # whose link may be dropped and made again

    @invariant()
    def pending_is_what_it_means(self) -> None:
        subscription = self.subscription
        assert set(subscription.pending) == {
            entry.path for entry in subscription.snapshot() if entry.tail > max(entry.acked, 0)
        }

    @invariant()
    def an_unnamed_stream_outside_the_pattern_is_never_linked(self) -> None:
        assert "foreign" not in self.subscription.links


class WebhookLife(Life):
    kind = WEBHOOK


class PullWakeLife(Life):
    kind = PULL_WAKE


TestWebhookLife = WebhookLife.TestCase
TestPullWakeLife = PullWakeLife.TestCase
for case in (TestWebhookLife, TestPullWakeLife):
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
del case
