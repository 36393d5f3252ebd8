"""Arguments are checked at the call, before any I/O, and the message names the argument and the value (client 14)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from durable_streams import (
    BackoffOptions,
    Checkpoint,
    DurableStream,
    DurableStreamError,
    InvalidArgumentError,
    SSEResilience,
    stream,
)
from durable_streams._core import validate
from tests.client.memory import MemoryTransport

URL = "http://host/s"


def refused(call: Callable[[], Any], *words: str) -> None:
    """The value is wrong: an error of both families, with a code, whose message has these words."""
    with pytest.raises(InvalidArgumentError) as caught:
        call()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, DurableStreamError)
    assert caught.value.code == "BAD_REQUEST"
    assert caught.value.status is None
    for word in words:
        assert word in str(caught.value)


def mistyped(call: Callable[[], Any], *words: str) -> None:
    """The type is wrong."""
    with pytest.raises(TypeError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def both(url: Any = URL, **options: Any) -> list[Callable[[], Any]]:
    """The two ways to ask for a session. They raise when called, not when awaited."""
    ways: list[Callable[[], Any]] = [lambda: stream(url, **options)]
    if url == URL:
        ways.append(lambda: DurableStream(url, transport=MemoryTransport()).stream(**options))
    else:
        ways.append(lambda: DurableStream(url))
    return ways


NO_URLS = [
    "",
    "s",
    "/s",
    "ftp://h/s",
    "http://",
    "http:///s",
    "http://h/s#x",
    "http://h h/",
    "http://h:p/",
    "http://h/\n",
]


@pytest.mark.parametrize("url", NO_URLS)
def test_a_url_is_absolute_http_without_fragment(url: str) -> None:
    for way in both(url):
        refused(way, "url")


@pytest.mark.parametrize("url", [None, b"http://host/s", 5])
def test_a_url_is_a_str(url: Any) -> None:
    for way in both(url):
        mistyped(way, "url", type(url).__name__)


@pytest.mark.parametrize("offset", ["", *(f"a{character}b" for character in ",&=?/ \n\0\x7f"), '{"offset":"1"}'])
def test_an_offset_has_no_character_that_the_protocol_forbids(offset: str) -> None:
    for way in both(offset=offset):
        refused(way, "offset", *([] if not offset else [repr(offset)]))
    if offset:
        for way in both(offset=Checkpoint(offset)):
            refused(way, "offset")


def test_a_dumped_checkpoint_given_as_offset_is_explained() -> None:
    refused(lambda: stream(URL, offset=Checkpoint("5").dumps()), "Checkpoint.loads")


@pytest.mark.parametrize("offset", [5, b"5", 1.0, True, ("5",)])
def test_an_offset_is_a_str_or_a_checkpoint(offset: Any) -> None:
    for way in both(offset=offset):
        mistyped(way, "offset", repr(offset))


@pytest.mark.parametrize("live", ["long_poll", "SSE", "", None, 1, 0, "true", ["sse"]])
def test_live_is_one_of_four(live: Any) -> None:
    for way in both(live=live):
        refused(way, "live", repr(live), "long-poll", "sse")


def test_the_removed_value_auto_is_explained() -> None:
    for way in both(live="auto"):
        refused(way, "auto", "live=True")


@pytest.mark.parametrize("name", ["max_page_bytes", "max_response_bytes"])
def test_sizes_are_positive_integers(name: str) -> None:
    for value in (0, -1, 2**53):
        for way in both(**{name: value}):
            refused(way, name, str(value))
    for wrong in (True, 1.5, "1"):
        for way in both(**{name: wrong}):
            mistyped(way, name, repr(wrong))


def test_an_entity_tag_is_a_str_that_can_be_sent() -> None:
    for value in ("", " ", '"a\r\nb"'):
        for way in both(if_none_match=value):
            refused(way, "if_none_match" if not value.strip() else "if-none-match")
    for way in both(if_none_match=b'"e"'):
        mistyped(way, "if_none_match", "bytes")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"json": "yes"}, ["json", "'yes'"]),
        ({"cursor": 5}, ["cursor", "int"]),
        ({"headers": [("a", "b")]}, ["headers", "list"]),
        ({"headers": {1: "b"}}, ["headers", "1"]),
        ({"headers": {"a": 1}}, ["headers", "'a'", "int"]),
        ({"params": "a=b"}, ["params", "str"]),
        ({"params": {"a": 1}}, ["params", "'a'", "int"]),
        ({"on_error": "retry"}, ["on_error", "str"]),
        ({"backoff_options": 5}, ["backoff_options", "int"]),
        ({"backoff_options": {"max_retries": 1}}, ["backoff_options", "dict"]),
        ({"sse_resilience": "no"}, ["sse_resilience", "str"]),
    ],
)
def test_other_options_have_types(options: Any, words: list[str]) -> None:
    for way in both(**options):
        mistyped(way, *words)


def test_a_transport_has_the_two_methods_of_one() -> None:
    for call in (lambda: stream(URL, transport="http"), lambda: DurableStream(URL, transport=object())):  # type: ignore[arg-type]
        mistyped(call, "transport", "open() and aclose()")


@pytest.mark.parametrize("name", ["bad name", "", "a:b", "a\nb", "\u00e9"])
def test_header_names_are_tokens(name: str) -> None:
    for value in ("x", lambda: "x"):
        for way in both(headers={name: value}):
            refused(way, "header")


@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\0b", "\u20ac"])
def test_header_values_are_one_line_of_latin_1_and_are_not_shown(value: str) -> None:
    for way in both(headers={"x-token": value}):
        refused(way, "x-token")
        with pytest.raises(InvalidArgumentError) as caught:
            way()
        assert value not in str(caught.value)


def test_a_handle_checks_what_it_is_made_with() -> None:
    mistyped(lambda: DurableStream(URL, content_type=5), "content_type")  # type: ignore[arg-type]
    for content_type in ("", "json", "a/b/c d", "a/", "/b", "a b/c", "a/b\nc"):
        refused(lambda content_type=content_type: DurableStream(URL, content_type=content_type), "content_type")
    for content_type in ("a/b", "text/plain; charset=utf-8", "application/vnd.x.y+json"):
        assert DurableStream(URL, content_type=content_type).content_type == content_type
    mistyped(lambda: DurableStream(URL, backoff_options=1), "backoff_options")  # type: ignore[arg-type]
    mistyped(lambda: DurableStream(URL, on_error=1), "on_error")  # type: ignore[arg-type]
    mistyped(lambda: DurableStream(URL, headers=1), "headers")  # type: ignore[arg-type]
    mistyped(lambda: DurableStream(URL, params=1), "params")  # type: ignore[arg-type]


# -- Policies --------------------------------------------------------------------------------------------------------

INFINITE = float("inf")
NOT_A_NUMBER = float("nan")


@pytest.mark.parametrize(
    ("name", "wrong", "fine"),
    [
        ("initial_delay", [0, -1, INFINITE, NOT_A_NUMBER], [0.001, 1, 60.0]),
        ("max_delay", [0, -1, 0.05, INFINITE, NOT_A_NUMBER], [0.1, 1, 3600]),
        ("multiplier", [0, 0.99, -1, INFINITE, NOT_A_NUMBER], [1, 1.0, 2.5]),
        ("max_retries", [-1, 2**53], [0, 1, None]),
        ("max_elapsed", [-1, INFINITE, NOT_A_NUMBER], [0, 0.5, None]),
    ],
)
def test_retry_options_are_checked(name: str, wrong: list[Any], fine: list[Any]) -> None:
    for value in wrong:
        refused(lambda value=value: BackoffOptions(**{name: value}), name, str(value))
    for value in fine:
        assert getattr(BackoffOptions(**{name: value}), name) == value
    for value in (True, "1", b"1", [1]):
        mistyped(lambda value=value: BackoffOptions(**{name: value}), name, repr(value))


def test_the_largest_delay_is_not_below_the_first() -> None:
    refused(lambda: BackoffOptions(initial_delay=2, max_delay=1), "max_delay", "initial_delay (2)", "got 1")
    assert BackoffOptions(initial_delay=2, max_delay=2).max_delay == 2


def test_the_hook_of_failed_attempts_is_callable() -> None:
    mistyped(lambda: BackoffOptions(on_failed_attempt="log"), "on_failed_attempt", "str")  # type: ignore[arg-type]


@pytest.mark.parametrize("multiplier", [1.0, 1.3, 1e300])
def test_ceilings_grow_and_never_overflow(multiplier: float) -> None:
    options = BackoffOptions(multiplier=multiplier)

    ceilings = [options.ceiling(failures) for failures in (1, 2, 10, 1000, 10**9)]

    assert ceilings[0] == 0.1
    assert ceilings == sorted(ceilings)
    assert ceilings[-1] == (0.1 if multiplier == 1 else 60.0)


@pytest.mark.parametrize(
    ("name", "wrong", "fine"),
    [
        ("min_connection_duration", [-1, INFINITE, NOT_A_NUMBER], [0, 2.5]),
        ("max_short_connections", [0, -1], [1, 100]),
        ("backoff_base_delay", [0, -1, 6, INFINITE], [0.001, 5]),
        ("backoff_max_delay", [0, -1, 0.01, INFINITE], [0.1, 600]),
    ],
)
def test_sse_resilience_is_checked(name: str, wrong: list[Any], fine: list[Any]) -> None:
    for value in wrong:
        refused(lambda value=value: SSEResilience(**{name: value}), name.replace("base", "max") if value == 6 else name)
    for value in fine:
        assert getattr(SSEResilience(**{name: value}), name) == value
    for value in (True, "1"):
        mistyped(lambda value=value: SSEResilience(**{name: value}), name, repr(value))


def test_policies_cannot_be_changed_by_accident() -> None:
    with pytest.raises(AttributeError):
        BackoffOptions().max_retries = 5  # type: ignore[misc]
    with pytest.raises(AttributeError):
        SSEResilience().fallback = False  # type: ignore[misc]


# -- The checks themselves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq", ["", " 1", "1 ", "a\nb", "\u20ac"])
def test_a_seq_is_a_header_value(seq: str) -> None:
    refused(lambda: validate.seq(seq))


@pytest.mark.parametrize("seq", [5, 5.0, True, b"5"])
def test_a_seq_that_is_a_number_has_to_be_padded_by_the_caller(seq: Any) -> None:
    mistyped(lambda: validate.seq(seq), "zero-padded", repr(seq))


@pytest.mark.parametrize("seq", ["1", "0000001", "a b", "2024-01-01T00:00:00Z", None])
def test_any_other_seq_is_taken_as_it_is(seq: str | None) -> None:
    assert validate.seq(seq) == seq


@pytest.mark.parametrize(("value", "seconds"), [(0, "0"), (60, "60"), (2**53 - 1, "9007199254740991")])
def test_a_ttl_is_written_in_plain_decimals(value: int, seconds: str) -> None:
    assert validate.lifetime(value, None) == {"stream-ttl": seconds}


def test_an_expiry_is_written_as_rfc_3339() -> None:
    moment = datetime(2030, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)

    assert validate.lifetime(None, moment) == {"stream-expires-at": "2030-01-02T03:04:05.678900+00:00"}
    assert validate.lifetime(None, None) == {}


@pytest.mark.parametrize("offset", ["-1", "now", "0_0", "abc-DEF_1.2~3", "\u00e9", "a+b", "%2F", "a" * 10_000])
def test_any_other_offset_is_opaque(offset: str) -> None:
    assert validate.start(offset, None) == Checkpoint(offset)
    assert validate.start(None, "c") == Checkpoint("-1", "c")
