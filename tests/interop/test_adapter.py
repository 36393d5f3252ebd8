"""The conformance adapter as a process, spoken to by its protocol, before the Node reference server and before ours.

One test stands for one row of the client specification's section 15, or of 5 to 9 as they show through the adapter.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from durable_streams.server import Server
from tests.conformance.runner import Runner, adapter

JSON, TEXT, BYTES, LINES = "application/json", "text/plain", "application/octet-stream", "application/x-ndjson"
TYPES = [JSON, TEXT, BYTES, LINES]
LIVE = [False, True, "long-poll", "sse"]
FOLLOWING = LIVE[1:]

Result = dict[str, Any]


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def process(request: pytest.FixtureRequest) -> Iterator[Runner]:
    with adapter(request.param) as runner:
        yield runner


@pytest.fixture(scope="module")
def our_server() -> Iterator[str]:
    with Server(long_poll_timeout=0.5) as server:
        yield server.base_url


@pytest.fixture(params=["node", "ours"])
def server_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("node_server" if request.param == "node" else "our_server")
    return url


@pytest.fixture
def run(process: Runner, server_url: str) -> Runner:
    assert process("init", serverUrl=server_url)["success"]
    return process


@pytest.fixture
def act(server_url: str, path: str) -> Callable[..., None]:
    """Does something to the stream behind the adapter's back, as the runner does."""

    def request(method: str, body: bytes = b"", **headers: str) -> None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        made = urllib.request.Request(server_url + path, data=body or None, method=method, headers=names)
        urllib.request.urlopen(made).close()

    return request


def messages(content_type: str, *texts: str) -> list[str]:
    """Payloads of a stream of this type."""
    return [json.dumps(text) for text in texts] if content_type == JSON else list(texts)


def said(result: Result) -> str:
    """All that a read brought, put together."""
    assert result["success"], result
    if result["chunks"] and result["chunks"][0]["data"].startswith("["):
        return "".join(item for chunk in result["chunks"] for item in json.loads(chunk["data"]))
    return "".join(chunk["data"] for chunk in result["chunks"])


def refused(result: Result, code: str, status: int | None = None) -> None:
    """Check a failure's form, code and status."""
    assert (result["type"], result["success"]) == ("error", False)
    assert result["commandType"]
    assert result["message"]
    assert (result["errorCode"], result.get("status")) == (code, status)


# -- Life of a stream --------------------------------------------------------------------------------------


def test_creation_tells_new_from_existing_from_other(run: Runner, path: str) -> None:
    assert [run("create", path=path, contentType=TEXT)["status"] for _ in range(2)] == [201, 200]
    refused(run("create", path=path, contentType=JSON), "CONFLICT", 409)
    refused(run("create", path=path, contentType=TEXT, ttlSeconds=60), "CONFLICT", 409)


def test_lifetimes_are_seen_by_head(run: Runner, path: str) -> None:
    run("create", path=path + "-ttl", contentType=TEXT, ttlSeconds=3600)
    run("create", path=path + "-time", contentType=TEXT, expiresAt="2099-01-02T03:04:05Z")

    assert run("head", path=path + "-ttl")["ttlSeconds"] == 3600
    assert run("head", path=path + "-time")["expiresAt"].startswith("2099-01-02T03:04:05")
    both = run("create", path=path, ttlSeconds=1, expiresAt="2099-01-02T03:04:05Z")
    assert (both["success"], both["status"]) == (False, 400)


def test_a_stream_can_be_created_closed_with_its_content(run: Runner, path: str) -> None:
    created = run("create", path=path, contentType=TEXT, data="all", closed=True)
    head = run("head", path=path)
    read = run("read", path=path)

    assert created["status"] == 201
    assert (head["streamClosed"], head["contentType"], head["offset"]) == (True, TEXT, created["offset"])
    assert (said(read), read["streamClosed"], read["upToDate"]) == ("all", True, True)


@pytest.mark.parametrize("command", ["connect", "head", "read", "append", "delete", "close"])
def test_a_missing_stream_is_named_by_each_command(run: Runner, path: str, command: str) -> None:
    result = run(command, path=path, data="x") if command in ("append", "close") else run(command, path=path)

    refused(result, "NOT_FOUND", 404)
    assert path in result["message"]


