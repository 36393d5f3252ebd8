"""Basins, streams and their configurations (specification: S2 1.2, 1.5 to 1.8, 2)."""

import base64
import gzip
import json
from urllib.parse import quote

import zstandard

from .probe import Bench, Reply
from .registry import check, expect, until

RESOLVED = {
    "storage_class": "express",
    "retention_policy": {"age": 604_800},
    "timestamping": {"mode": "client-prefer", "uncapped": False},
    "delete_on_empty": {"min_age_secs": 0},
}


@check("1.1", "2")
async def the_worked_example_of_a_basin_holds(bench: Bench) -> None:
    name = bench.name()
    body = {
        "basin": name,
        "config": {"default_stream_config": {"retention_policy": {"age": 86400}}, "create_stream_on_append": False},
    }

    made = expect(await bench.call("POST", "/basins", body, headers={"s2-request-token": "t1"}, basin=False), 201)
    patch = {"default_stream_config": {"retention_policy": None}, "create_stream_on_append": True}
    patched = expect(await bench.call("PATCH", f"/basins/{name}", patch, basin=False), 200)

    assert made.headers["s2-provision-result"] == "created"
    assert {key: made.json[key] for key in ("name", "location", "deleted_at", "state")} == {
        "name": name,
        "location": None,
        "deleted_at": None,
        "state": "active",
    }
    assert made.json["created_at"].endswith("Z")
    assert patched.json == {
        "default_stream_config": None,
        "stream_cipher": None,
        "create_stream_on_append": True,
        "create_stream_on_read": False,
    }
    assert (await bench.call("GET", f"/basins/{name}", basin=False)).json == patched.json


@check()
async def creating_a_basin_is_idempotent_by_token_and_configuration(bench: Bench) -> None:
    body = {"basin": bench.name()}
    token = {"s2-request-token": "token-1"}

    first = expect(await bench.call("POST", "/basins", body, headers=token, basin=False), 201)
    replay = expect(await bench.call("POST", "/basins", body, headers=token, basin=False), 201)
    other = await bench.call("POST", "/basins", body, headers={"s2-request-token": "token-2"}, basin=False)
    bare = await bench.call("POST", "/basins", body, basin=False)
    changed = await bench.call(
        "POST", "/basins", {**body, "config": {"create_stream_on_read": True}}, headers=token, basin=False
    )

    assert replay.headers["s2-provision-result"] == "noop"
    assert replay.json == first.json
    for reply in (other, bare, changed):
        expect(reply, 409, "resource_already_exists")


@check()
async def creating_a_stream_is_idempotent_by_token_and_configuration(bench: Bench) -> None:
    body = {"stream": bench.stream}
    token = {"s2-request-token": "token-1"}

    first = expect(await bench.call("POST", "/streams", body, headers=token), 201)
    replay = expect(await bench.call("POST", "/streams", body, headers=token), 201)
    other = await bench.call("POST", "/streams", body, headers={"s2-request-token": "token-2"})

    assert first.headers["s2-provision-result"] == "created"
    assert replay.headers["s2-provision-result"] == "noop"
    assert set(first.json) == {"name", "created_at", "deleted_at", "cipher"}
    expect(other, 409, "resource_already_exists")


@check()
async def bad_names_are_reported_by_the_place_they_stood_in(bench: Bench) -> None:
    long = "x" * 513
    expect(await bench.call("POST", "/basins", {"basin": "Short"}, basin=False), 400, "bad_json")
    expect(await bench.call("GET", "/basins/UPPER-CASE", basin=False), 400, "bad_path")
    expect(await bench.call("POST", "/streams", {"stream": ""}), 400, "bad_json")
    expect(await bench.call("POST", "/streams", {"stream": "."}), 400, "bad_json")
    expect(await bench.call("GET", f"/streams/{long}"), 400, "bad_path")
    expect(await bench.call("GET", "/streams/%2E%2E"), 400, "bad_path")
    expect(await bench.call("GET", "/streams/a%00b"), 400, "bad_path")
    expect(await bench.call("GET", "/streams", headers={"s2-basin": "no"}), 400, "bad_header")
    missing = expect(await bench.call("GET", "/streams", basin=False), 400, "bad_header")
    assert "s2-basin" in missing.json["message"]


