"""Listings of basins, streams and access tokens: a page, and all pages one after the other (S2 2.4)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..errors import BusyResourceError
from . import _names
from ._context import Service, with_query
from ._infos import flag, json_object
from ._unary import Call, request
from .errors import S2ProtocolError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing, in the order of the names' bytes. Iterating it gives its items.

    Attributes:
        items: What is on it. Things that are being deleted are among them.
        has_more: Whether there is more after the last item.
    """

    items: tuple[T, ...]
    has_more: bool

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Listing(Generic[T]):
    """All entries of a listing, fetched page by page while it is iterated. Holds nothing open between pages.

    A failed or cancelled step loses nothing: the next one asks for the same page again.
    """

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[Page[T]]],
        key: Callable[[T], str],
        *,
        start_after: str,
        keep: Callable[[T], bool],
    ) -> None:
        self._fetch = fetch
        self._key = key
        self._cursor = start_after
        self._keep = keep
        self._items: Iterator[T] = iter(())
        self._ended = False
        self._busy = False

    def __aiter__(self) -> Listing[T]:
        return self

    async def __anext__(self) -> T:
        if self._busy:
            raise BusyResourceError("another task is already waiting for this listing's next page")
        self._busy = True
        try:
            while True:
                for item in self._items:
                    return item
                if self._ended:
                    raise StopAsyncIteration
                page = await self._fetch(self._cursor)
                if page.items:
                    # The cursor comes first: a page of nothing but hidden items leads on as well.
                    self._cursor = self._key(page.items[-1])
                self._ended = not page.has_more or not page.items
                self._items = iter([item for item in page.items if self._keep(item)])
        finally:
            self._busy = False


@dataclass(frozen=True, slots=True)
class Lister(Generic[T]):
    """Fetches the listing of one kind of thing.

    Attributes:
        service: The client's.
        url: Where the listing is.
        name: What the items stand under in the answer.
        read: Makes an item of its JSON.
        check: Checks a prefix, and a name to start after, by the argument `name`.
        key: Name of an item, by which the listing is ordered.
        gone: Whether an item is being deleted.
        headers: Of each request.
    """

    service: Service
    url: str
    name: str
    read: Callable[[Any], T]
    check: Callable[..., str]
    key: Callable[[T], str]
    gone: Callable[[T], bool] = field(default=lambda item: False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    async def page(self, prefix: str, start_after: str, limit: int | None) -> Page[T]:
        """One page; None as the limit leaves its size to the server."""
        query: dict[str, str] = {}
        if self.check(prefix, name="prefix"):
            query["prefix"] = prefix
        if self.check(start_after, name="start_after"):
            query["start_after"] = start_after
        if limit is not None:
            query["limit"] = str(_names.page_limit(limit))
        reply = await request(self.service, Call("GET", with_query(self.url, query), self.headers))
        return reply.read_json(lambda document: read_page(document, self.name, self.read))

    def all(self, prefix: str, start_after: str, page_size: int | None, *, include_deleted: bool = True) -> Listing[T]:
        """All pages; arguments are checked at once."""
        self.check(prefix, name="prefix")
        self.check(start_after, name="start_after")
        if page_size is not None:
            _names.page_limit(page_size, name="page_size")
        return Listing(
            lambda cursor: self.page(prefix, cursor, page_size),
            self.key,
            start_after=start_after,
            keep=lambda item: include_deleted or not self.gone(item),
        )


class Listed(Generic[T]):
    """What can be listed: basins, and the streams of one."""

    _lister: Lister[T]

    async def list(self, *, prefix: str = "", start_after: str = "", limit: int | None = None) -> Page[T]:
        """One page, in the order of the names' bytes. What is being deleted is on it.

        Args:
            prefix: Of the names.
            start_after: The page begins with the next name after this one.
            limit: Entries of the page, 1 to 1000; None is 1000.
        """
        return await self._lister.page(prefix, start_after, limit)

    def list_all(
        self,
        *,
        prefix: str = "",
        start_after: str = "",
        page_size: int | None = None,
        include_deleted: bool = False,
    ) -> Listing[T]:
        """All of them, page by page: `async for info in client.basins.list_all()`.

        Args:
            prefix: Of the names.
            start_after: Begin with the next name after this one.
            page_size: Entries that are asked for at a time, 1 to 1000; None is 1000. It bounds no total.
            include_deleted: Whether to show what is being deleted.
        """
        return self._lister.all(prefix, start_after, page_size, include_deleted=include_deleted)


def read_page(document: Any, name: str, read: Callable[[Any], T]) -> Page[T]:
    """A page from JSON, whose items stand under `name`.

    Raises:
        S2ProtocolError: it has another shape.
    """
    fields = json_object("page", document)
    items = fields.get(name)
    if not isinstance(items, list):
        raise S2ProtocolError(f"the answer has no list of {name}")
    return Page(tuple(read(item) for item in items), flag(fields, "has_more"))
