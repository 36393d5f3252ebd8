"""A stream goes through a file from one store to another, and is the same to readers and producers."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.server import (
    Appended,
    BadOffset,
    Duplicate,
    Exists,
    ExportFormatError,
    ProducerStamp,
    Reason,
    SQLiteStore,
    StoreError,
    StoreFormatError,
    StoreInUseError,
    StreamMissingError,
    StreamPresentError,
    export_stream,
    import_stream,
    verify_store,
)
from durable_streams.testing.store_steps import (
    append_to,
    create_stream,
    expect,
    expect_refusal,
    fork_stream,
    look_at,
    read_page,
    read_pages,
)

from .sample import JSON, NOW, fill, make, path_of

pytestmark = pytest.mark.anyio


def exported(path: Path | str, stream: str) -> bytes:
    file = io.BytesIO()
    export_stream(path, stream, file)
    return file.getvalue()


def lines(export: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in export.splitlines()]


def sealed(*values: dict[str, Any], appends: int | None = None) -> bytes:
    """An export of these lines, with the end that belongs to them."""
    body = b"".join(json.dumps(each).encode() + b"\n" for each in values)
    count = sum(each.get("kind") == "append" for each in values) if appends is None else appends
    end = {"kind": "end", "appends": count, "sha256": hashlib.sha256(body).hexdigest()}
    return body + json.dumps(end).encode() + b"\n"


HEAD: dict[str, Any] = {
    "kind": "stream",
    "format": "durable-streams-export",
    "version": 1,
    "path": "/a",
    "content_type": "text/plain",
    "ttl": None,
    "expires_at": None,
    "requested_content_type": None,
    "fork_of": None,
    "offset": f"{0:016}_{2:016}",
    "closed": False,
    "closed_by": None,
    "stream_seq": None,
    "created": 5.0,
}
APPEND: dict[str, Any] = {"kind": "append", "offset": f"{0:016}_{2:016}", "text": "hi"}
PRODUCER: dict[str, Any] = {"kind": "producer", "id": "p", "epoch": 0, "seq": 0, "offset": None, "updated": 5.0}


NAMES = ["json", "text", "bytes", "fork", "fork/of-fork", "keeper", "empty"]


@pytest.mark.parametrize("name", NAMES)
async def test_a_stream_is_the_same_after_a_round_trip(tmp_path: Path, name: str) -> None:
    source, target = await make(tmp_path / "source.db"), tmp_path / "target.db"
    path = path_of(name)
    export = exported(source, path)

    done = import_stream(target, io.BytesIO(export), now=NOW)

    assert verify_store(target).findings == ()
    assert done.path == path
    again = exported(target, path)
    first, second = lines(export), lines(again)
    first[0]["fork_of"] = None  # what is inherited came along
    assert first[:-1] == second[:-1]
    async with SQLiteStore(source) as old, SQLiteStore(target) as new:
        was, became = await look_at(old, NOW, path), await look_at(new, NOW, path)
        assert (was.content_type, was.tail, was.closed, was.ttl, was.expires_at) == (
            *(became.content_type, became.tail, became.closed, became.ttl, became.expires_at),
        )
        assert was.ref.incarnation != became.ref.incarnation
        for size in (1, 7, 1 << 20, 1 << 30):
            if size > 7 or was.tail < 100:
                assert await read_pages(new, became.ref, size) == await read_pages(old, was.ref, size)


async def test_producers_and_closure_go_on_where_they_were(tmp_path: Path) -> None:
    source, target = await make(tmp_path / "source.db"), tmp_path / "target.db"
    for name in ("json", "text"):
        import_stream(target, io.BytesIO(exported(source, path_of(name))), now=NOW)
    at: dict[str, Any] = {"path": path_of("json"), "now": NOW}

    async with SQLiteStore(target) as store:
        expect(Duplicate, await append_to(store, b"[0]", JSON, producer=ProducerStamp("p", 2, 4), **at))
        expect_refusal(
            await append_to(store, b"[0]", JSON, producer=ProducerStamp("p", 1, 9), **at), Reason.STALE_EPOCH
        )
        expect_refusal(
            await append_to(store, b"[0]", JSON, producer=ProducerStamp("p", 2, 7), **at), Reason.SEQUENCE_GAP
        )
        expect_refusal(await append_to(store, b"[0]", JSON, seq=b"\xff6", **at), Reason.SEQ_NOT_INCREASING)
        expect(Appended, await append_to(store, b"[0]", JSON, producer=ProducerStamp("p", 2, 5), seq=b"\xff8", **at))

        text: dict[str, Any] = {"path": path_of("text"), "now": NOW}
        closing_again = ProducerStamp("é", 0, 0)
        expect(
            Duplicate, await append_to(store, "€".encode(), "text/plain", close=True, producer=closing_again, **text)
        )
        expect_refusal(await append_to(store, b"x", "text/plain", **text), Reason.CLOSED)
        again = await create_stream(store, JSON, path=path_of("json"), ttl=600, now=NOW)
        expect(Exists, again)


async def test_boundaries_of_messages_are_the_same(tmp_path: Path) -> None:
    source, target = await make(tmp_path / "source.db"), tmp_path / "target.db"
    import_stream(target, io.BytesIO(exported(source, path_of("fork"))), now=NOW)

    async with SQLiteStore(target, recent_bytes=0) as store:
        ref = (await look_at(store, NOW, path_of("fork"))).ref
        assert isinstance(await store.read(ref, 32, 100), BadOffset)
        assert await read_page(store, ref, 4) == (b'{"a":12345678901234567890},"0",7,', 37)
        assert await read_page(store, ref, 35) == (b"7,", 37)


async def test_an_export_says_in_words_what_is_in_the_stream(tmp_path: Path) -> None:
    source = await make(tmp_path / "source.db")

    head, p, q, *appends, end = lines(exported(source, path_of("json")))

    assert head | {"created": 0} == {
        **HEAD,
        "path": "/v1/stream/json",
        "content_type": JSON,
        "requested_content_type": JSON,
        "ttl": 600,
        "offset": f"{0:016}_{79:016}",
        "stream_seq": "/zc=",
        "created": 0,
    }
    assert (p["id"], p["epoch"], p["seq"], p["offset"], q["id"]) == ("p", 2, 4, f"{0:016}_{71:016}", "q")
    assert appends[0] == {
        "kind": "append",
        "offset": f"{0:016}_{31:016}",
        "messages": ["1.0", '{"a":12345678901234567890}'],
    }
    assert len(appends) == end["appends"] == 7
    assert lines(exported(source, path_of("text")))[-2]["text"] == "€"
    assert "base64" in lines(exported(source, path_of("bytes")))[1]
    assert lines(exported(source, path_of("fork")))[0]["fork_of"] == "/v1/stream/json"


async def test_a_store_in_use_can_be_exported_from_and_not_imported_into(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "store.db") as store:
        await fill(store)
        export = await anyio.to_thread.run_sync(exported, store.path, path_of("json"))
        with pytest.raises(StoreInUseError, match="has this store open"):
            import_stream(store.path, io.BytesIO(export))
    import_stream(store.path, io.BytesIO(export), stream="/v1/stream/other name")

    assert verify_store(store.path).findings == ()
    assert lines(exported(store.path, "/v1/stream/other%20name"))[1:-1] == lines(export)[1:-1]


async def test_a_stream_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    path = await make(tmp_path / "store.db")
    export = exported(path, path_of("text"))
    before = path.read_bytes()

    for name in ("text", "kept"):
        with pytest.raises(StreamPresentError, match=rf"there is a stream /v1/stream/{name} already"):
            import_stream(path, io.BytesIO(export), stream=path_of(name))
    assert len(before) == path.stat().st_size
    assert exported(path, path_of("text")) == export
    import_stream(path, io.BytesIO(export), stream=path_of("gone"))


async def test_what_is_not_there_is_not_exported(tmp_path: Path) -> None:
    path = await make(tmp_path / "store.db")

    for name in ("nothing", "gone", "kept"):
        with pytest.raises(StreamMissingError, match=f"there is no stream /v1/stream/{name}"):
            exported(path, path_of(name))
    with pytest.raises(ValueError, match="stream must be a full path such as '/v1/stream/chat', got 'chat'"):
        exported(path, "chat")


async def test_damage_is_told_and_not_exported(tmp_path: Path) -> None:
    path = await make(tmp_path / "store.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM blocks WHERE rowid = 3")
        connection.commit()

    with pytest.raises(StoreError, match="damaged: /v1/stream/json ends at 71 instead of 79; verify it"):
        exported(path, path_of("json"))


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "UPDATE blocks SET data = x'226f74686572222c22', end_offset = end_offset WHERE rowid = 7",
            "data before offset 79",
        ),
        ("UPDATE blocks SET written = 5.0 WHERE rowid = 2", "data before offset 39 was changed"),
        ("UPDATE producers SET seq = 3 WHERE producer = 'q'", "the record of producer q was changed"),
        ("UPDATE streams SET last_seq = x'00' WHERE id = 1", "the stream's record was changed"),
        ("UPDATE streams SET effective_type = x'ff' WHERE id = 1", "damaged"),
        ("UPDATE blocks SET messages = x'01' WHERE rowid = 1", "damaged"),
    ],
)
async def test_what_was_changed_is_not_exported(tmp_path: Path, statement: str, words: str) -> None:
    path = await make(tmp_path / "store.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()

    with pytest.raises(StoreFormatError, match=words):
        exported(path, path_of("json"))


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, (5 << 19) + 3])
async def test_a_fork_that_divides_a_large_append_ends_it_there(tmp_path: Path, size: int) -> None:
    path = tmp_path / "store.db"
    async with SQLiteStore(path) as store:
        await create_stream(store, path="/a", body=b"x" * (3 << 20))
        await fork_stream(store, "/fork", size, source="/a", body=b"own")

    appends = [len(line["text"]) for line in lines(exported(path, "/fork")) if line["kind"] == "append"]

    assert appends == [size, 3]


async def test_a_json_message_larger_than_a_row_goes_through(tmp_path: Path) -> None:
    path, target = tmp_path / "store.db", tmp_path / "target.db"
    large = b'"' + b"y" * (5 << 19) + b'"'
    async with SQLiteStore(path) as store:
        await create_stream(store, JSON, path="/a", body=b"[1," + large + b",2]")
        await append_to(store, b"[3,4]", JSON, path="/a")
    export = exported(path, "/a")

    import_stream(target, io.BytesIO(export))

    assert verify_store(target).findings == ()
    assert exported(target, "/a") == export
    async with SQLiteStore(path) as old, SQLiteStore(target) as new:
        for size in (1, 1000, 2 << 20):
            was, became = (await look_at(old, path="/a")).ref, (await look_at(new, path="/a")).ref
            assert await read_pages(new, became, size) == await read_pages(old, was, size)


# --- files that are no exports


WRONG: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "line 1: this is no export of a stream"),
    "something else": (b'{"kind":"stream"}\n', "line 1: this is no export of a stream"),
    "no JSON": (b"\xff\n", "line 1: this is no export of a stream"),
    "deep JSON": (b"[" * 100_000 + b"\n", "line 1: this is no export of a stream"),
    "a newer one": (sealed(HEAD | {"version": 2}), "line 1: made by a newer release"),
    "no path": (sealed(HEAD | {"path": "/a/../b"}), "line 1: the path is not a normalised one"),
    "a number as path": (sealed(HEAD | {"path": 5}), "line 1: path is not what it should be"),
    "a lone surrogate": (sealed(HEAD | {"path": "/\ud800"}), "line 1: path is no text"),
    "an impossible lifetime": (sealed(HEAD | {"ttl": -1}), "line 1: the lifetime is not possible"),
    "a strange expiry": (sealed(HEAD | {"expires_at": "soon"}), "line 1: the lifetime is not possible"),
    "no offset": (sealed(HEAD | {"offset": "2"}), "line 1: offset is not what it should be"),
    "true as a number": (sealed(HEAD | {"ttl": True}), "line 1: ttl is not what it should be"),
    "closed by somebody, and open": (
        sealed(HEAD | {"closed_by": {"id": "p", "epoch": 0, "seq": 0}}),
        "line 1: an open stream was closed by nobody",
    ),
    "no base64": (sealed(HEAD | {"stream_seq": "é"}), "line 1: this is no base64"),
    "a producer without a name": (sealed(HEAD, PRODUCER | {"id": ""}, APPEND), "line 2: the producer has no name"),
    "a producer's sequence": (sealed(HEAD, PRODUCER | {"seq": 2**53}, APPEND), "line 2: seq is not possible"),
    "an offset too far": (
        sealed(HEAD, APPEND | {"offset": f"{0:016}_{3:016}"}),
        "line 2: the offset should be 0000000000000000_0000000000000002",
    ),
    "an empty append": (sealed(HEAD, APPEND | {"text": ""}), "line 2: the offset should be"),
    "a producer behind the data": (sealed(HEAD, APPEND, PRODUCER), "line 3: producer stands where it should not"),
    "another kind of line": (sealed(HEAD, {"kind": "note"}), "line 2: note stands where it should not"),
    "a missing append": (sealed(HEAD, appends=1), "line 2: appends are missing"),
    "a tail beyond": (sealed(HEAD), "line 2: appends are missing"),
    "too much": (sealed(HEAD, APPEND) + b"\n", "line 3: something follows the end"),
    "messages that are none": (
        sealed(HEAD | {"content_type": JSON}, {**APPEND, "messages": ["{]"]}),
        "line 2: a message is no JSON in the form in which it is stored",
    ),
    "two messages in one": (
        sealed(HEAD | {"content_type": JSON}, {**APPEND, "messages": ["1,2"]}),
        "line 2: a message is no JSON in the form",
    ),
    "messages with spaces": (
        sealed(HEAD | {"content_type": JSON}, {**APPEND, "messages": ["[1, 2]"]}),
        "line 2: a message is no JSON in the form",
    ),
    "messages that are no text": (
        sealed(HEAD | {"content_type": JSON}, {**APPEND, "messages": [1]}),
        "line 2: messages are not what they should be",
    ),
}


@pytest.mark.parametrize(("export", "words"), WRONG.values(), ids=WRONG)
def test_a_file_that_is_no_export_is_refused_and_nothing_of_it_stored(
    tmp_path: Path, export: bytes, words: str
) -> None:
    path = tmp_path / "store.db"

    with pytest.raises(ExportFormatError, match=words):
        import_stream(path, io.BytesIO(export))

    if path.exists():
        assert verify_store(path).streams == 0


def test_the_least_export_is_taken(tmp_path: Path) -> None:
    done = import_stream(tmp_path / "store.db", io.BytesIO(sealed(HEAD, PRODUCER, APPEND)))

    assert (done.path, done.tail, done.closed, done.appends, done.producers) == ("/a", 2, False, 1, 1)
    assert verify_store(tmp_path / "store.db").findings == ()


async def test_a_cut_or_changed_export_is_refused(tmp_path: Path) -> None:
    export = exported(await make(tmp_path / "source.db"), path_of("json"))
    path = tmp_path / "store.db"
    cuts = [export[:size] for size in range(0, len(export), 37)]
    changes = [export.replace(b"other", b"Other"), export.replace(b'"seq":4', b'"seq":5'), export[:-4] + b'."}\n']
    assert export not in changes

    for damaged in cuts + changes:
        with pytest.raises(ExportFormatError):
            import_stream(path, io.BytesIO(damaged))

    assert verify_store(path).streams == 0


def test_a_damaged_store_is_not_imported_into(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"Dear diary,")

    with pytest.raises(StoreFormatError):
        import_stream(path, io.BytesIO(sealed(HEAD, APPEND)))
    assert path.read_bytes() == b"Dear diary,"


@given(
    bodies=st.lists(st.binary(min_size=1, max_size=30), max_size=6), seq=st.none() | st.binary(min_size=1, max_size=9)
)
@settings(max_examples=8, deadline=None)
def test_any_bytes_go_through(tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes], seq: bytes | None) -> None:
    folder = tmp_path_factory.mktemp("any")

    async def prepare() -> None:
        async with SQLiteStore(folder / "a.db", durability="relaxed") as store:
            await create_stream(store, path="/a")
            for body in bodies:
                await append_to(store, body, path="/a")
            if seq is not None:
                await append_to(store, b"!", path="/a", seq=seq)

    anyio.run(prepare)
    export = exported(folder / "a.db", "/a")
    import_stream(folder / "b.db", io.BytesIO(export))

    assert lines(exported(folder / "b.db", "/a")) == lines(export)
    assert verify_store(folder / "b.db").findings == ()
