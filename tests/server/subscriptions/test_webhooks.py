"""Webhooks over HTTP: deliveries, their answers, callbacks, retries (protocol 7.1, D.9)."""

import json
import time
from http.client import HTTPConnection

import anyio
import anyio.to_thread
import pytest
from anyio.abc import ByteStream
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from durable_streams.server import DurableStreamsApp, MemoryStore, Server, Webhooks
from durable_streams.server.subscriptions.delivery import DeliveryFailed
from durable_streams.server.subscriptions.ssrf import UrlRejected
from durable_streams.server.subscriptions.tokens import decode

from ..driver import offset
from .driver import Bench, Delivery, error, serving
from .test_delivery import listening

pytestmark = pytest.mark.anyio


async def callback(bench: Bench, delivery: Delivery, *acks: tuple[str, str], done: bool = True):  # type: ignore[no-untyped-def]
    value = {**delivery.wake, "acks": [{"stream": path, "offset": at} for path, at in acks], "done": done}
    return await bench.call("POST", "s1/callback", value, delivery.token)


async def test_the_example_of_the_protocol() -> None:
    async with serving() as bench:
        await bench.client.put("demo/log", "text/plain", b"x" * 26)
        await bench.put_hook()
        await bench.client.post("demo/log", b"y" * 6, "text/plain")

        delivery = await bench.hook.next()

        assert delivery.body | {"wake_id": "", "callback_token": ""} == {
            "subscription_id": "s1",
            "wake_id": "",
            "generation": 1,
            "streams": [
                {
                    "path": "demo/log",
                    "link_type": "glob",
                    "acked_offset": offset(26),
                    "tail_offset": offset(32),
                    "has_pending": True,
                }
            ],
            "callback_url": "http://s.example/v1/stream/__ds/subscriptions/s1/callback",
            "callback_token": "",
        }
        delivery.answer(200, {})
        await bench.settle()
        first = await callback(bench, delivery, ("demo/log", offset(32)))
        assert (first.status, first.json()) == (200, {"ok": True, "next_wake": False})
        assert error(await callback(bench, delivery, ("demo/log", offset(32)))) == (409, "FENCED")


async def test_a_receiver_can_verify_the_request() -> None:
    async with serving() as bench:
        signing = (await bench.put_hook()).json()["webhook"]["signing"]
        await bench.write("demo/log")
        delivery = await bench.hook.next()
        delivery.answer()

        assert signing["jwks_url"] == "http://s.example/v1/stream/__ds/jwks.json"
        jwks = await bench.client.get("__ds/jwks.json")
        assert jwks.headers["content-type"] == "application/jwk-set+json"
        assert jwks.headers["cache-control"] == "public, max-age=300"
        key = next(key for key in jwks.json()["keys"] if key["kid"] == signing["kid"])
        fields = dict(part.split("=", 1) for part in delivery.headers["Webhook-Signature"].split(","))
        assert (fields["kid"], fields["t"]) == (signing["kid"], "1788264000")
        signed = fields["t"].encode() + b"." + delivery.raw
        Ed25519PublicKey.from_public_bytes(decode(key["x"])).verify(decode(fields["ed25519"]), signed)
        assert delivery.headers["Content-Type"] == "application/json"
        assert delivery.addresses == ["8.8.8.8"]


async def test_done_acks_the_snapshot_and_newer_data_wakes_again() -> None:
    async with serving() as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        first = await bench.hook.next()
        await bench.write("demo/a")
        await bench.settle()
        first.answer(200, {"done": True})

        second = await bench.hook.next()

        assert second.body["generation"] == 2
        assert second.body["wake_id"] != first.body["wake_id"]
        assert [(entry["acked_offset"], entry["tail_offset"]) for entry in second.body["streams"]] == [
            (offset(10), offset(20))
        ]
        second.answer(200, {"done": True})
        await bench.settle()
        assert await bench.cursors("s1") == {"demo/a": offset(20)}
        assert bench.hook.count == 2


