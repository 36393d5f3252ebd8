"""electric's Rust server: `rust_server.py BINARY FOLDER wal|memory`.

Prints one line with its URL and ends it when standard input closes.
"""

import json
import socket
import subprocess
import sys
import time

binary, folder, durability = sys.argv[1:]
with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
server = subprocess.Popen(
    [binary, "--port", str(port), "--data-dir", folder, "--durability", durability], stdout=subprocess.DEVNULL
)
try:
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    else:
        sys.exit(f"it ended with exit code {server.returncode}")
    print(json.dumps({"url": f"http://127.0.0.1:{port}", "pid": server.pid}), flush=True)
    sys.stdin.read()
finally:
    server.terminate()
    server.wait()
