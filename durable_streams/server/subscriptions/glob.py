"""Patterns over stream paths: `*` stands for one segment, `**` for any number of them, none included (server 15.2).

Other segments stand for themselves and are compared percent-decoded, so `%2A` in a pattern means a literal asterisk.
"""

from __future__ import annotations

import re
from functools import lru_cache
from types import EllipsisType
from urllib.parse import unquote

# Of these characters a path has one spelling only; others may stand encoded or plain.
_PLAIN = re.compile(r"[-._~0-9A-Za-z]+")


class Glob:
    """A pattern, ready for use.

    Args:
        pattern: Normalised: without slashes at its ends, no empty segments.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._segments = [_parse(part) for part in pattern.split("/")]

    def __repr__(self) -> str:
        return f"<Glob {self.pattern}>"

    @property
    def prefix(self) -> str:
        """Text that every matching path begins with."""
        literal: list[str] = []
        for part in self.pattern.split("/"):
            if not _PLAIN.fullmatch(part):
                break
            literal.append(part)
        return "/".join(literal)

    def matches(self, path: str) -> bool:
        """Whether a path, relative to the root and normalised, matches.

        Takes time proportional to the product of both lengths at most, whatever the pattern: on a mismatch only the
        last `**` is stretched, since earlier ones can gain nothing by it.
        """
        parts, segments = _decoded(path), self._segments
        at = index = 0
        resume: tuple[int, int] | None = None
        while at < len(parts):
            if index < len(segments) and segments[index] is ...:
                index += 1
                resume = index, at
            elif index < len(segments) and segments[index] in (None, parts[at]):
                index += 1
                at += 1
            elif resume is not None:
                index, at = resume[0], resume[1] + 1
                resume = index, at
            else:
                return False
        return all(segment is ... for segment in segments[index:])


def _parse(part: str) -> str | EllipsisType | None:
    """A segment of a pattern: None for one segment, `...` for many, else what it has to be."""
    return None if part == "*" else ... if part == "**" else unquote(part)


@lru_cache(1024)
def _decoded(path: str) -> tuple[str, ...]:
    return tuple(unquote(part) for part in path.split("/"))