def test_a_deleted_stream_is_gone_for_every_command(run: Runner, path: str) -> None:
    run("create", path=path, contentType=TEXT)
    assert run("delete", path=path)["status"] == 200

    for command in ("head", "connect", "read", "delete"):
        refused(run(command, path=path), "NOT_FOUND", 404)
    assert run("create", path=path, contentType=JSON)["status"] == 201


def test_connect_learns_the_content_type_that_appends_use(run: Runner, path: str, server_url: str) -> None:
    run("create", path=path, contentType=JSON)
    run("init", serverUrl=server_url)
    refused(run("append", path=path, data="1"), "CONFLICT", 409)

    assert run("connect", path=path)["status"] == 200
    assert run("append", path=path, data="1")["success"]


def test_closing_is_idempotent_without_data_and_final(run: Runner, path: str) -> None:
    run("create", path=path, contentType=TEXT)
    tail = run("append", path=path, data="a")["offset"]
    closes = [run("close", path=path) for _ in range(2)]

    assert [close["finalOffset"] for close in closes] == [tail, tail]
    refused(run("append", path=path, data="b"), "STREAM_CLOSED", 409)
    refused(run("append", path=path, data="b", seq=1), "STREAM_CLOSED", 409)
    refused(run("close", path=path, data="b", contentType=TEXT), "STREAM_CLOSED", 409)
    assert run("head", path=path)["streamClosed"] is True


def test_closing_with_data_stores_it_last(run: Runner, path: str) -> None:
    run("create", path=path, contentType=JSON)
    run("append", path=path, data='"a"')
    final = run("close", path=path, data='["b"]', contentType=JSON)["finalOffset"]
    read = run("read", path=path)

    assert [chunk["data"] for chunk in read["chunks"]] == ['["a",["b"]]']
    assert (read["offset"], read["streamClosed"]) == (final, True)


# -- Appends -----------------------------------------------------------------------------------------------


def test_an_append_reports_the_offset_after_it(run: Runner, path: str) -> None:
    run("create", path=path, contentType=TEXT)
    results = [run("append", path=path, data=text) for text in ("a", "b")]

    assert [result["status"] for result in results] == [200, 200]
    assert results[0]["offset"] < results[1]["offset"] == run("head", path=path)["offset"]
    assert said(run("read", path=path, offset=results[0]["offset"])) == "b"


def test_sequence_numbers_must_rise_as_strings(run: Runner, path: str) -> None:
    run("create", path=path, contentType=TEXT)

    assert run("append", path=path, data="a", seq=2)["success"]
    refused(run("append", path=path, data="b", seq=2), "SEQUENCE_CONFLICT", 409)
    refused(run("append", path=path, data="b", seq=10), "SEQUENCE_CONFLICT", 409)
    assert run("append", path=path, data="b", seq=3)["success"]


def test_an_empty_append_is_refused(run: Runner, path: str) -> None:
    run("create", path=path, contentType=TEXT)

    result = run("append", path=path, data="")
    assert (result["success"], result["status"]) == (False, 400)


@pytest.mark.parametrize(
    "text", ["größer 🚀", "\u2028\u2029\x85", "a\r\nb\rc\n", " lead", "\ufeffbom", "\x00", "\\u0000"]
)
@pytest.mark.parametrize("content_type", TYPES)
def test_any_text_comes_back(run: Runner, path: str, content_type: str, text: str) -> None:
    run("create", path=path, contentType=content_type)
    (payload,) = messages(content_type, text)
    run("append", path=path, data=payload)

    for live in (False, "long-poll"):
        assert said(run("read", path=path, live=live, waitForUpToDate=True)) == text


@pytest.mark.parametrize("live", LIVE)
def test_json_values_keep_their_shape(run: Runner, path: str, live: bool | str) -> None:
    run("create", path=path, contentType=f"{JSON}; charset=utf-8")
    texts = ["null", "[]", "[[1,2]]", '{"a": {"b": []}}', "1234567890.5", '"é\u2028"', "false", "0"]
    for text in texts:
        assert run("append", path=path, data=text)["success"]
    read = run("read", path=path, live=live, waitForUpToDate=True)

    (chunk,) = read["chunks"]
    assert chunk["data"] == '[null,[],[[1,2]],{"a":{"b":[]}},1234567890.5,"é\u2028",false,0]'


