"""The servers of the server rows: ours and the peers', each started on first use, in memory or durable.

rakaia-streams is installed into an environment of its own, as it brings other versions of what we use; electric's
server is built by cargo, once. Both are kept in `peers` inside the environment that runs this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.interop import node

from ._harness import ROOT, Program

PLACE = Path(sys.prefix) / "peers"
RAKAIA = ("rakaia-streams==0.9.0", "uvicorn[standard]")
RUST = "durable-streams@0.1.5"
#: In the order of the tables.
NAMES = ("ours", "Node", "rakaia", "Rust")

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class ServerUnderTest:
    """A running server.

    Attributes:
        name: Whose.
        url: Scheme, host and port.
    """

    def __init__(self, name: str, program: Program) -> None:
        answer = program.answer()
        self.name = name
        self.url: str = answer["url"]
        self._process = Path("/proc", str(answer.get("pid", program.pid)))

    def cpu_seconds(self) -> float:
        """Processor time it has used so far, of all its threads."""
        fields = (self._process / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_bytes(self) -> int:
        """Memory it has now."""
        return int((self._process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_bytes(self, *, reset: bool = False) -> int:
        """The most memory it had since it started or since this was called with `reset`."""
        lines = (self._process / "status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        if reset:
            (self._process / "clear_refs").write_text("5")
        return peak * 1024


class Servers:
    """Starts servers, and ends them when it is closed.

    Args:
        remarks: Gets a sentence for each peer that cannot run here.
    """

    def __init__(self, remarks: list[str]) -> None:
        self._running: dict[tuple[str, bool], ServerUnderTest | None] = {}
        self._stack = ExitStack()
        self._remarks = remarks

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def those_here(self, *, durable: bool, names: Sequence[str] = NAMES) -> list[ServerUnderTest]:
        """The servers of these names, as far as they can run here."""
        found = (self._server(name, durable) for name in names)
        return [server for server in found if server is not None]

    def fresh(self, *, durable: bool) -> ServerUnderTest:
        """A server of ours that nobody else uses, for memory to be looked at."""
        return self._start("ours", self._command("ours", durable))

    def _server(self, name: str, durable: bool) -> ServerUnderTest | None:
        if (name, durable) not in self._running:
            command = self._command(name, durable)
            self._running[name, durable] = self._start(name, command) if command else None
        return self._running[name, durable]

    def _start(self, name: str, command: Sequence[str | Path]) -> ServerUnderTest:
        return ServerUnderTest(name, self._stack.enter_context(Program(f"{name}'s server", command)))

    def _command(self, name: str, durable: bool) -> list[str | Path]:
        """How to start a server; empty if it cannot run here."""
        here = ROOT / "benchmarks"
        PLACE.mkdir(parents=True, exist_ok=True)
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(dir=PLACE))  # /tmp may be no disk
        match name:
            case "ours":
                return [sys.executable, "-m", "benchmarks.server", *([f"sqlite:{folder}/store.db"] if durable else [])]
            case "Node":
                program, missing = node.find_node(), node.why_not()
                if program is None or missing:
                    self._leave_out(f"The Node server is left out: {missing}.")
                    return []
                # Compression is off, for nobody asks for it.
                options = f'{{"compression": false, "dataDir": "{folder}"}}' if durable else '{"compression": false}'
                return [program, ROOT / "tests" / "interop" / "node_server.mjs", options]
            case "rakaia":
                python = rakaia()
                if python is None:
                    self._leave_out(f"rakaia is left out: {RAKAIA[0]} cannot be installed here.")
                    return []
                return [python, here / "rakaia_server.py", *([folder] if durable else [])]
            case _:
                binary = rust()
                if binary is None:
                    self._leave_out(f"The Rust server is left out: cargo cannot build {RUST} here.")
                    return []
                return [sys.executable, here / "rust_server.py", binary, folder, "wal" if durable else "memory"]

    def _leave_out(self, remark: str) -> None:
        if remark not in self._remarks:
            self._remarks.append(remark)


def rakaia() -> str | None:
    """Python of an environment with rakaia, made on first use; None if that fails."""
    place = PLACE / RAKAIA[0]
    python = str(place / "bin" / "python")
    if not (place / "ready").exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", place], check=True)
            command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *RAKAIA]
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError:
            return None
        (place / "ready").touch()
    return python


def rust() -> str | None:
    """electric's server, built on first use, which takes minutes; None without cargo, or if that fails."""
    place = PLACE / RUST
    binary = place / "bin" / "durable-streams-server"
    if not binary.exists():
        cargo = shutil.which("cargo")
        if cargo is None:
            return None
        print("building electric's server (once, some minutes)", file=sys.stderr)
        try:
            subprocess.run([cargo, "install", "--quiet", "--locked", "--root", place, RUST], check=True)
        except subprocess.CalledProcessError:
            return None
    return str(binary)
