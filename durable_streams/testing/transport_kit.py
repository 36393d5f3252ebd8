"""What every `Transport` owes, as one reusable test.

Run it against your own transport, in asyncio and in trio if it claims both; it raises `AssertionError`, or whatever
your transport raised, with a note that says which promise is broken:

    async def test_my_transport_keeps_its_promises():
        await check_transport(MyTransport)

What the checks ask for is described once, as an ASGI application. It runs behind a real socket, or inside your
transport if that is one that needs no network:

    await check_transport(lambda app: MyInProcessTransport(app), in_process=True)

Order is forced with events throughout; the only waits for a clock are the time limits that are checked themselves, of
at most half a second each.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import anyio

from .. import (
    AlreadyClosedError,
    BusyResourceError,
    Exchange,
    IncompleteBodyError,
    NetworkError,
    RequestTimeoutError,
    Timeouts,
    Transport,
)
from .kit_application import TOGETHER, Application
from .loopback import LoopbackServer

#: A check that takes longer than this has hung, in seconds.
PATIENCE = 60.0
_LIMITS = Timeouts(connect=PATIENCE, write=PATIENCE, read=PATIENCE)
_SILENCE = Timeouts(connect=PATIENCE, write=PATIENCE, read=0.05)
#: The head has to come within this, on a machine of any speed.
_LONGER_SILENCE = Timeouts(connect=PATIENCE, write=PATIENCE, read=0.5)


async def check_transport(factory: Callable[..., Transport], *, in_process: bool = False) -> None:
    """Check every promise of `Transport` and `Exchange`.

    Args:
        factory: Makes a transport that nothing has used; called once for each check, and what it makes is closed.
            Called without arguments, or with the ASGI application to talk to if `in_process`. An in-process transport
            must answer for an application that fails (status 500) instead of raising its exception.
        in_process: Whether the transport talks to an application in the same process. Promises about connections are
            left out then.

    Raises:
        AssertionError: a promise is broken; its note says which.
        Exception: whatever else the transport raised, with the same note.
    """
    for check, needs_network in CHECKS:
        if needs_network and in_process:
            continue
        bench = _Bench(in_process)
        try:
            with anyio.fail_after(PATIENCE):
                await bench.run(factory, check)
        except Exception as error:
            error.add_note(f"check_transport, {check.__name__.strip('_')}: {check.__doc__}")
            raise


class _Bench:
    """One check: a fresh application, a fresh transport, and shorthands.

    Attributes:
        app: The application.
        transport: The transport.
        server: What serves the application, None in process.
        url: Where the application is.
    """

    def __init__(self, in_process: bool) -> None:
        self.app = Application()
        self.server: LoopbackServer | None = None if in_process else LoopbackServer(self.app)
        self.url = "http://127.0.0.1"
        self.transport: Transport

    async def run(self, factory: Callable[..., Transport], check: Callable[[_Bench], Awaitable[None]]) -> None:
        if self.server is None:
            self.transport = factory(self.app)
            await self._run_closing(check)
            return
        async with self.server as server:
            self.url = server.url
            self.transport = factory()
            await self._run_closing(check)

    async def _run_closing(self, check: Callable[[_Bench], Awaitable[None]]) -> None:
        try:
            await check(self)
        finally:
            with anyio.CancelScope(shield=True):
                await self.transport.aclose()

    async def open(
        self,
        path: str,
        method: str = "GET",
        body: bytes | AsyncIterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts = _LIMITS,
    ) -> Exchange:
        return await self.transport.open(method, self.url + path, headers or {}, body, timeouts)

    async def fetch(
        self,
        path: str,
        method: str = "GET",
        body: bytes | AsyncIterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        exchange = await self.open(path, method, body, headers)
        return exchange.status, await _read(exchange)

    async def still_works(self) -> None:
        got = await self.fetch("/echo", "POST", b"still there")
        assert got == (200, b"still there"), f"the transport is not usable any more: it answered {got}"


async def _read(exchange: Exchange) -> bytes:
    pieces = []
    while piece := await exchange.receive():
        pieces.append(piece)
    await exchange.aclose()
    return b"".join(pieces)


async def _raised(kind: type[Exception], run: Callable[[], Awaitable[object]]) -> Any:
    """The exception of that kind; anything else is a broken promise."""
    try:
        got = await run()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, got the result {got!r}")


# ---------------------------------------------------------------------------------------------------------- checks


async def _types(bench: _Bench) -> None:
    """Transports and exchanges have the methods of their protocols."""
    assert isinstance(bench.transport, Transport), "it has no open() or aclose()"
    exchange = await bench.open("/echo")
    assert isinstance(exchange, Exchange), "it has no status, headers, receive() or aclose()"
    await _read(exchange)


async def _requests(bench: _Bench) -> None:
    """Method, target and headers arrive as they were given."""
    target = "/echo/a%2Fb/%C3%A9?offset=a%2Fb&x=1&x=2&empty&plus=a+b%20c"
    given = {"authorization": "Bearer x", "x-mixed": "a, b;c=d", "content-type": "application/json; charset=utf-8"}

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        await bench.fetch(target, method, headers=given)

    assert [seen.method for seen in bench.app.seen] == ["GET", "HEAD", "PUT", "POST", "DELETE"]
    for seen in bench.app.seen:
        assert seen.target == target, f"the target came as {seen.target}"
        assert given.items() <= seen.headers.items(), f"the headers came as {seen.headers}"
        assert "host" in seen.headers, "no Host header"
        for name in ("accept-encoding", "cookie", "expect"):
            assert name not in seen.headers, f"{name} was added"
    for seen in bench.app.seen[2:4]:
        assert seen.headers.get("content-length") == "0", f"an empty {seen.method} came without Content-Length: 0"


async def _bodies(bench: _Bench) -> None:
    """Bodies of any size arrive whole, with their length."""
    for size in (0, 1, 1000, 1 << 16, (1 << 20) + 1):
        body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
        assert await bench.fetch("/echo", "POST", body) == (200, body), f"a body of {size} bytes was not echoed"
        seen = bench.app.seen[-1]
        assert seen.headers.get("content-length") == str(size), f"a body of {size} bytes came with {seen.headers}"


async def _iterables(bench: _Bench) -> None:
    """An async iterable arrives whole, without a length; empty pieces do not end it."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"", b"one", b"", b"2" * 100_000, b""):
            yield piece

    status, body = await bench.fetch("/echo", "POST", pieces())

    assert (status, body) == (200, b"one" + b"2" * 100_000), "the pieces were not echoed"
    assert "content-length" not in bench.app.seen[-1].headers, "an iterable has no length"
    await bench.still_works()


