"""Looking into a store's file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from ..stores.reports import ProducerReport, StoreReport, StreamReport, SubscriptionReport
from ..stores.sqlite_reports import report_producers, report_store, report_streams
from ..subscriptions.model import Link
from ..subscriptions.records import decode_record
from .snapshot import making_sense, open_snapshot

_PAGE = 1000
_ALL = -1
_LINKS = "SELECT stream, acked, explicit, glob, incarnation FROM subscription_links WHERE subscription = ?"


class StoreInspection:
    """A store as it was when `inspect_store` began.

    Args:
        connection: To the file, inside a transaction.
        path: The file.
    """

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._connection = connection
        self._path = path

    def store(self) -> StoreReport:
        """The store as a whole."""
        with making_sense(self._path):
            return report_store(self._connection, self._path)

    def streams(self, prefix: str = "") -> Iterator[StreamReport]:
        """All streams in the order of their paths, those included that are soft-deleted.

        Args:
            prefix: Only the stream of this path, and those below it.
        """
        after = ""
        while True:
            with making_sense(self._path):
                page = report_streams(self._connection, prefix, after, _PAGE)
            if not page:
                return
            yield from page
            after = page[-1].path

    def producers(self, stream: str) -> Iterator[ProducerReport]:
        """All producers of the stream with this path, those first that were seen last."""
        with making_sense(self._path):
            found = report_producers(self._connection, stream, _ALL)
        yield from found

    def subscriptions(self) -> Iterator[SubscriptionReport]:
        """All subscriptions."""
        with making_sense(self._path):
            found = self._connection.execute("SELECT path, record FROM subscriptions ORDER BY path").fetchall()
        for path, text in found:
            with making_sense(self._path):
                links = {
                    stream: Link(acked, bool(explicit), bool(glob), incarnation)
                    for stream, acked, explicit, glob, incarnation in self._connection.execute(_LINKS, (path,))
                }
                report = SubscriptionReport.of(decode_record(text), links)
            yield report


@contextmanager
def inspect_store(path: str | os.PathLike[str]) -> Iterator[StoreInspection]:
    """Look into a store, whether or not a server has it open.

        with inspect_store("/var/lib/streams.db") as look:
            for stream in look.streams("/v1/stream/orders"):
                print(stream.path, stream.size)

    What is seen in the block is one moment of the store. While the block lasts, its write-ahead log can only grow.

    Raises:
        StoreFormatError: if the file is no store, was made by another release, or is damaged.
        StoreError: if it cannot be opened or read.
    """
    with open_snapshot(path) as connection:
        yield StoreInspection(connection, os.fspath(path))
