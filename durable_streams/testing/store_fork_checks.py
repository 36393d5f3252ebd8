"""What every store owes to forks and to those they are forked from; part of `store_kit`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel

from ..server import (
    Appended,
    BadOffset,
    Created,
    Deleted,
    Exists,
    Gone,
    Instant,
    Missing,
    Offset,
    ProducerStamp,
    ProducerState,
    Reason,
    Refused,
    SoftDeleted,
    Store,
    StreamInfo,
    StreamRef,
)
from .store_steps import (
    PATH,
    append_to,
    check,
    create_stream,
    expect,
    expect_refusal,
    fork_stream,
    look_at,
    read_page,
    read_pages,
)

FORK = "/v1/stream/fork"
OTHER = "/v1/stream/other"
JSON = "application/json"
TEXT = "text/plain"


async def _content(store: Store, path: str) -> bytes:
    ref = (await look_at(store, path=path)).ref
    return (await read_page(store, ref))[0]


@check
async def _independence(store: Store) -> None:
    """A fork has what the source had before the fork offset, and from then on each goes its own way."""
    expect(Created, await create_stream(store, "text/plain; charset=utf-8", body=b"one"))
    expect(Appended, await append_to(store, b"two", TEXT))
    info = expect(Created, await fork_stream(store, FORK, 3)).info
    assert (info.ref.path, info.tail, info.closed) == (FORK, 3, False)
    assert info.content_type == "text/plain; charset=utf-8"

    expect(Appended, await append_to(store, b"three", TEXT))
    assert expect(Appended, await append_to(store, b"2", TEXT, path=FORK)).tail == 4
    expect(Appended, await append_to(store, b"3", TEXT, path=FORK, close=True))
    assert await _content(store, FORK) == b"one23"
    assert await _content(store, PATH) == b"onetwothree"
    assert not (await look_at(store)).closed

    tail = expect(Created, await fork_stream(store, OTHER, body=b"!")).info
    assert tail.tail == 12
    assert await _content(store, OTHER) == b"onetwothree!"
    assert not tail.closed, "closure is not inherited"


@check
async def _forks_of_closed_streams(store: Store) -> None:
    """A closed stream can be forked, and the fork is open; or born closed if that is asked for."""
    expect(Created, await create_stream(store, TEXT, body=b"all", closed=True))
    expect(Created, await fork_stream(store, FORK))
    expect(Appended, await append_to(store, b" and more", TEXT, path=FORK))
    assert expect(Created, await fork_stream(store, OTHER, 1, closed=True, body=b"nd")).info.closed
    expect_refusal(await append_to(store, b"x", TEXT, path=OTHER), Reason.CLOSED)
    assert await _content(store, OTHER) == b"and"
    expect(Exists, await fork_stream(store, OTHER, 1, closed=True))
    expect_refusal(await fork_stream(store, OTHER, 1), Reason.OTHER_CONFIG)


@check
async def _fork_pages(store: Store) -> None:
    """A fork reads as one stream: pages and positions are those of a stream that was written alone."""
    # Three generations; what an append is in a fork is marked by the letters.
    expect(Created, await create_stream(store, body=b"aaaa"))
    for body in (b"bbb", b"cccccc", b"dd"):
        expect(Appended, await append_to(store, body))
    expect(Created, await fork_stream(store, FORK, 10, body=b"ee"))  # divides the third append
    expect(Appended, await append_to(store, b"f", path=FORK))
    expect(Created, await fork_stream(store, OTHER, 11, source=FORK, body=b"gggg"))  # divides the fork's own first
    inside = "/v1/stream/inside"
    expect(Created, await fork_stream(store, inside, 5, source=OTHER, body=b"hhhhh"))  # in what was inherited twice
    first = "/v1/stream/first"
    expect(Created, await fork_stream(store, first, 0, source=inside, body=b"iii"))
    for path, appends in (
        (PATH, [b"aaaa", b"bbb", b"cccccc", b"dd"]),
        (FORK, [b"aaaa", b"bbb", b"ccc", b"ee", b"f"]),
        (OTHER, [b"aaaa", b"bbb", b"ccc", b"e", b"gggg"]),
        (inside, [b"aaaa", b"b", b"hhhhh"]),
        (first, [b"iii"]),
    ):
        content = b"".join(appends)
        ends = {len(b"".join(appends[: count + 1])) for count in range(len(appends))}
        info = await look_at(store, path=path)
        assert info.tail == len(content)
        for offset in range(len(content) + 1):
            for max_bytes in range(1, len(content) + 2):
                page, end = await read_page(store, info.ref, offset, max_bytes)
                assert page == content[offset:end]
                assert end - offset <= max_bytes
                fits = [place for place in ends if offset < place <= offset + max_bytes]
                assert end == (max(fits) if fits else min(offset + max_bytes, len(content)))
        expect(BadOffset, await store.read(info.ref, len(content) + 1, 100))


@check
async def _json_forks(store: Store) -> None:
    """In JSON mode a fork begins between two messages, and its pages hold whole ones."""
    expect(Created, await create_stream(store, JSON, body=b'[{"n":1},[2,3],"x"]'))
    expect(Appended, await append_to(store, b'{"n": 4}', JSON))
    for offset in range(28):
        result = await fork_stream(store, f"/v1/stream/at{offset}", offset)
        if offset in (0, 8, 14, 18, 26):
            assert expect(Created, result).info.tail == offset
        else:
            expect_refusal(result, Reason.BAD_FORK_OFFSET)
            expect(Missing, await store.head(f"/v1/stream/at{offset}", 0.0))
    path = "/v1/stream/at14"
    expect(Appended, await append_to(store, b"[5,6]", JSON, path=path))
    expect(Created, await fork_stream(store, FORK, 16, source=path))
    expect_refusal(await fork_stream(store, OTHER, 15, source=path), Reason.BAD_FORK_OFFSET)
    expect(Appended, await append_to(store, b"7", JSON, path=FORK))
    content, boundaries = b'{"n":1},[2,3],5,7,', [0, 8, 14, 16, 18]
    ref = (await look_at(store, path=FORK)).ref
    for max_bytes in range(1, 20):
        data, ends = await read_pages(store, ref, max_bytes)
        assert data == content
        assert set(ends) <= set(boundaries)
    for offset in range(19):
        if offset in boundaries:
            assert (await read_page(store, ref, offset))[0] == content[offset:]
        else:
            expect(BadOffset, await store.read(ref, offset, 1000))


@check
async def _inherited_type(store: Store) -> None:
    """A body is taken as the inherited type has it, and refused as a whole if it is not like that."""
    expect(Created, await create_stream(store, JSON, body=b"1"))
    expect_refusal(await fork_stream(store, FORK, body=b"[2"), Reason.INVALID_JSON)
    expect(Missing, await store.head(FORK, 0.0))
    expect(Deleted, await store.delete(PATH, 0.0))
    expect(Created, await create_stream(store, JSON, body=b"1"))
    expect(Created, await fork_stream(store, FORK, body=b"[2, 3]"))
    assert await _content(store, FORK) == b"1,2,3,"
    expect(Created, await fork_stream(store, OTHER, content_type="Application/JSON", body=b"[]"))
    assert await _content(store, OTHER) == b"1,"

    plain = "/v1/stream/plain"
    expect(Created, await create_stream(store, TEXT, path=plain, body=b"1"))
    expect(Created, await fork_stream(store, "/v1/stream/braces", source=plain, body=b"[2"))
    assert await _content(store, "/v1/stream/braces") == b"1[2"


@check
async def _sub_offsets(store: Store) -> None:
    """A sub-offset adds a part of the append at the fork offset, as the fork's own, before the body."""
    expect(Created, await create_stream(store, TEXT, body=b"abcdef"))
    expect(Appended, await append_to(store, b"ghi", TEXT))
    contents = {}
    for offset, sub_offset, body in ((0, 4, b""), (0, 6, b"!"), (2, 4, b""), (6, 3, b"!"), (7, 1, b"?"), (3, 0, b".")):
        path = f"/v1/stream/{offset}-{sub_offset}"
        made = expect(Created, await fork_stream(store, path, offset, sub_offset, body=body)).info
        contents[path] = b"abcdefghi"[: offset + sub_offset] + body
        assert made.tail == len(contents[path])
    for offset, sub_offset in ((0, 7), (2, 5), (6, 4), (7, 3), (9, 1), (0, 2**53 - 1)):
        expect_refusal(await fork_stream(store, FORK, offset, sub_offset), Reason.BAD_SUB_OFFSET)
        expect(Missing, await store.head(FORK, 0.0))
    expect_refusal(await fork_stream(store, FORK, None, 1), Reason.BAD_SUB_OFFSET)
    expect(Appended, await append_to(store, b"later", TEXT))
    for path, content in contents.items():
        assert await _content(store, path) == content

    # In a fork an append ends where the fork does, whoever wrote it.
    expect(Created, await fork_stream(store, FORK, 4, source="/v1/stream/0-6", body=b"XYZ"))
    expect_refusal(await fork_stream(store, OTHER, 1, 4, source=FORK), Reason.BAD_SUB_OFFSET)
    expect(Created, await fork_stream(store, OTHER, 1, 3, source=FORK, body=b"-"))
    assert await _content(store, OTHER) == b"abcd-"
    expect(Created, await fork_stream(store, "/v1/stream/third", 4, 2, source=FORK))
    assert await _content(store, "/v1/stream/third") == b"abcdXY"
    ref = (await look_at(store, path="/v1/stream/6-3")).ref
    assert (await read_pages(store, ref, 9))[1] == [9, 10], "the part that was added is an append of its own"


