"""What is kept of subscriptions, and the seam to where it is kept.

A store that keeps subscriptions has the methods of `SubscriptionStore` beside those of `Store`. One row per
subscription holds all but its links, as the text of `encode_record`; links are rows of their own, since there can be
many and a wake changes few. What is known of streams is not kept: it is looked up again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote

from ..stores.base import StreamInfo
from .bodies import RESERVED
from .model import Config, Link, State


@dataclass(frozen=True, slots=True)
class Record:
    """A subscription without its links.

    Attributes:
        root: Full path below which its streams live.
        id: Chosen by the client, unique below the root.
        incarnation: Random; tells it from an earlier subscription of the same id.
        config: As created.
        created_at: Wall-clock seconds.
        origin: Scheme, host and port as the creator addressed us.
        state: Generation, wake, lease, and the schedule of tries.
    """

    root: str
    id: str
    incarnation: str
    config: Config
    created_at: float
    origin: str
    state: State = field(default_factory=State)

    @property
    def path(self) -> str:
        """Full URL path of the subscription, by which it is kept."""
        return subscription_path(self.root, self.id)


def subscription_path(root: str, subscription_id: str) -> str:
    """Full URL path of a subscription."""
    return f"{root}/{RESERVED}/subscriptions/{quote(subscription_id, safe='')}"


@runtime_checkable
class SubscriptionStore(Protocol):
    """What a store has to do to keep subscriptions. Every call is atomic, and durable when it returns."""

    async def list_streams(self, prefix: str, after: str, limit: int, now: float) -> Sequence[StreamInfo]:
        """Streams whose path begins with `prefix` and is greater than `after`, in the order of paths.

        Expired and soft-deleted ones are left out. Fewer than `limit` are the last.
        """
        ...

    async def load_subscriptions(self) -> Sequence[tuple[Record, Mapping[str, Link]]]:
        """All subscriptions, with their links by path."""
        ...

    async def save_subscription(self, record: Record, links: Mapping[str, Link | None]) -> None:
        """Keep a record, and the links that have changed: None is one that is gone. All or nothing.

        An earlier subscription of the same `path` is replaced; of another incarnation also its links go.
        """
        ...

    async def remove_subscription(self, path: str) -> None:
        """Forget a subscription and its links; no error if there is none."""
        ...

    async def keep_secret(self, name: str, value: bytes) -> bytes:
        """The secret of this name. If there is none, `value` is kept from now on. Unreadable for other users."""
        ...


class MemoryRecords:
    """The part of a `SubscriptionStore` that concerns subscriptions, in memory."""

    def __init__(self) -> None:
        self._records: dict[str, tuple[Record, dict[str, Link]]] = {}
        self._secrets: dict[str, bytes] = {}

    async def load_subscriptions(self) -> list[tuple[Record, Mapping[str, Link]]]:
        """All subscriptions, with copies of their links."""
        return [(record, dict(links)) for record, links in self._records.values()]

    async def save_subscription(self, record: Record, links: Mapping[str, Link | None]) -> None:
        """Keep a record and changed links."""
        known = self._records.get(record.path)
        kept = known[1] if known is not None and known[0].incarnation == record.incarnation else {}
        for path, link in links.items():
            if link is None:
                kept.pop(path, None)
            else:
                kept[path] = link
        self._records[record.path] = record, kept

    async def remove_subscription(self, path: str) -> None:
        """Forget a subscription."""
        self._records.pop(path, None)

    async def keep_secret(self, name: str, value: bytes) -> bytes:
        """The secret of this name."""
        return self._secrets.setdefault(name, value)


def encode_record(record: Record) -> str:
    """A record as ASCII text."""
    return json.dumps(asdict(record), separators=(",", ":"))


def decode_record(text: str) -> Record:
    """The record of a text. Fields that an older version did not write have their defaults.

    Raises:
        ValueError: if the text is none.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        config = Config(**fields.pop("config"))
        state = State(**fields.pop("state"))
        return Record(config=replace(config, streams=tuple(config.streams)), state=state, **fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a subscription: {error}") from error
