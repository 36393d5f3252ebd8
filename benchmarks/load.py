"""Load on a server, light enough to leave the other core to it: `python -m benchmarks.load`.

Does what each line of JSON says and answers with a line of what came out, like `client.py`. It speaks just enough
HTTP/1.1 on bare sockets: a Python client library would take more of the processor than the servers that are measured.
Readers stay connected from one command to the next, so that the caller can look at the server's memory in between.
"""

import json
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, repeat
from statistics import median
from typing import Any
from urllib.parse import urlsplit

_READ = 1 << 16
_LARGE_READ = 1 << 20
#: Marks the end of each message of the fan-out, so that messages can be counted however a server packs them.
MARK = b"~"
_GIVE_UP = 60.0
_MANY = 50
_BYTES = "application/octet-stream"


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 80))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def request(method: str, url: str, body: bytes | None = None, query: str = "", **headers: str) -> bytes:
    parts = urlsplit(url)
    lines = [f"{method} {parts.path}{query} HTTP/1.1", f"host: {parts.netloc}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + (body or b"")


def is_whole(answer: bytes) -> bool:
    """Whether an answer without or with a declared length has come completely.

    Raises:
        RuntimeError: if it is an error.
    """
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    status = int(head[9:12])
    if status >= 300:
        raise RuntimeError(f"the server answered {answer[:200]!r}")
    if status == 204:
        return True
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return len(body) >= int(value)
        if name.lower() == b"transfer-encoding":
            return body.endswith(b"0\r\n\r\n")
    raise RuntimeError(f"an answer without a length: {head!r}")


def receive(connection: socket.socket) -> bytes:
    """One whole answer."""
    answer = connection.recv(_READ)
    while not is_whole(answer):
        piece = connection.recv(_READ)
        if not piece:
            raise RuntimeError("the server closed the connection")
        answer += piece
    return answer


class Senders:
    """Connections that send requests one after the other, as long as there are any."""

    def __init__(self, url: str, connections: int, requests: Iterator[bytes]) -> None:
        self.latencies: list[float] = []
        self._requests = requests
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._sent: dict[int, float] = {}
        self._partial: dict[int, bytes] = {}
        for _ in range(connections):
            connection = connect(url)
            self._sockets[connection.fileno()] = connection
            self._poll.register(connection, select.EPOLLIN)

    def fileno(self) -> int:
        return self._poll.fileno()

    def begin(self) -> None:
        for number in self._sockets:
            self._send(number)

    def turn(self, timeout: float) -> None:
        """Take the answers that are there, and send the next requests on their connections."""
        for number, _ in self._poll.poll(timeout):
            answer = self._sockets[number].recv(_READ)
            if not answer:
                raise RuntimeError("the server closed a connection")
            # Nearly all answers are one piece with status 204, of which this is the fast way to say so.
            if answer[9:12] != b"204" or answer[-4:] != b"\r\n\r\n" or number in self._partial:
                answer = self._partial.pop(number, b"") + answer
                if not is_whole(answer):
                    self._partial[number] = answer
                    continue
            self.latencies.append(time.perf_counter() - self._sent.pop(number))
            self._send(number)

    def work(self, seconds: float = float("inf")) -> None:
        """Send for so long, or until there are no more requests."""
        started = time.perf_counter()
        self.begin()
        while self._sent and time.perf_counter() - started < seconds:
            self.turn(_GIVE_UP)
        self.end()

    @property
    def busy(self) -> bool:
        """Whether answers are still to come."""
        return bool(self._sent)

    def stop(self) -> None:
        """Send no more."""
        self._requests = iter(())

    def end(self) -> None:
        """Wait for the last answers and disconnect."""
        self.stop()
        while self._sent:
            self.turn(_GIVE_UP)
        for connection in self._sockets.values():
            connection.close()
        self._poll.close()

    def _send(self, number: int) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._sent[number] = time.perf_counter()
            self._sockets[number].send(request)


def append(
    urls: list[str], connections: int, seconds: float, size: int = 100, content_type: str = "application/octet-stream"
) -> dict[str, Any]:
    """Append for some seconds: as many appends as possible on so many connections."""
    posts = cycle([request("POST", url, b"x" * size, content_type=content_type) for url in urls])
    senders = Senders(urls[0], connections, posts)
    started = time.perf_counter()
    senders.work(seconds)
    took = time.perf_counter() - started
    latencies = sorted(senders.latencies)
    at_99 = latencies[int(len(latencies) * 0.99)]
    return {"count": len(latencies), "seconds": took, "p50": median(latencies), "p99": at_99}


def append_times(url: str, times: int) -> dict[str, Any]:
    """Make a stream longer by so many appends."""
    Senders(url, _MANY, repeat(request("POST", url, b"x" * 100, content_type=_BYTES), times)).work()
    return {"count": times}


def create_streams(url: str, times: int) -> dict[str, Any]:
    """Create so many streams below a path."""
    Senders(url, _MANY, (request("PUT", f"{url}/{each}", b"x", content_type=_BYTES) for each in range(times))).work()
    return {"count": times}


def append_as_producers(url: str, times: int) -> dict[str, Any]:
    """Append once as each of so many idempotent producers."""
    stamp = {"producer_epoch": "0", "producer_seq": "0", "content_type": _BYTES}
    posts = (request("POST", url, b"x", producer_id=f"producer-{each}", **stamp) for each in range(times))
    Senders(url, _MANY, posts).work()
    return {"count": times}


def get(url: str, size: int) -> dict[str, Any]:
    """Read a stream from its beginning, on a new connection for each page."""
    buffer = memoryview(bytearray(_LARGE_READ))
    count, first, query = 0, 0.0, "?offset=-1"
    started = time.perf_counter()
    while count < size:
        connection = connect(url)
        connection.sendall(request("GET", url, query=query, connection="close"))
        head = b""
        while b"\r\n\r\n" not in head or head.endswith(b"\r\n\r\n"):  # until there is something of the body
            piece = connection.recv(_READ)
            if not piece:
                break
            head += piece
        first = first or time.perf_counter() - started
        head, _, body = head.partition(b"\r\n\r\n")
        page = len(body)
        while length := connection.recv_into(buffer):
            page += length
        connection.close()
        if not page:
            raise RuntimeError(f"{count} bytes instead of {size}: {head!r}")
        count += page
        query = f"?offset={_field(head, b'stream-next-offset')}"
    return {"count": count, "seconds": time.perf_counter() - started, "first": first}


def long_poll(url: str, rounds: int) -> dict[str, Any]:
    """Time from an append's sending to its arrival at a reader who waits."""
    reader, writer = connect(url), connect(url)
    waits = []
    offset = _tail(url)
    for number in range(rounds):
        reader.sendall(request("GET", url, query=f"?offset={offset}&live=long-poll"))
        time.sleep(0.003)  # until the reader waits at the server
        body = f"message {number}".encode()
        started = time.perf_counter()
        writer.sendall(request("POST", url, body, content_type="application/octet-stream"))
        answer = receive(reader)
        waits.append(time.perf_counter() - started)
        receive(writer)
        head, _, data = answer.partition(b"\r\n\r\n")
        if body not in data:
            raise RuntimeError(f"{data!r} instead of {body!r}")
        offset = _field(head, b"stream-next-offset")
    reader.close()
    writer.close()
    return {"p50": median(waits), "count": rounds}


def _tail(url: str) -> str:
    connection = connect(url)
    connection.sendall(request("HEAD", url))
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(_READ)
    connection.close()
    return _field(answer, b"stream-next-offset")


def _field(head: bytes, name: bytes) -> str:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(name + b":"):
            return line.partition(b":")[2].strip().decode()
    raise RuntimeError(f"no {name!r} in {head!r}")


class Readers:
    """Connections with server-sent events that count what comes."""

    def __init__(self, url: str, count: int) -> None:
        self.counts: dict[int, int] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        offset = _tail(url)
        for first in range(0, count, 500):  # a few at a time, for the server's backlog
            numbers = []
            for _ in range(first, min(first + 500, count)):
                connection = connect(url)
                connection.sendall(request("GET", url, query=f"?offset={offset}&live=sse"))
                self._sockets[connection.fileno()] = connection
                numbers.append(connection.fileno())
            for number in numbers:
                answer = b""
                while b"event: control" not in answer:  # the first control event: the reader is at the tail
                    answer += self._sockets[number].recv(_READ)
                self.counts[number] = 0
                self._poll.register(number, select.EPOLLIN)

    def fileno(self) -> int:
        return self._poll.fileno()

    def turn(self, timeout: float) -> int:
        """Read what there is. Returns how many messages that were."""
        arrived = 0
        for number, _ in self._poll.poll(timeout):
            data = self._sockets[number].recv(_READ)
            if not data:
                raise RuntimeError("the server ended a reader's connection")
            count = data.count(MARK)
            self.counts[number] += count
            arrived += count
        return arrived

    def close(self) -> None:
        for connection in self._sockets.values():
            connection.close()
        self._poll.close()


_readers: list[Readers] = []


def attach(url: str, readers: int) -> dict[str, Any]:
    """Connect readers, who stay until `detach`."""
    _readers.append(Readers(url, readers))
    return {"count": readers}


def detach() -> dict[str, Any]:
    """Disconnect all readers."""
    while _readers:
        _readers.pop().close()
    return {}


def fan_out(url: str, messages: int | None = None, seconds: float = _GIVE_UP, size: int = 100) -> dict[str, Any]:
    """Append so many messages, or for so long, on one connection, and wait until all readers have all of them."""
    (readers,) = _readers
    post = request("POST", url, MARK.rjust(size, b"x"), content_type="text/plain")
    sender = Senders(url, 1, repeat(post) if messages is None else repeat(post, messages))
    arrived = 0
    started = time.perf_counter()
    sender.begin()
    both = select.epoll()
    both.register(readers, select.EPOLLIN)
    both.register(sender, select.EPOLLIN)
    while sender.busy or arrived < len(sender.latencies) * len(readers.counts):
        if not (ready := both.poll(_GIVE_UP)):
            raise RuntimeError(f"{arrived} messages have arrived, and no more come")
        if time.perf_counter() - started > seconds:
            sender.stop()
        for number, _ in ready:
            if number == sender.fileno():
                sender.turn(0)
            else:
                arrived += readers.turn(0)
    took = time.perf_counter() - started
    sender.end()
    both.close()
    return {"count": arrived, "seconds": took}


def stall(url: str, readers: int) -> dict[str, Any]:
    """Connect readers who ask for events and take none."""
    for _ in range(readers):
        connection = connect(url)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(request("GET", url, query="?offset=-1&live=sse"))
        _stalled.append(connection)
    return {"count": readers}


def release() -> dict[str, Any]:
    """Disconnect the readers that take nothing."""
    while _stalled:
        _stalled.pop().close()
    return {}


_stalled: list[socket.socket] = []

WORK: dict[str, Callable[..., dict[str, Any]]] = {
    work.__name__: work
    for work in (
        *(append, append_times, create_streams, append_as_producers),
        *(get, long_poll, attach, detach, fan_out, stall, release),
    )
}


def main() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = WORK[command.pop("do")](**command)
        except (OSError, RuntimeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
