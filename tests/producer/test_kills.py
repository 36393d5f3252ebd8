"""Writers that are killed at any moment and started again, by both recipes.

`DURABLE_STREAMS_KILLS=100 python -m pytest tests/producer/test_kills.py` kills more of them.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_streams.server import Server

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("DURABLE_STREAMS_KILLS", "4"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(page_bytes=64 << 20) as running:
        yield running


def request(method: str, url: str) -> bytes:
    """One request, by nobody of ours."""
    prepared = urllib.request.Request(url, headers={"Content-Type": "application/json"}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(prepared, timeout=60) as answer:
        body: bytes = answer.read()
    return body


def acknowledged(writer: subprocess.Popen[str], rng: random.Random) -> int:
    """Let a writer run for a while, kill it, and return how many messages it knew to be stored."""
    assert writer.stdout is not None
    last = 0
    for _ in range(rng.randint(1, 6)):
        last = int(writer.stdout.readline())
    time.sleep(rng.choice([0.0, rng.random() / 100]))  # The moment of the kill is all that this decides.
    writer.send_signal(signal.SIGKILL)
    for line in writer.stdout:
        if line.strip() and line.endswith("\n"):
            last = int(line)
    return last


@pytest.mark.timeout(60 + 3 * KILLS)
@pytest.mark.parametrize("recipe", ["claim", "stored"])
def test_what_a_killed_writer_knew_is_stored_and_nothing_twice(recipe: str, server: Server, tmp_path: Path) -> None:
    rng = random.Random(recipe)
    url = f"{server.url}/kills-{recipe}"
    request("PUT", url)
    known = []
    for run in range(KILLS):
        backend = ("asyncio", "trio")[run % 2]
        command = [
            sys.executable,
            "-m",
            "tests.producer.child",
            backend,
            url,
            recipe,
            str(run),
            str(tmp_path / "epoch"),
        ]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
            known.append(acknowledged(writer, rng))
        assert writer.returncode == -signal.SIGKILL

    log: list[dict[str, Any]] = json.loads(request("GET", f"{url}?offset=-1"))
    groups = [
        (run, [item["n"] for item in items]) for run, items in itertools.groupby(log, key=lambda item: item["run"])
    ]

    assert [run for run, _ in groups] == list(range(KILLS))  # nothing of a run comes after the next has begun
    for run, numbers in groups:
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= known[run] > 0
