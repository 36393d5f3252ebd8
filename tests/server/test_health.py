"""`/health`, `/ready` and `/metrics`: what operators ask."""

import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from durable_streams.server import (
    CreateRequest,
    DurableStreamsApp,
    Histogram,
    MemoryStore,
    Server,
    SQLiteStore,
    StoreFailedError,
    StoreFigures,
)

from .driver import Client, make_client

pytestmark = pytest.mark.anyio
TEXT = "text/plain"


class Breakable(MemoryStore):
    """A store that fails on demand, as SQLite does when the disk is full."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: StoreFailedError | None = None

    async def __aenter__(self) -> "Breakable":
        self._failed = anyio.Event()
        return await super().__aenter__()

    def fail(self) -> None:
        self.failure = StoreFailedError("the disk is full")
        self._failed.set()

    async def wait_failed(self) -> StoreFailedError:
        await self._failed.wait()
        assert self.failure is not None
        return self.failure

    async def __aexit__(self, *error: Any) -> None:
        await super().__aexit__(*error)
        if self.failure is not None and error[0] is None:
            raise self.failure


# Health


@pytest.mark.parametrize(("path", "text"), [("/health", "ok\n"), ("/ready", "ready\n")])
async def test_a_server_at_work_says_so(client: Client, path: str, text: str) -> None:
    answer = await client.get(path)
    assert (answer.status, answer.text) == (200, text)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert (await client.head(path)).status == 200
    refused = await client.call("POST", path, b"x")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_only_these_paths_are_taken(client: Client) -> None:
    for path in ("/healthy", "/health/x", "/v1/health", "/ready/", "/"):
        assert (await client.get(path)).status in (400, 404)
    assert (await client.put("health", TEXT)).status == 201
    assert (await client.get("health")).status == 200


async def test_without_a_root_they_are_below_the_reserved_prefix() -> None:
    client = make_client(root="", metrics=True)
    assert (await client.call("PUT", "/health", b"stream", {"content-type": TEXT})).status == 201
    assert (await client.get("/health")).text == "stream"
    for path in ("/__ds/health", "/__ds/ready", "/__ds/metrics"):
        assert (await client.get(path)).status == 200


async def test_they_move_with_the_application_when_it_is_mounted(client: Client) -> None:
    for facts in ({"root_path": "/api"}, {"root_path": "/api/"}):
        assert (await client.call("GET", "/api/health", **facts)).status == 200
        assert (await client.call("GET", "/health", **facts)).status == 200  # a server that strips the mount
    assert (await client.call("GET", "/api/health")).status == 404


async def test_a_server_that_shuts_down_is_healthy_and_not_ready(client: Client) -> None:
    client.app.begin_shutdown()
    assert (await client.get("/health")).status == 200
    answer = await client.get("/ready")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


async def test_a_store_that_is_not_open_is_not_ready(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store")
    client = Client(DurableStreamsApp(store))
    assert (await client.get("/health")).status == 200
    assert (await client.get("/ready")).status == 503
    async with client.app.lifespan():
        assert (await client.get("/ready")).status == 200
    assert (await client.get("/ready")).status == 503


async def test_a_failed_store_makes_the_server_ill(caplog: pytest.LogCaptureFixture) -> None:
    store = Breakable()
    client = Client(DurableStreamsApp(store))
    with pytest.raises(StoreFailedError, match="the disk is full"):
        async with client.app.lifespan():
            await client.put("x", TEXT)
            async with client.open("x?offset=now&live=sse") as events:
                await events.head()
                store.fail()
                await events.rest()
            for path in ("/health", "/ready", "/v1/stream/x"):
                assert (await client.get(path)).status == 503
            assert client.app.failure is store.failure
    assert "the store has failed, so the server ends: " in caplog.text


async def test_a_store_on_a_failing_disk_makes_the_server_ill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = SQLiteStore(tmp_path / "store")
    client = Client(DurableStreamsApp(store))

    def commit() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(StoreFailedError, match="disk I/O error"):
        async with client.app.lifespan():
            await client.put("x", TEXT)
            monkeypatch.setattr(store._current().writer._ledger, "commit", commit)
            assert (await client.post("x", b"abc", TEXT)).status == 500
            with anyio.fail_after(5):
                while client.app.failure is None:
                    await anyio.sleep(0.001)
            assert (await client.get("/health")).status == 503
            assert (await client.post("x", b"abc", TEXT)).status == 503


# Metrics


def samples(text: str) -> dict[str, float]:
    """The values by name and labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def scrape(client: Client) -> dict[str, float]:
    answer = await client.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples(answer.text)


