"""Basins, streams, access tokens, locations and metrics: what is sent, and what is made of the answers."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anyio
import pytest

from durable_streams import BusyResourceError, InvalidArgumentError
from durable_streams.s2 import (
    S2,
    AccessTokenInfo,
    AccessTokenScope,
    Accumulation,
    BasinConfig,
    BasinInfo,
    BasinReconfiguration,
    Endpoints,
    Exact,
    Gauge,
    Label,
    LocationInfo,
    OperationGroups,
    Page,
    Prefix,
    ReadWrite,
    S2ProtocolError,
    S2Retry,
    S2ServerError,
    Scalar,
    StreamConfig,
    StreamInfo,
    StreamReconfiguration,
)
from tests.scripted import Reply, Request, ScriptedServer

pytestmark = pytest.mark.anyio

WHEN = "2026-09-01T10:00:00.292385961Z"
MOMENT = datetime(2026, 9, 1, 10, 0, 0, 292385, tzinfo=UTC)


def basin(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "location": None, "created_at": WHEN, "deleted_at": None, "state": "active", **fields}


def stream(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "created_at": WHEN, "deleted_at": None, "cipher": None, **fields}


def reply(document: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(
        status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(document).encode()
    )


@asynccontextmanager
async def serving(*replies: Reply) -> AsyncIterator[tuple[ScriptedServer, S2]]:
    async with ScriptedServer() as server:
        server.replies(*replies)
        client = S2("token-of-mine", endpoints=server.url, retry=S2Retry(max_attempts=1))
        try:
            yield server, client
        finally:
            await client.aclose()


def sent(request: Request) -> tuple[str, str, Any]:
    return request.method, request.target, json.loads(request.body) if request.body else None


# -- Basins ----------------------------------------------------------------------------------------------------


async def test_a_basin_is_created_and_described() -> None:
    answer = reply(basin("my-basin-01", location="aws:us-east-1"), 201, s2_provision_result="created")
    async with serving(answer) as (server, client):
        info = await client.basins.create(
            "my-basin-01",
            config=BasinConfig(create_stream_on_append=True),
            location="aws:us-east-1",
            request_token="t1",
        )

        assert info == BasinInfo("my-basin-01", "aws:us-east-1", MOMENT, None, "active", "created")
        (request,) = server.requests
        assert sent(request) == (
            "POST",
            "/v1/basins",
            {"basin": "my-basin-01", "config": {"create_stream_on_append": True}, "location": "aws:us-east-1"},
        )
        assert request.headers["s2-request-token"] == "t1"
        assert request.headers["content-type"] == "application/json"
        assert "s2-basin" not in request.headers


async def test_ensuring_a_basin_may_send_no_body_and_no_content_type() -> None:
    async with serving(
        reply(basin("my-basin-01"), s2_provision_result="noop"),
        reply(basin("my-basin-01"), s2_provision_result="updated"),
    ) as (server, client):
        assert (await client.basins.ensure("my-basin-01")).provision_result == "noop"
        config = BasinConfig(default_stream_config=StreamConfig(retention_policy=60))
        assert (await client.basins.ensure("my-basin-01", config=config)).provision_result == "updated"

        assert [sent(request) for request in server.requests] == [
            ("PUT", "/v1/basins/my-basin-01", None),
            (
                "PUT",
                "/v1/basins/my-basin-01",
                {"config": {"default_stream_config": {"retention_policy": {"age": 60}}}},
            ),
        ]
        assert "content-type" not in server.requests[0].headers
        assert "s2-request-token" not in server.requests[1].headers


async def test_a_basin_is_configured_and_deleted() -> None:
    async with serving(
        reply({"default_stream_config": None, "stream_cipher": "aegis-256", "create_stream_on_append": True}),
        reply({"create_stream_on_read": False}),
        Reply(202),
    ) as (server, client):
        assert await client.basins.get_config("my-basin-01") == BasinConfig(None, "aegis-256", True)
        changes = BasinReconfiguration(stream_cipher=None, create_stream_on_read=False)
        assert await client.basins.reconfigure("my-basin-01", changes) == BasinConfig(create_stream_on_read=False)
        await client.basins.delete("my-basin-01")

        assert [sent(request) for request in server.requests] == [
            ("GET", "/v1/basins/my-basin-01", None),
            ("PATCH", "/v1/basins/my-basin-01", {"stream_cipher": None, "create_stream_on_read": False}),
            ("DELETE", "/v1/basins/my-basin-01", None),
        ]


@pytest.mark.parametrize("code", ["basin_not_found", "basin_deletion_pending"])
async def test_deleting_a_basin_that_is_gone_is_as_good_if_one_says_so(code: str) -> None:
    gone = reply({"code": code, "message": "gone"}, 404 if "found" in code else 409)
    async with serving(gone, gone) as (_, client):
        await client.basins.delete("my-basin-01", ignore_not_found=True)
        with pytest.raises(S2ServerError, match="gone"):
            await client.basins.delete("my-basin-01")


# -- Streams ---------------------------------------------------------------------------------------------------


async def test_streams_are_managed_with_their_names_encoded() -> None:
    name = "a/b c?#%é"
    config = {"storage_class": "express", "retention_policy": {"age": 604800}}
    async with serving(
        reply(stream(name, cipher="aegis-256"), 201, s2_provision_result="created"),
        reply(stream(name), s2_provision_result="updated"),
        reply(stream(name), s2_provision_result="noop"),
        reply(config),
        reply(config),
        Reply(202),
    ) as (server, client):
        streams = client.basin("my-basin-01").streams
        assert await streams.create(name, config=StreamConfig(delete_on_empty=5)) == StreamInfo(
            name, MOMENT, None, "aegis-256", "created"
        )
        assert (
            await streams.ensure(name, config=StreamConfig(retention_policy="infinite"))
        ).provision_result == "updated"
        assert (await streams.ensure(name)).provision_result == "noop"
        assert await streams.get_config(name) == StreamConfig("express", 604800)
        await streams.reconfigure(name, StreamReconfiguration(storage_class=None, delete_on_empty=0))
        await streams.delete(name)

        path = "/v1/streams/a%2Fb%20c%3F%23%25%C3%A9"
        assert [sent(request) for request in server.requests] == [
            ("POST", "/v1/streams", {"stream": name, "config": {"delete_on_empty": {"min_age_secs": 5}}}),
            ("PUT", path, {"retention_policy": {"infinite": {}}}),  # bare, not wrapped
            ("PUT", path, None),
            ("GET", path, None),
            ("PATCH", path, {"storage_class": None, "delete_on_empty": {"min_age_secs": 0}}),
            ("DELETE", path, None),
        ]
        assert {request.headers["s2-basin"] for request in server.requests} == {"my-basin-01"}


@pytest.mark.parametrize("code", ["stream_not_found", "stream_deletion_pending"])
async def test_deleting_a_stream_that_is_gone_is_as_good_if_one_says_so(code: str) -> None:
    gone = reply({"code": code, "message": "gone"}, 404 if "found" in code else 409)
    async with serving(gone, gone, reply({"code": "permission_denied", "message": "no"}, 403)) as (_, client):
        streams = client.basin("my-basin-01").streams
        await streams.delete("s", ignore_not_found=True)
        with pytest.raises(S2ServerError, match="gone"):
            await streams.delete("s")
        with pytest.raises(S2ServerError, match="permission_denied"):
            await streams.delete("s", ignore_not_found=True)


async def test_a_basin_in_the_host_name_needs_no_header() -> None:
    endpoints = Endpoints("https://a.example", "https://{basin}.b.example")
    seen: list[tuple[str, dict[str, str]]] = []

    class Recording:
        async def open(self, method: str, url: str, headers: dict[str, str], *_: Any) -> Any:
            seen.append((url, headers))
            raise InvalidArgumentError("enough")

        async def aclose(self) -> None:
            raise AssertionError("a transport that is shared is not ours to close")

    client = S2("token-of-mine", endpoints=endpoints, transport=Recording())
    with pytest.raises(InvalidArgumentError, match="enough"):
        await client.basin("my-basin-01").streams.list()
    await client.aclose()

    assert seen[0][0] == "https://my-basin-01.b.example/v1/streams"
    assert "s2-basin" not in seen[0][1]


# -- Listings --------------------------------------------------------------------------------------------------


async def test_a_page_is_asked_for_with_its_parameters_encoded() -> None:
    async with serving(reply({"streams": [stream("b&c")], "has_more": True})) as (server, client):
        page = await client.basin("my-basin-01").streams.list(prefix="b&", start_after="a=/", limit=1)

        assert page == Page((StreamInfo("b&c", MOMENT),), True)
        assert [info.name for info in page] == ["b&c"]
        assert len(page) == 1
        assert server.requests[0].target == "/v1/streams?prefix=b%26&start_after=a%3D%2F&limit=1"


async def test_a_plain_listing_sends_no_parameters() -> None:
    async with serving(reply({"basins": [], "has_more": False})) as (server, client):
        assert await client.basins.list() == Page((), False)

        assert server.requests[0].target == "/v1/basins"


async def test_all_is_all_pages_with_the_cursor_after_the_last_name() -> None:
    async with serving(
        reply({"streams": [stream("a1"), stream("a2")], "has_more": True}),
        reply({"streams": [stream("a3")], "has_more": False}),
    ) as (server, client):
        found = client.basin("my-basin-01").streams.list_all(prefix="a", start_after="a0", page_size=2)

        assert [info.name async for info in found] == ["a1", "a2", "a3"]
        assert [request.query for request in server.requests] == [
            {"prefix": "a", "start_after": "a0", "limit": "2"},
            {"prefix": "a", "start_after": "a2", "limit": "2"},
        ]


async def test_what_is_being_deleted_is_hidden_after_the_cursor_was_taken() -> None:
    pages = [
        reply({"streams": [stream("a", deleted_at=WHEN), stream("b", deleted_at=WHEN)], "has_more": True}),
        reply({"streams": [stream("c")], "has_more": False}),
    ]
    async with serving(*pages, *pages) as (server, client):
        streams = client.basin("my-basin-01").streams

        assert [info.name async for info in streams.list_all()] == ["c"]
        assert [info.name async for info in streams.list_all(include_deleted=True)] == ["a", "b", "c"]
        assert server.requests[1].query == {"start_after": "b"}


async def test_an_empty_page_ends_a_listing_whatever_it_says() -> None:
    async with serving(reply({"basins": [], "has_more": True})) as (_, client):
        assert [info async for info in client.basins.list_all()] == []


async def test_older_services_tell_of_deletion_by_the_state() -> None:
    page = reply({"basins": [basin("basin-one", state="deleting"), basin("basin-two")], "has_more": False})
    async with serving(page) as (_, client):
        assert [info.name async for info in client.basins.list_all()] == ["basin-two"]


async def test_a_failed_page_is_asked_for_again_by_the_next_step() -> None:
    async with serving(
        reply({"basins": [basin("basin-one")], "has_more": True}),
        Reply(503),
        reply({"basins": [basin("basin-two")], "has_more": False}),
    ) as (server, client):
        found = client.basins.list_all()
        assert (await anext(found)).name == "basin-one"
        with pytest.raises(S2ServerError):
            await anext(found)
        assert [info.name async for info in found] == ["basin-two"]
        assert server.requests[1].query == server.requests[2].query == {"start_after": "basin-one"}


async def test_two_tasks_cannot_share_a_listing() -> None:
    async with serving(Reply(hold=anyio.Event())) as (server, client):
        found = client.basins.list_all()
        async with anyio.create_task_group() as group:
            group.start_soon(found.__anext__)
            await server.wait_requests(1)
            with pytest.raises(BusyResourceError):
                await anext(found)
            group.cancel_scope.cancel()


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"basins": {}}, {"basins": [5]}, {"basins": [{}]}, {"basins": [basin("b", created_at="now")]}],
)
async def test_a_listing_of_another_shape_is_an_error_of_the_protocol(document: Any) -> None:
    async with serving(reply(document)) as (_, client):
        with pytest.raises(S2ProtocolError) as caught:
            await client.basins.list()

        assert caught.value.definite


async def test_a_creation_whose_answer_means_nothing_may_have_happened() -> None:
    async with serving(Reply(201, body=b"<html>")) as (_, client):
        with pytest.raises(S2ProtocolError) as caught:
            await client.basins.create("my-basin-01")

        assert not caught.value.definite
        assert caught.value.status == 201


# -- Access tokens, locations, metrics -------------------------------------------------------------------------

SCOPE = AccessTokenScope(
    basins=Exact("my-basin-01"),
    streams=Prefix("logs/"),
    access_tokens=Exact(""),
    op_groups=OperationGroups(account=ReadWrite(read=True), stream=ReadWrite(read=True, write=True)),
    ops=("check-tail", "brand-new-op"),
)
SCOPE_WIRE = {
    "basins": {"exact": "my-basin-01"},
    "streams": {"prefix": "logs/"},
    "access_tokens": {"exact": ""},
    "op_groups": {"account": {"read": True, "write": False}, "stream": {"read": True, "write": True}},
    "ops": ["check-tail", "brand-new-op"],
}


async def test_access_tokens_are_issued_listed_and_revoked() -> None:
    expires = datetime(2027, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    info = {"id": "team/a", "expires_at": "2026-12-31T22:00:00Z", "auto_prefix_streams": True, "scope": SCOPE_WIRE}
    async with serving(
        reply({"access_token": "secret-of-it"}, 201),
        reply({"access_tokens": [info], "has_more": False}),
        reply({"access_tokens": [{**info, "expires_at": None, "scope": {}}], "has_more": False}),
        Reply(204),
        reply({"code": "access_token_not_found", "message": "none"}, 404),
        reply({"code": "access_token_not_found", "message": "none"}, 404),
    ) as (server, client):
        tokens = client.access_tokens
        secret = await tokens.issue("team/a", SCOPE, expires_at=expires, auto_prefix_streams=True)
        assert secret == "secret-of-it"
        page = await tokens.list(prefix="team/", limit=10)
        assert page.items == (AccessTokenInfo("team/a", SCOPE, expires, True),)
        assert [found.scope async for found in tokens.list_all()] == [AccessTokenScope()]
        await tokens.revoke("team/a")
        await tokens.revoke("team/a", ignore_not_found=True)
        with pytest.raises(S2ServerError, match="access_token_not_found"):
            await tokens.revoke("team/a")

        assert [sent(request) for request in server.requests][:4] == [
            (
                "POST",
                "/v1/access-tokens",
                {
                    "id": "team/a",
                    "scope": SCOPE_WIRE,
                    "auto_prefix_streams": True,
                    "expires_at": "2027-01-01T00:00:00+02:00",
                },
            ),
            ("GET", "/v1/access-tokens?prefix=team%2F&limit=10", None),
            ("GET", "/v1/access-tokens", None),
            ("DELETE", "/v1/access-tokens/team%2Fa", None),
        ]


async def test_a_token_that_is_not_in_the_answer_is_an_error_that_shows_nothing() -> None:
    async with serving(reply({"token": "secret-of-it"}, 201)) as (_, client):
        with pytest.raises(S2ProtocolError) as caught:
            await client.access_tokens.issue("a", AccessTokenScope())

        assert "secret-of-it" not in str(caught.value)
        assert not caught.value.definite


async def test_locations_are_listed_and_chosen() -> None:
    east = {"name": "aws:us-east-1", "is_private": False}
    west = {**east, "name": "aws:us-west-2", "storage_classes": ["express"], "default_storage_class": "express"}
    async with serving(reply([east, west]), reply(east), reply(west)) as (server, client):
        assert await client.locations.list() == (
            LocationInfo("aws:us-east-1", False),
            LocationInfo("aws:us-west-2", False, ("express",), "express"),
        )
        assert (await client.locations.get_default()).name == "aws:us-east-1"
        assert (await client.locations.set_default("aws:us-west-2")).name == "aws:us-west-2"

        assert [sent(request) for request in server.requests] == [
            ("GET", "/v1/locations", None),
            ("GET", "/v1/locations/default", None),
            ("PUT", "/v1/locations/default", "aws:us-west-2"),
        ]


async def test_metrics_are_read_and_unknown_kinds_left_out() -> None:
    values = [
        {"scalar": {"name": "n", "unit": "bytes", "value": 5}},
        {"accumulation": {"name": "a", "unit": "operations", "interval": "hour", "values": [[60, 1], [120, 2.5]]}},
        {"gauge": {"name": "g", "unit": "usd", "values": [[60, 0.5]]}},
        {"label": {"name": "l", "values": ["x", "y"]}},
        {"brand_new": 5},
    ]
    async with serving(*[reply({"values": values})] * 3) as (server, client):
        found = await client.metrics.account("account-ops", start=60, end=MOMENT, interval="hour")
        await client.metrics.basin("my-basin-01", "storage")
        await client.metrics.stream("my-basin-01", "a/b?set=x", "storage", start=0)

        assert found == (
            Scalar("n", "bytes", 5),
            Accumulation("a", "operations", "hour", ((60, 1), (120, 2.5))),
            Gauge("g", "usd", ((60, 0.5),)),
            Label("l", ("x", "y")),
        )
        assert [request.target for request in server.requests] == [
            f"/v1/metrics?set=account-ops&start=60&end={int(MOMENT.timestamp())}&interval=hour",
            "/v1/metrics/my-basin-01?set=storage",
            "/v1/metrics/my-basin-01/a%2Fb%3Fset%3Dx?set=storage&start=0",
        ]


@pytest.mark.parametrize(
    "value",
    [
        5,
        {"scalar": {"name": "n", "unit": "bytes", "value": "5"}},
        {"scalar": {"name": "n", "unit": "bytes", "value": float("inf")}},
        {"gauge": {"name": "g", "unit": "usd", "values": [[1]]}},
        {"gauge": {"name": "g", "unit": "usd", "values": [[float("nan"), 1]]}},
        {"gauge": {"name": "g", "unit": "usd", "values": [[-1, 1]]}},
        {"accumulation": {"name": "a", "unit": "bytes", "values": [[10**20, 1]]}},
        {"label": {"name": "l", "values": [5]}},
        {"label": {}},
    ],
)
async def test_metrics_of_another_shape_are_an_error_of_the_protocol(value: Any) -> None:
    async with serving(reply({"values": [value]})) as (_, client):
        with pytest.raises(S2ProtocolError):
            await client.metrics.account("account-ops")


async def test_what_a_server_has_not_is_said_in_its_words() -> None:
    lite = reply({"code": "not_implemented", "message": "not in lite"}, 501)
    async with serving(*[lite] * 3) as (_, client):
        calls: list[Callable[[], Awaitable[Any]]] = [
            client.access_tokens.list,
            client.locations.list,
            lambda: client.metrics.account("account-ops"),
        ]
        for call in calls:
            with pytest.raises(S2ServerError, match="501 not_implemented"):
                await call()


# -- Arguments -------------------------------------------------------------------------------------------------


async def test_wrong_arguments_are_refused_before_anything_is_sent() -> None:
    async with serving() as (server, client):
        basin_, streams, tokens = client.basin("my-basin-01"), client.basin("my-basin-01").streams, client.access_tokens
        wrong: list[tuple[type[Exception], Callable[[], Any]]] = [
            (InvalidArgumentError, lambda: client.basins.create("Bad")),
            (InvalidArgumentError, lambda: client.basins.create("my-basin-01", location="no where")),
            (InvalidArgumentError, lambda: client.basins.create("my-basin-01", request_token="x" * 37)),
            (TypeError, lambda: client.basins.create("my-basin-01", config={})),  # type: ignore[arg-type]
            (InvalidArgumentError, lambda: client.basins.list(limit=0)),
            (TypeError, lambda: client.basins.reconfigure("my-basin-01", BasinConfig())),  # type: ignore[arg-type]
            (InvalidArgumentError, lambda: streams.create("..")),
            (InvalidArgumentError, lambda: streams.list(prefix="\0")),
            (TypeError, lambda: streams.ensure("s", config=BasinConfig())),  # type: ignore[arg-type]
            (TypeError, lambda: streams.reconfigure("s", StreamConfig())),  # type: ignore[arg-type]
            (InvalidArgumentError, lambda: tokens.issue("", AccessTokenScope())),
            (InvalidArgumentError, lambda: tokens.issue("a", AccessTokenScope(), auto_prefix_streams=True)),
            (InvalidArgumentError, lambda: tokens.issue("a", AccessTokenScope(), expires_at=datetime(2027, 1, 1))),
            (TypeError, lambda: tokens.issue("a", {})),  # type: ignore[arg-type]
            (InvalidArgumentError, lambda: client.locations.set_default("no where")),
            (InvalidArgumentError, lambda: client.metrics.account("")),
            (InvalidArgumentError, lambda: client.metrics.account("x", interval="week")),  # type: ignore[arg-type]
            (InvalidArgumentError, lambda: client.metrics.account("x", start=2**32)),
        ]
        for error, call in wrong:
            with pytest.raises(error):
                await call()
        plain: list[tuple[type[Exception], Callable[[], Any]]] = [
            (InvalidArgumentError, lambda: client.basin("Bad")),
            (InvalidArgumentError, lambda: basin_.stream("")),
            (InvalidArgumentError, lambda: basin_.stream("s", transport="carrier pigeon")),  # type: ignore[arg-type]
            (InvalidArgumentError, lambda: basin_.stream("s", encoding="xml")),  # type: ignore[arg-type]
            (InvalidArgumentError, lambda: basin_.stream("s", encryption_key=b"short")),
            (InvalidArgumentError, lambda: streams.list_all(page_size=1001)),
            (InvalidArgumentError, lambda: client.basins.list_all(prefix="A")),
            (TypeError, lambda: AccessTokenScope(basins="b")),  # type: ignore[arg-type]
            (TypeError, lambda: AccessTokenScope(ops="read")),  # type: ignore[arg-type]
        ]
        for error, plain_call in plain:
            with pytest.raises(error):
                plain_call()

        assert server.requests == []


def test_handles_have_a_useful_repr_and_can_be_reached_by_item() -> None:
    client = S2("token-of-mine", endpoints="http://localhost:8080")

    assert repr(client) == "<S2 http://localhost:8080/v1>"
    assert repr(client["my-basin-01"]) == "<Basin my-basin-01>"
    assert repr(client["my-basin-01"]["a/b"]) == "<Stream my-basin-01/a/b>"
    assert repr(client.basins) == "<Basins>"
    assert repr(client["my-basin-01"].streams) == "<Streams of my-basin-01>"
