"""Access tokens: `client.access_tokens` (S2 2.5). `s2 lite` has none and answers 501."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..errors import InvalidArgumentError
from . import _infos, _names
from ._basins import delete
from ._context import Service
from ._listing import Lister, Listing, Page
from ._unary import Call, request
from .errors import S2ProtocolError


@dataclass(frozen=True, slots=True)
class Exact:
    """The one thing with this name; "" is none at all."""

    name: str

    def __post_init__(self) -> None:
        _check_text("name", self.name)


@dataclass(frozen=True, slots=True)
class Prefix:
    """All things whose names begin like this; "" is all."""

    prefix: str

    def __post_init__(self) -> None:
        _check_text("prefix", self.prefix)


#: The basins, streams or access tokens that a token may be used for.
ResourceSet = Exact | Prefix


@dataclass(frozen=True, slots=True)
class ReadWrite:
    """Which operations of a group are permitted."""

    read: bool = False
    write: bool = False


@dataclass(frozen=True, slots=True)
class OperationGroups:
    """Permitted operations by what they are about; None permits none of a group."""

    account: ReadWrite | None = None
    basin: ReadWrite | None = None
    stream: ReadWrite | None = None


@dataclass(frozen=True, slots=True)
class AccessTokenScope:
    """What a token permits. An operation is permitted by its group or by its name.

    Attributes:
        basins: For which basins; None is none of them.
        streams: For which streams; None is none of them.
        access_tokens: For which access tokens; None is none of them.
        op_groups: Groups of operations.
        ops: Names of single operations, such as "append", "read", "check-tail", "list-streams".
    """

    basins: ResourceSet | None = None
    streams: ResourceSet | None = None
    access_tokens: ResourceSet | None = None
    op_groups: OperationGroups | None = None
    ops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("basins", "streams", "access_tokens"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Exact | Prefix):
                raise TypeError(f"{name} must be Exact, Prefix or None, got {type(value).__name__}")
        ops: Any = self.ops
        if isinstance(ops, str) or not all(isinstance(op, str) and op for op in ops):
            raise TypeError("ops must be names of operations")
        object.__setattr__(self, "ops", tuple(ops))


@dataclass(frozen=True, slots=True)
class AccessTokenInfo:
    """An access token, without its secret.

    Attributes:
        id: Its id.
        scope: What it permits.
        expires_at: When it ends; None if the service does not say.
        auto_prefix_streams: Whether names of streams are given the prefix of the scope, and shown without it.
    """

    id: str
    scope: AccessTokenScope
    expires_at: datetime | None = None
    auto_prefix_streams: bool = False


class AccessTokens:
    """The account's access tokens. Get it as `client.access_tokens`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lister = Lister(
            service,
            service.endpoints.account_url("/access-tokens"),
            "access_tokens",
            token_info,
            _names.token_id_prefix,
            lambda info: info.id,
        )

    def __repr__(self) -> str:
        return "<AccessTokens>"

    async def list(self, *, prefix: str = "", start_after: str = "", limit: int | None = None) -> Page[AccessTokenInfo]:
        """One page of access tokens, by id.

        Args:
            prefix: Of the ids.
            start_after: The page begins with the next id after this one.
            limit: Entries of the page, 1 to 1000; None is 1000.
        """
        return await self._lister.page(prefix, start_after, limit)

    def list_all(
        self, *, prefix: str = "", start_after: str = "", page_size: int | None = None
    ) -> Listing[AccessTokenInfo]:
        """All access tokens: `async for info in client.access_tokens.list_all()`."""
        return self._lister.all(prefix, start_after, page_size)

    async def issue(
        self,
        id: str,  # noqa: A002  # the service's word for it
        scope: AccessTokenScope,
        *,
        expires_at: datetime | None = None,
        auto_prefix_streams: bool = False,
    ) -> str:
        """Make a token. Its secret is returned here and shown never again.

        If the answer is lost, so is the secret, and the id is taken: the error is not `definite` then. Revoke the id
        and make the token again.

        Args:
            id: Name for the token, of 1 to 96 bytes.
            scope: What it permits.
            expires_at: When it ends, with a time zone; None: when the token ends that is used to ask.
            auto_prefix_streams: Give names of streams the prefix that the scope names, and show them without it. The
                scope has to have a `Prefix` of streams.

        Raises:
            InvalidArgumentError: an argument can never work.
            S2ServerError: the token that asks may not, or the id is taken.
        """
        if not isinstance(scope, AccessTokenScope):
            raise TypeError(f"scope must be AccessTokenScope, got {type(scope).__name__}")
        if auto_prefix_streams and not isinstance(scope.streams, Prefix):
            raise InvalidArgumentError("auto_prefix_streams needs a scope with streams=Prefix(...)")
        document: dict[str, Any] = {
            "id": _names.token_id(id),
            "scope": scope_to_wire(scope),
            "auto_prefix_streams": auto_prefix_streams,
        }
        if expires_at is not None:
            if not isinstance(expires_at, datetime):
                raise TypeError(f"expires_at must be a datetime or None, got {type(expires_at).__name__}")
            if expires_at.tzinfo is None:
                raise InvalidArgumentError(f"expires_at must have a time zone, got {expires_at.isoformat()}")
            document["expires_at"] = expires_at.isoformat()
        url = self._service.endpoints.account_url("/access-tokens")
        reply = await request(self._service, Call.of_json("POST", url, document))
        return reply.read_json(_secret)

    async def revoke(self, id: str, *, ignore_not_found: bool = False) -> None:  # noqa: A002
        """End a token at once.

        Args:
            id: Its id.
            ignore_not_found: There being no such token is as good.

        Raises:
            S2ServerError: with code "access_token_not_found", among others.
        """
        url = self._service.endpoints.account_url(f"/access-tokens/{_names.segment(_names.token_id(id))}")
        await delete(self._service, Call("DELETE", url), ignore_not_found, frozenset({"access_token_not_found"}))


