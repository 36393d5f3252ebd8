"""One subscription, step by step: protocol 7 and server 15.2, 15.3, without I/O."""

from dataclasses import replace

import pytest

from durable_streams.server.subscriptions.model import (
    BEFORE,
    PULL_WAKE,
    WEBHOOK,
    Change,
    Config,
    Denied,
    Link,
    Reason,
    Seen,
    State,
    Subscription,
    Wake,
    pause,
)

HOOK = Config(WEBHOOK, pattern="events/*", webhook_url="https://w.example/", lease_ttl_ms=10_000)
PULL = Config(PULL_WAKE, pattern="events/*", wake_stream="wake", lease_ttl_ms=10_000)


class Bench:
    """A subscription, with every decision applied at once."""

    def __init__(self, config: Config, quiet: frozenset[str] = frozenset()) -> None:
        self.subscription = Subscription(config, quiet=quiet)
        self.now = 1000.0
        self.wakes = 0

    def do(self, decision: Change | Denied | None) -> Reason | None:
        if isinstance(decision, Denied):
            if decision.change is not None:
                self.subscription.apply(decision.change)
            return decision.reason
        if decision is not None:
            self.subscription.apply(decision)
        return None

    def see(self, path: str, tail: int | None, life: str = "L1") -> None:
        seen = None if tail is None else Seen(life, tail)
        self.do(self.subscription.see(path, seen))
        self.subscription.note(path, seen)

    def tick(self, *, busy: bool = False) -> Wake | None:
        self.wakes += 1
        self.do(self.subscription.tick(self.now, f"w_{self.wakes}", busy=busy))
        return self.subscription.to_send(self.now)

    def woken(self) -> Wake:
        wake = self.tick()
        assert wake is not None
        return wake

    def claim(self, worker: str = "A") -> Wake | Reason:
        self.wakes += 1
        reason = self.do(self.subscription.claim(worker, self.now, f"w_{self.wakes}"))
        return reason or Wake(self.state.generation, self.state.wake_id)

    def ack(self, wake: Wake, *acks: tuple[str, int | None], done: bool = False) -> Reason | None:
        return self.do(self.subscription.acknowledge(wake.generation, wake, acks, self.now, done=done))

    def release(self, wake: Wake) -> Reason | None:
        return self.do(self.subscription.release(wake.generation, wake, self.now))

    @property
    def state(self) -> State:
        return self.subscription.state

    def acked(self, path: str = "events/a") -> int:
        return self.subscription.links[path].acked


@pytest.fixture
def hook() -> Bench:
    """A webhook with one stream that has ten bytes."""
    bench = Bench(HOOK)
    bench.see("events/a", 10)
    return bench


@pytest.fixture
def pull() -> Bench:
    """The same with a wake stream."""
    bench = Bench(PULL)
    bench.see("events/a", 10)
    return bench


# Links


def test_a_stream_found_later_is_linked_before_its_beginning() -> None:
    bench = Bench(PULL)
    bench.see("events/a", 5)

    assert bench.subscription.links == {"events/a": Link(BEFORE, glob=True, incarnation="L1")}
    assert list(bench.subscription.pending) == ["events/a"]


def test_an_empty_stream_found_later_is_not_pending() -> None:
    bench = Bench(PULL)
    bench.see("events/a", 0)

    assert not bench.subscription.pending
    assert bench.tick() is None


def test_a_stream_that_does_not_match_is_not_linked() -> None:
    bench = Bench(PULL)
    bench.see("other/a", 5)

    assert not bench.subscription.links


def test_wake_streams_are_never_linked_by_the_pattern() -> None:
    bench = Bench(replace(PULL, pattern="**"), quiet=frozenset({"wake"}))
    bench.see("wake", 5)

    assert not bench.subscription.links


def test_a_wake_stream_that_was_named_is_never_pending() -> None:
    bench = Bench(PULL, quiet=frozenset({"other-wake"}))
    bench.do(bench.subscription.link("other-wake", Seen("L1", 5)))
    bench.see("other-wake", 50)

    assert not bench.subscription.pending


