#!/usr/bin/env python3
"""Adapter between the upstream client conformance runner and this library: JSON lines in, JSON lines out.

A thin mapping of commands to the public API; no retries and no protocol logic of its own. The environment variable
`DURABLE_STREAMS_LOOP` chooses the event loop: "asyncio" (default) or "trio".
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

try:
    import durable_streams
except ModuleNotFoundError:  # Run by itself: the project's own environment has what is needed.
    python = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "python"
    if not python.exists() or os.environ.get("DURABLE_STREAMS_ADAPTER") == "1":
        raise
    os.environ["DURABLE_STREAMS_ADAPTER"] = "1"
    os.execv(python, [str(python), __file__, *sys.argv[1:]])

import anyio
import anyio.to_thread

from durable_streams import (
    AlreadyClosedError,
    BackoffOptions,
    BytesBatch,
    ConflictError,
    DurableStream,
    DurableStreamError,
    IdempotentProducer,
    InvalidArgumentError,
    JsonBatch,
    NetworkError,
    ParseError,
    ProducerStamp,
    RequestTimeoutError,
    SeqConflictError,
    SequenceGapError,
    StaleEpochError,
    StreamClosedError,
    StreamNotFoundError,
    TextBatch,
    open_transport,
)

Command = dict[str, Any]
Result = dict[str, Any]

FEATURES = (
    "batching",
    "sse",
    "longPoll",
    "auto",
    "streaming",
    "dynamicHeaders",
    "retryOptions",
    "batchItems",
    "strictZeroValidation",
)
#: What is reported of an operation that is done. Whether the server said 200 or 204 is its own affair, but where the
#: difference has a meaning: 201 for a stream that is new, 204 for a raw producer append that is a duplicate.
DONE = 200
#: First match wins: closed before sequence before conflict.
CODES: tuple[tuple[type[Exception], str], ...] = (
    (StreamClosedError, "STREAM_CLOSED"),
    (AlreadyClosedError, "STREAM_CLOSED"),  # Producers kept here end by closing their stream, in no other way.
    (SeqConflictError, "SEQUENCE_CONFLICT"),
    (SequenceGapError, "SEQUENCE_CONFLICT"),
    (StaleEpochError, "CONFLICT"),
    (ConflictError, "CONFLICT"),
    (StreamNotFoundError, "NOT_FOUND"),
    (ParseError, "PARSE_ERROR"),
    (RequestTimeoutError, "TIMEOUT"),
    (NetworkError, "NETWORK_ERROR"),
)
#: Option names of `validate`: theirs, ours, and what turns their unit into ours.
OPTIONS: dict[str, dict[str, tuple[str, float | None]]] = {
    "retry-options": {
        "maxRetries": ("max_retries", None),
        "initialDelayMs": ("initial_delay", 1000),
        "maxDelayMs": ("max_delay", 1000),
        "multiplier": ("multiplier", None),
    },
    "idempotent-producer": {
        "producerId": ("producer_id", None),
        "epoch": ("epoch", None),
        "maxBatchBytes": ("max_batch_bytes", None),
        "maxBatchItems": ("max_batch_items", None),
    },
}


class NotSupportedError(Exception):
    """A command that this adapter does not know."""


class Dynamic:
    """Headers and params whose values are made anew for each operation, and what the present operation sends."""

    def __init__(self) -> None:
        self.makers: dict[str, dict[str, Callable[[], str]]] = {"headers": {}, "params": {}}
        self.sent: dict[str, dict[str, str]] = {"headers": {}, "params": {}}

    def add(self, kind: str, name: str, value_type: str, initial: str | None) -> None:
        counter = itertools.count(1)
        self.makers[kind][name] = {
            "counter": lambda: str(next(counter)),
            "timestamp": lambda: str(time.time_ns() // 1_000_000),
            "token": lambda: initial or "",
        }[value_type]

    def begin(self, headers: dict[str, str]) -> None:
        """An operation begins: make its values. The command's own headers win."""
        self.sent = {kind: {name: make() for name, make in makers.items()} for kind, makers in self.makers.items()}
        own = {name.lower() for name in headers}
        kept = {name: value for name, value in self.sent["headers"].items() if name.lower() not in own}
        self.sent["headers"] = kept | headers

    def callables(self, kind: str) -> dict[str, Callable[[], str]]:
        """The present operation's values as the client takes them."""
        return {name: partial(str, value) for name, value in self.sent[kind].items()}

    def report(self) -> Result:
        return {f"{kind}Sent": sent for kind, sent in self.sent.items() if self.makers[kind]}


