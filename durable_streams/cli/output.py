"""Standard output: where data goes, and nothing else."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import anyio


def write(data: bytes) -> None:
    """Write data and flush, so that the next program in a pipe sees it now."""
    if data:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def json_lines(items: Iterable[Any]) -> bytes:
    """Each item as compact JSON on a line of its own."""
    lines = [json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in items]
    if not lines:
        return b""
    text = "\n".join(lines) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError:  # A lone surrogate: JSON can escape it, UTF-8 cannot hold it.
        return b"".join(json.dumps(item, separators=(",", ":")).encode() + b"\n" for item in items)


def facts(named: Mapping[str, Any]) -> None:
    """Print what is known: a JSON line, or a small table when a person is looking. Values of None are left out."""
    known = {name: value for name, value in named.items() if value is not None}
    if not sys.stdout.isatty():
        write(json_lines([known]))
        return
    width = max(map(len, known), default=0)
    shown = {True: "yes", False: "no"}
    lines = [f"{name:{width}}  {shown[value] if isinstance(value, bool) else value}\n" for name, value in known.items()]
    write("".join(lines).encode())


def line(values: Mapping[str, Any], in_words: Callable[[dict[str, Any]], str]) -> None:
    """Print one of many things: a JSON line, or a line of words when a person is looking.

    What is not printable is escaped there: names come from strangers, and a terminal obeys them.
    """
    known = dict(values)
    if sys.stdout.isatty():
        words = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in in_words(known))
        write(words.encode("utf-8", "replace") + b"\n")
    else:
        write(json_lines([known]))


def say(words: str) -> None:
    """Say something to the user: a line on standard error."""
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


async def wait_unwanted() -> None:
    """Wait until nobody reads standard output any more. It may never return: only pipes can tell.

    A program that follows a stream may have nothing to write for a long time, and would not notice otherwise.
    """
    descriptor = sys.stdout.fileno()
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        await anyio.sleep_forever()
    try:
        await anyio.wait_readable(descriptor)  # The writing end of a pipe is "readable" when its reader has gone.
    except OSError:
        await anyio.sleep_forever()


def abandon() -> None:
    """Standard output has no reader any more: make sure that nothing complains about it when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