async def _failing_iterables(bench: _Bench) -> None:
    """An exception of the iterable surfaces unchanged, and the server never sees the request complete."""
    failure = LookupError("nothing more")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        raise failure

    error = await _raised(LookupError, lambda: bench.open("/echo", "POST", pieces()))

    assert error is failure, f"the exception became {error!r}"
    await bench.app.wait_seen(1)
    assert not bench.app.seen[0].complete, "the request was completed"
    await bench.still_works()


async def _odd_iterables(bench: _Bench) -> None:
    """An iterable that yields something else than bytes is a TypeError."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield "two"  # type: ignore[misc]

    await _raised(TypeError, lambda: bench.open("/echo", "POST", pieces()))
    await bench.still_works()


async def _answers(bench: _Bench) -> None:
    """Status and headers come as sent: names in lower case, repeated ones joined; every status is an answer."""
    for status in (200, 201, 302, 404, 409, 500, 503):
        exchange = await bench.open(f"/status/{status}")
        assert exchange.status == status, f"status {status} came as {exchange.status}"
        assert exchange.headers.get("x-twice") == "one, two", f"a repeated header came as {exchange.headers}"
        assert exchange.headers.get("x-status") == str(status), f"the headers came as {exchange.headers}"
        assert await _read(exchange) == b"a body"
    assert len(bench.app.seen) == 7, "a request was repeated or a redirect followed"


async def _bodiless_answers(bench: _Bench) -> None:
    """HEAD, 204 and 304 have no body and leave the transport usable."""
    for path, method in (("/status/200", "HEAD"), ("/status/204", "GET"), ("/status/304", "GET")):
        exchange = await bench.open(path, method)
        assert exchange.headers.get("x-twice") == "one, two", f"{method} {path} came without its headers"
        assert await _read(exchange) == b"", f"{method} {path} had a body"
        await bench.still_works()


async def _streaming(bench: _Bench) -> None:
    """Pieces are handed over as they come, and b"" only when the body is complete."""
    exchange = await bench.open("/steps")
    for number in range(3):
        bench.app.event(f"step {number}").set()
        assert await exchange.receive() == b"piece %d" % number, "the pieces were not handed over one by one"
    assert await exchange.receive() == b"", "the body has no end"
    assert await exchange.receive() == b"", "a complete body does not stay complete"
    await exchange.aclose()
    await exchange.aclose()


async def _large_answers(bench: _Bench) -> None:
    """Large bodies arrive whole."""
    status, body = await bench.fetch("/large")
    assert (status, len(body)) == (200, 40 * 65_536), f"got {len(body)} bytes"
    assert body == bytes(range(256)) * 256 * 40, "the bytes came mixed up"


async def _early_close(bench: _Bench) -> None:
    """Closing a half-read exchange tells the server, and leaves the transport usable."""
    exchange = await bench.open("/begin")
    assert await exchange.receive() == b"begun"

    await exchange.aclose()
    await exchange.aclose()

    await bench.app.wait_gone("/begin")
    await _raised(AlreadyClosedError, exchange.receive)
    await bench.still_works()


async def _other_tasks(bench: _Bench) -> None:
    """An exchange may be opened in one task, read in a second and closed in a third."""
    exchanges: list[Exchange] = []
    pieces: list[bytes] = []

    async def open_it() -> None:
        exchanges.append(await bench.open("/begin"))

    async def read_it() -> None:
        pieces.append(await exchanges[0].receive())

    async def close_it() -> None:
        await exchanges[0].aclose()

    for step in (open_it, read_it, close_it):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step)

    assert pieces == [b"begun"]
    await bench.app.wait_gone("/begin")


async def _busy(bench: _Bench) -> None:
    """Two tasks may not receive from one exchange, and the first is not disturbed by the attempt."""
    exchange = await bench.open("/steps")
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await exchange.receive())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        await _raised(BusyResourceError, exchange.receive)
        bench.app.event("step 0").set()

    assert got == [b"piece 0"]
    await exchange.aclose()


async def _cancelled_opens(bench: _Bench) -> None:
    """Cancelling the wait for a head tells the server, and leaves the transport usable."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.open, "/hold")
        await bench.app.wait_seen(1)
        tasks.cancel_scope.cancel()

    await bench.app.wait_gone("/hold")
    await bench.still_works()


