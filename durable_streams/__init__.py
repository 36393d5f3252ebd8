"""Durable streams for Python: append-only logs behind URLs, read from any position and followed live.

Reading:      `stream`, or `DurableStream.stream`; both give a `StreamResponse`
Writing:      `DurableStream`; `IdempotentProducer` for exactly-once, batched and pipelined
Positions:    `Checkpoint`
Policies:     `BackoffOptions`, `SSEResilience`
Errors:       one tree below `DurableStreamError`, drawn in `durable_streams.errors`
Transports:   `open_transport` makes one to share, `ASGITransport` one to an application in the same process

`durable_streams.server` has a server to run or embed, `durable_streams.testing` what tests need.
"""

# Refuse to be half of another distribution before anything else.
from ._collision import refuse_collision

refuse_collision()

TYPE_CHECKING = False  # Type checkers know better; `typing` alone would cost more than the rest of this import.
if TYPE_CHECKING:
    # Reading
    from ._client.stream import stream as stream
    from ._client.stream import StreamSession as StreamSession
    from ._client.response import StreamResponse as StreamResponse
    from ._client.batches import Batch as Batch
    from ._client.batches import BytesBatch as BytesBatch
    from ._client.batches import JsonBatch as JsonBatch
    from ._client.batches import ReadStatistics as ReadStatistics
    from ._client.batches import TextBatch as TextBatch
    from ._client.iterators import BatchIterator as BatchIterator
    from ._client.iterators import ItemIterator as ItemIterator

    # Writing
    from ._client.handle import DurableStream as DurableStream
    from ._client.results import AppendResult as AppendResult
    from ._client.results import CloseResult as CloseResult
    from ._client.results import CreateResult as CreateResult
    from ._client.results import DeleteResult as DeleteResult
    from ._client.results import HeadResult as HeadResult
    from ._client.results import ProducerStamp as ProducerStamp
    from ._client.results import Result as Result

    # Writing exactly once
    from ._client.producer import BatchInfo as BatchInfo
    from ._client.producer import Batching as Batching
    from ._client.producer import FlushResult as FlushResult
    from ._client.producer import IdempotentProducer as IdempotentProducer
    from ._client.producer import ProducerStatistics as ProducerStatistics
    from ._client.receipt import Receipt as Receipt
    from ._client.writable import StreamWriter as StreamWriter
    from ._core.batcher import Ack as Ack

    # Positions
    from ._core.checkpoint import Checkpoint as Checkpoint

    # Policies
    from ._client.context import HeaderValue as HeaderValue
    from ._client.context import OnError as OnError
    from ._client.context import ParamValue as ParamValue
    from ._client.context import Recovery as Recovery
    from ._core.backoff import BackoffOptions as BackoffOptions
    from ._core.exchange import RetryDetails as RetryDetails
    from ._core.read_session import SSEResilience as SSEResilience

    # Transports
    from ._transport.asgi import ASGITransport as ASGITransport
    from ._transport.default import open_transport as open_transport
    from ._transport.base import Exchange as Exchange
    from ._transport.base import Timeouts as Timeouts
    from ._transport.base import Transport as Transport

    # Errors
    from .errors import AlreadyClosedError as AlreadyClosedError
    from .errors import BufferFullError as BufferFullError
    from .errors import BusyResourceError as BusyResourceError
    from .errors import ConflictError as ConflictError
    from .errors import DurableStreamError as DurableStreamError
    from .errors import FetchError as FetchError
    from .errors import IncompleteBodyError as IncompleteBodyError
    from .errors import InvalidArgumentError as InvalidArgumentError
    from .errors import NetworkError as NetworkError
    from .errors import ParseError as ParseError
    from .errors import RequestTimeoutError as RequestTimeoutError
    from .errors import RetentionGoneError as RetentionGoneError
    from .errors import SeqConflictError as SeqConflictError
    from .errors import SequenceGapError as SequenceGapError
    from .errors import SSENotSupportedError as SSENotSupportedError
    from .errors import StaleEpochError as StaleEpochError
    from .errors import StreamClosedError as StreamClosedError
    from .errors import StreamConsumedError as StreamConsumedError
    from .errors import StreamExistsError as StreamExistsError
    from .errors import StreamNotFoundError as StreamNotFoundError

    __version__: str
else:
    #: Module -> its public names, as above. They are imported when they are first used: `import durable_streams` itself
    #: costs next to nothing.
    _NAMES = {
        "._client.stream": "stream StreamSession",
        "._client.response": "StreamResponse",
        "._client.iterators": "BatchIterator ItemIterator",
        "._client.batches": "Batch BytesBatch JsonBatch ReadStatistics TextBatch",
        "._client.handle": "DurableStream",
        "._client.results": "AppendResult CloseResult CreateResult DeleteResult HeadResult ProducerStamp Result",
        "._client.producer": "BatchInfo Batching FlushResult IdempotentProducer ProducerStatistics",
        "._client.receipt": "Receipt",
        "._client.writable": "StreamWriter",
        "._core.batcher": "Ack",
        "._core.checkpoint": "Checkpoint",
        "._client.context": "HeaderValue OnError ParamValue Recovery",
        "._core.backoff": "BackoffOptions",
        "._core.exchange": "RetryDetails",
        "._core.read_session": "SSEResilience",
        "._transport.asgi": "ASGITransport",
        "._transport.default": "open_transport",
        "._transport.base": "Exchange Timeouts Transport",
        ".errors": (
            "AlreadyClosedError BufferFullError BusyResourceError ConflictError DurableStreamError "
            "FetchError IncompleteBodyError InvalidArgumentError NetworkError ParseError RequestTimeoutError "
            "RetentionGoneError SeqConflictError SequenceGapError SSENotSupportedError StaleEpochError "
            "StreamClosedError StreamConsumedError StreamExistsError StreamNotFoundError"
        ),
    }
    _HOMES = dict(sorted((name, module) for module, names in _NAMES.items() for name in names.split()))
    __all__ = list(_HOMES)

    def __getattr__(name):
        if name == "__version__":
            from ._transport.version import version

            return version()
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import sys
        from importlib import import_module

        value = getattr(import_module(_HOMES[name], __name__), name)
        # The address a user would type, in tracebacks, docs and pickles; also of what was imported along with it.
        for public, home in _HOMES.items():
            module = sys.modules.get(__name__ + home)
            if module is not None and public not in globals():
                found = globals()[public] = getattr(module, public)
                if getattr(found, "__module__", "").startswith(__name__ + "."):
                    found.__module__ = __name__
        return value

    def __dir__():
        return [*globals(), *__all__, "__version__"]
