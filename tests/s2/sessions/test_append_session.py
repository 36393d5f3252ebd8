"""The append session against a server in memory: order, recovery, what is known of failures, and waiting."""

import anyio
import pytest

from durable_streams.errors import BufferFullError, InvalidArgumentError
from durable_streams.s2 import (
    AppendInput,
    AppendRecord,
    FencingTokenMismatchError,
    S2ConnectionError,
    S2Error,
    S2ProtocolError,
    S2Retry,
    S2ServerError,
    S2SessionClosedError,
    S2TimeoutError,
    SeqNumMismatchError,
)
from durable_streams.s2._append_session import AppendSession
from durable_streams.s2._context import S2Timeouts
from durable_streams.s2._values import StreamPosition

from .world import Plan, World, broken

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fake_clock")]

STRICT = S2Retry(append_retry_policy="no_side_effects")
MiB = 1 << 20


def one(text: str, **conditions: object) -> AppendInput:
    return AppendInput([AppendRecord.text(text)], **conditions)  # type: ignore[arg-type]


async def test_batches_are_stored_in_the_order_of_submission_and_acknowledged() -> None:
    world = World()

    async with AppendSession(world.context()) as session:
        tickets = [await session.submit(one(str(n))) for n in range(20)]
        acks = [await ticket for ticket in tickets]

    assert world.bodies() == [b"%d" % n for n in range(20)]
    assert [ack.start.seq_num for ack in acks] == list(range(20))
    assert session.last_acked_position == StreamPosition(20, 1019)
    assert session.failure_cause is None
    assert len(world.connections) == 1
    assert world.connections[0].finished


async def test_batches_are_pipelined() -> None:
    world = World()
    world.gate = anyio.Event()

    async with AppendSession(world.context()) as session:
        tickets = [await session.submit(one(str(n))) for n in range(5)]
        await anyio.wait_all_tasks_blocked()
        written = len(world.bodies())
        world.gate.set()
        world.gate = None
        await tickets[-1]

    assert written == 5


async def test_closing_with_no_batch_ever_sent_opens_no_connection() -> None:
    world = World()

    async with AppendSession(world.context()) as session:
        await session.close()
        await session.close()

    assert world.connections == []
    with pytest.raises(S2SessionClosedError):
        await session.submit(one("late"))


async def test_leaving_the_block_waits_until_everything_is_durable() -> None:
    world = World()

    async with AppendSession(world.context()) as session:
        ticket = await session.submit(one("a"))

    assert ticket.done
    assert world.bodies() == [b"a"]


async def test_a_ticket_can_be_awaited_again_and_by_several() -> None:
    world = World()

    async with AppendSession(world.context()) as session:
        ticket = await session.submit(one("a"))
        found = []

        async def wait() -> None:
            found.append(await ticket)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(wait)
        found.append(await ticket)

    assert len(set(found)) == 1


async def test_cancelling_a_wait_for_a_ticket_touches_neither_batch_nor_session() -> None:
    world = World()
    world.gate = anyio.Event()

    async with AppendSession(world.context()) as session:
        ticket = await session.submit(one("a"))
        with anyio.move_on_after(0.1):
            await ticket
        world.gate.set()
        world.gate = None
        await ticket
        await (await session.submit(one("b")))

    assert world.bodies() == [b"a", b"b"]


# -- Recovery --------------------------------------------------------------------------------------------------


async def test_a_lost_connection_is_replaced_and_everything_unacknowledged_is_written_again_in_order() -> None:
    world = World(Plan(drop_before=2))

    async with AppendSession(world.context()) as session:
        tickets = [await session.submit(one(str(n))) for n in range(6)]
        acks = [await ticket for ticket in tickets]

    assert world.bodies() == [b"%d" % n for n in range(6)]
    assert [ack.start.seq_num for ack in acks] == list(range(6))
    assert session.statistics().retries == 1
    assert session.statistics().connections == 2


async def test_a_lost_acknowledgement_stores_a_batch_twice_under_the_policy_all() -> None:
    world = World(Plan(drop_after=1))

    async with AppendSession(world.context()) as session:
        tickets = [await session.submit(one(text)) for text in "abc"]
        acks = [await ticket for ticket in tickets]

    assert world.bodies() == [b"a", b"b", b"b", b"c"]
    assert [ack.start.seq_num for ack in acks] == [0, 2, 3]