@pytest.mark.parametrize("value", [None, {}, {"done": False}, {"done": "true"}, {"done": 1}, [], "done", 7], ids=str)
async def test_any_other_answer_leaves_the_lease_until_it_runs_out(value: object) -> None:
    async with serving() as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        (await bench.hook.next()).answer(204 if value is None else 200, value)
        await bench.settle()
        await bench.advance(29.9)
        assert bench.hook.count == 1
        assert await bench.cursors("s1") == {"demo/a": "-1"}

        await bench.advance(0.1)

        again = await bench.hook.next()
        assert again.body["generation"] == 2
        again.answer(200, {"done": True})


async def test_a_callback_extends_the_lease() -> None:
    async with serving() as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        delivery = await bench.hook.next()
        delivery.answer()
        await bench.advance(20)
        assert (await callback(bench, delivery, ("demo/a", offset(4)), done=False)).json() == {
            "ok": True,
            "next_wake": False,
        }

        await bench.advance(20)
        assert bench.hook.count == 1
        await bench.advance(10)

        again = await bench.hook.next()
        assert again.body["streams"][0]["acked_offset"] == offset(4)
        again.answer(200, {"done": True})


@pytest.mark.parametrize("failure", [500, 404, 302, DeliveryFailed("reset"), UrlRejected(), OSError("dns")], ids=repr)
async def test_a_failed_delivery_is_repeated_later(failure: int | Exception) -> None:
    async with serving() as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        first = await bench.hook.next()
        first.answer(failure, {"done": True}) if isinstance(failure, int) else first.fail(failure)
        await bench.settle()
        assert (await bench.get("s1"))["status"] == "failed"
        await bench.advance(0.79)
        assert bench.hook.count == 1

        await bench.advance(0.41)

        second = await bench.hook.next()
        assert second.wake == first.wake
        assert second.headers["Webhook-Signature"] != first.headers["Webhook-Signature"]
        second.answer(200, {"done": True})
        await bench.settle()
        assert (await bench.get("s1"))["status"] == "active"
        assert await bench.cursors("s1") == {"demo/a": offset(10)}


async def test_a_bug_in_the_sender_counts_as_a_failure() -> None:
    async with serving() as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        (await bench.hook.next()).fail(RuntimeError("a bug"))
        await bench.settle()
        assert (await bench.get("s1"))["status"] == "failed"

        await bench.advance(1.2)

        (await bench.hook.next()).answer(200, {"done": True})


async def test_pauses_grow_though_leases_are_short() -> None:
    async with serving() as bench:
        await bench.put_hook(lease_ttl_ms=1000)
        await bench.write("demo/a")
        for failures in range(1, 9):
            (await bench.hook.next()).answer(500)
            await bench.settle()
            pause = min(60, 2 ** (failures - 1))
            await bench.advance(pause * 0.79)
            assert bench.hook.count == failures
            await bench.advance(pause * 0.42)
        (await bench.hook.next()).answer(200, {"done": True})


async def test_a_late_done_does_not_ack_and_a_new_wake_waits_for_it() -> None:
    async with serving() as bench:
        await bench.put_hook(lease_ttl_ms=1000)
        await bench.write("demo/a")
        first = await bench.hook.next()
        await bench.advance(5)
        await bench.write("demo/a")
        await bench.settle()
        assert bench.hook.count == 1  # and `Hook` itself refuses two at once

        first.answer(200, {"done": True})

        second = await bench.hook.next()
        assert second.body["generation"] == 2
        assert second.body["streams"][0]["acked_offset"] == "-1"
        second.answer(200, {"done": True})


async def test_a_callback_before_the_answer_ends_the_wake() -> None:
    async with serving() as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        delivery = await bench.hook.next()
        assert (await callback(bench, delivery, ("demo/a", offset(10)))).status == 200

        delivery.answer(500)
        await bench.settle()

        assert (await bench.get("s1"))["status"] == "active"
        await bench.advance(1000)
        assert bench.hook.count == 1


async def test_a_deletion_voids_what_is_under_way() -> None:
    async with serving() as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        delivery = await bench.hook.next()
        assert (await bench.call("DELETE", "s1")).status == 204

        assert error(await callback(bench, delivery, ("demo/a", offset(10)))) == (404, "SUBSCRIPTION_NOT_FOUND")
        await bench.put_hook()
        delivery.answer(200, {"done": True})
        await bench.settle()

        assert await bench.cursors("s1") == {"demo/a": offset(10)}  # where the new one begins
        assert error(await callback(bench, delivery, ("demo/a", offset(10)))) == (401, "TOKEN_INVALID")