async def test_there_are_no_metrics_unless_asked_for(client: Client) -> None:
    assert client.app.metrics is None
    assert (await client.get("/metrics")).status == 404


async def test_requests_and_what_they_append_are_counted() -> None:
    client = make_client(metrics=True)
    await client.put("text", TEXT, b"abc")
    await client.put("text", TEXT, b"again")
    await client.put("list", "application/json", b"[1,2]")
    await client.put("empty", "application/json", b"[]")
    await client.post("list", b"[3,4,5]", "application/json")
    await client.post("list", b"[]", "application/json")
    await client.post("text", b"de", TEXT)
    producer = {"producer_id": "p", "producer_epoch": "0", "producer_seq": "0"}
    for _ in range(2):  # the second is a duplicate
        await client.post("text", b"fg", TEXT, **producer)
    await client.post("text", b"", stream_closed="true")
    await client.get("missing")
    await client.call("BREW", "text")
    await client.call("STEEP", "text")
    figures = await scrape(client)
    assert figures["durable_streams_requests_total{code=201,method=PUT}"] == 3
    assert figures["durable_streams_requests_total{code=200,method=PUT}"] == 1
    assert figures["durable_streams_requests_total{code=204,method=POST}"] == 4
    assert figures["durable_streams_requests_total{code=200,method=POST}"] == 1
    assert figures["durable_streams_requests_total{code=400,method=POST}"] == 1
    assert figures["durable_streams_requests_total{code=404,method=GET}"] == 1
    assert figures["durable_streams_requests_total{code=405,method=other}"] == 2
    assert figures["durable_streams_appends_total"] == 5
    assert figures["durable_streams_appended_messages_total"] == 8
    assert figures["durable_streams_appended_bytes_total"] == 3 + 4 + 6 + 2 + 2
    assert figures["durable_streams_streams"] == 3
    assert figures["durable_streams_store_bytes"] == 17
    assert figures["durable_streams_requests_in_progress"] == 1
    await client.delete("text")
    assert (await scrape(client))["durable_streams_store_bytes"] == 10


async def test_what_a_fork_copies_is_not_appended_and_what_is_put_into_it_is() -> None:
    client = make_client(metrics=True)
    await client.put("list", "application/json", b"[1,2]")
    await client.put("fork", None, b"[3,4]", stream_forked_from="/v1/stream/list")
    figures = await scrape(client)
    assert figures["durable_streams_appended_messages_total"] == 4
    assert figures["durable_streams_store_bytes"] == 8


async def test_an_unanswered_request_is_counted_as_such() -> None:
    client = make_client(metrics=True)
    await client.put("x", TEXT)
    async with client.open("x?offset=now&live=long-poll") as poll:
        await anyio.wait_all_tasks_blocked()
        figures = await scrape(client)
        assert figures["durable_streams_open_readers"] == 1
        assert figures["durable_streams_requests_in_progress"] == 2
        poll.disconnect()
        await poll.finished.wait()
    figures = await scrape(client)
    assert figures["durable_streams_requests_total{code=0,method=GET}"] == 1
    assert figures["durable_streams_open_readers"] == 0


