"""What a path to verify means: a SavedModel or a TFLite file, and its manifest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.config import OPTConfig
from ...runtime.contract import Manifest
from ...runtime.errors import OptserveError
from ...runtime.model_dir import (
    MANIFEST_PATH,
    TFLITE_FILE,
    manifest_digest,
    read_manifest,
    version_folder,
)
from ..errors import ExportError
from ..smoothing import SmoothedWeights, Smoothing
from .plan import Plan, make_plan
from .report import Report
from .rounding import Rounding, savedmodel_rounding, tflite_rounding
from .runner import ExportRunner
from .tflite_runner import TFLiteRunner, make_tflite_plan


@dataclass(frozen=True)
class ExportUnderTest:
    """``file`` is a TFLite model's, None for a SavedModel; ``alone`` if nothing else is
    there."""

    folder: Path
    manifest: Manifest
    file: Path | None
    alone: bool = False

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> ExportUnderTest:
        """What is at a path: a base folder, a version's folder, a ``.tflite`` file.

        Raises:
            ModelDirError: not an export.
            ExportError: a TFLite file or manifest that is not this package's.
        """
        path = Path(path)
        if path.is_file():
            return cls._of_file(path)
        folder = version_folder(path)
        manifest, file = read_manifest(folder), folder / TFLITE_FILE
        if not file.is_file():
            return cls(folder, manifest, None)
        if not manifest.cache_buckets:
            raise ExportError(f"{folder}: its manifest is not a TFLite export's")
        return cls(folder, manifest, file)

    @classmethod
    def _of_file(cls, path: Path) -> ExportUnderTest:
        if path.name == TFLITE_FILE and (path.parent / MANIFEST_PATH).is_file():
            return cls.at(path.parent)
        # What a device reads it with.
        from ...runtime.transports.litert_file import read_manifest

        try:
            return cls(path.parent, read_manifest(path), path, alone=True)
        except OptserveError as error:
            raise ExportError(str(error)) from None

    def plan(self, *others: Manifest, max_length: int | None) -> Plan:
        """Test cases for it, and for ``others`` that are called alike."""
        make = make_plan if self.file is None else make_tflite_plan
        return make(self.manifest, *others, max_length=max_length)

    def runner(self) -> ExportRunner | TFLiteRunner:
        """The model, loaded."""
        if self.file is None:
            return ExportRunner(self.folder, self.manifest)
        return TFLiteRunner(self.file, self.manifest)

    def rounding(self, config: OPTConfig, dtype: str) -> Rounding:
        """What storing weights as ``dtype`` loses in it."""
        if self.file is None:
            return savedmodel_rounding(config, dtype)
        return tflite_rounding(dtype)

    def stored_weights(self, config: OPTConfig, weights: Any) -> Any:
        """The checkpoint's, with their scales moved as they were for its export.

        Raises:
            ExportError: the file that says how is not one.
        """
        if not self.manifest.activations:
            return weights
        try:
            moved = Smoothing.load(self.folder, config)
        except (OSError, ValueError) as error:
            raise ExportError(str(error)) from None
        return SmoothedWeights(weights, config, moved)

    def report(self) -> Report:
        """An empty report on it."""
        return Report(
            export=self.folder.name,
            digest=manifest_digest(self.manifest),
            made_of=self.manifest.checkpoint_digest,
            kind=describe_kind(self.manifest),
        )


def describe_kind(manifest: Manifest) -> str:
    """A few words: framework, compiler, weights and cache."""
    return (
        f"{manifest.framework}/{manifest.compiler}, {manifest.weights_dtype} weights, "
        f"{manifest.cache_dtype} cache"
    )
