"""What callers see of an append session beside itself: a sink, the acknowledgements, and where it stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from .._core.fresh import fresh
from ._stream import RecordLike
from ._ticket import AppendTicket
from ._values import AppendAck, AppendInput
from .errors import S2SessionClosedError

if TYPE_CHECKING:
    from ._append_session import AppendSession


@dataclass(frozen=True, slots=True)
class AppendStatistics:
    """Where an append session stands, and where its time went.

    Attributes:
        pending_batches: Accepted and not acknowledged.
        pending_bytes: Their metered bytes.
        in_flight_batches: Of these, handed to the present connection.
        waiting: Callers that wait for room.
        acked_batches: Acknowledged so far.
        acked_records: Their records.
        acked_bytes: Their metered bytes.
        connections: Connections made so far.
        retries: Failures that were followed by another try.
        window_wait: Seconds spent in writing, the wait for the server's window included.
        ack_wait: Seconds from writing to acknowledgement, summed over batches.
        max_ack_wait: The longest of these.
        backpressure_wait: Seconds that callers spent waiting for room, summed.
    """

    pending_batches: int
    pending_bytes: int
    in_flight_batches: int
    waiting: int
    acked_batches: int
    acked_records: int
    acked_bytes: int
    connections: int
    retries: int
    window_wait: float
    ack_wait: float
    max_ack_wait: float
    backpressure_wait: float


class AppendWriter:
    """The sink of an append session, made by `AppendSession.writer`.

    `write` returns when the batch is accepted; leaving the block, or `aclose`, waits until all that was written is
    durable. The session stays open.
    """

    def __init__(self, session: AppendSession) -> None:
        self._session = session
        self._last: AppendTicket | None = None
        self._closed = False

    async def __aenter__(self) -> AppendWriter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        if error is None:
            await self.aclose()

    async def write(
        self,
        batch: AppendInput | RecordLike | Iterable[RecordLike],
        *,
        match_seq_num: int | None = None,
        fencing_token: str | None = None,
    ) -> None:
        """Hand over a batch, see `AppendSession.submit`. It is accepted then, not durable."""
        if self._closed:
            raise S2SessionClosedError("the writer was closed")
        self._last = await self._session.submit(batch, match_seq_num=match_seq_num, fencing_token=fencing_token)

    async def aclose(self) -> None:
        """Wait until all that was written is durable.

        Raises:
            S2Error: it will not be.
        """
        self._closed = True
        if self._last is not None:
            await self._last.wait()


class AckIterator:
    """The acknowledgements of an append session, made by `AppendSession.acks`. A cancelled step loses nothing."""

    def __init__(self, session: AppendSession) -> None:
        self._session = session
        self._before = session._settled

    def __aiter__(self) -> AckIterator:
        return self

    async def __anext__(self) -> AppendAck:
        ticket = await self._session._next_after(self._before)
        if ticket is None:
            if (failure := self._session.failure_cause) is not None:
                raise fresh(failure)
            raise StopAsyncIteration
        ack = await ticket.wait()
        self._before = ticket
        return ack