async def test_a_stream_that_is_deleted_before_its_wake_is_sent_wakes_nobody() -> None:
    async with serving() as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        (await bench.hook.next()).answer(500)
        await bench.settle()
        await bench.client.delete("demo/a")
        await bench.advance(100)

        assert bench.hook.count == 1
        assert (await bench.get("s1"))["status"] == "active"


async def test_a_restart_repeats_what_was_not_confirmed() -> None:
    store = MemoryStore()
    async with serving(store) as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        first = await bench.hook.next()

    async with serving(store, clock=bench.clock) as bench:
        second = await bench.hook.next()
        assert second.wake == first.wake
        second.answer(200, {"done": True})
        await bench.settle()
        assert await bench.cursors("s1") == {"demo/a": offset(10)}


async def test_a_restart_does_not_repeat_what_was_confirmed() -> None:
    store = MemoryStore()
    async with serving(store) as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        delivery = await bench.hook.next()
        delivery.answer()
        await bench.settle()

    async with serving(store, clock=bench.clock) as bench:
        await bench.settle()
        assert bench.hook.count == 0
        assert (await callback(bench, delivery, ("demo/a", offset(10)))).status == 200


async def test_a_restart_keeps_to_the_schedule() -> None:
    store = MemoryStore()
    async with serving(store) as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        (await bench.hook.next()).answer(500)
        await bench.settle()

    async with serving(store, clock=bench.clock) as bench:
        await bench.advance(0.5)
        assert bench.hook.count == 0
        assert (await bench.get("s1"))["status"] == "failed"
        await bench.advance(0.7)
        (await bench.hook.next()).answer(200, {"done": True})


async def test_the_shutdown_ends_deliveries() -> None:
    with anyio.fail_after(20):
        async with serving() as bench:
            await bench.put_hook()
            await bench.write("demo/a")
            await bench.hook.next()

            bench.app.begin_shutdown()
            await bench.settle()

            assert bench.hook.open == 0


async def test_keys_that_are_made_are_kept_in_the_store() -> None:
    store = MemoryStore()
    kids = []
    for _ in range(2):
        app = DurableStreamsApp(store, webhooks=True)
        await app.subscriptions.load()
        assert app.subscriptions.messenger is not None
        kids.append(json.loads(app.subscriptions.messenger.keys.jwks())["keys"][0]["kid"])

    assert kids[0] == kids[1]


async def test_a_server_without_webhooks_says_so_and_lets_old_ones_sleep() -> None:
    store = MemoryStore()
    async with serving(store) as bench:
        await bench.put_hook()

    async with serving(store, clock=bench.clock, webhooks=False) as bench:
        answer = await bench.put("s9", type="webhook", pattern="x", webhook={"url": "https://8.8.8.8/"})
        assert error(answer) == (501, "NOT_SUPPORTED")
        assert (await bench.client.get("__ds/jwks.json")).status == 404
        await bench.write("demo/a")
        await bench.settle()
        assert "signing" not in (await bench.get("s1"))["webhook"]

    async with serving(store, clock=bench.clock) as bench:
        (await bench.hook.next()).answer(200, {"done": True})


async def test_a_store_that_fails_once_delays_and_loses_nothing() -> None:
    class Unsteady(MemoryStore):
        failures = 0

        async def save_subscription(self, record, links):  # type: ignore[no-untyped-def]
            if self.failures and record.state.generation:
                self.failures -= 1
                raise OSError("no space left")
            await super().save_subscription(record, links)

    store = Unsteady()
    async with serving(store) as bench:
        await bench.put_hook()
        store.failures = 1
        await bench.write("demo/a")
        await bench.settle()
        assert bench.hook.count == 0

        await bench.advance(1)

        delivery = await bench.hook.next()
        assert delivery.body["generation"] == 1
        delivery.answer(200, {"done": True})


