"""Configuration of basins and streams, and its three states (S2 2.1 to 2.3).

Creating and ensuring take a configuration, in which None means "not set": the stream then has what its basin says, the
basin what the system says. Changing takes a *re*configuration, whose fields have three states:

    StreamReconfiguration(storage_class="express")      # set it
    StreamReconfiguration(storage_class=None)           # clear it, back to what is inherited
    StreamReconfiguration()                             # `UNSET`, the default: keep it

The server ignores fields that it does not know, so a misspelt one would have no effect and no error. That is why these
are classes and no dictionaries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, TypeVar

from .._core import validate
from ..errors import InvalidArgumentError
from .errors import S2ProtocolError, is_u64

C = TypeVar("C")

_MAX_U64 = 2**64 - 1


class Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> Literal[False]:
        return False


#: "Leave it as it is", in a reconfiguration; None clears.
UNSET: Final = Unset.UNSET

#: The age in seconds at which records are removed, at least 1; or "infinite".
Retention = int | Literal["infinite"]
#: Whose time a record gets. "client-prefer": its own, else that of arrival. "client-require": its own, or the append
#: is refused. "arrival": that of arrival.
TimestampingMode = Literal["client-prefer", "client-require", "arrival"]
#: How records are encrypted at rest with a key of the client's.
StreamCipher = Literal["aegis-256", "aes-256-gcm"]

_MODES = ("client-prefer", "client-require", "arrival")
_CIPHERS = ("aegis-256", "aes-256-gcm")


@dataclass(frozen=True, slots=True)
class Timestamping:
    """How records get their timestamps.

    Attributes:
        mode: Whose time counts; None is not set: client-prefer.
        uncapped: Whether a time later than that of arrival is kept; None is not set: it is lowered.
    """

    mode: TimestampingMode | None = None
    uncapped: bool | None = None

    def __post_init__(self) -> None:
        _check(self.mode, lambda value: _word("mode", value))
        _check(self.uncapped, lambda value: _flag("uncapped", value))


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """Configuration of a stream, or of the streams that a basin makes. None is "not set".

    Attributes:
        storage_class: "express", "standard" or what else the service offers.
        retention_policy: Age in seconds at which records are removed, or "infinite"; the system's default is 7 days.
        timestamping: How records get their timestamps.
        delete_on_empty: Delete the stream when it has been empty for this many seconds; 0 is never.
    """

    storage_class: str | None = None
    retention_policy: Retention | None = None
    timestamping: Timestamping | None = None
    delete_on_empty: int | None = None

    def __post_init__(self) -> None:
        _check(self.storage_class, lambda value: _word("storage_class", value))
        _check(self.retention_policy, _retention)
        _check(self.timestamping, lambda value: _instance("timestamping", value, Timestamping))
        _check(self.delete_on_empty, lambda value: validate.integer("delete_on_empty", value, maximum=_MAX_U64))


@dataclass(frozen=True, slots=True)
class BasinConfig:
    """Configuration of a basin. None is "not set".

    Attributes:
        default_stream_config: What its streams are given when they are created. A change touches new streams only.
        stream_cipher: How new streams are encrypted with a key of the client's; None: they are not.
        create_stream_on_append: Whether an append creates a stream that does not exist; None is no.
        create_stream_on_read: Whether a read, or asking for the tail, does; None is no.
    """

    default_stream_config: StreamConfig | None = None
    stream_cipher: StreamCipher | None = None
    create_stream_on_append: bool | None = None
    create_stream_on_read: bool | None = None

    def __post_init__(self) -> None:
        _check(self.default_stream_config, lambda value: _instance("default_stream_config", value, StreamConfig))
        _check(self.stream_cipher, lambda value: _word("stream_cipher", value))
        _check(self.create_stream_on_append, lambda value: _flag("create_stream_on_append", value))
        _check(self.create_stream_on_read, lambda value: _flag("create_stream_on_read", value))


@dataclass(frozen=True, slots=True)
class TimestampingReconfiguration:
    """Changes of `Timestamping`: a value sets, None clears, `UNSET` keeps."""

    mode: TimestampingMode | Unset | None = UNSET
    uncapped: bool | Unset | None = UNSET

    def __post_init__(self) -> None:
        _check(self.mode, lambda value: _word("mode", value))
        _check(self.uncapped, lambda value: _flag("uncapped", value))


@dataclass(frozen=True, slots=True)
class StreamReconfiguration:
    """Changes of `StreamConfig`: a value sets, None clears, `UNSET` keeps."""

    storage_class: str | Unset | None = UNSET
    retention_policy: Retention | Unset | None = UNSET
    timestamping: TimestampingReconfiguration | Unset | None = UNSET
    delete_on_empty: int | Unset | None = UNSET

    def __post_init__(self) -> None:
        _check(self.storage_class, lambda value: _word("storage_class", value))
        _check(self.retention_policy, _retention)
        _check(self.timestamping, lambda value: _instance("timestamping", value, TimestampingReconfiguration))
        _check(self.delete_on_empty, lambda value: validate.integer("delete_on_empty", value, maximum=_MAX_U64))


@dataclass(frozen=True, slots=True)
class BasinReconfiguration:
    """Changes of `BasinConfig`: a value sets, None clears, `UNSET` keeps. The two flags cannot be cleared."""

    default_stream_config: StreamReconfiguration | Unset | None = UNSET
    stream_cipher: StreamCipher | Unset | None = UNSET
    create_stream_on_append: bool | Unset = UNSET
    create_stream_on_read: bool | Unset = UNSET

    def __post_init__(self) -> None:
        _check(
            self.default_stream_config,
            lambda value: _instance("default_stream_config", value, StreamReconfiguration),
        )
        _check(self.stream_cipher, lambda value: _word("stream_cipher", value))
        for name in ("create_stream_on_append", "create_stream_on_read"):
            value = getattr(self, name)
            if value is None:  # the server answers null with 400
                raise InvalidArgumentError(f"{name} cannot be cleared: give True, False or UNSET")
            if not isinstance(value, Unset):
                _flag(name, value)


# -- To the wire -------------------------------------------------------------------------------------------


def stream_to_wire(config: StreamConfig | StreamReconfiguration) -> dict[str, Any]:
    """A stream's configuration, or its changes, as JSON.

    Raises:
        InvalidArgumentError: a timestamping mode is unknown.
    """
    fields: dict[str, Any] = {
        "storage_class": config.storage_class,
        "retention_policy": _map(config.retention_policy, _retention_to_wire),
        "timestamping": _map(config.timestamping, _timestamping_to_wire),
        "delete_on_empty": _map(config.delete_on_empty, lambda seconds: {"min_age_secs": seconds}),
    }
    return _present(fields, keep_none=isinstance(config, StreamReconfiguration))


def basin_to_wire(config: BasinConfig | BasinReconfiguration) -> dict[str, Any]:
    """A basin's configuration, or its changes, as JSON.

    Raises:
        InvalidArgumentError: a timestamping mode or a cipher is unknown.
    """
    fields: dict[str, Any] = {
        "default_stream_config": _map(config.default_stream_config, stream_to_wire),
        "stream_cipher": _map(config.stream_cipher, lambda cipher: _known("stream_cipher", cipher, _CIPHERS)),
        "create_stream_on_append": config.create_stream_on_append,
        "create_stream_on_read": config.create_stream_on_read,
    }
    return _present(fields, keep_none=isinstance(config, BasinReconfiguration))


def checked_config(config: C | None, kind: type[C], to_wire: Callable[[C], dict[str, Any]]) -> dict[str, Any] | None:
    """A configuration that a caller gave, as JSON; None if there is none.

    Raises:
        TypeError: it is something else.
    """
    if config is not None and not isinstance(config, kind):
        raise TypeError(f"config must be {kind.__name__} or None, got {type(config).__name__}")
    return None if config is None else to_wire(config)


def checked_changes(changes: C, kind: type[C], to_wire: Callable[[C], dict[str, Any]]) -> dict[str, Any]:
    """Changes of a configuration that a caller gave, as JSON.

    Raises:
        TypeError: they are something else.
    """
    if not isinstance(changes, kind):
        raise TypeError(f"changes must be {kind.__name__}, got {type(changes).__name__}")
    return to_wire(changes)


def stream_header(config: StreamConfig | None) -> str | None:
    """A stream's configuration as the header `s2-stream-config` has it: compact JSON (S2 1.5)."""
    return None if config is None else json.dumps(stream_to_wire(config), separators=(",", ":"))


