"""Streams that are awaited, and the connections beneath them: against a server played by hand."""

import errno
import math
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import h2.events
import h2.exceptions
import h2.settings
import pytest
import trio.testing
import trustme

from durable_streams._transport.base import Timeouts
from durable_streams.errors import BusyResourceError, InvalidArgumentError
from durable_streams.s2._h2 import frames, wire
from durable_streams.s2._h2.pool import Duplex, H2Pool
from durable_streams.s2.errors import S2ConnectionError, S2SessionClosedError, S2TimeoutError

from .peer import PATIENCE, Listener, Peer, listening

pytestmark = pytest.mark.anyio

LIMITS = Timeouts(connect=PATIENCE, write=None, read=PATIENCE)
Codes = h2.settings.SettingCodes


@asynccontextmanager
async def connected(settings: dict[int, int] | None = None, **options: Any) -> AsyncIterator[tuple[H2Pool, Listener]]:
    with anyio.fail_after(3 * PATIENCE):
        async with listening(settings) as listener, H2Pool(**options) as pool:
            yield pool, listener


async def both(client: Awaitable[Any], server: Awaitable[Any]) -> tuple[Any, Any]:
    """Run the two sides of a step beside each other."""
    results: dict[str, Any] = {}

    async def run(name: str, step: Awaitable[Any]) -> None:
        results[name] = await step

    async with anyio.create_task_group() as group:
        group.start_soon(run, "client", client)
        group.start_soon(run, "server", server)
    return results["client"], results["server"]


async def first_stream(pool: H2Pool, listener: Listener, *, body: bool = False) -> tuple[Duplex, Peer]:
    """Open a stream on a new connection; the peer has seen the request."""
    opening = pool.open("POST" if body else "GET", f"{listener.url}/path?q=1", {"x": "y"}, body=body, timeouts=LIMITS)
    duplex, peer = await both(opening, listener.peer())
    await peer.expect(h2.events.RequestReceived)
    return duplex, peer


async def body_of(duplex: Duplex) -> bytes:
    pieces = []
    while piece := await duplex.receive():
        pieces.append(piece)
    return b"".join(pieces)


