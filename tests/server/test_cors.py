"""Headers common to all answers, and who of other origins may use the server (server 2.4)."""

from typing import Any

import pytest

from durable_streams.server import DurableStreamsApp

from .driver import Client, connect, scope_for

pytestmark = pytest.mark.anyio
ONE, OTHER = "https://one.example", "https://other.example:8443"


async def headers_of(app: DurableStreamsApp, method: str, target: str, **headers: str) -> dict[str, str]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with connect(app, scope_for(method, f"/v1/stream/{target}", names)) as exchange:
        exchange.send_body()
        await exchange.head()
        await exchange.rest()
    return exchange.headers


async def test_one_origin_is_told_to_everybody() -> None:
    app = DurableStreamsApp(cors_origin=ONE)
    for headers in ({}, {"origin": OTHER}):
        answer = await headers_of(app, "GET", "x", **headers)
        assert answer["access-control-allow-origin"] == ONE
        assert "vary" not in answer


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "PUT", "PATCH"])
async def test_of_several_origins_each_is_told_its_own(method: str) -> None:
    app = DurableStreamsApp(cors_origin=[ONE, OTHER])
    for origin, told in ((ONE, ONE), (OTHER, OTHER), ("https://evil.example", None), (None, None), ("null", None)):
        answer = await headers_of(app, method, "x", **({} if origin is None else {"origin": origin}))
        assert answer.get("access-control-allow-origin") == told
        assert answer["vary"] == "Origin"
        assert answer["x-content-type-options"] == "nosniff"


async def test_an_origin_that_merely_looks_like_one_is_none() -> None:
    app = DurableStreamsApp(cors_origin=[ONE, OTHER])
    for origin in (f"{ONE}.evil.example", ONE.upper(), f"{ONE}/", f"{ONE}, {OTHER}", "https://one.example:443"):
        assert "access-control-allow-origin" not in await headers_of(app, "GET", "x", origin=origin)


async def test_no_origin_is_allowed_by_an_empty_list() -> None:
    answer = await headers_of(DurableStreamsApp(cors_origin=()), "GET", "x", origin=ONE)
    assert "access-control-allow-origin" not in answer


async def test_what_else_an_answer_depends_on_is_told_as_well() -> None:
    app = DurableStreamsApp(cors_origin=(ONE, OTHER))
    async with connect(app, scope_for("PUT", "/v1/stream/x", {"content-type": "text/plain"})) as exchange:
        exchange.send_body(bytes(200_000))
        assert await exchange.head() == 201
    answer = await headers_of(app, "GET", "x", origin=ONE)
    assert answer["vary"] == "Prefer, Accept-Encoding, Origin"


@pytest.mark.parametrize("origin", [["*", ONE], "https://a\r\nx: y", ["https://a", "https://b\n"]])
async def test_origins_that_cannot_be_are_refused(origin: Any) -> None:
    with pytest.raises(ValueError, match="cors_origin"):
        DurableStreamsApp(cors_origin=origin)


@pytest.mark.parametrize(
    ("public_url", "expected"),
    [
        (None, "http://asked.example/v1/stream/a%2Fb"),
        ("https://streams.example", "https://streams.example/v1/stream/a%2Fb"),
        ("https://shop.example/api/", "https://shop.example/api/v1/stream/a%2Fb"),
        ("http://[::1]:8080", "http://[::1]:8080/v1/stream/a%2Fb"),
    ],
)
async def test_the_location_of_a_stream_is_its_public_url(public_url: str | None, expected: str) -> None:
    client = Client(DurableStreamsApp(public_url=public_url))
    assert (await client.put("a%2fb", host="asked.example")).headers["location"] == expected


async def test_without_a_host_the_location_has_the_servers_address() -> None:
    client = Client(DurableStreamsApp())
    answer = await client.put("x", host="")
    assert answer.headers["location"] == "http://127.0.0.1:4437/v1/stream/x"


@pytest.mark.parametrize(
    "url",
    [
        "streams.example",
        "ftp://streams.example",
        "https://u@streams.example",
        "https://s?q",
        "https://s#f",
        "https://s\n",
    ],
)
async def test_a_public_url_is_a_url_of_a_server(url: str) -> None:
    with pytest.raises(ValueError, match="public_url"):
        DurableStreamsApp(public_url=url)