@check
async def _json_sub_offsets(store: Store) -> None:
    """In JSON mode sub-offsets count messages."""
    expect(Created, await create_stream(store, JSON, body=b'[{"n":1},[2,3],"x"]'))
    expect(Appended, await append_to(store, b'{"n":4}', JSON))
    made = expect(Created, await fork_stream(store, FORK, 0, 2)).info
    assert made.tail == 14
    assert expect(Appended, await append_to(store, b'{"n":9}', JSON, path=FORK)).tail == 22
    assert await _content(store, FORK) == b'{"n":1},[2,3],{"n":9},'
    for offset in (0, 8, 14, 22):
        expect(StreamInfo, await store.head(FORK, 0.0))
        assert not isinstance(await store.read(made.ref, offset, 100), BadOffset)
    expect(BadOffset, await store.read(made.ref, 18, 100))
    expect(Created, await fork_stream(store, "/v1/stream/all", 0, 3, body=b"[5,6]"))
    assert await _content(store, "/v1/stream/all") == b'{"n":1},[2,3],"x",5,6,'
    expect(Created, await fork_stream(store, "/v1/stream/rest", 8, 2))
    assert await _content(store, "/v1/stream/rest") == b'{"n":1},[2,3],"x",'
    for offset, sub_offset in ((0, 4), (8, 3), (18, 2), (26, 1)):
        expect_refusal(await fork_stream(store, OTHER, offset, sub_offset), Reason.BAD_SUB_OFFSET)
    expect_refusal(await fork_stream(store, OTHER, None, 1), Reason.BAD_SUB_OFFSET)
    # The fork's own first append are the two messages that were added; its second is the one that was posted.
    expect_refusal(await fork_stream(store, OTHER, 0, 3, source=FORK), Reason.BAD_SUB_OFFSET)
    expect(Created, await fork_stream(store, OTHER, 8, 1, source=FORK))
    assert await _content(store, OTHER) == b'{"n":1},[2,3],'
    # An inherited append ends where the fork begins.
    half = "/v1/stream/half"
    expect(Created, await fork_stream(store, half, 14, body=b"7"))
    expect_refusal(await fork_stream(store, "/v1/stream/x", 0, 3, source=half), Reason.BAD_SUB_OFFSET)
    expect_refusal(await fork_stream(store, "/v1/stream/x", 8, 2, source=half), Reason.BAD_SUB_OFFSET)
    expect(Created, await fork_stream(store, "/v1/stream/x", 8, 1, source=half))