class Adapter:
    """One connection to the runner."""

    def __init__(self, task_group: Any) -> None:
        self.task_group = task_group
        self.stack = AsyncExitStack()
        self.handlers: dict[str, Callable[[Command], Awaitable[Result]]] = {
            "init": self.init,
            "create": self.create,
            "connect": self.connect,
            "append": self.append,
            "read": self.read,
            "head": self.head,
            "delete": self.delete,
            "close": self.close,
            "idempotent-append": self.idempotent_append,
            "idempotent-append-batch": self.idempotent_append_batch,
            "idempotent-close": self.idempotent_close,
            "idempotent-detach": self.idempotent_detach,
            "set-dynamic-header": self.set_dynamic,
            "set-dynamic-param": self.set_dynamic,
            "clear-dynamic": self.clear_dynamic,
            "validate": self.validate,
            "benchmark": self.benchmark,
            "shutdown": self.shutdown,
        }
        self.running = True

    async def run(self) -> None:
        while self.running:
            line = await anyio.to_thread.run_sync(sys.stdin.buffer.readline, abandon_on_cancel=True)
            if not line:
                break
            if line.strip():
                # ensure_ascii escapes U+2028 and U+2029 too.
                sys.stdout.write(json.dumps(await self.answer(line), ensure_ascii=True) + "\n")
                sys.stdout.flush()
        await self.reset()

    async def answer(self, line: bytes) -> Result:
        kind = "unknown"
        try:
            command = json.loads(line)
            kind = command["type"]
            if kind not in self.handlers:
                raise NotSupportedError(f"unknown command {kind!r}")
            return {"type": kind, "success": True, **await self.handlers[kind](command)}
        except Exception as error:
            return failure(kind, error)

    # -- Session -------------------------------------------------------------------------------------------

    async def init(self, command: Command) -> Result:
        await self.reset()
        self.server_url = command["serverUrl"].rstrip("/")
        self.transport = open_transport()
        self.stack.push_async_callback(self.transport.aclose)
        self.backoff = BackoffOptions(max_elapsed=command.get("timeoutMs", 30_000) / 2000)
        return {
            "clientName": "durable-streams-anyio",
            "clientVersion": durable_streams.__version__,
            "features": dict.fromkeys(FEATURES, True),
        }

    async def reset(self) -> None:
        for producer in getattr(self, "producers", {}).values():
            await producer.abort()
        await self.stack.aclose()
        self.content_types: dict[str, str] = {}
        self.producers: dict[tuple[str, str, int], IdempotentProducer] = {}
        self.dynamic = Dynamic()

    async def shutdown(self, command: Command) -> Result:
        self.running = False
        return {}

    async def set_dynamic(self, command: Command) -> Result:
        kind = "headers" if command["type"] == "set-dynamic-header" else "params"
        self.dynamic.add(kind, command["name"], command["valueType"], command.get("initialValue"))
        return {}

    async def clear_dynamic(self, command: Command) -> Result:
        self.dynamic = Dynamic()
        return {}

    def handle(self, command: Command, content_type: str | None = None) -> DurableStream:
        path = command["path"]
        self.dynamic.begin(command.get("headers") or {})
        return DurableStream(
            self.server_url + path,
            headers=self.dynamic.callables("headers"),
            params=self.dynamic.callables("params"),
            content_type=content_type or self.content_types.get(path),
            backoff_options=self.backoff,
            # As the reference client: an append whose answer was lost is sent again.
            retry_ambiguous_appends=True,
            transport=self.transport,
        )

    # -- Streams -------------------------------------------------------------------------------------------

    async def create(self, command: Command) -> Result:
        handle = self.handle(command, command.get("contentType", "application/octet-stream"))
        result = await handle.create(
            ttl_seconds=command.get("ttlSeconds"),
            expires_at=command.get("expiresAt"),
            body=payload(command) if command.get("data") else None,
            closed=command.get("closed", False),
        )
        self.remember(command, result.content_type)
        return facts(result, offset=result.offset)

    async def connect(self, command: Command) -> Result:
        result = await self.handle(command).connect()
        self.remember(command, result.content_type)
        return facts(result, offset=result.offset)

    def remember(self, command: Command, content_type: str | None) -> None:
        if content_type:
            self.content_types[command["path"]] = content_type

    async def head(self, command: Command) -> Result:
        handle = self.handle(command)
        result = await handle.head()
        if not result.exists:
            raise StreamNotFoundError(f"there is no stream {command['path']}", status=404)
        self.remember(command, result.content_type)
        return facts(
            result,
            offset=result.offset,
            contentType=result.content_type,
            ttlSeconds=result.ttl_seconds,
            expiresAt=result.expires_at,
            streamClosed=result.stream_closed,
        )

    async def delete(self, command: Command) -> Result:
        result = await self.handle(command).delete()
        self.content_types.pop(command["path"], None)
        return facts(result) | {"status": DONE}

    async def close(self, command: Command) -> Result:
        data = command.get("data")
        content_type = command.get("contentType") or self.content_types.get(command["path"])
        result = await self.handle(command).close_stream(data or None, content_type=content_type if data else None)
        return {"finalOffset": result.final_offset}

    async def append(self, command: Command) -> Result:
        path = command["path"]
        handle = self.handle(command, self.content_types.get(path, "application/octet-stream"))
        stamp = None
        if command.get("producerId") is not None:
            stamp = ProducerStamp(command["producerId"], command.get("producerEpoch", 0), command.get("producerSeq", 0))
        seq = command.get("seq")
        result = await handle.append(payload(command), seq=None if seq is None else str(seq), producer=stamp)
        report = facts(result, offset=result.next_offset, **self.dynamic.report())
        if stamp is None:
            report["status"] = DONE
        else:
            numbers = present(
                producerEpoch=result.epoch,
                producerSeq=result.seq,
                producerExpectedSeq=result.expected_seq,
                producerReceivedSeq=result.received_seq,
            )
            report |= numbers | {"duplicate": result.duplicate}
            if result.outcome in ("stale-epoch", "gap"):
                code = "CONFLICT" if result.outcome == "stale-epoch" else "SEQUENCE_CONFLICT"
                message = f"append {path}: {result.outcome}"
                return report | refusal("append", code, message, status=result.status, details=numbers)
        return report

    async def read(self, command: Command) -> Result:
        live = command.get("live", False)
        offset = command.get("offset")
        chunks: list[Result] = []
        batches: list[Any] = []
        seen = present(status=200, offset=offset or "-1", upToDate=True)
        with anyio.move_on_after(command.get("timeoutMs", 5000) / 1000) as scope:
            async with self.handle(command).stream(offset=offset, live=live) as response:
                json_mode = is_json(response.content_type)
                async for batch in response.iter_batches("json" if json_mode else "bytes"):
                    seen = present(
                        status=response.status,
                        headers=dict(response.headers),
                        offset=batch.offset,
                        upToDate=batch.up_to_date,
                        streamClosed=batch.stream_closed,
                        cursor=batch.cursor,
                    )
                    if has_data(batch):
                        batches.append(batch)
                        chunks.append(chunk([batch]) | {"offset": batch.offset})
                    if live and len(chunks) >= command.get("maxChunks", 100):
                        break
                    if live and command.get("waitForUpToDate") and batch.up_to_date:
                        break
        if scope.cancelled_caught:
            seen["upToDate"] = True
        if not live and batches:
            chunks = [chunk(batches) | {"offset": seen["offset"]}]
        return {**seen, "chunks": chunks, **self.dynamic.report()}

    # -- Producers -----------------------------------------------------------------------------------------

    async def producer(self, command: Command) -> IdempotentProducer:
        key = (command["path"], command["producerId"], command.get("epoch", 0))
        if key not in self.producers:
            self.producers[key] = await self.started(command, max_in_flight=1, linger=0)
        return self.producers[key]

    async def started(self, command: Command, **options: Any) -> IdempotentProducer:
        handle = self.handle(command, self.content_types.get(command["path"], "application/octet-stream"))
        producer = IdempotentProducer(
            handle,
            command["producerId"],
            epoch=command.get("epoch", 0),
            auto_claim=command.get("autoClaim", False),
            **options,
        )
        await producer.start(self.task_group)
        return producer

    async def idempotent_append(self, command: Command) -> Result:
        producer = await self.producer(command)
        ack = await producer.send(payload(command))
        return present(status=DONE, offset=ack.offset, duplicate=ack.duplicate, producerSeq=ack.seq)

    async def idempotent_append_batch(self, command: Command) -> Result:
        lanes = command.get("maxInFlight", 1)
        options = {"linger": 1.0} if lanes <= 1 else {"linger": 0.0, "max_batch_bytes": 1}
        producer = await self.started(command, max_in_flight=max(lanes, 1), **options)
        try:
            await producer.append_many(command["items"])
            await producer.flush()
            return {"status": DONE, "producerSeq": producer.next_seq - 1}
        finally:
            await producer.abort()

    async def idempotent_close(self, command: Command) -> Result:
        producer = await self.producer(command)
        result = await producer.close_stream(command.get("data") or None)
        return present(status=DONE, finalOffset=result.final_offset)

    async def idempotent_detach(self, command: Command) -> Result:
        producer = await self.producer(command)
        self.producers.pop((command["path"], command["producerId"], command.get("epoch", 0)))
        await producer.detach()
        return {"status": DONE}

    # -- Options and benchmarks ----------------------------------------------------------------------------

    async def validate(self, command: Command) -> Result:
        target = command["target"]
        names = OPTIONS.get(target["target"])
        if names is None:
            raise NotSupportedError(f"unknown target {target['target']!r}")
        try:
            options = {}
            for theirs, (ours, scale) in names.items():
                if theirs in target:
                    options[ours] = target[theirs] / scale if scale is not None else target[theirs]
            if target["target"] == "retry-options":
                BackoffOptions(**options)
            else:
                IdempotentProducer("http://localhost/validate", **{"producer_id": "validate", **options})
        except (TypeError, ValueError) as error:
            message = str(error)
            for theirs, (ours, _) in names.items():
                message = message.replace(ours, theirs)
            return refusal("validate", "INVALID_ARGUMENT", message)
        return {}

    async def benchmark(self, command: Command) -> Result:
        operation = command["operation"]
        work = {
            "append": self.bench_append,
            "read": self.bench_read,
            "roundtrip": self.bench_roundtrip,
            "create": self.bench_create,
            "throughput_append": self.bench_throughput_append,
            "throughput_read": self.bench_throughput_read,
        }.get(operation["op"])
        if work is None:
            raise NotSupportedError(f"unknown operation {operation['op']!r}")
        duration, count, size = await work(operation)
        seconds = max(duration, 1) / 1e9
        metrics = {
            "bytesTransferred": size,
            "messagesProcessed": count,
            "opsPerSecond": count / seconds,
            "bytesPerSecond": size / seconds,
        }
        return {"iterationId": command["iterationId"], "durationNs": str(duration), "metrics": metrics}

    async def bench_append(self, operation: Command) -> tuple[int, int, int]:
        handle = self.handle(operation, self.content_types.get(operation["path"], "application/octet-stream"))
        data = filler(operation["size"], handle.content_type)
        start = time.perf_counter_ns()
        await handle.append(data)
        return time.perf_counter_ns() - start, 1, len(data)

    async def bench_read(self, operation: Command) -> tuple[int, int, int]:
        handle = self.handle(operation)
        start = time.perf_counter_ns()
        async with handle.stream(offset=operation.get("offset"), live=False) as response:
            data = await response.read()
        return time.perf_counter_ns() - start, 1, len(data)

    async def bench_create(self, operation: Command) -> tuple[int, int, int]:
        handle = self.handle(operation, operation.get("contentType", "application/octet-stream"))
        start = time.perf_counter_ns()
        await handle.create()
        return time.perf_counter_ns() - start, 1, 0

    async def bench_roundtrip(self, operation: Command) -> tuple[int, int, int]:
        content_type = operation.get("contentType", "application/octet-stream")
        handle = self.handle(operation, content_type)
        data = filler(operation["size"], content_type)
        created = await handle.create()
        start = time.perf_counter_ns()
        live = operation.get("live", "long-poll")
        async with handle.stream(offset=created.offset, live=live) as response, anyio.create_task_group() as group:
            group.start_soon(handle.append, data)
            async for batch in response.iter_batches():
                if has_data(batch):
                    break
            duration = time.perf_counter_ns() - start
        return duration, 1, 2 * len(data)

    async def bench_throughput_append(self, operation: Command) -> tuple[int, int, int]:
        handle = self.handle(operation, self.content_types.get(operation["path"], "application/octet-stream"))
        created = await handle.create_or_connect()
        self.remember(operation, created.content_type)
        count = operation["count"]
        data = filler(operation["size"], created.content_type)
        producer = IdempotentProducer(handle, f"benchmark-{time.time_ns()}", linger=0)
        async with producer:
            start = time.perf_counter_ns()
            await producer.append_many(data for _ in range(count))
            await producer.flush()
            duration = time.perf_counter_ns() - start
        return duration, count, count * len(data)

    async def bench_throughput_read(self, operation: Command) -> tuple[int, int, int]:
        handle = self.handle(operation)
        count = size = 0
        start = time.perf_counter_ns()
        async with handle.stream(live=False) as response:
            if is_json(response.content_type):
                async for _ in response.iter_json():
                    count += 1
                size = response.statistics().bytes
            else:
                async for piece in response.iter_bytes():
                    count += 1
                    size += len(piece)
        return time.perf_counter_ns() - start, count, size


