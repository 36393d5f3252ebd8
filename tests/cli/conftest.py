"""Runs commands as a shell would: in this process where that is enough, else in one of their own."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from durable_streams.cli import main
from durable_streams.server import Server

ROOT = Path(__file__).parents[2]
#: Seconds after which a process is killed, so that a test that waits for it fails.
PATIENCE = 60


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


Run = Callable[..., Done]


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with Server(long_poll_timeout=1.0) as running:
        yield running


@pytest.fixture
def url(server: Server) -> str:
    """URL of a stream that does not exist yet."""
    return f"{server.url}/{uuid4().hex}"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Iterator[Run]:
    """Run a command in this process, with some standard input."""
    logger = logging.getLogger("durable_streams")
    before = logger.handlers[:], logger.level

    def command(*args: str, stdin: bytes = b"") -> Done:
        path = tmp_path / "stdin"
        path.write_bytes(stdin)
        with path.open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            with pytest.raises(SystemExit) as ended:
                main(args)
        captured = capfdbinary.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Done(code, captured.out, captured.err.decode())

    yield command
    logger.handlers[:], level = before
    logger.setLevel(level)


@contextmanager
def process(*args: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process of its own, with pipes for all three streams; killed in the end, or when it hangs."""
    command = [sys.executable, "-m", "durable_streams.cli", *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as running:
        watchdog = threading.Timer(PATIENCE, running.kill)
        watchdog.start()
        try:
            yield running
        finally:
            watchdog.cancel()
            running.kill()
