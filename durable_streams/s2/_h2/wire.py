"""A TCP socket with or without TLS, and how to get one.

Reading and writing never wait, and waiting never reads or writes: `read` and `write` say what can be had now, and
`wait_readable` and `wait_writable` are the only awaits. So a write can be made by whoever has something to say, without
a task in between, and no cancellation can ever cut a write, or a TLS record, in two.

TLS runs over memory: its bytes pass through two buffers (`ssl.MemoryBIO`), and the socket sees nothing but those.

After each receive Linux is told anew to acknowledge at once (`TCP_QUICKACK` does not last): a server that leaves
Nagle's algorithm on holds its small frames back until it hears an acknowledgement, and by default Linux waits 40 ms
with that while it has nothing to send (S2 4.8).

What is received comes in blocks of up to a megabyte, and what is made of them in others. The allocator of Linux gives
such blocks back to the system when they are freed, and for the next one the system has to find and clear every page
anew, which costs more than all the rest of reading. It does so until the program has freed a larger block: then it
takes blocks of that size for usual, and keeps up to twice as much for the next one (mallopt(3), M_MMAP_THRESHOLD). So
one is freed, once, whose pages were never touched. Where the user has set that threshold, or on other systems, this
changes nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Final

import anyio
import anyio.lowlevel
import anyio.to_thread

#: Seconds after which the next of several addresses is tried beside the one before (RFC 8305).
HEAD_START: Final = 0.25

_LEAST_READ = 64 << 10
_MOST_READ = 1 << 20
_TLS_PLAIN = 256 << 10
# Half of what freed memory may be kept: a full window of received data, and a batch made of it.
_USUAL_BLOCK = 8 << 20
# What a system takes at least in one gathered write (IOV_MAX).
_MOST_PIECES = 1024
_IN_PROGRESS = frozenset(
    {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY, getattr(errno, "WSAEWOULDBLOCK", errno.EWOULDBLOCK)}
)
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)

#: What `socket.getaddrinfo` gives, shortened to family and address.
Address = tuple[int, Any]


class Wire:
    """A connected socket.

    Args:
        sock: Connected; made non-blocking. The wire owns it.

    Attributes:
        closed: Whether `close` was called.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        _keep_freed_memory()
        self._sock = sock
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._rest: memoryview | bytes = b""
        self._gathers = hasattr(sock, "sendmsg")  # Windows has it not
        self._read_size = _LEAST_READ
        self._quickack = _QUICKACK if sock.family in (socket.AF_INET, socket.AF_INET6) else None
        # What TLS knows without the socket: bytes that came with the handshake's last, and the peer's farewell.
        self._unread = self._ended = False
        self.closed = False

    def __repr__(self) -> str:
        return f"<Wire {'closed' if self.closed else 'TLS' if self._tls else 'plain'}>"

    # -- Reading -------------------------------------------------------------------------------------------

    async def wait_readable(self) -> None:
        """Wait until `read` has something to say."""
        if self._unread or self._ended:
            await anyio.lowlevel.checkpoint()
        else:
            await anyio.wait_readable(self._sock)

    def read(self) -> bytes | None:
        """What has come; None if that is nothing, b"" if nothing will.

        Raises:
            OSError: the connection broke. Errors of TLS are among these.
        """
        if self._tls is not None and (self._unread or self._ended):
            self._unread = False
            return b"" if self._ended else self._decrypt(self._tls)
        try:
            data = self._sock.recv(self._read_size)
        except (BlockingIOError, InterruptedError):
            return None
        if self._quickack is not None:
            self._sock.setsockopt(socket.IPPROTO_TCP, self._quickack, 1)
        size = len(data)
        # As large as what comes, so that much data takes few calls and little data little memory.
        if size == self._read_size:
            self._read_size = min(self._read_size * 2, _MOST_READ)
        elif size < self._read_size // 4:
            self._read_size = max(self._read_size // 2, _LEAST_READ)
        if self._tls is None:
            return data
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return self._decrypt(self._tls)

    def _decrypt(self, tls: ssl.SSLObject) -> bytes | None:
        parts: list[bytes] = []
        try:
            while part := tls.read(_TLS_PLAIN):
                parts.append(part)
        except ssl.SSLWantReadError:
            self._write_some(self._outgoing.read())  # TLS has words of its own, such as new keys
            return b"".join(parts) or None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass  # with or without a farewell: HTTP/2 knows by itself what is complete
        self._ended = True
        return b"".join(parts)

    # -- Writing -------------------------------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """Whether the socket took only a part of what was written: `wait_writable`, then `flush`."""
        return bool(self._rest)

    async def wait_writable(self) -> None:
        """Wait until `flush` can go on."""
        await anyio.wait_writable(self._sock)

    def write(self, pieces: Sequence[bytes | memoryview]) -> bool:
        """Write pieces, in order; what the socket does not take is kept.

        Returns:
            Whether all of it went out.

        Raises:
            OSError: the connection broke.
        """
        if self._tls is None and self._gathers and not self._rest and len(pieces) > 1:
            return self._write_gathered(pieces)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._tls is not None:
            view = memoryview(data)
            while view:
                view = view[self._tls.write(view) :]
            data = self._outgoing.read()
        return self._write_some(data)

    def _write_gathered(self, pieces: Sequence[bytes | memoryview]) -> bool:
        """The same without making one of the pieces first: the socket takes them as they are."""
        for start in range(0, len(pieces), _MOST_PIECES):
            some = pieces[start : start + _MOST_PIECES]
            try:
                sent = self._sock.sendmsg(some)
            except (BlockingIOError, InterruptedError):
                sent = 0
            if sent < sum(map(len, some)):
                rest = list(pieces[start:])
                while sent >= len(rest[0]):
                    sent -= len(rest.pop(0))
                rest[0] = memoryview(rest[0])[sent:]
                self._rest = b"".join(rest)
                return False
        return True

    def flush(self) -> bool:
        """Write what was kept; see `write`."""
        rest, self._rest = self._rest, b""
        return self._write_some(rest)

    def _write_some(self, data: bytes | memoryview) -> bool:
        if self._rest:
            self._rest = b"".join((self._rest, data))
            return False
        if not data:
            return True
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent == len(data):
            return True
        self._rest = memoryview(data)[sent:]
        return False

    # -- Life ----------------------------------------------------------------------------------------------

    async def wrap(self, context: ssl.SSLContext, host: str) -> str | None:
        """Start TLS.

        Returns:
            The protocol that ALPN chose.

        Raises:
            OSError: the handshake failed; `ssl.SSLError` is one.
        """
        # OpenSSL copies the list into each connection. A context that is shared with HTTP/1.1 gets its own list back.
        context.set_alpn_protocols(["h2"])
        tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        context.set_alpn_protocols(["http/1.1"])
        while True:
            try:
                tls.do_handshake()
                complete = True
            except ssl.SSLWantReadError:
                complete = False
            finally:
                done = self._write_some(self._outgoing.read())  # an alert as well
            while not done:
                await self.wait_writable()
                done = self.flush()
            if complete:
                self._tls, self._unread = tls, True
                return tls.selected_alpn_protocol()
            await self.wait_readable()
            data = self.read()
            if data == b"":
                raise ssl.SSLEOFError("the server closed the connection during the TLS handshake")
            if data is not None:
                self._incoming.write(data)

    def close(self) -> None:
        """Close the socket, after a word of farewell in TLS if it can be said without waiting. Idempotent."""
        if self.closed:
            return
        self.closed = True
        try:
            if self._tls is not None:
                with suppress(ssl.SSLError):  # it would like to wait for the peer's farewell
                    self._tls.unwrap()
                self._write_some(self._outgoing.read())
        except OSError:
            pass  # the connection broke before; nothing can be said any more
        finally:
            anyio.notify_closing(self._sock)
            self._sock.close()


@cache
def _keep_freed_memory() -> None:
    """Teach the allocator that large blocks come and go; see this module."""
    bytes(_USUAL_BLOCK)


async def connect_tcp(host: str, port: int) -> Wire:
    """Connect to a host, by whichever of its addresses answers first (RFC 8305).

    Raises:
        OSError: no address answered; of several reasons, the first that is not for want of a route. The lookup of the
            name failed: `socket.gaierror`.
    """
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is empty or too long: no name server was asked
        raise socket.gaierror(socket.EAI_NONAME, f"not a host name: {error}") from error
    sock = await _first_connected(_interleaved([(family, address) for family, _, _, _, address in found]))
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Wire(sock)
    except OSError:
        sock.close()
        raise


def _interleaved(addresses: list[Address]) -> list[Address]:
    """The addresses with families taking turns, so that one family without a route does not hold up the other."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    others = [address for address in addresses if address[0] != addresses[0][0]]
    mixed: list[Address] = []
    for index in range(max(len(first), len(others))):
        mixed += first[index : index + 1] + others[index : index + 1]
    return mixed


async def _first_connected(addresses: list[Address]) -> socket.socket:
    if len(addresses) == 1:
        return await _connect(addresses[0])
    winner: socket.socket | None = None
    errors: list[OSError] = []

    async def attempt(address: Address, failed: anyio.Event) -> None:
        nonlocal winner
        try:
            sock = await _connect(address)
        except OSError as error:
            errors.append(error)
            failed.set()
            return
        if winner is None:
            winner = sock
            group.cancel_scope.cancel()
        else:
            sock.close()

    try:
        async with anyio.create_task_group() as group:
            for address in addresses:
                failed = anyio.Event()
                group.start_soon(attempt, address, failed)
                with anyio.move_on_after(HEAD_START):
                    await failed.wait()
        if winner is None:
            raise next((error for error in errors if error.errno != errno.ENETUNREACH), errors[0])
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    return winner


async def _connect(address: Address) -> socket.socket:
    sock = socket.socket(address[0], socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        code = sock.connect_ex(address[1])
        if code in _IN_PROGRESS:
            await anyio.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        return sock
    except BaseException:
        sock.close()
        raise


async def default_context() -> ssl.SSLContext:
    """A context that trusts the system's certificate authorities; reading those takes a while."""
    return await anyio.to_thread.run_sync(ssl.create_default_context)