# -- Reads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("live", LIVE)
def test_an_empty_stream_is_up_to_date(run: Runner, path: str, live: bool | str, content_type: str) -> None:
    tail = run("create", path=path, contentType=content_type)["offset"]
    for offset in (None, "-1", "now", tail):
        read = run("read", path=path, live=live, waitForUpToDate=True, **({"offset": offset} if offset else {}))
        assert (read["status"], read["chunks"], read["upToDate"], read["offset"]) == (200, [], True, tail)
        assert not read.get("streamClosed")


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("live", LIVE)
def test_a_closed_stream_ends_a_read_at_once(run: Runner, path: str, live: bool | str, content_type: str) -> None:
    run("create", path=path, contentType=content_type)
    (payload,) = messages(content_type, "a")
    middle = run("append", path=path, data=payload)["offset"]
    final = run("close", path=path)["finalOffset"]
    started = time.monotonic()
    for offset, text in (("-1", "a"), (middle, ""), ("now", "")):
        read = run("read", path=path, live=live, offset=offset, timeoutMs=20_000)
        assert (said(read), read["offset"], read["upToDate"], read["streamClosed"]) == (text, final, True, True)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("live", FOLLOWING)
def test_a_waiting_read_gets_what_is_appended_and_then_the_end(
    run: Runner, path: str, live: bool | str, content_type: str, act: Callable[..., None]
) -> None:
    run("create", path=path, contentType=content_type)
    first, second = (text.encode() for text in messages(content_type, "one", "two"))
    run.send({"type": "read", "path": path, "live": live, "timeoutMs": 20_000})
    act("POST", first, content_type=content_type)
    act("POST", second, content_type=content_type)
    act("POST", stream_closed="true")
    read = run.answer()

    assert (said(read), read["upToDate"], read["streamClosed"]) == ("onetwo", True, True)
    assert read["chunks"][-1]["offset"] == read["offset"] == run("head", path=path)["offset"]


@pytest.mark.parametrize("live", FOLLOWING)
def test_a_waiting_read_stops_at_its_number_of_chunks(
    run: Runner, path: str, live: bool | str, act: Callable[..., None]
) -> None:
    tail = run("create", path=path, contentType=TEXT)["offset"]
    run.send({"type": "read", "path": path, "live": live, "offset": tail, "maxChunks": 1, "timeoutMs": 20_000})
    act("POST", b"one", content_type=TEXT)

    assert said(run.answer()) == "one"


@pytest.mark.parametrize("live", [True, "long-poll"])
def test_a_stream_deleted_under_a_waiting_read_is_reported(
    run: Runner, path: str, live: bool | str, act: Callable[..., None]
) -> None:
    run("create", path=path, contentType=TEXT)
    run.send({"type": "read", "path": path, "live": live, "timeoutMs": 20_000})
    act("DELETE")

    refused(run.answer(), "NOT_FOUND", 404)


@pytest.mark.parametrize("live", FOLLOWING)
def test_a_read_that_times_out_brings_what_has_come(run: Runner, path: str, live: bool | str) -> None:
    run("create", path=path, contentType=JSON)
    tail = run("append", path=path, data='"a"')["offset"]
    read = run("read", path=path, live=live, timeoutMs=300)

    assert (said(read), read["status"], read["upToDate"], read["offset"]) == ("a", 200, True, tail)
    assert not read.get("streamClosed")


@pytest.mark.parametrize("live", LIVE)
@pytest.mark.parametrize("offset", ["not-an-offset", "a,b", "-2", "99999999999999999999_99999999999999999999x"])
def test_an_offset_that_is_none_is_refused(run: Runner, path: str, live: bool | str, offset: str) -> None:
    run("create", path=path, contentType=TEXT)

    refused(run("read", path=path, live=live, offset=offset), "INVALID_OFFSET", 400)