async def test_a_lost_acknowledgement_ends_the_session_under_no_side_effects() -> None:
    world = World(Plan(drop_after=1))

    with pytest.raises(S2ConnectionError) as caught:
        async with AppendSession(world.context(retry=STRICT)) as session:
            tickets = [await session.submit(one(text)) for text in "abc"]
            await tickets[0]
            await session.flush()

    assert world.bodies() == [b"a", b"b"]
    assert caught.value.definite is False
    with pytest.raises(S2ConnectionError) as found:
        await tickets[1]
    assert found.value.definite is False
    with pytest.raises(S2ConnectionError):
        await tickets[2]
    with pytest.raises(S2ConnectionError) as late:
        await session.submit(one("d"))
    assert late.value.definite is True
    assert isinstance(session.failure_cause, S2ConnectionError)


async def test_what_was_only_queued_is_definite_when_the_session_fails() -> None:
    world = World(Plan(drop_after=0))
    world.window = anyio.Event()

    with pytest.raises(S2ConnectionError):
        async with AppendSession(world.context(retry=STRICT)) as session:
            big = [AppendRecord(b"x" * 300_000)]
            first = await session.submit(big)
            second = await session.submit(big)
            await anyio.wait_all_tasks_blocked()
            world.window.set()
            world.window = None
            await session.flush()

    with pytest.raises(S2ConnectionError) as one_error:
        await first
    with pytest.raises(S2ConnectionError) as other_error:
        await second
    assert (one_error.value.definite, other_error.value.definite) == (False, True)


async def test_a_write_that_never_left_may_be_repeated_under_no_side_effects() -> None:
    world = World(Plan(drop_at_send=0))

    async with AppendSession(world.context(retry=STRICT)) as session:
        ack = await (await session.submit(one("a")))

    assert world.bodies() == [b"a"]
    assert ack.start.seq_num == 0


async def test_the_frame_signal_is_cleared_when_everything_is_acknowledged() -> None:
    world = World(Plan(drop_at_send=2))

    async with AppendSession(world.context(retry=STRICT)) as session:
        await (await session.submit(one("a")))
        await (await session.submit(one("b")))
        await (await session.submit(one("c")))

    assert world.bodies() == [b"a", b"b", b"c"]


async def test_a_refused_stream_is_repeated_under_no_side_effects() -> None:
    world = World(Plan(refuse=broken("connect", refused=True)), Plan(status=(503, {"code": "server_draining"})))

    async with AppendSession(world.context(retry=STRICT)) as session:
        await (await session.submit(one("a")))

    assert world.bodies() == [b"a"]


async def test_connection_failures_count_as_attempts() -> None:
    world = World(*(Plan(refuse=broken("connect", refused=True)) for _ in range(3)))

    with pytest.raises(S2ConnectionError) as caught:
        async with AppendSession(world.context()) as session:
            await session.submit(one("a"))

    assert caught.value.attempts == 3
    assert caught.value.definite is True
    assert not world.plans


async def test_an_earlier_uncertain_try_makes_a_definite_last_failure_indefinite() -> None:
    world = World(Plan(drop_after=0), *(Plan(refuse=broken("connect", refused=True)) for _ in range(2)))

    with pytest.raises(S2ConnectionError) as caught:
        async with AppendSession(world.context()) as session:
            await session.submit(one("a"))

    assert caught.value.refused
    assert caught.value.definite is False


async def test_attempts_count_afresh_after_an_acknowledgement() -> None:
    plans = [Plan(drop_before=1) for _ in range(6)]
    world = World(*plans)

    async with AppendSession(world.context()) as session:
        for number in range(7):
            await session.submit(one(str(number)))

    assert world.bodies() == [b"%d" % n for n in range(7)]


async def test_a_loss_while_nothing_is_pending_is_no_failure() -> None:
    world = World()

    async with AppendSession(world.context(retry=S2Retry(max_attempts=1))) as session:
        await (await session.submit(one("a")))
        world.connections[0].drop()
        await anyio.wait_all_tasks_blocked()
        await (await session.submit(one("b")))

    assert world.bodies() == [b"a", b"b"]
    assert session.statistics().connections == 2
    assert session.statistics().retries == 0


async def test_an_early_end_with_batches_in_flight_is_repeated() -> None:
    world = World(Plan(end_at=1))

    async with AppendSession(world.context()) as session:
        for text in "abc":
            await session.submit(one(text))

    assert world.bodies() == [b"a", b"b", b"c"]


