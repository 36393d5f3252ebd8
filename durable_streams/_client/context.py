"""What the user contributes to each request: URL, headers, parameters, `on_error`, the transport.

Values may be callables, resolved anew for every request, so that a token that expired while a retry was waiting is
fresh for the next try (client specification, section 4). Precedence, lowest first: the handle's values, per-call
values, what `on_error` added, the protocol's own.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypedDict

import anyio
import anyio.lowlevel

from .._core import validate, wire
from .._core.exchange import Request
from .._transport.base import Transport
from ..errors import AlreadyClosedError, InvalidArgumentError

#: A header's value, or a plain or async function that makes it for each request.
HeaderValue = str | Callable[[], str | Awaitable[str]]
#: A parameter's value, likewise; None leaves the parameter out.
ParamValue = str | Callable[[], str | Awaitable[str | None] | None] | None


class Recovery(TypedDict, total=False):
    """What `on_error` may return to try again: additions that hold for the rest of the session."""

    headers: Mapping[str, HeaderValue]
    params: Mapping[str, ParamValue]


#: Called with an error that would end the operation; None raises it, a mapping tries again.
OnError = Callable[[Exception], Recovery | Awaitable[Recovery | None] | None]


class TransportOwner:
    """The one transport of a handle or free session: the caller's, never closed by us, or our own.

    Args:
        transport: The caller's, or None to open one on first use.
    """

    def __init__(self, transport: Transport | None) -> None:
        if transport is not None and not isinstance(transport, Transport):
            raise TypeError(f"transport must have open() and aclose(), got {type(transport).__name__}")
        self._transport = transport
        self._owned = transport is None
        self._closed = False

    def get(self) -> Transport:
        """The transport.

        Raises:
            AlreadyClosedError: after `aclose`.
        """
        if self._closed:
            raise AlreadyClosedError("the handle was closed")
        if self._transport is None:
            from .._transport.default import open_transport  # Imported when first needed.

            self._transport = open_transport()
        return self._transport

    async def aclose(self) -> None:
        """Close the transport if it is our own. Idempotent."""
        self._closed = True
        transport, self._transport = self._transport, None
        if transport is not None and self._owned:
            with anyio.CancelScope(shield=True):
                await transport.aclose()


class Context:
    """Everything a driver needs from the user to send requests for one stream.

    Args:
        url: The stream's URL.
        headers: User headers; validated here, results of callables when they come.
        params: User query parameters; the protocol's own names are ignored.
        on_error: Asked before an error is raised.
        owner: Holds the transport.
        rng: Source of jitter.
    """

    def __init__(
        self,
        url: wire.Address,
        *,
        headers: Mapping[str, HeaderValue] | None = None,
        params: Mapping[str, ParamValue] | None = None,
        on_error: OnError | None = None,
        owner: TransportOwner,
        rng: random.Random | None = None,
    ) -> None:
        self.url: wire.Address = _without_protocol_params(url)
        self.owner = owner
        self.rng: random.Random = rng or random.Random()
        self.on_error: OnError | None = _checked_on_error(on_error)
        self._headers: dict[str, HeaderValue] = {}
        self._params: dict[str, ParamValue] = {}
        self._extra_headers: dict[str, HeaderValue] = {}
        self._extra_params: dict[str, ParamValue] = {}
        self._lock = anyio.Lock()
        if url.authorization is not None:
            self._headers["authorization"] = url.authorization
        self._headers.update(checked_headers(headers))
        self._params.update(checked_params(params))

    def child(
        self,
        *,
        headers: Mapping[str, HeaderValue] | None = None,
        params: Mapping[str, ParamValue] | None = None,
        on_error: OnError | None = None,
    ) -> Context:
        """A context for one call or session: per-call values over ours; callables stay serialised with ours.

        What `on_error` adds belongs to its owner: a child with one of its own keeps the additions, others share ours.
        """
        child = copy.copy(self)
        child._headers = {**self._headers, **checked_headers(headers)}
        child._params = {**self._params, **checked_params(params)}
        if on_error is not None:
            child.on_error = _checked_on_error(on_error)
            child._extra_headers, child._extra_params = dict(self._extra_headers), dict(self._extra_params)
        return child

    def moved(self, url: wire.Address) -> Context:
        """The same for another stream of the same owner."""
        other = self.child()
        other.url = _without_protocol_params(url)
        if url.authorization is not None:
            other._headers["authorization"] = url.authorization
        return other

    async def content_type(self, headers: Mapping[str, HeaderValue] | None = None) -> str | None:
        """The content type that the user gives as a header, if he does: per-call headers come first."""
        name = wire.CONTENT_TYPE
        for layer in (self._extra_headers, checked_headers(headers), self._headers):
            if name in layer:
                async with self._lock:
                    return validate.content_type(await _resolved("headers", name, layer[name]))
        return None

    async def resolve(self, request: Request) -> tuple[str, dict[str, str]]:
        """URL and headers of one request, callables called.

        Raises:
            Whatever a callable raises, unchanged.
            TypeError: a callable returned something that is no str.
            InvalidArgumentError: a header value has CR, LF or NUL.
        """
        headers: dict[str, str] = {}
        params: dict[str, str] = {}
        user_headers = {**self._headers, **self._extra_headers}
        user_params = {**self._params, **self._extra_params}
        if any(callable(value) for layer in (user_headers, user_params) for value in layer.values()):
            async with self._lock:  # A callable never runs concurrently with itself.
                for name, header in user_headers.items():
                    headers[name] = wire.check_header(name, await _resolved("headers", name, header))[1]
                for name, param in user_params.items():
                    if (value := await _resolved("params", name, param, optional=True)) is not None:
                        params[name] = value
        else:
            headers.update((name, str(value)) for name, value in user_headers.items())
            params.update((name, str(value)) for name, value in user_params.items() if value is not None)
        headers.update(request.headers)
        params.update(request.params)
        return self.url.url(params), headers

    async def recover(self, error: Exception) -> bool:
        """Ask `on_error`; True if the request shall be made again.

        Raises:
            TypeError: it returned something that is neither None nor a mapping of "headers" and "params".
            Whatever it raises, with `error` as its cause.
        """
        if self.on_error is None:
            return False
        try:
            answer: Any = self.on_error(error)
            if inspect.isawaitable(answer):
                answer = await answer
            if answer is None:
                return False
            if not isinstance(answer, Mapping) or not answer.keys() <= {"headers", "params"}:
                raise TypeError(
                    f"on_error must return None or a mapping with 'headers' and/or 'params', got {_shape(answer)}"
                )
            headers, params = checked_headers(answer.get("headers")), checked_params(answer.get("params"))
        except Exception as raised:
            if raised is error:
                raise
            raise raised from error
        self._extra_headers.update(headers)
        self._extra_params.update(params)
        return True


def _without_protocol_params(url: wire.Address) -> wire.Address:
    """Our parameters win over the URL's own, also where we send none: `live=sse` must not slip into a catch-up."""
    return replace(url, query=tuple(pair for pair in url.query if pair[0] not in wire.PROTOCOL_PARAMS))