@check()
async def a_request_token_has_at_most_36_bytes(bench: Bench) -> None:
    body = {"stream": bench.stream}

    long = await bench.call("POST", "/streams", body, headers={"s2-request-token": "t" * 37})
    fits = await bench.call("POST", "/streams", body, headers={"s2-request-token": "t" * 36})

    expect(long, 400, "bad_header")
    expect(fits, 201)


@check()
async def streams_with_any_name_can_be_reached(bench: Bench) -> None:
    for name in ("a/b c", "ü%?#", "..x", "é" * 256, "😀"):
        expect(await bench.call("POST", "/streams", {"stream": name}), 201)
        other = bench.on(quote(name, safe=""))
        expect(await other.append({"body": name}), 200)
        assert (await other.read("seq_num=0")).json["records"][0]["body"] == name
        expect(await bench.call("DELETE", other.path), 202)


@check()
async def ensuring_replaces_the_configuration(bench: Bench) -> None:
    config = {"timestamping": {"mode": "arrival"}, "retention_policy": {"infinite": {}}}

    async def ensure(body: object = b"") -> Reply:
        return await bench.call("PUT", bench.path, body)

    created, again = await ensure(config), await ensure(config)
    full = await bench.call("GET", bench.path)
    reset = await ensure()
    bare = await bench.call("GET", bench.path)

    assert [reply.status for reply in (created, again, reset)] == [201, 200, 200]
    results = [reply.headers["s2-provision-result"] for reply in (created, again, reset)]
    assert results == ["created", "noop", "updated"]
    assert full.json == {
        **RESOLVED,
        "retention_policy": {"infinite": {}},
        "timestamping": {"mode": "arrival", "uncapped": False},
    }
    assert bare.json == RESOLVED


@check()
async def ensuring_a_basin_replaces_its_configuration(bench: Bench) -> None:
    path = f"/basins/{bench.name()}"

    created = await bench.call("PUT", path, {"config": {"create_stream_on_read": True}}, basin=False)
    again = await bench.call("PUT", path, {"config": {"create_stream_on_read": True}}, basin=False)
    reset = await bench.call("PUT", path, basin=False)
    config = await bench.call("GET", path, basin=False)

    assert [reply.status for reply in (created, again, reset)] == [201, 200, 200]
    results = [reply.headers["s2-provision-result"] for reply in (created, again, reset)]
    assert results == ["created", "noop", "updated"]
    assert config.json["create_stream_on_read"] is False


@check()
async def a_configuration_that_is_not_wrapped_right_is_ignored(bench: Bench) -> None:
    expect(await bench.call("PUT", bench.path, {"config": {"timestamping": {"mode": "arrival"}}}), 201)

    assert (await bench.call("GET", bench.path)).json == RESOLVED


@check()
async def reconfiguring_keeps_clears_and_sets(bench: Bench) -> None:
    await bench.create({"timestamping": {"mode": "arrival", "uncapped": True}, "retention_policy": {"age": 60}})

    kept = await bench.call("PATCH", bench.path, {"timestamping": {"uncapped": None}})
    cleared = await bench.call("PATCH", bench.path, {"retention_policy": None, "delete_on_empty": {"min_age_secs": 9}})

    assert kept.json == {
        **RESOLVED,
        "retention_policy": {"age": 60},
        "timestamping": {"mode": "arrival", "uncapped": False},
    }
    assert cleared.json == {
        **RESOLVED,
        "timestamping": {"mode": "arrival", "uncapped": False},
        "delete_on_empty": {"min_age_secs": 9},
    }
    assert (await bench.call("GET", bench.path)).json == cleared.json


