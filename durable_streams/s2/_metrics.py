"""What an account, a basin or a stream used: `client.metrics` (S2 2.7). `s2 lite` has none and answers 501."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from .._core import validate
from ..errors import InvalidArgumentError
from . import _infos, _names
from ._context import Service, one_of, with_query
from ._unary import Call, request
from .errors import S2ProtocolError

#: Length of the intervals that values are summed over.
Interval = Literal["minute", "hour", "day"]
#: A moment: an aware datetime, or seconds since the epoch.
Moment = datetime | int

_MAX_U32 = 2**32 - 1
_LAST_SECOND = 253_402_300_799  # of the year 9999: no calendar of Python's goes beyond


@dataclass(frozen=True, slots=True)
class Scalar:
    """One number. `unit` is "bytes", "operations", "usd" or one that is new."""

    name: str
    unit: str
    value: float


@dataclass(frozen=True, slots=True)
class Accumulation:
    """Sums over intervals.

    Attributes:
        name: What is measured.
        unit: "bytes", "operations", "usd" or one that is new.
        interval: Length of the intervals, or None if the service does not say.
        values: Pairs of an interval's start, in seconds since the epoch, and its sum.
    """

    name: str
    unit: str
    interval: str | None
    values: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Gauge:
    """Values at moments: pairs of seconds since the epoch and the value then."""

    name: str
    unit: str
    values: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Label:
    """A list of words, such as the names of active basins."""

    name: str
    values: tuple[str, ...]


#: A measured thing.
Metric = Scalar | Accumulation | Gauge | Label


class Metrics:
    """What was used. Get it as `client.metrics`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def __repr__(self) -> str:
        return "<Metrics>"

    async def account(
        self,
        set: str,  # noqa: A002  # the service's word for it
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        interval: Interval | None = None,
    ) -> tuple[Metric, ...]:
        """Measurements of the whole account.

        Args:
            set: Which ones: "active-basins", "account-ops", "estimated-billable-usage" or one that is new.
            start: Beginning of the time that is asked about.
            end: Its end.
            interval: Of sums; None leaves it to the service.
        """
        return await self._get("/metrics", set, start, end, interval)

    async def basin(
        self,
        basin: str,
        set: str,  # noqa: A002
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        interval: Interval | None = None,
    ) -> tuple[Metric, ...]:
        """Measurements of a basin.

        Args:
            basin: Its name.
            set: Which ones: "storage", "append-ops", "read-ops", "append-throughput", "read-throughput", "basin-ops" or
                one that is new.
            start: Beginning of the time that is asked about.
            end: Its end.
            interval: Of sums; None leaves it to the service.
        """
        return await self._get(f"/metrics/{_names.basin(basin)}", set, start, end, interval)

    async def stream(
        self,
        basin: str,
        stream: str,
        set: str,  # noqa: A002
        *,
        start: Moment | None = None,
        end: Moment | None = None,
        interval: Interval | None = None,
    ) -> tuple[Metric, ...]:
        """Measurements of a stream.

        Args:
            basin: Name of its basin.
            stream: Its name.
            set: Which ones: "storage" or one that is new.
            start: Beginning of the time that is asked about.
            end: Its end.
            interval: Of sums; None leaves it to the service.
        """
        path = f"/metrics/{_names.basin(basin)}/{_names.segment(_names.stream(stream))}"
        return await self._get(path, set, start, end, interval)

    async def _get(
        self, path: str, name: str, start: Moment | None, end: Moment | None, interval: Interval | None
    ) -> tuple[Metric, ...]:
        if not isinstance(name, str):
            raise TypeError(f"set must be a str, got {type(name).__name__}")
        if not name:
            raise InvalidArgumentError("set must not be empty")
        query = {"set": name}
        if start is not None:
            query["start"] = str(_seconds("start", start))
        if end is not None:
            query["end"] = str(_seconds("end", end))
        if interval is not None:
            query["interval"] = one_of("interval", interval, ("minute", "hour", "day"))
        url = with_query(self._service.endpoints.account_url(path), query)
        reply = await request(self._service, Call("GET", url))
        return reply.read_json(metrics_from_wire)


def metrics_from_wire(document: Any) -> tuple[Metric, ...]:
    """Measurements from JSON. Kinds that are not known are left out.

    Raises:
        S2ProtocolError: it has another shape.
    """
    values = _infos.json_object("metrics", document).get("values")
    if not isinstance(values, list):
        raise S2ProtocolError("the answer has no list of values")
    metrics: list[Metric] = []
    for value in values:
        for kind, content in _infos.json_object("metric", value).items():
            if kind not in ("scalar", "accumulation", "gauge", "label"):
                continue
            fields = _infos.json_object(kind, content)
            name = _infos.text(fields, "name")
            if kind == "label":
                metrics.append(Label(name, _words(fields)))
                continue
            unit = _infos.text(fields, "unit")
            if kind == "scalar":
                metrics.append(Scalar(name, unit, _number(fields.get("value"))))
            elif kind == "gauge":
                metrics.append(Gauge(name, unit, _points(fields)))
            else:
                metrics.append(Accumulation(name, unit, _infos.optional_text(fields, "interval"), _points(fields)))
    return tuple(metrics)


def _points(fields: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    points = fields.get("values")
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise S2ProtocolError("the answer's values are no pairs of time and number")
    return tuple((_second(second), _number(number)) for second, number in points)


def _second(value: Any) -> int:
    second = int(_number(value))
    if not 0 <= second <= _LAST_SECOND:
        raise S2ProtocolError(f"the answer has {str(value)[:100]!r} where a time belongs")
    return second


def _words(fields: Mapping[str, Any]) -> tuple[str, ...]:
    words = fields.get("values")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise S2ProtocolError("the answer's values are no list of words")
    return tuple(words)


def _number(value: Any) -> float:
    infinite = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or infinite:
        raise S2ProtocolError(f"the answer has {str(value)[:100]!r} where a number belongs")
    return value


def _seconds(name: str, moment: Any) -> int:
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise InvalidArgumentError(f"{name} must have a time zone, got {moment.isoformat()}")
        moment = int(moment.timestamp())
    return validate.integer(name, moment, maximum=_MAX_U32)