@check
async def _large_sub_offset(store: Store) -> None:
    """The part of a large append that a sub-offset adds comes back in pieces, like any other."""
    content = bytes(range(256)) * 12_000
    expect(Created, await create_stream(store, body=b"before"))
    expect(Appended, await append_to(store, content))
    expect(Created, await fork_stream(store, FORK, 6, 2_500_000, body=b"after"))
    assert await _content(store, FORK) == b"before" + content[:2_500_000] + b"after"
    expect(Created, await fork_stream(store, OTHER, 2_000_000, 500_006, source=FORK))
    assert await _content(store, OTHER) == b"before" + content[:2_500_000]
    expect_refusal(await fork_stream(store, "/v1/stream/x", 2_000_000, 500_007, source=FORK), Reason.BAD_SUB_OFFSET)


@check
async def _refused_forks(store: Store) -> None:
    """A fork that may not be leaves nothing behind: no stream, and no hold on its source."""
    for result in (await fork_stream(store, FORK), await fork_stream(store, FORK, 7, 1, content_type=TEXT)):
        expect_refusal(result, Reason.SOURCE_NOT_FOUND)
    expect_refusal(await fork_stream(store, PATH), Reason.SOURCE_NOT_FOUND)
    expect(Created, await create_stream(store, TEXT, body=b"abc"))
    expect_refusal(await fork_stream(store, FORK, 99, content_type=JSON), Reason.FORK_TYPE_MISMATCH)
    beyond = expect_refusal(await fork_stream(store, FORK, 4), Reason.BAD_FORK_OFFSET)
    assert beyond.problem
    expect_refusal(await fork_stream(store, FORK, 10**32 - 1, 1), Reason.BAD_FORK_OFFSET)
    expect_refusal(await fork_stream(store, FORK, 3, 1), Reason.BAD_SUB_OFFSET)
    expect_refusal(await fork_stream(store, PATH), Reason.OTHER_CONFIG)
    expect(Missing, await store.head(FORK, 0.0))
    expect(Deleted, await store.delete(PATH, 0.0))
    expect(Missing, await store.head(PATH, 0.0))


