"""Who may do what, asked before anything is looked up (server 2.1; issue: "nothing leaks to the unauthorised")."""

import json
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from durable_streams.server import AccessRequest, Allow, Deny, DurableStreamsApp, MemoryStore, Server

from .driver import ROOT, Client, connect, make_client

pytestmark = pytest.mark.anyio
TEXT = "text/plain"
Verdict = Allow | Deny


class Authorizer:
    """Allows what is in `allowed`, and remembers what it was asked."""

    def __init__(self, *allowed: tuple[str, str], denial: Deny | None = None) -> None:
        self.allowed = set(allowed)
        self.denial = denial or Deny(403)
        self.asked: list[tuple[str, str, str]] = []

    def __call__(self, request: AccessRequest) -> Verdict:
        self.asked.append((request.method, request.path, request.action))
        return Allow() if (request.action, request.path) in self.allowed else self.denial


class Untouchable(MemoryStore):
    """Fails the test when anything is looked up."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("head", "read", "append", "create", "delete", "watch", "touch"):
            raise AssertionError(f"{name} was called")
        return super().__getattribute__(name)


def full(name: str) -> str:
    return f"{ROOT}/{name}"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"])
async def test_a_refusal_is_the_same_whatever_there_is(method: str, status: int) -> None:
    client = make_client(store=Untouchable(), authorize=Authorizer(denial=Deny(status)))  # type: ignore[arg-type]
    answers = [
        await client.call(method, target, b"abc" if method in ("PUT", "POST") else b"", headers)
        for target in ("a", "b?offset=-1&live=sse", "c?offset=now", "d?offset=bad")
        for headers in ({"content-type": TEXT}, {"content-type": TEXT, "producer-id": "p"})
    ]
    for answer in answers:
        assert answer.status == status
        assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        assert answer.headers == answers[0].headers
        assert answer.body == answers[0].body


async def test_streams_that_exist_and_those_that_do_not_look_alike() -> None:
    authorizer = Authorizer()
    client = make_client(authorize=authorizer)
    authorizer.allowed = {("write", full("there"))}
    assert (await client.put("there", TEXT, b"abc")).status == 201
    authorizer.allowed = set()
    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        there, missing = [await client.call(method, name, b"", {"content-type": TEXT}) for name in ("there", "missing")]
        assert there == missing
    assert len(authorizer.asked) == 11


async def test_reading_and_writing_are_told_apart() -> None:
    authorizer = Authorizer(("write", full("x")))
    client = make_client(authorize=authorizer)
    assert (await client.put("x", TEXT, b"abc")).status == 201
    assert (await client.post("x", b"def", TEXT)).status == 204
    assert (await client.get("x")).status == 403
    assert (await client.head("x")).status == 403
    authorizer.allowed = {("read", full("x"))}
    assert (await client.get("x")).body == b"abcdef"
    assert (await client.head("x")).status == 200
    assert (await client.delete("x")).status == 403
    assert authorizer.asked == [
        ("PUT", full("x"), "write"),
        ("POST", full("x"), "write"),
        ("GET", full("x"), "read"),
        ("HEAD", full("x"), "read"),
        ("GET", full("x"), "read"),
        ("HEAD", full("x"), "read"),
        ("DELETE", full("x"), "write"),
    ]


async def test_what_is_asked_about_is_the_normalised_full_path() -> None:
    authorizer = Authorizer(("write", "/api/v1/stream/a%2Fb/c"))
    client = make_client(authorize=authorizer)
    answer = await client.call("PUT", "/api/v1/stream/a%2fb/%63", root_path="/api")
    assert answer.status == 201
    for target in ("../../secret", "a/../b", "a//b", "%2e%2e/b"):
        assert (await client.get(target)).status == 400
    assert (await client.get("/elsewhere/x")).status == 404
    assert len(authorizer.asked) == 1


async def test_a_fork_needs_the_right_to_read_its_source() -> None:
    authorizer = Authorizer(("write", full("source")), ("write", full("fork")))
    client = make_client(authorize=authorizer)
    await client.put("source", TEXT, b"secret")
    for source in ("source", "missing"):
        answer = await client.put("fork", TEXT, stream_forked_from=full(source))
        assert (answer.status, answer.text) == (403, "you may not do this\n")
    assert authorizer.asked[-2:] == [("PUT", full("fork"), "write"), ("PUT", full("missing"), "read")]
    authorizer.allowed.add(("read", full("source")))
    assert (await client.put("fork", TEXT, stream_forked_from=full("source"))).status == 201


async def test_an_async_authorizer_is_awaited() -> None:
    async def authorize(request: AccessRequest) -> Verdict:
        await anyio.lowlevel.checkpoint()
        return Allow() if request.token == "let me in" else Deny(401, 'Basic realm="streams"')

    client = make_client(authorize=authorize)
    assert (await client.put("x", TEXT, authorization="Bearer  let me in ")).status == 201
    assert (await client.put("x", TEXT, authorization="bearer let me in")).status == 200
    refused = await client.put("x", TEXT)
    assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Basic realm="streams"')
    for wrong in ("Basic let me in", "Bearer", "Bearer ", "let me in", "Bearerlet me in"):
        assert (await client.put("x", TEXT, authorization=wrong)).status == 401


@pytest.mark.parametrize("verdict", [True, None, False, "allow", Allow])
async def test_a_wrong_verdict_lets_nobody_in(verdict: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = make_client(store=Untouchable(), authorize=lambda request: verdict)
    answer = await client.get("x")
    assert answer.status == 500
    assert "must answer Allow() or Deny(...)" in caplog.text


async def test_an_authorizer_that_fails_lets_nobody_in(caplog: pytest.LogCaptureFixture) -> None:
    def authorize(request: AccessRequest) -> Verdict:
        raise KeyError(request.headers["x-user"])

    client = make_client(store=Untouchable(), authorize=authorize)
    assert (await client.get("x", x_user="anna")).status == 500
    assert "KeyError: 'anna'" in caplog.text


async def test_what_middleware_found_out_is_passed_on() -> None:
    def authorize(request: AccessRequest) -> Verdict:
        return Allow() if request.scope.get("user") == "anna" else Deny(403)

    inner = DurableStreamsApp(authorize=authorize)

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "user": "anna"}, receive, send)

    assert (await Client(middleware).put("x")).status == 201
    assert (await Client(inner).put("x")).status == 403


async def test_preflights_and_health_are_for_everybody_and_metrics_are_not() -> None:
    authorizer = Authorizer()
    client = make_client(authorize=authorizer, metrics=True)
    assert (await client.call("OPTIONS", "x", headers={"origin": "https://a.example"})).status == 204
    assert (await client.get("/health")).status == 200
    assert (await client.get("/ready")).status == 200
    assert not authorizer.asked
    assert (await client.get("/metrics")).status == 403
    assert authorizer.asked == [("GET", "/metrics", "read")]
    authorizer.allowed.add(("read", "/metrics"))
    assert (await client.get("/metrics")).status == 200


async def test_a_long_body_of_who_may_not_is_not_waited_for() -> None:
    client = make_client(authorize=Authorizer())
    for headers, closes in (
        ({"content-length": "10"}, False),
        ({"content-length": "65536"}, False),
        ({"content-length": "65537"}, True),
        ({"content-length": "bad"}, True),
        ({"transfer-encoding": "chunked"}, True),
    ):
        async with connect(client.app, client.scope("POST", "x", headers)) as upload:
            assert await upload.head() == 403
            await upload.rest()
            assert ("connection" in upload.headers) is closes
            assert upload.received == 0


@pytest.mark.parametrize("arguments", [(200,), (404,), (401, "Bearer\r\nx: y"), (401, "é\u20ac"), (429, "Bearer", -1)])
async def test_a_denial_is_401_403_or_429_with_headers_that_can_be_sent(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"status must be|www-authenticate|retry_after"):
        Deny(*arguments)


async def test_who_asks_too_often_is_told_when_to_come_back() -> None:
    client = make_client(store=Untouchable(), authorize=Authorizer(denial=Deny(429, retry_after=7)))
    for method, target in (("GET", "a"), ("POST", "a"), ("PUT", "__ds/subscriptions/s")):
        answer = await client.call(method, target)

        assert (answer.status, answer.headers["retry-after"]) == (429, "7")
        assert "www-authenticate" not in answer.headers


# Subscriptions

PULL = {"type": "pull-wake", "pattern": "orders/*", "wake_stream": "wakes"}


def error_code(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


async def test_a_subscription_needs_the_rights_to_all_that_it_reads_and_writes() -> None:
    everything = [
        ("write", full("__ds/subscriptions/s")),
        ("read", full("orders")),
        ("write", full("wakes")),
        ("read", full("a")),
    ]
    authorizer = Authorizer(*everything)
    client = make_client(authorize=authorizer)
    body = json.dumps({**PULL, "streams": ["a"]}).encode()
    async with client.app.lifespan():
        for right in everything:
            authorizer.allowed = set(everything) - {right}
            answer = await client.call("PUT", "__ds/subscriptions/s", body)
            assert (answer.status, error_code(answer.body)) == (403, "FORBIDDEN")
        authorizer.allowed = set(everything)
        assert (await client.call("PUT", "__ds/subscriptions/s", body)).status == 201
        authorizer.allowed.add(("write", full("__ds/subscriptions/s/streams")))
        link = b'{"streams":["other"]}'
        assert (await client.call("POST", "__ds/subscriptions/s/streams", link)).status == 403
        authorizer.allowed.add(("read", full("other")))
        assert (await client.call("POST", "__ds/subscriptions/s/streams", link)).status == 204


async def test_a_pattern_without_a_fixed_beginning_needs_the_right_to_read_all() -> None:
    authorizer = Authorizer(("write", full("__ds/subscriptions/s")), ("write", full("wakes")), ("read", full("orders")))
    client = make_client(authorize=authorizer)
    async with client.app.lifespan():
        for pattern in ("**", "*/orders", "%2A/x"):
            body = json.dumps({**PULL, "pattern": pattern}).encode()
            assert (await client.call("PUT", "__ds/subscriptions/s", body)).status == 403
            assert authorizer.asked[-1] == ("PUT", ROOT, "read")


async def test_who_may_not_use_subscriptions_learns_nothing_of_them() -> None:
    authorizer = Authorizer(denial=Deny(401))
    client = make_client(authorize=authorizer)
    async with client.app.lifespan():
        authorizer.allowed = {
            ("write", full("__ds/subscriptions/s")),
            ("read", full("orders")),
            ("write", full("wakes")),
        }
        assert (await client.call("PUT", "__ds/subscriptions/s", json.dumps(PULL).encode())).status == 201
        authorizer.allowed = set()
        for method, rest in (
            ("GET", ""),
            ("PUT", ""),
            ("DELETE", ""),
            ("PATCH", ""),
            ("POST", "/claim"),
            ("POST", "/streams"),
            ("DELETE", "/streams/a"),
            ("GET", "/nonsense"),
        ):
            answers = [
                await client.call(
                    method, f"__ds/subscriptions/{name}{rest}", b"{}" if method in ("POST", "PUT") else b""
                )
                for name in ("s", "missing")
            ]
            assert answers[0] == answers[1]
            assert (answers[0].status, error_code(answers[0].body)) == (401, "UNAUTHORIZED")
            assert answers[0].headers["www-authenticate"] == "Bearer"
        assert (await client.get("__ds/nonsense")).status == 401


async def test_workers_come_back_with_the_token_of_their_wake_alone() -> None:
    authorizer = Authorizer(denial=Deny(401))
    client = make_client(authorize=authorizer)
    async with client.app.lifespan():
        authorizer.allowed = {
            ("write", full("__ds/subscriptions/s")),
            ("write", full("__ds/subscriptions/s/claim")),
            ("read", full("orders")),
            ("write", full("wakes")),
            ("write", full("orders/1")),
        }
        await client.call("PUT", "wakes", b"", {"content-type": "application/json"})
        assert (await client.call("PUT", "__ds/subscriptions/s", json.dumps(PULL).encode())).status == 201
        await client.call("PUT", "orders/1", b"x", {"content-type": TEXT})
        claim = json.loads((await client.call("POST", "__ds/subscriptions/s/claim", b'{"worker":"w"}')).body)
        authorizer.allowed = set()
        authorizer.asked.clear()
        done = json.dumps({"wake_id": claim["wake_id"], "generation": claim["generation"], "done": True}).encode()
        for headers in ({}, {"authorization": "Bearer wrong.token"}):
            for name in ("s", "missing"):
                for action in ("ack", "release", "callback"):
                    answer = await client.call("POST", f"__ds/subscriptions/{name}/{action}", done, headers)
                    assert (answer.status, error_code(answer.body)) == (401, "TOKEN_INVALID")
        bearer = {"authorization": f"Bearer {claim['token']}"}
        assert (await client.call("POST", "__ds/subscriptions/s/ack", done, bearer)).status == 200
        assert not authorizer.asked


async def test_the_public_keys_of_webhooks_are_public() -> None:
    client = make_client(authorize=Authorizer(), webhooks=True)
    async with client.app.lifespan():
        assert (await client.get("__ds/jwks.json")).status == 200


async def test_over_a_socket_a_token_opens_the_way() -> None:
    def authorize(request: AccessRequest) -> Verdict:
        return Allow() if request.token == "t" else Deny()

    async with Server(authorize=authorize) as server:
        port = int(server.base_url.rpartition(":")[2])
        for header, status in ((b"", b"401"), (b"Authorization: Bearer t\r\n", b"201")):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"PUT /v1/stream/x HTTP/1.1\r\nHost: s\r\nContent-Length: 0\r\n" + header + b"\r\n")
                with anyio.fail_after(10):
                    assert (await stream.receive()).startswith(b"HTTP/1.1 " + status)
