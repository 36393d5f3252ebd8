"""The control interface below `<root>/__ds`: requests in, JSON out (protocol 6 and 7, server 15.1)."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias
from urllib.parse import unquote

from ..authorization import Action, Gate
from ..requests import Call
from ..responses import NO_STORE, Headers, Rejection
from .bodies import RESERVED, BadRequest, Paths, read_acks, read_config, read_object, read_streams, read_text, read_wake
from .glob import Glob
from .model import PULL_WAKE, WEBHOOK, Config, Denied, Kind, Reason
from .records import Record, subscription_path
from .registry import Kept
from .service import NoSuchSubscription, OtherConfig, SubscriptionService
from .ssrf import UrlRejected
from .tokens import Grant, InvalidToken, Purpose
from .webhooks import format_cursor, tell

#: Largest body of a request, in bytes.
MAX_BODY = 1 << 20

_DENIALS = {
    Reason.FENCED: "the wake is over, or another worker has taken it",
    Reason.ALREADY_CLAIMED: "another worker holds the lease",
    Reason.NO_PENDING_WORK: "no stream has anything new",
    Reason.INVALID_OFFSET: "an ack names an unknown stream, or an offset before its cursor or beyond its tail",
}
_CODES = {
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    405: "METHOD_NOT_ALLOWED",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_CONTENT_ENCODING",
    429: "TOO_MANY_REQUESTS",
    501: "UNSUPPORTED_TRANSFER_CODING",
}
_PUBLIC_URL = re.compile(r"https?://[-0-9A-Za-z._:\[\]]+(?:/[-0-9A-Za-z._~!$&'()*+,;=:@/%]*)?")
#: What workers do with the token of their wake; nobody else is asked whether they may.
_BY_TOKEN = frozenset({"callback", "ack", "release"})
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+) *")


class Problem(Exception):  # noqa: N818  # control flow inside the server; never reaches a user
    """Ends a request with an error answer."""

    def __init__(self, status: int, code: str, text: str, **facts: object) -> None:
        super().__init__(status, code, text)
        self.status: int = status
        self.error: dict[str, object] = {"code": code, "message": text, **facts}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route answers: status, and an object for the body, or nothing."""

    status: int
    value: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request to one subscription.

    Attributes:
        call: The HTTP request.
        paths: Between paths in bodies and full paths.
        id: Of the subscription.
        rest: What follows the id and the action in the path.
    """

    call: Call
    paths: Paths
    id: str
    rest: str = ""

    @property
    def path(self) -> str:
        """The subscription's full path."""
        return subscription_path(self.paths.root, self.id)


_Action: TypeAlias = Callable[["ControlInterface", Request], Awaitable[Answer]]


