"""The control interface: routes, bodies, errors (protocol 6, server 15.1)."""

import json
import sys

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.server import DurableStreamsApp, MemoryStore
from durable_streams.server.subscriptions.bodies import (
    BadRequest,
    Paths,
    read_acks,
    read_config,
    read_object,
    read_wake,
)

from ..driver import Client, Clock, offset
from .driver import HOOK_URL, error, serving

pytestmark = pytest.mark.anyio

PULL = {"type": "pull-wake", "pattern": "demo/*", "wake_stream": "wake"}
HOOK = {"type": "webhook", "pattern": "demo/*", "webhook": {"url": HOOK_URL}}


async def test_a_subscription_is_shown_as_documented() -> None:
    async with serving(clock=Clock(1_788_264_000.25)) as bench:
        await bench.write("demo/a")
        answer = await bench.put("s1", **HOOK, streams=["/named/"], description="what for")

        assert answer.status == 201
        value = answer.json()
        kid = value["webhook"]["signing"].pop("kid")
        assert kid.startswith("ds_")
        assert value == {
            "id": "s1",
            "subscription_id": "s1",
            "type": "webhook",
            "pattern": "demo/*",
            "streams": [
                {"path": "demo/a", "link_type": "glob", "acked_offset": offset(10)},
                {"path": "named", "link_type": "explicit", "acked_offset": "-1"},
            ],
            "webhook": {
                "url": HOOK_URL,
                "signing": {"alg": "ed25519", "jwks_url": "http://s.example/v1/stream/__ds/jwks.json"},
            },
            "wake_stream": None,
            "lease_ttl_ms": 30000,
            "created_at": "2026-09-01T12:00:00.250Z",
            "status": "active",
            "description": "what for",
        }
        again = await bench.call("GET", "s1")
        assert (again.status, again.json()["id"]) == (200, "s1")
        assert again.headers["cache-control"] == "no-store"


async def test_pull_wake_is_shown_with_its_wake_stream() -> None:
    async with serving() as bench:
        value = (await bench.put("s2", **PULL)).json()

        assert (value["webhook"], value["wake_stream"], value["type"]) == (None, "wake", "pull-wake")


async def test_the_same_configuration_is_confirmed_however_it_is_written() -> None:
    async with serving() as bench:
        assert (await bench.put("s2", **PULL, streams=["b", "a/%7Eb"])).status == 201

        same = await bench.put(
            "s2", **{**PULL, "pattern": "/demo/*/"}, streams=["a/~b", "b", "/b"], lease_ttl_ms=30000, webhook={"url": 7}
        )

        assert same.status == 200, same.text


@pytest.mark.parametrize(
    "change",
    [{"pattern": "x"}, {"streams": ["b"]}, {"wake_stream": "y"}, {"lease_ttl_ms": 1000}, {"description": ""}],
    ids=str,
)
async def test_another_configuration_is_a_conflict(change: dict[str, object]) -> None:
    async with serving() as bench:
        await bench.put("s2", **PULL)

        assert error(await bench.put("s2", **{**PULL, **change})) == (409, "SUBSCRIPTION_ALREADY_EXISTS")
        assert error(await bench.put("s2", **HOOK)) == (409, "SUBSCRIPTION_ALREADY_EXISTS")


MALFORMED: list[bytes] = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"\xff",
    b"NaN",
    b"[" * 100_000,
    b'{"type": 1' + b"0" * 5000 + b"}",
    *(
        json.dumps(value).encode()
        for value in (
            {},
            {**PULL, "type": "push"},
            {**PULL, "type": ["webhook"]},
            {"type": "pull-wake", "wake_stream": "w"},
            {"type": "pull-wake", "wake_stream": "w", "streams": []},
            {**PULL, "pattern": ""},
            {**PULL, "pattern": "/"},
            {**PULL, "pattern": "a//b"},
            {**PULL, "pattern": "../x"},
            {**PULL, "pattern": "a/%zz"},
            {**PULL, "pattern": "a" * 1025},
            {**PULL, "pattern": 7},
            {**PULL, "pattern": "\ud800"},
            {**PULL, "streams": "a"},
            {**PULL, "streams": [7]},
            {**PULL, "streams": [""]},
            {**PULL, "streams": ["a/../b"]},
            {**PULL, "streams": ["__ds/x"]},
            {**PULL, "streams": ["a\n"]},
            {**PULL, "streams": ["\ud800"]},
            {**PULL, "streams": ["wake"]},
            {**PULL, "wake_stream": None},
            {**PULL, "wake_stream": ""},
            {**PULL, "wake_stream": "__ds"},
            {**PULL, "lease_ttl_ms": 999},
            {**PULL, "lease_ttl_ms": 600_001},
            {**PULL, "lease_ttl_ms": 1000.0},
            {**PULL, "lease_ttl_ms": True},
            {**PULL, "lease_ttl_ms": "1000"},
            {**PULL, "description": 7},
            {**HOOK, "webhook": None},
            {**HOOK, "webhook": HOOK_URL},
            {**HOOK, "webhook": {}},
            {**HOOK, "webhook": {"url": None}},
        )
    ),
]


