"""Two distributions install a package called `durable_streams`: the first import says so, whoever came last.

The scenarios install real wheels with pip into a real virtual environment, so that files are overwritten, and
removed, just as they are for a user.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from durable_streams import _collision

SENTENCE = "two distributions, durable-streams-anyio"
OURS = {
    "durable_streams/__init__.py": "from ._collision import refuse_collision\n\nrefuse_collision()\nOWNER = 'ours'\n",
    "durable_streams/_collision.py": Path(_collision.__file__).read_text(),
    "durable_streams/server/__init__.py": "from .._collision import refuse_collision\n\nrefuse_collision()\n",
}
OTHER = {"durable_streams/__init__.py": "OWNER = 'other'\n", "durable_streams/stream.py": "\n"}


class Environment:
    """A virtual environment of its own, and a folder of wheels to install into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = str(folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python")

    def install(self, name: str, version: str, files: dict[str, str]) -> None:
        """Build a wheel of these files and install it."""
        stem = f"{name.replace('-', '_')}-{version}"
        wheel = self.folder / f"{stem}-py3-none-any.whl"
        info = {
            f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{stem}.dist-info/RECORD": "",
        }
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in (files | info).items():
                archive.writestr(path, text)
        self.pip("install", "--no-index", "--no-deps", "--force-reinstall", str(wheel))

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", self.python, "--quiet", *arguments]
        subprocess.run(command, check=True, capture_output=True)

    def run(self, code: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run code in the environment, in an empty folder."""
        outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        return subprocess.run(
            [self.python, "-c", code], cwd=elsewhere, env=outside | extra, capture_output=True, text=True, check=False
        )

    def owner(self) -> str:
        """Whose `durable_streams` is imported; fails if none is."""
        done = self.run("import durable_streams; print(durable_streams.OWNER)")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def editable(environment: Environment) -> dict[str, str]:
    """The files of an editable install: a `.pth` file that leads to a checkout."""
    checkout = environment.folder / "checkout"
    for path, text in OURS.items():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text(text)
    return {"_durable_streams_anyio.pth": f"{checkout}\n"}


def test_import_fails_with_both_versions_when_ours_was_installed_last(environment: Environment) -> None:
    environment.install("durable-streams", "0.1.0", OTHER)
    environment.install("durable-streams-anyio", "9.8.7", OURS)

    done = environment.run("import durable_streams")

    assert done.returncode == 1
    assert f"ImportError: {SENTENCE} 9.8.7 and durable-streams 0.1.0" in done.stderr
    assert "pip uninstall durable-streams`" in done.stderr


def test_a_subpackage_of_ours_fails_when_the_other_was_installed_last(environment: Environment) -> None:
    environment.install("durable-streams-anyio", "9.8.7", OURS)
    environment.install("durable-streams", "0.1.0", OTHER)
    assert environment.owner() == "other"

    done = environment.run("import durable_streams.server")

    assert done.returncode == 1
    assert SENTENCE in done.stderr


@pytest.mark.parametrize(
    ("kept", "removed", "files", "owner"),
    [
        ("durable-streams-anyio", "durable-streams", OURS, "ours"),
        ("durable-streams", "durable-streams-anyio", OTHER, "other"),
    ],
)
def test_following_the_advice_of_the_error_repairs_the_environment(
    environment: Environment, kept: str, removed: str, files: dict[str, str], owner: str
) -> None:
    environment.install("durable-streams", "0.1.0", OTHER)
    environment.install("durable-streams-anyio", "9.8.7", OURS)

    environment.pip("uninstall", "--yes", removed)
    environment.install(kept, "1.0", files)

    assert environment.owner() == owner


def test_import_from_the_checkout_fails_when_the_other_hides_an_editable_install(environment: Environment) -> None:
    environment.install("durable-streams-anyio", "9.8.7", editable(environment))
    assert environment.owner() == "ours"
    environment.install("durable-streams", "0.1.0", OTHER)

    done = environment.run("import durable_streams", PYTHONPATH=str(environment.folder / "checkout"))

    assert done.returncode == 1
    assert SENTENCE in done.stderr


def test_the_other_distribution_elsewhere_on_the_path_is_hidden_and_does_no_harm(environment: Environment) -> None:
    environment.install("durable-streams-anyio", "9.8.7", OURS)
    later = environment.folder / "later"
    distribution(later, "durable_streams-0.1.0.dist-info")

    done = environment.run(f"import sys; sys.path.append({str(later)!r}); import durable_streams")

    assert done.returncode == 0, done.stderr


def distribution(directory: Path, name: str, *, metadata: bool = True) -> None:
    """Leave the traces of an installed distribution in a directory."""
    (directory / name).mkdir(parents=True)
    if metadata:
        (directory / name / "METADATA").touch()


def test_the_error_names_package_and_place(tmp_path: Path) -> None:
    distribution(tmp_path, "durable_streams-0.1.0.dist-info")

    with pytest.raises(ImportError, match=r"durable-streams-anyio and durable-streams 0\.1\.0") as caught:
        _collision.refuse_collision(str(tmp_path / "durable_streams"), [])

    assert (caught.value.name, caught.value.path) == ("durable_streams", str(tmp_path))


@pytest.mark.parametrize("name", ["durable_streams", "Durable_Streams", "durable-streams"])
def test_every_spelling_of_the_distribution_is_recognised(tmp_path: Path, name: str) -> None:
    distribution(tmp_path, f"{name}-0.1.0.dist-info")
    distribution(tmp_path, "durable_streams_anyio-1.0.dist-info")

    with pytest.raises(ImportError, match=r"durable-streams-anyio 1\.0 and durable-streams 0\.1\.0"):
        _collision.refuse_collision(str(tmp_path / "elsewhere" / "durable_streams"), [str(tmp_path)])


@pytest.mark.parametrize(
    "name",
    ["durable_streams_anyio-1.0.dist-info", "durable_streams_extra-1.0.dist-info", "~urable_streams-0.1.0.dist-info"],
)
def test_other_names_are_no_collision(tmp_path: Path, name: str) -> None:
    distribution(tmp_path, name)

    _collision.refuse_collision(str(tmp_path / "durable_streams"), [str(tmp_path), "", str(tmp_path / "absent.zip")])


def test_an_empty_directory_left_by_pip_is_no_collision(tmp_path: Path) -> None:
    distribution(tmp_path, "durable_streams-0.1.0.dist-info", metadata=False)

    _collision.refuse_collision(str(tmp_path / "durable_streams"), [])
