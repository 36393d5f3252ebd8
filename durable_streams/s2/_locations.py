"""Where basins are kept: `client.locations` (S2 2.6). `s2 lite` has none and answers 501."""

from __future__ import annotations

from typing import Any

from . import _infos, _names
from ._context import Service
from ._infos import LocationInfo
from ._unary import Call, request
from .errors import S2ProtocolError


class Locations:
    """The places where basins can be kept. Get it as `client.locations`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def __repr__(self) -> str:
        return "<Locations>"

    async def list(self) -> tuple[LocationInfo, ...]:
        """All locations that the account can use."""
        reply = await request(self._service, Call("GET", self._service.endpoints.account_url("/locations")))
        return reply.read_json(_locations)

    async def get_default(self) -> LocationInfo:
        """Where basins are kept that are created without a location."""
        reply = await request(self._service, Call("GET", self._service.endpoints.account_url("/locations/default")))
        return reply.read_json(_infos.location_info)

    async def set_default(self, name: str) -> LocationInfo:
        """Choose where basins are kept that are created without a location.

        Args:
            name: Of the location, such as "aws:us-east-1".
        """
        url = self._service.endpoints.account_url("/locations/default")
        reply = await request(self._service, Call.of_json("PUT", url, _names.location(name, name="name")))
        return reply.read_json(_infos.location_info)


def _locations(document: Any) -> tuple[LocationInfo, ...]:
    if not isinstance(document, list):
        raise S2ProtocolError("the answer is no list of locations")
    return tuple(_infos.location_info(item) for item in document)