async def test_a_malformed_configuration_is_refused() -> None:
    async with serving() as bench:
        for body in MALFORMED:
            answer = await bench.client.call("PUT", "__ds/subscriptions/s1", body)

            assert error(answer) == (400, "INVALID_REQUEST"), body[:100]
            assert (await bench.call("GET", "s1")).status == 404


@pytest.mark.parametrize("url", ["http://10.0.0.1/hook", "http://127.0.0.1/", "https://localhost/", "nonsense", ""])
async def test_a_webhook_that_leads_inside_is_refused(url: str) -> None:
    async with serving() as bench:
        assert error(await bench.put("s1", **{**HOOK, "webhook": {"url": url}})) == (400, "WEBHOOK_URL_REJECTED")


async def test_development_may_use_this_machine() -> None:
    async with serving(allow_insecure_webhooks=True) as bench:
        assert (await bench.put("s1", **{**HOOK, "webhook": {"url": "http://localhost:4000/"}})).status == 201


async def test_an_unknown_subscription_is_not_found() -> None:
    async with serving() as bench:
        for method, path in (
            ("GET", "x"),
            ("POST", "x/streams"),
            ("DELETE", "x/streams/a"),
            ("POST", "x/claim"),
            ("POST", "x/ack"),
            ("POST", "x/release"),
            ("POST", "x/callback"),
        ):
            answer = await bench.call(method, path, {"streams": ["a"], "worker": "A"})
            assert error(answer) == (404, "SUBSCRIPTION_NOT_FOUND"), path
        assert (await bench.call("DELETE", "x")).status == 204


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "s1", "GET, PUT, DELETE, OPTIONS"),
        ("HEAD", "s1", "GET, PUT, DELETE, OPTIONS"),
        ("GET", "s1/claim", "POST, OPTIONS"),
        ("PUT", "s1/ack", "POST, OPTIONS"),
        ("GET", "s1/callback", "POST, OPTIONS"),
        ("DELETE", "s1/release", "POST, OPTIONS"),
        ("GET", "s1/streams", "POST, OPTIONS"),
        ("POST", "s1/streams/a/b", "DELETE, OPTIONS"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(method: str, path: str, allow: str) -> None:
    async with serving() as bench:
        answer = await bench.call(method, path)

        assert (answer.status, answer.headers["allow"]) == (405, allow)
        assert answer.headers["content-type"] == "application/json"


async def test_keys_are_for_reading() -> None:
    async with serving() as bench:
        assert (await bench.client.post("__ds/jwks.json")).headers["allow"] == "GET, OPTIONS"


@pytest.mark.parametrize("path", ["s1/claim/x", "s1/nonsense", "s1/ack/now", "s1/streams/__ds/jwks.json/"])
async def test_other_paths_are_not_there(path: str) -> None:
    async with serving() as bench:
        assert (await bench.call("GET", path)).status in (400, 404, 405)
        assert (await bench.call("POST", path)).status in (400, 404, 405)


@pytest.mark.parametrize("path", ["", "s1/", "/s1", "s1//ack", "s1%00", "s1%", "../s1"])
@pytest.mark.parametrize("mount", ["", "/api"])
async def test_a_malformed_path_is_refused_in_json(path: str, mount: str) -> None:
    async with serving() as bench:
        answer = await bench.client.call("GET", f"__ds/subscriptions/{path}", root_path=mount)

        assert error(answer) == (400, "INVALID_REQUEST")
        assert answer.headers["content-type"] == "application/json"


async def test_an_id_may_have_any_characters() -> None:
    async with serving() as bench:
        await bench.write("demo/a")
        answer = await bench.put("a%2Fb%20%C3%BC", **{**HOOK, "pattern": "new/*"})
        assert answer.json()["id"] == "a/b ü"
        await bench.write("new/x")

        delivery = await bench.hook.next()

        url = delivery.body["callback_url"]
        assert url == "http://s.example/v1/stream/__ds/subscriptions/a%2Fb%20%C3%BC/callback"
        value = {**delivery.wake, "acks": [], "done": True}
        done = await bench.call("POST", "a%2Fb%20%C3%BC/callback", value, delivery.token)
        assert done.status == 200, done.text
        delivery.answer(200, {"done": True})
        (await bench.hook.next()).answer(200, {"done": True})


async def test_the_public_url_stands_in_for_the_host() -> None:
    async with serving(public_url="https://edge.example/prefix/") as bench:
        signing = (await bench.put_hook()).json()["webhook"]["signing"]

        assert signing["jwks_url"] == "https://edge.example/prefix/v1/stream/__ds/jwks.json"


@pytest.mark.parametrize(
    "url", ["edge.example", "https://", "https://u:p@x/", "https://x/?q", "https://x/#f", "ftp://x"]
)
async def test_a_public_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="public_url must be a URL"):
        DurableStreamsApp(public_url=url)


