"""Imports point downwards only: the table of rooms, and what `import durable_streams` may load.

Each row says what the modules of one room may import: other rooms, and libraries beside the standard library. An
import counts wherever it stands, also inside a function or under `TYPE_CHECKING`. From outside, a room is used through
its own names only; `_core` alone is open module by module, as it has no surface but its modules.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = "durable_streams"
ROOT = Path(__file__).parents[1] / PACKAGE
#: Libraries that cost time to import or are extras; they come on first use.
HEAVY = {
    *(
        "aiohttp",
        "click",
        "cryptography",
        "hpack",
        "httpcore2",
        "httptools",
        "msgspec",
        "prometheus_client",
        "rich",
        "trio",
        "uvicorn",
        "uvloop",
        "zstandard",
    ),
}


@dataclass(frozen=True)
class Row:
    """What one room may import.

    Attributes:
        rooms: Other rooms, or single modules of other rooms.
        libraries: Packages beside the standard library, for every module of the room.
        one_module: Packages that exactly one module of the room may import.
        forbidden: Modules of the standard library that do not belong here.
    """

    rooms: frozenset[str] = frozenset()
    libraries: frozenset[str] = frozenset()
    one_module: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()


def row(rooms: str = "", *, libraries: str = "", one_module: str = "", forbidden: str = "") -> Row:
    return Row(*(frozenset(words.split()) for words in (rooms, libraries, one_module, forbidden)))


NO_IO = "asyncio http os pathlib queue random secrets select selectors socket ssl subprocess threading time uuid"

#: `.` is the package's own `__init__`: the public names.
TABLE = {
    "errors": row(),
    "_collision": row(),
    "_core": row("errors", one_module="orjson", forbidden=NO_IO),
    "_transport": row("errors _core", libraries="anyio", one_module="aiohttp yarl httpcore2 trio"),
    "_client": row("errors _core _transport _transport.base _transport.default", libraries="anyio"),
    "server": row(
        "errors _core _collision",
        libraries="anyio msgspec httptools",  # httptools parses requests, and what the targets of webhooks answer
        one_module="uvicorn uvloop cryptography prometheus_client",
    ),
    "s2": row(
        "errors _core _transport _transport.base _transport.default _transport.proxies _transport.version _collision",
        libraries="anyio",
        one_module="hpack zstandard msgspec",
    ),
    # `S2Fake` speaks S2 with the client's own codecs and frames, in the other role: a second set would have to be
    # tested as hard as the first. What keeps it honest is `s2 lite`, which passes the same kit.
    "testing": row(
        ". errors server _collision _core s2 s2.errors s2._values s2._proto s2._frames s2._json_records s2._h2.frames",
        libraries="anyio pytest hpack",
    ),
    "cli": row(". errors server s2 testing _collision", libraries="anyio click rich"),
    ".": row("errors _core _transport _client _collision"),
}

#: The one module of `_core` that may know how JSON is parsed.
JSON_MODULE = f"{PACKAGE}._core.json_mode"


@dataclass(frozen=True)
class Import:
    """One imported thing: `importer` is a module of ours, `target` what it imports, with the name taken from it."""

    importer: str
    line: int
    target: str
    name: str = ""

    def __str__(self) -> str:
        what = f"{self.name} from {self.target}" if self.name else self.target
        return f"{self.importer}, line {self.line}: imports {what}"


@dataclass
class Tree:
    """A package's modules and what they import."""

    modules: dict[str, ast.Module] = field(default_factory=dict)
    packages: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, root: Path) -> "Tree":
        tree = cls()
        for path in sorted(root.rglob("*.py")):
            parts = list(path.relative_to(root.parent).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
                tree.packages.add(".".join(parts))
            tree.modules[".".join(parts)] = ast.parse(path.read_text(), str(path))
        return tree

    def imports(self) -> Iterator[Import]:
        """Every import statement of the package, one record per name."""
        for module, code in self.modules.items():
            for node in ast.walk(code):
                if isinstance(node, ast.Import):
                    for alias in node.names:
                        yield Import(module, node.lineno, alias.name)
                elif isinstance(node, ast.ImportFrom):
                    base = self._absolute(module, node)
                    for alias in node.names:
                        if f"{base}.{alias.name}" in self.modules:
                            yield Import(module, node.lineno, f"{base}.{alias.name}")
                        else:
                            yield Import(module, node.lineno, base, alias.name)

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        up = node.level - 1 if module in self.packages else node.level
        kept = parts[: len(parts) - up]
        return ".".join([*kept, *([node.module] if node.module else [])])


def room(module: str) -> str:
    """The room that a module of ours is in; `.` for the package itself."""
    return module.split(".")[1] if "." in module else "."


def complaint(found: Import) -> str | None:
    """What is wrong with an import, or None."""
    here = room(found.importer)
    allowed = TABLE[here]
    top = found.target.partition(".")[0]
    if top != PACKAGE:
        if top in sys.stdlib_module_names:
            return f"{top} is input, output, time or chance" if top in allowed.forbidden else None
        if here == "_core" and found.importer != JSON_MODULE:
            return f"only {JSON_MODULE} may import a library"
        return None if top in allowed.libraries | allowed.one_module else f"{here} may not import {top}"
    there = room(found.target)
    if here == there:
        return None
    inside = "" if there == "." else found.target.removeprefix(f"{PACKAGE}.{there}").lstrip(".")
    if there not in allowed.rooms:
        return f"{here} may not import {there}"
    if found.name.startswith("_") and not found.name.startswith("__"):
        return "private names stay in their room"
    if inside and there != "_core" and here != "." and f"{there}.{inside}" not in allowed.rooms:
        return f"{there} is used through its own names, not through {found.target}"
    return None


def complaints(tree: Tree) -> list[str]:
    return [f"{found} ({words})" for found in tree.imports() if (words := complaint(found)) is not None]


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree.parse(ROOT)


def test_every_room_has_a_row(tree: Tree) -> None:
    assert {room(module) for module in tree.modules} <= set(TABLE)


def test_imports_point_downwards(tree: Tree) -> None:
    assert complaints(tree) == []


def test_each_backend_has_its_library_to_itself(tree: Tree) -> None:
    importers: dict[tuple[str, str], set[str]] = {}
    for found in tree.imports():
        top = found.target.partition(".")[0]
        if top in TABLE[room(found.importer)].one_module:
            importers.setdefault((room(found.importer), top), set()).add(found.importer)

    assert {key: modules for key, modules in importers.items() if len(modules) > 1} == {}


def test_the_core_never_waits(tree: Tree) -> None:
    waiting = ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await
    found = [
        f"{module}, line {node.lineno}"
        for module, code in tree.modules.items()
        if room(module) == "_core"
        for node in ast.walk(code)
        if isinstance(node, waiting)
    ]

    assert found == []


def test_imports_inside_the_package_are_relative(tree: Tree) -> None:
    absolute = [
        f"{module}, line {node.lineno}"
        for module, code in tree.modules.items()
        for node in ast.walk(code)
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == PACKAGE)
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names))
    ]

    assert absolute == []


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("_core/sse.py", "import anyio", "only durable_streams._core.json_mode may import a library"),
        ("_core/backoff.py", "from random import random", "random is input, output, time or chance"),
        ("_core/sse.py", "def f():\n    import aiohttp", "only durable_streams._core.json_mode may import a library"),
        ("_core/wire.py", "from .._transport import base", "_core may not import _transport"),
        ("_client/reader.py", "from .._transport.aiohttp import AioHTTP", "_transport is used through its own names"),
        ("_client/reader.py", "import trio", "_client may not import trio"),
        (
            "server/app.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .._client import x",
            "may not",
        ),
        ("server/stores/memory.py", "from ... import stream", "server may not import ."),
        ("testing/faults.py", "from .._transport.base import Transport", "testing may not import _transport"),
        ("cli/serve.py", "from ..server.app import App", "server is used through its own names"),
        ("cli/serve.py", "from ..server import _hidden", "private names stay in their room"),
        ("errors.py", "from ._core import wire", "errors may not import _core"),
    ],
)
def test_the_table_catches(tmp_path: Path, path: str, code: str, words: str) -> None:
    found = complaints(package_with(tmp_path, path, code))

    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("_core/json_mode.py", "import orjson\nfrom ..errors import ParseError"),
        ("_transport/aiohttp.py", "import aiohttp\nimport anyio\nfrom .._core import wire\nfrom . import base"),
        ("_client/reader.py", "from .._transport.base import Transport\nfrom .._core.wire import START"),
        ("server/stores/memory.py", "from ..app import App\nfrom ..._core.wire import START"),
        (
            "testing/faults.py",
            "from .. import Transport\nfrom ..errors import NetworkError\nfrom ..server import Server",
        ),
        ("cli/serve.py", "import click\nfrom .. import stream\nfrom ..testing import FaultTransport\nimport sys, time"),
    ],
)
def test_the_table_allows(tmp_path: Path, path: str, code: str) -> None:
    assert complaints(package_with(tmp_path, path, code)) == []


def package_with(folder: Path, path: str, code: str) -> Tree:
    """A package that has every room, and this code in one module."""
    rooms = (
        "_core/wire.py",
        "_transport/base.py",
        "_transport/aiohttp.py",
        "_client/x.py",
        "server/app.py",
        "testing/x.py",
    )
    for name in (*rooms, path):
        module = folder / PACKAGE / name
        for parent in module.relative_to(folder).parents[:-1]:
            (folder / parent).mkdir(parents=True, exist_ok=True)
            (folder / parent / "__init__.py").touch()
        module.touch()
    (folder / PACKAGE / path).write_text(code)
    return Tree.parse(folder / PACKAGE)


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh Python has loaded after running some code."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_no_heavy_library() -> None:
    assert loaded_by(f"import {PACKAGE}") & HEAVY == set()


@pytest.mark.parametrize("module", ["errors", "server", "s2", "cli"])
def test_importing_a_public_module_loads_no_heavy_library(module: str) -> None:
    assert loaded_by(f"import {PACKAGE}.{module}") & HEAVY == set()
