"""All subscriptions of a server: kept, reconciled with the streams, and woken.

Theory of operation
-------------------

Requests and the reconcile loop work on one subscription at a time, under its lock: look at the streams that matter,
let the model decide, make the decision durable, apply it. What is durable is never behind what anyone was told.

The loop learns of changes by `notice`, which the HTTP side calls for every stream that it has changed, before it
answers. Notices are only hints. Every `scan_interval` seconds all links are compared with their streams and all
patterns with the list of streams, so a hint that got lost is late and not lost. A worker's request first takes in the
hints that are there, so what a client was told has happened is seen by whatever it asks next.

Waking is at least once: the wake is kept before it is sent, and after a restart a wake that was not confirmed is sent
again. Wake events are written under a producer's name with the generation as epoch, so that a repetition of one is
recognised by the wake stream.
"""

from __future__ import annotations

import heapq
import json
import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ..._core.wire import JSON, is_json
from .. import json_messages
from ..offsets import Offset
from ..protocol import AppendRequest, InvalidJson, ProducerStamp, Refused
from ..stores.base import Store, StreamInfo
from .bodies import BadRequest, Paths
from .delivery import SocketPost
from .model import WEBHOOK, Change, Config, Denied, Link, Seen, Snapshot, Wake, merge
from .records import Record, SubscriptionStore
from .registry import Kept, Registry
from .signing import SigningKeys
from .tokens import KEY_BYTES, Grant, Purpose, Tokens
from .webhooks import Messenger, Webhooks

logger: logging.Logger = logging.getLogger("durable_streams.server.subscriptions")

_LIST_PAGE = 1000
_LOOK_PAGE = 500
# Seconds until a subscription is looked at again whose store has failed.
_AFTER_FAILURE = 1.0


class NoSuchSubscription(Exception):  # noqa: N818  # control flow inside the server; never reaches a user
    """There is no subscription of this id."""


class OtherConfig(Exception):  # noqa: N818  # control flow inside the server; never reaches a user
    """A subscription of this id has another configuration."""


