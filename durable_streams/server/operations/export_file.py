r"""The form of an exported stream: lines of JSON, which people and `jq` can read.

    {"kind":"stream","format":"durable-streams-export","version":1,"path":"/v1/stream/chat",...}
    {"kind":"producer","id":"writer-1","epoch":0,"seq":17,"offset":"0000000000000000_0000000000000311","updated":...}
    {"kind":"append","offset":"0000000000000000_0000000000000012","messages":["{\"a\":1}","2"]}
    {"kind":"end","appends":1,"sha256":"..."}

First the stream's configuration and state, then its producers, then each append with the offset after it: JSON streams
as the exact text of each message, others as text where that is UTF-8, else as base64. The last line says how many
appends there are, and has the SHA-256 of all lines before it: a file that was cut or changed is recognised.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO

from ..._core.wire import is_json, normalize_path
from ..creation import StreamConfig
from ..json_messages import split_json
from ..offsets import Offset, format_offset, parse_offset
from ..protocol import Payload, ProducerStamp, ProducerState
from ..stores.errors import StoreError, StoreFormatError
from ..timestamps import Instant

FORMAT = "durable-streams-export"
VERSION = 1

_LARGEST = 2**53 - 1


class ExportFormatError(StoreError):
    """What was to be imported is no export of a stream, was made by a newer release, was cut, or was changed."""

    code = "EXPORT_FORMAT"


@dataclass(frozen=True, slots=True)
class StreamHead:
    """A stream without its data.

    Attributes:
        path: Full path.
        asked: What was asked for at its creation.
        config: What it became.
        tail: Offset after the last byte.
        closed: Whether it is closed.
        closed_by: The request of a producer that closed it, or None.
        last_seq: Last `Stream-Seq`, or None.
        created: When it was created.
    """

    path: str
    asked: StreamConfig
    config: StreamConfig
    tail: Offset
    closed: bool
    closed_by: ProducerStamp | None
    last_seq: bytes | None
    created: float


@dataclass(frozen=True, slots=True)
class Producer:
    """A producer of a stream.

    Attributes:
        id: Its name.
        state: Epoch and sequence number.
        tail: The tail it left, or None if that is not known.
        updated: When that was.
    """

    id: str
    state: ProducerState
    tail: Offset | None
    updated: float


class ExportWriter:
    """Writes an export.

    Args:
        file: Where to.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._json = False
        self.appends: int = 0

    def stream(self, head: StreamHead, fork_of: str | None) -> None:
        """Begin, with a stream; `fork_of` is for whoever reads the file."""
        self._json = is_json(head.config.effective_type)
        by = head.closed_by
        self._line(
            {
                "kind": "stream",
                "format": FORMAT,
                "version": VERSION,
                "path": head.path,
                "content_type": head.config.content_type,
                "ttl": head.config.ttl,
                "expires_at": None if head.config.expires_at is None else head.config.expires_at.text,
                "requested_content_type": head.asked.content_type,
                "fork_of": fork_of,
                "offset": format_offset(head.tail),
                "closed": head.closed,
                "closed_by": None if by is None else {"id": by.id, "epoch": by.epoch, "seq": by.seq},
                "stream_seq": None if head.last_seq is None else base64.b64encode(head.last_seq).decode(),
                "created": head.created,
            }
        )

    def producer(self, producer: Producer) -> None:
        """Go on with a producer."""
        self._line(
            {
                "kind": "producer",
                "id": producer.id,
                "epoch": producer.state.epoch,
                "seq": producer.state.seq,
                "offset": None if producer.tail is None else format_offset(producer.tail),
                "updated": producer.updated,
            }
        )

    def append(self, payload: Payload, end: Offset) -> None:
        """Go on with an append, and the offset after it."""
        self.appends += 1
        line: dict[str, Any] = {"kind": "append", "offset": format_offset(end)}
        if self._json:
            starts = (0, *payload.ends)
            try:
                line["messages"] = [
                    payload.data[start : end - 1].decode() for start, end in zip(starts, payload.ends, strict=False)
                ]
            except UnicodeDecodeError as error:
                raise StoreFormatError(f"damaged: a message before offset {line['offset']} is no text") from error
        else:
            try:
                line["text"] = payload.data.decode()
            except UnicodeDecodeError:
                line["base64"] = base64.b64encode(payload.data).decode()
        self._line(line)

    def end(self) -> None:
        """Finish."""
        self._line({"kind": "end", "appends": self.appends, "sha256": self._hash.hexdigest()})

    def _line(self, values: dict[str, Any]) -> None:
        try:
            line = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        except UnicodeEncodeError as error:
            raise StoreFormatError(f"damaged: a name in a {values['kind']} is no text") from error
        self._hash.update(line)
        self._file.write(line)