@pytest.mark.parametrize(("status", "code"), [(409, "stream_deletion_pending"), (422, "invalid"), (501, "x")])
async def test_an_answer_that_is_no_success_ends_the_session(status: int, code: str) -> None:
    world = World(Plan(status=(status, {"code": code, "message": "no"})))

    with pytest.raises(S2ServerError) as caught:
        async with AppendSession(world.context()) as session:
            await session.submit(one("a"))

    assert (caught.value.status, caught.value.code, len(world.connections)) == (status, code, 1)


async def test_a_success_that_is_no_session_ends_it() -> None:
    world = World(Plan(headers={"content-type": "text/html"}))

    with pytest.raises(S2ProtocolError, match="the answer is 'text/html' instead of s2s/proto"):
        async with AppendSession(world.context()) as session:
            await session.submit(one("a"))

    assert len(world.connections) == 1


async def test_what_a_server_echoes_in_headers_is_not_shown() -> None:
    key = "k" * 43 + "="
    plan = Plan(status=(400, {"code": "bad_header", "message": f"what is {key}"}), headers={"x-echo": f"key={key}"})
    world = World(plan)

    with pytest.raises(S2ServerError, match=r"what is \*\*\*") as caught:
        async with AppendSession(world.context(encryption_key=key)) as session:
            await session.submit(one("a"))

    assert caught.value.headers == {"x-echo": "key=***"}


async def test_a_transaction_conflict_is_repeated() -> None:
    world = World(Plan(status=(409, {"code": "transaction_conflict", "message": "again"})))

    async with AppendSession(world.context(retry=STRICT)) as session:
        await session.submit(one("a"))

    assert world.bodies() == [b"a"]


async def test_the_delay_that_the_server_asks_for_is_kept() -> None:
    plan = Plan(status=(429, {"code": "rate_limited", "message": "slow down"}), headers={"retry-after-ms": "7000"})
    world = World(plan)
    began = anyio.current_time()

    async with AppendSession(world.context(retry=STRICT)) as session:
        await session.submit(one("a"))

    assert anyio.current_time() - began >= 7.0


async def test_a_terminal_error_fails_its_batch_and_all_behind_it_and_none_before() -> None:
    world = World(Plan(terminal_at=(2, 422, {"code": "invalid", "message": "bad"})))

    with pytest.raises(S2ServerError) as caught:
        async with AppendSession(world.context()) as session:
            tickets = [await session.submit(one(str(n))) for n in range(4)]

    assert caught.value.code == "invalid"
    assert [(await ticket).start.seq_num for ticket in tickets[:2]] == [0, 1]
    for ticket in tickets[2:]:
        with pytest.raises(S2ServerError, match="bad") as found:
            await ticket
        assert found.value.definite is True


async def test_what_is_submitted_after_the_failure_fails_alike_and_certainly_was_not_stored() -> None:
    world = World(Plan(terminal_at=(0, 422, {"code": "invalid", "message": "bad"})))

    session = AppendSession(world.context())
    with pytest.raises(S2ServerError, match="bad"):
        async with session:
            with pytest.raises(S2ServerError, match="bad"):
                await (await session.submit(one("a")))
            for late in (session.submit(one("b")), session.flush(), session.close()):
                with pytest.raises(S2ServerError, match="bad") as caught:
                    await late
                assert caught.value.definite
            with pytest.raises(S2ServerError, match="bad"):
                session.submit_nowait(one("c"))

    assert isinstance(session.failure_cause, S2ServerError)
    assert session.last_acked_position is None
    assert (world.bodies(), len(world.connections)) == ([], 1)


async def test_the_terminal_frame_tells_more_than_the_failed_write() -> None:
    world = World(Plan(terminal_at=(0, 422, {"code": "invalid", "message": "bad"}), last_words_late=True))

    with pytest.raises(S2ServerError, match="bad"):
        async with AppendSession(world.context()) as session:
            await session.submit(one("a"))


async def test_a_condition_that_does_not_hold_tells_the_number() -> None:
    world = World()

    with pytest.raises(SeqNumMismatchError) as caught:
        async with AppendSession(world.context()) as session:
            await session.submit(one("a", match_seq_num=0))
            await session.submit(one("b", match_seq_num=5))

    assert caught.value.expected_seq_num == 1
    assert caught.value.definite is True
    assert world.bodies() == [b"a"]


