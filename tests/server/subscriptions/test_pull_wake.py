"""Pull-wake over HTTP: wake events, claims, acks, leases (protocol 7.2, 7.3, D.10)."""

import anyio
import pytest

from durable_streams.server import MemoryStore

from ..driver import offset
from .driver import error, serving

pytestmark = pytest.mark.anyio


async def test_the_example_of_the_protocol() -> None:
    async with serving() as bench:
        await bench.client.put("wake", "application/json")
        await bench.put_pull()
        await bench.write("demo/log", "x" * 32)

        assert await bench.events() == [
            {"type": "wake", "subscription_id": "s2", "stream": "demo/log", "generation": 1, "ts": 1788264000000}
        ]
        claim = await bench.claim(worker="A")
        assert {key: value for key, value in claim.items() if key not in ("wake_id", "token")} == {
            "generation": 1,
            "streams": [
                {
                    "path": "demo/log",
                    "link_type": "glob",
                    "acked_offset": "-1",
                    "tail_offset": offset(32),
                    "has_pending": True,
                }
            ],
            "lease_ttl_ms": 30000,
        }
        assert claim["wake_id"].startswith("w_")
        busy = await bench.call("POST", "s2/claim", {"worker": "B"})
        assert busy.status == 409
        assert busy.json()["error"] | {"message": ""} == {
            "code": "ALREADY_CLAIMED",
            "message": "",
            "current_holder": "A",
            "generation": 1,
        }
        beat = await bench.ack(claim, ("demo/log", offset(26)))
        assert (beat.status, beat.json()) == (200, {"ok": True, "next_wake": False})
        await bench.advance(29)
        assert len(await bench.events()) == 1
        await bench.advance(1)
        assert [event["generation"] for event in await bench.events()] == [1, 2]
        assert error(await bench.ack(claim, ("demo/log", offset(32)))) == (409, "FENCED")
        assert await bench.cursors("s2") == {"demo/log": offset(26)}
        second = await bench.claim(worker="B")
        assert second["generation"] == 2
        wake = {"wake_id": second["wake_id"], "generation": 2}
        assert (await bench.call("POST", "s2/release", wake, second["token"])).status == 204
        assert [event["generation"] for event in await bench.events()] == [1, 2, 3]
        assert error(await bench.call("POST", "s2/release", wake, second["token"])) == (409, "FENCED")


async def test_done_acks_and_tells_whether_there_is_more() -> None:
    async with serving() as bench:
        await bench.client.put("wake", "application/json")
        await bench.put_pull()
        await bench.write("demo/a")
        claim = await bench.claim()
        await bench.write("demo/b")

        done = await bench.ack(claim, ("demo/a", offset(10)), done=True)

        assert done.json() == {"ok": True, "next_wake": True}
        assert (await bench.events())[-1]["stream"] == "demo/b"
        claim = await bench.claim()
        assert (await bench.ack(claim, ("demo/b", offset(10)), done=True)).json() == {"ok": True, "next_wake": False}
        assert error(await bench.call("POST", "s2/claim", {"worker": "A"})) == (409, "NO_PENDING_WORK")


async def test_what_was_just_written_can_be_claimed_at_once() -> None:
    async with serving() as bench:
        await bench.put_pull()
        for number in range(20):
            tail = await bench.write(f"demo/{number}")
            claim = await bench.claim()
            assert (await bench.ack(claim, (f"demo/{number}", tail), done=True)).json()["next_wake"] is False


@pytest.mark.parametrize("bad", [offset(11), offset(3), "-1", "now", "", "nonsense"])
async def test_a_bad_offset_voids_all_acks(bad: str) -> None:
    async with serving() as bench:
        await bench.put_pull()
        await bench.write("demo/a")
        await bench.write("demo/b")
        claim = await bench.claim()
        await bench.ack(claim, ("demo/b", offset(4)))

        assert error(await bench.ack(claim, ("demo/a", offset(10)), ("demo/b", bad))) == (409, "INVALID_OFFSET")
        assert await bench.cursors("s2") == {"demo/a": "-1", "demo/b": offset(4)}