def payload(command: Command) -> bytes | str:
    """The data of a command: text, or bytes if it came as base64."""
    data: str = command["data"]
    return base64.b64decode(data) if command.get("binary") else data


def is_json(content_type: str | None) -> bool:
    """Whether a stream of this type is read as JSON."""
    return (content_type or "").partition(";")[0].strip().lower() == "application/json"


def filler(size: int, content_type: str | None) -> bytes:
    """So many bytes; for a JSON stream one JSON text."""
    if is_json(content_type):
        return b'"' + b"x" * max(size - 2, 0) + b'"'
    return b"x" * size


def has_data(batch: JsonBatch[Any] | BytesBatch | TextBatch) -> bool:
    """Whether a batch carries anything."""
    match batch:
        case JsonBatch():
            return bool(batch.items)
        case BytesBatch():
            return bool(batch.data)
        case _:
            return bool(batch.text)


def chunk(batches: list[Any]) -> Result:
    """Batches as one chunk: a compact JSON array, text, or base64 of what is no text."""
    if isinstance(batches[0], JsonBatch):
        items = [item for batch in batches for item in batch.items]
        return {"data": json.dumps(items, separators=(",", ":"), ensure_ascii=False)}
    data = b"".join(batch.data for batch in batches)
    try:
        return {"data": data.decode()}
    except UnicodeDecodeError:
        return {"data": base64.b64encode(data).decode(), "binary": True}