@check()
async def configurations_are_checked(bench: Bench) -> None:
    await bench.create()
    path = f"/basins/{bench.basin}"

    expect(await bench.call("PATCH", bench.path, {"timestamping": {"mode": "nope"}}), 400, "bad_json")
    expect(await bench.call("PATCH", bench.path, {"retention_policy": {}}), 400, "bad_json")
    expect(await bench.call("PATCH", bench.path, {"retention_policy": {"age": 0}}), 422, "invalid")
    expect(await bench.call("PATCH", path, {"create_stream_on_read": None}, basin=False), 400, "bad_json")
    expect(await bench.call("POST", "/streams", b'{"stream":"x"}'), 400, "bad_json")  # no content type
    expect(await bench.call("POST", "/streams", b"{", headers={"content-type": "application/json"}), 400, "bad_json")


@check()
async def a_default_of_the_basin_holds_for_streams_created_later(bench: Bench) -> None:
    name = bench.name()
    config = {"default_stream_config": {"timestamping": {"mode": "client-require"}}}
    expect(await bench.call("POST", "/basins", {"basin": name, "config": config}, basin=False), 201)
    inside = {"s2-basin": name}

    expect(await bench.call("POST", "/streams", {"stream": "before"}, headers=inside), 201)
    change = {"default_stream_config": {"timestamping": {"mode": "arrival"}}}
    expect(await bench.call("PATCH", f"/basins/{name}", change, basin=False), 200)
    expect(await bench.call("POST", "/streams", {"stream": "after"}, headers=inside), 201)

    modes = [
        (await bench.call("GET", f"/streams/{stream}", headers=inside)).json["timestamping"]["mode"]
        for stream in ("before", "after")
    ]
    assert modes == ["client-require", "arrival"]


@check()
async def lists_are_paged_in_order_of_bytes(bench: Bench) -> None:
    name = bench.name()
    inside = {"s2-basin": name}
    expect(await bench.call("POST", "/basins", {"basin": name}, basin=False), 201)
    for stream in ("b/1", "a", "b/2", "é", "B"):
        expect(await bench.call("POST", "/streams", {"stream": stream}, headers=inside), 201)

    async def page(query: str) -> tuple[list[str], bool]:
        reply = expect(await bench.call("GET", f"/streams?{query}", headers=inside), 200)
        return [info["name"] for info in reply.json["streams"]], reply.json["has_more"]

    assert await page("") == (["B", "a", "b/1", "b/2", "é"], False)
    assert await page("limit=2") == (["B", "a"], True)
    assert await page("limit=2&start_after=a") == (["b/1", "b/2"], True)
    assert await page("prefix=b/") == (["b/1", "b/2"], False)
    assert await page("prefix=b/&start_after=a") == (["b/1", "b/2"], False)
    assert await page("prefix=b/&start_after=b/1") == (["b/2"], False)
    assert await page("limit=0") == await page("limit=1001") == await page("")
    expect(await bench.call("GET", "/streams?limit=-1", headers=inside), 400, "bad_query")
    for query in ("prefix=%00", "start_after=%00", f"prefix={'x' * 513}"):
        expect(await bench.call("GET", f"/streams?{query}", headers=inside), 400, "bad_query")
    for query in ("prefix=UPPER", "prefix=-a", f"start_after={'x' * 49}"):
        expect(await bench.call("GET", f"/basins?{query}", basin=False), 400, "bad_query")
    for query in ("prefix=.", "start_after=..", f"prefix={'x' * 512}"):
        expect(await bench.call("GET", f"/streams?{query}", headers=inside), 200)
    basins = (await bench.call("GET", f"/basins?prefix={name}", basin=False)).json
    assert [info["name"] for info in basins["basins"]] == [name]


@check()
async def a_deleted_stream_can_be_created_anew(bench: Bench) -> None:
    await bench.create()
    expect(await bench.append({"body": "x"}), 200)

    expect(await bench.call("DELETE", bench.path), 202)

    async def gone() -> bool:
        reply = await bench.call("GET", bench.path)
        assert reply.refusal in ((409, "stream_deletion_pending"), (404, "stream_not_found"))
        return reply.status == 404

    await until(gone)
    await bench.create()
    assert await bench.tail() == {"seq_num": 0, "timestamp": 0}


