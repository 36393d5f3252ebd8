"""Our server in a process of its own: `python -m benchmarks.server [sqlite:PATH]`.

Prints one line with its URL and ends when standard input closes.
"""

import json
import sys

from durable_streams.server import Server, SQLiteStore

store = SQLiteStore(sys.argv[1].removeprefix("sqlite:")) if len(sys.argv) > 1 else None
with Server(store) as server:
    print(json.dumps({"url": server.base_url}), flush=True)
    sys.stdin.read()
