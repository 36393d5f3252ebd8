"""Configurations and their three states: S2 2.1 to 2.3."""

from typing import Any

import pytest

from durable_streams import InvalidArgumentError
from durable_streams.s2 import (
    UNSET,
    BasinConfig,
    BasinReconfiguration,
    S2ProtocolError,
    StreamConfig,
    StreamReconfiguration,
    Timestamping,
    TimestampingReconfiguration,
)
from durable_streams.s2._config import (
    basin_from_wire,
    basin_to_wire,
    stream_from_wire,
    stream_header,
    stream_to_wire,
)

FULL = StreamConfig(
    storage_class="express",
    retention_policy=86400,
    timestamping=Timestamping(mode="arrival", uncapped=True),
    delete_on_empty=60,
)
FULL_WIRE = {
    "storage_class": "express",
    "retention_policy": {"age": 86400},
    "timestamping": {"mode": "arrival", "uncapped": True},
    "delete_on_empty": {"min_age_secs": 60},
}


def test_a_configuration_sends_what_is_set() -> None:
    assert stream_to_wire(StreamConfig()) == {}
    assert stream_to_wire(FULL) == FULL_WIRE
    assert stream_to_wire(StreamConfig(retention_policy="infinite")) == {"retention_policy": {"infinite": {}}}
    assert stream_to_wire(StreamConfig(delete_on_empty=0)) == {"delete_on_empty": {"min_age_secs": 0}}
    assert stream_to_wire(StreamConfig(timestamping=Timestamping(uncapped=False))) == {
        "timestamping": {"uncapped": False}
    }
    assert basin_to_wire(BasinConfig()) == {}
    assert basin_to_wire(BasinConfig(FULL, "aegis-256", True, False)) == {
        "default_stream_config": FULL_WIRE,
        "stream_cipher": "aegis-256",
        "create_stream_on_append": True,
        "create_stream_on_read": False,
    }


@pytest.mark.parametrize("name", ["storage_class", "retention_policy", "timestamping", "delete_on_empty"])
def test_a_change_keeps_clears_or_sets_each_field(name: str) -> None:
    cleared = StreamReconfiguration(**{name: None})

    assert stream_to_wire(StreamReconfiguration()) == {}
    assert stream_to_wire(cleared) == {name: None}


def test_a_change_of_timestamping_has_three_states_as_well() -> None:
    assert stream_to_wire(StreamReconfiguration(timestamping=TimestampingReconfiguration())) == {"timestamping": {}}
    assert stream_to_wire(StreamReconfiguration(timestamping=TimestampingReconfiguration(mode=None))) == {
        "timestamping": {"mode": None}
    }
    assert stream_to_wire(StreamReconfiguration(timestamping=TimestampingReconfiguration(uncapped=True))) == {
        "timestamping": {"uncapped": True}
    }


def test_a_change_of_a_basin_reaches_into_its_default_configuration() -> None:
    changes = BasinReconfiguration(
        default_stream_config=StreamReconfiguration(retention_policy=None), create_stream_on_append=True
    )

    assert basin_to_wire(changes) == {
        "default_stream_config": {"retention_policy": None},
        "create_stream_on_append": True,
    }
    assert basin_to_wire(BasinReconfiguration(default_stream_config=None, stream_cipher=None)) == {
        "default_stream_config": None,
        "stream_cipher": None,
    }


@pytest.mark.parametrize("name", ["create_stream_on_append", "create_stream_on_read"])
def test_the_flags_of_a_basin_cannot_be_cleared(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name} cannot be cleared"):
        BasinReconfiguration(**{name: None})


def test_unset_is_neither_none_nor_true() -> None:
    assert repr(UNSET) == "UNSET"
    assert not UNSET
    assert StreamReconfiguration().storage_class is UNSET


def test_a_configuration_is_read_with_nulls_and_unknown_fields() -> None:
    assert stream_from_wire({}) == StreamConfig()
    assert stream_from_wire(dict.fromkeys(FULL_WIRE)) == StreamConfig()
    assert stream_from_wire({**FULL_WIRE, "brand_new": 5}) == FULL
    assert stream_from_wire({"retention_policy": {"infinite": {}}}).retention_policy == "infinite"
    assert stream_from_wire({"storage_class": "glacial"}).storage_class == "glacial"
    assert basin_from_wire({"default_stream_config": None, "create_stream_on_append": True}) == BasinConfig(
        create_stream_on_append=True
    )
    assert basin_from_wire({"default_stream_config": FULL_WIRE, "stream_cipher": "aes-256-gcm"}) == BasinConfig(
        FULL, "aes-256-gcm"
    )


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "text",
        {"storage_class": 5},
        {"retention_policy": {}},
        {"retention_policy": {"age": 0}},
        {"retention_policy": {"age": "7d"}},
        {"retention_policy": "infinite"},
        {"timestamping": "arrival"},
        {"timestamping": {"mode": 1}},
        {"timestamping": {"uncapped": "yes"}},
        {"delete_on_empty": {"min_age_secs": -1}},
        {"delete_on_empty": 5},
    ],
)
def test_a_configuration_of_another_shape_is_an_error_of_the_protocol(document: Any) -> None:
    with pytest.raises(S2ProtocolError):
        stream_from_wire(document)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"retention_policy": 0}, InvalidArgumentError),
        ({"retention_policy": "7d"}, InvalidArgumentError),
        ({"retention_policy": 1.5}, TypeError),
        ({"retention_policy": True}, TypeError),
        ({"delete_on_empty": -1}, InvalidArgumentError),
        ({"delete_on_empty": 2**64}, InvalidArgumentError),
        ({"storage_class": ""}, InvalidArgumentError),
        ({"storage_class": 5}, TypeError),
        ({"timestamping": {"mode": "arrival"}}, TypeError),
    ],
)
@pytest.mark.parametrize("kind", [StreamConfig, StreamReconfiguration])
def test_wrong_values_are_refused_when_they_are_made(kind: Any, fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        kind(**fields)


def test_what_belongs_elsewhere_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        StreamReconfiguration(timestamping=Timestamping())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        BasinConfig(StreamReconfiguration())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        BasinReconfiguration(StreamConfig())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        BasinConfig(create_stream_on_append="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        StreamConfig(config={})  # type: ignore[call-arg]


def test_unknown_modes_and_ciphers_are_refused_before_they_are_sent() -> None:
    with pytest.raises(InvalidArgumentError, match="mode must be one of"):
        stream_to_wire(StreamConfig(timestamping=Timestamping(mode="whenever")))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="stream_cipher must be one of"):
        basin_to_wire(BasinConfig(stream_cipher="rot13"))  # type: ignore[arg-type]


def test_the_header_for_automatic_creation_is_compact_json() -> None:
    assert stream_header(None) is None
    assert stream_header(StreamConfig(retention_policy=60)) == '{"retention_policy":{"age":60}}'