@pytest.mark.parametrize("content_type", [BYTES, "image/png", "application/x-protobuf"])
@pytest.mark.parametrize("live", LIVE)
def test_bytes_of_any_value_come_as_base64(run: Runner, path: str, live: bool | str, content_type: str) -> None:
    data = bytes(range(256))
    run("create", path=path, contentType=content_type)
    run("append", path=path, data=base64.b64encode(data).decode(), binary=True)
    (chunk,) = run("read", path=path, live=live, waitForUpToDate=True)["chunks"]

    assert chunk["binary"] is True
    assert base64.b64decode(chunk["data"]) == data


@pytest.mark.parametrize("live", [False, "long-poll", "sse"])
def test_a_character_cut_between_two_appends_comes_whole(run: Runner, path: str, live: bool | str) -> None:
    run("create", path=path, contentType=BYTES)
    for half in ("🚀".encode()[:2], "🚀".encode()[2:]):
        run("append", path=path, data=base64.b64encode(half).decode(), binary=True)
    (chunk,) = run("read", path=path, live=live, waitForUpToDate=True)["chunks"]

    assert chunk["data"] == "🚀"


@pytest.mark.parametrize("live", LIVE)
def test_reading_on_from_each_offset_brings_the_rest(run: Runner, path: str, live: bool | str) -> None:
    run("create", path=path, contentType=JSON)
    offsets = [run("append", path=path, data=json.dumps(str(number)))["offset"] for number in range(4)]

    for number, offset in enumerate(offsets, 1):
        read = run("read", path=path, offset=offset, live=live, waitForUpToDate=True)
        assert said(read) == "0123"[number:]
        assert read["offset"] == offsets[-1]


# -- Producers ---------------------------------------------------------------------------------------------


def test_raw_producer_appends_report_the_servers_decision(run: Runner, path: str) -> None:
    run("create", path=path, contentType=TEXT)

    def append(epoch: int, seq: int) -> Result:
        return run("append", path=path, data="x", producerId="p", producerEpoch=epoch, producerSeq=seq)

    first, second, again = append(0, 0), append(0, 1), append(0, 0)
    assert [(answer["status"], answer["duplicate"]) for answer in (first, second, again)] == [
        (200, False),
        (200, False),
        (204, True),
    ]
    gap, newer, stale = append(0, 7), append(2, 0), append(1, 0)
    refused(gap, "SEQUENCE_CONFLICT", 409)
    assert (gap["producerExpectedSeq"], gap["producerReceivedSeq"]) == (2, 7)
    assert (newer["status"], newer["producerEpoch"], newer["producerSeq"]) == (200, 2, 0)
    refused(stale, "CONFLICT", 403)
    assert stale["producerEpoch"] == 2
    assert append(3, 5)["status"] == 400
    assert said(run("read", path=path)) == "xxx"


def test_a_producer_goes_on_over_commands_and_again_after_detaching(run: Runner, path: str) -> None:
    run("create", path=path, contentType=JSON)
    mine = {"path": path, "producerId": "p", "epoch": 0}
    acks = [run("idempotent-append", **mine, autoClaim=False, data=json.dumps(str(n))) for n in range(3)]

    assert [ack["producerSeq"] for ack in acks] == [0, 1, 2]
    assert run("idempotent-detach", **mine)["success"]
    assert run("idempotent-append", **mine, autoClaim=False, data='"again"')["duplicate"] is True
    assert said(run("read", path=path)) == "012"
    assert not run("head", path=path).get("streamClosed")


@pytest.mark.parametrize("lanes", [1, 5])
def test_a_batch_of_a_producer_keeps_its_order(run: Runner, path: str, lanes: int) -> None:
    run("create", path=path, contentType=JSON)
    items = [json.dumps(str(number)) for number in range(10)]
    batch = {"path": path, "producerId": "p", "epoch": 0, "items": items, "maxInFlight": lanes}
    result = run("idempotent-append-batch", **batch, autoClaim=False)

    assert result["producerSeq"] == (0 if lanes == 1 else 9)
    assert said(run("read", path=path)) == "0123456789"


def test_a_fenced_producer_is_refused_and_one_that_claims_goes_on(run: Runner, path: str) -> None:
    run("create", path=path, contentType=TEXT)
    run("idempotent-append", path=path, producerId="p", epoch=5, autoClaim=False, data="a")
    stale = run("idempotent-append", path=path, producerId="p", epoch=3, autoClaim=False, data="b")
    claiming = run("idempotent-append", path=path, producerId="p", epoch=0, autoClaim=True, data="c")

    refused(stale, "CONFLICT", 403)
    assert stale["details"]["currentEpoch"] == 5
    assert claiming["success"]
    assert said(run("read", path=path)) == "ac"


