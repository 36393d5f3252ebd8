"""What requests do to streams, decided and written by the writer's thread.

Requests come in batches. Each is decided at once against the newest state, which includes what the requests before it
in the batch have done, and only gathered: `commit` writes everything that the batch did in one transaction, the appends
to one stream as one block. So nothing here is true for anyone else before `commit` has returned; what it returns is
then published to the event loop.

States of streams and producers are kept in memory, those that were used last, and read from the database when they are
missing. That needs care in one respect only: within a batch the database does not have what the batch has done, so no
state is dropped before the batch is committed. Statements that must see everything call `_write` first, which brings
the database up to date inside the open transaction.

This process alone writes to the database. A state that is in memory cannot be out of date.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Sequence

from ..._core.wire import is_json, media_type
from ..creation import CreateRequest, StreamConfig, decide_birth, decide_repetition
from ..offsets import Offset
from ..protocol import (
    Appended,
    AppendRequest,
    Duplicate,
    Payload,
    ProducerState,
    Reason,
    Refused,
    StreamState,
    decide,
)
from .base import AppendResult, Created, CreateResult, Deleted, DeleteResult, Exists, SoftDeleted, StreamRef
from .sqlite_access import Accesses, expiry
from .sqlite_blocks import Block, branch, is_boundary, make_blocks
from .sqlite_reading import StoredBlocks
from .sqlite_records import (
    ADD_BLOCK,
    SET_PRODUCER,
    Change,
    Record,
    block_row,
    insert,
    load,
    path_of,
    producer_row,
    update,
)
from .sqlite_schema import write_meta

_PRODUCER = "SELECT epoch, seq FROM producers WHERE stream = ? AND producer = ?"
_EXPIRING = "SELECT path FROM streams WHERE expires <= ? ORDER BY expires LIMIT ?"
_ADD_EDGE = "INSERT OR IGNORE INTO fork_edges (fork, source) VALUES (?, ?)"
_DROP_EDGE = "DELETE FROM fork_edges WHERE fork = ?"
_A_FORK = "SELECT path FROM streams WHERE id = (SELECT fork FROM fork_edges WHERE source = ? LIMIT 1)"
_COUNT = "SELECT value FROM meta WHERE key = 'streams'"

_PAGE_BYTES = 4096
# A time of use is stored when it moved by this many seconds, or by this part of the TTL if that is more.
_FLUSH_SECONDS = 1.0
_FLUSH_PART = 1 / 20


class Ledger:
    """All streams, as the writer sees them.

    Args:
        connection: To the database; used by nobody else.
        accesses: When streams were last used.
        incarnations: Makes the name of each new incarnation.
        limit: How many states of streams, and of producers, to keep in memory.

    Attributes:
        pages: About how many pages of the database were written since somebody set it to 0.
        streams: How many streams there are, with those that are only kept for their forks.
        commits: How many transactions were committed.
        appended_bytes: How many bytes they added to streams.
    """

    def __init__(
        self, connection: sqlite3.Connection, accesses: Accesses, incarnations: Callable[[], str], limit: int
    ) -> None:
        self._connection = connection
        self._accesses = accesses
        self._incarnations = incarnations
        self._limit = limit
        (last,) = connection.execute("SELECT max(id) FROM streams").fetchone()
        self._next_id: int = (last or 0) + 1
        self._begun = False
        # Both with the one used last at the end.
        self._records: OrderedDict[str, Record | None] = OrderedDict()  # None: nothing there, until the batch ends
        self._producers: OrderedDict[tuple[int, str], ProducerState] = OrderedDict()
        # What the batch did and is still to be written.
        self._new: dict[int, Record] = {}
        self._changed: dict[int, Record] = {}
        self._payloads: dict[int, list[Payload]] = {}
        self._new_producers: dict[tuple[int, str], tuple[ProducerState, Offset, float]] = {}
        # What it did altogether.
        self._blocks: dict[int, list[Block]] = {}
        self._touched: dict[int, Record] = {}
        self._absent: list[str] = []
        self._now = 0.0
        self.streams: int = _count_streams(connection)
        self._stored_streams = self.streams
        self.pages: int = 0
        self.commits: int = 0
        self.appended_bytes: int = 0

    # --- requests

    def create(self, r: CreateRequest, now: float) -> CreateResult:
        """Create a stream or confirm it, see `Store.create`."""
        existing = self.find(r.path, now)
        if existing is not None:
            refused = decide_repetition(existing.state, existing.asked, existing.config, r)
            return Exists(existing.info()) if refused is None else refused
        fork = r.config.fork
        source = None if fork is None else self.find(fork.source, now)
        if source is not None:
            self._write()  # the decision looks into the source's data
        birth = decide_birth(None if source is None else _Source(self._connection, source), r)
        if isinstance(birth, Refused):
            return birth
        number, self._next_id = self._next_id, self._next_id + 1
        record = Record(
            number,
            StreamRef(r.path, self._incarnations()),
            r.config,
            birth.config,
            StreamState(media_type(birth.config.effective_type), birth.tail, birth.closed),
            now,
            now,
            branch(() if source is None else source.lineage, number, birth.start),
            None if source is None else source.id,
            birth.start,
            birth.depth,
        )
        self._records[r.path] = self._new[number] = self._touched[number] = record
        if birth.appends:
            self._payloads[number] = list(birth.appends)
        self.streams += 1  # before the stream is written, as it is for an edge
        if source is not None:
            self.execute(_ADD_EDGE, (number, source.id))
        self._now = now
        return Created(record.info())

    def append(self, r: AppendRequest, now: float) -> AppendResult:
        """Append and close, see `Store.append`."""
        record = self.find(r.path, now)
        if record is None:
            return decide(None, None, r)  # type: ignore[return-value]  # without a stream nothing is committed
        stamp, number = r.producer, record.id
        known = None if stamp is None else self._producer(number, stamp.id)
        decision = decide(record.state, known, r)
        if isinstance(decision, Refused):
            return decision
        if isinstance(decision, Duplicate):
            if record.config.ttl is not None:
                self._accesses.touch(record.ref, now)
            return decision
        if isinstance(decision.payload, Payload):
            self._payloads.setdefault(number, []).append(decision.payload)
        record.state.apply(decision)
        if stamp is not None and decision.producer is not None:
            self._producers[number, stamp.id] = decision.producer
            self._new_producers[number, stamp.id] = (decision.producer, record.state.tail, now)
        self._touched[number] = record
        if record.config.ttl is not None:
            record.last_access = max(record.last_access, now)
            self._changed[number] = record
        elif decision.closes or decision.seq is not None:
            self._changed[number] = record
        self._now = now
        return Appended(record.state.tail, record.state.closed, decision.producer)

    def delete(self, path: str, now: float) -> DeleteResult:
        """Delete a stream, see `Store.delete`."""
        record = self.find(path, now)
        if record is None:
            return Refused(Reason.NOT_FOUND)
        if record.state.deleted:
            return Refused(Reason.GONE)
        return SoftDeleted() if self._retire(record, now) else Deleted()

    def find(self, path: str, now: float) -> Record | None:
        """The stream at a path. One that has expired, or was kept for forks that have, is removed here."""
        record = self._lookup(path)
        if record is None:
            return None
        if record.state.deleted:
            kept = self._is_needed(record, now)
            if not kept:
                self._remove(record)
        elif self._accesses.expired(record.ref, record.config, record.last_access, now):
            kept = self._retire(record, now)
        else:
            return record
        return record if kept else None

    def keeps(self, path: str, now: float) -> bool:
        """Whether there is a stream at a path, be it soft-deleted, after a look at the time."""
        return self.find(path, now) is not None

    # --- upkeep

    def store_accesses(
        self, entries: Sequence[tuple[StreamRef, float]], all_of_them: bool
    ) -> list[tuple[StreamRef, float]]:
        """Store times of use that have moved far enough, or all of them.

        Returns:
            Those that are stored now, or of no use any more.
        """
        done = []
        for ref, time in entries:
            record = self._lookup(ref.path)
            if record is None or record.ref != ref or record.config.ttl is None or time <= record.last_access:
                done.append((ref, time))
            elif all_of_them or time - record.last_access > max(_FLUSH_SECONDS, record.config.ttl * _FLUSH_PART):
                self._use(record, time)
                done.append((ref, time))
        return done

    def sweep(self, now: float, limit: int) -> bool:
        """Remove streams past their expiry, `limit` of them at most. Returns whether there may be more."""
        paths = [path for (path,) in self.query(_EXPIRING, (now, limit)).fetchall()]
        stuck = 0
        for path in paths:
            record = self.find(path, now)
            if record is not None and not record.state.deleted:
                # Used since; the row is to say so, or it would be found again.
                self._use(record, self._accesses.last(record.ref, record.last_access, now))
                due = expiry(record.config, record.last_access)
                stuck += due is not None and due <= now
        return len(paths) == limit and stuck < limit

    def query(self, statement: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """Ask the database, with all that the batch did in place."""
        self._write()
        return self._connection.execute(statement, parameters)

    def execute(self, statement: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """Execute a statement in the batch's transaction, with all that the batch did in place."""
        self._write()
        self._begin()
        self.pages += 2
        return self._connection.execute(statement, parameters)

    # --- the transaction

    def commit(self) -> list[Change]:
        """Make what the batch did durable.

        Returns:
            The streams that it changed, for publication.

        Raises:
            sqlite3.Error: if that fails; nobody knows then how much of it is on disk.
        """
        self._write()
        if self._begun:
            self._connection.execute("COMMIT")
            self._begun = False
            self.commits += 1
        blocks = self._blocks
        changes = [Change.of(record, blocks.get(number, ())) for number, record in self._touched.items()]
        self._blocks, self._touched = {}, {}
        for path in self._absent:
            if self._records.get(path, self) is None:
                del self._records[path]
        self._absent.clear()
        for _ in range(len(self._records) - self._limit):
            self._records.popitem(last=False)
        for _ in range(len(self._producers) - self._limit):
            self._producers.popitem(last=False)
        return changes

    def rollback(self) -> None:
        """Forget what the batch did.

        Raises:
            sqlite3.Error: if that fails.
        """
        self._records.clear()
        self._producers.clear()
        self._new, self._changed, self._payloads, self._new_producers = {}, {}, {}, {}
        self._blocks, self._touched, self._absent = {}, {}, []
        if self._begun:
            self._begun = False
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        self.streams = self._stored_streams = _count_streams(self._connection)

    def _write(self) -> None:
        """Bring the database up to date, inside the transaction."""
        if not (self._new or self._changed or self._payloads or self._new_producers):
            return  # a number of streams that has changed is never alone
        self._begin()
        new, self._new = self._new, {}
        # Removals first: a path is free only then for the stream that follows.
        changed = [record for number, record in self._changed.items() if number not in new]
        self._changed = {}
        if changed:
            update(self._connection, changed)
        if new:
            insert(self._connection, list(new.values()))
        if self.streams != self._stored_streams:
            write_meta(self._connection, "streams", self.streams)
            self._stored_streams = self.streams
        payloads, self._payloads = self._payloads, {}
        if payloads:
            self._write_blocks(payloads)
        producers, self._new_producers = self._new_producers, {}
        if producers:
            rows = [producer_row(stream, name, *news) for (stream, name), news in producers.items()]
            self._connection.executemany(SET_PRODUCER, rows)
        self.pages += 2 * (len(new) + len(changed) + len(payloads) + len(producers))  # a row's, and its index's

    def _write_blocks(self, payloads: dict[int, list[Payload]]) -> None:
        rows = []
        for number, appended in payloads.items():
            size = sum(len(payload.data) for payload in appended)
            blocks = make_blocks(self._touched[number].state.tail - size, appended)
            self._blocks.setdefault(number, []).extend(blocks)
            rows += [block_row(number, block, self._now) for block in blocks]
            self.pages += size // _PAGE_BYTES
            self.appended_bytes += size
        self._connection.executemany(ADD_BLOCK, rows)

    def _begin(self) -> None:
        if not self._begun:
            self._connection.execute("BEGIN IMMEDIATE")
            self._begun = True

    # --- states

    def _lookup(self, path: str) -> Record | None:
        if path in self._records:
            self._records.move_to_end(path)
            return self._records[path]
        record = self._records[path] = load(self._connection, path)
        if record is None:
            self._absent.append(path)
        return record

    def _producer(self, stream: int, producer: str) -> ProducerState | None:
        key = (stream, producer)
        state = self._producers.get(key)
        if state is not None:
            self._producers.move_to_end(key)
            return state
        found = None if stream in self._new else self._connection.execute(_PRODUCER, key).fetchone()
        if found is not None:
            state = self._producers[key] = ProducerState(*found)
        return state

    def _use(self, record: Record, time: float) -> None:
        record.last_access = time
        self._changed[record.id] = self._touched[record.id] = record

    def _retire(self, record: Record, now: float) -> bool:
        """Delete a stream for everyone but its forks. Returns False if it has none: then it is removed."""
        if not self._is_needed(record, now):
            self._remove(record)
            return False
        record.state.deleted = True
        self._changed[record.id] = self._touched[record.id] = record
        return True

    def _is_needed(self, record: Record, now: float) -> bool:
        """Whether forks need a stream's data. Those that have expired are removed on the way."""
        while (fork := self.query(_A_FORK, (record.id,)).fetchone()) is not None:
            if self.find(fork[0], now) is not None:
                return True
        return False

    def _remove(self, record: Record) -> None:
        """Remove a stream, and the soft-deleted ancestors that were only kept for it."""
        while not record.removed:
            record.removed, record.state.deleted = True, False
            self.streams -= 1
            self._changed[record.id] = self._touched[record.id] = record
            self._records[record.ref.path] = None
            self._absent.append(record.ref.path)
            if record.source is None:
                return
            self.execute(_DROP_EDGE, (record.id,))
            source = self._lookup(path_of(self._connection, record.source))
            assert source is not None, "an edge keeps its source"
            if source.state.deleted and self.query(_A_FORK, (source.id,)).fetchone() is None:
                record = source


def _count_streams(connection: sqlite3.Connection) -> int:
    """How many streams there are. The number is kept with them, so that opening takes no longer for having many."""
    (kept,) = connection.execute(_COUNT).fetchone() or (None,)
    if kept is None:
        (kept,) = connection.execute("SELECT count(*) FROM streams WHERE state < 2").fetchone()
    return int(kept)


class _Source:
    """A stream as the source of a fork (`ForkSource`)."""

    def __init__(self, connection: sqlite3.Connection, record: Record) -> None:
        self.state: StreamState = record.state
        self.config: StreamConfig = record.config
        self.depth: int = record.depth
        self._blocks = StoredBlocks(connection, record.lineage)

    def is_boundary(self, offset: Offset) -> bool:
        """Whether an offset up to the tail lies between two messages."""
        return offset == 0 or is_boundary(self._blocks, offset)

    def rest_of_append(self, offset: Offset) -> Payload:
        """What the append that holds the byte at `offset` has from there on."""
        return self._blocks.rest_of_append(offset, is_json(self.config.effective_type))
