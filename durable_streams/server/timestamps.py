"""RFC 3339 timestamps, as `Stream-Expires-At` has them (server 2.5)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date

_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,100}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_UNIX_EPOCH = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True)
class Instant:
    """A point in time with every digit it was given.

    Two instants are equal when they are the same moment, however they are written.

    Attributes:
        text: As the client wrote it; it is returned like this.
        seconds: Whole seconds since 1970-01-01T00:00:00Z, rounded down.
        fraction: Digits after the decimal point, without trailing zeros.
    """

    text: str = field(compare=False)
    seconds: int
    fraction: str

    @property
    def timestamp(self) -> float:
        """Seconds since 1970-01-01T00:00:00Z."""
        return self.seconds + float(f"0.{self.fraction}")

    @classmethod
    def parse(cls, text: str) -> Instant | None:
        """Read a timestamp strictly by RFC 3339, zone included; None if it is none.

        A leap second (`:60`) counts as the second after `:59`, as on every system clock.
        """
        match = _RFC3339.fullmatch(text)
        if match is None:
            return None
        year, month, day, hour, minute, second = (int(group) for group in match.group(1, 2, 3, 4, 5, 6))
        fraction, sign, zone_hours, zone_minutes = match.group(7, 8, 9, 10)
        zone = 60 * int(zone_hours) + int(zone_minutes) if sign else 0
        if hour > 23 or minute > 59 or second > 60 or (sign and (int(zone_hours) > 23 or int(zone_minutes) > 59)):
            return None
        try:
            days = date(year, month, day).toordinal() - _UNIX_EPOCH
        except ValueError:
            return None
        seconds = days * 86400 + hour * 3600 + minute * 60 + second - (-60 if sign == "-" else 60) * zone
        return cls(text, seconds, (fraction or "").rstrip("0"))
