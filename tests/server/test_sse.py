"""Server-sent events over HTTP (server 10; protocol 5.8, appendix D.6 and D.7)."""

import itertools
import json
import random

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams._core.sse import SSEParser
from durable_streams.server import DurableStreamsApp, StreamInfo
from durable_streams.server.sse import stream_events
from durable_streams.server.waiting import attached

from .driver import Client, Clock, Connection, connect, make_client, offset

pytestmark = pytest.mark.anyio
TEXT, JSON, OCTETS = "text/plain", "application/json", "application/octet-stream"
CURSOR = "2991600"


def control(position: int, *, cursor: str | None = CURSOR, up_to_date: bool = True, closed: bool = False) -> bytes:
    fields: dict[str, object] = {"streamNextOffset": offset(position)}
    if cursor is not None:
        fields["streamCursor"] = cursor
    if up_to_date:
        fields["upToDate"] = True
    if closed:
        fields["streamClosed"] = True
    return b"event: control\ndata:%b\n\n" % json.dumps(fields, separators=(",", ":")).encode()


def data(text: bytes) -> bytes:
    return b"event: data\ndata:%b\n\n" % text


async def read_sse(client: Client, target: str) -> bytes:
    """The whole of a connection that ends by itself."""
    with anyio.fail_after(10):
        async with client.open(target) as events:
            assert await events.head() == 200
            return await events.rest()


async def test_json_ending_in_closure(client: Client) -> None:
    """Appendix D.6, byte by byte."""
    await client.put("x", JSON)
    await client.post("x", b'[{"n":1},[2,3],"x"]', JSON)
    async with client.open("x?live=sse&offset=-1") as events:
        assert await events.head() == 200
        assert events.headers["content-type"] == "text/event-stream"
        assert events.headers["cache-control"] == "no-cache"
        assert events.headers["x-accel-buffering"] == "no"
        assert not {"content-length", "etag", "stream-sse-data-encoding"} & events.headers.keys()
        assert await events.piece() == data(b'[{"n":1},[2,3],"x"]') + control(18)
        await anyio.wait_all_tasks_blocked()
        await client.post("x", b'{"n":4}', JSON, stream_closed="true")
        assert await events.piece() == data(b'[{"n":4}]') + control(26, cursor=None, closed=True)
        assert await events.piece() == b""


async def test_bytes_come_as_base64(client: Client) -> None:
    """Appendix D.7: each event is an encoding of its own."""
    await client.put("x", OCTETS, b"\x00\x01\x02\xfe\xff")
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        assert events.headers["stream-sse-data-encoding"] == "base64"
        assert await events.piece() == data(b"AAEC/v8=") + control(5)
        for number in (0, 1):
            await client.post("x", bytes([number]), OCTETS)
            assert await events.piece() == data(b"AA==" if number == 0 else b"AQ==") + control(6 + number)


async def test_text_comes_line_by_line(client: Client) -> None:
    """Appendix D.7."""
    await client.put("x", "text/markdown; charset=utf-8", b"a\nb\r\ncd")
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        assert "stream-sse-data-encoding" not in events.headers
        assert await events.piece() == b"event: data\ndata:a\ndata:b\ndata:cd\n\n" + control(7)


async def test_one_append_is_one_pair_of_events(client: Client) -> None:
    await client.put("x", JSON)
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        assert await events.piece() == control(0)
        for number in range(3):
            await client.post("x", b"[1,2]", JSON)
            assert await events.piece() == data(b"[1,2]") + control(4 * number + 4)


