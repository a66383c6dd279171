"""Our engines of the benchmark, each in a process of its own.

    python workers.py MODE TARGET THREADS

``MODE`` is ``grpc`` (TARGET: an address, cache explicit in every call), ``inprocess``
(TARGET: an export's folder) or ``litert`` (TARGET: a ``.tflite`` file). Speaks the
protocol of ``peers.py``, and adds the bytes that crossed the wire.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

from optserve.runtime import Client
from optserve.runtime.memory import keep_freed_memory
from peers import prompts_of


def main() -> None:
    """Answer the benchmark's commands on standard input until it closes."""
    mode, target, threads = sys.argv[1:]
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    keep_freed_memory()
    options: dict[str, Any] = {} if mode == "grpc" else {"threads": int(threads)}
    with Client(target, **options) as client:
        about = client.describe()
        version = f"{about.framework}, {about.compiler}, {about.weights_dtype}"
        print(json.dumps({"ready": True, "version": version}), file=say, flush=True)
        for line in sys.stdin:
            case = json.loads(line)
            prompts = prompts_of(case["prompt"], case["batch"])
            begin = time.perf_counter()
            results = client.generate(
                prompts, max_new_tokens=case["tokens"], stop_token_ids=[]
            )
            seconds = time.perf_counter() - begin
            assert all(len(r.tokens) == case["tokens"] for r in results)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            answer = {
                "seconds": seconds,
                "peak_bytes": peak,
                "bytes_sent": sum(r.bytes_sent for r in results),
                "bytes_received": sum(r.bytes_received for r in results),
            }
            print(json.dumps(answer), file=say, flush=True)


if __name__ == "__main__":
    main()
