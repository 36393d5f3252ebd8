"""The memory store against a model that is too simple to be wrong: a dict of lists.

Offsets that came back are used again as places to read from, so what a stream says stays true is checked all along.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from durable_streams.server import (
    Appended,
    AppendRequest,
    BadOffset,
    Created,
    CreateRequest,
    Deleted,
    Duplicate,
    Exists,
    MemoryStore,
    Missing,
    Payload,
    ProducerStamp,
    Reason,
    Refused,
    StreamConfig,
    StreamInfo,
    split_json,
)

PATHS = st.sampled_from(["/v1/stream/a", "/v1/stream/b"])
TYPES = st.sampled_from(["application/json", "text/plain"])
BODIES = st.lists(st.sampled_from([b"1", b'{"n":22}', b'"three"', b"[4,4]", b"null"]), max_size=4)


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a call of the memory store: it never waits, so no event loop is needed."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the memory store waited")


@dataclass
class Model:
    """One stream: appends as lists of messages, as they are stored."""

    content_type: str
    ttl: int | None
    accessed: float
    appends: list[list[bytes]] = field(default_factory=list)
    closed: bool = False
    closed_by: ProducerStamp | None = None
    producers: dict[str, tuple[int, int]] = field(default_factory=dict)
    last_seq: bytes | None = None

    @property
    def content(self) -> bytes:
        return b"".join(message for append in self.appends for message in append)

    @property
    def boundaries(self) -> set[int]:
        if self.content_type == "text/plain":
            return set(range(len(self.content) + 1))
        places, position = {0}, 0
        for append in self.appends:
            for message in append:
                position += len(message)
                places.add(position)
        return places

    @property
    def append_ends(self) -> set[int]:
        places, position = set(), 0
        for append in self.appends:
            position += sum(map(len, append))
            places.add(position)
        return places


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.model: dict[str, Model] = {}
        self.time = 1000.0

    def live(self, path: str) -> Model | None:
        stream = self.model.get(path)
        if stream is not None and stream.ttl is not None and self.time - stream.accessed >= stream.ttl:
            del self.model[path]
            return None
        return stream

    @initialize()
    def _one_stream_is_there(self) -> None:
        self.create("/v1/stream/a", "application/json", None, False, [])

    @rule(seconds=st.sampled_from([0.5, 4.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.time += seconds

    @rule(
        path=PATHS,
        content_type=TYPES,
        ttl=st.sampled_from([None, 0, 5]),
        closed=st.booleans(),
        body=BODIES,
    )
    def create(self, path: str, content_type: str, ttl: int | None, closed: bool, body: list[bytes]) -> None:
        payload, stored = as_payload(body, content_type) if body else (None, [])
        result = now(
            self.store.create(CreateRequest(path, StreamConfig(content_type, ttl), closed, payload), self.time)
        )

        stream = self.live(path)
        if stream is None:
            assert isinstance(result, Created)
            self.model[path] = Model(content_type, ttl, self.time, [stored] if stored else [], closed)
        elif (stream.content_type, stream.ttl, stream.closed) == (content_type, ttl, closed):
            assert isinstance(result, Exists)
        else:
            assert result == Refused(Reason.OTHER_CONFIG)

    @rule(
        path=PATHS,
        content_type=TYPES,
        body=BODIES,
        close=st.sampled_from([False, False, False, True]),
        producer=st.none() | st.builds(ProducerStamp, st.sampled_from("pq"), st.integers(0, 2), st.integers(0, 3)),
        seq=st.none() | st.sampled_from([b"1", b"2", b"10"]),
    )
    def append(
        self,
        path: str,
        content_type: str,
        body: list[bytes],
        close: bool,
        producer: ProducerStamp | None,
        seq: bytes | None,
    ) -> None:
        payload, stored = as_payload(body, content_type) if body else (None, [])
        result = now(self.store.append(AppendRequest(path, content_type, payload, close, producer, seq), self.time))

        if isinstance(result, Appended | Duplicate):
            stream = self.model[path]
            stream.accessed = self.time
        if isinstance(result, Appended):
            assert not stream.closed
            assert stored or close
            assert not stored or stream.content_type == content_type
            if producer is not None:
                epoch, last = stream.producers.get(producer.id, (producer.epoch, -1))
                assert (producer.epoch, producer.seq) == (epoch, last + 1) or (
                    producer.epoch > epoch and producer.seq == 0
                )
                stream.producers[producer.id] = (producer.epoch, producer.seq)
            if seq is not None:
                assert stream.last_seq is None or seq > stream.last_seq
                stream.last_seq = seq
            if stored:
                stream.appends.append(stored)
            if close:
                stream.closed, stream.closed_by = True, producer
            assert (result.tail, result.closed) == (len(stream.content), stream.closed)
        elif isinstance(result, Duplicate):
            assert (result.tail, result.closed) == (len(stream.content), stream.closed)
            if producer is None:
                assert stream.closed
                assert not stored
            else:
                epoch, last = stream.producers[producer.id]
                assert producer.epoch == epoch
                assert producer.seq <= last
        else:
            self.check_refusal(result, path, content_type, stored, producer, seq, close)

    def check_refusal(
        self,
        result: Refused,
        path: str,
        content_type: str,
        stored: list[bytes],
        producer: ProducerStamp | None,
        seq: bytes | None,
        close: bool,
    ) -> None:
        stream = self.live(path)
        reason = result.reason
        if not stored and not close:
            assert reason is Reason.EMPTY_BODY
        elif stream is None:
            assert reason is Reason.NOT_FOUND
        elif stream.closed:
            assert reason is Reason.CLOSED
            assert result.tail == len(stream.content)
        elif stored and content_type != stream.content_type:
            assert reason is Reason.TYPE_MISMATCH
        elif reason is Reason.SEQ_NOT_INCREASING:
            assert seq is not None
            assert stream.last_seq is not None
            assert seq <= stream.last_seq
        else:
            assert producer is not None
            known = stream.producers.get(producer.id)
            expected = 0 if known is None or producer.epoch > known[0] else known[1] + 1
            assert producer.seq > expected or (known is not None and producer.epoch < known[0])

    @rule(path=PATHS)
    def delete(self, path: str) -> None:
        result = now(self.store.delete(path, self.time))
        if self.live(path) is None:
            assert result == Refused(Reason.NOT_FOUND)
        else:
            assert result == Deleted()
            del self.model[path]

    @rule(path=PATHS, offset=st.integers(0, 60), max_bytes=st.integers(1, 40))
    def read(self, path: str, offset: int, max_bytes: int) -> None:
        info = now(self.store.head(path, self.time))
        stream = self.live(path)
        if stream is None:
            assert info == Missing()
            return
        page = now(self.store.read(info.ref, offset, max_bytes))
        content = stream.content
        if offset not in stream.boundaries:
            assert isinstance(page, BadOffset)
            return
        piece = now(page.next_piece())
        assert bytes(piece or b"") == content[offset : page.end]
        assert (page.tail, page.closed) == (len(content), stream.closed)
        assert page.end in stream.boundaries
        assert page.end > offset or offset == len(content)
        following = min((place for place in stream.boundaries if place > offset), default=offset)
        assert page.end - offset <= max_bytes or page.end == following
        fits = [place for place in stream.append_ends if offset < place <= offset + max_bytes]
        if fits:
            assert page.end == max(fits), "a page ends with the last append that fits"

    @rule()
    def sweep(self) -> None:
        now(self.store.sweep(self.time))

    @invariant()
    def heads_agree(self) -> None:
        for path in ("/v1/stream/a", "/v1/stream/b"):
            info = now(self.store.head(path, self.time))
            stream = self.live(path)
            if stream is None:
                assert info == Missing()
            else:
                assert isinstance(info, StreamInfo)
                assert (info.tail, info.closed) == (len(stream.content), stream.closed)


def as_payload(body: list[bytes], content_type: str) -> tuple[Any, list[bytes]]:
    """A body of these messages, and what is stored of it."""
    if content_type == "application/json":
        return split_json(b"[" + b", ".join(body) + b"]"), [message + b"," for message in body]
    return Payload(b"".join(body)), [b"".join(body)]


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMemoryStoreAgreesWithTheModel = StoreMachine.TestCase
