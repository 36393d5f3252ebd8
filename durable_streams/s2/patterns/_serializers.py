"""How a message becomes bytes, and bytes a message: JSON, MessagePack, or two functions of your own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from ..._core import json_mode

T = TypeVar("T")


@dataclass(frozen=True)
class Serializer(Generic[T]):
    """Two functions that belong together.

    Attributes:
        serialize: From a message to bytes, at least one.
        deserialize: From these bytes to a message. What it raises is the reader's to handle.
    """

    serialize: Callable[[T], bytes]
    deserialize: Callable[[bytes], T]


#: JSON in UTF-8. Writes what orjson can: dataclasses, dates, UUIDs as well; reads plain lists, dicts, strings, numbers.
JSON: Serializer[Any] = Serializer(json_mode.encode_item, json.loads)


@overload
def messagepack() -> Serializer[Any]: ...
@overload
def messagepack(type: type[T]) -> Serializer[T]: ...
def messagepack(type: Any = Any) -> Serializer[Any]:  # noqa: A002  # as in the library's other calls
    """MessagePack, by msgspec: `pip install 'durable-streams-anyio[messagepack]'`.

    Args:
        type: What messages are read as: a dataclass, a TypedDict, a msgspec.Struct; what does not fit it is refused
            with `msgspec.ValidationError`. By default plain lists, dicts, strings, numbers and bytes.

    Raises:
        ImportError: msgspec is not installed.
    """
    try:
        import msgspec
    except ModuleNotFoundError as error:
        raise ImportError(
            "MessagePack needs msgspec: pip install 'durable-streams-anyio[messagepack]'", name=error.name
        ) from error
    return Serializer(msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(type).decode)
