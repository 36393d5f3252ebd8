"""Configurations of basins and streams: reading, resolving, changing (specification: S2 2.1 to 2.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .answers import Refusal, bad, invalid

Json = dict[str, Any]

STREAM_FIELDS = ("storage_class", "retention_policy", "timestamping", "delete_on_empty")
BASIN_FIELDS = ("default_stream_config", "stream_cipher", "create_stream_on_append", "create_stream_on_read")
_SYSTEM: Json = {
    "storage_class": "express",
    "retention_policy": {"age": 604_800},
    "timestamping": {"mode": "client-prefer", "uncapped": False},
    "delete_on_empty": {"min_age_secs": 0},
}
_MODES = ("client-prefer", "client-require", "arrival")
_CIPHERS = ("aegis-256", "aes-256-gcm")


def wrong(message: str) -> Refusal:
    """A value of the wrong shape in a JSON body."""
    return bad("bad_json", message)


def _object(value: Any, name: str) -> Json:
    if not isinstance(value, dict):
        raise wrong(f"{name}: expected an object")
    return value


def _unsigned(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise wrong(f"{name}: expected an unsigned integer")
    return value


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise wrong(f"{name}: expected true or false")
    return value


def _retention(value: Any) -> Json:
    policy = _object(value, "retention_policy")
    if "age" in policy:
        return {"age": _unsigned(policy["age"], "age")}
    if "infinite" in policy:
        _object(policy["infinite"], "infinite")
        return {"infinite": {}}
    raise wrong("retention_policy: expected age or infinite")


def _timestamping(value: Any) -> Json:
    given = _object(value, "timestamping")
    found: Json = {}
    if given.get("mode") is not None:
        if given["mode"] not in _MODES:
            raise wrong(f"mode: unknown variant {given['mode']!r}")
        found["mode"] = given["mode"]
    if given.get("uncapped") is not None:
        found["uncapped"] = _flag(given["uncapped"], "uncapped")
    return found


def _deletion(value: Any) -> Json:
    given = _object(value, "delete_on_empty")
    return {"min_age_secs": _unsigned(given.get("min_age_secs", 0), "min_age_secs")}


def _storage_class(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong("storage_class: expected a string")
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "storage_class": _storage_class,
    "retention_policy": _retention,
    "timestamping": _timestamping,
    "delete_on_empty": _deletion,
}


def read_stream_config(value: Any) -> Json:
    """A StreamConfig of a request: the fields that are set."""
    given = _object(value, "config")
    found = {name: _READERS[name](given[name]) for name in STREAM_FIELDS if given.get(name) is not None}
    return _valid({name: value for name, value in found.items() if value != {}})


def read_basin_config(value: Any) -> Json:
    """A BasinConfig of a request, all four fields."""
    given = _object(value, "config")
    return patch_basin(new_basin_config(), {name: given[name] for name in BASIN_FIELDS if given.get(name) is not None})


def new_basin_config() -> Json:
    """The configuration of a basin for which nothing was said."""
    return {
        "default_stream_config": None,
        "stream_cipher": None,
        "create_stream_on_append": False,
        "create_stream_on_read": False,
    }


def patch_stream(config: Json, change: Any) -> Json:
    """A stream's own settings after a reconfiguration: a key that is missing keeps, null clears, a value sets."""
    return _valid(_patched(config, change))


def _valid(config: Json) -> Json:
    """The same, if its values make sense. Wrong shapes anywhere are told first."""
    if config.get("retention_policy") == {"age": 0}:
        raise invalid("retention age must be greater than 0 seconds")
    return config


def _patched(config: Json, change: Any) -> Json:
    given = _object(change, "reconfiguration")
    result = dict(config)
    for name in STREAM_FIELDS:
        if name not in given:
            continue
        value = given[name]
        if value is None:
            result.pop(name, None)
        elif name in ("timestamping", "delete_on_empty"):
            inner = dict(result.get(name, {}))
            read = _READERS[name](value)
            for key, each in _object(value, name).items():
                if each is None:
                    inner.pop(key, None)
                elif key in read:
                    inner[key] = read[key]
            result[name] = inner
        else:
            result[name] = _READERS[name](value)
    return {name: value for name, value in result.items() if value != {}}


def patch_basin(config: Json, change: Any) -> Json:
    """A basin's configuration after a reconfiguration."""
    given = _object(change, "reconfiguration")
    result = dict(config)
    if "default_stream_config" in given:
        value = given["default_stream_config"]
        result["default_stream_config"] = (
            None if value is None else _patched(config["default_stream_config"] or {}, value) or None
        )
    if "stream_cipher" in given:
        if given["stream_cipher"] is not None and given["stream_cipher"] not in _CIPHERS:
            raise wrong(f"stream_cipher: unknown variant {given['stream_cipher']!r}")
        result["stream_cipher"] = given["stream_cipher"]
    for name in ("create_stream_on_append", "create_stream_on_read"):
        if name in given:
            result[name] = _flag(given[name], name)
    _valid(result["default_stream_config"] or {})
    return result


def shown(config: Json | None) -> Json | None:
    """A StreamConfig as a GET of the basin shows it: what is set, and the rest as null."""
    return None if not config else {name: config.get(name) for name in STREAM_FIELDS}


def resolved(*layers: Json | None) -> Json:
    """The settings in force: the first layer that has one, else the system's. Every field is present."""
    result: Json = {}
    for name in STREAM_FIELDS:
        if name in ("timestamping", "delete_on_empty"):
            result[name] = dict(_SYSTEM[name])
            for layer in reversed(layers):
                result[name].update((layer or {}).get(name) or {})
        else:
            found = [layer[name] for layer in layers if layer and layer.get(name) is not None]
            result[name] = found[0] if found else _SYSTEM[name]
    return result
