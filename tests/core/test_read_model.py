"""The read session against a model server: pages, drops, cuts, closures, idle answers, reconnects, stale caches.

Invariants of the client specification, section 17: 1 (what is delivered is the log from the start offset), 2 (resuming
from any delivered checkpoint gives the rest), 3 (catching up ends up to date or closed), 4 (few fruitless requests).
"""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable_streams._client.batches import joined, text_decoder
from durable_streams._core import json_mode
from durable_streams._core.checkpoint import Checkpoint
from durable_streams._core.exchange import Ask, Deliver, End, Failure, Fetch, Head, Receive, Request, Sleep
from durable_streams._core.read_session import Page, ReadOptions, ReadSession
from durable_streams.errors import IncompleteBodyError, NetworkError

JSON, TEXT, BYTES = "application/json", "text/plain", "application/octet-stream"


@dataclass
class Server:
    """A stream in memory. Its log grows while it is read, until it is closed."""

    rng: random.Random
    content_type: str
    messages: list[bytes]
    available: int
    closes: bool
    cuts: bool
    closed: bool = False
    fruitless: list[float] = field(default_factory=list)

    def offset(self, position: int) -> str:
        return f"{position:06}"

    def position(self, offset: str) -> int:
        return {"-1": 0, "now": self.available}.get(offset) if offset in ("-1", "now") else int(offset)  # type: ignore[return-value]

    def grow(self) -> None:
        if self.available < len(self.messages) and self.rng.random() < 0.7:
            self.available += self.rng.randint(1, len(self.messages) - self.available)
        if self.available == len(self.messages) and self.closes:
            self.closed = True

    def headers(self, end: int) -> dict[str, str]:
        headers = {"content-type": self.content_type, "stream-next-offset": self.offset(end)}
        if end == self.available:
            headers["stream-up-to-date"] = "true"
            if self.closed:
                headers["stream-closed"] = "true"
        if self.rng.random() < 0.5:
            headers["stream-cursor"] = str(self.rng.randint(1, 99))
        return headers

    def body(self, start: int, end: int) -> bytes:
        return (
            json_mode.frame(self.messages[start:end])
            if self.content_type == JSON
            else b"".join(self.messages[start:end])
        )

    def page(self, request: Request) -> tuple[Head, bytes]:
        start = self.position(request.params["offset"])
        end = min(self.available, start + self.rng.randint(0 if self.rng.random() < 0.2 else 1, 3))
        if "live" in request.params and start == self.available:
            return Head(204, self.headers(start)), b""
        return Head(200, self.headers(end)), self.body(start, end)

    def events(self, request: Request) -> bytes:
        out = b""
        position = self.position(request.params["offset"])
        for _ in range(self.rng.randint(0, 4)):
            self.grow()
            if position < self.available:
                end = min(self.available, position + self.rng.randint(1, 3))
                payload = self.body(position, end)
                if self.content_type != JSON:
                    payload = base64.b64encode(payload)
                out += b"event: data\ndata:" + payload + b"\n\n"
                position = end
            at_end = position == self.available
            flags = ',"upToDate":true' if at_end else ""
            flags += ',"streamClosed":true' if at_end and self.closed else ""
            out += f'event: control\ndata:{{"streamNextOffset":"{self.offset(position)}"{flags}}}\n\n'.encode()
            if at_end and self.closed:
                break
        return out


def run(session: ReadSession, server: Server, steps: int, stop_after: int | None = None) -> list[Page]:
    """Read until the end, `stop_after` pages, or everything there will be has come."""
    rng, now = server.rng, 0.0
    pages: list[Page] = []
    body = b""
    open_until = 0
    for _ in range(steps):
        command = session.next(now)
        match command:
            case End(error):
                assert error is None
                return pages
            case Ask(error):
                raise AssertionError(f"asked about {error!r}")
            case Sleep(until):
                now = until
            case Deliver(page):
                if stop_after is not None and len(pages) == stop_after:
                    return pages  # Not taken: it was not processed.
                pages.append(page)
                session.on_taken()
                if not server.closes and page.checkpoint.offset == server.offset(len(server.messages)):
                    return pages
            case Fetch(request):
                server.grow()
                fate = rng.random()
                if fate < 0.1:
                    session.on_failure(Failure(NetworkError("refused"), "connect"), now, rng.random())
                elif fate < 0.15:
                    session.on_head(Head(503, {"retry-after": "1"}), now, rng.random())
                    body = b"busy"
                elif fate < 0.2:
                    session.on_abandoned()
                elif fate < 0.25 and request.params["offset"] not in ("-1", "now", server.offset(0)):
                    headers = server.headers(0) | {"stream-next-offset": server.offset(0)}
                    session.on_head(Head(200, headers), now, rng.random())  # A stale copy out of a cache.
                    body = b"" if server.content_type != JSON else b"[]"
                elif request.params.get("live") == "sse":
                    headers = {"content-type": "text/event-stream"}
                    if server.content_type != JSON:
                        headers["stream-sse-data-encoding"] = "base64"
                    session.on_head(Head(200, headers), now, rng.random())
                    body = server.events(request)
                    if rng.random() < 0.3:
                        body = body[: rng.randint(0, len(body))]
                else:
                    head, body = server.page(request)
                    session.on_head(head, now, rng.random())
                open_until = rng.randint(0, len(body)) if server.cuts and rng.random() < 0.3 else -1
            case Receive():
                now += rng.choice([0.0, 0.01, 2.0])
                if open_until >= 0 and len(body) <= open_until:
                    session.on_failure(Failure(IncompleteBodyError("cut", phase="body"), "body"), now, rng.random())
                elif rng.random() < 0.02:
                    session.on_abandoned()
                elif body:
                    size = rng.randint(1, len(body))
                    session.on_chunk(body[:size], now)
                    body = body[size:]
                else:
                    session.on_end(now, rng.random())
    raise AssertionError(f"no end after {steps} steps: {session.phase}")


