"""Our HTTP/2 against servers of others: nghttpd (nghttp2, in C) and hypercorn (h2, in Python)."""

import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
import trustme

from durable_streams._transport.base import Timeouts
from durable_streams.s2._h2.pool import Duplex, H2Pool

from .node import required

pytestmark = pytest.mark.anyio

LIMITS = Timeouts(connect=10.0, write=20.0, read=20.0)
FILE = bytes(range(256)) * 20_000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def nghttpd() -> str:
    found = shutil.which("nghttpd") or shutil.which("nghttpd", path="/usr/sbin")
    if found is None:
        (pytest.fail if required() else pytest.skip)("nghttpd is not installed: apt-get install nghttp2-server")
    return found


@contextmanager
def running(*command: str, port: int) -> Iterator[int]:
    """A server process, once its port answers."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ}) as process:
        try:
            for _ in range(400):
                assert process.poll() is None, f"{command[0]} has ended"
                with socket.socket() as sock:
                    sock.settimeout(1)
                    if not sock.connect_ex(("127.0.0.1", port)):
                        break
                try:
                    process.wait(0.05)
                except subprocess.TimeoutExpired:
                    continue
            yield port
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def htdocs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("htdocs")
    (folder / "file.bin").write_bytes(FILE)
    (folder / "small").write_bytes(b"small")
    return folder


@pytest.fixture(scope="module")
def cleartext(nghttpd: str, htdocs: Path) -> Iterator[str]:
    """nghttpd with few streams per connection, small windows, and trailers."""
    port = free_port()
    options = ["--no-tls", "-a", "127.0.0.1", "-d", str(htdocs), "-m", "5", "-w", "14", "-W", "15"]
    with running(nghttpd, *options, "--echo-upload", "--trailer", "x-end: yes", str(port), port=port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def encrypted(
    nghttpd: str, htdocs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ssl.SSLContext]]:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    folder = tmp_path_factory.mktemp("tls")
    key, chain = folder / "key.pem", folder / "chain.pem"
    certificate.private_key_pem.write_to_path(str(key))
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(str(chain), append=True)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    port = free_port()
    options = ["-a", "127.0.0.1", "-d", str(htdocs), "--echo-upload", str(port), str(key), str(chain)]
    with running(nghttpd, *options, port=port):
        yield f"https://localhost:{port}", context


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def hypercorn(request: pytest.FixtureRequest) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "hypercorn", "tests.interop.http2_app:app", "--bind", f"127.0.0.1:{port}"]
    with running(*command, "--worker-class", request.param, "--log-level", "error", port=port):
        yield f"http://127.0.0.1:{port}"


async def body_of(duplex: Duplex) -> bytes:
    pieces = []
    while piece := await duplex.receive():
        pieces.append(piece)
    return b"".join(pieces)


async def fetched(pool: H2Pool, url: str) -> bytes:
    async with await pool.open("GET", url, {"accept": "*/*"}, timeouts=LIMITS) as duplex:
        assert (await duplex.head())[0] == 200
        return await body_of(duplex)


async def echoed(pool: H2Pool, url: str, payload: bytes) -> bytes:
    """Send and receive at once, as an echo needs it that answers as it goes."""
    async with await pool.open("POST", url, {}, body=True, timeouts=LIMITS) as duplex:
        answer = b""
        async with anyio.create_task_group() as group:

            async def send() -> None:
                for start in range(0, len(payload), 300_000):
                    await duplex.send(payload[start : start + 300_000])
                await duplex.finish()

            group.start_soon(send)
            assert (await duplex.head())[0] == 200
            answer = await body_of(duplex)
        return answer


async def test_nghttpd_serves_a_file(cleartext: str) -> None:
    async with H2Pool() as pool:
        assert await fetched(pool, f"{cleartext}/file.bin") == FILE


async def test_nghttpd_gets_back_what_it_was_sent_through_small_windows(cleartext: str) -> None:
    async with H2Pool() as pool:
        assert await echoed(pool, f"{cleartext}/echo", FILE[:1_000_000]) == FILE[:1_000_000]


async def test_nghttpd_with_five_streams_a_connection_gets_more_connections(cleartext: str) -> None:
    async with H2Pool() as pool:
        streams = [await pool.open("POST", f"{cleartext}/echo", {}, body=True, timeouts=LIMITS) for _ in range(12)]

        assert repr(pool) == "<H2Pool 3 connections, 12 streams>"
        for number, stream in enumerate(streams):
            await stream.send(b"%d" % number)
            await stream.finish()
        assert [await body_of(stream) for stream in streams] == [b"%d" % number for number in range(12)]
        for stream in streams:
            await stream.aclose()


async def test_nghttpd_is_not_stalled_by_streams_given_up(cleartext: str) -> None:
    async with H2Pool(window=200_000) as pool:
        for _ in range(40):
            async with await pool.open("GET", f"{cleartext}/file.bin", {}, timeouts=LIMITS) as duplex:
                assert await duplex.receive()
        assert await fetched(pool, f"{cleartext}/file.bin") == FILE
        assert repr(pool).startswith("<H2Pool 1 connections")


async def test_nghttpd_over_tls(encrypted: tuple[str, ssl.SSLContext]) -> None:
    url, context = encrypted
    async with H2Pool(ssl_context=context) as pool:
        assert await fetched(pool, f"{url}/file.bin") == FILE
        assert await echoed(pool, f"{url}/echo", FILE[:500_000]) == FILE[:500_000]


async def test_hypercorn_answers_while_it_is_asked(hypercorn: str) -> None:
    async with H2Pool() as pool:
        duplex = await pool.open("POST", f"{hypercorn}/echo", {}, body=True, timeouts=LIMITS)
        _, headers = await duplex.head()
        for number in range(5):
            await duplex.send(b"message %d" % number)
            assert await duplex.receive() == b"message %d" % number
        await duplex.finish()

        assert headers["x-version"] == "2"
        assert await duplex.receive() == b""
        assert await echoed(pool, f"{hypercorn}/echo", FILE[:1_000_000]) == FILE[:1_000_000]


async def test_hypercorn_serves_many_streams_at_once(hypercorn: str) -> None:
    answers: dict[int, bytes] = {}
    async with H2Pool() as pool:

        async def exchange(number: int) -> None:
            answers[number] = await echoed(pool, f"{hypercorn}/echo", b"%d " % number * 2000)

        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(exchange, number)

    assert answers == {number: b"%d " % number * 2000 for number in range(60)}


async def test_hypercorn_may_end_its_answer_first(hypercorn: str) -> None:
    async with H2Pool() as pool:
        async with await pool.open("POST", f"{hypercorn}/early", {}, body=True, timeouts=LIMITS) as duplex:
            assert await body_of(duplex) == b"enough"
        assert await echoed(pool, f"{hypercorn}/echo", b"next") == b"next"