@check
async def _repeated_forks(store: Store) -> None:
    """A fork is recognised by what was asked for, and by what became of it."""
    expect(Created, await create_stream(store, TEXT, ttl=60, body=b"abcdef"))
    first = expect(Created, await fork_stream(store, FORK)).info
    for again in (
        await fork_stream(store, FORK, body=b"ignored"),
        await fork_stream(store, FORK, 6),
        await fork_stream(store, FORK, content_type="TEXT/plain; charset=x"),
        await fork_stream(store, FORK, ttl=60),
    ):
        assert expect(Exists, again).info == first
    for other in (
        await fork_stream(store, FORK, 5),
        await fork_stream(store, FORK, 0, 6),
        await fork_stream(store, FORK, content_type=JSON),
        await fork_stream(store, FORK, ttl=61),
        await fork_stream(store, FORK, expires_at=Instant.parse("2030-01-01T00:00:00Z")),
        await fork_stream(store, FORK, source=OTHER),
        await fork_stream(store, FORK, closed=True),
        await create_stream(store, TEXT, path=FORK, ttl=60),
    ):
        expect_refusal(other, Reason.OTHER_CONFIG)

    expect(Created, await fork_stream(store, OTHER, 1, 2, content_type=TEXT, ttl=5))
    expect(Exists, await fork_stream(store, OTHER, 1, 2, ttl=5))
    expect(Exists, await fork_stream(store, OTHER, None, 2, ttl=5))
    expect_refusal(await fork_stream(store, OTHER, 1, 2), Reason.OTHER_CONFIG)
    expect_refusal(await fork_stream(store, OTHER, 3, ttl=5), Reason.OTHER_CONFIG)
    expect(SoftDeleted, await store.delete(PATH, 0.0))
    expect(Exists, await fork_stream(store, FORK))
    expect_refusal(await create_stream(store, TEXT, ttl=60), Reason.SOFT_DELETED)


