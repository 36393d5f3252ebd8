"""Basins: `client.basins` (S2 2.1, 2.3)."""

from __future__ import annotations

import uuid
from typing import Any

from . import _infos, _names
from ._config import (
    BasinConfig,
    BasinReconfiguration,
    basin_from_wire,
    basin_to_wire,
    checked_changes,
    checked_config,
)
from ._context import Service
from ._infos import BasinInfo
from ._listing import Listed, Lister
from ._unary import Call, Reply, request
from .errors import S2ServerError

#: What creating or ensuring did stands here.
PROVISION_RESULT: str = "s2-provision-result"
#: It is not there, or will not be for long.
GONE_BASIN: frozenset[str] = frozenset({"basin_not_found", "basin_deletion_pending"})


class Basins(Listed[BasinInfo]):
    """The account's basins. Get it as `client.basins`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lister = Lister(
            service,
            service.endpoints.account_url("/basins"),
            "basins",
            _infos.basin_info,
            _names.basin_prefix,
            lambda info: info.name,
            # `state` is what older services have instead of the time.
            gone=lambda info: info.deleted_at is not None or info.state == "deleting",
        )

    def __repr__(self) -> str:
        return "<Basins>"

    async def create(
        self,
        basin: str,
        *,
        config: BasinConfig | None = None,
        location: str | None = None,
        request_token: str | None = None,
    ) -> BasinInfo:
        """Make a basin.

        Args:
            basin: Its name: 8 to 48 of a-z, 0-9 and hyphen. It is unique in the whole service.
            config: Its configuration.
            location: Where to keep it, such as "aws:us-east-1"; None is the account's default.
            request_token: Creating again with the same token and the same configuration succeeds and does nothing.
                None makes a token for this call, which all of its tries share.

        Raises:
            S2ServerError: with code "resource_already_exists" or "basin_deletion_pending", among others.
        """
        document: dict[str, Any] = {"basin": _names.basin(basin)}
        if (wire := checked_config(config, BasinConfig, basin_to_wire)) is not None:
            document["config"] = wire
        if location is not None:
            document["location"] = _names.location(location)
        url = self._service.endpoints.account_url("/basins")
        headers = {"s2-request-token": new_request_token(request_token)}
        reply = await request(self._service, Call.of_json("POST", url, document, headers))
        return _info(reply)

    async def ensure(self, basin: str, *, config: BasinConfig | None = None, location: str | None = None) -> BasinInfo:
        """Make a basin, or give the one there is this configuration: the whole of it, so what is not set is reset.

        Where a basin is kept never changes.

        Args:
            basin: Its name.
            config: Its configuration; None is all defaults.
            location: Where to keep it if it has to be made.

        Returns:
            The basin; `provision_result` tells what was done.
        """
        document: dict[str, Any] = {}
        if (wire := checked_config(config, BasinConfig, basin_to_wire)) is not None:
            document["config"] = wire
        if location is not None:
            document["location"] = _names.location(location)
        url = self._url(basin)
        reply = await request(self._service, Call.of_json("PUT", url, document) if document else Call("PUT", url))
        return _info(reply)

    async def get_config(self, basin: str) -> BasinConfig:
        """The configuration of a basin. What is not set is None."""
        reply = await request(self._service, Call("GET", self._url(basin)))
        return reply.read_json(basin_from_wire)

    async def reconfigure(self, basin: str, changes: BasinReconfiguration) -> BasinConfig:
        """Change some of a basin's configuration: a value sets, None clears, what is left out stays.

        Returns:
            The configuration that it has now.
        """
        document = checked_changes(changes, BasinReconfiguration, basin_to_wire)
        reply = await request(self._service, Call.of_json("PATCH", self._url(basin), document))
        return reply.read_json(basin_from_wire)

    async def delete(self, basin: str, *, ignore_not_found: bool = False) -> None:
        """Ask for a basin's deletion, with all its streams. It happens some time later.

        Args:
            basin: Its name.
            ignore_not_found: There being no such basin, or one that is being deleted, is as good. A repeated try meets
                that after its own success.

        Raises:
            S2ServerError: with code "basin_not_found", among others.
        """
        await delete(self._service, Call("DELETE", self._url(basin)), ignore_not_found, GONE_BASIN)

    def _url(self, basin: str) -> str:
        return self._service.endpoints.account_url(f"/basins/{_names.basin(basin)}")


def new_request_token(given: str | None) -> str:
    """The caller's request token, or a fresh one: the 32 hexadecimal digits of a random UUID."""
    return uuid.uuid4().hex if given is None else _names.request_token(given)


async def delete(service: Service, call: Call, ignore_not_found: bool, gone: frozenset[str]) -> None:
    """Make a call that deletes something.

    Args:
        service: The client's.
        call: The call.
        ignore_not_found: Whether there being no such thing is as good.
        gone: The codes that say so.
    """
    try:
        await request(service, call)
    except S2ServerError as error:
        if not (ignore_not_found and error.code in gone):
            raise


def _info(reply: Reply) -> BasinInfo:
    return reply.read_json(lambda document: _infos.basin_info(document, reply.headers.get(PROVISION_RESULT)))
