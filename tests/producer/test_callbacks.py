"""What the user is told, when, and that it harms nobody: on_error, on_claim, on_failed_attempt, the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from durable_streams import (
    BackoffOptions,
    BatchInfo,
    ConflictError,
    DurableStreamError,
    IdempotentProducer,
    RetryDetails,
    StaleEpochError,
)
from tests.core.model_server import Server

from .desk import Desk

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fake_clock")]


def producer_at(desk: Desk, **options: Any) -> IdempotentProducer:
    defaults: dict[str, Any] = {"max_batch_items": 1, "linger": 0.0}
    return IdempotentProducer(desk.handle(), "p", **(defaults | options))


async def fail(desk: Desk, producer: IdempotentProducer, messages: int = 1) -> None:
    """Append and let the first batch be refused."""
    for number in range(messages):
        producer.append_nowait(str(number))
    (posted, *_) = await desk.wait(1)
    posted.reply(409)
    while producer.failed is None and producer.epoch == 0:  # a callback may have restarted it already
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_on_error_is_told_once_of_each_batch_that_failed(kind: str) -> None:
    told: list[tuple[type, BatchInfo]] = []

    def plain(error: Exception, info: BatchInfo) -> None:
        told.append((type(error), info))

    async def slow(error: Exception, info: BatchInfo) -> None:
        await anyio.sleep(0.1)
        plain(error, info)

    desk = Desk()
    async with producer_at(
        desk, on_error=plain if kind == "plain" else slow, epoch=0, max_in_flight=2, max_batch_items=2, exit_grace=10
    ) as producer:
        for number in range(5):
            producer.append_nowait(str(number))
        first, _ = await desk.wait(2)
        first.reply(404)
        while producer.failed is None:
            await anyio.lowlevel.checkpoint()
        await producer.abort()

    assert [(kind.__name__, info) for kind, info in told] == [
        ("StreamNotFoundError", BatchInfo(0, 0, 2, False)),
        ("StreamNotFoundError", BatchInfo(0, 1, 2, False)),
        ("StreamNotFoundError", BatchInfo(0, -1, 1, False)),
    ]


async def test_on_error_knows_whether_sending_again_can_help() -> None:
    told: list[BatchInfo] = []
    desk = Desk()
    async with producer_at(
        desk, on_error=lambda error, info: told.append(info), retry=BackoffOptions(max_retries=0)
    ) as producer:
        producer.append_nowait("1")
        (posted,) = await desk.wait(1)
        posted.reply(429)
        while producer.failed is None:
            await anyio.lowlevel.checkpoint()
        await producer.abort()

    assert told == [BatchInfo(0, 0, 1, True)]


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_what_callbacks_raise_is_logged_and_changes_nothing(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def plain(*facts: object) -> None:
        raise LookupError("mine")

    async def slow(*facts: object) -> None:
        await anyio.lowlevel.checkpoint()
        raise LookupError("mine")

    callback: Callable[..., Any] = plain if kind == "plain" else slow
    desk = Desk()
    retry = BackoffOptions(on_failed_attempt=plain)
    async with producer_at(desk, on_error=callback, on_claim=callback, retry=retry, auto_claim=True) as producer:
        producer.append_nowait("1")
        (first,) = await desk.wait(1)
        first.reply(503)
        (second,) = await desk.wait(2)
        second.reply(403, producer_epoch=3)
        (third,) = await desk.wait(3)
        third.reply(409)
        with pytest.raises(ConflictError):
            await producer.flush()
        await producer.abort()

    raised = [record for record in caplog.records if record.exc_info]
    assert [record.levelname for record in raised] == ["ERROR"] * 3
    assert all("a callback of the producer failed url=http://host/s" in record.getMessage() for record in raised)


@pytest.mark.parametrize("lanes", [1, 5])
async def test_a_slow_callback_stops_nobody(lanes: int) -> None:
    server, entered = Server(), anyio.Event()

    async def on_claim(old: int, new: int, resent: int) -> None:
        entered.set()
        await producer.flush()  # needs a lane that works meanwhile
        await anyio.sleep(5)

    desk = Desk()
    desk.serve(server)
    server.epoch = 4
    with anyio.fail_after(100):
        async with producer_at(desk, on_claim=on_claim, auto_claim=True, max_in_flight=lanes) as producer:
            for number in range(10):
                producer.append_nowait(str(number))
            await entered.wait()
            await producer.flush()
            assert server.log == list(range(10))


@pytest.mark.parametrize("call", ["abort", "detach", "aclose"])
@pytest.mark.parametrize("owner", ["block", "group"])
async def test_on_error_may_end_the_producer(call: str, owner: str) -> None:
    desk = Desk()
    met: list[Exception] = []

    async def on_error(error: Exception, info: BatchInfo) -> None:
        try:
            await getattr(producer, call)()
        except DurableStreamError as raised:
            met.append(raised)

    producer = producer_at(desk, on_error=on_error, max_in_flight=1)
    with anyio.fail_after(100):
        if owner == "group":
            async with anyio.create_task_group() as group:
                await producer.start(group)
                await fail(desk, producer, 3)
        else:
            async with producer:
                await fail(desk, producer, 3)
                await anyio.sleep(1)
                with pytest.raises(ConflictError):
                    producer.append_nowait("1")

    assert [type(error) for error in met] == ([] if call == "abort" else [ConflictError])
    assert producer.unacknowledged() == [b"0", b"1", b"2"]


async def test_on_error_may_restart_the_producer() -> None:
    server = Server()
    desk = Desk()
    told = []

    async def on_error(error: Exception, info: BatchInfo) -> None:
        told.append(info.seq)
        if info.seq == 0:
            await producer.restart(resend=True)
            desk.serve(server)
            await producer.flush()

    with anyio.fail_after(100):
        async with producer_at(desk, on_error=on_error, max_in_flight=1) as producer:
            await fail(desk, producer, 3)
            await anyio.sleep(1)

    assert server.log == [0, 1, 2]
    assert told == [0, -1, -1]


async def test_two_callbacks_that_end_the_producer_do_not_wait_for_each_other() -> None:
    desk = Desk()
    begun = 0

    async def end(*facts: object) -> None:
        nonlocal begun
        begun += 1
        while begun < 2:
            await anyio.sleep(0.01)
        await producer.abort()

    retry = BackoffOptions(on_failed_attempt=end)  # type: ignore[arg-type]  # awaited all the same
    producer = producer_at(desk, retry=retry, exit_grace=1.0)
    with anyio.fail_after(100):
        async with producer:
            producer.append_nowait("1")
            producer.append_nowait("2")
            for posted in await desk.wait(2):
                posted.reply(503)
            while begun < 2:
                await anyio.sleep(0.01)


async def test_leaving_lets_a_callback_finish_but_not_for_ever() -> None:
    finished = []

    async def on_error(error: Exception, info: BatchInfo) -> None:
        await anyio.sleep(0.5 if info.seq == 0 else 1000)
        finished.append(info.seq)

    desk = Desk()
    with anyio.fail_after(10):
        with pytest.raises(ConflictError):
            async with producer_at(desk, on_error=on_error, exit_grace=1.0) as producer:
                await fail(desk, producer, 2)

    assert finished == [0]


async def test_claims_are_told_with_both_epochs_and_what_is_sent_again() -> None:
    claims = []
    server = Server(epoch=6, seq=3)
    desk = Desk()
    desk.serve(server)
    async with producer_at(desk, auto_claim=True, on_claim=lambda *facts: claims.append(facts)) as producer:
        await producer.send("1")
        server.epoch, server.seq = 9, 3
        await producer.send("2")

    assert claims == [(0, 7, 1), (7, 10, 1)]
    assert server.log == [1, 2]


async def test_two_writers_that_duel_for_an_id_give_up() -> None:
    desk = Desk()

    def newer(posted: Any) -> None:
        posted.reply(403, producer_epoch=posted.stamp[0] + 1)

    desk.rule = newer
    with anyio.fail_after(100):
        async with producer_at(desk, auto_claim=True) as producer:
            with pytest.raises(StaleEpochError):
                await producer.send("1")
            await producer.abort()
    assert len(desk.posted) == 6


async def test_failed_attempts_are_told_and_the_third_in_a_row_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "durable_streams")
    details: list[RetryDetails] = []
    server = Server()
    desk = Desk(lambda posted: posted.reply(503, body=b"secret") if len(desk.posted) < 5 else posted.apply(server))
    retry = BackoffOptions(initial_delay=0.5, max_delay=4, multiplier=2, on_failed_attempt=details.append)
    async with producer_at(desk, retry=retry) as producer:
        await producer.send("1")

    assert [detail.attempt for detail in details] == [1, 2, 3, 4]
    assert all(0 <= detail.delay <= ceiling for detail, ceiling in zip(details, [0.5, 1, 2, 4], strict=True))
    levels = [record.levelname for record in caplog.records if "retrying" in record.getMessage()]
    assert levels == ["DEBUG", "DEBUG", "WARNING", "DEBUG"]


async def test_a_duplicate_of_something_that_was_sent_once_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(lambda posted: posted.reply(204))
    async with producer_at(desk) as producer:
        ack = await producer.send("1")

    assert ack.duplicate
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "another writer" in record.getMessage()
    assert "producer=p epoch=0 seq=0" in record.getMessage()
