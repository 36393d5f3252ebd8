"""Records, positions, batches and acknowledgements of S2 as values, and the limits they obey.

Two of these exist a million times a second and are shaped for it. A `SequencedRecord` is a named tuple, because a
decoder can build those without running Python code for each. An `AppendRecord` is a frozen dataclass whose own
`__init__` fills the slots directly, which halves the price of making one. All others exist once per batch.

What can never work is refused here, before any I/O: wrong types with `TypeError`, wrong values with
`InvalidArgumentError`. Sizes are *metered bytes*, S2's measure of a record: 8 for the record, 2 for each header, and
the bytes of its body, header names and header values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from .._core import validate
from ..errors import InvalidArgumentError

#: Most metered bytes of one batch, and hence of one record.
MAX_BATCH_BYTES: int = 1 << 20
#: Most records of one batch.
MAX_BATCH_RECORDS: int = 1000
#: Most bytes of a fencing token in UTF-8.
MAX_FENCING_TOKEN_BYTES: int = 36
#: Most bytes of the body of a unary append, after decompression.
MAX_UNARY_BODY_BYTES: int = 2 << 20
#: Most bytes of the payload of an s2s frame, before and after decompression.
MAX_FRAME_PAYLOAD_BYTES: int = (2 << 20) - 1
#: Largest sequence number, timestamp and trim point.
MAX_U64: int = (1 << 64) - 1

#: Name and value of a record's header. Order and duplicates are kept.
Header = tuple[bytes, bytes]

_FENCE = b"fence"
_TRIM = b"trim"
_SHOWN = 40  # bytes of a body in a repr


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """A place in a stream.

    Attributes:
        seq_num: Sequence number. Of an end or a tail: that of the next record, so it is exclusive.
        timestamp: Milliseconds since the epoch. Of an end or a tail: that of the last record before it.
    """

    seq_num: int
    timestamp: int


@dataclass(frozen=True, slots=True, init=False, repr=False)
class AppendRecord:
    """A record to append.

    Attributes:
        body: The payload.
        headers: Pairs of name and value, in order. An empty name makes a command record, see `fence` and `trim`.
        timestamp: Milliseconds since the epoch, or None for the time of arrival. The stream's configuration decides
            what becomes of it; a record may come back with another one.

    Raises:
        TypeError: if the body or a header is not bytes. For text use `AppendRecord.text`.
        InvalidArgumentError: if the timestamp is outside 0 to 2**64 - 1, or a command is malformed.
    """

    body: bytes = b""
    headers: tuple[Header, ...] = ()
    timestamp: int | None = None

    def __init__(
        self,
        body: bytes | bytearray | memoryview = b"",
        headers: Iterable[tuple[bytes, bytes]] | Mapping[bytes, bytes] = (),
        timestamp: int | None = None,
    ) -> None:
        if type(body) is not bytes:
            body = _bytes("body", body)
        if headers != ():
            headers = _headers(headers)
            if any(not name for name, _ in headers):
                _check_command(headers, body)
        if timestamp is not None:
            validate.integer("timestamp", timestamp, maximum=MAX_U64)
        _set_body(self, body)
        _set_headers(self, headers)
        _set_timestamp(self, timestamp)

    @classmethod
    def text(
        cls,
        body: str,
        headers: Iterable[tuple[str, str]] | Mapping[str, str] = (),
        timestamp: int | None = None,
    ) -> AppendRecord:
        """A record of text, encoded as UTF-8.

        Raises:
            InvalidArgumentError: if a text has no UTF-8 form (a lone surrogate).
        """
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        return cls(
            _utf8("body", body),
            tuple((_utf8("header name", name), _utf8("header value", value)) for name, value in pairs),
            timestamp,
        )

    @classmethod
    def fence(cls, token: str, *, timestamp: int | None = None) -> AppendRecord:
        """The command that sets the stream's fencing token, from the next batch on; an empty one clears it.

        To take over safely, give the old token as `fencing_token` of the same append: compare and set.

        Raises:
            InvalidArgumentError: if the token has more than 36 bytes in UTF-8.
        """
        return cls(check_fencing_token(token).encode(), ((b"", _FENCE),), timestamp)

    @classmethod
    def trim(cls, seq_num: int, *, timestamp: int | None = None) -> AppendRecord:
        """The command that makes `seq_num` the first record of the stream.

        Records before it are removed eventually, for readers as well. The point never moves back, nor beyond the tail.

        Raises:
            InvalidArgumentError: if `seq_num` is outside 0 to 2**64 - 1.
        """
        validate.integer("seq_num", seq_num, maximum=MAX_U64)
        return cls(seq_num.to_bytes(8, "big"), ((b"", _TRIM),), timestamp)

    @property
    def is_command(self) -> bool:
        """Whether this is a command to the stream (fence or trim)."""
        return _is_command(self.headers)

    @property
    def metered_bytes(self) -> int:
        """Size of this record as S2 counts it."""
        return _metered(self.body, self.headers)

    def __repr__(self) -> str:
        time = "" if self.timestamp is None else f", timestamp={self.timestamp}"
        return f"AppendRecord({_shown(self.body, self.headers)}{time})"


# A frozen dataclass is filled through the descriptors of its slots.
_set_body = AppendRecord.__dict__["body"].__set__
_set_headers = AppendRecord.__dict__["headers"].__set__
_set_timestamp = AppendRecord.__dict__["timestamp"].__set__


class SequencedRecord(NamedTuple):
    """A record as it stands in the stream.

    Attributes:
        seq_num: Its sequence number; the stream's first record has 0.
        timestamp: Milliseconds since the epoch; never less than that of the record before.
        body: The payload.
        headers: Pairs of name and value, in order.
    """

    seq_num: int
    timestamp: int
    body: bytes = b""
    headers: tuple[Header, ...] = ()

    @property
    def is_command(self) -> bool:
        """Whether this was a command to the stream (fence or trim), not data."""
        return _is_command(self.headers)

    @property
    def metered_bytes(self) -> int:
        """Size of this record as S2 counts it."""
        return _metered(self.body, self.headers)

    def __repr__(self) -> str:
        return f"SequencedRecord({self.seq_num}, timestamp={self.timestamp}, {_shown(self.body, self.headers)})"


@dataclass(frozen=True, slots=True)
class AppendAck:
    """Proof that a batch is durable.

    Attributes:
        start: Position of the batch's first record.
        end: Position after its last record.
        tail: Tail of the stream when the acknowledgement was sent; at least `end`.
    """

    start: StreamPosition
    end: StreamPosition
    tail: StreamPosition

    @property
    def count(self) -> int:
        """Number of records that were acknowledged."""
        return self.end.seq_num - self.start.seq_num


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """Records in stream order, as one message of the server brought them.

    Attributes:
        records: At most 1000, of at most 1 MiB metered. None at all: a heartbeat, or the end of a bounded read.
        tail: The stream's tail if the reader follows it live, else None.
    """

    records: tuple[SequencedRecord, ...] = ()
    tail: StreamPosition | None = None

    @property
    def metered_bytes(self) -> int:
        """Size of all records as S2 counts it."""
        return metered_bytes(self.records)


@dataclass(frozen=True, slots=True, init=False, repr=False)
class AppendInput:
    """A batch to append: all of it is stored, or nothing.

    Attributes:
        records: 1 to 1000 records, of at most 1 MiB metered together.
        match_seq_num: Sequence number that the first record has to get, else the append fails. 0: the stream must be
            empty. None: no condition.
        fencing_token: Has to equal the stream's fencing token. "": the stream must have none. None: no condition.
        metered_bytes: Size of the batch as S2 counts it.

    Raises:
        TypeError: if something among the records is not an `AppendRecord`.
        InvalidArgumentError: if there are too few or too many records or bytes, or a condition is out of range.
    """

    records: tuple[AppendRecord, ...]
    match_seq_num: int | None = None
    fencing_token: str | None = None
    metered_bytes: int = field(default=0, compare=False)

    def __init__(
        self,
        records: Iterable[AppendRecord],
        match_seq_num: int | None = None,
        fencing_token: str | None = None,
    ) -> None:
        if isinstance(records, AppendRecord | str | bytes):
            raise TypeError(f"records must be an iterable of AppendRecord, got one {type(records).__name__}")
        batch = tuple(records)
        for kind in set(map(type, batch)):
            if not issubclass(kind, AppendRecord):
                raise TypeError(f"records must be AppendRecord objects, got {kind.__name__}")
        if not 1 <= len(batch) <= MAX_BATCH_RECORDS:
            raise InvalidArgumentError(f"records must be 1 to {MAX_BATCH_RECORDS} in a batch, got {len(batch)}")
        size = metered_bytes(batch)
        if size > MAX_BATCH_BYTES:
            raise InvalidArgumentError(f"records must have at most {MAX_BATCH_BYTES} metered bytes, got {size}")
        check_conditions(match_seq_num, fencing_token)
        put = object.__setattr__
        put(self, "records", batch)
        put(self, "match_seq_num", match_seq_num)
        put(self, "fencing_token", fencing_token)
        put(self, "metered_bytes", size)

    def __repr__(self) -> str:
        seq = "" if self.match_seq_num is None else f", match_seq_num={self.match_seq_num}"
        token = "" if self.fencing_token is None else ", fencing_token=***"
        return f"AppendInput({len(self.records)} records, {self.metered_bytes} metered bytes{seq}{token})"


@dataclass(frozen=True, slots=True)
class SeqNum:
    """Read from this sequence number on."""

    value: int

    def __post_init__(self) -> None:
        validate.integer("seq_num", self.value, maximum=MAX_U64)


@dataclass(frozen=True, slots=True)
class Timestamp:
    """Read from the first record whose timestamp is at least this, in milliseconds since the epoch."""

    value: int

    def __post_init__(self) -> None:
        validate.integer("timestamp", self.value, maximum=MAX_U64)


@dataclass(frozen=True, slots=True)
class TailOffset:
    """Read from this many records before the tail, or from the first if there are fewer. 0: only what comes next."""

    value: int = 0

    def __post_init__(self) -> None:
        validate.integer("tail_offset", self.value, maximum=MAX_U64)


#: Where a read begins.
ReadStart = SeqNum | Timestamp | TailOffset

_body_of = attrgetter("body")
_headers_of = attrgetter("headers")


def metered_bytes(
    records: AppendRecord | SequencedRecord | Iterable[AppendRecord] | Iterable[SequencedRecord],
) -> int:
    """Size of a record, or of several together, as S2 counts it.

    That is 8 for each record, 2 for each header, and the bytes of bodies, header names and header values. Sequence
    numbers and timestamps are free.
    """
    if isinstance(records, AppendRecord | SequencedRecord):
        return records.metered_bytes
    several: Sequence[AppendRecord | SequencedRecord] = records if isinstance(records, list | tuple) else list(records)
    total = 8 * len(several) + sum(map(len, map(_body_of, several)))
    if any(map(_headers_of, several)):
        total += sum(_metered(b"", record.headers) - 8 for record in several if record.headers)
    return total


def check_fencing_token(token: Any) -> str:
    """A fencing token: text of at most 36 bytes in UTF-8. Messages never show it."""
    if not isinstance(token, str):
        raise TypeError(f"fencing_token must be a str, got {type(token).__name__}")
    size = len(_utf8("fencing_token", token))
    if size > MAX_FENCING_TOKEN_BYTES:
        raise InvalidArgumentError(
            f"fencing_token must have at most {MAX_FENCING_TOKEN_BYTES} bytes in UTF-8, got {size}"
        )
    return token


def check_conditions(match_seq_num: int | None, fencing_token: str | None) -> None:
    """The conditions of an append; None is no condition."""
    if match_seq_num is not None:
        validate.integer("match_seq_num", match_seq_num, maximum=MAX_U64)
    if fencing_token is not None:
        check_fencing_token(fencing_token)


def _metered(body: bytes, headers: tuple[Header, ...]) -> int:
    size = 8 + len(body)
    for name, value in headers:
        size += 2 + len(name) + len(value)
    return size


def _is_command(headers: tuple[Header, ...]) -> bool:
    return len(headers) == 1 and not headers[0][0]


def _check_command(headers: tuple[Header, ...], body: bytes) -> None:
    """A header with an empty name stands alone, and names a command whose body fits it."""
    if len(headers) != 1:
        raise InvalidArgumentError("headers: an empty name makes a command record, which has no other header")
    command = headers[0][1]
    if command == _FENCE:
        try:
            token = body.decode()
        except UnicodeDecodeError:
            raise InvalidArgumentError("body of a fence command must be a fencing token in UTF-8") from None
        check_fencing_token(token)
    elif command == _TRIM:
        if len(body) != 8:
            raise InvalidArgumentError(f"body of a trim command must be 8 bytes, big-endian, got {len(body)}")
    else:
        raise InvalidArgumentError(f"headers: a command is b'fence' or b'trim', got {command[:_SHOWN]!r}")


def _bytes(name: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    hint = ": use AppendRecord.text for text" if isinstance(value, str) else ""
    raise TypeError(f"{name} must be bytes, got {type(value).__name__}{hint}")


def _headers(headers: Any) -> tuple[Header, ...]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return tuple((_bytes("header name", name), _bytes("header value", value)) for name, value in pairs)


def _utf8(name: str, text: Any) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, got {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{name} has no UTF-8 form: lone surrogate at index {error.start}") from None


def _shown(body: bytes, headers: tuple[Header, ...]) -> str:
    """Body and headers for a repr: short, and without a fencing token."""
    if _is_command(headers) and headers[0][1] == _FENCE:
        return "fence ***"
    if _is_command(headers) and headers[0][1] == _TRIM and len(body) == 8:
        return f"trim {int.from_bytes(body, 'big')}"
    text = repr(body) if len(body) <= _SHOWN else f"{body[:_SHOWN]!r}... of {len(body)} bytes"
    return f"{text}, headers={list(headers)!r}" if headers else text
