"""Signatures and key sets: the test vector of protocol D.9, and rotation (protocol 6.5)."""

import json
import sys

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from durable_streams.server.subscriptions.signing import SigningKeys, key_id
from durable_streams.server.subscriptions.tokens import decode

SEED = bytes(range(32))
BODY = b'{"wake_id":"w_1"}'
X = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
KID = "ds_1IG2tMH7J2wbJZnOf8LJzQitKf7LMvoAElsuDMVM54Y"
SIGNATURE = "bWLlFzez89UMbbW7AmmS1pGHCyd9crIjQjXFOdydaHPLGi7kFxbDbjgrXRLC27WRX-IF2PtF1PTgZFxiy5JMBg"


def test_the_signature_of_the_test_vector() -> None:
    assert SigningKeys(SEED).sign(BODY, 1788264000.9) == f"t=1788264000,kid={KID},ed25519={SIGNATURE}"


def test_the_key_set_of_the_test_vector() -> None:
    assert json.loads(SigningKeys(SEED).jwks()) == {
        "keys": [{"kty": "OKP", "crv": "Ed25519", "x": X, "kid": KID, "use": "sig", "alg": "EdDSA"}]
    }


def test_a_receiver_can_verify_with_the_published_key() -> None:
    keys = SigningKeys(bytes(32))
    published = json.loads(keys.jwks())["keys"][0]
    fields = dict(part.split("=", 1) for part in keys.sign(BODY, 5.0).split(","))
    receiver = Ed25519PublicKey.from_public_bytes(decode(published["x"]))

    assert fields["kid"] == published["kid"] == keys.kid
    receiver.verify(decode(fields["ed25519"]), b"5." + BODY)
    with pytest.raises(InvalidSignature):
        receiver.verify(decode(fields["ed25519"]), b"6." + BODY)


def test_retired_keys_are_published_and_do_not_sign() -> None:
    old = decode(X)
    keys = SigningKeys(bytes(32), [old, old])

    published = [key["kid"] for key in json.loads(keys.jwks())["keys"]]

    assert published == [keys.kid, KID]
    assert f"kid={keys.kid}," in keys.sign(BODY, 1.0)
    assert key_id(old) == KID


def test_a_key_that_is_listed_twice_is_published_once() -> None:
    assert len(json.loads(SigningKeys(SEED, [decode(X)]).jwks())["keys"]) == 1


def test_keys_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="signing_key: an Ed25519 key has 32 bytes, got 31"):
        SigningKeys(SEED[:31])
    with pytest.raises(ValueError, match="retired_keys"):
        SigningKeys(SEED, [b""])


def test_the_private_key_is_not_shown() -> None:
    assert repr(SigningKeys(SEED)) == f"<SigningKeys {KID}>"


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)

    with pytest.raises(ModuleNotFoundError, match=r"pip install 'durable-streams-anyio\[webhooks\]'"):
        SigningKeys(SEED)
