"""A process with a SQLite store under load is killed, again and again: nothing that it acknowledged may be missing.

`CRASH_ROUNDS` says how often; a store goes through all of them.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from durable_streams.server import (
    Appended,
    AppendRequest,
    Duplicate,
    Gone,
    Missing,
    Payload,
    ProducerStamp,
    StreamInfo,
)
from durable_streams.server.stores.sqlite import SQLiteStore
from durable_streams.testing.store_steps import expect, read_page

from .sqlite_child import PRODUCERS, STREAMS, TYPE, body

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs signals")]

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "5"))
ROOT = Path(__file__).parents[2]
_ENTRY = re.compile(rb"([a-z]+[0-9]+):([0-9]+):([0-9]+):")


class Ledger:
    """What the lives of the store have acknowledged."""

    def __init__(self) -> None:
        self.produced: dict[str, int] = dict.fromkeys((f"p{number}" for number in range(PRODUCERS)), -1)
        self.plain: dict[str, int] = {}
        self.paths: dict[str, str] = {}  # the last thing said of each

    def note(self, line: bytes) -> None:
        word, *rest = json.loads(line)
        if word == "appended":
            self.produced[rest[0]] = rest[1]
        elif word == "plain":
            self.plain[rest[0]] = rest[1]
        else:
            assert word in ("created", "closed", "forked", "gone", "deleted"), line
            self.paths[rest[0]] = word

    @property
    def following(self) -> dict[str, int]:
        return {name: seq + 1 for name, seq in self.produced.items()}


async def live_and_die(path: Path, backend: str, seed: int, end: signal.Signals, ledger: Ledger) -> None:
    """Run a child until it has acknowledged so many things, and end it."""
    lines = random.Random(seed).randrange(1, 600)
    command = [sys.executable, "-m", "tests.server.sqlite_child", path, backend, str(seed)]
    command.append(json.dumps(ledger.following))
    async with await anyio.open_process(command, cwd=ROOT, stderr=sys.stderr) as process:
        assert process.stdout is not None
        output = BufferedByteReceiveStream(process.stdout)
        ended = False
        try:
            with anyio.fail_after(60):
                while True:
                    line = await output.receive_until(b"\n", 1000)
                    if json.loads(line) == ["ended"]:
                        ended = True
                        continue
                    ledger.note(line)
                    lines -= 1
                    if lines == 0:
                        process.send_signal(end)
        except (anyio.EndOfStream, anyio.IncompleteRead):
            pass
        except BaseException:
            process.kill()
            raise
        await process.wait()
        assert lines <= 0, "the child ended by itself"
        assert ended == (end is signal.SIGTERM)
        assert process.returncode == (0 if end is signal.SIGTERM else -signal.SIGKILL)


async def audit(store: SQLiteStore, ledger: Ledger) -> None:
    """Compare a store with what was acknowledged."""
    stored: dict[str, list[int]] = {}
    for path in STREAMS:
        info = await store.head(path, 0.0)
        if isinstance(info, Missing):
            assert set(ledger.produced.values()) == {-1}
            continue
        content = (await read_page(store, expect(StreamInfo, info).ref))[0]
        position = 0
        while position < len(content):
            entry = _ENTRY.match(content, position)
            assert entry is not None, f"{path} is torn at {position}"
            name, number = entry[1].decode(), int(entry[2])
            whole = body(name, number)
            assert content[position : position + len(whole)] == whole
            position += len(whole)
            stored.setdefault(name, []).append(number)
    for name, acknowledged in ledger.produced.items():
        numbers = stored.pop(name, [])
        assert numbers == list(range(len(numbers))), f"{name}: doubled, missing or out of order"
        assert acknowledged < len(numbers) <= acknowledged + 2, f"{name}: {acknowledged} were acknowledged"
    for life, numbers in stored.items():
        assert numbers == list(range(len(numbers)))
        assert ledger.plain.get(life, -1) < len(numbers) <= ledger.plain.get(life, -1) + 2
    for life, last in ledger.plain.items():
        assert last < len(stored[life])
    for path, word in ledger.paths.items():
        await audit_path(store, path, word)


async def audit_path(store: SQLiteStore, path: str, word: str) -> None:
    """What was said last of a stream holds, or what its task would have done next."""
    info = await store.head(path, 0.0)
    if word == "deleted":
        assert info == Missing()
    elif word == "gone":
        assert info == Gone()
    elif word == "forked":
        assert (await read_page(store, expect(StreamInfo, info).ref))[0] == b"first;la"
    elif isinstance(info, Missing | Gone):
        assert word == "closed", "only closed streams are deleted"
    else:
        data = (await read_page(store, info.ref))[0]
        assert info.closed == (data == b"first;last;")
        assert data in (b"first;", b"first;last;")
        if word == "closed":
            assert info.closed
        if info.closed:
            stamp = ProducerStamp("closer", 0, 0)
            expect(Duplicate, await store.append(AppendRequest(path, TYPE, Payload(b"last;"), True, stamp), 0.0))


@pytest.mark.timeout(120 + 20 * ROUNDS)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=lambda end: end.name)
async def test_nothing_acknowledged_is_lost_doubled_or_refused(
    tmp_path: Path, end: signal.Signals, anyio_backend_name: str
) -> None:
    path = tmp_path / "store.db"
    ledger = Ledger()
    for number in range(ROUNDS):
        await live_and_die(path, anyio_backend_name, number, end, ledger)
        async with SQLiteStore(path, check="quick") as store:
            await audit(store, ledger)

    async with SQLiteStore(path, check="full") as store:
        for name, seq in ledger.following.items():
            stream = STREAMS[int(name[1:]) % len(STREAMS)]
            known: Counter[type] = Counter()
            for following in (seq, seq + 1):
                stamp = ProducerStamp(name, 7, following)
                result = await store.append(
                    AppendRequest(stream, TYPE, Payload(body(name, following)), False, stamp), 0.0
                )
                known[type(result)] += 1
            assert known[Appended] + known[Duplicate] == 2, f"{name} was refused"
            assert known[Appended] >= 1