async def test_a_mounted_application_has_its_own_subscriptions() -> None:
    async with serving() as bench:
        target = "/app/v1/stream/__ds/subscriptions/s2"
        created = await bench.client.call("PUT", target, json.dumps(PULL).encode(), root_path="/app")
        assert created.status == 201
        await bench.client.call(
            "PUT", "/app/v1/stream/demo/a", b"abc", [("content-type", "text/plain")], root_path="/app"
        )

        mounted = await bench.client.call("GET", target, root_path="/app")

        assert [link["path"] for link in mounted.json()["streams"]] == ["demo/a"]
        assert (await bench.call("GET", "s2")).status == 404


# Membership


async def test_streams_are_added_at_their_tails_and_dropped() -> None:
    async with serving() as bench:
        await bench.put_pull()
        await bench.write("x/a")

        assert (await bench.call("POST", "s2/streams", {"streams": ["x/a", "/x/b/"]})).status == 204
        assert await bench.cursors("s2") == {"x/a": offset(10), "x/b": "-1"}
        await bench.write("x/a")
        assert (await bench.call("POST", "s2/streams", {"streams": ["x/a"]})).status == 204
        assert await bench.cursors("s2") == {"x/a": offset(10), "x/b": "-1"}

        assert (await bench.call("DELETE", "s2/streams/x%2Fa")).status == 204
        assert (await bench.call("DELETE", "s2/streams/x/b")).status == 204
        assert (await bench.call("DELETE", "s2/streams/never/there")).status == 204
        assert await bench.cursors("s2") == {}
        assert error(await bench.call("POST", "s2/claim", {"worker": "A"})) == (409, "NO_PENDING_WORK")


async def test_the_link_by_the_pattern_stays() -> None:
    async with serving() as bench:
        await bench.write("demo/a")
        await bench.put_pull()
        await bench.call("POST", "s2/streams", {"streams": ["demo/a"]})
        assert (await bench.get("s2"))["streams"][0]["link_type"] == "explicit"

        await bench.call("DELETE", "s2/streams/demo/a")

        assert (await bench.get("s2"))["streams"][0]["link_type"] == "glob"


@pytest.mark.parametrize("streams", [None, "a", [1], ["wake"], ["__ds"]], ids=str)
async def test_malformed_members_are_refused(streams: object) -> None:
    async with serving() as bench:
        await bench.put_pull()

        assert error(await bench.call("POST", "s2/streams", {"streams": streams})) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize("path", ["%FF", "__ds%2Fx", "%252e%252e", "a%250Ab"])
async def test_a_malformed_path_of_a_member_is_refused(path: str) -> None:
    async with serving() as bench:
        await bench.put_pull()

        assert error(await bench.call("DELETE", f"s2/streams/{path}")) == (400, "INVALID_REQUEST")


# Workers' requests


@pytest.mark.parametrize("value", [{}, {"worker": ""}, {"worker": 7}, {"worker": "\ud800"}, None])
async def test_a_claim_needs_a_worker(value: object) -> None:
    async with serving() as bench:
        await bench.put_pull()

        assert error(await bench.call("POST", "s2/claim", value)) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Bearer x", "Basic eDp5", "Bearer a.b", "é"])
async def test_a_token_is_needed(authorization: str | None) -> None:
    async with serving() as bench:
        await bench.put_pull()
        await bench.write("demo/a")
        claim = await bench.claim()
        body = json.dumps({"wake_id": claim["wake_id"], "generation": 1, "acks": [], "done": True}).encode()
        headers = [] if authorization is None else [("authorization", authorization.encode("latin-1"))]

        for action in ("ack", "release"):
            answer = await bench.client.call("POST", f"__ds/subscriptions/s2/{action}", body, headers)
            assert error(answer) == (401, "TOKEN_INVALID")
            assert answer.headers["www-authenticate"] == "Bearer"
        good = [("authorization", f"bearer  {claim['token']}")]
        assert (await bench.client.call("POST", "__ds/subscriptions/s2/ack", body, good)).status == 200


async def test_tokens_are_for_one_subscription_and_one_purpose() -> None:
    async with serving() as bench:
        await bench.put_pull("s2")
        await bench.put_pull("s3")
        await bench.write("demo/a")
        two, three = await bench.claim("s2"), await bench.claim("s3")

        stolen = {**two, "token": three["token"]}

        assert error(await bench.ack(stolen, done=True)) == (401, "TOKEN_INVALID")


