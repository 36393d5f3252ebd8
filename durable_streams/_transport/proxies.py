"""Which proxy a request goes through: read once from the environment, or given."""

from __future__ import annotations

import base64
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

from ..errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy.

    Attributes:
        url: http or https URL without user information.
        authorization: `Proxy-Authorization` header made of the URL's user information, or None.
    """

    url: str
    authorization: str | None = field(default=None, repr=False)


class Proxies:
    """Finds the proxy for an origin.

    Args:
        given: URLs of proxies by the scheme of the target ("http", "https", "all"), and under "no" a list of hosts
            that are reached directly, separated by commas, as in the variables `http_proxy` to `no_proxy`. None reads
            the environment now, and only now; {} means no proxies.
    """

    def __init__(self, given: Mapping[str, str] | None) -> None:
        self._bypass_by_system = False
        if given is None:
            given = urllib.request.getproxies_environment()
            # Elsewhere than on macOS and Windows they are the same function: reading all variables twice would show.
            if not given and urllib.request.getproxies is not urllib.request.getproxies_environment:
                given = urllib.request.getproxies()
                self._bypass_by_system = True
        self._proxies = dict(given)
        self._found: dict[tuple[str, str, int | None], Proxy | None] = {}

    def find(self, scheme: str, host: str, port: int | None) -> Proxy | None:
        """The proxy for an origin, None to connect directly.

        Raises:
            InvalidArgumentError: the proxy's URL is not http or https.
        """
        if not self._proxies:
            return None
        origin = (scheme, host, port)
        if origin not in self._found:
            self._found[origin] = self._look_up(scheme, host, port)
        return self._found[origin]

    def _look_up(self, scheme: str, host: str, port: int | None) -> Proxy | None:
        url = self._proxies.get(scheme) or self._proxies.get("all")
        if not url:
            return None
        authority = host if port is None else f"{host}:{port}"
        if self._bypass_by_system:
            bypassed = urllib.request.proxy_bypass(authority)
        else:
            # typeshed does not know this function: it is public since Python 3.5.
            bypassed = urllib.request.proxy_bypass_environment(authority, self._proxies)  # type: ignore[attr-defined]
        return None if bypassed else _parse(url)


def _parse(url: str) -> Proxy:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgumentError(f"a proxy must have an http or https URL, got {parts.scheme}://...")
    credentials, _, authority = parts.netloc.rpartition("@")
    authorization = None
    if credentials:
        user, _, password = credentials.partition(":")
        token = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
        authorization = f"Basic {token}"
    return Proxy(urlunsplit((parts.scheme, authority, "", "", "")), authorization)
