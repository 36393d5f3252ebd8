"""The in-process transport, seen from the application."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from durable_streams import (
    AlreadyClosedError,
    ASGITransport,
    IncompleteBodyError,
    RequestTimeoutError,
    Timeouts,
)
from durable_streams._transport import asgi_call
from durable_streams._transport.deadline import Deadline, Stage
from durable_streams._transport.version import user_agent
from tests.transport.exchanges import fetch, open_, read

pytestmark = pytest.mark.anyio

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

URL = "http://test.example:8080"
START: Message = {"type": "http.response.start", "status": 200, "headers": []}


def body(data: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_the_scope_says_everything_about_the_request() -> None:
    scopes: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await send(START)
        await send(body(b""))

    transport = ASGITransport(app, root_path="/mounted", client=("10.0.0.1", 99))
    await fetch(transport, f"{URL}/mounted/a%2Fb%C3%A9?x=%20&y", "POST", b"abc", {"X-A": "1"})
    await fetch(transport, "https://test.example")
    await transport.aclose()

    assert scopes[0] == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/mounted/a/bé",
        "raw_path": b"/mounted/a%2Fb%C3%A9",
        "query_string": b"x=%20&y",
        "root_path": "/mounted",
        "headers": [
            (b"host", b"test.example:8080"),
            (b"x-a", b"1"),
            (b"user-agent", user_agent().encode()),
            (b"content-length", b"3"),
        ],
        "client": ("10.0.0.1", 99),
        "server": ("test.example", 8080),
    }
    assert (scopes[1]["scheme"], scopes[1]["path"], scopes[1]["raw_path"]) == ("https", "/", b"/")
    assert scopes[1]["server"] == ("test.example", 443)


async def test_the_application_gets_the_body_and_then_hears_of_the_disconnect() -> None:
    messages: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        messages.append(await receive())
        await send(START)
        await send(body(b"x"))
        messages.append(await receive())
        messages.append(await receive())

    transport = ASGITransport(app)
    await fetch(transport, URL, "POST", b"whole")
    await transport.aclose()

    assert messages == [
        {"type": "http.request", "body": b"whole", "more_body": False},
        {"type": "http.disconnect"},
        {"type": "http.disconnect"},
    ]


async def test_an_iterable_is_pulled_by_the_application_piece_by_piece() -> None:
    log: list[str] = []

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"1", b"2"):
            log.append(f"made {piece!r}")
            yield piece

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            log.append(f"got {message['body']!r}")
        await send(START)
        await send(body(b""))

    transport = ASGITransport(app)
    await fetch(transport, URL, "POST", pieces())
    await transport.aclose()

    assert log == ["made b'1'", "got b'1'", "made b'2'", "got b'2'", "got b''"]


async def test_an_iterable_that_is_not_needed_is_closed() -> None:
    log: list[str] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            yield b"1"
            yield b"2"
        finally:
            log.append("closed")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        await send(body(b"enough"))

    transport = ASGITransport(app)
    assert await fetch(transport, URL, "POST", pieces()) == (200, b"enough")
    await transport.aclose()

    assert log == ["closed"]


async def test_send_waits_while_a_piece_is_not_taken() -> None:
    log: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        for number in range(4):
            await send(body(b"%d" % number, more=True))
            log.append(f"sent {number}")
        await send(body(b""))

    transport = ASGITransport(app)
    exchange = await open_(transport, URL)
    await anyio.wait_all_tasks_blocked()
    assert log == ["sent 0"]
    assert await exchange.receive() == b"0"
    await anyio.wait_all_tasks_blocked()
    assert log == ["sent 0", "sent 1"]
    assert await read(exchange) == b"123"
    await transport.aclose()


async def test_closing_early_disconnects_an_application_that_sends() -> None:
    errors: list[Exception] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        try:
            while True:
                await send(body(b"x", more=True))
        except OSError as error:
            errors.append(error)
            raise

    transport = ASGITransport(app)
    exchange = await open_(transport, URL)
    assert await exchange.receive() == b"x"
    assert repr(transport) == "<ASGITransport 1 open, 1 running>"
    await exchange.aclose()
    await transport.aclose()

    assert [str(error) for error in errors] == ["the client has gone away"]
    assert repr(transport) == "<ASGITransport closed>"


async def test_an_application_that_does_not_listen_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    monkeypatch.setattr(asgi_call, "GRACE", 0.0)
    transport = ASGITransport(app)
    exchange = await open_(transport, URL)
    await anyio.wait_all_tasks_blocked()
    await exchange.aclose()
    await transport.aclose()

    assert log == ["cancelled"]


async def test_what_an_application_does_for_a_cancelled_request_goes_on() -> None:
    """A server does not stop to store what it has begun to store because the client is gone."""
    working, stored = anyio.Event(), anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        working.set()
        await anyio.wait_all_tasks_blocked()
        stored.set()

    transport = ASGITransport(app)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_, transport, URL)
        await working.wait()
        tasks.cancel_scope.cancel()
    await transport.aclose()

    assert stored.is_set()


async def test_an_application_may_use_task_groups_and_cancel_scopes_between_its_pieces() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                await receive()
                tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            with anyio.CancelScope():
                while True:
                    await send(body(b"tick", more=True))

    transport = ASGITransport(app)
    with anyio.CancelScope():
        first = await open_(transport, URL)
    with anyio.CancelScope():
        second = await open_(transport, URL)
        assert await first.receive() == b"tick"
    with anyio.CancelScope():
        await first.aclose()
    assert await second.receive() == b"tick"
    await second.aclose()
    await transport.aclose()


class BoomError(Exception):
    pass


async def test_exceptions_of_the_application_are_raised_where_the_request_was_made() -> None:
    error = BoomError("before the head")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await send(START)
            await send(body(b"x", more=True))
        raise error

    transport = ASGITransport(app)
    with pytest.raises(BoomError) as early:
        await open_(transport, URL + "/early")
    exchange = await open_(transport, URL + "/late")
    assert await exchange.receive() == b"x"
    with pytest.raises(BoomError) as late:
        await exchange.receive()
    await transport.aclose()

    assert early.value is error
    assert late.value is error


async def test_exceptions_of_the_application_can_be_hidden_as_servers_do(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await send(START)
            await send(body(b"x", more=True))
        raise BoomError("secret")

    transport = ASGITransport(app, raise_app_exceptions=False)
    assert await fetch(transport, URL + "/early") == (500, b"Internal Server Error")
    assert "BoomError: secret" in caplog.text
    with pytest.raises(IncompleteBodyError) as raised:
        await fetch(transport, URL + "/late")
    await transport.aclose()

    assert raised.value.phase == "body"
    assert isinstance(raised.value.__cause__, BoomError)
    assert "secret" not in str(raised.value)


async def test_an_application_that_returns_without_an_answer_is_at_fault() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        pass

    transport = ASGITransport(app)
    with pytest.raises(RuntimeError, match="returned without an answer"):
        await open_(transport, URL)
    await transport.aclose()


@pytest.mark.parametrize("length", [b"4", b"6"])
async def test_the_body_has_to_have_its_declared_length(length: bytes) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({**START, "headers": [(b"content-length", length)]})
        await send(body(b"12345"))

    transport = ASGITransport(app)
    exchange = await open_(transport, URL)
    if length == b"6":
        assert await exchange.receive() == b"12345"
        with pytest.raises(IncompleteBodyError, match="1 bytes are missing"):
            await exchange.receive()
    else:
        with pytest.raises(RuntimeError, match="longer than its Content-Length of 4"):
            await exchange.receive()
    await transport.aclose()


@pytest.mark.parametrize(
    "messages",
    [
        [body(b"x")],
        [START, START],
        [START, body(b""), body(b"")],
        [{"type": "http.response.trailers", "headers": []}],
    ],
)
async def test_messages_out_of_turn_raise_in_the_application(messages: list[Message]) -> None:
    errors: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        try:
            for message in messages:
                await send(message)
        except RuntimeError as error:
            errors.append(str(error))
        with contextlib.suppress(RuntimeError):
            await send(START)
        with contextlib.suppress(RuntimeError):
            await send(body(b""))

    transport = ASGITransport(app)
    await fetch(transport, URL)
    await anyio.wait_all_tasks_blocked()
    await transport.aclose()

    assert errors == [f"{messages[-1]['type']!r} is not expected here"]


async def test_work_after_the_answer_is_waited_for_and_its_errors_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(b"done"))
        await anyio.wait_all_tasks_blocked()
        log.append("finished")
        raise BoomError("afterwards")

    transport = ASGITransport(app)
    assert await fetch(transport, URL) == (200, b"done")
    assert log == []
    await transport.aclose()

    assert log == ["finished"]
    assert "BoomError: afterwards" in caplog.text


async def test_no_limit_runs_while_an_iterable_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    pause, move = Deadline.pause, Deadline.move

    def logged_pause(deadline: Deadline) -> None:
        log.append("pause")
        pause(deadline)

    def logged_move(deadline: Deadline, stage: Stage) -> None:
        log.append(stage)
        move(deadline, stage)

    async def pieces() -> AsyncIterator[bytes]:
        log.append("asked")
        yield b"x"

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        await send(body(b""))

    monkeypatch.setattr(Deadline, "pause", logged_pause)
    monkeypatch.setattr(Deadline, "move", logged_move)
    transport = ASGITransport(app)
    exchange = await open_(transport, URL, "POST", pieces())
    assert log == ["read", "pause", "asked", "read"]
    await exchange.aclose()
    await transport.aclose()


async def test_silence_of_the_application_runs_into_the_read_limit() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await receive()

    transport = ASGITransport(app)
    with pytest.raises(RequestTimeoutError, match=r"silent for 0\.05 s"):
        await fetch(transport, URL, timeouts=Timeouts(read=0.05))
    await transport.aclose()


# -------------------------------------------------------------------------------------------------------- lifespan


async def test_entering_runs_the_lifespan_and_hands_its_state_to_requests() -> None:
    log: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            scope["state"]["pool"] = "a pool"
            log.append("started")
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            log.append("stopped")
            await send({"type": "lifespan.shutdown.complete"})
            return
        log.append(f"request with {scope['state']['pool']}")
        scope["state"]["own"] = 1
        await send(START)
        await send(body(b""))

    async with ASGITransport(app) as transport:
        await fetch(transport, URL)
        await transport.start()

    assert log == ["started", "request with a pool", "stopped"]


async def test_an_application_that_fails_to_start_says_why() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no disk"})

    transport = ASGITransport(app)
    with pytest.raises(RuntimeError, match="failed to start: no disk"):
        await transport.start()
    await transport.aclose()


async def test_an_application_without_lifespan_is_used_without() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError("only HTTP here")
        assert "state" not in scope
        await send(START)
        await send(body(b"x"))

    async with ASGITransport(app) as transport:
        assert await fetch(transport, URL) == (200, b"x")


async def test_a_failed_shutdown_is_logged_and_a_stuck_one_is_cancelled(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "still busy"})
        await anyio.sleep_forever()

    monkeypatch.setattr(asgi_call, "GRACE", 0.01)
    async with ASGITransport(app):
        pass

    assert "failed to shut down: still busy" in caplog.text


async def test_leaving_the_block_keeps_the_bodys_exception_bare() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        raise ValueError("no lifespan")

    with pytest.raises(BoomError):
        async with ASGITransport(app):
            raise BoomError


async def test_a_cancelled_start_stops_the_lifespan(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    monkeypatch.setattr(asgi_call, "GRACE", 0.0)
    transport = ASGITransport(app)
    with anyio.move_on_after(0.01):
        await transport.start()
    await transport.aclose()

    assert log == ["cancelled"]


async def test_a_dropped_transport_with_a_running_application_warns() -> None:
    release = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await release.wait()

    transport = ASGITransport(app)
    exchange = await open_(transport, URL)
    del transport, exchange
    with pytest.warns(ResourceWarning, match="1 running> was not closed"):
        gc.collect()
    release.set()
    await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_use_after_closing_is_refused() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        raise AssertionError("not called")

    transport = ASGITransport(app)
    await transport.aclose()
    for use in (lambda: open_(transport, URL), transport.start):
        with pytest.raises(AlreadyClosedError):
            await use()


def test_use_in_another_loop_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(b""))

    transport = ASGITransport(app)
    caplog.set_level(logging.ERROR)
    anyio.run(fetch, transport, URL, backend="trio")
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        anyio.run(fetch, transport, URL, backend="asyncio")
