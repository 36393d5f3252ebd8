"""The server: an ASGI application, the stores behind it, and a runner.

Importing it imports no web server: `Server` loads uvicorn when it starts.
"""

# Refuse to be half of another distribution before anything is imported.
from .._collision import refuse_collision

refuse_collision()

# Serving
from .runner import Server as Server
from .http import DurableStreamsApp as DurableStreamsApp
from .http import AppOptions as AppOptions
from .subscriptions.webhooks import Webhooks as Webhooks

# Who may do what
from .authorization import Authorizer as Authorizer
from .authorization import AccessRequest as AccessRequest
from .authorization import Allow as Allow
from .authorization import Deny as Deny
from .token_file import TokenFile as TokenFile
from .token_file import TokenFileError as TokenFileError

# Seeing inside
from .metrics import Metrics as Metrics

# Stores
from .stores.memory import MemoryStore as MemoryStore
from .stores.sqlite import SQLiteStore as SQLiteStore
from .stores.errors import StoreError as StoreError
from .stores.errors import StoreFailedError as StoreFailedError
from .stores.errors import StoreFormatError as StoreFormatError
from .stores.errors import StoreInUseError as StoreInUseError

# Operating a store
from .operations.backup import backup_store as backup_store
from .operations.backup import Backup as Backup
from .operations.inspection import inspect_store as inspect_store
from .operations.inspection import StoreInspection as StoreInspection
from .stores.reports import StoreReport as StoreReport
from .stores.reports import StreamReport as StreamReport
from .stores.reports import ProducerReport as ProducerReport
from .stores.reports import SubscriptionReport as SubscriptionReport
from .stores.reports import InspectableStore as InspectableStore
from .operations.verification import verify_store as verify_store
from .operations.verification import Verification as Verification
from .operations.verification import Finding as Finding
from .operations.transfer import export_stream as export_stream
from .operations.transfer import import_stream as import_stream
from .operations.transfer import Transfer as Transfer
from .operations.transfer import StreamMissingError as StreamMissingError
from .operations.transfer import StreamPresentError as StreamPresentError
from .operations.export_file import ExportFormatError as ExportFormatError

# Writing a store of one's own: the seam
from .stores.base import Store as Store
from .stores.base import StorePage as StorePage
from .stores.base import Watch as Watch
from .stores.abilities import CountingStore as CountingStore
from .stores.abilities import FailingStore as FailingStore
from .stores.abilities import MeasuredStore as MeasuredStore
from .stores.abilities import PromptStore as PromptStore
from .stores.abilities import StoreFigures as StoreFigures
from .stores.abilities import Histogram as Histogram
from .subscriptions.records import SubscriptionStore as SubscriptionStore
from .offsets import Offset as Offset

# What a store is asked
from .creation import CreateRequest as CreateRequest
from .creation import StreamConfig as StreamConfig
from .creation import Fork as Fork
from .timestamps import Instant as Instant
from .protocol import AppendRequest as AppendRequest
from .protocol import ProducerStamp as ProducerStamp
from .protocol import Payload as Payload
from .protocol import InvalidJson as InvalidJson

# What it answers
from .stores.base import StreamInfo as StreamInfo
from .stores.base import StreamRef as StreamRef
from .stores.base import Created as Created
from .stores.base import Exists as Exists
from .stores.base import Deleted as Deleted
from .stores.base import SoftDeleted as SoftDeleted
from .stores.base import Missing as Missing
from .stores.base import Gone as Gone
from .stores.base import BadOffset as BadOffset
from .protocol import Appended as Appended
from .protocol import Duplicate as Duplicate
from .protocol import Refused as Refused
from .protocol import Reason as Reason

# What all stores share: the decisions about a creation and an append, and the forms of offsets and messages
from .creation import decide_repetition as decide_repetition
from .creation import decide_birth as decide_birth
from .creation import Birth as Birth
from .creation import ForkSource as ForkSource
from .protocol import decide as decide
from .protocol import StreamState as StreamState
from .protocol import ProducerState as ProducerState
from .protocol import Commit as Commit
from .offsets import format_offset as format_offset
from .offsets import parse_offset as parse_offset
from .json_messages import split_json as split_json

__all__ = [
    "AccessRequest",
    "Allow",
    "AppOptions",
    "AppendRequest",
    "Appended",
    "Authorizer",
    "Backup",
    "BadOffset",
    "Birth",
    "Commit",
    "CountingStore",
    "CreateRequest",
    "Created",
    "Deleted",
    "Deny",
    "Duplicate",
    "DurableStreamsApp",
    "Exists",
    "ExportFormatError",
    "FailingStore",
    "Finding",
    "Fork",
    "ForkSource",
    "Gone",
    "Histogram",
    "InspectableStore",
    "Instant",
    "InvalidJson",
    "MeasuredStore",
    "MemoryStore",
    "Metrics",
    "Missing",
    "Offset",
    "Payload",
    "ProducerReport",
    "ProducerStamp",
    "ProducerState",
    "PromptStore",
    "Reason",
    "Refused",
    "SQLiteStore",
    "Server",
    "SoftDeleted",
    "Store",
    "StoreError",
    "StoreFailedError",
    "StoreFigures",
    "StoreFormatError",
    "StoreInUseError",
    "StoreInspection",
    "StorePage",
    "StoreReport",
    "StreamConfig",
    "StreamInfo",
    "StreamMissingError",
    "StreamPresentError",
    "StreamRef",
    "StreamReport",
    "StreamState",
    "SubscriptionReport",
    "SubscriptionStore",
    "TokenFile",
    "TokenFileError",
    "Transfer",
    "Verification",
    "Watch",
    "Webhooks",
    "backup_store",
    "decide",
    "decide_birth",
    "decide_repetition",
    "export_stream",
    "format_offset",
    "import_stream",
    "inspect_store",
    "parse_offset",
    "split_json",
    "verify_store",
]

for _name in __all__:
    if _name not in ("Authorizer", "Offset"):  # aliases
        globals()[_name].__module__ = __name__
del _name
