"""The one loop that fetches: it carries out what a session asks for and reports back.

The driver knows no rule of the protocol. It owns the open answer, the waiting and the user's callables; a session
(reading, or a single operation) decides. It holds no task: everything happens inside `advance`, in the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel

from .._core.exchange import Ask, Deliver, End, Failure, Fetch, Receive, RetryDetails, Session, Sleep
from ..errors import BusyResourceError, DurableStreamError, NetworkError
from .answer import Answer, open_answer
from .context import Context

T = TypeVar("T")

#: The failure in a row that is worth a warning; those before are ordinary.
_WARN_AT = 3
#: Seconds that closing a connection may take.
_CLOSE_GRACE = 1.0


class Driver(Generic[T]):
    """Runs one session.

    Args:
        session: Decides what to do.
        context: The user's part of each request.
        logger: Where retries and notices go.
        on_failed_attempt: The user's hook for failures that are repeated.
        body: Sent in chunks instead of the request's body.
        max_bytes: Largest decoded answer accepted, or None.

    Attributes:
        requests: Requests made, those that failed and were repeated included.
        retries: Failures that were repeated.
        budget: Most bytes that the caller still accepts, or None: an answer is not read further than that.
    """

    def __init__(
        self,
        session: Session[T],
        context: Context,
        *,
        logger: logging.Logger,
        on_failed_attempt: Callable[[RetryDetails], None] | None = None,
        body: AsyncIterable[bytes] | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.session = session
        self.context = context
        self.requests = 0
        self.retries = 0
        self.budget: int | None = None
        self._logger = logger
        self._hook = on_failed_attempt
        self._body = body
        self._max_bytes = max_bytes
        self._answer: Answer | None = None
        self._handed = False
        self._announced: RetryDetails | None = None
        self._slept_until = 0.0
        self._scope: anyio.CancelScope | None = None
        self._left: anyio.Event | None = None
        self._waited = False

    async def advance(self) -> T | None:
        """The next value that the session delivers; None when it is over.

        Calling it again tells the session that the value before has been taken. A cancelled call loses nothing: the
        next one goes on from the same value.

        Raises:
            BusyResourceError: another task is in here.
            Whatever ends the session.
        """
        value = None  # It stays so if `interrupt` cancels the turn.
        with self._turn():
            self.taken()
            self._waited = False
            value = await self._run()
        return value

    def taken(self) -> None:
        """The caller is done with the value that `advance` returned last; said by the next `advance` otherwise."""
        if self._handed:
            self._handed = False
            self.session.on_taken()

    async def establish(self) -> None:
        """Do what the session asks for until the head of an acceptable first answer has come."""
        with self._turn():
            await self._run(until_head=True)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The presence of one task in here: a scope that `interrupt` reaches, and the mark that it is busy."""
        if self._scope is not None:
            raise BusyResourceError("another task is already waiting for this session's next batch")
        self._scope = anyio.CancelScope()
        try:
            with self._scope:
                yield
        finally:
            self._scope = None
            left, self._left = self._left, None
            if left is not None:
                left.set()

    async def _run(self, *, until_head: bool = False) -> T | None:
        session = self.session
        try:
            while True:
                command = session.next(max(anyio.current_time(), self._slept_until))
                match command:
                    case Receive():
                        if until_head and not self._is_error():
                            return None
                        await self._receive()
                    case Deliver():
                        if until_head:
                            return None
                        if not self._waited:
                            await anyio.lowlevel.checkpoint()
                        self._handed = True
                        value: T = command.value
                        return value
                    case _:
                        if self._answer is not None:
                            await self.close_answer()
                        match command:
                            case Fetch():
                                await self._fetch(command)
                            case Sleep():
                                await self._sleep(command)
                            case Ask():
                                await self._ask(command)
                            case End(error):
                                if error is not None:
                                    raise error
                                return None
                self._report_notices()
        except BaseException:
            session.on_abandoned()
            await self.close_answer()
            raise

    def _is_error(self) -> bool:
        return self._answer is None or self._answer.head.status not in (200, 204)

    async def _fetch(self, command: Fetch) -> None:
        self.requests += 1
        self._waited = True
        request = command.request
        try:
            self._answer = await open_answer(self.context, request, body=self._body, max_bytes=self._max_bytes)
        except Exception as error:
            self._name(error)
            phase = error.phase if isinstance(error, NetworkError) else "connect"
            self._logger.debug("failed url=%s method=%s error=%r", self.context.url.display, request.method, error)
            self.session.on_failure(Failure(error, phase), anyio.current_time(), self.context.rng.random())
            return
        head = self._answer.head
        self._logger.debug(
            "answered url=%s method=%s kind=%s status=%d",
            self.context.url.display,
            request.method,
            request.kind.value,
            head.status,
        )
        self.session.on_head(head, anyio.current_time(), self.context.rng.random())

    async def _receive(self) -> None:
        assert self._answer is not None
        self._waited = True
        self._answer.budget = self.budget
        try:
            data = await self._answer.receive()
        except DurableStreamError as error:
            self._name(error)
            await self.close_answer()
            self.session.on_failure(Failure(error, "body"), anyio.current_time(), self.context.rng.random())
            return
        if data:
            self.session.on_chunk(data, anyio.current_time())
        else:
            await self.close_answer()
            self.session.on_end(anyio.current_time(), self.context.rng.random())

    async def _sleep(self, command: Sleep) -> None:
        retry = command.retry
        if retry is not None and retry.attempt and retry is not self._announced:
            self._announced = retry
            self.retries += 1
            level = logging.WARNING if retry.attempt == _WARN_AT else logging.DEBUG
            self._logger.log(
                level,
                "retrying url=%s attempt=%d delay=%.3f error=%s",
                self.context.url.display,
                retry.attempt,
                retry.delay,
                retry.error,
            )
            if self._hook is not None:
                self._hook(retry)
        self._waited = True
        await anyio.sleep_until(command.until)
        self._slept_until = command.until  # A timer may fire early by the resolution of its clock.

    async def _ask(self, command: Ask) -> None:
        self._waited = True
        try:
            retry = await self.context.recover(command.error)
        except Exception:
            self.session.on_recover(False)
            raise
        self.session.on_recover(retry)

    def _name(self, error: Exception) -> None:
        """Transports know the URL of the request; what the user knows is the stream's."""
        if isinstance(error, DurableStreamError):
            error.url = self.context.url.display

    def _report_notices(self) -> None:
        notices = getattr(self.session, "notices", None)
        if notices:
            for notice in notices:
                self._logger.warning("%s url=%s", notice, self.context.url.display)
            notices.clear()

    async def close_answer(self) -> None:
        """Close the open answer, if there is one. Not cancelled by the surrounding scope; bounded in time."""
        answer, self._answer = self._answer, None
        if answer is not None:
            with anyio.move_on_after(_CLOSE_GRACE, shield=True):
                await answer.aclose()

    def interrupt(self) -> None:
        """Make a pending `advance` return None. The caller has told the session to end."""
        if self._scope is not None:
            self._scope.cancel()

    async def aclose(self) -> None:
        """Interrupt a pending call, wait for it to leave, and close the open answer."""
        if self._scope is not None:
            left = self._left = self._left or anyio.Event()  # Others may be waiting already.
            self._scope.cancel()
            with anyio.move_on_after(_CLOSE_GRACE, shield=True):
                await left.wait()
        await self.close_answer()
