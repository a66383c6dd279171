"""What an environment has and lacks, as a list of checks.

Imports nothing beyond the base install: what may be broken is tried in processes of
its own, so that one bad library doesn't hide the rest.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..models.config import OPTConfig
from .estimate import estimate_savedmodel
from .footprint import GIB, parameter_count
from .full_disk import free_bytes
from .options import ExportOptions

DISTRIBUTION = "optserve"
EXTRAS = ("export", "serve", "edge", "telemetry", "tokenizers")
STATES = ("ok", "note", "failed")

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?\s*(?P<bounds>[^;]*)"
    r"(;.*extra == ['\"](?P<extra>[\w-]+)['\"].*)?"
)
_IMPORTS = {
    "tensorflow": "import tensorflow",
    "jax": "import jax; jax.devices('cpu')",
    # Both in one process share libraries and have clashed over them.
    "tensorflow and jax": "import tensorflow, jax; jax.devices('cpu')",
    "grpcio": "import grpc; grpc.insecure_channel('127.0.0.1:1').close()",
}
_IMPORT_SECONDS = 180.0
_SOCKET_PATH_LIMIT = 107  # sockaddr_un, less the final zero


@dataclass(frozen=True)
class Check:
    """One finding: ``ok``, ``note`` (it may matter to you) or ``failed``."""

    name: str
    state: str
    found: str
    advice: str = ""


def check_python() -> Iterator[Check]:
    """The interpreter and the system."""
    version, found = sys.version_info, platform.python_version()
    fine = version >= (3, 10)
    advice = "" if fine else "use Python 3.10 or newer"
    yield Check("python", "ok" if fine else "failed", found, advice)
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    yield Check("system", "ok", system)


def check_packages(wanted: tuple[str, ...] = ()) -> Iterator[Check]:
    """Every declared requirement: its version, and the extra that brings it.

    Args:
        wanted: the extras that must be complete; others are noted only.
    """
    for name, bounds, extra in requirements():
        if extra is not None and extra not in EXTRAS:
            continue
        label = name if extra is None else f"{name} [{extra}]"
        brings = DISTRIBUTION if extra is None else f"{DISTRIBUTION}[{extra}]"
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            must = extra is None or extra in wanted
            state = "failed" if must else "note"
            yield Check(label, state, "not installed", f"pip install '{brings}'")
            continue
        if _satisfies(found, bounds):
            yield Check(label, "ok", found)
        else:
            advice = f"pip install --upgrade '{brings}' (it needs {bounds})"
            yield Check(label, "failed", found, advice)


def requirements() -> list[tuple[str, str, str | None]]:
    """The distribution's requirements: name, version bounds, extra."""
    found = []
    for text in metadata.requires(DISTRIBUTION) or []:
        match = _REQUIREMENT.fullmatch(text.strip())
        if match and match["name"] != DISTRIBUTION:
            found.append((match["name"], match["bounds"].strip(), match["extra"]))
    return found


