"""Compressed answers to catch-up reads (server 8.3): gzip, for text and JSON that is worth it.

A page is the same whether it is compressed or not, but not the same bytes. So it says so to caches (`Vary`), and its
entity tag is another one, with `-gz` at its end; both tags are accepted for both. Compressing happens in a worker
thread, a piece at a time, as the client takes them.

Live answers are never compressed: they are small, and an event has to leave at once. Nor is a body that is sent to us
ever decompressed, so there is none that could grow on the way (`Call.read_body`).
"""

from __future__ import annotations

import os
import re
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from .._core import wire
from .pages import Read
from .requests import Call
from .responses import Headers
from .stores.base import StorePage

if TYPE_CHECKING:
    from .http import DurableStreamsApp

#: Smallest page that is worth it.
MIN_BYTES = 1024
#: Most bytes that are compressed before the answer begins, so that its length is known.
WHOLE_BYTES = 1 << 20

GZIP = (b"content-encoding", b"gzip")
_LEVEL = 1
_QVALUE = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
_WINDOW = 16 + zlib.MAX_WBITS  # 16: in gzip's format

_limiter: RunVar[anyio.CapacityLimiter] = RunVar("durable_streams_compression")


@lru_cache(256)
def is_compressible(content_type: str) -> bool:
    """Whether a stream is text or JSON, of any kind."""
    kind = wire.media_type(content_type)
    return kind.startswith("text/") or kind == wire.JSON or kind.endswith(("+json", "+xml"))


@lru_cache(256)
def accepts_gzip(accept_encoding: bytes) -> bool:
    """Whether a client takes gzip, and not less gladly than no coding (RFC 9110 12.5.3)."""
    weights: dict[str, float] = {}
    for part in accept_encoding.decode("latin-1").lower().split(","):
        name, *parameters = (word.strip() for word in part.split(";"))
        if name:
            weights["gzip" if name == "x-gzip" else name] = _weight(parameters)
    gzip = weights.get("gzip", weights.get("*", 0.0))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def _weight(parameters: list[str]) -> float:
    """The q-value; 0 if it is none, since who wrote it did not mean 1."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return float(value) if _QVALUE.fullmatch(value.strip()) else 0.0
    return 1.0


def negotiate(app: DurableStreamsApp, call: Call, read: Read, page: StorePage) -> bool | None:
    """Whether a page is to be sent compressed; None if it is not, whatever the client takes."""
    if page.size < MIN_BYTES or not app.compression or not is_compressible(read.info.content_type):
        return None
    accepted = call.headers.get(b"accept-encoding")
    return accepted is not None and accepts_gzip(accepted)


async def send_compressed(call: Call, page: StorePage, headers: Headers, *, json: bool) -> None:
    """Send a page with status 200, compressed. Its entity tag and `Vary` are in the headers already.

    Up to `WHOLE_BYTES` are compressed first, so that the length is known; what is longer goes out as it comes.
    """
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW)
    headers = [*headers, GZIP]
    whole = page.size <= WHOLE_BYTES
    # In JSON mode the pieces are messages each followed by a comma. The closing bracket takes the last comma's place.
    ready = [compressor.compress(b"[")] if json else []
    if not whole:
        await call.start(200, headers)
    left = page.size
    while left:
        piece = await page.next_piece()
        assert piece is not None, "the store's page is shorter than its size"
        left -= len(piece)
        body = memoryview(piece)[:-1] if json and not left else piece
        done = await anyio.to_thread.run_sync(compressor.compress, body, limiter=_worker())
        if whole or not done:
            ready.append(done)
        else:
            await call.send_body(b"".join((*ready, done)), more=True)
            ready.clear()
    if json:
        ready.append(compressor.compress(b"]"))
    ready.append(compressor.flush())
    if whole:
        await call.answer(200, headers, b"".join(ready))
    else:
        await call.send_body(b"".join(ready))


def _worker() -> anyio.CapacityLimiter:
    """Who may compress: as many threads as there are processors, and not all that a program has."""
    limiter = _limiter.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(os.cpu_count() or 1)
        _limiter.set(limiter)
    return limiter
