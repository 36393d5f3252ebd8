"""The conformance adapter answers each command once, in order, on both loops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from durable_streams.server import Server

from .runner import ADAPTER, Runner, adapter

PATH = "/v1/stream/adapter"


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def process(request: pytest.FixtureRequest) -> Iterator[Runner]:
    with adapter(request.param) as runner:
        yield runner


@pytest.fixture
def run(process: Runner) -> Iterator[Runner]:
    with Server(long_poll_timeout=1.0) as server:
        assert process("init", serverUrl=server.base_url)["success"]
        yield process


def test_the_file_can_be_executed() -> None:
    assert os.access(ADAPTER, os.X_OK)


def test_all_features_are_advertised(run: Runner) -> None:
    with Server() as server:
        features = run("init", serverUrl=server.base_url)["features"]

    assert len(features) == 9
    assert all(features.values())


def test_a_json_stream_from_creation_to_deletion(run: Runner) -> None:
    assert run("create", path=PATH, contentType="application/json", data='[{"n":0}]')["status"] == 201
    assert run("create", path=PATH, contentType="application/json")["status"] == 200
    assert run("append", path=PATH, data='{"text":"é\u2028"}')["success"]
    assert run("append", path=PATH, data="[1,2]")["success"]
    read = run("read", path=PATH)
    assert [chunk["data"] for chunk in read["chunks"]] == ['[{"n":0},{"text":"é\u2028"},[1,2]]']
    assert read["upToDate"] is True
    assert run("head", path=PATH)["offset"] == read["offset"]
    assert run("close", path=PATH, data='"end"', contentType="application/json")["finalOffset"] > read["offset"]
    closed = run("read", path=PATH, offset=read["offset"], live="sse")
    assert ([chunk["data"] for chunk in closed["chunks"]], closed["streamClosed"]) == (['["end"]'], True)
    assert run("append", path=PATH, data="1")["errorCode"] == "STREAM_CLOSED"
    assert run("delete", path=PATH)["success"]
    missing = run("read", path=PATH)
    assert (missing["errorCode"], missing["status"]) == ("NOT_FOUND", 404)
    assert PATH in missing["message"]


def test_bytes_that_are_no_text_come_as_base64(run: Runner) -> None:
    run("create", path=PATH)
    run("append", path=PATH, data="/wA=", binary=True)

    (chunk,) = run("read", path=PATH, live="long-poll", waitForUpToDate=True)["chunks"]
    assert (chunk["data"], chunk["binary"]) == ("/wA=", True)


@pytest.mark.parametrize("live", [True, "long-poll", "sse"])
def test_a_live_read_without_data_times_out_up_to_date(run: Runner, live: bool | str) -> None:
    tail = run("create", path=PATH, contentType="application/json")["offset"]
    read = run("read", path=PATH, offset="now", live=live, timeoutMs=200)

    assert (read["status"], read["chunks"], read["upToDate"], read["offset"]) == (200, [], True, tail)


def test_a_sequence_conflict_and_a_bad_offset_have_their_codes(run: Runner) -> None:
    run("create", path=PATH)
    assert run("append", path=PATH, data="a", seq=2)["success"]

    assert run("append", path=PATH, data="b", seq=1)["errorCode"] == "SEQUENCE_CONFLICT"
    assert run("read", path=PATH, offset="a,b")["errorCode"] == "INVALID_OFFSET"
    assert run("read", path=PATH, offset="nonsense")["errorCode"] == "INVALID_OFFSET"
    assert run("create", path=PATH, contentType="text/plain")["errorCode"] == "CONFLICT"


def test_raw_producer_appends_report_the_numbers(run: Runner) -> None:
    run("create", path=PATH)

    def append(epoch: int, seq: int) -> dict[str, Any]:
        return run("append", path=PATH, data="x", producerId="p", producerEpoch=epoch, producerSeq=seq)

    first, again, gap = append(0, 0), append(0, 0), append(0, 5)
    assert (first["status"], first["duplicate"], first["producerSeq"]) == (200, False, 0)
    assert (again["status"], again["duplicate"]) == (204, True)
    assert (gap["status"], gap["errorCode"]) == (409, "SEQUENCE_CONFLICT")
    assert (gap["producerExpectedSeq"], gap["producerReceivedSeq"]) == (1, 5)
    assert append(1, 0)["producerEpoch"] == 1
    stale = append(0, 1)
    assert (stale["status"], stale["errorCode"], stale["details"]["producerEpoch"]) == (403, "CONFLICT", 1)


def test_idempotent_commands(run: Runner) -> None:
    run("create", path=PATH, contentType="application/json")
    mine = {"path": PATH, "producerId": "p", "epoch": 0, "autoClaim": False}
    other = {"path": PATH, "producerId": "q", "autoClaim": False}

    assert [run("idempotent-append", **mine, data="1")["producerSeq"] for _ in range(2)] == [0, 1]
    assert run("idempotent-append-batch", **other, epoch=0, items=["2", "3", "4"])["producerSeq"] == 0
    assert run("idempotent-append-batch", **other, epoch=1, items=["5", "6"], maxInFlight=5)["producerSeq"] == 1
    assert run("idempotent-append-batch", **other, epoch=0, items=["9"])["status"] == 403
    assert run("idempotent-append-batch", **(other | {"autoClaim": True}), epoch=0, items=["7"])["success"]
    closes = [run("idempotent-close", **mine, data='"end"')["finalOffset"] for _ in range(2)]
    assert closes[0] == closes[1]
    assert run("idempotent-detach", path=PATH, producerId="p", epoch=0)["success"]
    assert run("read", path=PATH)["chunks"][0]["data"] == '[1,1,2,3,4,5,6,7,"end"]'
    refused = run("idempotent-append", **(mine | {"producerId": "late"}), data="1")
    assert refused["errorCode"] == "STREAM_CLOSED"


def test_dynamic_values_are_made_for_each_operation(run: Runner) -> None:
    run("create", path=PATH)
    run("set-dynamic-header", name="x-count", valueType="counter")
    run("set-dynamic-header", name="authorization", valueType="token", initialValue="Bearer t")
    run("set-dynamic-param", name="stamp", valueType="timestamp")
    sent = [run("append", path=PATH, data="a") for _ in range(2)]

    assert [result["headersSent"]["x-count"] for result in sent] == ["1", "2"]
    assert sent[0]["headersSent"]["authorization"] == "Bearer t"
    assert sent[0]["paramsSent"]["stamp"].isdecimal()
    run("clear-dynamic")
    assert "headersSent" not in run("append", path=PATH, data="a")


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ({"target": "retry-options", "maxRetries": -1}, "maxRetries"),
        ({"target": "retry-options", "initialDelayMs": 0}, "initialDelay"),
        ({"target": "retry-options", "initialDelayMs": 500, "maxDelayMs": 100}, "maxDelay"),
        ({"target": "retry-options", "multiplier": 0.5}, "multiplier"),
        ({"target": "idempotent-producer", "producerId": ""}, "producerId"),
        ({"target": "idempotent-producer", "epoch": -1}, "epoch"),
        ({"target": "idempotent-producer", "maxBatchBytes": 0}, "maxBatchBytes"),
        ({"target": "idempotent-producer", "maxBatchItems": 0}, "maxBatchItems"),
    ],
)
def test_bad_options_are_refused_by_name(run: Runner, target: dict[str, Any], name: str) -> None:
    result = run("validate", target=target)

    assert result["errorCode"] == "INVALID_ARGUMENT"
    assert name in result["message"]


@pytest.mark.parametrize("target", [{"target": "retry-options"}, {"target": "idempotent-producer", "epoch": 0}])
def test_good_options_are_accepted(run: Runner, target: dict[str, Any]) -> None:
    assert run("validate", target=target)["success"]


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "append", "size": 100},
        {"op": "read"},
        {"op": "create"},
        {"op": "roundtrip", "size": 100, "live": "sse", "contentType": "application/json"},
        {"op": "throughput_append", "count": 1000, "size": 100, "concurrency": 10},
        {"op": "throughput_read"},
    ],
)
def test_benchmarks_measure(run: Runner, operation: dict[str, Any]) -> None:
    if operation["op"] != "roundtrip":
        run("create", path=PATH)
    result = run("benchmark", iterationId="i", operation={"path": PATH, **operation})

    assert result["iterationId"] == "i"
    assert int(result["durationNs"]) > 0


def test_an_unknown_command_is_not_supported(run: Runner) -> None:
    assert run("dance")["errorCode"] == "NOT_SUPPORTED"


@pytest.mark.parametrize("line", [b"{", b"[]", b'"init"', b"{}", b'{"type": 1}', b"\xff"])
def test_a_line_that_is_no_command_gets_an_answer_and_the_next_is_understood(run: Runner, line: bytes) -> None:
    run.write(b"\n  \n" + line + b"\n")

    assert run.answer()["success"] is False
    assert run("create", path=PATH)["status"] == 201


def test_what_is_no_text_in_a_text_stream_comes_as_base64(run: Runner) -> None:
    run("create", path=PATH, contentType="text/plain")
    run("append", path=PATH, data="/2E=", binary=True)

    (chunk,) = run("read", path=PATH)["chunks"]
    assert (chunk["data"], chunk["binary"]) == ("/2E=", True)


def test_a_dynamic_value_is_the_same_for_all_requests_of_an_operation(run: Runner) -> None:
    run("create", path=PATH, contentType="application/json", data="[1]")
    run("set-dynamic-header", name="X-Count", valueType="counter")
    reads = [run("read", path=PATH, live=live, waitForUpToDate=True) for live in ("long-poll", "sse", False)]

    assert [read["headersSent"]["X-Count"] for read in reads] == ["1", "2", "3"]
    assert run("append", path=PATH, data="2", headers={"x-count": "mine"})["headersSent"] == {"x-count": "mine"}


def test_an_append_after_closing_by_the_same_producer_finds_the_stream_closed(run: Runner) -> None:
    run("create", path=PATH)
    mine = {"path": PATH, "producerId": "p", "epoch": 0, "autoClaim": False}
    assert run("idempotent-close", **mine)["success"]

    assert run("idempotent-append", **mine, data="late")["errorCode"] == "STREAM_CLOSED"


def test_an_option_of_the_wrong_type_is_an_invalid_argument(run: Runner) -> None:
    target = {"target": "retry-options", "initialDelayMs": "soon"}

    assert run("validate", target=target)["errorCode"] == "INVALID_ARGUMENT"
