"""What the service tells about basins, streams and locations (S2 2.1, 2.2, 2.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from .errors import S2ProtocolError

#: What creating or ensuring did. "noop": it was there already, as wished.
ProvisionResult = Literal["created", "updated", "noop"]


@dataclass(frozen=True, slots=True)
class BasinInfo:
    """A basin.

    Attributes:
        name: Its name.
        location: Where it is kept, such as "aws:us-east-1"; None if the service does not say.
        created_at: When it was created, to the microsecond.
        deleted_at: When its deletion was asked for: it is being removed. Else None.
        state: "active" or "deleting", of services that still tell; look at `deleted_at` instead.
        provision_result: What `create` or `ensure` did, else None.
    """

    name: str
    location: str | None
    created_at: datetime
    deleted_at: datetime | None = None
    state: str | None = None
    provision_result: str | None = None


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream.

    Attributes:
        name: Its name.
        created_at: When it was created, to the microsecond.
        deleted_at: When its deletion was asked for: it is being removed. Else None.
        cipher: How its records are encrypted with a key of the client's; None: they are not.
        provision_result: What `create` or `ensure` did, else None.
    """

    name: str
    created_at: datetime
    deleted_at: datetime | None = None
    cipher: str | None = None
    provision_result: str | None = None


@dataclass(frozen=True, slots=True)
class LocationInfo:
    """A place where basins can be kept.

    Attributes:
        name: Such as "aws:us-east-1".
        is_private: Whether it is the account's own.
        storage_classes: What streams can be given there, or None if the service does not say.
        default_storage_class: What they are given unless told otherwise, or None likewise.
    """

    name: str
    is_private: bool
    storage_classes: tuple[str, ...] | None = None
    default_storage_class: str | None = None


def basin_info(document: Any, provision_result: str | None = None) -> BasinInfo:
    """A basin from JSON.

    Raises:
        S2ProtocolError: it has another shape.
    """
    fields = json_object("basin", document)
    return BasinInfo(
        location=optional_text(fields, "location"),
        state=optional_text(fields, "state"),
        provision_result=provision_result,
        **_named(fields),
    )


def stream_info(document: Any, provision_result: str | None = None) -> StreamInfo:
    """A stream from JSON.

    Raises:
        S2ProtocolError: it has another shape.
    """
    fields = json_object("stream", document)
    return StreamInfo(cipher=optional_text(fields, "cipher"), provision_result=provision_result, **_named(fields))


def _named(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is told about everything that has a name and can be deleted."""
    return {
        "name": text(fields, "name"),
        "created_at": time(fields, "created_at"),
        "deleted_at": optional_time(fields, "deleted_at"),
    }


def location_info(document: Any) -> LocationInfo:
    """A location from JSON.

    Raises:
        S2ProtocolError: it has another shape.
    """
    fields = json_object("location", document)
    classes = fields.get("storage_classes")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise S2ProtocolError("the answer's storage_classes is no list of names")
    return LocationInfo(
        name=text(fields, "name"),
        is_private=flag(fields, "is_private"),
        storage_classes=None if classes is None else tuple(classes),
        default_storage_class=optional_text(fields, "default_storage_class"),
    )


# -- Fields ------------------------------------------------------------------------------------------------


def json_object(name: str, value: Any) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise S2ProtocolError(f"the answer's {name} is no JSON object")
    return value


def text(fields: Mapping[str, Any], name: str) -> str:
    """A text that has to be there."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise S2ProtocolError(f"the answer's {name} is no text: {str(value)[:100]}")
    return value


def optional_text(fields: Mapping[str, Any], name: str) -> str | None:
    """A text, or None."""
    return None if fields.get(name) is None else text(fields, name)


def flag(fields: Mapping[str, Any], name: str) -> bool:
    """A boolean; False if it is not there."""
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise S2ProtocolError(f"the answer's {name} is no boolean: {str(value)[:100]}")
    return value


def time(fields: Mapping[str, Any], name: str) -> datetime:
    """A date and time with its zone, of any number of digits after the second; beyond microseconds they are cut."""
    value = text(fields, name)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise S2ProtocolError(f"the answer's {name} is no date and time: {value[:100]!r}")
    return moment


def optional_time(fields: Mapping[str, Any], name: str) -> datetime | None:
    """A date and time, or None."""
    return None if fields.get(name) is None else time(fields, name)