async def _cancelled_receives(bench: _Bench) -> None:
    """Cancelling the wait for a piece tells the server, and leaves the transport usable."""
    exchange = await bench.open("/begin")
    assert await exchange.receive() == b"begun"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.receive)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    await exchange.aclose()
    await bench.app.wait_gone("/begin")
    await bench.still_works()


async def _cancelled_before(bench: _Bench) -> None:
    """A call in a scope that is cancelled already neither hangs nor leaves anything behind."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await bench.fetch("/echo")
    await bench.still_works()


async def _concurrency(bench: _Bench) -> None:
    """Many exchanges run at the same time, and each gets its own answer."""
    answers: dict[int, tuple[int, bytes]] = {}

    async def fetch(number: int) -> None:
        answers[number] = await bench.fetch("/gather", "POST", b"%d" % number)

    async with anyio.create_task_group() as tasks:
        for number in range(TOGETHER):
            tasks.start_soon(fetch, number)

    assert answers == {number: (200, b"%d" % number) for number in range(TOGETHER)}


async def _silence(bench: _Bench) -> None:
    """`Timeouts.read` limits the server's silence: phase "sent" before the head, "body" after it."""
    error = await _raised(RequestTimeoutError, lambda: bench.open("/hold", timeouts=_SILENCE))
    assert error.phase == "sent", f"before the head: phase {error.phase!r}"
    await bench.app.wait_gone("/hold")

    exchange = await bench.open("/begin", timeouts=_LONGER_SILENCE)
    assert await exchange.receive() == b"begun"
    error = await _raised(RequestTimeoutError, exchange.receive)
    assert error.phase == "body", f"after the head: phase {error.phase!r}"
    await exchange.aclose()
    await bench.app.wait_gone("/begin")
    await bench.still_works()


