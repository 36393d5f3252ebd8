"""The headers on every answer (server 2.4), and which pages of other origins may use the server."""

from __future__ import annotations

from collections.abc import Sequence

from .._core.wire import check_header
from .responses import ALLOWED_HEADERS, EXPOSED_HEADERS, METHODS, Headers

_ORIGIN = b"access-control-allow-origin"


class Cors:
    """Chooses the common headers.

    Args:
        origin: `*`, an origin such as `https://app.example`, or several. With several, who asks is told whether his
            is one of them; caches are told that the answer depends on it.
        corp: `Cross-Origin-Resource-Policy`.

    Attributes:
        choosy: Whether the headers depend on who asks.
        default: The headers for anyone, or for who is not among several.

    Raises:
        ValueError: if `corp` has no such value, an origin is no header value, or `*` is one of several.
    """

    def __init__(self, origin: str | Sequence[str], corp: str) -> None:
        if corp not in ("cross-origin", "same-site", "same-origin"):
            raise ValueError(f"corp must be 'cross-origin', 'same-site' or 'same-origin', got {corp!r}")
        origins = (origin,) if isinstance(origin, str) else tuple(origin)
        if len(origins) > 1 and "*" in origins:
            raise ValueError(f"cors_origin must be '*' or a list of origins, not both: {origin!r}")
        names = [check_header("cors_origin", each)[1].encode("latin-1") for each in origins]
        always: Headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"cross-origin-resource-policy", corp.encode()),
            (b"access-control-allow-methods", METHODS.encode()),
            (b"access-control-allow-headers", ALLOWED_HEADERS.encode()),
            (b"access-control-expose-headers", EXPOSED_HEADERS.encode()),
        ]
        self.choosy: bool = len(names) > 1
        self.default: Headers = [*always, *((_ORIGIN, name) for name in names if not self.choosy)]
        self._by_origin: dict[bytes, Headers] = {name: [*always, (_ORIGIN, name)] for name in names}

    def headers(self, origin: bytes | None) -> Headers:
        """The headers for a request with this `Origin`."""
        return self.default if origin is None else self._by_origin.get(origin, self.default)
