"""What `import durable_streams` costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ._harness import ROOT, Bench, Case, Goal

OFFICIAL = "durable-streams==0.1.0"
CODE = "import time; begin = time.perf_counter(); import durable_streams; print(time.perf_counter() - begin)"


def import_time(bench: Bench) -> Iterator[Case]:
    """Time of `import durable_streams` in a new process, against the official Python client."""
    contenders = {"ours": lambda: _seconds(sys.executable)}
    official = peer_python(bench, OFFICIAL)
    if official is not None:
        contenders["official Python"] = lambda: _seconds(official)
    yield Case("import durable_streams", "ms", contenders, [Goal("ours", "official Python", 1 / 3)])


def _seconds(python: str) -> float:
    # Ours is in the working directory; the other must not find it there, nor by PYTHONPATH.
    command = [python, "-c", CODE] if python == sys.executable else [python, "-I", "-c", CODE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return 1e3 * float(done.stdout)


def peer_python(bench: Bench, package: str) -> str | None:
    """Python of an environment that has one package of others, such as "name==1.0"; made on first use."""
    place = Path(sys.prefix) / "peers" / package
    python = str(place / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    if not (place / "ready").exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", place], check=True)
            command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", package]
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError:
            bench.remarks.append(f"{package} is left out: it cannot be installed here.")
            return None
        (place / "ready").touch()
    return python
