"""The list of checks."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio

from .probe import Bench, Reply

Check = Callable[[Bench], Awaitable[None]]


@dataclass(frozen=True)
class Entry:
    check: Check
    versions: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.check.__name__


CHECKS: list[Entry] = []


def check(*versions: str) -> Callable[[Check], Check]:
    """Register a check for these HTTP versions."""

    def register(function: Check) -> Check:
        CHECKS.append(Entry(function, versions or ("1.1",)))
        return function

    return register


async def until(question: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until the answer is true: for what a server does in the background."""
    with anyio.fail_after(15):
        while not (answer := await question()):
            await anyio.sleep(0.02)
    return answer


def expect(reply: Reply, status: int, code: str | None = None) -> Reply:
    """The reply, which has to be this one."""
    assert reply.status == status, (reply.status, reply.body[:300])
    if code is not None:
        assert reply.code == code, reply.body[:300]
        assert isinstance(reply.json["message"], str)
    return reply