def _timestamping_to_wire(value: Timestamping | TimestampingReconfiguration) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "mode": _map(value.mode, lambda mode: _known("mode", mode, _MODES)),
        "uncapped": value.uncapped,
    }
    return _present(fields, keep_none=isinstance(value, TimestampingReconfiguration))


def _retention_to_wire(value: Retention) -> dict[str, Any]:
    return {"infinite": {}} if value == "infinite" else {"age": value}


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    return value if value is None or isinstance(value, Unset) else function(value)


def _present(fields: dict[str, Any], *, keep_none: bool) -> dict[str, Any]:
    """The fields that are sent: a configuration leaves out what is None, a change what is `UNSET`."""
    absent = UNSET if keep_none else None
    return {name: value for name, value in fields.items() if value is not absent}


# -- From the wire -----------------------------------------------------------------------------------------


def stream_from_wire(document: Any) -> StreamConfig:
    """A stream's configuration from JSON. Unknown fields, modes and classes are let through.

    Raises:
        S2ProtocolError: it has another shape.
    """
    fields = _object("stream configuration", document)
    return StreamConfig(
        storage_class=_read(fields, "storage_class", str),
        retention_policy=_retention_from_wire(fields.get("retention_policy")),
        timestamping=_timestamping_from_wire(fields.get("timestamping")),
        delete_on_empty=_min_age_from_wire(fields.get("delete_on_empty")),
    )


