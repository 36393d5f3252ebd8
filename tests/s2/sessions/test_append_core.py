"""The append core against a model of network and server: whatever is lost, order and knowledge are kept."""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from durable_streams.s2 import S2ConnectionError, S2Error, S2ProtocolError, S2Retry, S2TimeoutError
from durable_streams.s2._append_core import (
    AppendCore,
    End,
    Entry,
    HalfClose,
    Open,
    ReadBack,
    Sleep,
    State,
    Wait,
    Write,
)
from durable_streams.s2._outgoing import Outgoing, outgoing
from durable_streams.s2._values import AppendAck, AppendInput, AppendRecord, StreamPosition
from durable_streams.s2.errors import error_from_reply

ACTIONS = [
    *("submit",) * 4,
    *("work",) * 6,
    *("serve",) * 5,
    *("hear",) * 5,
    *("cut", "cut before the write", "refuse", "late", "advise", "drain", "reject", "goaway", "tick", "close"),
]


@dataclass
class Promise:
    """A batch as its submitter sees it."""

    number: int
    count: int
    ack: AppendAck | None = None
    error: Exception | None = None

    def reject(self, error: Exception) -> None:
        assert (self.ack, self.error) == (None, None), "told once"
        self.error = error


@dataclass
class Simulation:
    """One session, its connection as two pipes, and the stream behind it."""

    policy: str
    pipelined: bool
    match: bool
    stream: list[tuple[int, int]] = field(default_factory=list)  # (batch, index) of each record
    order: list[int] = field(default_factory=list)  # batches as they were stored
    now: float = 0.0

    def __post_init__(self) -> None:
        retry = S2Retry(max_attempts=1000, append_retry_policy=self.policy)  # type: ignore[arg-type]
        self.core: AppendCore[Promise] = AppendCore(
            retry,
            ack_timeout=5.0,
            max_bytes=1 << 20,
            max_batches=8,
            reject=Promise.reject,
            pipelined=self.pipelined,
            read_back=self.match,
        )
        self.promises: list[Promise] = []
        self.next_match = 0
        self.connection: tuple[deque[object], deque[object]] | None = None
        self.poisoned = False
        self.half_closed = False
        self.sent = False
        self.written_here: list[int] = []
        self.reached = False  # the present connection's stream was processed by the server

    # -- What the driver would do --------------------------------------------------------------------------

    def submit(self) -> None:
        size = len(self.promises) % 3 + 1
        if self.core.refusal() is not None or not self.core.has_room(9 * size):
            return
        promise = Promise(len(self.promises), size)
        records = [AppendRecord(b"%d" % (index % 10)) for index in range(size)]
        match = self.next_match if self.match else None
        self.next_match += size
        self.core.accept(Entry(outgoing(records, match), (b"fr", b"ame"), promise))
        self.promises.append(promise)

    def work(self, *, write_fails: bool = False) -> bool:
        """Carry out one command; whether there was one."""
        core = self.core
        match core.next(self.now):
            case Open():
                self.connection = (deque(), deque())
                self.poisoned = self.half_closed = self.sent = self.reached = False
                self.written_here = []
                core.on_open()
            case Write(entries):
                assert self.connection is not None
                assert not self.half_closed
                if write_fails:
                    self.lose(S2ConnectionError("broke", phase="sent"), sent=self.sent)
                    return True
                for entry in entries:
                    self.sent = True
                    self.written_here.append(entry.promise.number)
                    self.connection[0].append(entry)
                assert self.written_here == list(
                    range(self.written_here[0], self.written_here[0] + len(self.written_here))
                ), "a connection gets an unbroken run of batches, in order"
                if not self.pipelined:
                    assert len(entries) == core.in_flight == 1
                core.on_written(entries, self.now)
            case HalfClose():
                self.half_closed = True
                core.on_half_closed(self.now)
            case ReadBack(entry):
                self.read_back(entry)
            case Sleep(until):
                self.now = until
            case Wait() | End():
                return False
        return True

    def read_back(self, entry: Entry[Promise]) -> None:
        start = entry.batch.match_seq_num
        assert start is not None
        number = entry.promise.number
        wanted = [(number, index) for index in range(entry.promise.count)]
        found = self.stream[start : start + len(wanted)]
        if not found:
            assert self.core.on_read_back(None, stored=None) is None
        elif found == wanted:
            ack = self.ack_of(start, len(wanted))
            settled = self.core.on_read_back(ack, stored=True)
            assert settled is entry
            self.settle(entry, ack)
        else:
            assert self.core.on_read_back(None, stored=False) is None

    def serve(self) -> None:
        """The server takes the next input."""
        if self.connection is None:
            return
        to_server, to_client = self.connection
        if not to_server or self.poisoned:
            return
        self.reached = True
        entry = to_server.popleft()
        assert isinstance(entry, Entry)
        match = entry.batch.match_seq_num
        if match is not None and match != len(self.stream):
            self.poisoned = True
            to_client.append(error_from_reply(412, {}, b'{"seq_num_mismatch": %d}' % len(self.stream)))
            return
        start = len(self.stream)
        self.stream += [(entry.promise.number, index) for index in range(entry.promise.count)]
        self.order.append(entry.promise.number)
        to_client.append(self.ack_of(start, entry.promise.count))

    def ack_of(self, start: int, count: int) -> AppendAck:
        end = StreamPosition(start + count, 1)
        return AppendAck(StreamPosition(start, 1), end, StreamPosition(len(self.stream), 1))

    def hear(self) -> None:
        """The client takes what comes next."""
        if self.connection is None or self.core.state not in (State.OPEN, State.FINISHING):
            return
        to_server, to_client = self.connection
        if to_client:
            said = to_client.popleft()
            if isinstance(said, AppendAck):
                entry = self.core.on_ack(said)
                if not self.core.in_flight:
                    self.sent = False
                self.settle(entry, said)
            else:
                assert isinstance(said, S2Error)
                self.lose(said, sent=self.sent)
        elif self.half_closed and not to_server:
            self.connection = None
            self.core.on_end(self.now, 0.5, sent=self.sent)

    def settle(self, entry: Entry[Promise], ack: AppendAck) -> None:
        promise = entry.promise
        assert (promise.ack, promise.error) == (None, None), "told once"
        promise.ack = ack
        there = self.stream[ack.start.seq_num : ack.end.seq_num]
        assert there == [(promise.number, index) for index in range(promise.count)], "an acknowledged batch is there"

    def lose(self, error: S2Error, *, sent: bool) -> None:
        self.connection = None
        self.core.on_failure(error, self.now, 0.5, sent=sent)

    # -- What happens --------------------------------------------------------------------------------------

    def act(self, action: str) -> None:
        open_now = self.connection is not None
        match action:
            case "submit":
                self.submit()
            case "work":
                self.work()
            case "serve":
                self.serve()
            case "hear":
                self.hear()
            case "cut" if open_now:
                self.lose(S2ConnectionError("broke", phase="body"), sent=self.sent)
            case "cut before the write" if open_now and isinstance(self.peek(), Write):
                self.work(write_fails=True)
            case "refuse" if self.core.state is State.IDLE and self.core.pending:
                self.lose(S2ConnectionError("refused", phase="connect", refused=True), sent=False)
            case "late" if self.core.deadline is not None:
                self.now = max(self.now, self.core.deadline)
                self.connection = None
                self.core.on_late(self.now, 0.5)
            case "advise":
                self.core.on_advice(self.now)
            case "drain" if open_now:
                assert self.connection is not None
                while self.connection[1]:  # It acknowledges what it accepted, and takes nothing more.
                    self.hear()
                    if self.connection is None:
                        return
                self.lose(error_from_reply(503, {}, b'{"code": "server_draining"}'), sent=self.sent)
            case "reject" if open_now:
                assert self.connection is not None
                while self.connection[1]:
                    self.hear()
                    if self.connection is None:
                        return
                self.lose(error_from_reply(429, {}, b'{"code": "rate_limited"}'), sent=self.sent)
            case "goaway" if open_now and not self.reached:
                self.lose(S2ConnectionError("above the last stream", refused=True), sent=self.sent)
            case "tick":
                self.now += 61
            case "close" if len(self.promises) > 20:
                self.core.close()

    def peek(self) -> object:
        core = self.core
        if core.state is State.OPEN and core.in_flight < len(core.pending) and (self.pipelined or not core.in_flight):
            return Write(()) if not core._moving else None
        return None

    def finish(self) -> None:
        """No more faults: everything runs to its end."""
        self.core.close()
        for _ in range(10_000):
            if self.core.state is State.ENDED:
                return
            worked = self.work()
            self.serve()
            self.hear()
            if not worked and self.core.deadline is not None and self.connection is None:
                self.core.on_late(self.now, 0.5)
        raise AssertionError(f"the session does not end: {self.core.state}")


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**32).map(lambda seed: random.Random(seed).choices(ACTIONS, k=30 + seed % 150)),
    st.sampled_from(["all", "no_side_effects"]),
    st.booleans(),
    st.booleans(),
)
def test_order_durability_and_knowledge_survive_any_history(
    actions: list[str], policy: str, pipelined: bool, match: bool
) -> None:
    world = Simulation(policy, pipelined, match)
    for action in actions:
        world.act(action)
    world.finish()

    stored = world.order
    firsts = list(dict.fromkeys(stored))
    assert firsts == sorted(firsts), "in the order of submission, at their first occurrence"
    if policy == "no_side_effects" or match:
        assert len(stored) == len(firsts), "duplicates only under `all`, without match_seq_num"
    if len(stored) != len(firsts):
        event("duplicates")
    for promise in world.promises:
        assert (promise.ack is None) != (promise.error is None), "every ticket is told how it ended"
        if isinstance(promise.error, S2Error) and promise.error.definite:
            assert promise.number not in firsts, "a definite failure was not stored"
        if promise.error is not None:
            event("failed")
    resolved = [promise.ack.start.seq_num for promise in world.promises if promise.ack is not None]
    assert resolved == sorted(resolved), "acknowledged in the order of submission"
    outcome = [promise.error is not None for promise in world.promises]
    assert outcome == sorted(outcome), "everything behind a failure fails as well"
    assert world.core.pending_bytes == 0, "all room is given back"
    assert world.core.in_flight == 0
    if policy == "all" and not match:
        assert not any(outcome), "whatever may pass is repeated"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32).map(lambda seed: random.Random(seed).choices(ACTIONS, k=100)))
