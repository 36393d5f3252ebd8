"""A read session as its consumer sees it: properties, one-shot methods, iterators."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

import anyio
import anyio.lowlevel

from .._core import validate, wire
from .._core.checkpoint import Checkpoint
from .._core.read_session import Page, ReadOptions, ReadSession
from .._core.text import TextDecoder
from ..errors import (
    AlreadyClosedError,
    BusyResourceError,
    DurableStreamError,
    InvalidArgumentError,
    ParseError,
    StreamConsumedError,
)
from .batches import (
    Batch,
    BytesBatch,
    Decoder,
    JsonBatch,
    ReadStatistics,
    TextBatch,
    bytes_decoder,
    joined,
    json_decoder,
    pieces_decoder,
    text_decoder,
)
from .context import Context, TransportOwner
from .driver import Driver
from .iterators import BatchIterator, ItemIterator

T = TypeVar("T")
B = TypeVar("B", bound=Batch)

logger = logging.getLogger("durable_streams.reader")

As = Literal["auto", "bytes", "json", "text"]


class StreamResponse:
    """A read session that has got its first answer; made by `stream()` and `DurableStream.stream()`.

    Consume it once, with one method. It owns a connection: use it in `async with`, or call `aclose`. `async for item
    in response` is `iter_json()`.

    Positions (`offset`, `cursor`, `up_to_date`, `stream_closed`, `checkpoint`) follow delivery: they move past a
    batch when the consumer asks for the next one, or when its callback has returned, so that what they say is safe to
    store at any time. `status` and `headers` are those of the first answer.
    """

    def __init__(
        self, options: ReadOptions, context: Context, *, owner: TransportOwner | None, start_offset: str
    ) -> None:
        self._options = options
        self._session = ReadSession(options)
        self._driver: Driver[Page] = Driver(
            self._session,
            context,
            logger=logger,
            on_failed_attempt=options.backoff.on_failed_attempt,
            max_bytes=options.max_response_bytes,
        )
        self._owner = owner
        self._start_offset = start_offset
        self._consumer: str | None = None
        self._finished = False
        self._collecting_since: Checkpoint | None = None
        self._error: BaseException | None = None
        self._closed_event: anyio.Event | None = None
        self._batches = 0
        self._bytes = 0

    async def _open(self) -> None:
        """Get the first answer's head."""
        try:
            await self._driver.establish()
        except BaseException as error:
            await self._finish(error if isinstance(error, Exception) else None)
            raise

    # -- What the session is -------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The stream's URL, without user information and query values."""
        return self._options.url

    @property
    def live(self) -> validate.Live:
        """The `live` option as it was given."""
        return self._options.live

    @property
    def start_offset(self) -> str:
        """The offset that was asked for; never changes."""
        return self._start_offset

    @property
    def status(self) -> int:
        """HTTP status of the first answer."""
        return self._session.head.status if self._session.head else 0

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the first answer, names in lower case."""
        return dict(self._session.head.headers) if self._session.head else {}

    @property
    def content_type(self) -> str | None:
        """Content type of the stream, from the first answer."""
        return self._session.content_type

    @property
    def etag(self) -> str | None:
        """Entity tag of the first answer, if it had one."""
        return self.headers.get("etag")

    @property
    def checkpoint(self) -> Checkpoint:
        """Position after the last batch that the consumer is done with; safe to store at any time."""
        return self._collecting_since or self._session.delivered

    @property
    def offset(self) -> str:
        """`checkpoint.offset`."""
        return self.checkpoint.offset

    @property
    def cursor(self) -> str | None:
        """`checkpoint.cursor`."""
        return self.checkpoint.cursor

    @property
    def up_to_date(self) -> bool:
        """`checkpoint.up_to_date`."""
        return self.checkpoint.up_to_date

    @property
    def stream_closed(self) -> bool:
        """`checkpoint.stream_closed`."""
        return self.checkpoint.stream_closed

    def statistics(self) -> ReadStatistics:
        """What the session has done so far."""
        return ReadStatistics(
            self._session.phase.value, self._driver.requests, self._driver.retries, self._batches, self._bytes
        )

    def __repr__(self) -> str:
        facts = [self.url, self._session.phase.value, f"offset={self.offset}"]
        if self._consumer:
            facts.append(f"consumed by {self._consumer}")
        return f"<StreamResponse {', '.join(facts)}>"

    # -- Consumption ---------------------------------------------------------------------------------------

    def read(self, *, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes]:
        """All data up to the first moment the session is up to date, as bytes; then the session ends.

        Everything is held in memory. In JSON mode the result is one JSON array.

        Args:
            max_bytes: Most bytes to accept; None for no limit.

        Raises:
            StreamConsumedError: the session is already being consumed (raised at the call).
            ParseError: there is more than `max_bytes`.
            DurableStreamError: see `stream`.
        """
        _checked_max_bytes(max_bytes)
        self._claim("read")
        return self._read(max_bytes)

    async def _read(self, max_bytes: int | None) -> bytes:
        json = self._session.json
        parts: list[bytes] = []

        def keep(page: Page) -> Batch:
            parts.extend(page.data)
            return Batch(page.checkpoint)

        await self._collect(keep, max_bytes)
        return joined(tuple(parts), json=json) or (b"[]" if json else b"")

    def text(
        self, *, max_bytes: int | None = None, errors: Literal["strict", "replace"] = "strict"
    ) -> Coroutine[Any, Any, str]:
        """All data up to the first moment the session is up to date, as text; then the session ends.

        Args:
            max_bytes: Most bytes to accept; None for no limit.
            errors: What to do with bytes that are not UTF-8, a last character that is not complete included: raise,
                or put U+FFFD in their place. `iter_batches(as_="text")` waits for the rest of a character instead.

        Raises:
            StreamConsumedError: the session is already being consumed (raised at the call).
            ParseError: the data is not UTF-8, or more than `max_bytes`.
            DurableStreamError: see `stream`.
        """
        _checked_errors(errors)
        _checked_max_bytes(max_bytes)
        self._claim("text")
        return self._text(max_bytes, errors)

    async def _text(self, max_bytes: int | None, errors: Literal["strict", "replace"]) -> str:
        if self._session.json:
            data = await self._read(max_bytes)
            try:
                return TextDecoder(errors=errors).decode(data, final=True, offset=self._start_offset)
            except ParseError as error:
                error.url = self.url
                raise
        decoder = TextDecoder(self._options.start.text_tail, errors=errors)

        def decode(page: Page) -> TextBatch:
            checkpoint = page.checkpoint
            text = decoder.decode(joined(page.data, json=False), final=checkpoint.up_to_date, offset=page.before)
            return TextBatch(checkpoint, text)

        return "".join([batch.text for batch in await self._collect(decode, max_bytes)])

    @overload
    def json(
        self, *, loads: Callable[[bytes], Any] | None = None, max_bytes: int | None = None
    ) -> Coroutine[Any, Any, list[Any]]: ...
    @overload
    def json(
        self,
        *,
        type: Callable[[Any], T],
        loads: Callable[[bytes], Any] | None = None,
        max_bytes: int | None = None,
    ) -> Coroutine[Any, Any, list[T]]: ...
    def json(
        self,
        *,
        type: Callable[[Any], T] | None = None,  # noqa: A002 - the name a reader of model libraries expects
        loads: Callable[[bytes], Any] | None = None,
        max_bytes: int | None = None,
    ) -> Coroutine[Any, Any, list[Any]]:
        """All messages up to the first moment the session is up to date; then the session ends.

        Args:
            type: Called with each decoded message; its result takes the message's place.
            loads: Decodes one JSON text given as bytes; the default is orjson, with integers of any size.
            max_bytes: Most bytes to accept; None for no limit.

        Raises:
            DurableStreamError: `BAD_REQUEST` if the stream is not in JSON mode (raised at the call).
            StreamConsumedError: the session is already being consumed (raised at the call).
            ParseError: the data is not JSON, or more than `max_bytes`.
        """
        self._require_json("json")
        _checked_max_bytes(max_bytes)
        self._claim("json")
        return self._json(json_decoder(self.url, loads, type), max_bytes)

    async def _json(self, decode: Decoder[JsonBatch[Any]], max_bytes: int | None) -> list[Any]:
        items: list[Any] = []
        for batch in await self._collect(decode, max_bytes):
            items += batch.items
        return items

    @overload
    def iter_json(self, *, loads: Callable[[bytes], Any] | None = None) -> ItemIterator[Any]: ...
    @overload
    def iter_json(
        self, *, type: Callable[[Any], T], loads: Callable[[bytes], Any] | None = None
    ) -> ItemIterator[T]: ...
    def iter_json(
        self,
        *,
        type: Callable[[Any], T] | None = None,  # noqa: A002 - as in `json`
        loads: Callable[[bytes], Any] | None = None,
    ) -> ItemIterator[Any]:
        """Messages one at a time: until the stream is closed if the session is live, else until it is up to date.

        Args:
            type: Called with each decoded message; its result takes the message's place.
            loads: Decodes one JSON text given as bytes; the default is orjson, with integers of any size.

        Raises:
            DurableStreamError: `BAD_REQUEST` if the stream is not in JSON mode (raised at the call).
            StreamConsumedError: the session is already being consumed (raised at the call).
        """
        self._require_json("iter_json")
        self._claim("iter_json")
        decode: Decoder[JsonBatch[Any]] = json_decoder(self.url, loads, type)
        return ItemIterator(BatchIterator(self._next, self.aclose, decode), lambda batch: batch.items)

    def iter_bytes(self) -> ItemIterator[bytes]:
        """Data in pieces as they come, none of them empty; in JSON mode each is one JSON array.

        Raises:
            StreamConsumedError: the session is already being consumed (raised at the call).
        """
        self._claim("iter_bytes")
        decode = pieces_decoder(json=self._session.json)
        return ItemIterator(BatchIterator(self._next, self.aclose, decode), lambda batch: batch.pieces)

    def iter_text(self, *, errors: Literal["strict", "replace"] = "strict") -> ItemIterator[str]:
        """Text in pieces as it comes, none of them empty; a character cut by a batch's end waits for its rest.

        Args:
            errors: What to do with bytes that are not UTF-8: raise `ParseError`, or put U+FFFD in their place.

        Raises:
            StreamConsumedError: the session is already being consumed (raised at the call).
        """
        _checked_errors(errors)
        self._claim("iter_text")
        return ItemIterator(
            BatchIterator(self._next, self.aclose, self._text_decoder(errors)),
            lambda batch: [batch.text] if batch.text else [],
        )

    @overload
    def iter_batches(self, as_: Literal["auto"] = "auto") -> BatchIterator[JsonBatch[Any] | TextBatch | BytesBatch]: ...
    @overload
    def iter_batches(self, as_: Literal["bytes"]) -> BatchIterator[BytesBatch]: ...
    @overload
    def iter_batches(
        self, as_: Literal["text"], *, errors: Literal["strict", "replace"] = "strict"
    ) -> BatchIterator[TextBatch]: ...
    @overload
    def iter_batches(
        self, as_: Literal["json"], *, loads: Callable[[bytes], Any] | None = None
    ) -> BatchIterator[JsonBatch[Any]]: ...
    @overload
    def iter_batches(
        self, as_: Literal["json"], *, type: Callable[[Any], T], loads: Callable[[bytes], Any] | None = None
    ) -> BatchIterator[JsonBatch[T]]: ...
    def iter_batches(
        self,
        as_: As = "auto",
        *,
        type: Callable[[Any], Any] | None = None,  # noqa: A002 - as in `json`
        loads: Callable[[bytes], Any] | None = None,
        errors: Literal["strict", "replace"] = "strict",
    ) -> BatchIterator[Any]:
        """Batches with their checkpoints, empty ones included: the recommended way to read and resume.

        Args:
            as_: "json" gives `JsonBatch`, "bytes" `BytesBatch`, "text" `TextBatch`; "auto" chooses by the content
                type: JSON mode, `text/*`, or bytes.
            type: With JSON: called with each decoded message; its result takes the message's place.
            loads: With JSON: decodes one JSON text given as bytes.
            errors: With text: what to do with bytes that are not UTF-8.

        Raises:
            InvalidArgumentError: an option does not go with the kind of batch.
            DurableStreamError: `BAD_REQUEST` for "json" if the stream is not in JSON mode (raised at the call).
            StreamConsumedError: the session is already being consumed (raised at the call).
        """
        _checked_errors(errors)
        chosen = self._chosen(as_)
        if chosen != "json" and not (type is None and loads is None):
            raise InvalidArgumentError(f"type and loads go with JSON batches, not with {chosen!r}")
        if chosen != "text" and as_ != "auto" and errors != "strict":
            raise InvalidArgumentError(f"errors goes with text batches, not with {chosen!r}")
        self._claim("iter_batches")
        decode: Decoder[Any]
        if chosen == "json":
            decode = json_decoder(self.url, loads, type)
        elif chosen == "text":
            decode = self._text_decoder(errors)
        else:
            decode = bytes_decoder(json=self._session.json)
        return BatchIterator(self._next, self.aclose, decode)

    def __aiter__(self) -> ItemIterator[Any]:
        return self.iter_json()

    # -- Callbacks -----------------------------------------------------------------------------------------

    def subscribe_json(
        self,
        callback: Callable[[JsonBatch[Any]], object],
        *,
        type: Callable[[Any], Any] | None = None,  # noqa: A002 - as in `json`
        loads: Callable[[bytes], Any] | None = None,
    ) -> Coroutine[Any, Any, None]:
        """Call `callback` with each batch, in the calling task, until the session ends; returns None.

        The callback may be plain or async; the next batch is fetched when it is done, and `checkpoint` moves past the
        batch then. Empty batches are passed too, so that it learns when it is up to date. Stop with `cancel()` or by
        cancelling the surrounding scope.

        Args:
            callback: Gets a `JsonBatch`.
            type: Called with each decoded message; its result takes the message's place.
            loads: Decodes one JSON text given as bytes.

        Raises:
            DurableStreamError: `BAD_REQUEST` if the stream is not in JSON mode (raised at the call).
            StreamConsumedError: the session is already being consumed (raised at the call).
            Whatever the callback raises: the session ends, and `wait_closed` raises it as well.
        """
        self._require_json("subscribe_json")
        self._claim("subscribe_json")
        return self._subscribe(json_decoder(self.url, loads, type), callback)

    def subscribe_bytes(self, callback: Callable[[BytesBatch], object]) -> Coroutine[Any, Any, None]:
        """Call `callback` with each `BytesBatch`; otherwise as `subscribe_json`."""
        self._claim("subscribe_bytes")
        return self._subscribe(bytes_decoder(json=self._session.json), callback)

    def subscribe_text(
        self, callback: Callable[[TextBatch], object], *, errors: Literal["strict", "replace"] = "strict"
    ) -> Coroutine[Any, Any, None]:
        """Call `callback` with each `TextBatch`; otherwise as `subscribe_json`."""
        _checked_errors(errors)
        self._claim("subscribe_text")
        return self._subscribe(self._text_decoder(errors), callback)

    async def _subscribe(self, decode: Decoder[B], callback: Callable[[B], object]) -> None:
        while (batch := await self._next(decode)) is not None:
            try:
                result = callback(batch)
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                self._session.fail(error)
                await self._finish(error)
                raise

    # -- Ending --------------------------------------------------------------------------------------------

    async def wait_closed(self) -> None:
        """Wait until the session has ended: consumed to its end, or cancelled.

        It does not read: without a consumer it waits for `cancel` or `aclose`.

        Raises:
            Whatever ended the session, if that was an error.
        """
        if not self._finished:
            if self._closed_event is None:
                self._closed_event = anyio.Event()
            await self._closed_event.wait()
        else:
            await anyio.lowlevel.checkpoint()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """End the session: a pending read stops at once, iterators end normally. Plain, idempotent, always legal.

        An idle connection is closed by the next call or by `aclose`.
        """
        self._session.cancel()
        self._driver.interrupt()
        if not self._finished:
            self._set_closed(None)

    async def aclose(self) -> None:
        """End the session and release its connection. Idempotent; not cancelled half-way, bounded in time."""
        self.cancel()
        await self._release()

    async def __aenter__(self) -> StreamResponse:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self.__dict__.get("_finished", True):
            warnings.warn(f"{self!r} was dropped without being closed", ResourceWarning, stacklevel=2, source=self)

    # -- Inside --------------------------------------------------------------------------------------------

    def _claim(self, method: str) -> None:
        if self._consumer is not None:
            raise StreamConsumedError(
                f"the session is already consumed by {self._consumer}(); {method}() needs a session of its own",
                first=self._consumer,
                second=method,
                url=self.url,
            )
        if self._finished:
            raise AlreadyClosedError(f"the session was closed before {method}()", url=self.url)
        self._consumer = method

    def _require_json(self, method: str) -> None:
        if not self._session.json and not (self.status == 304 and self.content_type is None):
            raise DurableStreamError(
                f"{method}() needs a JSON stream, but the content type of {self.url} is {self.content_type!r}; "
                "use iter_bytes() or iter_text(), or json=True if the content type is wrong",
                code="BAD_REQUEST",
                url=self.url,
            )

    def _chosen(self, as_: str) -> str:
        if as_ == "auto":
            return "json" if self._session.json else "text" if wire.is_text(self.content_type) else "bytes"
        if as_ not in ("bytes", "json", "text"):
            raise InvalidArgumentError(f'as_ must be "auto", "bytes", "json" or "text", got {as_!r}')
        if as_ == "json":
            self._require_json("iter_batches")
        return as_

    def _text_decoder(self, errors: Literal["strict", "replace"]) -> Decoder[TextBatch]:
        return text_decoder(json=self._session.json, tail=self._options.start.text_tail, errors=errors)

    async def _next(self, decode: Decoder[B]) -> B | None:
        """The next batch, decoded; None when the session is over."""
        if self._finished:
            if self._error is not None:
                raise self._error
            self._driver.taken()  # Cancelled while the consumer had a batch: it is done with it now.
            await self._release()
            return None
        try:
            page = await self._driver.advance()
            if page is None:
                await self._finish(None)
                return None
            try:
                batch = decode(page)
            except Exception as error:
                if isinstance(error, ParseError):
                    error.url = self.url
                self._session.fail(error)
                raise
            self._session.amend(batch.checkpoint)
        except BusyResourceError:
            raise
        except Exception as error:
            await self._finish(error)
            raise
        self._batches += 1
        self._bytes += sum(map(len, page.data))
        return batch

    async def _collect(self, decode: Decoder[B], max_bytes: int | None) -> list[B]:
        """All batches up to the first that is up to date, whatever `live` says: the end of `read`, `text` and `json`.

        Nothing is with the caller before the last batch is. Until then the position stays where it was.
        """
        batches: list[B] = []
        self._collecting_since = self._session.delivered
        self._driver.budget = max_bytes
        while (batch := await self._next(decode)) is not None:
            batches.append(batch)
            if batch.up_to_date:
                self._driver.taken()
                await self.aclose()
                break
            if max_bytes is not None:
                self._driver.budget = max_bytes - self._bytes
        self._collecting_since = None
        return batches

    async def _finish(self, error: BaseException | None) -> None:
        self._set_closed(error)
        await self._release()

    def _set_closed(self, error: BaseException | None) -> None:
        if not self._finished:
            self._finished = True
            self._error = error
            if self._closed_event is not None:
                self._closed_event.set()

    async def _release(self) -> None:
        await self._driver.aclose()
        owner, self._owner = self._owner, None
        if owner is not None:
            await owner.aclose()


def _checked_errors(errors: str) -> None:
    if errors not in ("strict", "replace"):
        raise InvalidArgumentError(f'errors must be "strict" or "replace", got {errors!r}')


def _checked_max_bytes(max_bytes: int | None) -> None:
    if max_bytes is not None:
        validate.integer("max_bytes", max_bytes)
