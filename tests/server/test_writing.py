"""PUT, POST and DELETE over HTTP (server 3, 5, 6, 14; protocol 5.1 to 5.4, appendix D)."""

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from durable_streams.server import arrivals, json_messages

from .driver import Answer, Client, Clock, connect, offset

pytestmark = pytest.mark.anyio
TEXT, JSON, OCTETS = "text/plain", "application/json", "application/octet-stream"


async def produce(
    client: Client, path: str, body: bytes, epoch: int, seq: int, content_type: str = OCTETS, **headers: str
) -> Answer:
    return await client.post(
        path, body, content_type, producer_id="w1", producer_epoch=str(epoch), producer_seq=str(seq), **headers
    )


def stream_headers(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith(("stream-", "producer-"))}


async def assert_missing(client: Client, path: str) -> None:
    for method in ("GET", "HEAD", "DELETE"):
        assert (await client.call(method, path)).status == 404
    assert (await client.post(path, b"a", TEXT)).status == 404


# --- PUT


async def test_put_creates_and_repeats(client: Client) -> None:
    created = await client.put("x", "TEXT/Plain; charset=UTF-8", b"first")
    assert created.status == 201
    assert created.headers["location"] == "http://s.example/v1/stream/x"
    assert created.headers["content-type"] == "TEXT/Plain; charset=UTF-8"
    assert stream_headers(created) == {"stream-next-offset": offset(5)}

    again = await client.put("x", "text/plain", b"ignored")
    assert again.status == 200
    assert "location" not in again.headers
    assert again.headers["content-type"] == "TEXT/Plain; charset=UTF-8"
    assert again.next_offset == offset(5)
    assert (await client.get("x")).body == b"first"


async def test_put_without_a_type_makes_bytes(client: Client) -> None:
    assert (await client.put("x")).headers["content-type"] == OCTETS
    assert (await client.put("x", OCTETS)).status == 200
    assert (await client.put("x", "")).status == 200
    assert (await client.put("x", TEXT)).status == 409


@pytest.mark.parametrize(
    "content_type", ["text", "text/", "/plain", "text plain/x", "a b", "text/plain,x/y", "x/y;\x01"]
)
async def test_put_with_a_type_that_is_none_is_400(client: Client, content_type: str) -> None:
    assert (await client.put("x", content_type)).status == 400
    assert (await client.head("x")).status == 404


async def test_put_compares_with_the_present_closure(client: Client) -> None:
    assert (await client.put("x", TEXT)).status == 201
    assert (await client.put("x", TEXT, stream_closed="true")).status == 409
    await client.post("x", b"", stream_closed="true")
    assert (await client.put("x", TEXT)).status == 409
    again = await client.put("x", TEXT, stream_closed="true")
    assert again.status == 200
    assert again.headers["stream-closed"] == "true"


async def test_put_can_make_a_closed_stream(client: Client) -> None:
    created = await client.put("x", TEXT, b"all of it", stream_closed="TRUE")
    assert created.status == 201
    assert stream_headers(created) == {"stream-next-offset": offset(9), "stream-closed": "true"}
    assert (await client.post("x", b"more", TEXT)).status == 409


@pytest.mark.parametrize("value", ["false", "yes", "1", "", "true, true", "truely"])
async def test_stream_closed_with_another_value_counts_as_absent(client: Client, value: str) -> None:
    assert "stream-closed" not in (await client.put("x", TEXT, stream_closed=value)).headers
    assert "stream-closed" not in (await client.post("x", b"a", TEXT, stream_closed=value)).headers
    assert (await client.post("x", b"", TEXT, stream_closed=value)).status == 400


@pytest.mark.parametrize("ttl", ["0", "60", "9007199254740991"])
async def test_ttl_is_echoed_by_head(client: Client, ttl: str) -> None:
    await client.put("x", TEXT, stream_ttl=ttl)
    if ttl != "0":
        assert (await client.head("x")).headers["stream-ttl"] == ttl
        assert (await client.put("x", TEXT, stream_ttl=ttl)).status == 200
        assert (await client.put("x", TEXT)).status == 409


