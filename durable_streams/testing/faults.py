"""A transport that fails on purpose, and remembers how.

Which fault a request meets depends on nothing but the seed and the number of requests before it: each request draws the
same few numbers, whether or not they are used, so that changing one rate does not change what the others do.
Concurrent requests are numbered in the order of their `open` calls; that order has to be the same for a run to repeat.

What the server has seen decides what a fault means, so the names say it:

==================  =====================================  ============================================
fault               the server                             the caller
==================  =====================================  ============================================
`refuse`            sees nothing                           `NetworkError`, phase "connect"
`reset_before`      sees nothing                           `NetworkError`, phase "sent"
`status_5xx`        sees nothing                           an answer 500, 502, 503 or 504
`reset_after`       acts, and its answer is thrown away    `NetworkError`, phase "sent"
`duplicate`         acts twice                             the second answer
`cut_body`          acts                                   the answer, its body cut: `IncompleteBodyError`
`delay`             acts later                             the answer, later
`reorder`           acts after a later request             the answer, later
==================  =====================================  ============================================
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, get_args

import anyio
import anyio.lowlevel

from .. import AlreadyClosedError, Exchange, IncompleteBodyError, NetworkError, Timeouts, Transport

FaultKind = Literal["refuse", "reset_before", "status_5xx", "reset_after", "duplicate", "cut_body", "delay", "reorder"]
_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
_EXCLUSIVE: tuple[FaultKind, ...] = tuple(kind for kind in _KINDS if kind not in ("delay", "reorder"))
_STATUSES = (500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What `only` and `script` may ask about a request.

    Attributes:
        number: Of this transport's requests, from 1.
        method: HTTP method.
        url: The whole URL.
        headers: As the caller gave them.
    """

    number: int
    method: str
    url: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: a wish in a script, or a line in the log.

    Attributes:
        kind: What goes wrong, see the table of this module.
        method: In a script, the next request with this method is meant; "" means any. In the log, the request's.
        delay: Seconds; for `delay`, and the longest wait of `reorder` (there 0 in a script means `max_delay`).
        cut_at: Bytes of the body that still come, for `cut_body`; a shorter body is not cut.
        status: For `status_5xx`.
        number: In the log, the request's number; 0 in a script.
        url: In the log, the request's URL without its query.
    """

    kind: FaultKind
    method: str = ""
    delay: float = 0.0
    cut_at: int = 0
    status: int = 503
    number: int = 0
    url: str = ""


@dataclass(frozen=True, slots=True)
class FaultStatistics:
    """Counts of one `FaultTransport`.

    Attributes:
        requests: Requests that callers made.
        sent: Requests that went to the transport inside, repetitions included.
        injected: How often each fault happened.
        scripted: Scripted faults that still wait for their request.
    """

    requests: int
    sent: int
    injected: Mapping[FaultKind, int]
    scripted: int


class FaultTransport:
    """Wraps a transport and lets some of its requests fail.

        transport = FaultTransport(open_transport(), seed=7, reset_after=0.05, delay=0.2)
        async with IdempotentProducer(DurableStream(url, transport=transport), ...) as producer: ...

    The rates are probabilities in [0, 1]. At most one of `refuse`, `reset_before`, `status_5xx`, `reset_after`,
    `duplicate` and `cut_body` meets a request, with `delay` or `reorder` besides. With an upload from an async iterable
    `duplicate` does nothing, since an iterable cannot be sent twice.

    Args:
        inner: Sends what is let through; closed by `aclose`.
        seed: For the same faults again; a `random.Random` is used as it is, and moves on.
        refuse: The connection is refused.
        reset_before: The connection breaks before the server acts.
        reset_after: The server acts, and the connection breaks before its answer comes.
        cut_body: The body breaks off somewhere; one without declared length within its first KiB, or not at all.
        delay: The request waits up to `max_delay` seconds first.
        reorder: The request waits until a later one has been answered, `max_delay` seconds at most.
        status_5xx: 500, 502, 503 or 504 is answered without asking the server.
        duplicate: The request is sent twice.
        max_delay: In seconds.
        only: Limits chance (not scripts) to some requests.

    Attributes:
        log: The faults that happened, each entered when it did.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        seed: int | random.Random,
        refuse: float = 0.0,
        reset_before: float = 0.0,
        reset_after: float = 0.0,
        cut_body: float = 0.0,
        delay: float = 0.0,
        reorder: float = 0.0,
        status_5xx: float = 0.0,
        duplicate: float = 0.0,
        max_delay: float = 0.05,
        only: Callable[[RequestFacts], bool] | None = None,
    ) -> None:
        rates: dict[FaultKind, float] = {
            "refuse": refuse,
            "reset_before": reset_before,
            "status_5xx": status_5xx,
            "reset_after": reset_after,
            "duplicate": duplicate,
            "cut_body": cut_body,
            "delay": delay,
            "reorder": reorder,
        }
        for kind, rate in rates.items():
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"{kind} must be a probability from 0 to 1, got {rate}")
        exclusive = sum(rates[kind] for kind in _EXCLUSIVE)
        if exclusive > 1.0:
            raise ValueError(f"the rates of faults that exclude each other add up to {exclusive:g}, more than 1")
        if not max_delay >= 0.0:
            raise ValueError(f"max_delay must be at least 0, got {max_delay}")
        self.log: list[Fault] = []
        self._inner = inner
        self._random = seed if isinstance(seed, random.Random) else random.Random(seed)
        self._rates = rates
        self._max_delay = max_delay
        self._only = only
        self._requests = 0
        self._sent = 0
        self._script: deque[Fault] = deque()
        self._held: dict[int, anyio.Event] = {}
        self._closing: set[anyio.CancelScope] = set()
        self._closed = False

    def __repr__(self) -> str:
        counts = Counter(fault.kind for fault in self.log)
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "no faults"
        return f"<FaultTransport {self._requests} requests, {faults}, around {self._inner!r}>"

    def statistics(self) -> FaultStatistics:
        """Counts so far."""
        injected = Counter(fault.kind for fault in self.log)
        return FaultStatistics(
            self._requests, self._sent, MappingProxyType({kind: injected[kind] for kind in _KINDS}), len(self._script)
        )

    def script(self, faults: Iterable[Fault | FaultKind]) -> None:
        """Queue faults that happen for certain.

        The first one that fits a request's method is used up by it, before chance is asked; a request that meets one
        meets nothing else.

            transport.script(["refuse", Fault("reset_after", method="POST")])

        Args:
            faults: Names of kinds, or `Fault` for the details.

        Raises:
            ValueError: a name is unknown.
        """
        wishes = [Fault(fault) if isinstance(fault, str) else fault for fault in faults]
        for wish in wishes:
            if wish.kind not in _KINDS:
                raise ValueError(f"fault must be one of {', '.join(_KINDS)}, got {wish.kind!r}")
        self._script.extend(wishes)

    async def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes],
        timeouts: Timeouts,
    ) -> Exchange:
        """Send one request, or do not: see `Transport.open`."""
        if self._closed:
            raise AlreadyClosedError("the transport was closed")
        self._requests += 1
        facts = RequestFacts(self._requests, method, url, headers)
        faults, share = self._decide(facts)
        fault: Fault | None = None
        for met in faults:
            if met.kind in ("delay", "reorder"):
                self.log.append(met)
                await self._wait(met)
            else:
                fault = met
        kind = None if fault is None else fault.kind
        if kind == "duplicate" and not isinstance(body, bytes):
            fault = kind = None
        shown = url.partition("?")[0]
        if fault is not None and kind in ("refuse", "reset_before", "status_5xx"):
            await anyio.lowlevel.checkpoint()
            self.log.append(fault)
            if kind == "status_5xx":
                return _MadeUpExchange(fault.status)
            phase: Literal["connect", "sent"] = "connect" if kind == "refuse" else "sent"
            raise NetworkError(f"{shown}: injected fault {kind}", phase=phase, url=shown)

        async def send() -> Exchange:
            self._sent += 1
            return await self._inner.open(method, url, headers, body, timeouts)

        exchange = await send()
        if fault is not None and kind in ("duplicate", "reset_after"):
            self.log.append(fault)
        if kind == "duplicate":
            await _finish(exchange)
            exchange = await send()
        if kind == "reset_after":
            await exchange.aclose()
        for number, overtaken in self._held.items():
            if number < facts.number:
                overtaken.set()
        if kind == "reset_after":
            raise NetworkError(f"{shown}: injected fault reset_after", phase="sent", url=shown)
        if fault is not None and kind == "cut_body":
            if share is not None:
                length = int(exchange.headers.get("content-length", "1024"))
                fault = replace(fault, cut_at=int(share * length))
            return _CutExchange(exchange, fault, self.log)
        return exchange

    async def aclose(self) -> None:
        """End requests that are being held back, and close the transport inside. Idempotent."""
        self._closed = True
        for scope in list(self._closing):
            scope.cancel()
        await self._inner.aclose()

    def _decide(self, request: RequestFacts) -> tuple[list[Fault], float | None]:
        """The faults of a request; and for a cut that is left to chance, which share of the body still comes."""
        # Always the same number of draws: what one request meets does not depend on the rates of other faults.
        which, late, held, seconds, where, status = (self._random.random() for _ in range(6))
        blank = Fault("delay", request.method, number=request.number, url=request.url.partition("?")[0])
        for wish in self._script:
            if wish.method in ("", request.method):
                self._script.remove(wish)
                return [replace(wish, method=blank.method, number=blank.number, url=blank.url)], None
        if self._only is not None and not self._only(request):
            return [], None
        found: list[Fault] = []
        if late < self._rates["delay"]:
            found.append(replace(blank, delay=seconds * self._max_delay))
        elif held < self._rates["reorder"]:
            found.append(replace(blank, kind="reorder", delay=self._max_delay))
        for kind in _EXCLUSIVE:
            if which < self._rates[kind]:
                code = _STATUSES[int(status * len(_STATUSES))] if kind == "status_5xx" else blank.status
                found.append(replace(blank, kind=kind, status=code))
                break
            which -= self._rates[kind]
        return found, where

    async def _wait(self, fault: Fault) -> None:
        overtaken = anyio.Event()
        seconds = fault.delay
        if fault.kind == "reorder":
            self._held[fault.number] = overtaken
            seconds = seconds or self._max_delay
        scope = anyio.CancelScope(deadline=anyio.current_time() + seconds)
        self._closing.add(scope)
        try:
            with scope:
                await overtaken.wait()
        finally:
            self._closing.discard(scope)
            self._held.pop(fault.number, None)
        if self._closed:
            raise AlreadyClosedError("the transport was closed")