@check
async def _inherited_lifetime(store: Store) -> None:
    """A fork lives as long as it asks to; else it inherits the window or the end of its source."""
    end, later = Instant.parse("1970-01-02T00:00:00Z"), Instant.parse("1970-01-03T00:00:00Z")
    sources: list[dict[str, Any]] = [{}, {"ttl": 50}, {"expires_at": end}]
    wishes: list[dict[str, Any]] = [{}, {"ttl": 70}, {"expires_at": later}]
    for number, given in enumerate(sources):
        source = f"/v1/stream/source{number}"
        expect(Created, await create_stream(store, path=source, **given))
        for wish in wishes:
            path = f"{source}-{len(wish)}{wish.get('ttl')}"
            made = expect(Created, await fork_stream(store, path, source=source, now=40.0, **wish)).info
            lifetime = wish or given
            assert (made.ttl, made.expires_at) == (lifetime.get("ttl"), lifetime.get("expires_at"))
    expect(Gone, await store.head("/v1/stream/source1", 50.0))
    expect(StreamInfo, await store.head("/v1/stream/source1-0None", 89.0))
    expect(Missing, await store.head("/v1/stream/source1-0None", 90.0))
    expect(StreamInfo, await store.head("/v1/stream/source2-1None", 86_400.0))
    expect(Missing, await store.head("/v1/stream/source2-0None", 86_400.0))


@check
async def _fresh_state(store: Store) -> None:
    """Producers and `Stream-Seq` begin anew in a fork, and go on in the source."""
    expect(Created, await create_stream(store))
    expect(Appended, await append_to(store, b"a", producer=ProducerStamp("p", 3, 0), seq=b"5"))
    expect(Appended, await append_to(store, b"b", producer=ProducerStamp("p", 3, 1), seq=b"6"))
    expect(Created, await fork_stream(store, FORK))
    gap = await append_to(store, b"c", path=FORK, producer=ProducerStamp("p", 3, 2))
    assert expect_refusal(gap, Reason.SEQUENCE_GAP).expected == 0
    result = await append_to(store, b"c", path=FORK, producer=ProducerStamp("p", 0, 0), seq=b"1")
    assert expect(Appended, result).producer == ProducerState(0, 0)
    expect(Appended, await append_to(store, b"c", producer=ProducerStamp("p", 3, 2), seq=b"7"))


