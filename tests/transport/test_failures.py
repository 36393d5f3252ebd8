"""Foreign errors become ours, by one table for each backend."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
import httpcore2
import pytest
from aiohttp import http_exceptions

from durable_streams import DurableStreamError, IncompleteBodyError, InvalidArgumentError, NetworkError, Timeouts
from durable_streams._transport import aiohttp as ours_for_aiohttp
from durable_streams._transport import trio as ours_for_httpcore2
from durable_streams._transport.deadline import Deadline
from durable_streams._transport.failures import Row, tls_error, translate
from durable_streams._transport.headers import idle_seconds


def error_classes(module: Any, base: type[BaseException]) -> Iterator[type[BaseException]]:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, base):
            yield value


@pytest.mark.parametrize(
    ("table", "foreign"),
    [
        (ours_for_aiohttp.ERRORS, [*error_classes(aiohttp.client_exceptions, aiohttp.ClientError)]),
        (ours_for_aiohttp.ERRORS, [*error_classes(http_exceptions, http_exceptions.HttpProcessingError)]),
        (ours_for_httpcore2.ERRORS, [*error_classes(httpcore2, httpcore2.NetworkError)]),
        (ours_for_httpcore2.ERRORS, [*error_classes(httpcore2, httpcore2.ProtocolError)]),
        (ours_for_httpcore2.ERRORS, [*error_classes(httpcore2, httpcore2.TimeoutException)]),
        (ours_for_httpcore2.ERRORS, [httpcore2.ProxyError, httpcore2.UnsupportedProtocol]),
        (ours_for_httpcore2.BODY_ERRORS, [*error_classes(httpcore2, httpcore2.ProtocolError)]),
    ],
)
def test_every_error_of_the_http_library_has_a_row(table: Sequence[Row], foreign: list[type[BaseException]]) -> None:
    assert foreign
    abstract = {httpcore2.ProtocolError}  # only its two children are raised
    for kind in foreign:
        assert kind in abstract or any(issubclass(kind, row[0]) for row in table), kind


@pytest.mark.parametrize("table", [ours_for_aiohttp.ERRORS, ours_for_httpcore2.ERRORS, ours_for_httpcore2.BODY_ERRORS])
def test_no_row_is_hidden_by_one_before_it(table: Sequence[Row]) -> None:
    for number, (foreign, *_) in enumerate(table):
        repeated = [row[0] for row in table[:number] if issubclass(foreign, row[0]) and row[0] is not foreign]
        assert not repeated, f"{foreign} is already caught by {repeated}"


TABLE: tuple[Row, ...] = (
    (KeyError, NetworkError, "it broke"),
    (EOFError, IncompleteBodyError, "it ended"),
    (ValueError, InvalidArgumentError, "it is wrong"),
)


def test_a_row_gives_class_message_phase_and_url() -> None:
    error = translate(TABLE, EOFError("soon"), "https://user:pw@h/s?token=1", phase="body")

    assert type(error) is IncompleteBodyError
    assert str(error) == "https://h/s?token=...: it ended (soon)"
    assert error.phase == "body"
    assert error.url == "https://h/s?token=..."
    assert isinstance(translate(TABLE, ValueError(), "http://h", phase="sent"), InvalidArgumentError)
    assert isinstance(translate(TABLE, ValueError(), "http://h", phase="sent"), DurableStreamError)


def test_an_error_without_a_row_is_a_bug_and_raised_as_it_is() -> None:
    bug = ZeroDivisionError("bug")

    with pytest.raises(ZeroDivisionError) as raised:
        translate(TABLE, bug, "http://h", phase="sent")

    assert raised.value is bug


def test_a_tls_error_is_found_among_the_causes() -> None:
    tls = ssl.SSLError(1, "wrong version number")
    middle, outer = OSError("middle"), RuntimeError("outer")
    middle.__cause__, outer.__context__ = tls, middle

    assert tls_error(outer) is tls
    assert tls_error(OSError("other")) is None
    assert tls_error(None) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 4.0),
        ("timeout=5", 4.0),
        ("timeout=4", 3.0),
        ("max=10, Timeout = 3", 2.0),
        ('timeout="3"', 2.0),
        ("timeout=1", 0.0),
        ("timeout=0", 0.0),
        ("timeout=", 4.0),
        ("timeout=-1", 4.0),
        ("xtimeout=1", 4.0),
        ("timeout=99999999999999999999", 4.0),
    ],
)
def test_idle_time_is_a_second_less_than_the_server_says(value: str | None, seconds: float) -> None:
    assert idle_seconds({} if value is None else {"keep-alive": value}, 4.0) == seconds


@pytest.mark.anyio
async def test_a_deadline_says_which_limit_passed() -> None:
    timeouts = Timeouts(connect=1, write=2.5, read=None)
    deadline = Deadline(timeouts)

    assert "no connection within 1 s" in str(deadline.error("http://h"))
    assert deadline.phase == "connect"
    deadline.move("write")
    assert "did not take the request within 2.5 s" in str(deadline.error("http://h"))
    assert deadline.phase == "sent"
    deadline.stop()
    assert "the transport was closed" in str(deadline.error("http://h"))
