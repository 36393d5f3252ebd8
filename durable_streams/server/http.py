"""The server as an ASGI 3 application.

A request goes through the same gates whatever it wants (server 2.1): headers common to all answers, OPTIONS, the path,
what is asked by operators, the limit of requests, the reserved prefix, authorization, the method, then the handler of
that method, which reads the headers it knows, the body, and asks the store. What goes wrong on the way is raised as a
`Rejection` and answered here, in one place.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, NoReturn, TypedDict

from .._core.wire import normalize_path
from . import health, json_messages, reading, writing
from .arrivals import Arrivals
from .authorization import Authorizer, Gate
from .cors import Cors
from .lifespan import answer_lifespan, life
from .limits import Readers, Room, busy
from .metrics import Metrics
from .requests import Call, Disconnected, Receive, Scope, Send, quote_mount, raw_path
from .responses import METHODS, Headers, Rejection
from .sse import StreamEvents
from .stores.abilities import PromptStore, prompt_store
from .stores.base import Store, StreamRef
from .stores.memory import MemoryStore
from .subscriptions.routes import ControlInterface, check_public_url
from .subscriptions.service import SubscriptionService
from .subscriptions.webhooks import Webhooks
from .waiting import Waits

if TYPE_CHECKING:
    from ._exchange import Exchange

logger: logging.Logger = logging.getLogger("durable_streams.server")
access_logger: logging.Logger = logging.getLogger("durable_streams.access")

_CONTROL = "__ds"
_KNOWN_PATHS = 4096
_Handler = Callable[["DurableStreamsApp", Call], Awaitable[None]]
_HANDLERS: dict[str, _Handler] = {
    "POST": writing.post,
    "GET": reading.get,
    "PUT": writing.put,
    "HEAD": reading.head,
    "DELETE": writing.delete,
}


class AppOptions(TypedDict, total=False):
    """Keyword arguments of `DurableStreamsApp`, which describes them."""

    root: str
    long_poll_timeout: float
    sse_max_age: float
    sse_keep_alive: float
    max_append_bytes: int
    page_bytes: int
    annotate_state_offsets: bool
    max_requests: int | None
    max_streams: int | None
    max_readers_per_stream: int | None
    authorize: Authorizer | None
    compression: bool
    metrics: bool
    inspection: bool
    access_log: bool
    cors_origin: str | Sequence[str]
    corp: str
    cache_visibility: str
    sweep_interval: float
    end_on_signals: bool
    webhooks: bool | Webhooks
    allow_insecure_webhooks: bool
    public_url: str | None
    token_key: bytes | None
    scan_interval: float
    clock: Callable[[], float]
    rng: random.Random | None


class DurableStreamsApp:
    """The durable streams protocol over a store, for any ASGI server on asyncio or trio.

    Run it with `durable_streams.server.Server`, with an ASGI server of your choice, or mount it in another ASGI
    application (Starlette, FastAPI): streams then live below the mount point, at its path plus `root`. The store is
    opened and closed, and subscriptions and the sweep of expired streams run, by ASGI's lifespan. That of mounted
    applications is not run, so the one that mounts this one runs `lifespan`.

    Beside the streams there are `GET /health` (200 while the server does its work, else 503: start it anew) and
    `GET /ready` (200 when requests may come), for everybody; and if asked for `GET /metrics` (`metrics`) and
    `GET /inspect` (`inspection`). If `root` is empty, they are below `/__ds`.

    Args:
        store: Where streams are kept; a `MemoryStore` if None.
        root: Path below which streams live; "" for all paths.
        long_poll_timeout: Seconds after which a long-poll without news is answered with 204.
        sse_max_age: Seconds after which a connection with server-sent events ends, give or take 10 %, so that
            clients come back and can be balanced anew.
        sse_keep_alive: Seconds of silence after which the control event is repeated.
        max_append_bytes: Largest body of PUT and POST.
        page_bytes: Largest answer to a read, except for a single larger JSON message. Keep it large: clients exist
            that take the first page for the whole stream. A reader asks for smaller ones with `Prefer`.
        annotate_state_offsets: Whether messages of JSON streams that look like State Protocol's are read with the
            offset after them in `headers.offset`, whatever was written there. Each page is then built in memory.
        max_requests: How many requests may be in progress, waiting readers included; more get 503. This and what
            follows is without limit if None.
        max_streams: How many streams there may be; who creates one more gets 429.
        max_readers_per_stream: How many live readers a stream may have; one more gets 429.
        authorize: Asked before a request reaches the store: a `TokenFile`, or a function, plain or async, that is
            given an `AccessRequest` and returns `Allow()` or `Deny()`. None lets everybody do everything.
        compression: Whether catch-up answers of text and JSON, from 1 KiB, are compressed for clients that take gzip.
            Say False if something around this application does it.
        metrics: Whether there is `GET /metrics`, in Prometheus' format. With `authorize` that needs the right to read
            the path `/metrics`.
        inspection: Whether there is `GET /inspect`, which lists streams, producers and subscriptions for operators
            (`durable-streams inspect URL`). With `authorize` that needs the right to read the path whose streams are
            listed, `/` for everything.
        access_log: Whether each request is logged when it ends, by the logger `durable_streams.access`, level INFO:
            method, path, status (0 if it was not answered) and seconds.
        cors_origin: `Access-Control-Allow-Origin`: `*`, the origin of the pages that may use the server, or several.
        corp: `Cross-Origin-Resource-Policy`: cross-origin, same-site or same-origin.
        cache_visibility: `private`, or `public` if all may see all streams: who may keep finished pages.
        sweep_interval: Seconds between two looks for expired streams.
        end_on_signals: Whether SIGINT and SIGTERM make the application `begin_shutdown`, beside what its server does on
            them. For ASGI servers that run it by themselves in their main thread and set their handlers first (uvicorn,
            granian); `Server` needs no help.
        webhooks: Whether subscriptions of type webhook are allowed; `Webhooks` says how they are sent. Needs the
            extra `webhooks`.
        allow_insecure_webhooks: For development: allow webhooks at `http://localhost` and `http://127.0.0.x`.
        public_url: Scheme, host and port by which clients reach the server, and the path before ours if a proxy
            removes one; without a slash at its end. It stands in `Location` and in the URLs of subscriptions. If None,
            they take it from each request's `Host`.
        token_key: Secret that signs the tokens of workers, at least 32 bytes. If None, the store keeps a random one.
        scan_interval: Seconds between two comparisons of all subscriptions with the streams, which find what no
            request told: expired streams, say.
        clock: Wall-clock time in seconds.
        rng: Source of jitter.

    Raises:
        ValueError: if an argument has a value that cannot work.
        ModuleNotFoundError: if msgspec, or for `metrics` prometheus-client, is missing (extra `server`).

    Attributes:
        store: As given.
        root: As given, without a slash at its end.
        metrics: A collector for a registry of prometheus-client of your own; None without `metrics`.
        failure: Why the application cannot go on; None while all is well.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        root: str = "/v1/stream",
        long_poll_timeout: float = 20.0,
        sse_max_age: float = 60.0,
        sse_keep_alive: float = 15.0,
        max_append_bytes: int = 16 * 1024 * 1024,
        page_bytes: int = 64 * 1024 * 1024,
        annotate_state_offsets: bool = False,
        max_requests: int | None = None,
        max_streams: int | None = None,
        max_readers_per_stream: int | None = None,
        authorize: Authorizer | None = None,
        compression: bool = True,
        metrics: bool = False,
        inspection: bool = False,
        access_log: bool = False,
        cors_origin: str | Sequence[str] = "*",
        corp: str = "cross-origin",
        cache_visibility: str = "private",
        sweep_interval: float = 5.0,
        end_on_signals: bool = False,
        webhooks: bool | Webhooks = False,
        allow_insecure_webhooks: bool = False,
        public_url: str | None = None,
        token_key: bytes | None = None,
        scan_interval: float = 10.0,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        json_messages.require()
        for name, value in (
            ("long_poll_timeout", long_poll_timeout),
            ("sse_max_age", sse_max_age),
            ("sse_keep_alive", sse_keep_alive),
            ("max_append_bytes", max_append_bytes),
            ("page_bytes", page_bytes),
            ("sweep_interval", sweep_interval),
            ("scan_interval", scan_interval),
        ):
            if not value > 0:
                raise ValueError(f"{name} must be greater than 0, got {value!r}")
        for limit, most in (
            ("max_requests", max_requests),
            ("max_streams", max_streams),
            ("max_readers_per_stream", max_readers_per_stream),
        ):
            if most is not None and most < 1:
                raise ValueError(f"{limit} must be at least 1, or None for no limit, got {most!r}")
        if cache_visibility not in ("private", "public"):
            raise ValueError(f"cache_visibility must be 'private' or 'public', got {cache_visibility!r}")
        self.store: Store = MemoryStore() if store is None else store
        self.root: str = _check_root(root)
        self.long_poll_timeout = long_poll_timeout
        self.sse_max_age = sse_max_age
        self.sse_keep_alive = sse_keep_alive
        self.max_append_bytes = max_append_bytes
        self.page_bytes = page_bytes
        self.annotate_state_offsets = annotate_state_offsets
        self.cache_visibility = cache_visibility
        self.sweep_interval = sweep_interval
        self.end_on_signals = end_on_signals
        self.clock = clock
        self.compression = compression
        self.public_url: str | None = check_public_url(public_url)
        self.failure: Exception | None = None
        self._ended = False
        self.gate: Gate | None = None if authorize is None else Gate(authorize)
        self.readers: Readers = Readers(max_readers_per_stream)
        self.room: Room | None = None if max_streams is None else Room(self.store, max_streams)
        self._most_requests: float = float("inf") if max_requests is None else max_requests
        self.in_progress: int = 0
        self.inspection = inspection
        self.access_log = access_log
        self.metrics: Metrics | None = None
        if metrics:
            self.metrics = Metrics(self.store, readers=lambda: self.readers.open, in_progress=lambda: self.in_progress)
        self.rng: random.Random = random.Random() if rng is None else rng
        self.arrivals: Arrivals = Arrivals()
        self.waits: Waits = Waits()
        self.events: dict[StreamRef, StreamEvents] = {}
        how = Webhooks() if webhooks is True else webhooks or None
        self.subscriptions: SubscriptionService = SubscriptionService(
            self.store,
            clock=clock,
            rng=self.rng,
            webhooks=how,
            allow_insecure=allow_insecure_webhooks,
            token_key=token_key,
            scan_interval=scan_interval,
        )
        self._control: ControlInterface = ControlInterface(
            self.subscriptions, public_url=self.public_url, max_body=max_append_bytes, gate=self.gate
        )
        self._cors = Cors(cors_origin, corp)
        self.common: Headers = self._cors.default
        self._locate = lru_cache(_KNOWN_PATHS)(self._locate_uncached)

    def __repr__(self) -> str:
        state = "stopping" if self.waits.stopping else "serving"
        return f"<DurableStreamsApp {state} {self.root or '/'} from {self.store!r}>"

    def begin_life(self) -> None:
        """Forget that an earlier life came to an end. Called by `lifespan` and by ASGI's."""
        if self._ended:
            self.waits, self.failure, self._ended = Waits(), None, False

    def end_life(self) -> None:
        """The store is closed. Called by `lifespan` and by ASGI's."""
        self._ended = True

    def begin_shutdown(self) -> None:
        """Prepare for the end: live readers get a proper last word now, new requests 503. Idempotent.

        Waiting long-polls are answered with 204, event streams end after a whole event, appends in progress finish.
        Servers wait for open answers before they run the lifespan's shutdown, so this has to come first: `Server` does
        it; with another ASGI server call it when your process is told to stop. To be called on the event loop's thread.
        """
        if not self.waits.stopping:
            logger.debug("shutting down")
            self.waits.stop()
            self.subscriptions.stop()

    def lifespan(self, outer: object = None) -> AbstractAsyncContextManager[None]:
        """The life of this application, for one that mounts it; not needed if it is run by itself.

        In the block the store is open, subscriptions are served and expired streams are swept.

            streams = DurableStreamsApp(SQLiteStore("streams.db"))
            api = FastAPI(lifespan=streams.lifespan)
            api.mount("/streams", streams)

        Leaving it ends waiting readers. Servers wait for those before they leave it, so call `begin_shutdown` when
        your process is told to stop, see there.

        Args:
            outer: The application that mounts this one; not used, but what is passed by Starlette.

        Raises:
            StoreError: on entering, if the store cannot be opened; on leaving, if it has failed.
        """
        return life(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] == "http":
            await self.serve(Call(scope, receive, send, self.common))
        elif scope["type"] == "lifespan":
            await answer_lifespan(self, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise ValueError(f"ASGI scope of type {scope['type']!r} is not supported")

    async def serve(self, call: Call, handler: _Handler | None = None) -> None:
        """Serve a request: by its method and path, or by this handler."""
        self.in_progress += 1
        begun = time.perf_counter() if self.access_log else 0.0
        try:
            try:
                await (self._route(call) if handler is None else handler(self, call))
            except Rejection as rejection:
                await call.reject(rejection)
        except Disconnected:
            logger.debug("client went away method=%s path=%s", call.method, call.path)
        except Exception:
            if call.started:
                raise  # the server cuts the connection, so that the client sees an incomplete answer
            logger.exception("request failed method=%s path=%s", call.method, call.path)
            with suppress(Disconnected):
                await call.reject(Rejection(500, "internal error", close=True))
        finally:
            self.in_progress -= 1
            if self.metrics is not None:
                self.metrics.count_request(call.method, call.status)
            if self.access_log:
                facts = {"method": call.method, "path": call.path or "-", "status": call.status}
                facts["seconds"] = round(time.perf_counter() - begun, 6)
                words = "%(method)s %(path)s %(status)d %(seconds).6f"
                access_logger.info(words, facts, extra=facts)

    def serve_now(self, call: Exchange) -> bool:
        """Serve a request that is there as a whole without a task, if that can be done. Returns whether it is."""
        if call.method != "POST" or self._prompt is None:
            return False
        self.in_progress += 1
        try:
            is_ours = not self._enter(call)
            if is_ours:
                writing.post_now(self, self._prompt, call)
        except Exception as problem:
            self.conclude(call, partial(_raise, problem))
            return True
        if not is_ours:
            self.in_progress -= 1
        return is_ours

    @cached_property
    def _prompt(self) -> PromptStore | None:
        """The store, if it and what is asked and told of each request need no task."""
        plain = self.gate is None and not self.access_log
        return prompt_store(self.store) if plain else None

    def serve_after_all(self, call: Exchange, handler: _Handler) -> None:
        """Serve in a task what `serve_now` has begun to serve, as it has to wait."""
        self.in_progress -= 1
        call.spawn(self.serve(call, handler))

    def conclude(self, call: Exchange, answer: Callable[[], tuple[int, Headers]]) -> None:
        """Answer what `serve_now` serves, with what `answer` returns or raises."""
        try:
            try:
                call.answer_now(*answer())
            except Rejection as rejection:
                call.answer_now(*call.rejection_answer(rejection))
        except Disconnected:
            logger.debug("client went away method=%s path=%s", call.method, call.path)
        except Exception:
            logger.exception("request failed method=%s path=%s", call.method, call.path)
            with suppress(Disconnected):
                call.answer_now(*call.rejection_answer(Rejection(500, "internal error", close=True)))
        finally:
            self.in_progress -= 1
            if self.metrics is not None:
                self.metrics.count_request(call.method, call.status)

    def _enter(self, call: Call) -> str:
        """Read a request's headers and see where it goes.

        Returns:
            What `_locate` finds.

        Raises:
            Rejection: if it may not go there now.
        """
        call.read_headers()
        if self._cors.choosy:
            call.common, call.varies = self._cors.headers(call.headers.get(b"origin")), b"Origin"
        if call.method == "OPTIONS":
            return ""
        place, call.path = self._locate(raw_path(call.scope), call.scope.get("root_path", ""))
        if place not in health.PATHS:
            if self.waits.stopping and not call.admitted:
                raise busy("the server is shutting down")
            if self.in_progress > self._most_requests:
                raise busy("the server has as many requests as it takes at a time")
        return place

    async def _route(self, call: Call) -> None:
        place = self._enter(call)
        if call.method == "OPTIONS":
            await call.answer(204, [(b"access-control-max-age", b"86400")])
            return
        if place in health.PATHS:
            await health.answer(self, call, place)
            return
        if place == _CONTROL:
            await self._control.answer(call)
            return
        if self.gate is not None:
            await self.gate.check(call)
        handler = _HANDLERS.get(call.method)
        if handler is None:
            raise Rejection(405, "the method is not supported", [(b"allow", METHODS.encode())])
        await handler(self, call)

    def _locate_uncached(self, raw: bytes, mounted_at: str) -> tuple[str, str]:
        """What a path belongs to, and its one spelling.

        Streams are named by their full path, that of an application we are mounted in included.

        Returns:
            "" for a stream, `_CONTROL` for the control interface, or one of `health.PATHS`; and the path, which is ""
            if it is malformed.

        Raises:
            Rejection: if it is malformed and not for the control interface, or not below the root.
        """
        mount = quote_mount(mounted_at)
        full = raw if not mount or raw.startswith(mount + b"/") else mount + raw
        path = normalize_path(full)
        if path is None:
            if full.startswith(f"{self.root}/{_CONTROL}/".encode(), len(mount)):
                return _CONTROL, ""  # which answers in its own words
            raise Rejection(400, "the path is not acceptable as the name of a stream")
        above = normalize_path(mount) or ""
        beside = above if self.root else f"{above}/{_CONTROL}"
        if path.startswith(f"{beside}/") and path[len(beside) :] in health.PATHS:
            return path[len(beside) :], path
        root = f"{above}{self.root}/"
        if not path.startswith(root):
            raise Rejection(404, "streams live below another path on this server")
        segment = path[len(root) :].partition("/")[0]
        return _CONTROL if segment == _CONTROL else "", path


def _raise(problem: Exception) -> NoReturn:
    raise problem


def _check_root(root: str) -> str:
    root = root.rstrip("/")
    if root and normalize_path(root.encode()) != root:
        raise ValueError(f"root must be a URL path such as '/v1/stream', got {root!r}")
    return root
