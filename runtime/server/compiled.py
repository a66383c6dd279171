"""What XLA compiled for this processor when a version was exported.

Compiling takes most of the time that a compiled export needs to get ready. Programs for
one kind of processor may end the process on another, so each kind has a folder of its
own in the version: ``assets.extra/xla/KEY``. Elsewhere XLA compiles as ever.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

from ..model_dir import COMPILED_PATH

FLAGS = "TF_XLA_FLAGS"
_DIRECTORY = "--tf_xla_persistent_cache_directory"
_READ_ONLY = "--tf_xla_persistent_cache_read_only=true"


def compiled_folder(version_folder: str | os.PathLike[str]) -> Path:
    """Where a version's programs for this processor and this TensorFlow are."""
    return Path(version_folder) / COMPILED_PATH / _processor_key()


def writing_to(folder: Path) -> dict[str, str]:
    """The environment in which XLA keeps in a folder what it compiles."""
    return {FLAGS: _with_flags(f"{_DIRECTORY}={folder}")}


def use_compiled(version_folder: str | os.PathLike[str]) -> bool:
    """Let XLA take what fits from a version's folder; True if there is something.

    To be called before TensorFlow is imported. A folder that the environment names
    already stays.
    """
    folder = compiled_folder(version_folder)
    if _DIRECTORY in os.environ.get(FLAGS, "") or not folder.is_dir():
        return False
    os.environ[FLAGS] = _with_flags(f"{_DIRECTORY}={folder.resolve()} {_READ_ONLY}")
    return True


def _with_flags(flags: str) -> str:
    return f"{os.environ.get(FLAGS, '')} {flags}".strip()


def _processor_key() -> str:
    """16 hexadecimal digits: processor, its instructions, TensorFlow's version."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    about = re.findall(
        r"^(?:model name|flags|Features)\s*:.*", text.partition("\n\n")[0], re.M
    )
    parts = [platform.machine(), version("tensorflow"), *about]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
