"""S2 from Python: client, sessions and patterns, on asyncio and trio.

    async with S2("token", endpoints="http://localhost:8080") as s2:
        stream = s2.basin("my-basin").stream("my-stream")
        await stream.append(["hello", AppendRecord.text("world", headers={"kind": "greeting"})])
        page = await stream.read(seq_num=0)

`durable_streams.s2.patterns` has typed messages of any size on top. Importing loads no HTTP library: what a call needs
is loaded by the first one.
"""

# Refuse to be half of another distribution before anything is imported.
from .._collision import refuse_collision

refuse_collision()

# The client
from ._account import S2 as S2
from ._endpoints import Endpoints as Endpoints
from ._retry import S2Retry as S2Retry
from ._retry import AppendRetryPolicy as AppendRetryPolicy
from ._context import S2Timeouts as S2Timeouts
from ._context import AccessToken as AccessToken
from ._context import Compression as Compression
from ._context import SessionTransport as SessionTransport
from ._context import Encoding as Encoding

# Sessions
from ._append_session import AppendSession as AppendSession
from ._append_views import AppendWriter as AppendWriter
from ._append_views import AckIterator as AckIterator
from ._append_views import AppendStatistics as AppendStatistics
from ._ticket import AppendTicket as AppendTicket
from ._producer import Producer as Producer
from ._producer import RecordTicket as RecordTicket
from ._producer import IndexedAppendAck as IndexedAppendAck
from ._read_session import ReadSession as ReadSession
from ._read_session import RecordIterator as RecordIterator
from ._read_session import ReadStatistics as ReadStatistics
from ._read_core import Gap as Gap
from ._batching import Batcher as Batcher
from ._batching import batch_records as batch_records
from ._batching import RecordBatches as RecordBatches

# Basins and streams
from ._basins import Basins as Basins
from ._streams import Basin as Basin
from ._streams import Streams as Streams
from ._stream import Stream as Stream
from ._stream import RecordLike as RecordLike
from ._stream import AppendResolution as AppendResolution
from ._reading import ReadPage as ReadPage
from ._infos import BasinInfo as BasinInfo
from ._infos import StreamInfo as StreamInfo
from ._listing import Page as Page
from ._listing import Listing as Listing
from ._infos import ProvisionResult as ProvisionResult

# Configuration
from ._config import BasinConfig as BasinConfig
from ._config import StreamConfig as StreamConfig
from ._config import Timestamping as Timestamping
from ._config import BasinReconfiguration as BasinReconfiguration
from ._config import StreamReconfiguration as StreamReconfiguration
from ._config import TimestampingReconfiguration as TimestampingReconfiguration
from ._config import UNSET as UNSET
from ._config import Unset as Unset
from ._config import Retention as Retention
from ._config import TimestampingMode as TimestampingMode
from ._config import StreamCipher as StreamCipher

# Records and positions
from ._values import AppendRecord as AppendRecord
from ._values import AppendInput as AppendInput
from ._values import AppendAck as AppendAck
from ._values import SequencedRecord as SequencedRecord
from ._values import ReadBatch as ReadBatch
from ._values import StreamPosition as StreamPosition
from ._values import Header as Header
from ._values import SeqNum as SeqNum
from ._values import Timestamp as Timestamp
from ._values import TailOffset as TailOffset
from ._values import ReadStart as ReadStart
from ._values import metered_bytes as metered_bytes
from ._values import MAX_BATCH_BYTES as MAX_BATCH_BYTES
from ._values import MAX_BATCH_RECORDS as MAX_BATCH_RECORDS

# Access tokens
from ._access_tokens import AccessTokens as AccessTokens
from ._access_tokens import AccessTokenInfo as AccessTokenInfo
from ._access_tokens import AccessTokenScope as AccessTokenScope
from ._access_tokens import Exact as Exact
from ._access_tokens import Prefix as Prefix
from ._access_tokens import ResourceSet as ResourceSet
from ._access_tokens import OperationGroups as OperationGroups
from ._access_tokens import ReadWrite as ReadWrite

# Locations and metrics
from ._locations import Locations as Locations
from ._infos import LocationInfo as LocationInfo
from ._metrics import Metrics as Metrics
from ._metrics import Metric as Metric
from ._metrics import Scalar as Scalar
from ._metrics import Accumulation as Accumulation
from ._metrics import Gauge as Gauge
from ._metrics import Label as Label
from ._metrics import Interval as Interval
from ._metrics import Moment as Moment

# What goes wrong
from .errors import S2Error as S2Error
from .errors import S2ServerError as S2ServerError
from .errors import SeqNumMismatchError as SeqNumMismatchError
from .errors import FencingTokenMismatchError as FencingTokenMismatchError
from .errors import RangeNotSatisfiableError as RangeNotSatisfiableError
from .errors import S2ConnectionError as S2ConnectionError
from .errors import S2TimeoutError as S2TimeoutError
from .errors import S2ProtocolError as S2ProtocolError
from .errors import S2SessionClosedError as S2SessionClosedError

__all__ = [
    "MAX_BATCH_BYTES",
    "MAX_BATCH_RECORDS",
    "S2",
    "UNSET",
    "AccessToken",
    "AccessTokenInfo",
    "AccessTokenScope",
    "AccessTokens",
    "Accumulation",
    "AckIterator",
    "AppendAck",
    "AppendInput",
    "AppendRecord",
    "AppendResolution",
    "AppendRetryPolicy",
    "AppendSession",
    "AppendStatistics",
    "AppendTicket",
    "AppendWriter",
    "Basin",
    "BasinConfig",
    "BasinInfo",
    "BasinReconfiguration",
    "Basins",
    "Batcher",
    "Compression",
    "Encoding",
    "Endpoints",
    "Exact",
    "FencingTokenMismatchError",
    "Gap",
    "Gauge",
    "Header",
    "IndexedAppendAck",
    "Interval",
    "Label",
    "Listing",
    "LocationInfo",
    "Locations",
    "Metric",
    "Metrics",
    "Moment",
    "OperationGroups",
    "Page",
    "Prefix",
    "Producer",
    "ProvisionResult",
    "RangeNotSatisfiableError",
    "ReadBatch",
    "ReadPage",
    "ReadSession",
    "ReadStart",
    "ReadStatistics",
    "ReadWrite",
    "RecordBatches",
    "RecordIterator",
    "RecordLike",
    "RecordTicket",
    "ResourceSet",
    "Retention",
    "S2ConnectionError",
    "S2Error",
    "S2ProtocolError",
    "S2Retry",
    "S2ServerError",
    "S2SessionClosedError",
    "S2TimeoutError",
    "S2Timeouts",
    "Scalar",
    "SeqNum",
    "SeqNumMismatchError",
    "SequencedRecord",
    "SessionTransport",
    "Stream",
    "StreamCipher",
    "StreamConfig",
    "StreamInfo",
    "StreamPosition",
    "StreamReconfiguration",
    "Streams",
    "TailOffset",
    "Timestamp",
    "Timestamping",
    "TimestampingMode",
    "TimestampingReconfiguration",
    "Unset",
    "batch_records",
    "metered_bytes",
]

for _name in __all__:
    _value = globals()[_name]
    # The address a user would type, in tracebacks, docs and pickles; aliases and constants have none of their own.
    if callable(_value) and getattr(_value, "__module__", "").startswith(__name__ + "."):
        _value.__module__ = __name__
del _name, _value