@pytest.mark.parametrize("stream", ["demo/zz", "other", "..", "__ds/x", ""])
async def test_an_ack_for_an_unknown_stream_is_refused(stream: str) -> None:
    async with serving() as bench:
        await bench.put_pull()
        await bench.write("demo/a")
        claim = await bench.claim()

        assert error(await bench.ack(claim, (stream, offset(1)))) == (409, "INVALID_OFFSET")


async def test_an_ack_may_call_the_stream_a_path_and_spell_it_otherwise() -> None:
    async with serving() as bench:
        await bench.put_pull()
        await bench.write("demo/a%20b")
        claim = await bench.claim()
        wake = {"wake_id": claim["wake_id"], "generation": 1}

        acks = [{"path": "/demo/%61 b", "offset": offset(10)}]
        answer = await bench.call("POST", "s2/ack", {**wake, "acks": acks}, claim["token"])

        assert answer.status == 200, answer.text
        assert await bench.cursors("s2") == {"demo/a%20b": offset(10)}


async def test_a_wake_stream_that_comes_later_gets_the_event() -> None:
    async with serving() as bench:
        await bench.put_pull()
        await bench.write("demo/a")
        await bench.settle()
        assert (await bench.get("s2"))["status"] == "active"

        await bench.client.put("wake", "application/json")

        assert [event["generation"] for event in await bench.events()] == [1]


async def test_a_wake_stream_that_refuses_is_tried_again() -> None:
    async with serving() as bench:
        await bench.put_pull()
        await bench.client.put("wake", "text/plain")
        await bench.write("demo/a")
        await bench.settle()
        await bench.client.delete("wake")
        await bench.client.put("wake", "application/json")

        assert len(await bench.events()) == 1
        await bench.advance(100)
        assert len(await bench.events()) == 1


async def test_a_wake_stream_of_another_type_is_refused() -> None:
    async with serving() as bench:
        await bench.client.put("wake", "text/plain")
        body = {"type": "pull-wake", "pattern": "demo/*", "wake_stream": "wake"}

        refused = await bench.call("PUT", "s2", body)

        assert error(refused) == (400, "INVALID_REQUEST")
        assert (await bench.call("GET", "s2")).status == 404
        await bench.client.delete("wake")
        await bench.client.put("wake", "application/json; charset=utf-8")
        assert (await bench.call("PUT", "s2", body)).status == 201


async def test_wake_events_wake_nobody() -> None:
    async with serving() as bench:
        await bench.client.put("wake", "application/json")
        await bench.put_pull("s2", pattern="**")
        await bench.client.put("other", "application/json")
        await bench.put("s3", type="pull-wake", pattern="**", wake_stream="other", streams=["wake"])
        await bench.write("demo/a")

        await bench.settle()
        await bench.app.subscriptions.scan()
        assert len(await bench.events("wake")) == len(await bench.events("other")) == 1
        claim = await bench.claim("s3")
        assert [entry["path"] for entry in claim["streams"] if entry["has_pending"]] == ["demo/a"]
        claim = await bench.claim("s2")
        assert [entry["path"] for entry in claim["streams"] if entry["has_pending"]] == ["demo/a"]


async def test_a_deleted_and_recreated_stream_is_read_from_its_beginning() -> None:
    async with serving() as bench:
        await bench.put("s2", type="pull-wake", streams=["x"], wake_stream="wake")
        await bench.write("x")
        claim = await bench.claim()
        await bench.ack(claim, ("x", offset(10)), done=True)
        await bench.client.delete("x")
        assert await bench.cursors("s2") == {"x": "-1"}

        await bench.write("x", "ab")

        assert (await bench.claim())["streams"][0]["tail_offset"] == offset(2)


async def test_a_deleted_stream_leaves_the_links_of_the_pattern() -> None:
    async with serving() as bench:
        await bench.put_pull()
        await bench.write("demo/a")
        await bench.client.delete("demo/a")

        assert await bench.cursors("s2") == {}
        assert error(await bench.call("POST", "s2/claim", {"worker": "A"})) == (409, "NO_PENDING_WORK")