async def test_actions_belong_to_types() -> None:
    async with serving() as bench:
        await bench.put_hook("s1")
        await bench.put_pull("s2")
        value = {"worker": "A", "wake_id": "w", "generation": 1}

        for path in ("s1/claim", "s1/ack", "s1/release", "s2/callback"):
            assert error(await bench.call("POST", path, value, "x")) == (400, "INVALID_REQUEST"), path


@pytest.mark.parametrize(
    "change",
    [
        {"wake_id": None},
        {"wake_id": 7},
        {"generation": None},
        {"generation": "1"},
        {"generation": True},
        {"generation": 1.0},
        {"acks": {}},
        {"acks": [7]},
        {"acks": [{}]},
        {"acks": [{"stream": "demo/a"}]},
        {"acks": [{"stream": "demo/a", "offset": 7}]},
        {"acks": [{"stream": 7, "offset": "x"}]},
        {"done": "true"},
        {"done": None},
    ],
    ids=str,
)
async def test_malformed_acks_are_refused(change: dict[str, object]) -> None:
    async with serving() as bench:
        await bench.put_pull()
        await bench.write("demo/a")
        claim = await bench.claim()
        value = {"wake_id": claim["wake_id"], "generation": 1, "acks": [], "done": True, **change}

        assert error(await bench.call("POST", "s2/ack", value, claim["token"])) == (400, "INVALID_REQUEST")


async def test_a_large_body_is_refused_in_json() -> None:
    async with serving() as bench:
        answer = await bench.client.call("PUT", "__ds/subscriptions/s1", b" " * (1 << 20) + b"{}")

        assert error(answer) == (413, "PAYLOAD_TOO_LARGE")
        assert answer.headers["connection"] == "close"
        coded = await bench.client.call("PUT", "__ds/subscriptions/s1", b"{}", [("content-encoding", "gzip")])
        assert error(coded) == (415, "UNSUPPORTED_CONTENT_ENCODING")


async def test_without_the_lifespan_subscriptions_are_refused() -> None:
    client = Client(DurableStreamsApp())

    answer = await client.call("PUT", "__ds/subscriptions/s2", json.dumps(PULL).encode())

    assert error(answer) == (501, "NOT_SUPPORTED")


async def test_a_store_that_keeps_no_subscriptions_is_served_all_the_same() -> None:
    class Bare:
        def __init__(self) -> None:
            self._inner = MemoryStore()

        def __getattr__(self, name: str) -> object:
            if "subscription" in name or name in ("list_streams", "keep_secret"):
                raise AttributeError(name)
            return getattr(self._inner, name)

        async def __aenter__(self) -> "Bare":
            return self

        async def __aexit__(self, *_: object) -> None:
            return None

    async with serving(Bare()) as bench:
        assert (await bench.client.put("a")).status == 201
        assert error(await bench.put("s2", **PULL)) == (501, "NOT_SUPPORTED")


async def test_a_store_that_cannot_load_ends_the_start() -> None:
    class Broken(MemoryStore):
        closed = False

        async def load_subscriptions(self):  # type: ignore[no-untyped-def]
            raise OSError("disk on fire")

        async def __aexit__(self, *_: object) -> None:
            self.closed = True

    store = Broken()
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    with anyio.fail_after(20), pytest.raises(OSError, match="disk on fire"):
        await DurableStreamsApp(store)({"type": "lifespan"}, receive, send)

    assert sent == [{"type": "lifespan.startup.failed", "message": "OSError: disk on fire"}]
    assert store.closed


async def test_a_short_token_key_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="token_key must have at least 32 bytes"):
        DurableStreamsApp(token_key=b"short")


async def test_missing_libraries_are_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httptools", None)
    with pytest.raises(ModuleNotFoundError, match="webhooks"):
        DurableStreamsApp(webhooks=True)
    DurableStreamsApp()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        *("type", "pattern", "streams", "webhook", "wake_stream", "lease_ttl_ms", "description"),
        *("wake_id", "generation", "acks", "done"),
    ]
)


@settings(deadline=None)
@given(st.dictionaries(FIELDS, JSON), st.sampled_from([PULL, HOOK, {}]))
def test_any_body_is_read_or_refused_and_nothing_else(fields: dict[str, object], base: dict[str, object]) -> None:
    paths = Paths("/v1/stream")
    value = {**base, **fields}
    for read in (lambda: read_config(value, paths), lambda: read_wake(value), lambda: read_acks(value, paths)):
        try:
            read()
        except BadRequest:
            continue


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    try:
        assert isinstance(read_object(body), dict)
    except BadRequest:
        return