async def test_a_fencing_token_that_does_not_hold_is_not_shown() -> None:
    world = World()
    world.token = "secret-token"

    with pytest.raises(FencingTokenMismatchError) as caught:
        async with AppendSession(world.context()) as session:
            await session.submit(one("a", fencing_token="mine"))

    assert caught.value.expected_fencing_token == "secret-token"
    assert "secret-token" not in str(caught.value)


async def test_a_mismatch_after_a_lost_acknowledgement_is_indefinite() -> None:
    world = World(Plan(drop_after=0))

    with pytest.raises(SeqNumMismatchError) as caught:
        async with AppendSession(world.context()) as session:
            await session.submit(one("a", match_seq_num=0))

    assert caught.value.definite is False
    assert world.bodies() == [b"a"]


# -- Deadlines -------------------------------------------------------------------------------------------------


async def test_a_late_acknowledgement_counts_as_a_failure_with_an_effect() -> None:
    world = World(Plan(silent_from=0))

    with pytest.raises(S2TimeoutError) as caught:
        async with AppendSession(world.context(retry=STRICT)) as session:
            await session.submit(one("a"))

    assert caught.value.definite is False


async def test_a_closed_window_makes_no_batch_late() -> None:
    world = World()
    world.window = anyio.Event()

    async with AppendSession(world.context(retry=STRICT)) as session:
        ticket = await session.submit(one("a"))
        await anyio.sleep(60)
        waiting = ticket.done
        world.window.set()
        world.window = None
        await ticket

    assert waiting is False


async def test_waiting_for_room_makes_no_batch_late() -> None:
    world = World()
    world.gate = anyio.Event()
    timeouts = S2Timeouts(request=5)

    async with (
        AppendSession(world.context(retry=STRICT, timeouts=timeouts), max_in_flight_batches=1) as session,
        anyio.create_task_group() as group,
    ):
        await session.submit(one("a"))

        async def second() -> None:
            await (await session.submit(one("b")))

        group.start_soon(second)
        await anyio.sleep(4)
        world.gate.set()
        world.gate = None

    assert world.bodies() == [b"a", b"b"]


async def test_only_the_first_batch_in_flight_has_a_deadline() -> None:
    """The second is written 3 s after the first, and gets 5 s of its own."""
    world = World()
    world.allowed = 0

    async with AppendSession(world.context(retry=STRICT, timeouts=S2Timeouts(request=5))) as session:
        first = await session.submit(one("a"))
        await anyio.sleep(3)
        second = await session.submit(one("b"))
        await anyio.sleep(1)
        world.allow(1)
        await first
        await anyio.sleep(3.5)
        world.allow(None)
        await second

    assert world.bodies() == [b"a", b"b"]


async def test_an_end_that_does_not_come_is_not_waited_for_for_ever() -> None:
    world = World(Plan(silent_from=1))

    with anyio.fail_after(60):
        async with AppendSession(world.context()) as session:
            await (await session.submit(one("a")))

    assert world.bodies() == [b"a"]


# -- Room ------------------------------------------------------------------------------------------------------


async def test_bytes_in_flight_stay_below_the_bound() -> None:
    world = World()
    record = AppendRecord(b"x" * 400_000)

    async with AppendSession(world.context(), max_in_flight_bytes=MiB) as session:
        for _ in range(20):
            await session.submit([record])

    assert 0 < world.peak <= MiB
    assert len(world.records) == 20
    assert session.statistics().pending_bytes == 0


async def test_batches_in_flight_stay_below_the_bound() -> None:
    world = World()
    world.gate = anyio.Event()

    async with AppendSession(world.context(), max_in_flight_batches=2) as session:
        await session.submit(one("a"))
        session.submit_nowait(one("b"))
        with pytest.raises(BufferFullError):
            session.submit_nowait(one("c"))
        world.gate.set()
        world.gate = None
        await session.submit(one("c"))

    assert world.bodies() == [b"a", b"b", b"c"]