async def test_a_scan_finds_what_no_request_told() -> None:
    store = MemoryStore()
    async with serving(store) as bench, serving(store, clock=bench.clock) as other:
        await bench.client.put("wake", "application/json")
        await bench.put_pull()
        await bench.client.put("demo/short", "text/plain", stream_ttl="5")
        await bench.settle()
        await other.write("demo/a")
        assert await bench.events() == []

        bench.clock.now += 5
        await bench.app.subscriptions.scan()

        assert [event["stream"] for event in await bench.events()] == ["demo/a"]
        assert await bench.cursors("s2") == {"demo/a": "-1"}


async def test_scans_come_by_themselves() -> None:
    store = MemoryStore()
    async with serving(store, scan_interval=0.01) as bench, serving(store) as other:
        await bench.client.put("wake", "application/json")
        await bench.put_pull()
        await other.write("demo/a")

        with anyio.fail_after(20):
            while not await bench.events():  # the loop under test has no event to wait for
                await anyio.sleep(0.01)


async def test_many_streams_are_linked_at_their_tails_on_creation() -> None:
    async with serving() as bench:
        for number in range(1201):
            await bench.client.put(f"demo/{number}", "text/plain", b"abc")
        await bench.client.put("demox", "text/plain", b"abc")
        await bench.client.put("demo/deep/er", "text/plain", b"abc")

        created = (await bench.put_pull()).json()

        assert {link["acked_offset"] for link in created["streams"]} == {offset(3)}
        assert len(created["streams"]) == 1201
        assert error(await bench.call("POST", "s2/claim", {"worker": "A"})) == (409, "NO_PENDING_WORK")


async def test_a_fork_is_work_from_its_beginning() -> None:
    async with serving() as bench:
        await bench.write("origin")
        await bench.put_pull()

        forked = await bench.client.put("demo/fork", None, stream_forked_from="/v1/stream/origin")

        assert forked.status == 201, forked.text
        assert (await bench.claim())["streams"][0]["tail_offset"] == offset(10)


async def test_a_restart_keeps_claims_cursors_and_generations() -> None:
    store = MemoryStore()
    async with serving(store) as bench:
        await bench.client.put("wake", "application/json")
        await bench.put_pull()
        await bench.write("demo/a")
        claim = await bench.claim()
        await bench.ack(claim, ("demo/a", offset(4)))

    async with serving(store, clock=bench.clock) as bench:
        assert error(await bench.call("POST", "s2/claim", {"worker": "B"})) == (409, "ALREADY_CLAIMED")
        assert (await bench.ack(claim, ("demo/a", offset(6)), done=True)).json() == {"ok": True, "next_wake": True}
        assert (await bench.claim())["generation"] == 2


async def test_a_restart_does_not_write_an_event_twice() -> None:
    store = MemoryStore()
    async with serving(store) as bench:
        await bench.client.put("wake", "application/json")
        await bench.put_pull()
        await bench.write("demo/a")
        assert len(await bench.events()) == 1

    async with serving(store, clock=bench.clock) as bench:
        await bench.advance(1000)
        assert len(await bench.events()) == 1


async def test_an_event_whose_writing_was_not_kept_is_recognised_by_the_wake_stream() -> None:
    class Forgetful(MemoryStore):
        broken = False

        async def save_subscription(self, record, links):  # type: ignore[no-untyped-def]
            if self.broken and record.state.wake_id and record.state.attempt_at is None:
                raise OSError("no space left")
            await super().save_subscription(record, links)

    store = Forgetful()
    async with serving(store) as bench:
        await bench.client.put("wake", "application/json")
        await bench.put_pull()
        store.broken = True
        await bench.write("demo/a")
        assert len(await bench.events()) == 1
        store.broken = False

    async with serving(store, clock=bench.clock) as bench:
        assert len(await bench.events()) == 1
        assert (await bench.claim())["generation"] == 1