class _CutExchange:
    """An answer whose body breaks off."""

    def __init__(self, inner: Exchange, fault: Fault, log: list[Fault]) -> None:
        self.status = inner.status
        self.headers = inner.headers
        self._inner = inner
        self._fault = fault
        self._log = log
        self._left = fault.cut_at
        self._cut = False

    def __repr__(self) -> str:
        return f"<cut at {self._fault.cut_at} bytes: {self._inner!r}>"

    async def receive(self) -> bytes:
        """The next piece, as long as the cut is not reached."""
        data = b"" if self._cut else await self._inner.receive()
        if len(data) > self._left:
            self._cut = True
            data = data[: self._left]
            await self._inner.aclose()
        self._left -= len(data)
        if data or not self._cut:
            return data
        self._log.append(self._fault)
        shown = self._fault.url
        raise IncompleteBodyError(f"{shown}: injected fault cut_body", phase="body", url=shown)

    async def aclose(self) -> None:
        """Close the exchange inside."""
        await self._inner.aclose()


class _MadeUpExchange:
    """An answer that no server gave."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.headers: Mapping[str, str] = MappingProxyType({"content-type": "text/plain; charset=utf-8"})
        self._body = b"injected fault status_5xx"
        self._closed = False

    async def receive(self) -> bytes:
        """The body, then its end."""
        if self._closed:
            raise AlreadyClosedError("the exchange was closed")
        await anyio.lowlevel.checkpoint()
        body, self._body = self._body, b""
        return body

    async def aclose(self) -> None:
        """Nothing is open."""
        self._closed = True
        await anyio.lowlevel.checkpoint()


async def _finish(exchange: Exchange) -> None:
    """Read an answer to its end, so that its connection serves again; one that never ends is closed at once."""
    try:
        if "content-length" in exchange.headers or exchange.status == 204:
            while await exchange.receive():
                pass
    except NetworkError:
        return  # the answer is thrown away anyhow
    finally:
        await exchange.aclose()
