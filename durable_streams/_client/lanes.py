"""Lanes: the tasks that do what a producer's core asks for.

A lane asks the core what to do, does it and reports. Idle lanes stand on a stack, each with an event of its own, so
that one piece of work wakes one lane. A woken lane that has not asked yet will see everything that is to be done, so
there is at most one of these; when it gets work and leaves some, it wakes the next.

There is one lane more than there may be requests, so that a callback of the user, which runs in the lane whose report
caused it, stops nobody.

Two scopes per lane: one around its waiting, which ends requests and rests at once; one around its life, which also ends
a callback that takes too long. Callbacks may end the producer themselves: a lane does not wait for itself.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from .._core.exchange import Failure, Head
from .._core.producer import ProducerSession
from .._core.producer_values import Asked, Outcome, Send, Wait
from .._core.status_errors import MAX_ERROR_BODY
from ..errors import DurableStreamError, NetworkError
from .answer import open_answer
from .context import Context
from .notices import Notices


class _Lane:
    __slots__ = ("leaving", "life", "task_id", "work")

    def __init__(self, *, shield: bool) -> None:
        self.task_id = anyio.get_current_task().id
        self.life = anyio.CancelScope(shield=shield)
        self.work = anyio.CancelScope()
        self.leaving = False


class Lanes:
    """The lanes of one producer.

    Args:
        session: The core.
        context: Makes requests of what it says.
        notices: Tells the user.
        on_outcomes: Called with outcomes before the user is told.
        end: Ends the producer; awaited by a lane when nothing is left to do after `finish`, or when the caller's task
            group is cancelled (with True).

    Attributes:
        requests: Requests made so far.
    """

    def __init__(
        self,
        session: ProducerSession,
        context: Context,
        notices: Notices,
        *,
        on_outcomes: Callable[[list[Outcome]], None],
        end: Callable[[bool], Awaitable[None]],
    ) -> None:
        self.requests = 0
        self._session = session
        self._context = context
        self._notices = notices
        self._on_outcomes = on_outcomes
        self._end = end
        self._finishing = False
        self._ending = False
        self._idle: list[anyio.Event] = []
        self._woken = False
        self._lanes: set[_Lane] = set()
        self._count = 0  # begun or about to begin, and not gone
        self._changed = anyio.Event()
        self._recovering = anyio.Lock()
        self._mended: dict[object, int] = {}

    # -- Life ----------------------------------------------------------------------------------------------

    async def start(self, task_group: Any, count: int, *, shield: bool) -> None:
        """Start so many lanes and wait until they have begun.

        Args:
            task_group: Anything with `start_soon`.
            count: How many.
            shield: Whether cancelling the group leaves them alone.
        """
        for _ in range(count):
            task_group.start_soon(self._run, shield)
            self._count += 1
        while len(self._lanes) < count and not self._ending:
            await self._changed.wait()

    def finish(self) -> None:
        """End the producer as soon as nothing is left to do."""
        self._finishing = True
        self.wake()

    async def stop(self, grace: float) -> None:
        """End all lanes, but for one that calls this from a callback. Idempotent.

        Args:
            grace: Seconds that callbacks of the user get; requests are cut off at once.
        """
        self._ending = True
        own = anyio.get_current_task().id
        for lane in self._lanes:
            if lane.task_id == own:
                lane.leaving = True
            else:
                lane.work.cancel()
        self._tell()
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(grace):
                await self._wait_gone()
            for lane in self._lanes:
                if not lane.leaving:
                    lane.life.cancel()
            await self._wait_gone()

    async def _wait_gone(self) -> None:
        while self._count > sum(lane.leaving for lane in self._lanes):
            await self._changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    # -- Work ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something may be to do."""
        self._session.batcher.needs_poll = False
        if self._idle and not self._woken:
            self._woken = True
            self._idle.pop().set()

    async def _run(self, shield: bool) -> None:
        lane = _Lane(shield=shield)
        self._lanes.add(lane)
        self._tell()
        try:
            with lane.life:
                while not self._ending:
                    await self._step(lane)
        except BaseException:
            # Cancelled from outside, since `stop` has not been called; or a callback asks to end the program.
            if not self._ending:
                await self._end(True)
            raise
        finally:
            self._lanes.discard(lane)
            self._count -= 1
            self._tell()

    async def _step(self, lane: _Lane) -> None:
        """Do one thing that the core asks for."""
        self._woken = False
        session = self._session
        command = session.poll(anyio.current_time())
        if session.batcher.needs_poll:
            self.wake()
        if isinstance(command, Send):
            self.requests += 1
            number = self.requests
            outcomes: list[Outcome] = []
            with anyio.CancelScope() as lane.work:
                outcomes = await self._exchange(command)
            await self.digest(outcomes, number)
        elif isinstance(command, Wait) or not self._finishing:
            until = command.until if isinstance(command, Wait) else None
            with anyio.CancelScope(deadline=math.inf if until is None else until) as lane.work:
                await self._rest()
        else:
            await self._end(False)

    async def _rest(self) -> None:
        event = anyio.Event()
        self._idle.append(event)
        try:
            await event.wait()
        finally:
            if event in self._idle:
                self._idle.remove(event)

    async def _exchange(self, send: Send) -> list[Outcome]:
        """Make one request and report."""
        session, rng = self._session, self._context.rng
        head: Head | None = None
        body = bytearray()
        try:
            answer = await open_answer(self._context, send.request)
            head = answer.head
            try:
                while len(body) < MAX_ERROR_BODY and (data := await answer.receive()):
                    body += data
            finally:
                with anyio.CancelScope(shield=True):
                    await answer.aclose()
        except Exception as error:
            if head is None:
                phase = error.phase if isinstance(error, NetworkError) else "connect"
                return session.on_failure(send, Failure(error, phase), anyio.current_time(), rng.random())
            # The status has come: that its body broke off changes nothing.
        return session.on_reply(send, head, bytes(body[:MAX_ERROR_BODY]), anyio.current_time(), rng.random())

    async def digest(self, outcomes: list[Outcome], number: int = 0) -> None:
        """Tell everybody what has happened.

        Args:
            outcomes: What the core said.
            number: Of the request that was reported.
        """
        self._on_outcomes(outcomes)
        for outcome in outcomes:
            if isinstance(outcome, Asked):
                await self.digest(await self._recover(outcome, number))
            else:
                await self._notices.tell(outcome)

    async def _recover(self, asked: Asked, number: int) -> list[Outcome]:
        """Let the handle's `on_error` mend what it can, once for requests that were under way together."""
        error = asked.error
        status = error.status if isinstance(error, DurableStreamError) else None
        self.wake()  # Others have to do the work meanwhile.
        retry = False
        async with self._recovering:
            ask = number > self._mended.get((type(error), status), 0)
            if ask:
                try:
                    retry = await self._context.recover(error)
                except Exception as raised:
                    error = raised
                if retry:
                    self._mended[type(error), status] = self.requests
        return self._session.on_recover(asked.send, error, retry or not ask, asked=ask)
