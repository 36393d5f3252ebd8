"""What a server logs: lines of text or of JSON on standard error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

LEVELS = ("debug", "info", "warning", "error", "critical")

Format = Literal["text", "json"]

#: Attributes of every record; what else one has was given as `extra`.
_STANDARD = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))


@contextmanager
def to_stderr(level: str, form: Format) -> Iterator[None]:
    """Send what the library and its web server log to standard error, for the length of the block.

    Args:
        level: Least level that is shown, one of `LEVELS`.
        form: "text", or "json" for one object a line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(_is_news)
    loggers = [logging.getLogger(name) for name in ("durable_streams", "uvicorn")]
    former = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level.upper())
    try:
        yield
    finally:
        for logger, before in former:
            logger.removeHandler(handler)
            logger.setLevel(before)


def json_line(message: str, *, level: str = "INFO", **facts: object) -> str:
    """A line of the form "json" that is shown whatever the level is."""
    record = logging.makeLogRecord({"name": "durable_streams.serve", "levelname": level, "msg": message, **facts})
    return JsonFormatter().format(record)


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out what uvicorn says of a start that fails: the command says it in one line."""
    return not (record.name.startswith("uvicorn") and (record.module == "on" or record.levelno <= logging.INFO))


class TextFormatter(logging.Formatter):
    """Time, level, logger and message, such as `2026-01-31T12:00:00.000Z WARNING durable_streams.server: sweep failed`.

    Characters that are no text are escaped, so that nothing a client sends can begin a line of its own; but what
    Python says of an exception stands below, as usual.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        line = f"{_time(record)} {record.levelname} {record.name}: {_escape(record.getMessage())}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message; what was given as `extra`; and of an exception its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        values: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        values |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _escape(text: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
