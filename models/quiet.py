"""Importing TensorFlow with oneDNN, and without what nobody asked for.

The lines it prints about itself are written by native code before any log level is
looked at, so only the file descriptor can be turned aside. Whatever else was written
meanwhile is passed on.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_NOISE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|[IWE]\d{4} [\d:. ]+ |"
    rb"To enable the following instructions"
)


def import_tensorflow() -> None:
    """Import TensorFlow; set ``TF_CPP_MIN_LOG_LEVEL=0`` to see all that it says.

    oneDNN multiplies several times as fast as what TensorFlow falls back to on
    processors without AVX-512: 15 rows in 7 instead of 63 ms, 16 in 26 instead of 81,
    on an AMD EPYC (Zen 4) with 2 vCPUs (``tests/benchmarks/claims.py packed-rows``, and
    the same with ``TF_ENABLE_ONEDNN_OPTS=0``).
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if "tensorflow" in sys.modules or os.environ.get(LEVEL) == "0":
        return
    os.environ.setdefault(LEVEL, "3")
    with _stderr_filtered(), _left_for_later("keras.src", "jax"), _without_collecting():
        tensorflow = importlib.import_module("tensorflow")
        tensorflow.config.list_physical_devices("GPU")  # says so where there is none


@contextlib.contextmanager
def _left_for_later(*names: str) -> Iterator[None]:
    """Modules that an import inside does without; whoever needs one imports it later.

    TensorFlow tries Keras, which tries Matplotlib, and JAX: where they are installed
    that takes a third of its time, and 150 MB. ``tf.keras`` loads itself when it is
    used.
    """
    names = tuple(name for name in names if name not in sys.modules)
    blocked: dict[str, Any] = dict.fromkeys(names)  # None: not to be imported
    sys.modules.update(blocked)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Importing makes a million objects and hardly any garbage: looking for it again
    and again takes a sixth of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def _stderr_filtered() -> Iterator[None]:
    try:
        saved = os.dup(2)
    except OSError:  # the process has no standard error
        yield
        return
    sys.stderr.flush()
    try:
        with tempfile.TemporaryFile() as aside:
            os.dup2(aside.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(saved, 2)
                aside.seek(0)
                for line in aside:
                    if not _NOISE.match(line):
                        os.write(2, line)
    finally:
        os.close(saved)
