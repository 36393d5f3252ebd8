"""Server-sent events: the parser of the client, and the writer of the server.

The parser takes bytes and gives bytes. Only CR LF, LF and CR end a line; everything beyond ASCII passes through
untouched, so that no Unicode line separator can cut an event in two. A CR ends its line at once, and an LF right after
it is dropped even if it comes with the next chunk: so no event waits for a byte that may never come.

Each chunk is split once. Its last, unfinished line goes to a buffer that only grows until the line is complete: every
byte is looked at a fixed number of times, be it fed alone, or as one of a million in a single line.

Text is not byte-exact over server-sent events: CR LF and CR come out as LF (specification: client 9.3).
"""

from __future__ import annotations

import json
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass

from ..errors import ParseError
from . import wire
from .text import preview

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `data` holds the data lines joined by LF, undecoded; without an event field the type is "message"."""

    type: str
    data: bytes


class SSEParser:
    """Incremental parser of one response's body; the next response needs a new one.

    An event that the end of the body cuts off is dropped: there is nothing to call at the end.

    Args:
        max_event_bytes: Largest event, counted over its lines as they are on the wire; None for no limit.
    """

    __slots__ = ("_before_bom", "_data", "_error", "_limit", "_line", "_size", "_skip_lf", "_type")

    def __init__(self, max_event_bytes: int | None = None) -> None:
        self._limit = max_event_bytes
        self._line = bytearray()  # the unfinished last line
        self._type = b""
        self._data: list[bytes] = []
        self._size = 0  # bytes of the present event's finished lines, line ends included
        self._skip_lf = False  # the last byte was a CR: an LF belongs to it
        self._before_bom: bytes | None = b""  # what may yet become a byte order mark; None once decided
        self._error: ParseError | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes of the body and return the events that they complete, oldest first.

        Raises:
            ParseError: if an event is larger than `max_event_bytes`. Events completed before it are returned first; the
                error then comes with the next call.
        """
        self._raise_error()
        if self._before_bom is not None:
            chunk = self._strip_bom(self._before_bom + chunk)
        if not chunk:
            return []
        if self._skip_lf:
            self._skip_lf = False
            if chunk[0] == 0x0A:
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._skip_lf = chunk[-1] == 0x0D
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = chunk.split(b"\n")
        rest = lines.pop()
        events: list[Event] = []
        if lines:
            if self._line:
                lines[0] = b"".join((self._line, lines[0]))
                self._line = bytearray()
            self._take_lines(lines, events)
        self._line += rest
        if self._line and self._limit is not None and self._size + len(self._line) > self._limit:
            self._too_large(bytes(self._line))
        if not events:
            self._raise_error()
        return events

    def _strip_bom(self, chunk: bytes) -> bytes:
        """Decide about the first bytes of the body; returns b"" while they may yet become a byte order mark."""
        if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
            self._before_bom = chunk
            return b""
        self._before_bom = None
        return chunk.removeprefix(_BOM)

    def _take_lines(self, lines: list[bytes], events: list[Event]) -> None:
        """Take finished lines, without their ends; stops at an event that is too large."""
        for line in lines:
            self._size += len(line) + 1
            if not line:
                if self._data:
                    name = self._type.decode("utf-8", "replace") if self._type else "message"
                    events.append(Event(name, b"\n".join(self._data)))
                    self._data = []
                self._type = b""
                self._size = 0
                continue
            if self._limit is not None and self._size - 1 > self._limit:
                self._too_large(line)
                return
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value[1:] if value.startswith(b" ") else value)
            elif field == b"event":
                self._type = value[1:] if value.startswith(b" ") else value

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _too_large(self, line: bytes) -> None:
        if self._error is None:
            first = self._data[0] if self._data else line
            self._error = ParseError(
                f"server-sent event is larger than the limit of {self._limit} bytes (max_response_bytes)",
                preview=preview(first),
            )


