"""Bearer tokens and what they are good for, in a file.

One rule a line, and `#` begins a comment:

    # token                  rights      paths
    k3Yp-71cA_qW8-eXample    read,write  /v1/stream/orders
    k3Yp-71cA_qW8-eXample    read        /v1/stream/prices /v1/stream/rates
    sha256:9f86d081884c7d65..  read      /
    anyone                   read        /v1/stream/public

A path covers itself and everything below it, by whole segments: `/v1/stream/orders` is not about `/v1/stream/orders2`.
Instead of a token its SHA-256 in hexadecimal may stand there, so that the file is worth nothing to who reads it. The
word `anyone` is about everybody, with or without a token.

How a token is compared: the file's tokens are kept under a keyed hash of their SHA-256, with a key that this process
drew, and looked up by the same hash of what was sent. How long that takes depends on hashes that nobody outside can
know or steer. What was found is then compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio.to_thread

from .._core.wire import normalize_path
from .authorization import AccessRequest, Action, Allow, Deny, Verdict

logger: logging.Logger = logging.getLogger("durable_streams.server.authorization")

_ALLOW = Allow()
_UNKNOWN = Deny(401)
_FORBIDDEN = Deny(403)
_ANYONE = "anyone"
_HASHED = "sha256:"
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]{16,512}=*")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
# What tells one content of a file from another: time of its change, size, inode.
_Stamp: TypeAlias = tuple[int, int, int]
_RIGHTS: dict[str, tuple[Action, ...]] = {
    "read": ("read",),
    "write": ("write",),
    "read,write": ("read", "write"),
    "write,read": ("read", "write"),
}


class TokenFileError(ValueError):
    """A token file cannot be read, or a line of it is wrong. The message names file and line, and no token."""


@dataclass(slots=True)
class _Rules:
    """What one token, or everybody, may do: the paths by action, each with a slash at its end."""

    digest: bytes = b""
    paths: dict[Action, set[str]] = field(default_factory=lambda: {"read": set(), "write": set()})

    def allow(self, action: Action, path: str) -> bool:
        """Whether a path, or one above it, is in the rules."""
        paths = self.paths[action]
        if not paths:
            return False
        path += "/"
        end = 0
        while end := path.find("/", end) + 1:
            if path[:end] in paths:
                return True
        return False


@dataclass(frozen=True, slots=True)
class _Table:
    """The content of a file. `tokens`: keyed hash -> rules."""

    key: bytes
    anyone: _Rules
    tokens: dict[bytes, _Rules]

    def index(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self.key, digest_size=32).digest()

    def find(self, token: str) -> _Rules | None:
        digest = hashlib.sha256(token.encode("latin-1", "backslashreplace")).digest()
        rules = self.tokens.get(self.index(digest))
        return rules if rules is not None and hmac.compare_digest(rules.digest, digest) else None


class TokenFile:
    """An authorizer that knows bearer tokens from a file, see the module for its form.

    Who sends no token, or an unknown one, is answered with 401 unless `anyone` may; who may not do it with 403. A
    change of the file counts from the next request after `check_interval`. Should it be unreadable then, or wrong,
    that is logged as an error and the last good content goes on to count: replace it by `rename`, and look at the log.

    Args:
        path: The file.
        check_interval: Seconds between two looks whether it has changed.
        clock: Monotonic time in seconds.

    Raises:
        TokenFileError: if the file cannot be read, or a line of it is wrong.
        ValueError: if `check_interval` is negative.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        check_interval: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not check_interval >= 0:
            raise ValueError(f"check_interval must not be negative, got {check_interval!r}")
        self._path = os.fspath(path)
        self._interval = check_interval
        self._clock = clock
        self._check_at = clock() + check_interval
        self._problem = ""
        content = _load(self._path, None)
        assert content is not None
        self._stamp, self._table = content

    def __repr__(self) -> str:
        return f"<TokenFile {self._path} with {len(self._table.tokens)} tokens>"

    def __call__(self, request: AccessRequest) -> Verdict | Awaitable[Verdict]:
        """Decide; waits only when it is time to look at the file."""
        now = self._clock()
        if now < self._check_at:
            return self._decide(request)
        self._check_at = now + self._interval
        return self._look_and_decide(request)

    async def _look_and_decide(self, request: AccessRequest) -> Verdict:
        try:
            found = await anyio.to_thread.run_sync(_load, self._path, self._stamp)
        except TokenFileError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                logger.error("tokens are not renewed: %s", error)
        else:
            self._problem = ""
            if found is not None:
                self._stamp, self._table = found
                logger.info("tokens renewed path=%s tokens=%d", self._path, len(self._table.tokens))
        return self._decide(request)

    def _decide(self, request: AccessRequest) -> Verdict:
        table = self._table
        if table.anyone.allow(request.action, request.path):
            return _ALLOW
        token = request.token
        rules = None if token is None else table.find(token)
        if rules is None:
            return _UNKNOWN
        return _ALLOW if rules.allow(request.action, request.path) else _FORBIDDEN


def _load(path: str, known: _Stamp | None) -> tuple[_Stamp, _Table] | None:
    """Read a file, unless it is still the known one; then None."""
    try:
        with open(path, encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == known:
                return None
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise TokenFileError(f"{path}: cannot be read: {reason}") from error
    table = _Table(secrets.token_bytes(32), _Rules(), {})
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            try:
                _add(table, words)
            except ValueError as error:
                raise TokenFileError(f"{path}:{number}: {error}") from None
    return stamp, table


def _add(table: _Table, words: list[str]) -> None:
    """Enter one line.

    Raises:
        ValueError: if it is wrong; the text says how.
    """
    who, rights, *paths = (*words, "", "")[: max(len(words), 2)]
    actions = _RIGHTS.get(rights)
    if actions is None:
        raise ValueError("the second word must be read, write or read,write")
    if not paths:
        raise ValueError("no path: write / for all of them")
    rules = _rules_of(table, who)
    for path in paths:
        normal = "" if path == "/" else normalize_path(path.rstrip("/").encode())
        if normal is None:
            raise ValueError("a path is not acceptable: it must begin with a slash, as in /v1/stream/orders")
        for action in actions:
            rules.paths[action].add(f"{normal}/")


def _rules_of(table: _Table, who: str) -> _Rules:
    if who == _ANYONE:
        return table.anyone
    if who.startswith(_HASHED):
        if not _DIGEST.fullmatch(who, len(_HASHED)):
            raise ValueError("sha256: must be followed by 64 hexadecimal digits")
        digest = bytes.fromhex(who[len(_HASHED) :])
    elif _TOKEN.fullmatch(who):
        digest = hashlib.sha256(who.encode()).digest()
    else:
        raise ValueError("a token has 16 to 512 characters: letters, digits and -._~+/=")
    return table.tokens.setdefault(table.index(digest), _Rules(digest))
