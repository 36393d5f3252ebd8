"""What the handles of one client share: addresses, secrets, options, connections.

`Service` belongs to the client, `StreamContext` to one stream. Sessions and unary calls get everything they need from
the latter. Nothing here has a `repr` with a secret in it, and `Service.redact` takes them out of what a server echoes.

Connections are opened on first use. Unary calls work as soon as there is an event loop; sessions over HTTP/2 need a
task that reads each connection, hence a client that was entered (`async with`) or started.
"""

from __future__ import annotations

import inspect
import random
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlencode, urlsplit

import anyio
import anyio.abc

from .._core import validate
from .._core.exchange import RetryDetails
from .._transport.base import Transport
from .._transport.proxies import Proxies
from .._transport.version import user_agent
from ..errors import InvalidArgumentError
from . import _names
from ._endpoints import Endpoints
from ._retry import S2Retry
from .errors import S2ServerError, S2SessionClosedError, error_from_reply

if TYPE_CHECKING:
    from ._h2.pool import H2Pool

#: The bearer token, or a plain or async function that is asked for it before each request.
AccessToken = str | Callable[[], str | Awaitable[str]]
#: Compression of what is sent, and offered for what comes back.
Compression = Literal["none", "gzip", "zstd"]
#: How sessions reach the server: "s2s" is HTTP/2 and pipelines; "http" works through any proxy, one append at a time;
#: "auto" takes the first where it can work.
SessionTransport = Literal["auto", "s2s", "http"]
#: How records travel in unary calls, and in the server-sent events of "http" read sessions (these as base64 at least).
Encoding = Literal["protobuf", "base64", "raw"]

#: Bytes that a server may send ahead, on each HTTP/2 stream and connection, unless told otherwise (S2 4.8).
RECEIVE_WINDOW: int = 10 << 20
#: Seconds that leaving a client may take over open connections.
_CLOSE_GRACE = 2.0
#: Tokens that are looked for in what a server says.
_KEPT_TOKENS = 4


@dataclass(frozen=True, slots=True)
class S2Timeouts:
    """Limits of time, in seconds.

    Attributes:
        request: For each try of a unary call, and for the acknowledgement of each append in a session. A read that
            waits for records has its `wait` on top.
        connect: To get a connection: TCP, TLS and the first HTTP/2 settings.
        heartbeat: For the silence of a followed stream: the server sends a sign of life every 15 seconds at least.
    """

    request: float = 5.0
    connect: float = 3.0
    heartbeat: float = 20.0

    def __post_init__(self) -> None:
        for name in ("request", "connect", "heartbeat"):
            validate.number(name, getattr(self, name), exclusive=True)