async def test_tokens_of_old_generations_are_fenced() -> None:
    async with serving() as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        first = await bench.hook.next()
        first.answer()
        await bench.advance(30)
        second = await bench.hook.next()
        second.answer()
        await bench.settle()

        mixed = {**second.wake, "acks": [], "done": True}
        assert error(await bench.call("POST", "s1/callback", mixed, first.token)) == (409, "FENCED")
        assert (await bench.call("POST", "s1/callback", mixed, second.token)).status == 200


async def test_an_expired_token_says_so() -> None:
    async with serving() as bench:
        await bench.put_hook()
        await bench.write("demo/a")
        delivery = await bench.hook.next()
        delivery.answer()
        await bench.settle()
        bench.clock.now += 3600

        assert error(await callback(bench, delivery)) == (401, "TOKEN_EXPIRED")
        await bench.advance(0)
        (await bench.hook.next()).answer(200, {"done": True})


async def test_a_name_that_comes_to_mean_our_network_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: every try looks the name up once, and connects to what was checked."""
    answers = [["8.8.8.8"], ["8.8.8.8", "10.0.0.1"], ["9.9.9.9"]]
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(2, 1, 6, "", (address, port)) for address in answers[len(asked) - 1]]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    async with serving() as bench:
        await bench.put("s1", type="webhook", pattern="demo/*", webhook={"url": "https://hooks.example/"})
        assert asked == []
        await bench.write("demo/a")
        first = await bench.hook.next()
        first.answer(500)
        await bench.settle()
        await bench.advance(1.2)
        assert (len(asked), bench.hook.count) == (2, 1)

        await bench.advance(2.4)

        second = await bench.hook.next()
        assert (first.addresses, second.addresses) == (["8.8.8.8"], ["9.9.9.9"])
        second.answer(200, {"done": True})


@pytest.mark.parametrize(
    "options",
    [{"allowed_hosts": "hooks.example"}, {"allowed_hosts": ["Hooks.example"]}, {"timeout": 0}, {"connect_timeout": -1}],
    ids=str,
)
async def test_options_that_cannot_work_are_refused(options: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        Webhooks(**options)  # type: ignore[arg-type]


async def test_only_allowed_hosts_get_webhooks() -> None:
    app = DurableStreamsApp(webhooks=Webhooks(allowed_hosts={"hooks.example"}))
    await app.subscriptions.load()
    assert app.subscriptions.messenger is not None
    policy = app.subscriptions.messenger.policy

    policy.check_url("https://hooks.example/")
    with pytest.raises(UrlRejected):
        policy.check_url("https://other.example/")


async def test_a_real_server_wakes_a_real_receiver() -> None:
    received: list[bytes] = []

    async def receive(stream: ByteStream) -> None:
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request or not request.endswith(b"}"):
                request += await stream.receive()
            received.append(request)
            await stream.send(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"done":true}')

    async with listening(receive) as port, Server(webhooks=True, allow_insecure_webhooks=True) as server:

        def talk() -> None:
            connection = HTTPConnection(*server.base_url.removeprefix("http://").split(":"), timeout=20)  # type: ignore[arg-type]

            def call(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
                connection.request(method, f"/v1/stream/{path}", body, headers)
                answer = connection.getresponse()
                assert answer.status < 300
                return answer.read()

            config = {"type": "webhook", "pattern": "demo/*", "webhook": {"url": f"http://127.0.0.1:{port}/hook"}}
            call("PUT", "__ds/subscriptions/s1", json.dumps(config).encode())
            call("PUT", "demo/a", b"0123456789")
            while True:
                cursors = json.loads(call("GET", "__ds/subscriptions/s1"))["streams"]
                if [link["acked_offset"] for link in cursors] == [offset(10)]:
                    connection.close()
                    return
                time.sleep(0.01)

        with anyio.fail_after(30):
            await anyio.to_thread.run_sync(talk, abandon_on_cancel=True)

    assert len(received) == 1
    assert received[0].startswith(b"POST /hook HTTP/1.1\r\n")
    assert json.loads(received[0].partition(b"\r\n\r\n")[2])["streams"][0]["path"] == "demo/a"
