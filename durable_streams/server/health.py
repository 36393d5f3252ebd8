"""What whoever operates the server asks: `/health`, `/ready`, `/metrics` and `/inspect` (`inspecting`).

`/health` tells whether the process does its work, or should be started anew. `/ready` tells whether requests should be
sent here: not before the store is open, nor when the server is about to end. Both say nothing about streams, so they
are for everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import inspecting
from .limits import BUSY_SECONDS
from .requests import Call
from .responses import NO_STORE, Headers, Rejection
from .stores.abilities import FailingStore

if TYPE_CHECKING:
    from .http import DurableStreamsApp

HEALTH, READY, METRICS, INSPECT = "/health", "/ready", "/metrics", "/inspect"
PATHS = (HEALTH, READY, METRICS, INSPECT)

_PLAIN: tuple[bytes, bytes] = (b"content-type", b"text/plain; charset=utf-8")
_METHODS: Headers = [(b"allow", b"GET, HEAD, OPTIONS")]


async def answer(app: DurableStreamsApp, call: Call, name: str) -> None:
    """Answer a request for one of `PATHS`.

    Raises:
        Rejection: if it is no GET or HEAD, not for everybody, or there are no metrics.
    """
    if name == METRICS:
        await _answer_metrics(app, call)
        return
    if name == INSPECT:
        await inspecting.answer(app, call)
        return
    _check_method(call)
    problem = _illness(app)
    if problem is None and name == READY:
        problem = await _hindrance(app, call)
    if problem is not None:
        raise Rejection(503, problem, [(b"retry-after", b"%d" % BUSY_SECONDS)])
    await call.answer(200, [_PLAIN, NO_STORE], b"ready\n" if name == READY else b"ok\n")


async def _answer_metrics(app: DurableStreamsApp, call: Call) -> None:
    if app.gate is not None:
        await app.gate.check(call)
    _check_method(call)
    if app.metrics is None:
        raise Rejection(404, "there are no metrics here")
    text, content_type = app.metrics.expose(call.header(b"accept") or "")
    await call.answer(200, [(b"content-type", content_type.encode()), NO_STORE], text)


def _check_method(call: Call) -> None:
    if call.method not in ("GET", "HEAD"):
        raise Rejection(405, "the method is not supported here", _METHODS)


def _illness(app: DurableStreamsApp) -> str | None:
    """Why the process should be started anew, or None."""
    store = app.store
    if app.failure is not None or (isinstance(store, FailingStore) and store.failure is not None):
        return "the server has failed"
    return None


async def _hindrance(app: DurableStreamsApp, call: Call) -> str | None:
    """Why requests should go elsewhere, or None. Looks up what cannot be there, to see the store at work."""
    if app.waits.stopping:
        return "the server is shutting down"
    try:
        await app.store.head(f"{call.path}/", app.clock())
    except Exception:
        return "the store is not open"
    return None
