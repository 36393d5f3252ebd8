"""Offsets, timestamps and cursors: the small values of the wire."""

import random
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.server import Instant, format_offset, parse_offset
from durable_streams.server.cursors import EPOCH, current_cursor, next_cursor

NOW = 1_788_264_000.0  # 2026-09-01T12:00:00Z


@given(st.integers(0, 10**32 - 1))
def test_offsets_survive_their_token(position: int) -> None:
    assert parse_offset(format_offset(position)) == position


@given(st.integers(0, 10**32 - 1), st.integers(0, 10**32 - 1))
def test_tokens_sort_like_positions(one: int, other: int) -> None:
    assert (format_offset(one) < format_offset(other)) == (one < other)


def test_a_token_has_two_numbers_of_sixteen_digits() -> None:
    assert format_offset(18) == "0000000000000000_0000000000000018"
    assert parse_offset("0000000000000000_0000000000000000") == 0
    assert parse_offset("9999999999999999_9999999999999999") == 10**32 - 1


@pytest.mark.parametrize(
    "token",
    [
        "",
        "-1",
        "now",
        "0",
        "0_0",
        "18",
        "ffffffffffffffff",
        "0000000000000000_000000000000001",
        "0000000000000000_00000000000000018",
        "0000000000000000_0000000000000018\n",
        " 0000000000000000_0000000000000018",
        "0000000000000000-0000000000000018",
        "0000000000000000_000000000000001a",
        "0000000000000000_+000000000000018",
        "0000000000000000_00000000000000\u0661\u0668",
    ],
)
def test_anything_else_is_no_token(token: str) -> None:
    assert parse_offset(token) is None


@pytest.mark.parametrize(
    ("text", "timestamp"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01t00:00:01z", 1.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("1969-12-31T23:30:00-00:30", 0.0),
        ("2026-09-01T12:00:00.25Z", NOW + 0.25),
        ("2026-09-01T12:00:00.2500000000000000000000Z", NOW + 0.25),
        ("2016-12-31T23:59:60Z", 1483228800.0),
        ("2024-02-29T00:00:00Z", 1709164800.0),
        ("9999-12-31T23:59:59-23:59", 253402387139.0),
    ],
)
def test_timestamps_are_read_by_rfc_3339(text: str, timestamp: float) -> None:
    instant = Instant.parse(text)
    assert instant is not None
    assert instant.timestamp == timestamp
    assert instant.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2099",
        "Jan 1 2099",
        "2026-02-30T00:00:00Z",
        "2025-02-29T00:00:00Z",
        "2026-09-01",
        "2026-09-01T12:00:00",
        "2026-09-01 12:00:00Z",
        "2026-09-01T12:00Z",
        "20260901T120000Z",
        "2026-W36-2T12:00:00Z",
        "2026-09-01T24:00:00Z",
        "2026-09-01T12:60:00Z",
        "2026-09-01T12:00:61Z",
        "2026-09-01T12:00:00.Z",
        "2026-09-01T12:00:00,5Z",
        "2026-09-01T12:00:00+0100",
        "2026-09-01T12:00:00+24:00",
        "2026-09-01T12:00:00+01:60",
        "2026-09-01T12:00:00Z\n",
        "0000-01-01T00:00:00Z",
        "\u0662026-09-01T12:00:00Z",
    ],
)
def test_other_timestamps_are_refused(text: str) -> None:
    assert Instant.parse(text) is None


def test_equal_moments_are_equal_however_they_are_written() -> None:
    one, other = Instant.parse("2026-09-01T12:00:00.50Z"), Instant.parse("2026-09-01T14:00:00.5+02:00")
    assert one == other
    assert one != Instant.parse("2026-09-01T12:00:00.500000000000000000001Z")


@given(st.datetimes(min_value=datetime(1, 1, 2), timezones=st.timezones()))
def test_timestamps_agree_with_python(moment: datetime) -> None:
    text = moment.isoformat()
    instant = Instant.parse(text)
    seconds = (moment.utcoffset() or datetime.min - datetime.min).total_seconds()
    if seconds % 60:  # RFC 3339 knows no seconds in zones
        assert instant is None
    else:
        assert instant is not None
        assert instant.timestamp == pytest.approx(moment.timestamp(), abs=1e-5)


def test_cursors_count_intervals_of_twenty_seconds() -> None:
    assert current_cursor(EPOCH) == 0
    assert current_cursor(EPOCH + 19.9) == 0
    assert current_cursor(EPOCH + 20) == 1
    assert current_cursor(NOW) == 2991600


@pytest.mark.parametrize(
    "requested", [None, "", "x", "-1", "2991599", "0", "3991601", "9" * 30, "2991600.5", "\u0662", "2991601\n"]
)
def test_a_cursor_that_is_absent_old_or_absurd_gives_the_present_interval(requested: str | None) -> None:
    assert next_cursor(requested, NOW, random.Random(1)) == 2991600


@given(st.integers(2991600, 3991600), st.integers())
def test_a_cursor_that_is_ahead_is_exceeded_by_at_most_an_hour(requested: int, seed: int) -> None:
    answer = next_cursor(str(requested), NOW, random.Random(seed))
    assert 1 <= answer - requested <= 180