class ExportReader:
    """Reads an export. The methods have to be called in the order in which they stand here.

    Args:
        file: Where from.

    Raises:
        ExportFormatError: by each method, if the file is not what it should be; the message has the line.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._number = 0
        self._json = False
        self._line: dict[str, Any] = {}
        self.appends: int = 0

    def stream(self) -> StreamHead:
        """The stream."""
        try:
            self._next()
        except ExportFormatError as error:
            raise self._wrong("this is no export of a stream") from error
        if self._line.get("format") != FORMAT or self._line.get("kind") != "stream":
            raise self._wrong("this is no export of a stream")
        if self._line.get("version") != VERSION:
            raise self._wrong(f"made by a newer release (version {self._line.get('version')}, known is {VERSION})")
        path = self._take("path", str)
        if normalize_path(path.encode()) != path:
            raise self._wrong("the path is not a normalised one")
        ttl, expires = self._take("ttl", int, optional=True), self._take("expires_at", str, optional=True)
        instant = None if expires is None else Instant.parse(expires)
        if (expires is not None and instant is None) or (ttl is not None and not 0 <= ttl <= _LARGEST):
            raise self._wrong("the lifetime is not possible")
        content_type = self._take("content_type", str)
        asked = self._take("requested_content_type", str, optional=True)
        self._json = is_json(content_type)
        head = StreamHead(
            path,
            StreamConfig(asked, ttl, instant),
            StreamConfig(content_type, ttl, instant),
            self._offset(),
            self._take("closed", bool),
            self._stamp(),
            self._seq(),
            self._take("created", float),
        )
        if head.closed_by is not None and not head.closed:
            raise self._wrong("an open stream was closed by nobody")
        self._next()
        return head

    def producers(self) -> Iterable[Producer]:
        """All producers."""
        while self._line["kind"] == "producer":
            offset = None if self._line.get("offset") is None else self._offset()
            state = ProducerState(self._number_of("epoch"), self._number_of("seq"))
            name = self._take("id", str)
            if not name:
                raise self._wrong("the producer has no name")
            yield Producer(name, state, offset, self._take("updated", float))
            self._next()

    def data(self) -> Iterable[Payload]:
        """All appends."""
        place = 0
        while self._line["kind"] == "append":
            payload = self._payload()
            place += len(payload.data)
            if not payload.data or self._offset() != place:
                raise self._wrong(f"the offset should be {format_offset(place)}")
            self.appends += 1
            yield payload
            self._next()

    def end(self, tail: Offset, place: Offset) -> None:
        """Make sure that the file is whole.

        Args:
            tail: Where the stream should end.
            place: Where its data ended.
        """
        if self._line["kind"] != "end":
            raise self._wrong(f"{self._line['kind']} stands where it should not")
        if self._line.get("appends") != self.appends or tail != place:
            raise self._wrong("appends are missing")
        if self._file.read(1):
            raise self._wrong("something follows the end")

    def _next(self) -> None:
        self._number += 1
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise self._wrong("the file was cut: its end is missing")
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
            raise self._wrong("this is no line of an export")
        if values["kind"] == "end" and values.get("sha256") != self._hash.hexdigest():
            raise self._wrong("the file was changed: its SHA-256 is another one")
        self._hash.update(line)
        self._line = values

    def _wrong(self, problem: str) -> ExportFormatError:
        return ExportFormatError(f"line {self._number}: {problem}")

    def _take(self, name: str, kind: Callable[..., Any], *, optional: bool = False) -> Any:
        value: Any = self._line.get(name)
        if value is None and optional:
            return None
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise self._wrong(f"{name} is not what it should be")
        if kind is str:
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self._wrong(f"{name} is no text") from None
        return value

    def _number_of(self, name: str) -> int:
        value: int = self._take(name, int)
        if not 0 <= value <= _LARGEST:
            raise self._wrong(f"{name} is not possible")
        return value

    def _offset(self) -> Offset:
        offset = parse_offset(self._take("offset", str))
        if offset is None:
            raise self._wrong("offset is not what it should be")
        return offset

    def _stamp(self) -> ProducerStamp | None:
        found = self._take("closed_by", dict, optional=True)
        if found is None:
            return None
        outer, self._line = self._line, found
        stamp = ProducerStamp(self._take("id", str), self._number_of("epoch"), self._number_of("seq"))
        self._line = outer
        return stamp

    def _seq(self) -> bytes | None:
        text = self._take("stream_seq", str, optional=True)
        return None if text is None else self._decode(text)

    def _decode(self, text: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise self._wrong("this is no base64") from None

    def _payload(self) -> Payload:
        if not self._json:
            if "base64" in self._line:
                return Payload(self._decode(self._take("base64", str)))
            text: str = self._take("text", str)
            return Payload(text.encode())
        messages: list[Any] = self._take("messages", list)
        try:
            encoded: list[bytes] = [message.encode() for message in messages]
        except (AttributeError, UnicodeEncodeError):
            raise self._wrong("messages are not what they should be") from None
        data = b"".join([message + b"," for message in encoded])
        payload = split_json(b"[" + data[:-1] + b"]")
        ends = list(accumulate(len(message) + 1 for message in encoded))
        if not isinstance(payload, Payload) or payload.data != data or list(payload.ends) != ends:
            raise self._wrong("a message is no JSON in the form in which it is stored")
        return payload
