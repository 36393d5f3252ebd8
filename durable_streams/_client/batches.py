"""Batches as the consumer sees them, how many there were, and the decoders that make them of undecoded pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

from .._core import json_mode
from .._core.checkpoint import Checkpoint
from .._core.read_session import Page
from .._core.text import TextDecoder

T = TypeVar("T")
B_co = TypeVar("B_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Batch:
    """What the server sent together: the unit of delivery and of safe resumption.

    Attributes:
        checkpoint: Position after this batch. Store it once the batch has been processed.
    """

    checkpoint: Checkpoint

    @property
    def offset(self) -> str:
        """Offset after this batch."""
        return self.checkpoint.offset

    @property
    def cursor(self) -> str | None:
        """The server's last cursor, if it sent one."""
        return self.checkpoint.cursor

    @property
    def up_to_date(self) -> bool:
        """Whether this batch reached the end of the stream as it was then."""
        return self.checkpoint.up_to_date

    @property
    def stream_closed(self) -> bool:
        """Whether this batch reached the end of a closed stream: nothing will follow, ever."""
        return self.checkpoint.stream_closed


@dataclass(frozen=True)  # Without slots: Python 3.11 cannot make `JsonBatch[int](...)` of a frozen class that has them.
class JsonBatch(Batch, Generic[T]):
    """A batch of a JSON stream.

    Attributes:
        items: The messages, decoded, in order; empty if the batch only moved the position.
    """

    items: list[T]


@dataclass(frozen=True, slots=True)
class BytesBatch(Batch):
    """A batch as bytes.

    Attributes:
        data: The bytes; in JSON mode one JSON array.
    """

    data: bytes


@dataclass(frozen=True, slots=True)
class TextBatch(Batch):
    """A batch as text.

    Attributes:
        text: The characters that are complete; the bytes of one that is not are in `checkpoint.text_tail` and begin
            the next batch's text.
    """

    text: str


@dataclass(frozen=True, slots=True)
class ReadStatistics:
    """What a read session has done so far.

    Attributes:
        phase: "start", "catch-up", "long-poll", "sse", "done", "cancelled" or "failed".
        requests: Requests made, those that failed and were repeated included.
        retries: Failures that were repeated.
        batches: Batches handed to the consumer, empty ones included.
        bytes: Their undecoded size.
    """

    phase: str
    requests: int
    retries: int
    batches: int
    bytes: int


class Decoder(Protocol[B_co]):
    """Makes a batch of a page."""

    def __call__(self, page: Page) -> B_co:
        """Decode one page; called once for each, in order."""
        ...


def json_decoder(
    url: str, loads: Callable[[bytes], Any] | None, type_: Callable[[Any], T] | None
) -> Decoder[JsonBatch[T]]:
    """Decode messages with `loads`, then make each what `type_` makes of it."""

    def decode(page: Page) -> JsonBatch[T]:
        items = json_mode.decode_items(page.data, loads=loads, offset=page.before, url=url) if page.data else []
        if type_ is not None:
            items = [type_(item) for item in items]
        return JsonBatch(page.checkpoint, items)

    return decode


def bytes_decoder(*, json: bool) -> Decoder[BytesBatch]:
    """Join the parts of a page; in JSON mode to one array."""

    def decode(page: Page) -> BytesBatch:
        return BytesBatch(page.checkpoint, joined(page.data, json=json))

    return decode


@dataclass(frozen=True, slots=True)
class Pieces(Batch):
    """A batch as the pieces in which it came.

    Attributes:
        pieces: None of them empty; in JSON mode one JSON array.
    """

    pieces: tuple[bytes, ...]


def pieces_decoder(*, json: bool) -> Decoder[Pieces]:
    """Take the parts of a page as they are; in JSON mode join them to one array."""

    def decode(page: Page) -> Pieces:
        parts = page.data
        return Pieces(page.checkpoint, (joined(parts, json=True),) if json and parts else parts)

    return decode


def text_decoder(*, json: bool, tail: bytes, errors: Literal["strict", "replace"]) -> Decoder[TextBatch]:
    """Decode UTF-8 across pages; a character cut by the end of a page waits for the next."""
    decoder = TextDecoder(tail, errors=errors)

    def decode(page: Page) -> TextBatch:
        checkpoint = page.checkpoint
        data = joined(page.data, json=json)
        text = decoder.decode(data, final=checkpoint.stream_closed, offset=page.before)
        return TextBatch(replace(checkpoint, text_tail=decoder.tail), text)

    return decode


def joined(parts: tuple[bytes, ...], *, json: bool) -> bytes:
    """The parts as one piece: a JSON array in JSON mode (b"" if there are none), else one after the other."""
    if not parts:
        return b""
    if json:
        return json_mode.join_arrays(parts)
    return parts[0] if len(parts) == 1 else b"".join(parts)
