"""Facts about the project: what ships, what is public, what a user without an extra is told."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, is_typeddict

import pytest

import durable_streams

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
#: The package, and what it has beside it without an underscore: there names are public.
PUBLIC: list[ModuleType] = [
    durable_streams,
    *(
        importlib.import_module(f"durable_streams.{module.name}")
        for module in pkgutil.iter_modules(durable_streams.__path__)
        if not module.name.startswith("_")
    ),
]


def public_names() -> Iterator[tuple[str, Any]]:
    """Every public class and function of ours, with its address."""
    for module in PUBLIC:
        for name in module.__all__:
            value = getattr(module, name)
            ours = getattr(value, "__module__", "").partition(".")[0] == "durable_streams"
            if ours and (inspect.isclass(value) or inspect.isroutine(value)):
                yield f"{module.__name__}.{name}", value


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_all_is_sorted_and_complete(module: ModuleType) -> None:
    bound = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value))
        and not is_typeddict(value)  # these only spell out keyword arguments
        and (getattr(value, "__module__", None) or "").startswith(module.__name__)
    }

    # As ruff sorts: names in capitals first, then classes, then functions.
    assert list(module.__all__) == sorted(module.__all__, key=lambda name: (not name.isupper(), name))
    assert bound - {"refuse_collision"} <= set(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_every_public_name_has_a_docstring() -> None:
    assert [address for address, value in public_names() if not inspect.getdoc(value)] == []


def test_every_public_method_has_a_docstring() -> None:
    silent = [
        f"{address}.{name}"
        for address, value in public_names()
        if inspect.isclass(value)
        for name, member in vars(value).items()
        if not name.startswith("_")
        and (inspect.isroutine(member) or isinstance(member, property))
        and not inspect.getdoc(member)
    ]

    assert silent == []


def test_public_names_report_the_address_a_user_would_type() -> None:
    wrong = [
        f"{address} says {value.__module__}"
        for address, value in public_names()
        if value.__module__ not in {address.rpartition(".")[0], "durable_streams"}
    ]

    assert wrong == []


@pytest.mark.parametrize(
    "path",
    [module.__file__ for module in PUBLIC if hasattr(module, "__path__")],
    ids=lambda path: Path(path).parent.name,
)
def test_every_way_into_the_package_refuses_a_collision_first(path: str) -> None:
    code = [line for line in Path(path).read_text().splitlines() if re.match(r"(from|import|refuse_collision)\b", line)]

    first, second, *_ = [line for line in code if not line.startswith("from __future__")]

    assert first.endswith("_collision import refuse_collision")
    assert second == "refuse_collision()"


def test_the_all_extra_has_all_that_users_need() -> None:
    (everything,) = EXTRAS["all"]

    assert set(re.findall(r"\w+", everything.partition("[")[2])) == set(EXTRAS) - {"all", "dev"}


def test_the_command_is_there() -> None:
    module, _, name = PYPROJECT["project"]["scripts"]["durable-streams"].partition(":")

    assert callable(getattr(importlib.import_module(module), name))


def run_without(*missing: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python in which some libraries are not installed."""
    hide = "".join(f"sys.modules[{name!r}] = None\n" for name in missing)
    command = [sys.executable, "-c", f"import sys\n{hide}{code}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


READ = """
import anyio, durable_streams
async def main():
    await durable_streams.stream("http://127.0.0.1:9/v1/stream/a")
anyio.run(main, backend="trio")
"""
SERVE = """
from durable_streams.server import Server
with Server():
    pass
"""
COMMAND = """
from durable_streams.cli import main
main()
"""


@pytest.mark.parametrize(
    ("missing", "code", "extra"),
    [
        ("httpcore2", READ, "trio"),
        ("uvicorn", SERVE, "server"),
        ("msgspec", SERVE, "server"),
        ("click", COMMAND, "cli"),
        ("rich", COMMAND.replace("main()", "main(['demo'])"), "cli"),
    ],
)
def test_a_missing_library_names_the_extra_that_brings_it(missing: str, code: str, extra: str) -> None:
    done = run_without(missing, code=code)

    assert done.returncode != 0
    assert f"durable-streams-anyio[{extra}]" in done.stderr


def test_the_client_on_asyncio_needs_no_extra_and_logs_nothing_unasked() -> None:
    code = """
import asyncio, durable_streams
async def main():
    quick = durable_streams.BackoffOptions(max_retries=4, initial_delay=0.001)
    async with durable_streams.DurableStream("http://127.0.0.1:9/v1/stream/a", backoff_options=quick) as handle:
        try:
            await handle.append(b"x", content_type="text/plain")
        except durable_streams.NetworkError as error:
            print("refused", error.phase)
asyncio.run(main())
"""

    done = run_without("trio", "httpcore2", "uvicorn", "msgspec", "click", "rich", code=code)

    assert (done.stdout, done.stderr) == ("refused connect\n", "")


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """The text files that git tracks."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = done.stdout.split("\0") if done.returncode == 0 else []
    files = [ROOT / name for name in names if name] or [
        path for path in ROOT.rglob("*.py") if ".venv" not in path.parts
    ]
    return [path for path in files if path.is_file()]


def test_no_file_names_a_machine_or_a_registry(tracked: list[Path]) -> None:
    # Written in pieces, as this file is looked at too.
    hosts = [
        r"registry\.npm" + r"js\.org",
        r"files\.python" + r"hosted\.org",
        r"pypi\.org/" + "simple",
        "deb" + r"\.debian",
    ]
    places = [rf"/{folder}/[\w.-]+" for folder in ("root", "home", "work", "Users")]
    pattern = re.compile("|".join([*hosts, rf"(?<![\w.<}}\"'])(?:{'|'.join(places)})"]))
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked
        for match in pattern.finditer(path.read_text(errors="ignore"))
    ]

    assert found == []


def test_the_lockfile_leaves_the_registry_to_the_machine(tracked: list[Path]) -> None:
    (lockfile,) = [path for path in tracked if path.name == "package-lock.json"]

    assert '"resolved"' not in lockfile.read_text()


def test_npm_packages_have_exact_versions() -> None:
    package = json.loads((ROOT / "tests" / "interop" / "package.json").read_text())

    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in package["dependencies"].values())


def test_the_wheel_has_the_package_and_its_types(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)

    (wheel,) = tmp_path.glob("durable_streams_anyio-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "durable_streams").rglob("*.py")}
    assert sources <= names
    assert "durable_streams/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {"durable_streams", wheel.name.split("-py3")[0] + ".dist-info"}


def test_the_lazy_names_are_those_that_type_checkers_see() -> None:
    source = Path(durable_streams.__file__).read_text()
    (block,) = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    seen = {
        (f".{node.module}", name.asname)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }

    assert {(home, name) for name, home in durable_streams._HOMES.items()} == seen


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        durable_streams.nonsense  # noqa: B018 - looking is the test
