"""The client's side of a connection: against `h2` as the server, and against frames no server should send."""

from collections.abc import Callable, Iterator

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.s2._h2 import frames
from durable_streams.s2._h2.connection import Connection, Stream
from durable_streams.s2._h2.events import Event, Failed, Farewell, Head, Pong, Ready, Room
from durable_streams.s2._h2.flow import Allowance
from durable_streams.s2._h2.frames import Data, ErrorCode, FrameError, Setting

HELLO = frames.settings_frame({})


def written(connection: Connection) -> bytes:
    return b"".join(connection.take())


def sent_frames(connection: Connection) -> list[frames.Frame]:
    """What the connection wants written, without its greeting, as frames."""
    data = written(connection)
    reader = frames.FrameReader(max_frame_size=1 << 24 - 1, preface=data.startswith(frames.PREFACE))
    return reader.feed(data)


def ready(settings: dict[int, int] | None = None, **options: int) -> Connection:
    """A connection whose greetings have been exchanged."""
    connection = Connection(**options)  # type: ignore[arg-type]  # only sizes are given
    connection.receive(frames.settings_frame(settings or {}), 0.0)
    connection.take()
    return connection


def opened(connection: Connection, *, body: bool = False, method: str = "GET") -> Stream:
    stream = connection.open(method, "http", "example", "/path?q=1", {"accept": "*/*"}, body=body)
    connection.take()
    return stream


class Answers:
    """Makes header blocks as a server would."""

    def __init__(self) -> None:
        self.encoder = hpack.Encoder()

    def head(self, stream_id: int, status: str = "200", *fields: tuple[str, str], end: bool = False) -> bytes:
        return self.fields(stream_id, (":status", status), *fields, end=end)

    def fields(self, stream_id: int, *fields: tuple[str, str], end: bool = False) -> bytes:
        return frames.headers_frames(stream_id, self.encoder.encode(fields), end_stream=end)


def data(stream_id: int, payload: bytes, end: bool = False) -> bytes:
    return b"".join(frames.data_frames(stream_id, payload, end_stream=end))


# -- Against h2 --------------------------------------------------------------------------------------------


class Server:
    """`h2` as a server that echoes each request's body, and credits windows as it reads."""

    def __init__(self, window: int, frame_size: int, max_streams: int) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        names = h2.settings.SettingCodes
        self.h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                names.INITIAL_WINDOW_SIZE: window,
                names.MAX_FRAME_SIZE: frame_size,
                names.MAX_CONCURRENT_STREAMS: max_streams,
                names.MAX_HEADER_LIST_SIZE: 65536,
            },
        )
        self.h2.initiate_connection()
        self.bodies: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.waiting: dict[int, bytes] = {}

    def receive(self, received: bytes) -> None:
        for event in self.h2.receive_data(received):
            if isinstance(event, h2.events.RequestReceived):
                self.bodies[event.stream_id] = bytearray()
                self.h2.send_headers(event.stream_id, [(":status", "200"), ("x-path", dict(event.headers)[":path"])])
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.waiting[event.stream_id] = bytes(self.bodies[event.stream_id])
        self.pump()

    def pump(self) -> None:
        for stream_id, rest in list(self.waiting.items()):
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size, len(rest))
            padding = 3 if room > 8 else None
            if padding:
                room -= 4
            end = room == len(rest)
            if room or end:
                self.h2.send_data(stream_id, rest[:room], end_stream=end, pad_length=padding)
                self.waiting[stream_id] = rest[room:]
            if end:
                del self.waiting[stream_id]


