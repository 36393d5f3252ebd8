"""Refuses to work while another distribution owns this import package too.

The distribution `durable-streams` on PyPI also installs a package called `durable_streams`. pip does not notice: the
one installed last overwrites files of the other, and removing either deletes files of both. What happens then depends
on the order of the installations, so the first import says what is wrong instead.

Both leave a `.dist-info` directory where they were installed. The other one stands in our way if its directory lies
beside our package (installed into the same place) or beside our own `.dist-info` (one of the two is an editable
install). Elsewhere on `sys.path` it is merely hidden by ours and does no harm. Listing a few directories takes a
fraction of a millisecond; `importlib.metadata` would cost more than the rest of the import.

If the other one was installed last, its `__init__` is the one that runs, and this check only runs when a subpackage of
ours that it knows nothing of is imported; therefore `server`, `testing` and `cli` ask too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

OURS = "durable-streams-anyio"
OTHER = "durable-streams"


def refuse_collision(package: str | None = None, path: Iterable[str] | None = None) -> None:
    """Raise if the other distribution is installed where this one is.

    Args:
        package: Directory of our package; None means the one that this module is in.
        path: Directories in which Python looks for modules; None means `sys.path`.

    Raises:
        ImportError: with the place, the versions, and the commands that keep either of the two.
    """
    beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)) if package is None else package)
    for directory in dict.fromkeys((beside, *(sys.path if path is None else path))):
        found = _distributions(directory)
        if OTHER in found and (OURS in found or directory == beside):
            raise ImportError(_sentence(directory, found), name="durable_streams", path=directory)


def _distributions(directory: str) -> dict[str, str]:
    """The versions of the two distributions as far as they are installed in this directory."""
    try:
        names = os.listdir(directory or os.curdir)
    except OSError:
        return {}  # an archive, or a directory that does not exist: both are allowed on sys.path
    found = {}
    for name in names:
        if name[:7].lower() != "durable" or not name.endswith(".dist-info"):
            continue
        distribution, _, version = name.removesuffix(".dist-info").rpartition("-")
        distribution = distribution.lower().replace("_", "-")
        # pip may leave an empty directory behind when it removes a distribution.
        if distribution in (OURS, OTHER) and os.path.exists(os.path.join(directory, name, "METADATA")):
            found[distribution] = version
    return found


def _sentence(directory: str, found: dict[str, str]) -> str:
    ours = f"{OURS} {found[OURS]}" if OURS in found else OURS
    reinstall = "pip install --force-reinstall --no-deps"
    return (
        f"two distributions, {ours} and {OTHER} {found[OTHER]}, provide the package 'durable_streams' in {directory} "
        f"and overwrite or hide each other's files. "
        f"To keep {OURS}: `pip uninstall {OTHER}`, then `{reinstall} {OURS}`. "
        f"To keep {OTHER}: `pip uninstall {OURS}`, then `{reinstall} {OTHER}`."
    )