def test_an_explicit_link_begins_at_the_tail() -> None:
    bench = Bench(PULL)
    bench.do(bench.subscription.link("x", Seen("L1", 7)))
    bench.see("x", 7)

    assert bench.subscription.links["x"] == Link(7, explicit=True, incarnation="L1")
    assert not bench.subscription.pending


def test_an_explicit_link_to_nothing_begins_before_what_comes() -> None:
    bench = Bench(PULL)
    bench.do(bench.subscription.link("x", None))
    bench.see("x", 3)

    assert bench.acked("x") == BEFORE
    assert list(bench.subscription.pending) == ["x"]


def test_naming_a_linked_stream_keeps_its_cursor_and_shows_it_as_explicit(pull: Bench) -> None:
    pull.do(pull.subscription.link("events/a", Seen("L1", 10)))

    assert pull.subscription.links["events/a"] == Link(BEFORE, explicit=True, glob=True, incarnation="L1")
    assert pull.subscription.links["events/a"].link_type == "explicit"
    assert pull.subscription.link("events/a", Seen("L1", 10)) is None


def test_dropping_the_explicit_link_leaves_the_one_by_the_pattern(pull: Bench) -> None:
    pull.do(pull.subscription.link("events/a", Seen("L1", 10)))
    pull.do(pull.subscription.unlink("events/a"))

    assert pull.subscription.links["events/a"].link_type == "glob"
    assert pull.subscription.unlink("events/a") is None


def test_dropping_an_explicit_link_drops_its_pending_work() -> None:
    bench = Bench(PULL)
    bench.do(bench.subscription.link("x", None))
    bench.see("x", 3)
    bench.do(bench.subscription.unlink("x"))

    assert not bench.subscription.links
    assert not bench.subscription.pending


def test_a_deleted_stream_takes_its_link_by_the_pattern_along(pull: Bench) -> None:
    pull.see("events/a", None)

    assert not pull.subscription.links
    assert not pull.subscription.pending
    assert not pull.subscription.snapshot()


def test_a_new_stream_at_an_explicit_path_is_read_from_its_beginning() -> None:
    bench = Bench(PULL)
    bench.do(bench.subscription.link("x", Seen("L1", 100)))
    bench.see("x", None)
    bench.see("x", 5, life="L2")

    assert bench.subscription.links["x"] == Link(BEFORE, explicit=True, incarnation="L2")
    assert list(bench.subscription.pending) == ["x"]


def test_a_stream_replaced_between_two_looks_is_read_from_its_beginning(pull: Bench) -> None:
    wake = pull.claim()
    assert isinstance(wake, Wake)
    pull.ack(wake, ("events/a", 10), done=True)
    pull.see("events/a", 4, life="L2")

    assert pull.acked() == BEFORE
    assert list(pull.subscription.pending) == ["events/a"]


# Waking


def test_pending_work_wakes_an_idle_subscription(hook: Bench) -> None:
    assert hook.tick() == Wake(1, "w_1")
    assert hook.state == State(1, "w_1", lease_until=1010.0, attempt_at=1000.0)


def test_a_pull_wake_has_no_lease_until_it_is_claimed(pull: Bench) -> None:
    pull.tick()

    assert pull.state.lease_until is None
    assert pull.claim() == Wake(1, "w_1")
    assert pull.state.lease_until == 1010.0


def test_there_is_one_wake_at_a_time(hook: Bench) -> None:
    wake = hook.woken()
    hook.see("events/b", 5)

    assert hook.tick() == wake
    assert hook.state.generation == 1


def test_every_wake_has_a_new_generation_and_name(hook: Bench) -> None:
    first = hook.woken()
    hook.do(hook.subscription.on_sent(first, hook.now, done=hook.subscription.snapshot()))
    hook.see("events/a", 20)

    second = hook.woken()

    assert (second.generation, first.generation) == (2, 1)
    assert second.id != first.id


def test_done_in_the_answer_acks_what_was_told_and_wakes_for_what_is_newer(hook: Bench) -> None:
    wake = hook.woken()
    told = hook.subscription.snapshot()
    hook.see("events/a", 15)
    hook.do(hook.subscription.on_sent(wake, hook.now, done=told))

    assert hook.acked() == 10
    assert hook.woken().generation == 2