@settings(max_examples=50, deadline=None)
@given(
    bodies=st.lists(st.integers(0, 2000), min_size=1, max_size=4),
    server_window=st.integers(20, 2000),
    client_window=st.integers(65_535, 70_000),
    step=st.integers(5, 700),
    read_size=st.integers(20, 3000),
)
def test_bodies_pass_both_ways_however_small_the_windows_and_the_pieces(
    bodies: list[int], server_window: int, client_window: int, step: int, read_size: int
) -> None:
    server = Server(server_window, 16_384, max_streams=100)
    client = Connection(window=client_window)
    server.receive(written(client))
    streams: dict[int, Stream] = {}
    sending: dict[int, memoryview] = {}
    unread: dict[int, bytearray] = {}
    heads: dict[int, Head] = {}
    ended: set[int] = set()
    outbox = bytearray()
    for _ in range(10_000):
        outbox += server.h2.data_to_send()
        events = client.receive(bytes(outbox[:step]), 0.0) if outbox else []
        del outbox[:step]
        if any(isinstance(event, Ready) for event in events):
            for size in bodies:
                stream = client.open("POST", "http", "example", f"/{size}", {}, body=True)
                streams[stream.id], unread[stream.id] = stream, bytearray()
                sending[stream.id] = memoryview(bytes(index % 251 for index in range(size)))
        for event in events:
            if isinstance(event, Head):
                heads[event.stream_id] = event
            elif isinstance(event, Data):
                unread[event.stream_id] += event.data
                client.consumed(streams[event.stream_id], len(event.data))
                if event.end_stream:
                    ended.add(event.stream_id)
            else:
                assert isinstance(event, Ready | Room)
        for stream_id, rest in list(sending.items()):
            taken = client.send(streams[stream_id], rest, read_size)
            sending[stream_id] = rest[taken:]
            if taken == len(rest):
                client.finish(streams[stream_id])
                del sending[stream_id]
        server.receive(written(client))
        if streams and len(ended) == len(bodies):
            break

    for stream_id, size in zip(streams, bodies, strict=True):
        assert unread[stream_id] == bytes(index % 251 for index in range(size))
        assert heads[stream_id].headers["x-path"] == f"/{size}"
    assert not client._streams  # every stream is over on both sides


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_server_may_change_the_initial_window_at_any_time(chance: st.DataObject) -> None:
    server = Server(1000, 16_384, max_streams=10)
    client = Connection()
    server.receive(written(client))
    client.receive(server.h2.data_to_send(), 0.0)
    server.receive(written(client))  # h2 takes any receipt for that of its latest settings
    stream = client.open("POST", "http", "example", "/", {}, body=True)
    rest = memoryview(bytes(5000))
    while rest:
        if chance.draw(st.booleans()):
            size = chance.draw(st.integers(0, 1500))
            server.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: size})
        server.receive(written(client))
        for event in client.receive(server.h2.data_to_send() or HELLO, 0.0):
            assert isinstance(event, Room | Head | Ready)
        taken = client.send(stream, rest)
        rest = rest[taken:]
        if not taken:
            server.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2000})
    client.finish(stream)
    server.receive(written(client))

    assert server.bodies[1] == bytes(5000)  # and h2 has seen no byte beyond its windows


@given(st.lists(st.binary(max_size=120), max_size=6), st.booleans())
def test_any_bytes_give_events_or_end_the_connection(chunks: list[bytes], greeted: bool) -> None:
    connection = Connection()
    if greeted:
        connection.receive(HELLO, 0.0)
        opened(connection, body=True)
    try:
        for chunk in chunks:
            if chunk:
                connection.receive(chunk, 0.0)
    except FrameError:
        assert connection.broken


@given(st.binary(max_size=80), st.booleans())
def test_any_header_block_gives_an_answer_or_an_error(block: bytes, end: bool) -> None:
    connection = ready()
    opened(connection)
    wire = frames.headers_frames(1, block, end_stream=end)
    try:
        events = connection.receive(wire, 0.0)
    except FrameError as error:
        assert error.code in (ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM)  # noqa: PT017  # or no error
    else:
        assert all(isinstance(event, Head | Failed) for event in events)


# -- Greetings ---------------------------------------------------------------------------------------------


def test_the_greeting_says_what_we_take() -> None:
    settings, window = sent_frames(Connection())

    assert settings == frames.Settings(((2, 0), (4, 10 << 20), (5, 1 << 20), (6, 64 << 10)))
    assert window == frames.WindowUpdate(0, (10 << 20) - 65_535)


def test_there_is_no_room_before_the_server_has_spoken() -> None:
    connection = Connection()

    before = connection.room
    events = connection.receive(frames.settings_frame({Setting.MAX_CONCURRENT_STREAMS: 7}), 0.0)

    assert (before, connection.room) == (0, 7)
    assert events == [Ready()]
    assert frames.Settings(ack=True) in sent_frames(connection)


