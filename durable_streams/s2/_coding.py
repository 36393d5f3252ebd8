"""Content coding of unary answers: gzip, deflate and zstd, bounded (S2 1.6).

An answer is decoded by what it says of itself, never by what was asked for. A small body may expand a thousandfold, so
the result has a limit.
"""

from __future__ import annotations

from .._core.content_coding import make_decoder
from ..errors import ParseError
from ._frames import decompress

#: What requests offer, by the compression that was chosen. For "none" nothing is offered.
ACCEPTED: dict[str, str] = {"gzip": "gzip", "zstd": "zstd, gzip"}

_MAX_CODINGS = 4


def decode(data: bytes, content_encoding: str, *, limit: int) -> bytes:
    """A body as it was before its content codings were applied.

    Args:
        data: The whole body as it came.
        content_encoding: The header's value; "" if there is none.
        limit: Largest result in bytes, also between two codings.

    Raises:
        IncompleteBodyError: gzip or deflate data is damaged or cut.
        ParseError: a coding is unknown, there are too many, or the result is larger than the limit.
        S2ProtocolError: zstd data is damaged, cut, or larger than the limit.
        ImportError: the body is zstd, and zstandard is missing.
    """
    codings = [name for name in (part.strip().lower() for part in content_encoding.split(",")) if name]
    if len(codings) > _MAX_CODINGS:
        raise ParseError(f"the body has {len(codings)} content codings, at most {_MAX_CODINGS} are accepted")
    for coding in reversed(codings):
        if coding == "zstd":
            data = decompress(data, "zstd", limit)
        else:
            decoder = make_decoder(coding, max_bytes=limit)
            data = b"".join(decoder.feed(data))
            decoder.finish()
    return data