@pytest.mark.parametrize("data", [None, '"end"'])
def test_a_producer_closes_its_stream_once(run: Runner, path: str, data: str | None) -> None:
    run("create", path=path, contentType=JSON)
    mine = {"path": path, "producerId": "p", "epoch": 0, "autoClaim": False}
    run("idempotent-append", **mine, data='"a"')
    closes = [run("idempotent-close", **mine, **({"data": data} if data else {})) for _ in range(2)]
    read = run("read", path=path)

    assert closes[0]["success"]
    assert closes[0]["finalOffset"] == closes[1]["finalOffset"] == read["offset"]
    assert (said(read), read["streamClosed"]) == ("aend" if data else "a", True)
    refused(run("idempotent-append", **(mine | {"producerId": "q"}), data='"b"'), "STREAM_CLOSED", 409)


def test_a_producer_learns_that_others_have_closed_its_stream(run: Runner, path: str, act: Callable[..., None]) -> None:
    run("create", path=path, contentType=TEXT)
    mine = {"path": path, "producerId": "p", "epoch": 0, "autoClaim": False}
    run("idempotent-append", **mine, data="a")
    act("POST", stream_closed="true")

    refused(run("idempotent-append", **mine, data="b"), "STREAM_CLOSED", 409)
    batch = run("idempotent-append-batch", **(mine | {"producerId": "q"}), items=["c"])
    refused(batch, "STREAM_CLOSED", 409)
    assert said(run("read", path=path)) == "a"


def test_a_producer_without_a_stream_reports_it(run: Runner, path: str) -> None:
    mine = {"path": path, "producerId": "p", "epoch": 0, "autoClaim": False}

    refused(run("idempotent-append", **mine, data="a"), "NOT_FOUND", 404)
    refused(run("idempotent-append-batch", **mine, items=["a"]), "NOT_FOUND", 404)
    refused(run("idempotent-close", **(mine | {"producerId": "q"})), "NOT_FOUND", 404)


# -- The runner's own --------------------------------------------------------------------------------------


def test_no_server_is_a_network_error(process: Runner, path: str) -> None:
    process("init", serverUrl="http://127.0.0.1:9", timeoutMs=400)

    refused(process("create", path=path), "NETWORK_ERROR")
    refused(process("append", path=path, data="x"), "NETWORK_ERROR")
    refused(process("head", path=path), "NETWORK_ERROR")
    process("init", serverUrl="http://127.0.0.1:9")
    read = process("read", path=path, timeoutMs=100)
    assert (read["status"], read["chunks"], read["offset"], read["upToDate"]) == (200, [], "-1", True)


def test_init_forgets_everything(run: Runner, path: str, server_url: str) -> None:
    run("create", path=path, contentType=JSON)
    run("set-dynamic-header", name="x-count", valueType="counter")
    run("idempotent-append", path=path, producerId="p", epoch=0, autoClaim=False, data="1")
    run("init", serverUrl=server_url)

    assert "headersSent" not in run("read", path=path)
    run("head", path=path)
    again = run("idempotent-append", path=path, producerId="p", epoch=0, autoClaim=False, data="1")
    assert (again["producerSeq"], again["duplicate"]) == (0, True)


@pytest.mark.parametrize("operation", ["append", "read", "roundtrip", "create", "throughput_append", "throughput_read"])
def test_each_benchmark_gives_its_figures(run: Runner, path: str, operation: str) -> None:
    if operation != "roundtrip":
        run("create", path=path)
        run("append", path=path, data="x" * 100)
    fields = {"size": 100, "count": 100, "concurrency": 4}
    result = run("benchmark", iterationId="i-1", operation={"op": operation, "path": path, **fields})

    assert result["iterationId"] == "i-1"
    assert int(result["durationNs"]) > 0
    assert isinstance(result["durationNs"], str)
    assert set(result["metrics"]) == {"bytesTransferred", "messagesProcessed", "opsPerSecond", "bytesPerSecond"}
