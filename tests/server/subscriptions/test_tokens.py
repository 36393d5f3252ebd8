"""Tokens of workers (server 15.4)."""

import base64
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.server.subscriptions.tokens import Grant, InvalidToken, Tokens, decode, encode

KEY = bytes(range(32))
NOW = 1_788_264_000.0
GRANT = Grant("life-1", "claim", 7)


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(KEY, "deployment-1")


def test_a_token_is_good_for_what_it_was_issued_for(tokens: Tokens) -> None:
    token = tokens.issue(GRANT, NOW, 30.0)

    assert tokens.check(token, "life-1", "claim", NOW + 3599) == GRANT


def test_a_token_has_the_documented_form(tokens: Tokens) -> None:
    payload, signature = tokens.issue(GRANT, NOW, 30.0).split(".")

    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert claims == {"aud": "deployment-1", "sub": "life-1", "use": "claim", "gen": 7, "exp": NOW + 3600}
    assert decode(signature) == hmac.new(KEY, payload.encode(), hashlib.sha256).digest()


def test_a_token_outlives_four_leases(tokens: Tokens) -> None:
    token = tokens.issue(GRANT, NOW, 2000.0)

    assert tokens.check(token, "life-1", "claim", NOW + 7999) == GRANT


def test_an_old_token_is_expired(tokens: Tokens) -> None:
    token = tokens.issue(GRANT, NOW, 30.0)

    with pytest.raises(InvalidToken) as caught:
        tokens.check(token, "life-1", "claim", NOW + 3600)
    assert caught.value.expired


@pytest.mark.parametrize(("subject", "purpose"), [("life-2", "claim"), ("life-1", "callback"), ("", "claim")], ids=str)
def test_a_token_is_not_good_for_anything_else(tokens: Tokens, subject: str, purpose: str) -> None:
    token = tokens.issue(GRANT, NOW, 30.0)

    with pytest.raises(InvalidToken) as caught:
        tokens.check(token, subject, purpose, NOW)  # type: ignore[arg-type]
    assert not caught.value.expired


@pytest.mark.parametrize("other", [Tokens(bytes(32), "deployment-1"), Tokens(KEY, "deployment-2")], ids=["key", "name"])
def test_a_token_of_another_deployment_is_refused(tokens: Tokens, other: Tokens) -> None:
    with pytest.raises(InvalidToken):
        tokens.check(other.issue(GRANT, NOW, 30.0), "life-1", "claim", NOW)


def test_no_changed_token_passes(tokens: Tokens) -> None:
    token = tokens.issue(GRANT, NOW, 30.0)

    for place, character in enumerate(token):
        other = "A" if character != "A" else "B"
        with pytest.raises(InvalidToken):
            tokens.check(token[:place] + other + token[place + 1 :], "life-1", "claim", NOW)


@given(st.text())
def test_any_text_is_refused_without_another_error(text: str) -> None:
    with pytest.raises(InvalidToken):
        Tokens(KEY, "d").check(text, "life-1", "claim", NOW)


@pytest.mark.parametrize("text", ["", ".", "a.b", "é.ü", "\udcff.x", "...."])
def test_odd_texts_are_refused(tokens: Tokens, text: str) -> None:
    with pytest.raises(InvalidToken):
        tokens.check(text, "life-1", "claim", NOW)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes, got 31"):
        Tokens(KEY[:31], "d")


def test_the_key_is_not_shown(tokens: Tokens) -> None:
    assert repr(tokens) == "<Tokens for 'deployment-1'>"


@given(st.binary())
def test_base64url_comes_back(data: bytes) -> None:
    assert decode(encode(data)) == data
    assert "=" not in encode(data)


@pytest.mark.parametrize("text", ["a", "a+b/", "YQ==", "a b", "é"])
def test_what_is_not_base64url_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="base64url"):
        decode(text)