def test_done_in_the_answer_does_not_ack_a_stream_that_was_replaced_meanwhile(hook: Bench) -> None:
    wake = hook.woken()
    told = hook.subscription.snapshot()
    hook.see("events/a", 30, life="L2")
    hook.do(hook.subscription.on_sent(wake, hook.now, done=told))

    assert hook.acked() == BEFORE


def test_an_answer_without_done_leaves_the_lease_until_it_runs_out(hook: Bench) -> None:
    wake = hook.woken()
    hook.do(hook.subscription.on_sent(wake, hook.now))

    assert hook.tick() is None
    hook.now += 10
    assert hook.woken().generation == 2


def test_a_late_done_does_not_ack_a_newer_wake(hook: Bench) -> None:
    wake = hook.woken()
    told = hook.subscription.snapshot()
    hook.now += 10
    hook.woken()
    state = hook.state

    hook.do(hook.subscription.on_sent(wake, hook.now, done=told))

    assert hook.acked() == BEFORE
    assert hook.state == state


def test_a_late_done_acks_nothing_once_the_lease_has_run_out(hook: Bench) -> None:
    wake = hook.woken()
    hook.now += 10
    hook.do(hook.subscription.on_sent(wake, hook.now, done=hook.subscription.snapshot()))

    assert hook.acked() == BEFORE


def test_a_lease_that_runs_out_during_a_delivery_waits_for_its_end(hook: Bench) -> None:
    wake = hook.woken()
    hook.now += 10

    assert hook.tick(busy=True) is None
    assert hook.state.wake_id == ""
    hook.do(hook.subscription.on_sent(wake, hook.now))
    assert hook.woken().generation == 2


def test_a_failed_wake_is_sent_again_after_a_pause(hook: Bench) -> None:
    wake = hook.woken()
    hook.do(hook.subscription.on_failed(wake, hook.now, 0.5))

    assert hook.subscription.status == "failed"
    assert hook.tick() is None
    hook.now += 1
    assert hook.tick() == wake


def test_sending_again_issues_the_lease_anew(hook: Bench) -> None:
    wake = hook.woken()
    hook.do(hook.subscription.on_failed(wake, hook.now, 0.5))
    hook.now += 9
    hook.do(hook.subscription.attempt(hook.now))

    assert hook.state.lease_until == hook.now + 10


def test_a_short_lease_does_not_cut_the_pause_short() -> None:
    bench = Bench(replace(HOOK, lease_ttl_ms=1000))
    bench.see("events/a", 10)
    for failures in range(1, 7):
        wake = bench.woken()
        assert wake.generation == failures
        bench.do(bench.subscription.on_failed(wake, bench.now, 0.5))
        bench.now += 2.0 ** (failures - 1) - 0.25
        assert bench.tick() is None
        assert bench.subscription.status == "failed"
        bench.now += 1.25


def test_success_forgets_failures(hook: Bench) -> None:
    wake = hook.woken()
    hook.do(hook.subscription.on_failed(wake, hook.now, 0.5))
    hook.now += 1
    hook.do(hook.subscription.on_sent(wake, hook.now))

    assert hook.subscription.status == "active"
    assert hook.state.failures == 0


def test_a_callback_makes_the_failure_of_its_delivery_meaningless(hook: Bench) -> None:
    wake = hook.woken()
    hook.ack(wake, ("events/a", 10), done=True)
    hook.do(hook.subscription.on_failed(wake, hook.now, 0.5))

    assert hook.state == State(generation=1)
    assert hook.subscription.status == "active"


def test_a_failure_after_the_lease_ran_out_still_slows_down(hook: Bench) -> None:
    wake = hook.woken()
    hook.now += 12
    hook.tick(busy=True)
    hook.do(hook.subscription.on_failed(wake, hook.now, 0.5))

    assert hook.tick() is None
    hook.now += 1
    assert hook.woken().generation == 2


