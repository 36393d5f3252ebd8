"""Removing what is no longer needed, a little at a time: each call is one job of the writer among others."""

from __future__ import annotations

from collections.abc import Sequence

from .sqlite_checksums import values_checksum
from .sqlite_ledger import Ledger

_PURGED_ROWS = 1000
_PURGED_BYTES = 8 << 20
# Free pages are used again by the next appends; only a file with very many of them is made smaller.
_TOLERATED_FREE_PAGES = 4096
_TOLERATED_FREE_PART = 4
_VACUUMED_PAGES = 1024

_OLDEST_BLOCKS = "SELECT end_offset, length(data) FROM blocks WHERE stream = ? ORDER BY end_offset LIMIT ?"
_DELETE_BLOCKS = "DELETE FROM blocks WHERE stream = ? AND end_offset <= ?"
_DELETE_PRODUCERS = """
DELETE FROM producers WHERE stream = ?1 AND producer IN (SELECT producer FROM producers WHERE stream = ?1 LIMIT ?2)
"""
_CLOSED_CLEANLY = "UPDATE meta SET value = 1, checksum = ? WHERE key = 'closed_cleanly'"


def leftovers(ledger: Ledger) -> list[int]:
    """Streams that were removed in former runs, and whose rows are still there."""
    return [number for (number,) in ledger.query("SELECT id FROM streams WHERE state = 2").fetchall()]


def purge(ledger: Ledger, streams: Sequence[int]) -> int:
    """Delete some rows of removed streams, one stream after the other.

    Args:
        ledger: Whose connection to use.
        streams: Numbers of removed streams that nobody reads any more.

    Returns:
        How many of them, from the first on, have no rows left.
    """
    rows = size = 0
    for done, stream in enumerate(streams):
        while True:
            last = None
            for end, length in ledger.query(_OLDEST_BLOCKS, (stream, _PURGED_ROWS)).fetchall():
                rows, size, last = rows + 1, size + length, end
                if size >= _PURGED_BYTES:
                    break
            if last is not None:
                ledger.execute(_DELETE_BLOCKS, (stream, last))
                ledger.pages += rows // 8 + (size >> 18)  # free pages are only listed
            else:
                deleted = ledger.execute(_DELETE_PRODUCERS, (stream, _PURGED_ROWS)).rowcount
                rows += deleted
                if not deleted:
                    break
            if rows >= _PURGED_ROWS or size >= _PURGED_BYTES:
                return done
        ledger.execute("DELETE FROM streams WHERE id = ? AND state = 2", (stream,))
        rows += 1
        if rows >= _PURGED_ROWS:
            return done + 1
    return len(streams)


def vacuum(ledger: Ledger) -> bool:
    """Give some free pages back to the file system if there are very many. Returns whether there were."""
    (free,) = ledger.query("PRAGMA freelist_count").fetchone()
    (pages,) = ledger.query("PRAGMA page_count").fetchone()
    if free <= max(_TOLERATED_FREE_PAGES, pages // _TOLERATED_FREE_PART):
        return False
    ledger.execute(f"PRAGMA incremental_vacuum({_VACUUMED_PAGES})").fetchall()
    ledger.pages += 2 * _VACUUMED_PAGES
    return True


def note_clean_end(ledger: Ledger) -> None:
    """Enter that all times of use are stored, see `sqlite_schema.note_opening`."""
    ledger.execute(_CLOSED_CLEANLY, (values_checksum("closed_cleanly", 1),))
