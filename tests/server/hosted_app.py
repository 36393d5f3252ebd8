"""The application that `test_hosts` gives to ASGI servers."""

import os

from durable_streams.server import AccessRequest, Allow, Deny, DurableStreamsApp, MemoryStore, SQLiteStore


async def authorize(request: AccessRequest) -> Allow | Deny:
    """Keeps one corner of the server for those who know the word."""
    if not request.path.startswith("/v1/stream/private/") or request.token == "sesame":
        return Allow()
    return Deny()


_path = os.environ.get("HOSTED_STORE")
app = DurableStreamsApp(
    MemoryStore() if _path is None else SQLiteStore(_path),
    long_poll_timeout=0.05,
    authorize=authorize,
    metrics=True,
    max_readers_per_stream=2,
    max_append_bytes=16 << 20,
    sse_max_age=3600,
    end_on_signals="HOSTED_SIGNALS" in os.environ,
)