async def test_appends_that_came_together_are_one_event(client: Client) -> None:
    await client.put("x", TEXT)
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        await events.piece()
        await client.post("x", b"a", TEXT)
        await client.post("x", b"b", TEXT)
        await client.post("x", b"c", TEXT, stream_closed="true")
        body = await events.rest()
    parsed = SSEParser().feed(body)
    assert b"".join(event.data for event in parsed if event.type == "data") == b"abc"
    assert [event.type for event in parsed] == ["data", "control"] * (len(parsed) // 2)


@pytest.mark.parametrize("start", ["-1", "now", offset(0)])
async def test_without_data_the_first_event_tells_the_tail(client: Client, start: str) -> None:
    await client.put("x", TEXT)
    async with client.open(f"x?live=sse&offset={start}") as events:
        await events.head()
        assert await events.piece() == control(0)


async def test_now_sends_no_history(client: Client) -> None:
    await client.put("x", TEXT, b"old")
    async with client.open("x?live=sse&offset=now") as events:
        await events.head()
        assert await events.piece() == control(3)
        await client.post("x", b"new", TEXT)
        assert await events.piece() == data(b"new") + control(6)


@pytest.mark.parametrize(("start", "first"), [("-1", data(b"end")), ("now", b""), (offset(3), b"")])
async def test_a_closed_stream_ends_at_once(client: Client, start: str, first: bytes) -> None:
    await client.put("x", TEXT, b"end", stream_closed="true")
    body = await read_sse(client, f"x?live=sse&offset={start}")
    assert body == first + control(3, cursor=None, closed=True)


@pytest.mark.parametrize("content_type", [TEXT, JSON, OCTETS])
@pytest.mark.parametrize("final", [b"", b"[7]"])
async def test_closing_gives_the_final_data_first(client: Client, content_type: str, final: bytes) -> None:
    await client.put("x", content_type)
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        await events.piece()
        await client.post("x", final, content_type, stream_closed="true")
        body = await events.rest()
    encoded = b"Wzdd" if content_type == OCTETS else final
    size = {b"": 0, b"[7]": 2 if content_type == JSON else 3}[final]
    assert body == (data(encoded) if final else b"") + control(size, cursor=None, closed=True)


async def test_deletion_ends_the_connection_without_closing_the_stream(client: Client) -> None:
    await client.put("x", TEXT)
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        assert await events.piece() == control(0)
        await client.delete("x")
        await client.put("x", TEXT, b"another")
        assert await events.piece() == b""


async def test_expiry_ends_the_connection(client: Client, clock: Clock) -> None:
    await client.put("x", TEXT, stream_expires_at="2026-09-01T12:00:00.02Z")
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        assert await events.piece() == control(0)
        clock.now += 1
        assert await events.piece() == b""
    assert (await client.head("x")).status == 404


async def test_a_reader_keeps_a_ttl_from_running_out(client: Client, clock: Clock) -> None:
    await client.put("x", TEXT, stream_ttl="10")
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        await events.piece()
        clock.now += 1000
        assert (await client.head("x")).status == 200
        events.disconnect()
        await events.finished.wait()
    clock.now += 9
    assert (await client.head("x")).status == 200
    clock.now += 1
    assert (await client.head("x")).status == 404


async def test_silence_is_broken_by_the_control_event_with_a_fresh_cursor(clock: Clock) -> None:
    client = make_client(clock=clock, sse_keep_alive=0.001)
    await client.put("x", TEXT, b"abc")
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        assert await events.piece() == data(b"abc") + control(3)
        assert await events.piece() == control(3)
        clock.now += 40
        while (piece := await events.piece()) == control(3):
            pass
        assert piece == control(3, cursor="2991602")


async def test_connections_end_after_a_while_at_an_event_boundary(clock: Clock) -> None:
    client = make_client(clock=clock, sse_max_age=0.05)
    await client.put("x", TEXT, b"abc")
    assert await read_sse(client, "x?live=sse&offset=-1") == data(b"abc") + control(3)


async def test_the_age_limit_has_ten_percent_of_jitter() -> None:
    class Recorder(random.Random):
        asked: tuple[float, float] | None = None

        def uniform(self, a: float, b: float) -> float:
            self.asked = (a, b)
            return super().uniform(a, b)

    rng = Recorder(1)
    client = make_client(sse_max_age=0.01, rng=rng)
    await client.put("x", TEXT)
    await read_sse(client, "x?live=sse&offset=-1")
    assert rng.asked == (0.9, 1.1)


async def test_a_cursor_that_is_ahead_is_exceeded_and_never_falls_back(clock: Clock) -> None:
    client = make_client(clock=clock, rng=random.Random(3), sse_keep_alive=0.001)
    await client.put("x", TEXT)
    cursors = []
    async with client.open("x?live=sse&offset=-1&cursor=2991650") as events:
        await events.head()
        for _ in range(3):
            (event,) = SSEParser().feed(await events.piece())
            cursors.append(int(json.loads(event.data)["streamCursor"]))
    assert 2991650 < cursors[0] <= 2991830
    assert cursors == sorted(cursors)


async def test_a_cursor_does_not_fall_back_with_the_clock(clock: Clock) -> None:
    client = make_client(clock=clock, sse_keep_alive=0.001)
    await client.put("x", TEXT)
    cursors = []
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        for jump in (0, 100, -500):
            clock.now += jump
            for _ in range(3):  # one may be on its way already
                (event,) = SSEParser().feed(await events.piece())
                cursors.append(int(json.loads(event.data)["streamCursor"]))
    assert cursors == sorted(cursors)
    assert cursors[-1] == cursors[0] + 5


async def test_history_comes_in_events_of_a_mebibyte() -> None:
    client = make_client()
    await client.put("x", TEXT)
    for number in range(30):
        await client.post("x", bytes([97 + number % 26]) * 100_000, TEXT)
    parser, events_seen = SSEParser(), []
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        while not events_seen or b"upToDate" not in events_seen[-1].data:
            events_seen += parser.feed(await events.piece())
    offsets = [json.loads(event.data)["streamNextOffset"] for event in events_seen[1::2]]
    assert offsets == [offset(1_000_000), offset(2_000_000), offset(3_000_000)]
    assert [len(event.data) for event in events_seen[::2]] == [1_000_000] * 3


async def test_a_character_in_two_appends_arrives_whole(client: Client) -> None:
    await client.put("x", TEXT)
    first, second = "aé".encode()[:2], "aé".encode()[2:]
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        await events.piece()
        await client.post("x", first, TEXT)
        assert await events.piece() == data(b"a") + control(1, up_to_date=False)
        await client.post("x", second, TEXT)
        assert await events.piece() == data("é".encode()) + control(3)
    assert (await client.get("x")).body == "aé".encode()


async def test_half_a_character_waits_without_spinning(clock: Clock) -> None:
    client = make_client(clock=clock)
    await client.put("x", TEXT, "😀".encode()[:3])
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        assert await events.piece() == control(0, up_to_date=False)
        await anyio.wait_all_tasks_blocked()
        await client.post("x", "😀".encode()[3:], TEXT)
        assert await events.piece() == data("😀".encode()) + control(4)


async def test_half_a_character_at_the_end_of_a_closed_stream_is_replaced(client: Client) -> None:
    await client.put("x", TEXT, b"a\xc3", stream_closed="true")
    assert await read_sse(client, "x?live=sse&offset=-1") == data("a\ufffd".encode()) + control(
        2, cursor=None, closed=True
    )


async def test_invalid_text_is_replaced(client: Client) -> None:
    await client.put("x", TEXT, b"a\xff\xc0\x80b", stream_closed="true")
    body = await read_sse(client, "x?live=sse&offset=-1")
    assert body.startswith(data("a\ufffd\ufffd\ufffdb".encode()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b" a\n  b", b" a\n  b"),
        (b"a\rb\r\nc\n\n", b"a\nb\nc\n\n"),
        ("a\u2028b\u2029c\x0bd\x0ce\x85f".encode(), "a\u2028b\u2029c\x0bd\x0ce\x85f".encode()),
        (b"event: control\ndata:{}\n\ndata:x", b"event: control\ndata:{}\n\ndata:x"),
        (b":comment\nid: 1\nretry: 1", b":comment\nid: 1\nretry: 1"),
        ("\ufeffbom".encode(), "\ufeffbom".encode()),
        (b"\n", b"\n"),
    ],
)
async def test_text_cannot_break_out_of_its_event(client: Client, text: bytes, expected: bytes) -> None:
    await client.put("x", TEXT, text, stream_closed="true")
    events = SSEParser().feed(await read_sse(client, "x?live=sse&offset=-1"))
    assert [event.type for event in events] == ["data", "control"]
    assert events[0].data == expected