def basin_from_wire(document: Any) -> BasinConfig:
    """A basin's configuration from JSON.

    Raises:
        S2ProtocolError: it has another shape.
    """
    fields = _object("basin configuration", document)
    defaults = fields.get("default_stream_config")
    return BasinConfig(
        default_stream_config=None if defaults is None else stream_from_wire(defaults),
        stream_cipher=_read(fields, "stream_cipher", str),
        create_stream_on_append=_read(fields, "create_stream_on_append", bool),
        create_stream_on_read=_read(fields, "create_stream_on_read", bool),
    )


def _retention_from_wire(value: Any) -> Retention | None:
    if value is None:
        return None
    fields = _object("retention_policy", value)
    if "infinite" in fields:
        return "infinite"
    age = fields.get("age")
    if not is_u64(age) or not age:
        raise S2ProtocolError(f"the answer has an unknown retention_policy: {str(value)[:100]}")
    return age


def _timestamping_from_wire(value: Any) -> Timestamping | None:
    if value is None:
        return None
    fields = _object("timestamping", value)
    return Timestamping(_read(fields, "mode", str), _read(fields, "uncapped", bool))


def _min_age_from_wire(value: Any) -> int | None:
    if value is None:
        return None
    seconds = _object("delete_on_empty", value).get("min_age_secs")
    if seconds is not None and not is_u64(seconds):
        raise S2ProtocolError(f"the answer has an unknown delete_on_empty: {str(value)[:100]}")
    return seconds


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise S2ProtocolError(f"the answer's {name} is no JSON object: {str(value)[:100]}")
    return value


def _read(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if value is not None and (type(value) is not kind or value == ""):
        raise S2ProtocolError(f"the answer's {name} is no {kind.__name__}: {str(value)[:100]}")
    return value


# -- Checks ------------------------------------------------------------------------------------------------


def _check(value: Any, function: Callable[[Any], Any]) -> None:
    if value is not None and not isinstance(value, Unset):
        function(value)


def _word(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str or None, got {type(value).__name__}")
    if not value:
        raise InvalidArgumentError(f"{name} must not be empty")


def _known(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def _instance(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {type(value).__name__}")


def _retention(value: Any) -> None:
    if isinstance(value, str):
        if value != "infinite":
            raise InvalidArgumentError(f"retention_policy must be seconds or 'infinite', got {value!r}")
    else:
        validate.integer("retention_policy", value, minimum=1, maximum=_MAX_U64)
