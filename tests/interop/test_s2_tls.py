"""`s2 lite` behind TLS, with a certificate of its own making: single calls over HTTP/1.1, sessions over HTTP/2."""

import ssl
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from durable_streams.s2 import S2, BasinConfig, S2ConnectionError

from .s2lite import Lite, required, why_not

pytestmark = [pytest.mark.interop, pytest.mark.anyio]


@pytest.fixture(scope="module")
def lite() -> Iterator[Lite]:
    missing = why_not()
    if missing is not None:
        assert not required(), missing
        pytest.skip(missing)
    with Lite(tls=True) as lite:
        yield lite


@pytest.fixture
def trusting(lite: Lite) -> ssl.SSLContext:
    """Trusts the server's certificate, whatever name stands in it."""
    host, port = lite.url.removeprefix("https://").split(":")
    context = ssl.create_default_context(cadata=ssl.get_server_certificate((host, int(port))))
    context.check_hostname = False
    return context


@pytest.mark.parametrize("transport", ["s2s", "http"])
async def test_calls_and_sessions_share_a_context(lite: Lite, trusting: ssl.SSLContext, transport: Any) -> None:
    basin = f"test-{uuid.uuid4().hex[:8]}"
    async with S2("ignored", endpoints=lite.url, ssl_context=trusting) as s2:
        await s2.basins.create(basin, config=BasinConfig(create_stream_on_append=True))
        stream = s2.basin(basin).stream("s", transport=transport)
        async with stream.append_session() as session:
            for number in range(10):
                await session.submit(str(number))
        await stream.append("10")
        async with stream.read_session(count=11) as reader:
            found = [record.body async for record in reader.iter_records()]
        assert (await stream.check_tail()).seq_num == 11

    assert found == [str(number).encode() for number in range(11)]


@pytest.mark.parametrize("transport", ["s2s", "http"])
async def test_a_certificate_of_its_own_making_is_not_trusted(lite: Lite, transport: Any) -> None:
    async with S2("ignored", endpoints=lite.url) as s2:
        stream = s2.basin("basin-01").stream("s", transport=transport)
        with pytest.raises(S2ConnectionError, match="certificate") as single:
            await stream.check_tail()
        with pytest.raises(S2ConnectionError, match="certificate") as session:
            async with stream.append_session() as writer:
                await writer.submit("x")

    assert (single.value.definite, session.value.definite) == (True, True)
