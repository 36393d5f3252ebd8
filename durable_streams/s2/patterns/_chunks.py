"""From the bytes of a message to records, and the headers that tell how to get them back.

A message is cut into chunks, one record each. The first record's headers say of how many records and bytes the message
is made; with dedupe on, every record has its writer's name and a number of its own:

    _frame_records   first record   records of the message
    _frame_bytes     first record   bytes of the message
    _dedupe_seq      every record   the writer's count of records
    _writer_id       every record   name of the writer, text in UTF-8

Numbers are unsigned, of 8 bytes, big-endian. Names, order and sizes are those of the TypeScript package
`@s2-dev/streamstore-patterns`: either side reads what the other wrote.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..._core import validate
from .._values import MAX_BATCH_BYTES, AppendRecord, Header
from ._errors import MessageFormatError

FRAME_RECORDS_HEADER: bytes = b"_frame_records"
FRAME_BYTES_HEADER: bytes = b"_frame_bytes"
DEDUPE_SEQ_HEADER: bytes = b"_dedupe_seq"
WRITER_ID_HEADER: bytes = b"_writer_id"

#: Bytes of a writer's name as it is made here, and what the limit below leaves room for.
WRITER_ID_BYTES: int = 12
#: Most bytes of one chunk: a record with all four headers then has exactly the 1 MiB that a record may have.
MAX_CHUNK_BODY_BYTES: int = (
    MAX_BATCH_BYTES
    - 8  # the record
    - 2 * 4  # its headers
    - len(FRAME_RECORDS_HEADER + FRAME_BYTES_HEADER + DEDUPE_SEQ_HEADER + WRITER_ID_HEADER)
    - 3 * 8  # the numbers
    - WRITER_ID_BYTES
)
#: Most bytes of one message, unless said otherwise: 100 MiB.
DEFAULT_MAX_FRAME_BYTES: int = 100 << 20


def encode_u64(value: int) -> bytes:
    """A number as headers carry it.

    Raises:
        InvalidArgumentError: if it is outside 0 to 2**64 - 1.
    """
    validate.integer("value", value, maximum=2**64 - 1)
    return value.to_bytes(8, "big")


def decode_u64(data: bytes) -> int:
    """The number that a header carries.

    Raises:
        MessageFormatError: if it has not 8 bytes.
    """
    if len(data) != 8:
        raise MessageFormatError(f"a number in a header must have 8 bytes, got {len(data)}")
    return int.from_bytes(data, "big")


def chunk_bytes(data: bytes, chunk_size: int = MAX_CHUNK_BODY_BYTES) -> list[bytes]:
    """Cut a message into chunks, in order; the last may be shorter. No data makes no chunk.

    Raises:
        InvalidArgumentError: if `chunk_size` is less than 1.
    """
    validate.integer("chunk_size", chunk_size, minimum=1)
    if 0 < len(data) <= chunk_size:
        return [bytes(data)]
    view = memoryview(data)
    return [bytes(view[start : start + chunk_size]) for start in range(0, len(data), chunk_size)]


def frame_chunks_to_records(chunks: Sequence[bytes]) -> list[AppendRecord]:
    """The records of one message, from its chunks. No chunks make no record."""
    if not chunks:
        return []
    meta: tuple[Header, ...] = (
        (FRAME_RECORDS_HEADER, encode_u64(len(chunks))),
        (FRAME_BYTES_HEADER, encode_u64(sum(map(len, chunks)))),
    )
    return [AppendRecord(chunks[0], meta), *map(AppendRecord, chunks[1:])]