def present(**fields: Any) -> Result:
    """The fields that are known."""
    return {name: value for name, value in fields.items() if value is not None}


def facts(result: Any, **fields: Any) -> Result:
    """Status and headers of a result, and further fields."""
    return present(status=result.status, headers=dict(result.headers), **fields)


def refusal(kind: str, code: str, message: str, **fields: Any) -> Result:
    """A failure result."""
    body = {"type": "error", "success": False, "commandType": kind, "errorCode": code, "message": message}
    return body | present(**fields)


def failure(kind: str, error: Exception) -> Result:
    """The failure result for an exception."""
    if isinstance(error, NotSupportedError):
        return refusal(kind, "NOT_SUPPORTED", str(error))
    if not isinstance(error, DurableStreamError):
        return refusal(kind, "INTERNAL_ERROR", f"{type(error).__name__}: {error}")
    status = error.status
    code = next((code for cls, code in CODES if isinstance(error, cls)), None)
    if code is None and error.code == "BAD_REQUEST":
        status = 400
        if kind == "read":
            code = "INVALID_OFFSET"
        elif isinstance(error, InvalidArgumentError):
            code = "INVALID_ARGUMENT"
    if code is None:
        code = "UNEXPECTED_STATUS" if status is not None else "INTERNAL_ERROR"
    details = None
    if isinstance(error, StaleEpochError):
        details = {"currentEpoch": error.current_epoch}
    elif isinstance(error, SequenceGapError):
        details = {"expectedSeq": error.expected_seq, "receivedSeq": error.received_seq}
    elif isinstance(error, StreamClosedError):
        details = present(finalOffset=error.final_offset)
    return refusal(kind, code, str(error), status=status, details=details)


async def main() -> None:
    async with anyio.create_task_group() as task_group:
        adapter = Adapter(task_group)
        await adapter.run()
        task_group.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, backend=os.environ.get("DURABLE_STREAMS_LOOP", "asyncio"))
