"""Forks over HTTP (server 13; protocol 4.2, 5.7-9, 8-18 to 8-20, appendix D.8)."""

import random
from typing import Any

import anyio
import pytest

from .driver import Answer, Client, Clock, make_client, offset
from .test_sse import control, data, read_sse

pytestmark = pytest.mark.anyio
TEXT, JSON, OCTETS = "text/plain", "application/json", "application/octet-stream"
ROOT = "/v1/stream/"


async def fork(
    client: Client, new: str, source: str, at: int | None = None, sub: int | None = None, **more: Any
) -> Answer:
    """Fork a stream, at a position if one is given."""
    headers = {"stream_forked_from": ROOT + source}
    if at is not None:
        headers["stream_fork_offset"] = offset(at)
    if sub is not None:
        headers["stream_fork_sub_offset"] = str(sub)
    return await client.put(new, more.pop("content_type", None), more.pop("body", b""), **headers, **more)


async def put_log(client: Client) -> None:
    """The stream of appendix D.1."""
    await client.put("demo/log", JSON, stream_ttl="3600")
    await client.post("demo/log", b'[{"n":1},[2,3],"x"]', JSON)
    await client.post("demo/log", b'{"n": 4}', JSON)
    await client.post("demo/log", b"[[5,6]]", JSON)


async def test_the_worked_example(client: Client) -> None:
    """Appendix D.8, row by row."""
    await put_log(client)

    made = await fork(client, "demo/alt", "demo/log", 0, 2)
    assert made.status == 201
    assert made.headers["location"] == "http://s.example/v1/stream/demo/alt"
    assert made.headers["content-type"] == JSON
    assert made.next_offset == offset(14)
    assert (await client.head("demo/alt")).headers["stream-ttl"] == "3600"
    first = await client.get("demo/alt?offset=-1")
    assert (first.status, first.body, first.next_offset) == (200, b'[{"n":1},[2,3]]', offset(14))
    assert first.headers["stream-up-to-date"] == "true"
    posted = await client.post("demo/alt", b'{"n":9}', JSON)
    assert (posted.status, posted.next_offset) == (204, offset(22))
    assert (await client.get("demo/alt?offset=-1")).body == b'[{"n":1},[2,3],{"n":9}]'

    again = await fork(client, "demo/alt", "demo/log", 0, 2)
    assert (again.status, again.next_offset) == (200, offset(22))
    assert "location" not in again.headers
    assert (await fork(client, "demo/alt", "demo/log", 18, 2)).status == 409
    assert (await fork(client, "demo/b", "demo/log", 0, 4)).status == 400
    whole = await fork(client, "demo/b", "demo/log")
    assert (whole.status, whole.next_offset) == (201, offset(32))
    assert (await fork(client, "demo/c", "demo/log", content_type=TEXT)).status == 409
    assert (await fork(client, "demo/c", "none")).status == 404

    assert (await client.delete("demo/log")).status == 204
    for answer in (
        await client.get("demo/log"),
        await client.head("demo/log"),
        await client.post("demo/log", b"1", JSON),
        await client.post("demo/log", stream_closed="true"),
        await client.post("demo/log", b"1", JSON, producer_id="p", producer_epoch="0", producer_seq="0"),
        await client.delete("demo/log"),
    ):
        assert answer.status == 410
    assert (await client.put("demo/log", JSON, stream_ttl="3600")).status == 409
    assert (await fork(client, "demo/c", "demo/log")).status == 409
    assert len((await client.get("demo/b?offset=-1")).json()) == 5
    assert (await client.delete("demo/alt")).status == 204
    assert (await client.get("demo/log")).status == 410
    assert (await client.delete("demo/b")).status == 204
    assert (await client.get("demo/log")).status == 404


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"stream_fork_offset": offset(0)}, "need Stream-Forked-From"),
        ({"stream_fork_sub_offset": "0"}, "need Stream-Forked-From"),
        ({"stream_forked_from": ""}, "URL path"),
        ({"stream_forked_from": "v1/stream/source"}, "URL path"),
        ({"stream_forked_from": "http://s.example/v1/stream/source"}, "URL path"),
        ({"stream_forked_from": "/v1/stream/../source"}, "URL path"),
        ({"stream_forked_from": "/v1/stream/%00"}, "URL path"),
        ({"stream_fork_offset": "-1"}, "none of this server's offsets"),
        ({"stream_fork_offset": "now"}, "none of this server's offsets"),
        ({"stream_fork_offset": ""}, "none of this server's offsets"),
        ({"stream_fork_offset": "0_0"}, "none of this server's offsets"),
        ({"stream_fork_offset": "3"}, "none of this server's offsets"),
        ({"stream_fork_offset": "9999999999999999_9999999999999999"}, "beyond the end"),
        ({"stream_fork_offset": offset(4)}, "beyond the end"),
        ({"stream_fork_sub_offset": ""}, "whole number"),
        ({"stream_fork_sub_offset": "01"}, "whole number"),
        ({"stream_fork_sub_offset": "-1"}, "whole number"),
        ({"stream_fork_sub_offset": "1.0"}, "whole number"),
        ({"stream_fork_sub_offset": "9007199254740992"}, "whole number"),
        ({"stream_fork_sub_offset": "1"}, "greater than the rest of the append"),
        ({"stream_fork_offset": offset(1), "stream_fork_sub_offset": "3"}, "greater than the rest of the append"),
    ],
)
async def test_malformed_and_impossible_forks_are_400(client: Client, headers: dict[str, str], words: str) -> None:
    await client.put("source", TEXT, b"abc")
    if "stream_forked_from" not in headers and "need" not in words:
        headers = {"stream_forked_from": ROOT + "source", **headers}
    answer = await client.put("x", None, b"", **headers)
    assert answer.status == 400
    assert words in answer.text
    assert (await client.head("x")).status == 404
    assert (await client.delete("source")).status == 204
    assert (await client.head("source")).status == 404, "a refused fork holds its source"