class SubscriptionService:
    """Keeps subscriptions and wakes their workers, while `run` is running.

    Args:
        store: Where streams and subscriptions are kept.
        clock: Wall-clock time in seconds.
        rng: Source of jitter.
        webhooks: How webhooks are sent; None if they are not.
        allow_insecure: Allow webhooks of this machine, without TLS.
        token_key: Secret that signs tokens, at least 32 bytes; if None, one is made and kept in the store.
        scan_interval: Seconds between two comparisons of all subscriptions with the streams.
        wake_ids: Makes the name of each wake.

    Attributes:
        running: Whether wakes are sent; requests are refused otherwise.
        messenger: Sends webhooks; None if they are not sent, or before `run`.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        webhooks: Webhooks | None = None,
        allow_insecure: bool = False,
        token_key: bytes | None = None,
        scan_interval: float = 10.0,
        wake_ids: Callable[[], str] = lambda: f"w_{secrets.token_hex(12)}",
    ) -> None:
        if token_key is not None:
            Tokens(token_key, "")  # refuses a bad key now, not when the server starts
        if webhooks is not None:
            SigningKeys(webhooks.signing_key or bytes(32), webhooks.retired_keys)  # likewise, or a missing library
            webhooks = replace(webhooks, post=SocketPost() if webhooks.post is None else webhooks.post)
        self._streams = store
        self._clock = clock
        self._rng = rng
        self._webhooks = webhooks
        self._allow_insecure = allow_insecure
        self._token_key = token_key
        self._scan_interval = scan_interval
        self._wake_ids = wake_ids
        self.running: bool = False
        self.messenger: Messenger | None = None
        self._tokens: Tokens | None = None
        self._registry = Registry()
        self._hints: dict[str, None] = {}
        self._hints_lock = anyio.Lock()
        self._creating = 0
        self._dirty: dict[Kept, None] = {}
        self._timers: list[tuple[float, int, Kept]] = []
        self._timer_number = 0
        self._kick = anyio.Event()
        self._group: TaskGroup | None = None

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<SubscriptionService {state} with {len(self._registry.by_path)} subscriptions>"

    # Life

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Wake workers until cancelled or stopped; after `load`. Does nothing if the store keeps no subscriptions."""
        if not isinstance(self._streams, SubscriptionStore):
            logger.debug("the store keeps no subscriptions")
            task_status.started()
            return
        async with anyio.create_task_group() as group:
            self._group = group
            self.running = True
            task_status.started()
            try:
                await self._reconcile()
            finally:
                self.running = False
                self._group = None

    def stop(self) -> None:
        """End the loop and the deliveries under way; what they were sending is sent again after the next start."""
        self.running = False
        if self._group is not None:
            self._group.cancel_scope.cancel()

    def notice(self, path: str) -> None:
        """A stream was created, appended to, closed or deleted. Cheap."""
        if self.running and (self._registry.by_path or self._creating):
            self._hints[path] = None
            self._kick.set()

    def poke(self) -> None:
        """Look at the clock now: for clocks that jump."""
        self._kick.set()

    def check_token(self, token: str, record: Record, purpose: Purpose) -> Grant:
        """What a token allows.

        Raises:
            InvalidToken: if it is none of ours for this subscription and purpose, or too old.
        """
        return self._made_tokens().check(token, record.incarnation, purpose, self._clock())

    def _made_tokens(self) -> Tokens:
        assert self._tokens is not None, "the service has not been started"
        return self._tokens

    async def load(self) -> None:
        """Take up what is kept; the store is open."""
        store = self._streams
        if not isinstance(store, SubscriptionStore):
            return
        self._store: SubscriptionStore = store
        self._registry = Registry()
        self._dirty.clear()
        self._hints.clear()
        self._timers.clear()
        self._hints_lock = anyio.Lock()
        token_key = self._token_key or await store.keep_secret("token_key", secrets.token_bytes(KEY_BYTES))
        deployment = await store.keep_secret("deployment", secrets.token_hex(8).encode())
        self._tokens = Tokens(token_key, deployment.decode())
        if self._webhooks is not None:
            seed = self._webhooks.signing_key or await store.keep_secret("signing_key", secrets.token_bytes(32))
            keys = SigningKeys(seed, self._webhooks.retired_keys)
            self.messenger = Messenger(
                self._webhooks, keys, self._tokens, self._clock, allow_insecure=self._allow_insecure
            )
        for record, links in await store.load_subscriptions():
            if record.config.kind == WEBHOOK and self.messenger is None:
                logger.warning("webhooks are off, so this subscription sleeps subscription=%s", record.id)
            self._register(Kept(record, dict(links), self._registry.wake_streams))
        await self.scan()

    # The loop

    async def _reconcile(self) -> None:
        scan_at = anyio.current_time() + self._scan_interval
        while True:
            self._kick = anyio.Event()
            if self._hints:
                await self._take_hints()
            if anyio.current_time() >= scan_at:
                await self.scan()
                scan_at = anyio.current_time() + self._scan_interval
            dirty, self._dirty = self._dirty, {}
            dirty.update(dict.fromkeys(self._expired_timers()))
            for kept in dirty:
                await self._advance(kept)
            if not self._hints and not self._dirty:
                with anyio.move_on_after(self._sleep(scan_at)):
                    await self._kick.wait()

    def _sleep(self, scan_at: float) -> float:
        until_scan = max(scan_at - anyio.current_time(), 0.0)
        return min(until_scan, max(self._timers[0][0] - self._clock(), 0.0)) if self._timers else until_scan

    def _expired_timers(self) -> Iterator[Kept]:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            due, _, kept = heapq.heappop(self._timers)
            if kept.timer == due:  # else an earlier one has replaced it
                kept.timer = None
                yield kept

    def _set_timer(self, kept: Kept, due: float | None) -> None:
        if due is not None and (kept.timer is None or due < kept.timer):
            kept.timer = due
            self._timer_number += 1
            heapq.heappush(self._timers, (due, self._timer_number, kept))

    def _touch(self, kept: Kept) -> None:
        """The loop should look at this subscription."""
        self._dirty[kept] = None
        self._kick.set()

    async def _advance(self, kept: Kept) -> None:
        """Do what time and pending work demand of one subscription."""
        try:
            async with kept.lock:
                if not kept.removed and (kept.record.config.kind != WEBHOOK or self.messenger is not None):
                    await self._advance_locked(kept)
        except Exception:
            logger.exception("subscription failed subscription=%s", kept.record.id)
            self._set_timer(kept, self._clock() + _AFTER_FAILURE)

    async def _advance_locked(self, kept: Kept) -> None:
        model, now = kept.model, self._clock()
        await self._commit(kept, model.tick(now, self._wake_ids(), busy=kept.busy))
        wake = None if kept.busy else model.to_send(now)
        if wake is None:
            self._set_timer(kept, model.due(busy=kept.busy))
            return
        webhook = kept.record.config.kind == WEBHOOK
        if webhook:
            await self._commit(kept, model.attempt(now))
        group = self._group
        if group is not None:
            kept.busy = True
            snapshot = model.snapshot()
            first = next(iter(model.pending))
            group.start_soon(self._send, kept, wake, snapshot, None if webhook else first)
            self._set_timer(kept, model.due(busy=True))

    async def _send(self, kept: Kept, wake: Wake, snapshot: Snapshot, first: str | None) -> None:
        """Send a wake; `first` is the stream to be named in a wake event, None for webhooks."""
        try:
            sent: bool | None = None
            try:
                if first is not None:
                    sent = await self._write_event(kept.record, wake, first)
                elif self.messenger is not None:
                    sent = await self.messenger.deliver(kept.record, wake, snapshot)
            except Exception:
                logger.exception("wake failed subscription=%s generation=%d", kept.record.id, wake.generation)
            async with kept.lock:
                if not kept.removed:
                    now = self._clock()
                    if sent is None:
                        await self._commit(kept, kept.model.on_failed(wake, now, self._rng.random()))
                    else:
                        await self._commit(kept, kept.model.on_sent(wake, now, done=snapshot if sent else None))
        except Exception:
            # The outcome is not kept: the wake counts as not sent, and is sent again.
            logger.exception("subscription failed subscription=%s", kept.record.id)
            await anyio.sleep(_AFTER_FAILURE)
        finally:
            kept.busy = False
            self._touch(kept)

    async def _write_event(self, record: Record, wake: Wake, first: str) -> bool | None:
        """Append a wake event; None if that failed."""
        event = {
            "type": "wake",
            "subscription_id": record.id,
            "stream": first,
            "generation": wake.generation,
            "ts": int(self._clock() * 1000),
        }
        payload = json_messages.split_json(json.dumps(event, separators=(",", ":")).encode())
        assert not isinstance(payload, InvalidJson)
        path = Paths(record.root).full(record.config.wake_stream or "")
        producer = ProducerStamp(f"ds-subscription-{record.incarnation}", wake.generation, 0)
        result = await self._streams.append(AppendRequest(path, JSON, payload, False, producer, None), self._clock())
        if isinstance(result, Refused):
            logger.warning(
                "wake event refused subscription=%s wake_stream=%s reason=%s", record.id, path, result.reason.value
            )
            return None
        return False

    # Looking at streams

    async def _take_hints(self) -> None:
        """Take in what was noticed."""
        async with self._hints_lock:
            while self._hints:
                noticed, self._hints = self._hints, {}
                wanted: dict[Kept, list[str]] = {}
                for full in noticed:
                    for kept in self._registry.interested(full):
                        wanted.setdefault(kept, []).append(kept.paths.relative(full))
                for kept, paths in wanted.items():
                    await self._look(kept, paths)

    async def _look(self, kept: Kept, paths: Iterable[str]) -> None:
        """Look at streams for one subscription. A failure is left to the next scan."""
        try:
            async with kept.lock:
                if not kept.removed:
                    await self._look_locked(kept, paths)
        except Exception:
            logger.exception("looking at streams failed subscription=%s", kept.record.id)

    async def _look_locked(self, kept: Kept, paths: Iterable[str]) -> None:
        seen = {path: await self._see(kept.paths.full(path)) for path in paths}
        model = kept.model
        links = merge(model.see(path, what) for path, what in seen.items())
        if links:
            await self._commit(kept, Change(model.state, links))
        for path, what in seen.items():
            model.note(path, what)
        if model.config.wake_stream in seen and not model.state.holder:
            await self._commit(kept, model.hurry(self._clock()))
        self._touch(kept)

    async def _see(self, full: str) -> Seen | None:
        info = await self._streams.head(full, self._clock())
        return Seen(info.ref.incarnation, info.tail) if isinstance(info, StreamInfo) else None

    async def scan(self) -> None:
        """Compare all subscriptions with all streams."""
        for kept in list(self._registry.by_path.values()):
            paths = dict.fromkeys(kept.model.links)
            try:
                async for path, _ in self._matches(kept):
                    paths[path] = None
            except Exception:
                logger.exception("listing streams failed subscription=%s", kept.record.id)
            wanted = list(paths)
            for start in range(0, len(wanted), _LOOK_PAGE):
                await self._look(kept, wanted[start : start + _LOOK_PAGE])
                await anyio.lowlevel.checkpoint()

    async def _matches(self, kept: Kept) -> AsyncIterator[tuple[str, Seen]]:
        """The streams that the pattern matches."""
        glob = kept.model.glob
        if glob is None:
            return
        prefix = kept.paths.full(glob.prefix)
        after = ""
        while True:
            page = await self._store.list_streams(prefix, after, _LIST_PAGE, self._clock())
            for info in page:
                path = kept.paths.relative(info.ref.path)
                if path and kept.model.covers(path):
                    yield path, Seen(info.ref.incarnation, info.tail)
            if len(page) < _LIST_PAGE:
                return
            after = page[-1].ref.path

    # Keeping

    async def _commit(self, kept: Kept, change: Change | None) -> None:
        """Make a decision durable, then real. Cancelling does not come between the two."""
        if change is None:
            return
        record = replace(kept.record, state=change.state)
        with anyio.CancelScope(shield=True):
            await self._store.save_subscription(record, change.links)
        kept.record = record
        kept.model.apply(change)
        for path, link in change.links.items():
            self._registry.index(kept, path, link)
        self._touch(kept)

    def _register(self, kept: Kept) -> None:
        self._registry.add(kept)
        self._touch(kept)

    # Requests

    @asynccontextmanager
    async def _holding(self, path: str) -> AsyncIterator[Kept]:
        """A subscription, with what was noticed taken in, under its lock.

        Raises:
            NoSuchSubscription: if there is none.
        """
        await self._take_hints()
        kept = self._registry.by_path.get(path)
        if kept is None:
            raise NoSuchSubscription
        async with kept.lock:
            if kept.removed:
                raise NoSuchSubscription
            yield kept

    async def find(self, path: str) -> Kept:
        """A subscription as it is now, by its full path.

        Raises:
            NoSuchSubscription: if there is none.
        """
        async with self._holding(path) as kept:
            return kept

    async def create(self, root: str, subscription_id: str, config: Config, origin: str) -> tuple[Kept, bool]:
        """Create a subscription or confirm it; tells whether it is new.

        Existing streams are linked at their tails. Hints wait until that is done, so that a stream which comes in the
        meantime is taken for a new one.

        Raises:
            OtherConfig: if it exists and is different.
            BadRequest: if its wake stream exists and is of no use.
        """
        record = Record(root, subscription_id, secrets.token_urlsafe(9), config, self._clock(), origin)
        async with self._hints_lock:
            existing = self._registry.by_path.get(record.path)
            if existing is not None:
                if existing.record.config.digest != config.digest:
                    raise OtherConfig
                return existing, False
            kept = Kept(record, {}, self._registry.wake_streams)
            if kept.wake_path is not None:
                found = await self._streams.head(kept.wake_path, self._clock())
                if isinstance(found, StreamInfo) and not is_json(found.content_type):
                    raise BadRequest("wake_stream must be of type application/json: its events are JSON")
            if config.wake_stream is not None:
                self._registry.wake_streams[kept.paths.full(config.wake_stream)] += (
                    1  # so that its own pattern skips it
                )
            self._creating += 1
            try:
                links, seen = await self._first_links(kept)
                with anyio.CancelScope(shield=True):
                    await self._store.save_subscription(record, links)
            finally:
                self._creating -= 1
                if kept.wake_path is not None:
                    self._registry.wake_streams[kept.wake_path] -= 1
            kept.model.apply(Change(record.state, links))
            self._register(kept)
            for path, what in seen.items():
                kept.model.note(path, what)
            return kept, True

    async def _first_links(self, kept: Kept) -> tuple[dict[str, Link | None], dict[str, Seen | None]]:
        links: dict[str, Link | None] = {}
        seen: dict[str, Seen | None] = {}
        async for path, what in self._matches(kept):
            links[path] = Link(what.tail, glob=True, incarnation=what.incarnation)
            seen[path] = what
        for path in kept.record.config.streams:
            if path not in seen:
                seen[path] = await self._see(kept.paths.full(path))
            links.update(merge([kept.model.link(path, seen[path])]))
        return links, seen

    async def remove(self, path: str) -> None:
        """Delete a subscription, if there is one. What workers and deliveries say from now on is void."""
        kept = self._registry.by_path.get(path)
        if kept is None:
            return
        async with kept.lock:
            if not kept.removed:
                with anyio.CancelScope(shield=True):
                    await self._store.remove_subscription(path)
                self._registry.discard(kept)
                self._dirty.pop(kept, None)

    async def link(self, path: str, streams: Sequence[str]) -> None:
        """Name streams explicitly; they begin at their tails.

        Raises:
            NoSuchSubscription: if there is no such subscription.
            BadRequest: if one of them is its own wake stream.
        """
        async with self._holding(path) as kept:
            if kept.record.config.wake_stream in streams:
                raise BadRequest("streams must not name the wake_stream: its events would wake without end")
            seen = {stream: await self._see(kept.paths.full(stream)) for stream in streams}
            links = merge(kept.model.link(stream, what) for stream, what in seen.items())
            await self._commit(kept, Change(kept.model.state, links))
            for stream, what in seen.items():
                kept.model.note(stream, what)

    async def unlink(self, path: str, stream: str) -> None:
        """Take an explicit link back.

        Raises:
            NoSuchSubscription: if there is no such subscription.
        """
        async with self._holding(path) as kept:
            await self._commit(kept, kept.model.unlink(stream))

    async def claim(self, path: str, worker: str) -> tuple[Kept, Wake, Snapshot, str] | Denied:
        """Give the lease to a worker: the wake, its streams, and a token.

        Raises:
            NoSuchSubscription: if there is no such subscription.
        """
        async with self._holding(path) as kept:
            model, now = kept.model, self._clock()
            decision = model.claim(worker, now, self._wake_ids())
            if isinstance(decision, Denied):
                await self._commit(kept, decision.change)
                return decision
            await self._commit(kept, decision)
            wake = Wake(model.state.generation, model.state.wake_id)
            grant = Grant(kept.record.incarnation, "claim", wake.generation)
            return kept, wake, model.snapshot(), self._made_tokens().issue(grant, now, model.config.lease)

    async def acknowledge(
        self, path: str, grant: Grant, wake: Wake, acks: Sequence[tuple[str, Offset | None]], *, done: bool
    ) -> bool | Denied:
        """A worker has processed something; tells whether there is more to do after `done`.

        Raises:
            NoSuchSubscription: if there is no such subscription, or no longer the one of the grant.
        """
        async with self._holding(path) as kept:
            _check_life(kept, grant)
            linked = [stream for stream, _ in acks if stream in kept.model.links]
            if linked:
                await self._look_locked(kept, linked)
            decision = kept.model.acknowledge(grant.generation, wake, acks, self._clock(), done=done)
            if isinstance(decision, Denied):
                return decision
            await self._commit(kept, decision)
            return done and bool(kept.model.pending)

    async def release(self, path: str, grant: Grant, wake: Wake) -> Denied | None:
        """A worker gives the lease back.

        Raises:
            NoSuchSubscription: if there is no such subscription, or no longer the one of the grant.
        """
        async with self._holding(path) as kept:
            _check_life(kept, grant)
            decision = kept.model.release(grant.generation, wake, self._clock())
            if isinstance(decision, Denied):
                return decision
            await self._commit(kept, decision)
            return None


def _check_life(kept: Kept, grant: Grant) -> None:
    if kept.record.incarnation != grant.subject:
        raise NoSuchSubscription
