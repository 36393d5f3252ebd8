"""What a request goes through before it reaches a stream: common headers, paths, methods, syntax (server 2)."""

import pytest

from durable_streams.server import DurableStreamsApp

from .driver import Client, Clock, connect, exchange, make_client, offset, scope_for

pytestmark = pytest.mark.anyio


async def test_common_headers_are_on_every_answer(client: Client) -> None:
    await client.put("x", "text/plain")
    answers = [
        await client.get("x"),
        await client.get("missing"),
        await client.call("PATCH", "x"),
        await client.call("OPTIONS", "x"),
        await client.get("/elsewhere"),
        await client.get("__ds/subscriptions/s"),
        await client.post("x", b"", "text/plain"),
    ]
    for answer in answers:
        headers = answer.headers
        assert headers["access-control-allow-methods"] == "GET, POST, PUT, DELETE, HEAD, OPTIONS"
        assert {"If-None-Match", "Prefer", "Stream-Fork-Sub-Offset"} <= set(
            headers["access-control-allow-headers"].split(", ")
        )
        assert {"Stream-SSE-Data-Encoding", "Producer-Expected-Seq", "Vary"} <= set(
            headers["access-control-expose-headers"].split(", ")
        )


async def test_common_headers_are_configurable() -> None:
    app = DurableStreamsApp(cors_origin="https://app.example", corp="same-site")
    async with connect(app, scope_for("OPTIONS", "/v1/stream/x")) as connection:
        await connection.head()
        await connection.rest()
    assert connection.headers["access-control-allow-origin"] == "https://app.example"
    assert connection.headers["cross-origin-resource-policy"] == "same-site"


@pytest.mark.parametrize(
    "options",
    [
        {"corp": "nowhere"},
        {"cors_origin": "a\r\nb"},
        {"root": "v1"},
        {"root": "/v1/../x"},
        {"long_poll_timeout": 0},
        {"page_bytes": -1},
        {"cache_visibility": "shared"},
    ],
)
def test_wrong_options_are_refused_at_once(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DurableStreamsApp(**options)  # type: ignore[arg-type]


async def test_options_is_answered_before_routing(client: Client) -> None:
    for path in ("x", "missing", "/elsewhere", "__ds/x", "/v1/stream/%zz"):
        answer = await client.call("OPTIONS", path)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-max-age"] == "86400"


async def test_other_methods_are_405_with_allow(client: Client) -> None:
    for method in ("PATCH", "TRACE", "get", "MKCOL"):
        answer = await client.call(method, "x")
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, POST, PUT, DELETE, HEAD, OPTIONS"


async def test_the_reserved_prefix_answers_json_and_never_is_a_stream(client: Client) -> None:
    for path in ("__ds", "__ds/x", "__ds/subscriptions", "%5F_ds/x"):
        for method in ("PUT", "GET", "POST", "DELETE", "PATCH"):
            answer = await client.call(method, path)
            assert answer.status == 404
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["error"]["code"] == "NOT_FOUND"
    assert (await client.put("__dsx")).status == 201
    assert (await client.put("x/__ds")).status == 201


@pytest.mark.parametrize(
    "path",
    [
        "x/../y",
        "x/./y",
        "x/%2e%2E/y",
        "%2e",
        "x//y",
        "x/",
        "/v1/stream//x",
        "/v1/stream/",
        "/",
        "x%00y",
        "x%0ay",
        "x%7f",
        "x%",
        "x%2",
        "x%zz",
        "x%ff",
        "x%c3",
        "x%ed%a0%80",
        "x" * 1100,
    ],
)
async def test_unacceptable_paths_are_400(client: Client, path: str) -> None:
    for method in ("PUT", "GET", "POST", "HEAD", "DELETE"):
        assert (await client.call(method, path)).status == 400


@pytest.mark.parametrize("path", ["/v1", "/v1/stream", "/v1/streams/x", "/x", "/V1/stream/x"])
async def test_paths_outside_the_root_are_404(client: Client, path: str) -> None:
    assert (await client.call("PUT", path)).status == 404


async def test_a_stream_has_one_name_however_it_is_spelled(client: Client) -> None:
    assert (await client.put("p%c3%a4th/a%2Fb", "text/plain", b"1")).status == 201
    for path in ("%70%C3%A4th/a%2fb", "p%c3%A4t%68/%61%2Fb"):
        assert (await client.get(path)).body == b"1"
    assert (await client.get("p%c3%a4th/a/b")).status == 404
    assert (await client.put("%70", "text/plain")).headers["location"] == "http://s.example/v1/stream/p"


async def test_without_raw_path_the_path_is_quoted(client: Client) -> None:
    await client.put("a%20b/%C3%A4", "text/plain", b"1")
    answer = await client.call("GET", "a%20b/%C3%A4", raw_path=False)
    assert answer.body == b"1"


async def test_the_root_is_configurable() -> None:
    client = make_client(root="/streams/")
    assert (await client.put("/streams/x")).status == 201
    assert (await client.put("/v1/stream/x")).status == 404
    client = make_client(root="")
    assert (await client.put("/x")).headers["location"] == "http://s.example/x"
    assert (await client.get("/__ds")).headers["content-type"] == "application/json"


@pytest.mark.parametrize("raw_has_prefix", [True, False])
async def test_below_a_mount_point_streams_are_named_by_their_full_path(raw_has_prefix: bool) -> None:
    client = make_client()
    target = "/my%20app/v1/stream/x" if raw_has_prefix else "/v1/stream/x"
    created = await client.call("PUT", target, root_path="/my app")
    assert created.status == 201
    assert created.headers["location"] == "http://s.example/my%20app/v1/stream/x"
    assert (await client.call("GET", "/my%20app/v1/stream/x", root_path="/my app/")).status == 200
    assert (await client.call("GET", "/v1/stream/x")).status == 404
    assert (await client.call("GET", "/my%20app/__ds", root_path="/my app")).status == 404
    control = await client.call("GET", "/my%20app/v1/stream/__ds", root_path="/my app")
    assert control.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("host", "location"),
    [
        ("s.example:8080", "http://s.example:8080/v1/stream/x"),
        ("[::1]:4437", "http://[::1]:4437/v1/stream/x"),
        ("", "http://127.0.0.1:4437/v1/stream/x"),
    ],
)
async def test_location_is_the_url_as_the_client_addressed_us(client: Client, host: str, location: str) -> None:
    answer = await client.call("PUT", "x", headers={"host": host})
    assert answer.headers["location"] == location


