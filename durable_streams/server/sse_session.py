"""A reader's connection with server-sent events, and how news reach many of them.

A reader that has all there is rests. To wake a task for each of a hundred readers, so that each writes the same bytes
to its connection, costs more than the writing. So one of the readers of a stream that rest leads: it alone waits for
news, builds the event and pushes it to the connections of all who rest at the same offset. They sleep on.

Whoever cannot go along is woken and sees for itself, as it would without the others: a reader whose client does not
keep up, one that is at another place, and everybody when there is more than fits into an event, or the end has come.
When the leader leaves, or its own client does not keep up, one of the others is woken to lead. So is another one when
that one leaves instead: whoever leaves looks whether somebody leads.

That needs a server that can send without waiting (`Call.push`), as our own runner can. On other servers each reader
waits by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from .cursors import current_cursor, next_cursor
from .offsets import Offset
from .pages import Read
from .requests import Call
from .stores.base import BadOffset, Gone, Missing, Watch
from .waiting import time_left

if TYPE_CHECKING:
    from .http import DurableStreamsApp
    from .sse import Event, StreamEvents

_MAX_AGE_JITTER = 0.1
# After so many pushes others may run. Appends among them make the next event larger, instead of one for each.
_PUSHES_IN_A_ROW = 8


class Resting:
    """The readers of one stream that have all there is.

    Attributes:
        leader: Who waits for news, for all of them.
        followers: The others, in the order in which they came, and what wakes each.
    """

    __slots__ = ("followers", "leader")

    def __init__(self) -> None:
        self.leader: Session | None = None
        self.followers: dict[Session, anyio.Event] = {}

    def wake(self, session: Session) -> None:
        """Have a follower see for itself."""
        woken = self.followers.pop(session, None)
        if woken is not None:
            woken.set()

    def wake_all(self) -> None:
        """Have all followers see for themselves."""
        for session in list(self.followers):
            self.wake(session)

    def promote(self) -> None:
        """Wake a follower that leads, as nobody does."""
        if self.leader is None and self.followers:
            self.wake(next(iter(self.followers)))


class Session:
    """One reader's connection.

    Args:
        app: The application.
        call: The request, whose answer has begun.
        read: What was asked for.
        watch: Of the stream.
        events: Of the stream.
        first: What to begin with.
    """

    __slots__ = ("_app", "_call", "_event", "_events", "_floor", "_info", "_sent", "_watch")

    def __init__(
        self, app: DurableStreamsApp, call: Call, read: Read, watch: Watch, events: StreamEvents, first: Event
    ) -> None:
        self._app = app
        self._call = call
        self._info = read.info
        self._watch = watch
        self._events = events
        self._event = first
        self._sent = 0.0
        # A client that was ahead got a cursor further ahead; it must not go back while the connection lasts.
        self._floor = next_cursor(read.cursor, app.clock(), app.rng)

    async def run(self) -> None:
        """Send events until the stream ends, the connection is old enough, or the application stops."""
        try:
            await self._run()
        finally:
            self._events.resting.promote()

    async def _run(self) -> None:
        app, watch, call = self._app, self._watch, self._call
        deadline = anyio.current_time() + app.sse_max_age * app.rng.uniform(1 - _MAX_AGE_JITTER, 1 + _MAX_AGE_JITTER)
        await self._send(self._event.whole(self._cursor()))
        while not self._event.closed and not app.waits.stopping:
            now = anyio.current_time()
            if now >= deadline:
                return
            event = self._event
            if event.up_to_date or not event.data:
                await self._rest(min(self._sent + app.sse_keep_alive, deadline, now + time_left(app, self._info)))
                if time_left(app, self._info) <= 0:
                    await app.store.head(self._info.ref.path, app.clock())  # here the store notices the expiry
                if watch.gone:
                    return
                if self._event is not event:
                    await call.keep_up()
                    continue
                if watch.tail == event.tail and not watch.closed:
                    now = anyio.current_time()
                    if not app.waits.stopping and self._sent + app.sse_keep_alive <= now < deadline:
                        await self._send(event.control(self._cursor()))
                    continue
            following = await self._events.after(event.offset, watch)
            if isinstance(following, BadOffset | Missing | Gone):
                return
            self._event = following
            if following.data or following.closed:
                await self._send(following.whole(self._cursor()))

    def _cursor(self) -> int:
        return self._rising(current_cursor(self._app.clock()))

    def _rising(self, cursor: int) -> int:
        """This cursor, or the highest one so far: the clock may jump back, cursors must not."""
        self._floor = max(self._floor, cursor)
        return self._floor

    async def _send(self, data: bytes) -> None:
        await self._call.send_body(data, more=True)
        self._sent = anyio.current_time()

    async def _rest(self, until: float) -> None:
        """Wait for news or this time. Events may be pushed meanwhile."""
        resting, watch, seen = self._events.resting, self._watch, self._event.tail
        if not self._call.can_push:
            await self._app.waits.wait(watch, seen, until - anyio.current_time())
        elif resting.leader is None:
            await self._lead(until)
        elif watch.tail == seen and not watch.closed and not watch.gone:
            await self._follow(until)

    async def _follow(self, until: float) -> None:
        resting = self._events.resting
        woken = resting.followers[self] = anyio.Event()
        try:
            await self._app.waits.wait_for(woken.wait(), until - anyio.current_time())
        finally:
            resting.followers.pop(self, None)

    async def _lead(self, until: float) -> None:
        resting, watch, waits = self._events.resting, self._watch, self._app.waits
        resting.leader = self
        try:
            while True:
                event = self._event
                await waits.wait(watch, event.tail, until - anyio.current_time())
                if watch.closed or watch.gone or waits.stopping:
                    resting.wake_all()
                    return
                if watch.tail == event.tail:
                    return
                following = await self._events.after(event.offset, watch)
                if isinstance(following, BadOffset | Missing | Gone):
                    resting.wake_all()
                    return
                now = anyio.current_time()
                cursor = current_cursor(self._app.clock())
                keeps_up = self._take(following, cursor, now)
                try:
                    await self._push(following, event.offset, cursor, now)
                except BaseException:
                    resting.wake_all()  # who knows who has it
                    raise
                if not keeps_up or not following.up_to_date:
                    return
        finally:
            resting.leader = None
            resting.promote()

    async def _push(self, event: Event, offset: Offset, cursor: int, now: float) -> None:
        """Give an event to all who rest at this offset."""
        followers = self._events.resting.followers
        for number, session in enumerate(list(followers), 1):
            if session not in followers:
                continue  # woken meanwhile
            if session._event.offset == offset:
                if not session._take(event, cursor, now) or not event.up_to_date:
                    self._events.resting.wake(session)
            elif session._event is not event:
                self._events.resting.wake(session)
            if number % _PUSHES_IN_A_ROW == 0:
                await anyio.lowlevel.checkpoint()

    def _take(self, event: Event, cursor: int, now: float) -> bool:
        """Send an event without waiting. Returns whether the client keeps up."""
        self._event = event
        if not event.data:
            return True
        self._sent = now
        return self._call.push(event.whole(self._rising(cursor)))