async def test_a_misaligned_fork_of_json_is_400(client: Client) -> None:
    await put_log(client)
    answer = await fork(client, "x", "demo/log", 5)
    assert (answer.status, answer.text) == (400, "the Stream-Fork-Offset lies inside a message\n")


async def test_the_source_is_found_however_its_path_is_written(client: Client) -> None:
    await client.put("path", TEXT, b"abc")
    assert (await client.put("a", None, stream_forked_from="/v1/stream/%70ath")).status == 201
    assert (await client.put("a", None, stream_forked_from="/v1/stream/path")).status == 200
    assert (await client.put("b", None, stream_forked_from="/v1%2Fstream/path")).status == 404
    assert (await client.put("b", None, stream_forked_from="/v1/stream/__ds/x")).status == 404


async def test_forks_below_a_mount_name_the_whole_path() -> None:
    client = make_client()
    for path, headers in (
        ("/app/v1/stream/source", {"content-type": TEXT}),
        ("/app/v1/stream/x", {"stream-forked-from": "/app/v1/stream/source"}),
    ):
        answer = await client.call("PUT", path, b"", headers, root_path="/app")
        assert answer.status == 201


async def test_a_body_of_an_inherited_type_is_read_as_that_type(client: Client) -> None:
    await put_log(client)
    await client.put("text", TEXT, b"abc")
    assert (await fork(client, "a", "demo/log", 18, body=b'[{"n": 7}, 8]')).next_offset == offset(28)
    assert (await client.get("a")).json() == [{"n": 1}, [2, 3], "x", {"n": 7}, 8]
    assert (await fork(client, "b", "demo/log", 18, body=b"[1")).status == 400
    assert (await fork(client, "b", "demo/log", 18, body=b"[1", content_type=JSON)).status == 400
    assert (await client.head("b")).status == 404
    assert (await fork(client, "b", "text", 2, body=b"[1")).status == 201
    assert (await client.get("b")).body == b"ab[1"
    assert (await fork(client, "c", "text", 0, 2, body=b"!", content_type="TEXT/plain;x=1")).status == 201
    answer = await client.get("c")
    assert (answer.body, answer.headers["content-type"]) == (b"ab!", "TEXT/plain;x=1")


async def test_repetition_is_recognised_though_it_left_everything_to_be_inherited(client: Client) -> None:
    """The reference servers answer 409 to the second of two identical requests."""
    await put_log(client)
    assert (await fork(client, "x", "demo/log")).status == 201
    await client.post("demo/log", b"[7]", JSON)
    assert (await fork(client, "x", "demo/log", body=b"[8")).status == 200
    assert (await fork(client, "x", "demo/log", 32, 0)).status == 200
    assert (await fork(client, "x", "demo/log", 26)).status == 409
    assert (await fork(client, "x", "demo/log", stream_ttl="60")).status == 409
    assert (await fork(client, "x", "demo/log", stream_closed="true")).status == 409
    assert (await client.put("x", JSON, stream_ttl="3600")).status == 409
    await client.post("x", stream_closed="true")
    assert (await fork(client, "x", "demo/log")).status == 409
    assert (await fork(client, "x", "demo/log", stream_closed="True")).status == 200


async def test_a_fork_may_be_born_closed_and_one_of_a_closed_stream_is_open(client: Client) -> None:
    await client.put("source", TEXT, b"abc", stream_closed="true")
    closed = await fork(client, "closed", "source", 2, stream_closed="true", body=b"!")
    assert (closed.status, closed.headers["stream-closed"]) == (201, "true")
    answer = await client.get("closed")
    assert (answer.body, answer.headers["stream-closed"]) == (b"ab!", "true")
    opened = await fork(client, "open", "source")
    assert "stream-closed" not in opened.headers
    answer = await client.get("open")
    assert answer.body == b"abc"
    assert "stream-closed" not in answer.headers
    assert (await client.post("open", b"d", TEXT)).status == 204