@pytest.mark.parametrize("host", ["a b", "a/b", "a@b", "a:b", "[::1", "a\x7f", "\xe4", "a?b", "a#b", "<a>"])
async def test_a_bad_host_is_400(client: Client, host: str) -> None:
    for method in ("PUT", "GET"):
        assert (await client.call(method, "x", headers={"host": host})).status == 400


@pytest.mark.parametrize(
    "header",
    [
        ("content-type", "text/plain"),
        ("stream-closed", "true"),
        ("stream-seq", "a"),
        ("stream-ttl", "60"),
        ("stream-expires-at", "2099-01-01T00:00:00Z"),
        ("stream-forked-from", "/v1/stream/y"),
        ("stream-fork-offset", offset(0)),
        ("stream-fork-sub-offset", "0"),
        ("producer-id", "p"),
        ("producer-epoch", "0"),
        ("producer-seq", "0"),
        ("host", "s.example"),
        ("content-length", "0"),
    ],
)
async def test_a_header_with_one_value_may_not_be_repeated(client: Client, header: tuple[str, str]) -> None:
    for method in ("PUT", "POST"):
        answer = await client.call(method, "x", headers=[header, header])
        assert answer.status == 400


async def test_other_headers_may_be_repeated(client: Client) -> None:
    await client.put("x", "text/plain", b"1")
    etag = (await client.get("x")).headers["etag"]
    headers = [("cookie", "a=1"), ("cookie", "b=2"), ("if-none-match", '"no"'), ("if-none-match", etag)]
    assert (await client.call("GET", "x", headers=headers)).status == 304


async def test_error_bodies_are_one_line_and_repeat_nothing_of_the_request(client: Client) -> None:
    secret = "s3cret"
    await client.put("x", "application/json")
    answers = [
        await client.get(f"{secret}"),
        await client.get(f"x?offset={secret}"),
        await client.get(f"x?offset=-1&live={secret}"),
        await client.post("x", b'{"s3cret', "application/json"),
        await client.post("x", secret.encode(), f"text/{secret}"),
        await client.post("x", b"1", "application/json", producer_id=secret, producer_epoch="x", producer_seq="0"),
        await client.put("x", f"text/{secret}"),
        await client.put("y", None, b"", stream_ttl=secret),
        await client.put("y", None, b"", stream_expires_at=secret),
        await client.put(f"/{secret}/x"),
        await client.put(f"{secret}%00"),
        await client.call("PUT", "y", headers={"host": f"{secret} "}),
        await client.call(secret, "x"),
    ]
    for answer in answers:
        assert answer.status >= 400
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.body.count(b"\n") == 1
        assert answer.body.endswith(b"\n")
        assert secret not in answer.text
        assert secret not in str(answer.headers)


async def test_a_body_of_the_limit_is_taken_and_a_longer_one_is_413(client: Client) -> None:
    await client.put("x", "text/plain")
    assert (await client.post("x", b"a" * 300_000, "text/plain")).status == 204
    for body in (b"a" * 300_001, [b"a" * 200_000, b"a" * 100_001]):
        answer = await client.call("POST", "x", body, {"content-type": "text/plain"})
        assert answer.status == 413
        assert answer.headers["connection"] == "close"
    assert (await client.call("PUT", "y", [b"a" * 300_001])).status == 413
    assert (await client.head("y")).status == 404
    assert (await client.head("x")).next_offset == offset(300_000)


