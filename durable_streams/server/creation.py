"""What a PUT does: two pure decisions, which every store makes inside its critical section (server 5 and 13).

The stream at the path comes first. `decide_repetition` tells whether the PUT merely repeats the one that made it; then
nothing else counts, not even whether a fork's source is still there. Only for a path that is free `decide_birth` says
what the stream is to be, or why it may not be. Its rules stand in the order in which they apply:

====  ======================================================================  =====================
rule  condition                                                               decision
====  ======================================================================  =====================
1     not a fork, body is invalid JSON                                        `INVALID_JSON`
2     no stream at the source's path, or an expired one                       `SOURCE_NOT_FOUND`
3     the source is soft-deleted                                              `SOURCE_DELETED`
4     a content type is given, and of another media type than the source's    `FORK_TYPE_MISMATCH`
5     the source has `MAX_DEPTH` ancestors                                    `FORK_TOO_DEEP`
6     fork offset beyond the source's tail, or in JSON mode inside a message  `BAD_FORK_OFFSET`
7     sub-offset greater than the rest of the append at the fork offset       `BAD_SUB_OFFSET`
8     body is invalid JSON                                                    `INVALID_JSON`
9     otherwise                                                               `Birth`
====  ======================================================================  =====================

A fork shares the source's data before the fork offset and its numbering, so its own first byte is at the fork offset.
What a sub-offset adds is copied, as the fork's own first append: it is a part of one append of the source, and the
positions behind the fork offset belong to the fork from then on. Producers, `Stream-Seq` and closure stay behind.

A fork that is born has to keep its source's data alive: the store remembers an edge from the fork to that incarnation
of the source, in the same transaction. Edges are a set and not a counter, so that adding one twice, or removing what
is not there, does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from .._core.wire import OCTET_STREAM, is_json, media_type
from .offsets import Offset
from .protocol import InvalidJson, Payload, Reason, Refused, StreamState
from .timestamps import Instant

#: Most ancestors that a stream can have.
MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a stream branches off.

    Attributes:
        source: Normalised path of the stream forked from.
        offset: Everything before it is inherited. In a request None stands for the source's tail.
        sub_offset: How much more is inherited, of the append behind `offset`: messages in JSON mode, else bytes.
    """

    source: str
    offset: Offset | None = None
    sub_offset: int = 0


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """What a PUT asked for; or, with all gaps filled in, what the stream became (`Birth.config`).

    Attributes:
        content_type: As the client wrote it, or None.
        ttl: `Stream-TTL` in seconds, or None.
        expires_at: `Stream-Expires-At`, or None.
        fork: The fork headers, or None.
    """

    content_type: str | None = None
    ttl: int | None = None
    expires_at: Instant | None = None
    fork: Fork | None = None

    @property
    def effective_type(self) -> str:
        """The stream's content type: this one, else `application/octet-stream`. A fork's has to be filled in first."""
        return self.content_type or OCTET_STREAM

    def matches(self, asked: StreamConfig, became: StreamConfig) -> bool:
        """Whether a PUT with this configuration fits a stream that exists.

        Each part fits if it was asked for like this when the stream was made, so that a repetition always succeeds
        though it left parts to be inherited; or if the stream has become so.

        Args:
            asked: What the PUT asked for that made the stream.
            became: What the stream became.
        """
        fork, lifetime = self.fork, (self.ttl, self.expires_at)
        if (fork is None) != (became.fork is None):
            return False
        inherits_type = fork is not None and self.content_type is None
        if not inherits_type and media_type(self.effective_type) != media_type(became.effective_type):
            return False
        if lifetime not in ((asked.ttl, asked.expires_at), (became.ttl, became.expires_at)):
            return False
        if fork is None or became.fork is None:
            return True
        return (fork.source, fork.sub_offset) == (became.fork.source, became.fork.sub_offset) and (
            fork.offset is None or fork.offset == became.fork.offset
        )


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A PUT.

    Attributes:
        path: The stream to be.
        config: What was asked for.
        closed: Whether it is to be born closed. Compared with the present state of a stream that exists.
        payload: First content, split into messages in JSON mode; None if the body is empty.
        payload_if_json: For a fork that inherits its content type: the same body, should that be JSON.
    """

    path: str
    config: StreamConfig
    closed: bool = False
    payload: Payload | InvalidJson | None = None
    payload_if_json: Payload | InvalidJson | None = None


class ForkSource(Protocol):
    """A stream as the source of a fork, while the critical section lasts in which the fork is made."""

    @property
    def state(self) -> StreamState:
        """The stream's state."""
        ...

    @property
    def config(self) -> StreamConfig:
        """What the stream became."""
        ...

    @property
    def depth(self) -> int:
        """How many ancestors it has."""
        ...

    def is_boundary(self, offset: Offset) -> bool:
        """Whether an offset up to the tail lies between two messages; asked in JSON mode only."""
        ...

    def rest_of_append(self, offset: Offset) -> Payload:
        """What the append that holds the byte at `offset` has from there on, as this stream's readers see it.

        `offset` is less than the tail and a boundary. An inherited append that the stream's own fork offset divides
        ends there. In JSON mode `Payload.ends` has every message, in positions relative to `offset`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Birth:
    """Make this stream, and for a fork the edge to its source: all of it or nothing.

    Attributes:
        config: What the stream becomes, all gaps filled in. What was asked for is kept beside it.
        closed: Whether it is born closed.
        start: Where its own data begins: its fork offset, or 0.
        appends: Its own first data: the part that a sub-offset adds, then the body; at most one of each.
        tail: Offset after them, for stores whose offsets count bytes.
        depth: How many ancestors it has.
    """

    config: StreamConfig
    closed: bool
    start: Offset = 0
    appends: tuple[Payload, ...] = ()
    tail: Offset = 0
    depth: int = 0


def decide_repetition(
    state: StreamState, asked: StreamConfig, became: StreamConfig, r: CreateRequest
) -> Refused | None:
    """Decide about a PUT to a path that is taken.

    Args:
        state: Of the stream there.
        asked: What the PUT asked for that made it.
        became: What it became.
        r: The request.

    Returns:
        None if the request repeats what is there; else `SOFT_DELETED` or `OTHER_CONFIG`.
    """
    if state.deleted:
        return Refused(Reason.SOFT_DELETED)
    if r.closed != state.closed or not r.config.matches(asked, became):
        return Refused(Reason.OTHER_CONFIG)
    return None


def decide_birth(source: ForkSource | None, r: CreateRequest) -> Birth | Refused:
    """Decide about a PUT to a path that is free, see the table of this module.

    Args:
        source: The stream at `r.config.fork.source`, unless there is none or it has expired. Else None.
        r: The request.
    """
    if r.config.fork is None:
        return _born(replace(r.config, content_type=r.config.effective_type), r, 0, (), 0)
    if source is None:
        return Refused(Reason.SOURCE_NOT_FOUND)
    if source.state.deleted:
        return Refused(Reason.SOURCE_DELETED)
    if r.config.content_type is not None and media_type(r.config.content_type) != source.state.media_type:
        return Refused(Reason.FORK_TYPE_MISMATCH)
    if source.depth >= MAX_DEPTH:
        return Refused(Reason.FORK_TOO_DEEP)
    start = source.state.tail if r.config.fork.offset is None else r.config.fork.offset
    if start > source.state.tail:
        return Refused(Reason.BAD_FORK_OFFSET, problem="the Stream-Fork-Offset lies beyond the end of the source")
    if is_json(source.state.media_type) and not source.is_boundary(start):
        return Refused(Reason.BAD_FORK_OFFSET, problem="the Stream-Fork-Offset lies inside a message")
    part = _inherited_part(source, start, r.config.fork.sub_offset)
    if isinstance(part, Refused):
        return part
    return _born(_fill_in(r.config, source.config, start), r, start, part, source.depth + 1)


def _inherited_part(source: ForkSource, start: Offset, sub_offset: int) -> tuple[Payload, ...] | Refused:
    """What a sub-offset adds to what lies before the fork offset."""
    if not sub_offset:
        return ()
    if start < source.state.tail:
        rest = source.rest_of_append(start)
        if is_json(source.state.media_type):
            if sub_offset <= len(rest.ends):
                return (Payload(rest.data[: rest.ends[sub_offset - 1]], rest.ends[:sub_offset]),)
        elif sub_offset <= len(rest.data):
            return (Payload(rest.data[:sub_offset]),)
    return Refused(Reason.BAD_SUB_OFFSET)


def _fill_in(asked: StreamConfig, source: StreamConfig, start: Offset) -> StreamConfig:
    """What a fork becomes: it inherits its type, and its lifetime unless it asks for one of its own."""
    assert asked.fork is not None
    fork = replace(asked.fork, offset=start)
    became = replace(asked, content_type=asked.content_type or source.effective_type, fork=fork)
    if asked.ttl is None and asked.expires_at is None:
        became = replace(became, ttl=source.ttl, expires_at=source.expires_at)
    return became


def _born(
    config: StreamConfig, r: CreateRequest, start: Offset, part: tuple[Payload, ...], depth: int
) -> Birth | Refused:
    payload = r.payload
    if r.config.content_type is None and is_json(config.content_type):
        payload = r.payload_if_json
    if isinstance(payload, InvalidJson):
        return Refused(Reason.INVALID_JSON, problem=payload.problem)
    appends = part if payload is None or not payload.data else (*part, payload)
    return Birth(config, r.closed, start, appends, start + sum(len(append.data) for append in appends), depth)