async def test_no_answer_tells_of_the_fork(client: Client) -> None:
    await client.put("source", TEXT, b"abc")
    answers = [await fork(client, "x", "source", 1, 1), await fork(client, "x", "source", 1, 1)]
    answers += [await client.get("x"), await client.head("x"), await client.post("x", b"d", TEXT)]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("stream-fork")]
        assert "Stream-Forked-From" in answer.headers["access-control-allow-headers"]


async def test_a_page_spans_generations_and_ends_where_appends_do() -> None:
    client = make_client()
    letters = [bytes([code]) * 100_000 for code in b"abcd"]
    await client.put("g0", OCTETS, letters[0])
    for number in (1, 2, 3):
        made = await fork(client, f"g{number}", f"g{number - 1}", 100_000 * number - 40_000, body=letters[number])
        assert made.status == 201
    content = letters[0][:60_000] + b"".join(letters[1:])
    assert (await client.get("g3")).body == content
    ends, body, at = [], b"", offset(0)
    while at != offset(len(content)):
        page = await client.get(f"g3?offset={at}", prefer="max-page-bytes=170000")
        body, at = body + page.body, page.next_offset
        ends.append(int(at[17:]))
    assert body == content
    assert ends == [160_000, 260_000, 360_000]
    middle = await client.get(f"g3?offset={offset(59_999)}", prefer="max-page-bytes=131072")
    assert middle.body == b"a" + b"b" * 100_000


async def test_offsets_of_the_common_prefix_are_good_in_both(client: Client) -> None:
    await client.put("source", TEXT, b"one.")
    middle = (await client.post("source", b"two.", TEXT)).next_offset
    end = (await client.post("source", b"three.", TEXT)).next_offset
    await client.put("x", None, b"3.", stream_forked_from=ROOT + "source", stream_fork_offset=middle)
    assert (await client.get(f"x?offset={offset(4)}")).body == b"two.3."
    assert (await client.get(f"source?offset={offset(4)}")).body == b"two.three."
    assert (await client.get(f"x?offset={middle}")).body == b"3."
    assert (await client.get(f"x?offset={end}")).status == 400


async def test_entity_tags_differ_between_source_and_fork(client: Client) -> None:
    await client.put("source", TEXT, b"abc")
    await fork(client, "x", "source")
    tags = [(await client.get(f"{name}?offset=-1")).headers["etag"] for name in ("source", "x")]
    assert tags[0] != tags[1]
    assert (await client.get("x?offset=-1", if_none_match=tags[1])).status == 304
    assert (await client.get("x?offset=-1", if_none_match=tags[0])).status == 200
    await client.post("source", b"d", TEXT)
    assert (await client.get("x?offset=-1", if_none_match=tags[1])).status == 304
    await client.delete("x")
    await fork(client, "x", "source", 3)
    assert (await client.get("x?offset=-1", if_none_match=tags[1])).status == 200


async def test_producers_and_stream_seq_begin_anew(client: Client) -> None:
    stamp = {"producer_id": "p", "producer_epoch": "4"}
    await client.put("source", TEXT)
    await client.post("source", b"a", TEXT, **stamp, producer_seq="0", stream_seq="9")
    await fork(client, "x", "source")
    gap = await client.post("x", b"b", TEXT, **stamp, producer_seq="1")
    assert (gap.status, gap.headers["producer-expected-seq"]) == (409, "0")
    assert (await client.post("x", b"b", TEXT, **stamp, producer_seq="0", stream_seq="1")).status == 200
    assert (await client.post("source", b"c", TEXT, **stamp, producer_seq="1")).status == 200


async def test_long_poll_answers_inherited_data_and_waits_for_own(client: Client) -> None:
    await client.put("source", TEXT, b"abc")
    await fork(client, "x", "source", 2)
    inherited = await client.get("x?offset=-1&live=long-poll")
    assert (inherited.status, inherited.body, inherited.next_offset) == (200, b"ab", offset(2))
    async with client.open(f"x?offset={offset(2)}&live=long-poll") as poll:
        await anyio.wait_all_tasks_blocked()
        await client.post("source", b"d", TEXT, stream_closed="true")
        await client.delete("source")
        await anyio.wait_all_tasks_blocked()
        assert not poll.finished.is_set()
        await client.post("x", b"C", TEXT)
        assert await poll.head() == 200
        assert await poll.rest() == b"C"