def test_reading_back_resolves_every_doubt_of_a_single_writer(actions: list[str]) -> None:
    world = Simulation("all", True, True)
    for action in actions:
        world.act(action)
    world.finish()

    assert all(promise.ack is not None for promise in world.promises)


def entry(count: int = 1, **conditions: object) -> Entry[Promise]:
    batch = AppendInput([AppendRecord(b"x")] * count, **conditions)  # type: ignore[arg-type]
    return Entry(Outgoing(batch), (b"f",), Promise(0, count))


def core(policy: str = "all", **options: object) -> AppendCore[Promise]:
    retry = S2Retry(append_retry_policy=policy)  # type: ignore[arg-type]
    settings = {"ack_timeout": 5.0, "max_bytes": 1 << 20, "max_batches": None, "reject": Promise.reject} | options
    return AppendCore(retry, **settings)  # type: ignore[arg-type]


def test_an_acknowledgement_without_anything_in_flight_is_refused() -> None:
    session = core()
    session.on_open()

    with pytest.raises(S2ProtocolError, match="nothing was in flight"):
        session.on_ack(AppendAck(StreamPosition(0, 0), StreamPosition(1, 0), StreamPosition(1, 0)))


def test_acknowledgements_that_go_back_are_refused_within_one_connection_only() -> None:
    session = core()
    first, second, third = entry(), entry(), entry()
    for each in (first, second, third):
        session.accept(each)
    session.on_open()
    assert isinstance(session.next(0), Write)
    back = AppendAck(StreamPosition(5, 0), StreamPosition(6, 0), StreamPosition(9, 0))

    session.on_ack(back)
    with pytest.raises(S2ProtocolError, match="ended at 6"):
        session.on_ack(back)
    session.on_failure(S2ConnectionError("broke", phase="body"), 0, 0.5, sent=True)
    session.next(10)
    session.on_open()
    session.next(10)

    assert session.on_ack(back) is second