async def test_sqlite_tells_of_its_commits_and_files(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "store")
    client = Client(DurableStreamsApp(store, metrics=True))
    async with client.app.lifespan():
        await client.put("x", TEXT)
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(client.post, "x", b"abc", TEXT)
        figures = await scrape(client)
        writer = store.statistics().writer
    assert figures["durable_streams_commit_seconds_count"] == figures["durable_streams_commit_requests_count"]
    assert figures["durable_streams_commit_requests_sum"] == writer.jobs
    assert figures["durable_streams_commit_seconds_sum"] == pytest.approx(writer.commit_seconds)
    assert figures["durable_streams_commit_seconds_bucket{le=+Inf}"] == figures["durable_streams_commit_seconds_count"]
    assert figures["durable_streams_streams"] == 1
    assert figures["durable_streams_store_bytes"] > 4096
    assert "durable_streams_streams" not in await scrape(client), "a closed store has no figures"


async def test_scrapers_get_the_format_they_ask_for() -> None:
    client = make_client(metrics=True)
    answer = await client.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics.text_string_to_metric_families(answer.text)}
    assert {"durable_streams_requests", "durable_streams_open_readers", "process_resident_memory_bytes"} <= names


async def test_a_program_may_put_them_into_its_own_registry() -> None:
    client = make_client(metrics=True)
    registry = CollectorRegistry()
    registry.register(client.app.metrics)
    await client.put("x", TEXT, b"abc")
    assert samples(generate_latest(registry).decode())["durable_streams_appended_bytes_total"] == 3


async def test_a_histogram_counts_values_by_range() -> None:
    histogram = Histogram((1, 2.5))
    for value in (0.5, 1, 1.1, 2.5, 2.6, 100):
        histogram.add(value)
    assert histogram.counts == [2, 2, 2]
    assert histogram.total == pytest.approx(107.7)
    assert StoreFigures(1, 2).commit_seconds is None


async def test_without_prometheus_client_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from durable_streams.server import DurableStreamsApp\n"
        "DurableStreamsApp()\n"
        "try: DurableStreamsApp(metrics=True)\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "metrics need prometheus-client: pip install 'durable-streams-anyio[server]'\n"


# The end of a server whose store has failed


class FailsAtOnce(Breakable):
    """Fails when the second stream is made."""

    async def create(self, r: CreateRequest, now: float) -> Any:
        if self.count_streams():
            self.fail()
            raise StoreFailedError("the disk is full")
        return await super().create(r, now)


@pytest.mark.parametrize("mounted", [False, True])
async def test_a_server_whose_store_fails_answers_and_ends_by_itself(mounted: bool) -> None:
    streams = DurableStreamsApp(FailsAtOnce())
    ended = threading.Event()
    failures: list[BaseException] = []

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await streams(scope, receive, send)

    server = Server(outer if mounted else streams)
    started = threading.Event()

    def serve() -> None:
        try:
            server.serve_forever(started.set)
        except BaseException as error:
            failures.append(error)
        ended.set()

    thread = threading.Thread(target=serve)
    thread.start()
    assert await anyio.to_thread.run_sync(started.wait, 10)

    async with await anyio.connect_tcp("127.0.0.1", int(server.base_url.rpartition(":")[2])) as stream:
        create = b"PUT /v1/stream/%b HTTP/1.1\r\nHost: s\r\nContent-Length: 0\r\n\r\n"
        with anyio.fail_after(10):
            await stream.send(create % b"x")
            assert (await stream.receive()).startswith(b"HTTP/1.1 201 ")
            await stream.send(create % b"y")
            assert (await stream.receive()).startswith(b"HTTP/1.1 500 ")
    assert await anyio.to_thread.run_sync(ended.wait, 10), "the server goes on"
    thread.join()
    assert [type(failure) for failure in failures] == [StoreFailedError]


async def test_who_holds_a_server_in_a_block_hears_of_its_failure() -> None:
    with pytest.raises(StoreFailedError, match="the disk is full"):
        async with (
            Server(FailsAtOnce()) as server,
            await anyio.connect_tcp("127.0.0.1", int(server.base_url.rpartition(":")[2])) as stream,
        ):
            create = b"PUT /v1/stream/%b HTTP/1.1\r\nHost: s\r\nContent-Length: 0\r\n\r\n"
            await stream.send(create % b"x" + create % b"y")
            with anyio.fail_after(10), suppress(anyio.EndOfStream):
                while True:
                    await stream.receive()
