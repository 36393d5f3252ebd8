import gzip
import zlib

import pytest

from durable_streams._core.content_coding import make_decoder
from durable_streams.errors import IncompleteBodyError

PLAIN = b"0123456789 abc " * 50


def raw_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


CODED = {
    "gzip": ("gzip", gzip.compress(PLAIN)),
    "x-gzip": ("x-gzip", gzip.compress(PLAIN)),
    "deflate": ("deflate", zlib.compress(PLAIN)),
    "raw deflate": ("deflate", raw_deflate(PLAIN)),
    "two gzip members": ("gzip", gzip.compress(PLAIN[:100]) + gzip.compress(PLAIN[100:])),
    "padded gzip": ("gzip", gzip.compress(PLAIN) + bytes(20)),
    "two codings": ("deflate, GZIP", gzip.compress(zlib.compress(PLAIN))),
    "identity": ("identity", PLAIN),
    "no header": (None, PLAIN),
}


@pytest.mark.parametrize(("coding", "body"), CODED.values(), ids=CODED)
def test_a_coded_body_is_decoded(coding: str | None, body: bytes) -> None:
    decoder = make_decoder(coding)

    assert b"".join(decoder.feed(body)) == PLAIN
    decoder.finish()


def test_a_body_that_stops_early_is_incomplete() -> None:
    decoder = make_decoder("gzip")

    list(decoder.feed(gzip.compress(PLAIN)[:-1]))

    with pytest.raises(IncompleteBodyError):
        decoder.finish()
