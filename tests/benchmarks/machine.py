"""What the figures are measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def machine(threads: int) -> dict[str, Any]:
    """Processor, its instruction sets that matter here, memory bandwidth, system."""
    facts = _processor()
    flags = set(facts.get("flags", "").split())
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "features": " ".join(f for f in _FEATURES if f in flags) or "baseline",
        "gigabytes_per_second": round(memory_bandwidth(threads) / 1e9),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _processor() -> dict[str, str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return {}
    lines = info.read_text().partition("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def commit() -> str:
    """The state of the code, marked if files differ from it."""
    command = ["git", "describe", "--always", "--dirty=, changed"]
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def memory_bandwidth(threads: int, seconds: float = 1.0) -> float:
    """Bytes a second that ``threads`` threads read together, measured here and now."""
    arrays = [np.ones(1 << 26, np.float32) for _ in range(threads)]  # 256 MiB each
    done = [0] * threads
    end = time.perf_counter() + seconds

    def read(index: int) -> None:
        while time.perf_counter() < end:
            arrays[index].max()
            done[index] += arrays[index].nbytes

    begin = time.perf_counter()
    pool = [threading.Thread(target=read, args=(i,)) for i in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return sum(done) / (time.perf_counter() - begin)
