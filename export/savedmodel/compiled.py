"""Compiling a version at export, for processors like this one."""

from __future__ import annotations

import threading
from pathlib import Path

from ...models.quiet import import_tensorflow
from ...runtime.server.compiled import compiled_folder, writing_to
from ..errors import ExportError
from ..subprocesses import call_in_subprocess


def compile_for_this_processor(folder: Path) -> None:
    """Warm a version up as a server does, and keep in it what XLA compiles.

    Raises:
        ExportError: nothing was kept, or the version can't be loaded.
    """
    kept = compiled_folder(folder)
    kept.mkdir(parents=True)
    call_in_subprocess(
        _warm_up, environment=writing_to(kept), quiet=True, folder=str(folder)
    )
    if not any(kept.iterdir()):
        raise ExportError(
            "XLA kept nothing of what it compiled: leave --compile-for-this-processor "
            "out"
        )


def _warm_up(folder: str) -> None:
    import_tensorflow()
    from ...runtime.server.loading import VersionLoader
    from ...runtime.server.predict import run_directly
    from ...runtime.server.settings import SessionOptions

    load = VersionLoader(SessionOptions(), run_directly, threading.Event())
    load("opt", 1, Path(folder)).close()
