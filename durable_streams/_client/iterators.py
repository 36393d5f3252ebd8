"""What a read session's `iter_...` methods return: small classes, so that stopping early needs no generator."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

from .batches import Batch, Decoder

T = TypeVar("T")
B = TypeVar("B", bound=Batch)


class BatchIterator(AsyncIterator[B]):
    """Iterates over batches; made by `StreamResponse.iter_batches`.

    Cancelling a pending `__anext__` (a timeout around it, say) loses nothing: the iterator stays usable.
    """

    def __init__(
        self,
        advance: Callable[[Decoder[B]], Awaitable[B | None]],
        close: Callable[[], Awaitable[None]],
        decode: Decoder[B],
    ) -> None:
        self._advance = advance
        self._close = close
        self._decode = decode

    def __aiter__(self) -> BatchIterator[B]:
        return self

    async def __anext__(self) -> B:
        batch = await self._advance(self._decode)
        if batch is None:
            raise StopAsyncIteration
        return batch

    async def aclose(self) -> None:
        """End the session, as `StreamResponse.aclose`."""
        await self._close()


class ItemIterator(AsyncIterator[T]):
    """Iterates over the items of batches; made by `iter_json`, `iter_bytes` and `iter_text`.

    `StreamResponse.checkpoint` moves past a batch when the item after its last one is asked for. Cancelling a pending
    `__anext__` loses nothing.
    """

    def __init__(self, batches: BatchIterator[B], items: Callable[[B], Iterable[T]]) -> None:
        self._batches: BatchIterator[Any] = batches
        self._items: Iterator[T] = iter(())
        self._unpack: Callable[[Any], Iterable[T]] = items

    def __aiter__(self) -> ItemIterator[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            for item in self._items:
                return item
            self._items = iter(self._unpack(await self._batches.__anext__()))

    async def aclose(self) -> None:
        """End the session, as `StreamResponse.aclose`."""
        await self._batches.aclose()