@pytest.mark.parametrize("wire", [frames.ping_frame(bytes(8)), frames.settings_ack_frame()])
def test_a_server_begins_with_settings(wire: bytes) -> None:
    with pytest.raises(FrameError, match="does not begin with SETTINGS"):
        Connection().receive(wire, 0.0)


def test_a_server_that_knows_http_1_only_is_called_that() -> None:
    with pytest.raises(FrameError, match=r"HTTP/1, not HTTP/2"):
        Connection().receive(b"HTTP/1.1 400 Bad Request\r\n\r\n", 0.0)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        (Setting.ENABLE_PUSH, 1, ErrorCode.PROTOCOL_ERROR),
        (Setting.INITIAL_WINDOW_SIZE, 1 << 31, ErrorCode.FLOW_CONTROL_ERROR),
        (Setting.MAX_FRAME_SIZE, 16_383, ErrorCode.PROTOCOL_ERROR),
        (Setting.MAX_FRAME_SIZE, 1 << 24, ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_impossible_settings_end_the_connection(name: int, value: int, code: ErrorCode) -> None:
    connection = Connection()

    with pytest.raises(FrameError) as raised:
        connection.receive(frames.settings_frame({name: value}), 0.0)

    assert raised.value.code is code
    assert frames.GoAway(0, code) in sent_frames(connection)
    assert not connection.usable


def test_unknown_settings_are_ignored() -> None:
    assert ready({0x99: 1}).room


def test_the_compression_table_follows_the_server_down_but_not_up() -> None:
    connection = ready({Setting.HEADER_TABLE_SIZE: 0})
    decoder = hpack.Decoder()
    for size in (0, 1 << 30):
        connection.receive(frames.settings_frame({Setting.HEADER_TABLE_SIZE: size}), 0.0)
        connection.take()
        connection.open("GET", "http", "example", "/", {"x-name": "value"}, body=False)
        (headers,) = sent_frames(connection)
        assert isinstance(headers, frames.Headers)
        decoder.max_allowed_table_size = min(size, 4096)
        assert (b"x-name", b"value") in [tuple(field) for field in decoder.decode(headers.block, raw=True)]
        assert decoder.header_table_size <= 4096


# -- Requests ----------------------------------------------------------------------------------------------


def test_a_request_has_its_pseudo_headers_first_and_hides_its_secrets_from_the_table() -> None:
    connection = ready()
    headers = {"authorization": "Bearer secret", "s2-basin": "basin-01"}
    connection.open("POST", "https", "example:8080", "/v1?x", headers, body=True)
    (frame,) = sent_frames(connection)
    assert isinstance(frame, frames.Headers)

    fields = list(hpack.Decoder().decode(frame.block))

    assert [tuple(field) for field in fields[:4]] == [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "example:8080"),
        (":path", "/v1?x"),
    ]
    assert [(field[0], field.indexable) for field in fields[4:]] == [("authorization", False), ("s2-basin", True)]
    assert not frame.end_stream


@pytest.mark.parametrize(
    "headers",
    [{"Upper": "x"}, {"a b": "x"}, {"": "x"}, {":path": "/"}, {"connection": "close"}, {"x": "a\r\nb"}, {"x": "\0"}],
)
def test_headers_that_http2_cannot_carry_are_refused_before_anything_is_sent(headers: dict[str, str]) -> None:
    connection = ready()

    with pytest.raises(ValueError, match="header"):
        connection.open("GET", "http", "example", "/", headers, body=False)

    assert connection.unsent == 0


def test_more_headers_than_the_server_takes_are_refused() -> None:
    connection = ready({Setting.MAX_HEADER_LIST_SIZE: 300})

    with pytest.raises(ValueError, match="the server takes 300"):
        connection.open("GET", "http", "example", "/", {"x": "y" * 200}, body=False)


def test_long_headers_are_continued() -> None:
    connection = ready()
    connection.open("GET", "http", "example", "/", {"x": "\x7f" * 20_000}, body=False)

    wire = written(connection)

    assert wire[3] == frames.HEADERS
    assert wire[9 + 16_384 + 3] == frames.CONTINUATION