async def _cut_bodies(bench: _Bench) -> None:
    """A body that ends before its end is an IncompleteBodyError with phase "body", and never taken for whole."""
    for path in ("/cut/length", "/cut/chunked"):
        exchange = await bench.open(path)
        error = await _raised(IncompleteBodyError, lambda exchange=exchange: _read(exchange))  # type: ignore[misc]
        assert error.phase == "body", f"{path}: phase {error.phase!r}"
        await exchange.aclose()
        await bench.still_works()


async def _no_answer(bench: _Bench) -> None:
    """A server that hangs up without an answer may have acted: phase "sent"."""
    error = await _raised(NetworkError, lambda: bench.open("/nothing", "POST", b"x"))
    assert error.phase == "sent", f"phase {error.phase!r}"
    assert not error.reused, "the connection was new"
    await bench.still_works()


async def _no_answer_on_a_reused_connection(bench: _Bench) -> None:
    """`reused` says that the connection had served before; the request is not repeated."""
    await bench.still_works()
    error = await _raised(NetworkError, lambda: bench.open("/nothing"))
    assert error.phase == "sent", f"phase {error.phase!r}"
    assert error.reused, "the connection had served before"
    assert [seen.target for seen in bench.app.seen] == ["/echo", "/nothing"], "the request was repeated"


async def _no_server(bench: _Bench) -> None:
    """A refused connection was certainly not acted upon: phase "connect"."""
    async with LoopbackServer(bench.app) as closed:
        pass
    error = await _raised(NetworkError, lambda: bench.transport.open("GET", closed.url, {}, b"", _LIMITS))
    assert error.phase == "connect", f"phase {error.phase!r}"
    await bench.still_works()


async def _reuse(bench: _Bench) -> None:
    """A connection serves again after a complete body, and is closed after a half-read one."""
    assert bench.server is not None
    for _ in range(3):
        await bench.fetch("/echo", "POST", b"x" * 100_000)
        await bench.fetch("/status/204")
        await bench.fetch("/status/200", "HEAD")
    assert bench.server.accepted == 1, f"{bench.server.accepted} connections were made where one would do"

    exchange = await bench.open("/begin")
    await exchange.aclose()
    await bench.server.wait_open(0)


async def _closing(bench: _Bench) -> None:
    """Aclose ends open exchanges and pending calls with AlreadyClosedError, and does so again and again."""
    begun = await bench.open("/begin")
    assert await begun.receive() == b"begun"
    waiting = await bench.open("/begin/waiting")
    assert await waiting.receive() == b"begun"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_raised, AlreadyClosedError, lambda: bench.open("/hold"))
        tasks.start_soon(_raised, AlreadyClosedError, waiting.receive)
        await bench.app.wait_seen(3)
        await anyio.wait_all_tasks_blocked()
        await bench.transport.aclose()

    await bench.transport.aclose()
    await bench.app.wait_gone("/begin")
    await bench.app.wait_gone("/begin/waiting")
    await bench.app.wait_gone("/hold")
    await _raised(AlreadyClosedError, begun.receive)
    await _raised(AlreadyClosedError, lambda: bench.open("/echo"))
    if bench.server is not None:
        await bench.server.wait_open(0)


async def _closing_unused(bench: _Bench) -> None:
    """A transport that was never used can be closed."""
    await bench.transport.aclose()


#: (check, whether it is about connections).
CHECKS: tuple[tuple[Callable[[_Bench], Awaitable[None]], bool], ...] = (
    (_types, False),
    (_requests, False),
    (_bodies, False),
    (_iterables, False),
    (_failing_iterables, False),
    (_odd_iterables, False),
    (_answers, False),
    (_bodiless_answers, False),
    (_streaming, False),
    (_large_answers, False),
    (_early_close, False),
    (_other_tasks, False),
    (_busy, False),
    (_cancelled_opens, False),
    (_cancelled_receives, False),
    (_cancelled_before, False),
    (_concurrency, False),
    (_silence, False),
    (_cut_bodies, False),
    (_no_answer, True),
    (_no_answer_on_a_reused_connection, True),
    (_no_server, True),
    (_reuse, True),
    (_closing, False),
    (_closing_unused, False),
)
