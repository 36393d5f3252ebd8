"""Tokens for workers: signed, bound to one subscription and generation, good for a while (server 15.4).

A token is base64url(JSON) `.` base64url(HMAC-SHA256 of the first part). Only we read it. Whether its wake is still
current is for the subscription to say; a token only says for which one it was issued.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

#: Shortest life of a token, in seconds. Longer leases make longer lives.
MIN_LIFE = 3600.0
LEASES_PER_LIFE = 4
#: Size of a key that we make, and the smallest one that is accepted, in bytes.
KEY_BYTES = 32

_BASE64URL = re.compile(r"(?:[-_0-9A-Za-z]{4})*(?:[-_0-9A-Za-z]{2,3})?")

Purpose: TypeAlias = Literal["callback", "claim"]


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows.

    Attributes:
        subject: The subscription, this life of it.
        purpose: `callback` for webhooks, `claim` for pull-wake.
        generation: Of the wake.
    """

    subject: str
    purpose: Purpose
    generation: int


class InvalidToken(Exception):  # noqa: N818  # control flow inside the server; never reaches a user
    """The token is not ours, or not for this. `expired` if it once was good."""

    def __init__(self, *, expired: bool = False) -> None:
        super().__init__(expired)
        self.expired = expired


class Tokens:
    """Issues and checks tokens.

    Args:
        key: Secret of this deployment, at least 32 bytes. All processes that share subscriptions share it.
        audience: Name of this deployment: tokens of another with the same key are refused.

    Raises:
        ValueError: if the key is too short.
    """

    def __init__(self, key: bytes, audience: str) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"token_key must have at least {KEY_BYTES} bytes, got {len(key)}")
        self._key = key
        self._audience = audience

    def __repr__(self) -> str:
        return f"<Tokens for {self._audience!r}>"

    def issue(self, grant: Grant, now: float, lease: float) -> str:
        """A token.

        Args:
            grant: What it allows.
            now: Wall-clock time in seconds.
            lease: Length of the lease in seconds.
        """
        claims = {
            "aud": self._audience,
            "sub": grant.subject,
            "use": grant.purpose,
            "gen": grant.generation,
            "exp": int(now + max(MIN_LIFE, LEASES_PER_LIFE * lease)),
        }
        payload = encode(json.dumps(claims, separators=(",", ":")).encode())
        return f"{payload}.{encode(self._sign(payload))}"

    def check(self, token: str, subject: str, purpose: Purpose, now: float) -> Grant:
        """What a token allows, if it is ours, for this subscription and purpose, and not too old.

        Raises:
            InvalidToken: if it is not.
        """
        payload, _, signature = token.partition(".")
        if not hmac.compare_digest(encode(self._sign(payload)).encode(), signature.encode()):
            raise InvalidToken
        # Signed by us, so it has our form.
        claims = json.loads(decode(payload))
        if (claims["aud"], claims["sub"], claims["use"]) != (self._audience, subject, purpose):
            raise InvalidToken
        if now >= claims["exp"]:
            raise InvalidToken(expired=True)
        return Grant(subject, purpose, claims["gen"])

    def _sign(self, payload: str) -> bytes:
        return hmac.digest(self._key, payload.encode("utf-8", "surrogateescape"), hashlib.sha256)


def encode(data: bytes) -> str:
    """base64url without padding (RFC 4648)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """The bytes of base64url without padding.

    Raises:
        ValueError: if the text has other characters, padding, or an impossible length.
    """
    if not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
