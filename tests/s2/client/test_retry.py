"""When to try again: S2 5.1 to 5.3, as pure functions."""

from typing import Any

import pytest

from durable_streams import InvalidArgumentError, NetworkError
from durable_streams.s2 import S2, S2ConnectionError, S2Error, S2Retry, S2ServerError, S2Timeouts
from durable_streams.s2._retry import Attempts, may_retry, parse_retry
from durable_streams.s2.errors import connection_error, error_from_reply


def server_error(status: int, code: str = "", **headers: str) -> S2ServerError:
    body = b'{"code": "%b", "message": "so it is"}' % code.encode() if code else b"<html>proxy</html>"
    return error_from_reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


# -- Classification --------------------------------------------------------------------------------------------

#: The table of S2 2.9: code, status, retryable, certainly without effect.
CODES = [
    ("authn", 401, False, True),
    ("bad_header", 400, False, True),
    ("bad_path", 400, False, True),
    ("bad_query", 400, False, True),
    ("bad_json", 400, False, True),
    ("bad_proto", 400, False, True),
    ("bad_frame", 400, False, True),
    ("decryption_failed", 400, False, True),
    ("permission_denied", 403, False, True),
    ("quota_exhausted", 403, False, True),
    ("basin_not_found", 404, False, True),
    ("stream_not_found", 404, False, True),
    ("access_token_not_found", 404, False, True),
    ("request_timeout", 408, True, False),
    ("resource_already_exists", 409, False, True),
    ("basin_deletion_pending", 409, False, True),
    ("stream_deletion_pending", 409, False, True),
    ("transaction_conflict", 409, True, True),
    ("invalid", 422, False, True),
    ("rate_limited", 429, True, True),
    ("client_hangup", 499, False, False),
    ("other", 500, True, False),
    ("storage", 500, True, False),
    ("not_implemented", 501, False, True),
    ("hot_server", 502, True, True),
    ("server_draining", 503, True, True),
    ("unavailable", 503, True, False),
    ("upstream_timeout", 504, True, False),
]


@pytest.mark.parametrize(("code", "status", "retryable", "definite"), CODES)
def test_a_code_decides_about_retries_and_effects(code: str, status: int, retryable: bool, definite: bool) -> None:
    error = server_error(status, code)

    assert (error.code, error.status, error.retryable, error.definite) == (code, status, retryable, definite)


@pytest.mark.parametrize("code", ["", "brand_new", "rate_limited", "transaction_conflict"])
@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_code_of_another_status_is_not_trusted(status: int, code: str) -> None:
    error = server_error(status, code)

    assert error.retryable
    assert not error.definite


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 412, 413, 415, 416, 422])
def test_a_refusal_without_a_known_code_is_final_and_had_no_effect(status: int) -> None:
    error = server_error(status)

    assert not error.retryable
    assert error.definite


@pytest.mark.parametrize("status", [301, 302, 499, 501, 505])
def test_other_strange_statuses_are_final_and_uncertain(status: int) -> None:
    error = server_error(status)

    assert not error.retryable
    assert not error.definite


def test_only_a_code_that_conflicts_makes_a_409_retryable() -> None:
    assert server_error(409, "transaction_conflict").retryable
    assert not server_error(409, "resource_already_exists").retryable
    assert not server_error(409, "brand_new").retryable


@pytest.mark.parametrize(
    ("phase", "definite"),
    [("connect", True), ("sent", False), ("body", False)],
)
def test_a_failure_of_the_network_is_retryable_and_definite_only_before_the_request_was_sent(
    phase: Any, definite: bool
) -> None:
    error = connection_error(NetworkError("broken", phase=phase))

    assert error.retryable
    assert error.definite is definite
    assert error.refused is definite


# -- Policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "status", "retryable", "definite"), CODES)
def test_appends_without_side_effects_are_repeated_only_after_proof(
    code: str, status: int, retryable: bool, definite: bool
) -> None:
    error = server_error(status, code)

    assert may_retry(error) is retryable
    assert may_retry(error, "all") is retryable
    assert may_retry(error, "no_side_effects") is (retryable and definite)
    assert may_retry(error, "no_side_effects", effect_possible=False) is retryable


def test_a_refused_connection_is_proof() -> None:
    refused = S2ConnectionError("refused", phase="sent", refused=True)

    assert may_retry(refused, "no_side_effects")
    assert not may_retry(S2ConnectionError("reset", phase="sent"), "no_side_effects")


# -- Delays ----------------------------------------------------------------------------------------------------


def test_a_delay_is_between_its_base_and_twice_its_base() -> None:
    retry = S2Retry()

    assert [retry.delay(n, 0.0) for n in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert [retry.delay(n, 0.5) for n in range(6)] == pytest.approx([0.15, 0.3, 0.6, 1.2, 1.5, 1.5])


def test_the_delay_never_overflows() -> None:
    assert S2Retry(max_attempts=10**9).delay(10**9, 0.0) == 1.0


def test_the_server_sets_a_least_delay() -> None:
    retry = S2Retry()

    assert retry.delay(0, 0.0, 3.5) == 3.5
    assert retry.delay(5, 0.0, 0.25) == 1.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry_after_ms": "1500"}, 1.5),
        ({"retry_after": "2"}, 2.0),
        ({"retry_after_ms": "100", "retry_after": "60"}, 0.1),
        ({"retry_after_ms": "soon", "retry_after": "2"}, 2.0),
        ({"retry_after_ms": "-5"}, None),
        ({"retry_after_ms": "9" * 40}, 3600.0),
        ({"retry_after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 3600.0),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry_after": "tomorrow"}, None),
    ],
)
def test_the_least_delay_stands_in_a_header(headers: dict[str, str], seconds: float | None) -> None:
    assert server_error(429, "rate_limited", **headers).retry_after == seconds