def test_whether_anything_left_is_known_per_stream() -> None:
    connection = ready()
    stream = connection.open("POST", "http", "example", "/", {}, body=True)
    before = stream.head_left
    connection.take()
    connection.send(stream, b"x")
    middle = (stream.head_left, stream.body_left)
    connection.take()

    assert (before, middle, stream.body_left) == (False, (True, False), True)


def test_ending_the_request_is_no_part_of_its_body() -> None:
    connection = ready()
    stream = opened(connection, body=True)
    connection.finish(stream)

    assert sent_frames(connection) == [Data(1, b"", end_stream=True)]
    assert not stream.body_left


def test_data_is_cut_to_the_servers_frames() -> None:
    connection = ready({Setting.MAX_FRAME_SIZE: 20_000})
    stream = opened(connection, body=True)
    connection.send(stream, bytes(50_000))

    lengths = [frame.length for frame in sent_frames(connection) if isinstance(frame, Data)]

    assert lengths == [20_000, 20_000, 10_000]


def test_a_stream_may_not_use_the_window_of_another_but_shares_the_connections() -> None:
    connection = ready({Setting.INITIAL_WINDOW_SIZE: 40_000})
    first, second = opened(connection, body=True), opened(connection, body=True)

    assert connection.send(first, bytes(50_000)) == 40_000
    assert connection.send(second, bytes(50_000)) == 25_535  # the connection's 65,535 are used up now
    assert connection.receive(frames.window_update_frame(0, 100), 0.0) == [Room(0)]
    assert connection.send(first, bytes(50)) == 0
    assert connection.send(second, bytes(50_000)) == 100


def test_a_window_that_shrinks_below_zero_has_to_be_earned_back() -> None:
    connection = ready()
    stream = opened(connection, body=True)
    connection.send(stream, bytes(60_000))
    connection.receive(frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 0}), 0.0)

    assert stream.send_window == -60_000
    assert connection.send(stream, b"x") == 0
    assert connection.receive(frames.window_update_frame(1, 60_000), 0.0) == []  # no room yet
    assert connection.send(stream, b"x") == 0
    assert connection.receive(frames.window_update_frame(1, 1), 0.0) == [Room(1)]
    assert connection.send(stream, b"xy") == 1


def test_windows_larger_than_there_may_be() -> None:
    connection = ready()
    opened(connection, body=True)

    (failed,) = connection.receive(frames.window_update_frame(1, frames.LARGEST_WINDOW), 0.0)

    assert isinstance(failed, Failed)
    assert frames.Reset(1, ErrorCode.FLOW_CONTROL_ERROR) in sent_frames(connection)
    opened(connection, body=True)
    with pytest.raises(FrameError) as raised:
        connection.receive(frames.window_update_frame(0, frames.LARGEST_WINDOW), 0.0)
    assert raised.value.code is ErrorCode.FLOW_CONTROL_ERROR


def test_settings_that_lift_a_stream_over_the_largest_window_end_the_connection() -> None:
    connection = ready()
    opened(connection, body=True)
    connection.receive(frames.window_update_frame(1, 100), 0.0)

    with pytest.raises(FrameError, match="larger"):
        connection.receive(frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: frames.LARGEST_WINDOW}), 0.0)


# -- Answers -----------------------------------------------------------------------------------------------


def test_an_answer_comes_in_order_and_ends_the_stream() -> None:
    connection = ready()
    opened(connection)
    wire = Answers().head(1, "200", ("x", "1"), ("x", "2")) + data(1, b"abc") + data(1, b"", end=True)

    assert connection.receive(wire, 0.0) == [
        Head(1, 200, {"x": "1, 2"}, end_stream=False),
        Data(1, b"abc", length=3),
        Data(1, b"", end_stream=True),
    ]
    assert not connection._streams


def test_informational_answers_are_passed_over() -> None:
    connection = ready()
    opened(connection)
    answers = Answers()

    events = connection.receive(answers.head(1, "103", ("link", "x")) + answers.head(1, "204", end=True), 0.0)

    assert events == [Head(1, 204, {}, end_stream=True)]


