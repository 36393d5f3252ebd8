"""A basin and its streams: `client.basin(name)`, `client.basin(name).streams` (S2 2.2, 2.3)."""

from __future__ import annotations

from typing import Any

from . import _infos, _names
from ._basins import PROVISION_RESULT, delete, new_request_token
from ._config import (
    StreamConfig,
    StreamReconfiguration,
    checked_changes,
    checked_config,
    stream_from_wire,
    stream_to_wire,
)
from ._context import Encoding, Service, SessionTransport, StreamContext, one_of
from ._infos import StreamInfo
from ._listing import Listed, Lister
from ._stream import Stream
from ._unary import Call, Reply, request

#: It is not there, or will not be for long.
GONE_STREAM: frozenset[str] = frozenset({"stream_not_found", "stream_deletion_pending"})


class Basin:
    """A basin's handle: `client.basin("my-basin")`. Making one sends nothing.

    Attributes:
        name: The basin's name.
        streams: Its streams.
    """

    def __init__(self, service: Service, name: str) -> None:
        self._service = service
        self.name: str = _names.basin(name)
        self.streams: Streams = Streams(service, self.name)

    def __repr__(self) -> str:
        return f"<Basin {self.name}>"

    def __getitem__(self, stream: str) -> Stream:
        return self.stream(stream)

    def stream(
        self,
        name: str,
        *,
        encryption_key: bytes | str | None = None,
        transport: SessionTransport = "auto",
        encoding: Encoding = "protobuf",
    ) -> Stream:
        """The handle of a stream. Sends nothing.

        Args:
            name: Its name: 1 to 512 bytes in UTF-8.
            encryption_key: For a stream with a cipher: 32 bytes, or their base64. It is sent with appends and reads,
                never shown, and never sent to the account's endpoint.
            transport: How sessions reach the server. "s2s": over HTTP/2, with many appends under way. "http": over any
                HTTP, one append after the other, reading by server-sent events; for proxies without HTTP/2. "auto":
                the first, unless a proxy is configured or hpack is not installed.
            encoding: How records travel in unary calls: "protobuf", or as JSON, for people and proxies that look
                inside: "base64", or "raw" for records that are UTF-8 text only.
        """
        one_of("transport", transport, ("auto", "s2s", "http"))
        one_of("encoding", encoding, ("protobuf", "base64", "raw"))
        return Stream(
            StreamContext(
                self._service,
                self.name,
                _names.stream(name, name="name"),
                encryption_key=None if encryption_key is None else _names.encryption_key(encryption_key),
                transport=transport,
                encoding=encoding,
            )
        )


class Streams(Listed[StreamInfo]):
    """The streams of a basin. Get it as `client.basin("my-basin").streams`."""

    def __init__(self, service: Service, basin: str) -> None:
        self._service = service
        self._basin = basin
        self._lister = Lister(
            service,
            service.endpoints.basin_url(basin, "/streams"),
            "streams",
            _infos.stream_info,
            _names.stream_prefix,
            lambda info: info.name,
            gone=lambda info: info.deleted_at is not None,
            headers=self._headers(),
        )

    def __repr__(self) -> str:
        return f"<Streams of {self._basin}>"

    async def create(
        self, stream: str, *, config: StreamConfig | None = None, request_token: str | None = None
    ) -> StreamInfo:
        """Make a stream.

        Args:
            stream: Its name: 1 to 512 bytes in UTF-8.
            config: Its configuration; what is not set is the basin's default of now.
            request_token: Creating again with the same token and the same configuration succeeds and does nothing.
                None makes a token for this call, which all of its tries share.

        Raises:
            S2ServerError: with code "resource_already_exists" or "stream_deletion_pending", among others.
        """
        document: dict[str, Any] = {"stream": _names.stream(stream)}
        if (wire := checked_config(config, StreamConfig, stream_to_wire)) is not None:
            document["config"] = wire
        url = self._service.endpoints.basin_url(self._basin, "/streams")
        headers = {**self._headers(), "s2-request-token": new_request_token(request_token)}
        reply = await request(self._service, Call.of_json("POST", url, document, headers))
        return _info(reply)

    async def ensure(self, stream: str, *, config: StreamConfig | None = None) -> StreamInfo:
        """Make a stream, or give the one there is this configuration: the whole of it, so what is not set is reset.

        Args:
            stream: Its name.
            config: Its configuration; None is all defaults.

        Returns:
            The stream; `provision_result` tells what was done.
        """
        wire, url = checked_config(config, StreamConfig, stream_to_wire), self._url(stream)
        if wire is None:
            reply = await request(self._service, Call("PUT", url, self._headers()))
        else:
            reply = await request(self._service, Call.of_json("PUT", url, wire, self._headers()))
        return _info(reply)

    async def get_config(self, stream: str) -> StreamConfig:
        """The configuration of a stream, with what it was given by its basin and by the system."""
        reply = await request(self._service, Call("GET", self._url(stream), self._headers()))
        return reply.read_json(stream_from_wire)

    async def reconfigure(self, stream: str, changes: StreamReconfiguration) -> StreamConfig:
        """Change some of a stream's configuration: a value sets, None clears, what is left out stays.

        Returns:
            The configuration that it has now.
        """
        document = checked_changes(changes, StreamReconfiguration, stream_to_wire)
        reply = await request(self._service, Call.of_json("PATCH", self._url(stream), document, self._headers()))
        return reply.read_json(stream_from_wire)

    async def delete(self, stream: str, *, ignore_not_found: bool = False) -> None:
        """Ask for a stream's deletion. It cannot be used any more; its name is free when the records are gone.

        Args:
            stream: Its name.
            ignore_not_found: There being no such stream, or one that is being deleted, is as good. A repeated try meets
                that after its own success.

        Raises:
            S2ServerError: with code "stream_not_found", among others.
        """
        call = Call("DELETE", self._url(stream), self._headers())
        await delete(self._service, call, ignore_not_found, GONE_STREAM)

    def _url(self, stream: str) -> str:
        path = f"/streams/{_names.segment(_names.stream(stream))}"
        return self._service.endpoints.basin_url(self._basin, path)

    def _headers(self) -> dict[str, str]:
        return self._service.endpoints.basin_headers(self._basin)


def _info(reply: Reply) -> StreamInfo:
    return reply.read_json(lambda document: _infos.stream_info(document, reply.headers.get(PROVISION_RESULT)))
