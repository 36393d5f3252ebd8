"""Bearer tokens in a file, and what they are good for."""

import hashlib
import hmac
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.server import AccessRequest, Allow, Deny, TokenFile, TokenFileError
from durable_streams.server.authorization import Action

from .driver import make_client

pytestmark = pytest.mark.anyio
READER, WRITER, BOTH = "reader-0123456789", "writer-0123456789", "both~0123456789+/=="
CONTENT = f"""
# Who may do what
{READER}  read        /v1/stream/orders /v1/stream/caf%C3%A9/   # the shop
{READER}  read        /v1/stream/rates
{WRITER}  write       /v1/stream/orders
{BOTH}    read,write  /v1/stream
anyone    read        /v1/stream/public

sha256:{hashlib.sha256(b"hashed-0123456789").hexdigest().upper()} write,read /
"""


class Ticks:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(CONTENT)
    return path


def asks(path: str, action: Action, token: str | None = None) -> AccessRequest:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return AccessRequest("GET", path, action, headers, {})


@pytest.mark.parametrize(
    ("token", "action", "path_asked", "verdict"),
    [
        (READER, "read", "/v1/stream/orders", Allow()),
        (READER, "read", "/v1/stream/orders/1/2", Allow()),
        (READER, "read", "/v1/stream/rates/eur", Allow()),
        (READER, "read", "/v1/stream/caf%C3%A9/x", Allow()),
        (READER, "read", "/v1/stream/orders2", Deny(403)),
        (READER, "read", "/v1/stream/orders%2F1", Deny(403)),
        (READER, "read", "/v1/stream", Deny(403)),
        (READER, "read", "/v1/stream/other", Deny(403)),
        (READER, "write", "/v1/stream/orders", Deny(403)),
        (WRITER, "write", "/v1/stream/orders/1", Allow()),
        (WRITER, "read", "/v1/stream/orders/1", Deny(403)),
        (BOTH, "write", "/v1/stream/anything/at/all", Allow()),
        (BOTH, "read", "/v1/stream/__ds/subscriptions/s", Allow()),
        (BOTH, "read", "/metrics", Deny(403)),
        ("hashed-0123456789", "write", "/v1/stream/x", Allow()),
        ("hashed-0123456789", "read", "/metrics", Allow()),
        (None, "read", "/v1/stream/public/x", Allow()),
        ("unknown-0123456789", "read", "/v1/stream/public/x", Allow()),
        (None, "write", "/v1/stream/public/x", Deny(401)),
        (None, "read", "/v1/stream/orders", Deny(401)),
        ("unknown-0123456789", "read", "/v1/stream/orders", Deny(401)),
        (READER[:-1], "read", "/v1/stream/orders", Deny(401)),
        (READER + "0", "read", "/v1/stream/orders", Deny(401)),
        (READER.upper(), "read", "/v1/stream/orders", Deny(401)),
        ("anyone", "write", "/v1/stream/public", Deny(401)),
        (hashlib.sha256(b"hashed-0123456789").hexdigest(), "read", "/v1/stream/x", Deny(401)),
        ("\xe9" * 16, "read", "/v1/stream/orders", Deny(401)),
    ],
)
async def test_a_token_is_good_for_its_paths_and_what_is_below(
    path: Path, token: str | None, action: Action, path_asked: str, verdict: Allow | Deny
) -> None:
    assert TokenFile(path)(asks(path_asked, action, token)) == verdict