async def test_sse_goes_from_inherited_data_to_own(client: Client) -> None:
    await put_log(client)
    await fork(client, "x", "demo/log", 0, 2)
    await client.post("x", b'{"n":9}', JSON)
    async with client.open("x?offset=-1&live=sse") as events:
        await events.head()
        assert await events.piece() == data(b'[{"n":1},[2,3],{"n":9}]') + control(22)
        await anyio.wait_all_tasks_blocked()
        await client.post("demo/log", b"[0]", JSON)
        await anyio.wait_all_tasks_blocked()
        await client.post("x", b"[10]", JSON, stream_closed="true")
        assert await events.piece() == data(b"[10]") + control(25, cursor=None, closed=True)
        assert await events.piece() == b""


async def test_a_character_that_the_fork_divides_is_whole_when_the_fork_completes_it(client: Client) -> None:
    await client.put("source", TEXT, "aä".encode())
    await fork(client, "x", "source", 2, body=b"\xa4!", stream_closed="true")
    assert await read_sse(client, "x?offset=-1&live=sse") == data("aä!".encode()) + control(4, cursor=None, closed=True)


@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_soft_deletion_ends_the_waits_of_the_source(client: Client, live: str) -> None:
    await client.put("source", TEXT, b"abc")
    await fork(client, "x", "source")
    async with client.open(f"source?offset=now&live={live}") as reader:
        if live == "sse":
            await reader.head()
            assert await reader.piece() == control(3)
        await anyio.wait_all_tasks_blocked()
        assert (await client.delete("source")).status == 204
        if live == "sse":
            assert await reader.rest() == b""
        else:
            assert await reader.head() == 410


@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_expiry_with_forks_ends_the_waits_with_410(client: Client, clock: Clock, live: str) -> None:
    await client.put("source", TEXT, b"abc", stream_expires_at="2026-09-01T12:00:00.05Z")
    await fork(client, "x", "source", stream_ttl="1000")
    async with client.open(f"source?offset=now&live={live}") as reader:
        if live == "sse":
            await reader.head()
            await reader.piece()
        clock.now += 0.05
        if live == "sse":
            assert await reader.rest() == b""
        else:
            assert await reader.head() == 410
    assert (await client.get("source")).status == 410
    assert (await client.get("x")).body == b"abc"


async def test_an_expired_source_is_gone_until_its_forks_are(client: Client, clock: Clock) -> None:
    await client.put("source", TEXT, b"abc", stream_ttl="10")
    await fork(client, "x", "source", stream_ttl="30")
    clock.now += 10
    for answer in (await client.head("source"), await client.get("source"), await client.delete("source")):
        assert answer.status == 410
    assert (await client.put("source", TEXT, stream_ttl="10")).status == 409
    assert (await fork(client, "y", "source")).status == 409
    clock.now += 20
    assert (await client.get("x")).status == 404
    assert (await client.get("source")).status == 404
    assert (await client.put("source", TEXT, stream_ttl="10")).status == 201


async def test_reading_a_fork_renews_the_fork_alone(client: Client, clock: Clock) -> None:
    await client.put("source", TEXT, b"abc", stream_ttl="10")
    await fork(client, "x", "source")
    for _ in range(3):
        clock.now += 4
        assert (await client.get("x")).status == 200
    assert (await client.head("source")).status == 410
    clock.now += 9
    assert (await client.head("x")).headers["stream-ttl"] == "10"


async def test_a_fork_of_an_expired_stream_is_404(client: Client, clock: Clock) -> None:
    await client.put("source", TEXT, b"abc", stream_ttl="10")
    clock.now += 10
    assert (await fork(client, "x", "source")).status == 404


async def test_a_chain_of_more_than_64_ancestors_is_409(client: Client) -> None:
    await client.put("0", TEXT, b"x")
    for number in range(64):
        assert (await fork(client, f"{number + 1}", f"{number}")).status == 201
    answer = await fork(client, "65", "64")
    assert (answer.status, answer.text) == (409, "a stream can have at most 64 ancestors\n")
    assert (await client.get("64")).body == b"x"


async def test_forks_and_deletions_in_any_order_leave_nothing_behind() -> None:
    """Chains are deleted in random order; what is left reads on, and in the end the store is empty."""
    rng = random.Random(5)
    for _ in range(20):
        client = make_client()
        await client.put("0", TEXT, b"0")
        contents = {"0": b"0"}
        for number in range(1, 8):
            source = rng.choice(list(contents))
            at = rng.randint(0, len(contents[source]))
            await fork(client, f"{number}", source, at, body=b"%d" % number)
            contents[f"{number}"] = contents[source][:at] + b"%d" % number
        order = rng.sample(list(contents), len(contents))
        while order:
            assert (await client.delete(order.pop())).status == 204
            for name in order:
                assert (await client.get(name)).body == contents[name]
        for name in contents:
            assert (await client.head(name)).status == 404
        assert repr(client.app.store) == "<MemoryStore with 0 streams>"