class ControlInterface:
    """Answers requests below `<root>/__ds`.

    Args:
        service: Does the work.
        public_url: Scheme, host and port (and path prefix) by which clients reach the server, without a slash at the
            end; None takes them from each request.
        max_body: Largest body, in bytes.
        gate: Asked who may do what; None lets everybody do everything.
    """

    def __init__(
        self, service: SubscriptionService, *, public_url: str | None, max_body: int, gate: Gate | None = None
    ) -> None:
        self._service = service
        self._gate = gate
        self._public_url = public_url
        self._max_body = min(max_body, MAX_BODY)

    async def answer(self, call: Call) -> None:
        """Answer a request. `call.path` is normalised and lies below a reserved segment, or "" for a malformed one."""
        try:
            if not call.path:
                raise BadRequest("the path is malformed")
            root, _, tail = f"{call.path}/".partition(f"/{RESERVED}/")
            if tail == "jwks.json/":
                await self._answer_jwks(call)
                return
            answer = await self._route(call, root, tail[:-1])
        except Problem as problem:
            await _send(call, problem.status, {"error": problem.error})
        except (BadRequest, NoSuchSubscription, OtherConfig, UrlRejected, InvalidToken) as error:
            status, code, text = _explain(error)
            challenge: Headers = [(b"www-authenticate", b"Bearer")] if status == 401 else []
            await _send(call, status, {"error": {"code": code, "message": text}}, challenge)
        except Rejection as rejection:
            code = _CODES.get(rejection.status, "INVALID_REQUEST")
            headers = [*rejection.headers, *(call.close_connection() if rejection.close else [])]
            await _send(call, rejection.status, {"error": {"code": code, "message": rejection.text}}, headers)
        else:
            await _send(call, answer.status, answer.value)

    async def _route(self, call: Call, root: str, tail: str) -> Answer:
        parts = tail.split("/", 3)
        if parts[0] != "subscriptions" or len(parts) < 2:
            await self._check(call)
            raise Problem(404, "NOT_FOUND", "there is nothing at this path")
        action = parts[2] if len(parts) > 2 else ""
        rest = parts[3] if len(parts) > 3 else ""
        methods = _ROUTES.get((action, bool(rest)))
        if methods is None:
            await self._check(call)
            raise Problem(404, "NOT_FOUND", "there is nothing at this path")
        if action not in _BY_TOKEN:
            await self._check(call)
        if call.method not in methods:
            allowed: Headers = [(b"allow", ", ".join((*methods, "OPTIONS")).encode())]
            raise Rejection(405, "the method is not supported here", allowed)
        if not self._service.running:
            raise Problem(*_NOT_RUNNING)
        return await methods[call.method](self, Request(call, Paths(root), unquote(parts[1]), rest))

    async def _check(self, call: Call, path: str | None = None, action: Action | None = None) -> None:
        """Ask the gate, if there is one.

        Raises:
            Rejection: if the request may not go on.
        """
        if self._gate is not None:
            await self._gate.check(call, path, action)

    async def _check_config(self, request: Request, streams: Iterable[str], config: Config | None = None) -> None:
        """Ask the gate about all that a subscription is to read and write.

        Raises:
            Rejection: if one of these may not be.
        """
        paths = request.paths
        for stream in streams:
            await self._check(request.call, paths.full(stream), "read")
        if config is not None:
            if config.pattern is not None:
                await self._check(request.call, f"{paths.root}/{Glob(config.pattern).prefix}".rstrip("/"), "read")
            if config.wake_stream is not None:
                await self._check(request.call, paths.full(config.wake_stream), "write")

    async def _answer_jwks(self, call: Call) -> None:
        if call.method != "GET":
            raise Rejection(405, "the method is not supported here", [(b"allow", b"GET, OPTIONS")])
        messenger = self._service.messenger
        if messenger is None:
            raise Problem(404, "NOT_FOUND", "this server sends no webhooks, so it has no keys")
        headers: Headers = [(b"content-type", b"application/jwk-set+json"), (b"cache-control", b"public, max-age=300")]
        await call.answer(200, headers, messenger.keys.jwks())

    # Actions

    async def _put(self, request: Request) -> Answer:
        config = read_config(await self._fields(request), request.paths)
        await self._check_config(request, config.streams, config)
        if config.kind == WEBHOOK:
            messenger = self._service.messenger
            if messenger is None:
                raise Problem(501, "NOT_SUPPORTED", "this server sends no webhooks; use type 'pull-wake'")
            messenger.policy.check_url(config.webhook_url or "")
        origin = request.call.origin(self._public_url)
        kept, is_new = await self._service.create(request.paths.root, request.id, config, origin)
        return Answer(201 if is_new else 200, self._describe(kept, origin))

    async def _get(self, request: Request) -> Answer:
        kept = await self._service.find(request.path)
        return Answer(200, self._describe(kept, request.call.origin(self._public_url)))

    async def _delete(self, request: Request) -> Answer:
        await self._service.remove(request.path)
        return Answer(204)

    async def _link(self, request: Request) -> Answer:
        streams = read_streams(await self._fields(request), request.paths)
        await self._check_config(request, streams)
        await self._service.link(request.path, streams)
        return Answer(204)

    async def _unlink(self, request: Request) -> Answer:
        try:
            stream = request.paths.normalize("path", unquote(request.rest, errors="strict"))
        except UnicodeDecodeError:
            raise BadRequest("path is not acceptable as the path of a stream") from None
        await self._service.unlink(request.path, stream)
        return Answer(204)

    async def _claim(self, request: Request) -> Answer:
        await self._require(request, PULL_WAKE)
        worker = read_text("worker", (await self._fields(request)).get("worker"))
        if not worker:
            raise BadRequest("worker must not be empty")
        result = await self._service.claim(request.path, worker)
        if isinstance(result, Denied):
            raise _denial(result)
        kept, wake, snapshot, token = result
        answer = {
            "wake_id": wake.id,
            "generation": wake.generation,
            "token": token,
            "streams": tell(snapshot),
            "lease_ttl_ms": kept.record.config.lease_ttl_ms,
        }
        return Answer(200, answer)

    async def _ack(self, request: Request) -> Answer:
        return await self._acknowledge(request, PULL_WAKE, "claim")

    async def _callback(self, request: Request) -> Answer:
        return await self._acknowledge(request, WEBHOOK, "callback")

    async def _acknowledge(self, request: Request, kind: Kind, purpose: Purpose) -> Answer:
        grant = await self._authorize(request, kind, purpose)
        fields = await self._fields(request)
        wake, (acks, done) = read_wake(fields), read_acks(fields, request.paths)
        result = await self._service.acknowledge(request.path, grant, wake, acks, done=done)
        if isinstance(result, Denied):
            raise _denial(result)
        return Answer(200, {"ok": True, "next_wake": result})

    async def _release(self, request: Request) -> Answer:
        grant = await self._authorize(request, PULL_WAKE, "claim")
        denied = await self._service.release(request.path, grant, read_wake(await self._fields(request)))
        if denied is not None:
            raise _denial(denied)
        return Answer(204)

    # Parts of requests

    async def _fields(self, request: Request) -> dict[str, Any]:
        return read_object(await request.call.read_body(self._max_body))

    async def _require(self, request: Request, kind: Kind) -> Record:
        """The subscription, if it is of this kind."""
        record = (await self._service.find(request.path)).record
        if record.config.kind != kind:
            raise BadRequest(f"this is for subscriptions of type {kind}")
        return record

    async def _authorize(self, request: Request, kind: Kind, purpose: Purpose) -> Grant:
        """What the request's token allows."""
        try:
            record = await self._require(request, kind)
        except (NoSuchSubscription, BadRequest):
            if self._gate is None:
                raise
            raise InvalidToken from None  # who has no token of it is not told whether there is one
        match = _BEARER.fullmatch(request.call.header(b"authorization") or "")
        if match is None:
            raise InvalidToken
        return self._service.check_token(match[1], record, purpose)

    def _describe(self, kept: Kept, origin: str) -> dict[str, object]:
        """A subscription as it is shown. Nothing in it is secret."""
        record, config = kept.record, kept.record.config
        created = datetime.fromtimestamp(record.created_at, UTC).isoformat(timespec="milliseconds")
        webhook: dict[str, object] | None = None
        if config.webhook_url is not None:
            webhook = {"url": config.webhook_url}
            if self._service.messenger is not None:
                webhook["signing"] = {
                    "alg": "ed25519",
                    "kid": self._service.messenger.keys.kid,
                    "jwks_url": f"{origin}{record.root}/{RESERVED}/jwks.json",
                }
        return {
            "id": record.id,
            "subscription_id": record.id,
            "type": config.kind,
            "pattern": config.pattern,
            "streams": [
                {"path": path, "link_type": link.link_type, "acked_offset": format_cursor(link.acked)}
                for path, link in kept.model.links.items()
            ],
            "webhook": webhook,
            "wake_stream": config.wake_stream,
            "lease_ttl_ms": config.lease_ttl_ms,
            "created_at": created.replace("+00:00", "Z"),
            "status": kept.model.status,
            "description": config.description,
        }


