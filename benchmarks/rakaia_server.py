"""rakaia-streams in a process of its own, by the Python of its own environment: `rakaia_server.py [FOLDER]`.

In memory, or with a folder on disk. Prints one line with its URL and ends when standard input closes.
"""

import json
import socket
import sys
import threading

import uvicorn
from rakaia import create_app  # type: ignore[import-not-found]  # installed in another environment

if len(sys.argv) > 1:
    from rakaia.jsonl_store import JsonlStreamStore  # type: ignore[import-not-found]  # the same

    app = create_app(store=JsonlStreamStore(sys.argv[1]))
else:
    app = create_app()
listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning"))
threading.Thread(target=server.run, args=([listener],), daemon=True).start()
print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
sys.stdin.read()