class Service:
    """One client's addresses, secrets, options and connections.

    Args:
        access_token: The bearer token, or a function that makes it.
        endpoints: Where the service is.
        retry: Policy of all calls.
        timeouts: Limits of all calls.
        compression: Of unary bodies and session frames.
        transport: Sends unary calls; shared and not closed. None opens one.
        ssl_context: For https; None trusts the system's certificate authorities.
        rng: Source of jitter.
        on_retry: Called with each failure that is about to be repeated.
        receive_window: Bytes that a server may send ahead, on each HTTP/2 stream and connection.
    """

    def __init__(
        self,
        access_token: AccessToken,
        *,
        endpoints: Endpoints,
        retry: S2Retry,
        timeouts: S2Timeouts,
        compression: Compression,
        transport: Transport | None,
        ssl_context: ssl.SSLContext | None,
        rng: random.Random,
        on_retry: Callable[[RetryDetails], None] | None = None,
        receive_window: int = RECEIVE_WINDOW,
    ) -> None:
        self._access_token = access_token
        self.endpoints = endpoints
        self.retry = retry
        self.timeouts = timeouts
        self.compression = compression
        self.rng = rng
        self.on_retry = on_retry
        self._receive_window = validate.integer("receive_window", receive_window, minimum=65_535, maximum=2**31 - 1)
        self._ssl_context = ssl_context
        self._transport = transport
        self._owns_transport = transport is None
        # The last ones of a function that makes them: an answer may be that to a request of some time ago.
        self._tokens: deque[str] = deque([access_token] if isinstance(access_token, str) else [], maxlen=_KEPT_TOKENS)
        self._task_group: Any = None
        self._owned_group: anyio.abc.TaskGroup | None = None
        self._pool: H2Pool | None = None
        self._lock = anyio.Lock()
        self.closed: bool = False

    # -- Life ----------------------------------------------------------------------------------------------

    async def enter(self) -> None:
        """Own a task group, until `leave`."""
        self._check_startable()
        task_group = anyio.create_task_group()
        await task_group.__aenter__()
        self._owned_group = self._task_group = task_group

    def start(self, task_group: Any) -> None:
        """Use the caller's task group or nursery."""
        self._check_startable()
        self._task_group = task_group

    def _check_startable(self) -> None:
        self.check_open()
        if self._task_group is not None:
            raise RuntimeError("the client has been started already")

    def check_open(self) -> None:
        """Refuse to go on after `aclose`."""
        if self.closed:
            raise S2SessionClosedError("the client was closed")

    async def aclose(self) -> None:
        """Close all connections; that ends the tasks. Any task may call it. Idempotent."""
        self.closed = True
        pool, self._pool = self._pool, None
        transport, self._transport = self._transport, None
        if pool is not None:
            with anyio.move_on_after(_CLOSE_GRACE, shield=True):
                await pool.aclose()
        if transport is not None and self._owns_transport:
            with anyio.move_on_after(_CLOSE_GRACE, shield=True):
                await transport.aclose()

    async def leave(self) -> None:
        """The same, and give up the task group that `enter` has made: for the task that entered."""
        group, self._owned_group = self._owned_group, None
        try:
            await self.aclose()
        finally:
            if group is not None:
                group.cancel_scope.cancel()
                # Not with the body's exception: it goes on bare, not wrapped in an ExceptionGroup.
                await group.__aexit__(None, None, None)

    # -- Connections ---------------------------------------------------------------------------------------

    def transport(self) -> Transport:
        """What sends unary calls."""
        self.check_open()
        if self._transport is None:
            from .._transport.default import open_transport  # Imported when first needed.

            self._transport = open_transport(ssl_context=self._ssl_context)
        return self._transport

    async def pool(self) -> H2Pool:
        """The HTTP/2 connections for sessions.

        Raises:
            RuntimeError: the client was neither entered nor started.
            ImportError: hpack is missing; the message names the extra to install.
        """
        self.check_open()
        if self._task_group is None:
            raise RuntimeError("sessions need a running client: use `async with S2(...)`, or `await s2.start(group)`")
        async with self._lock:
            if self._pool is None:
                try:
                    from ._h2.pool import H2Pool
                except ModuleNotFoundError as error:
                    if error.name != "hpack":
                        raise
                    raise ImportError(
                        "hpack is needed for S2 sessions over HTTP/2: pip install 'durable-streams-anyio[s2]'",
                        name=error.name,
                    ) from error
                pool = H2Pool(ssl_context=self._ssl_context, window=self._receive_window)
                await pool.start(self._task_group)
                self._pool = pool
                if self.closed:  # meanwhile
                    await self.aclose()
        self.check_open()
        assert self._pool is not None
        return self._pool

    def picks_s2s(self, url: str) -> bool:
        """Whether "auto" means HTTP/2 for this URL: hpack is installed, and no proxy stands between."""
        parts = urlsplit(url)
        proxy = Proxies(None).find(parts.scheme, parts.hostname or "", parts.port)
        return proxy is None and has_hpack()

    # -- Headers -------------------------------------------------------------------------------------------

    async def headers(self) -> dict[str, str]:
        """What every request carries: the token, fresh if a function makes it, and who we are."""
        token = self._access_token
        if not isinstance(token, str):
            made: Any = token()
            if inspect.isawaitable(made):
                made = await made
            token = _names.access_token(made)
            if token not in self._tokens:
                self._tokens.append(token)
        return {"authorization": f"Bearer {token}", "user-agent": user_agent()}

    def redact(self, data: bytes, *secrets: str) -> bytes:
        """A server's words without our secrets, should it or a proxy have echoed them, in a URL or in JSON as well."""
        for secret in (*self._tokens, *secrets):
            if len(secret) >= 8:  # shorter ones are placeholders, and would mangle innocent words
                for form in (secret, secret.replace("/", "\\/"), quote(secret, safe="")):
                    data = data.replace(form.encode(), b"***")
        return data

    def error(self, status: int, headers: Mapping[str, str], body: bytes, *secrets: str) -> S2ServerError:
        """The error that an answer stands for, without our secrets in its words and headers."""
        shown = {name: self.redact(value.encode(), *secrets).decode() for name, value in headers.items()}
        return error_from_reply(status, shown, self.redact(body, *secrets))


