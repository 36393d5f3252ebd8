"""What is left of clients that break off in every possible way: nothing (server 16, issue: "Fuzz", "Security")."""

import gc
import random
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from durable_streams.server import DurableStreamsApp, MemoryStore, Server, SQLiteStore
from durable_streams.server._connection import Connection
from durable_streams.server._exchange import Exchange

HEAD = b"%b /v1/stream/%b HTTP/1.1\r\nHost: s\r\nContent-Type: text/plain\r\n%b\r\n"
PRODUCER = b"Producer-Id: p\r\nProducer-Epoch: 0\r\nProducer-Seq: %d\r\n"
RESET = b"\1\0\0\0\0\0\0\0"  # of SO_LINGER: leave without a word


def a_request(chance: random.Random) -> bytes:
    """Something that a client may send, good or bad."""
    path = chance.choice([b"a", b"b"])
    body = b"x" * chance.choice([0, 1, 300, 20_000, 60_000])
    length = b"Content-Length: %d\r\n" % len(body)
    match chance.randrange(10):
        case 0:
            return HEAD % (b"PUT", path, b"")
        case 1 | 2:
            return HEAD % (b"POST", path, length) + body
        case 3:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return HEAD % (b"POST", path, b"Transfer-Encoding: chunked\r\n") + chunk + b"0\r\n\r\n"
        case 4 | 5:
            live = chance.choice([b"long-poll", b"sse"])
            return HEAD % (b"GET", path + b"?offset=%b&live=%b" % (chance.choice([b"-1", b"now"]), live), b"")
        case 6:
            return HEAD % (b"POST", path, length + b"Expect: 100-continue\r\n") + body
        case 7:
            return HEAD % (b"POST", path, length + b"Connection: upgrade\r\nUpgrade: h2c\r\n") + body
        case 8:
            return HEAD % (b"POST", path, length + PRODUCER % chance.randrange(3)) + body
        case _:
            return chance.randbytes(chance.randrange(100))


def alive() -> int:
    gc.collect()
    return sum(isinstance(each, Connection | Exchange) for each in gc.get_objects())


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_left_of_clients_that_break_off(kind: str, seed: int, tmp_path: Path) -> None:
    chance, before = random.Random(seed), alive()
    app = DurableStreamsApp(
        MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "store.db"),
        long_poll_timeout=3600,
        sse_max_age=3600,
        max_append_bytes=50_000,
    )
    with Server(app) as server:
        url = urlsplit(server.base_url)
        answers = b""
        for _ in range(60):
            data = b"".join(a_request(chance) for _ in range(chance.randrange(1, 6)))
            if chance.random() < 0.4:
                data = data[: chance.randrange(len(data) + 1)]
            with socket.create_connection((url.hostname or "", url.port or 0), timeout=0.02) as client:
                try:
                    client.sendall(data)
                    if chance.random() < 0.3:
                        client.shutdown(socket.SHUT_WR)
                    while chance.random() < 0.7 and (received := client.recv(1 << 16)):
                        answers += received
                except OSError:
                    pass  # refused in the middle of it, or nothing comes
                if chance.random() < 0.3:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        runner = server._runner
        assert runner is not None
        state = runner.server_state

        def left() -> dict[str, int]:
            return {
                "connections": len(state.connections),
                "tasks": len(state.tasks),
                "requests": app.in_progress,
                "readers": app.readers.open,
                "events": len(app.events),
                "waits": len(app.waits._scopes),
                "producers": len(app.arrivals._uploading) + len(app.arrivals._moved),
            }

        deadline = time.monotonic() + 20
        while any(left().values()) or alive() > before + 2:  # what the event loop has just had in hand
            assert time.monotonic() < deadline, (left(), alive())
            time.sleep(0.01)

    assert b"HTTP/1.1 20" in answers
    assert b"HTTP/1.1 500" not in answers
