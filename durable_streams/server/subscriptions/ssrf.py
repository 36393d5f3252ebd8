"""Where webhooks may lead: never to our own network (server 15.5).

A URL is looked at twice. When a subscription is created, its text has to be strict: the more spellings of a host there
are, the more of them some resolver takes for an address that we did not see. At each delivery, the name is resolved
and *every* address has to be public; the connection then goes to an address that was checked, so that a second look-up
cannot lead elsewhere (DNS rebinding).

For development, `http` to `localhost` and 127.0.0.0/8 can be allowed, and nothing else with it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

import anyio

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Resolves a host name to addresses; raises OSError if there are none.
Resolve: TypeAlias = Callable[[str, int], Awaitable[list[str]]]

#: The one sentence for every rejection: it must not tell what is behind a name.
REJECTED = "the webhook URL is not allowed: it must be https, without user information, and lead to a public address"

_URL = re.compile(
    r"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?)://(?P<host>\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]+\]|[-0-9A-Za-z._]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[-0-9A-Za-z._~!$&'()*+,;=:@/%]*)?(?P<query>\?[-0-9A-Za-z._~!$&'()*+,;=:@/?%]*)?"
)
_LABEL = re.compile(r"[0-9a-z_](?:[-0-9a-z_]{0,61}[0-9a-z_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MAX_URL = 2048

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
# Not for the public, though not every version of Python says so.
_NEVER: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = (
    ipaddress.IPv4Network("192.0.0.0/24"),
    ipaddress.IPv4Network("192.88.99.0/24"),
    ipaddress.IPv6Network("3fff::/20"),
)
_LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")
_LOCAL_ADDRESSES = ("127.0.0.1", "::1")


class UrlRejected(Exception):  # noqa: N818  # control flow inside the server; never reaches a user
    """The URL, or what its host resolves to, is not allowed."""

    def __str__(self) -> str:
        return REJECTED


@dataclass(frozen=True, slots=True)
class Target:
    """A webhook's URL taken apart.

    Attributes:
        tls: Whether it is https.
        host: Name or address, without brackets.
        port: Explicit, or the scheme's.
        authority: Host and port as they go into the `Host` header.
        path: Path and query as they go on the request line.
    """

    tls: bool
    host: str
    port: int
    authority: str
    path: str


@dataclass(frozen=True, slots=True)
class Policy:
    """Which URLs are allowed.

    Attributes:
        allow_insecure: Allow `http` to `localhost` and 127.0.0.0/8.
        allowed_hosts: If not None, the only hosts that webhooks may lead to; in lower case.
    """

    allow_insecure: bool = False
    allowed_hosts: Collection[str] | None = None

    def check_url(self, url: str) -> Target:
        """Look at a URL's text.

        Raises:
            UrlRejected: if it is not allowed, whatever it may resolve to.
        """
        target = _parse(url)
        address = _literal(target.host)
        if not target.tls:
            if not self.allow_insecure or not _is_development(target.host, address):
                raise UrlRejected
        elif address is None:
            if _is_local_name(target.host):
                raise UrlRejected
        elif not is_public(address):
            raise UrlRejected
        if self.allowed_hosts is not None and target.host not in self.allowed_hosts:
            raise UrlRejected
        return target

    async def resolve(self, target: Target, resolve: Resolve | None = None) -> list[str]:
        """The addresses to connect to, in the order in which to try them.

        Raises:
            UrlRejected: if one of them is not allowed.
            OSError: if the name cannot be resolved.
        """
        literal = _literal(target.host)
        if not target.tls:  # development: `check_url` has let nothing else through
            return [target.host] if literal is not None else list(_LOCAL_ADDRESSES)
        if literal is not None:
            found = [target.host]
        else:
            found = await (_resolve if resolve is None else resolve)(target.host, target.port)
        if not found:
            raise OSError("the host name has no addresses")
        for text in found:
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                raise UrlRejected from None
            if not is_public(address):
                raise UrlRejected
        return found


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, also when it wraps another one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and (address in _NAT64 or address in _COMPATIBLE):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address not in _UNICAST:
            return False
    if any(address in network for network in _NEVER):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _parse(url: str) -> Target:
    match = _URL.fullmatch(url) if len(url) <= _MAX_URL else None
    if match is None or _BROKEN_ESCAPE.search(url):
        raise UrlRejected
    host, port_text = match["host"].lower(), match["port"]
    tls = match["scheme"].lower() == "https"
    port = int(port_text) if port_text is not None else 443 if tls else 80
    if not 0 < port < 65536:
        raise UrlRejected
    authority = host if port_text is None else f"{host}:{port}"
    bare = host[1:-1] if host.startswith("[") else host
    if bare is host and (len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split("."))):
        raise UrlRejected
    return Target(tls, bare, port, authority, (match["path"] or "/") + (match["query"] or ""))


def _literal(host: str) -> Address | None:
    """The address that a host stands for; None if it is a name.

    Raises:
        UrlRejected: if it could be taken for an address, but is not written as one is. URL parsers and resolvers read
            a host whose last label is a number as an IPv4 address: decimal, octal, hex, with fewer than four parts.
    """
    if ":" not in host and not _NUMBER.fullmatch(host.rpartition(".")[2]):
        return None
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        raise UrlRejected from None


def _is_local_name(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost")


def _is_development(host: str, address: Address | None) -> bool:
    return (
        host == "localhost" if address is None else isinstance(address, ipaddress.IPv4Address) and address in _LOOPBACK
    )


async def _resolve(host: str, port: int) -> list[str]:
    infos = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))
