"""Bringing a version up: check its files, load it, warm it up."""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from ..contract import Manifest
from ..memory import on_huge_pages, release_freed_memory
from ..model_dir import (
    MANIFEST_PATH,
    WARMUP_PATH,
    ModelDirError,
    changed_files,
    read_manifest,
)
from .predict import Runner
from .progress import Progress
from .request_limits import RequestLimits
from .servable import Servable
from .serving_error import failed_precondition
from .settings import SessionOptions
from .warmup import warm_up


@dataclass(frozen=True)
class VersionLoader:
    """Makes a servable of a version's folder, checked and warm.

    ``stopping`` set gives up at the next step; a request of the warm-up is one.
    """

    options: SessionOptions
    run: Runner
    stopping: threading.Event

    def __call__(self, model: str, version: int, folder: Path) -> Servable:
        """Load one version; says on the log what it is doing and how long it took.

        Raises:
            ServingError: tampered files, no SavedModel, or a warm-up request that
                fails; whatever else a broken version makes TensorFlow raise.
        """
        progress = Progress(model, version, self.stopping)
        with progress.step("files checked"):
            manifest = checked_manifest(folder)
        limits = None if manifest is None else RequestLimits(manifest)
        with on_huge_pages():  # weights, and what the first calls pack of them
            with progress.step("graph and weights loaded"):
                servable = Servable(
                    str(folder),
                    self.options,
                    manifest=manifest,
                    limits=limits,
                )
            release_freed_memory()  # what reading the weights has taken besides
            progress.found(servable.found_at_load)
            try:
                warm_up(servable, folder / WARMUP_PATH, self.run, progress)
            except BaseException:
                servable.close()
                raise
        release_freed_memory()
        return servable


def checked_manifest(folder: Path) -> Manifest | None:
    """The version's manifest, its files compared with the digests; None without one.

    Raises:
        ServingError: FAILED_PRECONDITION names the file that is missing, changed, or
            not a file that could be read to its end.
    """
    _check_kinds(folder)
    if not (folder / MANIFEST_PATH).is_file():
        return None
    try:
        manifest = read_manifest(folder)
        problems = changed_files(folder, manifest, exact=False)
    except (ModelDirError, OSError) as error:
        raise failed_precondition(str(error)) from None
    if problems:
        raise failed_precondition(
            f"{folder}: {problems[0]}; copy or export the model again"
        )
    return manifest


def _check_kinds(folder: Path) -> None:
    """Refuse pipes and devices: reading one may never end."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise failed_precondition(
                    f"{path} is not a regular file: copy or export the model again"
                )