class StreamContext:
    """Everything that a call or session needs to know about one stream.

    Args:
        service: The client's.
        basin: The basin's name, checked.
        stream: The stream's name, checked.
        encryption_key: Base64 of the key, or None.
        transport: How sessions reach the server.
        encoding: How records travel in unary calls.
    """

    def __init__(
        self,
        service: Service,
        basin: str,
        stream: str,
        *,
        encryption_key: str | None = None,
        transport: SessionTransport = "auto",
        encoding: Encoding = "protobuf",
    ) -> None:
        self.service = service
        self.basin = basin
        self.stream = stream
        self.transport_choice: SessionTransport = transport
        self.encoding: Encoding = encoding
        self._encryption_key = encryption_key

    def __repr__(self) -> str:
        return f"<StreamContext {self.basin}/{self.stream}>"

    @property
    def retry(self) -> S2Retry:
        """Policy of repeating."""
        return self.service.retry

    @property
    def timeouts(self) -> S2Timeouts:
        """Limits of time."""
        return self.service.timeouts

    @property
    def compression(self) -> Compression:
        """Compression of frames that are sent, and offered for those that come."""
        return self.service.compression

    @property
    def rng(self) -> random.Random:
        """Source of jitter."""
        return self.service.rng

    @property
    def uses_s2s(self) -> bool:
        """Whether sessions of this stream go over HTTP/2."""
        if self.transport_choice == "auto":
            return self.service.picks_s2s(self.records_url())
        return self.transport_choice == "s2s"

    def path(self, rest: str = "") -> str:
        """Path of the stream, encoded, from `/streams/` on."""
        return f"/streams/{_names.segment(self.stream)}{rest}"

    def records_url(self, query: Mapping[str, str] | None = None) -> str:
        """URL for appending and reading."""
        return with_query(self.service.endpoints.basin_url(self.basin, self.path("/records")), query)

    async def headers(self, *, stream_config: str | None = None) -> dict[str, str]:
        """Headers of every append and read, sessions included: token, basin, encryption key.

        Args:
            stream_config: JSON of the configuration for a stream that this call creates.
        """
        return {**await self.service.headers(), **self.call_headers(stream_config=stream_config)}

    def call_headers(self, *, stream_config: str | None = None) -> dict[str, str]:
        """The same without the token, which is added to each try."""
        headers = self.service.endpoints.basin_headers(self.basin)
        if self._encryption_key is not None:
            headers["s2-encryption-key"] = self._encryption_key
        if stream_config is not None:
            headers["s2-stream-config"] = stream_config
        return headers

    def redact(self, data: bytes) -> bytes:
        """See `Service.redact`; the encryption key as well."""
        return self.service.redact(data, self._encryption_key or "")

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> S2ServerError:
        """See `Service.error`; the encryption key as well."""
        return self.service.error(status, headers, body, self._encryption_key or "")


@cache
def has_hpack() -> bool:
    """Whether hpack is installed, looked up once."""
    return find_spec("hpack") is not None


def with_query(url: str, query: Mapping[str, str] | None) -> str:
    """The URL with these parameters."""
    if not query:
        return url
    return f"{url}?{urlencode(query, quote_via=quote, safe='')}"


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    """A value that is one of a few words."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    if value not in choices:
        words = ", ".join(repr(choice) for choice in choices)
        raise InvalidArgumentError(f"{name} must be one of {words}, got {value!r}")
    return value