def test_a_late_head_is_a_timeout_and_one_whose_bytes_are_not_gone_is_not() -> None:
    session = core("no_side_effects")
    waiting = entry()
    session.accept(waiting)
    session.on_open()
    command = session.next(0)
    assert isinstance(command, Write)

    before = session.deadline
    session.on_written(command.entries, 2.0)
    after = session.deadline
    session.on_late(7.0, 0.5)

    assert (before, after) == (None, 7.0)
    assert isinstance(waiting.promise.error, S2TimeoutError)
    assert waiting.promise.error.definite is False


def test_small_frames_are_gathered_and_large_ones_go_alone() -> None:
    session = core()
    for size in (10, 10, 300_000, 10, 200_000, 100_000):
        each = entry()
        each.frame = (b"x" * 4, b"x" * (size - 4))
        session.accept(each)
    session.on_open()

    sizes = []
    while isinstance(command := session.next(0), Write):
        sizes.append([each.frame_size for each in command.entries])

    assert sizes == [[10, 10], [300_000], [10, 200_000], [100_000]]


def test_the_server_decides_about_a_batch_behind_one_that_was_found_by_reading_back() -> None:
    session = core(read_back=True)
    first, second = entry(match_seq_num=0), entry(match_seq_num=1)
    session.accept(first)
    session.accept(second)
    session.on_open()
    session.next(0)
    session.on_failure(S2ConnectionError("broke", phase="body"), 0, 0.5, sent=True)
    session.next(10)
    session.on_open()
    session.next(10)
    session.on_failure(error_from_reply(412, {}, b'{"seq_num_mismatch": 1}'), 10, 0.5, sent=True)

    command = session.next(10)
    found = session.on_read_back(
        AppendAck(StreamPosition(0, 0), StreamPosition(1, 0), StreamPosition(1, 0)), stored=True
    )
    then = session.next(10)
    session.on_read_back(None, stored=None)

    assert (command, found, then) == (ReadBack(first), first, ReadBack(second))
    assert isinstance(session.next(10), Open)


def test_a_foreign_batch_in_its_place_proves_that_a_batch_was_not_stored() -> None:
    session = core(read_back=True)
    doubtful = entry(match_seq_num=0)
    session.accept(doubtful)
    session.on_open()
    session.next(0)
    session.on_failure(S2ConnectionError("broke", phase="body"), 0, 0.5, sent=True)
    session.next(10)
    session.on_open()
    session.next(10)
    session.on_failure(error_from_reply(412, {}, b'{"seq_num_mismatch": 1}'), 10, 0.5, sent=True)

    session.on_read_back(None, stored=False)

    assert isinstance(doubtful.promise.error, S2Error)
    assert doubtful.promise.error.definite is True


def test_a_doubt_that_reading_back_cannot_settle_stays() -> None:
    session = core("no_side_effects", read_back=True)
    doubtful = entry(match_seq_num=0)
    session.accept(doubtful)
    session.on_open()
    session.next(0)
    session.on_failure(S2ConnectionError("broke", phase="body"), 0, 0.5, sent=True)

    assert isinstance(session.next(0), ReadBack)
    session.on_read_back(None, stored=None)

    assert isinstance(doubtful.promise.error, S2ConnectionError)
    assert doubtful.promise.error.definite is False