def test_a_wake_for_work_that_has_gone_is_not_sent(hook: Bench) -> None:
    hook.woken()
    hook.see("events/a", None)

    assert hook.tick() is None
    assert hook.state == State(generation=1)
    assert hook.subscription.due() is None


def test_a_pause_without_work_ends_in_calm(hook: Bench) -> None:
    hook.do(hook.subscription.on_failed(hook.woken(), hook.now, 0.5))
    hook.see("events/a", None)
    hook.now += 20
    hook.tick()

    assert hook.subscription.status == "active"
    assert hook.subscription.due() is None


def test_a_wake_event_that_could_not_be_written_is_written_when_there_is_hope(pull: Bench) -> None:
    wake = pull.woken()
    pull.do(pull.subscription.on_failed(wake, pull.now, 0.5))
    assert pull.subscription.status == "active"

    pull.do(pull.subscription.hurry(pull.now))

    assert pull.subscription.to_send(pull.now) == wake


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (8, 60), (5000, 60)])
def test_the_pause_doubles_up_to_a_minute(failures: int, seconds: float) -> None:
    assert pause(failures, 0.0) == pytest.approx(seconds * 0.8)
    assert pause(failures, 0.5) == pytest.approx(seconds)
    assert pause(failures, 1.0) == pytest.approx(seconds * 1.2)


# Workers


def test_one_worker_at_a_time_holds_the_lease(pull: Bench) -> None:
    pull.claim("A")

    denied = pull.subscription.claim("B", pull.now, "w_x")

    assert denied == Denied(Reason.ALREADY_CLAIMED, "A", 1)


def test_a_claim_without_a_wake_makes_one(pull: Bench) -> None:
    wake = pull.claim()

    assert isinstance(wake, Wake)
    assert wake.generation == 1
    assert pull.tick() is None  # whose event need not be written any more


def test_a_claim_without_work_is_denied() -> None:
    assert Bench(PULL).claim() is Reason.NO_PENDING_WORK


def test_a_wake_that_was_answered_with_no_work_is_used_up(pull: Bench) -> None:
    wake = pull.woken()
    pull.do(pull.subscription.on_sent(wake, pull.now))
    pull.see("events/a", None)
    assert pull.claim() is Reason.NO_PENDING_WORK

    pull.see("events/b", 1)

    assert pull.woken().generation == 2


def test_acks_move_cursors_and_extend_the_lease(pull: Bench) -> None:
    wake = pull.claim()
    assert isinstance(wake, Wake)
    pull.now += 9

    assert pull.ack(wake, ("events/a", 4)) is None

    assert pull.acked() == 4
    assert pull.state.lease_until == pull.now + 10


def test_done_releases_and_the_same_request_again_is_fenced(pull: Bench) -> None:
    wake = pull.claim()
    assert isinstance(wake, Wake)

    assert pull.ack(wake, ("events/a", 10), done=True) is None

    assert pull.state == State(generation=1)
    assert pull.ack(wake, ("events/a", 10), done=True) is Reason.FENCED


@pytest.mark.parametrize(
    "change",
    [{"token": 2}, {"token": 0}, {"generation": 0}, {"generation": 2}, {"id": "w_other"}, {"id": ""}],
    ids=str,
)
def test_whoever_does_not_name_the_current_wake_is_fenced(pull: Bench, change: dict[str, object]) -> None:
    wake = pull.claim()
    assert isinstance(wake, Wake)
    facts = {"token": wake.generation, "generation": wake.generation, "id": wake.id, **change}
    other = Wake(facts["generation"], facts["id"])  # type: ignore[arg-type]

    decision = pull.subscription.acknowledge(facts["token"], other, [("events/a", 10)], pull.now, done=True)  # type: ignore[arg-type]

    assert decision == Denied(Reason.FENCED)
    assert pull.subscription.release(facts["token"], other, pull.now) == Denied(Reason.FENCED)  # type: ignore[arg-type]


def test_an_expired_lease_fences_before_anyone_has_looked_at_the_clock(pull: Bench) -> None:
    wake = pull.claim()
    assert isinstance(wake, Wake)
    pull.now += 10

    assert pull.ack(wake, ("events/a", 10)) is Reason.FENCED
    assert pull.acked() == BEFORE
    assert pull.claim("B") == Wake(2, "w_2")


