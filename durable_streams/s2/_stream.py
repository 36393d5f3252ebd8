"""A stream's handle: `client.basin(name).stream(name)` (S2 2.8, 3.1 to 3.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .._core.exchange import RetryDetails
from ..errors import InvalidArgumentError
from . import _json_records, _proto
from ._config import StreamConfig, stream_header
from ._context import StreamContext
from ._reading import ReadOptions, ReadPage, read_start
from ._retry import S2Retry, parse_retry
from ._unary import JSON, PROTOBUF, Call, request
from ._values import (
    MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS,
    AppendAck,
    AppendInput,
    AppendRecord,
    ReadBatch,
    ReadStart,
    SeqNum,
    StreamPosition,
)
from .errors import S2Error, S2ProtocolError

if TYPE_CHECKING:
    from ._append_session import AppendSession
    from ._producer import Producer
    from ._read_core import Gap
    from ._read_session import ReadSession

#: A record to append: text and bytes stand for a record with that body and no headers.
RecordLike = AppendRecord | str | bytes

F = TypeVar("F")

_FORMAT = "s2-format"


@dataclass(frozen=True, slots=True)
class AppendResolution:
    """What reading back told about an append whose outcome was not known.

    Attributes:
        outcome: "stored": the batch is there. "not_stored": something else stands in its place, so that it never will
            be. "unknown": nothing is there yet, so that it may still come; or what was there has been trimmed.
        ack: If it is stored, the acknowledgement as it would have been.
    """

    outcome: Literal["stored", "not_stored", "unknown"]
    ack: AppendAck | None = None


class Stream:
    """A handle for one stream. Making one sends nothing.

    Attributes:
        name: The stream's name.
        basin: Name of its basin.
    """

    def __init__(self, context: StreamContext) -> None:
        self._context = context
        self.name: str = context.stream
        self.basin: str = context.basin

    def __repr__(self) -> str:
        return f"<Stream {self.basin}/{self.name}>"

    # -- Single calls --------------------------------------------------------------------------------------

    async def append(
        self,
        records: AppendInput | RecordLike | Iterable[RecordLike],
        *,
        match_seq_num: int | None = None,
        fencing_token: str | None = None,
        stream_config: StreamConfig | None = None,
        read_back: bool = False,
    ) -> AppendAck:
        """Append a batch: all of it is stored, or nothing. Returns when it is durable.

        Args:
            records: 1 to 1000 records of at most 1 MiB metered; a str or bytes is a record with that body. Also one
                record, or an `AppendInput` with its conditions.
            match_seq_num: Sequence number that the first record has to get, else the append fails.
            fencing_token: Has to equal the stream's fencing token; "" demands that there is none.
            stream_config: Configuration for the stream if this append makes it, where the basin is set so.
            read_back: When the outcome is not known after all tries, look whether the batch is there. Needs
                `match_seq_num`. It tells batches apart by their bodies and headers: two writers that append the same
                records at the same place are one to it.

        Raises:
            InvalidArgumentError: the batch breaks a rule; nothing was sent.
            SeqNumMismatchError: the first record would get another number.
            FencingTokenMismatchError: the stream has another fencing token.
            S2Error: see `durable_streams.s2.errors`. With `definite` False it may have been stored.
        """
        batch = append_input(records, match_seq_num=match_seq_num, fencing_token=fencing_token)
        if _flag("read_back", read_back) and batch.match_seq_num is None:
            raise InvalidArgumentError("read_back needs match_seq_num: without it there is no place to look at")
        try:
            return await self._append(batch, stream_config)
        except S2Error as error:
            if not read_back or error.definite:
                raise
            try:
                resolution = await self.resolve_append(batch)
            except S2Error as failure:
                raise error from failure  # nothing was learnt: the append's own error says what is known
            if resolution.ack is not None:
                return resolution.ack
            error.definite = resolution.outcome == "not_stored"
            raise

    async def _append(self, batch: AppendInput, stream_config: StreamConfig | None) -> AppendAck:
        context = self._context
        if context.encoding == "protobuf":
            body, media_type = _proto.encode_append_input(batch), PROTOBUF
        else:
            body, media_type = _json_records.encode_append_input(batch, context.encoding), JSON
        call = Call(
            "POST",
            context.records_url(),
            self._headers(stream_config),
            body,
            content_type=media_type,
            accept=media_type,
            append=True,
            context=context,
        )
        reply = await request(context.service, call)
        decode = _proto.decode_append_ack if media_type == PROTOBUF else _json_records.decode_append_ack
        return reply.read(lambda data: _checked_ack(decode(data), len(batch.records)))

    async def read(
        self,
        start: ReadStart | None = None,
        *,
        seq_num: int | None = None,
        timestamp: int | None = None,
        tail_offset: int | None = None,
        count: int | None = None,
        bytes: int | None = None,  # noqa: A002  # the service's word for it
        until: int | None = None,
        clamp: bool = False,
        wait: int | None = None,
        ignore_command_records: bool = False,
        stream_config: StreamConfig | None = None,
    ) -> ReadPage:
        """Read once: at most 1000 records of at most 1 MiB, whatever the limits say.

        At the tail there is nothing to read, which the service answers with an error: `wait` for the next record, or
        use `read_session`.

        Args:
            start: Where to begin: `SeqNum`, `Timestamp` or `TailOffset`. None is the stream's first record.
            seq_num: Another way to say `start=SeqNum(...)`.
            timestamp: Another way to say `start=Timestamp(...)`.
            tail_offset: Another way to say `start=TailOffset(...)`.
            count: Most records. 0 reads nothing.
            bytes: Most metered bytes, never exceeded: a first record that is larger gives none.
            until: Ends before the first record with this timestamp, in milliseconds, or a later one.
            clamp: Begin at the tail if the start lies beyond it.
            wait: Seconds to wait at the tail for the next records, at most 60. They are returned alone; if none came,
                the page is empty.
            ignore_command_records: Leave out fence and trim records. There may be more to read although the page is
                empty: go on at its `next_seq_num`.
            stream_config: Configuration for the stream if this read makes it, where the basin is set so.

        Raises:
            RangeNotSatisfiableError: the start is the tail, or lies beyond it.
            S2Error: see `durable_streams.s2.errors`.
        """
        options = ReadOptions(
            read_start(start, seq_num=seq_num, timestamp=timestamp, tail_offset=tail_offset),
            count=count,
            bytes=bytes,
            until=until,
            clamp=clamp,
            wait=wait,
            ignore_command_records=ignore_command_records,
        )
        batch = await self._read(options, stream_config)
        return _page(batch, hide_commands=ignore_command_records)

    async def _read(self, options: ReadOptions, stream_config: StreamConfig | None = None) -> ReadBatch:
        context = self._context
        encoding = context.encoding
        media_type = PROTOBUF if encoding == "protobuf" else JSON
        call = Call(
            "GET",
            context.records_url(options.query()),
            self._headers(stream_config),
            accept=media_type,
            wait=float(options.wait or 0),
            context=context,
        )
        reply = await request(context.service, call)
        if encoding == "protobuf":
            return reply.read(_proto.decode_read_batch)
        return reply.read(lambda data: _json_records.decode_read_batch(data, encoding))

    async def check_tail(self) -> StreamPosition:
        """The stream's tail: the number that the next record gets, and the time of the last one.

        It is as new as can be: it counts every append that was acknowledged before this call. On an empty stream it is
        (0, 0).
        """
        context = self._context
        endpoints = context.service.endpoints
        url = endpoints.basin_url(context.basin, context.path("/records/tail"))
        call = Call("GET", url, endpoints.basin_headers(context.basin), context=context)
        reply = await request(context.service, call)
        return reply.read(_json_records.decode_tail)

    # -- Sessions ------------------------------------------------------------------------------------------

    def append_session(
        self,
        *,
        max_in_flight_bytes: int = 5 << 20,
        max_in_flight_batches: int | None = None,
        stream_config: StreamConfig | None = None,
        read_back: bool = False,
        retry: S2Retry | Mapping[str, Any] | None = None,
        on_retry: Callable[[RetryDetails], None] | None = None,
    ) -> AppendSession:
        """A session that appends batches in order, many under way at a time: `async with stream.append_session()`.

        Args:
            max_in_flight_bytes: Most metered bytes that are accepted and not acknowledged, at least 1 MiB. Beyond it
                `submit` waits.
            max_in_flight_batches: Most batches of these, or None.
            stream_config: Configuration for the stream if appending makes it, where the basin is set so.
            read_back: Before giving up on a batch with `match_seq_num` that may have been stored, look whether it is
                there; see `append`.
            retry: Over the client's, in the same forms, but for its limits of time.
            on_retry: Plain function, called with each failure that is followed by another try; over the client's.
        """
        from ._append_session import AppendSession

        return AppendSession(
            self._context,
            max_in_flight_bytes=max_in_flight_bytes,
            max_in_flight_batches=max_in_flight_batches,
            stream_config=stream_config_header(stream_config),
            read_back=_flag("read_back", read_back),
            retry=session_retry(retry),
            on_retry=_function("on_retry", on_retry) or self._context.service.on_retry,
        )

    def producer(
        self,
        *,
        linger: float = 0.005,
        max_batch_records: int = MAX_BATCH_RECORDS,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        match_seq_num: int | None = None,
        fencing_token: str | None = None,
        max_in_flight_bytes: int = 5 << 20,
        max_in_flight_batches: int | None = None,
        stream_config: StreamConfig | None = None,
        read_back: bool = False,
        retry: S2Retry | Mapping[str, Any] | None = None,
        on_retry: Callable[[RetryDetails], None] | None = None,
    ) -> Producer:
        """A session that takes single records and makes batches of them: `async with stream.producer()`.

        Args:
            linger: Seconds that a batch waits for more records after its first one, while others are in flight; 0
                sends what is there.
            max_batch_records: Most records of a batch, 1 to 1000.
            max_batch_bytes: Most metered bytes of a batch, up to 1 MiB.
            match_seq_num: Sequence number that the first record has to get, the others following on.
            fencing_token: Condition of every batch.
            max_in_flight_bytes: See `append_session`.
            max_in_flight_batches: See `append_session`.
            stream_config: See `append_session`.
            read_back: See `append_session`.
            retry: See `append_session`.
            on_retry: See `append_session`.
        """
        from ._producer import Producer

        session = self.append_session(
            max_in_flight_bytes=max_in_flight_bytes,
            max_in_flight_batches=max_in_flight_batches,
            stream_config=stream_config,
            read_back=read_back,
            retry=retry,
            on_retry=on_retry,
        )
        return Producer(
            session,
            linger=linger,
            max_batch_records=max_batch_records,
            max_batch_bytes=max_batch_bytes,
            match_seq_num=match_seq_num,
            fencing_token=fencing_token,
        )

    def read_session(
        self,
        start: ReadStart | None = None,
        *,
        seq_num: int | None = None,
        timestamp: int | None = None,
        tail_offset: int | None = None,
        count: int | None = None,
        bytes: int | None = None,  # noqa: A002
        until: int | None = None,
        clamp: bool = False,
        wait: int | None = None,
        ignore_command_records: bool = False,
        stream_config: StreamConfig | None = None,
        unlimited_retries: bool = False,
        retry: S2Retry | Mapping[str, Any] | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        on_retry: Callable[[RetryDetails], None] | None = None,
    ) -> ReadSession:
        """A session that reads batch after batch and follows the stream: `async with stream.read_session(...)`.

        Without limits it goes on for ever. With `count`, `bytes` or `until` it ends there, or at the tail unless
        `wait` says to stay.

        Args:
            start: Where to begin: `SeqNum`, `Timestamp` or `TailOffset`. None is the stream's first record.
            seq_num: Another way to say `start=SeqNum(...)`.
            timestamp: Another way to say `start=Timestamp(...)`.
            tail_offset: Another way to say `start=TailOffset(...)`; 0 is only what comes next.
            count: Most records of the whole session.
            bytes: Most metered bytes of the whole session.
            until: Ends before the first record with this timestamp, in milliseconds, or a later one.
            clamp: Begin at the tail if the start lies beyond it.
            wait: Seconds to wait for the next records, afresh after each batch. None: not at all if there is a limit,
                for ever if there is none.
            ignore_command_records: Leave out fence and trim records.
            stream_config: Configuration for the stream if reading makes it, where the basin is set so.
            unlimited_retries: Repeat whatever may pass without end, instead of `max_attempts` times in a row.
            retry: Over the client's, in the same forms, but for its limits of time.
            on_gap: Plain function, called before records are handed over that follow trimmed ones.
            on_retry: Plain function, called with each failure that is followed by another try; over the client's.
        """
        from ._read_session import ReadSession

        options = ReadOptions(
            read_start(start, seq_num=seq_num, timestamp=timestamp, tail_offset=tail_offset),
            count=count,
            bytes=bytes,
            until=until,
            clamp=clamp,
            wait=wait,
            ignore_command_records=ignore_command_records,
        )
        return ReadSession(
            self._context,
            options,
            stream_config=stream_config_header(stream_config),
            unlimited_retries=_flag("unlimited_retries", unlimited_retries),
            retry=session_retry(retry),
            on_gap=_function("on_gap", on_gap),
            on_retry=_function("on_retry", on_retry) or self._context.service.on_retry,
        )

    # -- Doubt ---------------------------------------------------------------------------------------------

    async def resolve_append(self, batch: AppendInput) -> AppendResolution:
        """Find out whether a batch was stored by reading what stands in its place.

        For a batch whose append failed with `definite` False. Bodies and headers are compared, timestamps are not, as
        the stream may have changed them.

        Args:
            batch: The batch, with `match_seq_num`.

        Raises:
            InvalidArgumentError: it has no `match_seq_num`.
            S2Error: reading failed.
        """
        place = batch.match_seq_num
        if place is None:
            raise InvalidArgumentError("batch must have match_seq_num: without it there is no place to look at")
        tail = await self.check_tail()
        if tail.seq_num <= place:
            return AppendResolution("unknown")
        found: list[Any] = []
        while len(found) < len(batch.records) and place + len(found) < tail.seq_num:
            start = SeqNum(place + len(found))
            page = await self._read(ReadOptions(start, count=len(batch.records) - len(found)))
            if not page.records or page.records[0].seq_num != start.value:
                return AppendResolution("unknown")  # trimmed meanwhile
            found.extend(page.records)
            ours = batch.records[: len(found)]
            if any((a.body, a.headers) != (b.body, b.headers) for a, b in zip(ours, found, strict=True)):
                return AppendResolution("not_stored")
        if len(found) < len(batch.records):  # a batch is stored as a whole: this is another one's beginning
            return AppendResolution("not_stored")
        end = StreamPosition(place + len(found), found[-1].timestamp)
        return AppendResolution("stored", AppendAck(StreamPosition(place, found[0].timestamp), end, tail))

    def _headers(self, stream_config: StreamConfig | None) -> dict[str, str]:
        headers = self._context.call_headers(stream_config=stream_config_header(stream_config))
        if self._context.encoding != "protobuf":
            headers[_FORMAT] = self._context.encoding
        return headers


def append_input(
    records: AppendInput | RecordLike | Iterable[RecordLike],
    *,
    match_seq_num: int | None = None,
    fencing_token: str | None = None,
) -> AppendInput:
    """A batch of what a caller gave.

    Raises:
        TypeError: something among the records is no record.
        InvalidArgumentError: the batch breaks a rule, or conditions are given twice.
    """
    if isinstance(records, AppendInput):
        if match_seq_num is not None or fencing_token is not None:
            raise InvalidArgumentError("give conditions in AppendInput or as arguments, not both")
        return records
    several: list[Any] = [records] if isinstance(records, AppendRecord | str | bytes) else list(records)
    if set(map(type, several)) != {AppendRecord}:
        several = [append_record(record) for record in several]
    return AppendInput(several, match_seq_num, fencing_token)


def append_record(record: Any) -> AppendRecord:
    """A record of what a caller gave: text and bytes are a body without headers."""
    if isinstance(record, AppendRecord):
        return record
    if isinstance(record, str):
        return AppendRecord.text(record)
    if isinstance(record, bytes):
        return AppendRecord(record)
    raise TypeError(f"records must be AppendRecord, str or bytes, got {type(record).__name__}")


def stream_config_header(config: Any) -> str | None:
    """The value of `s2-stream-config`, or None."""
    if config is not None and not isinstance(config, StreamConfig):
        raise TypeError(f"stream_config must be StreamConfig or None, got {type(config).__name__}")
    return stream_header(config)


def session_retry(options: S2Retry | Mapping[str, Any] | None) -> S2Retry | None:
    """Retry options of one session; None leaves it to the client's.

    Raises:
        TypeError: it is something else, or an option has a wrong type.
        InvalidArgumentError: an option is unknown, out of range, or a limit of time, which is the client's.
    """
    if options is None:
        return None
    retry, times = parse_retry(options)
    if times:
        raise InvalidArgumentError("retry: limits of time belong to the client, see S2Timeouts")
    return retry


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def _function(name: str, value: F) -> F:
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, got {type(value).__name__}")
    return value


def _checked_ack(ack: AppendAck, count: int) -> AppendAck:
    if ack.count != count:
        raise S2ProtocolError(f"the server acknowledged {ack.count} records of {count}")
    return ack


def _page(batch: ReadBatch, *, hide_commands: bool) -> ReadPage:
    records = batch.records
    after = records[-1].seq_num + 1 if records else None
    if hide_commands:
        records = tuple(record for record in records if not record.is_command)
    return ReadPage(records, batch.tail, next_seq_num=after)