def options(start: Checkpoint, live: bool | str) -> ReadOptions:
    return ReadOptions(url="http://server/s", start=start, live=live)  # type: ignore[arg-type]


def items(pages: list[Page], content_type: str) -> list[object] | bytes:
    if content_type == JSON:
        return json_mode.decode_items([part for page in pages for part in page.data])
    return b"".join(part for page in pages for part in page.data)


def expected(messages: list[bytes], content_type: str) -> list[object] | bytes:
    return json_mode.decode_items([json_mode.frame(messages)]) if content_type == JSON else b"".join(messages)


CASES = st.tuples(
    st.integers(0, 2**32),
    st.sampled_from([JSON, TEXT, BYTES]),
    st.sampled_from([False, True, "long-poll", "sse"]),
    st.integers(0, 12),
    st.booleans(),
)


def make(seed: int, content_type: str, count: int, closes: bool, *, everything: bool = False) -> Server:
    rng = random.Random(seed)
    if content_type == JSON:
        messages = [b'{"n":%d}' % n for n in range(count)]
    else:
        text = "".join(rng.choice("aé€😀\n") for _ in range(count)).encode()
        cuts = sorted(rng.sample(range(1, len(text)), min(count, max(0, len(text) - 1)))) if len(text) > 1 else []
        messages = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]
    available = len(messages) if everything else rng.randint(0, len(messages))
    return Server(rng, content_type, messages, available, closes, cuts=True)


@given(CASES)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_delivered_is_the_log(case: tuple[int, str, bool | str, int, bool]) -> None:
    seed, content_type, live, count, closes = case
    server = make(seed, content_type, count, closes, everything=live is False)
    session = ReadSession(options(Checkpoint.start(), live))
    pages = run(session, server, 20_000)

    assert items(pages, content_type) == expected(server.messages, content_type)
    assert session.delivered.up_to_date
    if live is not False:
        assert session.delivered.stream_closed == closes


@given(CASES, st.integers(0, 6))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_resuming_from_any_checkpoint_gives_exactly_the_rest(
    case: tuple[int, str, bool | str, int, bool], stop_after: int
) -> None:
    seed, content_type, live, count, closes = case
    server = make(seed, content_type, count, closes, everything=live is False)
    first = ReadSession(options(Checkpoint.start(), live))
    before = run(first, server, 20_000, stop_after)
    saved = Checkpoint.loads(first.delivered.dumps())
    after = run(ReadSession(options(saved, live)), server, 20_000)

    assert items(before + after, content_type) == expected(server.messages, content_type)


@given(CASES, st.integers(0, 6))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_text_survives_a_resumption_inside_a_character(
    case: tuple[int, str, bool | str, int, bool], stop_after: int
) -> None:
    seed, _, live, count, closes = case
    server = make(seed, TEXT, count, closes, everything=live is False)
    text, checkpoint = "", Checkpoint.start()
    for limit in (stop_after, None):
        session = ReadSession(options(checkpoint, live))
        decode = text_decoder(json=False, tail=checkpoint.text_tail, errors="strict")
        batches = [decode(page) for page in run(session, server, 20_000, limit)]
        text += "".join(batch.text for batch in batches)
        if batches:
            checkpoint = batches[-1].checkpoint

    assert text == b"".join(server.messages).decode()


def test_joining_keeps_json_and_bytes_apart() -> None:
    assert joined((b"[1]", b"[2]"), json=True) == b"[1,2]"
    assert joined((b"1", b"2"), json=False) == b"12"
