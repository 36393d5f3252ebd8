"""Our server in a process of its own: prints one line with its URL and ends when standard input closes."""

import json
import sys

from durable_streams.server import Server

with Server() as server:
    print(json.dumps({"url": server.base_url}), flush=True)
    sys.stdin.read()
