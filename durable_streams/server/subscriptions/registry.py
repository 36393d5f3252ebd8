"""The subscriptions of a server, and which of them care about a stream."""

from __future__ import annotations

from collections import Counter

import anyio

from .bodies import Paths
from .model import Link, Subscription
from .records import Record


class Kept:
    """One subscription in the service's hands.

    Attributes:
        record: As it is kept.
        model: Its state machine.
        paths: Between its paths and the store's.
        lock: Held while its streams are looked at and a decision is made and kept.
        busy: Whether a wake is being sent.
        removed: Whether it was deleted.
        timer: When the loop will look at it at the latest.
    """

    def __init__(self, record: Record, links: dict[str, Link], wake_streams: Counter[str]) -> None:
        self.record: Record = record
        self.paths: Paths = Paths(record.root)
        self.model: Subscription = Subscription(
            record.config, record.state, links, quiet=_Quiet(self.paths, wake_streams)
        )
        self.lock: anyio.Lock = anyio.Lock()
        self.busy: bool = False
        self.removed: bool = False
        self.timer: float | None = None

    def __repr__(self) -> str:
        return f"<Kept {self.record.path}: {self.model!r}>"

    @property
    def wake_path(self) -> str | None:
        """Full path of the wake stream, or None."""
        stream = self.record.config.wake_stream
        return None if stream is None else self.paths.full(stream)

    @property
    def glob_key(self) -> tuple[str, str]:
        """Where the pattern is filed: by its first segment if that is plain, else with those that may match all."""
        glob = self.model.glob
        return self.record.root, "" if glob is None else glob.prefix.partition("/")[0]


class _Quiet:
    """The wake streams, by the paths of one subscription."""

    def __init__(self, paths: Paths, wake_streams: Counter[str]) -> None:
        self._paths = paths
        self._wake_streams = wake_streams

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self._wake_streams[self._paths.full(path)] > 0


class Registry:
    """All subscriptions, filed by what leads to them.

    Patterns are filed by their first segment if that is plain, so that a stream is compared with few of them.

    Attributes:
        by_path: Subscriptions by their full path.
        wake_streams: How many subscriptions write their wake events to a stream, by its full path.
    """

    def __init__(self) -> None:
        self.by_path: dict[str, Kept] = {}
        self.wake_streams: Counter[str] = Counter()
        self._linked: dict[str, set[Kept]] = {}
        self._globs: dict[tuple[str, str], set[Kept]] = {}
        self._roots: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Registry of {len(self.by_path)} subscriptions>"

    def add(self, kept: Kept) -> None:
        """File a subscription."""
        self.by_path[kept.record.path] = kept
        self._roots[kept.record.root] += 1
        if kept.model.glob is not None:
            self._globs.setdefault(kept.glob_key, set()).add(kept)
        if kept.wake_path is not None:
            self.wake_streams[kept.wake_path] += 1
        for path, link in kept.model.links.items():
            self.index(kept, path, link)

    def discard(self, kept: Kept) -> None:
        """Take out a subscription that was deleted."""
        kept.removed = True
        del self.by_path[kept.record.path]
        self._roots -= Counter([kept.record.root])
        if kept.model.glob is not None:
            self._globs[kept.glob_key].discard(kept)
        if kept.wake_path is not None:
            self.wake_streams[kept.wake_path] -= 1  # in place: every subscription looks at this very counter
        for path in kept.model.links:
            self.index(kept, path, None)

    def index(self, kept: Kept, path: str, link: Link | None) -> None:
        """File a link, or (None) take it out."""
        full = kept.paths.full(path)
        if link is not None:
            self._linked.setdefault(full, set()).add(kept)
        elif full in self._linked:
            self._linked[full].discard(kept)
            if not self._linked[full]:
                del self._linked[full]

    def interested(self, full: str) -> set[Kept]:
        """Subscriptions that a change of this stream may concern: by a link, a pattern, or as wake stream."""
        found = set(self._linked.get(full, ()))
        for root in self._roots:
            if full.startswith(root + "/"):
                path = full[len(root) + 1 :]
                for key in (path.partition("/")[0], ""):
                    found.update(kept for kept in self._globs.get((root, key), ()) if kept.model.covers(path))
        if self.wake_streams[full]:
            found.update(kept for kept in self.by_path.values() if kept.wake_path == full)
        return found