#: (what follows the id, whether a path follows that) -> method -> action.
_ROUTES: dict[tuple[str, bool], dict[str, _Action]] = {
    ("", False): {"GET": ControlInterface._get, "PUT": ControlInterface._put, "DELETE": ControlInterface._delete},
    ("streams", False): {"POST": ControlInterface._link},
    ("streams", True): {"DELETE": ControlInterface._unlink},
    ("callback", False): {"POST": ControlInterface._callback},
    ("claim", False): {"POST": ControlInterface._claim},
    ("ack", False): {"POST": ControlInterface._ack},
    ("release", False): {"POST": ControlInterface._release},
}


def check_public_url(url: str | None) -> str | None:
    """Validate the URL by which clients reach the server; a slash at its end is dropped.

    Raises:
        ValueError: if it is no http or https URL, or has a query, a fragment or user information.
    """
    if url is not None and not _PUBLIC_URL.fullmatch(url):
        raise ValueError(f"public_url must be a URL such as 'https://streams.example', got {url!r}")
    return None if url is None else url.rstrip("/")


def _denial(denied: Denied) -> Problem:
    facts: dict[str, object] = {}
    if denied.reason is Reason.ALREADY_CLAIMED:
        facts = {"current_holder": denied.holder, "generation": denied.generation}
    return Problem(409, denied.reason.value, _DENIALS[denied.reason], **facts)


def _explain(error: Exception) -> tuple[int, str, str]:
    """Status, code and words of an error."""
    if isinstance(error, NoSuchSubscription):
        return 404, "SUBSCRIPTION_NOT_FOUND", "there is no such subscription"
    if isinstance(error, OtherConfig):
        return 409, "SUBSCRIPTION_ALREADY_EXISTS", "a subscription with another configuration exists under this id"
    if isinstance(error, UrlRejected):
        return 400, "WEBHOOK_URL_REJECTED", str(error)
    if isinstance(error, InvalidToken):
        return (401, "TOKEN_EXPIRED", "the token has expired") if error.expired else _BAD_TOKEN
    return 400, "INVALID_REQUEST", str(error)


_BAD_TOKEN = (401, "TOKEN_INVALID", "a valid token of this subscription is needed: Authorization: Bearer <token>")
_NOT_RUNNING = (
    501,
    "NOT_SUPPORTED",
    "subscriptions are off: the store keeps none, or the application runs without its lifespan",
)


async def _send(call: Call, status: int, value: Mapping[str, object] | None, headers: Headers | None = None) -> None:
    fields: Headers = [NO_STORE, *(headers or [])]
    if value is None:
        await call.answer(status, fields)
        return
    await call.answer(status, [(b"content-type", b"application/json"), *fields], json.dumps(value).encode())
