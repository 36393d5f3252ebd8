"""Waking workers by HTTP: what is posted, and what the answer means (protocol 7.1)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from ..offsets import format_offset
from .delivery import DeliveryFailed, Post, SocketPost, Timeouts
from .model import BEFORE, Snapshot, Wake
from .records import Record
from .signing import SigningKeys
from .ssrf import Policy, UrlRejected
from .tokens import Grant, Tokens

logger: logging.Logger = logging.getLogger("durable_streams.server.subscriptions")


@dataclass(frozen=True, slots=True)
class Webhooks:
    """How webhooks are sent. The defaults suit a server with a durable store.

    Attributes:
        signing_key: Ed25519 private key, 32 bytes. If None, one is made and kept in the store.
        retired_keys: Ed25519 public keys, 32 bytes each, that have signed before: still published, for five minutes
            or more after the change.
        allowed_hosts: The only hosts that webhooks may lead to, in lower case; None for all public ones.
        connect_timeout: Seconds for connecting, name look-up and TLS included.
        timeout: Seconds for a whole delivery. It should be below the leases.
        post: Sends the requests instead of our own HTTP client; for tests, and for networks with rules of their own.
            It has to connect to no other addresses than it is given.

    Raises:
        TypeError: if `allowed_hosts` is a single str.
        ValueError: if a host in it is not in lower case, or a time is not greater than 0.
    """

    signing_key: bytes | None = field(default=None, repr=False)
    retired_keys: Sequence[bytes] = ()
    allowed_hosts: Collection[str] | None = None
    connect_timeout: float = 10.0
    timeout: float = 30.0
    post: Post | None = None

    def __post_init__(self) -> None:
        if isinstance(self.allowed_hosts, str):
            raise TypeError("allowed_hosts must be a collection of host names, got a str")
        for host in self.allowed_hosts or ():
            if host != host.lower():
                raise ValueError(f"allowed_hosts must be in lower case, got {host!r}")
        for name, value in (("connect_timeout", self.connect_timeout), ("timeout", self.timeout)):
            if not value > 0:
                raise ValueError(f"{name} must be greater than 0, got {value!r}")


class Messenger:
    """Delivers wakes to webhooks.

    Args:
        options: See there.
        keys: Sign what is sent.
        tokens: Make the tokens that are sent along.
        clock: Wall-clock time in seconds.
        allow_insecure: Allow webhooks of this machine, without TLS.
    """

    def __init__(
        self,
        options: Webhooks,
        keys: SigningKeys,
        tokens: Tokens,
        clock: Callable[[], float],
        *,
        allow_insecure: bool,
    ) -> None:
        self.keys: SigningKeys = keys
        self.policy: Policy = Policy(allow_insecure, options.allowed_hosts)
        self._tokens = tokens
        self._clock = clock
        self._post: Post = SocketPost() if options.post is None else options.post
        self._timeouts = Timeouts(options.connect_timeout, options.timeout)

    def __repr__(self) -> str:
        return f"<Messenger signing with {self.keys.kid}>"

    async def deliver(self, record: Record, wake: Wake, snapshot: Snapshot) -> bool | None:
        """Post a wake.

        Returns:
            Whether the webhook says that it has processed all of it; None if the delivery has failed.
        """
        url = record.config.webhook_url or ""
        try:
            target = self.policy.check_url(url)
            body = self._body(record, wake, snapshot)
            headers = [
                ("Content-Type", "application/json"),
                ("Webhook-Signature", self.keys.sign(body, self._clock())),
            ]
            reply = await self._post(target, lambda: self.policy.resolve(target), headers, body, self._timeouts)
        except (DeliveryFailed, UrlRejected, OSError) as error:
            logger.warning("webhook failed subscription=%s generation=%d: %s", record.id, wake.generation, error)
            return None
        if not 200 <= reply.status < 300:
            logger.warning(
                "webhook failed subscription=%s generation=%d status=%d", record.id, wake.generation, reply.status
            )
            return None
        return _says_done(reply.body)

    def _body(self, record: Record, wake: Wake, snapshot: Snapshot) -> bytes:
        grant = Grant(record.incarnation, "callback", wake.generation)
        message = {
            "subscription_id": record.id,
            "wake_id": wake.id,
            "generation": wake.generation,
            "streams": tell(snapshot),
            "callback_url": f"{record.origin}{record.path}/callback",
            "callback_token": self._tokens.issue(grant, self._clock(), record.config.lease),
        }
        return json.dumps(message, separators=(",", ":")).encode()


def tell(snapshot: Snapshot) -> list[dict[str, object]]:
    """A snapshot as workers are told it (protocol P7-4)."""
    return [
        {
            "path": entry.path,
            "link_type": entry.link_type,
            "acked_offset": format_cursor(entry.acked),
            "tail_offset": format_offset(entry.tail),
            "has_pending": entry.has_pending,
        }
        for entry in snapshot
    ]


def format_cursor(acked: int) -> str:
    """A cursor on the wire."""
    return "-1" if acked == BEFORE else format_offset(acked)


def _says_done(body: bytes) -> bool:
    try:
        answer = json.loads(body.decode())
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and answer.get("done") is True
