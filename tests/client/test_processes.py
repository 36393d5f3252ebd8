"""Readers that are killed at any moment and resumed, and the memory that long streams take, in child processes."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from durable_streams.server import Server

ROOT = Path(__file__).parents[2]
SIZE = 48 << 20
#: What a session may take beyond what it has loaded: some pages of 1 MiB, however long the stream.
ALLOWED = 16 << 20


def child(name: str, backend: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.client.children", name, backend, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def request(method: str, url: str, body: bytes = b"", **headers: str) -> None:
    """One request, by nobody of ours."""
    prepared = urllib.request.Request(url, body, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(prepared, timeout=30) as answer:
        answer.read()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(max_append_bytes=2 * SIZE) as running:
        yield running


@pytest.mark.parametrize("live", ["False", "long-poll", "sse"])
@pytest.mark.parametrize("seed", [1])
def test_every_event_comes_once_and_in_order_over_five_kills(
    live: str, seed: int, server: Server, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    url = f"{server.url}/kills-{live}-{seed}"
    journal = tmp_path / "journal"
    written = itertools.count()

    def append(count: int = 0, pad: str = "") -> None:
        items = [{"n": next(written), "pad": pad} for _ in range(count or rng.randint(1, 7))]
        request("POST", url, json.dumps(items).encode(), **{"Content-Type": "application/json"})

    request("PUT", url, **{"Content-Type": "application/json"})
    if live == "False":
        append(2000, "x" * 10_000)  # pages of 128 KiB, the server's smallest, enough to be killed among them

    for kill in range(5):
        append()  # or a reader that has everything would say nothing
        moment = rng.randint(1, 6 if live == "False" else 15)
        with child("follow", ("asyncio", "trio")[kill % 2], url, live, str(journal)) as reader:
            assert reader.stdout is not None
            for _ in range(moment):
                assert reader.stdout.readline()
                append()
            reader.send_signal(signal.SIGKILL)
        assert reader.returncode == -signal.SIGKILL
    request("POST", url, **{"Stream-Closed": "true"})
    with child("follow", "asyncio", url, live, str(journal)) as reader:
        reader.communicate(timeout=60)
    assert reader.returncode == 0

    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    assert [item for line in lines for item in line["items"]] == list(range(next(written)))
    assert lines[-1]["checkpoint"]["stream_closed"]


@pytest.fixture(scope="module")
def large(server: Server) -> dict[str, str]:
    """Two streams that are much larger than a page: bytes, and JSON strings."""
    urls = {"bytes": f"{server.url}/large-bytes", "items": f"{server.url}/large-items"}
    request("PUT", urls["bytes"], **{"Content-Type": "application/octet-stream"})
    request("PUT", urls["items"], **{"Content-Type": "application/json"})
    for _ in range(SIZE >> 22):
        request("POST", urls["bytes"], b"x" * (1 << 22), **{"Content-Type": "application/octet-stream"})
        items = json.dumps(["x" * (1 << 10)] * (1 << 12)).encode()
        request("POST", urls["items"], items, **{"Content-Type": "application/json"})
    return urls


@pytest.mark.parametrize(
    ("how", "backend"), [("bytes", "asyncio"), ("bytes", "trio"), ("items", "asyncio"), ("subscribe", "asyncio")]
)
def test_the_memory_of_a_reader_is_bounded_by_the_page(how: str, backend: str, large: dict[str, str]) -> None:
    with child("read", backend, large["items" if how == "items" else "bytes"], how) as reader:
        output, _ = reader.communicate(timeout=60)

    size, grown = map(int, output.split())
    assert size == SIZE
    assert grown < ALLOWED


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_memory_of_a_streamed_append_is_bounded(backend: str, server: Server) -> None:
    with child("write", backend, f"{server.url}/upload-{backend}", str(SIZE)) as writer:
        output, _ = writer.communicate(timeout=60)

    size, grown = map(int, output.split())
    assert size == SIZE
    assert grown < ALLOWED