def check_imports() -> Iterator[Check]:
    """Whether the heavy libraries, where installed, can be imported at all."""
    for name, statement in _IMPORTS.items():
        if not all(_installed(part) for part in name.split(" and ")):
            continue
        yield _try_import(name, statement)


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
    has = sorted(flags & {"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "bf16"})
    listed = ", ".join(has) or "none of AVX2, AVX-512, BF16"
    if not flags & {"avx2", "asimd"}:
        advice = "TensorFlow's packages need AVX: expect them to fail or to be slow"
        yield Check("processor", "failed", listed, advice)
    elif not flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        advice = "bfloat16 weights are slow here: prefer int8 or float32"
        yield Check("processor", "note", listed, advice)
    else:
        yield Check("processor", "ok", listed)


def check_checkpoint(path: str | Path) -> Iterator[Check]:
    """Whether a local checkpoint can be read: configuration, weights, tokenizer.

    Only headers of the weight files are read.
    """
    from ..models.checkpoints import CheckpointError, open_weights
    from ..models.config import OPTConfig
    from ..models.weights import weight_shapes

    try:
        config = OPTConfig.from_pretrained(path)
    except (ValueError, OSError, CheckpointError) as error:
        yield Check("config.json", "failed", _sentence(error))
        return
    layers, hidden = config.num_hidden_layers, config.hidden_size
    count = parameter_count(config.to_dict()).total
    found = f"{layers} layers of {hidden}, {count / 1e6:,.1f} M parameters"
    yield Check("config.json", "ok", found)
    try:
        weights = open_weights(path)
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        yield Check("weights", "failed", _sentence(error))
        return
    wrong = [
        f"{name} is {'missing' if name not in weights else weights.shape(name)}, "
        f"expected {shape}"
        for name, shape in weight_shapes(config).items()
        # A tied head is the token table under another name, and may be left out.
        if not (name == "lm_head.weight" and config.tie_word_embeddings)
        and (name not in weights or tuple(weights.shape(name)) != tuple(shape))
    ]
    dtypes = sorted({str(weights.dtype(name)) for name in weights})
    found = f"{weights.format}, {', '.join(dtypes)}, {weights.nbytes / GIB:.2f} GiB"
    if wrong:
        found += f"; {len(wrong)} do not fit the configuration, first: {wrong[0]}"
        yield Check("weights", "failed", found, "is config.json of another model?")
    else:
        yield Check("weights", "ok", found)
    folder = Path(path)
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
        yield Check("tokenizer", "ok", "there")
    else:
        advice = "clients can then send token ids only: add tokenizer.json"
        yield Check("tokenizer", "note", "none in the checkpoint", advice)


def check_room(folder: str | Path, config: OPTConfig | None = None) -> Iterator[Check]:
    """Free memory and disk; against a model's needs if its config is given."""
    memory, disk = available_memory(), free_bytes(folder)
    for name, have in (("memory", memory), ("disk", disk)):
        found = "unknown" if have is None else f"{have / GIB:.1f} GiB free"
        if config is None or have is None:
            yield Check(name, "note" if have is None else "ok", found)
            continue
        planned = estimate_savedmodel(config, ExportOptions())
        peak = max(planned.export_memory, planned.verify_memory)
        need = peak if name == "memory" else planned.artefact
        found += f", {need / GIB:.1f} GiB needed for float32"
        advice = f"a float32 export needs more {name}: int8 weights need about a third"
        fits = have >= need
        yield Check(name, "ok" if fits else "note", found, "" if fits else advice)


def available_memory() -> int | None:
    """Bytes that a process may still take: the container's limit or the machine's."""
    found = []
    try:
        text = Path("/proc/meminfo").read_text()
        if match := re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE):
            found.append(1024 * int(match[1]))
    except OSError:
        pass
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        if limit != "max":
            found.append(max(0, int(limit) - used))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def check_port(port: int) -> Check:
    """Whether a server could listen on a port of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            advice = "choose another port, or 0 for any free one"
            return Check(f"port {port}", "failed", f"not free: {error}", advice)
    return Check(f"port {port}", "ok", "free")


def check_socket(path: str | Path) -> Check:
    """Whether a server could make a Unix socket at a path."""
    path = Path(path)
    length = len(os.fsencode(path.absolute()))
    if length > _SOCKET_PATH_LIMIT:
        found = f"{length} bytes long, {_SOCKET_PATH_LIMIT} are allowed"
        return Check("socket", "failed", found, "choose a shorter path")
    if not os.access(path.absolute().parent, os.W_OK):
        found = f"{path.absolute().parent} does not exist or is not writable"
        return Check("socket", "failed", found, "choose another folder")
    if path.exists() and not path.is_socket():
        return Check("socket", "failed", f"{path} is something else", "remove it")
    return Check("socket", "ok", str(path))


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())


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
        found = f"no answer in {_IMPORT_SECONDS:.0f} s"
        return Check(f"import {name}", "failed", found, "is the machine overloaded?")
    seconds = time.monotonic() - begin
    if ended.returncode == 0:
        return Check(f"import {name}", "ok", f"{seconds:.1f} s")
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    found = lines[-1][:300] if lines else f"exit code {ended.returncode}"
    if ended.returncode < 0:
        found = f"killed by signal {-ended.returncode}"
    advice = f"reinstall it: pip install --force-reinstall {name.replace(' and', '')}"
    return Check(f"import {name}", "failed", found, advice)


def _satisfies(version: str, bounds: str) -> bool:
    """Whether a version keeps to bounds like ``>=1.2,<3`` (releases compared only)."""
    have = _release(version)
    for bound in filter(None, (b.strip() for b in bounds.split(","))):
        match = re.fullmatch(r"(>=|<=|==|!=|<|>|~=)\s*(\S+)", bound)
        if not match:
            continue
        want = _release(match[2])
        width = max(len(have), len(want))
        a, b = (x + (0,) * (width - len(x)) for x in (have, want))
        kept = {
            ">=": a >= b,
            "~=": a >= b,
            "<=": a <= b,
            "==": a == b,
            "!=": a != b,
            "<": a < b,
            ">": a > b,
        }
        if not kept[match[1]]:
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
