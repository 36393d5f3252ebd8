"""One subscription as a state machine: no I/O, no clock, no chance.

Theory of operation
-------------------

A subscription has *links*, one per stream, each with a cursor (`acked`), and a *state*. What is known of the streams
(`Seen`) is told to it; it is not kept. A link is *pending* when its stream has data beyond the cursor. The state says
whether somebody is at work on that:

    state     wake_id  holder  lease_until       attempt_at                          left by
    --------  -------  ------  ----------------  ----------------------------------  ----------------------------------
    idle      ""       -       -                 no wake before this time            pending work: `tick`
    waking    w        -       webhook: T        to be sent then; None: was sent     sending, `claim`, callback, expiry
    claimed   w        name    T                 -                                   ack with `done`, release, expiry

Every wake has the next `generation` and a fresh `wake_id`. A request is *fenced* unless it names the current two; so
is one that comes after the lease has run out, even if nobody has looked at the clock since: every decision begins with
`settle`, which ends a lease that is over.

Decisions change nothing. They return a `Change`, which the service makes durable and then hands to `apply`; or a
`Denied`. So a failure to store leaves the subscription as it was.

A wake that could not be sent is tried again after 1, 2, 4, ... 60 seconds. If its lease runs out in the meantime, the
wake is over, but the schedule is not: `attempt_at` stays and holds the next wake back, so that a short lease cannot
turn the schedule into a hail. A try that is under way when the lease runs out likewise blocks the next wake (`busy`):
there is one delivery at a time. Its late answer belongs to a wake that is over, and moves no cursor; it does count as a
success or failure of sending. If a callback has finished the wake in the meantime, which shows as `attempt_at` being
None, a failed answer says nothing any more.

A cursor belongs to one life (`incarnation`) of a stream. When a path is deleted, links by glob go with it; explicit
ones stay, at the beginning, so that nothing of a new stream at that path is missed.

The rules are those of the protocol, section 7, with the decisions of server 15.2 and 15.3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal, TypeAlias

from ..offsets import ZERO, Offset
from .glob import Glob

#: Cursor of a stream of which nothing was processed, not even its creation; `-1` on the wire.
BEFORE: Offset = -1

#: First and longest pause before a wake is sent again, in seconds, and how far the pause is varied.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
PAUSE_JITTER = 0.2

WEBHOOK: Literal["webhook"] = "webhook"
PULL_WAKE: Literal["pull-wake"] = "pull-wake"
Kind: TypeAlias = Literal["webhook", "pull-wake"]


@dataclass(frozen=True, slots=True)
class Config:
    """What was asked for at creation, normalised; paths are relative to the root.

    Attributes:
        kind: How work is announced.
        pattern: Glob, or None.
        streams: Explicit streams, sorted, each once.
        webhook_url: Where wakes are posted to; None for pull-wake.
        wake_stream: Where wake events are appended; None for webhooks.
        lease_ttl_ms: Length of a lease.
        description: Free text, or None.
    """

    kind: Kind
    pattern: str | None = None
    streams: tuple[str, ...] = ()
    webhook_url: str | None = None
    wake_stream: str | None = None
    lease_ttl_ms: int = 30_000
    description: str | None = None

    @property
    def lease(self) -> float:
        """Length of a lease in seconds."""
        return self.lease_ttl_ms / 1000

    @property
    def digest(self) -> str:
        """Hash of the configuration; equal for a repetition of the same request (protocol P6.2-4)."""
        facts = [
            *(self.kind, self.pattern, self.streams, self.webhook_url, self.wake_stream),
            *(self.lease_ttl_ms, self.description),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Link:
    """One stream of a subscription.

    Attributes:
        acked: The cursor: offset after what was processed, or `BEFORE`.
        explicit: Whether it was named.
        glob: Whether the pattern matches.
        incarnation: Life of the stream that the cursor belongs to; "" if there is no stream.
    """

    acked: Offset = BEFORE
    explicit: bool = False
    glob: bool = False
    incarnation: str = ""

    @property
    def link_type(self) -> str:
        """Name of the kind on the wire. A stream linked both ways counts as explicit."""
        return "explicit" if self.explicit else "glob"


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a stream: which life, and how far it reaches."""

    incarnation: str
    tail: Offset


