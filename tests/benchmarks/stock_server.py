"""TensorFlow Serving, with a line on standard output once the model is loaded.

    python stock_server.py BINARY OUT THREADS [FLAG …]

Prints ``{"target": …, "pid": …}``. Ends the server when it is ended itself.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

from optserve.runtime import Client


def main() -> None:
    """Start it, wait, say so, wait for the end."""
    binary, out, threads, *flags = sys.argv[1:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            binary,
            f"--port={port}",
            "--rest_api_port=0",
            "--model_name=opt",
            f"--model_base_path={Path(out).resolve()}",
            f"--tensorflow_intra_op_parallelism={threads}",
            "--file_system_poll_wait_seconds=1",
            *flags,
        ],
        stdout=sys.stderr,
    )
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    with Client(f"127.0.0.1:{port}", wait=1800):
        pass
    ready = {"target": f"127.0.0.1:{port}", "pid": server.pid}
    print(json.dumps(ready), flush=True)
    sys.exit(server.wait())


if __name__ == "__main__":
    main()
