"""What goes wrong on purpose, and the order in which it does.

A fault meets one request, and in a session one point of it. Scripted faults are taken in order; each waits for a
request of its operation. Random faults come at a rate, from a seed: which ones depends on nothing but the number of
requests and of batches before.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ...errors import InvalidArgumentError
from ...s2._frames import Terminal, compress, encode_terminal, frame_head

#: The kinds of calls. A `read` over SSE is `read_sse`; all but those of records are `manage`.
S2Operation = Literal["append", "read", "tail", "append_session", "read_session", "read_sse", "manage"]

S2FaultKind = Literal[
    "refuse",
    "refuse_after",
    "cut_before",
    "cut_after",
    "reset_before",
    "reset_after",
    "goaway",
    "unprocessed",
    "stall",
    "delay",
    "advise",
    "end",
    "truncate",
    "bad_frame",
    "wrong_ack",
]

S2BadFrame = Literal[
    "zero_length",
    "oversize",
    "unknown_compression",
    "bad_zstd",
    "bad_gzip",
    "bomb",
    "bad_proto",
    "short_terminal",
    "empty_terminal",
    "terminal_without_json",
    "garbage",
]

S2WrongAck = Literal["count", "backwards", "extra"]

_KINDS: tuple[S2FaultKind, ...] = get_args(S2FaultKind)
_RANDOM: tuple[S2FaultKind, ...] = tuple(
    kind for kind in _KINDS if kind not in ("stall", "bad_frame", "wrong_ack", "end", "refuse_after")
)


@dataclass(frozen=True, slots=True)
class S2Fault:
    """One fault.

    ==============  =================================================================================================
    kind            what the server does
    ==============  =================================================================================================
    `refuse`        does not act, and answers with `status`; in a session that goes on already: a terminal frame
    `refuse_after`  acts, and answers with `status` instead of the success
    `cut_before`    does not act, and cuts the connection
    `cut_after`     acts, and cuts the connection without an answer: a lost acknowledgement
    `reset_before`  as `cut_before`, but resets the stream alone with `reset_code` (HTTP/1.1: cuts the connection)
    `reset_after`   as `cut_after`, likewise
    `goaway`        sends GOAWAY and goes on with the streams it has (HTTP/1.1: closes after the answer)
    `unprocessed`   sends GOAWAY that leaves this request out, and does not act on it; a session that goes on already
                    is only told GOAWAY
    `stall`         says nothing any more, and keeps the connection
    `delay`         answers, or acknowledges, `delay` seconds later
    `advise`        sets the flag that advises to reconnect
    `end`           ends the answer cleanly, whatever is outstanding
    `truncate`      sends part of a frame, or of the body, and ends the answer
    `bad_frame`     sends `frame` instead of a frame, and ends the answer
    `wrong_ack`     acknowledges wrongly, see `ack`
    ==============  =================================================================================================

    Attributes:
        kind: What goes wrong.
        operation: Of which call; "" is any.
        skip: Requests of that operation that pass before this one.
        after: In a session, how many of its frames pass before it happens: inputs with their acknowledgements, or
            batches. "before" and "after" then mean the one that follows. -1: at the opening, before the head of the
            answer, or with the first frame if the kind needs one.
        status: Of `refuse` and `refuse_after`.
        code: Code in their body.
        retry_after_ms: Their header `retry-after-ms`, or None for none.
        body: Their body if it shall be no error of S2, such as a proxy's page.
        delay: Seconds, for `delay`.
        reset_code: HTTP/2 error code, for resets; 7 is REFUSED_STREAM, 8 CANCEL, 2 INTERNAL_ERROR.
        frame: For `bad_frame`; see `S2BadFrame`. "garbage" is two bytes: the beginning of a frame that never comes.
        ack: For `wrong_ack`: "count": of one record more; "backwards": of one that was acknowledged before; "extra":
            one that nobody waits for, behind the right one.
    """

    kind: S2FaultKind
    operation: S2Operation | Literal[""] = ""
    skip: int = 0
    after: int = -1
    status: int = 503
    code: str = "unavailable"
    retry_after_ms: int | None = None
    body: bytes | None = None
    delay: float = 0.0
    reset_code: int = 2
    frame: S2BadFrame = "garbage"
    ack: S2WrongAck = "count"

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InvalidArgumentError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")

    @classmethod
    def draining(cls, operation: S2Operation | Literal[""] = "", *, after: int = -1) -> S2Fault:
        """What a server says that is about to stop: 503 `server_draining`."""
        return cls("refuse", operation, after=after, status=503, code="server_draining")


def bad_frame(name: S2BadFrame) -> bytes:
    """The bytes of a frame that breaks the protocol."""
    bomb = compress(bytes(8 << 20), "gzip")
    frames: dict[S2BadFrame, bytes] = {
        "zero_length": b"\0\0\0",
        "oversize": bytes.fromhex("20000100"),
        "unknown_compression": bytes.fromhex("0000026000"),
        "bad_zstd": frame_head(8, 0x20) + b"nonsense",
        "bad_gzip": frame_head(8, 0x40) + b"nonsense",
        "bomb": frame_head(len(bomb), 0x40) + bomb,
        "bad_proto": bytes.fromhex("000003000aff"),
        "short_terminal": bytes.fromhex("0000028001"),
        "empty_terminal": bytes.fromhex("00000180"),
        "terminal_without_json": frame_head(8, 0x80) + b"\x01\xf4<html>",
        "garbage": b"\x00\x00",
    }
    return frames[name]


class S2Faults:
    """Hands out faults, scripted ones first.

    Args:
        rates: Chance of each kind at each request, and at each batch of a session.
        seed: Of those.
    """

    def __init__(self, rates: Mapping[S2FaultKind, float] | None = None, seed: int = 0) -> None:
        rates = dict(rates or {})
        for kind, rate in rates.items():
            if kind not in _RANDOM:
                raise InvalidArgumentError(f"rates may name {', '.join(_RANDOM)}, got {kind!r}")
            if not 0 <= rate <= 1:
                raise InvalidArgumentError(f"rates must be from 0 to 1, got {rate} for {kind}")
        self._rates = rates
        self._random = random.Random(seed)
        self._script: deque[list[S2Fault]] = deque()
        #: What happened, in order.
        self.log: list[tuple[str, S2Fault]] = []

    @property
    def pending(self) -> int:
        """How many scripted entries are still waiting for their request."""
        return len(self._script)

    def script(self, faults: Iterable[S2Fault | Sequence[S2Fault]]) -> None:
        """Add faults; those in a sequence of their own meet the same request."""
        self._script.extend([each] if isinstance(each, S2Fault) else list(each) for each in faults)

    def clear(self) -> None:
        """Forget what was scripted, and the rates."""
        self._script.clear()
        self._rates = {}

    def at_request(self, operation: S2Operation) -> RequestFaults:
        """The faults of the next request."""
        for entry in self._script:
            head = entry[0]
            if head.operation in ("", operation):
                if head.skip:
                    entry[0] = replace(head, skip=head.skip - 1)
                    break
                self._script.remove(entry)
                return RequestFaults(self, operation, entry)
        return RequestFaults(self, operation, [])

    def draw(self) -> S2Fault | None:
        """A random fault, or None. Each call draws one number for each kind that has a rate."""
        found: S2Fault | None = None
        for kind, rate in self._rates.items():
            if self._random.random() < rate and found is None:
                found = S2Fault(kind, delay=0.01 * self._random.random() if kind == "delay" else 0.0)
        return found


class RequestFaults:
    """The faults of one request."""

    def __init__(self, source: S2Faults, operation: S2Operation, faults: list[S2Fault]) -> None:
        self._source = source
        self._operation = operation
        self._faults = faults
        self._drawn: dict[int, S2Fault | None] = {}

    def take(self, frame: int, *kinds: S2FaultKind) -> S2Fault | None:
        """A fault of one of these kinds that is due at frame number `frame`; it happens once."""
        for fault in self._faults:
            if fault.kind in kinds and fault.after <= frame:
                self._faults.remove(fault)
                self._source.log.append((self._operation, fault))
                return fault
        if frame not in self._drawn:
            self._drawn[frame] = self._source.draw()
        drawn = self._drawn[frame]
        if drawn is not None and drawn.kind in kinds:
            self._drawn[frame] = None
            self._source.log.append((self._operation, drawn))
            return drawn
        return None


def terminal_frame(status: int, body: bytes) -> bytes:
    """A terminal frame."""
    return encode_terminal(Terminal(status, body))
