"""Batches as they go out: records of any kind, checked and metered, in the form that costs least.

Most batches are plain: bodies without headers, timestamps or commands. Given as bytes, they are never made into
`AppendRecord` objects, which would be half of the work of sending them: C loops meter and encode them as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

from ._context import Compression
from ._frames import encode_frame_of
from ._proto import body_pieces, input_pieces
from ._stream import RecordLike, append_input
from ._values import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, AppendInput, AppendRecord, check_conditions


class Outgoing:
    """A batch that keeps all rules.

    Attributes:
        count: Its records.
        metered_bytes: Its size as S2 counts it.
        match_seq_num: Its condition, or None.
    """

    __slots__ = ("_batch", "_bodies", "_fencing_token", "count", "match_seq_num", "metered_bytes")

    def __init__(self, batch: AppendInput) -> None:
        self._batch: AppendInput | None = batch
        self._bodies: list[bytes] = []
        self._fencing_token = batch.fencing_token
        self.count: int = len(batch.records)
        self.metered_bytes: int = batch.metered_bytes
        self.match_seq_num: int | None = batch.match_seq_num

    @classmethod
    def plain(cls, bodies: list[bytes], match_seq_num: int | None, fencing_token: str | None) -> Outgoing | None:
        """A batch of records with these bodies and nothing else; None if it would break a rule."""
        count = len(bodies)
        size = 8 * count + sum(map(len, bodies))
        if not 1 <= count <= MAX_BATCH_RECORDS or size > MAX_BATCH_BYTES:
            return None
        check_conditions(match_seq_num, fencing_token)
        made = cls.__new__(cls)
        made._batch, made._bodies = None, bodies
        made._fencing_token, made.match_seq_num = fencing_token, match_seq_num
        made.count, made.metered_bytes = count, size
        return made

    @property
    def batch(self) -> AppendInput:
        """The same as a value."""
        if self._batch is None:
            records = [AppendRecord(body) for body in self._bodies]
            self._batch = AppendInput(records, self.match_seq_num, self._fencing_token)
        return self._batch

    def frame(self, compression: Compression) -> tuple[bytes, ...]:
        """The same as a frame of a session, in one piece or in several large ones.

        Raises:
            InvalidArgumentError: if it is larger than a frame can be, though it keeps the limit of metered bytes.
        """
        if self._batch is None:
            return encode_frame_of(body_pieces(self._bodies, self.match_seq_num, self._fencing_token), compression)
        return encode_frame_of(input_pieces(self._batch), compression)


def outgoing(
    records: AppendInput | RecordLike | Iterable[RecordLike],
    match_seq_num: int | None = None,
    fencing_token: str | None = None,
) -> Outgoing:
    """A batch of what a caller gave.

    Raises:
        TypeError: something among the records is no record.
        InvalidArgumentError: the batch breaks a rule, or conditions are given twice.
    """
    if not isinstance(records, AppendInput | AppendRecord | str | bytes):
        records = list(records)
        if set(map(type, records)) == {bytes}:
            plain = Outgoing.plain(records, match_seq_num, fencing_token)  # type: ignore[arg-type]  # checked just now
            if plain is not None:
                return plain
    return Outgoing(append_input(records, match_seq_num=match_seq_num, fencing_token=fencing_token))
