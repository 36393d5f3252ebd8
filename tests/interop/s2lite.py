"""Starts the S2 server (`s2 lite`) for tests and benchmarks, and builds it where it is missing.

No package index carries it, so `python -m tests.interop.s2lite` builds it with cargo, once: about 17 minutes on two
cores; the binary stays in cargo's home. `.ci/run` starts that in the background of its other steps. Without cargo a
sentence says so and the exit code is 0, as tests that need the server then skip; with
DURABLE_STREAMS_INTEROP=required it is 1.

With S2_ACCOUNT_ENDPOINT (and S2_BASIN_ENDPOINT) set, tests use the server that is there instead.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

#: What is built, and the oldest that will do.
VERSION = (0, 43, 4)
#: Seconds until the server answers, and until it has ended after SIGTERM: open sessions have ten.
START_PATIENCE = 10.0
STOP_PATIENCE = 12.0

_TRIES = 5


def required() -> bool:
    """Whether a missing server is a failure rather than a reason to skip."""
    return os.environ.get("DURABLE_STREAMS_INTEROP") == "required"


def find() -> Path | None:
    """An `s2` that is recent enough: on the PATH, or in cargo's home."""
    home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    for candidate in (shutil.which("s2"), shutil.which("s2", path=str(home / "bin"))):
        if candidate is not None and _version(candidate) >= VERSION:
            return Path(candidate)
    return None


def why_not() -> str | None:
    """A sentence that says what is missing, or None if the server can be started."""
    if find() is None:
        return "s2 is not installed; `python -m tests.interop.s2lite` builds it (17 minutes)"
    return None


def _version(binary: str) -> tuple[int, ...]:
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=True)
        return tuple(int(part) for part in done.stdout.split()[1].split("."))  # "s2 0.43.4 (rev ..., via cargo)"
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return ()  # not an S2 that runs here


class Lite:
    """One `s2 lite` process on a port of its own; a context manager that starts and stops it.

    It listens on all interfaces, as it cannot be told otherwise.

    Args:
        local_root: Where it keeps its data, and finds it again when it is started again; None keeps it in memory.
        environment: More variables for the process, such as SL8_FLUSH_INTERVAL.
        tls: Whether it speaks TLS, with a certificate that it makes itself.

    Attributes:
        url: Of account and basins alike; stays the same over restarts.
    """

    def __init__(
        self, local_root: Path | None = None, environment: dict[str, str] | None = None, *, tls: bool = False
    ) -> None:
        self._local_root = local_root
        self._tls = tls
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`
        self._port = 0
        self.url = ""

    def __repr__(self) -> str:
        return f"<Lite {self.url} {'running' if self._process else 'stopped'}>"

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, "not running"
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers; after `kill` or `stop` on the same port.

        Raises:
            RuntimeError: it has ended instead, or does not answer in time; the text has the end of its log.
        """
        binary = find()
        assert binary is not None, why_not()
        for tries_left in reversed(range(_TRIES)):
            port = self._port or _free_port()
            command = [str(binary), "lite", "--port", str(port)]
            if self._local_root is not None:
                command += ["--local-root", str(self._local_root)]
            if self._tls:
                command.append("--tls-self")
            quick = {"RUST_LOG": "warn", "S2LITE_NO_DASHBOARD": "1", "SL8_MANIFEST_POLL_INTERVAL": "50ms"}
            environment = {**os.environ, **quick, **self._environment}
            self._process = subprocess.Popen(command, env=environment, stdout=self._log, stderr=self._log)
            url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
            if self._wait(url):
                self._port, self.url = port, url
                return
            self.kill()
            if self._port or not tries_left:  # else another program may have taken the port in between
                raise RuntimeError(f"s2 lite did not start:\n{self.log()}")

    def _wait(self, url: str) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_PATIENCE
        unchecked = ssl._create_unverified_context()
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=1, context=unchecked) as answer:
                    if answer.status == 200:
                        return True
            except OSError:
                time.sleep(0.02)
        return False

    def stop(self) -> None:
        """SIGTERM, as for a planned restart: open sessions go on for ten seconds. SIGKILL if that is not enough."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def terminate(self) -> None:
        """SIGTERM without waiting; `stop` waits."""
        assert self._process is not None, "not running"
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as in a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """The end of what the server has written."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(size - 4000, 0))
        return self._log.read().decode("utf-8", "replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if exc is not None and (words := self.log().strip()):
            print(f"s2 lite says:\n{words}", file=sys.stderr)
        self._log.close()


def token() -> str:
    """The access token for the server; `s2 lite` ignores it."""
    return os.environ.get("S2_ACCESS_TOKEN", "ignored")


def make_basin(url: str, **config: object) -> str:
    """Create a basin that nobody else uses, and return its name."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    request = urllib.request.Request(
        f"{url}/v1/basins",
        json.dumps({"basin": name, "config": config}).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {token()}"},
    )
    with urllib.request.urlopen(request, timeout=START_PATIENCE) as answer:
        assert answer.status == 201, answer.status
    return name


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def main() -> int:
    """Build the server unless it is there; see the module."""
    if find() is not None:
        return 0
    version = ".".join(map(str, VERSION))
    cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
    if cargo is None:
        print(f"s2 lite {version} is not to be had: cargo is not installed (https://rustup.rs brings it)")
        return int(required())
    print(f"building s2 lite {version}, about 17 minutes on two cores", flush=True)
    # What else runs on the machine goes first.
    command = [cargo, "install", "--locked", "--quiet", "s2-cli", "--version", version]
    done = subprocess.run([*(["nice", "-n", "10"] if shutil.which("nice") else []), *command], check=False)
    missing = why_not()
    print(missing or f"s2 lite {version} is ready")
    return int(done.returncode != 0 or missing is not None) and int(required())


if __name__ == "__main__":
    sys.exit(main())
