"""The protobuf encoding itself: varints, tags, lengths, fields to skip. What messages there are is not known here.

Readers take the data, a place in it and, where a length could lead beyond it, the end of the message; they return what
they read and the place after it. At the end of the data they raise IndexError, which the decoders of messages turn into
`S2ProtocolError`: looking at a byte is the check.
"""

from __future__ import annotations

from ._values import MAX_U64
from .errors import S2ProtocolError

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)
_MAX_GROUPS = 100  # nesting of groups, which nobody sends; as deep as the official runtime goes
_MAX_TAG = (1 << 32) - 1

OVERRUN = "protobuf: a field goes beyond the end of its message"
TRUNCATED = "protobuf: the message ends in the middle of a field"


def varint(value: int) -> bytes:
    if value < 0x80:
        return b"%c" % value
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


#: For the second and later bytes of a varint: how far they are shifted, and what the flags of all before amount to.
_STEPS = tuple((7 * byte, sum(0x80 << 7 * before for before in range(byte))) for byte in range(1, 10))


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A varint and the place after it. Raises IndexError at the end of the data."""
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    for shift, flags in _STEPS:
        byte = data[at]
        at += 1
        value += byte << shift
        if byte < 0x80:
            value -= flags
            if value > MAX_U64:
                raise S2ProtocolError("protobuf: a varint has more than 64 bits")
            return value, at
    raise S2ProtocolError("protobuf: a varint has more than ten bytes")


def read_span(data: bytes, at: int, end: int) -> tuple[int, int]:
    """First byte and end of a length-delimited field whose length stands here."""
    size = data[at]
    at += 1
    if size > 0x7F:
        size, at = read_varint(data, at - 1)
    stop = at + size
    if stop > end:
        raise S2ProtocolError(f"protobuf: a field of {size} bytes goes beyond the end of its message")
    return at, stop


def read_tag(data: bytes, at: int) -> tuple[int, int]:
    """Tag of a field, and the place after it."""
    tag = data[at]
    if tag < 0x80:
        return tag, at + 1
    return read_varint(data, at)


def skip(data: bytes, tag: int, at: int, end: int) -> int:
    """The place after an unknown field with this tag, whose content stands here."""
    groups: list[int] = []
    while True:
        kind = tag & 7
        if tag < 8 or tag > _MAX_TAG or kind > FIXED32:
            raise S2ProtocolError(f"protobuf: {tag} is no tag")
        if kind == VARINT:
            _, at = read_varint(data, at)
        elif kind == BYTES:
            _, at = read_span(data, at, end)
        elif kind == GROUP:
            groups.append(tag >> 3)
            if len(groups) > _MAX_GROUPS:
                raise S2ProtocolError("protobuf: groups are nested too deeply")
        elif kind == GROUP_END:
            if not groups or groups.pop() != tag >> 3:
                raise S2ProtocolError("protobuf: a group ends that did not begin")
        else:
            at += 8 if kind == FIXED64 else 4
        if at > end:
            raise S2ProtocolError(OVERRUN)
        if not groups:
            return at
        tag, at = read_tag(data, at)


def check_end(at: int, end: int) -> None:
    """A varint, which carries no length, may have run out of its message into what follows."""
    if at > end:
        raise S2ProtocolError(OVERRUN)
