"""Endpoints: S2 1.4."""

import pytest

from durable_streams import InvalidArgumentError
from durable_streams.s2 import S2, Endpoints


def test_the_hosted_service_is_the_default() -> None:
    endpoints = Endpoints()

    assert endpoints.account_url("/basins") == "https://a.s2.dev/v1/basins"
    assert endpoints.basin_url("my-basin", "/streams") == "https://my-basin.b.s2.dev/v1/streams"
    assert endpoints.basin_headers("my-basin") == {}


def test_one_origin_for_everything_names_the_basin_in_a_header() -> None:
    endpoints = Endpoints.shared("http://localhost:8080")

    assert endpoints.account_url("/basins") == "http://localhost:8080/v1/basins"
    assert endpoints.basin_url("my-basin", "/streams") == "http://localhost:8080/v1/streams"
    assert endpoints.basin_headers("my-basin") == {"s2-basin": "my-basin"}


@pytest.mark.parametrize(
    ("given", "complete"),
    [
        ("a.s2.dev", "https://a.s2.dev/v1"),
        ("localhost:8080", "https://localhost:8080/v1"),
        ("https://a.s2.dev/", "https://a.s2.dev/v1"),
        ("https://proxy.example/s2/v1/", "https://proxy.example/s2/v1"),
        ("https://[::1]:8443", "https://[::1]:8443/v1"),
    ],
)
def test_scheme_and_path_are_optional(given: str, complete: str) -> None:
    assert Endpoints.shared(given).account == complete


@pytest.mark.parametrize(
    ("account", "basin", "words"),
    [
        ("ftp://a", "ftp://a", "http or https"),
        ("http://a/v1?x=1", "http://a", "query"),
        ("http://a#f", "http://a", "fragment"),
        ("http://a", "https://{basin}.b", "same scheme"),
        ("http://{basin}.a", "http://a", "times"),
        ("http://a", "http://{basin}.{basin}", "2 times"),
        ("http://", "http://a", "http or https"),
        ("http://a b", "http://a", "http or https"),
        ("http://a", "http://{name}.b", "http or https"),
        ("http://[::1", "http://a", "no URL"),
    ],
)
def test_what_is_no_endpoint_is_refused(account: str, basin: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        Endpoints(account, basin)


def test_user_information_is_refused_without_being_shown() -> None:
    with pytest.raises(InvalidArgumentError, match="user information") as caught:
        Endpoints.shared("http://me:hunter2@localhost")

    assert "hunter2" not in str(caught.value)


def test_the_environment_names_both_endpoints_or_none() -> None:
    both = {"S2_ACCOUNT_ENDPOINT": "http://a:1", "S2_BASIN_ENDPOINT": "http://{basin}.b:1"}

    assert Endpoints.from_env(both) == Endpoints("http://a:1", "http://{basin}.b:1")
    assert Endpoints.from_env({}) == Endpoints()
    assert Endpoints.from_env({"S2_ACCOUNT_ENDPOINT": "", "S2_BASIN_ENDPOINT": ""}) == Endpoints()
    for name in both:
        with pytest.raises(InvalidArgumentError, match="is not set: set both"):
            Endpoints.from_env({name: both[name]})


def test_the_environment_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2_ACCESS_TOKEN", "sesame-open")
    monkeypatch.setenv("S2_ACCOUNT_ENDPOINT", "http://localhost:8080")
    monkeypatch.setenv("S2_BASIN_ENDPOINT", "http://localhost:8080")

    client = S2.from_env(compression="gzip")

    assert client.endpoints == Endpoints.shared("http://localhost:8080")
    assert repr(client) == "<S2 http://localhost:8080/v1>"


def test_without_a_token_in_the_environment_there_is_no_client() -> None:
    with pytest.raises(InvalidArgumentError, match="S2_ACCESS_TOKEN is not set"):
        S2.from_env({})