@check()
async def a_deleted_basin_takes_no_new_streams_and_loses_those_it_has(bench: Bench) -> None:
    name = bench.name()
    expect(await bench.call("POST", "/basins", {"basin": name}, basin=False), 201)
    expect(await bench.call("POST", "/streams", {"stream": "s"}, headers={"s2-basin": name}), 201)

    expect(await bench.call("DELETE", f"/basins/{name}", basin=False), 202)

    created = await bench.call("POST", "/streams", {"stream": "t"}, headers={"s2-basin": name})
    assert created.refusal in ((409, "basin_deletion_pending"), (404, "basin_not_found"))

    async def swept() -> bool:  # the basin itself may take a minute more
        return (await bench.call("GET", "/streams/s", headers={"s2-basin": name})).status == 404

    await until(swept)


@check()
async def an_unknown_basin_is_told_as_such_but_by_get_and_delete_of_a_stream(bench: Bench) -> None:
    inside = {"s2-basin": "no-such-basin"}
    calls = [
        ("GET", "/streams", b""),
        ("POST", "/streams", {"stream": "s"}),
        ("PUT", "/streams/s", b""),
        ("PATCH", "/streams/s", {}),
        ("POST", "/streams/s/records", {"records": [{}]}),
        ("GET", "/streams/s/records?seq_num=0", b""),
        ("GET", "/streams/s/records/tail", b""),
    ]
    for method, path, body in calls:
        expect(await bench.call(method, path, body, headers=inside), 404, "basin_not_found")
    for method in ("GET", "DELETE"):
        expect(await bench.call(method, "/streams/s", headers=inside), 404, "stream_not_found")


@check()
async def an_unknown_stream_is_not_found(bench: Bench) -> None:
    expect(await bench.append({}), 404, "stream_not_found")
    expect(await bench.read("seq_num=0"), 404, "stream_not_found")
    expect(await bench.call("GET", f"{bench.path}/records/tail"), 404, "stream_not_found")
    expect(await bench.call("PATCH", bench.path, {}), 404, "stream_not_found")
    expect(await bench.call("DELETE", bench.path), 404, "stream_not_found")


@check()
async def routes_that_do_not_exist_have_empty_answers(bench: Bench) -> None:
    unknown = await bench.call("GET", "/nothing")
    wrong = await bench.call("DELETE", f"{bench.path}/records")

    assert (unknown.status, unknown.body) == (404, b"")
    assert (wrong.status, wrong.body) == (405, b"")
    assert "GET" in wrong.headers["allow"]
    for path in ("/access-tokens", "/locations", "/metrics?set=account-ops", "/metrics/some-basin?set=storage"):
        expect(await bench.call("GET", path, basin=False), 501, "not_implemented")
    expect(await bench.call("GET", "/metrics?set=nope", basin=False), 400, "bad_query")


@check("1.1", "2")
async def bodies_are_compressed_both_ways(bench: Bench) -> None:
    await bench.create()
    text = json.dumps({"records": [{"body": "x" * 5000}]}).encode()
    fields = {"content-type": "application/json"}

    for coding, packed in (("gzip", gzip.compress(text)), ("zstd", zstandard.ZstdCompressor().compress(text))):
        reply = await bench.call(
            "POST", f"{bench.path}/records", packed, headers={**fields, "content-encoding": coding}
        )
        expect(reply, 200)
    other = await bench.call("POST", f"{bench.path}/records", text, headers={**fields, "content-encoding": "br"})
    damaged = await bench.call("POST", f"{bench.path}/records", b"nope", headers={**fields, "content-encoding": "gzip"})
    large = await bench.read("seq_num=0", headers={"accept-encoding": "gzip, zstd"})
    zipped = await bench.read("seq_num=0", headers={"accept-encoding": "gzip"})
    small = await bench.call("GET", f"{bench.path}/records/tail", headers={"accept-encoding": "gzip, zstd"})

    assert (other.status, other.body, other.headers["accept-encoding"]) == (415, b"", "zstd,gzip")
    expect(damaged, 400, "bad_json")
    assert large.headers["content-encoding"] == "zstd"
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(large.body)
    assert len(json.loads(plain)["records"]) == 2
    assert zipped.headers["content-encoding"] == "gzip"
    assert gzip.decompress(zipped.body) == plain
    assert "content-encoding" not in small.headers


