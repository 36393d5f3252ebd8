"""A server for tests that is played by hand: one script holds both sides of each connection.

`Peer` speaks through the `h2` package, which judges what it receives; `Peer.raw` writes what h2 would refuse to.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.abc
import h2.config
import h2.connection
import h2.events
import h2.settings
from anyio.streams.tls import TLSListener

E = TypeVar("E", bound=h2.events.Event)
#: Seconds after which a test counts as hanging.
PATIENCE = 10.0


class Peer:
    """The server's side of one connection."""

    def __init__(self, stream: anyio.abc.ByteStream, settings: dict[int, int] | None = None) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.stream = stream
        self.h2 = h2.connection.H2Connection(config)
        initial = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 100, **(settings or {})}
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=initial)
        self.events: list[h2.events.Event] = []

    async def greet(self) -> None:
        self.h2.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        if data := self.h2.data_to_send():
            await self.stream.send(data)

    async def raw(self, data: bytes) -> None:
        await self.flush()
        await self.stream.send(data)

    async def expect(self, kind: type[E]) -> E:
        """The next event of this kind; earlier ones of other kinds stay for later."""
        with anyio.fail_after(PATIENCE):
            while True:
                for event in self.events:
                    if isinstance(event, kind):
                        self.events.remove(event)
                        return event
                self.events += self.h2.receive_data(await self.stream.receive())
                await self.flush()

    async def read_until_closed(self) -> None:
        """Read everything until the client hangs up."""
        with anyio.fail_after(PATIENCE):
            try:
                while True:
                    self.events += self.h2.receive_data(await self.stream.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async def answer(self, stream_id: int, body: bytes | None = None, status: str = "200") -> None:
        """Send a head; with a body also that and the end."""
        self.h2.send_headers(stream_id, [(":status", status), ("x-from", "peer")])
        if body is not None:
            self.h2.send_data(stream_id, body, end_stream=True)
        await self.flush()

    async def data(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(stream_id, data, end_stream=end)
        await self.flush()

    async def body(self, stream_id: int, size: int) -> bytes:
        """Receive so many bytes of a request's body, giving the windows back."""
        got = b""
        while len(got) < size:
            event = await self.expect(h2.events.DataReceived)
            assert event.stream_id == stream_id
            got += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
            await self.flush()
        return got


class Listener:
    """Where clients connect.

    Attributes:
        url: Of the server.
        accepted: How many connections came.
        peers: The connections that came, without a greeting yet.
    """

    def __init__(self, url: str, peers: Any, settings: dict[int, int] | None) -> None:
        self.url = url
        self.settings = settings
        self.accepted = 0
        self.peers = peers

    async def peer(self, *, greet: bool = True) -> Peer:
        """The next connection."""
        with anyio.fail_after(PATIENCE):
            peer = Peer(await self.peers.receive(), self.settings)
        if greet:
            await peer.greet()
        return peer


@asynccontextmanager
async def listening(
    settings: dict[int, int] | None = None, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Listener]:
    """A server on loopback; it closes all connections at the end."""
    send, receive = anyio.create_memory_object_stream[anyio.abc.ByteStream](100)
    tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = tcp.extra(anyio.abc.SocketAttribute.local_port)
    served: Any = tcp if tls is None else TLSListener(tcp, tls, standard_compatible=False)
    listener = Listener(f"{'https' if tls else 'http'}://localhost:{port}", receive, settings)
    if tls is None:
        listener.url = f"http://127.0.0.1:{port}"
    streams: list[anyio.abc.ByteStream] = []

    async def accept(stream: anyio.abc.ByteStream) -> None:
        listener.accepted += 1
        streams.append(stream)
        await send.send(stream)
        await anyio.sleep_forever()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(served.serve, accept)
            try:
                yield listener
            finally:
                group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            for stream in streams:
                await anyio.aclose_forcefully(stream)
            await served.aclose()
        send.close()
        receive.close()