@check
async def _soft_deletion(store: Store) -> None:
    """A deleted source with forks is gone for everyone but them, and its path is taken until the last one goes."""
    info = expect(Created, await create_stream(store, body=b"shared", ttl=100)).info
    expect(Created, await fork_stream(store, FORK, 4, expires_at=Instant.parse("2030-01-01T00:00:00Z")))
    expect(Created, await fork_stream(store, OTHER, expires_at=Instant.parse("2030-01-01T00:00:00Z")))
    page: Any = await store.read(info.ref, 0, 100)
    watch = store.watch(info.ref)
    expect(SoftDeleted, await store.delete(PATH, 0.0))
    assert watch.gone
    await watch.wait(6)
    watch.close()
    assert bytes(await page.next_piece()) == b"shared"
    await page.aclose()

    for now in (0.0, 1e6):  # it does not expire any more
        expect(Gone, await store.head(PATH, now))
        expect(Gone, await store.read(info.ref, 0, 100))
        expect_refusal(await append_to(store, b"x", now=now), Reason.GONE)
        expect_refusal(await append_to(store, close=True, now=now), Reason.GONE)
        expect_refusal(await store.delete(PATH, now), Reason.GONE)
        expect_refusal(await create_stream(store, ttl=100, now=now), Reason.SOFT_DELETED)
        expect_refusal(await fork_stream(store, "/v1/stream/third", now=now), Reason.SOURCE_DELETED)
        await store.sweep(now)
    late = store.watch(info.ref)
    assert late.gone
    late.close()
    assert await _content(store, FORK) == b"shar"
    expect(Appended, await append_to(store, b"ed anew", path=FORK))
    assert await _content(store, FORK) == b"shared anew"

    expect(Deleted, await store.delete(FORK, 0.0))
    expect(Gone, await store.head(PATH, 0.0))
    assert await _content(store, OTHER) == b"shared"
    expect(Deleted, await store.delete(OTHER, 0.0))
    await store.sweep(0.0)
    expect(Missing, await store.head(PATH, 0.0))
    expect(Missing, await store.read(info.ref, 0, 100))
    new = expect(Created, await create_stream(store)).info
    assert new.ref != info.ref
    assert await _content(store, PATH) == b""


@check
async def _cascade(store: Store) -> None:
    """Removing the last fork removes the soft-deleted above it, generation by generation."""
    paths = [PATH, *(f"/v1/stream/child{number}" for number in range(5))]
    expect(Created, await create_stream(store, body=b"0"))
    for number, (source, path) in enumerate(pairwise(paths), 1):
        expect(Created, await fork_stream(store, path, source=source, body=b"%d" % number))
    for path in paths[:2] + paths[3:5]:
        expect(SoftDeleted, await store.delete(path, 0.0))
    assert await _content(store, paths[5]) == b"012345"
    expect(Deleted, await store.delete(paths[5], 0.0))
    await store.sweep(0.0)
    for path in paths[3:]:
        expect(Missing, await store.head(path, 0.0))
    for path in paths[:2]:
        expect(Gone, await store.head(path, 0.0))
    assert await _content(store, paths[2]) == b"012"
    expect(Deleted, await store.delete(paths[2], 0.0))
    await store.sweep(0.0)
    for path in paths:
        expect(Missing, await store.head(path, 0.0))


@check
async def _expired_sources(store: Store) -> None:
    """A source that expires under its forks becomes soft-deleted; forks that expire let go of it."""
    for number, ask in enumerate((store.head, store.delete, None)):
        source, path = f"/v1/stream/source{number}", f"/v1/stream/fork{number}"
        ref = expect(Created, await create_stream(store, path=source, ttl=10, body=b"kept")).info.ref
        expect(Created, await fork_stream(store, path, source=source, ttl=30, now=5.0))
        watch = store.watch(ref)
        watch.close()
        if ask is None:
            await store.sweep(10.0)
        elif ask is store.head:
            expect(Gone, await store.head(source, 10.0))
        else:
            expect_refusal(await store.delete(source, 10.0), Reason.GONE)
        assert watch.gone
        expect_refusal(await append_to(store, b"x", path=source, now=10.0), Reason.GONE)
        expect_refusal(await create_stream(store, path=source, ttl=10, now=10.0), Reason.SOFT_DELETED)
        store.touch(ref, 11.0)
        expect(Gone, await store.head(source, 11.0))
        fork = await look_at(store, 34.9, path)
        assert await read_page(store, fork.ref) == (b"kept", 4)
        await store.sweep(35.0)
        expect(Missing, await store.head(path, 35.0))
        expect(Missing, await store.head(source, 35.0))
    expect(Created, await create_stream(store, ttl=10, body=b"x"))
    expect(Created, await fork_stream(store, FORK, ttl=5))
    await store.sweep(5.0)
    expect(Deleted, await store.delete(PATH, 5.0))
    expect(Created, await create_stream(store, body=b"x"))
    expect(Created, await fork_stream(store, FORK, ttl=5))
    expect(SoftDeleted, await store.delete(PATH, 4.0))
    await store.sweep(5.0)
    expect(Missing, await store.head(PATH, 5.0))