@check()
async def streams_are_created_by_appending_and_reading_if_the_basin_says_so(bench: Bench) -> None:
    name = bench.name()
    config = {"create_stream_on_append": True, "create_stream_on_read": True}
    expect(await bench.call("POST", "/basins", {"basin": name, "config": config}, basin=False), 201)

    async def exists(stream: str) -> bool:
        return (await bench.call("GET", f"/streams/{stream}", headers={"s2-basin": name})).status == 200

    async def append(stream: str, body: object, **headers: str) -> Reply:
        return await bench.call("POST", f"/streams/{stream}/records", body, headers={"s2-basin": name, **headers})

    async def get(path: str) -> Reply:
        return await bench.call("GET", path, headers={"s2-basin": name})

    expect(await append("a", {"records": [{"body": "x"}]}), 200)
    expect(await append("b", {"records": []}), 422, "invalid")
    expect(await append("c", {"records": [{}], "match_seq_num": 5}), 412)
    expect(await get("/streams/d/records/tail"), 200)
    expect(await get("/streams/e/records?seq_num=0"), 416)
    expect(await get("/streams/f/records?seq_num=0&timestamp=0"), 422)

    assert [await exists(stream) for stream in "abcdef"] == [True, False, True, True, True, False]


@check()
async def a_stream_that_is_created_on_the_way_takes_the_configuration_of_the_request(bench: Bench) -> None:
    name = bench.name()
    body = {"basin": name, "config": {"create_stream_on_append": True}}
    expect(await bench.call("POST", "/basins", body, basin=False), 201)
    inside = {"s2-basin": name}
    records = {"records": [{"body": "x"}]}

    config = json.dumps({"timestamping": {"mode": "arrival"}})
    good = await bench.call("POST", "/streams/a/records", records, headers={**inside, "s2-stream-config": config})
    bad = await bench.call("POST", "/streams/b/records", records, headers={**inside, "s2-stream-config": "{"})

    expect(good, 200)
    assert (await bench.call("GET", "/streams/a", headers=inside)).json["timestamping"]["mode"] == "arrival"
    expect(bad, 400, "bad_header")


@check()
async def encrypted_records_need_their_key(bench: Bench) -> None:
    name = bench.name()
    body = {"basin": name, "config": {"stream_cipher": "aegis-256"}}
    expect(await bench.call("POST", "/basins", body, basin=False), 201)
    inside = {"s2-basin": name}
    made = await bench.call("POST", "/streams", {"stream": "s"}, headers=inside)
    assert made.json["cipher"] == "aegis-256"
    first, second = (
        {**inside, "s2-encryption-key": base64.b64encode(bytes([number]) * 32).decode()} for number in (1, 2)
    )

    async def append(headers: dict[str, str]) -> Reply:
        return await bench.call("POST", "/streams/s/records", {"records": [{"body": "x"}]}, headers=headers)

    async def read(query: str, headers: dict[str, str]) -> Reply:
        return await bench.call("GET", f"/streams/s/records?{query}", headers=headers)

    expect(await append(inside), 400, "bad_header")
    expect(await append({**inside, "s2-encryption-key": "short"}), 400, "bad_header")
    expect(await append(first), 200)
    expect(await append(second), 200)
    expect(await read("seq_num=0", inside), 400, "bad_header")
    expect(await read("seq_num=0&count=1", second), 400, "decryption_failed")
    assert len(expect(await read("seq_num=0&count=1", first), 200).json["records"]) == 1
    assert len(expect(await read("seq_num=1", second), 200).json["records"]) == 1
    expect(await bench.call("GET", "/streams/s/records/tail", headers=inside), 200)


@check()
async def a_key_for_a_plain_stream_is_ignored(bench: Bench) -> None:
    await bench.create()

    expect(await bench.append({"body": "x"}, headers={"s2-encryption-key": "nonsense"}), 200)
    expect(await bench.read("seq_num=0", headers={"s2-encryption-key": "nonsense"}), 200)
