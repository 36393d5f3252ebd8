"""What the header lines of an answer mean for its connection."""

from __future__ import annotations

import re
from collections.abc import Mapping

_TIMEOUT = re.compile(r"(?:^|[,;\s])timeout\s*=\s*\"?(\d{1,9})", re.IGNORECASE)


def idle_seconds(headers: Mapping[str, str], limit: float) -> float:
    """How long the connection of an answer may idle and still be used again.

    Args:
        headers: The answer's; `Keep-Alive: timeout=5` says when the server closes it. A second before that, a request
            could meet the close on its way.
        limit: The most we allow.
    """
    match = _TIMEOUT.search(headers.get("keep-alive", ""))
    return limit if match is None else min(limit, max(0.0, int(match[1]) - 1.0))