async def test_callers_are_served_in_the_order_in_which_they_came() -> None:
    world = World()
    world.gate = anyio.Event()

    async with AppendSession(world.context(), max_in_flight_batches=1) as session:
        await session.submit(one("first"))
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(session.submit, one(str(number)))
                await anyio.wait_all_tasks_blocked()
            assert session.statistics().waiting == 5
            world.gate.set()
            world.gate = None

    assert world.bodies() == [b"first", b"0", b"1", b"2", b"3", b"4"]
    assert session.statistics().backpressure_wait >= 0


async def test_a_cancelled_wait_for_room_hands_over_nothing_and_lets_the_next_in() -> None:
    world = World()
    world.gate = anyio.Event()

    async with AppendSession(world.context(), max_in_flight_batches=1) as session:
        await session.submit(one("first"))
        async with anyio.create_task_group() as group:
            cancelled = anyio.CancelScope()

            async def give_up() -> None:
                with cancelled:
                    await session.submit(one("cancelled"))

            group.start_soon(give_up)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(session.submit, one("second"))
            await anyio.wait_all_tasks_blocked()
            cancelled.cancel()
            await anyio.wait_all_tasks_blocked()
            world.gate.set()
            world.gate = None

    assert world.bodies() == [b"first", b"second"]


async def test_closing_refuses_callers_who_wait_for_room() -> None:
    world = World()
    world.gate = anyio.Event()
    refused = []

    async with AppendSession(world.context(), max_in_flight_batches=1) as session:
        await session.submit(one("first"))

        async def wait() -> None:
            with pytest.raises(S2SessionClosedError):
                await session.submit(one("second"))
            refused.append(True)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(session.close)
            await anyio.wait_all_tasks_blocked()
            world.gate.set()
            world.gate = None

    assert refused == [True]
    assert world.bodies() == [b"first"]


async def test_a_failure_wakes_everyone_who_waits_for_room() -> None:
    world = World(Plan(silent_from=0))
    failures = []

    with pytest.raises(S2TimeoutError):
        async with AppendSession(world.context(retry=STRICT), max_in_flight_batches=1) as session:
            await session.submit(one("first"))

            async def wait() -> None:
                with pytest.raises(S2TimeoutError) as caught:
                    await session.submit(one("never"))
                failures.append(caught.value.definite)

            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                group.start_soon(wait)

    assert failures == [True, True]
    assert session.statistics().pending_batches == 0


async def test_a_batch_that_is_too_large_when_encoded_is_refused_and_the_session_goes_on() -> None:
    world = World()
    widest = AppendRecord(b"", ((b"a", b"b"),) * 262_142)

    async with AppendSession(world.context()) as session:
        with pytest.raises(InvalidArgumentError, match="encoded"):
            await session.submit(AppendInput([widest], fencing_token="t" * 36))
        await (await session.submit(one("fine")))

    assert world.bodies() == [b"fine"]


# -- Protocol --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"end": StreamPosition(2, 1)},
        {"start": StreamPosition(1, 1)},
        {"start": StreamPosition(5, 1), "end": StreamPosition(4, 1)},
        {"tail": StreamPosition(0, 0)},
    ],
    ids=["too many", "none", "backwards", "beyond the tail"],
)
async def test_an_acknowledgement_that_cannot_be_right_ends_the_session(lie: dict[str, StreamPosition]) -> None:
    world = World(Plan(ack_change=lie))

    with pytest.raises(S2ProtocolError) as caught:
        async with AppendSession(world.context()) as session:
            await session.submit(one("a"))

    assert caught.value.definite is False
    assert len(world.connections) == 1


async def test_advice_to_reconnect_is_followed_without_costing_an_attempt() -> None:
    world = World(Plan(advise_at=1))

    async with AppendSession(world.context(retry=S2Retry(max_attempts=1))) as session:
        for number in range(3):
            await (await session.submit(one(str(number))))
        await anyio.wait_all_tasks_blocked()
        await (await session.submit(one("last")))

    assert world.bodies() == [b"0", b"1", b"2", b"last"]
    assert world.retired == [world.connections[0]]
    assert world.connections[0].finished
    assert session.statistics().retries == 0


