"""`GET /inspect`: what is in the store of a server that runs, for its operators.

The answer is lines of JSON, one for each thing, told apart by their `kind`: the store, its subscriptions, then streams
in the order of their paths, a page at a time. If there are more, the last line is of the kind "more" and has the
parameter `after` for the next page.

==============  =====================================================================================================
parameter       meaning
==============  =====================================================================================================
`prefix`        only the stream of this path and those below it, and neither store nor subscriptions
`after`         only streams behind this path
`producers`     with `1`: after each stream its producers, those that were seen last, up to `MOST_PRODUCERS`
==============  =====================================================================================================

Whoever may read a path may list what is below it; for the whole answer one needs the right to read `/`. There is no
such path unless it was asked for (`inspection`): streams can be found by it, which nothing else on the server allows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from .._core.wire import normalize_path
from .requests import Call
from .responses import NO_STORE, Rejection
from .stores.reports import InspectableStore, SubscriptionReport
from .subscriptions.records import SubscriptionStore

if TYPE_CHECKING:
    from .http import DurableStreamsApp

PAGE = 500
MOST_PRODUCERS = 100

_PARAMETERS = frozenset(("prefix", "after", "producers"))
_MEDIA_TYPE: tuple[bytes, bytes] = (b"content-type", b"application/x-ndjson")


async def answer(app: DurableStreamsApp, call: Call) -> None:
    """Answer a request for `/inspect`.

    Raises:
        Rejection: if there is no such thing here, or the caller may not see it, or asks for nonsense.
    """
    store = app.store
    if not app.inspection or not isinstance(store, InspectableStore):
        raise Rejection(404, "there is no inspection here")
    prefix, after, producers = _parse(call.scope.get("query_string", b""))
    if app.gate is not None:
        await app.gate.check(call, path=prefix or "/", action="read")
    if call.method not in ("GET", "HEAD"):
        raise Rejection(405, "the method is not supported here", [(b"allow", b"GET, HEAD, OPTIONS")])
    lines: list[dict[str, Any]] = []
    if not prefix and not after:
        lines.append((await store.report()).line())
        if isinstance(store, SubscriptionStore):
            kept = await store.load_subscriptions()
            lines += [SubscriptionReport.of(record, links).line() for record, links in kept]
    streams = await store.report_streams(prefix, after, PAGE)
    for stream in streams:
        lines.append(stream.line())
        if producers and stream.producers:
            found = await store.report_producers(stream.path, MOST_PRODUCERS)
            lines += [producer.line() for producer in found]
    if len(streams) == PAGE:
        lines.append({"kind": "more", "after": streams[-1].path})
    await call.answer(200, [_MEDIA_TYPE, NO_STORE], _encode(lines))


def _parse(query: bytes) -> tuple[str, str, bool]:
    """The parameters.

    Raises:
        Rejection: if they are wrong.
    """
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError:
        raise Rejection(400, "the query is malformed") from None
    known = dict(pairs)
    if len(known) != len(pairs) or not known.keys() <= _PARAMETERS:
        raise Rejection(400, "the parameters are prefix, after and producers, each once")
    prefix, after = known.get("prefix", "").rstrip("/"), known.get("after", "")
    for path in (prefix, after):
        if path and normalize_path(path.encode("utf-8", "surrogateescape")) != path:
            raise Rejection(400, "prefix and after must be normalised paths")
    if known.get("producers", "0") not in ("0", "1"):
        raise Rejection(400, "producers must be 0 or 1")
    return prefix, after, known.get("producers") == "1"


def _encode(lines: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for line in lines)
