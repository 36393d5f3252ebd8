"""Servers and clients written by others, as fixtures. Everything in this folder carries the `interop` marker.

Without Node.js or the npm packages the tests skip and say why; where DURABLE_STREAMS_INTEROP=required they fail.
"""

import json
import os
import queue
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from . import node, s2lite

HERE = Path(__file__).parent
#: Seconds after which a program of others counts as hanging.
PATIENCE = 60.0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.interop)


@pytest.fixture(scope="session")
def node_command() -> str:
    """Node.js, with the npm packages beside it."""
    missing = node.why_not()
    if missing is not None:
        (pytest.fail if node.required() else pytest.skip)(missing)
    return str(node.find_node())


@pytest.fixture(scope="session")
def node_server(node_command: str) -> Iterator[str]:
    """URL of a Node reference server with short long-polls, for the whole session."""
    options = json.dumps({"longPollTimeout": 500})
    with subprocess.Popen(
        [node_command, HERE / "node_server.mjs", options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.stdin.close()
        process.wait(PATIENCE)


class TypeScriptError(Exception):
    """What the TypeScript client threw."""

    def __init__(self, name: str, message: str, code: str | None = None, status: int | None = None) -> None:
        super().__init__(f"{name}: {message}")
        self.name, self.code, self.status = name, code, status


class Call:
    """A command that the TypeScript client is carrying out."""

    def __init__(self) -> None:
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()

    async def _next(self) -> dict[str, Any]:
        return await anyio.to_thread.run_sync(lambda: self.answers.get(timeout=PATIENCE), abandon_on_cancel=True)

    async def event(self) -> dict[str, Any]:
        """The next thing the command announces; fails if it ends instead."""
        answer = await self._next()
        assert "event" in answer, f"ended early: {answer}"
        return answer

    async def result(self) -> dict[str, Any]:
        """What the command answers at its end; events before that are passed over.

        Raises:
            TypeScriptError: if it failed.
        """
        while True:
            answer = await self._next()
            if "error" in answer:
                raise TypeScriptError(**answer["error"])
            if "ok" in answer:
                ok: dict[str, Any] = answer["ok"]
                return ok


class TypeScriptClient:
    """The official TypeScript client in a process of its own; see `ts_client.mjs` for its commands."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._calls: dict[int, Call] = {}
        self._reader = threading.Thread(target=self._read, name="ts_client", daemon=True)
        self._reader.start()

    def start(self, do: str, **fields: Any) -> Call:
        """Send a command without waiting for its end."""
        number = len(self._calls)
        call = self._calls[number] = Call()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, "do": do, **fields}) + "\n")
        self._process.stdin.flush()
        return call

    async def call(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        return await self.start(do, **fields).result()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            self._calls[answer["id"]].answers.put(answer)
        for call in list(self._calls.values()):  # nobody waits for a process that has gone
            call.answers.put({"error": {"name": "Gone", "message": "the TypeScript client has ended"}})

    def join(self) -> None:
        self._reader.join(PATIENCE)


@contextmanager
def typescript(node_command: str, program: str) -> Iterator[TypeScriptClient]:
    command = [node_command, str(HERE / program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        client = TypeScriptClient(process)
        yield client
        assert process.stdin is not None
        process.stdin.close()
        process.wait(PATIENCE)
        client.join()


@pytest.fixture(scope="session")
def ts_client(node_command: str) -> Iterator[TypeScriptClient]:
    """The official TypeScript client, for the whole session."""
    with typescript(node_command, "ts_client.mjs") as client:
        yield client


@pytest.fixture(scope="session")
def ts_s2(node_command: str) -> Iterator[TypeScriptClient]:
    """S2's official TypeScript SDK with its patterns, for the whole session; see `ts_s2.mjs` for its commands."""
    with typescript(node_command, "ts_s2.mjs") as client:
        yield client


@pytest.fixture(scope="session")
def s2_endpoint() -> Iterator[str]:
    """URL of an S2 server for the whole session: the one that S2_ACCOUNT_ENDPOINT names, or `s2 lite` in memory."""
    named = os.environ.get("S2_ACCOUNT_ENDPOINT")
    if named:
        yield named if "://" in named else f"https://{named}"
        return
    missing = s2lite.why_not()
    if missing is not None:
        (pytest.fail if s2lite.required() else pytest.skip)(missing)
    with s2lite.Lite() as server:
        yield server.url


@pytest.fixture(scope="session")
def s2_basin(s2_endpoint: str) -> str:
    """Name of a basin that no other session uses."""
    return s2lite.make_basin(s2_endpoint)


@pytest.fixture
def s2_stream() -> str:
    """Name for a stream that no other test uses."""
    return f"interop/{uuid.uuid4()}"


@pytest.fixture
def path() -> str:
    """Path of a stream that no other test uses."""
    return f"/v1/stream/interop/{uuid.uuid4()}"
