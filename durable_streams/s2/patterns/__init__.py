"""Messages of any type and size on S2 streams, written with retries and read once.

    async with SerializingAppendSession(stream.append_session(), JSON, dedupe_seq=0) as writer:
        await writer.submit({"text": "hello"})

    async with DeserializingReadSession(stream.read_session(ignore_command_records=True), JSON) as reader:
        async for message in reader:
            print(message["text"])

S2 stores records of at most 1 MiB, and a retried append may store some twice. Here a message is any value, of any size:
it is serialised, cut into records, and numbered, and comes back whole and once. What is written can be read with the
TypeScript package `@s2-dev/streamstore-patterns`, and the other way round; what that one groups under `serialization`
stands here directly, in Python's spelling.
"""

# Sessions of messages
from ._append import SerializingAppendSession as SerializingAppendSession
from ._append import MessageTicket as MessageTicket
from ._append import MessageAck as MessageAck
from ._append import AppendSessionLike as AppendSessionLike
from ._read import DeserializingReadSession as DeserializingReadSession
from ._read import ReadSessionLike as ReadSessionLike

# Serializers
from ._serializers import Serializer as Serializer
from ._serializers import JSON as JSON
from ._serializers import messagepack as messagepack

# Records of a message
from ._chunks import chunk_bytes as chunk_bytes
from ._chunks import frame_chunks_to_records as frame_chunks_to_records
from ._chunks import encode_u64 as encode_u64
from ._chunks import decode_u64 as decode_u64
from ._assembler import FrameAssembler as FrameAssembler
from ._assembler import CompletedFrame as CompletedFrame
from ._assembler import DroppedFrame as DroppedFrame
from ._assembler import FrameMeta as FrameMeta
from ._assembler import RecordWithBody as RecordWithBody

# Duplicates
from ._dedupe import inject_dedupe_headers as inject_dedupe_headers
from ._dedupe import extract_dedupe_seq as extract_dedupe_seq
from ._dedupe import DedupeFilter as DedupeFilter

# Limits and names on the wire
from ._chunks import MAX_CHUNK_BODY_BYTES as MAX_CHUNK_BODY_BYTES
from ._chunks import DEFAULT_MAX_FRAME_BYTES as DEFAULT_MAX_FRAME_BYTES
from ._chunks import FRAME_RECORDS_HEADER as FRAME_RECORDS_HEADER
from ._chunks import FRAME_BYTES_HEADER as FRAME_BYTES_HEADER
from ._chunks import DEDUPE_SEQ_HEADER as DEDUPE_SEQ_HEADER
from ._chunks import WRITER_ID_HEADER as WRITER_ID_HEADER
from ._dedupe import LEGACY_WRITER as LEGACY_WRITER

# What goes wrong
from ._errors import FrameSizeError as FrameSizeError
from ._errors import MessageFormatError as MessageFormatError

__all__ = [
    "DEDUPE_SEQ_HEADER",
    "DEFAULT_MAX_FRAME_BYTES",
    "FRAME_BYTES_HEADER",
    "FRAME_RECORDS_HEADER",
    "JSON",
    "LEGACY_WRITER",
    "MAX_CHUNK_BODY_BYTES",
    "WRITER_ID_HEADER",
    "AppendSessionLike",
    "CompletedFrame",
    "DedupeFilter",
    "DeserializingReadSession",
    "DroppedFrame",
    "FrameAssembler",
    "FrameMeta",
    "FrameSizeError",
    "MessageAck",
    "MessageFormatError",
    "MessageTicket",
    "ReadSessionLike",
    "RecordWithBody",
    "Serializer",
    "SerializingAppendSession",
    "chunk_bytes",
    "decode_u64",
    "encode_u64",
    "extract_dedupe_seq",
    "frame_chunks_to_records",
    "inject_dedupe_headers",
    "messagepack",
]

for _name in __all__:
    _value = globals()[_name]
    if callable(_value) and getattr(_value, "__module__", "").startswith(__name__ + "."):
        _value.__module__ = __name__  # the address a user would type, in tracebacks, docs and pickles
del _name, _value
