"""Errors: their tree, their texts, and what is made of answers (S2 2.9)."""

import copy
import pickle

import pytest

from durable_streams import DurableStreamError, RequestTimeoutError
from durable_streams.s2 import (
    FencingTokenMismatchError,
    RangeNotSatisfiableError,
    S2ConnectionError,
    S2Error,
    S2ProtocolError,
    S2ServerError,
    S2SessionClosedError,
    S2TimeoutError,
    SeqNumMismatchError,
    StreamPosition,
)
from durable_streams.s2.errors import connection_error, error_from_reply

EACH = [
    S2Error("plain"),
    S2ServerError("no", status=404, code="stream_not_found", headers={"a": "b"}, retry_after=1.5),
    SeqNumMismatchError("mismatch", expected_seq_num=7, status=412, definite=False),
    FencingTokenMismatchError("fenced", expected_fencing_token="tok", status=412),
    RangeNotSatisfiableError("range", tail=StreamPosition(5, 9), status=416),
    S2ConnectionError("broken", phase="body"),
    S2TimeoutError("slow", phase="connect"),
    S2ProtocolError("bad frame", retryable=True),
    S2SessionClosedError("closed"),
]


@pytest.mark.parametrize("error", EACH, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling_and_copying(error: S2Error) -> None:
    error.attempts = 3

    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)
        assert (twin.definite, twin.retryable, twin.attempts) == (error.definite, error.retryable, 3)


def test_all_are_errors_of_this_library() -> None:
    assert all(isinstance(error, DurableStreamError) for error in EACH)
    ours = {kind for kind in S2Error.__subclasses__() if kind.__module__ == S2Error.__module__}  # not the patterns'
    assert {type(error) for error in EACH} >= ours > {S2ServerError}
    assert isinstance(S2TimeoutError("slow"), TimeoutError)


def test_a_sequence_mismatch_tells_the_next_number() -> None:
    error = error_from_reply(412, {}, b'{"seq_num_mismatch": 18446744073709551615}')

    assert isinstance(error, SeqNumMismatchError)
    assert error.expected_seq_num == 2**64 - 1
    assert (error.retryable, error.definite) == (False, True)


def test_a_fencing_token_is_in_no_text() -> None:
    error = error_from_reply(412, {}, b'{"fencing_token_mismatch": "s3cret"}')

    assert isinstance(error, FencingTokenMismatchError)
    assert error.expected_fencing_token == "s3cret"
    assert "s3cret" not in str(error)
    assert "s3cret" not in repr(error)
    assert error.details is None


def test_a_range_error_tells_the_tail() -> None:
    error = error_from_reply(416, {}, b'{"tail": {"seq_num": 5, "timestamp": 9}}')

    assert isinstance(error, RangeNotSatisfiableError)
    assert error.tail == StreamPosition(5, 9)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Bad Gateway</html>",
        b"null",
        b"[]",
        b"[1, 2]",
        b'"text"',
        b"{",
        b"\xff\xfe\x00",
        b'{"code": 5, "message": ["x"]}',
        b'{"code": null}',
        b'{"seq_num_mismatch": "5"}',
        b'{"seq_num_mismatch": -1}',
        b'{"seq_num_mismatch": true}',
        b'{"seq_num_mismatch": 18446744073709551616}',
        b'{"fencing_token_mismatch": 5}',
        b'{"tail": null}',
        b'{"tail": {"seq_num": 1.5, "timestamp": 0}}',
        b"[" * 100_000,
        b"x" * 10_000,
    ],
)
def test_whatever_the_body_is_there_is_an_error_with_the_status(body: bytes) -> None:
    for status in (400, 412, 416, 500, 503):
        error = error_from_reply(status, {}, body)

        assert error.status == status
        assert error.code == ("range_not_satisfiable" if status == 416 else "unknown")
        assert len(str(error)) < 500
        pickle.dumps(error)


def test_the_words_of_the_server_are_kept_and_shortened() -> None:
    error = error_from_reply(404, {"x-id": "7"}, b'{"code": "stream_not_found", "message": "no such stream"}')
    long = error_from_reply(500, {}, b'{"code": "other", "message": "%b"}' % (b"y" * 5000))

    assert str(error) == "HTTP 404 stream_not_found: no such stream"
    assert error.details == {"code": "stream_not_found", "message": "no such stream"}
    assert error.headers == {"x-id": "7"}
    assert len(str(long)) < 400


def test_a_timeout_of_the_transport_stays_a_timeout() -> None:
    error = connection_error(RequestTimeoutError("too slow", phase="sent"))

    assert type(error) is S2TimeoutError
    assert isinstance(error, TimeoutError)
    assert not error.definite


def test_a_redirection_says_where_the_service_is() -> None:
    error = error_from_reply(308, {"location": "https://a.example/v1/basins?prefix=x"}, b"<html>moved</html>")

    assert str(error) == (
        "HTTP 308 unknown: redirected to https://a.example/v1/basins: give the address that answers as the endpoint"
        " (the write may have been applied)"
    )
    assert not error.retryable
    assert str(error_from_reply(304, {}, b"")).startswith("HTTP 304 unknown: no message")
