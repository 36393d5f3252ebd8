"""Patterns over stream paths (server 15.2)."""

import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.server.subscriptions.glob import Glob


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("events/*", "events/a"),
        ("*", "a"),
        ("**", "a"),
        ("**", "a/b/c"),
        ("events/**", "events"),
        ("events/**", "events/a/b"),
        ("**/log", "log"),
        ("**/log", "a/b/log"),
        ("a/**/z", "a/z"),
        ("a/**/z", "a/b/z/z"),
        ("a/*/**", "a/b"),
        ("**/a/*/c/**", "x/a/a/b/c/c"),
        ("a/%2A", "a/*"),
        ("a/%2a", "a/%2A"),
        ("foo*", "foo*"),
        ("a/b%2Fc", "a/b%2Fc"),
        ("a:b", "a%3Ab"),
    ],
)
def test_a_pattern_matches(pattern: str, path: str) -> None:
    assert Glob(pattern).matches(path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("events/*", "events"),
        ("events/*", "events/a/b"),
        ("events/*", "eventsx/a"),
        ("*", "a/b"),
        ("a/**/z", "a/b"),
        ("a/*/**", "a"),
        ("a/%2A", "a/b"),
        ("foo*", "foobar"),
        ("a/b", "a%2Fb"),
        ("a/*", "a/b/c"),
        ("%2A%2A", "a/b"),
        ("a", "A"),
    ],
)
def test_a_pattern_does_not_match(pattern: str, path: str) -> None:
    assert not Glob(pattern).matches(path)


def naive(segments: list[str], parts: list[str]) -> bool:
    if not segments:
        return not parts
    if segments[0] == "**":
        return any(naive(segments[1:], parts[skip:]) for skip in range(len(parts) + 1))
    return bool(parts) and segments[0] in ("*", parts[0]) and naive(segments[1:], parts[1:])


def test_matching_agrees_with_the_definition_on_all_short_patterns() -> None:
    paths = [list(path) for length in (1, 2, 3, 4) for path in product("ab", repeat=length)]
    for length in (1, 2, 3, 4):
        for segments in product(("a", "b", "*", "**"), repeat=length):
            glob = Glob("/".join(segments))
            for path in paths:
                assert glob.matches("/".join(path)) == naive(list(segments), path), (segments, path)


@given(st.lists(st.sampled_from(["a", "b.c", "*", "**", "%2A"]), min_size=1), st.lists(st.sampled_from(["a", "b.c"])))
def test_what_matches_begins_with_the_prefix(segments: list[str], parts: list[str]) -> None:
    glob = Glob("/".join(segments))

    if parts and glob.matches("/".join(parts)):
        assert "/".join(parts).startswith(glob.prefix)


def test_many_wildcards_do_not_explode() -> None:
    glob = Glob("/".join(["**", "a"] * 100 + ["b"]))

    started = time.process_time()
    assert not glob.matches("/".join(["a"] * 500))
    assert time.process_time() - started < 5  # the naive search would take longer than the universe has been around
