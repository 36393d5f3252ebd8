"""The other side of the adapter: starts it as a process, writes a line, reads a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ADAPTER = Path(__file__).parent / "adapter.py"


class Runner:
    """What the conformance runner does with an adapter."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def __call__(self, command: str, **fields: Any) -> dict[str, Any]:
        """Send a command and read its answer."""
        self.send({"type": command, **fields})
        answer = self.answer()
        assert answer["type"] in (command, "error")
        return answer

    def send(self, command: Any) -> None:
        """Send a command without reading its answer."""
        self.write(json.dumps(command).encode() + b"\n")

    def write(self, line: bytes) -> None:
        """Send bytes as they are."""
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Read the answer to the oldest command that has none."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.isascii()
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def adapter(loop: str) -> Iterator[Runner]:
    """The adapter as a process of its own, on one of the loops; it has to end well."""
    environment = {**os.environ, "DURABLE_STREAMS_LOOP": loop}
    root = str(ADAPTER.parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, str(ADAPTER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        runner = Runner(process)
        try:
            yield runner
            assert runner("shutdown")["success"]
        except BaseException:
            process.kill()
            raise
        assert process.wait(5) == 0