@check
async def _fork_waiters(store: Store) -> None:
    """Who waits on a fork is not woken by its source, and the other way round."""
    source = expect(Created, await create_stream(store, body=b"x")).info.ref
    fork = expect(Created, await fork_stream(store, FORK)).info.ref
    returned: list[StreamRef] = []

    async def wait(ref: StreamRef) -> None:
        watch = store.watch(ref)
        try:
            await watch.wait(1)
            returned.append(ref)
        finally:
            watch.close()

    async def settle() -> None:
        for _ in range(10):
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(wait, fork)
        await settle()
        expect(Appended, await append_to(store, b"y", close=True))
        expect(SoftDeleted, await store.delete(PATH, 0.0))
        await settle()
        assert returned == []
        expect(Appended, await append_to(store, b"z", path=FORK))
    assert returned == [fork]
    assert source != fork


@check
async def _depth(store: Store) -> None:
    """A stream has 64 ancestors at most, and reads through all of them."""
    paths = [PATH, *(f"/v1/stream/d{number}" for number in range(64))]
    expect(Created, await create_stream(store, body=b"."))
    for source, path in pairwise(paths):
        expect(Created, await fork_stream(store, path, source=source, body=b"."))
    expect_refusal(await fork_stream(store, OTHER, source=paths[-1]), Reason.FORK_TOO_DEEP)
    assert await _content(store, paths[-1]) == b"." * 65
    ref = (await look_at(store, path=paths[-1])).ref
    assert (await read_pages(store, ref, 2))[1] == [*range(2, 65, 2), 65]
    for path in paths[:-1]:
        expect(SoftDeleted, await store.delete(path, 0.0))
    expect(Deleted, await store.delete(paths[-1], 0.0))
    await store.sweep(0.0)
    for path in paths:
        expect(Missing, await store.head(path, 0.0))


@check
async def _racing_deletion(store: Store) -> None:
    """Of a fork and a deletion that race, each sees the other or comes first: no fork without its data."""
    for _ in range(50):
        expect(Created, await create_stream(store, body=b"data"))
        results: list[Any] = []

        async def fork(results: list[Any] = results) -> None:
            results.append(await fork_stream(store, FORK))

        async def delete(results: list[Any] = results) -> None:
            results.append(await store.delete(PATH, 0.0))

        async with anyio.create_task_group() as group:
            group.start_soon(fork)
            group.start_soon(delete)
        made = next(result for result in results if isinstance(result, Created | Refused))
        if isinstance(made, Created):
            assert SoftDeleted() in results
            assert await _content(store, FORK) == b"data"
            expect(Deleted, await store.delete(FORK, 0.0))
            await store.sweep(0.0)
        else:
            assert Deleted() in results
            expect_refusal(made, Reason.SOURCE_NOT_FOUND)
        expect(Missing, await store.head(PATH, 0.0))


@check
async def _racing_forks(store: Store) -> None:
    """Of equal forks that race, one is made, and one edge with it."""
    expect(Created, await create_stream(store, body=b"data"))
    results: list[Any] = []

    async def fork(offset: Offset | None) -> None:
        results.append(await fork_stream(store, FORK, offset))

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(fork, 4 if number % 2 else None)
    assert sum(isinstance(result, Created) for result in results) == 1
    assert sum(isinstance(result, Exists) for result in results) == 19
    expect(Deleted, await store.delete(FORK, 0.0))
    expect(Deleted, await store.delete(PATH, 0.0))
