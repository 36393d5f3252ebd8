"""A stream in the scripted server: a small log that is read in every mode and written by plain appends."""

from __future__ import annotations

import json
from typing import Any

from tests.client.answers import JSON, control, data, events, flags
from tests.scripted import Reply, Request


class Log:
    """A JSON stream. Use it as the handler of a `ScriptedServer`.

    Args:
        items: What is in it.
        closed: Whether it is closed.
        page: Items in a catch-up page.
        behind: Items at the end that catch-up reads do not see yet: they come live.
    """

    def __init__(self, items: list[Any], *, closed: bool = False, page: int = 2, behind: int = 0) -> None:
        self.items = items
        self.closed = closed
        self._page = page
        self._behind = behind
        self.batches: list[list[Any]] = []

    def __call__(self, request: Request) -> Reply:
        if request.method == "GET":
            return self._read(request)
        if request.method == "POST":
            if request.body:
                self.batches.append(json.loads(request.body))
                self.items += self.batches[-1]
            self.closed = self.closed or "stream-closed" in request.headers
        return Reply(204, headers=flags(f"{len(self.items):03}", content_type=JSON, closed=self.closed))

    def _read(self, request: Request) -> Reply:
        start = max(int(request.query["offset"]), 0)
        live = request.query.get("live")
        if live == "sse":
            return self._events(start)
        known = len(self.items) if live else max(len(self.items) - self._behind, start)
        stop = min(start + self._page, known)
        at_end = stop == known
        headers = flags(
            f"{stop:03}", content_type=JSON, up_to_date=at_end, closed=self.closed and stop == len(self.items)
        )
        body = json.dumps(self.items[start:stop]).encode()
        return Reply(headers=headers, chunks=[body[:3], body[3:]])

    def _events(self, start: int) -> Reply:
        chunks = []
        for n in range(start, len(self.items)):
            chunks += [data(f"[{self.items[n]}]"), control(f"{n + 1:03}")]
        last: dict[str, Any] = {"streamClosed": True} if self.closed else {"upToDate": True}
        return events(*chunks, control(f"{len(self.items):03}", **last))
