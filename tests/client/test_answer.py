"""The decoded body of one answer."""

import gzip
import tracemalloc
import zlib

import pytest

from durable_streams._client.answer import Answer
from durable_streams.errors import IncompleteBodyError, ParseError

pytestmark = pytest.mark.anyio

MIB = 1 << 20


class Chunks:
    """An exchange whose body comes in these chunks."""

    status = 200

    def __init__(self, *chunks: bytes, coding: str | None = None) -> None:
        self.headers = {} if coding is None else {"content-encoding": coding}
        self.left = list(chunks)
        self.closed = False

    async def receive(self) -> bytes:
        return self.left.pop(0) if self.left else b""

    async def aclose(self) -> None:
        self.closed = True


async def read(answer: Answer) -> list[bytes]:
    pieces = []
    while piece := await answer.receive():
        pieces.append(piece)
    return pieces


async def test_a_body_comes_decoded_and_in_order() -> None:
    body = gzip.compress(b"one, ") + gzip.compress(b"two")

    assert b"".join(await read(Answer(Chunks(body[:9], body[9:30], body[30:], coding="gzip"), None))) == b"one, two"
    assert await read(Answer(Chunks(b"one, ", b"two"), None)) == [b"one, ", b"two"]
    assert await read(Answer(Chunks(), None)) == []


async def test_a_body_that_grows_a_thousandfold_is_decoded_as_it_is_taken() -> None:
    deflater = zlib.compressobj(9, wbits=31)
    chunk = b"".join(deflater.compress(bytes(MIB)) for _ in range(64)) + deflater.flush()
    answer = Answer(Chunks(chunk, coding="gzip"), None)

    tracemalloc.start()
    total = 0
    while size := len(await answer.receive()):
        total += size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert total == 64 * MIB
    assert peak < 8 * MIB


async def test_a_cut_body_gives_what_came_and_then_fails() -> None:
    answer = Answer(Chunks(gzip.compress(bytes(100))[:-4], coding="gzip"), None)

    assert await answer.receive() == bytes(100)
    with pytest.raises(IncompleteBodyError):
        await answer.receive()


async def test_the_limit_counts_decoded_bytes() -> None:
    with pytest.raises(ParseError, match="limit of 99 bytes"):
        await read(Answer(Chunks(gzip.compress(bytes(100)), coding="gzip"), 99))


async def test_an_unknown_coding_is_an_error_of_the_body() -> None:
    with pytest.raises(ParseError, match="unknown content coding 'br'"):
        await read(Answer(Chunks(b"x", coding="br"), None))