async def test_advice_is_followed_once_a_minute() -> None:
    world = World(*(Plan(advise_at=0) for _ in range(3)))

    async with AppendSession(world.context()) as session:
        for number in range(3):
            await (await session.submit(one(str(number))))
            await anyio.wait_all_tasks_blocked()
        await anyio.sleep(61)
        early = len(world.connections)
        world.connections[-1].plan.advise_at = 2
        await (await session.submit(one("3")))
        await anyio.wait_all_tasks_blocked()
        await (await session.submit(one("4")))

    assert early == 2
    assert len(world.connections) == 3
    assert world.bodies() == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_server_that_says_farewell_is_left_with_nothing_in_doubt() -> None:
    """The next one takes a while to start: connections that are refused meanwhile cost no attempt."""
    refused = [Plan(refuse=broken("connect", refused=True)) for _ in range(12)]
    world = World(Plan(leave_at=1), *refused)

    async with AppendSession(world.context(retry=S2Retry(max_attempts=1, append_retry_policy="no_side_effects"))) as s:
        for number in range(6):
            await (await s.submit(one(str(number))))

    assert world.bodies() == [b"%d" % n for n in range(6)]
    assert len(world.connections) == 2
    assert world.connections[0].finished
    assert len(world.connections[0].inputs) == 2


async def test_an_idle_session_leaves_before_it_writes_again() -> None:
    world = World()

    async with AppendSession(world.context(retry=STRICT)) as session:
        await (await session.submit(one("a")))
        world.connections[0].leaving = True
        await anyio.sleep(60)
        await (await session.submit(one("b")))

    assert [len(connection.inputs) for connection in world.connections] == [1, 1]


async def test_patience_with_a_server_that_said_farewell_ends() -> None:
    refused = [Plan(refuse=broken("connect", refused=True)) for _ in range(1000)]
    world = World(Plan(leave_at=0), *refused)
    began = anyio.current_time()

    with pytest.raises(S2ConnectionError):
        async with AppendSession(world.context(retry=STRICT)) as session:
            await session.submit(one("a"))
            await anyio.sleep(1)
            await session.submit(one("b"))

    assert 25 <= anyio.current_time() - began <= 40


async def test_a_farewell_before_any_acknowledgement_makes_no_loop() -> None:
    world = World(Plan(), Plan())

    async with AppendSession(world.context()) as session:
        ticket = await session.submit(one("a"))
        while not world.connections:
            await anyio.lowlevel.checkpoint()
        world.connections[0].leaving = True
        await ticket

    assert len(world.connections) == 1


async def test_a_draining_server_is_left_at_once_and_only_once_for_nothing() -> None:
    draining = (503, {"code": "server_draining", "message": "bye"})
    world = World(Plan(status=draining), Plan(terminal_at=(0, *draining)))
    began = anyio.current_time()

    async with AppendSession(world.context(retry=STRICT)) as session:
        await (await session.submit(one("a")))

    assert world.bodies() == [b"a"]
    assert len(world.retired) == 2
    assert anyio.current_time() - began >= 0.1


async def test_a_server_stuck_in_draining_is_given_up() -> None:
    world = World(*(Plan(status=(503, {"code": "server_draining", "message": "bye"})) for _ in range(50)))

    with pytest.raises(S2ServerError) as caught:
        async with AppendSession(world.context()) as session:
            await session.submit(one("a"))

    assert caught.value.draining
    assert len(world.connections) == 4


# -- Ends ------------------------------------------------------------------------------------------------------


async def test_leaving_by_an_exception_raises_it_bare_and_fails_the_tickets() -> None:
    world = World()
    world.gate = anyio.Event()

    with pytest.raises(ValueError, match="mine"):
        async with AppendSession(world.context()) as session:
            ticket = await session.submit(one("a"))
            await anyio.wait_all_tasks_blocked()
            raise ValueError("mine")

    with pytest.raises(S2SessionClosedError) as caught:
        await ticket
    assert caught.value.definite is False
    assert world.connections[0].closed


async def test_a_session_in_the_callers_group_fails_its_tickets_when_the_group_is_cancelled() -> None:
    world = World()
    world.gate = anyio.Event()

    async with anyio.create_task_group() as group:
        session = AppendSession(world.context())
        await session.start(group)
        ticket = await session.submit(one("a"))
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()

    with pytest.raises(S2SessionClosedError) as caught:
        await ticket
    assert caught.value.definite is False
    with pytest.raises(S2SessionClosedError):
        await session.submit(one("b"))


async def test_aclose_ends_a_session_without_waiting_for_acknowledgements() -> None:
    world = World()
    world.gate = anyio.Event()

    async with anyio.create_task_group() as group:
        session = AppendSession(world.context())
        await session.start(group)
        ticket = await session.submit(one("a"))
        await session.aclose()
        await session.aclose()

    with pytest.raises(S2SessionClosedError):
        await ticket


