"""Every transport of ours passes the kit, and the kit sees what is wrong with a bad one."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Mapping

import pytest

from durable_streams import ASGITransport, Exchange, NetworkError, Timeouts, Transport, open_transport
from durable_streams.testing import FaultTransport, check_transport

pytestmark = pytest.mark.anyio


def network() -> Transport:
    return open_transport(proxies={})


async def test_the_network_transports_pass() -> None:
    await check_transport(network)


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
async def test_the_asyncio_transport_passes_on_uvloop() -> None:
    pytest.importorskip("uvloop")
    await check_transport(network)


async def test_the_asgi_transport_passes() -> None:
    await check_transport(lambda app: ASGITransport(app, raise_app_exceptions=False), in_process=True)


async def test_a_fault_transport_without_faults_passes() -> None:
    await check_transport(lambda: FaultTransport(network(), seed=0))


class Bad:
    """A good transport, and the base of some bad ones."""

    def __init__(self) -> None:
        self._inner = network()

    async def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes],
        timeouts: Timeouts,
    ) -> Exchange:
        return await self._inner.open(method, url, headers, body, timeouts)

    async def aclose(self) -> None:
        await self._inner.aclose()


class Decoding(Bad):
    async def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes],
        timeouts: Timeouts,
    ) -> Exchange:
        return await super().open(method, url.replace("%2F", "/"), headers, body, timeouts)


class Patient(Bad):
    async def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes],
        timeouts: Timeouts,
    ) -> Exchange:
        if timeouts.read is not None and timeouts.read < 1:
            raise NetworkError("gave up at once", phase="sent")
        return await super().open(method, url, headers, body, timeouts)


class Repeating(Bad):
    async def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes],
        timeouts: Timeouts,
    ) -> Exchange:
        try:
            return await super().open(method, url, headers, body, timeouts)
        except NetworkError as error:
            if not error.reused:
                raise
            return await super().open(method, url, headers, body, timeouts)


@pytest.mark.parametrize(
    ("factory", "note"),
    [
        (Decoding, "Method, target and headers arrive as they were given"),
        (Patient, "limits the server's silence"),
        (Repeating, "the request is not repeated"),
    ],
)
async def test_a_broken_promise_is_named(factory: Callable[[], Transport], note: str) -> None:
    with pytest.raises((AssertionError, NetworkError)) as raised:
        await check_transport(factory)

    assert any(note in line for line in raised.value.__notes__)