async def settled(condition: Callable[[], bool]) -> None:
    """Wait for something that the other tasks bring about."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.lowlevel.checkpoint()


def has_unread(duplex: Duplex, size: int) -> bool:
    return duplex._size == size


def connections(pool: H2Pool) -> list[Any]:
    return [connection for site in pool._sites.values() for connection in site.connections]


# -- One exchange ------------------------------------------------------------------------------------------


async def test_a_request_and_its_answer() -> None:
    async with connected() as (pool, listener):
        opening = pool.open("POST", f"{listener.url}/a%20b?q=1", {"x-name": "value"}, body=True, timeouts=LIMITS)
        duplex, peer = await both(opening, listener.peer())
        request = await peer.expect(h2.events.RequestReceived)
        await duplex.send(b"hello ")
        await duplex.send(b"world")
        await duplex.finish()
        received = await peer.body(1, 11)
        await peer.expect(h2.events.StreamEnded)
        await peer.answer(1, b"answer")

        assert dict(request.headers) == {
            ":method": "POST",
            ":scheme": "http",
            ":authority": listener.url.removeprefix("http://"),
            ":path": "/a%20b?q=1",
            "x-name": "value",
        }
        assert received == b"hello world"
        assert await duplex.head() == (200, {"x-from": "peer"})
        assert await body_of(duplex) == b"answer"
        assert await duplex.receive() == b""
        await duplex.aclose()


async def test_an_answer_may_begin_before_the_request_has_ended() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener, body=True)
        await peer.answer(1)
        status, _ = await duplex.head()
        for number in range(3):
            await duplex.send(b"ping%d" % number)
            assert await peer.body(1, 5) == b"ping%d" % number
            await peer.data(1, b"pong%d" % number)
            assert await duplex.receive() == b"pong%d" % number
        await duplex.finish()
        await peer.expect(h2.events.StreamEnded)
        await peer.data(1, b"", end=True)

        assert status == 200
        assert await duplex.receive() == b""


async def test_a_request_without_a_body_ends_with_its_head() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener)
        await peer.expect(h2.events.StreamEnded)
        await peer.answer(1, b"")

        assert await body_of(duplex) == b""
        await duplex.finish()  # has ended already
        with pytest.raises(S2ConnectionError, match="the server ended the exchange"):
            await duplex.send(b"x")


async def test_sending_after_the_end_of_the_request_is_refused() -> None:
    async with connected() as (pool, listener):
        duplex, _ = await first_stream(pool, listener, body=True)
        await duplex.finish()
        await duplex.finish()

        with pytest.raises(S2SessionClosedError, match="finished"):
            await duplex.send(b"x")


async def test_small_pieces_are_received_together_and_large_ones_as_they_came() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener)
        await peer.answer(1)
        for _ in range(20):
            peer.h2.send_data(1, b"small")
        await peer.flush()
        await settled(lambda: duplex._size == 100)
        together = await duplex.receive()
        for _ in range(5):
            peer.h2.send_data(1, bytes(16_384))
        peer.h2.end_stream(1)
        await peer.flush()
        await settled(lambda: duplex._ended)

        assert together == b"small" * 20
        assert len(await duplex.receive()) == 16_384
        assert len(await body_of(duplex)) == 4 * 16_384


# -- Flow control ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(), (5, 7, 40_000, 40_001, 90_000)])
async def test_a_sender_waits_for_the_window_and_goes_on(cuts: tuple[int, ...]) -> None:
    async with connected({Codes.INITIAL_WINDOW_SIZE: 1000}) as (pool, listener):
        duplex, peer = await first_stream(pool, listener, body=True)
        payload = bytes(range(256)) * 400
        pieces = [payload[start:stop] for start, stop in zip((0, *cuts), (*cuts, len(payload)), strict=True)]

        _, received = await both(duplex.send(*pieces), peer.body(1, len(payload)))

        assert received == payload


async def test_a_window_of_zero_is_back_pressure_until_settings_open_it() -> None:
    async with connected({Codes.INITIAL_WINDOW_SIZE: 0}) as (pool, listener):
        duplex, peer = await first_stream(pool, listener, body=True)
        async with anyio.create_task_group() as group:
            group.start_soon(duplex.send, b"patience")
            await anyio.wait_all_tasks_blocked()
            before = duplex.sent_any
            peer.h2.update_settings({Codes.INITIAL_WINDOW_SIZE: 100})
            await peer.flush()

            assert await peer.body(1, 8) == b"patience"
        assert not before
        assert duplex.sent_any


async def test_a_socket_that_takes_no_more_holds_senders_back_and_loses_nothing() -> None:
    huge = {Codes.INITIAL_WINDOW_SIZE: frames.LARGEST_WINDOW}
    async with connected(huge) as (pool, listener):
        duplex, peer = await first_stream(pool, listener, body=True)
        peer.h2.increment_flow_control_window(1 << 30)
        await peer.flush()
        [connection] = connections(pool)
        connection._wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        await settled(lambda: connection._core._send_window > 1 << 29)
        chunk = bytes(range(256)) * 1024
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(16):
                await duplex.send(chunk)
                sent += 1

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await settled(lambda: connection._wire.blocked)
            await anyio.wait_all_tasks_blocked()
            held = sent
            received = await peer.body(1, 16 * len(chunk))

        assert held < 16
        assert received == chunk * 16


async def test_two_senders_share_a_blocked_connection() -> None:
    async with connected({Codes.INITIAL_WINDOW_SIZE: 500_000}) as (pool, listener):
        first, peer = await first_stream(pool, listener, body=True)
        second = await pool.open("POST", listener.url, {}, body=True, timeouts=LIMITS)
        got = {1: 0, 3: 0}

        async def serve() -> None:
            while sum(got.values()) < 400_000:
                event = await peer.expect(h2.events.DataReceived)
                got[event.stream_id] += len(event.data)
                peer.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                await peer.flush()

        async with anyio.create_task_group() as group:
            group.start_soon(first.send, bytes(200_000))
            group.start_soon(second.send, bytes(200_000))
            group.start_soon(serve)

        assert got == {1: 200_000, 3: 200_000}


async def test_a_reader_that_stands_still_does_not_silence_another_stream() -> None:
    async with connected(window=100_000) as (pool, listener):
        slow, peer = await first_stream(pool, listener)
        quick = await pool.open("GET", listener.url, {}, timeouts=LIMITS)
        await peer.expect(h2.events.RequestReceived)
        await peer.answer(1)
        await peer.answer(3)

        async def fill(stream_id: int, size: int) -> None:
            while size:
                while not (room := min(peer.h2.local_flow_control_window(stream_id), 16_384, size)):
                    await peer.expect(h2.events.WindowUpdated)
                await peer.data(stream_id, bytes(room))
                size -= room

        await fill(1, 100_000)
        await settled(lambda: slow._size == 100_000)
        got = 0
        async with anyio.create_task_group() as group:
            group.start_soon(fill, 3, 300_000)
            while got < 300_000:
                got += len(await quick.receive())

        assert got == 300_000
        assert peer.h2.local_flow_control_window(1) == 0
        assert len(await slow.receive()) == 16_384


async def test_many_abandoned_streams_do_not_stall_the_pool() -> None:
    async with connected(window=65_535) as (pool, listener):
        duplex, peer = await first_stream(pool, listener)
        for number in range(30):
            stream_id = 2 * number + 1
            await peer.answer(stream_id)
            await peer.data(stream_id, bytes(10_000))
            await duplex.head()
            await settled(partial(has_unread, duplex, 10_000))
            await duplex.aclose()
            reset = await peer.expect(h2.events.StreamReset)
            assert (reset.stream_id, reset.error_code) == (stream_id, frames.ErrorCode.CANCEL)
            duplex = await pool.open("GET", listener.url, {}, timeouts=LIMITS)
            await peer.expect(h2.events.RequestReceived)
        await peer.answer(61, b"x" * 16_000)

        assert len(await body_of(duplex)) == 16_000
        assert listener.accepted == 1


# -- Reuse and limits --------------------------------------------------------------------------------------


async def test_a_connection_is_used_again() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener)
        await peer.answer(1, b"one")
        assert await body_of(duplex) == b"one"
        await duplex.aclose()
        again = await pool.open("GET", listener.url, {}, timeouts=LIMITS)
        await peer.expect(h2.events.RequestReceived)
        await peer.answer(3, b"two")

        assert await body_of(again) == b"two"
        assert listener.accepted == 1
        assert repr(pool) == "<H2Pool 1 connections, 1 streams>"


async def test_one_stream_more_than_the_limit_makes_a_second_connection() -> None:
    async with connected({Codes.MAX_CONCURRENT_STREAMS: 2}) as (pool, listener):
        first, _ = await first_stream(pool, listener)
        await pool.open("GET", listener.url, {}, timeouts=LIMITS)
        third, second_peer = await both(pool.open("GET", listener.url, {}, timeouts=LIMITS), listener.peer())
        await second_peer.expect(h2.events.RequestReceived)
        await first.aclose()
        await pool.open("GET", listener.url, {}, timeouts=LIMITS)

        assert listener.accepted == 2
        assert sorted(connection.streams for connection in connections(pool)) == [1, 2]
        await third.aclose()


async def test_many_at_once_wait_for_one_connection() -> None:
    async with connected() as (pool, listener):
        streams: list[Duplex] = []

        async def open_one() -> None:
            streams.append(await pool.open("GET", listener.url, {}, timeouts=LIMITS))

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(open_one)
            await listener.peer()

        assert len(streams) == 50
        assert listener.accepted == 1


async def test_a_server_that_takes_no_streams_for_now_is_waited_for() -> None:
    async with connected({Codes.MAX_CONCURRENT_STREAMS: 0}) as (pool, listener):
        async with anyio.create_task_group() as group:
            opened: list[Duplex] = []

            async def open_one() -> None:
                opened.append(await pool.open("GET", listener.url, {}, timeouts=LIMITS))

            group.start_soon(open_one)
            peer = await listener.peer()
            await peer.expect(h2.events.RemoteSettingsChanged)
            await anyio.wait_all_tasks_blocked()
            assert not opened
            await peer.raw(frames.settings_frame({frames.Setting.MAX_CONCURRENT_STREAMS: 5}))

        assert len(opened) == 1
        assert listener.accepted == 1


async def test_identifiers_that_run_out_make_a_new_connection() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener)
        [connection] = connections(pool)
        connection._core._next_id = frames.LARGEST_STREAM_ID
        await pool.open("GET", listener.url, {}, timeouts=LIMITS)
        await both(pool.open("GET", listener.url, {}, timeouts=LIMITS), listener.peer())
        await peer.answer(1, b"the old one goes on")

        assert await body_of(duplex) == b"the old one goes on"
        assert listener.accepted == 2


async def test_a_retired_connection_gets_no_new_streams_and_closes_with_its_last() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener)
        pool.retire(duplex)
        _, second = await both(pool.open("GET", listener.url, {}, timeouts=LIMITS), listener.peer())
        await second.expect(h2.events.RequestReceived)
        await peer.answer(1, b"last words")

        assert await body_of(duplex) == b"last words"
        await duplex.aclose()
        await peer.read_until_closed()
        assert any(isinstance(event, h2.events.ConnectionTerminated) for event in peer.events)
        await settled(lambda: len(connections(pool)) == 1)


async def test_retiring_an_idle_connection_closes_it() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener)
        await peer.answer(1, b"")
        await body_of(duplex)
        await duplex.aclose()
        pool.retire(duplex)

        await peer.read_until_closed()
        await settled(lambda: not connections(pool))


# -- The server goes ---------------------------------------------------------------------------------------


async def test_streams_go_on_after_a_farewell_and_new_ones_go_elsewhere() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener, body=True)
        await peer.answer(1)
        await peer.raw(frames.goaway_frame(frames.LARGEST_STREAM_ID, 0) + frames.ping_frame(b"shutdown"))
        pong = await peer.expect(h2.events.PingAckReceived)
        await peer.raw(frames.goaway_frame(1, 0))
        await duplex.send(b"still")
        assert await peer.body(1, 5) == b"still"
        _, second = await both(pool.open("GET", listener.url, {}, timeouts=LIMITS), listener.peer())
        await second.expect(h2.events.RequestReceived)
        await peer.data(1, b"going", end=True)

        assert pong.ping_data == b"shutdown"
        assert await body_of(duplex) == b"going"
        await duplex.aclose()
        await peer.read_until_closed()


async def test_a_farewell_refuses_the_streams_above_it() -> None:
    async with connected() as (pool, listener):
        first, peer = await first_stream(pool, listener)
        second = await pool.open("POST", listener.url, {}, body=True, timeouts=LIMITS)
        await second.send(b"x")
        await peer.expect(h2.events.DataReceived)
        await peer.raw(frames.goaway_frame(1, 0))

        with pytest.raises(S2ConnectionError, match="did not look at") as raised:
            await second.head()
        assert (raised.value.refused, raised.value.definite, raised.value.retryable) == (True, True, True)
        with pytest.raises(S2ConnectionError, match="did not look at"):
            await second.send(b"y")
        await peer.answer(1, b"served")
        assert await body_of(first) == b"served"


async def test_an_idle_connection_closes_when_the_server_says_farewell() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener)
        await peer.answer(1, b"")
        await body_of(duplex)
        await duplex.aclose()
        await peer.raw(frames.goaway_frame(1, 0))

        await peer.read_until_closed()
        await settled(lambda: not connections(pool))


async def test_a_refused_stream_is_definite_and_the_connection_stays() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener, body=True)
        peer.h2.reset_stream(1, frames.ErrorCode.REFUSED_STREAM)
        await peer.flush()

        with pytest.raises(S2ConnectionError, match="REFUSED_STREAM") as raised:
            await duplex.receive()
        assert raised.value.refused
        await pool.open("GET", listener.url, {}, timeouts=LIMITS)
        assert listener.accepted == 1


async def test_a_reset_comes_after_what_was_received_before_it() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener, body=True)
        await peer.answer(1)
        peer.h2.send_data(1, b"before")
        peer.h2.reset_stream(1, frames.ErrorCode.INTERNAL_ERROR)
        await peer.flush()
        await settled(lambda: duplex._fault is not None)

        assert await duplex.receive() == b"before"
        with pytest.raises(S2ConnectionError, match="INTERNAL_ERROR") as raised:
            await duplex.receive()
        assert (raised.value.phase, raised.value.refused, raised.value.definite) == ("body", False, False)


async def test_a_reset_behind_the_end_of_the_answer_is_no_failure_of_the_answer() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener, body=True)
        await peer.answer(1, b"terminal frame")
        await peer.raw(frames.reset_frame(1, frames.ErrorCode.NO_ERROR))
        await settled(lambda: duplex._fault is not None)

        with pytest.raises(S2ConnectionError, match="NO_ERROR"):
            await duplex.send(b"more")
        await duplex.finish()
        assert await body_of(duplex) == b"terminal frame"


async def test_a_sender_that_waits_hears_of_the_end_of_the_answer() -> None:
    async with connected({Codes.INITIAL_WINDOW_SIZE: 0}) as (pool, listener):
        duplex, peer = await first_stream(pool, listener, body=True)
        async with anyio.create_task_group() as group:

            async def send() -> None:
                with pytest.raises(S2ConnectionError, match="ended the exchange"):
                    await duplex.send(b"never")

            group.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            await peer.answer(1, b"enough")

        assert await body_of(duplex) == b"enough"


@pytest.mark.parametrize("answered", [False, True])
async def test_a_server_that_hangs_up_breaks_its_streams(answered: bool) -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener, body=True)
        if answered:
            await peer.answer(1)
            peer.h2.send_data(1, b"partial")
            await peer.flush()
        await peer.stream.aclose()

        if answered:
            assert await duplex.receive() == b"partial"
        with pytest.raises(S2ConnectionError) as raised:
            await duplex.receive()
        assert raised.value.phase == ("body" if answered else "sent")
        assert not raised.value.definite
        with pytest.raises(S2ConnectionError):
            await duplex.send(b"x")
        await settled(lambda: not any(connection.alive for connection in connections(pool)))


async def test_the_last_words_of_a_server_that_hangs_up_are_heard() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener, body=True)
        await peer.answer(1)
        await peer.data(1, b"terminal", end=True)
        await peer.stream.aclose()
        with anyio.move_on_after(PATIENCE), pytest.raises(S2ConnectionError):
            while True:
                await duplex.send(bytes(1000))

        assert await duplex.head() == (200, {"x-from": "peer"})
        assert await body_of(duplex) == b"terminal"


async def test_a_server_that_breaks_the_protocol_is_told_and_left() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener)
        await peer.raw(b"\0\0\x05\x04\0\0\0\0\0nonsense")

        with pytest.raises(S2ConnectionError, match="broke HTTP/2: SETTINGS of 5 bytes"):
            await duplex.head()
        goodbye = await peer.expect(h2.events.ConnectionTerminated)
        assert goodbye.error_code == frames.ErrorCode.FRAME_SIZE_ERROR
        await peer.read_until_closed()


async def test_words_in_the_farewell_are_shown_when_the_connection_ends() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener)
        await peer.raw(frames.goaway_frame(1, frames.ErrorCode.ENHANCE_YOUR_CALM, b"too many pings"))
        await peer.stream.aclose()

        with pytest.raises(S2ConnectionError, match=r"after GOAWAY \(ENHANCE_YOUR_CALM: too many pings\)"):
            await duplex.head()


# -- Connecting --------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_a_refused_connection_is_definite() -> None:
    async with H2Pool() as pool:
        with pytest.raises(S2ConnectionError, match="cannot connect") as raised:
            await pool.open("GET", f"http://127.0.0.1:{free_port()}", {}, timeouts=LIMITS)

    assert (raised.value.phase, raised.value.refused, raised.value.definite) == ("connect", True, True)


async def test_a_name_that_does_not_exist_is_told_with_its_reason() -> None:
    async with H2Pool() as pool:
        with pytest.raises(S2ConnectionError, match=r"nowhere\.invalid.*cannot connect \(.+\)") as raised:
            await pool.open("GET", "http://nowhere.invalid", {}, timeouts=LIMITS)

    assert isinstance(raised.value.__cause__, socket.gaierror)
    assert (raised.value.phase, raised.value.retryable) == ("connect", True)


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
async def test_what_can_be_no_name_is_told_so(host: str) -> None:
    async with H2Pool() as pool:
        with pytest.raises(S2ConnectionError, match="cannot connect") as raised:
            await pool.open("GET", f"http://{host}", {}, timeouts=LIMITS)

    assert isinstance(raised.value.__cause__, socket.gaierror)


@pytest.mark.parametrize("url", ["ftp://example", "http://", "http://x:99999/", "http://exämple/", "example"])
async def test_a_url_that_cannot_work_is_refused(url: str) -> None:
    async with H2Pool() as pool:
        with pytest.raises(InvalidArgumentError, match="url"):
            await pool.open("GET", url, {})


async def test_headers_that_cannot_work_are_refused() -> None:
    async with connected() as (pool, listener):
        await first_stream(pool, listener)
        with pytest.raises(InvalidArgumentError, match="header"):
            await pool.open("GET", listener.url, {"x": "a\nb"}, timeouts=LIMITS)


async def test_the_limit_for_connecting_covers_the_servers_settings() -> None:
    async with connected() as (pool, listener):
        with pytest.raises(S2TimeoutError, match=r"no connection within 0\.05 s") as raised:
            await pool.open("GET", listener.url, {}, timeouts=Timeouts(connect=0.05))

        peer = await listener.peer(greet=False)
        await peer.read_until_closed()
        assert raised.value.definite
        assert not connections(pool)


async def test_a_server_that_speaks_http_1_is_told_apart() -> None:
    async with connected() as (pool, listener):

        async def serve() -> None:
            peer = await listener.peer(greet=False)
            await peer.stream.send(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")

        with pytest.raises(S2ConnectionError, match="does not speak HTTP/2") as raised:
            async with anyio.create_task_group() as group:
                group.start_soon(serve)
                try:
                    await pool.open("GET", listener.url, {}, timeouts=LIMITS)
                except S2ConnectionError as error:
                    found = error
            raise found
        assert raised.value.definite


async def test_a_server_that_hangs_up_instead_of_greeting_is_definite() -> None:
    async with connected() as (pool, listener):

        async def serve() -> None:
            peer = await listener.peer(greet=False)
            await peer.stream.aclose()

        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            with pytest.raises(S2ConnectionError) as raised:
                await pool.open("GET", listener.url, {}, timeouts=LIMITS)

    assert (raised.value.phase, raised.value.definite) == ("connect", True)


async def test_a_cancelled_dial_is_taken_over_by_one_who_waits_for_it() -> None:
    async with connected() as (pool, listener):
        scope = anyio.CancelScope()
        opened: list[Duplex] = []

        async def dial() -> None:
            with scope:
                await pool.open("GET", listener.url, {}, timeouts=LIMITS)

        async def wait() -> None:
            opened.append(await pool.open("GET", listener.url, {}, timeouts=LIMITS))

        async with anyio.create_task_group() as group:
            group.start_soon(dial)
            await listener.peer(greet=False)
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            peer = await listener.peer()
            await peer.expect(h2.events.RequestReceived)

        assert len(opened) == 1
        assert listener.accepted == 2


async def test_those_who_wait_for_a_dial_fail_with_it() -> None:
    failures: list[S2ConnectionError] = []
    async with connected() as (pool, listener):

        async def open_one() -> None:
            with pytest.raises(S2ConnectionError) as raised:
                await pool.open("GET", listener.url, {}, timeouts=LIMITS)
            failures.append(raised.value)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(open_one)
            peer = await listener.peer(greet=False)
            await anyio.wait_all_tasks_blocked()
            await peer.stream.aclose()

        assert len(failures) == 5
        assert len(set(map(id, failures))) == 5
        assert listener.accepted == 1


async def test_the_first_address_that_answers_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected() as (pool, listener):
        port = int(listener.url.rpartition(":")[2])

        async def lookup(*_: Any, **__: Any) -> list[Any]:
            dead = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
            return [dead, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(anyio, "getaddrinfo", lookup)
        await both(pool.open("GET", f"http://two.example:{port}", {}, timeouts=LIMITS), listener.peer())

        assert listener.accepted == 1


async def test_addresses_that_all_fail_give_the_reason_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()

    async def lookup(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{number}", port)) for number in (1, 2, 3)]

    monkeypatch.setattr(anyio, "getaddrinfo", lookup)
    async with H2Pool() as pool:
        with pytest.raises(S2ConnectionError) as raised:
            await pool.open("GET", f"http://three.example:{port}", {}, timeouts=LIMITS)

    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == errno.ECONNREFUSED


def test_families_take_turns() -> None:
    v6, v4 = socket.AF_INET6, socket.AF_INET

    mixed = wire._interleaved([(v6, "a"), (v6, "b"), (v6, "c"), (v4, "d")])

    assert [address for _, address in mixed] == ["a", "d", "b", "c"]


# -- TLS ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA, *protocols: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    server.set_alpn_protocols(list(protocols))
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_bodies_pass_through_tls(authority: trustme.CA, version: ssl.TLSVersion) -> None:
    server, client = contexts(authority, "h2")
    server.maximum_version = version
    payload = bytes(range(256)) * 4000
    with anyio.fail_after(3 * PATIENCE):
        async with listening(tls=server) as listener, H2Pool(ssl_context=client) as pool:
            duplex, peer = await first_stream(pool, listener, body=True)
            _, received = await both(duplex.send(payload), peer.body(1, len(payload)))
            await duplex.finish()
            await peer.answer(1)

            async def serve() -> None:
                for start in range(0, len(payload), 16_384):
                    await peer.data(1, payload[start : start + 16_384])
                peer.h2.end_stream(1)
                await peer.flush()

            async with anyio.create_task_group() as group:
                group.start_soon(serve)
                echoed = await body_of(duplex)
            await peer.stream.aclose()
            await settled(lambda: not any(connection.alive for connection in connections(pool)))

    assert received == payload
    assert echoed == payload


async def test_a_tls_server_without_http2_is_refused_for_good(authority: trustme.CA) -> None:
    server, client = contexts(authority, "http/1.1")
    async with listening(tls=server) as listener, H2Pool(ssl_context=client) as pool:
        with pytest.raises(S2ConnectionError, match="does not offer HTTP/2") as raised:
            await pool.open("GET", listener.url, {}, timeouts=LIMITS)

    assert (raised.value.phase, raised.value.retryable, raised.value.definite) == ("connect", False, True)


async def test_a_certificate_that_is_not_trusted_is_refused_for_good(authority: trustme.CA) -> None:
    server, _ = contexts(authority, "h2")
    async with listening(tls=server) as listener, H2Pool() as pool:
        with pytest.raises(S2ConnectionError, match="certificate is not accepted") as raised:
            await pool.open("GET", listener.url, {}, timeouts=LIMITS)

    assert not raised.value.retryable


async def test_a_port_without_tls_is_told_apart() -> None:
    async with connected() as (pool, listener):

        async def serve() -> None:
            peer = await listener.peer(greet=False)
            await peer.stream.send(b"HTTP/1.1 400 no TLS here\r\n\r\n")

        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            with pytest.raises(S2ConnectionError, match="TLS failed") as raised:
                await pool.open("GET", listener.url.replace("http:", "https:"), {}, timeouts=LIMITS)

    assert raised.value.definite


# -- Limits of time ----------------------------------------------------------------------------------------


async def test_silence_ends_waiting_but_not_the_stream() -> None:
    async with connected() as (pool, listener):
        opening = pool.open("POST", listener.url, {}, body=True, timeouts=Timeouts(connect=PATIENCE, read=0.02))
        duplex, peer = await both(opening, listener.peer())
        with pytest.raises(S2TimeoutError, match=r"the server was silent for 0\.02 s") as raised:
            await duplex.head()
        await peer.expect(h2.events.RequestReceived)
        await peer.answer(1, b"late")
        await settled(lambda: duplex._ended)

        assert (raised.value.phase, raised.value.definite) == ("sent", False)
        assert await duplex.receive() == b"late"


async def test_a_server_that_takes_nothing_is_not_waited_for_for_ever() -> None:
    async with connected({Codes.INITIAL_WINDOW_SIZE: 0}) as (pool, listener):
        opening = pool.open("POST", listener.url, {}, body=True, timeouts=Timeouts(connect=PATIENCE, write=0.02))
        duplex, _ = await both(opening, listener.peer())

        with pytest.raises(S2TimeoutError, match="took nothing"):
            await duplex.send(b"x")
        assert not duplex.sent_any


# -- Misuse and cancellation -------------------------------------------------------------------------------


async def test_two_tasks_in_one_direction_are_refused() -> None:
    async with connected({Codes.INITIAL_WINDOW_SIZE: 0}) as (pool, listener):
        duplex, _ = await first_stream(pool, listener, body=True)
        async with anyio.create_task_group() as group:
            group.start_soon(duplex.receive)
            group.start_soon(duplex.send, b"x")
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(BusyResourceError):
                await duplex.receive()
            with pytest.raises(BusyResourceError):
                await duplex.send(b"x")
            group.cancel_scope.cancel()


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener)
        await peer.answer(1)
        taken = []

        async def receive(scope: anyio.CancelScope) -> None:
            with scope:
                taken.append(await duplex.receive())

        for turns in range(8):
            scope = anyio.CancelScope()
            async with anyio.create_task_group() as group:
                group.start_soon(receive, scope)
                await anyio.wait_all_tasks_blocked()
                await peer.data(1, b"abc")
                for _ in range(turns):  # a little later each time: before, while and after the piece is handed over
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        await peer.data(1, b"", end=True)

        assert b"".join(taken) + await body_of(duplex) == b"abc" * 8


async def serve_echoes(listener: Listener) -> None:
    """Answer every request on every connection with its own body."""

    async def serve(peer: Peer) -> None:
        await peer.greet()
        try:
            while True:
                for event in [*peer.events, *peer.h2.receive_data(await peer.stream.receive())]:
                    match event:
                        case h2.events.RequestReceived():
                            peer.h2.send_headers(event.stream_id, [(":status", "200")])
                        case h2.events.DataReceived():
                            peer.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                            with suppress(h2.exceptions.StreamClosedError):
                                peer.h2.send_data(event.stream_id, event.data)
                        case h2.events.StreamEnded():
                            with suppress(h2.exceptions.StreamClosedError):
                                peer.h2.end_stream(event.stream_id)
                await peer.flush()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return

    async with anyio.create_task_group() as group:
        while True:
            group.start_soon(serve, Peer(await listener.peers.receive(), listener.settings))


async def exchange(pool: H2Pool, url: str, payload: bytes) -> bytes:
    duplex = await pool.open("POST", url, {}, body=True, timeouts=LIMITS)
    answer = b""
    async with duplex, anyio.create_task_group() as group:

        async def send() -> None:
            for start in range(0, len(payload), 1500):
                await duplex.send(payload[start : start + 1500])
            await duplex.finish()

        group.start_soon(send)
        await duplex.head()
        answer = await body_of(duplex)
    return answer


@asynccontextmanager
async def echoing(settings: dict[int, int] | None = None) -> AsyncIterator[tuple[H2Pool, Listener]]:
    async with connected(settings) as (pool, listener), anyio.create_task_group() as group:
        group.start_soon(serve_echoes, listener)
        yield pool, listener
        group.cancel_scope.cancel()


async def test_cancelling_an_exchange_anywhere_leaves_nothing_behind() -> None:
    payload = bytes(range(256)) * 20
    async with echoing({Codes.INITIAL_WINDOW_SIZE: 1000, Codes.MAX_CONCURRENT_STREAMS: 5}) as (pool, listener):
        for turns in [*range(20), *range(20, 80, 5)]:
            scopes = [anyio.CancelScope() for _ in range(3)]

            async def cancelled(scope: anyio.CancelScope) -> None:
                with scope:
                    await exchange(pool, listener.url, payload)

            async with anyio.create_task_group() as exchanges:
                for scope in scopes:
                    exchanges.start_soon(cancelled, scope)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                for scope in scopes:
                    scope.cancel()
            with anyio.fail_after(PATIENCE):
                assert await exchange(pool, listener.url, payload) == payload

        for connection in connections(pool):
            assert (connection._streams, connection._core._streams, connection._waiting) == ({}, {}, set())


async def test_many_requests_leave_nothing_behind() -> None:
    async with echoing() as (pool, listener):
        for _ in range(100):
            assert await exchange(pool, listener.url, b"x") == b"x"

        [connection] = connections(pool)
        assert (connection._streams, connection._core._streams, connection._waiting) == ({}, {}, set())
        assert listener.accepted == 1


async def test_a_closed_stream_wakes_who_waits_in_it() -> None:
    async with connected({Codes.INITIAL_WINDOW_SIZE: 0}) as (pool, listener):
        duplex, peer = await first_stream(pool, listener, body=True)

        async def refused(call: Callable[[], Awaitable[Any]]) -> None:
            with pytest.raises(S2SessionClosedError, match="closed"):
                await call()

        async with anyio.create_task_group() as group:
            group.start_soon(refused, duplex.head)
            group.start_soon(refused, duplex.receive)
            group.start_soon(refused, lambda: duplex.send(b"x"))
            await anyio.wait_all_tasks_blocked()
            await duplex.aclose()
        await duplex.aclose()
        await refused(duplex.finish)

        assert (await peer.expect(h2.events.StreamReset)).error_code == frames.ErrorCode.CANCEL
        assert repr(duplex) == f"<Duplex POST {listener.url}/path: closed, 0 bytes unread>"


async def test_leaving_a_stream_gives_it_up_and_the_connection_stays() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener)
        with pytest.raises(KeyError):
            async with duplex:
                raise KeyError
        await peer.expect(h2.events.StreamReset)
        await pool.open("GET", listener.url, {}, timeouts=LIMITS)

        assert listener.accepted == 1


async def test_closing_the_pool_ends_everything_at_once() -> None:
    async with connected() as (pool, listener):
        duplex, peer = await first_stream(pool, listener)

        async def wait() -> None:
            with pytest.raises(S2SessionClosedError, match="the client was closed"):
                await duplex.head()

        async def dial() -> None:
            with pytest.raises(S2SessionClosedError):
                await pool.open("GET", listener.url.replace("127.0.0.1", "localhost"), {}, timeouts=LIMITS)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(dial)
            await listener.peer(greet=False)
            await anyio.wait_all_tasks_blocked()
            await pool.aclose()
        with pytest.raises(S2SessionClosedError):
            await pool.open("GET", listener.url, {}, timeouts=LIMITS)
        await pool.aclose()
        await peer.read_until_closed()

        assert repr(pool) == "<H2Pool closed>"


async def test_a_pool_lives_in_a_task_group_of_the_caller() -> None:
    with anyio.fail_after(3 * PATIENCE):
        async with listening() as listener, anyio.create_task_group() as group:
            pool = H2Pool()
            with pytest.raises(RuntimeError, match="not started"):
                await pool.open("GET", listener.url, {})
            await pool.start(group)
            with pytest.raises(RuntimeError, match="already"):
                await pool.start(group)
            duplex, peer = await first_stream(pool, listener)
            await peer.answer(1, b"x")
            assert await body_of(duplex) == b"x"
            await pool.aclose()


async def test_a_task_group_that_is_cancelled_takes_the_pool_with_it() -> None:
    pool = H2Pool()
    with anyio.fail_after(3 * PATIENCE):
        async with listening() as listener:
            async with anyio.create_task_group() as group:
                await pool.start(group)
                duplex, _ = await first_stream(pool, listener)
                group.cancel_scope.cancel()
            with pytest.raises(S2SessionClosedError):
                await duplex.head()
            with pytest.raises(S2SessionClosedError):
                await pool.open("GET", listener.url, {}, timeouts=LIMITS)


def test_a_pool_stays_in_the_run_of_the_loop_it_was_started_in() -> None:
    pool = H2Pool()

    async def start() -> None:
        async with anyio.create_task_group() as group:
            await pool.start(group)
            group.cancel_scope.cancel()

    async def use() -> None:
        with pytest.raises(RuntimeError, match="another run"):
            await pool.open("GET", "http://127.0.0.1", {})

    anyio.run(start)
    anyio.run(use)


async def test_the_bodys_own_exception_leaves_the_block_bare() -> None:
    async with listening() as listener:
        with pytest.raises(KeyError):
            async with H2Pool() as pool:
                await first_stream(pool, listener)
                raise KeyError


# -- Time --------------------------------------------------------------------------------------------------


def run_in_trios_fast_time(function: Callable[[], Awaitable[None]]) -> None:
    trio.run(function, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.fixture
def anyio_backend_name() -> str:
    return "trio"


def test_an_idle_connection_is_closed_after_its_time() -> None:
    async def scenario() -> None:
        async with listening() as listener, H2Pool() as pool:
            duplex, peer = await first_stream(pool, listener)
            await peer.answer(1, b"")
            await body_of(duplex)
            await duplex.aclose()
            start = anyio.current_time()
            while not any(isinstance(event, h2.events.ConnectionTerminated) for event in peer.events):
                try:
                    peer.events += peer.h2.receive_data(await peer.stream.receive())
                except anyio.EndOfStream:
                    break
            assert math.isclose(anyio.current_time() - start, 90.0, abs_tol=1.0)

    run_in_trios_fast_time(scenario)


def test_a_busy_connection_is_not_idle_however_long_it_takes() -> None:
    async def scenario() -> None:
        async with listening() as listener, H2Pool() as pool:
            duplex, peer = await first_stream(pool, listener)
            await anyio.sleep(1000)
            await peer.answer(1, b"at last")
            assert await duplex.receive() == b"at last"

    slow = Timeouts(connect=3.0, write=None, read=None)
    assert slow.read is None
    global LIMITS
    before, LIMITS = LIMITS, slow
    try:
        run_in_trios_fast_time(scenario)
    finally:
        LIMITS = before


def test_a_connection_that_fell_silent_is_asked_and_then_dropped() -> None:
    async def scenario() -> None:
        async with listening() as listener, H2Pool() as pool:
            silent, _ = await first_stream(pool, listener)
            other = await pool.open("GET", listener.url, {}, timeouts=LIMITS)
            await anyio.sleep(2)
            await silent.aclose()  # in silence: is there anybody?
            _, second = await both(pool.open("GET", listener.url, {}, timeouts=LIMITS), listener.peer())
            await second.expect(h2.events.RequestReceived)
            with pytest.raises(S2ConnectionError, match="no sign of life"):
                await other.head()
            assert len(connections(pool)) == 2 or listener.accepted == 2

    run_in_trios_fast_time(scenario)


def test_a_connection_that_answers_is_used_again() -> None:
    async def scenario() -> None:
        async with listening() as listener, H2Pool() as pool:
            first, peer = await first_stream(pool, listener)
            await anyio.sleep(2)
            await first.aclose()
            await peer.expect(h2.events.PingReceived)
            await settled(lambda: connections(pool)[0].room > 0)
            await anyio.sleep(10)
            await pool.open("GET", listener.url, {}, timeouts=LIMITS)
            assert listener.accepted == 1

    run_in_trios_fast_time(scenario)


def test_a_connection_that_cannot_be_written_to_is_heard_to_its_end_and_then_left() -> None:
    async def scenario() -> None:
        async with listening() as listener, H2Pool() as pool:
            duplex, peer = await first_stream(pool, listener, body=True)
            other = await pool.open("GET", listener.url, {}, timeouts=LIMITS)
            [connection] = connections(pool)
            connection._wire._sock.shutdown(socket.SHUT_WR)
            start = anyio.current_time()
            await duplex.send(b"into the void")
            assert connection.room == 0
            await peer.answer(1, b"last words")
            assert await body_of(duplex) == b"last words"
            with pytest.raises(S2ConnectionError, match="the connection broke") as raised:
                await other.head()
            assert isinstance(raised.value.__cause__, BrokenPipeError)
            assert math.isclose(anyio.current_time() - start, 1.0, abs_tol=0.1)

    run_in_trios_fast_time(scenario)