def test_nothing_is_fenced_in_that_was_never_claimed(pull: Bench) -> None:
    wake = pull.woken()

    assert pull.ack(wake, ("events/a", 10)) is Reason.FENCED


def test_an_idle_subscription_fences_an_empty_wake_id(pull: Bench) -> None:
    assert pull.ack(Wake(0, "")) is Reason.FENCED


@pytest.mark.parametrize(
    "bad",
    [("events/a", None), ("events/a", -1), ("events/a", 3), ("events/a", 11), ("events/zz", 5), ("gone", 5)],
    ids=str,
)
def test_one_bad_ack_voids_all_of_them(pull: Bench, bad: tuple[str, int | None]) -> None:
    pull.do(pull.subscription.link("gone", None))
    pull.see("events/b", 10)
    wake = pull.claim()
    assert isinstance(wake, Wake)
    pull.ack(wake, ("events/a", 4))

    assert pull.ack(wake, ("events/b", 10), bad, done=True) is Reason.INVALID_OFFSET

    assert pull.acked("events/b") == BEFORE
    assert pull.state.wake_id == wake.id


def test_two_acks_of_one_stream_count_as_the_farther(pull: Bench) -> None:
    wake = pull.claim()
    assert isinstance(wake, Wake)

    assert pull.ack(wake, ("events/a", 9), ("events/a", 4)) is None

    assert pull.acked() == 9


def test_acking_the_same_offset_again_is_allowed(pull: Bench) -> None:
    wake = pull.claim()
    assert isinstance(wake, Wake)

    assert pull.ack(wake, ("events/a", 4)) is None
    assert pull.ack(wake, ("events/a", 4)) is None


def test_release_acks_nothing_and_wakes_again(pull: Bench) -> None:
    wake = pull.claim()
    assert isinstance(wake, Wake)

    assert pull.release(wake) is None

    assert pull.acked() == BEFORE
    assert pull.woken().generation == 2


def test_the_example_of_the_protocol() -> None:
    """D.10: two workers and a lease that runs out."""
    bench = Bench(PULL)
    bench.see("events/a", 32)
    bench.woken()
    first = bench.claim("A")
    assert isinstance(first, Wake)
    assert bench.claim("B") is Reason.ALREADY_CLAIMED
    assert bench.ack(first, ("events/a", 26)) is None

    bench.now += 10
    second = bench.woken()
    assert second.generation == first.generation + 1
    assert bench.ack(first, ("events/a", 32)) is Reason.FENCED
    assert bench.acked() == 26

    again = bench.claim("B")
    assert again == second
    assert bench.release(second) is None
    assert bench.woken().generation == second.generation + 1


def test_decisions_change_nothing_until_they_are_applied(pull: Bench) -> None:
    state, links = pull.state, dict(pull.subscription.links)

    pull.subscription.tick(pull.now, "w")
    pull.subscription.claim("A", pull.now, "w")
    pull.subscription.see("events/b", Seen("L", 4))

    assert pull.state == state
    assert pull.subscription.links == links


def test_a_subscription_says_where_it_stands(pull: Bench) -> None:
    assert repr(pull.subscription) == "<Subscription idle, generation 0, 1 links>"
    pull.claim("A")
    assert repr(pull.subscription) == "<Subscription claimed by 'A', generation 1, 1 links>"


def test_the_digest_tells_configurations_apart() -> None:
    variants = [
        HOOK,
        PULL,
        replace(HOOK, pattern="x"),
        replace(HOOK, streams=("a",)),
        replace(HOOK, streams=("a", "b")),
        replace(HOOK, webhook_url="https://other.example/"),
        replace(PULL, wake_stream="x"),
        replace(HOOK, lease_ttl_ms=1000),
        replace(HOOK, description="x"),
        replace(HOOK, description=""),
    ]

    assert len({variant.digest for variant in variants}) == len(variants)
    assert replace(HOOK).digest == HOOK.digest
