"""Where the service is: the account's endpoint, and the basins' (S2 1.4)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import InvalidArgumentError

_PLACEHOLDER = "{basin}"
_SAMPLE = "basin-name"  # stands for the placeholder while a URL is checked
_NETLOC = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_PATH = re.compile(r"[-._~0-9A-Za-z!$&'()*+,;=:@/%]*")

ACCOUNT_VARIABLE = "S2_ACCOUNT_ENDPOINT"
BASIN_VARIABLE = "S2_BASIN_ENDPOINT"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The two addresses of an S2 service. The defaults are those of the hosted one, s2.dev.

    Attributes:
        account: URL for basins, access tokens, locations and metrics. The scheme defaults to https, the path to /v1.
        basin: URL for streams and records, usually with `{basin}` in the place of the basin's name. Without it every
            basin is reached at the same address, and a header names the basin.

    Raises:
        TypeError: an address is no str.
        InvalidArgumentError: an address is no http or https URL, has user information, a query or a fragment, or the
            two have different schemes.
    """

    account: str = "https://a.s2.dev/v1"
    basin: str = "https://{basin}.b.s2.dev/v1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "account", _checked("account", self.account))
        object.__setattr__(self, "basin", _checked("basin", self.basin, placeholder=True))
        if urlsplit(self.account).scheme != urlsplit(self.basin.replace(_PLACEHOLDER, _SAMPLE)).scheme:
            raise InvalidArgumentError(
                f"endpoints: account and basin must have the same scheme, got {self.account} and {self.basin}"
            )

    @classmethod
    def shared(cls, url: str) -> Endpoints:
        """One address for everything, as `s2 lite` has it: `Endpoints.shared("http://localhost:8080")`."""
        return cls(url, url)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Endpoints:
        """Read `S2_ACCOUNT_ENDPOINT` and `S2_BASIN_ENDPOINT`; without them, the hosted service.

        Args:
            environ: Variables; None means those of this process.

        Raises:
            InvalidArgumentError: only one of them is set, so that calls would go to two services, or one is malformed.
        """
        variables = os.environ if environ is None else environ
        account, basin = variables.get(ACCOUNT_VARIABLE) or None, variables.get(BASIN_VARIABLE) or None
        if account is None and basin is None:
            return cls()
        if account is None or basin is None:
            missing = ACCOUNT_VARIABLE if account is None else BASIN_VARIABLE
            raise InvalidArgumentError(f"{missing} is not set: set both {ACCOUNT_VARIABLE} and {BASIN_VARIABLE}")
        return cls(account, basin)

    @property
    def names_basin(self) -> bool:
        """Whether the basin's address says which basin is meant, so that no header has to."""
        return _PLACEHOLDER in self.basin

    def account_url(self, path: str) -> str:
        """URL of an operation of the account.

        Args:
            path: From the first slash on, already encoded.
        """
        return self.account + path

    def basin_url(self, basin: str, path: str) -> str:
        """URL of an operation of a basin.

        Args:
            basin: The basin's name, checked.
            path: From the first slash on, already encoded.
        """
        return self.basin.replace(_PLACEHOLDER, basin) + path

    def basin_headers(self, basin: str) -> dict[str, str]:
        """The header that names the basin where the address does not."""
        return {} if self.names_basin else {"s2-basin": basin}


def _checked(name: str, url: str, *, placeholder: bool = False) -> str:
    """An endpoint as a complete URL without a slash at its end."""
    if not isinstance(url, str):
        raise TypeError(f"endpoints: {name} must be a str, got {type(url).__name__}")
    text = url if "://" in url else f"https://{url}"
    count = text.count(_PLACEHOLDER)
    if count > (1 if placeholder else 0):
        raise InvalidArgumentError(f"endpoints: {name} has {_PLACEHOLDER} {count} times, got {url!r}")
    try:
        parts = urlsplit(text.replace(_PLACEHOLDER, _SAMPLE))
    except ValueError as error:
        raise InvalidArgumentError(f"endpoints: {name} is no URL: {error}") from None
    if parts.username is not None or parts.password is not None:  # never shown: it may be a secret
        raise InvalidArgumentError(f"endpoints: {name} must not have user information")
    if "?" in text or "#" in text:
        raise InvalidArgumentError(f"endpoints: {name} must not have a query or fragment, got {url!r}")
    if (
        not text.startswith(("http://", "https://"))
        or not _NETLOC.fullmatch(parts.netloc)
        or not _PATH.fullmatch(parts.path)
    ):
        raise InvalidArgumentError(f"endpoints: {name} must be an http or https URL, got {url!r}")
    return text.rstrip("/") if parts.path.strip("/") else text.rstrip("/") + "/v1"
