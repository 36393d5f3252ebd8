"""Bodies of the control interface: JSON objects, read strictly (server 15.1)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from ..._core.wire import normalize_path
from ..offsets import Offset, parse_offset
from .model import PULL_WAKE, WEBHOOK, Config, Wake

#: Reserved first segment of paths below the root.
RESERVED = "__ds"
MIN_LEASE_MS, MAX_LEASE_MS, DEFAULT_LEASE_MS = 1000, 600_000, 30_000

_SAFE = "/%:@!$&'()*+,;=~-._"
_MAX_PATTERN = 1024


class BadRequest(Exception):  # noqa: N818  # control flow inside the server; never reaches a user
    """The request is malformed; the text says how, and repeats nothing of it."""


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        BadRequest: if it is none.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not valid JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


class Paths:
    """Stream names in bodies: relative to the root, in one spelling.

    Args:
        root: Full path of the root, without a slash at its end.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def full(self, path: str) -> str:
        """The path by which the store knows a stream."""
        return f"{self.root}/{path}"

    def relative(self, full: str) -> str:
        """The opposite of `full`."""
        return full[len(self.root) + 1 :]

    def normalize(self, name: str, value: object) -> str:
        """A stream's path as the client gave it, in its one spelling. Slashes at the ends mean nothing.

        Args:
            name: Of the field, for the error.
            value: What the field has.

        Raises:
            BadRequest: if it cannot be a stream's path.
        """
        text = read_text(name, value).strip("/")
        normal = normalize_path(self.full(quote(text, safe=_SAFE)).encode())
        if normal is None or self.relative(normal).partition("/")[0] == RESERVED:
            raise BadRequest(f"{name} is not acceptable as the path of a stream")
        return self.relative(normal)


def read_text(name: str, value: object) -> str:
    """A string that can be encoded.

    Raises:
        BadRequest: if the value is none.
    """
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRequest(f"{name} must be a string")
    return value


def read_config(fields: dict[str, Any], paths: Paths) -> Config:
    """What a PUT asks for. The webhook's URL is not judged here.

    Raises:
        BadRequest: if a field is missing or malformed.
    """
    kind = fields.get("type")
    if kind not in (WEBHOOK, PULL_WAKE):
        raise BadRequest("type must be 'webhook' or 'pull-wake'")
    pattern = None if fields.get("pattern") is None else _read_pattern(fields["pattern"])
    streams = () if fields.get("streams") is None else read_streams(fields, paths)
    if pattern is None and not streams:
        raise BadRequest("at least one of pattern and streams is needed")
    lease = DEFAULT_LEASE_MS if fields.get("lease_ttl_ms") is None else fields["lease_ttl_ms"]
    if not isinstance(lease, int) or isinstance(lease, bool) or not MIN_LEASE_MS <= lease <= MAX_LEASE_MS:
        raise BadRequest(f"lease_ttl_ms must be an integer from {MIN_LEASE_MS} to {MAX_LEASE_MS}")
    description = None if fields.get("description") is None else read_text("description", fields["description"])
    url = wake_stream = None
    if kind == WEBHOOK:
        webhook = fields.get("webhook")
        url = read_text("webhook.url", webhook.get("url") if isinstance(webhook, dict) else None)
    else:
        wake_stream = paths.normalize("wake_stream", fields.get("wake_stream"))
        if wake_stream in streams:
            raise BadRequest("streams must not name the wake_stream: its events would wake without end")
    return Config(kind, pattern, streams, url, wake_stream, lease, description)


def read_streams(fields: dict[str, Any], paths: Paths) -> tuple[str, ...]:
    """The paths in `streams`, sorted, each once.

    Raises:
        BadRequest: if it is no array of paths.
    """
    value = fields.get("streams")
    if not isinstance(value, list):
        raise BadRequest("streams must be an array of strings")
    return tuple(sorted({paths.normalize("streams", item) for item in value}))


def _read_pattern(value: object) -> str:
    pattern = quote(read_text("pattern", value).strip("/"), safe=_SAFE)
    # Beside its wildcards, which are ordinary characters there, a pattern is a path.
    if len(pattern) > _MAX_PATTERN or normalize_path(f"/{pattern}".encode()) is None:
        raise BadRequest("pattern must be a path whose segments may be * or **")
    return pattern


def read_wake(fields: dict[str, Any]) -> Wake:
    """The wake that a worker says it works on.

    Raises:
        BadRequest: if it is not named.
    """
    generation = fields.get("generation")
    if not isinstance(generation, int) or isinstance(generation, bool):
        raise BadRequest("generation must be an integer")
    return Wake(generation, read_text("wake_id", fields.get("wake_id")))


def read_acks(fields: dict[str, Any], paths: Paths) -> tuple[Sequence[tuple[str, Offset | None]], bool]:
    """The acks of a worker, and whether it is done.

    A path that no stream can have and an offset that is none of ours come through as such: they are wrong as acks, not
    as JSON.

    Raises:
        BadRequest: if a field has a wrong type.
    """
    done = fields.get("done", False)
    if not isinstance(done, bool):
        raise BadRequest("done must be true or false")
    return [_read_ack(item, paths.normalize) for item in _read_list(fields.get("acks"))], done


def _read_list(value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRequest("acks must be an array")
    return value


def _read_ack(item: object, normalize: Callable[[str, object], str]) -> tuple[str, Offset | None]:
    if not isinstance(item, dict):
        raise BadRequest("each of acks must be an object")
    stream = read_text("stream", item.get("stream", item.get("path")))
    offset = parse_offset(read_text("offset", item.get("offset")))
    try:
        return normalize("stream", stream), offset
    except BadRequest:
        return stream, None