@pytest.mark.parametrize(
    "ttl", ["", "+1", "-1", "01", "00", "1.0", "1e3", " 1", "1 ", "1_0", "9007199254740992", "1" * 30, "\xb2", "x"]
)
async def test_other_ttls_are_400(client: Client, ttl: str) -> None:
    assert (await client.put("x", TEXT, stream_ttl=ttl)).status == 400
    assert (await client.head("x")).status == 404


async def test_expiry_is_given_back_as_written_and_compared_as_a_moment(client: Client) -> None:
    text = "2099-01-01T00:00:00.500+01:00"
    assert (await client.put("x", TEXT, stream_expires_at=text)).status == 201
    assert (await client.head("x")).headers["stream-expires-at"] == text
    assert (await client.put("x", TEXT, stream_expires_at="2098-12-31T23:00:00.5Z")).status == 200
    assert (await client.put("x", TEXT, stream_expires_at="2098-12-31T23:00:00.6Z")).status == 409
    assert (await client.put("y", TEXT, stream_expires_at="2099")).status == 400
    assert (await client.put("y", TEXT, stream_expires_at=text, stream_ttl="1")).status == 400


async def test_a_stream_that_expires_at_birth_is_created_and_gone(client: Client) -> None:
    for headers in ({"stream_ttl": "0"}, {"stream_expires_at": "2001-01-01T00:00:00Z"}):
        assert (await client.put("x", TEXT, b"x", **headers)).status == 201
        assert (await client.head("x")).status == 404


async def test_invalid_json_creates_nothing(client: Client) -> None:
    assert (await client.put("x", JSON, b"{")).status == 400
    assert (await client.head("x")).status == 404
    assert (await client.put("x", JSON, b"[]")).next_offset == offset(0)
    assert (await client.put("x", JSON, b"{")).status == 200


async def test_of_racing_puts_one_creates(client: Client) -> None:
    statuses: list[int] = []

    async def put() -> None:
        statuses.append((await client.put("x", TEXT, b"x")).status)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(put)
    assert sorted(statuses) == [200] * 9 + [201]


# --- POST


async def test_json_is_appended_message_by_message(client: Client) -> None:
    """Appendix D.1."""
    await client.put("log", JSON, stream_ttl="3600")
    for body, status, end in [
        (b'[{"n":1},[2,3],"x"]', 204, 18),
        (b'{"n":4}', 204, 26),
        (b"[[5,6]]", 204, 32),
        (b"[]", 400, 32),
        (b'{"n":', 400, 32),
    ]:
        answer = await client.post("log", body, JSON)
        assert answer.status == status
        if status == 204:
            assert stream_headers(answer) == {"stream-next-offset": offset(end)}
    assert (await client.get("log")).body == b'[{"n":1},[2,3],"x",{"n":4},[5,6]]'


