"""A sink for piping data into a stream, exactly once."""

from __future__ import annotations

import string
from types import TracebackType

from ..errors import AlreadyClosedError
from .handle import DurableStream
from .producer import Batching, IdempotentProducer
from .results import CloseResult

_ALPHABET = string.ascii_lowercase + string.digits


class StreamWriter:
    """Writes to a stream through a producer of its own; made by `DurableStream.writable`.

    Leaving the block waits until everything is stored, and raises if something was not. Left by an exception, it drops
    what is not under way and never closes the stream.
    """

    def __init__(
        self, stream: DurableStream, *, close_stream: bool, content_type: str | None, batching: Batching
    ) -> None:
        rng = stream._context.rng
        producer_id = "writable-" + "".join(rng.choice(_ALPHABET) for _ in range(8))
        self._producer = IdempotentProducer(
            stream, producer_id, auto_claim=True, content_type=content_type, batching=batching
        )
        self._close_stream = close_stream
        self._result: CloseResult | None = None
        self._left = False

    @property
    def producer(self) -> IdempotentProducer:
        """The producer behind the sink."""
        return self._producer

    @property
    def result(self) -> CloseResult | None:
        """After leaving the block with `close_stream=True`: how the stream ended."""
        return self._result

    async def write(self, data: bytes | str) -> None:
        """Queue data, waiting for room while the producer's buffer is full. Empty data is ignored.

        Args:
            data: Bytes, or a str that is sent as UTF-8. For a JSON stream the text of one JSON value.

        Raises:
            AlreadyClosedError: outside the block.
            DurableStreamError: the error with which an earlier write failed; see `IdempotentProducer`.
        """
        if self._left:
            raise AlreadyClosedError("the writer's block was left", url=self._producer.url)
        if len(data):
            await self._producer.append(data)

    async def __aenter__(self) -> StreamWriter:
        await self._producer.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left = True
        if exc is None and self._close_stream:
            try:
                self._result = await self._producer.close_stream()
            except BaseException as error:
                await self._producer.__aexit__(type(error), error, error.__traceback__)
                raise
        await self._producer.__aexit__(exc_type, exc, traceback)

    def __repr__(self) -> str:
        return f"<StreamWriter on {self._producer!r}>"
