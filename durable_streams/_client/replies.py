"""What the requests of a handle carry, and what their answers say: plain functions between wire and results."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable

from .._core import json_mode, validate, wire
from .._core.call_session import Reply
from ..errors import InvalidArgumentError
from .results import AppendResult, CreateResult, HeadResult, Outcome, ProducerStamp


def created(reply: Reply, content_type: str | None) -> CreateResult:
    """What the answer to a PUT says; `content_type` stands in where the server does not name it."""
    headers = reply.head.headers
    new = reply.head.status == 201
    return CreateResult(
        reply.head.status,
        dict(headers),
        created=None if not new and reply.ambiguous else new,
        offset=headers.get(wire.NEXT_OFFSET),
        content_type=headers.get(wire.CONTENT_TYPE) or content_type,
        stream_closed=wire.is_true(headers.get(wire.CLOSED)),
    )


def described(reply: Reply) -> HeadResult:
    """What the answer to a HEAD says of a stream that exists."""
    headers = reply.head.headers
    return HeadResult(
        reply.head.status,
        dict(headers),
        exists=True,
        content_type=headers.get(wire.CONTENT_TYPE),
        offset=headers.get(wire.NEXT_OFFSET),
        etag=headers.get("etag"),
        cache_control=headers.get("cache-control"),
        stream_closed=wire.is_true(headers.get(wire.CLOSED)),
        ttl_seconds=wire.parse_integer(headers.get(wire.TTL)),
        expires_at=headers.get(wire.EXPIRES_AT),
    )


def framed(content_type: str, payloads: list[bytes]) -> bytes:
    """A request's body: one JSON array for a JSON stream, since the server takes off one level, else the bytes."""
    if wire.is_json(content_type):
        return json_mode.frame(payloads)
    return payloads[0] if len(payloads) == 1 else b"".join(payloads)


def stamp_headers(stamp: ProducerStamp) -> dict[str, str]:
    """A raw producer append's own headers."""
    if not isinstance(stamp, ProducerStamp):
        raise TypeError(f"producer must be a ProducerStamp, got {type(stamp).__name__}")
    if not isinstance(stamp.id, str):
        raise TypeError(f"producer: id must be a str, got {type(stamp.id).__name__}")
    if not stamp.id or stamp.id != stamp.id.strip():
        raise InvalidArgumentError(
            f"producer: id must be a non-empty str without surrounding white space, got {stamp.id!r}"
        )
    return {
        wire.PRODUCER_ID: wire.check_header(wire.PRODUCER_ID, stamp.id)[1],
        wire.PRODUCER_EPOCH: str(validate.integer("producer: epoch", stamp.epoch)),
        wire.PRODUCER_SEQ: str(validate.integer("producer: seq", stamp.seq)),
    }


def refusal(reply: Reply) -> Outcome | None:
    """What a refused raw producer append means, if the refusal is about the producer's place in its sequence."""
    headers = reply.head.headers
    if reply.head.status == 403 and wire.PRODUCER_EPOCH in headers:
        return "stale-epoch"
    if reply.head.status == 409 and not wire.is_true(headers.get(wire.CLOSED)):
        return "gap" if wire.PRODUCER_EXPECTED_SEQ in headers else None
    return None


def appended(reply: Reply, *, stamped: bool = False) -> AppendResult:
    """What the answer to an append says; `stamped` if it was a raw producer append."""
    headers = reply.head.headers
    outcome: Outcome = refusal(reply) or ("duplicate" if stamped and reply.head.status == 204 else "stored")
    return AppendResult(
        reply.head.status,
        dict(headers),
        next_offset=headers.get(wire.NEXT_OFFSET) or None,
        stream_closed=wire.is_true(headers.get(wire.CLOSED)),
        outcome=outcome,
        epoch=wire.parse_integer(headers.get(wire.PRODUCER_EPOCH)),
        seq=wire.parse_integer(headers.get(wire.PRODUCER_SEQ)),
        expected_seq=wire.parse_integer(headers.get(wire.PRODUCER_EXPECTED_SEQ)),
        received_seq=wire.parse_integer(headers.get(wire.PRODUCER_RECEIVED_SEQ)),
    )


async def pieces(source: AsyncIterable[bytes | str] | Iterable[bytes | str]) -> AsyncIterator[bytes]:
    """The source's pieces as bytes; empty ones are left out."""
    if isinstance(source, AsyncIterable):
        async for piece in source:
            if data := validate.body(piece, name="a piece of source"):
                yield data
    else:
        for piece in source:
            if data := validate.body(piece, name="a piece of source"):
                yield data