async def test_what_the_maker_of_tokens_raises_reaches_those_who_wait() -> None:
    world = World()
    context = world.context()

    async def no_headers(**_: object) -> dict[str, str]:
        raise LookupError("no token")

    context.headers = no_headers  # type: ignore[method-assign]

    with pytest.raises(LookupError, match="no token"):
        async with AppendSession(context) as session:
            await session.submit(one("a"))


async def test_a_session_is_entered_before_it_is_used_and_only_once() -> None:
    session = AppendSession(World().context())

    with pytest.raises(RuntimeError, match="enter the session"):
        await session.submit(one("a"))
    async with session:
        with pytest.raises(RuntimeError, match="already"):
            await session.__aenter__()


# -- Writer, acknowledgements, statistics ----------------------------------------------------------------------


async def test_a_writer_returns_on_acceptance_and_confirms_on_leaving() -> None:
    world = World()
    world.gate = anyio.Event()

    async with AppendSession(world.context()) as session:
        async with session.writer() as writer:
            await writer.write(["a", b"b"])
            await writer.write("c")
            unacknowledged = session.statistics().pending_batches
            world.gate.set()
            world.gate = None
        stored = world.bodies()
        await session.submit(one("d"))

    assert unacknowledged == 2
    assert stored == [b"a", b"b", b"c"]
    with pytest.raises(S2SessionClosedError):
        await writer.write("late")


async def test_a_writer_raises_what_became_of_its_batches() -> None:
    world = World(Plan(terminal_at=(0, 422, {"code": "invalid", "message": "bad"})))

    with pytest.raises(S2ServerError, match="bad"):
        async with AppendSession(world.context()) as session, session.writer() as writer:
            await writer.write("a")


async def test_acknowledgements_come_in_order_whichever_way_batches_went_in() -> None:
    world = World(Plan(drop_before=3))
    found = []

    async with AppendSession(world.context()) as session, anyio.create_task_group() as group:

        async def collect() -> None:
            async for ack in session.acks():
                found.append(ack.start.seq_num)  # noqa: PERF401  # one by one, as they come

        group.start_soon(collect)
        async with session.writer() as writer:
            for number in range(10):
                await writer.write(str(number))
                await session.submit(one("x"))
        await session.close()

    assert found == list(range(20))


async def test_an_iterator_of_acknowledgements_raises_the_failure_after_what_came_before() -> None:
    world = World(Plan(terminal_at=(2, 422, {"code": "invalid", "message": "bad"})))
    found = []

    with pytest.raises(S2ServerError):
        async with AppendSession(world.context()) as session:
            acks = session.acks()
            for number in range(4):
                await session.submit(one(str(number)))
            with pytest.raises(S2ServerError, match="bad"):
                async for ack in acks:
                    found.append(ack.start.seq_num)  # noqa: PERF401  # what came before the failure counts

    assert found == [0, 1]


async def test_statistics_tell_where_the_time_went() -> None:
    world = World()
    world.gate = anyio.Event()

    async with AppendSession(world.context(), max_in_flight_batches=1) as session, anyio.create_task_group() as group:
        await session.submit(one("abc"))
        group.start_soon(session.submit, one("d"))
        await anyio.sleep(2)
        world.gate.set()
        world.gate = None

    statistics = session.statistics()
    assert (statistics.acked_batches, statistics.acked_records, statistics.acked_bytes) == (2, 2, 20)
    assert statistics.ack_wait >= 2
    assert statistics.max_ack_wait >= 2
    assert statistics.backpressure_wait >= 2
    assert repr(session) == "<AppendSession basin-01/stream ended, 0 batches pending>"


@pytest.mark.parametrize("bad", [{"max_in_flight_bytes": MiB - 1}, {"max_in_flight_batches": 0}])
async def test_bounds_below_the_least_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        AppendSession(World().context(), **bad)  # type: ignore[arg-type]


async def test_retries_are_told_to_the_hook() -> None:
    world = World(Plan(drop_before=0), Plan(refuse=broken("connect")))
    told = []

    async with AppendSession(world.context(), on_retry=told.append) as session:
        await session.submit(one("a"))

    assert [details.attempt for details in told] == [1, 2]
    assert all(isinstance(details.error, S2Error) for details in told)
