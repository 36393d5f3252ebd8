"""The memory store against a model that is too simple to be wrong: lists of messages, copied when a stream is forked.

In the model a fork owns a copy of what it inherits, so whatever becomes of its source cannot touch it; that this holds
in the store, which copies nothing, is what is tested. Only who keeps whom alive is modelled as in the specification.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from durable_streams.server import (
    Appended,
    AppendRequest,
    BadOffset,
    Created,
    CreateRequest,
    Deleted,
    Duplicate,
    Exists,
    Fork,
    Gone,
    MemoryStore,
    Missing,
    Payload,
    ProducerStamp,
    Reason,
    Refused,
    SoftDeleted,
    StreamConfig,
    StreamInfo,
    split_json,
)

NAMES = ["/v1/stream/a", "/v1/stream/b", "/v1/stream/c", "/v1/stream/d"]
PATHS = st.sampled_from(NAMES)
TYPES = st.sampled_from(["application/json", "text/plain"])
MOSTLY = st.sampled_from([True, True, True, False])
BODIES = st.lists(st.sampled_from([b"1", b'{"n":22}', b'"three"', b"[4,4]", b"null"]), max_size=4)


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a call of the memory store: it never waits, so no event loop is needed."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the memory store waited")


@dataclass(eq=False)
class Model:
    """One stream: appends as lists of messages, as they are stored; those inherited included."""

    content_type: str
    ttl: int | None
    accessed: float
    appends: list[list[bytes]] = field(default_factory=list)
    closed: bool = False
    asked: tuple[Fork | None, int | None] = (None, None)
    became: tuple[Fork | None, int | None] = (None, None)
    source: Model | None = None
    deleted: bool = False
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

    def before(self, offset: int) -> list[list[bytes]]:
        """The appends up to an offset, which may divide the last one."""
        answer, left = [], offset
        for append in self.appends:
            messages = []
            for message in append:
                if left > 0:
                    messages.append(message[:left])
                left -= len(message)
            if messages:
                answer.append(messages)
        return answer

    def after(self, offset: int, count: int) -> list[bytes] | None:
        """So much more of the append at an offset: messages or bytes. None if it has less."""
        ends = sorted(self.append_ends)
        if offset >= len(self.content):
            return None
        index = bisect_right(ends, offset)
        data = b"".join(self.appends[index])[offset - ends[index] :]
        if self.content_type == "text/plain":
            return [data[:count]] if count <= len(data) else None
        messages, start = [], ends[index] - len(b"".join(self.appends[index]))
        for message in self.appends[index]:
            if start >= offset:
                messages.append(message)
            start += len(message)
        return messages[:count] if count <= len(messages) else None


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.model: dict[str, Model] = {}
        self.time = 1000.0

    def find(self, path: str) -> Model | None:
        """The stream at a path, soft-deleted ones included."""
        stream = self.model.get(path)
        if stream is None or not self.is_over(stream):
            return stream
        if self.is_needed(stream):
            stream.deleted = True
            return stream
        del self.model[path]
        return None

    def live(self, path: str) -> Model | None:
        stream = self.find(path)
        return None if stream is None or stream.deleted else stream

    def is_over(self, stream: Model) -> bool:
        """Whether a stream is kept by nothing but forks."""
        return stream.deleted or (stream.ttl is not None and self.time - stream.accessed >= stream.ttl)

    def is_needed(self, stream: Model) -> bool:
        forks = [fork for fork in self.model.values() if fork.source is stream]
        return any(not self.is_over(fork) or self.is_needed(fork) for fork in forks)

    @initialize()
    def two_streams_are_there(self) -> None:
        self.create(NAMES[0], "application/json", None, False, [b"1", b'"three"', b"[4,4]"])
        self.create(NAMES[1], "text/plain", None, False, [b"one"])
        for path, content_type in zip(NAMES, ("application/json", "text/plain"), strict=False):
            self.append(path, content_type, [b'{"n":22}', b"null"], False, None, None)

    def bytes_of(self, page: Any) -> bytes:
        data = b""
        while (piece := now(page.next_piece())) is not None:
            data += piece
        return data

    def place(self, stream: Model | None, place: int, exact: bool) -> int:
        """An offset that `place` stands for, in most cases one that can be read from."""
        places = sorted(stream.boundaries) if stream is not None else [0]
        return places[place % len(places)] + (0 if exact else place % 3)

    @rule(seconds=st.sampled_from([0.5, 4.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.time += seconds

    @rule(
        path=PATHS,
        content_type=TYPES,
        ttl=st.sampled_from([None, None, 0, 5]),
        closed=st.sampled_from([False, False, True]),
        body=BODIES,
    )
    def create(self, path: str, content_type: str, ttl: int | None, closed: bool, body: list[bytes]) -> None:
        payload, stored = as_payload(body, content_type) if body else (None, [])
        result = now(
            self.store.create(CreateRequest(path, StreamConfig(content_type, ttl), closed, payload), self.time)
        )

        stream = self.find(path)
        if stream is None:
            assert isinstance(result, Created)
            self.model[path] = Model(
                content_type, ttl, self.time, [stored] if stored else [], closed, (None, ttl), (None, ttl)
            )
        elif stream.deleted:
            assert result == Refused(Reason.SOFT_DELETED)
        elif (stream.content_type, stream.became, stream.closed) == (content_type, (None, ttl), closed):
            assert isinstance(result, Exists)
        else:
            assert result == Refused(Reason.OTHER_CONFIG)

    @rule(
        path=PATHS,
        source=PATHS,
        place=st.none() | st.integers(0, 100),
        exact=MOSTLY,
        sub_offset=st.sampled_from([0, 0, 0, 1, 2, 5]),
        content_type=st.sampled_from([None, None, None, "application/json", "text/plain"]),
        ttl=st.sampled_from([None, None, None, 0, 5, 50]),
        closed=st.sampled_from([False, False, False, True]),
        body=BODIES,
    )
    def fork(
        self,
        path: str,
        source: str,
        place: int | None,
        exact: bool,
        sub_offset: int,
        content_type: str | None,
        ttl: int | None,
        closed: bool,
        body: list[bytes],
    ) -> None:
        offset = None if place is None else self.place(self.find(source), place, exact)
        asked = Fork(source, offset, sub_offset)
        payload = as_payload(body, content_type or "text/plain")[0] if body else None
        if_json = as_payload(body, "application/json")[0] if body else None
        config = StreamConfig(content_type, ttl, fork=asked)
        result = now(self.store.create(CreateRequest(path, config, closed, payload, if_json), self.time))

        existing = self.find(path)
        if existing is not None:
            if existing.deleted:
                assert result == Refused(Reason.SOFT_DELETED)
            elif self.repeats(existing, asked, content_type, ttl, closed):
                assert isinstance(result, Exists)
            else:
                assert result == Refused(Reason.OTHER_CONFIG)
            return
        parent = self.find(source)
        if parent is None:
            assert result == Refused(Reason.SOURCE_NOT_FOUND)
        elif parent.deleted:
            assert result == Refused(Reason.SOURCE_DELETED)
        elif content_type not in (None, parent.content_type):
            assert result == Refused(Reason.FORK_TYPE_MISMATCH)
        else:
            start = len(parent.content) if offset is None else offset
            part = parent.after(start, sub_offset) if sub_offset else []
            if start not in parent.boundaries:
                assert isinstance(result, Refused)
                assert result.reason is Reason.BAD_FORK_OFFSET
            elif part is None:
                assert result == Refused(Reason.BAD_SUB_OFFSET)
            else:
                assert isinstance(result, Created)
                own = as_payload(body, parent.content_type)[1] if body else []
                appends = parent.before(start) + [append for append in (part, own) if append]
                lifetime = parent.ttl if ttl is None else ttl
                became = (Fork(source, start, sub_offset), lifetime)
                self.model[path] = Model(
                    parent.content_type, lifetime, self.time, appends, closed, (asked, ttl), became, parent
                )
                assert result.info.tail == len(self.model[path].content)

    def repeats(self, existing: Model, asked: Fork, content_type: str | None, ttl: int | None, closed: bool) -> bool:
        fork = existing.became[0]
        return (
            fork is not None
            and content_type in (None, existing.content_type)
            and ttl in (existing.asked[1], existing.became[1])
            and closed == existing.closed
            and asked.source == fork.source
            and asked.sub_offset == fork.sub_offset
            and asked.offset in (None, fork.offset)
        )

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
        stream = self.find(path)
        reason = result.reason
        if not stored and not close:
            assert reason is Reason.EMPTY_BODY
        elif stream is None:
            assert reason is Reason.NOT_FOUND
        elif stream.deleted:
            assert reason is Reason.GONE
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
        stream = self.find(path)
        if stream is None:
            assert result == Refused(Reason.NOT_FOUND)
        elif stream.deleted:
            assert result == Refused(Reason.GONE)
        elif self.is_needed(stream):
            assert result == SoftDeleted()
            stream.deleted = True
        else:
            assert result == Deleted()
            del self.model[path]

    @rule(path=PATHS, place=st.integers(0, 100), exact=MOSTLY, max_bytes=st.integers(1, 40))
    def read(self, path: str, place: int, exact: bool, max_bytes: int) -> None:
        offset = self.place(self.live(path), place, exact)
        info = now(self.store.head(path, self.time))
        stream = self.live(path)
        if stream is None:
            assert isinstance(info, Missing | Gone)
            return
        page = now(self.store.read(info.ref, offset, max_bytes))
        content = stream.content
        if offset not in stream.boundaries:
            assert isinstance(page, BadOffset)
            return
        assert self.bytes_of(page) == content[offset : page.end]
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
        for path in NAMES:
            self.find(path)  # a crash revives what nobody noticed to be over, and this has noticed all of it

    # No invariant: looking at a stream is what notices its expiry, and not always should somebody have looked.
    @rule(path=PATHS)
    def look(self, path: str) -> None:
        info = now(self.store.head(path, self.time))
        stream = self.find(path)
        if stream is None:
            assert info == Missing()
        elif stream.deleted:
            assert info == Gone()
        else:
            assert isinstance(info, StreamInfo)
            assert (info.tail, info.closed, info.ttl) == (len(stream.content), stream.closed, stream.ttl)
            assert self.bytes_of(now(self.store.read(info.ref, 0, 1000))) == stream.content

    def teardown(self) -> None:
        for path in NAMES:
            self.look(path)


def as_payload(body: list[bytes], content_type: str) -> tuple[Any, list[bytes]]:
    """A body of these messages, and what is stored of it."""
    if content_type == "application/json":
        return split_json(b"[" + b", ".join(body) + b"]"), [message + b"," for message in body]
    return Payload(b"".join(body)), [b"".join(body)]


StoreMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestMemoryStoreAgreesWithTheModel = StoreMachine.TestCase
