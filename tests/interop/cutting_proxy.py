"""A proxy that cuts connections at any byte, in either direction; it works in threads, whatever loop the test has."""

from __future__ import annotations

import random
import select
import socket
import threading
from types import TracebackType
from typing import Self

#: Seconds between two looks whether the proxy is to end.
_LOOK = 0.1


class CuttingProxy:
    """Passes connections on to a port of this machine, and cuts each after some bytes.

    Args:
        port: Where connections go.
        rng: Decides when they are cut.
        mean_bytes: How much a connection carries on average, in both directions together.

    Attributes:
        url: `http://127.0.0.1:port` of the proxy.
        cuts: Connections that were cut so far.
    """

    def __init__(self, port: int, rng: random.Random, *, mean_bytes: int) -> None:
        self._target = port
        self._rng = rng
        self._mean_bytes = mean_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_LOOK)
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            left = int(self._rng.expovariate(1 / self._mean_bytes))
            thread = threading.Thread(target=self._carry, args=(client, left))
            self._threads.append(thread)
            thread.start()

    def _carry(self, client: socket.socket, left: int) -> None:
        client.settimeout(None)
        try:
            with client, socket.create_connection(("127.0.0.1", self._target)) as server:
                other = {client: server, server: client}
                while not self._ending.is_set():
                    for source in select.select(list(other), [], [], _LOOK)[0]:
                        data = source.recv(1 << 16)
                        other[source].sendall(data[: max(left, 0)])
                        left -= len(data)
                        if not data:
                            return
                        if left <= 0:
                            self.cuts += 1
                            return
        except OSError:
            self.cuts += 1  # One of the two has gone: to the other that is the same.
