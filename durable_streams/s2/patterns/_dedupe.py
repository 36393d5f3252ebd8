"""Numbers on records, by which readers recognise those that a retried append stored twice.

A retry writes the records it is not sure of again, so a reader sees `A B A B` and never `B A` (specification: S2 5.4):
within one writer's records, whatever is not higher than what was seen already is a duplicate. The rule holds for one
writer at a time. A new writer's name begins a new count, which is how a writer comes back after a crash.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from ..._core import validate
from ...errors import InvalidArgumentError
from .._values import MAX_U64, AppendRecord, Header
from ._chunks import DEDUPE_SEQ_HEADER, WRITER_ID_HEADER, decode_u64

#: Writer of records that have a number and no name.
LEGACY_WRITER: str = "__legacy__"

_RESERVED = frozenset({DEDUPE_SEQ_HEADER, WRITER_ID_HEADER})
_BOM = "\ufeff"


def inject_dedupe_headers(
    records: Iterable[AppendRecord], writer_id: str, start_seq: int
) -> tuple[list[AppendRecord], int]:
    """The records with number and writer's name behind their own headers.

    Args:
        records: As `frame_chunks_to_records` makes them, or any others.
        writer_id: Name of the writer. With full chunks it may have 12 bytes.
        start_seq: Number of the first record.

    Returns:
        The new records, and the number that comes next.

    Raises:
        InvalidArgumentError: if one of the records has such headers already; or the name is empty, or the numbers run
            out.
    """
    originals = list(records)
    validate.integer("start_seq", start_seq, maximum=MAX_U64)
    name = check_writer_id(writer_id)
    if any(header in _RESERVED for record in originals for header, _ in record.headers):
        raise InvalidArgumentError("records must not have headers named _dedupe_seq or _writer_id")
    next_seq = start_seq + len(originals)
    if next_seq > MAX_U64:
        raise InvalidArgumentError(f"start_seq leaves no numbers for {len(originals)} records: {start_seq}")
    return [
        AppendRecord(
            record.body,
            (*record.headers, (DEDUPE_SEQ_HEADER, seq.to_bytes(8, "big")), (WRITER_ID_HEADER, name)),
            record.timestamp,
        )
        for seq, record in enumerate(originals, start_seq)
    ], next_seq


def check_writer_id(writer_id: str) -> bytes:
    """The name of a writer in UTF-8."""
    if not isinstance(writer_id, str):
        raise TypeError(f"writer_id must be a str, got {type(writer_id).__name__}")
    if not writer_id:
        raise InvalidArgumentError("writer_id must not be empty")
    try:
        return writer_id.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError("writer_id has no UTF-8 form: it has a lone surrogate") from None


def extract_dedupe_seq(headers: Iterable[Header]) -> tuple[str, int] | None:
    """Writer and number of a record; None if it has no number.

    A number without a writer belongs to `LEGACY_WRITER`. Of repeated headers the first counts, but as long as only one
    of the two was found, a number of 0 or an empty name is replaced by a later one: the TypeScript package reads so.

    Raises:
        MessageFormatError: if the number has not 8 bytes.
    """
    seq: int | None = None
    writer: str | None = None
    for name, value in headers:
        if name == DEDUPE_SEQ_HEADER and not seq:
            seq = decode_u64(value)
        elif name == WRITER_ID_HEADER and not writer:
            writer = value.decode("utf-8", "replace").removeprefix(_BOM)
        if seq is not None and writer is not None:
            break
    if seq is None:
        return None
    return (LEGACY_WRITER if writer is None else writer), seq


class DedupeFilter:
    """Tells duplicates of one writer's records; see the module for the rule.

    Its memory is the last writer and number. A reader that begins afresh has none, and takes the first record for new:
    keep `last` together with the place where you stopped, and a duplicate that lies right behind it is still known.

    Args:
        max_writers: Remember so many writers, the most recent ones, instead of the last alone: records of several may
            then lie between a record and its duplicate.
        last: What an earlier filter remembered, see `last`: writers and numbers, the most recent writer at the end.

    Attributes:
        dropped: Duplicates so far.
    """

    def __init__(self, *, max_writers: int = 1, last: Mapping[str, int] | None = None) -> None:
        validate.integer("max_writers", max_writers, minimum=1)
        self._max_writers = max_writers
        self._last: OrderedDict[str, int] = OrderedDict()
        self.dropped: int = 0
        for writer, seq in validate.mapping("last", last).items():
            self._remember(writer, validate.integer(f"last[{writer!r}]", seq, maximum=MAX_U64))

    def should_accept(self, headers: Sequence[Header]) -> bool:
        """Whether a record with these headers is new, and remember it. One without a number always is.

        Raises:
            MessageFormatError: if the number has not 8 bytes. Nothing is remembered then.
        """
        if not headers or (found := extract_dedupe_seq(headers)) is None:
            return True
        writer, seq = found
        if seq <= self._last.get(writer, -1):
            self.dropped += 1
            return False
        self._remember(writer, seq)
        return True

    def _remember(self, writer: str, seq: int) -> None:
        last = self._last
        last[writer] = seq
        last.move_to_end(writer)
        if len(last) > self._max_writers:
            last.popitem(last=False)

    @property
    def last(self) -> dict[str, int]:
        """The last number of each writer that is remembered, the most recent writer at the end. JSON can keep it."""
        return dict(self._last)

    def __repr__(self) -> str:
        return f"<DedupeFilter {dict(self._last)}, {self.dropped} dropped>"