def test_trailers_end_the_answer() -> None:
    connection = ready()
    opened(connection)
    answers = Answers()

    events = connection.receive(answers.head(1) + data(1, b"x") + answers.fields(1, ("grpc", "0"), end=True), 0.0)

    assert events[-1] == Data(1, b"", end_stream=True)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        pytest.param(lambda a: data(1, b"x"), ErrorCode.PROTOCOL_ERROR, id="data before the head"),
        pytest.param(lambda a: a.fields(1, ("x", "y")), ErrorCode.PROTOCOL_ERROR, id="no status"),
        pytest.param(lambda a: a.head(1, "20"), ErrorCode.PROTOCOL_ERROR, id="short status"),
        pytest.param(lambda a: a.head(1, "\uff1200"), ErrorCode.PROTOCOL_ERROR, id="status in other digits"),
        pytest.param(lambda a: a.head(1, "200", (":status", "200")), ErrorCode.PROTOCOL_ERROR, id="two statuses"),
        pytest.param(lambda a: a.fields(1, ("x", "y"), (":status", "200")), ErrorCode.PROTOCOL_ERROR, id="late status"),
        pytest.param(lambda a: a.head(1, "200", (":path", "/")), ErrorCode.PROTOCOL_ERROR, id="a request's header"),
        pytest.param(lambda a: a.head(1, "200", ("connection", "x")), ErrorCode.PROTOCOL_ERROR, id="hop by hop"),
        pytest.param(lambda a: a.head(1, "200", ("Upper", "x")), ErrorCode.PROTOCOL_ERROR, id="capitals"),
        pytest.param(lambda a: a.head(1, "200", ("x", "a\nb")), ErrorCode.PROTOCOL_ERROR, id="line break"),
        pytest.param(lambda a: a.head(1, "101"), ErrorCode.PROTOCOL_ERROR, id="switching protocols"),
        pytest.param(lambda a: a.head(1, "100", end=True), ErrorCode.PROTOCOL_ERROR, id="only informational"),
        pytest.param(lambda a: a.head(1) + a.fields(1, ("x", "y")), ErrorCode.PROTOCOL_ERROR, id="trailers, no end"),
        pytest.param(
            lambda a: a.head(1) + a.fields(1, (":status", "200"), end=True), ErrorCode.PROTOCOL_ERROR, id="two heads"
        ),
        pytest.param(
            lambda a: a.head(1, "200", ("content-length", "x")), ErrorCode.PROTOCOL_ERROR, id="length of no number"
        ),
        pytest.param(
            lambda a: a.head(1, "200", ("content-length", "2")) + data(1, b"abc"),
            ErrorCode.PROTOCOL_ERROR,
            id="more than declared",
        ),
        pytest.param(
            lambda a: a.head(1, "200", ("content-length", "2")) + data(1, b"a", end=True),
            ErrorCode.PROTOCOL_ERROR,
            id="less than declared",
        ),
        pytest.param(
            lambda a: a.head(1, "200", ("content-length", "2"), end=True), ErrorCode.PROTOCOL_ERROR, id="no body at all"
        ),
        pytest.param(
            lambda a: a.head(1, end=True) + data(1, b"x"),
            ErrorCode.STREAM_CLOSED,
            id="data after the end of the answer",
        ),
        pytest.param(lambda a: a.head(1, end=True) + a.head(1), ErrorCode.STREAM_CLOSED, id="headers after the end"),
    ],
)
def test_a_malformed_answer_fails_its_stream_and_no_other(make: Callable[[Answers], bytes], code: ErrorCode) -> None:
    connection = ready()
    opened(connection, body=True)
    opened(connection)
    answers = Answers()

    events = connection.receive(make(answers), 0.0)
    wire = written(connection)
    others = connection.receive(answers.head(3, end=True), 0.0)

    assert isinstance(events[-1], Failed)
    assert (events[-1].stream_id, events[-1].code, events[-1].refused) == (1, code, False)
    assert frames.reset_frame(1, code) in wire
    assert others == [Head(3, 200, {}, end_stream=True)]


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200"), ("GET", "304"), ("GET", "204")])
def test_a_content_length_without_content_is_right_where_there_never_is_any(method: str, status: str) -> None:
    connection = ready()
    opened(connection, method=method)

    (head,) = connection.receive(Answers().head(1, status, ("content-length", "5"), end=True), 0.0)

    assert isinstance(head, Head)


