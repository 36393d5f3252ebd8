"""Basins and their streams in memory. Nothing here waits or knows of connections (specification: S2 2)."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from .answers import Refusal, bad, refusal
from .configs import Json, new_basin_config, patch_basin, patch_stream, read_basin_config, read_stream_config
from .stream import Stream

_BASIN_PREFIX = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
_BASIN_NAME = re.compile(r"[a-z0-9][a-z0-9-]{6,46}[a-z0-9]")


class Basin:
    """One basin with its streams.

    Attributes:
        name: Its name.
        config: BasinConfig, all fields.
        streams: By name, those being deleted included.
    """

    def __init__(self, name: str, config: Json, created_at: str) -> None:
        self.name = name
        self.config = config
        self.created_at = created_at
        self.deleted_at: str | None = None
        self.streams: dict[str, Stream] = {}
        self.tokens: dict[str, tuple[str, Json]] = {}  # request token -> name and settings of what it created

    @property
    def info(self) -> Json:
        """BasinInfo."""
        return {
            "name": self.name,
            "location": None,
            "created_at": self.created_at,
            "deleted_at": self.deleted_at,
            "state": "deleting" if self.deleted_at else "active",
        }

    def add(self, name: str, own: Json, now: str) -> Stream:
        """Create a stream."""
        stream = Stream(name, own, self.config["default_stream_config"], self.config["stream_cipher"], now)
        self.streams[name] = stream
        return stream


class Store:
    """All basins.

    Args:
        clock: Milliseconds since the epoch.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.basins: dict[str, Basin] = {}
        self._tokens: dict[str, tuple[str, Json]] = {}

    def now(self) -> str:
        """The time as RFC 3339."""
        seconds, rest = divmod(self.clock(), 1000)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03}Z"

    # Basins

    def basin(self, name: str) -> Basin:
        """The basin of that name."""
        basin = self.basins.get(name)
        if basin is None:
            raise refusal(404, "basin_not_found", f"basin `{name}` not found")
        return basin

    def create_basin(self, body: Any, token: str | None) -> tuple[str, Basin]:
        """Create a basin. Returns "created", or "noop" for the same request again."""
        if not isinstance(body, dict) or not isinstance(body.get("basin"), str):
            raise bad("bad_json", "missing field `basin`")
        name = check_basin_name(body["basin"], "bad_json")
        config = read_basin_config(body.get("config") or {})
        there = self.basins.get(name)
        if there is not None:
            if there.deleted_at:
                raise refusal(409, "basin_deletion_pending", f"basin `{name}` is being deleted")
            if token is None or self._tokens.get(token) != (name, config):
                raise refusal(409, "resource_already_exists", f"basin `{name}` already exists")
            return "noop", there
        self.basins[name] = basin = Basin(name, config, self.now())
        if token is not None:
            self._tokens[token] = (name, config)
        return "created", basin

    def ensure_basin(self, name: str, body: Any) -> tuple[str, Basin]:
        """Create or replace a basin's configuration."""
        config = read_basin_config((body or {}).get("config") or {}) if isinstance(body, dict) else new_basin_config()
        basin = self.basins.get(name)
        if basin is None:
            self.basins[name] = basin = Basin(name, config, self.now())
            return "created", basin
        if basin.deleted_at:
            raise refusal(409, "basin_deletion_pending", f"basin `{name}` is being deleted")
        config["stream_cipher"] = basin.config["stream_cipher"]
        if basin.config == config:
            return "noop", basin
        basin.config = config
        return "updated", basin

    def patch_basin(self, name: str, body: Any) -> Basin:
        """Reconfigure a basin."""
        patch_basin(new_basin_config(), body)
        basin = self.basin(name)
        if basin.deleted_at:
            raise refusal(409, "basin_deletion_pending", f"basin `{name}` is being deleted")
        basin.config = patch_basin(basin.config, body)
        return basin

    def delete_basin(self, name: str) -> None:
        """Mark a basin as deleted; `sweep` removes it with its streams."""
        basin = self.basin(name)
        basin.deleted_at = basin.deleted_at or self.now()

    def sweep(self) -> None:
        """Remove what is marked as deleted."""
        for name, basin in list(self.basins.items()):
            if basin.deleted_at:
                for stream in basin.streams.values():
                    if not stream.deleted_at:
                        stream.delete(self.now())
                del self.basins[name]
                self._tokens = {key: value for key, value in self._tokens.items() if value[0] != name}
                continue
            for stream in [stream for stream in basin.streams.values() if stream.deleted_at]:
                del basin.streams[stream.name]
                basin.tokens = {key: value for key, value in basin.tokens.items() if value[0] != stream.name}

    # Streams

    def stream(self, basin_name: str, name: str, *, unknown_basin: bool = False) -> Stream:
        """The stream of that name. `unknown_basin`: an unknown basin is told as such, and not as an unknown stream."""
        basin = self.basin(basin_name) if unknown_basin else self.basins.get(basin_name)
        stream = basin.streams.get(name) if basin is not None else None
        if stream is None:
            raise refusal(404, "stream_not_found", f"stream `{name}` not found in basin `{basin_name}`")
        if stream.deleted_at:
            raise _pending(stream)
        return stream

    def open_stream(self, basin_name: str, name: str, why: str, config: Json | None) -> Stream:
        """The stream of that name, created if the basin allows it. `why`: "append" or "read"."""
        basin = self.basin(basin_name)
        if name not in basin.streams and basin.config[f"create_stream_on_{why}"] and not basin.deleted_at:
            return basin.add(name, config or {}, self.now())
        return self.stream(basin_name, name)

    def create_stream(self, basin_name: str, body: Any, token: str | None) -> tuple[str, Stream]:
        """Create a stream. Returns "created", or "noop" for the same request again."""
        if not isinstance(body, dict) or not isinstance(body.get("stream"), str):
            raise bad("bad_json", "missing field `stream`")
        name = check_stream_name(body["stream"], "bad_json")
        config = read_stream_config(body.get("config") or {})
        basin = self._open_basin(basin_name)
        there = basin.streams.get(name)
        if there is not None:
            if there.deleted_at:
                raise _pending(there)
            if token is None or basin.tokens.get(token) != (name, config):
                raise refusal(409, "resource_already_exists", f"stream `{name}` already exists")
            return "noop", there
        if token is not None:
            basin.tokens[token] = (name, config)
        return "created", basin.add(name, config, self.now())

    def ensure_stream(self, basin_name: str, name: str, body: Any) -> tuple[str, Stream]:
        """Create a stream or replace its configuration."""
        config = read_stream_config(body or {})
        basin = self._open_basin(basin_name)
        stream = basin.streams.get(name)
        if stream is None:
            return "created", basin.add(name, config, self.now())
        if stream.deleted_at:
            raise _pending(stream)
        before = stream.config
        stream.own, stream.base = config, basin.config["default_stream_config"]
        return ("noop" if stream.config == before else "updated"), stream

    def patch_stream(self, basin_name: str, name: str, body: Any) -> Stream:
        """Reconfigure a stream."""
        patch_stream({}, body)  # what is wrong with it comes before what is not there
        stream = self.stream(basin_name, name, unknown_basin=True)
        stream.own = patch_stream(stream.own, body)
        return stream

    def delete_stream(self, basin_name: str, name: str) -> None:
        """Mark a stream as deleted; `sweep` removes it."""
        self.stream(basin_name, name).delete(self.now())

    def _open_basin(self, name: str) -> Basin:
        basin = self.basin(name)
        if basin.deleted_at:
            raise refusal(409, "basin_deletion_pending", f"basin `{name}` is being deleted")
        return basin


def _pending(stream: Stream) -> Refusal:
    return refusal(409, "stream_deletion_pending", f"stream `{stream.name}` is being deleted")


def check_basin_name(name: str, code: str) -> str:
    """A basin's name; `code` tells the place it stood in."""
    if not _BASIN_NAME.fullmatch(name):
        raise bad(code, "basin name must be 8 to 48 of lower-case letters, digits and hyphens")
    return name


def check_basin_prefix(text: str) -> str:
    """A prefix of basins' names, or one to start after; "" is none."""
    if text and not _BASIN_PREFIX.fullmatch(text):
        raise bad("bad_query", "basin prefix must be at most 48 of lower-case letters, digits and hyphens")
    return text


def check_prefix(text: str) -> str:
    """A prefix of streams' names, or one to start after."""
    if len(text.encode()) > 512 or "\0" in text:
        raise bad("bad_query", "stream prefix must be at most 512 bytes, without NUL")
    return text


def check_stream_name(name: str, code: str) -> str:
    """A stream's name; `code` tells the place it stood in."""
    if not 1 <= len(name.encode()) <= 512 or name in (".", "..") or "\0" in name:
        raise bad(code, "stream name must be 1 to 512 bytes, and neither `.` nor `..`")
    return name