async def _resolved(kind: str, name: str, value: Any, *, optional: bool = False) -> Any:
    if callable(value):
        value = value()
        if inspect.isawaitable(value):
            value = await value
        if not isinstance(value, str) and not (optional and value is None):
            raise TypeError(f"{kind}: the callable for {name!r} must return a str, got {type(value).__name__}")
    return value


def _shape(answer: Any) -> str:
    return f"a mapping with {sorted(map(str, answer))}" if isinstance(answer, Mapping) else type(answer).__name__


def _checked_on_error(on_error: OnError | None) -> OnError | None:
    if on_error is not None and not callable(on_error):
        raise TypeError(f"on_error must be callable, got {type(on_error).__name__}")
    return on_error


def checked_headers(headers: Mapping[str, HeaderValue] | None) -> dict[str, HeaderValue]:
    """User headers with names in lower case, static values checked."""
    checked: dict[str, HeaderValue] = {}
    for name, value in validate.mapping("headers", headers).items():
        if isinstance(value, str):
            lowered, text = wire.check_header(name, value)
            checked[lowered] = text
        elif callable(value):
            checked[wire.check_header(name, "")[0]] = value
        else:
            raise TypeError(f"headers: the value of {name!r} must be a str or a callable, got {type(value).__name__}")
    return checked


def checked_params(params: Mapping[str, ParamValue] | None) -> dict[str, ParamValue]:
    """User parameters without those whose names the protocol owns."""
    checked: dict[str, ParamValue] = {}
    for name, value in validate.mapping("params", params).items():
        if value is not None and not isinstance(value, str) and not callable(value):
            raise TypeError(f"params: {name!r} must be a str, a callable or None, got {type(value).__name__}")
        if not name:
            raise InvalidArgumentError("params: a name must not be empty")
        if name not in wire.PROTOCOL_PARAMS:
            checked[name] = value
    return checked