@pytest.mark.parametrize(
    "wire",
    [
        data(3, b"x"),
        data(2, b"x"),
        frames.reset_frame(3, 0),
        frames.window_update_frame(3, 1),
        frames.window_update_frame(2, 1),
        frames.headers_frames(3, hpack.Encoder().encode([(":status", "200")])),
    ],
)
def test_a_frame_on_a_stream_that_never_was_ends_the_connection(wire: bytes) -> None:
    connection = ready()
    opened(connection)

    with pytest.raises(FrameError, match="never opened"):
        connection.receive(wire, 0.0)


def test_headers_that_cannot_be_decompressed_end_the_connection() -> None:
    connection = ready()
    opened(connection)

    with pytest.raises(FrameError) as raised:
        connection.receive(frames.headers_frames(1, b"\xff\xff\xff"), 0.0)

    assert raised.value.code is ErrorCode.COMPRESSION_ERROR


def test_few_bytes_that_stand_for_endless_headers_end_the_connection() -> None:
    connection = ready(max_header_list=2000)
    opened(connection)
    encoder = hpack.Encoder()
    encoder.encode([("x", "y" * 500)])
    block = hpack.Encoder().encode([(":status", "200"), ("x", "y" * 500)]) + b"\xbe" * 100

    with pytest.raises(FrameError) as raised:
        connection.receive(frames.headers_frames(1, block), 0.0)

    assert raised.value.code is ErrorCode.ENHANCE_YOUR_CALM


# -- Resets and farewells ----------------------------------------------------------------------------------


def test_a_refused_stream_says_that_nothing_was_done() -> None:
    connection = ready()
    opened(connection)

    (failed,) = connection.receive(frames.reset_frame(1, ErrorCode.REFUSED_STREAM), 0.0)

    assert isinstance(failed, Failed)
    assert failed.refused


def test_a_reset_behind_the_last_word_comes_after_it() -> None:
    connection = ready()
    stream = opened(connection, body=True)
    wire = Answers().head(1) + data(1, b"terminal", end=True) + frames.reset_frame(1, ErrorCode.NO_ERROR)

    _, body, failed = connection.receive(wire, 0.0)

    assert body == Data(1, b"terminal", end_stream=True, length=8)
    assert isinstance(failed, Failed)
    assert (failed.code, stream.local_open) == (0, False)


def test_what_arrives_for_an_abandoned_stream_costs_the_others_nothing() -> None:
    connection = ready(window=100_000)
    answers = Answers()
    for number in range(50):
        stream = opened(connection)
        connection.receive(answers.head(stream.id), 0.0)
        connection.reset(stream)
        reset = sent_frames(connection)[0]
        assert reset == frames.Reset(stream.id, ErrorCode.CANCEL), number
        # The peer did not know yet. h2's count of the connection's window must not run out.
        assert connection.receive(data(stream.id, bytes(16_000)), 0.0) == []

    granted = sum(frame.increment for frame in sent_frames(connection) if isinstance(frame, frames.WindowUpdate))
    assert granted
    assert connection._receive_window.left > 0


def test_a_reset_twice_is_sent_once_and_an_ended_stream_is_not_reset() -> None:
    connection = ready()
    stream, done = opened(connection), opened(connection)
    connection.receive(Answers().head(3, end=True), 0.0)

    connection.reset(stream)
    connection.reset(stream)
    connection.reset(done)

    assert sent_frames(connection) == [frames.Reset(1, ErrorCode.CANCEL)]


def test_headers_of_an_abandoned_stream_still_count_for_the_compression() -> None:
    connection = ready()
    first, second = opened(connection), opened(connection)
    connection.reset(first)
    answers = Answers()

    assert connection.receive(answers.head(1, "200", ("x-long", "some value")), 0.0) == []
    (head,) = connection.receive(answers.head(3, "200", ("x-long", "some value")), 0.0)

    assert isinstance(head, Head)
    assert head.headers == {"x-long": "some value"}
    assert second.head_seen


