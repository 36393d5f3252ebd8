"""The server: an ASGI application, the stores behind it, and a runner.

Importing it imports no web server: `Server` loads uvicorn when it starts.
"""

from .http import DurableStreamsApp as DurableStreamsApp
from .runner import Server as Server
from .stores.memory import MemoryStore as MemoryStore

__all__ = ["DurableStreamsApp", "MemoryStore", "Server"]

for _public in (DurableStreamsApp, MemoryStore, Server):
    _public.__module__ = __name__
del _public