# -- Attempts --------------------------------------------------------------------------------------------------

TRANSIENT = S2ServerError("busy", status=503, code="unavailable", retryable=True, definite=False)
FINAL = S2ServerError("no", status=404, code="stream_not_found")


def test_attempts_include_the_first() -> None:
    attempts = Attempts(S2Retry(max_attempts=3))

    assert [attempts.fail(TRANSIENT, 0.0) for _ in range(3)] == [0.1, 0.2, None]
    assert Attempts(S2Retry(max_attempts=1)).fail(TRANSIENT, 0.0) is None


def test_progress_makes_the_next_failure_the_first() -> None:
    attempts = Attempts(S2Retry(max_attempts=2))

    assert attempts.fail(TRANSIENT, 0.0) == 0.1
    attempts.progress()
    assert attempts.fail(TRANSIENT, 0.0) == 0.1
    assert attempts.fail(TRANSIENT, 0.0) is None


def test_a_final_error_ends_it_at_once() -> None:
    assert Attempts(S2Retry(max_attempts=99), unlimited=True).fail(FINAL, 0.0) is None


def test_unlimited_attempts_go_on() -> None:
    attempts = Attempts(S2Retry(max_attempts=1), unlimited=True)

    assert [attempts.fail(TRANSIENT, 0.0) for _ in range(50)][-1] == 1.0


def test_a_draining_server_is_asked_again_at_once_and_only_then_counted() -> None:
    attempts = Attempts(S2Retry(max_attempts=3), policy="no_side_effects")
    draining = server_error(503, "server_draining")

    assert [attempts.fail(draining, 0.0) for _ in range(4)] == [0.0, 0.1, 0.2, None]
    assert not attempts.uncertain


def test_an_uncertain_try_is_remembered() -> None:
    attempts = Attempts(S2Retry(), policy="all")

    attempts.fail(TRANSIENT, 0.0)
    attempts.fail(server_error(429, "rate_limited"), 0.0)

    assert attempts.uncertain


# -- Options ---------------------------------------------------------------------------------------------------


def test_the_options_of_the_seed_are_understood() -> None:
    client = S2(
        "ignored",
        retry={
            "maxAttempts": 10,
            "retryBackoffDurationMillis": 200,
            "appendRetryPolicy": "noSideEffects",
            "requestTimeoutMillis": 7000,
        },
    )

    assert client.retry == S2Retry(10, 0.2, 1.0, "no_side_effects")
    assert client.timeouts == S2Timeouts(request=7.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_attempts": 5}, S2Retry(max_attempts=5)),
        ({"retryBackoffDurationMillis": 5000}, S2Retry(min_base_delay=5.0, max_base_delay=5.0)),
        ({"minBaseDelayMillis": 10, "maxBaseDelayMillis": 20}, S2Retry(min_base_delay=0.01, max_base_delay=0.02)),
        ({"append_retry_policy": "NO_SIDE_EFFECTS"}, S2Retry(append_retry_policy="no_side_effects")),
        (None, S2Retry()),
        (S2Retry(7), S2Retry(7)),
    ],
)
def test_retry_options_come_in_several_spellings(options: Any, expected: S2Retry) -> None:
    assert parse_retry(options) == (expected, {})


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"attempts": 3}, InvalidArgumentError, "no option 'attempts'"),
        ({"maxAttempts": 0}, InvalidArgumentError, "max_attempts must be at least 1"),
        ({"maxAttempts": 3, "max_attempts": 3}, InvalidArgumentError, "given twice"),
        ({"minBaseDelayMillis": 1, "retryBackoffDurationMillis": 1}, InvalidArgumentError, "given twice"),
        ({"appendRetryPolicy": "some"}, InvalidArgumentError, "'all' or 'no_side_effects'"),
        ({"appendRetryPolicy": 1}, TypeError, "append_retry_policy must be a str"),
        ({"maxBaseDelayMillis": 1}, InvalidArgumentError, "max_base_delay must be at least"),
        ({"requestTimeoutMillis": "5"}, TypeError, "requestTimeoutMillis must be a number"),
        (5, TypeError, "retry must be S2Retry"),
    ],
)
def test_wrong_retry_options_are_refused(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        parse_retry(options)


def test_limits_of_time_are_given_once() -> None:
    with pytest.raises(InvalidArgumentError, match="not both"):
        S2("ignored", retry={"requestTimeoutMillis": 1000}, timeout=2.0)


@pytest.mark.parametrize("name", ["request", "connect", "heartbeat"])
def test_limits_of_time_are_positive(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name} must be a finite number greater than 0"):
        S2Timeouts(**{name: 0.0})


def test_an_error_says_whether_the_write_may_have_been_applied() -> None:
    error = S2Error("lost", definite=False)

    assert not error.definite
    assert error.maybe_applied
    assert str(error) == "lost (the write may have been applied)"