async def test_its_repr_tells_no_token(path: Path) -> None:
    assert repr(TokenFile(path)) == f"<TokenFile {path} with 4 tokens>"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("short read /", "a token has 16 to 512 characters"),
        ("with,comma-0123456789 read /", "a token has 16 to 512 characters"),
        ("token-0123456789\u00e9 read /", "a token has 16 to 512 characters"),
        (f"{'x' * 513} read /", "a token has 16 to 512 characters"),
        ("sha256:abc read /", "64 hexadecimal digits"),
        (f"sha256:{'0' * 65} read /", "64 hexadecimal digits"),
        ("token-0123456789", "the second word"),
        ("token-0123456789 admin /", "the second word"),
        ("token-0123456789 read, write /", "the second word"),
        ("token-0123456789 read", "no path"),
        ("token-0123456789 read orders", "must begin with a slash"),
        ("token-0123456789 read /a/../b", "not acceptable"),
        ("token-0123456789 read /a//b", "not acceptable"),
        ("token-0123456789 read /a%2", "not acceptable"),
        ("token-0123456789 read //", "not acceptable"),
    ],
)
async def test_a_wrong_line_is_named_and_no_token_with_it(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# comment\n\n{line}\n", encoding="utf-8")
    with pytest.raises(TokenFileError, match=problem) as failure:
        TokenFile(file)
    assert str(failure.value).startswith(f"{file}:3: ")
    assert "0123456789" not in str(failure.value)


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_file_is_either_read_or_an_error_that_names_it(tmp_path_factory: Any, content: str | bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed"
    file.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    try:
        answer: object = TokenFile(file)(asks("/v1/stream/x", "write"))
    except TokenFileError as error:
        answer = str(error)
    assert answer in (Allow(), Deny(401)) or str(answer).startswith(str(file))


WORDS = st.sampled_from(
    ["anyone", READER, WRITER, "read", "write", "read,write", "/", "/a", "/a/b", "/a/", "#", "x", "\n"]
)


@given(
    st.lists(WORDS, max_size=20),
    st.sampled_from(["/a", "/a/b", "/a/b/c", "/b", "/"]),
    st.sampled_from([READER, WRITER]),
)
def test_who_may_do_something_is_named_by_a_line_with_that_right(
    tmp_path_factory: Any, words: list[str], path: str, token: str
) -> None:
    """Against a reading of the file that shares no code with it."""
    file = tmp_path_factory.getbasetemp() / "worded"
    file.write_text(" ".join(words))
    try:
        tokens = TokenFile(file)
    except TokenFileError:
        return
    lines = [line.split("#")[0].split() for line in " ".join(words).split("\n")]
    for action in ("read", "write"):
        allowed = any(
            line[0] in ("anyone", token) and action in line[1] and (path + "/").startswith(prefix.rstrip("/") + "/")
            for line in lines
            if line
            for prefix in line[2:]
        )
        assert (tokens(asks(path, action, token)) == Allow()) is allowed  # type: ignore[arg-type]


async def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="missing: cannot be read: No such file"):
        TokenFile(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(TokenFileError, match="binary: cannot be read: it is not UTF-8"):
        TokenFile(tmp_path / "binary")
    with pytest.raises(ValueError, match="check_interval"):
        TokenFile(tmp_path / "missing", check_interval=-1)


async def decide(tokens: TokenFile, request: AccessRequest) -> Allow | Deny:
    verdict = tokens(request)
    return verdict if isinstance(verdict, Allow | Deny) else await verdict


async def test_a_change_counts_after_the_next_look(path: Path) -> None:
    ticks = Ticks()
    tokens = TokenFile(path, check_interval=1.0, clock=ticks)
    request = asks("/v1/stream/new", "read", "newcomer-0123456789")
    os.utime(path, (1, 1))
    path.write_text("newcomer-0123456789 read /v1/stream/new\n")
    assert await decide(tokens, request) == Deny(401)
    ticks.now += 1.0
    assert await decide(tokens, request) == Allow()
    assert await decide(tokens, asks("/v1/stream/orders", "read", READER)) == Deny(401)
    path.write_text("# nobody\n")
    ticks.now += 0.99
    assert await decide(tokens, request) == Allow()
    ticks.now += 0.01
    assert await decide(tokens, request) == Deny(401)


async def test_between_two_looks_nothing_waits_and_unchanged_files_are_not_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = Ticks()
    tokens = TokenFile(path, clock=ticks)
    table = tokens._table
    assert isinstance(tokens(asks("/x", "read")), Deny)
    ticks.now += 5
    assert not isinstance(verdict := tokens(asks("/x", "read")), Deny | Allow)
    assert isinstance(tokens(asks("/x", "read")), Deny)
    assert await verdict == Deny(401)
    assert tokens._table is table


async def test_a_change_for_the_worse_is_logged_once_and_the_old_content_stays(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ticks = Ticks()
    tokens = TokenFile(path, clock=ticks)
    request = asks("/v1/stream/orders", "read", READER)
    path.write_text("oops\n")
    for _ in range(3):
        ticks.now += 1
        assert await decide(tokens, request) == Allow()
    assert caplog.text.count("tokens are not renewed") == 1
    path.unlink()
    ticks.now += 1
    assert await decide(tokens, request) == Allow()
    assert "No such file" in caplog.text
    path.write_text(CONTENT.replace(READER, WRITER))
    ticks.now += 1
    assert await decide(tokens, request) == Deny(401)


async def test_tokens_are_compared_in_constant_time_and_looked_up_by_a_keyed_hash(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[Any, Any]] = []
    original = hmac.compare_digest

    def compare(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return original(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    one, other = TokenFile(path), TokenFile(path)
    assert one(asks("/v1/stream/orders", "read", READER)) == Allow()
    digest = hashlib.sha256(READER.encode()).digest()
    assert compared == [(digest, digest)]
    assert not one._table.tokens.keys() & other._table.tokens.keys()
    assert not one._table.tokens.keys() & {digest, READER.encode()}


async def test_a_server_answers_by_the_file(path: Path) -> None:
    client = make_client(authorize=TokenFile(path))
    owner = {"authorization": f"Bearer {BOTH}"}
    assert (await client.put("orders/1", "text/plain", b"abc", **owner)).status == 201
    assert (await client.get("orders/1", authorization=f"Bearer {READER}")).body == b"abc"
    assert (await client.get("orders/1", authorization=f"Bearer {WRITER}")).status == 403
    assert (await client.get("orders/1")).status == 401
    assert (await client.get("missing")).status == 401
    assert (await client.get("public/missing")).status == 404