async def test_an_append_that_only_finishes_a_line_end_adds_nothing(client: Client) -> None:
    await client.put("x", TEXT, b"a\r")
    async with client.open("x?live=sse&offset=-1") as events:
        await events.head()
        assert await events.piece() == b"event: data\ndata:a\ndata:\n\n" + control(2)
        await client.post("x", b"\n", TEXT)
        await anyio.wait_all_tasks_blocked()
        await client.post("x", b"\nb", TEXT)
        assert await events.piece() == b"event: data\ndata:\ndata:b\n\n" + control(5)
    async with client.open(f"x?live=sse&offset={offset(2)}") as events:
        await events.head()
        assert await events.piece() == b"event: data\ndata:\ndata:b\n\n" + control(5)


async def test_a_server_that_tells_of_a_disconnect_by_an_error_is_understood(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await client.put("x", TEXT, b"a")

    async def receive() -> dict[str, object]:
        return {"type": "http.request"} if not sent else await anyio.sleep_forever()

    for target in ("x?live=sse&offset=-1", "x", "missing"):
        sent: list[object] = []

        async def send(message: dict[str, object], sent: list[object] = sent) -> None:
            sent.append(message)
            raise ConnectionResetError

        with anyio.fail_after(5):
            await client.app(client.scope("GET", target), receive, send)
        assert len(sent) == 1
    assert not caplog.records
    assert not client.app.events


async def test_readers_at_the_same_place_share_the_bytes(client: Client) -> None:
    await client.put("x", TEXT)
    reads = 0
    read = client.app.store.read

    async def counting_read(*arguments: object) -> object:
        nonlocal reads
        reads += 1
        return await read(*arguments)

    client.app.store.read = counting_read
    first: list[bytes] = []

    async def reader(*, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        async with client.open("x?live=sse&offset=-1") as events:
            await events.head()
            await events.piece()
            task_status.started()
            first.append(await events.piece())

    async with anyio.create_task_group() as group:
        for _ in range(50):
            await group.start(reader)
        reads = 0
        await anyio.wait_all_tasks_blocked()
        await client.post("x", b"hello", TEXT)
    assert first == [data(b"hello") + control(5)] * 50
    assert all(piece is first[0] for piece in first)
    assert reads == 1
    assert not client.app.events


async def test_a_reader_that_leaves_while_it_builds_for_all_leaves_the_work_to_another(client: Client) -> None:
    await client.put("x", TEXT, b"abc")
    store = client.app.store
    info = await store.head("/v1/stream/x", client.app.clock())
    assert isinstance(info, StreamInfo)
    read, reads, go_on = store.read, 0, anyio.Event()

    async def slow_read(*arguments: object) -> object:
        nonlocal reads
        reads += 1
        await go_on.wait()
        return await read(*arguments)

    store.read = slow_read
    results: list[object] = []
    with attached(client.app, info) as watch, stream_events(client.app, info) as events:

        async def reader() -> None:
            results.append(await events.after(0, watch))

        async with anyio.create_task_group() as others, anyio.create_task_group() as builder:
            builder.start_soon(reader)
            await anyio.wait_all_tasks_blocked()
            for _ in range(3):
                others.start_soon(reader)
            await anyio.wait_all_tasks_blocked()
            assert reads == 1
            builder.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                assert reads == 2
                go_on.set()
    assert [getattr(result, "data", None) for result in results] == [data(b"abc")] * 3


async def test_kept_events_are_limited_in_size(client: Client) -> None:
    client = make_client()
    await client.put("x", TEXT)
    async with client.open("x?live=sse&offset=-1") as one, client.open("x?live=sse&offset=-1") as other:
        for events in (one, other):
            await events.head()
            await events.piece()
        (shared,) = client.app.events.values()
        for number in range(4):
            await client.post("x", bytes([97 + number]) * 600_000, TEXT)
            assert await one.piece() is await other.piece()
            assert len(shared._kept) <= 2
        assert len(shared._kept) == 1


async def test_a_slow_reader_holds_up_nobody_and_queues_nothing(client: Client) -> None:
    await client.put("x", TEXT)
    async with client.open("x?live=sse&offset=-1") as slow, client.open("x?live=sse&offset=-1") as fast:
        await slow.head()
        await fast.head()
        await fast.piece()
        for number in range(20):
            await client.post("x", b"%02d" % number, TEXT)
            await fast.piece()
        assert await slow.piece() == control(0)
        events = SSEParser().feed(await slow.piece())
    assert [event.type for event in events] == ["data", "control"]
    assert events[0].data == b"".join(b"%02d" % number for number in range(20))


async def test_a_reader_that_leaves_is_forgotten(client: Client) -> None:
    await client.put("x", TEXT)
    async with connect(client.app, client.scope("GET", "x?offset=-1&live=sse")) as events:
        events.send_body()
        await events.head()
        await events.piece()
        events.disconnect()
        await events.finished.wait()
    assert not client.app.events
    assert not client.app.waits._scopes


async def test_missing_streams_and_bad_offsets_are_told_before_the_stream_of_events_begins(client: Client) -> None:
    await client.put("x", TEXT, b"a")
    for target, status in (("missing?live=sse&offset=-1", 404), (f"x?live=sse&offset={offset(2)}", 400)):
        answer = await client.get(target)
        assert answer.status == status
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert not client.app.events


@given(text=st.text(max_size=30) | st.text("a\r\n é", max_size=12), cuts=st.lists(st.integers(0, 120), max_size=6))
@settings(deadline=None, max_examples=60)
def test_text_survives_any_cut_into_appends(text: str, cuts: list[int]) -> None:
    """All but CR: it and CR LF arrive as LF, wherever the cut is."""
    content = text.encode()
    expected = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    places = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})

    async def run() -> None:
        client = Client(DurableStreamsApp())
        await client.put("x", TEXT)
        async with client.open("x?live=sse&offset=-1") as events:
            await events.head()
            body = await events.piece()
            reader = _Reader(events)
            async with anyio.create_task_group() as group:
                group.start_soon(reader.run)
                for start, end in itertools.pairwise(places):
                    await client.post("x", content[start:end], TEXT)
                    await anyio.wait_all_tasks_blocked()
                await client.post("x", b"", stream_closed="true")
        parsed = SSEParser().feed(body + reader.body)
        assert b"".join(event.data for event in parsed if event.type == "data") == expected
        assert json.loads(parsed[-1].data)["streamNextOffset"] == offset(len(content))

    anyio.run(run, backend="trio")


class _Reader:
    def __init__(self, events: Connection) -> None:
        self.events = events
        self.body = b""

    async def run(self) -> None:
        self.body = await self.events.rest()