def test_a_farewell_fails_streams_above_the_last_and_lets_the_others_go_on() -> None:
    connection = ready()
    opened(connection)
    opened(connection)
    first = connection.receive(frames.goaway_frame(frames.LARGEST_STREAM_ID, 0), 0.0)
    again = connection.receive(frames.goaway_frame(1, 0, b"bye") + frames.ping_frame(b"12345678"), 0.0)

    assert first == [Farewell(0, b"")]
    assert again[0] == Farewell(0, b"bye")
    assert isinstance(again[1], Failed)
    assert (again[1].stream_id, again[1].refused) == (3, True)
    assert sent_frames(connection) == [frames.Ping(b"12345678", ack=True)]
    assert (connection.room, connection.usable) == (0, False)
    events = connection.receive(Answers().head(1) + data(1, b"still here", end=True), 0.0)
    assert events[1] == Data(1, b"still here", end_stream=True, length=10)


def test_a_farewell_never_takes_back_what_an_earlier_one_said() -> None:
    connection = ready()
    for _ in range(3):
        opened(connection)
    connection.receive(frames.goaway_frame(3, 0), 0.0)
    connection.receive(frames.goaway_frame(5, 0), 0.0)

    assert set(connection._streams) == {1, 3}


def test_identifiers_run_out() -> None:
    connection = ready()
    connection._next_id = frames.LARGEST_STREAM_ID

    stream = opened(connection)

    assert stream.id == frames.LARGEST_STREAM_ID
    assert (connection.room, connection.usable) == (0, False)
    (head,) = connection.receive(Answers().head(stream.id, end=True), 0.0)
    assert isinstance(head, Head)


def test_the_servers_limit_of_streams_counts_those_that_are_open() -> None:
    connection = ready({Setting.MAX_CONCURRENT_STREAMS: 2})
    opened(connection)
    second = opened(connection, body=True)
    full = connection.room
    connection.receive(Answers().head(1, end=True), 0.0)
    one = connection.room
    connection.receive(frames.settings_frame({Setting.MAX_CONCURRENT_STREAMS: 0}), 0.0)
    none = connection.room
    connection.reset(second)

    assert (full, one, none, connection.room) == (0, 1, 0, 0)


def test_a_ping_is_answered_and_one_of_ours_comes_back() -> None:
    connection = ready()
    connection.ping(b"abcdefgh")

    events = connection.receive(frames.ping_frame(b"12345678") + frames.ping_frame(b"abcdefgh", ack=True), 0.0)

    assert events == [Pong(b"abcdefgh")]
    assert sent_frames(connection) == [frames.Ping(b"abcdefgh"), frames.Ping(b"12345678", ack=True)]


# -- Windows of ours ---------------------------------------------------------------------------------------


def test_a_stream_gets_its_window_back_as_it_is_read_and_the_connection_at_once() -> None:
    connection = ready(window=100_000)
    stream = opened(connection)
    connection.receive(Answers().head(1), 0.0)
    for _ in range(5):
        connection.receive(data(1, bytes(16_000)), 0.0)

    assert [frame.stream_id for frame in sent_frames(connection)] == [0, 0]  # type: ignore[union-attr]
    connection.consumed(stream, 24_000)
    assert connection.unsent == 0  # saved up
    connection.consumed(stream, 1000)
    assert sent_frames(connection) == [frames.WindowUpdate(1, 25_000)]


def test_a_slow_reader_holds_its_own_window_full_and_no_other_stream_up() -> None:
    connection = ready(window=100_000)
    opened(connection)
    opened(connection)
    answers = Answers()
    connection.receive(answers.head(1) + answers.head(3), 0.0)
    connection.receive(b"".join(data(1, bytes(10_000)) for _ in range(10)), 0.0)

    events = connection.receive(b"".join(data(3, bytes(10_000)) for _ in range(10)), 0.0)
    (failed,) = connection.receive(data(1, b"x"), 0.0)

    assert len(events) == 10
    assert isinstance(failed, Failed)
    assert failed.code == ErrorCode.FLOW_CONTROL_ERROR


def test_padding_is_given_back_though_nobody_reads_it() -> None:
    connection = ready(window=65_535)
    opened(connection)
    connection.receive(Answers().head(1), 0.0)
    padded = (200).to_bytes(3, "big") + bytes([0, frames.PADDED]) + (1).to_bytes(4, "big") + b"\xc7" + bytes(199)
    connection.receive(padded * 100, 0.0)

    assert frames.WindowUpdate(1, 16_400) in sent_frames(connection)