async def test_others_are_served_while_a_long_array_is_taken_apart(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    turn = 0

    def watched(body: bytes) -> Any:
        work = json_messages_split(body)
        while True:
            turns.append(turn)
            try:
                next(work)
            except StopIteration as done:
                return done.value
            yield

    async def others() -> None:
        nonlocal turn
        while True:
            await anyio.lowlevel.checkpoint()
            turn += 1

    json_messages_split = json_messages.split_in_slices
    monkeypatch.setattr(json_messages, "split_in_slices", watched)
    body = b"[" + b"1," * 140_000 + b"1]"
    async with anyio.create_task_group() as group:
        group.start_soon(others)
        for send in (lambda: client.put("long", JSON, body), lambda: client.post("long", body, JSON)):
            turns.clear()
            answer = await send()
            assert answer.status in (201, 204)
            assert len(turns) >= len(body) // json_messages.SLICE_BYTES
            assert turn > turns[0] + len(turns) // 2, "nobody else had a turn"
        group.cancel_scope.cancel()
    assert (await client.head("long")).headers["stream-next-offset"] == offset(4 * 140_001)


async def test_producers(client: Client) -> None:
    """Appendix D.3 and D.4."""
    await client.put("p", OCTETS)
    await produce(client, "p", b"AB", 0, 0)
    steps = [
        (b"CD", 0, 1, 200, {"stream-next-offset": offset(4), "producer-epoch": "0", "producer-seq": "1"}),
        (b"CD", 0, 1, 204, {"stream-next-offset": offset(4), "producer-epoch": "0", "producer-seq": "1"}),
        (b"AB", 0, 0, 204, {"stream-next-offset": offset(4), "producer-epoch": "0", "producer-seq": "1"}),
        (b"GH", 0, 4, 409, {"producer-expected-seq": "2", "producer-received-seq": "4"}),
        (b"EF", 1, 3, 400, {}),
        (b"EF", 1, 0, 200, {"stream-next-offset": offset(6), "producer-epoch": "1", "producer-seq": "0"}),
        (b"ZZ", 0, 2, 403, {"producer-epoch": "1"}),
    ]
    for body, epoch, seq, status, headers in steps:
        answer = await produce(client, "p", body, epoch, seq)
        assert (answer.status, stream_headers(answer)) == (status, headers)
    partial = await client.post("p", b"x", OCTETS, producer_id="w1", producer_epoch="1")
    assert partial.status == 400

    closed = {"stream-next-offset": offset(8), "stream-closed": "true"}
    stamp = {"producer-epoch": "1", "producer-seq": "1"}
    answer = await produce(client, "p", b"IJ", 1, 1, stream_closed="true")
    assert (answer.status, stream_headers(answer)) == (200, closed | stamp)
    answer = await produce(client, "p", b"IJ", 1, 1, stream_closed="true")
    assert (answer.status, stream_headers(answer)) == (204, closed | stamp)
    for answer in [
        await produce(client, "p", b"KL", 1, 2),
        await produce(client, "p", b"EF", 1, 0),
        await client.post("p", b"KL", OCTETS),
        await client.post("p", b"KL", OCTETS, stream_closed="true"),
        await client.post("p", b"KL", TEXT),
    ]:
        assert (answer.status, stream_headers(answer)) == (409, closed)
    answer = await client.post("p", b"", stream_closed="TRUE")
    assert (answer.status, stream_headers(answer)) == (204, closed)
    assert (await client.post("p", b"", stream_closed="yes")).status == 400
    assert (await client.get("p")).body == b"ABCDEFIJ"


async def test_close_only_by_a_producer_takes_a_number_and_is_204(client: Client) -> None:
    await client.put("p", OCTETS)
    await produce(client, "p", b"AB", 0, 0)
    for _ in range(2):
        answer = await client.post(
            "p", b"", producer_id="w1", producer_epoch="0", producer_seq="1", stream_closed="true"
        )
        assert answer.status == 204
        assert stream_headers(answer) == {
            "stream-next-offset": offset(2),
            "stream-closed": "true",
            "producer-epoch": "0",
            "producer-seq": "1",
        }


async def test_a_duplicate_with_close_does_not_claim_that_the_stream_is_closed(client: Client) -> None:
    await client.put("p", OCTETS)
    await produce(client, "p", b"AB", 0, 0)
    answer = await produce(client, "p", b"AB", 0, 0, stream_closed="true")
    assert answer.status == 204
    assert "stream-closed" not in answer.headers
    assert "stream-closed" not in (await client.head("p")).headers


async def test_a_retry_with_stream_seq_is_a_duplicate_and_a_regression_a_conflict(client: Client) -> None:
    await client.put("p", OCTETS)
    assert (await produce(client, "p", b"AB", 0, 0, stream_seq="b")).status == 200
    assert (await produce(client, "p", b"AB", 0, 0, stream_seq="b")).status == 204
    assert (await produce(client, "p", b"CD", 0, 1, stream_seq="a")).status == 409
    assert (await produce(client, "p", b"CD", 0, 1, stream_seq="c")).status == 200
    assert (await client.post("p", b"x", OCTETS, stream_seq="")).status == 400
    assert (await client.post("p", b"x", OCTETS, stream_seq="\xe4")).status == 204
    assert (await client.post("p", b"x", OCTETS, stream_seq="z")).status == 409


async def test_an_append_needs_a_body_and_its_type(client: Client) -> None:
    await client.put("x", TEXT)
    assert (await client.post("x", b"", TEXT)).status == 400
    assert (await client.post("x", b"a")).status == 400
    assert (await client.post("x", b"a", "text/html")).status == 409
    assert (await client.post("x", b"a", "TEXT/PLAIN; charset=x")).status == 204
    assert (await client.post("missing", b"a", TEXT)).status == 404
    assert (await client.post("missing", b"", stream_closed="true")).status == 404
    assert (await client.post("x", b"", "nonsense", stream_closed="true")).status == 204


async def test_vendor_json_is_bytes(client: Client) -> None:
    await client.put("x", "application/vnd.x+json")
    assert (await client.post("x", b"[1,", "application/vnd.x+json")).status == 204
    assert (await client.get("x")).body == b"[1,"


async def test_parallel_appends_get_offsets_of_their_own(client: Client) -> None:
    await client.put("x", TEXT)
    offsets: list[str] = []

    async def post() -> None:
        offsets.append((await client.post("x", b"abc", TEXT)).next_offset)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(post)
    assert sorted(offsets) == [offset(3 * count) for count in range(1, 51)]


async def test_a_request_that_overtook_its_predecessor_waits_for_it(client: Client) -> None:
    await client.put("p", OCTETS)
    statuses: dict[int, int] = {}

    async def send(seq: int) -> None:
        statuses[seq] = (await produce(client, "p", b"%d" % seq, 0, seq)).status

    async with anyio.create_task_group() as group:
        for seq in (3, 2, 1):
            group.start_soon(send, seq)
        await anyio.wait_all_tasks_blocked()
        assert not statuses
        group.start_soon(send, 0)

    assert statuses == {0: 200, 1: 200, 2: 200, 3: 200}
    assert (await client.get("p")).body == b"0123"


async def test_a_predecessor_that_is_stored_while_a_refusal_is_on_its_way_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a batch of a store with a thread of its own: its results come together."""
    monkeypatch.setattr(arrivals, "GAP_PATIENCE", 1000.0)
    await client.put("p", OCTETS)
    store = client.app.store
    append = store.append

    async def append_late(r: Any, now: float) -> Any:
        result = await append(r, now)
        monkeypatch.setattr(store, "append", append)
        assert (await produce(client, "p", b"first", 0, 0)).status == 200
        return result

    monkeypatch.setattr(store, "append", append_late)

    assert (await produce(client, "p", b"second", 0, 1)).status == 200
    assert (await client.get("p")).body == b"firstsecond"
    assert not client.app.arrivals._moved


async def test_a_request_waits_as_long_as_its_predecessor_uploads(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "GAP_PATIENCE", 0.0)
    await client.put("p", OCTETS)
    headers = {"content-type": OCTETS, "producer-id": "w1", "producer-epoch": "0", "transfer-encoding": "chunked"}
    answers: list[Answer] = []

    async def send_second() -> None:
        answers.append(await produce(client, "p", b"second", 0, 1))

    async with connect(client.app, client.scope("POST", "p", {**headers, "producer-seq": "0"})) as first:
        first.send_body(b"fir", more=True)
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as group:
            group.start_soon(send_second)
            await anyio.wait_all_tasks_blocked()
            assert not answers
            first.send_body(b"st")
            assert await first.head() == 200
            await first.rest()
    assert answers[0].status == 200
    assert (await client.get("p")).body == b"firstsecond"


async def test_a_gap_stays_a_gap_when_the_predecessor_leaves(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "GAP_PATIENCE", 0.0)
    await client.put("p", OCTETS)
    headers = {"content-type": OCTETS, "producer-id": "w1", "producer-epoch": "0", "transfer-encoding": "chunked"}
    answers: list[Answer] = []

    async def send_second() -> None:
        answers.append(await produce(client, "p", b"second", 0, 1))

    async with connect(client.app, client.scope("POST", "p", {**headers, "producer-seq": "0"})) as first:
        first.send_body(b"fir", more=True)
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as group:
            group.start_soon(send_second)
            await anyio.wait_all_tasks_blocked()
            assert not answers
            first.disconnect()
    assert answers[0].status == 409
    assert answers[0].headers["producer-expected-seq"] == "0"
    assert not client.app.arrivals._uploading
    assert not client.app.arrivals._moved


async def test_a_large_producer_batch_is_stored_once(client: Client) -> None:
    await client.put("p", OCTETS)
    body = bytes(200_000)
    assert (await produce(client, "p", body, 0, 0)).status == 200
    assert (await produce(client, "p", body, 0, 0)).status == 204
    assert (await client.head("p")).next_offset == offset(200_000)


# --- DELETE


async def test_delete_is_for_good_and_a_new_stream_is_new(client: Client) -> None:
    await client.put("x", JSON, b"[1,2]")
    await produce(client, "x", b"3", 4, 0, JSON, stream_seq="z")
    etag = (await client.get("x")).headers["etag"]
    assert (await client.delete("x")).status == 204
    for answer in [
        await client.delete("x"),
        await client.get("x"),
        await client.head("x"),
        await client.post("x", b"1", JSON),
    ]:
        assert answer.status == 404

    assert (await client.put("x", JSON, b"[4,5,6]")).status == 201
    assert (await client.get("x", if_none_match=etag)).body == b"[4,5,6]"
    assert (await client.get("x")).headers["etag"] != etag
    assert (await produce(client, "x", b"7", 0, 0, JSON, stream_seq="a")).status == 200


# --- expiry


async def test_an_idle_stream_expires_and_its_path_is_free(client: Client, clock: Clock) -> None:
    await client.put("x", TEXT, b"old", stream_ttl="10")
    clock.now += 9.9
    assert (await client.head("x")).status == 200
    clock.now += 0.1
    for answer in [
        await client.head("x"),
        await client.get("x"),
        await client.post("x", b"a", TEXT),
        await client.delete("x"),
    ]:
        assert answer.status == 404
    assert (await client.put("x", JSON)).status == 201


@pytest.mark.parametrize(
    ("method", "target", "body", "headers"),
    [
        ("GET", "x", b"", {}),
        ("GET", "x?offset=now", b"", {}),
        ("GET", "x?offset=-1&live=long-poll", b"", {}),
        ("GET", "x", b"", {"if-none-match": "*"}),
        ("POST", "x", b"a", {"content-type": TEXT}),
        ("POST", "x", b"a", {"content-type": TEXT, "producer-id": "p", "producer-epoch": "0", "producer-seq": "0"}),
        ("POST", "x", b"", {"stream-closed": "true"}),
    ],
)
async def test_reads_and_writes_renew_a_ttl(
    client: Client, clock: Clock, method: str, target: str, body: bytes, headers: dict[str, str]
) -> None:
    await client.put("x", TEXT, b"data", stream_ttl="10")
    await client.call(
        "POST", "x", b"first", {"content-type": TEXT, "producer-id": "p", "producer-epoch": "0", "producer-seq": "0"}
    )
    clock.now += 8
    assert (await client.call(method, target, body, headers)).status < 400
    clock.now += 8
    assert (await client.head("x")).status == 200


@pytest.mark.parametrize(
    ("method", "target", "body", "headers"),
    [
        ("HEAD", "x", b"", {}),
        ("OPTIONS", "x", b"", {}),
        ("PUT", "x", b"", {"content-type": TEXT, "stream-ttl": "10"}),
        ("PUT", "x", b"", {"content-type": JSON}),
        ("GET", "x?offset=bad", b"", {}),
        ("GET", f"x?offset={offset(99)}", b"", {}),
        ("POST", "x", b"a", {"content-type": JSON}),
        ("POST", "x", b"", {}),
    ],
)
async def test_other_requests_do_not(
    client: Client, clock: Clock, method: str, target: str, body: bytes, headers: dict[str, str]
) -> None:
    await client.put("x", TEXT, b"data", stream_ttl="10")
    clock.now += 8
    await client.call(method, target, body, headers)
    clock.now += 8
    assert (await client.head("x")).status == 404


async def test_an_expiry_time_is_never_renewed(client: Client, clock: Clock) -> None:
    await client.put("x", TEXT, stream_expires_at="2026-09-01T12:00:10Z")
    clock.now += 9
    assert (await client.get("x")).status == 200
    assert (await client.post("x", b"a", TEXT)).status == 204
    clock.now += 1
    assert (await client.get("x")).status == 404