@pytest.mark.parametrize("body", [b"", b"abc"])
async def test_a_body_that_the_server_lost_is_neither_an_append_nor_an_empty_one(client: Client, body: bytes) -> None:
    """uvicorn passes the body of a request that asks for an upgrade to nobody."""
    await client.put("x", "text/plain")
    headers = {"content-type": "text/plain", "content-length": "4", "stream-closed": "true"}

    for method, path in (("POST", "x"), ("PUT", "y")):
        assert (await client.call(method, path, [body], headers)).status == 400

    head = await client.head("x")
    assert (head.next_offset, "stream-closed" in head.headers) == (offset(0), False)
    assert (await client.head("y")).status == 404


async def test_a_declared_length_beyond_the_limit_is_answered_without_reading(client: Client) -> None:
    await client.put("x", "text/plain")
    headers = {"content-type": "text/plain", "content-length": "300001", "expect": "100-continue"}
    async with connect(client.app, client.scope("POST", "x", headers)) as connection:
        assert await connection.head() == 413
        await connection.rest()
    assert connection.received == 0
    assert connection.headers["connection"] == "close"


async def test_connection_close_is_not_sent_over_http_2(client: Client) -> None:
    answer = await client.call("PUT", "x", [b"a" * 300_001], http_version="2")
    assert answer.status == 413
    assert "connection" not in answer.headers


async def test_a_large_upload_to_nowhere_is_refused_before_it_is_read(client: Client) -> None:
    for headers in ({"content-length": "200000"}, {"transfer-encoding": "chunked"}):
        scope = client.scope("POST", "missing", {"content-type": "text/plain", **headers})
        async with connect(client.app, scope) as connection:
            assert await connection.head() == 404
            await connection.rest()
        assert connection.received == 0


@pytest.mark.parametrize("length", ["-1", "+1", "1_0", "0x1", "1.0", "", " 1", "\xb2"])
async def test_a_length_that_is_no_number_is_400(client: Client, length: str) -> None:
    await client.put("x", "text/plain")
    answer = await client.call("POST", "x", b"a", {"content-type": "text/plain", "content-length": length})
    assert answer.status == 400


async def test_compressed_bodies_are_415(client: Client) -> None:
    await client.put("x", "text/plain")
    for coding, status in (("gzip", 415), ("br, gzip", 415), ("identity", 204), ("IDENTITY", 204), ("", 204)):
        headers = {"content-type": "text/plain", "content-encoding": coding}
        assert (await client.call("POST", "x", b"a", headers)).status == status
    assert (await client.call("PUT", "y", b"a", {"content-encoding": "gzip"})).status == 415
    assert (await client.head("y")).status == 404


async def test_a_client_that_leaves_during_its_upload_stores_nothing(client: Client) -> None:
    await client.put("x", "text/plain")
    headers = {"content-type": "text/plain", "content-length": "10"}
    for method, path in (("POST", "x"), ("PUT", "y")):
        async with connect(client.app, client.scope(method, path, headers)) as connection:
            connection.send_body(b"half", more=True)
            connection.disconnect()
            await connection.finished.wait()
            assert not connection.status
    assert (await client.head("x")).next_offset == offset(0)
    assert (await client.head("y")).status == 404


async def test_a_body_in_many_pieces_is_one_append(client: Client) -> None:
    await client.put("x", "application/json")
    pieces = [b"[1", b"", b",", b"2]", b""]
    assert (await client.call("POST", "x", pieces, {"content-type": "application/json"})).status == 204
    assert (await client.get("x")).body == b"[1,2]"


async def test_a_failing_store_is_a_500_without_details(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("the disk is s3cret")

    client = Client(DurableStreamsApp(Broken(), clock=clock))  # type: ignore[arg-type]
    answer = await client.get("x")
    assert answer.status == 500
    assert answer.text == "internal error\n"
    assert "the disk is s3cret" in caplog.text


async def test_websockets_are_turned_away_and_unknown_scopes_are_an_error() -> None:
    app = DurableStreamsApp()
    sent = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await app({"type": "websocket"}, receive, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1000}]
    with pytest.raises(ValueError, match="tcp"):
        await app({"type": "tcp"}, receive, send)  # type: ignore[arg-type]


async def test_a_missing_query_string_is_an_empty_one(client: Client) -> None:
    await client.put("x", "text/plain", b"1")
    scope = client.scope("GET", "x")
    del scope["query_string"]
    assert (await exchange(client.app, scope, [b""])).body == b"1"
