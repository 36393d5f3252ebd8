"""The socket beneath a connection: partial writes, growing reads, TLS over memory, acknowledgements in time."""

import os
import platform
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import trustme

from durable_streams.s2._h2.wire import Wire, connect_tcp

pytestmark = pytest.mark.anyio


class Spy(socket.socket):
    """Counts how often quick acknowledgements are asked for."""

    armed = 0

    def setsockopt(self, *arguments: Any) -> None:
        if arguments[:2] == (socket.IPPROTO_TCP, getattr(socket, "TCP_QUICKACK", None)):
            self.armed += 1
        super().setsockopt(*arguments)


@pytest.fixture
def pair() -> Iterator[tuple[Wire, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        yield Wire(ours), theirs


async def test_quick_acknowledgements_are_asked_for_after_each_receive() -> None:
    if not hasattr(socket, "TCP_QUICKACK"):
        pytest.skip("Linux only")
    with socket.create_server(("127.0.0.1", 0)) as listener, Spy() as sock:
        sock.connect(listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            wire = Wire(sock)
            for number in range(3):
                peer.sendall(b"x")
                await wire.wait_readable()
                assert wire.read() == b"x"
                assert sock.armed == number + 1
            assert wire.read() is None
            wire.close()


FREED = """
import resource, socket
from durable_streams.s2._h2.wire import Wire

def churn():
    for _ in range(4):
        blocks = [b"x" * (1 << 20) for _ in range(6)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with socket.socket() as sock:
    Wire(sock)
    settled = churn()
    print(churn() - settled)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have their own ways")
def test_memory_that_is_freed_is_there_for_the_next_block() -> None:
    """4 times 6 MiB of pages of 4 KiB: 6144 of them are fetched from the system and cleared otherwise."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    faults = subprocess.run([sys.executable, "-c", FREED], env=environ, check=True, capture_output=True, timeout=60)

    assert int(faults.stdout) < 600


async def test_nagles_algorithm_is_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire = await connect_tcp("127.0.0.1", listener.getsockname()[1])
        assert wire._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        wire.close()


async def test_reading_tells_nothing_from_the_end(pair: tuple[Wire, socket.socket]) -> None:
    wire, peer = pair
    nothing = wire.read()
    peer.close()
    await wire.wait_readable()

    assert nothing is None
    assert wire.read() == b""


async def test_reads_grow_with_what_comes_and_shrink_again(pair: tuple[Wire, socket.socket]) -> None:
    wire, peer = pair
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    peer.setblocking(False)
    sizes = []
    for _ in range(8):
        peer.send(bytes(wire._read_size))
        sizes.append(len(wire.read() or b""))
        while wire.read():
            pass
    grown = wire._read_size
    for _ in range(8):
        peer.send(b"x")
        assert wire.read() == b"x"

    assert sizes[0] == 64 << 10
    assert max(sizes) > sizes[0]
    assert wire._read_size < grown


@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize("count", [2, 3000])
async def test_what_the_socket_does_not_take_at_once_is_kept_and_comes_in_order(
    pair: tuple[Wire, socket.socket], gathers: bool, count: int
) -> None:
    wire, peer = pair
    wire._gathers = gathers and wire._gathers
    pieces: list[bytes | memoryview] = [bytes([index % 251]) * (1_500_000 // count) for index in range(count)]
    expected = b"".join(pieces)
    assert not wire.write(pieces)
    assert wire.blocked
    assert not wire.write([b"behind", b"it"])
    got = bytearray()

    def read() -> None:
        while len(got) < len(expected) + 8:
            got.extend(peer.recv(1 << 20))

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, read)
        while wire.blocked:
            await wire.wait_writable()
            wire.flush()

    assert got == expected + b"behindit"


async def test_writing_to_a_socket_that_is_gone_raises(pair: tuple[Wire, socket.socket]) -> None:
    wire, peer = pair
    peer.close()

    with pytest.raises(OSError, match="ipe"):
        wire.write([b"x"])
    wire.close()
    wire.close()
    assert repr(wire) == "<Wire closed>"


class TLSPeer:
    """The server's side of TLS, step by step."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def handshake(self, early: bytes = b"") -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.flush()
                self.incoming.write(self.sock.recv(65536))
        if early:
            self.tls.write(early)
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.outgoing.read())

    def read(self) -> bytes:
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                self.incoming.write(self.sock.recv(65536))


def contexts(version: ssl.TLSVersion) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.maximum_version = version
    server.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert("example.org").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_what_comes_with_the_end_of_the_handshake_is_not_waited_for(
    pair: tuple[Wire, socket.socket], version: ssl.TLSVersion
) -> None:
    wire, sock = pair
    server, client = contexts(version)
    peer = TLSPeer(sock, server)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, peer.handshake, b"settings")
        protocol = await wire.wrap(client, "example.org")
    data = None
    with anyio.fail_after(5):
        while not data:
            await wire.wait_readable()
            data = wire.read()
    wire.write([b"hello ", b"there"])

    assert (protocol, data) == ("h2", b"settings")
    assert await anyio.to_thread.run_sync(peer.read) == b"hello there"


async def test_the_end_of_tls_is_an_end_even_behind_data(pair: tuple[Wire, socket.socket]) -> None:
    wire, sock = pair
    server, client = contexts(ssl.TLSVersion.TLSv1_3)
    peer = TLSPeer(sock, server)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, peer.handshake)
        await wire.wrap(client, "example.org")
    peer.tls.write(b"last")
    try:
        peer.tls.unwrap()
    except ssl.SSLWantReadError:
        peer.flush()
    got = []
    with anyio.fail_after(5):
        while not got or got[-1]:
            await wire.wait_readable()
            data = wire.read()
            if data is not None:
                got.append(data)
    assert got == [b"last", b""]
    wire.close()


async def test_a_shared_context_offers_http_1_again_afterwards(pair: tuple[Wire, socket.socket]) -> None:
    wire, sock = pair
    server, client = contexts(ssl.TLSVersion.TLSv1_3)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, TLSPeer(sock, server).handshake)
        await wire.wrap(client, "example.org")
    hello = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="example.org").do_handshake()

    offered = hello.read()
    assert b"\x08http/1.1" in offered
    assert b"\x02h2" not in offered


async def test_a_peer_that_leaves_during_the_handshake(pair: tuple[Wire, socket.socket]) -> None:
    wire, sock = pair
    _, client = contexts(ssl.TLSVersion.TLSv1_3)
    sock.close()

    with pytest.raises(OSError, match=r"handshake|ipe"):
        await wire.wrap(client, "example.org")
