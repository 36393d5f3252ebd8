"""A whole server with a SQLite store is ended again and again under load, and its clients go on as if nothing had been.

Eight producers append to three streams through the network, pipelined, while others follow these live, and create,
close, fork and delete; none of them is told of the end. `CRASH_ROUNDS` says how often the server ends. `CRASH_REPORT`
names a file that gets a line of figures for each test.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Literal

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from durable_streams import (
    BackoffOptions,
    DurableStream,
    DurableStreamError,
    IdempotentProducer,
    Receipt,
    Transport,
    open_transport,
)
from durable_streams.server import SQLiteStore

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs signals")]

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "2"))
ROOT = Path(__file__).parents[2]
PRODUCERS = 8
STREAMS = 3
#: Most messages of a producer that are not acknowledged yet.
WINDOW = 40
QUICK = BackoffOptions(initial_delay=0.02, max_delay=0.1, max_elapsed=None)
TYPE = "application/octet-stream"
LIVE: tuple[Literal["sse", "long-poll"], ...] = ("sse", "long-poll")
_ENTRY = re.compile(rb"p([0-9]+):([0-9]+):(\.*);")


def body(producer: int, number: int) -> bytes:
    return b"p%d:%d:%b;" % (producer, number, b"." * ((number * 7919) % (200_000 if number % 97 == 60 else 200)))


class Load:
    """What the clients do, and what they were told."""

    def __init__(self, url: str, transport: Transport, rng: random.Random) -> None:
        self.url = url
        self.ending = False
        self.ended = anyio.Event()
        self.acknowledged = [-1] * PRODUCERS
        self.sent = [0] * PRODUCERS
        self.followed: dict[str, bytes] = {}
        self.lives: dict[str, str] = {}  # what was last acknowledged of a path
        self.count = 0
        self._transport = transport
        self._rng = rng
        self._awaited = 0
        self._reached = anyio.Event()

    async def wait(self, more: int) -> None:
        """Wait for so many more acknowledgements."""
        self._awaited, self._reached = self.count + more, anyio.Event()
        await self._reached.wait()

    def _acknowledge(self) -> None:
        self.count += 1
        if self.count >= self._awaited:
            self._reached.set()

    def _handle(self, path: str) -> DurableStream:
        return DurableStream(f"{self.url}/{path}", content_type=TYPE, transport=self._transport, backoff_options=QUICK)

    async def run(self) -> None:
        """All clients, until `ending` is set, all that they accepted is stored, and followers have read it."""
        async with anyio.create_task_group() as followers:
            async with anyio.create_task_group() as group:
                for number in range(STREAMS):
                    await self._handle(f"shared{number}").create_or_connect()
                    for live in LIVE:
                        followers.start_soon(self.follow, f"shared{number}", live)
                for number in range(PRODUCERS):
                    group.start_soon(self.produce, number)
                group.start_soon(self.come_and_go)
            for number in range(STREAMS):
                await self._handle(f"shared{number}").close_stream()
        self.ended.set()

    async def follow(self, path: str, live: Literal["sse", "long-poll"]) -> None:
        """Read a stream live, from its beginning to its end."""
        content = bytearray()
        async with self._handle(path).stream(live=live) as response:
            async for batch in response.iter_batches(as_="bytes"):
                content += batch.data
        self.followed[f"{path} {live}"] = bytes(content)

    async def produce(self, number: int) -> None:
        """One producer for the whole test: it never learns an error, and never changes its epoch."""
        handle = self._handle(f"shared{number % STREAMS}")
        waiting: list[tuple[int, Receipt]] = []
        async with IdempotentProducer(handle, f"p{number}", retry=QUICK, linger=0.0, max_batch_items=3) as producer:
            while not self.ending:
                waiting.append((self.sent[number], await producer.append(body(number, self.sent[number]))))
                self.sent[number] += 1
                while len(waiting) >= WINDOW or (waiting and waiting[0][1].done):
                    await self._settle(number, *waiting.pop(0))
            await producer.flush()
            for seq, receipt in waiting:
                await self._settle(number, seq, receipt)

    async def _settle(self, number: int, seq: int, receipt: Receipt) -> None:
        await receipt.wait()
        assert seq == self.acknowledged[number] + 1
        self.acknowledged[number] = seq
        self._acknowledge()

    async def come_and_go(self) -> None:
        """Create, close, fork and delete; what was interrupted is asked for again."""
        number = 0
        while not self.ending:
            path = f"life{number}"
            number += 1
            handle = self._handle(path)
            async with handle:
                await handle.create_or_connect()
                self._note(path, "created")
                async with IdempotentProducer(handle, "closer", retry=QUICK) as closer:
                    await closer.append(b"first;")
                    await closer.close_stream(b"last;")
                self._note(path, "closed")
                await handle.fork(f"{self.url}/{path}/fork", offset=f"{0:016}_{6:016}")
                self._note(f"{path}/fork", "forked")
                if self._rng.random() < 0.5:
                    try:
                        await handle.delete()
                    except DurableStreamError as error:
                        if error.status not in (404, 410):  # which say that an earlier try had been carried out
                            raise
                    self._note(path, "gone")

    def _note(self, path: str, word: str) -> None:
        self.lives[path] = word
        self._acknowledge()

    async def audit(self) -> None:
        """Everything that was acknowledged is there, once and in order."""
        seen = [0] * PRODUCERS
        for number in range(STREAMS):
            content = await self._content(f"shared{number}")
            for live in LIVE:
                assert self.followed[f"shared{number} {live}"] == content, f"what came by {live} is not what there is"
            position = 0
            while position < len(content):
                entry = _ENTRY.match(content, position)
                assert entry is not None, f"shared{number} is torn at {position}"
                producer = int(entry[1])
                assert entry[0] == body(producer, seen[producer]), f"p{producer}: doubled, missing or out of order"
                seen[producer] += 1
                position = entry.end()
        assert seen == self.sent
        assert [last + 1 for last in self.acknowledged] == self.sent
        for path, word in self.lives.items():
            if word == "gone":
                with pytest.raises(DurableStreamError) as caught:
                    await self._content(path)
                assert caught.value.status == 410
            elif word == "forked":
                assert await self._content(path) == b"first;"
            elif word == "closed":
                head = await self._handle(path).head()
                assert (head.stream_closed, await self._content(path)) == (True, b"first;last;")

    async def _content(self, path: str) -> bytes:
        async with self._handle(path).stream(live=False) as response:
            return await response.read()


class Serving:
    """`durable-streams serve`, one process after the other."""

    def __init__(self, path: Path, port: int) -> None:
        self._command = [sys.executable, "-m", "durable_streams.cli", "serve", "--store", f"sqlite:{path}"]
        self._command += ["--port", str(port)]
        self.ready: list[float] = []  # seconds from the start of a process until it serves

    async def run(self, end: signal.Signals, use: Callable[[], Awaitable[None]]) -> None:
        """Run a process until `use` returns, and end it."""
        started = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        async with await anyio.open_process(self._command, env=environment, cwd=ROOT) as process:
            try:
                assert process.stderr is not None
                line = await BufferedByteReceiveStream(process.stderr).receive_until(b"\n", 1000)
                assert b": serving http://" in line, line
                self.ready.append(time.perf_counter() - started)
                await use()
                process.send_signal(end)
                await process.wait()
            except BaseException:
                process.kill()
                raise
        assert process.returncode == (0 if end is signal.SIGTERM else -signal.SIGKILL)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@pytest.mark.timeout(120 + 20 * ROUNDS)
@pytest.mark.parametrize(
    ("anyio_backend", "end"), [("asyncio", signal.SIGKILL), ("trio", signal.SIGTERM)], ids=["SIGKILL", "SIGTERM"]
)
async def test_clients_go_on_over_the_ends_of_a_server(
    tmp_path: Path, end: signal.Signals, anyio_backend_name: str
) -> None:
    path, port = tmp_path / "streams.db", free_port()
    rng = random.Random(f"{end.name} {anyio_backend_name}")
    serving = Serving(path, port)
    async with aclosing(open_transport()) as transport:
        load = Load(f"http://127.0.0.1:{port}/v1/stream", transport, rng)

        async def use_for_a_while() -> None:
            if rng.random() < 0.9:  # else it ends as soon as it serves
                await load.wait(rng.randrange(1, 400))

        async def finish() -> None:
            await load.wait(100)
            load.ending = True
            await load.ended.wait()
            await load.audit()

        with anyio.fail_after(60 + 20 * ROUNDS):
            async with anyio.create_task_group() as group:
                group.start_soon(load.run)
                for _ in range(ROUNDS):
                    await serving.run(end, use_for_a_while)
                    async with SQLiteStore(path, check="full"):
                        pass
                await serving.run(signal.SIGTERM, finish)
    report(end, anyio_backend_name, load, serving)


def report(end: signal.Signals, backend: str, load: Load, serving: Serving) -> None:
    if "CRASH_REPORT" in os.environ:
        figures = {
            "end": end.name,
            "backend": backend,
            "rounds": ROUNDS,
            "acknowledged": load.count,
            "appended": sum(load.sent),
            "ready_s": {"median": sorted(serving.ready)[len(serving.ready) // 2], "max": max(serving.ready)},
        }
        with open(os.environ["CRASH_REPORT"], "a") as file:
            file.write(json.dumps(figures) + "\n")
