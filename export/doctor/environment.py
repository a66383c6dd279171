"""The interpreter, the processor, and whether the heavy libraries can be imported.

What may be broken is tried in processes of its own, so that one bad library doesn't
hide the rest.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from .check import Check

_IMPORTS = {
    "tensorflow": "import tensorflow",
    "jax": "import jax; jax.devices('cpu')",
    # Both in one process share libraries and have clashed over them.
    "tensorflow and jax": "import tensorflow, jax; jax.devices('cpu')",
    "grpcio": "import grpc; grpc.insecure_channel('127.0.0.1:1').close()",
}
_IMPORT_SECONDS = 180.0

_INSTRUCTIONS = {"avx2", "fma", "avx512f"}
_INSTRUCTIONS |= {"avx_vnni", "avx512_vnni", "amx_int8"}  # for int8
_INSTRUCTIONS |= {"avx512_bf16", "amx_bf16", "bf16"}


def check_python() -> Iterator[Check]:
    """The interpreter and the system."""
    version, detail = sys.version_info, platform.python_version()
    fine = version >= (3, 10)
    advice = "" if fine else "use Python 3.10 or newer"
    yield Check("python", "ok" if fine else "failed", detail, advice)
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    yield Check("system", "ok", system)


def check_processor(cpuinfo: str | None = None) -> Iterator[Check]:
    """Instructions that decide how fast a weight type is.

    Args:
        cpuinfo: the text of ``/proc/cpuinfo``; read if None.
    """
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text()
        except OSError:
            yield Check("processor", "note", "unknown: no /proc/cpuinfo here")
            return
    match = re.search(r"^(flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    flags = set(match[2].split()) if match else set()
    has = sorted(flags & _INSTRUCTIONS)
    listed = ", ".join(has) or "none of AVX2, AVX-512, BF16"
    if not flags & {"avx2", "asimd"}:
        advice = "TensorFlow's packages need AVX: expect them to fail or to be slow"
        yield Check("processor", "failed", listed, advice)
    elif not flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        advice = "bfloat16 weights are slow here: prefer int8 or float32"
        yield Check("processor", "note", listed, advice)
    else:
        yield Check("processor", "ok", listed)


def check_imports() -> Iterator[Check]:
    """Whether the heavy libraries, where installed, can be imported at all."""
    for name, statement in _IMPORTS.items():
        if not all(_installed(part) for part in name.split(" and ")):
            continue
        yield _try_import(name, statement)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _try_import(name: str, statement: str) -> Check:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    begin = time.monotonic()
    try:
        ended = subprocess.run(
            [sys.executable, "-c", statement],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        detail = f"no answer in {_IMPORT_SECONDS:.0f} s"
        return Check(f"import {name}", "failed", detail, "is the machine overloaded?")
    seconds = time.monotonic() - begin
    if ended.returncode == 0:
        return Check(f"import {name}", "ok", f"{seconds:.1f} s")
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    detail = lines[-1][:300] if lines else f"exit code {ended.returncode}"
    if ended.returncode < 0:
        detail = f"killed by signal {-ended.returncode}"
    advice = f"reinstall it: pip install --force-reinstall {name.replace(' and', '')}"
    return Check(f"import {name}", "failed", detail, advice)