def test_more_than_the_connections_window_ends_the_connection() -> None:
    connection = ready(window=65_535, max_frame_size=1 << 20)
    opened(connection)
    connection.receive(Answers().head(1), 0.0)

    with pytest.raises(FrameError) as raised:
        connection.receive(b"\x01\x00\x00\0\0\0\0\0\x01x", 0.0)  # the head of a frame of 65,536 bytes is enough

    assert raised.value.code is ErrorCode.FLOW_CONTROL_ERROR


# -- Floods ------------------------------------------------------------------------------------------------


def some_floods() -> Iterator[object]:
    answers = Answers()
    answers.head(1)
    yield pytest.param(frames.ping_frame(bytes(8), ack=True), id="pong")
    yield pytest.param(frames.settings_frame({}), id="settings")
    yield pytest.param(frames.window_update_frame(0, 1), id="window update")
    yield pytest.param(frames.window_update_frame(1, 1), id="window update of a stream")
    yield pytest.param(frames.reset_frame(3, 8), id="reset of what is over")
    yield pytest.param(b"\0\0\x05\x02\0\0\0\0\x09" + bytes(5), id="priority")
    yield pytest.param(b"\0\0\0\xee\0\0\0\0\0", id="unknown")
    yield pytest.param(b"\0\0\0\0\0\0\0\0\x01", id="empty data")
    yield pytest.param(b"\0\0\0\0\0\0\0\0\x03", id="empty data on what is over")
    yield pytest.param(answers.head(3), id="headers on what is over")
    yield pytest.param(answers.head(5, "103"), id="informational answers")
    yield pytest.param(frames.goaway_frame(99, 0), id="goaway")


FLOODS = list(some_floods())


@pytest.mark.parametrize("frame", FLOODS)
def test_a_flood_ends_the_connection(frame: bytes) -> None:
    connection = ready_for_flood()

    with pytest.raises(FrameError) as raised:
        for _ in range(300):
            connection.receive(frame, 0.0)
            connection.take()

    assert raised.value.code is ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("frame", FLOODS)
def test_the_same_frames_over_hours_do_not(frame: bytes) -> None:
    connection = ready_for_flood()

    for second in range(2000):
        connection.receive(frame, second / 5)
        connection.take()

    assert not connection.broken


def ready_for_flood() -> Connection:
    connection = Connection(allowance=Allowance(burst=200, per_second=10))
    answers = Answers()
    connection.receive(HELLO, 0.0)
    opened(connection)
    over = opened(connection)
    opened(connection)
    connection.receive(answers.head(1) + answers.head(3), 0.0)
    connection.reset(over)
    connection.take()
    return connection


def test_window_updates_for_what_we_send_are_no_flood() -> None:
    connection = Connection(allowance=Allowance(burst=50, per_second=0))
    connection.receive(HELLO, 0.0)
    stream = opened(connection, body=True)

    for _ in range(1000):
        connection.send(stream, bytes(10))
        connection.take()
        connection.receive(frames.window_update_frame(0, 10) + frames.window_update_frame(1, 10), 0.0)

    assert not connection.broken


def test_what_is_on_its_way_when_streams_are_given_up_is_no_flood() -> None:
    connection = Connection(allowance=Allowance(burst=50, per_second=0))
    connection.receive(HELLO, 0.0)
    answers = Answers()
    for _ in range(10):
        stream = opened(connection)
        connection.receive(answers.head(stream.id), 0.0)
        connection.reset(stream)
        connection.receive(b"".join(data(stream.id, bytes(100)) for _ in range(500)), 0.0)

    assert not connection.broken


def test_a_server_that_asks_and_does_not_read_the_answers_is_cut_off() -> None:
    connection = ready()

    with pytest.raises(FrameError, match="does not read the answers"):
        for _ in range(5000):
            connection.receive(frames.ping_frame(bytes(8)), 0.0)

    assert connection.unsent < 100_000


def test_a_closing_connection_says_so() -> None:
    connection = ready()
    connection.close()

    assert sent_frames(connection) == [frames.GoAway(0, 0)]


def test_events_compare_as_values() -> None:
    events: list[Event] = [Ready(), Room(0), Pong(b"x")]

    assert events == [Ready(), Room(0), Pong(b"x")]
    assert "new" in repr(Connection())
