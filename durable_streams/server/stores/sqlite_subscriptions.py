"""Subscriptions in SQLite: the part of the store that fulfils `SubscriptionStore`.

The service keeps all subscriptions in memory and tells the store what has changed, so this is read once, at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from ..subscriptions.model import Link
from ..subscriptions.records import Record, decode_record, encode_record
from .base import StreamInfo
from .sqlite_checksums import values_checksum
from .sqlite_ledger import Ledger
from .sqlite_opening import Opening
from .sqlite_records import list_records

_SAVE = "INSERT OR REPLACE INTO subscriptions (path, incarnation, record, checksum) VALUES (?, ?, ?, ?)"
_SAVE_LINK = """
INSERT OR REPLACE INTO subscription_links (subscription, stream, acked, explicit, glob, incarnation, checksum)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_LINKS = """
SELECT stream, acked, explicit, glob, incarnation FROM subscription_links WHERE subscription = ? ORDER BY stream
"""
_REMOVE_LINKS = "DELETE FROM subscription_links WHERE subscription = ?"


class SubscriptionTables:
    """What `SQLiteStore` has beside the methods of `Store`."""

    def _current(self) -> Opening:
        raise NotImplementedError

    async def list_streams(self, prefix: str, after: str, limit: int, now: float) -> list[StreamInfo]:
        """Streams by path, see `SubscriptionStore.list_streams`."""
        opening = self._current()
        found: list[StreamInfo] = []
        while len(found) < limit:
            wanted = limit - len(found)
            records = await opening.readers.run(list_records, prefix, after, wanted)
            for record in records:
                after = record.ref.path
                if not opening.accesses.expired(record.ref, record.config, record.last_access, now):
                    found.append(record.info())
            if len(records) < wanted:
                break
        return found

    async def load_subscriptions(self) -> list[tuple[Record, Mapping[str, Link]]]:
        """All subscriptions, with their links by path."""
        return await self._current().writer.submit(_load)

    async def save_subscription(self, record: Record, links: Mapping[str, Link | None]) -> None:
        """Keep a record, and the links that have changed, see `SubscriptionStore.save_subscription`."""
        await self._current().writer.submit(partial(_save, record=record, links=dict(links)))

    async def remove_subscription(self, path: str) -> None:
        """Forget a subscription and its links."""
        await self._current().writer.submit(partial(_remove, path=path))

    async def keep_secret(self, name: str, value: bytes) -> bytes:
        """The secret of this name, see `SubscriptionStore.keep_secret`. A new store's file is its owner's alone."""
        return await self._current().writer.submit(partial(_keep_secret, name=name, value=value))


def _load(ledger: Ledger) -> list[tuple[Record, Mapping[str, Link]]]:
    loaded: list[tuple[Record, Mapping[str, Link]]] = []
    for path, text in ledger.query("SELECT path, record FROM subscriptions ORDER BY path").fetchall():
        links = {
            stream: Link(acked, bool(explicit), bool(glob), incarnation)
            for stream, acked, explicit, glob, incarnation in ledger.query(_LINKS, (path,)).fetchall()
        }
        loaded.append((decode_record(text), links))
    return loaded


def _save(ledger: Ledger, record: Record, links: Mapping[str, Link | None]) -> None:
    path = record.path
    known = ledger.query("SELECT incarnation FROM subscriptions WHERE path = ?", (path,)).fetchone()
    if known is not None and known[0] != record.incarnation:
        ledger.execute(_REMOVE_LINKS, (path,))
    ledger.execute(_SAVE, _with_checksum(path, record.incarnation, encode_record(record)))
    for stream, link in links.items():
        if link is None:
            ledger.execute("DELETE FROM subscription_links WHERE subscription = ? AND stream = ?", (path, stream))
        else:
            row = _with_checksum(path, stream, link.acked, link.explicit, link.glob, link.incarnation)
            ledger.execute(_SAVE_LINK, row)


def _remove(ledger: Ledger, path: str) -> None:
    ledger.execute("DELETE FROM subscriptions WHERE path = ?", (path,))
    ledger.execute(_REMOVE_LINKS, (path,))


def _keep_secret(ledger: Ledger, name: str, value: bytes) -> bytes:
    row = _with_checksum(name, value)
    ledger.execute("INSERT OR IGNORE INTO secrets (name, value, checksum) VALUES (?, ?, ?)", row)
    (kept,) = ledger.query("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()
    return bytes(kept)


def _with_checksum(*values: object) -> tuple[object, ...]:
    return *values, values_checksum(*values)