@dataclass(frozen=True, slots=True)
class State:
    """Where a subscription stands, see the table at the top. Times are wall-clock seconds."""

    generation: int = 0
    wake_id: str = ""
    holder: str | None = None
    lease_until: float | None = None
    attempt_at: float | None = None
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A decision: the new state, and links that are new, changed, or (None) gone."""

    state: State
    links: Mapping[str, Link | None] = field(default_factory=dict)


class Reason(Enum):
    """Why a worker's request is denied; the value is the code on the wire."""

    FENCED = "FENCED"
    ALREADY_CLAIMED = "ALREADY_CLAIMED"
    NO_PENDING_WORK = "NO_PENDING_WORK"
    INVALID_OFFSET = "INVALID_OFFSET"


@dataclass(frozen=True, slots=True)
class Denied:
    """A request that is denied. `change` is what it brought to light all the same."""

    reason: Reason
    holder: str | None = None
    generation: int = 0
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class Wake:
    """Names one wake."""

    generation: int
    id: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One stream in what a worker is told."""

    path: str
    link_type: str
    acked: Offset
    tail: Offset
    incarnation: str
    has_pending: bool


Snapshot: TypeAlias = tuple[Entry, ...]


class Subscription:
    """A subscription at this moment. Decisions are plain methods that return what would change; `apply` changes it.

    Args:
        config: As it was created.
        state: As it was last kept.
        links: Likewise, by path.
        quiet: Wake streams. They match no pattern and are never pending: wake events must not wake subscriptions.

    Attributes:
        pending: Paths of links with unprocessed data, oldest first.
    """

    def __init__(
        self,
        config: Config,
        state: State | None = None,
        links: Mapping[str, Link] | None = None,
        *,
        quiet: Container[str] = frozenset(),
    ) -> None:
        self.config: Config = config
        self.quiet: Container[str] = quiet
        self.state: State = State() if state is None else state
        self.links: dict[str, Link] = dict(links or {})
        self.seen: dict[str, Seen] = {}
        self.pending: dict[str, None] = {}
        self.glob: Glob | None = None if config.pattern is None else Glob(config.pattern)

    def __repr__(self) -> str:
        state = self.state
        at = f"claimed by {state.holder!r}" if state.holder is not None else "waking" if state.wake_id else "idle"
        return f"<Subscription {at}, generation {state.generation}, {len(self.links)} links>"

    # What is known of streams

    def covers(self, path: str) -> bool:
        """Whether the pattern matches."""
        return self.glob is not None and path not in self.quiet and self.glob.matches(path)

    def see(self, path: str, seen: Seen | None) -> Change | None:
        """A stream was looked at: what that changes in the links, or None. `note` is to follow.

        Args:
            path: Which stream.
            seen: What it is like; None if there is none.
        """
        link = self.links.get(path)
        if link is None:
            if seen is None or not self.covers(path):
                return None
            return self._relink(path, Link(glob=True, incarnation=seen.incarnation))
        if seen is None:
            if not link.explicit:
                return self._relink(path, None)
            return self._relink(path, Link(explicit=True, glob=link.glob)) if link.incarnation else None
        if link.incarnation == seen.incarnation:
            return None
        return self._relink(path, replace(link, acked=BEFORE, incarnation=seen.incarnation))

    def note(self, path: str, seen: Seen | None) -> None:
        """Remember what a stream is like."""
        if seen is None:
            self.seen.pop(path, None)
        elif path in self.links:
            self.seen[path] = seen
        self._update_pending(path)

    def link(self, path: str, seen: Seen | None) -> Change | None:
        """Name a stream explicitly: a new link begins at the tail, an existing one stays where it is."""
        link = self.links.get(path)
        if link is not None:
            return None if link.explicit else self._relink(path, replace(link, explicit=True))
        acked, incarnation = (BEFORE, "") if seen is None else (seen.tail, seen.incarnation)
        return self._relink(path, Link(acked, explicit=True, glob=self.covers(path), incarnation=incarnation))

    def unlink(self, path: str) -> Change | None:
        """Take the explicit link back; one by the pattern stays."""
        link = self.links.get(path)
        if link is None or not link.explicit:
            return None
        return self._relink(path, replace(link, explicit=False) if self.covers(path) and link.incarnation else None)

    def _relink(self, path: str, link: Link | None) -> Change:
        return Change(self.state, {path: link})

    # Waking

    def settle(self, now: float) -> State:
        """The state, after a lease that has run out is ended."""
        state = self.state
        if state.lease_until is None or now < state.lease_until:
            return state
        return replace(state, wake_id="", holder=None, lease_until=None)

    def tick(self, now: float, wake_id: str, *, busy: bool = False) -> Change | None:
        """What time and pending work change: leases end, wakes begin.

        Args:
            now: The time.
            wake_id: Name for the wake, should one begin.
            busy: Whether a delivery is under way.
        """
        state = self.settle(now)
        if not busy:
            if state.wake_id and state.attempt_at is not None and state.holder is None and not self.pending:
                state = _ended(state)  # what the wake was for has gone before it was sent
            if not state.wake_id and (state.attempt_at is None or now >= state.attempt_at):
                if self.pending:
                    state = self._woken(state, now, wake_id)
                elif state.attempt_at is not None or state.failures:
                    state = replace(state, attempt_at=None, failures=0)
        return None if state == self.state else Change(state)

    def _woken(self, state: State, now: float, wake_id: str) -> State:
        lease_until = now + self.config.lease if self.config.kind == WEBHOOK else None
        return replace(
            state,
            generation=state.generation + 1,
            wake_id=wake_id,
            lease_until=lease_until,
            attempt_at=now,
            holder=None,
        )

    def due(self, *, busy: bool = False) -> float | None:
        """When `tick`, or sending, is next of use; None: not before something happens."""
        state = self.state
        if busy:
            return state.lease_until
        if not state.wake_id and state.attempt_at is None:
            return 0.0 if self.pending else None
        return min((time for time in (state.lease_until, state.attempt_at) if time is not None), default=None)

    def to_send(self, now: float) -> Wake | None:
        """The wake that is to be sent now, if there is one."""
        state = self.state
        if not state.wake_id or state.attempt_at is None or now < state.attempt_at:
            return None
        return Wake(state.generation, state.wake_id)

    def attempt(self, now: float) -> Change | None:
        """A wake is about to be sent to a webhook: that issues it (anew), so the lease runs from now."""
        state = replace(self.state, lease_until=now + self.config.lease)
        return None if state == self.state else Change(state)

    def on_sent(self, wake: Wake, now: float, *, done: Snapshot | None = None) -> Change | None:
        """A wake was taken by the webhook, or written to the wake stream.

        Args:
            wake: Which one.
            now: The time.
            done: The streams as the webhook was told, if it answered that it has processed them.
        """
        state = self.settle(now)
        if not _is_current(state, wake):
            if state.wake_id or state.attempt_at is None:
                return None
            return Change(replace(state, attempt_at=None, failures=0))
        if done is None:
            return Change(replace(state, attempt_at=None, failures=0))
        links: dict[str, Link | None] = {}
        for entry in done:
            link = self.links.get(entry.path)
            if link is not None and link.incarnation == entry.incarnation and link.acked < entry.tail:
                links[entry.path] = replace(link, acked=entry.tail)
        return Change(_ended(state), links)

    def on_failed(self, wake: Wake, now: float, draw: float) -> Change | None:
        """A wake could not be sent. `draw` is a uniform number in [0, 1)."""
        state = self.settle(now)
        if state.attempt_at is None or (state.wake_id and not _is_current(state, wake)):
            return None
        failures = state.failures + 1
        return Change(replace(state, failures=failures, attempt_at=now + pause(failures, draw)))

    def hurry(self, now: float) -> Change | None:
        """What kept wakes from being sent may be over: try again now."""
        state = self.state
        if state.attempt_at is None or state.attempt_at <= now:
            return None
        return Change(replace(state, attempt_at=now))

    # Workers

    def claim(self, worker: str, now: float, wake_id: str) -> Change | Denied:
        """A worker wants the lease (pull-wake)."""
        state = self.settle(now)
        if state.holder is not None:
            return Denied(Reason.ALREADY_CLAIMED, state.holder, state.generation)
        if not self.pending:
            # Its event has been answered with this refusal, so the wake is used up.
            ended = _ended(state)
            return Denied(Reason.NO_PENDING_WORK, change=None if ended == self.state else Change(ended))
        if not state.wake_id:
            state = self._woken(state, now, wake_id)
        return Change(replace(state, holder=worker, lease_until=now + self.config.lease, attempt_at=None, failures=0))

    def acknowledge(
        self, token: int, wake: Wake, acks: Sequence[tuple[str, Offset | None]], now: float, *, done: bool
    ) -> Change | Denied:
        """A worker has processed something, or is just alive; all of its acks hold, or none.

        Args:
            token: Generation in its token.
            wake: Which wake it says that it works on.
            acks: Paths and offsets, as given; None is no offset of ours.
            now: The time.
            done: Whether it gives the lease back.
        """
        state = self.settle(now)
        if self._is_fenced(state, token, wake):
            return Denied(Reason.FENCED)
        links: dict[str, Link | None] = {}
        for path, offset in acks:
            link, seen = self.links.get(path), self.seen.get(path)
            if link is None or seen is None or offset is None or not link.acked <= offset <= seen.tail:
                return Denied(Reason.INVALID_OFFSET)
            moved = links.get(path) or link
            links[path] = replace(link, acked=max(moved.acked, offset))
        if done:
            return Change(_ended(state), links)
        return Change(replace(state, lease_until=now + self.config.lease, attempt_at=None, failures=0), links)

    def release(self, token: int, wake: Wake, now: float) -> Change | Denied:
        """A worker gives the lease back without having processed anything."""
        state = self.settle(now)
        return Denied(Reason.FENCED) if self._is_fenced(state, token, wake) else Change(_ended(state))

    def _is_fenced(self, state: State, token: int, wake: Wake) -> bool:
        if token != state.generation or not _is_current(state, wake):
            return True
        return self.config.kind == PULL_WAKE and state.holder is None

    # What is told

    def snapshot(self) -> Snapshot:
        """The streams that exist, for a worker."""
        return tuple(
            Entry(path, link.link_type, link.acked, seen.tail, seen.incarnation, path in self.pending)
            for path, link in self.links.items()
            if (seen := self.seen.get(path)) is not None
        )

    @property
    def status(self) -> str:
        """`failed` while a webhook is to be tried again, else `active` (protocol P6.3-2)."""
        return "failed" if self.state.failures and self.config.kind == WEBHOOK else "active"

    # Changing

    def apply(self, change: Change) -> None:
        """Make a change, which was decided on the present state."""
        self.state = change.state
        for path, link in change.links.items():
            if link is None:
                self.links.pop(path, None)
                self.seen.pop(path, None)
            else:
                self.links[path] = link
            self._update_pending(path)

    def _update_pending(self, path: str) -> None:
        link, seen = self.links.get(path), self.seen.get(path)
        if link is not None and seen is not None and seen.tail > max(link.acked, ZERO) and path not in self.quiet:
            self.pending.setdefault(path)
        else:
            self.pending.pop(path, None)


def pause(failures: int, draw: float) -> float:
    """Seconds until a wake is sent again, after this many failures in a row (from 1)."""
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 30))
    return pause * (1 + PAUSE_JITTER * (2 * draw - 1))


def merge(changes: Iterable[Change | None]) -> dict[str, Link | None]:
    """The links of several changes in one."""
    return {path: link for change in changes if change is not None for path, link in change.links.items()}


def _is_current(state: State, wake: Wake) -> bool:
    return bool(state.wake_id) and wake == Wake(state.generation, state.wake_id)


def _ended(state: State) -> State:
    """Idle, with nothing outstanding; the generation stays."""
    return State(generation=state.generation)
