"""`S2`: the client, from which everything else is reached (S2 6.1)."""

from __future__ import annotations

import os
import random
import ssl
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from .._core import validate
from .._core.exchange import RetryDetails
from .._transport.base import Transport
from ..errors import InvalidArgumentError
from . import _names
from ._access_tokens import AccessTokens
from ._basins import Basins
from ._context import RECEIVE_WINDOW, AccessToken, Compression, S2Timeouts, Service, one_of
from ._endpoints import Endpoints
from ._locations import Locations
from ._metrics import Metrics
from ._retry import S2Retry, parse_retry
from ._streams import Basin

TOKEN_VARIABLE = "S2_ACCESS_TOKEN"  # noqa: S105  # a variable's name


class S2:
    """A client of S2.

        async with S2("token", endpoints="http://localhost:8080") as s2:
            stream = s2.basin("my-basin").stream("my-stream")
            await stream.append(["hello"])

    Making one sends nothing and needs no running event loop. Single calls work at once. Sessions over HTTP/2 need
    tasks, hence `async with`, or `start` with a task group of yours. The handles it makes share its connections.

    Args:
        access_token: The bearer token, or a plain or async function that is asked for it before each request.
        endpoints: Where the service is: `Endpoints`, one URL for everything (`s2 lite`), or None for s2.dev.
        retry: How failed calls are repeated; sessions inherit it. `S2Retry`, or a mapping of its fields. The names of
            other SDKs are understood in a mapping: `maxAttempts`, `retryBackoffDurationMillis`, `minBaseDelayMillis`,
            `maxBaseDelayMillis`, `appendRetryPolicy`, `requestTimeoutMillis`, `connectionTimeoutMillis`.
        compression: "none", "gzip" or "zstd", of bodies and frames that are sent, and offered for those that come.
        timeout: Limits of time: seconds for each try of a call and each acknowledgement, or `S2Timeouts`.
        transport: Sends single calls; it is shared and not closed. None opens one for this client.
        ssl_context: For https; None trusts the system's certificate authorities.
        rng: Source of jitter; None makes a new one.
        on_retry: Plain function, called with each failure that is about to be repeated, also of sessions.
        receive_window: Bytes that the server may send ahead of your loop on each session over HTTP/2, and on each
            connection at a time, 65,535 to 2**31 - 1. That much memory a slow reader may cost; more of it keeps a
            fast reader busy over a long way.

    Attributes:
        basins: The account's basins.
        access_tokens: The account's access tokens.
        locations: Where basins can be kept.
        metrics: What was used.

    Raises:
        TypeError: an argument has a wrong type.
        InvalidArgumentError: an argument has a wrong value.
    """

    def __init__(
        self,
        access_token: AccessToken,
        *,
        endpoints: Endpoints | str | None = None,
        retry: S2Retry | Mapping[str, Any] | None = None,
        compression: Compression = "none",
        timeout: S2Timeouts | float | None = None,
        transport: Transport | None = None,
        ssl_context: ssl.SSLContext | None = None,
        rng: random.Random | None = None,
        on_retry: Callable[[RetryDetails], None] | None = None,
        receive_window: int = RECEIVE_WINDOW,
    ) -> None:
        if not callable(access_token):
            _names.access_token(access_token)
        if transport is not None and not isinstance(transport, Transport):
            raise TypeError(f"transport must have open() and aclose(), got {type(transport).__name__}")
        if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
            raise TypeError(f"ssl_context must be ssl.SSLContext or None, got {type(ssl_context).__name__}")
        if on_retry is not None and not callable(on_retry):
            raise TypeError(f"on_retry must be callable, got {type(on_retry).__name__}")
        policy, times = parse_retry(retry)
        self._service = Service(
            access_token,
            endpoints=_endpoints(endpoints),
            retry=policy,
            timeouts=_timeouts(timeout, times),
            compression=one_of("compression", compression, ("none", "gzip", "zstd")),
            transport=transport,
            ssl_context=ssl_context,
            rng=rng or random.Random(),
            on_retry=on_retry,
            receive_window=receive_window,
        )
        self.basins: Basins = Basins(self._service)
        self.access_tokens: AccessTokens = AccessTokens(self._service)
        self.locations: Locations = Locations(self._service)
        self.metrics: Metrics = Metrics(self._service)

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        retry: S2Retry | Mapping[str, Any] | None = None,
        compression: Compression = "none",
        timeout: S2Timeouts | float | None = None,
        transport: Transport | None = None,
        ssl_context: ssl.SSLContext | None = None,
        rng: random.Random | None = None,
        on_retry: Callable[[RetryDetails], None] | None = None,
        receive_window: int = RECEIVE_WINDOW,
    ) -> S2:
        """A client from `S2_ACCESS_TOKEN`, `S2_ACCOUNT_ENDPOINT` and `S2_BASIN_ENDPOINT`.

        Args:
            environ: Variables; None means those of this process.
            retry: See `S2`, like the rest.
            compression: See `S2`.
            timeout: See `S2`.
            transport: See `S2`.
            ssl_context: See `S2`.
            rng: See `S2`.
            on_retry: See `S2`.
            receive_window: See `S2`.

        Raises:
            InvalidArgumentError: there is no token, or only one of the endpoints.
        """
        variables = os.environ if environ is None else environ
        token = variables.get(TOKEN_VARIABLE)
        if not token:
            raise InvalidArgumentError(f"{TOKEN_VARIABLE} is not set")
        return cls(
            token,
            endpoints=Endpoints.from_env(variables),
            retry=retry,
            compression=compression,
            timeout=timeout,
            transport=transport,
            ssl_context=ssl_context,
            rng=rng,
            on_retry=on_retry,
            receive_window=receive_window,
        )

    # -- What it is ----------------------------------------------------------------------------------------

    @property
    def endpoints(self) -> Endpoints:
        """Where the service is."""
        return self._service.endpoints

    @property
    def retry(self) -> S2Retry:
        """How failed calls are repeated."""
        return self._service.retry

    @property
    def timeouts(self) -> S2Timeouts:
        """Limits of time."""
        return self._service.timeouts

    def __repr__(self) -> str:
        return f"<S2 {self._service.endpoints.account}{', closed' if self._service.closed else ''}>"

    def basin(self, name: str) -> Basin:
        """The handle of a basin. Sends nothing.

        Raises:
            InvalidArgumentError: it is no name of a basin.
        """
        return Basin(self._service, name)

    def __getitem__(self, basin: str) -> Basin:
        return self.basin(basin)

    # -- Life ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> S2:
        await self._service.enter()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._service.leave()

    async def start(self, task_group: Any) -> None:
        """Run connections in the caller's task group or nursery, instead of `async with`; end with `aclose`.

        Args:
            task_group: Anything with `start_soon`: an anyio task group, a trio nursery.

        Raises:
            RuntimeError: it has been started or entered before.
            S2SessionClosedError: it was closed.
        """
        self._service.start(task_group)

    async def aclose(self) -> None:
        """Close all connections. Sessions that are still open fail. Any task may call it. Idempotent."""
        await self._service.aclose()


def _endpoints(value: Any) -> Endpoints:
    if value is None:
        return Endpoints()
    if isinstance(value, Endpoints):
        return value
    if isinstance(value, str):
        return Endpoints.shared(value)
    raise TypeError(f"endpoints must be Endpoints, a str or None, got {type(value).__name__}")


def _timeouts(value: Any, times: Mapping[str, float]) -> S2Timeouts:
    """Limits of time, from `timeout` or from the retry options of other SDKs."""
    if value is None:
        return S2Timeouts(**times)
    if times:
        raise InvalidArgumentError("give limits of time as timeout or among the retry options, not both")
    if isinstance(value, S2Timeouts):
        return value
    return S2Timeouts(request=validate.number("timeout", value, exclusive=True))