def scope_to_wire(scope: AccessTokenScope) -> dict[str, Any]:
    """A scope as JSON."""
    document: dict[str, Any] = {}
    for name in ("basins", "streams", "access_tokens"):
        match getattr(scope, name):
            case Exact(text):
                document[name] = {"exact": text}
            case Prefix(text):
                document[name] = {"prefix": text}
    if scope.op_groups is not None:
        groups = {name: getattr(scope.op_groups, name) for name in ("account", "basin", "stream")}
        document["op_groups"] = {
            name: {"read": group.read, "write": group.write} for name, group in groups.items() if group is not None
        }
    if scope.ops:
        document["ops"] = [*scope.ops]
    return document


def token_info(document: Any) -> AccessTokenInfo:
    """An access token from JSON. Unknown operations are let through.

    Raises:
        S2ProtocolError: it has another shape.
    """
    fields = _infos.json_object("access token", document)
    scope = _infos.json_object("scope", fields.get("scope") or {})
    groups = scope.get("op_groups")
    ops = scope.get("ops") or []
    if not isinstance(ops, list) or not all(isinstance(op, str) and op for op in ops):
        raise S2ProtocolError("the answer's ops is no list of names")
    return AccessTokenInfo(
        id=_infos.text(fields, "id"),
        scope=AccessTokenScope(
            basins=_resource_set(scope.get("basins")),
            streams=_resource_set(scope.get("streams")),
            access_tokens=_resource_set(scope.get("access_tokens")),
            op_groups=None if groups is None else _groups(_infos.json_object("op_groups", groups)),
            ops=tuple(ops),
        ),
        expires_at=_infos.optional_time(fields, "expires_at"),
        auto_prefix_streams=_infos.flag(fields, "auto_prefix_streams"),
    )


def _secret(document: Any) -> str:
    secret = _infos.json_object("access token", document).get("access_token")
    if not isinstance(secret, str) or not secret:  # never shown
        raise S2ProtocolError("the answer has no access_token")
    return secret


def _resource_set(value: Any) -> ResourceSet | None:
    if value is None:
        return None
    fields = _infos.json_object("scope", value)
    if "exact" in fields:
        return Exact(_infos.text(fields, "exact"))
    return Prefix(_infos.text(fields, "prefix"))


def _groups(fields: Mapping[str, Any]) -> OperationGroups:
    groups: dict[str, ReadWrite] = {}
    for name in ("account", "basin", "stream"):
        if fields.get(name) is not None:
            group = _infos.json_object(name, fields[name])
            groups[name] = ReadWrite(_infos.flag(group, "read"), _infos.flag(group, "write"))
    return OperationGroups(**groups)


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
