"""Signatures of webhook requests, and the public keys that receivers check them with (protocol 6.5, server 15.4).

Needs the `cryptography` package, which is imported when the first key is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .tokens import encode

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: Size of private and public keys, in bytes.
KEY_BYTES = 32


class SigningKeys:
    """The key that signs, and those whose signatures may still be on their way.

    Args:
        seed: Private key, 32 bytes.
        retired: Public keys, 32 bytes each, that have signed and are still published.

    Attributes:
        kid: Name of the key that signs; the same for the key's whole life.

    Raises:
        ValueError: if a key has another size.
        ModuleNotFoundError: if `cryptography` is missing (extra `webhooks`).
    """

    def __init__(self, seed: bytes, retired: Sequence[bytes] = ()) -> None:
        for name, key in (("signing_key", seed), *(("retired_keys", key) for key in retired)):
            if len(key) != KEY_BYTES:
                raise ValueError(f"{name}: an Ed25519 key has {KEY_BYTES} bytes, got {len(key)}")
        self._key = _private_key(seed)
        public = self._key.public_key().public_bytes_raw()
        self.kid: str = key_id(public)
        keys = {key_id(key): key for key in (public, *retired)}
        self._jwks = json.dumps({"keys": [_jwk(kid, key) for kid, key in keys.items()]}).encode()

    def __repr__(self) -> str:
        return f"<SigningKeys {self.kid}>"

    def sign(self, body: bytes, now: float) -> str:
        """The `Webhook-Signature` of a request with this body, sent now."""
        t = int(now)
        signature = self._key.sign(b"%d.%b" % (t, body))
        return f"t={t},kid={self.kid},ed25519={encode(signature)}"

    def jwks(self) -> bytes:
        """The public keys as a JWK Set (RFC 7517)."""
        return self._jwks


def key_id(public: bytes) -> str:
    """Name of a public key: `ds_` and its thumbprint (RFC 7638)."""
    members = '{"crv":"Ed25519","kty":"OKP","x":"' + encode(public) + '"}'
    return "ds_" + encode(hashlib.sha256(members.encode()).digest())


def _jwk(kid: str, public: bytes) -> dict[str, str]:
    return {"kty": "OKP", "crv": "Ed25519", "x": encode(public), "kid": kid, "use": "sig", "alg": "EdDSA"}


def _private_key(seed: bytes) -> Ed25519PrivateKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cryptography":
            raise
        raise ModuleNotFoundError(
            "webhooks need cryptography: pip install 'durable-streams-anyio[webhooks]'", name="cryptography"
        ) from None
    return Ed25519PrivateKey.from_private_bytes(seed)