@dataclass(frozen=True, slots=True)
class Control:
    """What a control event says (protocol 5.8). `up_to_date` is None if the event does not say."""

    next_offset: str
    cursor: str | None
    up_to_date: bool | None
    stream_closed: bool


class _Number(str):
    """A JSON number's text as it stood."""

    __slots__ = ()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


_decoder = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_refuse_constant)


def parse_control(data: bytes) -> Control:
    """Read the data of a control event. Unknown fields are ignored; a field that is null counts as missing.

    Raises:
        ParseError: if it is no JSON object, has no offset, or a field has the wrong type. A number is taken for a
            cursor: some servers count.
    """
    try:
        fields = _decoder.decode(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ParseError(f"control event is not valid JSON: {error}", preview=preview(data)) from error
    if not isinstance(fields, dict):
        raise ParseError("control event is not a JSON object", preview=preview(data))
    offset, cursor = fields.get(wire.CONTROL_NEXT_OFFSET), fields.get(wire.CONTROL_CURSOR)
    if type(offset) is not str or not offset or offset == wire.NOW:
        raise ParseError(f"control event has no valid {wire.CONTROL_NEXT_OFFSET}", preview=preview(data))
    if cursor is not None:
        if not isinstance(cursor, str):
            raise ParseError(f"control event has no valid {wire.CONTROL_CURSOR}", preview=preview(data))
        cursor = str(cursor)
    flags = fields.get(wire.CONTROL_UP_TO_DATE), fields.get(wire.CONTROL_CLOSED)
    for name, flag in zip((wire.CONTROL_UP_TO_DATE, wire.CONTROL_CLOSED), flags, strict=True):
        if flag is not None and not isinstance(flag, bool):
            raise ParseError(f"control event: {name} is not a boolean", preview=preview(data))
    return Control(offset, cursor, flags[0], bool(flags[1]))


def decode_base64(data: bytes) -> bytes:
    """Decode a data event of a binary stream (protocol P5.8-6): line ends are dropped, all else foreign is refused.

    Raises:
        ParseError: if the rest is not base64 in the standard alphabet with its padding.
    """
    text = data.translate(None, b"\r\n")
    try:
        if len(text) % 4 or text.endswith(b"==="):  # binascii lets surplus padding pass
            raise Base64Error("incorrect padding")
        return a2b_base64(text, strict_mode=True)
    except Base64Error as error:
        raise ParseError(f"data event is not valid base64: {error}", preview=preview(data)) from error


def encode_data(payload: bytes, *, binary: bool) -> bytes:
    """Write a data event.

    Args:
        payload: UTF-8 text (not checked), or any bytes if `binary`.
        binary: Whether to write base64, as all streams but JSON and `text/*` need it.

    Returns:
        The event with the empty line that ends it. Each line of text becomes one data line; a line that begins with a
        space gets a second one, as readers remove one.
    """
    if binary:
        return b"event: data\ndata:%b\n\n" % b2a_base64(payload, newline=False)
    if b"\r" in payload:
        payload = payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\n" in payload:
        payload = payload.replace(b"\n ", b"\n  ").replace(b"\n", b"\ndata:")
    return b"event: data\ndata:%b%b\n\n" % (b" " if payload.startswith(b" ") else b"", payload)


def encode_control(next_offset: str, *, cursor: str | None, up_to_date: bool, stream_closed: bool) -> bytes:
    """Write a control event (protocol 5.8), fields in the order of appendix D.6; what is None or False is left out."""
    fields: dict[str, str | bool] = {wire.CONTROL_NEXT_OFFSET: next_offset}
    if cursor is not None:
        fields[wire.CONTROL_CURSOR] = cursor
    if up_to_date:
        fields[wire.CONTROL_UP_TO_DATE] = True
    if stream_closed:
        fields[wire.CONTROL_CLOSED] = True
    return b"event: control\ndata:%b\n\n" % json.dumps(fields, separators=(",", ":")).encode()
