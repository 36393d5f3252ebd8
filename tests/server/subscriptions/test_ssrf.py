"""Webhooks do not lead into our own network, whatever they are spelled like (server 15.5)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.server.subscriptions.ssrf import REJECTED, Policy, Target, UrlRejected

PRODUCTION = Policy()
DEVELOPMENT = Policy(allow_insecure=True)

PRIVATE_ADDRESSES = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "127.0.0.1", "127.255.255.254"),
    *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.0.1"),
    *("198.18.0.1", "198.51.100.1", "203.0.113.9", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::7f00:1", "::8.8.8.8%1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12::1", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:a00:1", "::ffff:169.254.169.254", "2002:7f00:1::", "2002:a00:1::1"),
    *("64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::a00:1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    *("2001:db8::1", "100::1", "3fff::1", "5f00::1", "4000::1"),
]
PUBLIC_ADDRESSES = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]


def url_for(address: str) -> str:
    return f"https://[{address}]/hook" if ":" in address else f"https://{address}/hook"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://hooks.example/a?b=c", Target(True, "hooks.example", 443, "hooks.example", "/a?b=c")),
        ("https://hooks.example", Target(True, "hooks.example", 443, "hooks.example", "/")),
        ("https://hooks.example?x", Target(True, "hooks.example", 443, "hooks.example", "/?x")),
        ("HTTPS://Hooks.Example:8443/A", Target(True, "hooks.example", 8443, "hooks.example:8443", "/A")),
        ("https://8.8.8.8/", Target(True, "8.8.8.8", 443, "8.8.8.8", "/")),
        ("https://[2606:4700::1111]:444/", Target(True, "2606:4700::1111", 444, "[2606:4700::1111]:444", "/")),
        (
            "https://xn--bcher-kva.example/%C3%BC",
            Target(True, "xn--bcher-kva.example", 443, "xn--bcher-kva.example", "/%C3%BC"),
        ),
        ("https://my_host.example/", Target(True, "my_host.example", 443, "my_host.example", "/")),
    ],
)
def test_public_https_is_allowed(url: str, target: Target) -> None:
    assert PRODUCTION.check_url(url) == target
    assert DEVELOPMENT.check_url(url) == target


@pytest.mark.parametrize("policy", [PRODUCTION, DEVELOPMENT], ids=["production", "development"])
@pytest.mark.parametrize(
    "url",
    [
        # Not https
        "http://hooks.example/",
        "ftp://hooks.example/",
        "file:///etc/passwd",
        "//hooks.example/",
        "hooks.example",
        "",
        "https:hooks.example",
        "https:/hooks.example",
        "https:///path",
        "http://10.0.0.1/hook",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://app.localhost/",
        "http://localhost.example/",
        "http://128.0.0.1/",
        # User information, fragments
        "https://user@hooks.example/",
        "https://user:password@hooks.example/",
        "https://hooks.example@127.0.0.1/",
        "https://127.0.0.1#@hooks.example/",
        "https://hooks.example/#fragment",
        "https://hooks.example/#",
        # Local names
        "https://localhost/",
        "https://LOCALHOST/",
        "https://app.localhost/",
        # Other spellings of 127.0.0.1 and friends
        "https://2130706433/",
        "https://017700000001/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://127.0.1/",
        "https://127.000.000.001/",
        "https://0/",
        "https://0x/",
        "https://127.0.0.0x1/",
        "https://example.1/",
        "https://1.2.3.4.5/",
        "https://256.1.1.1/",
        "https://127.0.0.1./",
        "https://localhost./",
        "https://hooks.example./",
        "https://１２７.0.0.1/",  # noqa: RUF001
        "https://127。0。0。1/",
        "https://ⓛocalhost/",
        "https://%31%32%37.0.0.1/",
        "https://127.0.0.1%00.example/",
        # IPv6
        "https://[fe80::1%25eth0]/",
        "https://[::ffff:7f00:1]/",
        "https://[::1]/",
        "https://[1.2.3.4]/",
        "https://[::g]/",
        "https://[]/",
        "https://::1/",
        "https://[8.8.8.8]x/",
        # Ports
        "https://hooks.example:0/",
        "https://hooks.example:65536/",
        "https://hooks.example:/",
        "https://hooks.example:+80/",
        "https://hooks.example:８0/",  # noqa: RUF001
        # What parsers disagree about
        "https://hooks.example\\@127.0.0.1/",
        "https:\\\\hooks.example/",
        "https://hooks.example/a b",
        "https://hooks.example/\r\nHost: x",
        "https://hooks.example/\n",
        "https://hooks.example/%",
        "https://hooks.example/%zz",
        "https://hooks.example/ü",
        "https://hooks.example /",
        " https://hooks.example/",
        "https://hooks.example/\x00",
        "https://a..example/",
        "https://.example/",
        "https://-a.example/",
        "https://a-.example/",
        f"https://{'a' * 64}.example/",
        f"https://{'a.' * 127}example/",
        f"https://hooks.example/{'a' * 2048}",
    ],
)
def test_everything_else_is_rejected_in_the_same_words(url: str, policy: Policy) -> None:
    with pytest.raises(UrlRejected) as caught:
        policy.check_url(url)
    assert str(caught.value) == REJECTED


@pytest.mark.parametrize(
    "url", ["http://localhost/", "http://localhost:4000/x", "http://127.0.0.1:80/", "http://127.9.8.7/"]
)
def test_http_to_this_machine_is_for_development(url: str) -> None:
    assert not DEVELOPMENT.check_url(url).tls
    with pytest.raises(UrlRejected):
        PRODUCTION.check_url(url)


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "https://localhost/", "http://[::1]/", "http://192.168.0.1/"])
def test_development_opens_nothing_but_http_to_this_machine(url: str) -> None:
    with pytest.raises(UrlRejected):
        DEVELOPMENT.check_url(url)


@pytest.mark.parametrize("address", [address for address in PRIVATE_ADDRESSES if "%" not in address])
def test_an_address_that_is_not_public_is_rejected_in_the_url(address: str) -> None:
    with pytest.raises(UrlRejected):
        PRODUCTION.check_url(url_for(address))


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_a_public_address_is_allowed_in_the_url(address: str) -> None:
    assert PRODUCTION.check_url(url_for(address)).host == address


def test_a_list_of_hosts_restricts_further() -> None:
    policy = Policy(allowed_hosts={"hooks.example"})

    policy.check_url("https://HOOKS.example/")
    with pytest.raises(UrlRejected):
        policy.check_url("https://sub.hooks.example/")
    with pytest.raises(UrlRejected):
        Policy(allowed_hosts={"localhost"}).check_url("https://localhost/")


@given(st.text())
def test_any_text_is_allowed_or_rejected_and_nothing_else(text: str) -> None:
    for url in (text, f"https://{text}", f"https://{text}/", f"http://{text}:80/", f"https://a.example/{text}"):
        try:
            target = DEVELOPMENT.check_url(url)
        except UrlRejected:
            continue
        assert target.path.isascii()
        assert target.path.isprintable()
        assert " " not in target.authority + target.path


# What names resolve to


class Resolver:
    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self.addresses


TARGET = PRODUCTION.check_url("https://hooks.example:8443/")


@pytest.mark.anyio
async def test_a_name_with_public_addresses_only_is_allowed() -> None:
    resolver = Resolver(*PUBLIC_ADDRESSES)

    assert await PRODUCTION.resolve(TARGET, resolver) == PUBLIC_ADDRESSES
    assert resolver.asked == [("hooks.example", 8443)]


@pytest.mark.anyio
async def test_one_address_that_is_not_public_rejects_the_name() -> None:
    for address in (*PRIVATE_ADDRESSES, "nonsense", ""):
        for found in ([address], ["8.8.8.8", address], [address, "8.8.8.8"]):
            with pytest.raises(UrlRejected):
                await PRODUCTION.resolve(TARGET, Resolver(*found))


@pytest.mark.anyio
async def test_a_name_without_addresses_is_an_error_of_the_network() -> None:
    with pytest.raises(OSError, match="no addresses"):
        await PRODUCTION.resolve(TARGET, Resolver())


@pytest.mark.anyio
async def test_an_address_is_not_looked_up() -> None:
    resolver = Resolver()

    assert await PRODUCTION.resolve(PRODUCTION.check_url("https://8.8.8.8/"), resolver) == ["8.8.8.8"]
    assert await DEVELOPMENT.resolve(DEVELOPMENT.check_url("http://127.0.0.9/"), resolver) == ["127.0.0.9"]
    assert resolver.asked == []


@pytest.mark.anyio
async def test_localhost_is_this_machine_whatever_a_resolver_says() -> None:
    resolver = Resolver("8.8.8.8")

    found = await DEVELOPMENT.resolve(DEVELOPMENT.check_url("http://localhost:4000/"), resolver)

    assert found == ["127.0.0.1", "::1"]
    assert resolver.asked == []


@pytest.mark.anyio
async def test_development_does_not_let_names_resolve_to_private_addresses() -> None:
    with pytest.raises(UrlRejected):
        await DEVELOPMENT.resolve(TARGET, Resolver("127.0.0.1"))


@pytest.mark.anyio
async def test_the_resolver_of_the_system_is_asked() -> None:
    with pytest.raises(OSError):  # noqa: PT011  # .invalid never resolves; the words are the system's
        await PRODUCTION.resolve(PRODUCTION.check_url("https://hooks.invalid/"))
