"""Who may do what: an authorizer is asked before a request reaches the store.

An authorizer is a function of yours, plain or async, or a `TokenFile`. It is asked once for each path that a request
touches: the path in its URL, the source of a fork ("read"), and what a subscription is to read and write. Until it has
allowed all of them nothing is looked up, so that an answer to somebody without rights says nothing about streams, not
even whether they exist.

Not asked is who proves otherwise what he may do, or learns nothing: preflights (OPTIONS), `/health` and `/ready`, the
public keys of webhooks, and workers that come back with the token of their wake (callback, ack, release).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .._core.wire import check_header
from .requests import Call
from .responses import Rejection

Action: TypeAlias = Literal["read", "write"]

_READING = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """What somebody wants to do with one path.

    Attributes:
        method: Of the HTTP request.
        path: Normalised full path. It may be that of no stream: `<root>/__ds/...` for subscriptions, where a pattern
            is asked about by the path before its first wildcard, and `/metrics`.
        action: "read" or "write". PUT, POST and DELETE write.
        headers: Of the request, names in lower case.
        scope: The ASGI scope, with what middleware has put there (`scope["user"]`, say).
    """

    method: str
    path: str
    action: Action
    headers: Mapping[str, str]
    scope: Mapping[str, Any]

    @property
    def token(self) -> str | None:
        """The token of `Authorization: Bearer <token>`, or None."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None


@dataclass(frozen=True, slots=True)
class Allow:
    """Let the request go on."""


@dataclass(frozen=True, slots=True)
class Deny:
    """Refuse the request.

    Attributes:
        status: 401: who are you? 403: not you. 429: you ask too often.
        challenge: `WWW-Authenticate` of a 401.
        retry_after: Of a 429, seconds after which to come back.

    Raises:
        ValueError: if the status is another one, the challenge no header value, or the time less than 0.
    """

    status: Literal[401, 403, 429] = 401
    challenge: str = "Bearer"
    retry_after: int = 1

    def __post_init__(self) -> None:
        if self.status not in (401, 403, 429):
            raise ValueError(f"status must be 401, 403 or 429, got {self.status!r}")
        if self.retry_after < 0:
            raise ValueError(f"retry_after must not be less than 0, got {self.retry_after!r}")
        check_header("www-authenticate", self.challenge)


Verdict: TypeAlias = Allow | Deny
Authorizer: TypeAlias = Callable[[AccessRequest], Verdict | Awaitable[Verdict]]


class Gate:
    """Asks the authorizer.

    Args:
        authorizer: Whom to ask.
    """

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    async def check(self, call: Call, path: str | None = None, action: Action | None = None) -> None:
        """Ask whether a request may go on.

        Args:
            call: The request.
            path: What it touches; its own path if None.
            action: What it does there; what its method says if None.

        Raises:
            Rejection: if it may not.
            TypeError: if the authorizer answers something else than `Allow` or `Deny`; the request fails then.
        """
        request = AccessRequest(
            call.method,
            call.path if path is None else path,
            action or ("read" if call.method in _READING else "write"),
            {name.decode("latin-1"): value.decode("latin-1") for name, value in call.headers.items()},
            call.scope,
        )
        verdict = self._authorizer(request)
        if not isinstance(verdict, Allow | Deny) and isinstance(verdict, Awaitable):
            verdict = await verdict
        if isinstance(verdict, Allow):
            return
        if not isinstance(verdict, Deny):
            raise TypeError(f"an authorizer must answer Allow() or Deny(...), got {type(verdict).__name__}")
        close = call.has_long_body()
        if verdict.status == 403:
            raise Rejection(403, "you may not do this", close=close)
        if verdict.status == 429:
            later = (b"retry-after", b"%d" % verdict.retry_after)
            raise Rejection(429, "these are too many requests", [later], close=close)
        challenge = (b"www-authenticate", verdict.challenge.encode("latin-1"))
        raise Rejection(401, "credentials are needed for this", [challenge], close=close)
